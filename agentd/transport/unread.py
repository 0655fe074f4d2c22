"""Counts what was sent to an agent and not shown to be read; remembers calls whose answers would be late.

An agent reads in order: an answer to a call shows that the message it left with was read, and all before it;
a PONG shows it of what left before its PING. Nothing is bounded here: whoever sends asks first.

Kind: pure.
"""

from collections import deque


class Unread:
    """`bytes` are counted when something is noted, messages when they leave."""

    __slots__ = ("_flights", "_read_ns", "bytes", "messages", "number")

    def __init__(self) -> None:
        self.bytes = 0
        self.messages = 0  # sent, and not shown to be read
        self.number = 0  # of the latest message
        # (sent ns, number of the message, its bytes)
        self._flights: deque[tuple[int, int, int]] = deque()
        self._read_ns = 0  # when the latest message left that is known to be read

    def left(self, size: int, now: int) -> None:
        """A message of so many bytes, which were counted before."""
        self.number += 1
        self.messages += 1
        self._flights.append((now, self.number, size))

    def answered(self, noted_ns: int) -> None:
        """A call noted then was answered: its message is the first one since, unless another call's answer has
        counted that before."""
        flights = self._flights
        while flights and flights[0][0] < noted_ns:
            self._read(flights.popleft())
        if flights and noted_ns > self._read_ns:
            self._read(flights.popleft())

    def echoed(self, number: int) -> None:
        """The message of this number, and all before."""
        flights = self._flights
        while flights and flights[0][1] <= number:
            self._read(flights.popleft())

    def _read(self, flight: tuple[int, int, int]) -> None:
        self._read_ns, _, size = flight
        self.messages -= 1
        self.bytes -= size


class Remembered:
    """The latest members, at least `limit` of them, at most twice as many."""

    __slots__ = ("_older", "_young", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._young: set[str] = set()
        self._older: set[str] = set()

    def add(self, member: str) -> None:
        """It is the latest now."""
        self._young.add(member)
        if len(self._young) >= self.limit:
            self._older, self._young = self._young, set()

    def take(self, member: str) -> bool:
        """Whether it was among them; it is not any more."""
        for some in (self._young, self._older):
            if member in some:
                some.remove(member)
                return True
        return False

    def __contains__(self, member: str) -> bool:
        return member in self._young or member in self._older
