"""A unix socket that peers dial: who they are by the kernel's word, who may stay, and their connections.

    listening socket --accept, SO_PEERCRED--> may this user, this process, one more? --> zmtp.Connection --> Peer
                                               no: closed before it has said a word, counted

Nothing about verbs, sessions or workers may be put here. A listener on tcp would need peers known by a key instead
of a user.

Kind: IO.
"""

import os
import socket
import struct
from collections.abc import Callable
from typing import Any, Protocol

from shared import log
from shared.clock import now_ns
from shared.defaults import ACCEPT_PAUSE_S, ACCEPT_REST_S, ACCEPTS_AT_ONCE, BACKLOG
from shared.zmtp import Connection, Frame, Turn

_UCRED = struct.Struct("=iII")  # unix(7), SO_PEERCRED: pid, uid, gid


class Loop(Protocol):
    """What this package needs of an event loop."""

    def add_reader(self, fd: int, callback: Callable[[], None], /) -> Any: ...
    def remove_reader(self, fd: int, /) -> Any: ...
    def add_writer(self, fd: int, callback: Callable[[], None], /) -> Any: ...
    def remove_writer(self, fd: int, /) -> Any: ...
    def call_soon(self, callback: Callable[[], None], /) -> Any: ...
    def call_later(self, delay: float, callback: Callable[[], None], /) -> Any: ...


class Peer:
    """One accepted connection. `owner` belongs to the transport: what speaks over it, or None yet."""

    __slots__ = ("accepted_ns", "connection", "gid", "is_cut", "owner", "pid", "uid")

    connection: Connection  # set by whoever made us, at once

    def __init__(self, uid: int, gid: int, pid: int, accepted_ns: int) -> None:
        self.uid = uid
        self.gid = gid
        self.pid = pid
        self.accepted_ns = accepted_ns
        self.is_cut = False
        self.owner: Any = None

    @property
    def address(self) -> tuple[int, int]:
        """Which process of which user: the kernel's word, taken at connect."""
        return self.uid, self.pid

    def __str__(self) -> str:
        return f"pid {self.pid} uid {self.uid}"


