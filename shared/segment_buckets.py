"""Limits as workers ask them: token buckets that all share, and counts of what is under way in each.

    Limits(slot)           one per worker; `limit(name)` finds a row of the table
    Limit.take(key, now)   one token of the key's bucket         exact over all workers, under a lock
    Limit.enter(key)       one more under way; `leave` its end   exact over all workers, without a lock

**Buckets** stand in sets of 16; a keyed hash (the seed is the segment's) says in which, so that no client can aim
at another's. A key that has no row gets a free one, or that of a bucket which is full again: forgetting it loses
nothing. When all 16 are in use the key shares the limit's one overflow bucket: it may be refused for others, but
nobody gets more by filling the table. A set's lock is never waited for where its holder is stopped (the set has a
second one then), and a holder that is killed leaves a row that is whole: the time is stored before the tokens,
so what can be lost is a refill, never a token that was taken.

**Uses** are rows of a worker's own slot, so a killed worker's count goes with its slot. Who enters adds one first
and then sums over all slots; over the maximum he takes it back. Two at the last place in the same microsecond may
so both be refused, but never are there more than the maximum.

What is limited, and what a refusal looks like, is decided in proxy/limits.py.

Kind: IO.
"""

import fcntl
import os
import struct
import threading
import time
from collections.abc import Sequence
from hashlib import blake2b
from typing import Final

from shared.clock import MS, now_ns
from shared.defaults import (
    LIMIT_KEY_CACHED_BYTES,
    LIMIT_KEYS_CACHED,
    LIMIT_LOCK_DEAF_MS,
    LIMIT_LOCK_NAP_US,
    LIMIT_LOCK_SPINS,
    LIMIT_LOCK_WAIT_MS,
    LIMIT_ROWS,
    USE_ROWS,
)
from shared.errors import SegmentError
from shared.metrics import L_ADMITTED, L_NOW, L_OVERFLOW, L_REFUSED
from shared.ratelimit import ONE, refilled
from shared.segment_limits import GENERATION, UNREADABLE, LimitRow, read_limits, try_lock
from shared.wire.segment import (
    BUCKET_SET_CELLS,
    BUCKETS,
    CELL_BYTES,
    LH_SEED,
    LH_SLOTS,
    LIMIT_COUNTS,
    LIMIT_HEAD,
    LIMIT_SLOTS,
    LIMITS,
    LR_OVERFLOW,
    LS_USES,
    SET_ROWS,
    USE_SET_CELLS,
)

_SEED: Final = LIMIT_HEAD.at + LH_SEED
_SLOTS: Final = LIMIT_HEAD.at + LH_SLOTS
_USE_SETS: Final = USE_ROWS // SET_ROWS
_OWNERS, _AT, _TOKENS = SET_ROWS, 2 * SET_ROWS, 3 * SET_ROWS
_SECOND_LOCK: Final = CELL_BYTES  # bytes after the first one
_ROW_BITS: Final = LIMIT_ROWS - 1
_HASH = struct.Struct("=QQ")
_KEY = struct.Struct("=II")

# What `enter` answers where nothing was counted: over the maximum, or no row was free.
REFUSED: Final = 0


class Limits:
    """One worker's view of all limits. `cells`: the whole segment, as inherited from the arbiter."""

    def __init__(self, cells: "memoryview[int]", fd: int, slot: int) -> None:
        self.cells = cells
        self.slot = slot
        self._fd = fd
        self._seed = struct.pack("=QQ", cells[_SEED], cells[_SEED + 1])
        self._limits: list[Limit] = []
        self._generation = -1
        self._deaf_until: dict[int, int] = {}
        # Taking it is an atomic instruction, and so a fence: what was stored before is seen by others from here on.
        self.fence = threading.Lock()
        self.rows: list[LimitRow] = []
        self.refresh()

    def limit(self, name: str) -> "Limit":
        """The limit of that name. Raises SegmentError for one that the arbiter has not put into the table."""
        for number, row in enumerate(self.rows):
            if row.name == name:
                limit = Limit(self, number)
                limit.configure(row)
                self._limits.append(limit)
                return limit
        raise SegmentError(f"there is no limit {name!r} in the segment")

    def refresh(self) -> None:
        """Read the table again, if it has changed. Called for each request: one comparison."""
        generation = self.cells[GENERATION]
        if generation != self._generation:
            self._generation = generation
            self.rows = read_limits(self.cells, self.rows)
            for limit in self._limits:
                limit.configure(self.rows[limit.number])

    def hash(self, number: int, epoch: int, key: bytes) -> tuple[int, int]:
        """Two 64-bit numbers; which, only who knows the seed can say."""
        digest = blake2b(_KEY.pack(number, epoch) + key, digest_size=16, key=self._seed).digest()
        found: tuple[int, int] = _HASH.unpack(digest)
        return found

    # --- locks --------------------------------------------------------------------------------------

    def lock(self, at_byte: int) -> int:
        """The byte that is locked now for what begins at `at_byte`; -1 = both of its locks are held."""
        try:
            fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, at_byte)
            return at_byte
        except OSError:
            return self._wait(at_byte)

    def unlock(self, at_byte: int) -> None:
        """Give it back."""
        fcntl.lockf(self._fd, fcntl.LOCK_UN, 1, at_byte)

    def _wait(self, at_byte: int) -> int:
        """Another worker is in there: a microsecond, or as long as it is preempted. Is it stopped, or is there no
        end to it, the second lock is taken instead: those who still run exclude each other by that one."""
        now = now_ns()
        is_deaf = bool(self._deaf_until) and self._deaf_until.get(at_byte, 0) > now
        locked = self._patiently(at_byte, now if is_deaf else now + LIMIT_LOCK_WAIT_MS * MS)
        if locked > 0:
            return at_byte
        if locked < 0 and not is_deaf:
            if len(self._deaf_until) > LIMIT_ROWS:
                self._deaf_until.clear()
            self._deaf_until[at_byte] = now_ns() + LIMIT_LOCK_DEAF_MS * MS
        second = at_byte + _SECOND_LOCK
        return second if self._patiently(second, now_ns() + LIMIT_LOCK_WAIT_MS * MS) > 0 else -1

    def _patiently(self, at_byte: int, until_ns: int) -> int:
        """1 = locked, 0 = its holder is stopped, -1 = not until then."""
        fd = self._fd
        for _ in range(LIMIT_LOCK_SPINS):
            if try_lock(fd, at_byte):
                return 1
        while not try_lock(fd, at_byte):
            if _is_stopped(holder(fd, at_byte)):
                return 0
            if now_ns() >= until_ns:
                return -1
            time.sleep(LIMIT_LOCK_NAP_US / 1e6)
        return 1


