"""Events with bytes beside them: chunks, frames and texts through dispatcher, group, merge and audit."""

import gc
import weakref
from array import array
from typing import Any

import pytest

from agentd.call import CallState
from shared.clock import MS
from shared.decision import (
    ALLOW,
    ChunkAction,
    ChunkVerdict,
    Decision,
    Finding,
    Inspection,
    Outcome,
    Verb,
)
from shared.errors import WireError
from shared.events import EventKind
from shared.plan import Plan
from shared.wire.envelope import CancelReason, Register
from shared.wire.verdict import HEAD, HEAD_AND_HOST, Question, Screened
from tests.agentd.fakes import AGENTS, ALLOWED, BLOCKED, NAMES, Core, FakeInstance, agent, ask, plan
from tests.support import Clock

REQUEST, RESPONSE = EventKind.REQUEST_BODY_CHUNK, EventKind.RESPONSE_BODY_CHUNK
FRAME, TEXT = EventKind.WEBSOCKET_FRAME, EventKind.GUARDRAIL_INSPECT
HOLD = Screened(Decision(chunk=ChunkVerdict(hold=1)), is_kept=True, is_quiet=True)
SKIP = Screened(Decision(chunk=ChunkVerdict(skip=1)), is_kept=True, is_quiet=True)
QUIET = Screened(ALLOW, is_kept=True, is_quiet=True)
DROP = Screened(Decision(chunk=ChunkVerdict(ChunkAction.DROP, 0)))
MALFORMED = Screened(malformed="needs_more on the last chunk")


def replaced(data: bytes) -> Screened:
    return Screened(Decision(body=data, chunk=ChunkVerdict(ChunkAction.REPLACE, 0)))


def core_with(clock: Clock, *modes: str, kind: EventKind = REQUEST) -> Core:
    """Agents a, b, c with these failure modes ("observe" = an observer): plan 0 for heads, plan 1 of this kind."""
    asks = [
        ask(n, "closed" if m == "observe" else m, observe=m == "observe") for n, m in zip(NAMES, modes, strict=False)
    ]
    return Core(clock, [plan(*asks), plan(*asks, kind=kind, number=1)], AGENTS)


def only(core: Core) -> Decision:
    """The one decision so far, taken off."""
    ((_, decision),) = core.replies
    core.replies.clear()
    return decision


