"""Content codings: the same bytes however they come in, three errors and no other, and bombs that stay small."""

import gzip
import itertools
import random
import sys
import tracemalloc
import zlib
from collections.abc import Callable

import brotli
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.coding import Decoder, _brotli_window_log, decoder
from shared.defaults import (
    DECODE_BROTLI_WINDOW_LOG,
    DECODE_FEED_BYTES,
    DECODE_MEMBER_BYTES,
    DECODE_MEMBERS_FREE,
    DECODE_PIECE_BYTES,
    DECODE_RATIO_FREE_BYTES,
    DECODE_RATIO_MAX,
)
from shared.errors import CodingBroken, CodingTooLarge, CodingUnknown

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MB = 1_048_576
SKIPPABLE = b"\x50\x2a\x4d\x18" + (4).to_bytes(4, "little") + b"skip"


def gzip_(data: bytes) -> bytes:
    return gzip.compress(data, 6, mtime=0)


def bare(data: bytes) -> bytes:
    made = zlib.compressobj(6, zlib.DEFLATED, -15)
    return made.compress(data) + made.flush()


def br(data: bytes) -> bytes:
    return brotli.compress(data, quality=5)


def zst(data: bytes) -> bytes:
    return zstd.compress(data, 3)


def members(data: bytes) -> bytes:
    half = len(data) // 2
    return gzip_(data[:half]) + gzip_(b"") + gzip_(data[half:])


def frames(data: bytes) -> bytes:
    half = len(data) // 2
    return zst(data[:half]) + SKIPPABLE + zst(b"") + zst(data[half:])


ENCODERS: dict[str, tuple[bytes, Callable[[bytes], bytes]]] = {
    "gzip": (b"gzip", gzip_),
    "x-gzip": (b"X-GZip", gzip_),
    "members": (b"gzip", members),
    "deflate": (b"deflate", zlib.compress),
    "deflate-stored": (b"deflate", lambda data: zlib.compress(data, 0)),
    "deflate-bare": (b"deflate", bare),
    "br": (b"br", br),
    "zstd": (b"zstd", zst),
    "frames": (b"zstd", frames),
    "gzip-br": (b"gzip, br", lambda data: br(gzip_(data))),
    "br-gzip": (b" br\t,identity,,gzip", lambda data: gzip_(br(data))),
    "zstd-deflate": (b"zstd,deflate", lambda data: zlib.compress(zst(data))),
    "gzip-gzip": (b"gzip,gzip", lambda data: gzip_(gzip_(data))),
}
BODIES = {
    "empty": b"",
    "one": b"x",
    "text": b"a line of text that repeats, with a number: %d\n" * 40,
    "noise": random.Random(1).randbytes(3_000),
    "pieces": random.Random(2).randbytes(50_000) + bytes(2 * DECODE_PIECE_BYTES),
    "piece": bytes(DECODE_PIECE_BYTES),
}


def new(codings: bytes, max_bytes: int = 0) -> Decoder:
    made = decoder(codings, max_bytes)
    assert made is not None
    return made


def decoded(codings: bytes, coded: bytes, step: int = 0, max_bytes: int = 0) -> bytes:
    made = new(codings, max_bytes)
    step = step or max(1, len(coded))
    out = b"".join(made.feed(coded[i : i + step]) for i in range(0, len(coded), step))
    return out + made.finish()


class TestNames:
    @pytest.mark.parametrize("codings", [b"", b"identity", b" Identity ", b",", b"identity, identity ,"])
    def test_nothing_to_decode(self, codings: bytes) -> None:
        assert decoder(codings, 10) is None

    @pytest.mark.parametrize(
        "codings",
        [b"compress", b"gzip;q=1", b"gzip br", b"gz", b"*", b"gzip,unheard", b"dcz", b"\xff\x00", b"gzip,br,zstd"],
    )
    def test_unknown(self, codings: bytes) -> None:
        with pytest.raises(CodingUnknown):
            decoder(codings, 10)

    def test_an_unknown_name_is_shown_as_plain_text_and_short(self) -> None:
        with pytest.raises(CodingUnknown) as caught:
            decoder(b"\xff" + b"y" * 10_000, 10)
        assert str(caught.value).startswith("content coding \\xffyyy")
        assert len(str(caught.value)) < 100

    @given(st.binary(max_size=60))
    def test_any_value_is_known_or_unknown(self, codings: bytes) -> None:
        try:
            decoder(codings, 10)
        except CodingUnknown:
            pass


