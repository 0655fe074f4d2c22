"""What an agent may answer: verdicts, built fluently, each step giving a new one.

    Allow().set_request_header("x-agent", "ok").audit(tags=["seen"])
    Block(403, "no\\n", headers={"X-Blocked-By": "policy"})

Verdicts never change after they were made, so one that is always the same can be a constant: its JSON
is made at its first use and kept. What a verdict cannot mean (a status of 99, a line feed in a header)
is a ValueError where it is written, not a malformed answer later. The proxy screens again: protected
fields such as Connection are refused there.

Kind: pure.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, Self

import orjson

from wardgate_agent.events import Event, _Chunk

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z")  # RFC 9110 5.6.2
_VALUE = re.compile(r"[^\x00-\x08\x0a-\x1f\x7f]*\Z")
_good_names: set[str] = set()  # looked at once
REDIRECT_STATUS: Final = (301, 302, 303, 307, 308)
NO_CLOSE_CODES: Final = (1004, 1005, 1006)
MAX_DETECTIONS: Final = 1_000
MAX_SPAN: Final = (1 << 32) - 1
Severity = Literal["low", "medium", "high", "critical"]

_Fields = dict[str, Any]


class Unfit(ValueError):
    """A hook returned something that is no answer to its event; answered with the error code `bad_verdict`."""


class AgentError(Exception):
    """I could not decide. Raise or return it: the request ends as its failure mode says, never in an allow."""

    def __init__(self, code: str, message: str = "") -> None:
        super().__init__(message or code)
        self.code = code
        self.message = message


class Verdict:
    """Any answer. Use the classes below."""

    __slots__ = ("_body", "_fields", "_fragment", "_mutation")

    def __init__(self, fields: _Fields, body: bytes | None = None) -> None:
        self._fields = fields
        self._body = body
        self._mutation: str | None = None  # pass, drop, replace: rendered with its event's index and direction
        self._fragment: orjson.Fragment | None = None  # only for what is the same beside every HTTP event

    def _with(self, name: str, value: Any) -> Self:
        made = object.__new__(type(self))
        made._fields = {**self._fields, name: value}
        made._body = self._body
        made._mutation = self._mutation
        made._fragment = None
        return made

    def audit(
        self,
        *,
        tags: Sequence[str] | str = (),
        rule_ids: Sequence[str] | str = (),
        reason_codes: Sequence[str] | str = (),
        confidence: float | None = None,
        custom: Mapping[str, Any] | None = None,
    ) -> Self:
        """Say why, for the audit log. Repeated calls add up."""
        audit: dict[str, Any] = dict(self._fields.get("audit", ()))
        for name, words in (("tags", tags), ("rule_ids", rule_ids), ("reason_codes", reason_codes)):
            if words:
                audit[name] = [*audit.get(name, ()), *((words,) if isinstance(words, str) else words)]
        if confidence is not None:
            audit["confidence"] = confidence
        if custom:
            audit["custom"] = {**audit.get("custom", {}), **custom}
        return self._with("audit", audit)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Verdict):
            return NotImplemented
        return (self._fields, self._body, self._mutation) == (other._fields, other._body, other._mutation)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        tail = f", {self._mutation}" if self._mutation else ""
        return f"{type(self).__name__}({self._fields!r}{tail}{', body' if self._body is not None else ''})"


class HttpVerdict(Verdict):
    """An answer about a request or a response, its head or a chunk of its body."""

    __slots__ = ()

    def set_response_header(self, name: str, value: str) -> Self:
        """Replace a field of the response that the client gets, whoever makes it."""
        return self._op("response_headers", "set", name, value)

    def add_response_header(self, name: str, value: str) -> Self:
        """Add a value to a field of the response that the client gets."""
        return self._op("response_headers", "add", name, value)

    def remove_response_header(self, name: str) -> Self:
        """Remove a field from the response that the client gets."""
        return self._op("response_headers", "remove", name, None)

    def _op(self, side: str, action: str, name: str, value: str | None) -> Self:
        _header_name(name)
        pair = {"name": name} if value is None else {"name": name, "value": _header_value(name, value)}
        before = self._fields.get(side)
        return self._with(side, (*before, {action: pair}) if before else ({action: pair},))


class Allow(HttpVerdict):
    """Go on, perhaps changed. Beside a body chunk: it passes unless a `*_chunk` method says otherwise."""

    __slots__ = ()

    def __init__(self) -> None:
        # not by super(): one is made for many a request (0.17 us against 0.28, 2026-11)
        self._fields = {"decision": "allow"}
        self._body = None
        self._mutation = None
        self._fragment = None

    def set_request_header(self, name: str, value: str) -> Self:
        """Replace a field of the request that goes upstream."""
        return self._op("request_headers", "set", name, value)

    def add_request_header(self, name: str, value: str) -> Self:
        """Add a value to a field of the request that goes upstream."""
        return self._op("request_headers", "add", name, value)

    def remove_request_header(self, name: str) -> Self:
        """Remove a field from the request that goes upstream."""
        return self._op("request_headers", "remove", name, None)

    def routing(self, upstream: str | None = None, **metadata: str) -> Self:
        """Choose another configured upstream, if the route permits it; other names are handed on."""
        given = dict(metadata) if upstream is None else {"upstream": upstream, **metadata}
        if not all(isinstance(value, str) for value in given.values()):
            raise ValueError("routing metadata are strings")
        return self._with("routing_metadata", {**self._fields.get("routing_metadata", {}), **given})

    def pass_chunk(self) -> Self:
        """Let this chunk pass as it is, which a plain allow does too; after `needs_more`, everything held."""
        return self._mutate("pass", None)

    def drop_chunk(self) -> Self:
        """Take this chunk out; after `needs_more`, everything held."""
        return self._mutate("drop", None)

    def replace_chunk(self, data: bytes) -> Self:
        """Put `data` in this chunk's place; after `needs_more`, in the place of everything held."""
        return self._mutate("replace", bytes(data))

    def needs_more(self) -> Self:
        """Hold this chunk; the next verdict without this acts on everything held.

        Not on the last chunk, which is the one to decide on, and beside no other chunk method.
        """
        return self._with("needs_more", True)

    def skip_body(self) -> Self:
        """About a chunk: send me no more of this body, the rest passes. This chunk goes as is said beside it."""
        return self._with("skip_body", True)

    def _mutate(self, action: str, data: bytes | None) -> Self:
        made = self._with("decision", "allow")
        made._mutation = action
        made._body = data or None  # no frame = empty
        return made