class Limit:
    """One row of the table, as one worker asks it."""

    __slots__ = ("_all", "_base", "_counts", "_keys", "_owner", "capacity", "number", "refill", "row")

    def __init__(self, all_limits: Limits, number: int) -> None:
        self.number = number
        self._all = all_limits
        self._base = LIMIT_SLOTS.at + all_limits.slot * LIMIT_SLOTS.row_cells
        self._counts = self._base + number * LIMIT_COUNTS
        self._keys: dict[bytes, tuple[int, int]] = {}
        self._owner = 0
        self.capacity = self.refill = 0
        self.row = UNREADABLE

    def configure(self, row: LimitRow) -> None:
        """The numbers that are in effect from now on."""
        self.row = row
        self.capacity = row.capacity
        self.refill = row.refill
        owner = self.number << 32 | row.epoch
        if owner != self._owner:
            self._owner = owner
            self._keys.clear()

    def place(self, key: bytes) -> tuple[int, int]:
        """(set, tag) of a key."""
        place = self._keys.get(key)
        if place is None:
            one, other = self._all.hash(self.number, 0 if self.row.counts_uses else self.row.epoch, key)
            if self.row.counts_uses:
                # The limit's number stands in the tag: two limits never take each other's row.
                place = one % _USE_SETS * USE_SET_CELLS + LS_USES, (other & ~_ROW_BITS | self.number) or ONE
            else:
                place = BUCKETS.at + one % BUCKETS.rows * BUCKET_SET_CELLS, other or ONE
            if len(key) <= LIMIT_KEY_CACHED_BYTES:
                if len(self._keys) >= LIMIT_KEYS_CACHED:
                    self._keys.clear()
                self._keys[key] = place
        return place

    # --- tokens -------------------------------------------------------------------------------------

    def take(self, key: bytes, now: int) -> tuple[bool, int]:
        """(whether there was a token for this key, how much is left in millionths)."""
        place = self._keys.get(key)
        at, tag = place if place is not None else self.place(key)
        cells = self._all.cells
        locked = self._all.lock(at * CELL_BYTES)
        if locked < 0:  # two workers are stopped in this very set: nobody can say, and who cannot say refuses
            cells[self._counts + L_REFUSED] += 1
            return False, 0
        try:
            tags = cells[at : at + SET_ROWS].tolist()
            if tag in tags:
                row = at + tags.index(tag)
                taken, left = self._take(row + _AT, row + _TOKENS, now)
            else:
                found = self._room(at, tags, now)
                if found:
                    taken, left = self._first(found, tag, now)
                else:
                    taken, left = False, -1
        finally:
            self._all.unlock(locked)
        if left < 0:
            taken, left = self._overflow(now)
        cells[self._counts + (L_ADMITTED if taken else L_REFUSED)] += 1
        return taken, left

    def _take(self, at: int, tokens: int, now: int) -> tuple[bool, int]:
        cells = self._all.cells
        has, since = refilled(cells[tokens], cells[at], now, self.capacity, self.refill)
        if has < ONE:
            return False, has
        cells[at] = since  # first: killed between the two, this bucket has lost a refill and kept its debt
        cells[tokens] = has - ONE
        return True, has - ONE

    def _first(self, row: int, tag: int, now: int) -> tuple[bool, int]:
        """The first token of a key that had no row: its bucket was full."""
        if self.capacity < ONE:
            return False, 0
        cells = self._all.cells
        cells[row] = 0  # free, until it is whole
        cells[row + _OWNERS] = self._owner
        cells[row + _AT] = now
        cells[row + _TOKENS] = self.capacity - ONE
        cells[row] = tag
        return True, self.capacity - ONE

    def _room(self, at: int, tags: list[int], now: int) -> int:
        """A row of the set that is free, or whose bucket is full again; 0 = there is none."""
        if 0 in tags:
            return at + tags.index(0)
        cells = self._all.cells
        rows = self._all.rows
        for row in range(at, at + SET_ROWS):
            owner = cells[row + _OWNERS]
            number = owner >> 32
            if number >= len(rows):
                continue  # of a limit that this worker's reading of the table does not have yet
            limit = rows[number]
            if owner & 0xFFFF_FFFF != limit.epoch or not limit.is_in_use:
                return row
            if refilled(cells[row + _TOKENS], cells[row + _AT], now, limit.capacity, limit.refill)[0] >= limit.capacity:
                return row
        return 0

    def _overflow(self, now: int) -> tuple[bool, int]:
        """From the one bucket of all keys that found no row."""
        cells = self._all.cells
        cells[self._counts + L_OVERFLOW] += 1
        row = LIMITS.at + self.number * LIMITS.row_cells + LR_OVERFLOW
        locked = self._all.lock(row * CELL_BYTES)
        if locked < 0:
            return False, 0
        try:
            if cells[row] != self._owner + 1:  # never used in this epoch: full
                cells[row + 1] = now
                cells[row + 2] = self.capacity
                cells[row] = self._owner + 1
            return self._take(row + 1, row + 2, now)
        finally:
            self._all.unlock(locked)

    # --- uses ---------------------------------------------------------------------------------------

    def enter(self, key: bytes) -> int:
        """One more of this key is under way: what `leave` wants to hear, or REFUSED."""
        at, tag = self.place(key)
        limits = self._all
        cells = limits.cells
        own = self._base + at
        tags = cells[own : own + SET_ROWS].tolist()
        row = own + tags.index(tag) if tag in tags else self._free_use(own)
        if not row:
            cells[self._counts + L_OVERFLOW] += 1
            cells[self._counts + L_REFUSED] += 1
            return REFUSED
        if cells[row] != tag:
            cells[row] = tag
        cells[row + SET_ROWS] += 1
        with limits.fence:
            pass
        total = 0
        begin = LIMIT_SLOTS.at + at
        for place in range(begin, begin + cells[_SLOTS] * LIMIT_SLOTS.row_cells, LIMIT_SLOTS.row_cells):
            tags = cells[place : place + SET_ROWS].tolist()
            if tag in tags:
                total += cells[place + SET_ROWS + tags.index(tag)]
        if total > self.capacity:
            cells[row + SET_ROWS] -= 1
            cells[self._counts + L_REFUSED] += 1
            return REFUSED
        cells[self._counts + L_ADMITTED] += 1
        cells[self._counts + L_NOW] += 1
        return row

    def leave(self, row: int) -> None:
        """What `enter` answered is over."""
        cells = self._all.cells
        cells[row + SET_ROWS] -= 1
        cells[self._counts + L_NOW] -= 1

    def _free_use(self, own: int) -> int:
        """A row of the worker's own set that counts nothing; 0 = there is none."""
        counts = self._all.cells[own + SET_ROWS : own + 2 * SET_ROWS].tolist()
        return own + counts.index(0) if 0 in counts else 0


