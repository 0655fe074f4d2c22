"""Events as agents read them, verdicts as agents write them: true fields out, nothing dangerous in."""

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.decision import ALLOW, HeaderOp, OpAction, Verb
from shared.wire import messages
from shared.wire.messages import (
    Screened,
    connection_metadata,
    decode_verdict,
    headers_json,
    lasting_metadata,
    metadata,
    request_headers_event,
    request_headers_rest,
    response_headers_event,
    route_metadata,
    screen,
    target_json,
    text,
    timestamp,
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


def screened(verdict: object, *, may_set_host: bool = False, body: bytes | None = None) -> Screened:
    """As a transport does it."""
    return screen(decode_verdict(json.dumps(verdict).encode()), "waf", may_set_host, body)


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


class TestAllow:
    def test_plain(self) -> None:
        """The shared decision, without anything to audit."""
        for verdict in ({"decision": "allow"}, {"decision": "allow", "request_headers": [], "later": {"x": 1}}):
            answer = screened(verdict)
            assert answer.decision is ALLOW
            assert (answer.audit, answer.refused_ops) == (None, ())

    def test_operations_in_order(self) -> None:
        """Set, add, remove, for the request and for the response."""
        answer = screened(
            {
                "decision": "allow",
                "request_headers": [
                    {"set": {"name": "X-A", "value": "1"}},
                    {"add": {"name": "x-a", "value": "2"}},
                    {"remove": {"name": "Cookie"}},
                ],
                "response_headers": [{"set": {"name": "x-b", "value": "3"}}],
            }
        )
        assert answer.decision is not None
        assert answer.decision.request_ops == (
            HeaderOp(OpAction.SET, "x-a", "1"),
            HeaderOp(OpAction.ADD, "x-a", "2"),
            HeaderOp(OpAction.REMOVE, "cookie"),
        )
        assert answer.decision.response_ops == (HeaderOp(OpAction.SET, "x-b", "3"),)

    def test_refused_operations_are_named_and_the_rest_applied(self) -> None:
        """Framing, control characters, Host: not applied, not silently."""
        answer = screened(
            {
                "decision": "allow",
                "request_headers": [
                    {"set": {"name": "Content-Length", "value": "0"}},
                    {"set": {"name": "x-a", "value": "1\r\nx-b: 2"}},
                    {"set": {"name": "Host", "value": "b"}},
                    {"set": {"name": "x-c", "value": "ok"}},
                ],
                "response_headers": [{"remove": {"name": "transfer-encoding"}}],
            }
        )
        assert answer.refused_ops == ("Content-Length", "x-a", "Host", "transfer-encoding")
        assert answer.decision is not None
        assert answer.decision.request_ops == (HeaderOp(OpAction.SET, "x-c", "ok"),)
        assert answer.decision.response_ops == ()

    def test_only_refused_operations(self) -> None:
        """Nothing is left of it but the note."""
        answer = screened({"decision": "allow", "request_headers": [{"remove": {"name": "te"}}]})
        assert answer.decision is ALLOW
        assert answer.refused_ops == ("te",)

    def test_host_where_it_is_permitted(self) -> None:
        """For the request alone."""
        ops = [{"set": {"name": "host", "value": "b"}}]
        answer = screened({"decision": "allow", "request_headers": ops, "response_headers": ops}, may_set_host=True)
        assert answer.decision is not None
        assert answer.decision.request_ops == (HeaderOp(OpAction.SET, "host", "b"),)
        assert answer.refused_ops == ("host",)

    def test_audit_of_its_own(self) -> None:
        """Kept beside a decision that stays the plain allow."""
        answer = screened({"decision": "allow", "audit": {"tags": ["a"]}})
        assert answer.decision is ALLOW
        assert answer.audit == {"tags": ["a"]}


class TestRefusals:
    def test_block(self) -> None:
        """Status, body, headers as one value or several; framing headers are left out and named."""
        wish = {
            "status": 403,
            "body": "no",
            "headers": {
                "X-By": "waf",
                "Set-Cookie": ["a=1", "b=2"],
                "Content-Length": "99",
                "content-type": "text/html",
            },
        }
        answer = screened({"decision": {"block": wish}, "request_headers": [{"set": {"name": "x", "value": "1"}}]})
        decision = answer.decision
        assert decision is not None
        assert (decision.verb, decision.status, decision.body, decision.agent) == (Verb.BLOCK, 403, b"no", "waf")
        assert decision.headers == (
            ("x-by", "waf"),
            ("set-cookie", "a=1"),
            ("set-cookie", "b=2"),
            ("content-type", "text/html"),
        )
        assert decision.request_ops == ()
        assert answer.refused_ops == ("Content-Length",)

    def test_block_with_a_body_frame(self) -> None:
        """The frame is the body."""
        answer = screened({"decision": {"block": {"status": 451, "body": "text"}}}, body=b"\x00frame")
        assert answer.decision is not None
        assert answer.decision.body == b"\x00frame"

    def test_redirect_and_challenge(self) -> None:
        """Response operations are kept for whatever response the client gets."""
        ops = {"response_headers": [{"add": {"name": "x-r", "value": "1"}}]}
        redirect = screened({"decision": {"redirect": {"url": "/login"}}, **ops}).decision
        challenge = screened({"decision": {"challenge": {"challenge_type": "basic"}}, **ops}).decision
        assert redirect is not None
        assert challenge is not None
        assert (redirect.verb, redirect.status) == (Verb.REDIRECT, 302)
        assert (challenge.verb, challenge.status) == (Verb.CHALLENGE, 401)
        assert redirect.response_ops == challenge.response_ops == (HeaderOp(OpAction.ADD, "x-r", "1"),)


MALFORMED = {
    "nothing": {},
    "needs_more alone": {"needs_more": True},
    "unknown decision": {"decision": {"shrug": {}}},
    "two decisions": {"decision": {"block": {"status": 403}, "redirect": {"url": "/"}}},
    "control character in a redirect": {"decision": {"redirect": {"url": "/\r\nset-cookie: a"}}},
    "tab in a redirect": {"decision": {"redirect": {"url": "/\tx"}}},
    "empty redirect": {"decision": {"redirect": {"url": ""}}},
    "control character in a block header": {"decision": {"block": {"status": 403, "headers": {"x": "a\nb"}}}},
    "a block header that is no name": {"decision": {"block": {"status": 403, "headers": {"x y": "a"}}}},
    "empty challenge": {"decision": {"challenge": {"challenge_type": ""}}},
    "control character in a challenge": {"decision": {"challenge": {"challenge_type": "a\r\nb"}}},
    "control character in a parameter": {"decision": {"challenge": {"challenge_type": "basic", "params": {"r": "\n"}}}},
    "a parameter that is no token": {"decision": {"challenge": {"challenge_type": "basic", "params": {"a b": "1"}}}},
    "an empty operation": {"decision": "allow", "request_headers": [{}]},
    "two operations in one": {
        "decision": "allow",
        "response_headers": [{"set": {"name": "a", "value": "1"}, "add": {"name": "a", "value": "2"}}],
    },
    "a bad operation beside a refusal": {"decision": {"block": {"status": 403}}, "response_headers": [{}]},
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed(name: str) -> None:
    """Right in shape, wrong in sense: never an allow, and it says why."""
    answer = screened(MALFORMED[name])
    assert answer.decision is None
    assert answer.malformed
    assert not answer.error


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b"null",
        b'"allow"',
        b'{"decision":"deny"}',
        b'{"decision":"Allow"}',
        b'{"decision":true}',
        b'{"decision":{"block":{}}}',
        b'{"decision":{"block":{"status":199}}}',
        b'{"decision":{"block":{"status":600}}}',
        b'{"decision":{"block":{"status":"403"}}}',
        b'{"decision":{"block":{"status":403,"headers":{"a":1}}}}',
        b'{"decision":{"redirect":{"url":"/","status":200}}}',
        b'{"decision":{"redirect":{}}}',
        b'{"decision":"allow","request_headers":{}}',
        b'{"decision":"allow","request_headers":[{"set":{"value":"1"}}]}',
        b'{"decision":"allow","request_headers":[{"set":{"name":"a","value":1}}]}',
        b'{"decision":"allow","request_headers":[{"set":{"name":"\\ud800"}}]}',
        b'{"decision":"allow","audit":[]}',
        b'{"decision":"allow"} x',
        b'{"error":"text"}',
        b'{"decision":"allow",',
        b"\xff",
    ],
)
def test_wrong_shape(raw: bytes) -> None:
    """Does not decode at all; the transport calls it malformed."""
    with pytest.raises((msgspec.MsgspecError, UnicodeDecodeError)):
        decode_verdict(raw)


