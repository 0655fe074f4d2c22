"""How often something may be logged: so many lines a second, then one line with the count.

A fault that a client can provoke must not become a flood of tracebacks.

Kind: pure.
"""


class Throttle:
    """`admit(now)` says whether this line may go; `missed` how many were kept back before it."""

    __slots__ = ("_count", "_per_s", "_second", "missed")

    def __init__(self, per_s: int = 10) -> None:
        self._per_s = per_s
        self._second = -1
        self._count = 0
        self.missed = 0

    def admit(self, now_s: float) -> bool:
        second = int(now_s)
        if second != self._second:
            self._second = second
            self._count = 0
        self._count += 1
        if self._count <= self._per_s:
            return True
        self.missed += 1
        return False

    def note(self) -> str:
        """What to add to a line that is logged: how many like it were not."""
        missed, self.missed = self.missed, 0
        return f" ({missed} more were not logged)" if missed else ""
