"""Holds audit records between the event loop and a sink's thread, bounded in number and bytes.

`put` is called on the hot path: it checks, appends and never waits. What does not fit is dropped and
counted (`when_full = "drop"`); what would break the file's lines is refused and counted. Nothing here
knows where records go.

`deque.append` and `popleft` are atomic under the interpreter's lock, each side writes only its own
counter, so there is no lock: one producer (the loop), one consumer (the sink's thread).

Kind: pure.
"""

from collections import deque
from collections.abc import Callable

from shared.defaults import AUDIT_QUEUE, AUDIT_QUEUE_BYTES, AUDIT_RECORD_MAX_BYTES


class AuditQueue:
    """Encoded records, oldest first; each is one JSON object without a newline.

    `wake` is called when the queue was empty: the consumer may be asleep.
    """

    __slots__ = ("_bytes_in", "_bytes_out", "_rows", "_wake", "dropped", "dropped_at_ns", "max_bytes", "max_records",
                 "refused")  # fmt: skip

    def __init__(
        self, wake: Callable[[], None], max_records: int = AUDIT_QUEUE, max_bytes: int = AUDIT_QUEUE_BYTES
    ) -> None:
        self._rows: deque[tuple[int, bytes]] = deque()
        self._wake = wake
        self._bytes_in = 0
        self._bytes_out = 0
        self.max_records = max_records
        self.max_bytes = max_bytes
        self.dropped = 0
        self.dropped_at_ns = 0
        self.refused = 0

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def size_bytes(self) -> int:
        """Bytes of the records at hand."""
        return self._bytes_in - self._bytes_out

    def put(self, record: "bytes | memoryview", now: int) -> bool:
        """Keep a copy of the record; False = not kept, and counted."""
        data = bytes(record)
        size = len(data)
        if size > AUDIT_RECORD_MAX_BYTES or b"\n" in data or not (data[:1] == b"{" and data[-1:] == b"}"):
            self.refused += 1
            return False
        if len(self._rows) >= self.max_records or self.size_bytes + size > self.max_bytes:
            self.dropped += 1
            self.dropped_at_ns = now
            return False
        was_empty = not self._rows
        self._rows.append((now, data))
        self._bytes_in += size
        if was_empty:
            self._wake()
        return True

    def oldest_ns(self) -> int:
        """When the oldest record was put, 0 when there is none."""
        try:
            return self._rows[0][0]
        except IndexError:
            return 0

    def take(self, max_bytes: int) -> list[bytes]:
        """The oldest records up to so many bytes, at least one if there is one. They stay until `done`."""
        taken: list[bytes] = []
        size = 0
        for index in range(len(self._rows)):
            data = self._rows[index][1]
            if taken and size + len(data) > max_bytes:
                break
            taken.append(data)
            size += len(data)
        return taken

    def done(self, count: int) -> None:
        """Forget the oldest `count` records: they are written."""
        for _ in range(count):
            self._bytes_out += len(self._rows.popleft()[1])