def active_keys(cells: "memoryview[int]", rows: Sequence[LimitRow], now: int) -> list[int]:
    """Per limit: how many keys have a bucket that is not full. Without a lock: a number for people."""
    found = [0] * len(rows)
    for at in range(BUCKETS.at, BUCKETS.end, BUCKET_SET_CELLS):
        tags = cells[at : at + SET_ROWS].tolist()
        if not any(tags):
            continue
        for row, tag in enumerate(tags, at):
            owner = cells[row + _OWNERS]
            limit = rows[owner >> 32] if owner >> 32 < len(rows) else UNREADABLE
            if tag and limit.is_in_use and limit.epoch == owner & 0xFFFF_FFFF:
                tokens, since = cells[row + _TOKENS], cells[row + _AT]
                found[owner >> 32] += refilled(tokens, since, now, limit.capacity, limit.refill)[0] < limit.capacity
    return found


# --- who holds a lock -------------------------------------------------------------------------------

_FLOCK = struct.Struct("hhqqi4x")  # struct flock of x86-64 Linux: type, whence, start, length, pid


def holder(fd: int, at_byte: int) -> int:
    """The process that has the lock of a byte; 0 = nobody."""
    asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, at_byte, 1, 0)
    kind, _, _, _, pid = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_GETLK, asked))
    return 0 if kind == fcntl.F_UNLCK else int(pid)


def _is_stopped(pid: int) -> bool:
    """By a signal or a debugger: it will not go on by itself."""
    if pid <= 0:
        return False
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[:1] in ([b"T"], [b"t"])
    except OSError:
        return False
