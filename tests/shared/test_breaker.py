"""The breaker admits, refuses, probes and recovers exactly as semantics 8 says."""

import logging

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from shared.breaker import TRANSITIONS, Breaker, Cause, Permit, Probe, Refused
from shared.clock import S
from shared.config.schema import CircuitBreaker
from shared.errors import IllegalTransition
from shared.wire.segment import NEVER_NS, BreakerState

CLOSED, HALF_OPEN, OPEN, FORCED_OPEN = (
    BreakerState.CLOSED,
    BreakerState.HALF_OPEN,
    BreakerState.OPEN,
    BreakerState.FORCED_OPEN,
)


def permit_of(breaker: Breaker, now: int) -> Permit:
    """A permit, where one is expected."""
    permit = breaker.admit(now)
    assert isinstance(permit, Permit)
    return permit


def opened(at: int = 0, settings: CircuitBreaker | None = None) -> Breaker:
    """A breaker that enough failures at one instant have opened."""
    breaker = Breaker("waf", settings or CircuitBreaker())
    for _ in range(breaker.settings.failure_threshold):
        permit_of(breaker, at).failure(at)
    assert breaker.state is OPEN
    return breaker


class TestClosed:
    def test_opens_at_the_threshold_and_not_before(self) -> None:
        """Four of five failures change nothing, the fifth opens, and the next call is refused until retry_at."""
        breaker = Breaker("waf", CircuitBreaker())
        for at in range(4):
            permit_of(breaker, at).failure(at)
        assert (breaker.state, breaker.failures(4), breaker.retry_at_ns) == (CLOSED, 4, 0)
        permit_of(breaker, 4).failure(4)
        assert (breaker.state, breaker.retry_at_ns) == (OPEN, 4 + 30 * S)
        refused = breaker.admit(5)
        assert isinstance(refused, Refused)
        assert refused.retry_at_ns == 4 + 30 * S
        assert breaker.opened_total == 1

    def test_window_slides(self) -> None:
        """A failure of exactly one window ago no longer counts."""
        breaker = Breaker("waf", CircuitBreaker())
        for _ in range(4):
            permit_of(breaker, 0).failure(0)
        permit_of(breaker, 60 * S).failure(60 * S)
        assert (breaker.state, breaker.failures(60 * S)) == (CLOSED, 1)
        assert breaker.failures(120 * S) == 0

    def test_successes_and_releases_do_not_wipe_the_window(self) -> None:
        """Only time forgives a failure: an agent that fails every second call is not healthy."""
        breaker = Breaker("waf", CircuitBreaker())
        for at in range(5):
            permit_of(breaker, at).success(at)
            permit_of(breaker, at).release(at)
            assert breaker.state is CLOSED
            permit_of(breaker, at).failure(at)
        assert breaker.state is OPEN

    def test_state_objects_are_not_touched_per_call(self) -> None:
        """While closed every call gets one and the same permit: no allocation, no state lookup."""
        breaker = Breaker("waf", CircuitBreaker())
        assert breaker.admit(1) is breaker.admit(2)
        assert breaker.is_closed


