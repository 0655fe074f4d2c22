"""Decides whether a WebSocket handshake may be believed, on both sides of the proxy (RFC 6455 4, RFC 7692 7).

The handshake is end to end: key, protocols and extensions are the client's, the answer is the upstream's, and
nothing of it is invented here. Checked is what a lie about would hurt: a request that only looks like an upgrade,
a 101 that nobody's key leads to, an extension that was never offered. Where agents see messages, only what we can
decode may be negotiated. Frames are websocket.py's, bytes tunnel.py's.

Kind: pure.
"""

import re
from base64 import b64encode
from collections.abc import Iterable
from hashlib import sha1

import msgspec
from websockets.exceptions import InvalidHeaderFormat
from websockets.headers import build_extension, parse_extension
from websockets.typing import ExtensionHeader

from proxy.head import Field, Head
from proxy.upstream.response import ResponseHead, malformed
from shared.errors import RequestRefused

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_KEY = re.compile(rb"[A-Za-z0-9+/]{21}[AQgw]==\Z")  # base64 of 16 bytes
_DEFLATE = "permessage-deflate"
_FLAGS = ("server_no_context_takeover", "client_no_context_takeover")
_BITS = ("server_max_window_bits", "client_max_window_bits")
_WINDOWS = {str(bits): bits for bits in range(8, 16)}
_EXTENSIONS = b"sec-websocket-extensions"


class Upgrade(msgspec.Struct, frozen=True):
    """What a client asked for."""

    key: bytes
    protocols: frozenset[bytes]
    extensions: tuple[ExtensionHeader, ...]


class Deflate(msgspec.Struct, frozen=True):
    """permessage-deflate as the upstream accepted it."""

    server_no_context_takeover: bool = False
    client_no_context_takeover: bool = False
    server_max_window_bits: int = 15
    client_max_window_bits: int = 15


def read_upgrade(head: Head) -> Upgrade:
    """The upgrade that `head` asks for; RequestRefused if it is none that a server may accept (RFC 6455 4.2.1)."""
    if head.method != b"GET":
        raise RequestRefused(400, "a WebSocket upgrade that is not a GET")
    if head.has_body or head.content_length is not None or head.is_chunked:
        # llhttp has stopped at this head and told nothing of a body: there is no going on from here.
        raise RequestRefused(400, "a WebSocket upgrade with a body")
    keys = _values(head.fields, b"sec-websocket-key")
    if len(keys) != 1 or not _KEY.match(keys[0]):
        raise RequestRefused(400, "Sec-WebSocket-Key is not one key of 16 bytes")
    if _values(head.fields, b"sec-websocket-version") != [b"13"]:
        raise RequestRefused(426, "WebSocket version 13 only")
    protocols = _tokens(_values(head.fields, b"sec-websocket-protocol"))
    try:
        extensions = tuple(_extensions(head.fields))
    except InvalidHeaderFormat:
        raise RequestRefused(400, "Sec-WebSocket-Extensions is malformed") from None
    return Upgrade(keys[0], frozenset(protocols), extensions)


def decodable(kept: list[Field], upgrade: Upgrade) -> list[Field]:
    """The fields for the upstream where agents see messages: of the extensions only offers that we can decode."""
    fields = [field for field in kept if field[0].lower() != _EXTENSIONS]
    offers = [offer for offer in upgrade.extensions if offer[0] == _DEFLATE]
    if offers:
        fields.append((_EXTENSIONS, build_extension(offers).encode()))
    return fields


def check_answer(response: ResponseHead, upgrade: Upgrade, *, is_decoded: bool) -> Deflate | None:
    """Whether the 101 may be passed on, UpstreamFailed (502) if not. `is_decoded`: agents will see messages.

    Returns what was accepted of permessage-deflate, None = no compression; always None unless `is_decoded`.
    """
    fields = response.headers
    if response.http_1_0:
        raise _wrong("a 101 of HTTP/1.0")
    if response.is_chunked or response.content_length:
        raise _wrong("a 101 with a body")
    if b"websocket" not in _lower(_tokens(_values(fields, b"upgrade"))):
        raise _wrong("a 101 without Upgrade: websocket")
    if b"upgrade" not in _lower(_tokens(_values(fields, b"connection"))):
        raise _wrong("a 101 without Connection: upgrade")
    if _values(fields, b"sec-websocket-accept") != [accept_of(upgrade.key)]:
        raise _wrong("Sec-WebSocket-Accept does not belong to the key")
    protocols = _values(fields, b"sec-websocket-protocol")
    if protocols and (len(protocols) > 1 or protocols[0] not in upgrade.protocols):
        raise _wrong("a subprotocol that was not offered")
    try:
        accepted = _extensions(fields)
    except InvalidHeaderFormat:
        raise _wrong("Sec-WebSocket-Extensions is malformed") from None
    offered = {name for name, _ in upgrade.extensions if name == _DEFLATE or not is_decoded}
    if any(name not in offered for name, _ in accepted):
        raise _wrong("an extension that was not offered")
    if not is_decoded or not accepted:
        return None
    if len(accepted) > 1:
        raise _wrong("permessage-deflate more than once")
    return _deflate(accepted[0], upgrade)


def accept_of(key: bytes) -> bytes:
    """The Sec-WebSocket-Accept that belongs to a key."""
    return b64encode(sha1(key + _GUID, usedforsecurity=False).digest())


def _deflate(accepted: ExtensionHeader, upgrade: Upgrade) -> Deflate:
    told: dict[str, bool | int] = {}
    for name, value in accepted[1]:
        if name in told:
            raise _wrong("a parameter of permessage-deflate twice")
        if name in _FLAGS and value is None:
            told[name] = True
        elif name in _BITS and value in _WINDOWS:
            told[name] = _WINDOWS[value]
        else:
            raise _wrong("a parameter of permessage-deflate that is none")
    if "client_max_window_bits" in told and not any(
        name == "client_max_window_bits" for offer in upgrade.extensions if offer[0] == _DEFLATE for name, _ in offer[1]
    ):
        raise _wrong("client_max_window_bits was not offered")
    return msgspec.convert(told, Deflate)


def _extensions(fields: list[Field]) -> list[ExtensionHeader]:
    found: list[ExtensionHeader] = []
    for value in _values(fields, _EXTENSIONS):
        if value.strip(b", \t"):
            found += parse_extension(value.decode("latin-1").rstrip(", \t"))
    return found


def _values(fields: list[Field], name: bytes) -> list[bytes]:
    return [value for found, value in fields if found.lower() == name]


def _tokens(values: Iterable[bytes]) -> list[bytes]:
    tokens = [token.strip(b" \t") for value in values for token in value.split(b",")]
    return [token for token in tokens if token]


def _lower(tokens: list[bytes]) -> list[bytes]:
    return [token.lower() for token in tokens]


def _wrong(text: str) -> Exception:
    return malformed(text, "bad_upgrade")
