"""Verdicts say in JSON what the protocol's table says, and refuse what it cannot say."""

from typing import Any

import orjson
import pytest

from wardgate_agent import (
    AgentError,
    Allow,
    Block,
    Challenge,
    Detection,
    Guardrail,
    Redirect,
    WebSocketAllow,
    WebSocketClose,
    WebSocketDrop,
    WebSocketReplace,
)
from wardgate_agent.events import (
    Event,
    GuardrailInspect,
    RequestBodyChunk,
    RequestHeaders,
    ResponseBodyChunk,
    ResponseHeaders,
    WebSocketFrame,
)
from wardgate_agent.verdicts import Unfit, encode

HEAD = {"method": "GET", "uri": "/", "metadata": {}, "headers": {}}
REQUEST = RequestHeaders(HEAD, b"", 1)
RESPONSE = ResponseHeaders({**HEAD, "status": 200}, b"", 1)
CHUNK = RequestBodyChunk({"chunk_index": 3, "is_last": False}, b"x", 1)
LAST = RequestBodyChunk({"chunk_index": 4, "is_last": True}, b"x", 1)
RESPONSE_CHUNK = ResponseBodyChunk({"chunk_index": 0, "is_last": True}, b"x", 1)
FRAME = WebSocketFrame({"opcode": "text", "client_to_server": True}, b"hi", 1)
INSPECT = GuardrailInspect({"content": "héllo", "inspection_type": "pii_detection"}, b"", 1)


def said(verdict: Any, event: Event = REQUEST) -> Any:
    fragment, _ = encode(verdict, event)
    return orjson.loads(orjson.dumps(fragment))


def frame(verdict: Any, event: Event = REQUEST) -> bytes | None:
    return encode(verdict, event)[1]


def test_allow_is_the_word() -> None:
    assert said(Allow()) == {"decision": "allow"}


def test_header_operations_keep_their_order() -> None:
    verdict = (
        Allow()
        .set_request_header("x-a", "1")
        .add_request_header("x-a", "2")
        .remove_request_header("cookie")
        .set_response_header("x-b", "3")
        .add_response_header("x-b", "4")
        .remove_response_header("server")
    )
    assert said(verdict) == {
        "decision": "allow",
        "request_headers": [
            {"set": {"name": "x-a", "value": "1"}},
            {"add": {"name": "x-a", "value": "2"}},
            {"remove": {"name": "cookie"}},
        ],
        "response_headers": [
            {"set": {"name": "x-b", "value": "3"}},
            {"add": {"name": "x-b", "value": "4"}},
            {"remove": {"name": "server"}},
        ],
    }


def test_each_step_makes_a_new_verdict() -> None:
    """A constant that one request adds to must not leak into the next."""
    constant = Allow().set_request_header("x-a", "1")
    first = said(constant)
    said(constant.set_request_header("x-secret", "2"))
    assert said(constant) == first


def test_a_constant_is_encoded_once() -> None:
    constant = Allow().set_request_header("x-a", "1")
    assert encode(constant, REQUEST)[0] is constant._fragment


def test_block_with_text_and_headers() -> None:
    verdict = Block(403, "no\n", headers={"X-Blocked-By": "policy", "X-Many": ["1", "2"]})
    assert said(verdict) == {
        "decision": {
            "block": {"status": 403, "body": "no\n", "headers": {"X-Blocked-By": "policy", "X-Many": ["1", "2"]}}
        }
    }


def test_block_with_bytes_has_a_frame() -> None:
    verdict = Block(451, b"\x00\xff", {"content-type": "image/png"})
    assert said(verdict)["decision"]["block"] == {"status": 451, "headers": {"content-type": "image/png"}}
    assert frame(verdict) == b"\x00\xff"


def test_block_keeps_response_operations() -> None:
    assert said(Block(403).set_response_header("x-a", "1"))["response_headers"] == [
        {"set": {"name": "x-a", "value": "1"}}
    ]


def test_redirect_and_challenge() -> None:
    assert said(Redirect("/new", 308)) == {"decision": {"redirect": {"url": "/new", "status": 308}}}
    assert said(Challenge("basic", realm="members")) == {
        "decision": {"challenge": {"challenge_type": "basic", "params": {"realm": "members"}}}
    }