class TestAsking:
    def test_what_is_under_way_is_accounted_for(self, clock: Clock) -> None:
        """Memory that bodies explain is nobody's endless message."""
        core = core_with(clock, "closed", "closed")
        for exchange, end in ((1, "answered"), (2, "cancelled")):
            core.event(1, exchange=exchange, final=False, body=memoryview(b"some bytes"))
            assert core.dispatcher.body_bytes == 10
            if end == "cancelled":
                core.dispatcher.cancel(core.worker, exchange, CancelReason.CLIENT_GONE)
            for name in ("a", "b"):
                for call in list(core.instances[name].calls.values()):
                    core.dispatcher.lanes[name].answered(call, QUIET)
            assert core.dispatcher.body_bytes == 0

    def test_every_agent_gets_the_very_bytes_and_the_question(self, clock: Clock) -> None:
        """No copy; index and is_last are what the answer is read against."""
        core = core_with(clock, "closed", "observe")
        body = memoryview(b"some bytes")
        core.event(1, final=False, body=body, index=3, last=True)
        for name in ("a", "b"):
            (call,) = core.instances[name].sent
            assert call.body is body
            assert call.question == Question(REQUEST, False, 3, True)
            assert call.asked.has_body

    @pytest.mark.parametrize("may_set_host", [False, True])
    def test_heads_have_the_same_question_always(self, clock: Clock, may_set_host: bool) -> None:
        """By identity: that is what the memory of verdicts goes by."""
        heads = [
            plan(ask("a"), kind=kind, number=number, may_set_host=may_set_host)
            for number, kind in enumerate((EventKind.REQUEST_HEADERS, EventKind.RESPONSE_HEADERS))
        ]
        core = Core(clock, heads, AGENTS)
        for number in range(2):
            core.event(number)
            assert core.instances["a"].sent[-1].question is (HEAD_AND_HOST if may_set_host else HEAD)
            core.answer("a")

    def test_a_body_where_none_belongs(self, clock: Clock) -> None:
        """Of a head or a text: the worker errs."""
        core = core_with(clock, "closed", kind=TEXT)
        for number in range(2):
            with pytest.raises(WireError, match="has no body"):
                core.event(number, body=b"x")
        core.assert_idle()

    def test_what_is_asked_in_sequence_has_a_plan_for_each(self, clock: Clock) -> None:
        """Such a table is refused: the second agent would not see what the first one made of it."""
        core = core_with(clock, "closed")
        for kind in (REQUEST, RESPONSE, FRAME):
            with pytest.raises(WireError, match="cannot be run"):
                core.register(b"w2", [plan(ask("a"), ask("b"), kind=kind, sequential=True)])

    def test_the_bytes_are_let_go_of(self, clock: Clock) -> None:
        """When all were asked, and when a call has ended, nothing of agentd's holds them; without the collector."""

        class Bytes(array):  # type: ignore[type-arg]
            pass

        core = core_with(clock, "closed", "open", "observe")
        for end in ("answered", "cancelled", "timed out", "too late", "nobody there"):
            if end == "nobody there":
                for name in NAMES:
                    core.dispatcher.lanes[name].instance_down(core.instances[name], "gone")
            gc.disable()
            try:
                owner = Bytes("B", b"x" * 100)
                seen = weakref.ref(owner)
                core.event(1, final=False, body=memoryview(owner), in_ms=-1 if end == "too late" else None)
                del owner
                if end == "answered":
                    for name in NAMES:
                        core.answer(name, HOLD)
                elif end == "cancelled":
                    core.dispatcher.cancel(core.worker, 7, CancelReason.CLIENT_GONE)
                else:
                    core.pass_ms(250)
                for instance in core.instances.values():
                    for call in instance.sent:
                        call.body = None  # as a transport does that has sent it
                    instance.sent.clear()
                    instance.cancelled.clear()
                assert seen() is None, end
            finally:
                gc.enable()
        core.dispatcher.end(core.worker, 7)
        core.assert_idle()

    def test_too_long_for_the_instance(self, clock: Clock) -> None:
        """Not sent, nobody blamed: 413 of a closed request, 502 of a closed response, skipped where it is open."""
        for kind, mode, expected in (
            (REQUEST, "closed", ("fail", 413, "a", "body_too_large")),
            (RESPONSE, "closed", ("fail", 502, "a", "body_too_large")),
            (REQUEST, "open", ("allow", 0, "", "")),
        ):
            core = core_with(clock, mode, kind=kind)
            core.instances["a"].max_body_bytes = 9
            core.event(1, final=False, body=b"123456789")
            assert len(core.instances["a"].sent) == 1
            core.answer("a")
            core.event(1, final=False, body=b"1234567890")
            assert len(core.instances["a"].sent) == 1
            assert core.decided[1:] == [expected]
            (record,) = core.audit
            assert (record.phase, record.agents[0].outcome) == (kind.wire_name, "body_too_large")
            breaker = core.dispatcher.lanes["a"].breaker.snapshot(clock())
            assert (breaker["state"], breaker["failures"]) == ("closed", 0)
            core.dispatcher.end(core.worker, 7)
            core.assert_idle()

    def test_another_instance_may_take_it(self, clock: Clock) -> None:
        """Of a request that is not pinned yet."""
        core = core_with(clock, "closed")
        core.instances["a"].max_body_bytes = 5
        other = FakeInstance(core.dispatcher.lanes["a"], "a-2").up()
        for _ in range(4):
            core.event(1, exchange=core.last_event + 50, body=b"123456")
        assert len(other.sent) == 4
        assert core.instances["a"].sent == []

    def test_bodies_in_the_queue_are_bounded(self, clock: Clock) -> None:
        """As those are that were sent; one alone always may wait, and heads are not held up by them."""
        asks = (ask("a"),)
        settings = agent("a", max_concurrent_calls=1, max_outstanding_bytes=65_536)
        core = Core(clock, [plan(*asks), plan(*asks, kind=REQUEST, number=1)], [settings])
        core.instances["a"].max_body_bytes = 1 << 30
        core.event(1, exchange=1, final=False, body=b"x")
        for exchange, size in ((2, 60_000), (3, 5_536), (4, 1)):
            core.event(1, exchange=exchange, final=False, body=bytes(size))
        assert core.decided == [("fail", 503, "a", "queue_full")]
        core.event(0, exchange=5, final=False)
        assert core.dispatcher.queued == 3
        core.answer("a")
        core.event(1, exchange=6, final=False, body=bytes(60_000))
        assert core.dispatcher.queued == 3
        for _ in range(4):
            core.answer("a")
        core.event(1, exchange=7, final=False, body=b"x")
        core.event(1, exchange=8, final=False, body=bytes(100_000))
        core.answer("a")
        core.answer("a")
        assert len(core.replies) == 8
        assert core.dispatcher.lanes["a"]._queue.body_bytes == 0
        for exchange in range(1, 9):
            core.dispatcher.end(core.worker, exchange)
        core.assert_idle()


