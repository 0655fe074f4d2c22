"""Whether an agent may be asked now: a circuit breaker without calls.

Semantics 8 of docs/architecture.md. Nothing is called through it: who wants to ask takes a permit and
says later how it went. aiobreaker keeps the state objects and their storage; its `call`, its clock
(wall time), its listeners (a raising one fails the call) and its exceptions are not used, see
docs/dependencies.md. No clock is read here: every `now` is CLOCK_MONOTONIC ns from the caller.

    closed --failures in the window--> open --wait over, new session--> half open --successes--> closed
                                        ^                                  |
                                        +------------ one failure ---------+
    forced open: entered from everywhere, left only by close()

A permit belongs to the state that gave it. What comes back later, from a straggler, moves nothing.

Kind: pure.
"""

import logging
from collections import deque
from collections.abc import Callable
from enum import Enum, auto
from typing import Any, Final

from aiobreaker.circuitbreaker import CircuitBreaker as _CircuitBreaker
from aiobreaker.state import CircuitBreakerState as _Kind
from aiobreaker.state import CircuitClosedState, CircuitHalfOpenState, CircuitOpenState
from aiobreaker.storage.base import CircuitBreakerStorage

from shared.clock import MS, S
from shared.config.schema import CircuitBreaker as Settings
from shared.errors import IllegalTransition
from shared.wire.segment import NEVER_NS, BreakerState

_log = logging.getLogger("wardgate.breaker")


class Cause(Enum):
    """What moves the state."""

    FAILED_OFTEN = auto()
    WAIT_OVER = auto()
    NEW_SESSION = auto()
    PROBES_SUCCEEDED = auto()
    PROBE_FAILED = auto()
    OPERATOR_OPENS = auto()
    OPERATOR_CLOSES = auto()


TRANSITIONS: Final = {
    (BreakerState.CLOSED, Cause.FAILED_OFTEN): BreakerState.OPEN,
    (BreakerState.OPEN, Cause.WAIT_OVER): BreakerState.HALF_OPEN,
    (BreakerState.OPEN, Cause.NEW_SESSION): BreakerState.HALF_OPEN,
    (BreakerState.HALF_OPEN, Cause.PROBES_SUCCEEDED): BreakerState.CLOSED,
    (BreakerState.HALF_OPEN, Cause.PROBE_FAILED): BreakerState.OPEN,
    **{(state, Cause.OPERATOR_OPENS): BreakerState.FORCED_OPEN for state in BreakerState},
    **{(state, Cause.OPERATOR_CLOSES): BreakerState.CLOSED for state in BreakerState},
}


class Refused:
    """No permit: ask again not before `retry_at_ns` (0 = when a probe has come back, NEVER_NS = forced open)."""

    __slots__ = ("retry_at_ns",)

    def __init__(self, retry_at_ns: int) -> None:
        self.retry_at_ns = retry_at_ns


class Permit:
    """Leave to make one call; give back exactly once, by success, failure or release.

    While closed all calls share one permit, since nothing is counted per call: admitting and a success
    touch no state at all (0.1 us both, 2026-11).
    """

    __slots__ = ("_breaker",)

    def __init__(self, breaker: "Breaker") -> None:
        self._breaker = breaker

    @property
    def is_current(self) -> bool:
        """The breaker has not changed its state since."""
        return self._breaker.shared is self

    def success(self, now: int) -> None:
        """The agent gave an explicit verdict, of whatever kind."""

    def failure(self, now: int) -> None:
        """A call really sent ended in Timeout, Disconnected, Malformed or AgentError."""
        if self._breaker.shared is self:
            self._breaker._failed(now)

    def release(self, now: int) -> None:
        """The call says nothing about the agent: not sent, or nobody waits any more."""


