"""Makes, maps and compares segment files; reads and writes rows under a sequence counter.

A file is made under another name, filled, and renamed, so that nobody maps half a header. Cells are
stored one by one through `memoryview.cast("Q")`: struct.pack_into shows zeros to other processes
(10 % of reads, 2026-11), multiprocessing.shared_memory destroys a segment when an unrelated reader
exits. Stores become visible in program order on x86-64; the rows that decide anything are also safe to
see late.

What the cells mean stands in shared/wire/segment.py and is decided by nobody here.

Kind: IO.
"""

import mmap
import os
import stat
from collections.abc import Iterable
from typing import ClassVar

import msgspec

from shared.defaults import ADMIN_GROUP, SEGMENT_READ_TRIES
from shared.errors import SegmentError
from shared.runtime import give_to_group
from shared.wire.segment import (
    CELL_BYTES,
    H_BEAT_NS,
    H_CREATED_NS,
    H_GENERATION,
    H_LAYOUT,
    H_MAGIC,
    H_NONCE,
    H_PID,
    H_RELOAD_SEQ,
    H_SEQ,
    H_SIZE,
    HEADER_CELLS,
    LAYOUT,
    MESSAGE_CELLS,
    NAME_CELLS,
    NEVER_NS,
    RELOAD_NUMBERS,
    Reload,
    ReloadResult,
    Section,
    pack_message,
    pack_name,
    unpack_message,
    unpack_name,
)

_MAX_CELL = (1 << 64) - 1


def write_row(cells: "memoryview[int]", at: int, values: Iterable[int]) -> None:
    """Store `values` behind the sequence cell `at`. A row that a killed writer left odd is healed."""
    row = tuple(values)
    if row and not (min(row) >= 0 and max(row) <= _MAX_CELL):
        raise SegmentError(f"a cell holds 0 .. 2**64 - 1, not {row}")  # before the row is odd, not inside
    odd = cells[at] | 1
    cells[at] = odd
    for place, value in enumerate(row, at + 1):
        cells[place] = value
    cells[at] = (odd + 1) & _MAX_CELL


def read_row(cells: "memoryview[int]", at: int, count: int) -> list[int] | None:
    """`count` cells behind the sequence cell `at`, all of one write; None = its writer stopped inside it."""
    for _ in range(SEGMENT_READ_TRIES):
        before = cells[at]
        if not before & 1:
            values = cells[at + 1 : at + 1 + count].tolist()  # loads cell by cell
            if cells[at] == before:
                return values
    return None


def read_names(cells: "memoryview[int]", section: Section, used: int) -> tuple[str, ...]:
    """The first `used` names of a section of names; they are written once, before they are counted."""
    begins = (section.at + row * NAME_CELLS for row in range(min(used, section.rows)))
    return tuple(unpack_name(cells[at : at + NAME_CELLS].tolist()) for at in begins)


