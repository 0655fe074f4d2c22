"""The table of limits in proxy.seg: which there are, with which numbers, and how these are changed.

    arbiter   LimitTable.configure   at the start and on every reload, from the configuration
    agentd    LimitTable.change      what an operator sets or resets, at once for every worker
    worker    read_limits            when the table's generation has moved (shared/segment_buckets.py)

A row belongs to a name for as long as the proxy runs; its buckets and counts are found by its number. The two
writers exclude each other by an fcntl lock, which ends with its holder; a row that one of them was killed in is
healed by the next write, and until then workers go by what they read before.

Which key a request is counted by is decided by nobody here.

Kind: IO.
"""

import contextlib
import fcntl
import mmap
import os
import struct
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import msgspec

from shared.clock import MS, now_ns
from shared.defaults import LIMIT_LOCK_NAP_US, LIMIT_LOCK_WAIT_MS, LIMIT_ROWS
from shared.errors import SegmentError
from shared.segment_file import read_row, write_row
from shared.wire.segment import (
    CELL_BYTES,
    H_LAYOUT,
    H_MAGIC,
    LAYOUT,
    LH_GENERATION,
    LH_ROWS,
    LIMIT_HEAD,
    LIMIT_NAME_CELLS,
    LIMITS,
    LR_VALUES,
    MAGIC_PROXY,
    PROXY_CELLS,
    LimitFlag,
)

_NAME = struct.Struct(f"={LIMIT_NAME_CELLS}Q")
_ROWS: Final = LIMIT_HEAD.at + LH_ROWS
GENERATION: Final = LIMIT_HEAD.at + LH_GENERATION
_TABLE_LOCK: Final = LIMIT_HEAD.at * CELL_BYTES


class LimitSpec(msgspec.Struct, frozen=True):
    """One limit of the configuration. `counts_uses`: what is under way, `capacity` is the most; else tokens."""

    name: str
    key: str
    capacity: int  # in millionths of a token, or whole
    refill: int = 0
    counts_uses: bool = False


class LimitRow(msgspec.Struct, frozen=True):
    """One limit as it is in effect."""

    name: str
    flags: LimitFlag
    epoch: int
    key: int
    capacity: int
    refill: int
    configured_capacity: int
    configured_refill: int

    @property
    def is_in_use(self) -> bool:
        return LimitFlag.IN_USE in self.flags

    @property
    def is_overridden(self) -> bool:
        return LimitFlag.OVERRIDDEN in self.flags

    @property
    def is_kept(self) -> bool:
        return LimitFlag.KEPT in self.flags

    @property
    def counts_uses(self) -> bool:
        return LimitFlag.USES in self.flags


# A limit before it is read admits nobody and is in nobody's way.
UNREADABLE: Final = LimitRow("", LimitFlag(0), 0, 0, 0, 0, 0, 0)


def _pack(row: LimitRow) -> tuple[int, ...]:
    raw = row.name.encode()
    if len(raw) > _NAME.size:
        raise SegmentError(f"limit {row.name[:80]!r} does not fit into {_NAME.size} bytes")
    name = _NAME.unpack(raw.ljust(_NAME.size, b"\0"))
    numbers = (row.capacity, row.refill, row.configured_capacity, row.configured_refill)
    return (*name, int(row.flags), row.epoch, row.key, *numbers)


def _unpack(cells: "list[int]") -> LimitRow:
    name = _NAME.pack(*cells[:LIMIT_NAME_CELLS]).split(b"\0", 1)[0].decode("utf-8", "replace")
    flags, *rest = cells[LIMIT_NAME_CELLS:]
    return LimitRow(name, LimitFlag(flags & 15), *rest)


def read_limits(cells: "memoryview[int]", known: Sequence[LimitRow] = ()) -> list[LimitRow]:
    """Every row, by number; where one cannot be read now, what is `known` of it, or else what stands there.

    That is a mixture of two that were right, under the name that it always had: a worker can start with it.
    """
    rows = []
    for number in range(min(cells[_ROWS], LIMIT_ROWS)):
        at = LIMITS.at + number * LIMITS.row_cells
        found = read_row(cells, at, LR_VALUES)
        if found is None and number < len(known):
            rows.append(known[number])
        else:
            rows.append(_unpack(found if found is not None else cells[at + 1 : at + 1 + LR_VALUES].tolist()))
    return rows


def try_lock(fd: int, at_byte: int) -> bool:
    """Take the lock of one byte of the file, unless another process has it.

    A lock of the process (F_SETLK): forked workers exclude each other, which locks of an open file (OFD) would
    not do. It ends with the process, and when the process closes any descriptor of the file.
    """
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, at_byte)
    except OSError:
        return False
    return True


def unlock(fd: int, at_byte: int) -> None:
    """Give it back."""
    fcntl.lockf(fd, fcntl.LOCK_UN, 1, at_byte)


