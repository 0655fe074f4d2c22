"""The heads that leave the proxy."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy import apply
from proxy.apply import (
    apply_ops,
    own_response,
    relayed_head,
    relayed_whole,
    repeated_head,
    request_head,
    response_head,
)
from proxy.head import Front, normalise
from proxy.repeat import Repeat
from proxy.upstream.response import read_head
from shared.decision import HeaderOp, OpAction
from shared.defaults import OP_REMEMBERED_CHARS, REPEATED_HEAD_BYTES

SET, ADD, REMOVE = OpAction.SET, OpAction.ADD, OpAction.REMOVE


def test_operations_in_order() -> None:
    """Set replaces the first of its name in place and drops the rest, whatever the case."""
    fields = [(b"X-A", b"1"), (b"B", b"2"), (b"x-a", b"3")]
    assert apply_ops(fields, (HeaderOp(SET, "x-a", "9"),)) == [(b"X-A", b"9"), (b"B", b"2")]
    assert apply_ops(fields, (HeaderOp(REMOVE, "x-a"), HeaderOp(ADD, "c", "é"), HeaderOp(SET, "d", "☃"))) == [
        (b"B", b"2"), (b"c", b"\xe9"), (b"d", "☃".encode()),
    ]  # fmt: skip
    assert fields == [(b"X-A", b"1"), (b"B", b"2"), (b"x-a", b"3")]


def test_request_head_is_the_clients_plus_ours() -> None:
    fields = [(b"Host", b"a"), (b"Accept", b"*/*"), (b"Transfer-Encoding", b"chunked")]
    head = normalise(b"POST", b"/x?y", "1.1", fields, True, 0)
    made = request_head(head, b"up:1", (HeaderOp(SET, "x-agent", "ok"),), b"x-forwarded-for: 1.2.3.4\r\n", b"c-1", b"t")
    assert made == (
        b"POST /x?y HTTP/1.1\r\nHost: a\r\nAccept: */*\r\nx-agent: ok\r\ntransfer-encoding: chunked\r\n"
        b"x-forwarded-for: 1.2.3.4\r\ntraceparent: t\r\nvia: 1.1 wardgate\r\nx-correlation-id: c-1\r\n\r\n"
    )


def test_operations_act_on_our_own_lines_too() -> None:
    """An agent may replace or remove what we say of the client; there is never a second line."""
    head = normalise(b"GET", b"/", "1.1", [(b"Host", b"a")], True, 0)
    ops = (
        HeaderOp(SET, "x-forwarded-for", "9.9.9.9"),
        HeaderOp(REMOVE, "forwarded"),
        HeaderOp(SET, "traceparent", "t2"),
    )
    made = request_head(head, b"up", ops, b"x-forwarded-for: 1.2.3.4\r\nforwarded: for=1.2.3.4\r\n", b"c", b"t")
    assert made == (
        b"GET / HTTP/1.1\r\nHost: a\r\nx-forwarded-for: 9.9.9.9\r\ntraceparent: t2\r\n"
        b"via: 1.1 wardgate\r\nx-correlation-id: c\r\n\r\n"
    )


def test_http_1_0_without_host_gets_the_upstreams() -> None:
    head = normalise(b"GET", b"/", "1.0", [], False, 0)
    assert request_head(head, b"up:1", (), b"", b"c", b"").startswith(
        b"GET / HTTP/1.1\r\nhost: up:1\r\nvia: 1.0 wardgate"
    )


def test_response_head() -> None:
    made = response_head(
        200, [(b"A", b"1")], (HeaderOp(SET, "b", "2"),), b"connection: close\r\n", b"c", b"1.1 wardgate"
    )
    assert made == (
        b"HTTP/1.1 200 OK\r\nA: 1\r\nb: 2\r\nconnection: close\r\nvia: 1.1 wardgate\r\nx-correlation-id: c\r\n\r\n"
    )


@given(st.sampled_from([200, 204, 304, 403, 503]), st.binary(max_size=9), st.booleans(), st.booleans())
def test_own_response_frames_itself(status: int, body: bytes, is_head: bool, close: bool) -> None:
    """HEAD, 204 and 304 carry no body; otherwise Content-Length is the body's."""
    made = own_response(status, [], (), body, b"c", b"now", is_head=is_head, close=close)
    head, _, rest = made.partition(b"\r\n\r\n")
    if status in (204, 304):
        assert b"content-length" not in head
        assert not rest
    else:
        assert b"content-length: %d" % len(body) in head
        assert rest == (b"" if is_head else body)
    assert (b"connection: close" in head) is close


