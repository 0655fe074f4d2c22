"""The bytes of the two segment files: which cell holds what, and who writes it.

Everything is a cell: 8 bytes, aligned, native byte order (a segment never leaves its machine). A file
is a header page and sections of equal rows; rows of a section that several fields make up begin with a
sequence cell: odd = being written.

    agentd.seg   header | health | agent rows
    proxy.seg    header | worker rows | route names | upstream names
                 | slot areas: one per worker slot, one more for the counts of workers that are gone
                 | head of the limits | table of limits | token buckets | limits' counts and uses per slot
    slot area    worker-wide cells | upstream rows | route blocks

Sizes are capacities of shared/defaults.py, never of a configuration; the files are sparse. What the
cells of a slot area count stands in shared/metrics.py; mapping, reading and writing in shared/segment.py.
A change of any number here is a new LAYOUT: another layout is not read.

Kind: table.
"""

import struct
from enum import IntEnum, IntFlag
from typing import Final, NamedTuple

import msgspec

from shared.defaults import (
    AGENT_ROWS,
    BUCKET_ROWS,
    LIMIT_ROWS,
    ROUTE_ROWS,
    SEGMENT_NAME_BYTES,
    UPSTREAM_ROWS,
    USE_ROWS,
    WORKER_SLOTS,
)
from shared.errors import SegmentError

LAYOUT: Final = 2
CELL_BYTES: Final = 8
PAGE_CELLS: Final = 512
NAME_CELLS: Final = SEGMENT_NAME_BYTES // CELL_BYTES
MESSAGE_CELLS: Final = 32

MAGIC_AGENTD: Final = int.from_bytes(b"WGAGENTD", "little")
MAGIC_PROXY: Final = int.from_bytes(b"WGPROXY\0", "little")

# A heartbeat that no clock comes near: the segment of a daemon that left, or no segment at all.
NEVER_NS: Final = 1 << 63


class BreakerState(IntEnum):
    """In agentd.seg, never renumber."""

    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2
    FORCED_OPEN = 3

    @property
    def word(self) -> str:
        """Lower-case name for logs, metrics, audit."""
        return self.name.lower()


class WorkerState(IntEnum):
    """In proxy.seg, never renumber."""

    FREE = 0
    STARTING = 1
    READY = 2
    DRAINING = 3

    @property
    def word(self) -> str:
        """Lower-case name for logs, metrics, audit."""
        return self.name.lower()


class HealthStatus(IntEnum):
    """In agentd.seg, never renumber."""

    UNKNOWN = 0
    HEALTHY = 1
    DEGRADED = 2
    UNHEALTHY = 3

    @property
    def word(self) -> str:
        """Lower-case name for logs, metrics, audit."""
        return self.name.lower()


class ReloadResult(IntEnum):
    """In both segments, never renumber."""

    NONE = 0  # there was none since the daemon started
    APPLIED = 1
    REFUSED = 2  # nothing has changed
    ROLLED_BACK = 3  # accepted, but no worker could start with it: the configuration from before is back

    @property
    def word(self) -> str:
        """Lower-case name for logs, metrics, audit."""
        return self.name.lower()


class Reload(msgspec.Struct, frozen=True):
    """How a daemon's reloads went since it started, and why the last one went so."""

    begun: int = 0  # how many; one more than have ended while one is under way
    result: ReloadResult = ReloadResult.NONE  # of the last one that has ended
    at_ns: int = 0  # when that was, 0 = never
    applied_ns: int = 0  # when one was last applied, 0 = never
    applied: int = 0
    refused: int = 0
    rolled_back: int = 0
    message: str = ""  # why it was refused or taken back, cut to MESSAGE_CELLS

    @property
    def is_under_way(self) -> bool:
        return self.begun > self.applied + self.refused + self.rolled_back

    @property
    def has_failed(self) -> bool:
        """The last one that has ended did not bring the configuration into force."""
        return self.result in (ReloadResult.REFUSED, ReloadResult.ROLLED_BACK)


class LimitFlag(IntFlag):
    """In proxy.seg, never renumber."""

    IN_USE = 1  # the configuration has it
    USES = 2  # it counts what is under way, not tokens
    OVERRIDDEN = 4  # an operator has set other numbers than the configuration's
    KEPT = 8  # and wants them to outlive a reload


class AgentRow(msgspec.Struct, frozen=True):
    """What workers and the CLI know of one agent."""

    name: str
    hello_mask: int = 0  # events of its last HELLO; 0 = none seen yet
    live_instances: int = 0
    breaker: BreakerState = BreakerState.CLOSED
    retry_at_ns: int = 0  # a breaker that is open admits its probe from here on


