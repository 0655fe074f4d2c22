"""Content codings decoded a piece at a time, guarded against bombs.

`decoder` reads a Content-Encoding (RFC 9110 8.4) and gives a `Decoder` for the body, or None where there is
nothing to decode. Known are gzip (also as x-gzip, and of several members), deflate (in the zlib format that
RFC 9110 means, and bare as many send it), br and zstd, at most DECODE_CODINGS_MAX of them on top of each other.

A coding gives its output in pieces of about DECODE_PIECE_BYTES, whatever it was fed, and after every piece of
every layer (a bomb may be inside, where the next layer swallows it again) the guard compares

* the bytes made with `max_bytes`;
* their ratio to the bytes that came in. It counts what has come so far: a body that swells at its start is
  refused although its end might have made up for it, so the first DECODE_RATIO_FREE_BYTES are free;
* the members or frames with the layer's input: to begin one costs us 20 us, and its sender 8 bytes (zstd).

Strict where agent and upstream could otherwise read different things: bytes behind the end, and an end that is
missing, are errors. A body without a single byte is let pass: many send one with a Content-Encoding, and everybody
reads it as empty. What an error means for the request is decided by the caller; no routes, agents or statuses here.

Kind: pure.
"""

import sys
import zlib
from collections.abc import Callable, Iterator
from typing import Final, Protocol

import brotli

from shared.defaults import (
    DECODE_BROTLI_WINDOW_LOG,
    DECODE_CODINGS_MAX,
    DECODE_FEED_BYTES,
    DECODE_MEMBER_BYTES,
    DECODE_MEMBERS_FREE,
    DECODE_PIECE_BYTES,
    DECODE_RATIO_FREE_BYTES,
    DECODE_RATIO_MAX,
    DECODE_ZSTD_WINDOW_LOG,
)
from shared.errors import CodingBroken, CodingTooLarge, CodingUnknown

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

_GZIP: Final = 16 + zlib.MAX_WBITS
_ZLIB: Final = zlib.MAX_WBITS
_BARE: Final = -zlib.MAX_WBITS
_ZSTD_OPTIONS: Final[dict[int, int]] = {zstd.DecompressionParameter.window_log_max: DECODE_ZSTD_WINDOW_LOG}
_NAME_SHOWN: Final = 40  # bytes of an unknown coding's name in the error


class Coding(Protocol):
    """One layer: how many members were begun, what comes out, and whether the body may end here."""

    members: int

    def pieces(self, data: memoryview) -> Iterator[bytes]:
        """The output for these bytes (at least one), with one piece, maybe empty, for every member begun.

        Raises CodingBroken, and CodingTooLarge for what costs too much to begin with.
        """
        ...

    def is_complete(self) -> bool: ...


class Gzip:
    """RFC 1952: members one after the other, each with its own header and checksum."""

    __slots__ = ("_member", "members")

    def __init__(self) -> None:
        self.members = 0
        self._member: zlib._Decompress | None = None  # None: between two of them

    def pieces(self, data: memoryview) -> Iterator[bytes]:
        rest: memoryview | bytes = data
        while rest:
            if self._member is None:
                self._member = zlib.decompressobj(_GZIP)
                self.members += 1
            yield from _inflate(self._member, rest)
            if not self._member.eof:
                return
            rest, self._member = self._member.unused_data, None

    def is_complete(self) -> bool:
        return self._member is None


