"""When to dial again.

Kind: pure.
"""

from collections.abc import Callable


class BackOff:
    """How long to wait before dialling again: doubling, capped, with jitter, without a last time."""

    __slots__ = ("_first_ms", "_max_ms", "_random", "_tries")

    def __init__(self, first_ms: int, max_ms: int, random: Callable[[], float]) -> None:
        self._first_ms = first_ms
        self._max_ms = max_ms
        self._random = random  # 0 <= x < 1
        self._tries = 0

    def next_ms(self) -> int:
        """Between half and the whole of the wait that is due: many connections shall not come at once."""
        whole_ms = min(self._max_ms, self._first_ms << self._tries)
        if whole_ms < self._max_ms:
            self._tries += 1
        return int(whole_ms * (0.5 + self._random() / 2))

    def reset(self) -> None:
        """It worked."""
        self._tries = 0
