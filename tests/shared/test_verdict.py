"""Verdicts as agents give them: what they come to against their event, and nothing dangerous in."""

import json
from base64 import b64encode

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.decision import (
    ALLOW,
    ChunkAction,
    ChunkVerdict,
    Decision,
    Finding,
    HeaderOp,
    Inspection,
    OpAction,
    Verb,
)
from shared.defaults import VERDICT_MAX_FIELDS
from shared.events import SUPPORTED, EventKind
from shared.wire.envelope import pack_decision, records, unpack_decision
from shared.wire.verdict import HEAD, HEAD_AND_HOST, SCREENED_ALLOW, Question, Screened, decode_verdict, screen

REQUEST = Question(EventKind.REQUEST_BODY_CHUNK, chunk_index=3)
REQUEST_LAST = REQUEST._replace(is_last=True)
RESPONSE = Question(EventKind.RESPONSE_BODY_CHUNK, chunk_index=3)
FRAME = Question(EventKind.WEBSOCKET_FRAME)
TEXT = Question(EventKind.GUARDRAIL_INSPECT)


def screened(
    verdict: object, asked: Question = HEAD, *, may_set_host: bool = False, body: bytes | None = None
) -> Screened:
    """As a transport does it."""
    asked = HEAD_AND_HOST if may_set_host else asked
    return screen(decode_verdict(json.dumps(verdict).encode()), "waf", asked, body)


def decided(verdict: object, asked: Question, body: bytes | None = None) -> Decision:
    """Of a verdict that is right."""
    answer = screened(verdict, asked, body=body)
    assert answer.decision is not None, answer
    return answer.decision


def edit(index: int = 3, side: str = "request", **fields: object) -> dict[str, object]:
    return {"decision": "allow", f"{side}_body_mutation": {"chunk_index": index, **fields}}


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
    assert screened({"decision": "allow"}) is SCREENED_ALLOW


