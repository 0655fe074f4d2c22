"""What agents answered, what that means, and what happens when they did not.

    Verdict  --screened-->  Answer(Outcome.DECISION, Decision)      one agent's call
    failure  ------------>  Answer(Outcome.TIMEOUT ...)             one agent's call
    answers of a phase  --merge-->  Decision                        what the worker applies

Semantics 3 (failure is a value, applied in exactly one function), 4 (merge) and 6 (agents cannot
break framing) of docs/architecture.md live here and nowhere else. agentd runs them for every event;
a worker runs `on_failure` alone when agentd cannot be asked.

Kind: pure.
"""

import re
from collections.abc import Iterable, Sequence
from enum import IntEnum
from typing import Literal

import msgspec

from shared.events import EventKind


class Verb(IntEnum):
    """What the proxy does. In order of precedence from weak to strong; on the wire, never renumber."""

    ALLOW = 0
    FAIL = 1  # a fail-closed failure: nobody decided, and nobody may pass
    REDIRECT = 2
    CHALLENGE = 3
    BLOCK = 4

    @property
    def word(self) -> str:
        """Lower-case name for logs, metrics, audit."""
        return self.name.lower()


class Outcome(IntEnum):
    """How a call to an agent ended."""

    DECISION = 0
    TIMEOUT = 1
    BREAKER_OPEN = 2
    QUEUE_FULL = 3
    DISCONNECTED = 4
    MALFORMED = 5
    AGENT_ERROR = 6
    BODY_TOO_LARGE = 7
    CANCELLED = 8  # not a result: nobody waits any more

    @property
    def word(self) -> str:
        """Lower-case name for logs, metrics, audit."""
        return self.name.lower()


FailureMode = Literal["closed", "open"]


class OpAction(IntEnum):
    """On the wire, never renumber."""

    SET = 0
    ADD = 1
    REMOVE = 2


