"""The heads that leave the proxy."""

from hypothesis import given
from hypothesis import strategies as st

from proxy import apply
from proxy.apply import apply_ops, own_response, request_head, response_head
from proxy.head import normalise
from shared.decision import HeaderOp, OpAction
from shared.defaults import OP_REMEMBERED_CHARS

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