class Deflate:
    """RFC 1950, or RFC 1951 where the first two bytes are no header of the former.

    No bare stream of an encoder looks like one: it would have to start with a stored block whose padding is not 0.
    """

    __slots__ = ("_first", "_stream", "members")

    def __init__(self) -> None:
        self.members = 0
        self._first = b""
        self._stream: zlib._Decompress | None = None  # None: fewer than two bytes have come

    def pieces(self, data: memoryview) -> Iterator[bytes]:
        self.members = 1
        rest: memoryview | bytes = data
        if self._stream is None:
            rest = self._first + bytes(data)
            if len(rest) < 2:
                self._first = rest
                return
            is_zlib = rest[0] & 0x0F == 8 and int.from_bytes(rest[:2], "big") % 31 == 0
            self._stream = zlib.decompressobj(_ZLIB if is_zlib else _BARE)
        if self._stream.eof:
            raise CodingBroken("bytes behind the end of deflate")
        yield from _inflate(self._stream, rest)
        if self._stream.unused_data:
            raise CodingBroken("bytes behind the end of deflate")

    def is_complete(self) -> bool:
        return not self.members or (self._stream is not None and self._stream.eof)


class Brotli:
    """RFC 7932: one stream, whose window is limited: the library decodes all of one before it gives any output."""

    __slots__ = ("_stream", "members")

    def __init__(self) -> None:
        self.members = 0
        self._stream = brotli.Decompressor()

    def pieces(self, data: memoryview) -> Iterator[bytes]:
        if not self.members and _brotli_window_log(data[0]) > DECODE_BROTLI_WINDOW_LOG:
            raise CodingTooLarge(f"br with a window over {1 << DECODE_BROTLI_WINDOW_LOG} bytes")
        self.members = 1
        rest: memoryview | bytes = data
        stream = self._stream
        if stream.is_finished():
            raise CodingBroken("bytes behind the end of br")
        while True:
            try:
                piece: bytes = stream.process(rest, output_buffer_limit=DECODE_PIECE_BYTES)
            except brotli.error as e:
                raise CodingBroken("not br, or bytes behind its end") from e
            yield piece
            # can_accept_more_data tells of input that it keeps, not of output: so until nothing comes any more
            if stream.is_finished() or not piece:
                return
            rest = b""

    def is_complete(self) -> bool:
        return not self.members or bool(self._stream.is_finished())


def _brotli_window_log(first: int) -> int:
    """WBITS of a stream's first byte (RFC 7932 9.1)."""
    if not first & 1:
        return 16
    high, low = first >> 1 & 7, first >> 4 & 7
    return 17 + high if high else 8 + low if low else 17


class Zstd:
    """RFC 8878: frames one after the other, skippable ones too; a window of at most 8 MiB (RFC 9659)."""

    __slots__ = ("_frame", "members")

    def __init__(self) -> None:
        self.members = 0
        self._frame: zstd.ZstdDecompressor | None = None  # None: between two of them

    def pieces(self, data: memoryview) -> Iterator[bytes]:
        rest: memoryview | bytes = data
        while rest:
            if self._frame is None:
                self._frame = zstd.ZstdDecompressor(options=_ZSTD_OPTIONS)
                self.members += 1
            frame = self._frame
            while True:
                try:
                    piece = frame.decompress(rest, DECODE_PIECE_BYTES)
                except zstd.ZstdError as e:
                    raise CodingBroken("not zstd, or bytes behind its end") from e
                yield piece
                if frame.eof:
                    break
                if frame.needs_input:
                    return
                rest = b""
            rest, self._frame = frame.unused_data, None

    def is_complete(self) -> bool:
        return self._frame is None


def _inflate(stream: "zlib._Decompress", data: memoryview | bytes) -> Iterator[bytes]:
    """Until its end, or until it has nothing more for these bytes."""
    while True:
        try:
            piece = stream.decompress(data, DECODE_PIECE_BYTES)
        except zlib.error as e:
            raise CodingBroken("not gzip or deflate, or bytes behind its end") from e
        yield piece
        data = stream.unconsumed_tail
        if stream.eof or (not data and len(piece) < DECODE_PIECE_BYTES):
            return


_CODINGS: Final[dict[bytes, Callable[[], Coding]]] = {
    b"gzip": Gzip,
    b"x-gzip": Gzip,
    b"deflate": Deflate,
    b"br": Brotli,
    b"zstd": Zstd,
}