class TestSplits:
    @pytest.mark.parametrize("body", BODIES)
    @pytest.mark.parametrize("name", ENCODERS)
    def test_whole_and_in_pieces(self, name: str, body: str) -> None:
        codings, encode = ENCODERS[name]
        coded = encode(BODIES[body])
        for step in (0, 1, 2, 7, 1_000) if len(coded) < 10_000 else (0, 997, 65_537):
            assert decoded(codings, coded, step) == BODIES[body]

    @pytest.mark.parametrize("name", ENCODERS)
    def test_every_single_split(self, name: str) -> None:
        codings, encode = ENCODERS[name]
        body = b"every byte is a border " * 3
        coded = encode(body)
        for at in range(len(coded) + 1):
            made = new(codings)
            assert made.feed(coded[:at]) + made.feed(b"") + made.feed(coded[at:]) + made.finish() == body

    @settings(max_examples=150, deadline=None)
    @given(st.sampled_from(sorted(ENCODERS)), st.binary(max_size=400), st.lists(st.integers(0, 500), max_size=8))
    def test_any_body_any_splits(self, name: str, body: bytes, cuts: list[int]) -> None:
        codings, encode = ENCODERS[name]
        coded = encode(body)
        borders = [0, *sorted(min(cut, len(coded)) for cut in cuts), len(coded)]
        made = new(codings)
        out = b"".join(made.feed(coded[a:b]) for a, b in itertools.pairwise(borders))
        assert out + made.finish() == body

    @pytest.mark.parametrize("name", ENCODERS)
    def test_more_than_a_slice_at_once(self, name: str) -> None:
        codings, encode = ENCODERS[name]
        body = random.Random(3).randbytes(3 * DECODE_FEED_BYTES)
        assert decoded(codings, encode(body)) == body

    def test_output_comes_as_soon_as_it_can(self) -> None:
        made = zlib.compressobj(6, zlib.DEFLATED, 31)
        first = made.compress(b"first") + made.flush(zlib.Z_SYNC_FLUSH)
        reader = new(b"gzip")
        assert reader.feed(first) == b"first"
        assert reader.feed(made.compress(b"second") + made.flush()) == b"second"
        assert reader.finish() == b""