class Probe(Permit):
    """A permit of the half-open state."""

    __slots__ = ("_is_out", "_state")

    def __init__(self, breaker: "Breaker", state: "_HalfOpen") -> None:
        super().__init__(breaker)
        self._state = state
        self._is_out = True

    @property
    def is_current(self) -> bool:
        return self._is_out and self._breaker._machine._state is self._state

    def success(self, now: int) -> None:
        if self._come_back():
            self._breaker._probed(True, now)

    def failure(self, now: int) -> None:
        if self._come_back():
            self._breaker._probed(False, now)

    def release(self, now: int) -> None:
        self._come_back()

    def _come_back(self) -> bool:
        if not self.is_current:
            return False
        self._is_out = False
        self._state.probes -= 1
        return True


class _Storage(CircuitBreakerStorage):
    """Times in ns; the failures of the window are the counter."""

    def __init__(self) -> None:
        super().__init__("wardgate")
        self.state: Any = _Kind.CLOSED
        self.opened_at: Any = 0
        self.failures: deque[int] = deque()

    state: Any = None  # the base's abstract properties are plain attributes here
    opened_at: Any = None

    @property
    def counter(self) -> int:
        return len(self.failures)

    def increment_counter(self) -> None:
        raise NotImplementedError("failures carry their time: Breaker._failed")

    def reset_counter(self) -> None:
        self.failures.clear()


class _HalfOpen(CircuitHalfOpenState):
    """How many probes are out, and how many came back well."""

    def __init__(self, breaker: "_Machine", prev_state: Any = None, notify: bool = False) -> None:
        self.probes = 0
        self.successes = 0
        super().__init__(breaker, prev_state, notify)  # type: ignore[no-untyped-call]


class _Machine(_CircuitBreaker):
    """aiobreaker with our states: it switches them and keeps the storage in step, nothing else."""

    STATES: Final[dict[_Kind, Callable[..., Any]]] = {
        _Kind.CLOSED: CircuitClosedState,
        _Kind.OPEN: CircuitOpenState,  # forced open as well: aiobreaker knows three kinds
        _Kind.HALF_OPEN: _HalfOpen,
    }
    _state: Any

    def __init__(self) -> None:
        self.storage = _Storage()
        super().__init__(state_storage=self.storage)

    def _create_new_state(self, new_state: Any, prev_state: Any = None, notify: bool = False) -> Any:
        return self.STATES[new_state](self, prev_state, notify)

    def move(self, state: BreakerState, now: int) -> None:
        """Enter a state; also one that it is in already (a new generation of permits)."""
        if state >= BreakerState.OPEN:
            self.storage.opened_at = now
            kind = _Kind.OPEN
        else:
            kind = _Kind.HALF_OPEN if state is BreakerState.HALF_OPEN else _Kind.CLOSED
        self.storage.reset_counter()
        self.storage.state = kind
        self.state = kind


OnChange = Callable[[BreakerState, BreakerState], None]


