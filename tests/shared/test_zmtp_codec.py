"""shared/zmtp, the bytes: what is packed comes out equal however it is cut, and no peer can make it cost much."""

import random
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared import zmtp
from shared.zmtp import COMMAND_MAX_BYTES, LONG_FRAME, LONG_READ_BYTES, READ_BYTES, SHORT_PIECE, Decoder, ZmtpError

MIB = 1 << 20
MAX_BYTES = 16 * MIB
MORE, LONG, COMMAND = 1, 2, 4

# --- how RFC 37 writes frames, independent of the code under test ---------------------------------------


def wire_frame(flags: int, body: bytes) -> bytes:
    if len(body) > 255:
        return struct.pack(">BQ", flags | LONG, len(body)) + body
    return bytes((flags, len(body))) + body


def wire_message(frames: Sequence[bytes]) -> bytes:
    return b"".join(wire_frame(MORE if frames[i + 1 :] else 0, frame) for i, frame in enumerate(frames))


@dataclass
class Command:
    body: bytes


Taken = list[bytes] | Command


def take(decoder: Decoder) -> Iterator[Taken]:
    """Everything that is whole by now."""
    while (frames := decoder.next()) is not None:
        yield [bytes(frame) for frame in frames] if frames else Command(decoder.command)


def feed(decoder: Decoder, data: bytes, pieces: Sequence[int]) -> Iterator[tuple[int, list[Taken]]]:
    """As a connection does it, with pieces of these sizes over and over; how much has come, what was whole by that."""
    at = turn = 0
    while at < len(data):
        want = pieces[turn % len(pieces)]
        turn += 1
        piece = data[at : at + min(want, LONG_READ_BYTES)]
        decoder.push(piece)
        at += len(piece)
        yield at, list(take(decoder))


def everything(decoder: Decoder, data: bytes, pieces: Sequence[int]) -> list[Taken]:
    return [taken for _, some in feed(decoder, data, pieces) for taken in some]


# --- what may be said -----------------------------------------------------------------------------------

border_sizes = st.sampled_from(
    [
        0,
        1,
        2,
        254,
        255,
        256,
        257,
        LONG_FRAME - 1,
        LONG_FRAME,
        LONG_FRAME + 1,
        READ_BYTES - 9,
        READ_BYTES,
        READ_BYTES + 1,
    ]
)
sizes = st.one_of(border_sizes, st.integers(0, 600), st.integers(0, 200 * 1024))
cuts = st.lists(
    st.one_of(st.integers(1, 20), st.integers(1, 3000), st.integers(1, 300_000)), min_size=1, max_size=8
).map(lambda pieces: pieces if sum(pieces) / len(pieces) > 50 else [*pieces, 5000])


@st.composite
def frame_of_bytes(draw: st.DrawFn) -> bytes:
    return random.Random(draw(st.integers(0, 1 << 30))).randbytes(draw(sizes))


messages = st.lists(frame_of_bytes(), min_size=1, max_size=6)


@st.composite
def conversations(draw: st.DrawFn) -> tuple[bytes, list[Taken]]:
    """Messages with commands before, between and inside them, and the order in which they are whole."""
    wire: list[bytes] = []
    whole: list[Taken] = []
    for frames in draw(st.lists(messages, max_size=5)):
        for place, frame in enumerate(frames):
            for body in draw(st.lists(st.binary(max_size=300), max_size=1)):
                wire.append(wire_frame(COMMAND, body))
                whole.append(Command(body))
            wire.append(wire_frame(MORE if place + 1 < len(frames) else 0, frame))
        whole.append(frames)
    return b"".join(wire), whole


