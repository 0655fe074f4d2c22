"""One agent's lane: whatever happens, a call ends once, permits come back, and only what was sent is blamed."""

from collections import Counter

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from agentd.call import Call, CallState
from agentd.stats import snapshot
from shared.clock import MS
from shared.config.schema import CircuitBreaker
from shared.decision import Outcome
from shared.wire.envelope import CancelReason
from shared.wire.segment import BreakerState
from shared.wire.verdict import Screened
from tests.agentd.fakes import ALLOWED, BLOCKED, FakeInstance, LaneBench, agent
from tests.support import Clock

MALFORMED, ERROR = Screened(malformed="no decision"), Screened(error="oops: broken")


class TestOutcomes:
    def test_verdicts_are_successes(self, clock: Clock) -> None:
        """Allow and block both end as a decision; the breaker sees no failure."""
        bench = LaneBench(clock)
        instance = bench.instance()
        first, second = bench.call(), bench.call()
        assert instance.sent == [first, second]
        assert bench.lane.in_flight == 2
        instance.answer(BLOCKED)
        instance.answer()
        assert bench.waiter.outcomes == [Outcome.DECISION] * 2
        assert first.screened is BLOCKED
        assert bench.lane.breaker.failures(clock()) == 0
        bench.assert_idle()

    @pytest.mark.parametrize(
        ("screened", "outcome", "message"),
        [(MALFORMED, Outcome.MALFORMED, "no decision"), (ERROR, Outcome.AGENT_ERROR, "oops: broken")],
    )
    def test_unusable_verdicts_are_failures(
        self, clock: Clock, screened: Screened, outcome: Outcome, message: str
    ) -> None:
        """Malformed replies and explicit errors are told apart and both blamed."""
        bench = LaneBench(clock)
        instance = bench.instance()
        call = bench.call()
        instance.answer(screened)
        assert (call.outcome, call.message) == (outcome, message)
        assert bench.lane.breaker.failures(clock()) == 1

    def test_failed_by_the_transport(self, clock: Clock) -> None:
        """A reply that could not even be read is blamed, with its reason."""
        bench = LaneBench(clock)
        bench.instance()
        call = bench.call()
        bench.lane.failed(call, Outcome.MALFORMED, "not JSON")
        assert (call.outcome, call.message) == (Outcome.MALFORMED, "not JSON")
        assert bench.lane.breaker.failures(clock()) == 1
        bench.assert_idle()

    def test_no_instance_is_disconnected_at_once(self, clock: Clock) -> None:
        """Not a wait, not a skip, and not the agent's failure: nothing was sent."""
        bench = LaneBench(clock)
        call = bench.call()
        assert (call.outcome, call.message) == (Outcome.DISCONNECTED, "no live instance")
        assert bench.lane.breaker.failures(clock()) == 0
        bench.assert_idle()

    def test_own_timeout(self, clock: Clock) -> None:
        """At start + timeout_ms: CANCEL goes to the agent, the permit is back, the agent is blamed."""
        bench = LaneBench(clock)
        instance = bench.instance()
        call = bench.call(timeout_ms=200)
        assert bench.armed == [clock() + 200 * MS] == [bench.lane.next_deadline()]
        bench.lane.expire(clock.ms(199))
        assert call.state is CallState.SENT
        bench.lane.expire(clock.ms(1))
        assert bench.waiter.outcomes == [Outcome.TIMEOUT]
        assert instance.cancelled == [(call, CancelReason.TIMEOUT)]
        assert instance.calls == {}
        assert bench.lane.breaker.failures(clock()) == 1
        bench.assert_idle()

    def test_the_groups_timeout(self, clock: Clock) -> None:
        """Where the event's deadline comes first the lane leaves it to the group."""
        bench = LaneBench(clock)
        bench.instance()
        call = bench.call(timeout_ms=200, deadline_ms=150)
        assert bench.lane.next_deadline() is None
        bench.lane.timed_out(call, clock.ms(150))
        bench.lane.timed_out(call, clock())
        assert bench.waiter.outcomes == [Outcome.TIMEOUT]
        bench.assert_idle()

    def test_answer_forgets_the_deadline(self, clock: Clock) -> None:
        """An answered call does not expire later."""
        bench = LaneBench(clock)
        instance = bench.instance()
        bench.call()
        instance.answer()
        bench.lane.expire(clock.s(1))
        assert bench.waiter.outcomes == [Outcome.DECISION]

    def test_death_fails_pending_calls_at_once(self, clock: Clock) -> None:
        """All calls sent there are Disconnected and blamed; a second report of the death is nothing."""
        bench = LaneBench(clock, circuit_breaker=CircuitBreaker(failure_threshold=100))
        instance = bench.instance()
        for _ in range(3):
            bench.call()
        bench.lane.instance_down(instance, "connection lost")
        bench.lane.instance_down(instance, "connection lost")
        assert bench.waiter.outcomes == [Outcome.DISCONNECTED] * 3
        assert bench.waiter.heard[0][0].message == "connection lost"
        assert bench.lane.breaker.failures(clock()) == 3
        assert instance.calls == {}
        assert not instance.is_live
        bench.assert_idle()

    def test_dead_on_sending(self, clock: Clock) -> None:
        """A transport that finds its connection dead inside send() ends the call once."""
        bench = LaneBench(clock)
        instance = bench.instance()
        instance.dies_on_send = True
        bench.call()
        assert bench.waiter.outcomes == [Outcome.DISCONNECTED]
        assert bench.lane.live_instances == 0
        bench.assert_idle()


