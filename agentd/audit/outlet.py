"""Where audit records go now: one sink in force, or none, and those that still write what they were given.

A reload with another `audit.path` puts a new sink in the old one's place; the old one writes what it holds
and is let go. Numbers are sums over all of them, so that a total never goes down. Nothing is opened,
written or waited for here.

Kind: pure (the sinks do the work).
"""

from typing import Literal, Protocol


class Sink(Protocol):
    """What writes records."""

    @property
    def path(self) -> str: ...
    def put(self, record: "bytes | memoryview") -> bool: ...
    def reopen(self) -> None: ...
    def stop(self, timeout_s: float) -> int: ...
    def status(self, now: int) -> tuple[Literal["healthy", "degraded"], str]: ...
    def numbers(self) -> tuple[int, int, int]: ...
    def room(self) -> tuple[int, int, int]: ...


class Outlet:
    """`sink` = None: no sink is configured, records go nowhere."""

    __slots__ = ("_dropped", "_leaving", "_written", "sink")

    def __init__(self, sink: Sink | None) -> None:
        self.sink = sink
        self._leaving: list[Sink] = []
        self._written = 0  # by those that are gone
        self._dropped = 0

    def put(self, record: "bytes | memoryview") -> bool:
        """Take over one encoded record; False = it was dropped. Never waits."""
        return self.sink is None or self.sink.put(record)

    def replace(self, sink: Sink | None) -> Sink | None:
        """Another sink from the next record on. The old one is to be stopped, and then `left`."""
        old, self.sink = self.sink, sink
        if old is not None:
            self._leaving.append(old)
        return old

    def left(self, sink: Sink, lost: int) -> None:
        """A replaced sink has stopped, with so many records unwritten."""
        written, dropped, _ = sink.numbers()
        self._leaving.remove(sink)
        self._written += written
        self._dropped += dropped + lost

    def reopen(self) -> str:
        """Open the file anew; its path, "" where there is none."""
        if self.sink is None:
            return ""
        self.sink.reopen()
        return self.sink.path

    def numbers(self) -> tuple[int, int, int]:
        """(written, dropped or refused, waiting), of all sinks since agentd's start."""
        written, dropped, waiting = self._written, self._dropped, 0
        for sink in (*self._leaving, *((self.sink,) if self.sink is not None else ())):
            numbers = sink.numbers()
            written, dropped, waiting = written + numbers[0], dropped + numbers[1], waiting + numbers[2]
        return written, dropped, waiting

    def room(self) -> tuple[int, int, int]:
        """(bytes waiting, how many records may wait, how many bytes may wait) of the sink in force."""
        return self.sink.room() if self.sink is not None else (0, 0, 0)

    def status(self, now: int) -> tuple[Literal["healthy", "degraded"], str]:
        """For health."""
        return self.sink.status(now) if self.sink is not None else ("healthy", "no sink is configured")