class Peers:
    """The connections to one unix socket.

    `may_connect(uid)`: a connection of any other user is closed before it can say a word (counted).
    `is_shut_out(peer)`: nor may one of these processes.
    `on_message(peer, frames)`: a whole message of one that stays.
    `on_gone(peer, reason)`: its connection ended, 2 ms after a kill -9 at most; fail what waits for it. With
    `peer.connection.is_fault` it broke the protocol or a bound.
    `max_bytes`, `max_frames` of one message; `max_unsent` bytes may wait for a peer that does not read.
    """

    def __init__(
        self,
        loop: Loop,
        path: str,
        on_message: Callable[[Peer, list[Frame]], None],
        on_gone: Callable[[Peer, str], None],
        *,
        may_connect: Callable[[int], bool],
        max_peers: int,
        max_bytes: int,
        max_frames: int,
        max_unsent: int,
        is_shut_out: Callable[[Peer], bool] = lambda peer: False,
        on_refused: Callable[[Peer, str], None] = lambda peer, reason: None,
        turn: Turn | None = None,
        clock: Callable[[], int] = now_ns,
    ) -> None:
        self.all: dict[Peer, None] = {}  # in the order of their coming
        self.refused = 0  # other users' connections, those of processes shut out, and those beyond max_peers
        self.max_peers = max_peers
        self._loop = loop
        self._path = path
        self._on_message = on_message
        self._on_gone = on_gone
        self._may_connect = may_connect
        self._is_shut_out = is_shut_out
        self._on_refused = on_refused
        self._max_bytes = max_bytes
        self._max_frames = max_frames
        self._max_unsent = max_unsent
        self._turn = turn
        self._clock = clock
        self._listener: socket.socket | None = None
        self._inode = 0

    def listen(self, mask: int) -> None:
        """Bind, with that umask for the socket's file; what lies there from an earlier life goes. Raises OSError.

        The caller holds the runtime directory's lock: a second bind would steal the path.
        """
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.setblocking(False)
        old_mask = os.umask(mask)  # around bind alone: it would make directories untraversable
        try:
            try:
                os.unlink(self._path)
            except FileNotFoundError:
                pass
            listener.bind(self._path)
            listener.listen(BACKLOG)
        except OSError:
            listener.close()
            raise
        finally:
            os.umask(old_mask)
        self._listener = listener
        self._inode = os.stat(self._path).st_ino
        self._loop.add_reader(listener.fileno(), self._accept)

    def cut(self, peer: Peer) -> None:
        """End its connection; `on_gone` is told before this returns."""
        if not peer.is_cut:
            peer.is_cut = True
            peer.connection.close()
            self._forget(peer, "connection cut")

    def close(self) -> None:
        """Stop listening and end all connections, without a word to `on_gone`; the socket's file goes too."""
        listener, self._listener = self._listener, None
        if listener is None:
            return
        self._loop.remove_reader(listener.fileno())
        listener.close()
        try:
            if os.stat(self._path).st_ino == self._inode:  # a successor's is another
                os.unlink(self._path)
        except FileNotFoundError:
            pass
        for peer in self.all:
            peer.connection.close()
            peer.connection.owner = None
        self.all.clear()

    @property
    def unsent_bytes(self) -> int:
        """That wait for peers that do not read."""
        return sum(peer.connection.unsent_bytes for peer in self.all)

    # --- who comes and goes -----------------------------------------------------------------------

    def _accept(self) -> None:
        for _ in range(ACCEPTS_AT_ONCE):
            if self._listener is None:
                return
            try:
                sock, _ = self._listener.accept()
                self._accepted(sock)
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:  # no descriptors left: somebody has to leave first
                log.line("agentd.peers", log.WARNING, f"cannot accept: {error.strerror}", path=self._path)
                self._rest(ACCEPT_PAUSE_S)
                return
        self._rest(ACCEPT_REST_S)  # the others wait in the kernel, and those who are in are served

    def _rest(self, seconds: float) -> None:
        if self._listener is not None:
            self._loop.remove_reader(self._listener.fileno())
            self._loop.call_later(seconds, self._accept_again)

    def _accept_again(self) -> None:
        if self._listener is not None:
            self._loop.add_reader(self._listener.fileno(), self._accept)

    def _accepted(self, sock: socket.socket) -> None:
        pid, uid, gid = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
        peer = Peer(uid, gid, pid, self._clock())
        reason = self._why_not(peer)
        if reason:
            self.refused += 1
            sock.close()
            self._on_refused(peer, reason)
            return
        sock.setblocking(False)
        try:
            peer.connection = Connection(
                sock,
                self._loop,
                b"ROUTER",
                on_message=self._message,
                on_closed=self._closed,
                max_bytes=self._max_bytes,
                max_frames=self._max_frames,
                max_unsent=self._max_unsent,
                turn=self._turn,
            )
        except OSError:
            sock.close()
            raise
        peer.connection.owner = peer
        self.all[peer] = None

    def _why_not(self, peer: Peer) -> str:
        if self._is_shut_out(peer):
            return "shut out for a while"
        if len(self.all) >= self.max_peers:
            return "too many connections"
        if not self._may_connect(peer.uid):
            return "no agent or worker may run as this user"
        return ""

    def _message(self, connection: Connection, frames: list[Frame]) -> None:
        self._on_message(connection.owner, frames)

    def _closed(self, connection: Connection, reason: str) -> None:
        self._forget(connection.owner, reason)

    def _forget(self, peer: Peer, reason: str) -> None:
        if peer in self.all:
            del self.all[peer]
            peer.connection.owner = None  # they know each other: without this only the collector frees them
            self._on_gone(peer, reason)
