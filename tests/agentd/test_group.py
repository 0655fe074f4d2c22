"""One event: who is asked when, when it is decided, what the others hear, and what the auditor reads."""

import gc

import pytest

from agentd.call import CallState
from agentd.group import EventGroup
from agentd.stats import snapshot
from shared.config.schema import CircuitBreaker
from shared.decision import ALLOW, Decision, HeaderOp, OpAction, Verb
from shared.wire.envelope import CancelReason
from shared.wire.verdict import Screened
from tests.agentd.fakes import AGENTS, ALLOWED, BLOCKED, NAMES, WITH_OPS, Core, agent, ask, core_of, plan, refusing
from tests.support import Clock

ERROR, MALFORMED = Screened(error="oops: no"), Screened(malformed="a verdict needs a decision")


def asked(core: Core) -> list[str]:
    """Who has been sent something."""
    return [name for name in NAMES if core.instances[name].sent]


class TestParallel:
    def test_waits_for_all_allows(self, clock: Clock) -> None:
        """All asked at once; the reply comes with the last answer; operations are joined in chain order."""
        core = core_of(clock, "closed", "closed", "closed")
        core.event()
        assert asked(core) == ["a", "b", "c"]
        op = HeaderOp(OpAction.SET, "x-first", "1")
        core.answer("c", WITH_OPS)
        core.answer("a", Screened(Decision(request_ops=(op,), agent="a")))
        assert core.replies == []
        core.answer("b")
        decision = core.replies[0][1]
        assert [o.name for o in decision.request_ops] == ["x-first", "x-agent"]
        assert core.audit == []
        core.assert_idle()

    def test_first_block_ends_the_phase(self, clock: Clock) -> None:
        """At once; the others are cancelled as decided; their later answers change nothing."""
        core = core_of(clock, "closed", "closed", "closed")
        core.event()
        core.answer("a")
        late = next(iter(core.instances["c"].calls.values()))
        core.answer("b", refusing(Verb.BLOCK, 403, "b"))
        assert core.decided == [("block", 403, "b", "block")]
        assert [reason for _, reason in core.instances["c"].cancelled] == [CancelReason.DECIDED]
        core.dispatcher.lanes["c"].answered(late, refusing(Verb.BLOCK, 418, "c"))
        assert len(core.replies) == 1
        assert [(e.agent, e.outcome, e.verdict) for e in core.audit[0].agents] == [
            ("a", "decision", "allow"),
            ("b", "decision", "block"),
            ("c", "cancelled", ""),
        ]
        core.assert_idle()

    @pytest.mark.parametrize("verb", [Verb.CHALLENGE, Verb.REDIRECT])
    def test_challenge_and_redirect_wait(self, clock: Clock, verb: Verb) -> None:
        """A later block outranks them; without one they stand."""
        for last, expected in ((BLOCKED, "block"), (ALLOWED, verb.word)):
            core = core_of(clock, "closed", "closed")
            core.event()
            core.answer("a", refusing(verb, 302, "a"))
            assert core.replies == []
            core.answer("b", last)
            assert core.decided[0][0] == expected

    def test_a_failure_waits_and_is_never_outweighed_by_an_allow(self, clock: Clock) -> None:
        """Fail-closed: the refusal stands after all have answered; a redirect outranks it."""
        for last, expected in ((ALLOWED, "fail"), (refusing(Verb.REDIRECT, 302, "b"), "redirect")):
            core = core_of(clock, "closed", "closed")
            core.event()
            core.answer("a", ERROR)
            assert core.replies == []
            core.answer("b", last)
            assert core.decided[0][0] == expected

    def test_open_failures_are_skipped_and_audited(self, clock: Clock) -> None:
        """The request passes; the record says who failed and how."""
        core = core_of(clock, "open", "closed")
        core.event()
        core.answer("a", MALFORMED)
        core.answer("b")
        assert core.decided == [("allow", 0, "", "")]
        record = core.audit[0]
        assert (record.decision, record.reason) == ("allow", "")
        assert (record.agents[0].outcome, record.agents[0].message) == ("malformed", "a verdict needs a decision")
        assert record.agents[0].failure_mode == "open"

    def test_failing_at_once(self, clock: Clock) -> None:
        """Agents that cannot be asked do not end the phase for the others, nor hold it up."""
        core = core_of(clock, "open", "closed", "open")
        for name in ("a", "c"):
            core.dispatcher.lanes[name].instance_down(core.instances[name], "gone")
        core.event()
        assert core.replies == []
        core.answer("b")
        assert core.decided == [("allow", 0, "", "")]
        core.dispatcher.lanes["b"].force_open(clock())
        core.event()
        assert core.decided[1:] == [("fail", 503, "b", "breaker_open")]
        core.assert_idle()

    def test_mask(self, clock: Clock) -> None:
        """Only the agents of the mask are asked; the others count as if they were not in the plan."""
        core = core_of(clock, "closed", "closed", "closed")
        core.event(mask=0b101)
        assert asked(core) == ["a", "c"]
        core.answer("a")
        core.answer("c")
        assert core.decided == [("allow", 0, "", "")]
        core.event(mask=0)
        assert len(core.replies) == 1
        core.assert_idle()

    def test_deadline_with_some_answers(self, clock: Clock) -> None:
        """What is at hand counts, what is not has timed out: fail-closed refuses, fail-open is skipped."""
        for mode, expected in (("closed", ("fail", 504, "b", "timeout")), ("open", ("allow", 0, "", ""))):
            core = core_of(clock, "closed", mode)
            core.event()
            core.answer("a")
            core.pass_ms(200)
            assert core.decided == [expected]
            core.assert_idle()