class TestChunks:
    @pytest.mark.parametrize("asked", [REQUEST, REQUEST_LAST, RESPONSE])
    def test_allow_passes_the_chunk(self, asked: Question) -> None:
        """The shared plain allow; what says nothing changes nothing."""
        side = "request" if asked.kind is EventKind.REQUEST_BODY_CHUNK else "response"
        for verdict in (
            {"decision": "allow"},
            {"decision": "allow", "needs_more": False, "skip_body": False},
            {"decision": "allow", "needs_more": None, "request_body_mutation": None},
            edit(side=side, action="pass"),
            edit(side=side),
            edit(side=side, data=None),
        ):
            assert screened(verdict, asked) is SCREENED_ALLOW

    @pytest.mark.parametrize(
        ("fields", "body", "action", "made"),
        [
            ({"action": "drop"}, None, ChunkAction.DROP, b""),
            ({"action": "replace"}, b"new", ChunkAction.REPLACE, b"new"),
            ({"action": "replace"}, b"", ChunkAction.REPLACE, b""),
            ({"action": "replace"}, None, ChunkAction.DROP, b""),  # no frame = empty
            ({"data": ""}, None, ChunkAction.DROP, b""),  # protocol 1 from here
            ({"data": b64encode(b"\x00\xffnew").decode()}, None, ChunkAction.REPLACE, b"\x00\xffnew"),
            ({"action": "replace", "data": b64encode(b"new").decode()}, None, ChunkAction.REPLACE, b"new"),
            ({"action": "replace", "data": ""}, None, ChunkAction.DROP, b""),
        ],
    )
    @pytest.mark.parametrize(("asked", "side"), [(REQUEST, "request"), (RESPONSE, "response")])
    def test_mutations(
        self, asked: Question, side: str, fields: dict[str, str], body: bytes | None, action: ChunkAction, made: bytes
    ) -> None:
        """Drop and replace, by frame or in base64; the editor is the first of a chain of one."""
        decision = decided(edit(side=side, **fields), asked, body)
        assert decision == Decision(body=made, chunk=ChunkVerdict(action, 0))

    def test_needs_more_and_skip_body(self) -> None:
        """The chunk is held, or it is the last that this agent sees."""
        assert decided({"decision": "allow", "needs_more": True}, REQUEST) == Decision(chunk=ChunkVerdict(hold=1))
        assert decided({"decision": "allow", "skip_body": True}, REQUEST) == Decision(chunk=ChunkVerdict(skip=1))
        last = decided({"decision": "allow", "skip_body": True}, REQUEST_LAST)
        assert last.chunk == ChunkVerdict(skip=1)
        both = decided(edit(action="drop") | {"skip_body": True}, REQUEST)
        assert both.chunk == ChunkVerdict(ChunkAction.DROP, 0, 0, 1)

    @pytest.mark.parametrize(
        ("verdict", "asked", "body", "text"),
        [
            (edit(2, action="drop"), REQUEST, None, "is of chunk 2, the event's is 3"),
            (edit(4, action="pass"), REQUEST, None, "is of chunk 4"),
            (edit(side="response", action="drop"), REQUEST, None, "other direction"),
            (edit(side="request", action="drop"), RESPONSE, None, "other direction"),
            (edit(side="response", action="pass") | edit(action="drop"), REQUEST, None, "other direction"),
            ({"decision": "allow", "needs_more": True}, REQUEST_LAST, None, "on the last chunk"),
            (edit(action="drop") | {"needs_more": True}, REQUEST, None, "beside a mutation"),
            ({"decision": "allow", "needs_more": True, "skip_body": True}, REQUEST, None, "beside a mutation or skip"),
            (edit(data="not base64!"), REQUEST, None, "not base64"),
            (edit(data="QUJD\n"), REQUEST, None, "not base64"),
            (edit(data="QUI"), REQUEST, None, "not base64"),
            (edit(data="\u00e9"), REQUEST, None, "not base64"),
            (edit(), REQUEST, b"new", "needs the action replace"),
            (edit(action="pass"), REQUEST, b"new", "needs the action replace"),
            (edit(action="drop"), REQUEST, b"new", "needs the action replace"),
            ({"needs_more": True}, REQUEST, None, "needs a decision"),
            ({"request_body_mutation": {"chunk_index": 3, "action": "drop"}}, REQUEST, None, "needs a decision"),
            ({"websocket_decision": "drop"}, REQUEST, None, "needs a decision"),
        ],
    )
    def test_what_breaks_the_rules(self, verdict: object, asked: Question, body: bytes | None, text: str) -> None:
        """Malformed, with what is wrong: never passed on as if nothing had been said."""
        answer = screened(verdict, asked, body=body)
        assert answer.decision is None
        assert text in answer.malformed

    @pytest.mark.parametrize(
        "raw",
        [
            b'{"decision":"allow","request_body_mutation":{"action":"drop"}}',
            b'{"decision":"allow","request_body_mutation":{"chunk_index":-1,"action":"drop"}}',
            b'{"decision":"allow","request_body_mutation":{"chunk_index":%b,"action":"drop"}}' % (b"9" * 5000),
            b'{"decision":"allow","request_body_mutation":{"chunk_index":0,"action":"REPLACE"}}',
            b'{"decision":"allow","request_body_mutation":{"chunk_index":0,"action":"replace","data":1}}',
            b'{"decision":"allow","request_body_mutation":[]}',
            b'{"decision":"allow","needs_more":1}',
            b'{"decision":"allow","needs_more":"true"}',
            b'{"decision":"allow","skip_body":"no"}',
        ],
    )
    def test_wrong_shapes(self, raw: bytes) -> None:
        """Do not decode; the transport calls them malformed."""
        with pytest.raises(ValueError):
            decode_verdict(raw)

    def test_a_refusal_is_one_on_a_chunk_too(self) -> None:
        """What it says of the chunk beside it does not matter; its body frame is the response's body."""
        refusal = {"block": {"status": 451}}
        decision = decided(edit(9, action="replace") | {"decision": refusal, "needs_more": True}, REQUEST_LAST, b"no")
        assert (decision.verb, decision.status, decision.body, decision.chunk) == (Verb.BLOCK, 451, b"no", None)

    def test_header_operations_beside_a_chunk(self) -> None:
        """Both act; what is wrong with the operations makes all of it malformed."""
        ops = {"response_headers": [{"set": {"name": "x-a", "value": "1"}}, {"remove": {"name": "te"}}]}
        answer = screened(edit(action="replace") | ops | {"audit": {"a": 1}}, REQUEST, body=b"new")
        assert answer.decision is not None
        assert answer.decision.chunk == ChunkVerdict(ChunkAction.REPLACE, 0)
        assert answer.decision.body == b"new"
        assert answer.decision.response_ops == (HeaderOp(OpAction.SET, "x-a", "1"),)
        assert (answer.refused_ops, answer.audit) == (("te",), {"a": 1})
        assert screened(edit(action="drop") | {"request_headers": [{}]}, REQUEST).malformed
        alone = decided({"decision": "allow"} | ops, REQUEST)
        assert (alone.chunk, alone.body) == (None, b"")

    def test_audit_beside_a_chunk(self) -> None:
        """Kept, also where nothing else is said."""
        answer = screened({"decision": "allow", "audit": {"a": 1}}, REQUEST)
        assert (answer.decision, answer.audit) == (ALLOW, {"a": 1})
        assert screened({"decision": "allow", "needs_more": True, "audit": {"a": 1}}, REQUEST_LAST).audit == {"a": 1}

    def test_chunk_fields_elsewhere_mean_nothing(self) -> None:
        """A head has no chunk."""
        assert decided(edit(action="drop") | {"needs_more": True}, HEAD) is ALLOW


