"""Verdicts as agents give them, and what they come to: decoded and validated in one pass, then screened.

    bytes --decode_verdict--> Verdict --screen, against the event's Question--> Screened (a Decision, or why not)

Unknown fields are ignored, unknown *decisions* are malformed. What several agents' decisions come to
together stands in shared/decision.py. docs/agent-protocol.md is the normative text, tests/vectors/ pin
the bytes.

Kind: pure.
"""

from base64 import b64decode
from hashlib import sha256
from typing import Annotated, Any, Final, Literal, NamedTuple

import msgspec
from msgspec import UNSET, Meta, UnsetType

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
    block,
    challenge,
    is_header_name,
    is_header_value,
    is_token,
    redirect,
    screen_op,
)
from shared.defaults import IDENTITY_MAX_CHARS, VERDICT_MAX_FIELDS
from shared.events import EventKind

# A look-up in an Enum costs 0.10 us on CPython 3.11, a global 0.01 (2026-11).
_REQUEST_CHUNK, _RESPONSE_CHUNK = EventKind.REQUEST_BODY_CHUNK, EventKind.RESPONSE_BODY_CHUNK
_WEBSOCKET, _GUARDRAIL = EventKind.WEBSOCKET_FRAME, EventKind.GUARDRAIL_INSPECT


_U32: Final = (1 << 32) - 1  # of numbers that agents choose: what travels on can be packed


class BlockBody(msgspec.Struct):
    status: Annotated[int, Meta(ge=200, le=599)]
    body: str | None = None
    headers: dict[str, str | list[str]] | None = None


class RedirectBody(msgspec.Struct):
    url: str
    status: Literal[301, 302, 303, 307, 308] = 302


class ChallengeBody(msgspec.Struct):
    challenge_type: str
    params: dict[str, str] = {}


class DecisionObject(msgspec.Struct):
    block: BlockBody | UnsetType = UNSET
    redirect: RedirectBody | UnsetType = UNSET
    challenge: ChallengeBody | UnsetType = UNSET


class NameValue(msgspec.Struct):
    name: str
    value: str = ""


class OpObject(msgspec.Struct):
    set: NameValue | UnsetType = UNSET
    add: NameValue | UnsetType = UNSET
    remove: NameValue | UnsetType = UNSET


class AgentErrorBody(msgspec.Struct):
    code: str = ""
    message: str = ""


class Mutation(msgspec.Struct):
    chunk_index: Annotated[int, Meta(ge=0, le=_U32)]
    action: Literal["pass", "drop", "replace"] | None = None
    data: str | None = None  # v1: base64


class CloseBody(msgspec.Struct):
    code: Annotated[int, Meta(ge=1000, le=4999)] = 1008
    reason: str = ""


class CloseObject(msgspec.Struct):
    close: CloseBody


class SpanBody(msgspec.Struct):
    start: Annotated[int, Meta(ge=0, le=_U32)]
    end: Annotated[int, Meta(ge=0, le=_U32)]


class DetectionBody(msgspec.Struct):
    category: str
    description: str = ""
    severity: Literal["low", "medium", "high", "critical"] = "medium"
    confidence: Annotated[float, Meta(ge=0, le=1)] | None = None
    span: SpanBody | None = None


class GuardrailBody(msgspec.Struct):
    detected: bool
    confidence: Annotated[float, Meta(ge=0, le=1)] = 0.0
    detections: list[DetectionBody] = []
    redacted_content: str | None = None


class Verdict(msgspec.Struct):
    """An agent's answer, validated in shape; `screen` turns it into an Answer's decision."""

    decision: Literal["allow"] | DecisionObject | UnsetType = UNSET
    request_headers: list[OpObject] | None = None
    response_headers: list[OpObject] | None = None
    request_body_mutation: Mutation | None = None
    response_body_mutation: Mutation | None = None
    needs_more: bool | None = None
    skip_body: bool | None = None
    websocket_decision: Literal["allow", "drop", "replace"] | CloseObject | None = None
    data: str | None = None  # v1: the payload of its replace, base64
    guardrail_response: GuardrailBody | None = None
    routing_metadata: dict[str, str] | None = None
    audit: dict[str, Any] | None = None
    error: AgentErrorBody | None = None