class TestCapacity:
    def test_over_all_instances(self, clock: Clock) -> None:
        """max_concurrent_calls counts the lane, not the instance."""
        bench = LaneBench(clock, max_concurrent_calls=3)
        one, other = bench.instance("i1"), bench.instance("i2")
        for _ in range(5):
            bench.call()
        assert len(one.sent) + len(other.sent) == 3 == bench.lane.in_flight
        assert bench.lane.queued == 2

    def test_per_instance(self, clock: Clock) -> None:
        """HELLO's max_concurrency holds where it is the smaller one."""
        bench = LaneBench(clock)
        instance = bench.instance(limit=2)
        for _ in range(3):
            bench.call()
        assert (len(instance.sent), bench.lane.queued) == (2, 1)

    def test_first_in_first_out(self, clock: Clock) -> None:
        """A returned permit goes to whoever waits longest; newcomers do not overtake."""
        bench = LaneBench(clock, max_concurrent_calls=1)
        instance = bench.instance()
        calls = [bench.call() for _ in range(4)]
        for _ in range(4):
            instance.answer()
        assert instance.sent == calls
        assert bench.lane.ledger.queued_total == 3
        bench.assert_idle()

    def test_newcomer_waits_behind_the_queue(self, clock: Clock) -> None:
        """Also when a place is free but another call is on its way to it."""
        bench = LaneBench(clock)
        instance = bench.instance()
        instance.is_paused = True
        old = bench.call()
        instance.is_paused = False  # nobody has said woken() yet
        new = bench.call()
        bench.lane.woken()
        assert instance.sent == [old, new]

    def test_queue_is_bounded(self, clock: Clock) -> None:
        """One more than max_queue is refused at once, without blame."""
        bench = LaneBench(clock, max_concurrent_calls=1, max_queue=2)
        bench.instance()
        calls = [bench.call() for _ in range(4)]
        assert (calls[3].outcome, calls[3].message) == (Outcome.QUEUE_FULL, "queue is full")
        assert bench.lane.queued == 2
        assert bench.lane.breaker.failures(clock()) == 0

    def test_no_queue_at_all(self, clock: Clock) -> None:
        """max_queue = 0: at once or not at all."""
        bench = LaneBench(clock, max_concurrent_calls=1, max_queue=0)
        bench.instance()
        bench.call()
        assert bench.call().outcome is Outcome.QUEUE_FULL

    def test_expiry_in_the_queue_blames_nobody(self, clock: Clock) -> None:
        """It is a Timeout for the request; nothing is sent, nothing counted against the agent."""
        bench = LaneBench(clock, max_concurrent_calls=1)
        instance = bench.instance()
        first = bench.call(timeout_ms=500)
        waiting = bench.call(timeout_ms=100)
        bench.lane.expire(clock.ms(100))
        assert bench.waiter.heard == [(waiting, Outcome.TIMEOUT)]
        assert waiting.message == "timed out in the queue"
        assert bench.lane.breaker.failures(clock()) == 0
        assert instance.sent == [first]
        instance.answer()
        bench.assert_idle()

    def test_expired_work_is_dropped_before_it_is_sent(self, clock: Clock) -> None:
        """A permit that comes back after the deadline is not spent on a call nobody waits for."""
        bench = LaneBench(clock, max_concurrent_calls=1)
        instance = bench.instance()
        first, late, last = bench.call(), bench.call(timeout_ms=50), bench.call()
        clock.ms(50)
        instance.answer()
        assert bench.waiter.heard == [(first, Outcome.DECISION), (late, Outcome.TIMEOUT)]
        assert instance.sent == [first, last]

    def test_paused_instances_queue_until_the_deadline(self, clock: Clock) -> None:
        """All paused: wait; RESUME lets them go."""
        bench = LaneBench(clock)
        instance = bench.instance()
        instance.is_paused = True
        call, late = bench.call(), bench.call(timeout_ms=50)
        assert bench.lane.queued == 2
        bench.lane.expire(clock.ms(50))
        assert bench.waiter.heard == [(late, Outcome.TIMEOUT)]
        instance.is_paused = False
        bench.lane.woken()
        assert instance.sent == [call]

    def test_queue_of_a_dying_agent(self, clock: Clock) -> None:
        """When the last instance goes, waiting calls do not wait on: Disconnected, without blame."""
        bench = LaneBench(clock, max_concurrent_calls=1)
        instance = bench.instance()
        bench.call()
        waiting = bench.call()
        bench.lane.instance_down(instance, "gone")
        assert bench.waiter.outcomes == [Outcome.DISCONNECTED] * 2
        assert waiting.sent_ns == 0
        assert bench.lane.breaker.failures(clock()) == 1
        bench.assert_idle()

    def test_queue_moves_to_the_other_instance(self, clock: Clock) -> None:
        """What waited, unpinned, is sent elsewhere when one of two dies."""
        bench = LaneBench(clock, max_concurrent_calls=1)
        one = bench.instance("i1")
        bench.call()
        waiting = bench.call()
        other = bench.instance("i2")
        bench.lane.instance_down(one, "gone")
        assert other.sent == [waiting]

    def test_a_new_instance_wakes_the_queue(self, clock: Clock) -> None:
        """Capacity that arrives is used at once."""
        bench = LaneBench(clock)
        bench.instance("i1", limit=1)
        bench.call()
        waiting = bench.call()
        assert bench.instance("i2").sent == [waiting]

    def test_full_socket(self, clock: Clock) -> None:
        """The next instance is tried; when none takes it, QueueFull without blame, and the permit is back."""
        bench = LaneBench(clock)
        one, other = bench.instance("i1"), bench.instance("i2")
        one.is_full = True
        calls = [bench.call() for _ in range(3)]
        assert other.sent == calls
        other.is_full = True
        refused = bench.call()
        assert (refused.outcome, refused.message) == (Outcome.QUEUE_FULL, "its socket is full")
        assert bench.lane.in_flight == 3
        assert one.calls == {}
        assert bench.lane.breaker.failures(clock()) == 0

    def test_reload_acts_at_once(self, clock: Clock) -> None:
        """A higher limit lets waiting calls go."""
        bench = LaneBench(clock, max_concurrent_calls=1)
        instance = bench.instance()
        for _ in range(3):
            bench.call()
        bench.lane.configure(agent(max_concurrent_calls=2), clock())
        assert len(instance.sent) == 2


