"""Readers of a segment see whole rows of the living file, whatever happens to its writer.

Real processes where the claim is about processes: each such test is bounded to about a second.
"""

import os
import resource
import signal
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from shared import defaults
from shared.errors import SegmentError
from shared.metrics import (
    R_DURATION_SUM_NS,
    R_IN_FLIGHT,
    R_RESPONSES,
    U_LAST_FAILURE_NS,
    U_LAST_OK_NS,
    W_BYTES_OUT,
    W_IN_FLIGHT,
    W_REQUESTS,
)
from shared.segment import (
    DRAINING,
    FREE,
    READY,
    STARTING,
    AgentdHealth,
    AgentdView,
    AgentdWriter,
    AgentRow,
    BreakerState,
    HealthStatus,
    ProxyView,
    ProxyWriter,
    Reload,
    ReloadResult,
)
from shared.segment_file import read_row, write_row
from shared.wire import segment as layout
from tests.support import Child, Clock, python

DIGEST = "0123456789abcdef"
TORN_S = 0.7  # how long the races run


@pytest.fixture
def directory(short_tmp_dir: Path) -> Path:
    return short_tmp_dir


@contextmanager
def agentd(directory: Path, digest: str = DIGEST) -> Iterator[AgentdWriter]:
    writer = AgentdWriter.create(f"{directory}/agentd.seg", digest)
    try:
        yield writer
    finally:
        writer.close()


@contextmanager
def proxy(
    directory: Path, routes: tuple[str, ...] = ("api", "default"), upstreams: tuple[str, ...] = ("app",)
) -> Iterator[ProxyWriter]:
    writer = ProxyWriter.create(f"{directory}/proxy.seg", DIGEST, routes, upstreams)
    try:
        yield writer
    finally:
        writer.close()


@contextmanager
def view_of(directory: Path) -> Iterator[AgentdView]:
    view = AgentdView(f"{directory}/agentd.seg")
    view.attach()
    try:
        yield view
    finally:
        view.close()


@contextmanager
def totals_of(directory: Path) -> Iterator[ProxyView]:
    view = ProxyView(f"{directory}/proxy.seg")
    view.attach()
    try:
        yield view
    finally:
        view.close()