class Block(HttpVerdict):
    """Refuse, with this response: text/plain unless `headers` say otherwise. A body of bytes goes beside the JSON."""

    __slots__ = ()

    def __init__(
        self,
        status: int = 403,
        body: str | bytes = "",
        headers: Mapping[str, str | Sequence[str]] | None = None,
    ) -> None:
        if not isinstance(status, int) or not 200 <= status <= 599:
            raise ValueError(f"block status {status!r} is not from 200 to 599")
        block: dict[str, Any] = {"status": int(status)}
        if isinstance(body, str) and body:
            block["body"] = body
        if headers:
            block["headers"] = {
                _header_name(name): _header_value(name, value)
                if isinstance(value, str)
                else [_header_value(name, one) for one in value]
                for name, value in headers.items()
            }
        raw = bytes(body) if not isinstance(body, str) and body else None
        super().__init__({"decision": {"block": block}}, raw)


class Redirect(HttpVerdict):
    """Send the client elsewhere."""

    __slots__ = ()

    def __init__(self, url: str, status: int = 302) -> None:
        if status not in REDIRECT_STATUS:
            raise ValueError(f"redirect status {status!r} is not one of {REDIRECT_STATUS}")
        if not isinstance(url, str) or not url or "\t" in url or not _VALUE.match(url):
            raise ValueError("redirect url is empty or has control characters")
        super().__init__({"decision": {"redirect": {"url": url, "status": status}}})


