"""Decides whether an upstream's response head may be believed, and which of its fields are the client's.

An upstream's bytes are as hostile as a client's: whatever is ambiguous about a response's framing is
refused as a whole (502), never repaired. Strict llhttp has refused most of it before (folded lines, bare
LF, control characters, two lengths); here stands what it lets through. How the bytes arrive is reader.py's.

Kind: pure.
"""

import re
from typing import Final

import msgspec

from shared.defaults import MAX_RESPONSE_HEADERS
from shared.errors import UpstreamFailed

Field = tuple[bytes, bytes]

# What a field name means for the message it stands in; 0 = it is for the client.
_PLAIN: Final = 0
_LENGTH: Final = 1
_HOP_BY_HOP: Final = 2
_CODING: Final = 3
_CONNECTION: Final = 4
_MEANINGS: Final = {
    b"content-length": _LENGTH,
    b"transfer-encoding": _CODING,
    b"connection": _CONNECTION,
    b"keep-alive": _HOP_BY_HOP,
    b"te": _HOP_BY_HOP,
    b"trailer": _HOP_BY_HOP,
    b"upgrade": _HOP_BY_HOP,
    b"x-correlation-id": _HOP_BY_HOP,  # ours takes its place
}
# Name and value of each field that means something, in a head that llhttp has taken.
_special: Final = re.compile(
    rb"\n(?=[%b])(%b|proxy-[^:]*):([^\r]*)"
    % (bytes({name[0] for name in _MEANINGS} | {ord("p")}), b"|".join(_MEANINGS)),
    re.IGNORECASE,
).findall
# By the name as spelt. Upstreams repeat themselves; bounded, because the spellings are theirs.
_CACHE_MAX: Final = 1_024
_CACHED_NAME_MAX_BYTES: Final = 64
_meanings: dict[bytes, int] = {}
# Value of Connection -> the fields it names beyond those that are hop-by-hop anyway.
_NOBODY: Final[frozenset[bytes]] = frozenset()
_named: dict[bytes, frozenset[bytes]] = {}
# Status line -> (status, reason, is HTTP/1.0).
_status_lines: dict[bytes, tuple[int, bytes, bool]] = {}


class ResponseHead(msgspec.Struct, gc=False):
    """A final response head that passed every check.

    raw: the head as received with its empty line. hop_by_hop: the fields of it that are not for the client
    (those that Connection names left out), with their values just as they stand after the colon.
    is_chunked, content_length: the framing declared. Of a HEAD or 304 they say what a GET would have
    had; neither = the body ends with the connection. A 204 must go to the client without either.
    has_body: False for HEAD, 204 and 304: `upstream_body` will not be called.
    """

    status: int
    reason: bytes
    http_1_0: bool
    raw: bytes
    is_chunked: bool
    content_length: int | None
    has_body: bool
    hop_by_hop: list[Field]
    is_keep_alive: bool = False  # the parser's view: the connection may be used again
    whole_bytes: int = -1  # of the response with its body, where that is known
    _fields: list[Field] | None = None
    _lines: bytes | None = None
    front: bytes = b""  # what goes to the client before the correlation id, once it was made (proxy/apply.py)

    @property
    def headers(self) -> list[Field]:
        """All fields as received: order, spelling and duplicates kept. Taken apart when first asked for."""
        fields = self._fields
        if fields is None:
            parts = [line.partition(b":") for line in self.raw[:-4].split(b"\r\n")[1:]]
            fields = self._fields = [(name, value.strip(b" \t")) for name, _, value in parts]
        return fields

    @property
    def is_plain(self) -> bool:
        """Whether every field is for the client: `end_to_end(headers)` would change nothing."""
        return not self.hop_by_hop

    def lines(self) -> bytes:
        """The field lines for the client, each with its line end: what `end_to_end(headers)` keeps, as it came.

        Cut out of the head, not put together from fields: 1.0 us against 1.8 (8 fields, 2026-11).
        """
        lines = self._lines
        if lines is None:
            lines = self._lines = self._cut_lines()
        return lines

    def _cut_lines(self) -> bytes:
        raw = self.raw
        block = raw[raw.find(b"\r") : -2]  # each line with the line break before it, and the last one's own
        for name, value in self.hop_by_hop:
            if _meaning(name) == _CONNECTION and _names(value):
                return b"".join([b"%b: %b\r\n" % field for field in end_to_end(self.headers)])
            block = block.replace(b"\r\n%b:%b\r\n" % (name, value), b"\r\n", 1)
        return block[2:]

    def __str__(self) -> str:
        framing = "chunked" if self.is_chunked else f"length={self.content_length}"
        return f"{self.status} {self.reason!r} headers={len(self.headers)} {framing} body={self.has_body}"