class TestFrames:
    def test_allow(self) -> None:
        """Said either way."""
        assert screened({"websocket_decision": "allow"}, FRAME) is SCREENED_ALLOW
        assert screened({"decision": "allow"}, FRAME) is SCREENED_ALLOW
        assert screened({"decision": "allow", "websocket_decision": "allow"}, FRAME) is SCREENED_ALLOW

    def test_drop_and_replace(self) -> None:
        """The body frame is the payload, in protocol 1 `data`; none is an empty payload, which is a message."""
        assert decided({"websocket_decision": "drop"}, FRAME) == Decision(chunk=ChunkVerdict(ChunkAction.DROP, 0))
        replaced = ChunkVerdict(ChunkAction.REPLACE, 0)
        said = {"websocket_decision": "replace"}
        assert decided(said, FRAME, b"new") == Decision(chunk=replaced, body=b"new")
        assert decided(said, FRAME) == Decision(chunk=replaced)
        assert decided(said | {"data": "bmV3"}, FRAME) == Decision(chunk=replaced, body=b"new")

    @pytest.mark.parametrize("code", [1000, 1001, 1003, 1007, 1008, 1011, 1014, 3000, 4999])
    def test_close(self, code: int) -> None:
        """Code and reason, as much as fits into a close frame."""
        reason = "x" * 121 + "\u00e9"
        decision = decided({"websocket_decision": {"close": {"code": code, "reason": reason}}}, FRAME)
        assert decision == Decision(Verb.BLOCK, code, body=reason.encode(), agent="waf", reason="close")

    def test_close_without_saying_why(self) -> None:
        """1008, policy violation."""
        assert decided({"websocket_decision": {"close": {}}}, FRAME).status == 1008

    @pytest.mark.parametrize(
        ("said", "text"),
        [
            ({"websocket_decision": {"close": {"code": code}}}, f"close code {code} cannot be sent")
            for code in (1004, 1005, 1006, 1015, 1016, 2999)
        ]
        + [
            ({"websocket_decision": {"close": {"reason": "x" * 122 + "\u00e9"}}}, "over 123 bytes"),
            ({"websocket_decision": "replace", "data": "?"}, "not base64"),
            ({}, "needs a websocket_decision"),
            ({"guardrail_response": {"detected": False}}, "needs a websocket_decision"),
            ({"decision": {}}, "must be allow or one of"),
            ({"decision": {"shrug": {}}}, "must be allow or one of"),
        ],
    )
    def test_what_breaks_the_rules(self, said: object, text: str) -> None:
        """Codes that nobody may send, and reasons that do not fit."""
        answer = screened(said, FRAME)
        assert answer.decision is None
        assert text in answer.malformed

    @pytest.mark.parametrize(
        "raw",
        [
            b'{"websocket_decision":"close"}',
            b'{"websocket_decision":"Allow"}',
            b'{"websocket_decision":{"close":{"code":999}}}',
            b'{"websocket_decision":{"close":{"code":5000}}}',
            b'{"websocket_decision":{"close":{"code":"1008"}}}',
            b'{"websocket_decision":{"drop":{}}}',
            b'{"websocket_decision":{}}',
        ],
    )
    def test_wrong_shapes(self, raw: bytes) -> None:
        """Do not decode."""
        with pytest.raises(ValueError):
            decode_verdict(raw)

    @pytest.mark.parametrize("said", [{}, {"websocket_decision": "allow"}, {"websocket_decision": "replace"}])
    def test_a_refusal_closes(self, said: dict[str, object]) -> None:
        """1008, whatever stands beside it: an allow never outweighs it."""
        decision = decided(said | {"decision": {"block": {"status": 403, "body": "no"}}}, FRAME)
        assert decision == Decision(Verb.BLOCK, 1008, agent="waf", reason="close")

    def test_a_close_beside_a_refusal_says_how(self) -> None:
        """The refusal is said twice, and the close more exactly."""
        said = {"decision": {"block": {"status": 403}}, "websocket_decision": {"close": {"code": 4003}}}
        assert decided(said, FRAME).status == 4003