class AgentdHealth(msgspec.Struct, frozen=True):
    """agentd's own state, for whoever finds that it no longer answers."""

    at_ns: int = 0
    status: HealthStatus = HealthStatus.UNKNOWN
    is_ready: bool = False
    workers: int = 0  # registered
    sessions: int = 0  # of agents
    calls_in_flight: int = 0
    calls_queued: int = 0
    audit_queued: int = 0
    audit_dropped: int = 0
    loop_lag_ns: int = 0
    rss_bytes: int = 0
    message: str = ""  # the first condition that is not met, cut to MESSAGE_CELLS


class Field(NamedTuple):
    """Cells `at` .. `at + cells` of a row, counted from the row's first cell."""

    name: str
    at: int
    cells: int
    writer: str
    doc: str


class Section(NamedTuple):
    """Rows of equal size; row i begins at cell `at + i * row_cells`."""

    name: str
    at: int
    rows: int
    row_cells: int
    fields: tuple[Field, ...]

    @property
    def end(self) -> int:
        """The cell after the last row."""
        return self.at + self.rows * self.row_cells


# --- header of both files --------------------------------------------------------------------------

H_MAGIC: Final = 0
H_LAYOUT: Final = 1
H_NONCE: Final = 2
H_PID: Final = 3
H_CREATED_NS: Final = 4
H_SIZE: Final = 5
H_BEAT_NS: Final = 6
H_GENERATION: Final = 7
H_SEQ: Final = 8
H_DIGEST: Final = 9
H_ROWS: Final = 17
H_UPSTREAMS: Final = 18
H_FOLD_SEQ: Final = 19
H_STATE: Final = 20
H_RELOAD_SEQ: Final = 21
H_RELOAD: Final = 22
H_RELOAD_MESSAGE: Final = 29
RELOAD_NUMBERS: Final = 7  # numeric fields of Reload, in order
HEADER_CELLS: Final = PAGE_CELLS

HEADER_FIELDS: Final = (
    Field("magic", H_MAGIC, 1, "creator", "which of the two files"),
    Field("layout", H_LAYOUT, 1, "creator", "LAYOUT of the program that made it"),
    Field("nonce", H_NONCE, 1, "creator", "random, not 0: another start of the daemon has another"),
    Field("pid", H_PID, 1, "creator", "of the daemon"),
    Field("created_ns", H_CREATED_NS, 1, "creator", "CLOCK_MONOTONIC"),
    Field("size", H_SIZE, 1, "creator", "of the file in bytes"),
    Field("beat_ns", H_BEAT_NS, 1, "daemon", "last turn of its loop; NEVER_NS once it has left"),
    Field("generation", H_GENERATION, 1, "daemon", "goes up after rows or names have changed"),
    Field("seq", H_SEQ, 1, "daemon", "sequence of config_digest"),
    Field("config_digest", H_DIGEST, NAME_CELLS, "daemon", "of the configuration that it runs"),
    Field("rows", H_ROWS, 1, "daemon", "agent rows or route names in use, counted to the last"),
    Field("upstreams", H_UPSTREAMS, 1, "arbiter", "upstream names in use, counted to the last"),
    Field("fold_seq", H_FOLD_SEQ, 1, "arbiter", "odd while a gone worker's counts are being moved"),
    Field("state", H_STATE, 1, "daemon", "WorkerState of the daemon itself"),
    Field("reload_seq", H_RELOAD_SEQ, 1, "daemon", "sequence of the next two"),
    Field("reload", H_RELOAD, RELOAD_NUMBERS, "daemon", "the numbers of Reload, in its order"),
    Field("reload_message", H_RELOAD_MESSAGE, MESSAGE_CELLS, "daemon", "UTF-8, NUL-padded"),
)
HEADER: Final = Section("header", 0, 1, HEADER_CELLS, HEADER_FIELDS)

# --- agentd.seg ------------------------------------------------------------------------------------

