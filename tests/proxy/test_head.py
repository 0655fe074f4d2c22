"""Which heads are accepted, and what becomes of them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.head import METHODS, Head, header_map, normalise
from shared.errors import RequestRefused

HOST = (b"Host", b"example.com")


def head(
    *fields: tuple[bytes, bytes],
    method: bytes = b"GET",
    target: bytes = b"/x?y=1",
    version: str = "1.1",
    host: bool = True,
    limit: int = 1000,
) -> Head:
    return normalise(method, target, version, [HOST, *fields] if host else list(fields), True, limit)


def refused(*fields: tuple[bytes, bytes], **how: object) -> int:
    with pytest.raises(RequestRefused) as caught:
        head(*fields, **how)  # type: ignore[arg-type]
    return caught.value.status


def test_plain_request_is_kept_as_it_is() -> None:
    """Names, order and values of the client's lines go upstream unchanged."""
    fields = ((b"X-A", b"1"), (b"x-b", b"\xe9"), (b"X-A", b"2"))
    got = head(*fields)
    assert got.kept == [HOST, *fields]
    assert (got.upstream_target, got.path, got.host_name) == (b"/x?y=1", b"/x", "example.com")


@pytest.mark.parametrize(
    ("fields", "how", "status"),
    [
        ((), {"version": "2.0"}, 505),
        ((), {"version": "0.9"}, 505),
        ((), {"method": b"CONNECT", "target": b"a:443"}, 405),
        ((), {"method": b"TRACE"}, 405),
        ((), {"method": b"DESCRIBE"}, 501),
        ((), {"host": False}, 400),
        (((b"host", b"b"),), {}, 400),
        (((b"Host", b"a b"),), {"host": False}, 400),
        (((b"Host", b""),), {"host": False}, 400),
        (((b"Host", b"user@a"),), {"host": False}, 400),
        (((b"X_Forwarded_For", b"1"),), {}, 400),
        (((b"Transfer-Encoding", b"gzip, chunked"),), {}, 501),
        (((b"Transfer-Encoding", b"chunked"), (b"transfer-encoding", b"chunked")), {}, 501),
        (((b"Transfer-Encoding", b"chunked"),), {"version": "1.0"}, 400),
        (((b"Transfer-Encoding", b"chunked"), (b"Content-Length", b"3")), {}, 400),
        (((b"Content-Length", b"+3"),), {}, 400),
        (((b"Content-Length", b"3"), (b"Content-Length", b"3")), {}, 400),
        (((b"Content-Length", b"1001"),), {}, 413),
        (((b"Expect", b"202-accepted"),), {}, 417),
        ((), {"target": b"/a#b"}, 400),
        ((), {"target": b"/a%2fb"}, 400),
        ((), {"target": b"/a%00b"}, 400),
        ((), {"target": b"/a%zz"}, 400),
        ((), {"target": b"/a%0d"}, 400),
        ((), {"target": b"/a/../b"}, 400),
        ((), {"target": b"/a/%2e%2e/b"}, 400),
        ((), {"target": b"/./b"}, 400),
        ((), {"target": b"/\xff"}, 400),
        ((), {"target": b"*"}, 400),
        ((), {"target": b"ftp://a/"}, 400),
        ((), {"target": b"http://u:p@a/"}, 400),
        ((), {"target": b"http:///x"}, 400),
    ],
)
def test_refused(fields: tuple[tuple[bytes, bytes], ...], how: dict[str, object], status: int) -> None:
    assert refused(*fields, **how) == status


def test_absolute_form_replaces_host() -> None:
    """Its authority wins over Host, in Host's place; the origin-form goes upstream (RFC 9112 3.2.2)."""
    got = head((b"A", b"1"), target=b"http://Other.example:81/p?q")
    assert got.kept == [(b"Host", b"Other.example:81"), (b"A", b"1")]
    assert (got.upstream_target, got.host_name, got.target) == (
        b"/p?q",
        "other.example",
        b"http://Other.example:81/p?q",
    )
    assert head(target=b"https://a").upstream_target == b"/"
    assert head(target=b"http://a?q").upstream_target == b"/?q"
    assert head(target=b"http://a", method=b"OPTIONS").upstream_target == b"*"