class Screened(msgspec.Struct):
    """What a verdict comes to: a decision, or why not (`malformed` or the agent's own `error`)."""

    decision: Decision | None = None
    malformed: str = ""
    error: str = ""
    refused_ops: tuple[str, ...] = ()
    audit: dict[str, Any] | None = None
    is_kept: bool = False  # short, and remembered by who read it: the next verdict of these bytes is this very object
    is_quiet: bool = False  # kept, and an allow with nothing in it for an auditor


decode_verdict = msgspec.json.Decoder(Verdict).decode
SCREENED_ALLOW = Screened(ALLOW, is_kept=True, is_quiet=True)


class Question(NamedTuple):
    """What of an event its answer is screened against."""

    kind: EventKind = EventKind.REQUEST_HEADERS
    may_set_host: bool = False
    chunk_index: int = 0
    is_last: bool = False  # of a body: it cannot be held


HEAD: Final = Question()
HEAD_AND_HOST: Final = Question(may_set_host=True)


def screen(verdict: Verdict, agent: str, asked: Question = HEAD, body: bytes | None = None) -> Screened:
    """A verdict as a decision. `body`: the verdict's body frame, if it had one."""
    if verdict.error is not None:
        return Screened(error=f"{verdict.error.code}: {verdict.error.message}"[:500], audit=verdict.audit)
    said: Decision | str | None = None
    kind = asked.kind
    if kind is _WEBSOCKET:
        said = _frame(verdict, agent, body)
    elif kind is _GUARDRAIL:
        said = _inspection(verdict, agent)
    elif (kind is _REQUEST_CHUNK or kind is _RESPONSE_CHUNK) and verdict.decision == "allow":
        said = _chunk(verdict, asked, body)
        if isinstance(said, Decision) and (verdict.request_headers or verdict.response_headers):
            return _with_ops(said, screen_ops(verdict, agent, asked.may_set_host))
    if isinstance(said, str):
        return Screened(malformed=said, audit=verdict.audit)
    if said is not None:
        return SCREENED_ALLOW if said is ALLOW and verdict.audit is None else Screened(said, audit=verdict.audit)
    heads = screen_ops(verdict, agent, asked.may_set_host, body)
    return _with_ops(_SKIPS, heads) if verdict.skip_body and verdict.decision == "allow" else heads


_SKIPS: Final = Decision(chunk=ChunkVerdict(skip=1))


def _with_ops(said: Decision, heads: Screened) -> Screened:
    ops = heads.decision
    if ops is None:
        return heads
    decision = msgspec.structs.replace(ops, chunk=said.chunk, body=said.body)
    return Screened(decision, refused_ops=heads.refused_ops, audit=heads.audit)


def _chunk(verdict: Verdict, asked: Question, body: bytes | None) -> Decision | str:
    """What an allow says of its chunk; a str is what is wrong with it."""
    is_request = asked.kind is _REQUEST_CHUNK
    mutation = verdict.request_body_mutation if is_request else verdict.response_body_mutation
    if (verdict.response_body_mutation if is_request else verdict.request_body_mutation) is not None:
        return "the mutation is of the other direction"
    action, editor, data = ChunkAction.PASS, -1, b""
    if mutation is not None:
        if mutation.chunk_index != asked.chunk_index:
            return f"the mutation is of chunk {mutation.chunk_index}, the event's is {asked.chunk_index}"
        found = _mutated(mutation, body)
        if isinstance(found, str):
            return found
        action, data = found
        editor = -1 if action is ChunkAction.PASS else 0
    if verdict.needs_more:
        if asked.is_last:
            return "needs_more on the last chunk"
        if editor >= 0 or verdict.skip_body:
            return "needs_more beside a mutation or skip_body"
    elif editor < 0 and not verdict.skip_body:
        return ALLOW
    chunk = ChunkVerdict(action, editor, int(bool(verdict.needs_more)), int(bool(verdict.skip_body)))
    return Decision(body=data, chunk=chunk)