class TestGuardrails:
    def test_nothing_found(self) -> None:
        """A plain allow."""
        assert screened({"guardrail_response": {"detected": False, "confidence": 0.2}}, TEXT) is SCREENED_ALLOW
        assert screened({"decision": "allow"}, TEXT) is SCREENED_ALLOW

    def test_findings(self) -> None:
        """An allow that carries them: what they lead to is the route's to say."""
        said = {
            "detected": True,
            "confidence": 0.9,
            "detections": [
                {"category": "email", "severity": "high", "confidence": 1, "span": {"start": 5, "end": 12}},
                {"category": "c" * 200, "description": "d" * 900},
            ],
            "redacted_content": "mail [email]",
        }
        answer = screened({"guardrail_response": said, "audit": {"a": 1}}, TEXT)
        assert answer.audit == {"a": 1}
        assert answer.decision == Decision(
            inspections=(
                Inspection(
                    "waf",
                    True,
                    0.9,
                    (Finding("email", 2, "", 1.0, 5, 12), Finding("c" * 100, 1, "d" * 500, 0.9)),
                    "mail [email]",
                ),
            )
        )

    def test_detected_without_detections(self) -> None:
        """It says that something is there, not what."""
        decision = decided({"guardrail_response": {"detected": True}}, TEXT)
        assert decision.inspections == (Inspection("waf", True),)

    def test_a_refusal_is_one(self) -> None:
        """Also beside a response that has found nothing."""
        for said in ({}, {"guardrail_response": {"detected": False}}):
            assert decided(said | {"decision": {"block": {"status": 451}}}, TEXT).status == 451

    @pytest.mark.parametrize(
        ("said", "text"),
        [
            ({}, "needs a guardrail_response"),
            ({"websocket_decision": "allow"}, "needs a guardrail_response"),
            ({"guardrail_response": {"detected": True, "detections": [{"category": "a"}] * 1_001}}, "at most 1000"),
            (
                {
                    "guardrail_response": {
                        "detected": True,
                        "detections": [{"category": "a", "span": {"start": 4, "end": 4}}],
                    }
                },
                "a span ends before it begins",
            ),
        ],
    )
    def test_what_breaks_the_rules(self, said: object, text: str) -> None:
        """Malformed, with what is wrong."""
        answer = screened(said, TEXT)
        assert answer.decision is None
        assert text in answer.malformed

    @pytest.mark.parametrize(
        "raw",
        [
            b'{"guardrail_response":{}}',
            b'{"guardrail_response":{"detected":"yes"}}',
            b'{"guardrail_response":{"detected":true,"confidence":1.1}}',
            b'{"guardrail_response":{"detected":true,"confidence":-1}}',
            b'{"guardrail_response":{"detected":true,"detections":[{}]}}',
            b'{"guardrail_response":{"detected":true,"detections":[{"category":"a","severity":"bad"}]}}',
            b'{"guardrail_response":{"detected":true,"detections":[{"category":"a","confidence":1e400}]}}',
            b'{"guardrail_response":{"detected":true,"detections":[{"category":"a","span":{"start":-1,"end":2}}]}}',
            b'{"guardrail_response":{"detected":true,"detections":[{"category":"a","span":{"start":0,"end":4294967296}}]}}',
            b'{"guardrail_response":{"detected":true,"detections":[{"category":"a","span":[0,1]}]}}',
        ],
    )
    def test_wrong_shapes(self, raw: bytes) -> None:
        """Do not decode; numbers are such as can be packed."""
        with pytest.raises(ValueError):
            decode_verdict(raw)

    def test_the_most_that_is_read_can_be_told_on(self) -> None:
        """A full response survives the hop."""
        one = {"category": "a", "span": {"start": 4294967294, "end": 4294967295}}
        said = {"detected": True, "detections": [one] * VERDICT_MAX_FIELDS}
        decision = decided({"guardrail_response": said}, TEXT)
        ((_, rest),) = records(pack_decision(1, decision))
        assert unpack_decision(rest) == (1, decision)