class TestCancel:
    def test_sent(self, clock: Clock) -> None:
        """CANCEL with the reason, permit back at once, the group hears nothing, the agent is not blamed."""
        bench = LaneBench(clock, max_concurrent_calls=1)
        instance = bench.instance()
        call, waiting = bench.call(), bench.call()
        bench.lane.cancel(call, CancelReason.CLIENT_GONE, clock())
        assert instance.cancelled == [(call, CancelReason.CLIENT_GONE)]
        assert call.state is CallState.ENDED
        assert bench.waiter.heard == []
        assert instance.sent == [call, waiting]
        assert bench.lane.breaker.failures(clock()) == 0
        assert bench.lane.ledger.outcomes[Outcome.CANCELLED] == 1

    def test_queued_and_ended(self, clock: Clock) -> None:
        """A waiting call just leaves; cancelling what has ended is nothing."""
        bench = LaneBench(clock, max_concurrent_calls=1)
        instance = bench.instance()
        first, waiting = bench.call(), bench.call()
        bench.lane.cancel(waiting, CancelReason.DECIDED, clock())
        assert bench.lane.queued == 0
        instance.answer()
        bench.lane.cancel(first, CancelReason.DECIDED, clock())
        bench.lane.cancel(waiting, CancelReason.DECIDED, clock())
        assert instance.cancelled == []
        assert bench.lane.ledger.outcomes[Outcome.CANCELLED] == 1
        bench.assert_idle()

    def test_lockstep_keeps_its_permit_until_released(self, clock: Clock) -> None:
        """The connection is busy with the old answer: the next call waits for it."""
        bench = LaneBench(clock)
        instance = bench.instance(limit=1, lockstep=True)
        call, waiting = bench.call(), bench.call()
        bench.lane.cancel(call, CancelReason.CLIENT_GONE, clock())
        assert call.state is CallState.HELD
        assert bench.lane.in_flight == 1
        assert instance.sent == [call]
        bench.lane.released(call)
        bench.lane.released(call)
        assert instance.sent == [call, waiting]
        assert bench.lane.in_flight == 1
        assert bench.waiter.heard == []

    def test_lockstep_answer_is_late(self, clock: Clock) -> None:
        """An answer (or a failure) to a held call releases it, counted as late, without blame."""
        bench = LaneBench(clock)
        instance = bench.instance(limit=1, lockstep=True)
        for answer in (True, False):
            call = bench.call()
            bench.lane.cancel(call, CancelReason.CLIENT_GONE, clock())
            if answer:
                bench.lane.answered(call, MALFORMED)
            else:
                bench.lane.failed(call, Outcome.MALFORMED, "junk")
        assert bench.lane.ledger.late_verdicts == 1
        assert bench.waiter.heard == []
        assert bench.lane.breaker.failures(clock()) == 0
        assert instance.calls == {}
        bench.assert_idle()

    def test_lockstep_gives_up_at_the_deadline(self, clock: Clock) -> None:
        """A held call's permit comes back at its deadline at the latest; the transport starts anew."""
        bench = LaneBench(clock)
        instance = bench.instance(limit=1, lockstep=True)
        call = bench.call(timeout_ms=200)
        bench.lane.cancel(call, CancelReason.CLIENT_GONE, clock())
        assert bench.lane.next_deadline() == clock() + 200 * MS
        waiting = bench.call(timeout_ms=500)
        bench.lane.expire(clock.ms(200))
        assert instance.cancelled == [(call, CancelReason.CLIENT_GONE), (call, CancelReason.TIMEOUT)]
        assert instance.sent == [call, waiting]
        instance.answer()
        bench.assert_idle()
        assert bench.lane.breaker.failures(clock()) == 0

    def test_lockstep_death(self, clock: Clock) -> None:
        """Held calls end with their connection, unblamed."""
        bench = LaneBench(clock)
        instance = bench.instance(limit=1, lockstep=True)
        call = bench.call()
        bench.lane.cancel(call, CancelReason.CLIENT_GONE, clock())
        bench.lane.instance_down(instance, "gone")
        assert call.state is CallState.ENDED
        assert bench.lane.breaker.failures(clock()) == 0
        bench.assert_idle()

    def test_lockstep_death_frees_the_permit(self, clock: Clock) -> None:
        """The permit that a held call had goes to whoever waits for it."""
        bench = LaneBench(clock, max_concurrent_calls=1)
        dying = bench.instance("i1", limit=1, lockstep=True)
        bench.lane.cancel(bench.call(), CancelReason.CLIENT_GONE, clock())
        other = bench.instance("i2")
        waiting = bench.call()
        assert waiting.state is CallState.QUEUED
        bench.lane.instance_down(dying, "gone")
        assert other.sent == [waiting]

    @pytest.mark.parametrize("lockstep", [True, False])
    def test_the_connection_goes_while_cancelling(self, clock: Clock, lockstep: bool) -> None:
        """A transport that gives up its instance inside cancel() ends the call once."""
        bench = LaneBench(clock)
        instance = bench.instance(limit=1, lockstep=lockstep)
        cancel = instance.cancel

        def dying(call: Call, reason: CancelReason) -> bool:
            bench.lane.instance_down(instance, "gone")
            return cancel(call, reason)

        instance.cancel = dying  # type: ignore[method-assign]
        call = bench.call()
        bench.lane.cancel(call, CancelReason.CLIENT_GONE, clock())
        assert call.state is CallState.ENDED
        bench.assert_idle()

    def test_reconnect_inside_a_timeout(self, clock: Clock) -> None:
        """A lockstep transport closes its connection when told of a timeout: one outcome, blamed once."""
        bench = LaneBench(clock)
        instance = bench.instance(limit=1, lockstep=True)

        def reconnect(call: Call, reason: CancelReason) -> bool:
            bench.lane.instance_down(instance, "reconnecting")
            bench.lane.instance_up(instance)
            return True

        instance.cancel = reconnect  # type: ignore[method-assign]
        bench.call(timeout_ms=100)
        waiting = bench.call(timeout_ms=1000)
        bench.lane.expire(clock.ms(100))
        assert bench.waiter.outcomes[0] is Outcome.DISCONNECTED  # what waited for the connection that went
        assert bench.waiter.outcomes[1:] == [Outcome.TIMEOUT]
        assert waiting.sent_ns == 0
        assert bench.lane.breaker.failures(clock()) == 1
        bench.assert_idle()

    def test_late_verdicts_are_counted(self, clock: Clock) -> None:
        """No blame."""
        bench = LaneBench(clock)
        bench.lane.late_verdict()
        assert snapshot(bench.lane, clock())["late_verdicts"] == 1
        assert bench.lane.breaker.failures(clock()) == 0