class SegmentWriter:
    """The creating side of one file: its mapping and header. Subclasses write the rows."""

    MAGIC: ClassVar[int]
    CELLS: ClassVar[int]
    __slots__ = ("_cells", "_fd", "_map", "_pid", "nonce", "path", "reload")

    def __init__(self, path: str, config_digest: str, now_ns: int) -> None:
        """Make the file; its caller holds the daemon's lock. Raises SegmentError."""
        pack_name(config_digest)
        draft = f"{path}.new"
        size = self.CELLS * CELL_BYTES
        self.path = path
        self.reload = Reload()
        self._pid = os.getpid()
        try:
            if os.path.lexists(draft):
                os.unlink(draft)  # of a start that was killed in here; ours is the lock
            flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
            self._fd = os.open(draft, flags, 0o640)
        except OSError as error:
            raise SegmentError(f"{draft}: {error.strerror}") from error
        try:
            os.fchmod(self._fd, 0o640)
            give_to_group(self._fd, ADMIN_GROUP)
            os.ftruncate(self._fd, size)
            self.reserve(0, HEADER_CELLS)
            self._map = mmap.mmap(self._fd, size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
            cells = self._cells = memoryview(self._map).cast("Q")
            self.nonce = int.from_bytes(os.urandom(8), "little") | 1
            cells[H_LAYOUT] = LAYOUT
            cells[H_NONCE] = self.nonce
            cells[H_PID] = self._pid
            cells[H_CREATED_NS] = now_ns
            cells[H_SIZE] = size
            cells[H_BEAT_NS] = now_ns
            # No two files of one boot count from the same number: a reader that keeps what it made of
            # one generation may compare that alone.
            cells[H_GENERATION] = now_ns + 1
            cells[H_MAGIC] = self.MAGIC
            write_row(cells, H_SEQ, pack_name(config_digest))
            self._fill()
            os.rename(draft, path)
        except OSError as error:
            os.close(self._fd)
            os.unlink(draft)
            raise SegmentError(f"{path}: {error.strerror}") from error
        except BaseException:
            os.close(self._fd)
            os.unlink(draft)
            raise

    def _fill(self) -> None:
        """What must stand in the file before anybody can map it."""

    def reserve(self, at: int, cells: int) -> None:
        """Back cells with memory now: a store into a hole of a full tmpfs would end the process (SIGBUS)."""
        os.posix_fallocate(self._fd, at * CELL_BYTES, cells * CELL_BYTES)

    def beat(self, now_ns: int) -> None:
        """The daemon's loop turns."""
        self._cells[H_BEAT_NS] = now_ns

    def set_config_digest(self, config_digest: str) -> None:
        """The daemon runs another configuration now."""
        write_row(self._cells, H_SEQ, pack_name(config_digest))
        self.bump()

    def begin_reload(self) -> None:
        """The daemon was told to read its configuration anew."""
        self._put_reload(msgspec.structs.replace(self.reload, begun=self.reload.begun + 1))

    def end_reload(self, result: ReloadResult, now_ns: int, message: str = "") -> None:
        """How it went; nothing is changed while none is under way."""
        last = self.reload
        if not last.is_under_way:
            return
        is_applied = result is ReloadResult.APPLIED
        self._put_reload(
            Reload(
                last.begun,
                result,
                now_ns,
                now_ns if is_applied else last.applied_ns,
                last.applied + is_applied,
                last.refused + (result is ReloadResult.REFUSED),
                last.rolled_back + (result is ReloadResult.ROLLED_BACK),
                message,
            )
        )

    def _put_reload(self, reload: Reload) -> None:
        self.reload = reload
        *numbers, message = msgspec.structs.astuple(reload)
        write_row(self._cells, H_RELOAD_SEQ, (*numbers, *pack_message(message)))

    def bump(self) -> None:
        """Say that rows have changed; after they have."""
        self._cells[H_GENERATION] += 1

    def close(self) -> None:
        """Leave: readers see it at once by the heartbeat, and the file is gone. In a child: unmap only."""
        if self._fd < 0:
            return
        if os.getpid() == self._pid:
            self._cells[H_BEAT_NS] = NEVER_NS
            try:
                if os.path.samestat(os.fstat(self._fd), os.stat(self.path, follow_symlinks=False)):
                    os.unlink(self.path)
            except FileNotFoundError:
                pass
        os.close(self._fd)
        self._fd = -1
        self._cells.release()
        try:
            self._map.close()
        except BufferError:
            pass  # somebody still holds a slot's cells; unmapped when they are let go


def _absent() -> "memoryview[int]":
    cells = memoryview(bytearray(HEADER_CELLS * CELL_BYTES)).cast("Q")
    cells[H_BEAT_NS] = NEVER_NS
    return cells.toreadonly()


# Stands in for the cells of a view that has mapped nothing, so that no read asks whether there is a file.
ABSENT = _absent()


class SegmentView:
    """The reading side: maps a file that may be absent, or replaced under it. Never raises for either."""

    MAGIC: ClassVar[int]
    CELLS: ClassVar[int]
    __slots__ = ("_cells", "_digest", "_map", "_nonce", "_reload", "_status", "path", "problem")

    def __init__(self, path: str) -> None:
        self.path = path
        self.problem = "not attached yet"  # why nothing is mapped, for people; "" while mapped
        self._cells: memoryview[int] = ABSENT
        self._map: mmap.mmap | None = None
        self._status: os.stat_result | None = None
        self._nonce = 0
        self._digest = ""
        self._reload = Reload()

    def attach(self) -> bool:
        """Map what is at the path now. False: nothing there, or nothing of ours; `problem` says which."""
        self.close()
        self.problem = self._map_file()
        return not self.problem

    def check(self) -> bool:
        """Map again if another file took the place; False = nothing usable there. Once a second and on connect."""
        if self._status is None:
            return self.attach()
        try:
            there = os.stat(self.path, follow_symlinks=False)
        except OSError as error:
            self.close()
            self.problem = error.strerror or str(error)
            return False
        if os.path.samestat(there, self._status) and self._cells[H_NONCE] == self._nonce:
            return True
        return self.attach()

    def close(self) -> None:
        """Unmap; reads then answer as for an absent file. `attach` maps again."""
        if self._map is not None:
            self._cells.release()
            self._map.close()
        self.problem = "closed"
        self._cells = ABSENT
        self._map = self._status = None
        self._nonce = 0
        self._digest = ""
        self._reload = Reload()
        self._forget()

    @property
    def is_mapped(self) -> bool:
        return self._map is not None

    @property
    def generation(self) -> int:
        """Another number = rows or names may have changed; 0 while nothing is mapped."""
        return self._cells[H_GENERATION]

    @property
    def pid(self) -> int:
        """The creator's; 0 while nothing is mapped."""
        return self._cells[H_PID]

    @property
    def nonce(self) -> int:
        """Of the creator's start; 0 while nothing is mapped."""
        return self._cells[H_NONCE]

    @property
    def beat_ns(self) -> int:
        """The daemon's last heartbeat; NEVER_NS when it left or nothing is mapped."""
        return self._cells[H_BEAT_NS]

    @property
    def config_digest(self) -> str:
        """Of the configuration that the daemon runs."""
        row = read_row(self._cells, H_SEQ, NAME_CELLS)
        if row is not None:
            self._digest = unpack_name(row)
        return self._digest

    @property
    def reload(self) -> Reload:
        """How the daemon's reloads went."""
        row = read_row(self._cells, H_RELOAD_SEQ, RELOAD_NUMBERS + MESSAGE_CELLS)
        if row is not None:
            begun, result, at_ns, applied_ns, applied, refused, rolled_back = row[:RELOAD_NUMBERS]
            known = ReloadResult(result) if result <= ReloadResult.ROLLED_BACK else ReloadResult.NONE
            message = unpack_message(row[RELOAD_NUMBERS:])
            self._reload = Reload(begun, known, at_ns, applied_ns, applied, refused, rolled_back, message)
        return self._reload

    def _forget(self) -> None:
        """Drop last good values: they were another file's."""

    def _map_file(self) -> str:
        size = self.CELLS * CELL_BYTES
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            return error.strerror or str(error)
        try:
            status = os.fstat(fd)
            owners = (0, os.geteuid(), os.stat(os.path.dirname(self.path) or ".").st_uid)
            if not stat.S_ISREG(status.st_mode) or status.st_uid not in owners:
                return "not a segment: no regular file of the directory's owner"
            if status.st_size != size:
                return f"not a segment of layout {LAYOUT}: {status.st_size} bytes instead of {size}"
            mapped = mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ)
        except OSError as error:
            return error.strerror or str(error)
        finally:
            os.close(fd)
        cells = memoryview(mapped).cast("Q")
        if cells[H_MAGIC] != self.MAGIC or cells[H_LAYOUT] != LAYOUT or not cells[H_NONCE] or cells[H_SIZE] != size:
            found = f"magic {cells[H_MAGIC]:x}, layout {cells[H_LAYOUT]}"
            cells.release()
            mapped.close()
            return f"not a segment of layout {LAYOUT}: {found}"
        self._map, self._cells, self._status, self._nonce = mapped, cells, status, cells[H_NONCE]
        return ""