class TestBroken:
    @pytest.mark.parametrize("name", ENCODERS)
    def test_cut_short_anywhere(self, name: str) -> None:
        """Every beginning is an error but where a member ends, and that without a byte."""
        codings, encode = ENCODERS[name]
        body = b"cut short, wherever it is"
        coded = encode(body)
        for at in range(1, len(coded)):
            made = new(codings)
            out = made.feed(coded[:at])
            assert body.startswith(out)
            if name in ("members", "frames") and out in (body[: len(body) // 2], body):
                continue  # between two members it is a shorter body
            with pytest.raises(CodingBroken, match="too early"):
                made.finish()

    @pytest.mark.parametrize("name", ENCODERS)
    def test_without_a_byte_it_is_empty(self, name: str) -> None:
        made = new(ENCODERS[name][0])
        assert made.feed(b"") + made.finish() == b""

    @pytest.mark.parametrize("step", [0, 1])
    @pytest.mark.parametrize("more", [b"\0", b"garbage behind the end", b"\x1f\x8b", b"\x28"])
    @pytest.mark.parametrize("name", ENCODERS)
    def test_bytes_behind_the_end(self, name: str, more: bytes, step: int) -> None:
        """Zeros too, which gzip(1) lets pass: another reader may not."""
        codings, encode = ENCODERS[name]
        for body in (b"", b"body", BODIES["piece"]):
            with pytest.raises(CodingBroken):
                decoded(codings, encode(body) + more, step)

    @pytest.mark.parametrize("name", ENCODERS)
    def test_bytes_behind_the_inner_end(self, name: str) -> None:
        codings, encode = ENCODERS[name]
        if b"," not in codings:
            with pytest.raises(CodingBroken):
                decoded(codings + b",gzip", gzip_(encode(b"body") + b"more"))

    @pytest.mark.parametrize("codings", [b"gzip", b"deflate", b"br", b"zstd", b"gzip,br"])
    def test_the_wrong_coding(self, codings: bytes) -> None:
        with pytest.raises(CodingBroken):
            decoded(codings, b"this is plain text, not coded at all")

    def test_a_wrong_checksum(self) -> None:
        coded = bytearray(gzip_(b"body"))
        coded[-6] ^= 1
        with pytest.raises(CodingBroken):
            decoded(b"gzip", bytes(coded))

    def test_a_dictionary_that_we_do_not_have(self) -> None:
        made = zlib.compressobj(zdict=b"a dictionary")
        with pytest.raises(CodingBroken):
            decoded(b"deflate", made.compress(b"a dictionary") + made.flush())

    def test_it_stays_broken(self) -> None:
        made = new(b"gzip")
        for _ in range(2):
            with pytest.raises(CodingBroken):
                made.feed(b"no")
        with pytest.raises(CodingBroken):
            made.finish()

    @settings(max_examples=300, deadline=None)
    @given(
        st.sampled_from([b"gzip", b"deflate", b"br", b"zstd", b"gzip,br", b"zstd,gzip", b"br,zstd"]),
        st.binary(max_size=300),
        st.integers(1, 50),
    )
    def test_garbage_raises_nothing_else(self, codings: bytes, garbage: bytes, step: int) -> None:
        try:
            decoded(codings, garbage, step, max_bytes=100_000)
        except (CodingBroken, CodingTooLarge):
            pass

    @settings(max_examples=300, deadline=None)
    @given(st.sampled_from(sorted(ENCODERS)), st.data())
    def test_flipped_bytes_raise_nothing_else(self, name: str, data: st.DataObject) -> None:
        codings, encode = ENCODERS[name]
        coded = bytearray(encode(BODIES["text"]))
        for at in data.draw(st.lists(st.integers(0, len(coded) - 1), min_size=1, max_size=4)):
            coded[at] ^= data.draw(st.integers(1, 255))
        try:
            decoded(codings, bytes(coded), data.draw(st.sampled_from([0, 1, 33])), max_bytes=100_000)
        except (CodingBroken, CodingTooLarge):
            pass


class TestLimit:
    @pytest.mark.parametrize("name", ENCODERS)
    def test_exactly_the_limit_and_a_byte_more(self, name: str) -> None:
        codings, encode = ENCODERS[name]
        for size in (1, 4_000, DECODE_PIECE_BYTES):
            body = random.Random(4).randbytes(size)
            assert decoded(codings, encode(body), max_bytes=size) == body
            with pytest.raises(CodingTooLarge, match=f"more than {size} bytes"):
                decoded(codings, encode(body + b"x"), max_bytes=size)

    def test_it_stays_too_large(self) -> None:
        made = new(b"gzip", 1)
        with pytest.raises(CodingTooLarge):
            made.feed(gzip_(b"body"))
        with pytest.raises(CodingTooLarge):
            made.finish()

    def test_small_bodies_may_have_any_ratio(self) -> None:
        body = bytes(DECODE_RATIO_FREE_BYTES)
        for codings, encode in ENCODERS.values():
            assert decoded(codings, encode(body)) == body

    @pytest.mark.parametrize("name", ["gzip", "deflate", "br", "zstd"])
    def test_large_bodies_of_a_good_ratio(self, name: str) -> None:
        """What compresses best in earnest: lines that differ in a number, 1:15 to 1:42."""
        line = b'{"time":"2026-01-01T00:%02d:%02dZ","level":"info","msg":"request done","n":%d}\n'
        body = b"".join(line % (i // 60 % 60, i % 60, i) for i in range(40_000))
        assert len(body) > 2 * DECODE_RATIO_FREE_BYTES
        codings, encode = ENCODERS[name]
        assert decoded(codings, encode(body), 4_096) == body


def zeros(size: int, coding: str) -> bytes:
    """A bomb, made without holding what it decodes to."""
    block = bytes(MB)
    if coding == "br":
        maker = brotli.Compressor(quality=5, lgwin=22)
        return b"".join(maker.process(block) for _ in range(size // MB)) + maker.finish()
    if coding == "zstd":
        packer = zstd.ZstdCompressor(options={zstd.CompressionParameter.window_log: 23})
        return b"".join(packer.compress(block) for _ in range(size // MB)) + packer.flush()
    wbits = {"gzip": 31, "deflate": 15, "deflate-bare": -15}[coding]
    deflater = zlib.compressobj(9, zlib.DEFLATED, wbits)
    return b"".join(deflater.compress(block) for _ in range(size // MB)) + deflater.flush()


def defused(codings: bytes, bomb: bytes, step: int, max_bytes: int) -> tuple[int, int]:
    """Bytes that came out before it was refused, and the peak of memory that Python asked for meanwhile."""
    made = new(codings, max_bytes)
    out = 0
    tracemalloc.start()
    try:
        with pytest.raises(CodingTooLarge):
            for i in range(0, len(bomb), step):
                out += len(made.feed(bomb[i : i + step]))
            made.finish()
        return out, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


class TestBombs:
    SIZE = 48 * MB
    # what is out of Python's sight is bounded by the formats: a window of 32 KiB, 4 MiB (br), 8 MiB (zstd)
    SLACK = 4 * DECODE_FEED_BYTES + 4 * DECODE_PIECE_BYTES

    @pytest.mark.parametrize("step", [64, 1_000_000])
    @pytest.mark.parametrize("coding", ["gzip", "deflate", "deflate-bare", "br", "zstd"])
    def test_by_the_limit(self, coding: str, step: int) -> None:
        bomb = zeros(self.SIZE, coding)
        out, peak = defused(coding.partition("-")[0].encode(), bomb, step, 500_000)
        assert out <= 500_000
        assert peak < 2 * 500_000 + self.SLACK

    @pytest.mark.parametrize("step", [64, 1_000_000])
    @pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd"])
    def test_by_the_ratio(self, coding: str, step: int) -> None:
        """Without a limit, and with one it would not reach."""
        bomb = zeros(self.SIZE, coding)
        allowed = max(DECODE_RATIO_FREE_BYTES, DECODE_RATIO_MAX * len(bomb))
        for limit in (0, 2 * self.SIZE):
            out, peak = defused(coding.encode(), bomb, step, limit)
            assert out <= allowed
            assert peak < 2 * allowed + self.SLACK

    @pytest.mark.parametrize("inner", ["gzip", "br", "zstd"])
    @pytest.mark.parametrize("outer", [b"gzip", b"br", b"zstd"])
    def test_nested(self, inner: str, outer: bytes) -> None:
        """A bomb in a bomb: a few hundred bytes."""
        encode = {b"gzip": gzip_, b"br": br, b"zstd": zst}[outer]
        bomb = encode(zeros(self.SIZE, inner))
        assert len(bomb) < 4_096
        out, peak = defused(inner.encode() + b"," + outer, bomb, 100_000, 0)
        assert out <= DECODE_RATIO_FREE_BYTES
        assert peak < 2 * DECODE_RATIO_FREE_BYTES + self.SLACK

    @pytest.mark.parametrize("limit", [0, 1_000])
    def test_swallowed_by_the_layer_above(self, limit: int) -> None:
        """Nothing ever comes out of it: skippable frames of zeros, so the last layer's output says nothing."""
        inner = b"".join(b"\x50\x2a\x4d\x18" + (4 * MB).to_bytes(4, "little") + bytes(4 * MB) for _ in range(4))
        out, peak = defused(b"zstd,gzip", gzip_(inner), 4_096, limit)
        assert out == 0
        assert peak < self.SLACK + MB

    @pytest.mark.parametrize(("coding", "member"), [(b"gzip", gzip_(b"")), (b"zstd", zst(b"")), (b"zstd", SKIPPABLE)])
    def test_many_empty_members(self, coding: bytes, member: bytes) -> None:
        """They decode to nothing, and cost."""
        free = DECODE_MEMBERS_FREE
        assert decoded(coding, member * free) == b""
        with pytest.raises(CodingTooLarge, match="members"):
            decoded(coding, member * (free + 2 + free * len(member) // DECODE_MEMBER_BYTES))

    def test_many_members_of_some_size(self) -> None:
        """As block-compressing writers make them."""
        rng = random.Random(5)
        bodies = [rng.randbytes(DECODE_MEMBER_BYTES) for _ in range(2 * DECODE_MEMBERS_FREE)]
        for codings, encode in ((b"gzip", gzip_), (b"zstd", zst)):
            assert decoded(codings, b"".join(map(encode, bodies)), 3_000) == b"".join(bodies)

    def test_what_is_refused_holds_no_memory(self) -> None:
        """The library's state is freed with the error, not with the exchange."""
        made = new(b"br", 1)
        with pytest.raises(CodingTooLarge) as caught:
            made.feed(zeros(self.SIZE, "br"))
        assert not made._layers
        with pytest.raises(CodingTooLarge) as again:
            made.finish()
        assert again.value is caught.value

    def test_windows_of_brotli(self) -> None:
        """It decodes a whole window before it gives a byte: 16 MiB for a body of 200 bytes."""
        body = random.Random(6).randbytes(2_000)
        for window_log in range(10, 25):
            coded = brotli.compress(body, quality=1, lgwin=window_log)
            if window_log <= DECODE_BROTLI_WINDOW_LOG:
                assert decoded(b"br", coded, 1) == body
            else:
                with pytest.raises(CodingTooLarge, match="window"):
                    decoded(b"br", coded)

    @pytest.mark.parametrize("first", range(256))
    def test_window_of_every_first_byte(self, first: int) -> None:
        """RFC 7932 9.1 as its table, by the bits from the right."""
        table = {"0": 16, "0000001": 17, "0011": 18, "0101": 19, "0111": 20, "1001": 21, "1011": 22, "1101": 23}
        table |= {"1111": 24, "0100001": 10, "0110001": 11, "1000001": 12, "1010001": 13, "1100001": 14, "1110001": 15}
        bits = f"{first:08b}"
        known = [window_log for code, window_log in table.items() if bits.endswith(code)]
        if known:  # 0010001 is the extension for larger ones, which the library refuses
            assert _brotli_window_log(first) == known[0]

    def test_a_window_that_is_too_large(self) -> None:
        packer = zstd.ZstdCompressor(options={zstd.CompressionParameter.window_log: 24})
        coded = packer.compress(b"body") + packer.flush()
        with pytest.raises(CodingBroken):
            decoded(b"zstd", coded)
