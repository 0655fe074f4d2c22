"""One head as a connection would read it: held against every case that the real listener is held against."""

import re

import pytest

from proxy.explain import explain
from proxy.explain_exchange import MADE_ANEW, rehearse
from proxy.explain_head import Peer, compare, read
from shared.config.schema import Config, Server, Target, Upstream
from shared.config.schema_routes import Match, Route
from tests.http.corpus import Case, cases

# As tests/http/test_corpus.py runs the proxy.
CONFIG = Config(
    server=Server(trusted_proxies=(), max_body_bytes=1000),
    upstreams=(Upstream("up", (Target("127.0.0.1:1"),)),),
    routes=(Route("any", "up"), Route("posts", "up", match=Match(path_prefix="/posts", methods=("POST",)))),
)
STRANGER = Peer("192.0.2.1", False)
PROXY = Peer("10.0.0.1", True)
END = b"\r\n\r\n"


def heads() -> list[tuple[Case, bytes, bytes]]:
    """(case, its first head, what is behind it), where there is a whole head."""
    out = []
    for case in cases():
        head, found, rest = case.segments[0].lstrip(b"\r\n").partition(END)
        if found:
            out.append((case, head + END, rest + b"".join(case.segments[1:])))
    return out


def head(*lines: str, first: str = "GET /x HTTP/1.1", host: str = "a") -> bytes:
    fields = [f"Host: {host}", *lines] if host else list(lines)
    return "\r\n".join([first, *fields, "", ""]).encode("latin-1")


def changes(data: bytes, peer: Peer = STRANGER) -> dict[str, list[tuple[str, str]]]:
    """Result -> (name, why) of each of the client's lines, and the names of ours."""
    reading = read(data, Server())
    assert reading.head is not None, reading.refusal
    sent = rehearse(reading.head, peer.ip, peer.is_trusted, Route("r", "up"), (), "up:1", Server())
    fields = compare(reading.received, reading.head, sent.raw, peer)
    return {
        "passed": [(field.name, field.why) for field in fields.passed],
        "dropped": [(field.name, field.why) for field in fields.dropped],
        "replaced": [(field.name, field.why) for field in fields.replaced],
        "added": [(field.name, "") for field in fields.added],
    }


@pytest.mark.parametrize(("case", "data", "rest"), heads(), ids=lambda x: x.path.stem if isinstance(x, Case) else "")
def test_as_the_real_listener(case: Case, data: bytes, rest: bytes) -> None:
    """The same status where the head decides it, and the same bytes upstream."""
    found = explain(CONFIG, data, "127.0.0.1")
    status = next(status for status in case.statuses if status >= 200)
    is_upgrade = found.request is not None and found.request.is_websocket
    if found.refused is not None:
        # llhttp reads on for the rest of HTTP/2's preface
        assert found.refused.status == status or data.startswith(b"PRI ") or (is_upgrade and status == 501), case.claim
        return
    if status >= 400:  # then it was not the head
        assert rest or is_upgrade, case.claim
        return
    at = case.upstream.find(b"\r\n" + re.escape(b"\r\n"))
    pattern = case.upstream[:at] + END
    ids = found.upstream_head.replace(f"traceparent: {MADE_ANEW.decode()}", "traceparent: " + 55 * "0")
    ids = ids.replace(MADE_ANEW.decode(), "0123456789-1")
    assert re.fullmatch(pattern, ids.encode("latin-1")), case.claim


def test_the_corpus_is_there() -> None:
    assert len(heads()) > 100


def test_hop_by_hop_and_what_connection_names() -> None:
    found = changes(head("Connection: close, X-Gone", "X-Gone: 1", "TE: trailers", "X-Kept: 1", "Upgrade: h2c"))
    assert found["passed"] == [("Host", ""), ("X-Kept", "")]
    assert found["dropped"] == [
        ("Connection", "hop-by-hop"),
        ("X-Gone", "named by Connection"),
        ("TE", "hop-by-hop"),
        ("Upgrade", "hop-by-hop"),
    ]


def test_an_upgrade_that_is_not_passed_on_shows_the_fields_as_they_came() -> None:
    """The connection reads such a head twice, the second time without them."""
    found = changes(head("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: A"))
    assert [name for name, _ in found["dropped"]] == ["Connection", "Upgrade", "HTTP2-Settings"]


def test_forwarded_fields_of_a_stranger_and_of_a_trusted_proxy() -> None:
    data = head("X-Forwarded-For: 9.9.9.9", "Forwarded: for=9.9.9.9", "X-Forwarded-Proto: https")
    assert {why for _, why in changes(data)["replaced"]} == {"not from a trusted proxy"}
    assert {why for _, why in changes(data, PROXY)["replaced"]} == {"of a trusted proxy: continued"}


def test_ids() -> None:
    found = changes(head("X-Correlation-Id: 1", "Traceparent: no", "Tracestate: a=b", "X-Request-Id: 7"))
    assert found["passed"] == [("Host", ""), ("X-Request-Id", "")]
    assert ("Tracestate", "without one valid traceparent") in found["dropped"]
    assert ("Traceparent", "without one valid traceparent") in found["replaced"]
    assert ("X-Correlation-Id", "every request gets one of ours") in found["replaced"]


def test_a_valid_traceparent_is_passed_and_none_added() -> None:
    found = changes(head(f"traceparent: 00-{'1' * 32}-{'2' * 16}-01", "tracestate: a=b"))
    assert ("traceparent", "") in found["passed"]
    assert "traceparent" not in [name for name, _ in found["added"]]


def test_one_of_two_equal_lines_is_not_counted_twice() -> None:
    found = changes(head("X-A: 1", "X-A: 1", "X-A: 2"))
    assert found["passed"].count(("X-A", "")) == 3


def test_framing_and_expect() -> None:
    found = changes(head("Transfer-Encoding: chunked", "Expect: 100-continue", first="POST /x HTTP/1.1"))
    assert ("Transfer-Encoding", "framing is written anew") in found["replaced"]
    assert ("Expect", "answered here, once the request is allowed") in found["dropped"]


def test_http_1_0_without_host_gets_the_upstreams() -> None:
    found = changes(head(first="GET /x HTTP/1.0", host=""))
    assert ("host", "") in found["added"]


def test_an_absolute_target_replaces_host() -> None:
    found = changes(head(first="GET http://b/x HTTP/1.1"))
    assert found["replaced"] == [("Host", "the target's own authority counts")]
    assert ("Host", "") in found["added"]


def test_nothing_but_the_head_is_read() -> None:
    reading = read(head("Content-Length: 5", first="POST /x HTTP/1.1") + b"12345GET /smuggled HTTP/1.1", Server())
    assert reading.head is not None
    assert reading.head.path == b"/x"