def test_audit_adds_up() -> None:
    verdict = Allow().audit(tags=["a"], confidence=0.5).audit(tags="b", rule_ids=["942100"], custom={"k": 1})
    assert said(verdict)["audit"] == {
        "tags": ["a", "b"],
        "rule_ids": ["942100"],
        "confidence": 0.5,
        "custom": {"k": 1},
    }


def test_routing() -> None:
    assert said(Allow().routing("app2", tier="gold"))["routing_metadata"] == {"upstream": "app2", "tier": "gold"}


def test_error_stands_alone() -> None:
    assert said(AgentError("no_database", "down")) == {"error": {"code": "no_database", "message": "down"}}


@pytest.mark.parametrize(
    ("verdict", "action"),
    [(Allow().pass_chunk(), "pass"), (Allow().drop_chunk(), "drop"), (Allow().replace_chunk(b"new"), "replace")],
)
def test_mutations_carry_their_events_index_and_side(verdict: Allow, action: str) -> None:
    assert said(verdict, CHUNK)["request_body_mutation"] == {"chunk_index": 3, "action": action}
    assert said(verdict, LAST)["request_body_mutation"]["chunk_index"] == 4
    assert said(verdict, RESPONSE_CHUNK)["response_body_mutation"] == {"chunk_index": 0, "action": action}
    assert frame(verdict, CHUNK) == (b"new" if action == "replace" else None)


def test_an_empty_replacement_has_no_frame() -> None:
    assert frame(Allow().replace_chunk(b""), CHUNK) is None


def test_skip_body_is_said_of_a_chunk() -> None:
    assert said(Allow().skip_body(), CHUNK) == {"decision": "allow", "skip_body": True}
    assert said(Allow().drop_chunk().skip_body(), LAST)["skip_body"] is True


@pytest.mark.parametrize(
    "verdict",
    [Allow().needs_more().skip_body(), Allow().needs_more().drop_chunk(), Allow().replace_chunk(b"x").needs_more()],
)
def test_what_is_held_is_not_decided_on_at_once(verdict: Allow) -> None:
    with pytest.raises(Unfit, match="needs_more beside"):
        encode(verdict, CHUNK)


def test_needs_more_holds_a_chunk_but_not_the_last() -> None:
    assert said(Allow().needs_more(), CHUNK)["needs_more"] is True
    with pytest.raises(Unfit, match="last chunk"):
        encode(Allow().needs_more(), LAST)


def test_skip_body_is_said_of_a_head() -> None:
    """Nothing of its body is wanted."""
    for event in (REQUEST, RESPONSE):
        assert said(Allow().skip_body(), event) == {"decision": "allow", "skip_body": True}


@pytest.mark.parametrize("verdict", [Allow().needs_more(), Allow().skip_body(), Allow().drop_chunk()])
def test_what_is_said_of_a_chunk_is_not_remembered_as_a_constant(verdict: Allow) -> None:
    """The same object beside another event must be refused although it was fine before."""
    encode(verdict, CHUNK)
    assert verdict._fragment is None


@pytest.mark.parametrize("verdict", [Allow().drop_chunk(), Allow().needs_more(), Allow().replace_chunk(b"x")])
def test_chunk_verdicts_do_not_fit_heads(verdict: Allow) -> None:
    for event in (REQUEST, RESPONSE):
        with pytest.raises(Unfit):
            encode(verdict, event)


def test_websocket() -> None:
    assert said(WebSocketAllow(), FRAME) == {"websocket_decision": "allow"}
    assert said(WebSocketDrop(), FRAME) == {"websocket_decision": "drop"}
    assert said(WebSocketReplace("é"), FRAME) == {"websocket_decision": "replace"}
    assert frame(WebSocketReplace("é"), FRAME) == b"\xc3\xa9"
    assert said(WebSocketClose(1008, "policy"), FRAME) == {
        "websocket_decision": {"close": {"code": 1008, "reason": "policy"}}
    }
    assert said(Allow().audit(tags=["t"]), FRAME) == {"websocket_decision": "allow", "audit": {"tags": ["t"]}}


def test_a_text_message_stays_text() -> None:
    binary = WebSocketFrame({"opcode": "binary", "client_to_server": True}, b"", 1)
    assert frame(WebSocketReplace(b"\xff"), binary) == b"\xff"
    with pytest.raises(Unfit, match="UTF-8"):
        encode(WebSocketReplace(b"\xff"), FRAME)
    assert frame(WebSocketReplace(""), FRAME) is None


