"""Knows who is connected to a ROUTER on ipc, and cuts one of them.

libzmq tells neither who connects nor can it drop a peer. A socket monitor does the first (ACCEPTED and
DISCONNECTED carry the connection's fd, and `frame.get(SRCFD)` gives the same fd for a message),
`shutdown()` on a dup of that fd the second: libzmq then sees an end of file, announces DISCONNECTED and
gives the memory of half-received messages back.

An fd is only a number, and libzmq reuses it. So each connection is known by its socket's inode as
well, and nothing is ever shut down whose inode or path is another: it may be a client's connection by now.

A socket whose connections are cut, or may end while libzmq has stopped reading them (RCVHWM), must not have
ZMQ_HEARTBEAT_IVL: libzmq 4.3.5 keeps such an engine with its I/O error noted until the messages are read, its
heartbeat timer goes on, and the PING that it wants to send is an abort of the whole process ("Assertion failed:
!_io_error (src/stream_engine_base.cpp:310)"; seen 2026-11: a flooding agent killed agentd within 3 s).
A PING that the peer itself sent among messages not taken yet, before it hung up, ends in the same assertion by way
of its PONG: so the agents' socket has no RCVHWM either (docs/adr/0023). The workers' has one: only our own user
connects there, and our workers send no PING.

Nothing about verbs, sessions or workers may be put here. A TCP listener would need its own `_identify`.

Kind: IO.
"""

import ctypes
import fcntl
import os
import socket
import struct
import sys
import termios
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import zmq

from shared.clock import MS, now_ns
from shared.defaults import (
    AGENT_LOOK_MS,
    AGENT_PEERS_MAX,
    MEMORY_QUIET_MS,
    MEMORY_SETTLE_MS,
    MEMORY_SLACK_BYTES,
    PEER_EVENTS_HWM,
)
from shared.pump import Pump

_EVENT = struct.Struct("=hi")  # zmq_socket_monitor(3): u16 event, i32 value (here: the fd)
_UCRED = struct.Struct("=iII")  # unix(7), SO_PEERCRED: pid, uid, gid
_ACCEPTED = int(zmq.EVENT_ACCEPTED)
_DISCONNECTED = int(zmq.EVENT_DISCONNECTED)


class Loop(Protocol):
    """What this package needs of an event loop."""

    def add_reader(self, fd: int, callback: Callable[[], None]) -> Any: ...
    def remove_reader(self, fd: int) -> Any: ...
    def call_soon(self, callback: Callable[[], None]) -> Any: ...


def inode_of(fd: int) -> int:
    """What this number means now; 0 = nothing."""
    try:
        return os.fstat(fd).st_ino
    except OSError:
        return 0


def reopen(fd: int, inode: int) -> socket.socket | None:
    """A dup of a connection of ZeroMQ's, if the number still means it."""
    try:
        again = os.dup(fd)
    except OSError:
        return None
    if inode_of(again) != inode:
        os.close(again)
        return None
    return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, fileno=again)


def unread_bytes(fd: int, inode: int) -> int:
    """What the kernel holds of a connection's bytes that libzmq has not read yet."""
    connection = reopen(fd, inode)
    if connection is None:
        return 0
    with connection:
        try:
            return int.from_bytes(fcntl.ioctl(connection.fileno(), termios.FIONREAD, bytes(4)), sys.byteorder)
        except OSError:
            return 0


class Peer:
    """One accepted connection. `owner` belongs to the transport: what speaks over it, or None yet."""

    __slots__ = ("accepted_ns", "fd", "gid", "inode", "is_cut", "owner", "pid", "uid")

    def __init__(self, fd: int, inode: int, uid: int, gid: int, pid: int, accepted_ns: int) -> None:
        self.fd = fd
        self.inode = inode
        self.uid = uid
        self.gid = gid
        self.pid = pid
        self.accepted_ns = accepted_ns
        self.is_cut = False
        self.owner: Any = None

    @property
    def address(self) -> str:
        """As libzmq's `Peer-Address` gives it for ipc: the kernel's word, taken at connect."""
        return f"localhost:{self.uid}:{self.gid}:{self.pid}"

    def __str__(self) -> str:
        return f"pid {self.pid} uid {self.uid}"