class LimitTable:
    """The writing side: over the arbiter's own mapping, or over one that agentd made for a change."""

    def __init__(self, cells: "memoryview[int]", fd: int) -> None:
        self._cells = cells
        self._fd = fd

    def rows(self) -> list[LimitRow]:
        """All of them, by number. For who holds the lock: a row that a writer was killed in is a mixture of two that
        were right, and better than none."""
        begins = range(LIMITS.at + 1, LIMITS.at + 1 + self._cells[_ROWS] * LIMITS.row_cells, LIMITS.row_cells)
        return [_unpack(self._cells[at : at + LR_VALUES].tolist()) for at in begins]

    def configure(self, specs: Iterable[LimitSpec]) -> None:
        """The limits of a configuration that was accepted. Known names keep their row, and with the same key their
        tokens. Numbers that an operator set are gone, unless they were to be kept. Raises SegmentError."""
        wanted = {spec.name: spec for spec in specs}
        with _Locked(self._fd):
            rows = self.rows()
            known = {row.name for row in rows}
            new = [spec for name, spec in wanted.items() if name not in known]
            if len(rows) + len(new) > LIMIT_ROWS:
                raise SegmentError(f"more than {LIMIT_ROWS} limits since the proxy started: restart it")
            for number, row in enumerate(rows):
                # One that is gone keeps its numbers: workers of the old configuration still go by them.
                spec = wanted.get(row.name)
                self._put(number, _configured(row, spec) if spec else _without(row))
            for number, spec in enumerate(new, len(rows)):
                self._put(number, _configured(None, spec))
            self._cells[_ROWS] = len(rows) + len(new)  # last: a row is whole before it is counted
            self._cells[GENERATION] += 1

    def change(self, name: str, capacity: int | None, refill: int | None, keep: bool) -> LimitRow:
        """Other numbers, at once. Raises KeyError for a name that no route has, SegmentError."""
        with _Locked(self._fd):
            number, row = self._find(name)
            row = msgspec.structs.replace(
                row,
                capacity=row.capacity if capacity is None else capacity,
                refill=row.refill if refill is None else refill,
            )
            flags = row.flags & ~(LimitFlag.OVERRIDDEN | LimitFlag.KEPT)
            if keep or (row.capacity, row.refill) != (row.configured_capacity, row.configured_refill):
                flags |= LimitFlag.OVERRIDDEN | (LimitFlag.KEPT if keep else LimitFlag(0))
            return self._changed(number, msgspec.structs.replace(row, flags=flags))

    def put_back(self, before: Iterable[LimitRow]) -> None:
        """What operators had set `before`, where the configuration is the same again."""
        with _Locked(self._fd):
            now = {row.name: number for number, row in enumerate(self.rows()) if row.is_in_use}
            for row in before:
                if row.is_overridden and row.name in now:
                    self._changed(now[row.name], row)

    def reset(self, name: str) -> LimitRow:
        """The configuration's numbers again, and every bucket full. Raises KeyError, SegmentError."""
        with _Locked(self._fd):
            number, row = self._find(name)
            row = msgspec.structs.replace(
                row,
                capacity=row.configured_capacity,
                refill=row.configured_refill,
                flags=row.flags & ~(LimitFlag.OVERRIDDEN | LimitFlag.KEPT),
                epoch=_next(row.epoch),
            )
            return self._changed(number, row)

    def _find(self, name: str) -> tuple[int, LimitRow]:
        for number, row in enumerate(self.rows()):
            if row.name == name and row.is_in_use:
                return number, row
        raise KeyError(name)

    def _changed(self, number: int, row: LimitRow) -> LimitRow:
        self._put(number, row)
        self._cells[GENERATION] += 1
        return row

    def _put(self, number: int, row: LimitRow) -> None:
        write_row(self._cells, LIMITS.at + number * LIMITS.row_cells, _pack(row))


class _Locked:
    """The table's lock for the length of a `with`; the other writer is waited for a moment only."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def __enter__(self) -> None:
        end = now_ns() + LIMIT_LOCK_WAIT_MS * MS
        while not try_lock(self._fd, _TABLE_LOCK):
            if now_ns() > end:
                raise SegmentError("the table of limits is locked by a process that stands still")
            time.sleep(LIMIT_LOCK_NAP_US / 1e6)

    def __exit__(self, *exc: object) -> None:
        unlock(self._fd, _TABLE_LOCK)


def _next(epoch: int) -> int:
    return (epoch + 1) & 0xFFFF_FFFF


def _without(row: LimitRow) -> LimitRow:
    return msgspec.structs.replace(row, flags=row.flags & LimitFlag.USES)


def _configured(row: LimitRow | None, spec: LimitSpec) -> LimitRow:
    key = zlib.crc32(spec.key.encode())
    flags = LimitFlag.IN_USE | (LimitFlag.USES if spec.counts_uses else LimitFlag(0))
    capacity, refill, epoch = spec.capacity, spec.refill, 0
    if row is not None:
        epoch = row.epoch if row.key == key else _next(row.epoch)
        if row.is_kept and row.key == key:
            flags |= LimitFlag.OVERRIDDEN | LimitFlag.KEPT
            capacity, refill = row.capacity, row.refill
    return LimitRow(spec.name, flags, epoch, key, capacity, refill, spec.capacity, spec.refill)


@contextlib.contextmanager
def open_for_change(path: str) -> "Iterator[LimitTable]":
    """The table of the proxy that runs, for one change by another process. Raises SegmentError."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise SegmentError(f"{path}: {error.strerror}") from None
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, fd)  # no lock of ours is held any more by then
        size = PROXY_CELLS * CELL_BYTES
        if os.fstat(fd).st_size != size:
            raise SegmentError(f"{path} is not a segment of layout {LAYOUT}")
        cells = memoryview(stack.enter_context(mmap.mmap(fd, size))).cast("Q")
        stack.callback(cells.release)
        if cells[H_MAGIC] != MAGIC_PROXY or cells[H_LAYOUT] != LAYOUT:
            raise SegmentError(f"{path} is not a segment of layout {LAYOUT}")
        yield LimitTable(cells, fd)