class TestDeciding:
    def test_masks_and_editor_are_places_in_the_chain(self, clock: Clock) -> None:
        """Hold of the first, skip of the third, the second's replacement; whoever answers first."""
        core = core_with(clock, "closed", "closed", "closed")
        core.event(1, final=False, body=b"x")
        for name, said in (("c", SKIP), ("b", replaced(b"new")), ("a", HOLD)):
            core.answer(name, said)
        assert only(core) == Decision(body=b"new", chunk=ChunkVerdict(ChunkAction.REPLACE, 1, 0b001, 0b100))
        assert core.audit == []

    def test_the_memory_of_merges_knows_the_place(self, clock: Clock) -> None:
        """The very same two verdicts the other way round come to another mask; a part of the chain to a third."""
        core = core_with(clock, "closed", "closed")
        for first, second, mask in ((HOLD, QUIET, 0b01), (QUIET, HOLD, 0b10), (HOLD, HOLD, 0b11), (HOLD, QUIET, 0b01)):
            core.event(1, final=False, body=b"x")
            core.answer("a", first)
            core.answer("b", second)
            assert only(core) == Decision(chunk=ChunkVerdict(hold=mask))
        core.event(1, final=False, body=b"x", mask=0b10)
        core.answer("b", HOLD)
        assert only(core) == Decision(chunk=ChunkVerdict(hold=0b10))

    def test_not_between_kinds(self, clock: Clock) -> None:
        """What one kind's chain came to is not looked up for another's."""
        asks = [ask("a"), ask("b")]
        core = Core(clock, [plan(*asks, kind=REQUEST), plan(*asks, kind=RESPONSE, number=1)], AGENTS)
        for number in range(2):
            core.event(number, final=False, body=b"x")
            core.answer("a", HOLD)
            core.answer("b", QUIET)
            assert only(core).chunk == ChunkVerdict(hold=1)

    @pytest.mark.parametrize("mode", ["closed", "open"])
    def test_two_mutations_of_one_chunk(self, clock: Clock, mode: str) -> None:
        """The second in chain order breaks the rule: refused or left out by its failure mode, and audited."""
        core = core_with(clock, "closed", mode)
        core.event(1, final=False, body=b"x")
        core.answer("b", DROP)
        core.answer("a", replaced(b"new"))
        decision = only(core)
        if mode == "closed":
            assert (decision.verb, decision.status, decision.agent, decision.reason) == (
                Verb.FAIL,
                503,
                "b",
                "malformed",
            )
        else:
            assert decision == Decision(body=b"new", chunk=ChunkVerdict(ChunkAction.REPLACE, 0))
        entries = core.audit[0].agents
        assert [(e.agent, e.outcome) for e in entries] == [("a", "decision"), ("b", "malformed")]
        assert entries[1].message == "mutates a chunk that a mutates already"

    def test_malformed_follows_the_failure_mode(self, clock: Clock) -> None:
        """needs_more on the last chunk is one."""
        for mode, expected in (("closed", ("fail", 503, "a", "malformed")), ("open", ("allow", 0, "", ""))):
            core = core_with(clock, mode)
            core.event(1, final=False, body=b"x", last=True)
            core.answer("a", MALFORMED)
            assert core.decided == [expected]
            assert core.audit[0].agents[0].message == "needs_more on the last chunk"

    def test_a_block_cancels_the_others(self, clock: Clock) -> None:
        """At once, whatever they would make of the chunk."""
        core = core_with(clock, "closed", "closed")
        core.event(1, final=False, body=b"x")
        core.answer("b", BLOCKED)
        assert only(core).status == 403
        assert [reason for _, reason in core.instances["a"].cancelled] == [CancelReason.DECIDED]
        assert core.audit[0].phase == "request_body_chunk"

    def test_a_close_of_a_websocket(self, clock: Clock) -> None:
        """A block whose status is the code; audited with it."""
        core = core_with(clock, "closed", kind=FRAME)
        core.event(1, final=False, body=b"frame")
        close = Decision(Verb.BLOCK, 1008, body=b"not so", agent="a", reason="close")
        core.answer("a", Screened(close))
        assert only(core) == close
        (record,) = core.audit
        assert (record.decision, record.status, record.decided_by, record.reason) == ("block", 1008, "a", "close")
        assert record.phase == "websocket_frame"

    def test_inspections_are_joined(self, clock: Clock) -> None:
        """In chain order, one of each agent that found something; that is for the worker to judge, and to audit."""
        core = core_with(clock, "closed", "closed", kind=TEXT)
        found = [Inspection(name, True, 0.9, (Finding("email", 1),)) for name in ("a", "b")]
        core.event(1, final=False)
        core.answer("b", Screened(Decision(inspections=(found[1],))))
        core.answer("a", Screened(Decision(inspections=(found[0],))))
        assert only(core) == Decision(inspections=tuple(found))
        assert core.audit == []

    def test_timeouts(self, clock: Clock) -> None:
        """Per call and per event, as of heads."""
        core = core_with(clock, "closed", "open")
        core.event(1, final=False, body=b"x", in_ms=100)
        core.answer("a", HOLD)
        core.pass_ms(100)
        assert only(core) == Decision(chunk=ChunkVerdict(hold=1))
        assert [reason for _, reason in core.instances["b"].cancelled] == [CancelReason.TIMEOUT]


