"""ZMTP's bytes: greeting, commands, frames in and out, within bounds.

Kind: pure.
"""

import struct
from collections.abc import Sequence
from typing import Final

Buffer = bytes | bytearray | memoryview
Frame = bytes

_MORE, _LONG, _COMMAND = 1, 2, 4  # a frame's flags
_LONG_HEADER = struct.Struct(">BQ")
_LENGTH = struct.Struct(">I")
_SIGNATURE: Final = b"\xff\x00\x00\x00\x00\x00\x00\x00\x00\x7f"
GREETING_BYTES: Final = 64
GREETING: Final = _SIGNATURE + b"\x03\x01" + b"NULL".ljust(20, b"\0") + b"\0" + bytes(31)
# Who may talk to whom (RFC 28); we are one of the first.
FITS: Final = {b"ROUTER": (b"DEALER", b"REQ", b"ROUTER"), b"DEALER": (b"ROUTER", b"REP", b"DEALER")}

LONG_FRAME: Final = 16_384  # from here on a frame that is not whole yet is collected in pieces, and sent uncopied
SHORT_PIECE: Final = 4_096  # shorter ones of it are put together as they come
COMMAND_MAX_BYTES: Final = 4_096


class ZmtpError(Exception):
    """The peer breaks the protocol or a bound; the text says which."""


def pack(frames: Sequence[Buffer]) -> list[Buffer]:
    """A message, in pieces to be sent one after the other: long frames are not copied."""
    out: list[Buffer] = []
    short: list[Buffer] = []
    last = len(frames) - 1
    for place, frame in enumerate(frames):
        size = len(frame)
        more = _MORE if place < last else 0
        short.append(bytes((more, size)) if size < 256 else _LONG_HEADER.pack(more | _LONG, size))
        if size < LONG_FRAME:
            short.append(frame)
        else:
            out += (b"".join(short), frame)
            short = []
    if short:
        out.append(b"".join(short))
    return out


def pack_command(name: bytes, data: bytes) -> bytes:
    """A command's frame."""
    body = bytes((len(name),)) + name + data
    if len(body) < 256:
        return bytes((_COMMAND, len(body))) + body
    return _LONG_HEADER.pack(_COMMAND | _LONG, len(body)) + body


def unpack_command(body: bytes) -> tuple[bytes, bytes]:
    """Its name and what comes behind."""
    length = body[0] if body else 0
    if not length or len(body) <= length:
        raise ZmtpError("a command without a name")
    return body[1 : 1 + length], body[1 + length :]


def pack_ready(socket_type: bytes) -> bytes:
    """READY, which ends the handshake on our side."""
    return pack_command(b"READY", b"\x0bSocket-Type" + _LENGTH.pack(len(socket_type)) + socket_type)


def unpack_properties(data: bytes) -> dict[bytes, bytes]:
    """READY's properties, their names in lower case."""
    properties = {}
    at = 0
    while at < len(data):
        name_end = at + 1 + data[at]
        value_at = name_end + 4
        if name_end == at + 1 or value_at > len(data):
            raise ZmtpError("READY with a broken property")
        value_end = value_at + _LENGTH.unpack_from(data, name_end)[0]
        if value_end > len(data):
            raise ZmtpError("READY with a broken property")
        properties[data[at + 1 : name_end].lower()] = data[value_at:value_end]
        at = value_end
    return properties


def check_greeting(greeting: bytes) -> None:
    """Raise ZmtpError unless these 64 bytes are a peer's that can be talked to; fewer: as far as that shows yet."""
    if (greeting and greeting[0] != 0xFF) or (len(greeting) > 9 and greeting[9] & 1 == 0):
        raise ZmtpError("no ZMTP greeting")
    if len(greeting) > 10 and greeting[10] < 3:
        raise ZmtpError(f"ZMTP {greeting[10]}: 3.0 is needed")
    if len(greeting) >= 32 and greeting[12:32] != GREETING[12:32]:
        raise ZmtpError(f"security mechanism {greeting[12:32].rstrip(bytes(1))!r}: only NULL is spoken here")


