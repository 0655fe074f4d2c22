"""Reads one request head as a connection would, and tells what became of its fields; for `wardgate explain`.

The head goes through the guard, llhttp and `normalise` themselves. Its fields are compared with the bytes that the
driver writes upstream (explain_exchange.py), so that no list of dropped fields exists here. Which route takes the
request and who is asked stands in explain.py.

Kind: pure.
"""

from collections import Counter
from types import SimpleNamespace
from typing import Any, Final, cast

import msgspec

from proxy import head as h
from proxy.forwarded import Trust, client_of
from proxy.guard import GuardedParser
from proxy.head import Field, Head
from proxy.upgrade import read_upgrade
from shared.config.schema import Server
from shared.errors import RequestRefused
from shared.wire.messages import text


class Peer(msgspec.Struct, frozen=True):
    """Who connects: `ip` is "" for a peer on a unix socket."""

    ip: str
    is_trusted: bool


class FieldChange(msgspec.Struct, frozen=True):
    """A field line of the client's, or of ours."""

    name: str
    value: str
    why: str = ""


class Fields(msgspec.Struct, frozen=True):
    """What becomes of the client's field lines on their way upstream, before agents change any."""

    passed: list[FieldChange]
    dropped: list[FieldChange]
    replaced: list[FieldChange]
    added: list[FieldChange]


class Reading(msgspec.Struct):
    """What the parser's half says of a head: exactly one of `head` and `refusal` is there."""

    received: list[Field]  # as the parser told them
    head: Head | None = None
    refusal: RequestRefused | None = None


class _Reader(GuardedParser):
    """A connection on which one head arrives, in one read; it starts no exchange."""

    # What uvicorn's class takes from its configuration and none of our code ever uses.
    _CONFIG: Final = SimpleNamespace(
        loaded=True,
        loaded_app=None,
        ws_protocol_class=None,
        root_path="",
        asgi_version="3.0",
        limit_concurrency=None,
        timeout_keep_alive=0,
    )

    def __init__(self, limits: Server) -> None:
        state: Any = SimpleNamespace(connections=set(), tasks=set())
        super().__init__(limits, self._CONFIG, state, {}, cast(Any, SimpleNamespace()))
        self.reading = Reading([])

    def _broken(self, refusal: RequestRefused) -> None:
        self._refuse(refusal)

    def _refuse(self, refusal: RequestRefused) -> None:
        self._is_lingering = True
        if self.reading.head is None and self.reading.refusal is None:
            self.reading.refusal = self._refusal = refusal

    def on_message_begin(self) -> None:
        self.url = b""
        self.headers = []
        self._in_head = True
        self._field_bytes = 0

    def on_headers_complete(self) -> None:
        parser = self.parser
        method, version = parser.get_method(), parser.get_http_version()
        self.reading.received = self.reading.received or self.headers
        is_upgrade = parser.should_upgrade()
        if is_upgrade and method != b"CONNECT" and not (version == "1.1" and _asks_websocket(self.headers)):
            self._refeed, self._method, self._version = self.headers, method, version
            return
        self._in_head = False
        max_body_bytes = self._limits.max_body_bytes
        keep_alive = parser.should_keep_alive()
        head = h.normalise(method, self.url, version, self.headers, keep_alive, max_body_bytes)
        if is_upgrade is not head.is_websocket:
            raise RequestRefused(400, "ambiguous Upgrade")
        if is_upgrade:
            read_upgrade(head)
        self.reading.head = head
        self._is_lingering = True

    def on_body(self, body: bytes) -> None:
        """None is given."""

    def on_message_complete(self) -> None:
        """Nothing follows."""


def _asks_websocket(fields: list[Field]) -> bool:
    """Whether Upgrade names it; without `Connection: upgrade` llhttp takes the request for an ordinary one."""
    values = [value for name, value in fields if h.meaning(name)[0] == h.UPGRADE]
    return any(token.strip().lower() == b"websocket" for value in values for token in value.split(b","))


def read(data: bytes, limits: Server) -> Reading:
    """The head in these bytes (with the empty line that ends it) as a connection reads it."""
    reader = _Reader(limits)
    reader._take(data)
    reading = reader.reading
    if reading.head is None and reading.refusal is None:
        reading.refusal = RequestRefused(408, "the request's head did not arrive in time")
    return reading


def client_ip(head: Head, peer: Peer, trust: Trust) -> str:
    """Whom limits and agents take for the client."""
    if peer.is_trusted and (head.forwarded_for or head.forwarded):
        return client_of(head, peer.ip, trust)
    return peer.ip


def fields_of(raw: bytes) -> list[Field]:
    """The field lines of a head that we wrote."""
    lines = raw.split(b"\r\n")[1:-2]
    return [(name, value) for name, _, value in (line.partition(b": ") for line in lines)]


def compare(received: list[Field], head: Head, raw: bytes, peer: Peer) -> Fields:
    """The client's lines and ours: which are the same, and why the others are not."""
    written = fields_of(raw)
    same = Counter(head.kept) & Counter(received) & Counter(written)
    added = []
    left = same.copy()
    for field in written:
        if left[field]:
            left[field] -= 1
        else:
            added.append(field)
    fields = Fields([], [], [], [FieldChange(text(name), text(value)) for name, value in added])
    named = {name.decode("latin-1").lower() for name, _ in added}
    for field in received:
        line = FieldChange(text(field[0]), text(field[1]))
        if same[field]:
            same[field] -= 1
            fields.passed.append(line)
            continue
        code, lower = h.meaning(field[0])
        line = msgspec.structs.replace(line, why=_why(code, field in head.kept, head, peer))
        (fields.replaced if lower in named else fields.dropped).append(line)
    return fields


_WHY: Final = {
    h.HOST: "the target's own authority counts",
    h.CONTENT_LENGTH: "framing is written anew",
    h.TRANSFER_ENCODING: "framing is written anew",
    h.CONNECTION: "hop-by-hop",
    h.HOP_BY_HOP: "hop-by-hop",
    h.UPGRADE: "hop-by-hop",
    h.EXPECT: "answered here, once the request is allowed",
    h.CORRELATION_ID: "every request gets one of ours",
}
_FORWARDED: Final = frozenset((h.X_FORWARDED_FOR, h.X_FORWARDED_PROTO, h.X_FORWARDED_HOST, h.FORWARDED))


def _why(code: int, is_kept: bool, head: Head, peer: Peer) -> str:
    """Why a field with this meaning is not passed on as it came. `is_kept`: the head alone would have let it."""
    if code in _FORWARDED:
        return "of a trusted proxy: continued" if peer.is_trusted else "not from a trusted proxy"
    if code in (h.TRACEPARENT, h.TRACESTATE) and not head.traceparent:
        return "without one valid traceparent"
    return _WHY.get(code, "agents decide about the body" if is_kept else "named by Connection")
