"""Reads and writes the WebSocket frames of one side of a relay, with the `websockets` library.

A `Peer` is the library's protocol object without its reflexes: it does not answer a ping or a close by itself, and
a broken frame is remembered instead of being answered at once, because all three have their turn behind what came
before them. What a frame leads to is websocket.py's.

Kind: pure.
"""

import logging
import struct
import zlib
from collections.abc import Generator
from typing import Any, Final

from websockets.exceptions import ProtocolError
from websockets.extensions.permessage_deflate import PerMessageDeflate
from websockets.frames import BINARY, CLOSE, EXTERNAL_CLOSE_CODES, PING, TEXT, Close, CloseCode, Frame, Opcode
from websockets.protocol import CLIENT, SERVER
from websockets.protocol import Protocol as Frames

from proxy.upgrade import Deflate

# The library logs payloads at level DEBUG: what agents may see is not the log's.
_quiet: Final = logging.getLogger("proxy.websocket.frames")
_quiet.setLevel(logging.ERROR)
_MEMORY_LEVEL: Final = 5  # of zlib's 9: 16 KiB instead of 256, for 1 % of the ratio
_SMALLEST_WINDOW: Final = 9  # zlib cannot write with less
POLICY_VIOLATION: Final = 1008


class Coding(PerMessageDeflate):
    """permessage-deflate of one side: what came uncompressed is not compressed, and nothing is made ahead of its use.

    A sender has reasons not to compress (a secret beside a stranger's text), and a compressor takes 150 KiB.
    """

    def __init__(self, accepted: Deflate, *, is_client: bool) -> None:
        flags = (accepted.client_no_context_takeover, accepted.server_no_context_takeover)
        bits = (accepted.client_max_window_bits, accepted.server_max_window_bits)
        at = 0 if is_client else 1  # the client's own parameters are for what it says
        self._may_write = bits[1 - at] >= _SMALLEST_WINDOW
        # "No context" makes the library wait with the compressor; then it is told the truth.
        super().__init__(flags[at], True, bits[at], max(bits[1 - at], _SMALLEST_WINDOW), {"memLevel": _MEMORY_LEVEL})
        self.local_no_context_takeover = flags[1 - at]
        self.was_coded = False  # the message read last
        self.is_coding = False  # the message to be written

    def decode(self, frame: Frame, *, max_size: int | None = None) -> Frame:
        """As the library does, remembering whether it was compressed."""
        if frame.opcode is TEXT or frame.opcode is BINARY:
            self.was_coded = frame.rsv1
        return super().decode(frame, max_size=max_size)

    def encode(self, frame: Frame) -> Frame:
        """Only if the message came compressed."""
        if not self.is_coding or not self._may_write or frame.opcode is CLOSE or not frame.data:
            return frame
        if not self.local_no_context_takeover and not hasattr(self, "encoder"):
            self.encoder = zlib.compressobj(wbits=-self.local_max_window_bits, **self.compress_settings)
        return super().encode(frame)


class Peer(Frames):
    """One side. `is_client`: which one; towards it we are the server.

    fault: (close code, reason) once it broke a rule; nothing behind that is read. has_closed: its close frame had
    its turn; is_told: one was written to it. is_gone: its stream has ended; is_lost: it cannot be told anything
    either. is_full: it reads slower than we write; owed: the payload of the ping that is to be answered then.
    """

    def __init__(self, is_client: bool, deflate: Deflate | None, max_message_bytes: int) -> None:
        super().__init__(SERVER if is_client else CLIENT, max_size=max_message_bytes, logger=_quiet)
        self.is_client = is_client
        self.coding = Coding(deflate, is_client=is_client) if deflate is not None else None
        if self.coding is not None:
            self.extensions = [self.coding]
        self.fault: tuple[int, str] | None = None
        self.has_closed = self.is_told = False
        self.is_gone = self.is_lost = False
        self.is_full = False
        self.owed: bytes | None = None

    def read(self, data: "bytes | memoryview") -> list[Frame]:
        """The frames that these bytes complete; then look at `fault`."""
        self.receive_data(data)  # type: ignore[arg-type]  # it is only appended to a bytearray
        return self.events_received()  # type: ignore[return-value]  # a handshake was never begun

    def write(self, opcode: Opcode, payload: bytes, is_coded: bool = False) -> bytes:
        """One whole frame."""
        if self.coding is not None:
            self.coding.is_coding = is_coded
        self.send_frame(Frame(opcode, payload))
        return b"".join(self.data_to_send())

    def recv_frame(self, frame: Frame) -> None:
        """From the library: one frame, before `read` returns it."""
        if frame.opcode is CLOSE:
            Close.parse(frame.data)  # ProtocolError or UnicodeDecodeError: becomes the fault
            self.events.append(frame)  # also in the middle of a message, which is given up by that (RFC 6455 5.4)
            self._read_no_more()
        elif frame.opcode is PING:
            self.events.append(frame)
        else:
            super().recv_frame(frame)

    def fail(self, code: "CloseCode | int", reason: str = "") -> None:
        """From the library: it broke a rule."""
        self.fault = (int(code), reason)
        self._read_no_more()

    def _read_no_more(self) -> None:
        self.parser = self._ignore()
        next(self.parser)

    def _ignore(self) -> Generator[None, Any, None]:
        while True:
            self.reader.discard()
            yield


def close_payload(code: int, reason: bytes) -> bytes:
    """A close frame's payload; a code that may not be sent is a policy's violation (RFC 6455 7.4)."""
    if code not in EXTERNAL_CLOSE_CODES and not 3000 <= code <= 4999:
        code = POLICY_VIOLATION
    return struct.pack("!H", code) + reason


def is_close_payload(payload: bytes) -> bool:
    """Whether a close frame may carry it."""
    try:
        Close.parse(payload)
    except (ProtocolError, UnicodeDecodeError):
        return False
    return len(payload) <= 125