class TestRoundTrip:
    @given(messages)
    def test_pack_writes_what_the_rfc_says(self, frames: list[bytes]) -> None:
        assert b"".join(zmtp.pack(frames)) == wire_message(frames)

    @given(messages)
    def test_long_frames_are_not_copied(self, frames: list[bytes]) -> None:
        pieces = zmtp.pack(frames)
        for frame in frames:
            if len(frame) >= LONG_FRAME:
                assert any(piece is frame for piece in pieces)

    @settings(max_examples=150)
    @given(conversations(), cuts)
    def test_whatever_is_said_comes_out_equal_however_it_is_cut(
        self, said: tuple[bytes, list[Taken]], pieces: list[int]
    ) -> None:
        wire, whole = said
        decoder = Decoder(MAX_BYTES, 10)
        assert everything(decoder, wire, pieces) == whole
        assert decoder.unfinished_bytes == 0
        assert decoder.wanted == 0

    @pytest.mark.parametrize(
        "size",
        [
            size + more
            for size in (256, SHORT_PIECE, LONG_FRAME, READ_BYTES, LONG_READ_BYTES, 4 * MIB)
            for more in (-1, 0, 1)
        ],
    )
    @pytest.mark.parametrize("piece", [1021, READ_BYTES, 3 * MIB])
    def test_one_frame_around_each_border(self, size: int, piece: int) -> None:
        frames = [random.Random(size).randbytes(size), b"behind"]
        decoder = Decoder(MAX_BYTES, 2)
        assert everything(decoder, wire_message(frames) * 2, [piece]) == [frames, frames]

    @pytest.mark.parametrize("size", [255, 256, LONG_FRAME - 1, LONG_FRAME])
    def test_every_single_place_to_cut(self, size: int) -> None:
        """Around a header, with a command before it: two pieces, each way to have them."""
        frames = [b"a", random.Random(size).randbytes(size), b"", b"z"]
        wire = wire_frame(COMMAND, b"\x01x") + wire_message(frames)
        for cut in [*range(1, 40), *range(len(wire) - 10, len(wire))]:
            assert everything(Decoder(size + 2, 4), wire, [cut, READ_BYTES]) == [Command(b"\x01x"), frames]

    def test_byte_by_byte(self) -> None:
        frames = [b"", b"x" * 300, b"y" * (LONG_FRAME + 5), b"z"]
        assert everything(Decoder(MAX_BYTES, 4), wire_message(frames) * 2, [1]) == [frames, frames]

    def test_a_long_frame_is_bytes_of_its_own(self) -> None:
        """Whatever it came in: it keeps nothing else in memory, and nobody can write there."""
        decoder = Decoder(MAX_BYTES, 1)
        wire = wire_message([b"a" * 50_000])
        for cut in (1, 9, 10, 20_000, len(wire)):
            (frames,) = everything(decoder, wire, [cut, 7])
            assert frames == [b"a" * 50_000]
            decoder.push(wire[:cut])
            decoder.push(wire[cut:])
            (frame,) = decoder.next() or ()
            assert type(frame) is bytes

    def test_a_short_length_may_be_written_long(self) -> None:
        """Nothing in the RFC forbids it."""
        assert everything(Decoder(10, 1), struct.pack(">BQ", LONG, 3) + b"abc", [100]) == [[b"abc"]]


class TestUnfinishedBytes:
    @settings(max_examples=60)
    @given(messages, cuts)
    def test_it_is_what_is_held(self, frames: list[bytes], pieces: list[int]) -> None:
        """Whole frames without their headers, and of the frame that is coming what has come."""
        wire = wire_message(frames)
        held: list[tuple[int, int, int, int]] = []  # where a frame begins, its body, its end, what stands before it
        at = before = 0
        for frame in frames:
            body = at + (9 if len(frame) > 255 else 2)
            held.append((at, body, body + len(frame), before))
            at, before = body + len(frame), before + len(frame)

        def expected(come: int) -> int:
            for begin, body, end, before in held:
                if come < end:
                    is_apart = come >= body and end - body >= LONG_FRAME
                    return before + come - (body if is_apart else begin)
            return 0

        decoder = Decoder(MAX_BYTES, 10)
        for come, _ in feed(decoder, wire, pieces):
            assert decoder.unfinished_bytes == expected(come)

    def test_what_was_handled_is_not_held(self) -> None:
        """A connection that has gone quiet must not keep the last thing it received."""
        decoder = Decoder(MAX_BYTES, 1)
        decoder.push(wire_message([b"x" * 60_000]))
        assert len(list(take(decoder))) == 1
        assert len(decoder._data) == 0

    def test_a_beginning_keeps_nothing_of_what_was_before_it(self) -> None:
        """What is held is what `unfinished_bytes` says: not the 64 KiB that it came with."""
        decoder = Decoder(MAX_BYTES, 1)
        decoder.push(wire_message([b"x" * 60_000]) + b"\0")
        assert len(list(take(decoder))) == 1
        assert len(decoder._data) == decoder.unfinished_bytes == 1
        decoder.push(b"\1y")
        assert list(take(decoder)) == [[b"y"]]


