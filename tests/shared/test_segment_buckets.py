"""Limits in the segment: exact over real processes, whole after a kill, not stalled by a stopped one, bounded."""

import mmap
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shared import segment_buckets
from shared.clock import S, now_ns
from shared.defaults import BUCKET_ROWS, WORKER_SLOTS
from shared.errors import SegmentError
from shared.metrics import L_ADMITTED, L_NOW, L_OVERFLOW, L_REFUSED
from shared.ratelimit import ONE
from shared.segment import ProxyView, ProxyWriter, WorkerSlot
from shared.segment_buckets import REFUSED, Limit, holder
from shared.segment_limits import LimitSpec, LimitTable, open_for_change, read_limits
from shared.wire.segment import (
    BUCKETS,
    CELL_BYTES,
    LIMIT_HEAD,
    LIMITS,
    SET_ROWS,
    LimitFlag,
)
from tests.support import process_state, wait_until

NOW = 10**15
RATE = LimitSpec("r/rate", "client_ip", 10 * ONE, 1)
USES = LimitSpec("r/max_concurrent", "", 3, counts_uses=True)


@pytest.fixture
def writer(short_tmp_dir: Path) -> Iterator[ProxyWriter]:
    made = ProxyWriter.create(str(short_tmp_dir / "proxy.seg"), "d", ["r"], ["u"], [RATE, USES])
    yield made
    made.close()


def claimed(writer: ProxyWriter, index: int) -> WorkerSlot:
    slot = writer.slot(index)
    slot.claim(os.getpid(), now_ns())
    return slot


def limit(writer: ProxyWriter, name: str = "r/rate", slot: int = 0) -> Limit:
    return claimed(writer, slot).limits().limit(name)


def counts(writer: ProxyWriter, name: str) -> list[int]:
    view = ProxyView(writer.path)
    assert view.attach()
    rows = view.limits()
    found = view.limit_counts(rows)[[row.name for row in rows].index(name)]
    view.close()
    return found


def forked(work: Callable[[], int]) -> int:
    """A process that does the work and exits with what it answers."""
    pid = os.fork()
    if pid:
        return pid
    code = 99
    try:
        code = work()
    finally:
        os._exit(code)


