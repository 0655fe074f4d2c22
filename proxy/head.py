"""Decides whether a request's head is acceptable, and normalises it.

Everything that RFC 9110/9112 or our own policy says about a head is decided here, before anything is
routed, shown to an agent or sent upstream. Nothing here reads a socket; a head that is refused raises
`RequestRefused` with the status for the client.

    raw head (httptools) --normalise--> Head --route, agents, upstream

What goes upstream is the client's own field lines, in order and unchanged, minus the hop-by-hop ones
and minus the few that we write ourselves (Host, Content-Length, X-Forwarded-*, Forwarded, ...).

Kind: pure.
"""

import re
from typing import Any, Final
from urllib.parse import unquote_to_bytes

import msgspec

from shared.errors import RequestRefused

Field = tuple[bytes, bytes]

# What a field name means to us; 0 = nothing, the line goes upstream as it is.
PLAIN: Final = 0
HOST: Final = 1
CONTENT_LENGTH: Final = 2
TRANSFER_ENCODING: Final = 3
CONNECTION: Final = 4
HOP_BY_HOP: Final = 5
EXPECT: Final = 6
X_FORWARDED_FOR: Final = 7
X_FORWARDED_PROTO: Final = 8
X_FORWARDED_HOST: Final = 9
FORWARDED: Final = 10
TRACEPARENT: Final = 11
TRACESTATE: Final = 12
REQUEST_ID: Final = 13
CORRELATION_ID: Final = 14
UPGRADE: Final = 15

_MEANING = {
    "host": HOST,
    "content-length": CONTENT_LENGTH,
    "transfer-encoding": TRANSFER_ENCODING,
    "connection": CONNECTION,
    "keep-alive": HOP_BY_HOP,
    "proxy-connection": HOP_BY_HOP,
    "proxy-authorization": HOP_BY_HOP,
    "proxy-authenticate": HOP_BY_HOP,
    "te": HOP_BY_HOP,
    "trailer": HOP_BY_HOP,
    "upgrade": UPGRADE,
    "http2-settings": HOP_BY_HOP,
    "expect": EXPECT,
    "x-forwarded-for": X_FORWARDED_FOR,
    "x-forwarded-proto": X_FORWARDED_PROTO,
    "x-forwarded-host": X_FORWARDED_HOST,
    "forwarded": FORWARDED,
    "traceparent": TRACEPARENT,
    "tracestate": TRACESTATE,
    "x-request-id": REQUEST_ID,
    "x-correlation-id": CORRELATION_ID,
}

# Methods that llhttp knows and that are HTTP's; its RTSP and ICE methods are as unknown as any other.
METHODS: Final = frozenset(
    b"DELETE GET HEAD POST PUT OPTIONS COPY LOCK MKCOL MOVE PROPFIND PROPPATCH SEARCH UNLOCK BIND REBIND UNBIND ACL "
    b"REPORT MKACTIVITY CHECKOUT MERGE M-SEARCH NOTIFY SUBSCRIBE UNSUBSCRIBE PATCH PURGE MKCALENDAR LINK UNLINK "
    b"QUERY".split()
)
REFUSED_METHODS: Final = frozenset((b"CONNECT", b"TRACE"))

# Field name as received -> (meaning, lower-case name). Clients repeat the same few spellings; bounded
# because the names are the client's.
_names: dict[bytes, tuple[int, str]] = {}
_NAMES_MAX = 4_096
# Host as received -> name without port, lower-case.
_hosts: dict[bytes, str] = {}
_HOSTS_MAX = 4_096

