"""Server-sent events are cut exactly, however they come in."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.guardrails.sse import SseParser
from shared.errors import Uninspectable

STREAMS = [
    b"data: a\n\ndata: b\n\n",
    b"data: a\r\n\r\ndata: b\r\n\r\n",
    b"data: a\r\rdata: b\r\r",
    b"\xef\xbb\xbfdata: a\n\ndata:b\n\n",
    b": comment\n\nevent: x\nid: 7\nretry: 10\ndata: one\ndata:two\ndata\n\n",
    b"\n\n\ndata: a\n\n\n\ndata: b\n\n",
    b"data: a\n\r\ndata: b\r\n\n",
    b"data: whole\n\ndata: no end",
    b"data: whole\n\ndata: no end\n",
    b"event: only\n\n",
    b"datax: 1\n\ndata : 2\n\n",
]


def events(data: bytes, sizes: list[int]) -> list[tuple[bytes, bytes, bytes | None]]:
    parser = SseParser(10_000)
    made = []
    at = 0
    for size in sizes:
        made += parser.feed(data[at : at + size])
        at += size
    made += parser.feed(data[at:])
    made += parser.end()
    return [(event.raw, event.name, event.data) for event in made]


@pytest.mark.parametrize("stream", STREAMS)
def test_every_split(stream: bytes) -> None:
    """Two pieces, or byte by byte: the same events, and together every byte."""
    whole = [(name, data) for _, name, data in events(stream, []) if data is not None]
    for split in range(len(stream) + 1):
        got = events(stream, [split])
        assert b"".join(raw for raw, _, _ in got) == stream
        assert [(name, data) for _, name, data in got if data is not None] == whole
    got = events(stream, [1] * len(stream))
    assert b"".join(raw for raw, _, _ in got) == stream
    assert [(name, data) for _, name, data in got if data is not None] == whole


@given(st.lists(st.sampled_from([b"data: x", b"data:", b"\r", b"\n", b"\r\n", b":c", b"event: e", b"\xef\xbb\xbf"])),
       st.lists(st.integers(1, 7), max_size=40))  # fmt: skip
def test_any_stream_any_split(tokens: list[bytes], sizes: list[int]) -> None:
    stream = b"".join(tokens)
    got = events(stream, sizes)
    assert b"".join(raw for raw, _, _ in got) == stream
    data = [(name, data) for _, name, data in got if data is not None]
    assert data == [(name, data) for _, name, data in events(stream, []) if data is not None]


def test_what_an_event_says() -> None:
    got = events(STREAMS[4], [])
    assert [(name, data) for _, name, data in got] == [(b"", None), (b"x", b"one\ntwo\n")]


def test_the_last_event_needs_no_end() -> None:
    """Some clients take it for one: it must not pass unseen."""
    assert events(b"data: {}", [])[0][2] == b"{}"


def test_rewritten_keeps_all_but_the_data() -> None:
    parser = SseParser(1000)
    raw = b"\xef\xbb\xbfdata: old\r\n: note\r\nid: 4\r\ndata: more\r\n\r\n"
    (event,) = parser.feed(raw)
    assert event.rewritten(b"new") == b"\xef\xbb\xbfdata: new\r\n: note\r\nid: 4\r\n\r\n"
    (last,) = SseParser(1000).feed(b"data:x\n\n")
    assert last.rewritten(b"y") == b"data: y\n\n"
    parser = SseParser(1000)
    parser.feed(b"data: end")
    assert parser.end()[0].rewritten(b"z") == b"data: z"


def test_an_event_without_end_is_bounded() -> None:
    parser = SseParser(100)
    with pytest.raises(Uninspectable):
        for _ in range(20):
            parser.feed(b"data: aaaaaaa\n")