def _mutated(mutation: Mutation, body: bytes | None) -> tuple[ChunkAction, bytes] | str:
    action, data = mutation.action, mutation.data
    if body is not None and action != "replace":
        return "a mutation with a body needs the action replace"  # passing it on unchanged is not what was meant
    if action is None:  # v1: null passes, "" drops, else base64
        if data is None:
            return ChunkAction.PASS, b""
        if not data:
            return ChunkAction.DROP, b""
    elif action != "replace":
        return (ChunkAction.PASS if action == "pass" else ChunkAction.DROP), b""
    if body is not None:
        return ChunkAction.REPLACE, body
    if not data:
        return ChunkAction.DROP, b""  # no frame = an empty replacement
    decoded = _base64(data)
    return "the mutation's data is not base64" if decoded is None else (ChunkAction.REPLACE, decoded)


def _base64(data: str) -> bytes | None:
    try:
        return b64decode(data, validate=True)
    except ValueError:
        return None


def _frame(verdict: Verdict, agent: str, body: bytes | None) -> Decision | str | None:
    """A websocket_decision as a decision; a refusal in `decision` acts too, and closes."""
    said, decided = verdict.websocket_decision, verdict.decision
    if isinstance(decided, DecisionObject) and not isinstance(said, CloseObject):
        if len(_given(decided)) != 1:
            return _NOT_ONE
        return Decision(Verb.BLOCK, _POLICY_VIOLATION, agent=agent, reason="close")
    if said is None:
        return ALLOW if decided == "allow" else "a verdict on a frame needs a websocket_decision"
    if said == "allow":
        return ALLOW
    if said == "drop":
        return Decision(chunk=ChunkVerdict(ChunkAction.DROP, 0))
    if said == "replace":
        payload = body if body is not None else _base64(verdict.data or "")
        if payload is None:
            return "the payload in data is not base64"
        return Decision(chunk=ChunkVerdict(ChunkAction.REPLACE, 0), body=payload)
    assert isinstance(said, CloseObject)
    code, reason = said.close.code, said.close.reason.encode()
    if code in _NOT_SENT or 1014 < code < 3000:  # RFC 6455 7.4: for nobody to send, or not defined
        return f"close code {code} cannot be sent"
    if len(reason) > _REASON_BYTES:
        return f"the close reason is over {_REASON_BYTES} bytes"
    return Decision(Verb.BLOCK, code, body=reason, agent=agent, reason="close")


_POLICY_VIOLATION: Final = 1008
_NOT_SENT: Final = frozenset((1004, 1005, 1006))
_REASON_BYTES: Final = 123  # RFC 6455 5.5: a control frame has 125, two of them are the code
_SEVERITY = {"low": 0, "medium": 1, "high": 2, "critical": 3}


def _inspection(verdict: Verdict, agent: str) -> Decision | str | None:
    """A guardrail_response as a decision: an allow that carries what was found. None: the plain decision counts."""
    said, decided = verdict.guardrail_response, verdict.decision
    if said is None:
        return None if decided is not UNSET else "a verdict on a text needs a guardrail_response"
    if isinstance(decided, DecisionObject):
        return None
    if len(said.detections) > VERDICT_MAX_FIELDS:
        return f"{len(said.detections)} detections, at most {VERDICT_MAX_FIELDS} are read"
    if not said.detected and not said.detections:
        return ALLOW
    if any(one.span is not None and one.span.start >= one.span.end for one in said.detections):
        return "a span ends before it begins"
    findings = tuple(
        Finding(
            one.category[:100],
            _SEVERITY[one.severity],
            one.description[:500],
            said.confidence if one.confidence is None else one.confidence,
            *((one.span.start, one.span.end) if one.span is not None else (-1, -1)),
        )
        for one in said.detections
    )
    return Decision(inspections=(Inspection(agent, said.detected, said.confidence, findings, said.redacted_content),))


