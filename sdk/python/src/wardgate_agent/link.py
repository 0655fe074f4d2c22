"""The connection to agentd: a raw DEALER on the event loop, and its monitor.

A ZeroMQ socket's FD is edge-triggered: what arrives while we send is never announced. So the socket is
read until it says EAGAIN, after sending as well, with a bound per wake-up after which the loop turns.
IMMEDIATE keeps messages from waiting for a later agentd; ZeroMQ itself connects again, with back-off.
No routing id is ever set: agentd names its peers.

Kind: IO.
"""

import asyncio
import os
import stat
import struct
from collections.abc import Callable

import zmq

from wardgate_agent import wire

_WATCHED = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED
_EVENT = struct.Struct("=hi")
# As plain numbers: a look-up in an Enum costs ten times as much on CPython 3.11.
_NOBLOCK, _SNDMORE, _EVENTS, _POLLIN = int(zmq.NOBLOCK), int(zmq.SNDMORE), int(zmq.EVENTS), int(zmq.POLLIN)


class Link:
    """One connection, made again by ZeroMQ whenever it is lost.

    `on_message(frames)` for every message; `on_read()` when all were read, to send what they led to: it
    answers True if it sent something, so that the socket must be read again. `on_up`, `on_down`: the
    connection is there, is gone.
    """

    def __init__(
        self,
        endpoint: str,
        loop: asyncio.AbstractEventLoop,
        *,
        on_message: Callable[[list[bytes]], None],
        on_read: Callable[[], bool],
        on_up: Callable[[], None],
        on_down: Callable[[], None],
        backoff_max_s: float,
    ) -> None:
        self.endpoint = endpoint
        self._loop = loop
        self._on_message = on_message
        self._on_read = on_read
        self._on_up = on_up
        self._on_down = on_down
        self._backoff_max_ms = int(backoff_max_s * 1000)
        self._context = zmq.Context()
        self._socket: zmq.Socket[bytes] | None = None
        self._monitor: zmq.Socket[bytes] | None = None
        self._fd = self._monitor_fd = -1
        self._is_armed = False

    @property
    def is_open(self) -> bool:
        return self._socket is not None

    def open(self) -> None:
        """Make a socket and begin to connect; it goes on for ever."""
        socket = self._context.socket(zmq.DEALER)
        try:
            socket.setsockopt(zmq.LINGER, 0)
            socket.setsockopt(zmq.IMMEDIATE, 1)
            socket.setsockopt(zmq.SNDHWM, wire.HWM_MESSAGES)
            socket.setsockopt(zmq.RCVHWM, wire.HWM_MESSAGES)
            socket.setsockopt(zmq.MAXMSGSIZE, wire.MAX_MESSAGE_BYTES)
            socket.setsockopt(zmq.RECONNECT_IVL, int(wire.BACKOFF_S * 1000))
            socket.setsockopt(zmq.RECONNECT_IVL_MAX, self._backoff_max_ms)
            socket.setsockopt(zmq.HANDSHAKE_IVL, 2_000)
            monitor = socket.get_monitor_socket(_WATCHED)  # before connect: an I/O thread does that
        except zmq.ZMQError:
            socket.close(0)
            raise
        try:
            socket.connect(self.endpoint)
        except zmq.ZMQError:
            socket.disable_monitor()
            monitor.close(0)
            socket.close(0)
            raise
        self._socket, self._monitor = socket, monitor
        self._fd, self._monitor_fd = int(socket.fileno()), int(monitor.fileno())
        self._loop.add_reader(self._fd, self.drain)
        self._loop.add_reader(self._monitor_fd, self._watch)
        self._loop.call_soon(self._watch)
        self._rearm()

    def close(self) -> None:
        """Close the socket; what it had not sent yet is dropped."""
        if self._socket is not None and self._monitor is not None:
            self._loop.remove_reader(self._fd)
            self._loop.remove_reader(self._monitor_fd)
            self._socket.disable_monitor()
            self._monitor.close(0)
            self._socket.close(0)
            self._socket = self._monitor = None

    def farewell(self, wait_s: float) -> None:
        """Close, giving ZeroMQ so long to write what was said last."""
        if self._socket is not None:
            self._socket.setsockopt(zmq.LINGER, int(wait_s * 1000))
            self._loop.remove_reader(self._fd)
            if self._monitor is not None:
                self._loop.remove_reader(self._monitor_fd)
                self._socket.disable_monitor()
                self._monitor.close(0)
            self._socket.close()
            self._socket = self._monitor = None
        self._context.term()

    def send(self, frames: list[bytes]) -> bool:
        """True if ZeroMQ took the message whole; False without a connection or at the high-water mark."""
        socket = self._socket
        if socket is None:
            return False
        try:
            if len(frames) == 2:
                socket.send(frames[0], _NOBLOCK | _SNDMORE)
                socket.send(frames[1], _NOBLOCK)
            else:
                socket.send_multipart(frames, zmq.NOBLOCK)
        except zmq.ZMQError:
            return False
        finally:
            self._rearm()
        return True

    def drain(self) -> None:
        """Read up to DRAIN_MESSAGES messages, then let the loop turn."""
        self._is_armed = True  # what is sent from here is followed by a read anyway
        is_empty = False
        try:
            is_empty = self._read()
        finally:
            self._is_armed = False
            if not is_empty:  # the bound was reached, or one message's fault must not leave the rest unread
                self._rearm()

    def _read(self) -> bool:
        left = wire.DRAIN_MESSAGES
        is_likely = True  # somebody has said that there is a message
        while (socket := self._socket) is not None:
            # Asking before the next one: 1.3 us, where the exception for an empty socket costs 3.5; and frames say by
            # themselves whether more follow (pyzmq 27.3, 2026-11).
            is_there = is_likely or int(socket.getsockopt(_EVENTS)) & _POLLIN
            is_likely = False
            frames = _receive(socket) if is_there else None
            if frames is None:
                if not self._on_read():
                    return True
                continue
            self._on_message(frames)
            left -= 1
            if not left:
                self._on_read()
                return False
        return True

    def _rearm(self) -> None:
        if not self._is_armed and self._socket is not None:
            self._is_armed = True
            self._loop.call_soon(self.drain)

    def _watch(self) -> None:
        while (monitor := self._monitor) is not None:
            try:
                event, _ = _EVENT.unpack(monitor.recv_multipart(zmq.NOBLOCK)[0])
            except zmq.ZMQError:
                return
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                if self._socket is not None:
                    self._socket.getsockopt(zmq.EVENTS)  # takes up the new pipe, so that a send finds it
                self._on_up()
            else:
                self._on_down()