class TestSequential:
    def test_in_chain_order(self, clock: Clock) -> None:
        """Each is asked after the one before allowed; operations are joined."""
        core = core_of(clock, "closed", "closed", "closed", sequential=True)
        core.event()
        for name in NAMES:
            assert asked(core)[-1] == name
            core.answer(name, WITH_OPS)
        assert len(core.replies[0][1].request_ops) == 3
        core.assert_idle()

    @pytest.mark.parametrize("verb", [Verb.BLOCK, Verb.CHALLENGE, Verb.REDIRECT])
    def test_stops_at_the_first_refusal(self, clock: Clock, verb: Verb) -> None:
        """Whatever kind it is; the rest is not asked."""
        core = core_of(clock, "closed", "closed", "closed", sequential=True)
        core.event()
        core.answer("a")
        core.answer("b", refusing(verb, 400, "b"))
        assert core.decided == [(verb.word, 400, "b", verb.word)]
        assert asked(core) == ["a", "b"]
        core.assert_idle()

    def test_stops_at_a_closed_failure_and_skips_an_open_one(self, clock: Clock) -> None:
        """An open agent that fails is passed over, a closed one refuses."""
        core = core_of(clock, "open", "closed", "closed", sequential=True)
        core.event()
        core.answer("a", ERROR)
        core.answer("b", MALFORMED)
        assert core.decided == [("fail", 503, "b", "malformed")]
        assert asked(core) == ["a", "b"]

    def test_absent_ones_in_the_chain(self, clock: Clock) -> None:
        """Disconnected at once and open: the next is asked in the same breath."""
        core = core_of(clock, "open", "open", "closed", sequential=True)
        for name in ("a", "b"):
            core.dispatcher.lanes[name].instance_down(core.instances[name], "gone")
        core.event()
        core.answer("c")
        assert core.decided == [("allow", 0, "", "")]
        core.event(mask=0b011)
        assert core.decided[1:] == [("allow", 0, "", "")]

    def test_deadline_in_the_middle(self, clock: Clock) -> None:
        """The one being asked has timed out; those behind it are not asked and count as timed out."""
        core = core_of(clock, "open", "open", "closed", sequential=True)
        core.event(in_ms=100)
        core.pass_ms(60)
        core.answer("a")
        core.pass_ms(40)
        assert core.decided == [("fail", 504, "c", "timeout")]
        assert asked(core) == ["a", "b"]
        assert [entry.message for entry in core.audit[0].agents] == ["", "no answer in time", "no time left to ask"]
        core.assert_idle()

    def test_each_has_its_own_timeout(self, clock: Clock) -> None:
        """The event's deadline is the sum; a slow first one uses up only its own part."""
        core = core_of(clock, "open", "closed", sequential=True)
        core.event()
        core.pass_ms(200)
        assert asked(core) == ["a", "b"]
        core.pass_ms(100)
        core.answer("b")
        assert core.decided == [("allow", 0, "", "")]

    def test_mask(self, clock: Clock) -> None:
        """Agents outside the mask are passed over."""
        core = core_of(clock, "closed", "closed", "closed", sequential=True)
        core.event(mask=0b110)
        core.answer("b")
        core.answer("c")
        assert asked(core) == ["b", "c"]
        assert core.decided == [("allow", 0, "", "")]


