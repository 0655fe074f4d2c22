"""agentd's one timer, seen from those who have deadlines.

Lanes and dispatcher say by when somebody must look; the daemon arms a timer of its loop and calls
`Dispatcher.expire`. A timer per call would cost 1.0 us (call_later + cancel, 2026-11).

Kind: pure.
"""

from collections.abc import Callable

from shared.clock import MS
from shared.defaults import ALARM_LATE_MS, READ_FIRST_MS
from shared.wire.segment import NEVER_NS


class Alarm:
    """`arm(deadline_ns)` is called when a deadline appears that is earlier than all before it.

    `at_ns` is what the timer stands at; whoever rings it sets it back to NEVER_NS first.
    """

    __slots__ = ("_arm", "at_ns")

    def __init__(self, arm: Callable[[int], None]) -> None:
        self._arm = arm
        self.at_ns = NEVER_NS

    def by(self, deadline_ns: int) -> None:
        """Ring not later than this."""
        if deadline_ns < self.at_ns:
            self.at_ns = deadline_ns
            self._arm(deadline_ns)


class ReadFirst:
    """Whether a deadline may be acted on now, or what has arrived must be read first.

    An agentd that stood still (stopped, swapped out, starved) wakes up with deadlines long over and the
    answers to them unread: 30 of 30 timely verdicts were counted as timeouts and opened their agent's
    breaker (SIGSTOP for 0.6 s, 2026-11). So a late alarm rings once more, a moment later.
    """

    __slots__ = ("_until_ns",)

    def __init__(self) -> None:
        self._until_ns = 0

    def wait_ms(self, due_ns: int, now: int) -> int:
        """0 = act; else ring again after so long. Never puts off what was put off just now."""
        if now < self._until_ns:
            return -((now - self._until_ns) // MS)
        if now - due_ns <= ALARM_LATE_MS * MS or now - self._until_ns <= ALARM_LATE_MS * MS:
            return 0
        self._until_ns = now + READ_FIRST_MS * MS
        return READ_FIRST_MS