class Breaker:
    """One agent's breaker.

    `on_change(old, new)` runs after every change of state, and with old == new when only `retry_at_ns`
    moved; what it raises is logged and stops nothing.
    """

    __slots__ = ("_machine", "_settings", "name", "on_change", "opened_total", "shared", "state")

    def __init__(self, name: str, settings: Settings, on_change: OnChange | None = None) -> None:
        self.name = name
        self.on_change = on_change
        self.opened_total = 0
        self.state = BreakerState.CLOSED
        self._settings = settings
        self._machine = _Machine()
        self.shared: Permit | None = Permit(self)  # what `admit` gives to everybody; None unless closed

    # --- asking -----------------------------------------------------------------------------------

    def admit(self, now: int) -> Permit | Refused:
        """A permit, or when to ask again. An open breaker whose wait is over turns half-open here."""
        return self.shared or self._admit(now)

    def _admit(self, now: int) -> Permit | Refused:
        if self.state is BreakerState.OPEN and now >= self.retry_at_ns:
            self._feed(Cause.WAIT_OVER, now)
        if self.state is not BreakerState.HALF_OPEN:
            return Refused(self.retry_at_ns)
        state: _HalfOpen = self._machine._state
        if state.probes >= self._settings.half_open_max_requests:
            return Refused(0)
        state.probes += 1
        return Probe(self, state)

    @property
    def is_closed(self) -> bool:
        """Nothing is refused."""
        return self.shared is not None

    @property
    def retry_at_ns(self) -> int:
        """When the next probe may go: 0 unless open, NEVER_NS while forced open."""
        if self.state is BreakerState.OPEN:
            return int(self._machine.storage.opened_at) + int(self._settings.timeout_seconds * S)
        return NEVER_NS if self.state is BreakerState.FORCED_OPEN else 0

    @property
    def settings(self) -> Settings:
        """As configured, or as changed since."""
        return self._settings

    def failures(self, now: int) -> int:
        """Failures in the window that ends now; 0 unless closed."""
        self._prune(now)
        return self._machine.storage.counter

    def snapshot(self, now: int) -> dict[str, Any]:
        """For the admin API and the CLI."""
        half_open = self._machine._state if self.state is BreakerState.HALF_OPEN else None
        retry_at_ns = self.retry_at_ns
        return {
            "state": self.state.word,
            "failures": self.failures(now),
            "successes": half_open.successes if half_open else 0,
            "probes": half_open.probes if half_open else 0,
            "retry_in_ms": max(0, retry_at_ns - now) // MS if 0 < retry_at_ns < NEVER_NS else None,
            "opened_total": self.opened_total,
            "failure_threshold": self._settings.failure_threshold,
            "success_threshold": self._settings.success_threshold,
            "timeout_seconds": self._settings.timeout_seconds,
            "window_seconds": self._settings.window_seconds,
            "half_open_max_requests": self._settings.half_open_max_requests,
        }

    # --- what the outside does to it --------------------------------------------------------------

    def new_session(self, now: int) -> None:
        """An instance connected: an open breaker (not a forced one) tries it at once."""
        if self.state is BreakerState.OPEN:
            self._feed(Cause.NEW_SESSION, now)

    def force_open(self, now: int) -> None:
        """Refuse everything until close()."""
        self._feed(Cause.OPERATOR_OPENS, now)

    def close(self, now: int) -> None:
        """Admit everything again and forget the failures; the operator's `close` and `reset`."""
        self._feed(Cause.OPERATOR_CLOSES, now)

    def configure(self, settings: Settings) -> None:
        """Other numbers, at once; thresholds already passed act with the next answer."""
        retry_at_ns = self.retry_at_ns
        self._settings = settings
        if self.retry_at_ns != retry_at_ns:
            self._tell(self.state, self.state)

    # --- what permits report ----------------------------------------------------------------------

    def _failed(self, now: int) -> None:
        self._machine.storage.failures.append(now)
        self._prune(now)
        if self._machine.storage.counter >= self._settings.failure_threshold:
            self._feed(Cause.FAILED_OFTEN, now)

    def _probed(self, is_good: bool, now: int) -> None:
        if not is_good:
            self._feed(Cause.PROBE_FAILED, now)
            return
        state: _HalfOpen = self._machine._state
        state.successes += 1
        if state.successes >= self._settings.success_threshold:
            self._feed(Cause.PROBES_SUCCEEDED, now)

    def _prune(self, now: int) -> None:
        failures = self._machine.storage.failures
        since = now - int(self._settings.window_seconds * S)
        while failures and failures[0] <= since:
            failures.popleft()

    def _feed(self, cause: Cause, now: int) -> None:
        old = self.state
        new = TRANSITIONS.get((old, cause))
        if new is None:
            raise IllegalTransition(f"breaker {self.name}: {cause.name} in state {old.name}")
        self._machine.move(new, now)
        self.state = new
        self.shared = Permit(self) if new is BreakerState.CLOSED else None
        self.opened_total += new is BreakerState.OPEN
        self._tell(old, new)

    def _tell(self, old: BreakerState, new: BreakerState) -> None:
        if self.on_change is None:
            return
        try:
            self.on_change(old, new)
        except Exception:  # whoever listens must not decide how a call ends
            _log.exception("breaker %s: listener failed on %s -> %s", self.name, old.word, new.word)