def test_error_is_never_allow() -> None:
    """Also beside a decision: the agent could not decide."""
    answer = screened({"error": {"code": "db", "message": "down"}, "decision": "allow", "audit": {"a": 1}})
    assert answer.decision is None
    assert (answer.error, answer.malformed, answer.audit) == ("db: down", "", {"a": 1})
    assert len(screened({"error": {"message": "x" * 9999}}).error) <= 500
    assert screened({"error": {}}).error


def test_the_plain_allow_is_made_once() -> None:
    """Most answers are one and the same object."""
    assert screened({"decision": "allow"}) is messages.SCREENED_ALLOW


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
            st.sampled_from(["decision", "block", "redirect", "challenge", "status", "url", "headers", "body", "error",
                             "request_headers", "response_headers", "set", "add", "remove", "name", "value", "params"]),
            inner, max_size=4,
        ),
        max_leaves=12,
    )
)  # fmt: skip
def test_any_verdict(verdict: object) -> None:
    """Whatever an agent says is a decision, an error, malformed, or does not decode; refusals are whole."""
    try:
        answer = screened(verdict)
    except msgspec.MsgspecError:
        return
    assert (answer.decision is not None) + bool(answer.error) + bool(answer.malformed) == 1
    if answer.decision is not None and answer.decision.verb is not Verb.ALLOW:
        assert 200 <= answer.decision.status <= 599
        assert answer.decision.request_ops == ()
