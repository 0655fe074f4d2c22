"""Writes audit records to `<audit.path>/audit.jsonl`, one JSON object a line, from a thread of its own.

The event loop only appends to the queue; opening, writing and waiting for a disk happen here. A full
disk, a missing or unwritable directory, a file that another process holds: none of them ends or slows
agentd. The records wait in the bounded queue, it is tried again every AUDIT_RETRY_MS, health says
degraded, what no longer fits is dropped and counted.

A line is in the file whole or not at all: a write that ended in the middle of one is taken back, and
a file that a crash left without its last newline gets one first. The file is opened again on SIGUSR1
and whenever the path no longer leads to it (logrotate, with or without a signal).

    queue --(wake)--> gather for AUDIT_FLUSH_MS --> write in batches --> queue empty: sleep

Kind: IO.
"""

import errno
import fcntl
import logging
import os
import stat
import threading
from collections.abc import Callable
from typing import Literal

from agentd.audit.queue import AuditQueue
from shared.clock import MS, S, now_ns
from shared.defaults import (
    AUDIT_FLUSH_MS,
    AUDIT_QUEUE,
    AUDIT_QUEUE_BYTES,
    AUDIT_RECENT_S,
    AUDIT_RETRY_MS,
    AUDIT_STUCK_S,
)

_log = logging.getLogger("agentd.audit")
FILE_NAME = "audit.jsonl"
_BATCH_BYTES = 256 * 1024


