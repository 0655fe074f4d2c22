"""proxy.seg, the reading side: who works, and what all workers have counted together.

Read by agentd and the CLI without asking anybody. A total never goes down: while the arbiter moves a gone
worker's counts, readers wait a moment and then repeat what they said last.

Kind: IO.
"""

import os
from collections.abc import Callable, Generator, Sequence
from operator import add

import msgspec

from shared.clock import MS
from shared.defaults import SEGMENT_PIECE_CELLS, SEGMENT_READ_TRIES, WORKER_SLOTS, WORKER_STALE_MS
from shared.segment_buckets import active_keys
from shared.segment_file import SegmentView, read_names, read_row
from shared.segment_limits import LimitRow, read_limits
from shared.wire.segment import (
    GONE_SLOT,
    H_BEAT_NS,
    H_FOLD_SEQ,
    H_ROWS,
    H_STATE,
    H_UPSTREAMS,
    LIMIT_COUNTS,
    LIMIT_SLOTS,
    MAGIC_PROXY,
    NAME_CELLS,
    PROXY_CELLS,
    ROUTE_CELLS,
    ROUTE_NAMES,
    SLOT_ROUTES,
    SLOT_UPSTREAMS,
    UPSTREAM_CELLS,
    UPSTREAM_NAMES,
    WORKER_CELLS,
    WORKER_ROWS,
    WR_BEAT_NS,
    WR_STATE,
    WR_VALUES,
    WorkerState,
    slot_area,
    unpack_name,
)

_STALE_NS = WORKER_STALE_MS * MS
_BEGIN_AGAIN = 3  # sums, when the proxy was started anew in the middle of them


class WorkerRow(msgspec.Struct, frozen=True):
    """What is known of one worker."""

    slot: int
    pid: int  # 0 = killed while it claimed the slot
    state: WorkerState
    beat_ns: int
    started_ns: int
    config_digest: str

    def is_live(self, now_ns: int) -> bool:
        """Its loop turned within WORKER_STALE_MS."""
        return -_STALE_NS < now_ns - self.beat_ns < _STALE_NS


class Totals(msgspec.Struct, frozen=True):
    """Sums over all workers, those that are gone included; gauges over the living."""

    worker: list[int]  # by W_*
    routes: dict[str, list[int]]  # by R_*
    upstreams: dict[str, list[int]]  # by U_*: the latest of all workers