class TestOpen:
    def test_waits_then_probes_one_at_a_time(self) -> None:
        """At retry_at exactly one call passes; a second one is refused while the first is out."""
        breaker = opened()
        assert isinstance(breaker.admit(30 * S - 1), Refused)
        assert breaker.state is OPEN
        probe = permit_of(breaker, 30 * S)
        assert breaker.state is HALF_OPEN
        second = breaker.admit(30 * S)
        assert isinstance(second, Refused)
        assert second.retry_at_ns == 0
        probe.success(31 * S)
        assert breaker.state is HALF_OPEN
        permit_of(breaker, 31 * S).success(31 * S)
        assert (breaker.state, breaker.failures(31 * S)) == (CLOSED, 0)

    def test_one_failed_probe_reopens(self) -> None:
        """The wait begins again at the failure; earlier successes are forgotten."""
        breaker = opened()
        permit_of(breaker, 30 * S).success(30 * S)
        permit_of(breaker, 31 * S).failure(31 * S)
        assert (breaker.state, breaker.retry_at_ns, breaker.opened_total) == (OPEN, 61 * S, 2)
        permit_of(breaker, 61 * S).success(61 * S)
        assert breaker.state is HALF_OPEN

    def test_a_released_probe_frees_its_place(self) -> None:
        """A probe whose caller left says nothing: no state moves, the next call may probe."""
        breaker = opened()
        permit_of(breaker, 30 * S).release(31 * S)
        assert breaker.state is HALF_OPEN
        assert isinstance(permit_of(breaker, 31 * S), Probe)

    def test_a_probe_comes_back_once(self) -> None:
        """Reporting twice does not count twice, nor free a place twice."""
        breaker = opened()
        probe = permit_of(breaker, 30 * S)
        probe.success(30 * S)
        probe.success(30 * S)
        probe.failure(30 * S)
        probe.release(30 * S)
        assert breaker.state is HALF_OPEN
        permit_of(breaker, 30 * S)
        assert isinstance(breaker.admit(30 * S), Refused)

    def test_several_probes(self) -> None:
        """half_open_max_requests is the number of probes out at a time."""
        breaker = opened(settings=CircuitBreaker(half_open_max_requests=2, success_threshold=1))
        first, second = permit_of(breaker, 30 * S), permit_of(breaker, 30 * S)
        assert isinstance(breaker.admit(30 * S), Refused)
        first.success(30 * S)
        assert breaker.state is CLOSED
        second.failure(30 * S)  # a straggler of the half-open state
        assert (breaker.state, breaker.failures(30 * S)) == (CLOSED, 0)

    def test_a_new_session_half_opens_at_once(self) -> None:
        """Before the wait is over; in every other state it changes nothing."""
        breaker = opened()
        breaker.new_session(1)
        assert breaker.state is HALF_OPEN
        probe = permit_of(breaker, 1)
        breaker.new_session(2)
        assert breaker.state is HALF_OPEN
        assert probe.is_current
        breaker.close(3)
        breaker.new_session(4)
        assert breaker.state is CLOSED


class TestStragglers:
    def test_of_the_closed_state(self) -> None:
        """Calls admitted before it opened neither prolong the wait nor fail the probe."""
        breaker = Breaker("waf", CircuitBreaker())
        late = permit_of(breaker, 0)
        for _ in range(5):
            permit_of(breaker, 0).failure(0)
        assert not late.is_current
        late.failure(10 * S)
        assert breaker.retry_at_ns == 30 * S
        permit_of(breaker, 30 * S)
        late.failure(30 * S)
        late.success(30 * S)
        assert breaker.state is HALF_OPEN

    def test_of_an_earlier_closed_state(self) -> None:
        """After closing again, a failure of before does not count in the new window."""
        breaker = Breaker("waf", CircuitBreaker(failure_threshold=2))
        late = permit_of(breaker, 0)
        breaker.close(1)
        late.failure(2)
        permit_of(breaker, 2).failure(2)
        assert (breaker.state, breaker.failures(2)) == (CLOSED, 1)

    def test_of_an_earlier_half_open_state(self) -> None:
        """A probe of the last attempt cannot close or reopen this one, and holds no place in it."""
        breaker = opened(settings=CircuitBreaker(half_open_max_requests=2, success_threshold=1))
        old, failing = permit_of(breaker, 30 * S), permit_of(breaker, 30 * S)
        failing.failure(30 * S)
        permit_of(breaker, 60 * S)
        old.success(60 * S)
        old.release(60 * S)
        assert breaker.state is HALF_OPEN
        permit_of(breaker, 60 * S)
        assert isinstance(breaker.admit(60 * S), Refused)