def end_to_end(headers: list[Field]) -> list[Field]:
    """Without Connection, the fields it names, and the hop-by-hop ones (RFC 9110 7.6.1); never the same list.

    Content-Length stays even where Connection names it: without it the message would have other bounds.
    """
    kept = []
    named = _NOBODY
    meanings = _meanings
    for field in headers:
        meaning = meanings.get(field[0])
        if meaning is None:
            meaning = _meaning(field[0])
        if meaning <= _LENGTH:
            kept.append(field)
        elif meaning == _CONNECTION:
            named = named | _names(field[1])
    if named:
        kept = [field for field in kept if field[0].lower() not in named]
    return kept


def _meaning(name: bytes) -> int:
    lower = name.lower()
    meaning = _HOP_BY_HOP if lower.startswith(b"proxy-") else _MEANINGS.get(lower, _PLAIN)
    if len(_meanings) < _CACHE_MAX and len(name) <= _CACHED_NAME_MAX_BYTES:
        _meanings[name] = meaning
    return meaning


def _names(value: bytes) -> frozenset[bytes]:
    names = _named.get(value)
    if names is None:
        tokens = (token.strip(b" \t") for token in value.lower().split(b","))
        names = frozenset(token for token in tokens if token and token not in _MEANINGS and token != b"close")
        if len(_named) < _CACHE_MAX and len(value) <= _CACHED_NAME_MAX_BYTES:
            _named[value] = names
    return names


# Spellings that no flood of others may keep out of the cache.
for _name in (*_MEANINGS, *b"server date content-type etag last-modified set-cookie cache-control vary".split()):
    _meaning(_name)
    _meaning(_name.title())


def malformed(text: str, reason: str = "malformed_response") -> UpstreamFailed:
    """What is raised for a response that may not be believed."""
    return UpstreamFailed(502, reason, text)


def _status_line(line: bytes) -> tuple[int, bytes, bool]:
    """(status, reason, is HTTP/1.0) of a line that llhttp took; it also takes HTTP/0.9, 2.0, status 0 and 999."""
    is_http_1_0 = line.startswith(b"HTTP/1.0 ")
    if not is_http_1_0 and not line.startswith(b"HTTP/1.1 "):
        raise malformed("not an HTTP/1 status line")
    digits, reason = line[9:12], line[13:]
    if not digits.isdigit() or line[12:13] not in (b" ", b"") or not 100 <= int(digits) <= 599:
        raise malformed("a status outside 100-599")
    if any((byte < 32 and byte != 9) or byte == 127 for byte in reason):
        raise malformed("a control character in the reason phrase")
    entry = (int(digits), reason, is_http_1_0)
    if len(_status_lines) < _CACHE_MAX and len(line) <= _CACHED_NAME_MAX_BYTES:
        _status_lines[line] = entry
    return entry


def read_head(raw: bytes) -> ResponseHead:
    """The head in `raw`, which llhttp has taken; UpstreamFailed if it may not be believed.

    `has_body` does not know yet of the request's method. A status below 200 is left to the caller.
    llhttp is not asked for the fields: a callback for each and a look at it cost more than finding the few that
    matter (2.0 us against 0.8 for 8 fields, 2026-11). In what it has taken a line is a field, its first colon
    the end of the name; a test compares the two.
    """
    status, reason, http_1_0 = _status_lines.get(line := raw[: raw.find(b"\r")]) or _status_line(line)
    if len(raw) > 4 * MAX_RESPONSE_HEADERS and raw.count(b"\n") - 2 > MAX_RESPONSE_HEADERS:
        raise malformed(f"more than {MAX_RESPONSE_HEADERS} header fields", "too_large_head")
    content_length = None
    is_chunked = False
    hop_by_hop = []
    for field in _special(raw):
        name, value = field
        meaning = _meanings.get(name)
        if meaning is None:
            meaning = _meaning(name)
        if meaning == _LENGTH:
            digits = value.strip(b" \t")
            if not digits.isdigit() or content_length is not None:
                raise malformed("a Content-Length that is not one number")
            content_length = int(digits)
        else:
            hop_by_hop.append(field)
            if meaning == _CODING:
                if is_chunked or value.strip(b" \t").lower() != b"chunked":
                    raise malformed("a Transfer-Encoding other than chunked", "bad_transfer_encoding")
                is_chunked = True
    if is_chunked:
        if http_1_0:
            raise malformed("Transfer-Encoding in an HTTP/1.0 response", "bad_transfer_encoding")
        if content_length is not None:
            raise malformed("Transfer-Encoding beside Content-Length", "bad_transfer_encoding")
    has_body = status != 204 and status != 304
    return ResponseHead(status, reason, http_1_0, raw, is_chunked, content_length, has_body, hop_by_hop)
