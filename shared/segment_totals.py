"""proxy.seg, the reading side: who works, and what all workers have counted together.

Read by agentd and the CLI without asking anybody. A total never goes down: while the arbiter moves a gone
worker's counts, readers wait a moment and then repeat what they said last.

Kind: IO.
"""

import os
from operator import add

import msgspec

from shared.clock import MS
from shared.defaults import SEGMENT_READ_TRIES, WORKER_SLOTS, WORKER_STALE_MS
from shared.segment_file import SegmentView, read_names, read_row
from shared.wire.segment import (
    GONE_SLOT,
    H_BEAT_NS,
    H_FOLD_SEQ,
    H_ROWS,
    H_STATE,
    H_UPSTREAMS,
    MAGIC_PROXY,
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
        if not self.is_mapped:
            return None
        cells = self._cells
        for _ in range(SEGMENT_READ_TRIES):
            before = cells[H_FOLD_SEQ]
            if not before & 1:
                found = self._sum()
                if cells[H_FOLD_SEQ] == before:
                    self._good_totals = found
                    break
            os.sched_yield()  # a fold takes a millisecond, and its process may be waiting for this core
        return self._good_totals

    def _sum(self) -> Totals:
        cells = self._cells
        routes, upstreams = self.routes, self.upstreams
        states = (cells[WORKER_ROWS.at + slot * WORKER_ROWS.row_cells + WR_STATE] for slot in range(WORKER_SLOTS))
        # A cell of a slot that nobody uses is a hole in the file, and reading it would fill the hole.
        slots = [GONE_SLOT, *(slot for slot, state in enumerate(states) if state != WorkerState.FREE)]
        worker = [0] * WORKER_CELLS
        blocks = [0] * (len(routes) * ROUTE_CELLS)
        rows = [0] * (len(upstreams) * UPSTREAM_CELLS)
        for slot in slots:
            at = slot_area(slot)
            worker = list(map(add, worker, cells[at : at + len(worker)].tolist()))
            at += SLOT_ROUTES
            blocks = list(map(add, blocks, cells[at : at + len(blocks)].tolist()))
            at += SLOT_UPSTREAMS - SLOT_ROUTES
            rows = list(map(max, rows, cells[at : at + len(rows)].tolist()))
        return Totals(
            worker,
            {name: blocks[i * ROUTE_CELLS : (i + 1) * ROUTE_CELLS] for i, name in enumerate(routes)},
            {name: rows[i * UPSTREAM_CELLS : (i + 1) * UPSTREAM_CELLS] for i, name in enumerate(upstreams)},
        )

    def _forget(self) -> None:
        self._good_rows.clear()
        self._good_totals = None


def _state(value: int) -> WorkerState:
    return WorkerState(value) if value <= WorkerState.DRAINING else WorkerState.FREE