def test_long_values_are_not_remembered() -> None:
    """What agents say over and over is kept as a line; what is long is made each time, or memory would be theirs."""
    before = apply._known_line.cache_info().currsize
    long = HeaderOp(OpAction.SET, "x-long", "v" * (OP_REMEMBERED_CHARS + 1))
    assert apply._line_of(long) == b"x-long: %b\r\n" % long.value.encode()
    assert apply._known_line.cache_info().currsize == before
    short = HeaderOp(OpAction.SET, "x-short-and-new", "v" * OP_REMEMBERED_CHARS)
    assert apply._line_of(short) == b"x-short-and-new: %b\r\n" % short.value.encode()
    assert apply._known_line.cache_info().currsize == before + 1


OPS = [
    (),
    (HeaderOp(SET, "x-agent", "ok"),),
    (HeaderOp(SET, "x-agent", "ok"), HeaderOp(REMOVE, "accept")),
    (HeaderOp(SET, "x-forwarded-for", "9.9.9.9"),),
    (HeaderOp(SET, "traceparent", "t2"),),
    (HeaderOp(REMOVE, "traceparent"),),
    (HeaderOp(SET, "x-much", "v" * REPEATED_HEAD_BYTES),),
]
OF_CLIENT = b"00-" + b"1" * 32 + b"-" + b"2" * 16 + b"-01"


@pytest.mark.parametrize("ops", OPS, ids=lambda ops: "+".join(op.name for op in ops))
@pytest.mark.parametrize("traceparent", [b"", OF_CLIENT], ids=["ours", "theirs"])
def test_a_repeated_head_goes_upstream_like_the_one_before_it(ops: tuple[HeaderOp, ...], traceparent: bytes) -> None:
    """With its own target and ids; and nothing of an earlier request's."""
    fields = [(b"Host", b"a"), (b"Accept", b"*/*"), *([(b"traceparent", traceparent)] if traceparent else [])]
    plain = normalise(b"GET", b"/1", "1.1", fields, True, 0)
    repeat = Repeat(b"".join(b"%b: %b\r\n" % field for field in fields) + b"\r\n", plain)
    lines = b"\r\n".join(b"%b: %b" % field for field in fields)
    first, second = (repeat.head_of(b"GET /%d HTTP/1.1\r\n%b\r\n\r\n" % (n, lines)) for n in (1, 2))
    assert first is not None
    assert second is not None
    front = second.front
    assert front is first.front is not None
    ids = [(b"c-1", b"" if traceparent else b"t-1"), (b"c-2", b"" if traceparent else b"t-2")]
    request_head(first, b"up", ops, b"x-forwarded-for: 1.2.3.4\r\n", *ids[0])
    expected = request_head(
        normalise(b"GET", b"/2", "1.1", fields, True, 0), b"up", ops, b"x-forwarded-for: 1.2.3.4\r\n", *ids[1]
    )
    if front.ops is ops:
        assert repeated_head(second, front, *ids[1]) == expected
    else:
        ours = not traceparent and any(op.name in apply._OURS for op in ops)
        assert ours or ops is OPS[-1], "only what is this request's alone, or is long, is not remembered"
    assert request_head(second, b"up", ops, b"x-forwarded-for: 1.2.3.4\r\n", *ids[1]) == expected


def test_fields_and_framing_of_one_request_are_not_remembered() -> None:
    head = normalise(b"GET", b"/", "1.1", [(b"Host", b"a"), (b"Range", b"bytes=0-1")], True, 0)
    head.front = Front()
    request_head(head, b"up", (), b"", b"c", b"t", [(b"Host", b"a")], b"")
    assert head.front.ops is None


def test_a_response_relayed_whole_is_the_head_and_the_body() -> None:
    response = read_head(b"HTTP/1.0 200 OK\r\nA: 1\r\nConnection: close\r\nContent-Length: 3\r\n\r\n")
    for number in (b"1", b"2"):
        head = relayed_head(200, response.lines(), b"", b"c-" + number, apply.VIA_1_0)
        assert relayed_whole(response, b"c-" + number, b"ab" + number) == head + b"ab" + number
