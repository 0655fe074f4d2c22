"""Events as agents see them: one data model for every transport.

Events are encoded once, by the worker, and forwarded untouched; that is why they are built from
ready-made fragments here and not from a dict of everything (orjson of the whole dict costs three times
as much). What agents answer stands in shared/wire/verdict.py. docs/agent-protocol.md is the normative
text, tests/vectors/ pin the bytes.

Kind: pure.
"""

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
import orjson

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
    told = _millisecond_text if int(now_s * 1000) == _millisecond else timestamp(now_s)
    return b"".join(  # a quarter cheaper than formatted (2026-11)
        (
            b'"metadata":{"correlation_id":"',
            correlation_id,
            b'","request_id":"',
            request_id or correlation_id,
            b'",',
            lasting,
            b',"timestamp":"',
            told,
            b'","traceparent":"',
            traceparent,
            b'"}',
        )
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
    return b'{"event_type":"request_headers",' + meta + rest


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


def _chunk_event(
    event_type: bytes, size_name: bytes, correlation_id: bytes, index: int, is_last: bool, total: int, so_far: int
) -> bytes:
    size = b',"total_size":%d' % total if total >= 0 else b""
    return b'{"event_type":"%b","correlation_id":"%b","chunk_index":%d,"is_last":%b%b,"%b":%d}' % (
        event_type,
        correlation_id,
        index,
        _HAS_BODY[is_last],
        size,
        size_name,
        so_far,
    )


def request_body_chunk_event(correlation_id: bytes, index: int, is_last: bool, total: int, received: int) -> bytes:
    """`request_body_chunk`, its bytes aside. `total`: Content-Length, -1 = not told; `received`: bytes so far."""
    return _chunk_event(b"request_body_chunk", b"bytes_received", correlation_id, index, is_last, total, received)


def response_body_chunk_event(correlation_id: bytes, index: int, is_last: bool, total: int, sent: int) -> bytes:
    """`response_body_chunk`; as above."""
    return _chunk_event(b"response_body_chunk", b"bytes_sent", correlation_id, index, is_last, total, sent)


class Completion(NamedTuple):
    """What `request_complete` tells; times in ms, sizes in bytes of the bodies as they were received and sent."""

    status: int  # 0: the client got none
    duration_ms: float
    request_body_size: int
    response_body_size: int
    upstream_attempts: int
    error: str = ""  # why it did not end well
    decided_by: str = ""  # the agent that refused it


def request_complete_event(meta: bytes, method: bytes, uri: bytes, done: Completion) -> bytes:
    """`request_complete`; `meta` from `metadata`, `uri` as JSON."""
    told: dict[str, Any] = done._asdict()
    told["duration_ms"] = round(done.duration_ms, 3)
    for name in ("error", "decided_by"):
        if not told[name]:
            del told[name]
    rest = orjson.dumps(told)[1:]
    return b'{"event_type":"request_complete",%b,"method":"%b","uri":%b,%b' % (meta, method, uri, rest)


def websocket_frame_event(
    correlation_id: bytes, opcode: str, client_to_server: bool, index: int, fin: bool, route_id: str, client_ip: str
) -> bytes:
    """`websocket_frame`, its payload aside; `index`: of this direction, from 0."""
    return orjson.dumps(
        {
            "event_type": "websocket_frame",
            "correlation_id": correlation_id.decode(),
            "opcode": opcode,
            "client_to_server": client_to_server,
            "frame_index": index,
            "fin": fin,
            "route_id": route_id,
            "client_ip": client_ip,
        }
    )


def guardrail_inspect_event(
    correlation_id: bytes,
    inspection_type: str,
    content: str,
    direction: str,
    model: str,
    categories: Sequence[str],
    route_id: str,
    more: dict[str, str],
) -> bytes:
    """`guardrail_inspect`; `direction`: prompt or completion, `more`: what `metadata` tells beside the id."""
    told: dict[str, Any] = {
        "event_type": "guardrail_inspect",
        "correlation_id": correlation_id.decode(),
        "inspection_type": inspection_type,
        "content": content,
        "direction": direction,
        "categories": list(categories),
        "route_id": route_id,
        "metadata": {"correlation_id": correlation_id.decode(), **more},
    }
    if model:
        told["model"] = model
    return msgspec.json.encode(told)  # a lone surrogate, which orjson refuses, was replaced by who decoded the text
