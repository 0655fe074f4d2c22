"""Moves messages between a raw ZeroMQ socket and an event loop, without either one's imports.

A ZeroMQ socket's FD is edge-triggered: a message that arrives while we send is never announced. So
after every send, and after a drain that stopped at its bound, one more look is scheduled. Bounded
drains (`DRAIN_MESSAGES`) keep a flood from holding the loop; only one re-arm is ever pending.

Measured 2026-11: add_reader on the FD costs 11-13 us a round trip at 16 in flight, zmq.asyncio 26-34.

Kind: IO (plumbing without policy; socket and loop are given).
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from shared.defaults import DRAIN_MESSAGES

_NOBLOCK = 1  # zmq.NOBLOCK; this package may not import zmq


class _Loop(Protocol):
    def add_reader(self, fd: int, callback: Callable[[], None]) -> Any: ...
    def remove_reader(self, fd: int) -> Any: ...
    def call_soon(self, callback: Callable[[], None]) -> Any: ...


class Pump:
    """Calls `on_message(frames)` for every message; `send(frames)` answers False when it would block.

    `again` is zmq.Again, `error` zmq.ZMQError: what a send raises for EAGAIN or EHOSTUNREACH
    (ROUTER_MANDATORY); both are outcomes, not exceptions, for the caller.
    `copy=False` hands out zmq.Frame objects (for Peer-Address and uncopied bodies).
    """

    __slots__ = ("_again", "_armed", "_closed", "_copy", "_error", "_fd", "_loop", "_on_message", "_recv", "socket")

    def __init__(
        self,
        socket: Any,
        loop: _Loop,
        on_message: Callable[[list[Any]], None],
        *,
        again: type[Exception],
        error: type[Exception],
        copy: bool = True,
    ) -> None:
        self.socket = socket
        self._loop = loop
        self._on_message = on_message
        self._again = again
        self._error = error
        self._copy = copy
        self._armed = False
        self._closed = False
        self._recv = socket.recv_multipart
        self._fd = socket.fileno()
        loop.add_reader(self._fd, self.drain)
        self._rearm()

    def drain(self) -> None:
        """Receive up to DRAIN_MESSAGES messages, then let the loop turn."""
        recv, on_message, copy = self._recv, self._on_message, self._copy
        for _ in range(DRAIN_MESSAGES):
            if self._closed:
                return
            try:
                frames = recv(_NOBLOCK, copy)
            except self._again:
                return
            try:
                on_message(frames)
            except BaseException:
                self._rearm()  # a bug in one message's handler must not leave the rest unread for ever
                raise
        self._rearm()

    def _look_again(self) -> None:
        self._armed = False
        self.drain()

    def _rearm(self) -> None:
        if not self._armed and not self._closed:
            self._armed = True
            self._loop.call_soon(self._look_again)

    def send(self, frames: Sequence[Any]) -> bool:
        """True if ZeroMQ took the message whole; False at the high-water mark or for an unknown peer."""
        if self._closed:
            return False
        try:
            self.socket.send_multipart(frames, _NOBLOCK)
        except self._again:
            return False
        except self._error:
            return False
        finally:
            if not self._armed:
                self._rearm()
        return True

    def close(self) -> None:
        """Stop reading and close the socket; messages still queued are dropped (LINGER=0)."""
        if not self._closed:
            self._closed = True
            self._loop.remove_reader(self._fd)
            self.socket.close(0)
