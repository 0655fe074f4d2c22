"""What happened, as hooks see it: one view per event over the decoded JSON.

A view checks the members that every event of its kind has and hands the rest out lazily; a hook that
looks at two headers pays for two headers. Optional members are None when absent. Views are read-only
by convention: a change to `raw` changes nothing in the proxy, only verdicts do.

Kind: pure.
"""

from typing import Any, ClassVar, Literal
from urllib.parse import parse_qs, unquote

from wardgate_agent.fields import Headers, MalformedEvent, Metadata, text_of

Direction = Literal["prompt", "completion"]


def _need(raw: dict[str, Any], name: str, kind: type) -> Any:
    value = raw.get(name)
    if type(value) is not kind:
        raise MalformedEvent(f"{name} is missing or not {kind.__name__}")
    return value


class Event:
    """Any event. `raw` is the decoded JSON, `budget_ms` how long an answer is of use."""

    event_type: ClassVar[str] = ""
    __slots__ = ("body", "budget_ms", "raw")

    def __init__(self, raw: dict[str, Any], body: bytes, budget_ms: float) -> None:
        self.raw = raw
        self.body = body
        self.budget_ms = budget_ms

    @property
    def correlation_id(self) -> str:
        """Wardgate's own id of the request that this belongs to."""
        return text_of(self.raw, "correlation_id")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.raw!r})"


class _Head(Event):
    """What the two header events and request_complete share."""

    __slots__ = ("_headers", "_metadata", "method", "uri")

    def __init__(self, raw: dict[str, Any], body: bytes, budget_ms: float) -> None:
        self.raw = raw
        self.body = body
        self.budget_ms = budget_ms
        self._headers: Headers | None = None
        self._metadata: Metadata | None = None
        try:
            self.method: str = raw["method"]
            self.uri: str = raw["uri"]
            if type(self.method) is str and type(self.uri) is str:
                return
        except KeyError as missing:
            raise MalformedEvent(f"{missing} is missing") from None
        raise MalformedEvent("method or uri has the wrong type")

    @property
    def metadata(self) -> Metadata:
        metadata = self._metadata
        if metadata is None:
            raw = self.raw.get("metadata")
            if raw is not None and type(raw) is not dict:
                raise MalformedEvent("metadata is no object")
            metadata = self._metadata = Metadata(raw or {})
        return metadata

    @property
    def correlation_id(self) -> str:
        """Wardgate's own id of this request; the same in all of its events."""
        return self.metadata.correlation_id

    @property
    def client_ip(self) -> str:
        return self.metadata.client_ip

    @property
    def route_id(self) -> str:
        return self.metadata.route_id

    @property
    def raw_path(self) -> str:
        """The target's path as received: still percent-encoded, without scheme, authority and query."""
        path = self.uri
        if not path.startswith("/"):
            _, scheme, rest = path.partition("://")
            if scheme:
                authority, slash, rest = rest.partition("/")
                path = slash + rest if slash else "/" + authority[len(authority.partition("?")[0]) :]
        return path.partition("?")[0]

    @property
    def path(self) -> str:
        """The path decoded once, which is what Wardgate routes by. Compare rules with this one."""
        path = self.raw_path
        return unquote(path) if "%" in path else path

    @property
    def query(self) -> str:
        """What follows the first `?`, as received; empty without one."""
        return self.uri.partition("?")[2]

    @property
    def query_args(self) -> dict[str, list[str]]:
        """The query decoded as a form: every value of every name."""
        return parse_qs(self.query, keep_blank_values=True)


class _HeaderEvent(_Head):
    __slots__ = ()

    def __init__(self, raw: dict[str, Any], body: bytes, budget_ms: float) -> None:
        # not by super(): this is on every request's path (0.4 us against 0.65, 2026-11)
        self.raw = raw
        self.body = body
        self.budget_ms = budget_ms
        self._headers = None
        self._metadata = None
        try:
            self.method = method = raw["method"]
            self.uri = uri = raw["uri"]
            if type(method) is str and type(uri) is str and type(raw["headers"]) is dict:
                return
        except KeyError as missing:
            raise MalformedEvent(f"{missing} is missing") from None
        raise MalformedEvent("method, uri or headers has the wrong type")

    @property
    def headers(self) -> Headers:
        headers = self._headers
        if headers is None:  # no exception for a slot not filled: 0.65 us of each event (2026-11)
            headers = self._headers = Headers(self.raw["headers"])
        return headers

    @property
    def has_body(self) -> bool:
        return bool(self.raw.get("has_body"))


class RequestHeaders(_HeaderEvent):
    """A request's head has arrived and its route is chosen; nothing has gone upstream."""

    event_type = "request_headers"
    __slots__ = ()


class ResponseHeaders(_HeaderEvent):
    """The upstream's response head has arrived; nothing has gone to the client."""

    event_type = "response_headers"
    __slots__ = ("status",)

    def __init__(self, raw: dict[str, Any], body: bytes, budget_ms: float) -> None:
        super().__init__(raw, body, budget_ms)
        self.status: int = _need(raw, "status", int)


class _Chunk(Event):
    __slots__ = ("chunk_index", "is_last")

    def __init__(self, raw: dict[str, Any], body: bytes, budget_ms: float) -> None:
        super().__init__(raw, body, budget_ms)
        self.chunk_index: int = _need(raw, "chunk_index", int)
        self.is_last: bool = _need(raw, "is_last", bool)

    @property
    def total_size(self) -> int | None:
        """Content-Length, where the sender gave one."""
        return self.raw.get("total_size")