class TestObservers:
    def test_skip_body_is_remembered_for_its_exchange_and_direction(self, clock: Clock) -> None:
        """Not asked for the rest; the deciding agent is, and the other direction and requests are their own."""
        asks = [ask("a"), ask("b", observe=True)]
        core = Core(clock, [plan(*asks, kind=REQUEST), plan(*asks, kind=RESPONSE, number=1)], AGENTS)
        watching = core.instances["b"]
        core.event(0, final=False, body=b"1")
        core.answer("b", SKIP)
        core.answer("a", QUIET)
        for index in range(1, 3):
            core.event(0, final=False, body=b"2", index=index)
            core.answer("a", QUIET)
        assert len(watching.sent) == 1
        core.event(1, final=False, body=b"3")
        core.event(0, final=False, body=b"4", exchange=8)
        assert len(watching.sent) == 3
        assert core.audit == [], "that it wants no more is nothing it would have done"
        assert core.worker.skips == {7: {0: 0b10}}
        for exchange in (7, 8):
            core.dispatcher.cancel(core.worker, exchange, CancelReason.CLIENT_GONE)
        assert core.worker.skips == {}
        core.assert_idle()

    @pytest.mark.parametrize("end", ["end", "cancel", "final", "late"])
    def test_it_is_forgotten_with_the_exchange(self, clock: Clock, end: str) -> None:
        """Also when the observer says so after the end."""
        core = core_with(clock, "closed", "observe")
        core.event(1, final=False, body=b"1")
        core.answer("a", QUIET)
        if end == "late":
            core.dispatcher.end(core.worker, 7)
        core.answer("b", SKIP)
        if end == "end":
            core.dispatcher.end(core.worker, 7)
        elif end == "cancel":
            core.dispatcher.cancel(core.worker, 7, CancelReason.CLIENT_GONE, more_follows=True)
            assert core.worker.skips
            core.dispatcher.cancel(core.worker, 7, CancelReason.CLIENT_GONE)
        elif end == "final":
            core.event(1, body=b"2", index=1)
            core.answer("a", QUIET)
        assert core.worker.skips == {}
        core.assert_idle()

    def test_observers_alone_that_all_skip(self, clock: Clock) -> None:
        """The event ends at once; nobody waits for it."""
        core = core_with(clock, "observe")
        core.event(1, final=False, body=b"1")
        core.answer("a", SKIP)
        core.event(1, body=b"2", index=1)
        assert len(core.instances["a"].sent) == 1
        # Nobody waits for these, but the worker counts what is on its way to us.
        assert [(event_id, decision) for event_id, decision in core.replies] == [(1, ALLOW), (2, ALLOW)]
        core.assert_idle()

    def test_what_it_would_have_done(self, clock: Clock) -> None:
        """A mutation or refusal is told, by its length; holding and skipping are not."""
        core = core_with(clock, "closed", "observe")
        said: list[tuple[Screened, dict[str, Any] | None]] = [
            (HOLD, None),
            (replaced(b"123"), {"decision": "allow", "mutation": "replace", "body_bytes": 3}),
            (DROP, {"decision": "allow", "mutation": "drop"}),
            (BLOCKED, {"decision": "block", "status": 403}),
        ]
        for screened, told in said:
            core.audit.clear()
            core.event(1, final=False, body=b"x")
            core.answer("b", screened)
            core.answer("a", QUIET)
            assert only(core) is ALLOW
            assert [record.agents[1].would_have for record in core.audit] == ([] if told is None else [told])


