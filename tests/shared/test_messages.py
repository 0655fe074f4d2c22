"""Events as agents read them: every documented field, true, and always JSON."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.wire.messages import (
    Completion,
    connection_metadata,
    guardrail_inspect_event,
    headers_json,
    lasting_metadata,
    metadata,
    request_body_chunk_event,
    request_complete_event,
    request_headers_event,
    request_headers_rest,
    response_body_chunk_event,
    response_headers_event,
    route_metadata,
    target_json,
    text,
    timestamp,
    websocket_frame_event,
)

META = metadata(
    b"ab12-7",
    b"",
    lasting_metadata(
        "api.example.com", connection_metadata("10.0.0.1", 4711), route_metadata("api", "app"), http_1_0=False
    ),
    b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    1_700_000_000.25,
)


class TestEvents:
    def test_request_headers(self) -> None:
        """One flat object, event_type first, every documented field."""
        raw = request_headers_event(
            META,
            request_headers_rest(
                b"POST", target_json(b"/v1/x?q=%20"), headers_json({"host": ["a"], "x": ["1", "2"]}), True
            ),
        )
        assert raw.startswith(b'{"event_type":"request_headers",')
        assert json.loads(raw) == {
            "event_type": "request_headers",
            "metadata": {
                "correlation_id": "ab12-7",
                "request_id": "ab12-7",
                "server_name": "api.example.com",
                "client_ip": "10.0.0.1",
                "client_port": 4711,
                "route_id": "api",
                "upstream_id": "app",
                "protocol": "HTTP/1.1",
                "timestamp": "2023-11-14T22:13:20.250Z",
                "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            },
            "method": "POST",
            "uri": "/v1/x?q=%20",
            "headers": {"host": ["a"], "x": ["1", "2"]},
            "has_body": True,
        }

    def test_response_headers(self) -> None:
        """The same and the status."""
        event = json.loads(response_headers_event(META, b"GET", b'"/"', 204, headers_json({"server": ["x"]}), False))
        assert next(iter(event)) == "event_type"
        assert (event["event_type"], event["status"], event["has_body"]) == ("response_headers", 204, False)
        assert event["headers"] == {"server": ["x"]}

    def test_metadata_of_tls_and_trusted_clients(self) -> None:
        """TLS fields only over TLS; a believed request id in its own field; the protocol really spoken."""
        connection = connection_metadata("::1", 1, "TLSv1.3", "TLS_AES_128_GCM_SHA256")
        lasting = lasting_metadata("", connection, route_metadata("r", "u"), http_1_0=True)
        raw = metadata(b"c-1", b"client", lasting, b"00-x-y-01", 0.0)
        made = json.loads(b"{" + raw + b"}")["metadata"]
        assert (made["tls_version"], made["tls_cipher"]) == ("TLSv1.3", "TLS_AES_128_GCM_SHA256")
        assert (made["correlation_id"], made["request_id"], made["protocol"]) == ("c-1", "client", "HTTP/1.0")

    @given(
        st.text(), st.text(), st.binary(), st.dictionaries(st.text(), st.lists(st.text()), max_size=3), st.booleans()
    )
    def test_always_json(
        self, server_name: str, route: str, uri: bytes, headers: dict[str, list[str]], has_body: bool
    ) -> None:
        """No value of a client's breaks out of its string: what is put in is what is read."""
        part = lasting_metadata(server_name, connection_metadata("", 0), route_metadata(route, route), http_1_0=False)
        meta = metadata(b"c", b"", part, b"", 1.0)
        rest = request_headers_rest(b"GET", target_json(uri), headers_json(headers), has_body)
        event = json.loads(request_headers_event(meta, rest))
        assert event["metadata"]["server_name"] == server_name
        assert event["metadata"]["route_id"] == route
        assert (event["method"], event["uri"], event["headers"], event["has_body"]) == (
            "GET",
            text(uri),
            headers,
            has_body,
        )
        assert set(event) == {"event_type", "metadata", "method", "uri", "headers", "has_body"}

    def test_text_of_header_values(self) -> None:
        """UTF-8, else latin-1; never an empty string for bytes that were there."""
        assert text("é".encode()) == "é"
        assert text(b"\xe9\xff") == "éÿ"
        assert text(b"") == ""

    @given(st.binary(min_size=1))
    def test_no_value_is_lost(self, value: bytes) -> None:
        """Any bytes become a text that names them."""
        made = text(value)
        assert value in (made.encode(), made.encode("latin-1", "replace"))

    def test_timestamp(self) -> None:
        """Milliseconds and Z; the second's text is made anew when the second changes, also backwards."""
        assert timestamp(0.999) == b"1970-01-01T00:00:00.999Z"
        assert timestamp(1.0) == b"1970-01-01T00:00:01.000Z"
        assert timestamp(0.0015) == b"1970-01-01T00:00:00.001Z"


