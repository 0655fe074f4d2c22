"""What is due at the end of a loop's turn, or of the messages that are being handled.

Kind: pure (the loop is given).
"""

from collections.abc import Callable
from typing import Any, Protocol


class CallsSoon(Protocol):
    """Of a loop, what it takes to put something off to its next turn."""

    def call_soon(self, callback: Callable[[], None]) -> Any: ...


class Turn:
    """Runs what is due at the end of the work at hand: of a drain where one is going on, else in the loop's next turn.

    One per loop. What a drain's messages lead to leaves together, without a turn of its own (5 us and two system
    calls on every hop of a lone request, 2026-11).
    """

    __slots__ = ("_due", "_is_draining", "_loop")

    def __init__(self, loop: CallsSoon) -> None:
        self._loop = loop
        self._due: list[Callable[[], None]] = []
        self._is_draining = False

    def at_end(self, callback: Callable[[], None]) -> None:
        """Call it once, soon."""
        if self._is_draining:
            self._due.append(callback)
        else:
            self._loop.call_soon(callback)

    @property
    def is_draining(self) -> bool:
        """Messages are being handled."""
        return self._is_draining

    def begin(self) -> None:
        """A drain begins."""
        self._is_draining = True

    def end(self) -> None:
        """It has ended. A callback that fails leaves none of the others out."""
        self._is_draining = False
        due, self._due = self._due, []
        while due:
            callback = due.pop(0)
            try:
                callback()
            except BaseException:
                for rest in due:
                    self._loop.call_soon(rest)
                raise