_HOST = re.compile(rb"(?:([A-Za-z0-9._-]{1,255})|(\[[0-9A-Fa-f:.]{2,45}\]))(?::[0-9]{1,5})?\Z")
_BAD_PERCENT = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_ENCODED_POLICY = re.compile(rb"%(?:2[fF]|00)")
# Also as servers see it that cut parameters first (`..;x`) or take a backslash for a slash.
_DOT_SEGMENT = re.compile(rb"(?:^|[/\\])\.\.?(?:;[^/\\]*)?(?:[/\\]|\Z)")
_NOT_VISIBLE = re.compile(rb"[^\x21-\x7e]")
_PLAIN_BYTES = bytes(byte for byte in range(0x21, 0x7F) if byte not in b"%#\\")
_TRACEPARENT = re.compile(rb"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}\Z")
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}\Z")


def meaning(name: bytes) -> tuple[int, str]:
    """(meaning, lower-case name) of a field name as received; a name with an underscore is refused."""
    entry = _names.get(name)
    if entry is None:
        if b"_" in name:
            raise RequestRefused(400, "underscore in a header name")
        lower = name.decode("latin-1").lower()
        entry = (_MEANING.get(lower, PLAIN), lower)
        if len(_names) < _NAMES_MAX:
            _names[name] = entry
    return entry


# The common spellings are there before any client can fill the table with others.
for _lower, _code in _MEANING.items():
    for _spelling in (_lower, _lower.title()):
        _names[_spelling.encode()] = (_code, _lower)


class Front:
    """What went upstream last, between the target and the correlation id, for heads with the same header lines.

    Made with the operations `ops`; the traceparent's value goes between `lines` and `trail`.
    """

    __slots__ = ("lines", "ops", "trail")

    def __init__(self) -> None:
        self.ops: Any = None
        self.lines = self.trail = b""


class Head(msgspec.Struct, eq=False, gc=False):
    """An accepted request head.

    method, target: as received. upstream_target: origin-form. path: decoded once, without the query.
    host: the authority for upstream; host_name: lower-case, without port ("" if HTTP/1.0 sent none).
    fields: every line as received (what agents see); kept: those that go upstream unchanged.
    content_length: None where the body is chunked or absent. is_forwarded: some X-Forwarded-* or Forwarded
    came with it. A struct because its defaults cost nothing (0.15 against 0.4 us for as many stores).
    """

    method: bytes
    target: bytes
    fields: list[Field]
    kept: list[Field]
    keep_alive: bool
    is_http_1_0: bool
    upstream_target: bytes = b""
    path: bytes = b""
    host: bytes = b""
    host_name: str = ""
    content_length: int | None = None
    is_chunked: bool = False
    has_body: bool = False
    expects_100: bool = False
    is_websocket: bool = False
    is_forwarded: bool = False
    request_id: bytes = b""
    traceparent: bytes = b""
    forwarded_for: tuple[bytes, ...] = ()
    forwarded: tuple[bytes, ...] = ()
    forwarded_proto: bytes = b""
    forwarded_host: bytes = b""
    # Where they are known already (proxy/repeat.py): `kept` as lines, its lower-case names, `fields` as JSON.
    kept_lines: bytes | None = None
    kept_names: frozenset[str] = frozenset()
    front: Front | None = None  # one for all of them
    map_json: bytes | None = None
    # For the next request that is this one to the byte: what events say of the head and of its client,
    event_rest: bytes | None = None
    lasting: bytes | None = None
    route: Any = None  # and the route chosen