class Decoder:
    """One body on its way through its codings. Once it has raised, it raises the same again.

    `feed` may be given any number of bytes and gives what they decode to: at most DECODE_RATIO_MAX times what came
    in so far, or DECODE_RATIO_FREE_BYTES, and a piece above `max_bytes` is made before it raises.
    """

    __slots__ = ("_error", "_layers", "_limits", "_made", "_taken")

    def __init__(self, layers: list[Coding], max_bytes: int) -> None:
        self._layers = layers
        # what is coded once more may be longer than what it stands for
        inner = 2 * max_bytes + DECODE_RATIO_FREE_BYTES if max_bytes else 0
        self._limits = [inner] * (len(layers) - 1) + [max_bytes]
        self._made = [0] * len(layers)
        self._taken = 0
        self._error: CodingBroken | CodingTooLarge | None = None

    def feed(self, data: bytes) -> bytes:
        """What these bytes add to the decoded body, b"" for now if nothing; raises CodingBroken, CodingTooLarge."""
        self._check()
        out: list[bytes] = []
        view = memoryview(data)
        try:
            # in slices: libraries copy what they have not used yet each time they are asked for more
            for start in range(0, len(view), DECODE_FEED_BYTES):
                part = view[start : start + DECODE_FEED_BYTES]
                self._taken += len(part)
                out.extend(self._through(0, part))
        except (CodingBroken, CodingTooLarge) as e:
            self._error = e
            self._layers.clear()  # windows are megabytes, and the exchange lives on for its refusal
            raise
        return out[0] if len(out) == 1 else b"".join(out)

    def finish(self) -> bytes:
        """The body has ended. Nothing is ever left to give; raises CodingBroken where the coded bytes stop short."""
        self._check()
        if not all(layer.is_complete() for layer in self._layers):
            self._error = CodingBroken("the coded body ends too early")
            raise self._error
        return b""

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    def _through(self, index: int, data: memoryview) -> Iterator[bytes]:
        """The last layer's pieces for what is fed to this one."""
        layer = self._layers[index]
        taken = self._made[index - 1] if index else self._taken
        for piece in layer.pieces(data):
            self._made[index] += len(piece)
            self._guard(index, layer.members, taken)
            if not piece:
                continue
            if index + 1 == len(self._layers):
                yield piece
            else:
                yield from self._through(index + 1, memoryview(piece))

    def _guard(self, index: int, members: int, taken: int) -> None:
        """Raises CodingTooLarge; `taken`: bytes this layer was fed so far."""
        made, limit = self._made[index], self._limits[index]
        if limit and made > limit:
            raise CodingTooLarge(f"decodes to more than {limit} bytes")
        if made > DECODE_RATIO_FREE_BYTES and made > DECODE_RATIO_MAX * self._taken:
            raise CodingTooLarge(f"decodes to more than {DECODE_RATIO_MAX} times its size")
        if members > DECODE_MEMBERS_FREE + taken // DECODE_MEMBER_BYTES:
            raise CodingTooLarge(f"has more than {DECODE_MEMBERS_FREE} members of few bytes each")


def decoder(codings: bytes, max_bytes: int) -> Decoder | None:
    """For a body with this Content-Encoding (several fields joined by ","), None where there is nothing to decode.

    `max_bytes`: of the decoded body, 0 = only the ratio counts. Raises CodingUnknown.
    """
    names = [name for part in codings.split(b",") if (name := part.strip(b" \t").lower()) not in (b"", b"identity")]
    if not names:
        return None
    if len(names) > DECODE_CODINGS_MAX:
        raise CodingUnknown(f"more than {DECODE_CODINGS_MAX} content codings")
    for name in names:
        if name not in _CODINGS:
            raise CodingUnknown(f"content coding {name[:_NAME_SHOWN].decode('ascii', 'backslashreplace')} is not known")
    return Decoder([_CODINGS[name]() for name in reversed(names)], max_bytes)