def test_guardrail() -> None:
    finding = Detection("email", "an address", "high", confidence=0.9, span=INSPECT.span(1, 3))
    assert said(Guardrail(True, 0.8, [finding], redacted_content="h***o"), INSPECT) == {
        "guardrail_response": {
            "detected": True,
            "confidence": 0.8,
            "detections": [
                {
                    "category": "email",
                    "description": "an address",
                    "severity": "high",
                    "confidence": 0.9,
                    "span": {"start": 1, "end": 4},
                }
            ],
            "redacted_content": "h***o",
        }
    }
    assert said(Allow(), INSPECT)["guardrail_response"] == {"detected": False, "confidence": 0.0, "detections": []}


def test_a_text_can_be_refused() -> None:
    """A decision beside a text: not a finding, and no failure of the agent."""
    busy = Block(503, "not now\n", {"Retry-After": "1"}).audit(reason_codes="busy")
    wish = {"status": 503, "body": "not now\n", "headers": {"Retry-After": "1"}}
    assert said(busy, INSPECT) == {"decision": {"block": wish}, "audit": {"reason_codes": ["busy"]}}
    assert encode(Block(403, b"no"), INSPECT)[1] == b"no"


@pytest.mark.parametrize(
    ("verdict", "event"),
    [
        (None, REQUEST),
        (True, REQUEST),
        ("allow", REQUEST),
        ({"decision": "allow"}, REQUEST),
        (Allow, REQUEST),
        (WebSocketAllow(), REQUEST),
        (Guardrail(False), CHUNK),
        (Block(403), FRAME),
        (Allow().set_request_header("x", "1"), FRAME),
        (WebSocketDrop(), INSPECT),
        (Redirect("/"), INSPECT),
        (Challenge("bearer"), INSPECT),
        (None, INSPECT),
    ],
)
def test_what_is_no_answer_to_the_event_is_refused(verdict: Any, event: Event) -> None:
    with pytest.raises(Unfit):
        encode(verdict, event)


def test_what_has_no_json_is_refused() -> None:
    with pytest.raises(Unfit, match="JSON"):
        encode(Allow().audit(custom={"k": object()}), REQUEST)
    with pytest.raises(Unfit, match="JSON"):
        encode(Block(403, "\ud800"), REQUEST)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Block(199),
        lambda: Block(600),
        lambda: Block("403"),  # type: ignore[arg-type]
        lambda: Block(403, "", {"x a": "1"}),
        lambda: Block(403, "", {"x-a": "1\r\nset-cookie: 1"}),
        lambda: Block(403, "", {"x-a": ["ok", "bad\n"]}),
        lambda: Redirect(""),
        lambda: Redirect("/\r\nx: 1"),
        lambda: Redirect("/", 200),
        lambda: Challenge(""),
        lambda: Challenge("basic", realm="a\nb"),
        lambda: Allow().set_request_header("", "1"),
        lambda: Allow().set_request_header("x-a", "a\x00"),
        lambda: Allow().set_request_header("x-a", 1),  # type: ignore[arg-type]
        lambda: Allow().routing(tier=1),  # type: ignore[arg-type]
        lambda: WebSocketClose(99),
        lambda: WebSocketClose(1005),
        lambda: WebSocketClose(1006),
        lambda: WebSocketClose(1015),
        lambda: WebSocketClose(2999),
        lambda: WebSocketClose(5000),
        lambda: WebSocketClose(1000, "x" * 124),
        lambda: Guardrail(True, 1.5),
        lambda: Detection("x", severity="bad"),  # type: ignore[arg-type]
        lambda: Detection("x", span=(3, 2)),
        lambda: Detection("x", span=(3, 3)),
        lambda: Detection("x", span=(-1, 3)),
        lambda: Detection("x", span=(0, 1 << 32)),
        lambda: Guardrail(True, 1.0, [Detection("x")] * 1_001),
    ],
)
def test_what_cannot_be_meant_is_a_value_error(make: Any) -> None:
    with pytest.raises(ValueError):
        make()


def test_values_may_be_unicode_and_tabbed() -> None:
    assert said(Allow().set_request_header("x-a", "é\tx"))["request_headers"] == [
        {"set": {"name": "x-a", "value": "é\tx"}}
    ]


def test_verdicts_compare_by_what_they_say() -> None:
    assert Allow().set_request_header("a", "1") == Allow().set_request_header("a", "1")
    assert Allow() != Allow().skip_body()
    assert Block(403) != "403"
    assert "skip_body" in repr(Allow().skip_body())