class Challenge(HttpVerdict):
    """Ask the client to prove something.

    401 with WWW-Authenticate for `basic` and `bearer`, else 403 with type and parameters as JSON.
    """

    __slots__ = ()

    def __init__(self, challenge_type: str, **params: str) -> None:
        words = (challenge_type, *params, *params.values())
        if not challenge_type or not all(isinstance(word, str) and _VALUE.match(word) for word in words):
            raise ValueError("a challenge needs a type, and parameters without control characters")
        super().__init__({"decision": {"challenge": {"challenge_type": challenge_type, "params": params}}})


class WebSocketVerdict(Verdict):
    """An answer about a WebSocket message."""

    __slots__ = ()


class WebSocketAllow(WebSocketVerdict):
    """Let the message pass."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__({"websocket_decision": "allow"})


class WebSocketDrop(WebSocketVerdict):
    """Take the message out. Of a close only its code and reason are taken: it cannot be dropped."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__({"websocket_decision": "drop"})


class WebSocketReplace(WebSocketVerdict):
    """Put another payload into the message; str is sent as UTF-8, and a text message must stay UTF-8."""

    __slots__ = ()

    def __init__(self, payload: bytes | str) -> None:
        data = payload.encode() if isinstance(payload, str) else bytes(payload)
        super().__init__({"websocket_decision": "replace"}, data or None)


class WebSocketClose(WebSocketVerdict):
    """Close the connection towards both sides."""

    __slots__ = ()

    def __init__(self, code: int = 1008, reason: str = "") -> None:
        if not isinstance(code, int) or not (1000 <= code <= 1014 or 3000 <= code <= 4999) or code in NO_CLOSE_CODES:
            raise ValueError(f"close code {code!r} is none that may be sent")  # RFC 6455 7.4
        if len(reason.encode()) > 123:
            raise ValueError("a close reason has at most 123 bytes")  # RFC 6455 5.5
        super().__init__({"websocket_decision": {"close": {"code": code, "reason": reason}}})


class Detection:
    """One finding of a guardrail. `span` is in UTF-8 bytes of the content, end exclusive: see GuardrailInspect.span."""

    __slots__ = ("fields",)

    def __init__(
        self,
        category: str,
        description: str = "",
        severity: Severity = "medium",
        confidence: float | None = None,
        span: tuple[int, int] | None = None,
    ) -> None:
        if severity not in ("low", "medium", "high", "critical"):
            raise ValueError(f"severity {severity!r} is not low, medium, high or critical")
        self.fields: dict[str, Any] = {"category": category, "description": description, "severity": severity}
        if confidence is not None:
            self.fields["confidence"] = _confidence(confidence)
        if span is not None:
            start, end = span
            if not 0 <= start < end <= MAX_SPAN:
                raise ValueError(f"span {span!r} does not run forward")
            self.fields["span"] = {"start": start, "end": end}


class Guardrail(Verdict):
    """What an inspection found."""

    __slots__ = ()

    def __init__(
        self,
        detected: bool,
        confidence: float = 1.0,
        detections: Sequence[Detection] = (),
        redacted_content: str | None = None,
    ) -> None:
        response: dict[str, Any] = {
            "detected": bool(detected),
            "confidence": _confidence(confidence),
            "detections": [detection.fields for detection in detections],
        }
        if len(response["detections"]) > MAX_DETECTIONS:
            raise ValueError(f"{len(response['detections'])} detections, at most {MAX_DETECTIONS} are read")
        if redacted_content is not None:
            response["redacted_content"] = redacted_content
        super().__init__({"guardrail_response": response})


def error_fragment(code: str, message: str) -> orjson.Fragment:
    """An explicit error, ready to be put into VERDICTS."""
    text = message[:500].encode("utf-8", "replace").decode()  # a lone surrogate has no JSON
    return orjson.Fragment(orjson.dumps({"error": {"code": str(code)[:64], "message": text}}))


