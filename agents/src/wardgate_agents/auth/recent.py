"""What was found out not long ago: bounded, and forgotten after its time.

Kind: pure (the clock is given).
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

V = TypeVar("V")


class Recent(Generic[V]):
    """At most `size` values by key, the longest unused going first; each until its own time."""

    __slots__ = ("_clock_s", "_rows", "_size")

    def __init__(self, size: int, clock_s: Callable[[], float]) -> None:
        self._size = size
        self._clock_s = clock_s
        self._rows: OrderedDict[bytes, tuple[float, V]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._rows)

    def get(self, key: bytes) -> V | None:
        """The value, as long as its time has not come."""
        row = self._rows.get(key)
        if row is None:
            return None
        until_s, value = row
        if self._clock_s() >= until_s:
            del self._rows[key]
            return None
        self._rows.move_to_end(key)
        return value

    def put(self, key: bytes, value: V, until_s: float) -> None:
        if self._size <= 0:
            return
        self._rows[key] = until_s, value
        self._rows.move_to_end(key)
        while len(self._rows) > self._size:
            self._rows.popitem(last=False)