class TestBounds:
    @pytest.mark.parametrize("max_bytes", [0, 1, 255, 256, 40_000])
    @pytest.mark.parametrize("piece", [1, 7, READ_BYTES])
    def test_max_bytes_is_of_all_frames(self, max_bytes: int, piece: int) -> None:
        half = max_bytes // 2
        fits = [b"x" * half, b"", b"y" * (max_bytes - half)]
        assert everything(Decoder(max_bytes, 3), wire_message(fits) * 2, [piece]) == [fits, fits]
        for place in range(3):
            long = [frame + b"+" * (place == i) for i, frame in enumerate(fits)]
            with pytest.raises(ZmtpError, match=f"a message of more than {max_bytes} bytes"):
                everything(Decoder(max_bytes, 3), wire_message(long), [piece])

    @pytest.mark.parametrize("piece", [1, READ_BYTES])
    def test_max_frames(self, piece: int) -> None:
        fits = [b""] * 5
        assert everything(Decoder(9, 5), wire_message(fits) * 2, [piece]) == [fits, fits]
        with pytest.raises(ZmtpError, match="a message of more than 5 frames"):
            everything(Decoder(9, 5), wire_message([*fits, b""]), [piece])

    def test_it_is_refused_when_it_is_announced(self) -> None:
        """Not when it has come."""
        for size in (11, LONG_FRAME, 1 << 32, 1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 1):
            decoder = Decoder(10, 1)
            decoder.push(struct.pack(">BQ", LONG, size))
            with pytest.raises(ZmtpError, match="more than 10 bytes"):
                decoder.next()
            assert decoder.wanted == 0

    @pytest.mark.parametrize("size", [LONG_FRAME, READ_BYTES, 1 << 40, (1 << 63) - 1, (1 << 64) - 1])
    def test_what_is_only_announced_is_not_allocated(self, size: int) -> None:
        """Whatever bound was configured."""
        decoder = Decoder(1 << 64, 1)
        decoder.push(struct.pack(">BQ", LONG, size))
        assert decoder.next() is None
        assert decoder.wanted == size
        assert decoder.unfinished_bytes == sum(map(len, decoder._pieces)) == 0

    @pytest.mark.parametrize("piece", [1, 100, SHORT_PIECE - 1, SHORT_PIECE, 60_000])
    def test_it_takes_what_has_come_and_little_more(self, piece: int) -> None:
        """However small it comes: few objects hold it."""
        decoder = Decoder(1 << 40, 1)
        decoder.push(struct.pack(">BQ", LONG, 1 << 39))
        assert decoder.next() is None
        come = 0
        while come < 2_000 * piece:
            decoder.push(bytes(piece))
            come += piece
            assert decoder.next() is None
            assert decoder.unfinished_bytes == sum(map(len, decoder._pieces)) == come
        assert len(decoder._pieces) <= 2 + come // SHORT_PIECE

    def test_a_dribbled_frame_of_the_longest(self) -> None:
        frame = random.Random(1).randbytes(MAX_BYTES)
        assert everything(Decoder(MAX_BYTES, 1), wire_message([frame]), [1024]) == [[frame]]

    def test_a_short_frame_is_never_kept_long(self) -> None:
        """What a piece is put together with is less than LONG_FRAME and its header, however it dribbles."""
        decoder = Decoder(MAX_BYTES, 3)
        longest = 0
        wire = wire_message([b"x" * (LONG_FRAME - 1), b"y" * LONG_FRAME, b"z" * (2 * LONG_FRAME)])
        for _ in feed(decoder, wire, [100]):
            longest = max(longest, len(decoder._data) - decoder._at)
        assert LONG_FRAME - 200 < longest < LONG_FRAME + 9

    @pytest.mark.parametrize("flags", [0x08, 0x10, 0x80, 0xFF, 0x09, 0x0C])
    @pytest.mark.parametrize("body", [b"", b"\x01x", b"x" * 300])
    def test_reserved_flags(self, flags: int, body: bytes) -> None:
        for piece in (1, 1000):
            with pytest.raises(ZmtpError, match=f"a frame with flags {flags | (len(body) > 255) * LONG:#x}"):
                everything(Decoder(MAX_BYTES, 3), wire_frame(flags, body) + bytes(9), [piece])

    @pytest.mark.parametrize("piece", [1, READ_BYTES])
    def test_a_commands_bounds(self, piece: int) -> None:
        body = b"\x01" * COMMAND_MAX_BYTES
        assert everything(Decoder(0, 0), wire_frame(COMMAND, body), [piece]) == [Command(body)]
        with pytest.raises(ZmtpError, match="a command of 4097 bytes"):
            everything(Decoder(MAX_BYTES, 9), wire_frame(COMMAND, body + b"+"), [piece])
        with pytest.raises(ZmtpError, match="a command of 3 bytes with flags 0x5"):
            everything(Decoder(MAX_BYTES, 9), wire_frame(COMMAND | MORE, b"abc"), [piece])
        decoder = Decoder(1 << 64, 9)
        decoder.push(struct.pack(">BQ", COMMAND | LONG, (1 << 63) - 1))
        with pytest.raises(ZmtpError, match="a command of"):
            decoder.next()