class Decoder:
    """Bytes in, messages out.

    `push` what was received and take messages with `next` until it is None; [] is a command, its body in `command`.
    """

    __slots__ = (
        "_at",
        "_data",
        "_filled",
        "_flags",
        "_frames",
        "_pieces",
        "_size",
        "_target",
        "command",
        "max_bytes",
        "max_frames",
    )

    def __init__(self, max_bytes: int, max_frames: int) -> None:
        self.max_bytes = max_bytes  # of one message, over all its frames
        self.max_frames = max_frames
        self.command = b""
        self._data = b""
        self._at = 0
        self._frames: list[Frame] = []
        self._size = 0  # of `_frames`
        self._pieces: list[bytes | bytearray] = []  # of a long frame that is not whole yet
        self._filled = 0  # bytes of those
        self._target = 0  # and how many it will have
        self._flags = 0

    @property
    def unfinished_bytes(self) -> int:
        """Held of a message that is not whole yet."""
        return self._size + len(self._data) - self._at + self._filled

    @property
    def wanted(self) -> int:
        """Bytes that a long frame is short of; 0 = none is under way."""
        return self._target - self._filled

    def push(self, data: bytes) -> None:
        """These have come."""
        missing = self._target - self._filled
        if missing:
            self._filled += min(missing, len(data))
            self._add(data[:missing])
            data = data[missing:]
        at = self._at
        self._data = self._data[at:] + data if at < len(self._data) else data
        self._at = 0

    def next(self) -> list[Frame] | None:
        """The next whole message, [] for a command, None = more has to come.

        Raises ZmtpError at a peer's fault; nothing that follows can be understood then.
        """
        if self._pieces:
            if self._filled < self._target:
                return None
            frame, size, flags = b"".join(self._pieces), self._target, self._flags
            self._pieces = []
            self._filled = self._target = 0
            if self._is_end(flags, frame, size):
                return self._whole(flags)
        data = self._data
        at = self._at
        end = len(data)
        while end - at >= 2:
            flags = data[at]
            if flags & _LONG:
                if end - at < 9:
                    break
                size = int.from_bytes(data[at + 1 : at + 9], "big")
                start = at + 9
            else:
                size = data[at + 1]
                start = at + 2
            stop = start + size
            if stop > end:
                self._check(flags, size)
                if size >= LONG_FRAME:
                    self._begin(flags, size, data[start:])
                    at = end
                break
            at = stop
            if self._is_end(flags, data[start:stop], size):
                self._at = at
                return self._whole(flags)
        self._data = data[at:]  # a quiet connection keeps nothing of what it has handled
        self._at = 0
        return None

    def _check(self, flags: int, size: int) -> None:
        if flags > 7:
            raise ZmtpError(f"a frame with flags {flags:#x}")
        if flags & _COMMAND:
            if flags & _MORE or size > COMMAND_MAX_BYTES:
                raise ZmtpError(f"a command of {size} bytes with flags {flags:#x}")
        elif self._size + size > self.max_bytes:
            raise ZmtpError(f"a message of more than {self.max_bytes} bytes")
        elif len(self._frames) >= self.max_frames:
            raise ZmtpError(f"a message of more than {self.max_frames} frames")

    def _is_end(self, flags: int, frame: Frame, size: int) -> bool:
        """Whether that was a command, or a message's last frame."""
        self._check(flags, size)
        if flags & _COMMAND:
            self.command = frame
            return True
        self._frames.append(frame)
        if flags & _MORE:
            self._size += size
            return False
        return True

    def _whole(self, flags: int) -> list[Frame]:
        if flags & _COMMAND:  # it may stand between a message's frames
            return []
        frames = self._frames
        self._frames = []
        self._size = 0
        return frames

    def _begin(self, flags: int, size: int, beginning: bytes) -> None:
        self._flags = flags
        self._target = size
        self._filled = len(beginning)
        self._add(beginning)

    def _add(self, data: bytes) -> None:
        """To the long frame's pieces, of which there are few however small they come."""
        pieces = self._pieces
        if len(data) >= SHORT_PIECE or not pieces:
            pieces.append(data)
        elif isinstance(pieces[-1], bytearray):
            pieces[-1] += data
        else:
            pieces.append(bytearray(data))