class ProxyView(SegmentView):
    """agentd's and the CLI's side."""

    MAGIC = MAGIC_PROXY
    CELLS = PROXY_CELLS
    __slots__ = ("_good_rows", "_good_totals")

    def __init__(self, path: str) -> None:
        self._good_rows: dict[int, list[int]] = {}
        self._good_totals: Totals | None = None
        super().__init__(path)

    def is_alive(self, now_ns: int) -> bool:
        """The arbiter's heartbeat is younger than WORKER_STALE_MS."""
        return -_STALE_NS < now_ns - self._cells[H_BEAT_NS] < _STALE_NS

    @property
    def state(self) -> WorkerState:
        """Of the proxy as a whole; FREE while nothing is mapped."""
        return _state(self._cells[H_STATE])

    @property
    def routes(self) -> tuple[str, ...]:
        """By row."""
        return read_names(self._cells, ROUTE_NAMES, self._cells[H_ROWS])

    @property
    def upstreams(self) -> tuple[str, ...]:
        """By row."""
        return read_names(self._cells, UPSTREAM_NAMES, self._cells[H_UPSTREAMS])

    def limits(self) -> list[LimitRow]:
        """By row, also those that no route has any more."""
        return read_limits(self._cells) if self.is_mapped else []

    def limit_counts(self, limits: Sequence[LimitRow]) -> list[list[int]]:
        """Per row of the table: L_* over all workers; all 0 while a fold goes on without end."""
        cells = self._cells
        count = len(limits) * LIMIT_COUNTS
        sums = [0] * count
        for _ in range(SEGMENT_READ_TRIES if count and self.is_mapped else 0):
            before = cells[H_FOLD_SEQ]
            if not before & 1:
                states = (cells[WORKER_ROWS.at + s * WORKER_ROWS.row_cells + WR_STATE] for s in range(WORKER_SLOTS))
                sums = [0] * count
                for slot in (GONE_SLOT, *(slot for slot, state in enumerate(states) if state != WorkerState.FREE)):
                    start = LIMIT_SLOTS.at + slot * LIMIT_SLOTS.row_cells
                    sums = list(map(add, sums, cells[start : start + count].tolist()))
                if cells[H_FOLD_SEQ] == before:
                    break
            os.sched_yield()
        return [sums[at : at + LIMIT_COUNTS] for at in range(0, count, LIMIT_COUNTS)]

    def active_keys(self, limits: Sequence[LimitRow], now_ns: int) -> list[int]:
        """Per row of the table: how many keys have a bucket that is not full. Looks at all buckets: milliseconds."""
        return active_keys(self._cells, limits, now_ns) if limits and self.is_mapped else []

    def workers(self) -> list[WorkerRow]:
        """Every claimed slot, in order."""
        if not self.is_mapped:
            return []
        cells = self._cells
        rows = []
        for slot in range(WORKER_SLOTS):
            at = WORKER_ROWS.at + slot * WORKER_ROWS.row_cells
            state = cells[at + WR_STATE]
            if state == WorkerState.FREE:
                continue
            values = read_row(cells, at, WR_VALUES)
            if values is None:
                values = self._good_rows.get(slot, [0] * WR_VALUES)
            else:
                self._good_rows[slot] = values
            digest = unpack_name(values[2:])
            rows.append(WorkerRow(slot, values[0], _state(state), cells[at + WR_BEAT_NS], values[1], digest))
        return rows

    def totals(self) -> Totals | None:
        """The sums now; while a fold goes on the last ones; None = there never were any."""
        adding = self.adding_up()
        try:
            while True:
                next(adding)
        except StopIteration as end:
            found: Totals | None = end.value
            return found

    def adding_up(self) -> Generator[None, None, Totals | None]:
        """`totals` for somebody who may not stand still: a step adds up about SEGMENT_PIECE_CELLS cells.

        A fold moves counts of all routes, and each step sees it done or not begun; so every single sum is right.
        """
        for _ in range(_BEGIN_AGAIN):
            if not self.is_mapped:
                return None
            cells = self._cells
            found = yield from self._sums(cells)
            if cells is self._cells:  # else another proxy came meanwhile: begin again
                if found is not None:
                    self._good_totals = found
                break
        return self._good_totals

    def _sums(self, cells: "memoryview[int]") -> Generator[None, None, Totals | None]:
        """None = a fold went on all the time, or the file was let go of."""
        used, upstreams = cells[H_ROWS], self.upstreams
        found = self._steadily(cells, 0, WORKER_CELLS, add)
        rows = self._steadily(cells, SLOT_UPSTREAMS, len(upstreams) * UPSTREAM_CELLS, max)
        if found is None or rows is None:
            return None
        routes: dict[str, list[int]] = {}
        step = max(1, SEGMENT_PIECE_CELLS // (ROUTE_CELLS * found[1]))
        for first in range(0, used, step):
            yield
            if cells is not self._cells:
                return None
            last = min(used, first + step)
            begins = (ROUTE_NAMES.at + row * NAME_CELLS for row in range(first, last))
            names = [unpack_name(cells[at : at + NAME_CELLS].tolist()) for at in begins]
            blocks = self._steadily(cells, SLOT_ROUTES + first * ROUTE_CELLS, (last - first) * ROUTE_CELLS, add)
            if blocks is None:
                return None
            sums = blocks[0]
            routes.update((name, sums[i * ROUTE_CELLS : (i + 1) * ROUTE_CELLS]) for i, name in enumerate(names))
        yield
        latest = rows[0]
        return Totals(
            found[0],
            routes,
            {name: latest[i * UPSTREAM_CELLS : (i + 1) * UPSTREAM_CELLS] for i, name in enumerate(upstreams)},
        )

    def _steadily(
        self, cells: "memoryview[int]", at: int, count: int, together: Callable[[int, int], int]
    ) -> tuple[list[int], int] | None:
        """Cells `at` .. of all slots put together while no fold goes on, and of how many slots."""
        for _ in range(SEGMENT_READ_TRIES):
            before = cells[H_FOLD_SEQ]
            if not before & 1:
                # A cell of a slot that nobody uses is a hole in the file, and reading it would fill the hole.
                states = (
                    cells[WORKER_ROWS.at + slot * WORKER_ROWS.row_cells + WR_STATE] for slot in range(WORKER_SLOTS)
                )
                slots = [GONE_SLOT, *(slot for slot, state in enumerate(states) if state != WorkerState.FREE)]
                sums = [0] * count
                for slot in slots:
                    start = slot_area(slot) + at
                    sums = list(map(together, sums, cells[start : start + count].tolist()))
                if cells[H_FOLD_SEQ] == before:
                    return sums, len(slots)
            os.sched_yield()  # a fold takes a millisecond, and its process may be waiting for this core
        return None

    def _forget(self) -> None:
        self._good_rows.clear()
        self._good_totals = None


def _state(value: int) -> WorkerState:
    return WorkerState(value) if value <= WorkerState.DRAINING else WorkerState.FREE
