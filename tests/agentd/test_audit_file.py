"""agentd/audit: whole lines or none, bounded waiting, and no disk ends or slows the loop."""

import errno
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agentd.audit.file import FileSink
from agentd.audit.queue import AuditQueue
from shared.clock import S, now_ns
from shared.defaults import AUDIT_RECORD_MAX_BYTES
from tests.support import wait_until

Make = Callable[..., FileSink]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    sinks: list[FileSink] = []

    def build(directory: Path = tmp_path, start: bool = True, **options: object) -> FileSink:
        sink = FileSink(str(directory), flush_ms=1, retry_ms=5, **options)  # type: ignore[arg-type]
        sinks.append(sink)
        if start:
            sink.start()
        return sink

    yield build
    for sink in sinks:
        sink.stop(5.0)
    assert not any(thread.name == "audit-file" for thread in threading.enumerate())


class Disk:
    """A write(2) that can be told to be full after so many bytes, or to stand still."""

    def __init__(self) -> None:
        self.room: int | None = None
        self.go = threading.Event()
        self.go.set()

    def __call__(self, fd: int, data: bytes) -> int:
        self.go.wait(10)
        if self.room is not None:
            if self.room == 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            data = data[: self.room]
            self.room -= len(data)
        return os.write(fd, data)


def lines(path: Path) -> list[bytes]:
    data = (path / "audit.jsonl").read_bytes()
    assert data == b"" or data.endswith(b"\n")
    return data.split(b"\n")[:-1]


# --- queue ----------------------------------------------------------------------------------------


def test_the_queue_is_bounded_in_number_and_in_bytes() -> None:
    """What does not fit is dropped and counted, with the time of the last loss."""
    queue = AuditQueue(lambda: None, max_records=3, max_bytes=100)
    assert [queue.put(b'{"n":%d}' % n, 1) for n in range(4)] == [True, True, True, False]
    queue.done(3)
    assert not queue.put(b'{"x":"%b"}' % (b"y" * 100), 7)
    assert (queue.dropped, queue.dropped_at_ns, len(queue), queue.size_bytes) == (2, 7, 0, 0)


def test_the_consumer_is_woken_only_when_the_queue_was_empty() -> None:
    """One wake-up for a burst."""
    woken: list[int] = []
    queue = AuditQueue(lambda: woken.append(1))
    for _ in range(5):
        queue.put(b"{}", 0)
    assert len(woken) == 1
    queue.done(5)
    queue.put(b"{}", 0)
    assert len(woken) == 2


@pytest.mark.parametrize(
    "record", [b"", b"text", b"{}\n{}", b'{"a":1}\n', b"[1]", b"{" + b"x" * AUDIT_RECORD_MAX_BYTES + b"}"]
)
def test_what_would_break_the_files_lines_is_refused(record: bytes) -> None:
    """A worker's record is written as it came, so it must be one JSON object on one line."""
    queue = AuditQueue(lambda: None)
    assert not queue.put(record, 0)
    assert (queue.refused, len(queue)) == (1, 0)


def test_a_view_into_a_message_is_copied() -> None:
    """The message's buffer is used again by its owner."""
    buffer = bytearray(b'{"a":1}')
    queue = AuditQueue(lambda: None)
    assert queue.put(memoryview(buffer), 0)
    buffer[:] = b"xxxxxxx"
    assert queue.take(1000) == [b'{"a":1}']


def test_take_is_bounded_in_bytes_and_gives_at_least_one() -> None:
    """A batch is one write."""
    queue = AuditQueue(lambda: None)
    for n in range(5):
        queue.put(b'{"n":%d}' % n, 0)
    assert len(queue.take(15)) == 2
    assert len(queue.take(1)) == 1


# --- file -----------------------------------------------------------------------------------------


def test_records_come_out_as_they_went_in(make: Make, tmp_path: Path) -> None:
    """In order, one a line, not encoded again; the file is not readable by everybody."""
    sink = make(tmp_path / "new" / "dir")
    for n in range(1000):
        assert sink.put(b'{"n": %d }' % n)
    assert sink.stop(5.0) == 0
    assert lines(tmp_path / "new" / "dir") == [b'{"n": %d }' % n for n in range(1000)]
    assert os.stat(tmp_path / "new" / "dir" / "audit.jsonl").st_mode & 0o007 == 0
    assert sink.written == 1000
    assert sink.status(now_ns())[0] == "healthy"


def test_records_are_written_without_waiting_for_the_end(make: Make, tmp_path: Path) -> None:
    """Every AUDIT_FLUSH_MS, not at exit."""
    sink = make()
    sink.put(b'{"a":1}')
    wait_until(lambda: sink.written == 1)
    assert lines(tmp_path) == [b'{"a":1}']


