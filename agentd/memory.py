"""Finds out who fills our memory with messages that never end.

Kind: IO (reads this process's size; who is to be blamed is told by the transports).
"""

import ctypes
import os
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import NamedTuple

from shared.clock import MS
from shared.defaults import AGENT_LOOK_MS, MEMORY_QUIET_MS, MEMORY_SETTLE_MS, MEMORY_SLACK_BYTES


class Suspect(NamedTuple):
    """A peer that may be filling our memory: what it has under way, when it last finished a message."""

    unread_bytes: int
    last_seen_ns: int
    cut: Callable[[], None]
    who: Hashable  # the same at each look


def resident_bytes() -> int:
    """This process's RSS (proc(5), statm)."""
    with open("/proc/self/statm", "rb", buffering=0) as file:
        return int(file.read(128).split()[1]) * _PAGE


def trim() -> None:
    """Give the kernel back what was freed: glibc keeps it, above all in the arena of libzmq's I/O thread."""
    if _malloc_trim is not None:
        _malloc_trim(0)


_PAGE = os.sysconf("SC_PAGE_SIZE")
_malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's


class MemoryGuard:
    """Finds peers in the middle of a multipart message that never ends.

    libzmq shows a message only when it is whole, and its size limit is per frame: 619 MiB seen in three
    seconds (2026-11). What it costs shows in the RSS alone; who it is shows in the kernel's receive queue
    (not empty) and in that no whole message has come since we began to look. We begin at half the slack, so
    that a good peer's time does not count from its last message but from the large one that it is sending;
    beyond the slack the one that has been at it longest is cut, beyond twice the slack all of them are.
    Growth for which no such peer is found for a while is ours, and becomes the new ground.
    """

    def __init__(
        self,
        *,
        slack_bytes: int = MEMORY_SLACK_BYTES,
        rss_bytes: Callable[[], int] = resident_bytes,
        accounted_bytes: Callable[[], int] = lambda: 0,
        give_back: Callable[[], None] = trim,
    ) -> None:
        self.cuts = 0
        self._slack = slack_bytes
        self._rss = rss_bytes
        self._accounted = accounted_bytes
        self._give_back = give_back
        self._ground = 0
        self._looked_ns = 0
        self._over_ns = 0  # since when there is more than the slack and nobody to be blamed; 0 = there is not
        self._cut_ns = 0
        self._cut_level = 0  # at the latest cut; 0 = what it freed was given back
        self._busy: dict[Hashable, tuple[int, int]] = {}  # under way: (its last message then, since when)
        self._sources: list[Callable[[], Iterable[Suspect]]] = []

    def watch(self, source: Callable[[], Iterable[Suspect]]) -> None:
        """Ask this transport for its peers when memory grows."""
        self._sources.append(source)

    def forget(self, source: Callable[[], Iterable[Suspect]]) -> None:
        """The transport is closed."""
        self._sources.remove(source)

    def look(self, now: int) -> None:
        """Call it every MEMORY_LOOK_MS: it reads one number of the kernel's, unless that has grown."""
        late = now - self._looked_ns > 3 * AGENT_LOOK_MS * MS
        self._looked_ns = now
        level = self._rss() - self._accounted()
        if self._cut_level and now - self._cut_ns >= MEMORY_QUIET_MS * MS:
            self._cut_level = 0
            self._give_back()
            level = self._rss() - self._accounted()
        if level < self._ground or not self._ground:
            self._ground = level
        growth = level - self._ground
        if growth <= self._slack // 2:
            self._busy.clear()
            self._over_ns = 0
            return
        if late:
            self._busy.clear()
            return  # we stood still ourselves: unread bytes are our doing
        suspects = self._long_busy(now)
        if growth <= self._slack:
            return
        if self._cut_level and level - self._cut_level <= self._slack // 4:
            return  # what the latest cut freed is on its way
        if suspects:
            self._cut(suspects if growth > 2 * self._slack else suspects[:1], now, level)
        elif not self._over_ns:
            self._over_ns = now
        elif now - self._over_ns >= MEMORY_SETTLE_MS * MS:
            self._over_ns = 0
            self._ground = level

    def _long_busy(self, now: int) -> list[Suspect]:
        """Who has had a message under way for MEMORY_QUIET_MS, the longest first."""
        before, self._busy = self._busy, {}
        found = []
        for source in self._sources:
            for suspect in source():
                seen_ns, since_ns = before.get(suspect.who, (0, 0))
                if seen_ns != suspect.last_seen_ns:
                    if not suspect.unread_bytes:
                        continue
                    since_ns = now
                self._busy[suspect.who] = suspect.last_seen_ns, since_ns
                if suspect.unread_bytes and now - since_ns >= MEMORY_QUIET_MS * MS:
                    found.append((since_ns, suspect))
        found.sort(key=lambda one: one[0])
        return [suspect for _, suspect in found]

    def _cut(self, suspects: Sequence[Suspect], now: int, level: int) -> None:
        for suspect in suspects:
            self._busy.pop(suspect.who, None)
            suspect.cut()
        self.cuts += len(suspects)
        self._cut_ns, self._cut_level, self._over_ns = now, level, 0