def ended(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


# --- buckets ----------------------------------------------------------------------------------------


def test_a_key_has_a_bucket_of_its_own(writer: ProxyWriter) -> None:
    """Full at first, empty after its capacity; another key does not notice."""
    one = limit(writer)
    assert [one.take(b"a", NOW)[0] for _ in range(11)] == [True] * 10 + [False]
    assert one.take(b"b", NOW) == (True, 9 * ONE)
    assert one.take(b"a", NOW + 10**6 * S) == (True, 0)
    assert counts(writer, "r/rate")[:3] == [12, 1, 0]


def test_processes_that_hammer_one_bucket_get_exactly_its_capacity(writer: ProxyWriter) -> None:
    """Four processes, 10,000 takes each, 500 tokens; and a count of uses never goes over its maximum."""
    with open_for_change(writer.path) as table:
        table.change("r/rate", 500 * ONE, None, False)
    slots = [claimed(writer, index) for index in range(4)]
    inside = mmap.mmap(-1, len(slots))  # who is in: a byte of each process

    def work(slot: WorkerSlot) -> int:
        limits = slot.limits()
        rate, uses = limits.limit("r/rate"), limits.limit("r/max_concurrent")
        for _ in range(10_000):
            rate.take(b"k", NOW)
            place = uses.enter(b"k")
            if place != REFUSED:
                inside[slot.index] = 1
                if sum(inside[:]) > 3:
                    return 1
                inside[slot.index] = 0
                uses.leave(place)
        return 0

    pids = [forked(lambda slot=slot: work(slot)) for slot in slots]  # type: ignore[misc]
    assert [ended(pid) for pid in pids] == [0] * 4
    assert counts(writer, "r/rate") == [500, 39_500, 0, 0]
    assert counts(writer, "r/max_concurrent")[L_NOW] == 0


def test_a_killed_process_leaves_a_whole_row_and_no_lock(writer: ProxyWriter) -> None:
    """Twenty processes are killed while they take; what is admitted stays within what the clock allows."""
    with open_for_change(writer.path) as table:
        table.change("r/rate", 1000 * ONE, 1000 * ONE, False)
    slots = [claimed(writer, index) for index in range(2)]
    begin = now_ns()

    def work(slot: WorkerSlot) -> int:
        rate = slot.limits().limit("r/rate")
        while True:
            rate.take(b"k", now_ns())

    for round_ in range(20):
        pids = [forked(lambda slot=slot: work(slot)) for slot in slots]  # type: ignore[misc]
        enough = sum(counts(writer, "r/rate")) + 100 + 37 * round_
        wait_until(lambda enough=enough: sum(counts(writer, "r/rate")) > enough)  # type: ignore[misc]
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    survivor = limit(writer, slot=2)
    at, tag = survivor.place(b"k")
    assert holder(slots[0].fd, at * CELL_BYTES) == 0
    assert survivor._all.cells[at : at + SET_ROWS].tolist().count(tag) == 1
    survivor.take(b"k", now_ns())
    admitted = counts(writer, "r/rate")[L_ADMITTED]
    assert 1000 < admitted <= 1000 + 1000 * (now_ns() - begin) / S
    assert survivor.take(b"k", now_ns() + S)[0], "it goes on"


def test_a_stopped_process_stalls_nobody_and_gives_nothing_away(writer: ProxyWriter) -> None:
    """It holds the bucket's lock and is stopped: the others go on, exactly, by the second one; then it is killed."""
    slots = [claimed(writer, index) for index in range(3)]
    place = slots[0].limits().limit("r/rate").place(b"k")[0] * CELL_BYTES
    assert slots[0].limits().limit("r/rate").take(b"k", NOW)[0]

    def stop_inside() -> int:
        assert slots[1].limits().lock(place) == place
        os.kill(os.getpid(), signal.SIGSTOP)
        return 0

    stopped = forked(stop_inside)
    wait_until(lambda: process_state(stopped) == "T")
    assert holder(writer.slot(0).fd, place) == stopped
    took: list[int] = []

    def go_on(slot: WorkerSlot) -> int:
        rate = slot.limits().limit("r/rate")
        return sum(rate.take(b"k", NOW)[0] for _ in range(20))

    pids = [forked(lambda slot=slot: go_on(slot)) for slot in (slots[0], slots[2])]  # type: ignore[misc]
    assert sum(ended(pid) for pid in pids) == 9
    rate = slots[0].limits().limit("r/rate")
    for _ in range(20):
        begin = now_ns()
        rate.take(b"k", NOW)
        took.append(now_ns() - begin)
    assert sorted(took)[10] < 5_000_000, "a stopped holder is not waited for"
    os.kill(stopped, signal.SIGKILL)
    os.waitpid(stopped, 0)
    assert holder(writer.slot(0).fd, place) == 0
    assert not rate.take(b"k", NOW)[0]


def test_who_cannot_ask_is_refused(writer: ProxyWriter) -> None:
    """Two workers stopped in one set: nobody can say how many tokens there are."""
    slots = [claimed(writer, index) for index in range(2)]
    rate = slots[0].limits().limit("r/rate")
    place = rate.place(b"k")[0] * CELL_BYTES

    def stop_inside(at_byte: int) -> int:
        assert slots[1].limits().lock(at_byte) == at_byte
        os.kill(os.getpid(), signal.SIGSTOP)
        return 0

    stopped = [forked(lambda at=at: stop_inside(at)) for at in (place, place + CELL_BYTES)]  # type: ignore[misc]
    wait_until(lambda: all(process_state(pid) == "T" for pid in stopped))
    assert rate.take(b"k", NOW) == (False, 0)
    for pid in stopped:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert rate.take(b"k", NOW)[0]


def test_a_holder_that_runs_again_is_waited_for(writer: ProxyWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    """Preempted is not stopped; one that stays so is passed by after LIMIT_LOCK_WAIT_MS, and then at once."""
    slots = [claimed(writer, index) for index in range(2)]
    limits = slots[0].limits()
    place = limits.limit("r/rate").place(b"k")[0] * CELL_BYTES
    ready, said = os.pipe()

    def hold() -> int:
        limits.lock(place)
        os.write(said, b"x")
        time.sleep(60)
        return 0

    child = forked(hold)
    os.read(ready, 1)
    naps: list[float] = []
    monkeypatch.setattr(segment_buckets.time, "sleep", lambda s: (naps.append(s), os.sched_yield()))
    second = limits.lock(place)
    assert second == place + CELL_BYTES
    assert naps
    limits.unlock(second)
    naps.clear()
    assert limits.lock(place) == second
    assert not naps
    limits.unlock(second)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert limits.lock(place) == place
    limits.unlock(place)
    os.close(ready)
    os.close(said)


def test_a_full_table_is_bounded_and_no_bypass(writer: ProxyWriter) -> None:
    """Keys beyond the rows of their set share one bucket; those that have a row keep it; idle ones are forgotten."""
    one = limit(writer)
    cells = one._all.cells
    at, _ = one.place(b"victim")
    for row in range(SET_ROWS):  # somebody else's, all in use
        cells[at + row] = row + 1
        cells[at + SET_ROWS + row] = one.number << 32
        cells[at + 2 * SET_ROWS + row] = NOW
        cells[at + 3 * SET_ROWS + row] = 0
    answers = [one.take(b"victim", NOW)[0] for _ in range(11)]
    assert answers == [True] * 10 + [False], "the overflow bucket"
    found = counts(writer, "r/rate")
    assert (found[L_OVERFLOW], found[L_REFUSED]) == (11, 1)
    assert cells[at : at + SET_ROWS].tolist() == list(range(1, SET_ROWS + 1))
    cells[at + 3 * SET_ROWS + 5] = 10 * ONE  # one of them is full again: forgotten, nothing is lost
    assert one.take(b"victim", NOW) == (True, 9 * ONE)
    assert 6 not in cells[at : at + SET_ROWS].tolist()


def test_random_keys_spread(writer: ProxyWriter) -> None:
    """A quarter of the rows filled: next to no key goes without."""
    one = limit(writer)
    for number in range(BUCKET_ROWS // 4):
        one.take(b"%d" % number, NOW)
    assert counts(writer, "r/rate")[L_OVERFLOW] < 5
    view = ProxyView(writer.path)
    view.attach()
    rows = view.limits()
    active = view.active_keys(rows, NOW)
    view.close()
    assert BUCKET_ROWS // 4 - 5 < active[[row.name for row in rows].index("r/rate")] <= BUCKET_ROWS // 4


def test_the_place_of_a_key_is_the_segments_secret(writer: ProxyWriter, short_tmp_dir: Path) -> None:
    """Two proxies put one key at different places; in one of them all workers find the same."""
    other = ProxyWriter.create(str(short_tmp_dir / "other.seg"), "d", ["r"], ["u"], [RATE])
    assert limit(writer).place(b"k") == limit(writer, slot=1).place(b"k") != limit(other).place(b"k")
    other.close()


# --- uses -------------------------------------------------------------------------------------------


def test_uses_are_counted_over_all_slots_and_go_with_theirs(writer: ProxyWriter) -> None:
    """Three at most; one that ends, or whose worker is gone, makes room."""
    one, other = limit(writer, "r/max_concurrent", 0), limit(writer, "r/max_concurrent", 1)
    places = [one.enter(b"k"), other.enter(b"k"), one.enter(b"k")]
    assert REFUSED not in places
    assert (one.enter(b"k"), other.enter(b"k")) == (REFUSED, REFUSED)
    assert other.enter(b"another") != REFUSED
    one.leave(places[0])
    assert other.enter(b"k") != REFUSED
    assert one.enter(b"k") == REFUSED
    writer.free_slot(1)
    assert [one.enter(b"k") != REFUSED for _ in range(3)] == [True, True, False]
    assert counts(writer, "r/max_concurrent")[L_NOW] == 3
    assert counts(writer, "r/max_concurrent")[L_ADMITTED] == 7, "counts of the gone worker are kept"


def test_a_set_without_a_free_use_refuses(writer: ProxyWriter) -> None:
    """Who cannot be counted does not come in."""
    one = limit(writer, "r/max_concurrent")
    at = one.enter(b"k")
    one.leave(at)
    own = at - (at - one._base - one.place(b"k")[0])
    cells = one._all.cells
    for row in range(SET_ROWS):
        cells[own + row], cells[own + SET_ROWS + row] = row + 1, 1
    assert one.enter(b"k") == REFUSED
    assert counts(writer, "r/max_concurrent")[L_OVERFLOW] == 1


# --- the table --------------------------------------------------------------------------------------


def test_changes_act_at_once_and_end_with_a_reload(writer: ProxyWriter) -> None:
    """Set, kept or not; reset fills the buckets; a new key begins anew; what is gone keeps its row."""
    one = limit(writer)
    assert one.take(b"k", NOW) == (True, 9 * ONE)

    def numbers() -> tuple[int, int, LimitFlag]:
        (row,) = [row for row in read_limits(one._all.cells) if row.name == "r/rate"]
        return row.capacity, row.refill, row.flags

    with open_for_change(writer.path) as table:
        table.change("r/rate", 2 * ONE, 5, False)
    one._all.refresh()
    assert one.take(b"k", NOW) == (True, ONE)
    assert numbers() == (2 * ONE, 5, LimitFlag.IN_USE | LimitFlag.OVERRIDDEN)
    writer.reconfigure("d2", ["r"], ["u"], [RATE, USES])
    assert numbers() == (10 * ONE, 1, LimitFlag.IN_USE)
    one._all.refresh()
    assert one.take(b"k", NOW) == (True, 0), "tokens outlive a reload"
    with open_for_change(writer.path) as table:
        table.change("r/rate", 3 * ONE, None, True)
    writer.reconfigure("d3", ["r"], ["u"], [RATE, USES])
    assert numbers() == (3 * ONE, 1, LimitFlag.IN_USE | LimitFlag.OVERRIDDEN | LimitFlag.KEPT)
    with open_for_change(writer.path) as table:
        assert table.reset("r/rate").capacity == 10 * ONE
    one._all.refresh()
    assert one.take(b"k", NOW) == (True, 9 * ONE)
    writer.reconfigure("d4", ["r"], ["u"], [LimitSpec("r/rate", "global", 10 * ONE, 1)])
    one._all.refresh()
    assert one.take(b"k", NOW) == (True, 9 * ONE)
    writer.reconfigure("d5", ["r"], ["u"], [])
    assert numbers()[2] == LimitFlag(0)
    one._all.refresh()
    assert one.take(b"k", NOW)[0], "a worker of the old configuration still has it"
    with open_for_change(writer.path) as table, pytest.raises(KeyError):
        table.change("r/rate", ONE, None, False)


def test_a_reload_that_is_taken_back_leaves_what_was_set(writer: ProxyWriter) -> None:
    """The new configuration was in the table for a moment; its workers could not start."""
    with open_for_change(writer.path) as table:
        table.change("r/rate", 2 * ONE, 5, False)
        table.change("r/max_concurrent", 7, None, True)
    before = writer.limits()
    other = LimitSpec("r/rate", "global", 4 * ONE, 1)
    writer.reconfigure("new", ["r"], ["u"], [other, LimitSpec("r/more", "global", ONE, 1)])
    writer.reconfigure("old", ["r"], ["u"], [RATE, USES])
    writer.put_back(before)
    now = {row.name: (row.capacity, row.refill, row.is_overridden, row.is_kept) for row in writer.limits()}
    assert now["r/rate"] == (2 * ONE, 5, True, False)
    assert now["r/max_concurrent"] == (7, 0, True, True)
    assert not writer.limits()[2].is_in_use


def test_a_torn_row_keeps_what_was_known(writer: ProxyWriter) -> None:
    """A writer that was killed inside: workers go by what they read before, the next write heals it."""
    one = limit(writer)
    cells = one._all.cells
    at = LIMITS.at + one.number * LIMITS.row_cells
    cells[at] |= 1
    cells[at + 20] = 0
    cells[LIMIT_HEAD.at + 2] += 1
    one._all.refresh()
    assert one.take(b"k", NOW)[0]
    writer.reconfigure("d2", ["r"], ["u"], [RATE, USES])
    one._all.refresh()
    assert one.take(b"k", NOW)[0]


def test_a_worker_starts_with_a_torn_row(writer: ProxyWriter) -> None:
    """It has read nothing before; without its limits it could not start, nor could any after it."""
    view = ProxyView(writer.path)
    assert view.attach()
    cells = claimed(writer, 0)._whole
    cells[LIMITS.at + [row.name for row in view.limits()].index("r/rate") * LIMITS.row_cells] |= 1
    view.close()
    assert limit(writer, slot=1).take(b"k", NOW) == (True, 9 * ONE)


def test_limits_that_come_with_a_reload(short_tmp_dir: Path) -> None:
    """Slots given out before have room for them, too; without limits nothing is reserved for them."""
    made = ProxyWriter.create(str(short_tmp_dir / "late.seg"), "d", ["r"])
    slot = claimed(made, 0)
    blocks = os.stat(made.path).st_blocks
    made.reconfigure("d", ["r"], (), [RATE, USES])
    assert os.stat(made.path).st_blocks * 512 - blocks * 512 > BUCKETS.rows * BUCKETS.row_cells * CELL_BYTES
    assert blocks * 512 < 4 << 20
    limits = slot.limits()
    assert limits.limit("r/rate").take(b"k", NOW)[0]
    assert limits.limit("r/max_concurrent").enter(b"k") != REFUSED
    with pytest.raises(SegmentError, match="there is no limit 'r/none'"):
        limits.limit("r/none")
    made.close()


def test_the_table_has_an_end_and_says_so(writer: ProxyWriter, short_tmp_dir: Path) -> None:
    """More names than rows since the start, and a file that is not there or no segment."""
    many = [LimitSpec(f"r/{number}", "global", ONE, 1) for number in range(4096)]
    with pytest.raises(SegmentError, match="more than 4096 limits"):
        writer.reconfigure("d", ["r"], ["u"], many)
    for path, text in ((short_tmp_dir / "none", "No such file"), (Path(__file__), "not a segment of layout")):
        with pytest.raises(SegmentError, match=text), open_for_change(str(path)):
            pass


def test_two_writers_exclude_each_other(writer: ProxyWriter) -> None:
    """One that stands still is waited for a moment only."""
    slot = claimed(writer, 0)

    def hold() -> int:
        from shared.segment_limits import _TABLE_LOCK, try_lock

        assert try_lock(slot.fd, _TABLE_LOCK)
        os.kill(os.getpid(), signal.SIGSTOP)
        return 0

    child = forked(hold)
    wait_until(lambda: process_state(child) == "T")
    table = LimitTable(slot._whole, slot.fd)
    with pytest.raises(SegmentError, match="locked by a process that stands still"):
        table.reset("r/rate")
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert table.reset("r/rate").epoch == 1
    assert WORKER_SLOTS == 128