class TestBreaker:
    def test_opens_and_fails_fast(self, clock: Clock) -> None:
        """After enough failures the next call is BreakerOpen without reaching the instance."""
        bench = LaneBench(clock)
        instance = bench.instance()
        for _ in range(5):
            bench.call()
            instance.answer(MALFORMED)
        call = bench.call()
        assert (call.outcome, call.message) == (Outcome.BREAKER_OPEN, "breaker is open")
        assert len(instance.sent) == 5

    def test_what_waits_is_refused_when_it_opens(self, clock: Clock) -> None:
        """Queued calls were admitted earlier, but a sick agent gets no more of them."""
        bench = LaneBench(clock, max_concurrent_calls=1, circuit_breaker=CircuitBreaker(failure_threshold=1))
        instance = bench.instance()
        for _ in range(3):
            bench.call()
        instance.answer(ERROR)
        assert bench.waiter.outcomes == [Outcome.AGENT_ERROR, Outcome.BREAKER_OPEN, Outcome.BREAKER_OPEN]
        assert len(instance.sent) == 1
        bench.assert_idle()

    def test_one_hung_instance_among_others_is_one_failure(self, clock: Clock) -> None:
        """All that it holds times out; the breaker hears of the first, and its sibling goes on."""
        bench = LaneBench(clock)
        hung, well = bench.instance("hung"), bench.instance("well")
        for _ in range(40):
            bench.call()
        for _ in range(len(well.calls)):
            well.answer()
        assert len(hung.calls) == 20
        bench.lane.expire(clock.ms(200))
        assert bench.waiter.outcomes.count(Outcome.TIMEOUT) == 20
        assert bench.lane.breaker.state is BreakerState.CLOSED
        assert bench.lane.breaker.snapshot(clock.now)["failures"] == 1
        for _ in range(30):
            bench.call()
        assert (len(hung.calls), len(well.calls)) == (0, 30)
        while well.calls:
            well.answer()
        bench.assert_idle()

    def test_all_hung_instances_are_as_many_failures(self, clock: Clock) -> None:
        bench = LaneBench(clock)
        for name in ("a", "b"):
            bench.instance(name)
        for _ in range(6):
            bench.call()
        bench.lane.expire(clock.ms(200))
        assert bench.lane.breaker.state is BreakerState.OPEN

    def test_operator_opens_and_closes(self, clock: Clock) -> None:
        """Forcing it open empties the queue; what was sent may still be answered; closing admits again."""
        bench = LaneBench(clock, max_concurrent_calls=1)
        instance = bench.instance()
        bench.call()
        bench.call()
        bench.lane.force_open(clock())
        assert bench.waiter.outcomes == [Outcome.BREAKER_OPEN]
        instance.answer()
        assert bench.call().outcome is Outcome.BREAKER_OPEN
        bench.lane.breaker.close(clock())
        assert bench.call().state is CallState.SENT

    def test_a_full_socket_is_no_failure(self, clock: Clock) -> None:
        """The transport could not send after all: QueueFull counts as nothing for the breaker."""
        bench = LaneBench(clock, circuit_breaker=CircuitBreaker(failure_threshold=1))
        bench.instance("i1").lane.failed(bench.call(), Outcome.QUEUE_FULL, "its socket is full")
        assert bench.waiter.outcomes == [Outcome.QUEUE_FULL]
        assert bench.lane.breaker.is_closed

    def test_a_new_instance_is_tried_at_once(self, clock: Clock) -> None:
        """An open breaker half-opens on a new session: one probe goes, the second is refused."""
        bench = LaneBench(clock, circuit_breaker=CircuitBreaker(failure_threshold=1))
        bench.instance("i1").lane.failed(bench.call(), Outcome.MALFORMED, "")
        assert bench.lane.breaker.state is BreakerState.OPEN
        bench.instance("i2")
        assert bench.lane.breaker.state is BreakerState.HALF_OPEN
        assert bench.call().state is CallState.SENT
        assert bench.call().outcome is Outcome.BREAKER_OPEN

    @pytest.mark.parametrize("how", ["cancel", "expire in queue", "no instance", "queue full"])
    def test_a_probe_that_says_nothing_is_released(self, clock: Clock, how: str) -> None:
        """The next call may probe; the state has not moved."""
        bench = LaneBench(clock, circuit_breaker=CircuitBreaker(failure_threshold=1), max_queue=1)
        instance = bench.instance()
        bench.call()
        instance.answer(ERROR)
        clock.s(30)
        if how == "cancel":
            bench.lane.cancel(bench.call(), CancelReason.CLIENT_GONE, clock())
        elif how == "expire in queue":
            instance.is_paused = True
            bench.call()
            bench.lane.expire(clock.ms(200))
            instance.is_paused = False
        elif how == "no instance":
            bench.lane.instance_down(instance, "gone")
            assert bench.call().outcome is Outcome.DISCONNECTED
            bench.lane.instance_up(instance)
        else:
            instance.is_full = True
            assert bench.call().outcome is Outcome.QUEUE_FULL
            instance.is_full = False
        assert bench.lane.breaker.state is BreakerState.HALF_OPEN
        assert bench.lane.breaker.snapshot(clock())["probes"] == 0
        assert bench.call().state is CallState.SENT

    def test_probes_close_it(self, clock: Clock) -> None:
        """Two answered probes, one after the other."""
        bench = LaneBench(clock, circuit_breaker=CircuitBreaker(failure_threshold=1))
        instance = bench.instance()
        bench.call()
        instance.answer(ERROR)
        clock.s(30)
        for _ in range(2):
            bench.call()
            assert bench.call().outcome is Outcome.BREAKER_OPEN
            instance.answer()
        assert bench.lane.breaker.state is BreakerState.CLOSED

    def test_a_queued_probe_keeps_its_place(self, clock: Clock) -> None:
        """Being woken in half-open state does not refuse the probe that waits, nor take a second permit."""
        bench = LaneBench(clock, circuit_breaker=CircuitBreaker(failure_threshold=1))
        instance = bench.instance()
        bench.call()
        instance.answer(ERROR)
        clock.s(30)
        instance.is_paused = True
        probe = bench.call()
        bench.lane.woken()
        assert probe.state is CallState.QUEUED
        assert bench.lane.breaker.snapshot(clock())["probes"] == 1

    def test_a_queued_probe_survives_closing(self, clock: Clock) -> None:
        """A permit of an earlier state is exchanged when its call's turn comes."""
        bench = LaneBench(clock, circuit_breaker=CircuitBreaker(failure_threshold=1))
        instance = bench.instance()
        bench.call()
        instance.answer(ERROR)
        clock.s(30)
        instance.is_paused = True
        probe = bench.call()
        bench.lane.breaker.close(clock())
        instance.is_paused = False
        bench.lane.woken()
        assert probe.state is CallState.SENT
        assert instance.answer() is probe
        bench.assert_idle()