class TestOperator:
    def test_forced_open_has_no_timer(self) -> None:
        """Neither time nor a new session nor a late answer ends it, only close does."""
        breaker = Breaker("waf", CircuitBreaker())
        late = permit_of(breaker, 0)
        breaker.force_open(0)
        late.success(1)
        late.failure(1)
        breaker.new_session(1)
        refused = breaker.admit(10**18)
        assert isinstance(refused, Refused)
        assert refused.retry_at_ns == NEVER_NS == breaker.retry_at_ns
        assert breaker.state is FORCED_OPEN
        assert breaker.snapshot(5)["retry_in_ms"] is None
        breaker.close(2)
        assert breaker.state is CLOSED
        assert breaker.opened_total == 0  # it is the operator's doing, not the agent's

    def test_forcing_an_open_one(self) -> None:
        """An open breaker that is forced loses its timer; closing goes to closed, not to half-open."""
        breaker = opened()
        breaker.force_open(1)
        assert isinstance(breaker.admit(100 * S), Refused)
        breaker.close(100 * S)
        assert breaker.state is CLOSED

    def test_close_resets_the_window(self) -> None:
        """Failures from before do not count after."""
        breaker = Breaker("waf", CircuitBreaker(failure_threshold=2))
        permit_of(breaker, 0).failure(0)
        breaker.close(0)
        assert breaker.failures(0) == 0

    def test_settings_act_live(self) -> None:
        """A shorter wait acts on an open breaker, a lower threshold with the next failure."""
        seen: list[tuple[BreakerState, BreakerState]] = []
        breaker = opened()
        breaker.on_change = lambda old, new: seen.append((old, new))
        breaker.configure(CircuitBreaker(timeout_seconds=1.5))
        assert breaker.retry_at_ns == 3 * S // 2
        assert seen == [(OPEN, OPEN)]
        breaker.close(0)
        permit_of(breaker, 0).failure(0)
        permit_of(breaker, 0).failure(0)
        breaker.configure(CircuitBreaker(failure_threshold=2))
        assert breaker.state is CLOSED
        permit_of(breaker, 0).failure(0)
        assert breaker.state is OPEN

    def test_more_probes_live(self) -> None:
        """half_open_max_requests is read at each admission."""
        breaker = opened()
        permit_of(breaker, 30 * S)
        assert isinstance(breaker.admit(30 * S), Refused)
        breaker.configure(CircuitBreaker(half_open_max_requests=2))
        permit_of(breaker, 30 * S)


class TestListener:
    def test_hears_every_change(self) -> None:
        """In order, after the state has changed."""
        seen: list[tuple[BreakerState, BreakerState, BreakerState]] = []
        breaker = Breaker("waf", CircuitBreaker(failure_threshold=1, success_threshold=1))
        breaker.on_change = lambda old, new: seen.append((old, new, breaker.state))
        permit_of(breaker, 0).failure(0)
        permit_of(breaker, 30 * S).failure(30 * S)
        permit_of(breaker, 60 * S).success(60 * S)
        breaker.force_open(61 * S)
        breaker.close(62 * S)
        assert [(old, new) for old, new, _ in seen] == [
            (CLOSED, OPEN),
            (OPEN, HALF_OPEN),
            (HALF_OPEN, OPEN),
            (OPEN, HALF_OPEN),
            (HALF_OPEN, CLOSED),
            (CLOSED, FORCED_OPEN),
            (FORCED_OPEN, CLOSED),
        ]
        assert all(now is new for _, new, now in seen)

    def test_that_raises_stops_nothing(self, caplog: pytest.LogCaptureFixture) -> None:
        """The change stands, the call that caused it goes on, the fault is in the log."""

        def broken(old: BreakerState, new: BreakerState) -> None:
            raise RuntimeError("listener")

        breaker = Breaker("waf", CircuitBreaker(failure_threshold=1), broken)
        with caplog.at_level(logging.ERROR):
            permit_of(breaker, 0).failure(0)
        assert breaker.state is OPEN
        assert "breaker waf: listener failed on closed -> open" in caplog.text


def test_snapshot_shows_what_an_operator_asks() -> None:
    """State, counters, remaining wait, settings."""
    breaker = opened(at=1 * S)
    snapshot = breaker.snapshot(11 * S)
    assert snapshot["state"] == "open"
    assert snapshot["retry_in_ms"] == 20_000
    assert snapshot["opened_total"] == 1
    permit_of(breaker, 31 * S).success(31 * S)
    permit_of(breaker, 31 * S)
    snapshot = breaker.snapshot(31 * S)
    assert (snapshot["state"], snapshot["successes"], snapshot["probes"]) == ("half_open", 1, 1)
    assert snapshot["retry_in_ms"] is None
    breaker.close(32 * S)
    permit_of(breaker, 32 * S).failure(32 * S)
    assert breaker.snapshot(32 * S)["failures"] == 1


def test_illegal_pair_names_both() -> None:
    """A cause that has no row for the state is a bug, and says which."""
    breaker = Breaker("waf", CircuitBreaker())
    with pytest.raises(IllegalTransition, match="PROBE_FAILED in state CLOSED"):
        breaker._feed(Cause.PROBE_FAILED, 0)
    assert (CLOSED, Cause.PROBE_FAILED) not in TRANSITIONS