def _receive(socket: "zmq.Socket[bytes]") -> list[bytes] | None:
    frames = []
    more = True
    try:
        while more:
            frame = socket.recv(_NOBLOCK, False)
            frames.append(frame.bytes)
            more = frame.more
    except zmq.Again:
        return None
    return frames


def endpoint_problem(endpoint: str) -> str | None:
    """Why nobody could ever connect to this endpoint; None if it looks right."""
    scheme, separator, rest = endpoint.partition("://")
    if not separator or scheme not in ("ipc", "tcp") or not rest:
        return f"{endpoint!r} is not ipc://PATH or tcp://HOST:PORT"
    if scheme == "ipc" and len(rest.encode()) > wire.SUN_PATH_MAX:
        return f"the path in {endpoint!r} is longer than {wire.SUN_PATH_MAX} bytes, the limit of unix sockets"
    host, _, port = rest.rpartition(":")
    if scheme == "tcp" and not (host and port.isdigit()):
        return f"{endpoint!r} has no host or no port"
    return None


def why_unreachable(endpoint: str) -> str:
    """A guess for the log at why there is no connection yet."""
    scheme, _, path = endpoint.partition("://")
    if scheme != "ipc":
        return "is agentd running, and listening there?"
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return "no such socket: is agentd running, with this runtime directory?"
    except PermissionError:
        return "permission denied: may this user enter the directory? (group wardgate-agent)"
    except OSError as error:
        return str(error.strerror)
    if not stat.S_ISSOCK(mode):
        return "this is no socket"
    if not os.access(path, os.W_OK):
        return "permission denied: may this user write to the socket? (group wardgate-agent)"
    return "is agentd running?"