class TestCancelling:
    def test_several_groups_of_both_directions(self, clock: Clock) -> None:
        """All are cancelled; pins and skips go, unless a last event is still to come."""
        asks = [ask("a"), ask("b", observe=True)]
        plans = [plan(*asks, kind=REQUEST), plan(*asks, kind=RESPONSE, number=1)]
        for more in (False, True):
            core = Core(clock, plans, AGENTS)
            core.event(0, final=False, body=b"1")
            core.event(1, final=False, body=b"2")
            core.dispatcher.cancel(core.worker, 7, CancelReason.CLIENT_GONE, more)
            for name in ("a", "b"):
                assert [reason for _, reason in core.instances[name].cancelled] == [CancelReason.CLIENT_GONE] * 2
            assert core.replies == []
            assert core.worker.exchanges == {}
            assert (core.instances["a"].pins == 1) is more
            core.dispatcher.end(core.worker, 7)
            core.assert_idle()

    def test_decided_leaves_observers(self, clock: Clock) -> None:
        """Another agent decided in the other direction: what observers have is theirs to finish."""
        asks = [ask("a"), ask("b", observe=True)]
        core = Core(clock, [plan(*asks, kind=REQUEST), plan(*asks, kind=RESPONSE, number=1)], AGENTS)
        core.event(0, final=False, body=b"1")
        core.event(1, final=False, body=b"2")
        core.dispatcher.cancel(core.worker, 7, CancelReason.DECIDED, more_follows=True)
        assert len(core.instances["a"].cancelled) == 2
        assert core.instances["b"].cancelled == []
        for _ in range(2):
            core.answer("b", QUIET)
        core.dispatcher.end(core.worker, 7)
        core.assert_idle()

    def test_a_held_call_keeps_no_bytes(self, clock: Clock) -> None:
        """On a lockstep connection the call stays until it is answered; its body does not."""
        core = core_with(clock, "closed")
        lane = core.dispatcher.lanes["a"]
        lane.instance_down(core.instances["a"], "gone")
        slow = FakeInstance(lane, "a-2", 1, lockstep=True).up()
        core.event(1, final=False, body=b"1")
        core.dispatcher.cancel(core.worker, 7, CancelReason.CLIENT_GONE)
        (call,) = slow.sent
        assert (call.state, call.body) == (CallState.HELD, None)
        lane.released(call)
        core.assert_idle()


def test_the_whole_chain_is_pinned(clock: Clock) -> None:
    """Chunks go where the head went; if that instance is gone they are Disconnected."""
    core = core_with(clock, "closed")
    other = FakeInstance(core.dispatcher.lanes["a"], "a-2").up()
    core.event(0, final=False)
    first = other if other.sent else core.instances["a"]
    first.answer(ALLOWED)
    for index in range(5):
        core.event(1, final=False, body=b"x", index=index)
        first.answer(QUIET)
    assert len(first.sent) == 6
    core.dispatcher.lanes["a"].instance_down(first, "gone")
    core.event(1, final=False, body=b"x", index=6)
    assert core.decided[-1] == ("fail", 503, "a", "disconnected")
    assert core.audit[-1].agents[0].outcome == Outcome.DISCONNECTED.word
    core.dispatcher.end(core.worker, 7)
    core.assert_idle()


def test_the_deadline_of_a_plan_is_the_events(clock: Clock) -> None:
    """An event of a table made by hand: nothing of the plan is forgotten on the way."""
    asks = (ask("a", timeout_ms=50), ask("b", timeout_ms=70))
    core = Core(clock, [Plan(0, "r", FRAME, False, False, asks)], AGENTS)
    core.event(body=b"x", final=False)
    calls = [core.instances[name].sent[0] for name in ("a", "b")]
    assert [call.deadline_ns - clock() for call in calls] == [50 * MS, 70 * MS]
    core.dispatcher.register(b"w1", Register(1, 0, "d", "c-", ()), lambda number, decision: None)
    assert all(call.state is CallState.ENDED for call in calls)