class TestPinning:
    def test_an_exchange_stays(self, clock: Clock) -> None:
        """Every event of an exchange goes to the instance of its first, also when another is idle."""
        bench = LaneBench(clock)
        one, other = bench.instance("i1"), bench.instance("i2")
        first = bench.call(exchange=1)
        home = first.instance
        assert home is not None
        for _ in range(4):
            assert bench.call(exchange=1).instance is home
        assert {len(one.sent), len(other.sent)} == {0, 5}
        assert home.pins == 1
        bench.lane.release_pin((b"w1", 1))
        assert home.pins == 0

    def test_paused_and_draining_go_on_with_pinned_ones(self, clock: Clock) -> None:
        """No new exchange, but the old ones; a new one queues."""
        bench = LaneBench(clock)
        instance = bench.instance()
        bench.call(exchange=1)
        instance.is_paused = instance.is_draining = True
        assert bench.call(exchange=1).state is CallState.SENT
        assert bench.call(exchange=2).state is CallState.QUEUED

    def test_never_moved(self, clock: Clock) -> None:
        """If it goes, later events of the exchange are Disconnected, unblamed, even with another one live."""
        bench = LaneBench(clock)
        one = bench.instance("i1")
        bench.call(exchange=1)
        one.answer()
        bench.instance("i2")
        bench.lane.instance_down(one, "gone")
        later = bench.call(exchange=1)
        assert (later.outcome, later.message) == (Outcome.DISCONNECTED, "the request's instance is gone")
        assert bench.call(exchange=1, observer=True).outcome is Outcome.DISCONNECTED
        assert bench.lane.breaker.failures(clock()) == 0
        bench.lane.instance_up(one)
        assert bench.call(exchange=1).outcome is Outcome.DISCONNECTED  # back, but without the request's state
        bench.lane.release_pin((b"w1", 1))
        assert bench.call(exchange=1).state is CallState.SENT

    def test_waiting_for_the_pinned_one(self, clock: Clock) -> None:
        """A busy pinned instance is waited for; calls of other exchanges pass by."""
        bench = LaneBench(clock)
        one = bench.instance("i1", limit=1)
        bench.call(exchange=1)
        other = bench.instance("i2", limit=1)
        pinned = bench.call(exchange=1)
        free = bench.call(exchange=2)
        assert pinned.state is CallState.QUEUED
        assert free.instance is other
        one.answer()
        assert pinned.state is CallState.SENT
        assert pinned.instance is one

    def test_waiting_for_a_pinned_one_that_dies(self, clock: Clock) -> None:
        """Disconnected at once, although another instance lives."""
        bench = LaneBench(clock)
        one = bench.instance("i1", limit=1)
        bench.call(exchange=1)
        bench.instance("i2")
        pinned = bench.call(exchange=1)
        bench.lane.instance_down(one, "gone")
        assert pinned.outcome is Outcome.DISCONNECTED
        assert pinned.sent_ns == 0
        bench.assert_idle()

    def test_pinned_while_it_waited(self, clock: Clock) -> None:
        """Two events of a new exchange wait; the first one's instance is the second one's."""
        bench = LaneBench(clock)
        one, other = bench.instance("i1", limit=1), bench.instance("i2", limit=1)
        bench.call()
        bench.call()
        first, second = bench.call(exchange=1), bench.call(exchange=1)
        one.answer()
        assert first.instance is one
        other.answer()
        assert second.state is CallState.QUEUED
        one.answer()
        assert second.instance is one

    def test_nothing_is_pinned_that_was_not_sent(self, clock: Clock) -> None:
        """A refused first event leaves the exchange free."""
        bench = LaneBench(clock)
        instance = bench.instance()
        instance.is_full = True
        bench.call(exchange=1)
        assert bench.lane.pool.pins == {}

    def test_drained_when_its_last_work_ends(self, clock: Clock) -> None:
        """Calls first, then pins; said when nothing is left, not before."""
        bench = LaneBench(clock)
        instance = bench.instance()
        bench.call(exchange=1)
        bench.call()
        instance.begin_drain(0)
        instance.answer()
        instance.answer()
        assert instance.drained_times == 0
        bench.lane.release_pin((b"w1", 1))
        assert instance.drained_times == 1
        bench.lane.instance_down(instance, "bye")

    def test_drained_by_its_last_call(self, clock: Clock) -> None:
        """Without any pin: whatever way the call ends."""
        bench = LaneBench(clock)
        instance = bench.instance()
        for end in ("answer", "cancel", "timeout"):
            instance.is_draining = False
            call = bench.call()
            instance.begin_drain(0)
            before = instance.drained_times
            if end == "answer":
                instance.answer()
            elif end == "cancel":
                bench.lane.cancel(call, CancelReason.CLIENT_GONE, clock())
            else:
                bench.lane.expire(clock.ms(200))
            assert instance.drained_times == before + 1

    def test_nothing_is_pinned_to_what_died_on_sending(self, clock: Clock) -> None:
        """The exchange's next event may go to another instance."""
        bench = LaneBench(clock)
        bench.instance("i1").dies_on_send = True
        bench.call(exchange=1)
        assert bench.lane.pool.pins == {}
        bench.instance("i2")
        assert bench.call(exchange=1).state is CallState.SENT

    def test_pinned_to_a_full_socket(self, clock: Clock) -> None:
        """QueueFull, not a wait and not another instance."""
        bench = LaneBench(clock)
        one = bench.instance("i1")
        bench.call(exchange=1)
        bench.instance("i2")
        one.is_full = True
        assert bench.call(exchange=1).outcome is Outcome.QUEUE_FULL
        assert bench.lane.in_flight == 1

    def test_an_observer_follows_the_pin(self, clock: Clock) -> None:
        """Also an observer's calls go where the exchange is."""
        bench = LaneBench(clock)
        one = bench.instance("i1")
        bench.call(exchange=1, observer=True)
        bench.instance("i2")
        for _ in range(3):
            assert bench.call(exchange=1, observer=True).instance is one