class HeaderOp(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One screened header operation; names are lower-case ASCII, values latin-1 encodable or UTF-8."""

    action: OpAction
    name: str
    value: str = ""


class ChunkAction(IntEnum):
    """What an allowed chunk or frame becomes. On the wire, never renumber."""

    PASS = 0
    DROP = 1
    REPLACE = 2


class ChunkVerdict(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What is said of a chunk or frame beside ALLOW; the replacement is the decision's `body`.

    The masks name agents by their place in the plan, as the event's mask does; so does `editor`, whose
    `action` it is (after `hold`: it acts on everything held for that agent).
    """

    action: ChunkAction = ChunkAction.PASS
    editor: int = -1
    hold: int = 0  # needs_more: keep the chunk until a later verdict without it
    skip: int = 0  # skip_body: no further chunk of this body


class Finding(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One detection of a guardrail. `start`, `end`: bytes of the inspected content as UTF-8, -1 = not told."""

    category: str
    severity: int  # 0 low, 1 medium, 2 high, 3 critical
    description: str = ""
    confidence: float = 1.0
    start: int = -1
    end: int = -1


class Inspection(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What one agent found in a text."""

    agent: str
    detected: bool
    confidence: float = 0.0
    findings: tuple[Finding, ...] = ()
    redacted: str | None = None


class Decision(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One decision about one event, ready to apply.

    For all verbs but ALLOW, `status`, `headers` and `body` are the whole response (framing excepted); for
    a WebSocket frame a block's `status` is the close code and its `body` the reason. `request_ops` are set
    only beside ALLOW; `response_ops` belong to the response the client gets.
    """

    verb: Verb = Verb.ALLOW
    status: int = 0
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    request_ops: tuple[HeaderOp, ...] = ()
    response_ops: tuple[HeaderOp, ...] = ()
    agent: str = ""  # who decided; "" when everybody allowed or nobody was asked
    reason: str = ""  # a stable word: the outcome for FAIL, else the verb
    identity: str = ""  # beside ALLOW: who an agent says the client is; the key of rate limits
    chunk: ChunkVerdict | None = None  # beside ALLOW of a chunk or frame; None = it passes
    inspections: tuple[Inspection, ...] = ()  # of guardrail_inspect, one per agent that answered


class Answer(msgspec.Struct, frozen=True, gc=False):
    """How one enforcing agent's call ended: `decision` is given iff outcome is DECISION."""

    outcome: Outcome
    decision: Decision | None = None


ALLOW = Decision()
_ALLOWS = Verb.ALLOW  # a look-up in an Enum costs 0.10 us on CPython 3.11, a global 0.01 (2026-11)
FAILURE_STATUS = {Outcome.TIMEOUT: 504}  # everything else 503, body limits aside
_JSON_TYPE = ("content-type", "application/json")

# What a failed decision looks like to a client: says which side failed, never which policy.
_FAILURE_BODY = {504: b"policy decision timed out\n", 503: b"policy decision unavailable\n"}


def on_failure(outcome: Outcome, mode: FailureMode, kind: EventKind, agent: str = "") -> Decision | None:
    """The one place where `failure_mode` acts: None = skip this agent (open), else the refusal (closed)."""
    if mode == "open":
        return None
    if outcome is Outcome.BODY_TOO_LARGE:
        status = 413 if kind is EventKind.REQUEST_BODY_CHUNK else 502
    else:
        status = FAILURE_STATUS.get(outcome, 503)
    body = _FAILURE_BODY.get(status, b"")
    return Decision(Verb.FAIL, status, (), body, agent=agent, reason=outcome.word)


def merge(
    answers: Sequence[Answer | None], modes: Sequence[FailureMode], names: Sequence[str], kind: EventKind
) -> Decision:
    """The decision of one phase from the answers at hand, in chain order.

    None = that agent had not answered when the phase ended (only possible beside a refusal) or is an
    observer. In what one agent says of a chunk, masks and editor are those of a chain of one. block >
    challenge > redirect > fail-closed failure > allow, ties by chain order. Only if all allow are their
    header operations joined; a refusal carries its own agent's alone.
    """
    strongest: Decision | None = None
    request_ops: tuple[HeaderOp, ...] = ()
    response_ops: tuple[HeaderOp, ...] = ()
    identity = ""
    chunk: ChunkVerdict | None = None
    body = b""
    inspections: tuple[Inspection, ...] = ()
    for place, (answer, mode, name) in enumerate(zip(answers, modes, names, strict=True)):
        if answer is None:
            continue
        decision = answer.decision
        if decision is None:
            decision = on_failure(answer.outcome, mode, kind, name)
            if decision is None:
                continue
        said = decision.chunk
        if said is not None:
            if said.editor >= 0 and chunk is not None and chunk.editor >= 0:
                # Two mutations of one chunk: the first in chain order acts, the second breaks the rule.
                refusal = on_failure(Outcome.MALFORMED, mode, kind, name)
                if refusal is None:
                    continue
                decision = refusal
            else:
                if said.editor >= 0:
                    body = decision.body
                chunk = _joined(chunk, said, place)
        if decision.verb is _ALLOWS:
            inspections += decision.inspections
            request_ops += decision.request_ops
            response_ops += decision.response_ops
            identity = identity or decision.identity
        elif strongest is None or decision.verb > strongest.verb:
            strongest = decision
    if strongest is not None:
        return strongest
    if request_ops or response_ops or identity or chunk is not None or inspections:
        return Decision(
            body=body,
            request_ops=request_ops,
            response_ops=response_ops,
            identity=identity,
            chunk=chunk,
            inspections=inspections,
        )
    return ALLOW


def _joined(before: ChunkVerdict | None, said: ChunkVerdict, place: int) -> ChunkVerdict:
    """One more agent's word, given as if it were the first of the chain, put to its place."""
    before = before or _PASSES
    editor, action = (place, said.action) if said.editor >= 0 else (before.editor, before.action)
    return ChunkVerdict(action, editor, before.hold | said.hold << place, before.skip | said.skip << place)


_PASSES = ChunkVerdict()


# --- screening header operations (semantics 6) ---------------------------------------------------

# Framing and hop-by-hop fields, and the two that only the proxy can know.
PROTECTED = frozenset(
    (
        "via",
        "x-correlation-id",
        "connection",
        "transfer-encoding",
        "content-length",
        "upgrade",
        "te",
        "expect",
        "trailer",
        "keep-alive",
        "proxy-connection",
        "sec-websocket-key",  # a handshake is between its ends: other values would break it, or hide what was agreed
        "sec-websocket-accept",
        "sec-websocket-version",
        "sec-websocket-extensions",
    )
)
_TOKEN = re.compile(r"[!#$%&'*+.^`|~0-9A-Za-z-]+\Z")  # RFC 9110 5.6.2 without "_" (see docs: header names with _)
_VALUE = re.compile(r"[^\x00-\x08\x0a-\x1f\x7f]*\Z")


def is_header_name(name: str) -> bool:
    """RFC 9110 5.6.2 token, ASCII, without underscore."""
    return _TOKEN.match(name) is not None


def is_token(name: str) -> bool:
    """RFC 9110 5.6.2 token: also the name of a challenge's parameter (error_description, RFC 6750 3)."""
    return _TOKEN.match(name.replace("_", "-")) is not None


def is_header_value(value: str) -> bool:
    """No control characters but tab; any other character can be encoded as UTF-8."""
    return _VALUE.match(value) is not None


def screen_op(action: OpAction, name: str, value: str, may_set_host: bool) -> HeaderOp | None:
    """The operation as it may be applied, or None when it is refused (the caller counts and audits it)."""
    name = name.lower()
    if name in PROTECTED or (name == "host" and not (may_set_host and action is OpAction.SET)):
        return None
    if not is_header_name(name) or not is_header_value(value):
        return None
    return HeaderOp(action, name, value.strip(" \t"))


# --- the three refusals an agent can ask for ------------------------------------------------------


def block(
    status: int,
    body: bytes,
    headers: Iterable[tuple[str, str]],
    response_ops: tuple[HeaderOp, ...],
    agent: str,
) -> Decision:
    """An agent's block; text/plain unless its headers say otherwise."""
    fields = tuple(headers)
    if body and not any(name == "content-type" for name, _ in fields):
        fields = (("content-type", "text/plain; charset=utf-8"), *fields)
    return Decision(Verb.BLOCK, status, fields, body, response_ops=response_ops, agent=agent, reason="block")


def redirect(status: int, url: str, response_ops: tuple[HeaderOp, ...], agent: str) -> Decision:
    """An agent's redirect; the caller has checked status and url."""
    return Decision(
        Verb.REDIRECT, status, (("location", url),), b"", response_ops=response_ops, agent=agent, reason="redirect"
    )


def challenge(challenge_type: str, params: dict[str, str], response_ops: tuple[HeaderOp, ...], agent: str) -> Decision:
    """401 with WWW-Authenticate for basic and bearer; else 403 with type and params as JSON."""
    scheme = challenge_type.lower()
    if scheme in ("basic", "bearer"):
        quoted = ", ".join(f'{k}="{_quote(v)}"' for k, v in params.items())
        value = f"{scheme.capitalize()} {quoted}" if quoted else scheme.capitalize()
        headers: tuple[tuple[str, str], ...] = (("www-authenticate", value),)
        return Decision(
            Verb.CHALLENGE, 401, headers, b"authentication required\n", (), response_ops, agent, "challenge"
        )
    body = msgspec.json.encode({"challenge_type": challenge_type, "params": params})
    headers = (_JSON_TYPE, ("x-challenge-type", challenge_type))
    return Decision(Verb.CHALLENGE, 403, headers, body, (), response_ops, agent, "challenge")


def _quote(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"')
