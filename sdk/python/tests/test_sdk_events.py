"""Views read what the protocol sends, lazily, and refuse what is not what its type says."""

from typing import Any

import pytest

from wardgate_agent import Configure, Headers, MalformedEvent
from wardgate_agent.events import (
    VIEWS,
    GuardrailInspect,
    RequestBodyChunk,
    RequestComplete,
    RequestHeaders,
    ResponseBodyChunk,
    ResponseHeaders,
    WebSocketFrame,
)

METADATA = {
    "correlation_id": "c",
    "request_id": "r",
    "client_ip": "192.0.2.1",
    "client_port": 4711,
    "server_name": "example.com",
    "protocol": "HTTP/1.1",
    "route_id": "api",
    "upstream_id": "app",
    "timestamp": "2026-01-01T00:00:00.000Z",
    "traceparent": "00-1-2-01",
    "tls_version": "TLSv1.3",
    "tls_cipher": "X",
    "client_cert_subject": "CN=a",
}


def head(uri: str = "/a?b=1&b=2", **more: Any) -> RequestHeaders:
    raw = {"method": "GET", "uri": uri, "metadata": METADATA, "headers": {}, "has_body": True, **more}
    return RequestHeaders(raw, b"", 200)


def test_headers_are_case_insensitive_and_keep_every_value() -> None:
    headers = Headers({"x-a": ["1", "2"], "empty": []})
    assert headers["X-A"] == headers.get("x-a") == "1"
    assert headers.get_all("X-a") == ["1", "2"]
    assert headers.get_all("nope") == []
    assert headers.get("nope") is None
    assert headers.get("nope", "d") == "d"
    assert "X-A" in headers
    assert "nope" not in headers
    assert "empty" not in headers
    assert 7 not in headers
    assert list(headers) == ["x-a", "empty"]
    assert len(headers) == 2
    assert list(headers.pairs()) == [("x-a", "1"), ("x-a", "2")]
    assert "x-a" in repr(headers)
    with pytest.raises(KeyError):
        headers["nope"]


def test_header_values_that_are_no_list_are_malformed() -> None:
    with pytest.raises(MalformedEvent):
        Headers({"x": "1"}).get("x")  # type: ignore[dict-item]


def test_request_headers() -> None:
    event = head()
    assert (event.method, event.uri, event.has_body, event.budget_ms) == ("GET", "/a?b=1&b=2", True, 200)
    assert (event.path, event.query, event.query_args) == ("/a", "b=1&b=2", {"b": ["1", "2"]})
    assert (event.correlation_id, event.client_ip, event.route_id) == ("c", "192.0.2.1", "api")
    assert event.headers is event.headers
    metadata = event.metadata
    assert metadata is event.metadata
    names = [name for name in dir(metadata) if not name.startswith("_") and name != "raw"]
    assert {name: getattr(metadata, name) for name in names} == METADATA


@pytest.mark.parametrize(
    ("uri", "raw_path", "path"),
    [
        ("/", "/", "/"),
        ("/%61dmin/x?y", "/%61dmin/x", "/admin/x"),
        ("/%2561", "/%2561", "/%61"),
        ("http://h/p?q", "/p", "/p"),
        ("http://h", "/", "/"),
        ("http://h?q", "/", "/"),
        ("*", "*", "*"),
        ("/http://x", "/http://x", "/http://x"),
    ],
)
def test_path_is_decoded_once(uri: str, raw_path: str, path: str) -> None:
    event = head(uri)
    assert (event.raw_path, event.path) == (raw_path, path)


@pytest.mark.parametrize(
    "wrong",
    [{"method": 1}, {"uri": None}, {"headers": "x"}, {"headers": None}],
)
def test_wrong_types_are_malformed(wrong: dict[str, Any]) -> None:
    with pytest.raises(MalformedEvent):
        head(**wrong)


@pytest.mark.parametrize("view", VIEWS)
def test_an_empty_event_is_malformed(view: Any) -> None:
    with pytest.raises(MalformedEvent):
        view({}, b"", 1)


def test_optional_members_are_none_when_absent() -> None:
    event = RequestHeaders({"method": "GET", "uri": "/", "metadata": {}, "headers": {}}, b"", 1)
    assert event.metadata.tls_version is None
    assert event.metadata.client_ip == ""
    assert event.has_body is False


def test_metadata_may_be_absent_but_not_something_else() -> None:
    assert head(metadata=None).correlation_id == ""
    with pytest.raises(MalformedEvent):
        _ = head(metadata=[]).client_ip


def test_response_headers() -> None:
    event = ResponseHeaders({**head().raw, "status": 404}, b"", 1)
    assert event.status == 404
    with pytest.raises(MalformedEvent):
        ResponseHeaders({**head().raw, "status": "404"}, b"", 1)


def test_chunks() -> None:
    raw = {"correlation_id": "c", "chunk_index": 1, "is_last": True, "bytes_received": 9, "bytes_sent": 8}
    request = RequestBodyChunk({**raw, "total_size": 9}, b"abc", 1)
    assert (request.chunk_index, request.is_last, request.bytes_received, request.total_size) == (1, True, 9, 9)
    assert (request.body, request.correlation_id) == (b"abc", "c")
    response = ResponseBodyChunk(raw, b"", 1)
    assert (response.bytes_sent, response.total_size) == (8, None)
    with pytest.raises(MalformedEvent):
        RequestBodyChunk({**raw, "chunk_index": True}, b"", 1)


def test_request_complete() -> None:
    raw = {
        **head().raw,
        "status": 503,
        "duration_ms": 1.5,
        "request_body_size": 1,
        "response_body_size": 2,
        "upstream_attempts": 3,
        "error": "timeout",
        "decided_by": "waf",
    }
    event = RequestComplete(raw, b"", 1)
    assert (event.status, event.duration_ms, event.upstream_attempts) == (503, 1.5, 3)
    assert (event.request_body_size, event.response_body_size) == (1, 2)
    assert (event.error, event.decided_by) == ("timeout", "waf")


def test_websocket_frame() -> None:
    raw = {"opcode": "text", "client_to_server": False, "frame_index": 2, "fin": True, "route_id": "r"}
    event = WebSocketFrame({**raw, "client_ip": "::1"}, b"h\xc3", 1)
    assert (event.opcode, event.client_to_server, event.frame_index, event.is_final) == ("text", False, 2, True)
    assert (event.route_id, event.client_ip, event.text) == ("r", "::1", "h�")


def test_guardrail_inspect() -> None:
    raw = {"content": "aé€x", "inspection_type": "pii_detection", "direction": "completion", "model": "m"}
    event = GuardrailInspect({**raw, "categories": ["a"], "metadata": {"k": 1}, "route_id": "r"}, b"", 1)
    assert (event.direction, event.model, event.categories) == ("completion", "m", ["a"])
    assert (event.metadata, event.route_id) == ({"k": 1}, "r")
    assert event.span(1, 3) == (1, 6)
    assert event.content.encode()[1:6].decode() == "é€"


def test_configure() -> None:
    configure = Configure({"config": {"paranoia": 2}, "config_version": "7", "timeout_ms": 200})
    assert (configure.get("paranoia"), configure.get("x", 1), configure.config_version) == (2, 1, "7")
    assert (configure.timeout_ms, configure.max_request_body_bytes, configure.max_response_body_bytes) == (
        200,
        None,
        None,
    )
    assert Configure({"config": [1]}).get("x") is None
    assert "paranoia" in repr(configure)