class TestBodies:
    @pytest.mark.parametrize(
        ("build", "kind", "size"),
        [
            (request_body_chunk_event, "request_body_chunk", "bytes_received"),
            (response_body_chunk_event, "response_body_chunk", "bytes_sent"),
        ],
    )
    def test_a_chunk(self, build: object, kind: str, size: str) -> None:
        """Its place, its end, and the sum so far; the whole size only where it was told."""
        made = build(b"ab12-7", 3, False, 900, 400)  # type: ignore[operator]
        assert made.startswith(b'{"event_type":"%b",' % kind.encode())
        assert json.loads(made) == {
            "event_type": kind,
            "correlation_id": "ab12-7",
            "chunk_index": 3,
            "is_last": False,
            "total_size": 900,
            size: 400,
        }
        last = json.loads(build(b"ab12-7", 0, True, -1, 0))  # type: ignore[operator]
        assert last == {
            "event_type": kind,
            "correlation_id": "ab12-7",
            "chunk_index": 0,
            "is_last": True,
            size: 0,
        }
        assert json.loads(build(b"c", 0, True, 0, 0))["total_size"] == 0  # type: ignore[operator]

    def test_a_frame(self) -> None:
        """Which way it goes and its place among those of that way."""
        made = websocket_frame_event(b"c-1", "text", True, 4, True, 'r"', "::1")
        assert made.startswith(b'{"event_type":"websocket_frame",')
        assert json.loads(made) == {
            "event_type": "websocket_frame",
            "correlation_id": "c-1",
            "opcode": "text",
            "client_to_server": True,
            "frame_index": 4,
            "fin": True,
            "route_id": 'r"',
            "client_ip": "::1",
        }


class TestCompletion:
    def test_what_is_told(self) -> None:
        """Status, times, sizes; why it failed and who refused it only where it is so."""
        made = request_complete_event(META, b"GET", b'"/"', Completion(200, 12.34567, 1, 2, 1))
        assert made.startswith(b'{"event_type":"request_complete","metadata":{')
        event = json.loads(made)
        assert event.pop("metadata")["correlation_id"] == "ab12-7"
        assert event == {
            "event_type": "request_complete",
            "method": "GET",
            "uri": "/",
            "status": 200,
            "duration_ms": 12.346,
            "request_body_size": 1,
            "response_body_size": 2,
            "upstream_attempts": 1,
        }
        failed = json.loads(request_complete_event(META, b"GET", b'"/"', Completion(0, 0.0, 0, 0, 2, "x", "waf")))
        assert (failed["status"], failed["error"], failed["decided_by"]) == (0, "x", "waf")


class TestGuardrail:
    def test_what_is_told(self) -> None:
        """The text, what it is to be inspected for, which side said it, and of which model."""
        made = guardrail_inspect_event(
            b"c-1", "pii_detection", "mail \u00e9@b.c", "prompt", "m-1", ["email"], "llm", {"role": "user"}
        )
        assert made.startswith(b'{"event_type":"guardrail_inspect",')
        assert json.loads(made) == {
            "event_type": "guardrail_inspect",
            "correlation_id": "c-1",
            "inspection_type": "pii_detection",
            "content": "mail \u00e9@b.c",
            "direction": "prompt",
            "categories": ["email"],
            "route_id": "llm",
            "metadata": {"correlation_id": "c-1", "role": "user"},
            "model": "m-1",
        }
        assert "model" not in json.loads(guardrail_inspect_event(b"c", "x", "", "completion", "", [], "r", {}))

    @given(st.text(st.characters(codec="utf-8")), st.text(st.characters(codec="utf-8")))
    def test_always_json(self, content: str, model: str) -> None:
        """What a client writes into a prompt stays in its string."""
        event = json.loads(guardrail_inspect_event(b"c", "pii_detection", content, "prompt", model, (), "r", {}))
        assert (event["content"], event.get("model", "")) == (content, model)
