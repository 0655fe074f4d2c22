"""request_complete: told and not asked, moves nothing, goes where its request went, never in anybody's way."""

import pytest

from agentd.stats import snapshot
from shared.config.schema import CircuitBreaker
from shared.decision import Decision, Outcome, Verb
from shared.events import EventKind
from shared.segment import BreakerState
from shared.wire.envelope import CancelReason
from shared.wire.verdict import Screened
from tests.agentd.fakes import ALLOWED, BLOCKED, Core, FakeInstance, agent, ask, plan
from tests.support import Clock

MALFORMED = Screened(malformed="no")


def core_of(clock: Clock, *, lockstep: bool = False, **settings: object) -> Core:
    """Agents a and b; plan 0 asks both about heads, plan 1 tells both of the end."""
    plans = [
        plan(ask("a"), ask("b")),
        plan(ask("a", observe=True), ask("b", observe=True), kind=EventKind.REQUEST_COMPLETE, number=1),
    ]
    core = Core(clock, plans, [agent("a", **settings), agent("b")])
    if lockstep:
        lane = core.dispatcher.lanes["a"]
        lane.instance_down(core.instances["a"], "replaced by the test")
        core.instances["a"] = FakeInstance(lane, "a-v1", 1, lockstep=True).up()
    return core


def completions(core: Core, name: str = "a") -> tuple[int, int]:
    """(sent, dropped)."""
    found = snapshot(core.dispatcher.lanes[name], core.clock())["completions"]
    return found["sent"], found["dropped"]


class TestTold:
    def test_no_permit_no_answer_no_call(self, clock: Clock) -> None:
        """To everybody at once; nothing is under way afterwards, nothing counted as a call, nothing replied."""
        core = core_of(clock)
        core.event(1)
        assert [len(core.instances[name].told) for name in ("a", "b")] == [1, 1]
        assert core.instances["a"].sent == []
        assert core.replies == []
        assert core.audit == []
        for name in ("a", "b"):
            assert completions(core, name) == (1, 0)
            ledger = core.dispatcher.lanes[name].ledger
            assert sum(ledger.outcomes) + sum(ledger.observed) + sum(ledger.buckets) == 0
            assert not ledger.recorder
        core.assert_idle()

    def test_it_goes_where_the_request_went_and_releases_it(self, clock: Clock) -> None:
        """Also where that instance is busy or paused; being FINAL it unpins."""
        core = core_of(clock)
        others = [FakeInstance(core.dispatcher.lanes["a"], f"a-{i}").up() for i in (2, 3)]
        core.event(0, final=False)
        everybody = [core.instances["a"], *others]
        (pinned,) = [one for one in everybody if one.sent]
        pinned.is_paused = True
        pinned.limit = 1
        core.dispatcher.cancel(core.worker, 7, CancelReason.TIMEOUT, more_follows=True)
        core.event(1)
        assert [len(one.told) for one in everybody if one is pinned] == [1]
        assert sum(len(one.told) for one in everybody) == 1
        assert pinned.pins == 0
        core.assert_idle()

    def test_its_instance_is_gone(self, clock: Clock) -> None:
        """Disconnected: another instance knows nothing of the request."""
        core = core_of(clock)
        core.event(0, final=False)
        core.dispatcher.lanes["a"].instance_down(core.instances["a"], "gone")
        other = FakeInstance(core.dispatcher.lanes["a"], "a-2").up()
        core.answer("b")
        core.event(1)
        assert other.told == []
        assert completions(core) == (0, 1)
        assert completions(core, "b") == (1, 0)
        core.assert_idle()

    def test_without_a_pin_anybody_does(self, clock: Clock) -> None:
        """Who is asked nothing else is told all the same: also at its limit, not when paused."""
        core = core_of(clock)
        instance = core.instances["a"]
        instance.limit = 1
        core.event(0, exchange=1, final=False)
        core.event(1, exchange=2)
        assert len(instance.told) == 1
        instance.is_paused = True
        core.event(1, exchange=3)
        assert completions(core) == (1, 1)

    def test_no_room(self, clock: Clock) -> None:
        """Dropped and counted; the others are told."""
        core = core_of(clock)
        core.instances["a"].is_full = True
        core.event(1)
        assert (completions(core), completions(core, "b")) == ((0, 1), (1, 0))
        core.assert_idle()

    @pytest.mark.parametrize("why", ["nobody there", "breaker open", "unknown"])
    def test_nobody_to_tell(self, clock: Clock, why: str) -> None:
        """Dropped; no audit record for each request."""
        core = core_of(clock)
        lane = core.dispatcher.lanes["a"]
        if why == "nobody there":
            lane.instance_down(core.instances["a"], "gone")
        elif why == "breaker open":
            lane.force_open(clock())
        else:
            core.worker = core.register(
                b"w2", [plan(ask("b")), plan(ask("x", observe=True), kind=EventKind.REQUEST_COMPLETE, number=1)]
            )
        core.event(1)
        assert core.instances["a"].told == []
        assert completions(core) == ((0, 0) if why == "unknown" else (0, 1))
        assert core.audit == []
        core.assert_idle()

    def test_late_is_not_too_late(self, clock: Clock) -> None:
        """Nobody waits for it: an agentd that stood still tells it all the same."""
        core = core_of(clock)
        core.event(1, in_ms=-500)
        assert completions(core) == (1, 0)
        assert core.dispatcher.expired_total == 0
        core.assert_idle()

    def test_the_rate_limit_is_of_calls(self, clock: Clock) -> None:
        """What is told costs no token."""
        from shared.config.schema import AgentRateLimit

        core = core_of(clock, rate_limit=AgentRateLimit(capacity=1, refill_rate=0.001))
        for exchange in range(5):
            core.event(1, exchange=exchange)
        assert completions(core) == (5, 0)
        core.event(0)
        assert len(core.instances["a"].sent) == 1

    def test_an_observer_still_at_work_holds_the_pin_until_it_ends(self, clock: Clock) -> None:
        """The FINAL event came before its answer."""
        plans = [
            plan(ask("a"), ask("b", observe=True)),
            plan(ask("a", observe=True), kind=EventKind.REQUEST_COMPLETE, number=1),
        ]
        core = Core(clock, plans, [agent("a"), agent("b")])
        core.event(0, final=False)
        core.answer("a")
        core.event(1)
        assert core.instances["b"].pins == 1
        core.answer("b")
        core.assert_idle()