def screen_ops(verdict: Verdict, agent: str, may_set_host: bool, body: bytes | None = None) -> Screened:
    """A verdict on a head as a decision."""
    decided = verdict.decision
    if decided == "allow":
        identity = _identity(verdict.routing_metadata) if verdict.routing_metadata else ""
        if not verdict.request_headers and not verdict.response_headers and verdict.audit is None and not identity:
            return SCREENED_ALLOW
        refused: list[str] = []
        request_ops = _ops(verdict.request_headers, may_set_host, refused)
        if isinstance(request_ops, str):
            return Screened(malformed=request_ops, audit=verdict.audit)
        response_ops = _ops(verdict.response_headers, False, refused)
        if isinstance(response_ops, str):
            return Screened(malformed=response_ops, audit=verdict.audit)
        decision = ALLOW
        if request_ops or response_ops or identity:
            decision = Decision(request_ops=request_ops, response_ops=response_ops, agent=agent, identity=identity)
        return Screened(decision, refused_ops=tuple(refused), audit=verdict.audit)
    if decided is UNSET:
        return Screened(malformed="a verdict needs a decision", audit=verdict.audit)
    assert isinstance(decided, DecisionObject)
    refused = []
    response_ops = _ops(verdict.response_headers, False, refused)
    if isinstance(response_ops, str):
        return Screened(malformed=response_ops, audit=verdict.audit)
    if len(_given(decided)) != 1:
        return Screened(malformed=_NOT_ONE, audit=verdict.audit)
    made = _refusal(decided, body, response_ops, agent, refused)
    if isinstance(made, str):
        return Screened(malformed=made, audit=verdict.audit)
    return Screened(made, refused_ops=tuple(refused), audit=verdict.audit)


_NOT_ONE: Final = "decision must be allow or one of block, redirect, challenge"


def _given(decided: DecisionObject) -> list[str]:
    return [name for name in ("block", "redirect", "challenge") if getattr(decided, name) is not UNSET]


def _identity(routing: dict[str, str]) -> str:
    """`routing_metadata.identity`, and of one that is too long to carry its hash: still another for each."""
    identity = routing.get("identity", "")
    if len(identity) > IDENTITY_MAX_CHARS:
        return "sha256:" + sha256(identity.encode("utf-8", "surrogatepass")).hexdigest()
    return identity


def _refusal(
    decided: DecisionObject, body: bytes | None, ops: tuple[HeaderOp, ...], agent: str, refused: list[str]
) -> Decision | str:
    if decided.block is not UNSET:
        wish = decided.block
        fields: list[tuple[str, str]] = []
        if len(wish.headers or ()) > VERDICT_MAX_FIELDS:
            return f"{len(wish.headers or ())} block headers, at most {VERDICT_MAX_FIELDS} are read"
        for name, value in (wish.headers or {}).items():
            for one in [value] if isinstance(value, str) else value:
                if not is_header_name(name) or not is_header_value(one):
                    return f"block header {name[:60]!r} has control characters or is no header name"
                kept = screen_op(OpAction.SET, name, one, False)
                if kept is None:
                    refused.append(name)
                else:
                    fields.append((kept.name, kept.value))
        content = body if body is not None else (wish.body or "").encode()
        return block(wish.status, content, fields, ops, agent)
    if decided.redirect is not UNSET:
        aim = decided.redirect
        if not aim.url or not is_header_value(aim.url) or "\t" in aim.url:
            return "redirect url is empty or has control characters"
        return redirect(aim.status, aim.url, ops, agent)
    assert decided.challenge is not UNSET
    ask = decided.challenge
    parts = (ask.challenge_type, *ask.params, *ask.params.values())
    if not ask.challenge_type or not all(map(is_header_value, parts)):
        return "challenge is empty or has control characters"
    if ask.challenge_type.lower() in ("basic", "bearer") and not all(map(is_token, ask.params)):
        return "challenge parameter names must be tokens"
    return challenge(ask.challenge_type, ask.params, ops, agent)


def _ops(wishes: list[OpObject] | None, may_set_host: bool, refused: list[str]) -> tuple[HeaderOp, ...] | str:
    if not wishes:
        return ()
    if len(wishes) > VERDICT_MAX_FIELDS:
        return f"{len(wishes)} header operations, at most {VERDICT_MAX_FIELDS} are read"
    kept: list[HeaderOp] = []
    for wish in wishes:
        if (wish.set is UNSET) + (wish.add is UNSET) + (wish.remove is UNSET) != 2:
            return "a header operation is one of set, add, remove"
        if wish.set is not UNSET:
            action, pair = OpAction.SET, wish.set
        elif wish.add is not UNSET:
            action, pair = OpAction.ADD, wish.add
        else:
            assert wish.remove is not UNSET
            action, pair = OpAction.REMOVE, wish.remove
        op = screen_op(action, pair.name, pair.value, may_set_host)
        if op is None:
            refused.append(pair.name[:100])
        else:
            kept.append(op)
    return tuple(kept)
