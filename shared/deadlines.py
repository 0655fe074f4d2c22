"""Who is waited for until when: pending things by id, in order of their deadline, without timers.

One insertion-ordered dict per distinct timeout, so that adding and removing are one dict operation
and looking for expired ones touches only those. Its owner asks `expired(now)` from one sweep or one
timer armed at `earliest()`; a timer per request would cost 1.0 us (call_later + cancel, 2026-11).

Kind: pure.
"""

from collections.abc import Iterable
from typing import Generic, TypeVar

T = TypeVar("T")


class Deadlines(Generic[T]):
    """Pending values by id; each row of one timeout is in order of deadline because time only grows."""

    __slots__ = ("_rows",)

    def __init__(self) -> None:
        self._rows: dict[int, dict[int, tuple[int, T]]] = {}

    def row(self, timeout_ns: int) -> dict[int, tuple[int, T]]:
        """The row of one timeout: `row[id] = (deadline_ns, value)`, `row.pop(id, None)`."""
        row = self._rows.get(timeout_ns)
        if row is None:
            row = self._rows[timeout_ns] = {}
        return row

    def rows(self) -> Iterable[dict[int, tuple[int, T]]]:
        """All rows, for looking an id up where its timeout is not known; there are as many as timeouts."""
        return self._rows.values()

    def __len__(self) -> int:
        return sum(map(len, self._rows.values()))

    def earliest(self) -> int | None:
        """Nanoseconds of the next deadline, or None when nothing is pending."""
        found: int | None = None
        for row in self._rows.values():
            for deadline, _ in row.values():
                if found is None or deadline < found:
                    found = deadline
                break
        return found

    def expired(self, now: int) -> list[T]:
        """Remove and return everything whose deadline is not after `now`."""
        out: list[T] = []
        for row in self._rows.values():
            gone = []
            for key, (deadline, value) in row.items():
                if deadline > now:
                    break
                gone.append(key)
                out.append(value)
            for key in gone:
                del row[key]
        return out

    def clear(self) -> list[T]:
        """Remove and return everything, oldest first within each timeout."""
        out = [value for row in self._rows.values() for _, value in row.values()]
        for row in self._rows.values():
            row.clear()
        return out
