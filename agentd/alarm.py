"""agentd's one timer, seen from those who have deadlines.

Lanes and dispatcher say by when somebody must look; the daemon arms a timer of its loop and calls
`Dispatcher.expire`. A timer per call would cost 1.0 us (call_later + cancel, 2026-11).

Kind: pure.
"""

from collections.abc import Callable

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