class Peers:
    """The connections of one ROUTER. Make it before the socket is bound, or early peers are missed.

    `may_connect(uid)`: a connection of any other user is cut before it can say a word (counted).
    `is_shut_out(address)`: nor may one of these processes.
    `on_gone(peer)`: its connection ended, 2 ms after a kill -9 (2026-11); fail what waits for it.
    """

    def __init__(
        self,
        router: "zmq.Socket[bytes]",
        loop: Loop,
        path: str,
        may_connect: Callable[[int], bool],
        on_gone: Callable[[Peer], None],
        *,
        on_refused: Callable[[Peer, str], None] | None = None,
        max_peers: int = AGENT_PEERS_MAX,
        is_shut_out: Callable[[str], bool] = lambda address: False,
        clock: Callable[[], int] = now_ns,
    ) -> None:
        self.by_fd: dict[int, Peer] = {}
        self.refused = 0  # other users' connections, those of processes shut out, and those beyond max_peers
        self._path = os.fsencode(path)
        self._may_connect = may_connect
        self._on_gone = on_gone
        self._on_refused = on_refused
        self.max_peers = max_peers
        self._is_shut_out = is_shut_out
        self._clock = clock
        self._router = router
        endpoint = f"inproc://peers-{id(router):x}"
        router.monitor(endpoint, _ACCEPTED | _DISCONNECTED)
        self._monitor = router.context.socket(zmq.PAIR)
        self._monitor.setsockopt(zmq.RCVHWM, PEER_EVENTS_HWM)
        self._monitor.connect(endpoint)
        self._pump = Pump(self._monitor, loop, self._event, again=zmq.Again, error=zmq.ZMQError)

    def of(self, frame: "zmq.Frame") -> Peer | None:
        """Who sent this frame (received with copy=False); None when that connection is gone already.

        Reads what the monitor has to say first: the fd may have changed hands since.
        """
        self.catch_up()
        try:
            peer = self.by_fd.get(frame.get(zmq.SRCFD))
            if peer is None or frame.get("Peer-Address") != peer.address:
                return None
        except zmq.ZMQError:
            return None
        return peer

    def catch_up(self) -> None:
        """Handle every announcement that is there."""
        while not self._monitor.closed:
            try:
                frames = self._monitor.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._event(frames)

    def cut(self, peer: Peer) -> None:
        """End its connection; `on_gone` follows when libzmq has seen it, or now if it is gone already."""
        peer.is_cut = True
        connection = reopen(peer.fd, peer.inode)
        if connection is None:
            self._forget(peer)
            return
        with connection:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # it has just ended by itself

    def close(self) -> None:
        """Stop watching; the caller closes the ROUTER next."""
        self.catch_up()  # with a full queue libzmq's I/O thread would hold the lock that the next line takes
        self._router.monitor(None, 0)
        self._pump.close()
        self.by_fd.clear()

    # --- announcements ----------------------------------------------------------------------------

    def _event(self, frames: list[bytes]) -> None:
        event, fd = _EVENT.unpack_from(frames[0])
        if event == _ACCEPTED:
            self._accepted(fd)
        elif event == _DISCONNECTED:
            peer = self.by_fd.get(fd)
            if peer is not None:
                self._forget(peer)

    def _accepted(self, fd: int) -> None:
        old = self.by_fd.get(fd)
        if old is not None:
            self._forget(old)  # libzmq closed it without a word, as it does when it refuses a routing id
        try:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, fileno=os.dup(fd))
        except OSError:
            return  # gone again; its DISCONNECTED is in the queue
        with connection:
            peer = self._identify(fd, connection)
            if peer is None:
                return
            if self._is_shut_out(peer.address):
                reason = "shut out for a while"  # a handshake would be refused: until then it would take a place
            elif len(self.by_fd) >= self.max_peers:
                reason = "too many connections"
            elif not self._may_connect(peer.uid):
                reason = "no agent or worker may run as this user"
            else:
                self.by_fd[fd] = peer
                return
            self.refused += 1
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        if self._on_refused is not None:
            self._on_refused(peer, reason)

    def _identify(self, fd: int, connection: socket.socket) -> Peer | None:
        """Who is at the other end, by the kernel's word; None when this is no connection of our socket."""
        try:
            if os.fsencode(connection.getsockname()) != self._path:
                return None
            pid, uid, gid = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
        except (OSError, TypeError):  # no socket at all, or not one of a path: the number was given to something else
            return None
        return Peer(fd, inode_of(connection.fileno()), uid, gid, pid, self._clock())

    def _forget(self, peer: Peer) -> None:
        if self.by_fd.get(peer.fd) is peer:
            del self.by_fd[peer.fd]
            self._on_gone(peer)


# --- memory that no message accounts for -----------------------------------------------------------


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