def encode(verdict: object, event: Event) -> tuple[orjson.Fragment, bytes | None]:
    """A hook's answer as JSON and its body frame; raises Unfit for what is no answer to this event."""
    kind = event.event_type
    if isinstance(verdict, AgentError):
        return error_fragment(verdict.code, verdict.message), None
    if kind in ("websocket_frame", "guardrail_inspect"):
        fits = (WebSocketVerdict,) if kind == "websocket_frame" else (Guardrail, Block)
        if isinstance(verdict, Allow) and verdict._mutation is None and verdict._fields.keys() <= {"decision", "audit"}:
            plain: Verdict = _WEBSOCKET_ALLOW if kind == "websocket_frame" else _GUARDRAIL_CLEAN
            verdict = plain._with("audit", verdict._fields["audit"]) if "audit" in verdict._fields else plain
        if not isinstance(verdict, fits):
            raise Unfit(f"{_name(verdict)} is no answer to {kind}")
        if verdict._body is not None and event.raw.get("opcode") == "text" and not _is_utf8(verdict._body):
            raise Unfit("the payload in the place of a text message is no UTF-8")
        return _dump(verdict._fields), verdict._body
    if not isinstance(verdict, HttpVerdict):
        raise Unfit(f"{_name(verdict)} is no answer to {kind}")
    fields = verdict._fields
    if isinstance(event, _Chunk):
        if "needs_more" in fields:
            if event.is_last:
                raise Unfit("needs_more on the last chunk: there is no more")
            if verdict._mutation is not None or "skip_body" in fields:
                raise Unfit(f"needs_more beside {verdict._mutation or 'skip_body'}: what is held is decided on later")
        if verdict._mutation is not None:
            member = kind.removesuffix("_chunk") + "_mutation"
            fields = {**fields, member: {"chunk_index": event.chunk_index, "action": verdict._mutation}}
            return _dump(fields), verdict._body
        if not fields.keys().isdisjoint(_OF_CHUNKS):
            return _dump(fields), None  # not kept: it would be wrong beside other events
    elif verdict._mutation is not None or "needs_more" in fields:
        raise Unfit(f"{verdict._mutation or 'needs_more'} is about a body chunk, not about {kind}")
    fragment = _dump(fields)
    if verdict._body is None:
        verdict._fragment = fragment
    return fragment, verdict._body


_OF_CHUNKS: Final = ("needs_more", "skip_body")


def _is_utf8(payload: bytes) -> bool:
    try:
        payload.decode()
    except UnicodeDecodeError:
        return False
    return True


def _dump(fields: _Fields) -> orjson.Fragment:
    try:
        return orjson.Fragment(orjson.dumps(fields))
    except TypeError as error:  # a value that has no JSON, in audit say
        raise Unfit(f"verdict cannot be written as JSON: {error}") from None


def _name(verdict: object) -> str:
    return "None" if verdict is None else type(verdict).__name__


def _header_name(name: str) -> str:
    if name not in _good_names:
        if not isinstance(name, str) or not _TOKEN.match(name):
            raise ValueError(f"{name!r} is no header name")
        if len(_good_names) < 1_000:
            _good_names.add(name)
    return name


def _header_value(name: str, value: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"the value of header {name} is {type(value).__name__}, not str")
    if not (value.isascii() and value.isprintable()) and not _VALUE.match(value):
        raise ValueError(f"the value of header {name} has control characters")
    return value


def _confidence(value: float) -> float:
    if not 0 <= value <= 1:
        raise ValueError(f"confidence {value!r} is not from 0 to 1")
    return float(value)


ALLOW: Final = Allow()
_WEBSOCKET_ALLOW: Final = WebSocketAllow()
_GUARDRAIL_CLEAN: Final = Guardrail(False, 0.0)
