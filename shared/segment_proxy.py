"""proxy.seg, the writing side: made by the arbiter, counted in by its workers.

    ProxyWriter   in the arbiter: names of routes and upstreams, slots given out and folded
    WorkerSlot    in a worker, through the mapping that it inherited: its row and its cells

A worker adds to cells of its own slot, so nothing is locked. When it is gone the arbiter moves its
counts into the slot of gone workers (under a sequence of its own), so that a total never goes down.

Kind: IO.
"""

import os
from collections.abc import Iterable, Sequence

from shared.clock import MS, now_ns
from shared.defaults import ROUTE_ROWS, UPSTREAM_ROWS, WORKER_SLOTS, WORKER_STALE_MS
from shared.errors import SegmentError
from shared.metrics import LIMIT_GAUGES, ROUTE_GAUGES, WORKER_GAUGES
from shared.segment_buckets import Limits
from shared.segment_file import SegmentWriter, read_names, write_row
from shared.segment_limits import LimitRow, LimitSpec, LimitTable
from shared.wire.segment import (
    GONE_SLOT,
    H_FOLD_SEQ,
    H_ROWS,
    H_STATE,
    H_UPSTREAMS,
    LH_ROWS,
    LH_SEED,
    LH_SLOTS,
    LIMIT_COUNTS,
    LIMIT_HEAD,
    LIMIT_SLOTS,
    LIMITS,
    LS_USES,
    MAGIC_PROXY,
    NAME_CELLS,
    PROXY_CELLS,
    ROUTE_CELLS,
    ROUTE_NAMES,
    SLOT_ROUTES,
    SLOT_UPSTREAMS,
    SLOTS,
    UPSTREAM_CELLS,
    UPSTREAM_NAMES,
    WORKER_CELLS,
    WORKER_ROWS,
    WR_BEAT_NS,
    WR_STATE,
    Section,
    WorkerState,
    pack_name,
    slot_area,
)

_STALE_NS = WORKER_STALE_MS * MS


class WorkerSlot:
    """One worker's row and cells. Only the process that claimed it writes them."""

    __slots__ = ("_row", "_whole", "cells", "fd", "index")

    def __init__(self, whole: "memoryview[int]", index: int, fd: int = -1) -> None:
        if not 0 <= index < WORKER_SLOTS:
            raise SegmentError(f"worker slot {index} is not one of {WORKER_SLOTS}")
        row = WORKER_ROWS.at + index * WORKER_ROWS.row_cells
        self.index = index
        self.fd = fd  # of the file, for locks on it
        self._whole = whole
        self._row = whole[row : row + WORKER_ROWS.row_cells]
        # Worker-wide cells, W_* of shared/metrics.py: `slot.cells[W_REQUESTS] += 1`.
        self.cells = whole[slot_area(index) : slot_area(index) + WORKER_CELLS]

    def claim(self, pid: int, now_ns: int, config_digest: str = "") -> None:
        """The slot is this process's from now on, STARTING."""
        write_row(self._row, 0, (pid, now_ns, *pack_name(config_digest)))
        self._row[WR_BEAT_NS] = now_ns
        self._row[WR_STATE] = WorkerState.STARTING

    def beat(self, now_ns: int) -> None:
        """The worker's loop turns."""
        self._row[WR_BEAT_NS] = now_ns

    def set_state(self, state: WorkerState) -> None:
        self._row[WR_STATE] = state

    @property
    def state(self) -> WorkerState:
        return WorkerState(self._row[WR_STATE])

    @property
    def beat_ns(self) -> int:
        return self._row[WR_BEAT_NS]

    def routes(self) -> tuple[str, ...]:
        """The names of the route rows; after a reload a route's row is found by its name."""
        return read_names(self._whole, ROUTE_NAMES, self._whole[H_ROWS])

    def upstreams(self) -> tuple[str, ...]:
        """The names of the upstream rows."""
        return read_names(self._whole, UPSTREAM_NAMES, self._whole[H_UPSTREAMS])

    def limits(self) -> Limits:
        """The limits as this worker asks them."""
        return Limits(self._whole, self.fd, self.index)

    def route_cells(self, row: int) -> "memoryview[int]":
        """One route's block, R_* of shared/metrics.py."""
        if not 0 <= row < ROUTE_ROWS:
            raise SegmentError(f"route row {row} is not one of {ROUTE_ROWS}")
        at = slot_area(self.index) + SLOT_ROUTES + row * ROUTE_CELLS
        return self._whole[at : at + ROUTE_CELLS]

    def upstream_cells(self, row: int) -> "memoryview[int]":
        """One upstream's row, U_* of shared/metrics.py."""
        if not 0 <= row < UPSTREAM_ROWS:
            raise SegmentError(f"upstream row {row} is not one of {UPSTREAM_ROWS}")
        at = slot_area(self.index) + SLOT_UPSTREAMS + row * UPSTREAM_CELLS
        return self._whole[at : at + UPSTREAM_CELLS]

    def is_lowest_live(self, now_ns: int) -> bool:
        """No worker in a lower slot is ready with a fresh heartbeat: what one worker has to do is ours."""
        for below in range(self.index):
            row = WORKER_ROWS.at + below * WORKER_ROWS.row_cells
            is_ready = self._whole[row + WR_STATE] == WorkerState.READY
            if is_ready and now_ns - self._whole[row + WR_BEAT_NS] < _STALE_NS:
                return False
        return True