def test_a_full_disk_keeps_lines_whole_and_records_waiting(make: Make, tmp_path: Path) -> None:
    """Health says degraded and why; once there is room, everything that waited is written, once."""
    disk = Disk()
    sink = make(write=disk)
    disk.room = 12
    for n in range(3):
        sink.put(b'{"n":%d}' % n)
    wait_until(lambda: sink.error)
    assert sink.status(now_ns()) == (
        "degraded",
        f"{tmp_path}/audit.jsonl: No space left on device; 2 records wait, 0 dropped",
    )
    assert lines(tmp_path) == [b'{"n":0}'], "the half line was taken back"
    disk.room = None
    wait_until(lambda: sink.written == 3)
    assert lines(tmp_path) == [b'{"n":0}', b'{"n":1}', b'{"n":2}']
    assert sink.status(now_ns())[0] == "healthy"
    assert sink.write_errors >= 1


def test_a_disk_that_stands_still_is_seen_and_stops_nobody(make: Make) -> None:
    """`put` goes on answering; a record that waits too long makes health degraded; stop is bounded."""
    disk = Disk()
    sink = make(write=disk)
    disk.go.clear()
    sink.put(b'{"a":1}')
    assert sink.status(now_ns())[0] == "healthy"
    status, message = sink.status(now_ns() + 6 * S)
    assert status == "degraded"
    assert "nothing written for 6 s; 1 records wait" in message
    assert sink.stop(0.05) == 1
    disk.go.set()


def test_losses_make_health_degraded_for_a_while(make: Make) -> None:
    """A minute after the last one it is well again."""
    sink = make(start=False)
    sink.queue.max_records = 1
    sink.put(b"{}")
    assert not sink.put(b"{}")
    sink.queue.done(1)
    assert sink.status(now_ns()) == ("degraded", "1 records dropped so far, the last one 0 s ago")
    assert sink.status(now_ns() + 61 * S)[0] == "healthy"


def test_an_unwritable_path_is_tried_again(make: Make, tmp_path: Path) -> None:
    """A file where the directory should be; then it is gone."""
    obstacle = tmp_path / "log"
    obstacle.write_text("")
    sink = make(obstacle)
    sink.put(b'{"a":1}')
    wait_until(lambda: sink.error)
    assert sink.status(now_ns())[0] == "degraded"
    obstacle.unlink()
    wait_until(lambda: sink.written == 1)
    assert lines(obstacle) == [b'{"a":1}']


def test_something_that_is_no_file_is_refused(make: Make, tmp_path: Path) -> None:
    """A FIFO would block, a symbolic link leads where somebody else decides."""
    os.mkfifo(tmp_path / "audit.jsonl")
    sink = make()
    wait_until(lambda: sink.error)
    assert "not a regular file" in sink.error
    (tmp_path / "audit.jsonl").unlink()
    os.symlink("/dev/null", tmp_path / "audit.jsonl")
    wait_until(lambda: "symbolic" in sink.error)


def test_two_processes_never_write_one_file(make: Make, tmp_path: Path) -> None:
    """The second says so and waits for the first to go."""
    first = make()
    first.put(b'{"a":1}')
    wait_until(lambda: first.written == 1)
    second = make()
    second.put(b'{"b":1}')
    wait_until(lambda: "another process writes to it" in second.error)
    first.stop(5.0)
    wait_until(lambda: second.written == 1)
    assert lines(tmp_path) == [b'{"a":1}', b'{"b":1}']


def test_a_line_that_a_crash_cut_off_is_closed_first(make: Make, tmp_path: Path) -> None:
    """The next record begins a line of its own."""
    (tmp_path / "audit.jsonl").write_bytes(b'{"a":1}\n{"half')
    sink = make()
    sink.put(b'{"b":1}')
    wait_until(lambda: sink.written == 1)
    assert lines(tmp_path) == [b'{"a":1}', b'{"half', b'{"b":1}']


@pytest.mark.parametrize("told", [True, False])
def test_a_rotated_file_is_left_and_a_new_one_begun(make: Make, tmp_path: Path, told: bool) -> None:
    """With SIGUSR1's `reopen` at once, without it before the next write."""
    sink = make()
    sink.put(b'{"a":1}')
    wait_until(lambda: sink.written == 1)
    os.rename(tmp_path / "audit.jsonl", tmp_path / "audit.jsonl.1")
    if told:
        sink.reopen()
        wait_until((tmp_path / "audit.jsonl").exists)
    sink.put(b'{"b":1}')
    wait_until(lambda: sink.written == 2)
    assert (tmp_path / "audit.jsonl.1").read_bytes() == b'{"a":1}\n'
    assert lines(tmp_path) == [b'{"b":1}']


def test_rotation_on_a_full_disk_leaves_whole_lines_on_both_sides(make: Make, tmp_path: Path) -> None:
    """The half line is taken back from the old file; the record goes whole to the new one."""
    disk = Disk()
    sink = make(write=disk)
    disk.room = 5
    sink.put(b'{"a":1}')
    wait_until(lambda: sink.error)
    os.rename(tmp_path / "audit.jsonl", tmp_path / "audit.jsonl.1")
    disk.room = None
    sink.reopen()
    wait_until(lambda: sink.written == 1)
    assert (tmp_path / "audit.jsonl.1").read_bytes() == b""
    assert lines(tmp_path) == [b'{"a":1}']