_FIELDS = [
    "decision",
    "block",
    "redirect",
    "challenge",
    "status",
    "url",
    "headers",
    "body",
    "error",
    "request_headers",
    "response_headers",
    "set",
    "add",
    "remove",
    "name",
    "value",
    "params",
    "request_body_mutation",
    "response_body_mutation",
    "chunk_index",
    "action",
    "data",
    "needs_more",
    "skip_body",
    "websocket_decision",
    "close",
    "code",
    "reason",
    "guardrail_response",
    "detected",
    "confidence",
    "detections",
    "category",
    "severity",
    "span",
    "start",
    "end",
    "redacted_content",
]
_WORDS = ["allow", "pass", "drop", "replace", "low", "high", "QUJD"]


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(_WORDS),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(_FIELDS), inner, max_size=5),
        max_leaves=12,
    ),
    st.builds(
        Question, st.sampled_from(SUPPORTED), st.booleans(), st.integers(0, 3), st.booleans()
    ),
    st.none() | st.binary(max_size=3),
)  # fmt: skip
def test_any_verdict(verdict: object, asked: Question, body: bytes | None) -> None:
    """Whatever an agent says is a decision, an error, malformed, or does not decode; what is decided can be packed."""
    try:
        answer = screened(verdict, asked, body=body)
    except ValueError:
        return
    _is_sound(answer, asked)


_PARTS = st.fixed_dictionaries(
    {},
    optional={
        "decision": st.sampled_from(["allow", {"block": {"status": 403}}, {"redirect": {"url": "/"}}, {}]),
        "request_body_mutation": st.fixed_dictionaries(
            {"chunk_index": st.integers(0, 2)},
            optional={
                "action": st.sampled_from([None, "pass", "drop", "replace"]),
                "data": st.sampled_from([None, "", "QUJD", "!"]),
            },
        ),
        "response_body_mutation": st.none() | st.just({"chunk_index": 0, "action": "drop"}),
        "needs_more": st.none() | st.booleans(),
        "skip_body": st.none() | st.booleans(),
        "websocket_decision": st.sampled_from(["allow", "drop", "replace", {"close": {"code": 1005}}, {"close": {}}]),
        "data": st.sampled_from([None, "", "QUJD", "!"]),
        "guardrail_response": st.fixed_dictionaries(
            {"detected": st.booleans()},
            optional={"detections": st.just([{"category": "a", "span": {"start": 2, "end": 3}}])},
        ),
        "request_headers": st.just([{"set": {"name": "x-a", "value": "1"}}]),
        "error": st.none() | st.just({"code": "x"}),
    },
)


@given(
    _PARTS,
    st.builds(Question, st.sampled_from(SUPPORTED), st.booleans(), st.integers(0, 2), st.booleans()),
    st.none() | st.binary(max_size=3),
)
def test_any_mixture_of_good_parts(verdict: dict[str, object], asked: Question, body: bytes | None) -> None:
    """Parts that are good each for itself, together and for whatever event: always one clear meaning."""
    answer = screened(verdict, asked, body=body)
    _is_sound(answer, asked)
    refuses = isinstance(verdict.get("decision"), dict) and verdict["decision"]
    if refuses and answer.decision is not None:
        assert answer.decision.verb is not Verb.ALLOW
    if asked.is_last and answer.decision is not None and answer.decision.chunk is not None:
        assert not answer.decision.chunk.hold


def _is_sound(answer: Screened, asked: Question) -> None:
    assert (answer.decision is not None) + bool(answer.error) + bool(answer.malformed) == 1
    decision = answer.decision
    if decision is None:
        return
    ((_, rest),) = records(pack_decision(1, decision))
    assert unpack_decision(rest) == (1, decision)
    if decision.verb is not Verb.ALLOW:
        top = 4999 if asked.kind is EventKind.WEBSOCKET_FRAME else 599
        assert 200 <= decision.status <= top
        assert (decision.request_ops, decision.chunk, decision.inspections) == ((), None, ())
    elif decision.chunk is None or decision.chunk.action is not ChunkAction.REPLACE:
        assert decision.body == b""


def test_a_challenges_parameters_are_tokens() -> None:
    """RFC 6750 3: error_description has an underscore, which header names of ours may not have."""
    params = {"error": "invalid_token", "error_description": "expired"}
    made = decided({"decision": {"challenge": {"challenge_type": "bearer", "params": params}}}, HEAD)
    assert made.headers == (("www-authenticate", 'Bearer error="invalid_token", error_description="expired"'),)
    bad = {"decision": {"challenge": {"challenge_type": "bearer", "params": {"a b": "c"}}}}
    assert "tokens" in screened(bad).malformed