def normalise(
    method: bytes, target: bytes, version: str, fields: list[Field], keep_alive: bool, max_body_bytes: int
) -> Head:
    """The head as `Head`, or RequestRefused. `keep_alive` is the parser's view of it."""
    if version != "1.1" and version != "1.0":
        raise RequestRefused(505, f"HTTP version {version} is not supported")
    if method not in METHODS:
        if method in REFUSED_METHODS:
            raise RequestRefused(405, f"method {method.decode()} is not proxied")
        raise RequestRefused(501, "method is not known")
    kept: list[Field] = []
    head = Head(method, target, fields, kept, keep_alive, version == "1.0")
    host: bytes | None = None
    connection: bytes | None = None
    upgrade: bytes | None = None
    names = _names
    for field in fields:
        entry = names.get(field[0])
        if entry is None:
            entry = meaning(field[0])
        code = entry[0]
        if code == PLAIN:
            kept.append(field)
        elif code == HOST:
            if host is not None:
                raise RequestRefused(400, "more than one Host")
            host = field[1]
            kept.append(field)
        elif code == CONNECTION:
            connection = field[1] if connection is None else connection + b"," + field[1]
        elif code == UPGRADE:
            upgrade = field[1] if upgrade is None else upgrade + b"," + field[1]
        elif code != HOP_BY_HOP:
            _special(head, code, field)
    _target(head, host)
    if head.traceparent == b"-":
        # tracestate without a valid traceparent means nothing (W3C Trace Context 3.3.1.1)
        head.traceparent = b""
        head.kept = [line for line in head.kept if meaning(line[0])[0] not in _TRACE]
    if connection is not None:
        _connection(head, connection, upgrade)
    if head.is_chunked:
        if head.is_http_1_0:
            raise RequestRefused(400, "Transfer-Encoding in HTTP/1.0")
        if head.content_length is not None:  # llhttp refuses it first; this is the rule, not the parser
            raise RequestRefused(400, "Content-Length beside Transfer-Encoding")
        head.has_body = True
    else:
        length = head.content_length
        head.has_body = length is not None and length > 0
        if length is not None and max_body_bytes and length > max_body_bytes:
            raise RequestRefused(413, f"body of {length} bytes is over max_body_bytes = {max_body_bytes}")
    return head


def _special(head: Head, code: int, field: Field) -> None:
    value = field[1]
    if X_FORWARDED_FOR <= code <= FORWARDED:
        head.is_forwarded = True
    if code == CONTENT_LENGTH:
        if head.content_length is not None or not value.isdigit() or len(value) > 18:
            raise RequestRefused(400, "Content-Length is not one number")
        head.content_length = int(value)
        head.kept.append(field)
    elif code == TRANSFER_ENCODING:
        if head.is_chunked or value.lower() != b"chunked":
            raise RequestRefused(501, "Transfer-Encoding other than chunked")
        head.is_chunked = True
    elif code == EXPECT:
        if value.lower() != b"100-continue":
            raise RequestRefused(417, "an expectation other than 100-continue")
        head.expects_100 = True
    elif code == X_FORWARDED_FOR:
        head.forwarded_for += (value,)
    elif code == X_FORWARDED_PROTO:
        head.forwarded_proto = value
    elif code == X_FORWARDED_HOST:
        head.forwarded_host = value
    elif code == FORWARDED:
        head.forwarded += (value,)
    elif code == TRACEPARENT:
        # Two of them, or one that is not well-formed, is none (W3C Trace Context 3.2.2.2); b"-" marks it.
        head.traceparent = value if not head.traceparent and _TRACEPARENT.match(value) else b"-"
        head.kept.append(field)
    elif code == REQUEST_ID:
        if not head.request_id and _REQUEST_ID.match(value):
            head.request_id = value
        head.kept.append(field)
    elif code == TRACESTATE:
        head.kept.append(field)
    # CORRELATION_ID: ours replaces the client's.


def _connection(head: Head, value: bytes, upgrade: bytes | None) -> None:
    """Drop every field that Connection names; recognise a WebSocket upgrade."""
    named = {token.strip().lower() for token in value.split(b",")}
    if upgrade is not None and b"upgrade" in named and not head.is_http_1_0:  # RFC 9110 7.8
        head.is_websocket = any(token.strip().lower() == b"websocket" for token in upgrade.split(b","))
    named -= _CONNECTION_OPTIONS
    if named:
        head.kept = [field for field in head.kept if field[0].lower() not in named]


# Options, and fields that Connection cannot take away because they are part of the message itself.
_CONNECTION_OPTIONS = frozenset((b"", b"close", b"keep-alive", b"upgrade", b"host", b"content-length"))
_TRACE = frozenset((TRACEPARENT, TRACESTATE))