class TestObservers:
    def test_asked_and_heard_without_the_breaker(self, clock: Clock) -> None:
        """Its failures do not move the breaker, its answers are counted apart."""
        bench = LaneBench(clock, circuit_breaker=CircuitBreaker(failure_threshold=1))
        instance = bench.instance()
        bench.call(observer=True)
        instance.answer(ERROR)
        bench.call(observer=True)
        bench.lane.expire(clock.ms(200))
        assert bench.waiter.outcomes == [Outcome.AGENT_ERROR, Outcome.TIMEOUT]
        assert bench.lane.breaker.state is BreakerState.CLOSED
        found = snapshot(bench.lane, clock())
        assert found["observed"]["timeout"] == 1
        assert found["outcomes"]["timeout"] == 0
        bench.assert_idle()

    def test_never_queued(self, clock: Clock) -> None:
        """No free permit, no free instance, or somebody waiting already: dropped at once."""
        bench = LaneBench(clock, max_concurrent_calls=1)
        instance = bench.instance()
        bench.call()
        assert bench.call(observer=True).outcome is Outcome.QUEUE_FULL
        instance.answer()
        instance.is_paused = True
        assert bench.call(observer=True).outcome is Outcome.QUEUE_FULL
        bench.call()
        instance.is_paused = False
        assert bench.call(observer=True).outcome is Outcome.QUEUE_FULL
        assert bench.lane.queued == 1

    def test_only_to_a_well_agent(self, clock: Clock) -> None:
        """Not through an open or half-open breaker: an observer is no probe. No instance: Disconnected."""
        bench = LaneBench(clock, circuit_breaker=CircuitBreaker(failure_threshold=1))
        assert bench.call(observer=True).outcome is Outcome.DISCONNECTED
        instance = bench.instance()
        bench.call()
        instance.answer(ERROR)
        clock.s(60)
        assert bench.call(observer=True).outcome is Outcome.BREAKER_OPEN
        assert bench.lane.breaker.state is BreakerState.OPEN

    def test_full_socket(self, clock: Clock) -> None:
        """Dropped like any other call, once."""
        bench = LaneBench(clock)
        bench.instance().is_full = True
        bench.call(observer=True)
        assert bench.waiter.outcomes == [Outcome.QUEUE_FULL]
        bench.assert_idle()