class ProxyWriter(SegmentWriter):
    """The arbiter's side; workers inherit it and use `slot` alone."""

    MAGIC = MAGIC_PROXY
    CELLS = PROXY_CELLS
    __slots__ = ("_limits", "_reserved", "_reserved_limits", "_routes", "_upstreams")

    def __init__(
        self,
        path: str,
        config_digest: str,
        now: int,
        routes: Sequence[str],
        upstreams: Sequence[str],
        limits: Sequence[LimitSpec] = (),
    ) -> None:
        self._routes = tuple(routes)
        self._upstreams = tuple(upstreams)
        self._reserved: dict[int, int] = {}  # slot -> routes that its memory reaches to
        self._limits = tuple(limits)
        self._reserved_limits: set[int] = set()  # slots with memory for limits; none while there are no limits
        super().__init__(path, config_digest, now)

    @classmethod
    def create(
        cls,
        path: str,
        config_digest: str,
        routes: Sequence[str],
        upstreams: Sequence[str] = (),
        limits: Sequence[LimitSpec] = (),
    ) -> "ProxyWriter":
        """Make the file; row i is the i-th route. Raises SegmentError."""
        return cls(path, config_digest, now_ns(), routes, upstreams, limits)

    def _fill(self) -> None:
        self.reserve(0, SLOTS.at)
        self._cells[H_STATE] = WorkerState.STARTING
        routes, self._routes = self._routes, ()
        upstreams, self._upstreams = self._upstreams, ()
        self._add_names(routes, upstreams)
        self.reserve(LIMIT_HEAD.at, LIMIT_HEAD.row_cells)
        for at in range(LIMIT_HEAD.at + LH_SEED, LIMIT_HEAD.at + LH_SEED + 2):
            self._cells[at] = int.from_bytes(os.urandom(8), "little")
        limits, self._limits = self._limits, ()
        self._set_limits(limits)

    def reconfigure(
        self,
        config_digest: str,
        routes: Sequence[str],
        upstreams: Sequence[str] = (),
        limits: Sequence[LimitSpec] = (),
    ) -> None:
        """After a reload: known names keep their rows and counts, new ones get the next. Raises SegmentError."""
        self._add_names(routes, upstreams)
        self._set_limits(limits)
        self.set_config_digest(config_digest)

    def limits(self) -> list[LimitRow]:
        """As they are now, to be put back when a reload is taken back."""
        return LimitTable(self._cells, self._fd).rows()

    def put_back(self, limits: Iterable[LimitRow]) -> None:
        """After `reconfigure` with the configuration from before: what operators had set."""
        LimitTable(self._cells, self._fd).put_back(limits)

    def set_state(self, state: WorkerState) -> None:
        """Of the proxy as a whole."""
        self._cells[H_STATE] = state

    def slot(self, index: int) -> WorkerSlot:
        """A slot's row and cells. In the arbiter before the fork, for its memory, and in the worker after it."""
        slot = WorkerSlot(self._cells, index, self._fd)
        if self._reserved.get(index) != len(self._routes) and os.getpid() == self._pid:
            self._reserve_slot(index)
        if os.getpid() == self._pid:
            self._reserve_limits(index)
        return slot

    def free_slot(self, slot: WorkerSlot | int) -> None:
        """The worker is gone (reaped): keep its counts, clear its cells, let the slot be claimed again."""
        index = slot if isinstance(slot, int) else slot.index
        cells = self._cells
        area, gone = slot_area(index), slot_area(GONE_SLOT)
        routes = len(self._routes) * ROUTE_CELLS
        upstreams = len(self._upstreams) * UPSTREAM_CELLS
        cells[H_FOLD_SEQ] |= 1
        for at, value in enumerate(cells[area : area + WORKER_CELLS].tolist()):
            if value:
                cells[area + at] = 0
                if at not in WORKER_GAUGES:
                    cells[gone + at] += value
        start = area + SLOT_ROUTES
        for at, value in enumerate(cells[start : start + routes].tolist()):
            if value:
                cells[start + at] = 0
                if at % ROUTE_CELLS not in ROUTE_GAUGES:
                    cells[gone + SLOT_ROUTES + at] += value
        start = area + SLOT_UPSTREAMS
        for at, value in enumerate(cells[start : start + upstreams].tolist()):
            if value:
                cells[start + at] = 0
                kept = gone + SLOT_UPSTREAMS + at
                cells[kept] = max(cells[kept], value)  # times, not counts
        if index in self._reserved_limits:
            self._fold_limits(index)
        row = WORKER_ROWS.at + index * WORKER_ROWS.row_cells
        cells[row + WR_STATE] = WorkerState.FREE
        cells[row + WR_BEAT_NS] = 0
        cells[H_FOLD_SEQ] += 1

    def _add_names(self, routes: Sequence[str], upstreams: Sequence[str]) -> None:
        new_routes = tuple(dict.fromkeys(name for name in routes if name not in self._routes))
        new_upstreams = tuple(dict.fromkeys(name for name in upstreams if name not in self._upstreams))
        rows = [pack_name(name) for name in (*new_routes, *new_upstreams)]  # all or nothing
        for what, known, new, room in (
            ("routes", self._routes, new_routes, ROUTE_ROWS),
            ("upstreams", self._upstreams, new_upstreams, UPSTREAM_ROWS),
        ):
            if len(known) + len(new) > room:
                raise SegmentError(f"more than {room} {what} since the proxy started: restart it")
        self._put_names(ROUTE_NAMES, len(self._routes), rows[: len(new_routes)])
        self._put_names(UPSTREAM_NAMES, len(self._upstreams), rows[len(new_routes) :])
        self._routes += new_routes
        self._upstreams += new_upstreams
        self._reserve_slot(GONE_SLOT)
        self._cells[H_ROWS] = len(self._routes)  # last: a name is complete before it is counted
        self._cells[H_UPSTREAMS] = len(self._upstreams)

    def _set_limits(self, limits: Sequence[LimitSpec]) -> None:
        table = LimitTable(self._cells, self._fd)
        if limits and GONE_SLOT not in self._reserved_limits:
            self.reserve(LIMITS.at, LIMIT_SLOTS.at - LIMITS.at)
            for index in (GONE_SLOT, *sorted(self._reserved)):
                self._reserve_limits(index, True)
        if limits or self._cells[LIMIT_HEAD.at + LH_ROWS]:
            table.configure(limits)

    def _reserve_limits(self, index: int, begins: bool = False) -> None:
        """A slot's counts and uses, where there are limits at all."""
        if index in self._reserved_limits or not (begins or GONE_SLOT in self._reserved_limits):
            return
        self.reserve(LIMIT_SLOTS.at + index * LIMIT_SLOTS.row_cells, LIMIT_SLOTS.row_cells)
        self._reserved_limits.add(index)
        if index != GONE_SLOT:
            at = LIMIT_HEAD.at + LH_SLOTS
            self._cells[at] = max(self._cells[at], index + 1)

    def _fold_limits(self, index: int) -> None:
        """Keep a gone worker's counts; what it had under way is over."""
        cells = self._cells
        own = LIMIT_SLOTS.at + index * LIMIT_SLOTS.row_cells
        gone = LIMIT_SLOTS.at + GONE_SLOT * LIMIT_SLOTS.row_cells
        used = cells[LIMIT_HEAD.at + LH_ROWS] * LIMIT_COUNTS
        for at, value in enumerate(cells[own : own + used].tolist()):
            if value:
                cells[own + at] = 0
                if at % LIMIT_COUNTS not in LIMIT_GAUGES:
                    cells[gone + at] += value
        uses = own + LS_USES
        cells[uses : own + LIMIT_SLOTS.row_cells] = memoryview(bytes((LIMIT_SLOTS.row_cells - LS_USES) * 8)).cast("Q")

    def _put_names(self, section: Section, used: int, names: Iterable[tuple[int, ...]]) -> None:
        for row, name in enumerate(names, used):
            for place, value in enumerate(name, section.at + row * NAME_CELLS):
                self._cells[place] = value

    def _reserve_slot(self, index: int) -> None:
        self.reserve(slot_area(index), SLOT_ROUTES + len(self._routes) * ROUTE_CELLS)
        self._reserved[index] = len(self._routes)