HEALTH_NUMBERS: Final = 11  # numeric fields of AgentdHealth, in order
HEALTH: Final = Section(
    "health",
    HEADER.end,
    1,
    64,
    (
        Field("seq", 0, 1, "agentd", "sequence of the row"),
        Field("numbers", 1, HEALTH_NUMBERS, "agentd", "the numbers of AgentdHealth, in its order"),
        Field("message", 1 + HEALTH_NUMBERS, MESSAGE_CELLS, "agentd", "UTF-8, NUL-padded"),
    ),
)
AGENT_VALUES: Final = NAME_CELLS + 4  # cells of a row after its sequence
AGENTS: Final = Section(
    "agents",
    HEALTH.end,
    AGENT_ROWS,
    16,
    (
        Field("seq", 0, 1, "agentd", "sequence of the row"),
        Field("name", 1, NAME_CELLS, "agentd", "empty = the row is not in use"),
        Field("hello_mask", 9, 1, "agentd", "events of the last HELLO, 0 = none seen yet"),
        Field("live_instances", 10, 1, "agentd", "sessions or connections that can take a call"),
        Field("breaker", 11, 1, "agentd", "BreakerState"),
        Field("retry_at_ns", 12, 1, "agentd", "an open breaker admits its probe from here on"),
    ),
)
AGENTD_SECTIONS: Final = (HEADER, HEALTH, AGENTS)
AGENTD_CELLS: Final = -(-AGENTS.end // PAGE_CELLS) * PAGE_CELLS

# --- proxy.seg -------------------------------------------------------------------------------------

WR_SEQ: Final = 0
WR_VALUES: Final = 2 + NAME_CELLS  # pid, started_ns, config_digest
WR_STATE: Final = 11
WR_BEAT_NS: Final = 12
WORKER_ROWS: Final = Section(
    "workers",
    HEADER.end,
    WORKER_SLOTS,
    16,
    (
        Field("seq", WR_SEQ, 1, "worker", "sequence of the next three"),
        Field("pid", 1, 1, "worker", "0 = nobody ever claimed the slot"),
        Field("started_ns", 2, 1, "worker", "when it was claimed"),
        Field("config_digest", 3, NAME_CELLS, "worker", "of the configuration that it serves by"),
        Field("state", WR_STATE, 1, "worker", "WorkerState; the arbiter frees it once the worker is gone"),
        Field("beat_ns", WR_BEAT_NS, 1, "worker", "last turn of its loop; 0 = free"),
    ),
)
_NAME = (Field("name", 0, NAME_CELLS, "arbiter", "empty = not in use"),)
ROUTE_NAMES: Final = Section("routes", WORKER_ROWS.end, ROUTE_ROWS, NAME_CELLS, _NAME)
UPSTREAM_NAMES: Final = Section("upstreams", ROUTE_NAMES.end, UPSTREAM_ROWS, NAME_CELLS, _NAME)

WORKER_CELLS: Final = PAGE_CELLS
UPSTREAM_CELLS: Final = 4
ROUTE_CELLS: Final = 64
SLOT_UPSTREAMS: Final = WORKER_CELLS  # from a slot area's first cell
SLOT_ROUTES: Final = SLOT_UPSTREAMS + UPSTREAM_ROWS * UPSTREAM_CELLS
SLOT_CELLS: Final = SLOT_ROUTES + ROUTE_ROWS * ROUTE_CELLS
GONE_SLOT: Final = WORKER_SLOTS  # its area holds the counts of workers that are gone
SLOTS: Final = Section(
    "slots",
    -(-UPSTREAM_NAMES.end // PAGE_CELLS) * PAGE_CELLS,
    WORKER_SLOTS + 1,
    SLOT_CELLS,
    (
        Field("worker", 0, WORKER_CELLS, "worker", "worker-wide cells, W_* of shared/metrics.py"),
        Field("upstreams", SLOT_UPSTREAMS, UPSTREAM_ROWS * UPSTREAM_CELLS, "worker", "rows of U_*"),
        Field("routes", SLOT_ROUTES, ROUTE_ROWS * ROUTE_CELLS, "worker", "blocks of R_*"),
    ),
)

# Limits. What several processes write here is locked by fcntl (shared/segment_buckets.py): a row of the table by
# the lock of its head, a set of buckets by its own. A use row is its worker's alone.
LH_SEED: Final = 0
LH_GENERATION: Final = 2
LH_ROWS: Final = 3
LH_SLOTS: Final = 4
LIMIT_HEAD: Final = Section(
    "limit_head",
    SLOTS.end,
    1,
    PAGE_CELLS,
    (
        Field("seed", LH_SEED, 2, "creator", "random: key of the hash that places buckets and uses"),
        Field("generation", LH_GENERATION, 1, "arbiter, agentd", "goes up after a row of the table has changed"),
        Field("rows", LH_ROWS, 1, "arbiter", "rows of the table in use, counted to the last"),
        Field("slots", LH_SLOTS, 1, "arbiter", "slots that were ever given out, counted to the last"),
    ),
)
LIMIT_NAME_CELLS: Final = 16
LR_VALUES: Final = LIMIT_NAME_CELLS + 7
LR_OVERFLOW: Final = 28
LIMITS: Final = Section(
    "limits",
    LIMIT_HEAD.end,
    LIMIT_ROWS,
    32,
    (
        Field("seq", 0, 1, "arbiter, agentd", "sequence of the row"),
        Field("name", 1, LIMIT_NAME_CELLS, "arbiter", "ROUTE/NAME, or server:NAME"),
        Field("flags", 17, 1, "arbiter, agentd", "LimitFlag"),
        Field("epoch", 18, 1, "arbiter, agentd", "buckets of an earlier one count as full"),
        Field("key", 19, 1, "arbiter", "checksum of what is counted by: another key is another epoch"),
        Field("capacity", 20, 1, "arbiter, agentd", "millionths of a token; of a concurrency limit its maximum"),
        Field("refill", 21, 1, "arbiter, agentd", "millionths of a token a second"),
        Field("configured_capacity", 22, 1, "arbiter", "what the configuration says"),
        Field("configured_refill", 23, 1, "arbiter", "what the configuration says"),
        Field("overflow", LR_OVERFLOW, 4, "workers", "the bucket of keys that found no row: like one of `buckets`"),
    ),
)
SET_ROWS: Final = 16
BUCKET_SET_CELLS: Final = SET_ROWS * 4
BUCKETS: Final = Section(
    "buckets",
    LIMITS.end,
    BUCKET_ROWS // SET_ROWS,
    BUCKET_SET_CELLS,
    (
        Field("tags", 0, SET_ROWS, "workers", "hash of limit, epoch and key; 0 = free"),
        Field("owners", SET_ROWS, SET_ROWS, "workers", "row of the limit << 32 | epoch"),
        Field("at_ns", 2 * SET_ROWS, SET_ROWS, "workers", "when the tokens were counted"),
        Field("tokens", 3 * SET_ROWS, SET_ROWS, "workers", "in millionths"),
    ),
)
LIMIT_COUNTS: Final = 4  # cells a limit has in a slot: L_* of shared/metrics.py
LS_USES: Final = LIMIT_ROWS * LIMIT_COUNTS
USE_SET_CELLS: Final = SET_ROWS * 2
LIMIT_SLOTS: Final = Section(
    "limit_slots",
    BUCKETS.end,
    WORKER_SLOTS + 1,
    LS_USES + USE_ROWS * 2,
    (
        Field("counts", 0, LS_USES, "worker", "L_* of each limit"),
        Field("uses", LS_USES, USE_ROWS * 2, "worker", "sets of 16 tags and their 16 counts: what is under way now"),
    ),
)
PROXY_SECTIONS: Final = (
    HEADER,
    WORKER_ROWS,
    ROUTE_NAMES,
    UPSTREAM_NAMES,
    SLOTS,
    LIMIT_HEAD,
    LIMITS,
    BUCKETS,
    LIMIT_SLOTS,
)
PROXY_CELLS: Final = LIMIT_SLOTS.end


def slot_area(slot: int) -> int:
    """A slot area's first cell."""
    return SLOTS.at + slot * SLOT_CELLS


# --- texts in cells --------------------------------------------------------------------------------

_NAME_STRUCT = struct.Struct(f"={NAME_CELLS}Q")
_MESSAGE_STRUCT = struct.Struct(f"={MESSAGE_CELLS}Q")


def pack_name(name: str) -> tuple[int, ...]:
    """A name as cells; raises SegmentError when it has no room or holds a NUL."""
    raw = name.encode()
    if len(raw) > SEGMENT_NAME_BYTES or b"\0" in raw:
        raise SegmentError(f"name {name[:80]!r} does not fit into {SEGMENT_NAME_BYTES} bytes of UTF-8 without NUL")
    return _NAME_STRUCT.unpack(raw.ljust(_NAME_STRUCT.size, b"\0"))


def unpack_name(cells: "list[int] | tuple[int, ...]") -> str:
    """The text of NAME_CELLS cells; what is not UTF-8 is shown as a replacement character."""
    return _NAME_STRUCT.pack(*cells).split(b"\0", 1)[0].decode("utf-8", "replace")


def pack_message(text: str) -> tuple[int, ...]:
    """A sentence for people as cells, cut where it is too long."""
    raw = text.encode("utf-8", "replace")[: _MESSAGE_STRUCT.size].replace(b"\0", b" ")
    return _MESSAGE_STRUCT.unpack(raw.ljust(_MESSAGE_STRUCT.size, b"\0"))


def unpack_message(cells: "list[int] | tuple[int, ...]") -> str:
    """The text of MESSAGE_CELLS cells, without a character that the cut went through."""
    return _MESSAGE_STRUCT.pack(*cells).split(b"\0", 1)[0].decode("utf-8", "ignore")