class FileSink:
    """The JSONL file. `put`, `reopen` and `status` belong to the event loop, everything else to the thread."""

    def __init__(
        self,
        directory: str,
        *,
        flush_ms: int = AUDIT_FLUSH_MS,
        retry_ms: int = AUDIT_RETRY_MS,
        write: Callable[[int, bytes], int] = os.write,
        clock: Callable[[], int] = now_ns,
        queue_records: int = AUDIT_QUEUE,
        queue_bytes: int = AUDIT_QUEUE_BYTES,
    ) -> None:
        self.path = os.path.join(directory, FILE_NAME)
        self.written = 0
        self.write_errors = 0
        self.error = ""
        self._directory = directory
        self._flush_s = flush_ms / 1000
        self._retry_s = retry_ms / 1000
        self._write = write
        self._clock = clock
        self._fd = -1
        self._offset = 0  # bytes of the queue's first line that are in the file already
        self._must_reopen = False
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._has_tried = threading.Event()
        self.queue = AuditQueue(self._wake.set, queue_records, queue_bytes)
        self._thread = threading.Thread(target=self._run, name="audit-file", daemon=True)

    # --- the event loop's side ---------------------------------------------------------------------

    def start(self) -> None:
        """Start the thread, which opens the file at once: a wrong path shows before the first record."""
        self._wake.set()
        self._thread.start()

    def why_not_open(self, timeout_s: float) -> str:
        """Wait for the first try to open the file; "" = it is open. Not for the event loop."""
        if not self._has_tried.wait(timeout_s):
            return f"{self.path}: could not be opened within {timeout_s:g} s"
        return self.error

    def put(self, record: "bytes | memoryview") -> bool:
        """Take over one encoded record; False = dropped or refused, and counted. Never waits."""
        return self.queue.put(record, self._clock())

    def reopen(self) -> None:
        """Open the path anew before the next write (logrotate moved the file)."""
        self._must_reopen = True
        self._wake.set()

    def stop(self, timeout_s: float) -> int:
        """Write what is left; returns how many records could not be written in time."""
        self._stop.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        return len(self.queue)

    def status(self, now: int) -> tuple[Literal["healthy", "degraded"], str]:
        """For health: degraded while writing fails or stands still and for a while after a loss."""
        queue = self.queue
        oldest = queue.oldest_ns()
        if self.error:
            return "degraded", f"{self.error}; {len(queue)} records wait, {queue.dropped} dropped"
        if oldest and now - oldest > AUDIT_STUCK_S * S:
            waited_s = (now - oldest) / S
            return "degraded", f"{self.path}: nothing written for {waited_s:.0f} s; {len(queue)} records wait"
        if queue.dropped and now - queue.dropped_at_ns < AUDIT_RECENT_S * S:
            return "degraded", f"{queue.dropped} records dropped so far, the last one {_ago(now, queue.dropped_at_ns)}"
        return "healthy", f"{self.path}: {self.written} records written"

    def numbers(self) -> tuple[int, int, int]:
        """(written, dropped or refused, waiting) for metrics."""
        return self.written, self.queue.dropped + self.queue.refused, len(self.queue)

    def room(self) -> tuple[int, int, int]:
        """(bytes waiting, how many records may wait, how many bytes may wait) for metrics."""
        return self.queue.size_bytes, self.queue.max_records, self.queue.max_bytes

    # --- the thread's side -------------------------------------------------------------------------

    def _run(self) -> None:
        self._open()
        self._has_tried.set()
        while True:
            self._wake.wait()
            self._stop.wait(self._flush_s)
            self._wake.clear()
            if self._must_reopen or not self._is_in_place():
                self._must_reopen = False
                self._close()
            is_ok = self._fd >= 0 or self._open()
            while is_ok and len(self.queue):
                is_ok = self._write_some()
            if self._stop.is_set():
                break
            if not is_ok:
                self._stop.wait(self._retry_s)
                self._wake.set()
        self._close()

    def _open(self) -> bool:
        fd = -1
        try:
            os.makedirs(self._directory, mode=0o750, exist_ok=True)
            flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
            fd = os.open(self.path, flags, 0o640)
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise OSError(errno.EINVAL, "is not a regular file")
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # two writers would tear each other's lines
            if status.st_size and os.pread(fd, 1, status.st_size - 1) != b"\n":
                self._write(fd, b"\n")
        except OSError as error:
            if fd >= 0:
                os.close(fd)
            is_held = fd >= 0 and error.errno == errno.EWOULDBLOCK
            self._failed("another process writes to it" if is_held else error.strerror or str(error))
            return False
        self._fd = fd
        self._offset = 0
        self._succeeded()
        return True

    def _is_in_place(self) -> bool:
        try:
            return self._fd < 0 or os.path.samestat(os.fstat(self._fd), os.stat(self.path, follow_symlinks=False))
        except OSError:
            return False

    def _write_some(self) -> bool:
        rows = self.queue.take(_BATCH_BYTES)
        data = b"\n".join(rows) + b"\n"
        try:
            self._offset += self._write(self._fd, data[self._offset :])
        except OSError as error:
            self._take_back()
            self._failed(error.strerror or str(error))
            return False
        count = 0
        for row in rows:
            if self._offset <= len(row):
                break
            self._offset -= len(row) + 1
            count += 1
        self.queue.done(count)
        self.written += count
        self._succeeded()
        return True

    def _take_back(self) -> None:
        """Remove the beginning of a line whose end did not fit; if even that fails, go on where it ended."""
        if not self._offset:
            return
        try:
            os.ftruncate(self._fd, max(0, os.fstat(self._fd).st_size - self._offset))
        except OSError:
            return
        self._offset = 0

    def _close(self) -> None:
        if self._fd >= 0:
            self._take_back()
            try:
                os.fsync(self._fd)
            except OSError as error:
                self._failed(error.strerror or str(error))
            os.close(self._fd)
            self._fd = -1
            self._offset = 0

    def _failed(self, text: str) -> None:
        self.write_errors += 1
        message = f"{self.path}: {text}"
        if message != self.error:
            _log.error("audit records cannot be written: %s", message)
        self.error = message

    def _succeeded(self) -> None:
        if self.error:
            _log.warning("audit records are written again: %s", self.path)
            self.error = ""


def _ago(now: int, then: int) -> str:
    return f"{(now - then) // MS / 1000:.0f} s ago"