def test_http_1_0_without_host() -> None:
    """Only HTTP/1.0 may leave Host out; then it has no host name."""
    got = head(version="1.0", host=False)
    assert (got.host, got.host_name) == (b"", "")


def test_hop_by_hop_fields_go() -> None:
    """Connection, what it names, and the fixed list; but it cannot take Host or Content-Length away."""
    got = head(
        (b"Connection", b"close, X-Drop, Host, content-length"), (b"x-drop", b"1"), (b"Keep-Alive", b"1"),
        (b"TE", b"trailers"), (b"Trailer", b"x"), (b"Proxy-Authorization", b"s"), (b"Content-Length", b"3"),
        (b"X-Keep", b"1"), method=b"POST",
    )  # fmt: skip
    assert got.kept == [HOST, (b"Content-Length", b"3"), (b"X-Keep", b"1")]


def test_upgrade() -> None:
    """A WebSocket is recognised; any other upgrade is ignored and the field goes."""
    assert head((b"Connection", b"Upgrade"), (b"Upgrade", b"websocket")).is_websocket
    other = head((b"Connection", b"Upgrade"), (b"Upgrade", b"h2c"))
    assert not other.is_websocket
    assert other.kept == [HOST]
    assert not head((b"Upgrade", b"websocket")).is_websocket


@pytest.mark.parametrize(
    ("values", "kept"),
    [
        ([b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"], True),
        ([b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"] * 2, False),
        ([b"00-00000000000000000000000000000000-b7ad6b7169203331-01"], False),
        ([b"rubbish"], False),
    ],
)
def test_traceparent(values: list[bytes], kept: bool) -> None:
    """One valid traceparent is passed on with its tracestate; anything else takes both away."""
    got = head(*((b"traceparent", value) for value in values), (b"tracestate", b"a=b"), (b"baggage", b"c=d"))
    names = [name for name, _ in got.kept]
    assert (b"traceparent" in names, b"tracestate" in names) == (kept, kept)
    assert bool(got.traceparent) is kept
    assert b"baggage" in names


def test_client_ids() -> None:
    """X-Correlation-Id is ours alone; a valid X-Request-Id is remembered and passed on."""
    got = head((b"X-Correlation-Id", b"mine"), (b"X-Request-Id", b"abc-1"))
    assert got.kept == [HOST, (b"X-Request-Id", b"abc-1")]
    assert got.request_id == b"abc-1"
    assert head((b"X-Request-Id", b"a\tb")).request_id == b""


def test_header_map() -> None:
    """Lower-case names, all values in order, UTF-8 else latin-1 and never empty."""
    fields = [(b"A", b"1"), (b"a", b"2"), (b"B", "ü".encode()), (b"C", b"\xff")]
    assert header_map(fields) == {"a": ["1", "2"], "b": ["ü"], "c": ["ÿ"]}


names = st.binary(min_size=1, max_size=12) | st.sampled_from(
    [b"Host", b"Connection", b"Content-Length", b"Transfer-Encoding", b"Expect", b"Upgrade", b"traceparent"]
)
values = st.binary(max_size=20) | st.sampled_from([b"a", b"3", b"chunked", b"100-continue", b"websocket"])


@given(
    st.sampled_from(sorted(METHODS)) | st.binary(max_size=8),
    st.binary(max_size=40) | st.binary(max_size=30).map(lambda b: b"/" + b) | st.just(b"http://a/b"),
    st.sampled_from(["1.1", "1.0", "2.0"]),
    st.lists(st.tuples(names, values), max_size=6),
)
def test_any_head_is_accepted_or_refused(
    method: bytes, target: bytes, version: str, fields: list[tuple[bytes, bytes]]
) -> None:
    """Nothing but RequestRefused comes out, and what is accepted cannot confuse a server behind us."""
    try:
        got = normalise(method, target, version, [HOST, *fields], True, 1000)
    except RequestRefused as refusal:
        assert refusal.status in (400, 405, 413, 417, 501, 505)
        return
    kept = [name.lower() for name, _ in got.kept]
    assert kept.count(b"host") == 1
    assert b"transfer-encoding" not in kept
    assert kept.count(b"content-length") <= (not got.is_chunked)
    assert got.upstream_target[:1] in (b"/", b"*")
    assert not set(got.upstream_target) & set(b"\r\n\x00 #")