class TestObservers:
    @pytest.mark.parametrize("sequential", [False, True])
    def test_no_effect_on_the_decision(self, clock: Clock, sequential: bool) -> None:
        """Neither verdict nor latency: the reply does not wait for it; what it would have done is audited."""
        core = core_of(clock, "observe", "closed", sequential=sequential)
        core.event()
        core.answer("b")
        assert core.decided == [("allow", 0, "", "")]
        assert core.audit == []
        ops = (HeaderOp(OpAction.ADD, "x-a", "1"), HeaderOp(OpAction.REMOVE, "x-b"))
        verdict = Decision(Verb.BLOCK, 451, (("x-by", "a"),), b"no", response_ops=ops, agent="a", reason="block")
        core.answer("a", Screened(verdict))
        (record,) = core.audit
        assert record.decision == "allow"
        assert record.agents[0].observed
        assert record.agents[0].failure_mode == ""
        assert record.agents[0].would_have == {
            "decision": "block",
            "status": 451,
            "headers": [["x-by", "a"]],
            "body_bytes": 2,
            "response_headers": [{"add": {"name": "x-a", "value": "1"}}, {"remove": {"name": "x-b"}}],
        }
        core.assert_idle()

    def test_no_effect_of_its_failure(self, clock: Clock) -> None:
        """An observer that fails, times out or is not there leaves the request alone."""
        core = core_of(clock, "observe", "observe", "closed")
        core.dispatcher.lanes["b"].instance_down(core.instances["b"], "gone")
        core.event()
        core.answer("a", ERROR)
        core.answer("c")
        assert core.decided == [("allow", 0, "", "")]
        assert [entry.outcome for entry in core.audit[0].agents] == ["agent_error", "disconnected", "decision"]
        core.assert_idle()

    def test_operations_of_an_observer_are_told_not_applied(self, clock: Clock) -> None:
        """An allow with header operations is worth a record, a plain one is not."""
        core = core_of(clock, "observe", "closed")
        for answer in (ALLOWED, WITH_OPS):
            core.event()
            core.answer("a", answer)
            core.answer("b")
        assert [decision for _, decision in core.replies] == [ALLOW, ALLOW]
        (record,) = core.audit
        assert record.agents[0].would_have == {
            "decision": "allow",
            "request_headers": [{"set": {"name": "x-agent", "value": "ok"}}],
        }

    def test_not_cancelled_by_a_decision(self, clock: Clock) -> None:
        """A block ends the phase, the observer works on, until its own timeout at most."""
        core = core_of(clock, "observe", "closed", "closed")
        core.event()
        core.answer("b", BLOCKED)
        assert core.instances["a"].cancelled == []
        assert len(core.instances["c"].cancelled) == 1
        assert core.audit == []
        core.pass_ms(200)
        assert [entry.outcome for entry in core.audit[0].agents] == ["timeout", "decision", "cancelled"]
        core.assert_idle()

    def test_own_timeout_may_be_longer_than_the_event(self, clock: Clock) -> None:
        """A slow observer beside a fast enforcing agent still gets its time."""
        core = Core(clock, [plan(ask("a", observe=True, timeout_ms=500), ask("b", timeout_ms=50))], AGENTS)
        core.event()
        core.pass_ms(50)
        assert core.decided == [("fail", 504, "b", "timeout")]
        core.pass_ms(400)
        assert core.instances["a"].cancelled == []
        core.answer("a")
        core.assert_idle()

    def test_outside_the_mask(self, clock: Clock) -> None:
        """An observer that is not asked is not asked."""
        core = core_of(clock, "observe", "closed", "observe")
        core.event(mask=0b110)
        assert asked(core) == ["b", "c"]

    @pytest.mark.parametrize("how", ["plan", "mask"])
    def test_alone_nobody_waits(self, clock: Clock, how: str) -> None:
        """No decision is sent; its verdict is audited as observed."""
        core = core_of(clock, "observe", *([] if how == "plan" else ["closed"]))
        core.event(mask=1)
        assert core.dispatcher.awaited == 0
        core.answer("a", BLOCKED)
        assert core.replies == []
        assert (core.audit[0].decision, core.audit[0].reason) == ("allow", "observed")
        core.assert_idle()

    def test_dropped_ones_are_not_audited(self, clock: Clock) -> None:
        """No free permit: counted by the lane; a record for each would be a flood of nothing."""
        core = Core(clock, [plan(ask("a", observe=True))], [agent("a", max_concurrent_calls=1)])
        core.event()
        core.event()
        core.answer("a")
        assert core.audit == []
        assert snapshot(core.dispatcher.lanes["a"], clock())["observed"]["queue_full"] == 1
        core.assert_idle()


