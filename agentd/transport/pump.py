"""Moves messages between a raw ZeroMQ socket and an event loop, without either one's imports.

A ZeroMQ socket's FD is edge-triggered: a message that arrives while we send is never announced. So
there is a look after every send, and one is scheduled after a drain that stopped at its bound. Bounded
drains (`DRAIN_MESSAGES`) keep a flood from holding the loop; only one re-arm is ever pending.

Measured 2026-11: add_reader on the FD costs 11-13 us a round trip at 16 in flight, zmq.asyncio 26-34.

Kind: IO (plumbing without policy; socket and loop are given).
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from shared.defaults import DRAIN_MESSAGES
from shared.turn import CallsSoon, Turn

# Of zmq, which this package may not import.
REPLY_FRAMES_MAX = 16  # the delimiter, the JSON, and what makes clear that it is wrong
_NOBLOCK = 1
_SNDMORE = 2
_EVENTS = 15
_POLLIN = 1


class _Loop(CallsSoon, Protocol):
    def add_reader(self, fd: int, callback: Callable[[], None]) -> Any: ...
    def remove_reader(self, fd: int) -> Any: ...


# Frame by frame: pyzmq's recv_multipart and send_multipart look flags and options up as enums
# (1.9 us instead of 3.0 for three frames, 1.3 instead of 3.9 to send them, 2026-11).


def receive_bytes(socket: Any) -> Callable[[], list[Any]]:
    """Takes a message off the socket as bytes."""
    recv = socket.recv

    def receive() -> list[Any]:
        frames = []
        while True:
            frame = recv(_NOBLOCK, False)
            frames.append(frame.bytes)
            if not frame.more:
                return frames

    return receive


def receive_reply(socket: Any) -> Callable[[], list[Any]]:
    """Takes a v1 agent's message as bytes: all of it, or REPLY_FRAMES_MAX frames of one that has more; its socket has
    to be closed then."""
    recv = socket.recv

    def receive() -> list[Any]:
        frames: list[Any] = []
        for _ in range(REPLY_FRAMES_MAX):
            frame = recv(_NOBLOCK, False)
            frames.append(frame.bytes)
            if not frame.more:
                break
        return frames

    return receive


class Pump:
    """Calls `on_message(frames)` for every message; `send(frames)` answers False when it would block.

    `again` is zmq.Again, `error` zmq.ZMQError: what a send raises for EAGAIN or EHOSTUNREACH
    (ROUTER_MANDATORY); both are outcomes, not exceptions, for the caller.
    `receive` takes one message off the socket where `receive_bytes` does not do; `linger_ms` is
    for what is unsent at the end; `turn` is told of each drain.
    """

    __slots__ = (
        "_again",
        "_armed",
        "_closed",
        "_error",
        "_fd",
        "_linger_ms",
        "_look",
        "_loop",
        "_on_message",
        "_receive",
        "_send",
        "_turn",
        "socket",
    )

    def __init__(
        self,
        socket: Any,
        loop: _Loop,
        on_message: Callable[[list[Any]], None],
        *,
        again: type[Exception],
        error: type[Exception],
        receive: Callable[[], list[Any]] | None = None,
        linger_ms: int = 0,
        turn: Turn | None = None,
    ) -> None:
        self.socket = socket
        self._loop = loop
        self._on_message = on_message
        self._again = again
        self._error = error
        self._linger_ms = linger_ms
        self._turn = turn
        self._armed = False
        self._closed = False
        self._send = socket.send
        self._receive = receive if receive is not None else receive_bytes(socket)
        self._look = socket.getsockopt
        self._fd = socket.fileno()
        loop.add_reader(self._fd, self.drain)
        self._rearm()

    def drain(self) -> None:
        """Receive up to DRAIN_MESSAGES messages, then let the loop turn."""
        turn = self._turn
        if turn is None:
            self._drain()
            return
        turn.begin()
        try:
            self._drain()
        finally:
            turn.end()

    def _drain(self) -> None:
        receive, on_message = self._receive, self._on_message
        for count in range(DRAIN_MESSAGES):
            # Asking before the next one: 1.3 us, where the exception for an empty socket costs 3.5 (pyzmq 27.3,
            # 2026-11). The first is there nearly always: somebody has said so.
            if self._closed or (count and not self._look(_EVENTS) & _POLLIN):
                return
            try:
                frames = receive()
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
            for frame in frames[:-1]:
                self._send(frame, _NOBLOCK | _SNDMORE)
            self._send(frames[-1], _NOBLOCK)
        except self._again:
            return False
        except self._error:
            return False
        finally:
            # Looking now instead of in a turn of its own: with nothing to read that turn would cost more.
            if not self._armed and self._look(_EVENTS) & _POLLIN:
                self._rearm()
        return True

    def close(self) -> None:
        """Stop reading and close the socket; messages still queued are dropped (LINGER=0)."""
        if not self._closed:
            self._closed = True
            self._loop.remove_reader(self._fd)
            self.socket.close(self._linger_ms)