class TestGarbage:
    @settings(max_examples=400)
    @given(st.binary(max_size=4000), cuts)
    def test_bytes_of_any_kind(self, data: bytes, pieces: list[int]) -> None:
        self.survives(data, pieces)

    @settings(max_examples=150)
    @given(conversations(), st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), max_size=4), cuts)
    def test_a_conversation_with_bytes_changed(
        self, said: tuple[bytes, list[Taken]], changes: list[tuple[int, int]], pieces: list[int]
    ) -> None:
        data = bytearray(said[0])
        for place, value in changes:
            if data:
                data[place % len(data)] = value
        self.survives(bytes(data), pieces)

    @staticmethod
    def survives(data: bytes, pieces: list[int]) -> None:
        """Nothing is raised but ZmtpError; no more comes out than went in, and no more is held."""
        decoder = Decoder(300_000, 8)
        out = 0
        try:
            for come, some in feed(decoder, data, pieces):
                for taken in some:
                    body = [taken.body] if isinstance(taken, Command) else taken
                    out += sum(len(frame) + 2 for frame in body)
                assert out + decoder.unfinished_bytes <= come
                assert decoder.unfinished_bytes <= 300_000 + 9
        except ZmtpError as error:
            assert str(error)


class TestCommands:
    @given(st.binary(min_size=1, max_size=255), st.binary(max_size=600))
    def test_packed_and_unpacked(self, name: bytes, data: bytes) -> None:
        [command] = everything(Decoder(0, 0), zmtp.pack_command(name, data), [100])
        assert isinstance(command, Command)
        assert zmtp.unpack_command(command.body) == (name, data)

    @pytest.mark.parametrize("body", [b"", b"\0", b"\0READY", b"\x05", b"\x05READ", b"\xffREADY"])
    def test_without_a_name(self, body: bytes) -> None:
        with pytest.raises(ZmtpError, match="a command without a name"):
            zmtp.unpack_command(body)

    @given(st.dictionaries(st.binary(min_size=1, max_size=255).map(bytes.lower), st.binary(max_size=300), max_size=9))
    def test_properties(self, properties: dict[bytes, bytes]) -> None:
        data = b"".join(
            bytes((len(name),)) + name.upper() + len(value).to_bytes(4, "big") + value
            for name, value in properties.items()
        )
        assert zmtp.unpack_properties(data) == {name.upper().lower(): value for name, value in properties.items()}
        ends = {0}
        for name, value in properties.items():
            ends.add(max(ends) + 5 + len(name) + len(value))
        for cut in {cut % (len(data) + 1) for cut in range(0, len(data), max(1, len(data) // 40))} - ends:
            with pytest.raises(ZmtpError, match="READY with a broken property"):
                zmtp.unpack_properties(data[:cut])

    @pytest.mark.parametrize(
        "data",
        [b"\0\0\0\0\0", b"\x01", b"\x01a", b"\x01a\0\0\0", b"\x01a\0\0\0\x01", b"\x01a\xff\xff\xff\xffx", b"\xff"],
    )
    def test_broken_properties(self, data: bytes) -> None:
        with pytest.raises(ZmtpError, match="READY with a broken property"):
            zmtp.unpack_properties(data)

    @given(st.binary(max_size=200))
    def test_properties_of_any_bytes(self, data: bytes) -> None:
        try:
            properties = zmtp.unpack_properties(data)
        except ZmtpError:
            return
        assert sum(len(name) + len(value) + 5 for name, value in properties.items()) <= len(data)

    def test_ready(self) -> None:
        [command] = everything(Decoder(0, 0), zmtp.pack_ready(b"ROUTER"), [100])
        assert isinstance(command, Command)
        name, data = zmtp.unpack_command(command.body)
        assert name == b"READY"
        assert zmtp.unpack_properties(data) == {b"socket-type": b"ROUTER"}


SIGNATURE = b"\xff" + bytes(8) + b"\x7f"


def greeting(major: int = 3, minor: int = 1, mechanism: bytes = b"NULL", signature: bytes = SIGNATURE) -> bytes:
    return signature + bytes((major, minor)) + mechanism.ljust(20, b"\0") + b"\0" + bytes(31)


class TestGreeting:
    @pytest.mark.parametrize(
        "said",
        [
            greeting(),
            greeting(3, 0),
            greeting(4, 7),  # a later one speaks ours
            greeting(signature=b"\xff\0\0\0\0\0\0\0\x01\x7f"),  # libzmq writes a length here, for 2.x's sake
            greeting(signature=b"\xffanything\x01"),
            greeting()[:-31] + b"\xff" * 31,  # filler
        ],
    )
    def test_good_ones_cut_anywhere(self, said: bytes) -> None:
        assert len(said) == 64
        for cut in range(65):
            zmtp.check_greeting(said[:cut])

    @pytest.mark.parametrize(
        ("said", "shows_at", "reason"),
        [
            (b"\x01\0" + bytes(62), 1, "no ZMTP greeting"),  # 1.0: an anonymous peer's identity
            (b"GET / HTTP/1.1\r\n\r\n".ljust(64), 1, "no ZMTP greeting"),
            (bytes(64), 1, "no ZMTP greeting"),
            (greeting(signature=b"\xff" + bytes(7) + b"\x01\0"), 10, "no ZMTP greeting"),  # 1.0, an identity of 255
            (greeting(0), 11, "ZMTP 0: 3.0 is needed"),
            (greeting(1), 11, "ZMTP 1: 3.0 is needed"),  # as 2.0 counts itself
            (greeting(2), 11, "ZMTP 2: 3.0 is needed"),
            (greeting(mechanism=b"CURVE"), 32, "security mechanism b'CURVE': only NULL"),
            (greeting(mechanism=b"PLAIN"), 32, "security mechanism b'PLAIN': only NULL"),
            (greeting(mechanism=b""), 32, "security mechanism b'': only NULL"),
            (greeting(mechanism=b"NULLX"), 32, "security mechanism b'NULLX'"),
            (greeting(mechanism=b"NULL\0X"), 32, "security mechanism"),
            (greeting(mechanism=b"\n\x1b[31m" + b"\xff" * 14), 32, r"security mechanism b'\\n\\x1b"),
        ],
    )
    def test_refused_as_soon_as_it_shows(self, said: bytes, shows_at: int, reason: str) -> None:
        assert len(said) == 64
        for cut in range(65):
            if cut < shows_at:
                zmtp.check_greeting(said[:cut])
            else:
                with pytest.raises(ZmtpError, match=reason):
                    zmtp.check_greeting(said[:cut])

    @given(st.binary(max_size=64))
    def test_bytes_of_any_kind(self, said: bytes) -> None:
        try:
            zmtp.check_greeting(said)
        except ZmtpError as error:
            assert str(error).isprintable()