def test_a_closed_group_is_freed_without_the_collector(clock: Clock) -> None:
    """Calls and group know each other; that ends with the group."""
    core = core_of(clock, "closed", "observe")
    gc.disable()
    try:
        core.event()
        before = sum(isinstance(o, EventGroup) for o in gc.get_objects())
        core.answer("b")
        core.answer("a")
        for instance in core.instances.values():
            instance.sent.clear()
        assert sum(isinstance(o, EventGroup) for o in gc.get_objects()) == before - 1
    finally:
        gc.enable()


def test_synchronous_answers(clock: Clock) -> None:
    """A transport that answers inside send() is as good as any other: one decision, nothing left."""
    core = core_of(clock, "closed", "closed", "closed")
    for name, screened in (("a", ALLOWED), ("b", BLOCKED)):
        instance = core.instances[name]
        instance.send = (  # type: ignore[method-assign]
            lambda call, instance=instance, screened=screened: instance.lane.answered(call, screened) or True
        )
    core.event()
    assert core.decided[0][0] == "block"
    assert asked(core) == []
    core.assert_idle()


def test_a_synchronous_block_beside_an_observer(clock: Clock) -> None:
    """Who stands behind it in the chain is not asked any more; the observer is."""
    core = core_of(clock, "closed", "closed", "observe")
    instance = core.instances["a"]
    instance.send = lambda call: instance.lane.answered(call, BLOCKED) or True  # type: ignore[method-assign]
    core.event()
    assert core.decided[0][0] == "block"
    assert asked(core) == ["c"]


def test_a_block_beside_an_unknown_agent(clock: Clock) -> None:
    """There is nothing to cancel at a name that nobody knows."""
    core = Core(clock, [plan(ask("ghost", "open"), ask("a"), ask("b"))], AGENTS)
    core.event()
    core.answer("a", BLOCKED)
    assert core.decided[0][0] == "block"
    core.assert_idle()


@pytest.mark.parametrize("sequential", [False, True])
def test_the_workers_message_is_let_go(clock: Clock, sequential: bool) -> None:
    """An observer that works on does not keep the event's bytes in the group."""
    core = core_of(clock, "closed", "observe", sequential=sequential)
    core.event()
    ((group,),) = core.worker.exchanges.values()
    core.answer("a")
    assert group.event == b""
    assert not group.is_closed


def test_breaker_opening_under_a_group(clock: Clock) -> None:
    """Queued calls of other events fail fast when the breaker opens, each group once."""
    quick = agent("a", max_concurrent_calls=1, circuit_breaker=CircuitBreaker(failure_threshold=1))
    core = Core(clock, [plan(ask("a"))], [quick])
    for exchange in range(3):
        core.event(exchange=exchange)
    core.answer("a", ERROR)
    assert [reason for *_, reason in core.decided] == ["agent_error", "breaker_open", "breaker_open"]
    assert all(call.state is CallState.ENDED for call in core.instances["a"].sent)
    core.assert_idle()