class Model:
    """The same semantics, written for reading: a list of failure times and counters, no objects."""

    def __init__(self, settings: CircuitBreaker) -> None:
        self.settings = settings
        self.state = CLOSED
        self.generation = 0
        self.failures: list[int] = []
        self.opened_at = 0
        self.out = 0
        self.successes = 0

    def enter(self, state: BreakerState, now: int) -> None:
        self.state, self.generation = state, self.generation + 1
        self.failures, self.out, self.successes, self.opened_at = [], 0, 0, now

    def admit(self, now: int) -> bool:
        if self.state is OPEN and now - self.opened_at >= self.settings.timeout_seconds * S:
            self.enter(HALF_OPEN, now)
        if self.state is HALF_OPEN and self.out < self.settings.half_open_max_requests:
            self.out += 1
            return True
        return self.state is CLOSED

    def report(self, generation: int, how: str, now: int) -> None:
        if generation != self.generation:
            return
        if self.state is HALF_OPEN:
            self.out -= 1
            if how == "failure":
                self.enter(OPEN, now)
            elif how == "success":
                self.successes += 1
                if self.successes >= self.settings.success_threshold:
                    self.enter(CLOSED, now)
        elif self.state is CLOSED and how == "failure":
            recent = [at for at in self.failures if now - at < self.settings.window_seconds * S]
            self.failures = [*recent, now]
            if len(self.failures) >= self.settings.failure_threshold:
                self.enter(OPEN, now)


SETTINGS = st.builds(
    CircuitBreaker,
    failure_threshold=st.integers(1, 4),
    success_threshold=st.integers(1, 3),
    timeout_seconds=st.sampled_from([0.5, 5.0, 30.0]),
    window_seconds=st.sampled_from([1.0, 10.0, 60.0]),
    half_open_max_requests=st.integers(1, 3),
)


class BreakerAgainstModel(RuleBasedStateMachine):
    """Whatever happens in whatever order, breaker and model agree; calls may stay out for any time."""

    calls: Bundle[tuple[Permit, int]] = Bundle("calls")

    def __init__(self) -> None:
        super().__init__()
        self.now = 1
        self.seen: list[tuple[BreakerState, BreakerState]] = []
        self.breaker = Breaker("waf", CircuitBreaker(), self.heard)
        self.model = Model(CircuitBreaker())

    def heard(self, old: BreakerState, new: BreakerState) -> None:
        self.seen.append((old, new))
        raise RuntimeError("a listener is no reason to fail")

    @rule(ns=st.sampled_from([0, 1, S // 2, S, 10 * S, 30 * S, 61 * S]))
    def time_passes(self, ns: int) -> None:
        self.now += ns

    @rule(target=calls)
    def ask(self) -> object:
        admitted = self.breaker.admit(self.now)
        assert isinstance(admitted, Permit) == self.model.admit(self.now)
        return (admitted, self.model.generation) if isinstance(admitted, Permit) else multiple()

    @rule(call=consumes(calls), how=st.sampled_from(["success", "failure", "failure", "release"]))
    def comes_back(self, call: tuple[Permit, int], how: str) -> None:
        permit, generation = call
        assert permit.is_current == (generation == self.model.generation)
        getattr(permit, how)(self.now)
        self.model.report(generation, how, self.now)

    @rule()
    def session(self) -> None:
        self.breaker.new_session(self.now)
        if self.model.state is OPEN:
            self.model.enter(HALF_OPEN, self.now)

    @rule(is_open=st.booleans())
    def operator(self, is_open: bool) -> None:
        if is_open:
            self.breaker.force_open(self.now)
            self.model.enter(FORCED_OPEN, self.now)
        else:
            self.breaker.close(self.now)
            self.model.enter(CLOSED, self.now)

    @rule(settings=SETTINGS)
    def reload(self, settings: CircuitBreaker) -> None:
        self.breaker.configure(settings)
        self.model.settings = settings

    @invariant()
    def agree(self) -> None:
        breaker, model = self.breaker, self.model
        assert breaker.state is model.state
        assert breaker.is_closed == (model.state is CLOSED)
        assert breaker._machine.state is breaker._machine._state  # aiobreaker finds its storage in step
        if model.state is OPEN:
            assert breaker.retry_at_ns == model.opened_at + int(model.settings.timeout_seconds * S)
        else:
            assert breaker.retry_at_ns == (NEVER_NS if model.state is FORCED_OPEN else 0)
        if model.state is HALF_OPEN:
            snapshot = breaker.snapshot(self.now)
            assert (snapshot["probes"], snapshot["successes"]) == (model.out, model.successes)
        if self.seen:
            assert self.seen[-1][1] is model.state


BreakerAgainstModel.TestCase.settings = hypothesis_settings(max_examples=150, stateful_step_count=60, deadline=None)
TestBreakerAgainstModel = BreakerAgainstModel.TestCase