@contextmanager
def forked(work: Callable[[], object]) -> Iterator[int]:
    """`work` in a forked child; killed at the end unless it has ended by itself. Its failure is the test's."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    try:
        yield pid
    finally:
        if os.waitpid(pid, os.WNOHANG) == (0, 0):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def ended(pid: int) -> int:
    """Its exit status, negative = by that signal; leaves it to be reaped."""
    info = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert info is not None
    return info.si_status if info.si_code == os.CLD_EXITED else -info.si_status


def raw(directory: Path, name: str = "agentd.seg") -> "memoryview[int]":
    """The cells themselves, writable, for what a correct writer never does."""
    import mmap

    fd = os.open(directory / name, os.O_RDWR)
    try:
        return memoryview(mmap.mmap(fd, 0)).cast("Q")
    finally:
        os.close(fd)


# --- the file --------------------------------------------------------------------------------------


def test_a_new_file_has_its_mode_header_and_nothing_beside_it(directory: Path) -> None:
    before = os.umask(0o077)
    try:
        with agentd(directory) as writer, view_of(directory) as view:
            status = os.stat(writer.path)
            assert stat.S_IMODE(status.st_mode) == 0o640
            assert status.st_size == layout.AGENTD_CELLS * 8
            assert os.listdir(directory) == ["agentd.seg"]
            assert (view.pid, view.nonce, view.config_digest) == (os.getpid(), writer.nonce, DIGEST)
            assert writer.nonce != 0
    finally:
        os.umask(before)
    assert os.listdir(directory) == []


def test_capacities_cost_no_memory(directory: Path) -> None:
    """69 MB of address space, and the pages of one slot; the rest are holes."""
    with proxy(directory) as writer:
        writer.slot(0)
        status = os.stat(writer.path)
        assert status.st_size > 64_000_000
        assert status.st_blocks * 512 < 1_000_000
        slot = layout.slot_area(0) * 8
        fd = os.open(writer.path, os.O_RDONLY)
        try:
            backed = os.lseek(fd, slot, os.SEEK_HOLE) - slot  # no SIGBUS for a worker on a full tmpfs
        finally:
            os.close(fd)
        assert backed >= (layout.SLOT_ROUTES + 2 * layout.ROUTE_CELLS) * 8


def test_a_start_that_was_killed_in_the_middle_is_no_obstacle(directory: Path) -> None:
    (directory / "agentd.seg.new").write_bytes(b"half")
    with agentd(directory), view_of(directory) as view:
        assert view.is_mapped
        assert os.listdir(directory) == ["agentd.seg"]


def test_what_cannot_be_made_leaves_nothing(directory: Path) -> None:
    """A limit on file sizes stands in for a full disk."""
    path = f"{directory}/proxy.seg"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))
    try:
        with pytest.raises(SegmentError, match="File too large"):
            ProxyWriter.create(path, DIGEST, ("api",))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    with pytest.raises(SegmentError, match="does not fit"):
        ProxyWriter.create(path, DIGEST, ("r" * 65,))
    with pytest.raises(SegmentError, match="more than 1024 routes"):
        ProxyWriter.create(path, DIGEST, tuple(map(str, range(1025))))
    with pytest.raises(SegmentError, match="No such file"):
        AgentdWriter.create(f"{directory}/absent/agentd.seg", DIGEST)
    assert os.listdir(directory) == []


def test_a_file_of_ours_takes_the_place_of_the_old_one(directory: Path) -> None:
    """A daemon killed by -9 leaves its file; the next start does not mind."""
    with agentd(directory) as old, view_of(directory) as view, agentd(directory) as new:
        assert view.nonce == old.nonce
        assert view.check()
        assert view.nonce == new.nonce
        old.close()  # not its file any more
        assert view.check()
        assert os.path.exists(new.path)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ((layout.H_MAGIC, 1), "not a segment of layout 2: magic 1, layout 2"),
        ((layout.H_LAYOUT, 1), "layout 1"),
        ((layout.H_NONCE, 0), "not a segment"),
        ((layout.H_SIZE, 8), "not a segment"),
    ],
)
def test_a_foreign_header_is_not_read(directory: Path, change: tuple[int, int], problem: str) -> None:
    with agentd(directory), view_of(directory) as view:
        cells = raw(directory)
        cells[change[0]] = change[1]
        assert not view.attach()
        assert problem in view.problem
        assert not view.is_mapped
        assert view.agents() == {}


def test_what_is_no_segment_is_not_mapped(directory: Path) -> None:
    view = AgentdView(f"{directory}/agentd.seg")
    path = directory / "agentd.seg"
    assert not view.attach()
    assert view.problem == "No such file or directory"
    path.write_bytes(b"short")
    assert not view.check()
    assert "5 bytes instead of 40960" in view.problem
    path.unlink()
    path.mkdir()
    assert not view.check()
    assert "no regular file" in view.problem
    path.rmdir()
    os.mkfifo(path)  # opening it must not block
    assert not view.check()
    path.unlink()
    with agentd(directory):
        path.rename(directory / "real")
        path.symlink_to(directory / "real")
        assert not view.check()
        assert "symbolic links" in view.problem
        path.unlink()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a file away")
def test_a_file_of_a_stranger_is_not_read(directory: Path) -> None:
    with agentd(directory) as writer, view_of(directory) as view:
        os.chown(writer.path, 65534, 65534)
        assert not view.attach()
        assert "directory's owner" in view.problem
        os.chown(directory, 65534, 65534)  # the CLI of root looks into the directory of the service's user
        assert view.attach()


def test_an_unmapped_view_answers_like_an_empty_file(directory: Path, clock: Clock) -> None:
    """No read has to ask first whether there is a file."""
    view = AgentdView(f"{directory}/agentd.seg")
    assert (view.generation, view.pid, view.nonce, view.config_digest) == (0, 0, 0, "")
    assert view.agents() == {}
    assert view.health() is None
    assert not any(view.is_alive(now) for now in (0, 1, clock.now, 1 << 62))
    other = ProxyView(f"{directory}/proxy.seg")
    assert (other.workers(), other.totals(), other.routes, other.upstreams, other.state) == ([], None, (), (), FREE)
    assert not other.is_alive(clock.now)
    other.close()


def test_an_exiting_reader_takes_nothing_along(directory: Path) -> None:
    """multiprocessing.shared_memory destroys the segment when any attached process exits."""
    script = "import sys; from shared.segment import *; v = AgentdView(sys.argv[1]); assert v.attach(); print('read')"
    with agentd(directory) as writer, Child(python("-c", script, writer.path), directory / "out") as child:
        assert child.ended() == 0, child.output()
        with view_of(directory) as view:
            assert view.is_mapped


def test_close_in_a_forked_child_leaves_the_file(directory: Path) -> None:
    with agentd(directory) as writer, proxy(directory) as other:
        writer.beat(5)
        slot = other.slot(0)

        def child() -> None:
            slot.claim(os.getpid(), 1)
            writer.close()
            other.close()

        with forked(child) as pid:
            assert ended(pid) == 0
        with view_of(directory) as view:
            assert view.beat_ns == 5
        assert os.path.exists(other.path)


# --- heartbeat -------------------------------------------------------------------------------------


def test_alive_is_a_beat_younger_than_the_limit(directory: Path, clock: Clock) -> None:
    with agentd(directory) as writer, view_of(directory) as view:
        writer.beat(clock.now)
        assert view.is_alive(clock.now)
        assert view.is_alive(clock.now - 1)  # a clock read before the beat
        assert view.is_alive(clock.ms(defaults.AGENTD_STALE_MS) - 1)
        assert not view.is_alive(clock.now)
        writer.beat(clock.now)
        assert view.is_alive(clock.now)


def test_a_beat_of_another_boot_is_dead(directory: Path, clock: Clock) -> None:
    """A runtime directory on a disk: the old beat lies in the future of the new clock."""
    with agentd(directory) as writer, view_of(directory) as view:
        writer.beat(clock.now)
        assert not view.is_alive(clock.now - defaults.AGENTD_STALE_MS * 1_000_000)


def test_leaving_is_seen_at_once(directory: Path, clock: Clock) -> None:
    """Without waiting for the beat to grow old or for the next check."""
    with view_of(directory) as view, agentd(directory) as writer:
        assert view.attach()
        writer.beat(clock.now)
        assert view.is_alive(clock.now)
        writer.close()
        assert view.is_mapped
        assert not view.is_alive(clock.now)
        assert not view.check()
        assert view.problem == "No such file or directory"


# --- agents ----------------------------------------------------------------------------------------


def test_rows_are_read_as_they_were_written(directory: Path) -> None:
    rows = [
        AgentRow("waf", 2, 3, BreakerState.OPEN, 1 << 62),
        AgentRow("ü" * 32, (1 << 64) - 1, 0, BreakerState.FORCED_OPEN, layout.NEVER_NS),
        AgentRow("new"),
    ]
    with agentd(directory) as writer, view_of(directory) as view:
        for at, row in enumerate(rows):
            writer.put_agent(at, row)
        assert view.agents() == {row.name: row for row in rows}
        assert isinstance(view.agents()["waf"].breaker, BreakerState)


def test_the_generation_moves_only_with_a_change(directory: Path) -> None:
    with agentd(directory) as writer, view_of(directory) as view:
        seen = view.generation
        assert seen > 0
        assert writer.put_agent(0, AgentRow("waf", 2, 1))
        assert view.generation == seen + 1
        assert not writer.put_agent(0, AgentRow("waf", 2, 1))
        writer.beat(9)
        writer.put_health(AgentdHealth(at_ns=9))
        assert view.generation == seen + 1
        assert writer.put_agent(0, AgentRow("waf", 2, 2))
        writer.clear_from(1)
        assert view.generation == seen + 2
        writer.set_config_digest("another")
        assert view.config_digest == "another"
        assert view.generation == seen + 3


def test_cleared_rows_are_gone(directory: Path) -> None:
    with agentd(directory) as writer, view_of(directory) as view:
        for row in range(4):
            writer.put_agent(row, AgentRow(f"a{row}"))
        writer.clear_from(2)
        assert list(view.agents()) == ["a0", "a1"]
        writer.put_agent(3, AgentRow("late"))  # row 2 stays unused
        assert list(view.agents()) == ["a0", "a1", "late"]
        writer.clear_from(0)
        assert view.agents() == {}


def test_every_row_of_the_capacity_holds(directory: Path) -> None:
    with agentd(directory) as writer, view_of(directory) as view:
        for row in range(defaults.AGENT_ROWS):
            writer.put_agent(row, AgentRow(f"agent-{row}", row, row))
        assert {a.hello_mask for a in view.agents().values()} == set(range(defaults.AGENT_ROWS))
        with pytest.raises(SegmentError, match="row 256 is not one of 256"):
            writer.put_agent(defaults.AGENT_ROWS, AgentRow("one too many"))


@pytest.mark.parametrize("row", [AgentRow("n" * 65), AgentRow("waf", -1), AgentRow("waf", 1 << 64)])
def test_a_refused_value_leaves_the_row_as_it_was(directory: Path, row: AgentRow) -> None:
    """Refused before the sequence is odd, not after."""
    with agentd(directory) as writer, view_of(directory) as view:
        writer.put_agent(0, AgentRow("waf", 2))
        with pytest.raises(SegmentError):
            writer.put_agent(0, row)
        assert view.agents() == {"waf": AgentRow("waf", 2)}


def test_a_state_from_the_future_is_closed(directory: Path) -> None:
    """An unknown breaker state makes a worker ask agentd, not refuse."""
    with agentd(directory) as writer, view_of(directory) as view:
        writer.put_agent(0, AgentRow("waf", 2, 1, BreakerState.OPEN, 7))
        raw(directory)[layout.AGENTS.at + 11] = 9
        assert view.agents()["waf"].breaker is BreakerState.CLOSED


def test_health_is_the_last_word(directory: Path) -> None:
    health = AgentdHealth(5, HealthStatus.DEGRADED, True, 1, 2, 3, 4, 5, 6, 7, 8, "waf: no instance ü")
    with agentd(directory) as writer, view_of(directory) as view:
        assert view.health() is None
        writer.put_health(health)
        assert view.health() == health
        raw(directory)[layout.HEALTH.at] |= 1
        assert view.health() == health


# --- rows under a sequence -------------------------------------------------------------------------


def test_a_row_that_stays_odd_does_not_hold_a_reader(directory: Path) -> None:
    cells = memoryview(bytearray(128)).cast("Q")
    write_row(cells, 2, (1, 2, 3))
    assert read_row(cells, 2, 3) == [1, 2, 3]
    cells[2] |= 1
    start = time.perf_counter()
    assert read_row(cells, 2, 3) is None
    assert time.perf_counter() - start < 0.05
    write_row(cells, 2, (4, 5, 6))  # whoever writes next heals it
    assert cells[2] % 2 == 0
    assert read_row(cells, 2, 3) == [4, 5, 6]


def test_the_sequence_begins_again_at_its_end() -> None:
    cells = memoryview(bytearray(64)).cast("Q")
    cells[0] = (1 << 64) - 2
    write_row(cells, 0, (7,))
    assert cells[0] == 0
    assert read_row(cells, 0, 1) == [7]


def test_no_reader_ever_sees_a_torn_row(directory: Path) -> None:
    """A process that writes as fast as it can; every field of a row says the same number."""
    with agentd(directory) as writer:

        def write() -> None:
            number = 1
            while True:
                for _ in range(100):
                    number += 1
                    state = BreakerState(number % 4)
                    writer.put_agent(0, AgentRow(f"agent-{number}", number, number, state, number))

        with forked(write), view_of(directory) as view:
            end = time.monotonic() + TORN_S
            reads = 0
            seen: set[int] = set()
            while time.monotonic() < end or len(seen) < 10:
                for name, row in view.agents().items():
                    number = row.hello_mask
                    assert row == AgentRow(f"agent-{number}", number, number, BreakerState(number % 4), number)
                    assert name == row.name
                    seen.add(number)
                reads += 1
            assert reads > 100


def test_no_reader_ever_sees_half_a_cell_or_a_zero(directory: Path) -> None:
    """struct.pack_into shows zeros to other processes in about 10 % of reads; a stored cell never does."""
    one, other = 0x1111111111111111, 0x2222222222222222
    with agentd(directory) as writer:
        writer.beat(one)

        def write() -> None:
            while True:
                for _ in range(1000):
                    writer.beat(other)
                    writer.beat(one)

        with forked(write), view_of(directory) as view:
            end = time.monotonic() + TORN_S
            beats: set[int] = set()
            while time.monotonic() < end or len(beats) < 2:
                beats.update(view.beat_ns for _ in range(1000))
            assert beats == {one, other}


def test_a_writer_killed_inside_a_row_leaves_the_last_good_one(directory: Path) -> None:
    """Exactly in the middle: name and mask are new, the rest is old, the sequence is odd."""
    good = AgentRow("waf", 2, 1, BreakerState.CLOSED, 3)
    with agentd(directory) as writer, view_of(directory) as view:
        writer.put_agent(0, good)
        writer.put_agent(1, AgentRow("other", 4))
        assert len(view.agents()) == 2

        def die() -> None:
            cells = writer._cells
            at = layout.AGENTS.at
            cells[at] |= 1
            for place, value in enumerate(layout.pack_name("torn"), at + 1):
                cells[place] = value
            os.kill(os.getpid(), signal.SIGKILL)

        with forked(die) as pid:
            assert ended(pid) == -signal.SIGKILL
        start = time.perf_counter()
        assert view.agents() == {"waf": good, "other": AgentRow("other", 4)}
        assert time.perf_counter() - start < 0.05
        with view_of(directory) as late:  # it never saw the good one
            assert list(late.agents()) == ["other"]
        with agentd(directory) as fresh:  # the next start makes a fresh file
            fresh.put_agent(0, AgentRow("waf", 8))
            assert view.check()
            assert view.agents() == {"waf": AgentRow("waf", 8)}


def test_writers_killed_anywhere_never_stop_or_mislead_a_reader(directory: Path) -> None:
    path = f"{directory}/agentd.seg"

    def write() -> None:
        writer = AgentdWriter.create(path, DIGEST)
        number = 0
        while True:
            number += 1
            writer.put_agent(0, AgentRow(f"agent-{number}", number, number, BreakerState.CLOSED, number))

    view = AgentdView(path)
    nonces = set()
    for _ in range(15):
        with forked(write) as pid:
            end = time.monotonic() + 5
            while not (view.check() and view.pid == pid and view.agents()):
                assert time.monotonic() < end
        nonces.add(view.nonce)
        start = time.perf_counter()
        for row in view.agents().values():
            number = row.hello_mask
            assert row == AgentRow(f"agent-{number}", number, number, BreakerState.CLOSED, number)
        assert time.perf_counter() - start < 0.1
    assert len(nonces) == 15
    view.close()
    os.unlink(path)


def test_an_attached_reader_survives_removal_and_maps_the_next_file(directory: Path) -> None:
    """agentd is killed, its file removed by hand, a new one started: by the next check all is as new."""
    path = f"{directory}/agentd.seg"

    def daemon() -> None:
        writer = AgentdWriter.create(path, DIGEST)
        writer.put_agent(0, AgentRow(f"by-{os.getpid()}"))
        signal.pause()

    view = AgentdView(path)
    generations = []
    for _ in range(2):
        with forked(daemon) as pid:
            end = time.monotonic() + 5
            while not (view.check() and f"by-{pid}" in view.agents()):
                assert time.monotonic() < end
            assert view.pid == pid
            generations.append(view.generation)
            os.unlink(path)
            assert list(view.agents()) == [f"by-{pid}"]  # the mapping outlives the name
        assert not view.check()
        assert view.agents() == {}
        assert view.generation == 0
    assert generations[0] != generations[1]  # what was made of the first one is not taken for the second


def test_a_file_overwritten_in_place_is_noticed(directory: Path) -> None:
    """The inode is the same; the nonce is not."""
    with agentd(directory) as writer, view_of(directory) as view:
        cells = raw(directory)
        cells[layout.H_NONCE] = writer.nonce ^ 2
        assert view.check()
        assert view.nonce == writer.nonce ^ 2


# --- workers ---------------------------------------------------------------------------------------


def test_a_slot_tells_who_works_in_it(directory: Path, clock: Clock) -> None:
    with proxy(directory) as writer, totals_of(directory) as view:
        assert view.workers() == []
        slot = writer.slot(3)
        slot.claim(4242, clock.now, "digest")
        (row,) = view.workers()
        assert (row.slot, row.pid, row.state, row.beat_ns, row.started_ns, row.config_digest) == (
            3, 4242, STARTING, clock.now, clock.now, "digest",
        )  # fmt: skip
        slot.set_state(READY)
        slot.beat(clock.ms(10))
        assert view.workers()[0].state is READY
        assert view.workers()[0].is_live(clock.ms(defaults.WORKER_STALE_MS) - 10_000_001)
        assert not view.workers()[0].is_live(clock.now)
        slot.set_state(DRAINING)
        assert (slot.state, slot.beat_ns) == (DRAINING, view.workers()[0].beat_ns)
        writer.free_slot(slot)
        assert view.workers() == []
        assert slot.beat_ns == 0


def test_the_proxy_tells_of_itself(directory: Path, clock: Clock) -> None:
    with proxy(directory) as writer, totals_of(directory) as view:
        assert view.state is STARTING
        writer.set_state(READY)
        writer.beat(clock.now)
        assert view.state is READY
        assert view.is_alive(clock.now)
        assert not view.is_alive(clock.ms(defaults.WORKER_STALE_MS))
        assert (view.routes, view.upstreams, view.config_digest) == (("api", "default"), ("app",), DIGEST)


def test_slots_and_rows_outside_the_capacity_are_refused(directory: Path) -> None:
    with proxy(directory) as writer:
        for index in (-1, defaults.WORKER_SLOTS):
            with pytest.raises(SegmentError, match="worker slot"):
                writer.slot(index)
        slot = writer.slot(defaults.WORKER_SLOTS - 1)
        slot.route_cells(defaults.ROUTE_ROWS - 1)
        slot.upstream_cells(defaults.UPSTREAM_ROWS - 1)
        for row in (-1, defaults.ROUTE_ROWS):
            with pytest.raises(SegmentError, match="route row"):
                slot.route_cells(row)
        for row in (-1, defaults.UPSTREAM_ROWS):
            with pytest.raises(SegmentError, match="upstream row"):
                slot.upstream_cells(row)


def test_one_worker_of_many_is_the_lowest_live(directory: Path, clock: Clock) -> None:
    with proxy(directory) as writer:
        low, middle, high = (writer.slot(i) for i in (0, 1, 5))
        for slot in (low, middle, high):
            slot.claim(1, clock.now)
        assert high.is_lowest_live(clock.now)  # starting ones do not count
        low.set_state(READY)
        assert [s.is_lowest_live(clock.now) for s in (low, middle, high)] == [True, False, False]
        clock.ms(defaults.WORKER_STALE_MS)  # the lowest hangs
        middle.set_state(READY)
        middle.beat(clock.now)
        assert [s.is_lowest_live(clock.now) for s in (middle, high)] == [True, False]
        middle.set_state(DRAINING)
        assert high.is_lowest_live(clock.now)


def test_a_worker_killed_while_it_claims_is_shown_without_a_pid(directory: Path) -> None:
    with proxy(directory) as writer, totals_of(directory) as view:
        slot = writer.slot(0)
        slot.claim(11, 1)
        raw(directory, "proxy.seg")[layout.WORKER_ROWS.at] |= 1
        assert view.workers()[0].pid == 0
        writer.free_slot(slot)
        slot.claim(12, 2)  # the next one heals the row
        assert view.workers()[0].pid == 12


# --- counting --------------------------------------------------------------------------------------


def test_workers_are_added_up(directory: Path) -> None:
    with proxy(directory) as writer, totals_of(directory) as view:
        for index, count in ((0, 1), (1, 10), (7, 100)):
            slot = writer.slot(index)
            slot.claim(index + 1, 1)
            slot.cells[W_REQUESTS] += count
            slot.cells[W_IN_FLIGHT] += 1
            slot.route_cells(1)[R_RESPONSES + 1] += count
            slot.upstream_cells(0)[U_LAST_OK_NS] = count
        totals = view.totals()
        assert totals is not None
        assert (totals.worker[W_REQUESTS], totals.worker[W_IN_FLIGHT]) == (111, 3)
        assert totals.routes["default"][R_RESPONSES + 1] == 111
        assert sum(totals.routes["api"]) == 0
        assert totals.upstreams["app"][U_LAST_OK_NS] == 100  # the latest, not the sum


def test_a_gone_worker_leaves_its_counts_and_takes_its_gauges(directory: Path) -> None:
    with proxy(directory) as writer, totals_of(directory) as view:
        for _ in range(2):  # the slot's second owner begins at 0
            slot = writer.slot(0)
            slot.claim(1, 1)
            assert not any(slot.cells)
            slot.cells[W_REQUESTS] = 5  # an own count stored, not added
            slot.cells[W_IN_FLIGHT] = 2
            route = slot.route_cells(0)
            route[R_IN_FLIGHT] = 2
            route[R_DURATION_SUM_NS] += 1 << 40
            slot.upstream_cells(0)[U_LAST_FAILURE_NS] = 9
            writer.free_slot(slot)
        totals = view.totals()
        assert totals is not None
        assert (totals.worker[W_REQUESTS], totals.worker[W_IN_FLIGHT]) == (10, 0)
        assert totals.routes["api"][R_IN_FLIGHT] == 0
        assert totals.routes["api"][R_DURATION_SUM_NS] == 2 << 40
        assert totals.upstreams["app"][U_LAST_FAILURE_NS] == 9
        writer.free_slot(0)  # twice is once
        assert view.totals() == totals


def test_counts_of_killed_workers_are_complete(directory: Path) -> None:
    """Real workers in inherited memory, killed by -9: what they had counted is in the totals."""
    with proxy(directory) as writer, totals_of(directory) as view:
        counted = 0
        for index in range(3):

            def work(index: int = index) -> None:
                slot = writer.slot(index)
                slot.claim(os.getpid(), 1)
                for _ in range(1000):
                    slot.cells[W_REQUESTS] += 1
                    slot.route_cells(1)[R_RESPONSES + 1] += 1
                os.kill(os.getpid(), signal.SIGKILL)

            writer.slot(index)
            with forked(work) as pid:
                assert ended(pid) == -signal.SIGKILL
                assert view.workers()[0].pid == pid
            writer.free_slot(index)
            counted += 1000
            totals = view.totals()
            assert totals is not None
            assert totals.worker[W_REQUESTS] == counted
            assert totals.routes["default"][R_RESPONSES + 1] == counted


def test_a_total_never_goes_down_while_workers_come_and_go(directory: Path) -> None:
    """The arbiter folds one slot after the other under a reader in another process."""
    with proxy(directory) as writer:

        def read() -> None:
            with totals_of(directory) as view:
                last, distinct = 0, 0
                end = time.monotonic() + TORN_S
                while time.monotonic() < end or distinct < 5:
                    totals = view.totals()
                    if totals is None:
                        continue  # not one moment between two folds yet
                    requests, sent = totals.worker[W_REQUESTS], totals.worker[W_BYTES_OUT]
                    assert requests >= last, (requests, last)
                    assert sent == 1000 * requests  # both of a worker are moved, or none
                    distinct += requests != last
                    last = requests

        with forked(read) as pid, totals_of(directory) as view:
            end = time.monotonic() + 20
            while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                assert time.monotonic() < end
                for index in range(4):
                    # As one step, or the reader could come between the two counters: a fold of 0 and 0.
                    writer._cells[layout.H_FOLD_SEQ] += 1
                    slot = writer.slot(index)
                    slot.claim(1, 1)
                    slot.cells[W_REQUESTS] += 1
                    slot.cells[W_BYTES_OUT] += 1000
                    writer._cells[layout.H_FOLD_SEQ] += 1
                    writer.free_slot(index)
                    view.totals()  # so long nothing is folded, and the other reader may get through
                    view.totals()
            assert ended(pid) == 0


def test_an_arbiter_killed_while_it_folds_leaves_the_last_totals(directory: Path) -> None:
    with proxy(directory) as writer, totals_of(directory) as view:
        slot = writer.slot(0)
        slot.claim(1, 1)
        slot.cells[W_REQUESTS] = 5
        good = view.totals()
        assert good is not None
        cells = raw(directory, "proxy.seg")
        cells[layout.H_FOLD_SEQ] |= 1
        cells[layout.slot_area(0) + W_REQUESTS] = 0
        start = time.perf_counter()
        assert view.totals() == good
        assert time.perf_counter() - start < 0.1
        with totals_of(directory) as late:
            assert late.totals() is None  # unavailable, not 0
        with proxy(directory):
            assert view.check()
            totals = view.totals()
            assert totals is not None
            assert totals.worker[W_REQUESTS] == 0


def test_a_reload_keeps_rows_by_name(directory: Path) -> None:
    """A route that moved in the file keeps its counts; old workers still count into its old row."""
    with proxy(directory) as writer, totals_of(directory) as view:
        slot = writer.slot(0)
        slot.claim(1, 1)
        slot.route_cells(slot.routes().index("default"))[R_RESPONSES] = 7
        generation = view.generation
        writer.reconfigure("second", ("new", "default"), ("app", "app2"))
        assert view.generation != generation
        assert (view.routes, view.upstreams) == (("api", "default", "new"), ("app", "app2"))
        assert (slot.routes(), slot.upstreams()) == (view.routes, view.upstreams)
        assert view.config_digest == "second"
        writer.slot(0).route_cells(slot.routes().index("new"))[R_RESPONSES] = 1
        totals = view.totals()
        assert totals is not None
        assert {name: block[R_RESPONSES] for name, block in totals.routes.items()} == {"api": 0, "default": 7, "new": 1}
        writer.free_slot(slot)
        assert view.totals() == totals


def test_a_reload_beyond_the_capacity_changes_nothing(directory: Path) -> None:
    with proxy(directory) as writer, totals_of(directory) as view:
        for routes in (tuple(map(str, range(1023))), ("r" * 65,)):
            with pytest.raises(SegmentError):
                writer.reconfigure("second", routes)
        assert (view.routes, view.config_digest) == (("api", "default"), DIGEST)


def test_slots_do_not_touch_each_other(directory: Path) -> None:
    with proxy(directory) as writer:
        first, last = writer.slot(0), writer.slot(defaults.WORKER_SLOTS - 1)
        for slot in (first, last):
            slot.claim(1, 1)
        for cells in (first.cells, first.route_cells(0), first.route_cells(1), first.upstream_cells(0)):
            cells[:] = memoryview(b"\1" * cells.nbytes).cast("Q")
        for cells in (last.cells, last.route_cells(0), last.route_cells(1), last.upstream_cells(0)):
            assert not any(cells)
        assert first.beat_ns == last.beat_ns == 1
        assert first.routes() == ("api", "default")


def test_closing_with_slots_still_in_hand_is_no_error(directory: Path) -> None:
    with proxy(directory) as writer:
        cells = writer.slot(0).cells
    cells[W_REQUESTS] += 1  # unmapped only when the last hand lets go
    assert os.listdir(directory) == []


def test_how_reloads_went_is_read_back(directory: Path) -> None:
    """One is under way from its beginning to its end; an end without a beginning is none; totals only grow."""
    with agentd(directory) as writer, view_of(directory) as view:
        assert view.reload == Reload()
        writer.end_reload(ReloadResult.APPLIED, 5)
        assert view.reload == Reload()
        writer.begin_reload()
        assert (view.reload.is_under_way, view.reload.result) == (True, ReloadResult.NONE)
        writer.end_reload(ReloadResult.REFUSED, 6, "a.b: wrong " + "x" * 500)
        assert (view.reload.is_under_way, view.reload.has_failed, view.reload.at_ns) == (False, True, 6)
        assert view.reload.message.startswith("a.b: wrong xxx")
        writer.begin_reload()
        assert view.reload.has_failed, "until it has ended"
        writer.end_reload(ReloadResult.APPLIED, 7)
        writer.begin_reload()
        writer.end_reload(ReloadResult.ROLLED_BACK, 8, "why")
        assert view.reload == Reload(3, ReloadResult.ROLLED_BACK, 8, 7, 1, 1, 1, "why")
    assert Reload(1).is_under_way


def test_a_reload_row_of_a_newer_program_is_readable(directory: Path) -> None:
    with agentd(directory) as writer, view_of(directory) as view:
        writer.begin_reload()
        raw(directory)[layout.H_RELOAD + 1] = 99
        assert view.reload.result is ReloadResult.NONE
