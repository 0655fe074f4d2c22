"""Repeated heads: taken without the parser exactly where the parser would have said the same."""

from types import SimpleNamespace
from typing import cast

import httptools
import msgspec
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.head import Field, Head, header_map, normalise
from proxy.protocol import ProxyProtocol
from proxy.repeat import Habits, Repeat, block_of, is_repeatable
from proxy.streams import NEXT_REQUEST
from shared.defaults import MAX_TARGET_BYTES, REPEATED_HEAD_BYTES
from shared.errors import RequestRefused

BLOCK = (
    b"Host: www.example.com\r\nUser-Agent: x/1\r\nX-Twice: 1\r\nX-Twice: 2\r\n"
    b"Connection: keep-alive, x-gone\r\nX-Gone: 1\r\n\r\n"
)


class Whole:
    """A request through the parser, as the connection does it."""

    def __init__(self, data: bytes) -> None:
        self.url = b""
        self.fields: list[Field] = []
        self.head: Head | None = None
        self.parser = httptools.HttpRequestParser(self)
        self.parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append((name, value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        parser = self.parser
        self.head = normalise(
            parser.get_method(), self.url, parser.get_http_version(), self.fields, parser.should_keep_alive(), 0
        )


def parsed(data: bytes) -> Head | None:
    """The head that the parser's way leads to; None = refused."""
    try:
        return Whole(data).head
    except (httptools.HttpParserError, httptools.HttpParserUpgrade):
        return None


def same(one: Head, other: Head) -> bool:
    """But for what a repeated head knows besides."""
    ours, theirs = msgspec.structs.asdict(one), msgspec.structs.asdict(other)
    for name in ("kept_lines", "kept_names", "front", "map_json", "event_rest", "lasting", "route"):
        del ours[name], theirs[name]
    return ours == theirs


def learnt(data: bytes) -> Repeat | None:
    head = parsed(data)
    block = block_of(data)
    return Repeat(block, head) if head is not None and is_repeatable(data, block, head) else None


def repeat(method: bytes = b"GET") -> Repeat:
    made = learnt(method + b" / HTTP/1.1\r\n" + BLOCK)
    assert made is not None
    return made


def test_another_target() -> None:
    """The same lines, another target: everything that depends on it is decided anew."""
    head = repeat().head_of(b"GET /a%20b?q=1 HTTP/1.1\r\n" + BLOCK)
    assert head is not None
    assert (head.method, head.target, head.path, head.upstream_target) == (
        b"GET",
        b"/a%20b?q=1",
        b"/a b",
        b"/a%20b?q=1",
    )
    assert head.kept_lines == b"Host: www.example.com\r\nUser-Agent: x/1\r\nX-Twice: 1\r\nX-Twice: 2\r\n"
    assert head.kept_names == {"host", "user-agent", "x-twice"}
    assert orjson.loads(head.map_json or b"") == header_map(head.fields)


def test_nothing_of_the_target_is_inherited() -> None:
    """A head that was routed and shown to agents before it was learnt: its successor is neither."""
    head = parsed(b"GET /admin HTTP/1.1\r\n" + BLOCK)
    assert head is not None
    head.route, head.event_rest, head.lasting = object(), b"/admin", b"admin's"
    successor = Repeat(BLOCK, head).head_of(b"GET /public HTTP/1.1\r\n" + BLOCK)
    assert successor is not None
    assert (successor.route, successor.event_rest, successor.lasting) == (None, None, None)
    assert successor.path == b"/public"
    assert same(successor, cast(Head, parsed(b"GET /public HTTP/1.1\r\n" + BLOCK)))


def test_the_very_same_request_has_the_very_same_head() -> None:
    """To the byte: nothing is found out again. Another target in between is another head."""
    one = repeat()
    first, again = (one.head_of(b"GET /1 HTTP/1.1\r\n" + BLOCK) for _ in range(2))
    assert first is again is not None
    other = one.head_of(b"GET /2 HTTP/1.1\r\n" + BLOCK)
    assert other is not None
    assert other is not first
    third = one.head_of(b"GET /1 HTTP/1.1\r\n" + BLOCK)
    assert third is not None
    assert same(third, first)


def test_heads_are_not_shared() -> None:
    """Two requests on their way at once keep their own targets."""
    one = repeat()
    first, second = one.head_of(b"GET /1 HTTP/1.1\r\n" + BLOCK), one.head_of(b"GET /2 HTTP/1.1\r\n" + BLOCK)
    assert first is not None
    assert second is not None
    assert (first.target, second.target) == (b"/1", b"/2")


@pytest.mark.parametrize(
    "data",
    [
        b"HEAD / HTTP/1.1\r\n" + BLOCK,
        b"GET / HTTP/1.0\r\n" + BLOCK,
        b"GET / HTTP/1.1\n" + BLOCK,
        b"\r\nGET / HTTP/1.1\r\n" + BLOCK,
        b" GET / HTTP/1.1\r\n" + BLOCK,
        b"GET / HTTP/1.1\r\n" + BLOCK + b"GET",
        b"GET / HTTP/1.1\r\n" + BLOCK[:-1],
        b"GET / HTTP/1.1\r\nX: 1\r\n" + BLOCK,
        b"GET * HTTP/1.1\r\n" + BLOCK,
        b"GET http://h/ HTTP/1.1\r\n" + BLOCK,
        b"GET /" + b"a" * MAX_TARGET_BYTES + b" HTTP/1.1\r\n" + BLOCK,
        b"GET / HTTP/1.1\r\n" + BLOCK.replace(b"x/1", b"x/2"),
        b"",
        BLOCK,
    ],
)
def test_anything_else_is_the_parsers(data: bytes) -> None:
    assert repeat().head_of(data) is None


@pytest.mark.parametrize("target", [b"/a b", b"/\x00", b"/\xff", b"/#x", b"/%2f", b"/../x", b"/%zz", b"/\t"])
def test_a_bad_target_is_refused_as_ever(target: bytes) -> None:
    with pytest.raises(RequestRefused) as refused:
        repeat().head_of(b"GET %b HTTP/1.1\r\n" % target + BLOCK)
    assert refused.value.status == 400


@pytest.mark.parametrize(
    "data",
    [
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        b"GET / HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n",
        b"GET http://a/ HTTP/1.1\r\nHost: a\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
        b"\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 2,
        b"GET /  HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * REPEATED_HEAD_BYTES + b"\r\n\r\n",
    ],
)
def test_not_learnt(data: bytes) -> None:
    """Only a request that is nothing but itself, and kept alive, teaches anything."""
    assert learnt(data) is None


def test_a_body_or_an_expectation_is_not_learnt() -> None:
    for line in (b"Content-Length: 3", b"Transfer-Encoding: chunked", b"Content-Length: 3\r\nExpect: 100-continue"):
        assert learnt(b"POST / HTTP/1.1\r\nHost: a\r\n" + line + b"\r\n\r\n") is None


def test_an_upgrade_that_was_taken_out_is_not_learnt() -> None:
    """`Upgrade: h2c` goes the long way each time: the head is not what the lines say."""
    data = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
    head = normalise(b"GET", b"/", "1.1", [(b"Host", b"a"), (b"Connection", b"")], True, 0)
    assert not is_repeatable(data, block_of(data), head)
    head.fields.append((b"Upgrade", b"h2c"))
    assert is_repeatable(data, block_of(data), head)


_pieces = st.sampled_from(
    [
        b"GET",
        b"POST",
        b"HEAD",
        b" ",
        b"/",
        b"/a",
        b"?x",
        b"#",
        b"%41",
        b"%2f",
        b"..",
        b"//",
        b";",
        b" HTTP/1.1",
        b" HTTP/1.0",
        b"\r\n",
        b"\n",
        b"\r",
        b"\t",
        b"\x00",
        b"\xc3\xa9",
        b"Host: b",
        b"Content-Length: 5",
        b"x",
        BLOCK,
        BLOCK[:20],
    ]
)


@given(st.lists(_pieces, max_size=8).map(b"".join))
def test_never_more_than_the_parser_takes(middle: bytes) -> None:
    """Whatever bytes stand before the block: taken only where the parser takes the same head, and nothing is left."""
    for data in (middle + BLOCK, b"GET " + middle + b" HTTP/1.1\r\n" + BLOCK, b"GET /" + middle + BLOCK):
        try:
            ours = repeat().head_of(data)
        except RequestRefused:
            continue  # the connection asks the parser then
        if ours is not None:
            theirs = parsed(data)
            assert theirs is not None
            assert same(ours, theirs)
            assert data.find(b"\r\n\r\n") == len(data) - 4


def test_what_is_answered_at_once_is_learnt_too() -> None:
    """A refusal by an open breaker is over before the read is: the parser need not look at every further one."""
    data = b"GET /a HTTP/1.1\r\n" + BLOCK
    ways: list[str] = []
    connection = SimpleNamespace(
        context=SimpleNamespace(bytes_in=0, requests=0), waiting_for=NEXT_REQUEST, is_full=False, driver=None,
        _is_lingering=False, _early=None, _wants_hold=False, _started=None, _habits=Habits(),
        _limits=SimpleNamespace(max_header_bytes=1_024),
    )  # fmt: skip

    def take(data: bytes) -> None:
        ways.append("parsed")
        connection._started = parsed(data)

    connection._take = take
    connection._begin = lambda head: ways.append("known")
    for _ in range(4):
        ProxyProtocol.data_received(connection, data)  # type: ignore[arg-type]
    assert ways == ["parsed", "parsed", "known", "known"]
    assert connection._started is None