class LaneInAnyOrder(RuleBasedStateMachine):
    """Whatever the order of calls, answers, deaths, pauses, cancels and time: every call ends exactly once,
    permits are exactly the calls out there, and everything returns to zero."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.bench = LaneBench(
            self.clock,
            max_concurrent_calls=4,
            max_queue=3,
            circuit_breaker=CircuitBreaker(failure_threshold=4, timeout_seconds=1.0, half_open_max_requests=2),
        )
        self.lane = self.bench.lane
        self.instances: list[FakeInstance] = []
        self.calls: list[Call] = []
        self.cancelled: set[int] = set()
        self.exchanges = 0

    def live(self) -> list[FakeInstance]:
        return [instance for instance in self.instances if instance.is_live]

    @rule(
        timeout=st.sampled_from([1, 50, 200]),
        exchange=st.one_of(st.none(), st.integers(0, 3)),
        observer=st.booleans(),
        deadline=st.sampled_from([100, 10_000]),
    )
    def submit(self, timeout: int, exchange: int | None, observer: bool, deadline: int) -> None:
        self.calls.append(
            self.bench.call(timeout_ms=timeout, exchange=exchange, observer=observer, deadline_ms=deadline)
        )

    @rule(limit=st.integers(1, 3), lockstep=st.booleans())
    def connect(self, limit: int, lockstep: bool) -> None:
        if len(self.live()) < 3:
            self.instances.append(
                self.bench.instance(f"i{len(self.instances)}", 1 if lockstep else limit, lockstep=lockstep)
            )

    @rule(data=st.data())
    @precondition(lambda self: self.live())
    def disconnect(self, data: st.DataObject) -> None:
        self.lane.instance_down(data.draw(st.sampled_from(self.live())), "gone")

    @rule(data=st.data(), how=st.sampled_from(["is_paused", "is_full", "is_draining", "dies_on_send"]))
    @precondition(lambda self: self.live())
    def toggle(self, data: st.DataObject, how: str) -> None:
        instance = data.draw(st.sampled_from(self.live()))
        setattr(instance, how, not getattr(instance, how))
        self.lane.woken()

    @rule(data=st.data(), screened=st.sampled_from([ALLOWED, BLOCKED, ERROR, MALFORMED]))
    @precondition(lambda self: any(instance.calls for instance in self.live()))
    def answer(self, data: st.DataObject, screened: Screened) -> None:
        instance = data.draw(st.sampled_from([i for i in self.live() if i.calls]))
        instance.answer(screened, data.draw(st.integers(0, len(instance.calls) - 1)))

    @rule(data=st.data(), reason=st.sampled_from([CancelReason.CLIENT_GONE, CancelReason.DECIDED]))
    @precondition(lambda self: self.calls)
    def cancel(self, data: st.DataObject, reason: CancelReason) -> None:
        call = data.draw(st.sampled_from(self.calls))
        if call.state in (CallState.QUEUED, CallState.SENT):
            self.cancelled.add(call.number)
        self.lane.cancel(call, reason, self.clock())

    @rule(ms=st.sampled_from([0, 1, 60, 250, 1500]))
    def time_passes(self, ms: int) -> None:
        now = self.clock.ms(ms)
        self.lane.expire(now)
        for call in self.calls:  # the groups' own deadlines
            if call.deadline_ns <= now:
                self.lane.timed_out(call, now)

    @rule(is_open=st.booleans())
    def operator(self, is_open: bool) -> None:
        (self.lane.force_open if is_open else self.lane.breaker.close)(self.clock())

    @rule(limit=st.integers(1, 5))
    def reload(self, limit: int) -> None:
        self.lane.configure(agent(max_concurrent_calls=limit, max_queue=3), self.clock())

    @rule(exchange=st.integers(0, 3))
    def exchange_ends(self, exchange: int) -> None:
        self.lane.release_pin((b"w1", exchange))

    @invariant()
    def permits_are_calls_out_there(self) -> None:
        out = [call for instance in self.instances for call in instance.calls.values()]
        assert self.lane.in_flight == len(out)
        assert all(call.state in (CallState.SENT, CallState.HELD) for call in out)
        assert all(not instance.calls for instance in self.instances if not instance.is_live)
        assert self.lane.queued == sum(call.state is CallState.QUEUED for call in self.calls)
        assert self.lane.queued <= 3
        by_instance = Counter(id(instance) for instance in self.lane.pool.pins.values())
        assert all(instance.pins == by_instance[id(instance)] for instance in self.instances)
        assert all(instance.pins == 0 for instance in self.instances if not instance.is_live)

    @invariant()
    def every_call_ends_once(self) -> None:
        heard = Counter(call.number for call, _ in self.bench.waiter.heard)
        for call in self.calls:
            is_over = call.state is CallState.ENDED
            if call.number in self.cancelled:
                assert heard[call.number] == 0
            else:
                assert heard[call.number] == is_over
            if call.state is CallState.QUEUED:
                assert self.live()  # without an instance nobody waits

    @invariant()
    def only_the_sent_is_blamed(self) -> None:
        unsent = (Outcome.BREAKER_OPEN, Outcome.QUEUE_FULL)
        for call, outcome in self.bench.waiter.heard:
            assert (outcome in unsent) <= (call.sent_ns == 0)

    def teardown(self) -> None:
        """In the end everything is over: time passes, connections go, exchanges end."""
        self.time_passes(20_000)
        for instance in self.live():
            self.lane.instance_down(instance, "end")
        for exchange in range(4):
            self.lane.release_pin((b"w1", exchange))
        self.every_call_ends_once()
        self.bench.assert_idle()
        assert all(call.state is CallState.ENDED for call in self.calls)
        assert self.lane.pool.pins == {}
        assert self.lane.breaker.snapshot(self.clock())["probes"] == 0


LaneInAnyOrder.TestCase.settings = hypothesis_settings(max_examples=120, stateful_step_count=50, deadline=None)
TestLaneInAnyOrder = LaneInAnyOrder.TestCase
