"""One ZMTP peer over a connected stream socket, read and written by the caller's loop.

Kind: IO (plumbing without policy; socket and loop are given).
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from .codec import (
    FITS,
    GREETING,
    GREETING_BYTES,
    Buffer,
    Decoder,
    Frame,
    ZmtpError,
    check_greeting,
    pack,
    pack_command,
    pack_ready,
    unpack_command,
    unpack_properties,
)
from .hangups import HAS_EPOLL, Hangups

READ_BYTES: Final = 65_536  # of one system call
LONG_READ_BYTES: Final = 262_144  # in the middle of a long frame; a unix socket holds some 200 KiB
COMMANDS_AT_ONCE: Final = 64  # in what one system call brought; more is a flood
MESSAGES_AT_ONCE: Final = 100  # then the loop turns
HANDSHAKE_MAX_BYTES: Final = 8_192
_PIECES_AT_ONCE: Final = 64  # of one system call (IOV_MAX is 1024)
_PIECE_BYTES: Final = 256  # of memory that a waiting piece takes, however short it is
_QUOTED: Final = 64  # bytes of what a peer said, in the reason for its end


class Loop(Protocol):
    """What is needed of an event loop."""

    def add_reader(self, fd: int, callback: Callable[[], None], /) -> Any: ...
    def remove_reader(self, fd: int, /) -> Any: ...
    def add_writer(self, fd: int, callback: Callable[[], None], /) -> Any: ...
    def remove_writer(self, fd: int, /) -> Any: ...
    def call_soon(self, callback: Callable[[], None], /) -> Any: ...


class Turn(Protocol):
    """Is told when messages begin and have ended to be handled: what they lead to may leave together then."""

    def begin(self) -> None: ...
    def end(self) -> None: ...


class Connection:
    """One peer, over a connected non-blocking stream socket that belongs to the connection from now on.

    `on_open(connection)` when both have said READY; `on_message(connection, frames)` for each message;
    `on_closed(connection, reason)` once, when the peer ends it or breaks the protocol: not for `close`.
    `max_unsent` bytes may wait for a peer that does not read; beyond that `send` refuses.
    Raises OSError where no descriptor is left to notice its end by (hangups.py); the socket is the caller's then.
    """

    __slots__ = (
        "_decoder",
        "_fd",
        "_greeting",
        "_is_again",
        "_is_due",
        "_is_writing",
        "_loop",
        "_max_bytes",
        "_on_closed",
        "_on_message",
        "_on_open",
        "_recv",
        "_send",
        "_sendmsg",
        "_sock",
        "_turn",
        "_type",
        "_unsent",
        "is_broken",
        "is_closed",
        "is_fault",
        "is_open",
        "max_unsent",
        "owner",
        "unsent_bytes",
    )

    def __init__(
        self,
        sock: Any,
        loop: Loop,
        socket_type: bytes,
        *,
        on_message: "Callable[[Connection, list[Frame]], None]",
        on_closed: "Callable[[Connection, str], None]",
        on_open: "Callable[[Connection], None]" = lambda connection: None,
        max_bytes: int,
        max_frames: int,
        max_unsent: int,
        turn: Turn | None = None,
    ) -> None:
        self.is_open = False
        self.is_closed = False
        self.is_broken = False  # the peer has gone, or takes nothing any more; what it has said is still read
        self.is_fault = False  # it was closed for what the peer did
        self.max_unsent = max_unsent
        self.unsent_bytes = 0
        self.owner: Any = None  # the caller's
        self._sock = sock
        self._fd: int = sock.fileno()
        self._recv = sock.recv
        self._send = sock.send
        self._sendmsg = sock.sendmsg
        self._loop = loop
        self._type = socket_type
        self._on_open = on_open
        self._on_message = on_message
        self._on_closed = on_closed
        self._turn = turn
        self._decoder = Decoder(HANDSHAKE_MAX_BYTES, max_frames)
        self._max_bytes = max_bytes
        self._greeting = b""
        self._is_again = False  # there is more in the decoder than could be handled at once
        self._is_due = False  # the loop will call `_look_again`
        self._is_writing = False
        self._unsent: deque[memoryview] = deque()
        if HAS_EPOLL:
            Hangups.of(loop).watch(self._fd, self._hung_up)
        loop.add_reader(self._fd, self._readable)
        self._write((GREETING,))

    @property
    def unfinished_bytes(self) -> int:
        """Held of a message that the peer has begun and not finished."""
        return self._decoder.unfinished_bytes

    def limit(self, max_bytes: int, max_frames: int) -> None:
        """What one message of the peer's may have from now on."""
        self._max_bytes = max_bytes
        self._decoder.max_frames = max_frames
        if self.is_open:
            self._decoder.max_bytes = max_bytes

    # --- out --------------------------------------------------------------------------------------

    def send(self, frames: Sequence[Buffer]) -> bool:
        """True: the message is on its way whole. False: not open, broken, or the peer does not read."""
        if not self.is_open or self.is_broken or (self._unsent and self._is_full()):
            return False
        return self._write(pack(frames))

    def _is_full(self) -> bool:
        return max(self.unsent_bytes, len(self._unsent) * _PIECE_BYTES) > self.max_unsent

    def _write(self, pieces: Sequence[Buffer]) -> bool:
        if self._unsent:
            self._keep(pieces, 0)
            return True
        try:
            sent = self._send(pieces[0]) if len(pieces) == 1 else self._sendmsg(pieces[:_PIECES_AT_ONCE])
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError:
            self._hung_up()
            return False
        self._keep(pieces, sent)
        return True

    def _keep(self, pieces: Sequence[Buffer], sent: int) -> None:
        """What is left of them behind so many bytes waits for the socket."""
        for piece in pieces:
            size = len(piece)
            if sent >= size:
                sent -= size
                continue
            self._unsent.append(memoryview(piece)[sent:])
            self.unsent_bytes += size - sent
            sent = 0
        if self._unsent and not self._is_writing and not self.is_closed:
            self._is_writing = True
            self._loop.add_writer(self._fd, self._writable)

    def _writable(self) -> None:
        unsent = self._unsent
        try:
            while unsent:
                pieces = [unsent[place] for place in range(min(len(unsent), _PIECES_AT_ONCE))]
                sent = self._sendmsg(pieces)
                self.unsent_bytes -= sent
                while sent:
                    piece = unsent[0]
                    if sent < len(piece):
                        unsent[0] = piece[sent:]
                        return
                    sent -= len(piece)
                    unsent.popleft()
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            unsent.clear()
            self.unsent_bytes = 0
            self._hung_up()
        self._is_writing = False
        self._loop.remove_writer(self._fd)

    # --- in ---------------------------------------------------------------------------------------

    def read(self) -> bool:
        """Handle some of what has come already, without waiting for the loop to say so. False: there was nothing."""
        return not self.is_closed and self._handle()

    def _readable(self) -> None:
        if not self._is_due:  # or more of it is handled in this turn anyway, and no more than that
            self._handle()

    def _handle(self) -> bool:
        turn = self._turn
        if turn is None:
            return self._read()
        turn.begin()
        try:
            return self._read()
        finally:
            turn.end()

    def _read(self) -> bool:
        decoder = self._decoder
        data = b""
        if not self._is_again:
            try:
                data = self._recv(READ_BYTES if decoder.wanted < READ_BYTES else LONG_READ_BYTES)
            except (BlockingIOError, InterruptedError):
                if self.is_broken:
                    self._end("connection broken")
                return False
            except OSError as error:
                self._end(error.strerror or "connection broken")
                return False
            if not data:
                self._end("connection closed")
                return False
        try:
            if data:
                decoder.push(data if self.is_open else self._greeted(data))
            self._is_again = False
            self._take()
        except ZmtpError as error:
            self.is_fault = True
            self._end(str(error))
        return True

    def _take(self) -> None:
        decoder, on_message = self._decoder, self._on_message
        left, commands, ping = MESSAGES_AT_ONCE, 0, None
        try:
            while left and not self.is_closed:
                frames = decoder.next()
                if frames:
                    if not self.is_open:
                        raise ZmtpError("a message before READY")
                    on_message(self, frames)
                    left -= 1
                elif frames is None:
                    return
                else:
                    commands += 1
                    if commands > COMMANDS_AT_ONCE:
                        raise ZmtpError("a flood of commands")
                    answer = self._commanded(decoder.command)
                    ping = ping if answer is None else answer
        except ZmtpError:
            raise
        except BaseException:
            self._again()  # a defect in one message's handler must not leave the rest unread for ever
            raise
        finally:
            if ping is not None and not self._unsent and not self.is_closed:  # one answer shows that we live
                self._write((pack_command(b"PONG", ping),))
        self._again()

    def _again(self) -> None:
        self._is_again = True
        self._look_soon()

    def _hung_up(self) -> None:
        """What it has said before is read still: then comes its end."""
        self.is_broken = True
        self._look_soon()

    def _look_soon(self) -> None:
        if not self._is_due and not self.is_closed:
            self._is_due = True
            self._loop.call_soon(self._look_again)

    def _look_again(self) -> None:
        self._is_due = False
        if self.is_closed or not (self._is_again or self.is_broken):
            return
        try:
            self._handle()
        finally:
            if self.is_broken:
                self._look_soon()

    def _greeted(self, data: bytes) -> bytes:
        """What comes behind the greeting, once that is whole."""
        have = len(self._greeting)
        if have == GREETING_BYTES:
            return data
        self._greeting += data[: GREETING_BYTES - have]
        check_greeting(self._greeting)
        if len(self._greeting) < GREETING_BYTES:
            return b""
        self._write((pack_ready(self._type),))
        return data[GREETING_BYTES - have :]

    def _commanded(self, body: bytes) -> bytes | None:
        """Of a PING what its PONG has to carry."""
        name, data = unpack_command(body)
        if name == b"ERROR":
            raise ZmtpError(f"the peer gives up: {data[1 : 1 + _QUOTED]!r}")
        if self.is_open:
            return data[2:18] if name == b"PING" else None
        if name != b"READY":
            raise ZmtpError(f"{name[:_QUOTED]!r} before READY")
        theirs = unpack_properties(data).get(b"socket-type", b"")
        if theirs not in FITS[self._type]:
            raise ZmtpError(f"socket type {theirs[:_QUOTED]!r} does not fit {self._type.decode()}")
        self._decoder.max_bytes = self._max_bytes
        self.is_open = True
        self._on_open(self)
        return None

    # --- the end ----------------------------------------------------------------------------------

    def close(self) -> None:
        """End it now. What the kernel has taken still reaches the peer, the rest is dropped."""
        if self.is_closed:
            return
        if self._unsent:
            self._writable()
        self.is_closed = True
        self.is_open = False
        self._loop.remove_reader(self._fd)
        if HAS_EPOLL:
            Hangups.of(self._loop).forget(self._fd)
        if self._is_writing:
            self._loop.remove_writer(self._fd)
        self._unsent.clear()
        self.unsent_bytes = 0
        self._sock.close()

    def _end(self, reason: str) -> None:
        if not self.is_closed:
            self.close()
            self._on_closed(self, reason)