def _target(head: Head, host: bytes | None) -> None:
    target = head.target
    if target.startswith(b"/"):
        origin = target
    elif target == b"*":
        if head.method != b"OPTIONS":
            raise RequestRefused(400, "asterisk-form is for OPTIONS only")
        origin = target
    else:
        scheme, found, rest = target.partition(b"://")
        if not found or scheme.lower() not in (b"http", b"https"):
            raise RequestRefused(400, "request target is neither a path nor an http(s) URL")
        cut = len(rest)
        for mark in b"/?#":
            at = rest.find(mark)
            if 0 <= at < cut:
                cut = at
        if host is None and not head.is_http_1_0:
            raise RequestRefused(400, "no Host")
        host, origin = rest[:cut], rest[cut:]
        # Its authority replaces Host (RFC 9112 3.2.2), in Host's place.
        if any(_is_host(field) for field in head.kept):
            head.kept = [(field[0], host) if _is_host(field) else field for field in head.kept]
        else:
            head.kept.insert(0, (b"Host", host))
        if not origin.startswith(b"/"):
            origin = b"/" + origin
            if origin == b"/" and head.method == b"OPTIONS":
                origin = b"*"  # RFC 9112 3.2.4
    if host is None:
        if not head.is_http_1_0:
            raise RequestRefused(400, "no Host")
        head.host = b""
        head.host_name = ""
    else:
        head.host = host
        name = _hosts.get(host)
        head.host_name = _host_name(host) if name is None else name
    take_path(head, origin)


def take_path(head: Head, origin: bytes) -> None:
    """Set what the origin-form of the target says; raises RequestRefused (400)."""
    head.upstream_target = origin
    path = origin.partition(b"?")[0]
    if not origin.translate(None, _PLAIN_BYTES) and b"/." not in path:
        head.path = path  # nothing in it that could mean anything else: 0.4 us instead of 1 to 2 (2026-11)
        return
    if b"#" in origin:
        raise RequestRefused(400, "fragment in the request target")
    if b"%" in path:
        if _BAD_PERCENT.search(path):
            raise RequestRefused(400, "percent sign without two hex digits in the path")
        if _ENCODED_POLICY.search(path):
            raise RequestRefused(400, "encoded slash or NUL in the path")
        path = unquote_to_bytes(path)
        if _CONTROL_DECODED.search(path):
            raise RequestRefused(400, "encoded control character in the path")
    if _NOT_VISIBLE.search(origin):
        raise RequestRefused(400, "control or non-ASCII character in the request target")
    if (b"/." in path or b"\\" in path) and _DOT_SEGMENT.search(path):
        raise RequestRefused(400, "dot segment in the path")
    head.path = path


def _is_host(field: Field) -> bool:
    return len(field[0]) == 4 and field[0].lower() == b"host"


_CONTROL_DECODED = re.compile(rb"[\x00-\x1f\x7f]")


def _host_name(host: bytes) -> str:
    match = _HOST.match(host)
    if match is None:
        raise RequestRefused(400, "Host is not a name or address with an optional port")
    name = (match[1] or match[2]).decode().lower()
    name = name.rstrip(".") or name
    if len(_hosts) < _HOSTS_MAX:
        _hosts[host] = name
    return name


def header_map(fields: list[Field]) -> dict[str, list[str]]:
    """`{"lower-case-name": ["v1", "v2"]}` for an event: every field as received; UTF-8, else latin-1."""
    out: dict[str, list[str]] = {}
    names = _names
    for name, raw in fields:
        entry = names.get(name)
        lower = entry[1] if entry is not None else name.decode("latin-1").lower()
        try:
            value = raw.decode()
        except UnicodeDecodeError:
            value = raw.decode("latin-1")
        if lower in out:
            out[lower].append(value)
        else:
            out[lower] = [value]
    return out