class TestLockstep:
    def test_it_is_a_call_that_moves_nothing(self, clock: Clock) -> None:
        """Whatever comes of it: the breaker, the outcomes and the audit do not notice."""
        for end in (ALLOWED, BLOCKED, MALFORMED, "timeout", "gone"):
            core = core_of(clock, lockstep=True, circuit_breaker=CircuitBreaker(failure_threshold=1))
            lane, instance = core.dispatcher.lanes["a"], core.instances["a"]
            core.event(1)
            (call,) = instance.sent
            if isinstance(end, Screened):
                lane.answered(call, end)
            elif end == "timeout":
                core.pass_ms(200)
                assert [reason for _, reason in instance.cancelled] == [CancelReason.TIMEOUT]
                assert instance.owes == 0
            else:
                lane.instance_down(instance, "gone")
            assert lane.breaker.state is BreakerState.CLOSED
            assert sum(lane.ledger.outcomes) + sum(lane.ledger.observed) == 0
            assert completions(core) == (1, 0)
            assert core.audit == []
            core.assert_idle()

    def test_it_waits_for_its_connection(self, clock: Clock) -> None:
        """Behind the request's own call; then the pin goes."""
        core = core_of(clock, lockstep=True)
        core.event(0, final=False)
        core.event(1)
        instance = core.instances["a"]
        assert len(instance.sent) == 1
        assert core.dispatcher.queued == 1
        instance.answer()
        assert [call.kind for call in instance.sent] == [EventKind.REQUEST_HEADERS, EventKind.REQUEST_COMPLETE]
        assert core.dispatcher.lanes["a"].ledger.queued_total == 0
        instance.answer()
        core.answer("b")
        core.assert_idle()

    def test_half_the_queue_is_for_calls(self, clock: Clock) -> None:
        """No request is refused for what nobody waits for."""
        core = core_of(clock, lockstep=True, max_queue=4)
        core.event(0, exchange=99)
        for exchange in range(5):
            core.event(1, exchange=exchange)
        assert core.dispatcher.queued == 2
        assert completions(core) == (0, 3)
        for exchange in range(10, 12):
            core.event(0, exchange=exchange)
        assert core.dispatcher.queued == 4
        core.event(0, exchange=12)
        core.answer("b", which=-1)
        assert core.decided == [("fail", 503, "a", "queue_full")]

    def test_in_the_queue_when_its_time_is_over(self, clock: Clock) -> None:
        """Dropped, as is what waits when the breaker opens."""
        core = core_of(clock, lockstep=True)
        core.event(0, final=False)
        core.event(1, exchange=8)
        core.event(1, exchange=9)
        core.dispatcher.lanes["a"].force_open(clock())
        assert completions(core) == (0, 2)
        core.answer("a")
        core.answer("b")
        core.dispatcher.lanes["a"].breaker.close(clock())
        core.event(0, final=False, in_ms=5_000)
        core.event(1, exchange=9)
        core.pass_ms(200)
        assert completions(core) == (0, 3)
        core.dispatcher.end(core.worker, 7)
        core.assert_idle()

    def test_the_worker_dies(self, clock: Clock) -> None:
        """What waits is dropped, what was sent keeps its connection until it is answered."""
        core = core_of(clock, lockstep=True)
        core.event(1, exchange=1)
        core.event(1, exchange=2)
        core.dispatcher.worker_gone(core.worker)
        assert core.dispatcher.queued == 0
        lane = core.dispatcher.lanes.get("a")
        assert lane is not None
        lane.released(core.instances["a"].sent[0])
        core.assert_idle()


def test_a_plan_that_waits_for_one_is_no_plan_of_ours(clock: Clock) -> None:
    """compile_plans makes observers of all; their answers decide nothing whatever they say."""
    core = core_of(clock)
    core.event(0, final=False)
    core.answer("a", Screened(Decision(Verb.BLOCK, 403, agent="a", reason="block")))
    core.event(1)
    assert [decision.status for _, decision in core.replies] == [403]
    assert core.dispatcher.lanes["b"].ledger.outcomes[Outcome.CANCELLED] == 1
    core.assert_idle()
