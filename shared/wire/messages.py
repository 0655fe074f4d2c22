"""Events as agents see them and verdicts as agents give them: one data model for every transport.

Events are encoded once, by the worker, and forwarded untouched; that is why they are built from
ready-made fragments here and not from a dict of everything (orjson of the whole dict costs three times
as much). Verdicts are decoded and validated in one pass by agentd (`decode_verdict`), then screened
into a `Decision`.

Unknown fields are ignored, unknown *decisions* are malformed. docs/agent-protocol.md is the normative
text, tests/vectors/ pin the bytes.

Kind: pure.
"""

import time
from hashlib import sha256
from typing import Annotated, Any, Literal

import msgspec
import orjson
from msgspec import UNSET, Meta, UnsetType

from shared.decision import (
    ALLOW,
    Decision,
    HeaderOp,
    OpAction,
    block,
    challenge,
    is_header_name,
    is_header_value,
    redirect,
    screen_op,
)
from shared.defaults import IDENTITY_MAX_CHARS, VERDICT_MAX_FIELDS

# --- events ---------------------------------------------------------------------------------------

HeaderMap = dict[str, list[str]]


def text(value: bytes) -> str:
    """A header value or target for JSON: UTF-8, else latin-1; never replaced by an empty string."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")


_second = _millisecond = -1
_second_text = _millisecond_text = b""


def timestamp(now_s: float) -> bytes:
    """RFC 3339 in UTC with milliseconds and Z; under load many requests share one."""
    global _second, _second_text, _millisecond, _millisecond_text
    millisecond = int(now_s * 1000)
    if millisecond != _millisecond:
        _millisecond = millisecond
        whole = millisecond // 1000
        if whole != _second:
            _second = whole
            _second_text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole)).encode()
        _millisecond_text = b"%b.%03dZ" % (_second_text, millisecond - whole * 1000)
    return _millisecond_text


def connection_metadata(client_ip: str, client_port: int, tls_version: str = "", tls_cipher: str = "") -> bytes:
    """The part of `metadata` that is one for a whole client connection: `,"client_ip":...` (made once)."""
    fields: dict[str, Any] = {"client_ip": client_ip, "client_port": client_port}
    if tls_version:
        fields["tls_version"] = tls_version
        fields["tls_cipher"] = tls_cipher
    return b"," + orjson.dumps(fields)[1:-1]


def route_metadata(route: str, upstream: str) -> bytes:
    """The part of `metadata` that is one for a route: `,"route_id":...` (made once per config)."""
    return b"," + orjson.dumps({"route_id": route, "upstream_id": upstream})[1:-1]


def lasting_metadata(server_name: str, connection_part: bytes, route_part: bytes, http_1_0: bool) -> bytes:
    """The part of `metadata` that is one for all requests of a connection to one route and host.

    `server_name`: the Host's name without port.
    """
    name = orjson.dumps({"server_name": server_name})[1:-1]
    protocol = b"HTTP/1.0" if http_1_0 else b"HTTP/1.1"
    return b'%b%b%b,"protocol":"%b"' % (name, connection_part, route_part, protocol)


def metadata(correlation_id: bytes, request_id: bytes, lasting: bytes, traceparent: bytes, now_s: float) -> bytes:
    """`"metadata":{...}` of a request, made once and used for each of its events.

    `request_id` is the client's own id where it may be believed, else b"" (the correlation id stands in);
    `lasting` from `lasting_metadata`; `traceparent` the one that goes upstream. All ids are ours or
    validated: ASCII without anything JSON would escape.
    """
    return b'"metadata":{"correlation_id":"%b","request_id":"%b",%b,"timestamp":"%b","traceparent":"%b"}' % (
        correlation_id,
        request_id or correlation_id,
        lasting,
        timestamp(now_s),
        traceparent,
    )


def headers_json(headers: HeaderMap) -> bytes:
    """The fields for the builders below."""
    return orjson.dumps(headers)


def target_json(target: bytes) -> bytes:
    """A request target for the builders below."""
    if target.translate(None, _JSON_PLAIN):
        return orjson.dumps(text(target))
    return b'"%b"' % target


_JSON_PLAIN = bytes(byte for byte in range(0x20, 0x7F) if byte not in b'"\\')  # stand for themselves in a string


_HAS_BODY = (b"false", b"true")


def request_headers_rest(method: bytes, uri: bytes, headers: bytes, has_body: bool) -> bytes:
    """What `request_headers` says of the head: `method` known to HTTP, `uri` and `headers` as JSON."""
    return b',"method":"%b","uri":%b,"headers":%b,"has_body":%b}' % (method, uri, headers, _HAS_BODY[has_body])


def request_headers_event(meta: bytes, rest: bytes) -> bytes:
    """`request_headers`; `meta` from `metadata`, `rest` from `request_headers_rest`."""
    return b'{"event_type":"request_headers",%b%b' % (meta, rest)


def response_headers_event(
    meta: bytes, method: bytes, uri: bytes, status: int, headers: bytes, has_body: bool
) -> bytes:
    """`response_headers`: the upstream's head as received; as above."""
    return b'{"event_type":"response_headers",%b,"method":"%b","uri":%b,"status":%d,"headers":%b,"has_body":%b}' % (
        meta,
        method,
        uri,
        status,
        headers,
        _HAS_BODY[has_body],
    )


# --- verdicts -------------------------------------------------------------------------------------


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
    chunk_index: int
    action: Literal["pass", "drop", "replace"] | None = None
    data: str | None = None  # v1: base64


class Verdict(msgspec.Struct):
    """An agent's answer, validated in shape; `screen` turns it into an Answer's decision."""

    decision: Literal["allow"] | DecisionObject | UnsetType = UNSET
    request_headers: list[OpObject] | None = None
    response_headers: list[OpObject] | None = None
    request_body_mutation: Mutation | None = None
    response_body_mutation: Mutation | None = None
    needs_more: bool | None = None
    skip_body: bool | None = None
    websocket_decision: Any = None
    guardrail_response: Any = None
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


def screen(verdict: Verdict, agent: str, may_set_host: bool, body: bytes | None = None) -> Screened:
    """A verdict on a header event as a decision. `body`: the verdict's body frame, if it had one."""
    decided = verdict.decision
    if verdict.error is not None:
        return Screened(error=f"{verdict.error.code}: {verdict.error.message}"[:500], audit=verdict.audit)
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
    given = [name for name in ("block", "redirect", "challenge") if getattr(decided, name) is not UNSET]
    if len(given) != 1:
        return Screened(malformed="decision must be allow or one of block, redirect, challenge", audit=verdict.audit)
    made = _refusal(decided, body, response_ops, agent, refused)
    if isinstance(made, str):
        return Screened(malformed=made, audit=verdict.audit)
    return Screened(made, refused_ops=tuple(refused), audit=verdict.audit)


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
    if ask.challenge_type.lower() in ("basic", "bearer") and not all(map(is_header_name, ask.params)):
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
