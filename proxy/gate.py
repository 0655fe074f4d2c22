"""Decides whether a worker goes on accepting: not while it has few file descriptors left.

    OPEN --few are left--> closed --enough are free again--> OPEN

A part is kept for the connections that are there: each of their requests may need one to an upstream. While
the gate is closed, new connections go to the other workers or wait in the listening queue. At the limit
itself libuv would accept and close everybody who waits, the other workers' clients too, and tell nobody.
The part kept is also what may come between two looks: libuv takes the whole queue in one turn, so that a larger
burst still meets the limit (300 at once with 160 descriptors: 168 were closed, 2026-11).

Which sockets are closed and opened is proxy/worker.py's.

Kind: IO (asks the kernel for a descriptor; nothing else).
"""

import os
import resource
from enum import Enum, auto

from shared import log
from shared.clock import S
from shared.defaults import ACCEPT_LOG_EVERY_S, DESCRIPTORS_KEPT_SHARE
from shared.metrics import W_ACCEPT_PAUSES


class Turn(Enum):
    """What to do after a look."""

    STAY = auto()
    PAUSE = auto()
    RESUME = auto()


class Gate:
    """One per worker; `look` about ten times a second."""

    __slots__ = ("_cells", "_kept", "_limit", "_said_ns", "is_open")

    def __init__(self, cells: "memoryview[int]", wanted_upstream: int) -> None:
        self._cells = cells
        self._limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._kept = min(wanted_upstream, self._limit // DESCRIPTORS_KEPT_SHARE)
        self._said_ns = 0
        self.is_open = True

    def look(self, now: int, connections: int) -> Turn:
        """Once more; `connections` are for the log."""
        left = self._limit - _lowest_free(self._limit)
        if self.is_open and left <= self._kept:
            self.is_open = False
            self._cells[W_ACCEPT_PAUSES] += 1
            if now - self._said_ns >= ACCEPT_LOG_EVERY_S * S:
                self._said_ns = now
                log.line(
                    "proxy.worker",
                    log.WARNING,
                    "few file descriptors left: not accepting",
                    limit=self._limit,
                    left=left,
                    connections=connections,
                )
            return Turn.PAUSE
        if not self.is_open and left > self._kept + self._kept // 4:
            self.is_open = True
            return Turn.RESUME
        return Turn.STAY


def _lowest_free(limit: int) -> int:
    """The kernel gives out the lowest number: how many are in use, nearly; `limit` = all."""
    try:
        fd = os.dup(2)
    except OSError:
        return limit
    os.close(fd)
    return fd