class RequestBodyChunk(_Chunk):
    """A piece of the request's body is in `body`; the last one may be empty."""

    event_type = "request_body_chunk"
    __slots__ = ()

    @property
    def bytes_received(self) -> int:
        """Bytes of the body so far, this chunk included."""
        return int(self.raw.get("bytes_received") or 0)


class ResponseBodyChunk(_Chunk):
    """A piece of the response's body is in `body`; the last one may be empty."""

    event_type = "response_body_chunk"
    __slots__ = ()

    @property
    def bytes_sent(self) -> int:
        """Bytes of the body so far, this chunk included."""
        return int(self.raw.get("bytes_sent") or 0)


class RequestComplete(_Head):
    """A request is over, however it ended, also one that was refused before this agent was asked. Not answered."""

    event_type = "request_complete"
    __slots__ = ()

    @property
    def status(self) -> int:
        """What the client got; 0 when it got nothing."""
        return int(self.raw.get("status") or 0)

    @property
    def duration_ms(self) -> float:
        return float(self.raw.get("duration_ms") or 0)

    @property
    def request_body_size(self) -> int:
        return int(self.raw.get("request_body_size") or 0)

    @property
    def response_body_size(self) -> int:
        return int(self.raw.get("response_body_size") or 0)

    @property
    def upstream_attempts(self) -> int:
        return int(self.raw.get("upstream_attempts") or 0)

    @property
    def error(self) -> str | None:
        return self.raw.get("error")

    @property
    def decided_by(self) -> str | None:
        """The agent whose refusal the client got; None when the upstream answered."""
        return self.raw.get("decided_by")


class WebSocketFrame(Event):
    """A whole WebSocket message, or a close; its payload is in `body`, decompressed."""

    event_type = "websocket_frame"
    __slots__ = ("client_to_server", "opcode")

    def __init__(self, raw: dict[str, Any], body: bytes, budget_ms: float) -> None:
        super().__init__(raw, body, budget_ms)
        self.opcode: str = _need(raw, "opcode", str)
        self.client_to_server: bool = _need(raw, "client_to_server", bool)

    @property
    def frame_index(self) -> int:
        """Counts from 0 in each direction."""
        return int(self.raw.get("frame_index") or 0)

    @property
    def is_final(self) -> bool:
        """Always true: fragments are joined before they are shown."""
        return bool(self.raw.get("fin"))

    @property
    def route_id(self) -> str:
        return text_of(self.raw, "route_id")

    @property
    def client_ip(self) -> str:
        return text_of(self.raw, "client_ip")

    @property
    def text(self) -> str:
        """The payload as text; of a binary message what is not UTF-8 becomes U+FFFD."""
        return self.body.decode("utf-8", "replace")

    @property
    def close_code(self) -> int | None:
        """Of a close: its code; None where it has none, and of messages."""
        return int.from_bytes(self.body[:2], "big") if self.opcode == "close" and len(self.body) >= 2 else None

    @property
    def close_reason(self) -> str:
        """Of a close: its reason."""
        return self.body[2:].decode("utf-8", "replace") if self.opcode == "close" else ""


class GuardrailInspect(Event):
    """Text to or from a model is to be inspected, for one thing: `inspection_type`."""

    event_type = "guardrail_inspect"
    __slots__ = ("content", "inspection_type")

    def __init__(self, raw: dict[str, Any], body: bytes, budget_ms: float) -> None:
        super().__init__(raw, body, budget_ms)
        self.content: str = _need(raw, "content", str)
        self.inspection_type: str = _need(raw, "inspection_type", str)

    @property
    def direction(self) -> Direction:
        return "completion" if self.raw.get("direction") == "completion" else "prompt"

    @property
    def model(self) -> str | None:
        return self.raw.get("model")

    @property
    def categories(self) -> list[str]:
        return list(self.raw.get("categories") or ())

    @property
    def route_id(self) -> str | None:
        return self.raw.get("route_id")

    @property
    def metadata(self) -> dict[str, Any]:
        return dict(self.raw.get("metadata") or {})

    def span(self, start: int, end: int) -> tuple[int, int]:
        """Character positions in `content` (of `re`, say) as the UTF-8 byte positions that a Detection wants."""
        first = len(self.content[:start].encode())
        return first, first + len(self.content[start:end].encode())


class Configure:
    """The configuration that agentd hands to this agent, after every connect and on reload."""

    __slots__ = ("raw",)

    def __init__(self, raw: dict[str, Any]) -> None:
        self.raw = raw

    @property
    def config(self) -> Any:
        """The `config` key of this agent's table in wardgate.toml; None when it has none."""
        return self.raw.get("config")

    def get(self, key: str, default: Any = None) -> Any:
        """One member of `config`, if that is a table."""
        return self.config.get(key, default) if isinstance(self.config, dict) else default

    @property
    def config_version(self) -> Any:
        return self.raw.get("config_version")

    @property
    def timeout_ms(self) -> int | None:
        return self.raw.get("timeout_ms")

    @property
    def max_request_body_bytes(self) -> int | None:
        return self.raw.get("max_request_body_bytes")

    @property
    def max_response_body_bytes(self) -> int | None:
        return self.raw.get("max_response_body_bytes")

    def __repr__(self) -> str:
        return f"Configure({self.raw!r})"


VIEWS: tuple[type[Event], ...] = (
    RequestHeaders,
    RequestBodyChunk,
    ResponseHeaders,
    ResponseBodyChunk,
    RequestComplete,
    WebSocketFrame,
    GuardrailInspect,
)
