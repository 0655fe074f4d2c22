"""Worker <-> agentd: the records of one loop tick in one message.

    message   = frame 0 [, body frames]         (one ZeroMQ multipart, DEALER <-> ROUTER over ipc)
    frame 0   = record*
    record    = u32 length of what follows | u8 type | fields | rest

All integers little-endian. `rest` runs to the end of the record.

    type            direction   fields                                                     rest
    REGISTER     1  W -> A      u16 wire version                                           JSON Register
    EVENT        2  W -> A      u64 event, u64 exchange, u64 mask, u64 deadline,           the event's JSON,
                                u16 plan, u8 kind, u8 flags, u16 body frame (FFFF: none)   forwarded untouched
                                u32 chunk index (of the plan's kind, from 0; else 0)
    CANCEL       3  W -> A      u64 exchange, u8 reason (+ 80: a further event follows)    -
    END          4  W -> A      u64 exchange                                               -
    AUDIT        5  W -> A      -                                                          JSON audit record
    TOKENS       6  W -> A      -                                                          JSON rows (wire/tokens.py)
    REGISTERED 129  A -> W      u16 wire version                                           JSON Registered
    UNKNOWN    130  A -> W      -                                                          -  (register again)
    DECISION   131  A -> W      u64 event                                                  empty = plain allow,
                                                                                           else msgpack Decision
    DECISION_BODY 132 A -> W    u64 event, u16 body frame                                  msgpack Decision without
                                                                                           its body: that is the frame

`deadline` is CLOCK_MONOTONIC in ns. `mask`: bit i asks the plan's i-th agent. flags bit 0 = FINAL: no
further event of this exchange will come, so nothing stays pinned and no END follows; bit 1 = LAST: the
chunk is the last of its body. Body frames are numbered from 0 within their message. An unknown record
type is skipped (its length is known), an unknown wire version is refused by whoever is older.

Kind: pure.
"""

from collections.abc import Iterator, Sequence
from enum import IntEnum
from struct import Struct
from typing import Final

import msgspec

from shared.decision import ALLOW, Decision
from shared.defaults import DECISION_REMEMBERED_BYTES, DECISIONS_ENCODED, HOP_MAX_MESSAGE_BYTES, WIRE_VERSION
from shared.errors import WireError
from shared.plan import Plan


class RecordType(IntEnum):
    """On the wire, never renumber."""

    REGISTER = 1
    EVENT = 2
    CANCEL = 3
    END = 4
    AUDIT = 5
    TOKENS = 6
    REGISTERED = 129
    UNKNOWN = 130
    DECISION = 131
    DECISION_BODY = 132


class CancelReason(IntEnum):
    """Why nobody waits any more; the words are those of the agent protocol's CANCEL."""

    CLIENT_GONE = 0
    TIMEOUT = 1
    DECIDED = 2
    SHUTDOWN = 3

    @property
    def word(self) -> str:
        return self.name.lower()


FLAG_FINAL: Final = 1
FLAG_LAST: Final = 2
MORE_FOLLOWS: Final = 0x80  # beside a CANCEL's reason: what is pinned stays so
NO_BODY: Final = 0xFFFF

_LENGTH = Struct("<I")
_TYPE = Struct("<IB")
_VERSION = Struct("<IBH")
_EVENT = Struct("<IBQQQQHBBHI")
_BODY_FRAME_AT = Struct("<IBQQQQHBB").size
_CANCEL = Struct("<IBQB")
_END = Struct("<IBQ")
_DECISION = Struct("<IBQ")
_DECISION_BODY = Struct("<IBQH")
EVENT_FIELDS: Final = _EVENT.size - 4  # bytes of an EVENT record before the event, length field aside
UNKNOWN_RECORD: Final = _TYPE.pack(1, RecordType.UNKNOWN)


class Register(msgspec.Struct, frozen=True):
    """A worker introduces itself, on every connect."""

    pid: int
    slot: int  # in proxy.seg
    config_digest: str
    correlation_prefix: str  # + hex of the exchange id = correlation id
    plans: tuple[Plan, ...]


class Registered(msgspec.Struct, frozen=True):
    """agentd knows the worker's plans now."""

    nonce: str  # of agentd's start
    config_digest: str


class EventRecord(msgspec.Struct, frozen=True, gc=False):
    """A decoded EVENT; `event` is a view into the message, not a copy."""

    event_id: int
    exchange_id: int
    mask: int
    deadline_ns: int
    plan: int
    kind: int
    is_final: bool
    body_frame: int  # NO_BODY: none
    event: bytes | memoryview
    chunk_index: int = 0
    is_last: bool = False  # of its body


_encode_json = msgspec.json.Encoder().encode
_decode_register = msgspec.json.Decoder(Register).decode
_decode_registered = msgspec.json.Decoder(Registered).decode
_encode_decision = msgspec.msgpack.Encoder().encode
_decode_decision = msgspec.msgpack.Decoder(Decision).decode
_BAD: Final = (ValueError, RecursionError)  # msgspec's own errors are ValueErrors, as are those of UTF-8


def pack_register(register: Register) -> bytes:
    """A whole record."""
    rest = _encode_json(register)
    return _VERSION.pack(3 + len(rest), RecordType.REGISTER, WIRE_VERSION) + rest


def pack_registered(registered: Registered) -> bytes:
    """A whole record."""
    rest = _encode_json(registered)
    return _VERSION.pack(3 + len(rest), RecordType.REGISTERED, WIRE_VERSION) + rest


def pack_event_fields(
    event_id: int,
    exchange_id: int,
    mask: int,
    deadline_ns: int,
    plan: int,
    kind: int,
    flags: int,
    length: int,
    body_frame: int = NO_BODY,
    chunk_index: int = 0,
) -> bytes:
    """The record's front; `length` is that of the event's bytes, which the caller appends uncopied."""
    return _EVENT.pack(
        EVENT_FIELDS + length,
        2,
        event_id,
        exchange_id,
        mask,
        deadline_ns,
        plan,
        kind,
        flags,
        body_frame,
        chunk_index,
    )


# The same with the first two fields (EVENT_FIELDS + length, 2) given, and nothing left out: a call less per request.
pack_event_front: Final = _EVENT.pack


def pack_cancel(exchange_id: int, reason: CancelReason, *, more_follows: bool = False) -> bytes:
    """A whole record. `more_follows`: an event of this exchange is still to come, its pins stay."""
    return _CANCEL.pack(10, RecordType.CANCEL, exchange_id, reason | MORE_FOLLOWS if more_follows else reason)


def pack_end(exchange_id: int) -> bytes:
    """A whole record."""
    return _END.pack(9, RecordType.END, exchange_id)


def pack_audit(record: bytes) -> bytes:
    """A whole record around an encoded audit record (shared/wire/audit.py)."""
    return _TYPE.pack(1 + len(record), RecordType.AUDIT) + record


def pack_tokens(rows: bytes) -> bytes:
    """A whole record around encoded rows (shared/wire/tokens.py)."""
    return _TYPE.pack(1 + len(rows), RecordType.TOKENS) + rows


def pack_decision(event_id: int, decision: Decision) -> bytes:
    """A whole record; a plain allow has no rest."""
    if decision is ALLOW:
        return _DECISION.pack(9, 131, event_id)
    known = _encoded.get(id(decision))
    if known is not None and known[0] is decision:
        rest = known[1]
    else:
        rest = _encode_decision(decision)
        if len(rest) <= DECISION_REMEMBERED_BYTES:
            if len(_encoded) >= DECISIONS_ENCODED:
                _encoded.clear()
            _encoded[id(decision)] = (decision, rest)
    return _DECISION.pack(9 + len(rest), 131, event_id) + rest


def pack_decision_body(event_id: int, decision: Decision, body_frame: int) -> bytes:
    """A whole record for a decision whose body goes beside it as a frame."""
    rest = _encode_decision(msgspec.structs.replace(decision, body=b""))
    return _DECISION_BODY.pack(11 + len(rest), RecordType.DECISION_BODY, event_id, body_frame) + rest


# Agents repeat themselves, and what they say is kept by whoever read it: the very same decision comes again.
# By identity, as long as it is held here: 0.1 us instead of 0.6 (2026-11).
_encoded: dict[int, tuple[Decision, bytes]] = {}


def messages(whole: bytes) -> list[bytes]:
    """Records put together, as messages that the other end takes: one, unless that were too large."""
    if len(whole) <= HOP_MAX_MESSAGE_BYTES:
        return [whole]
    found = []
    begin = at = 0
    while at < len(whole):
        end = at + 4 + _LENGTH.unpack_from(whole, at)[0]
        if end - begin > HOP_MAX_MESSAGE_BYTES and at > begin:
            found.append(whole[begin:at])
            begin = at
        at = end
    return [*found, whole[begin:]]


def messages_with_bodies(whole: bytes, bodies: Sequence[bytes]) -> list[tuple[bytes, ...]]:
    """The same where events have bodies: each message has those of its own events, which are numbered anew."""
    found: list[tuple[bytes, ...]] = []
    out: list[bytes] = []
    own: list[bytes] = []
    total = at = 0
    while at < len(whole):
        end = at + 4 + _LENGTH.unpack_from(whole, at)[0]
        record = whole[at:end]
        number = _U16.unpack_from(record, _BODY_FRAME_AT)[0] if record[4] == RecordType.EVENT else NO_BODY
        body = bodies[number] if number != NO_BODY else b""
        size = len(record) + len(body)
        if out and total + size > HOP_MAX_MESSAGE_BYTES:
            found.append((b"".join(out), *own))
            out, own, total = [], [], 0
        if number != NO_BODY:
            record = record[:_BODY_FRAME_AT] + _U16.pack(len(own)) + record[_BODY_FRAME_AT + 2 :]
            own.append(body)
        out.append(record)
        total += size
        at = end
    return [*found, (b"".join(out), *own)]


def endings(whole: bytes) -> list[bytes]:
    """Of records that did not leave: what agentd must be told all the same, or it keeps what is pinned for them."""
    found = []
    at = 0
    while at < len(whole):
        length, record_type = _TYPE.unpack_from(whole, at)
        end = at + 4 + length
        if record_type == RecordType.END:
            found.append(whole[at:end])
        elif record_type == RecordType.CANCEL:  # an event that was to follow is lost, too
            exchange_id, reason = _CANCEL_REST.unpack_from(whole, at + 5)
            found.append(pack_cancel(exchange_id, CancelReason(reason & ~MORE_FOLLOWS)))
        elif record_type == RecordType.EVENT:
            _, exchange_id, _, _, _, _, flags, _, _ = _EVENT_REST.unpack_from(whole, at + 5)
            if flags & FLAG_FINAL:
                found.append(pack_end(exchange_id))
        at = end
    return found


def records(view: "bytes | memoryview") -> Iterator[tuple[int, bytes | memoryview]]:
    """(type, what follows it) of each record; raises WireError at the first that does not fit.

    What follows is of the frame's own type: a view of a view, for large events, else a copy, which is cheaper.
    """
    total = len(view)
    if total > HOP_MAX_MESSAGE_BYTES:
        raise WireError(f"message of {total} bytes is over {HOP_MAX_MESSAGE_BYTES}")
    at = 0
    while at < total:
        record_type, rest, at = _record_at(view, at, total)
        yield record_type, rest


def _record_at(view: "bytes | memoryview", at: int, total: int) -> "tuple[int, bytes | memoryview, int]":
    """(type, what follows it, where the next one begins)."""
    if total - at < 5:
        raise WireError(f"{total - at} bytes left at {at}, a record has at least 5")
    (length,) = _LENGTH.unpack_from(view, at)
    end = at + 4 + length
    if length < 1 or end > total:
        raise WireError(f"record at {at} claims {length} bytes, {total - at - 4} are left")
    return view[at + 4], view[at + 5 : end], end


def records_of_worker(
    view: "bytes | memoryview",
) -> "Iterator[tuple[int, EventRecord | bytes | memoryview]]":
    """`records`, with events unpacked on the way: 0.40 us each, and 0.62 by `unpack_event` afterwards (2026-11).

    An event that is too short for its fields comes as it is; what is wrong with it says `unpack_event`.
    """
    total = len(view)
    if total > HOP_MAX_MESSAGE_BYTES:
        raise WireError(f"message of {total} bytes is over {HOP_MAX_MESSAGE_BYTES}")
    at = 0
    while at < total:
        if total - at >= _EVENT_BYTES:
            length, record_type, event_id, exchange_id, mask, deadline_ns, plan, kind, flags, body, chunk = _event_at(
                view, at
            )
            end = at + 4 + length
            if record_type == 2 and length >= EVENT_FIELDS and end <= total:
                event = view[at + _EVENT_BYTES : end]
                if not chunk and flags <= FLAG_FINAL:  # positional and short for what nearly all are
                    is_final = flags == FLAG_FINAL
                    yield 2, EventRecord(event_id, exchange_id, mask, deadline_ns, plan, kind, is_final, body, event)
                else:
                    is_final, is_last = bool(flags & FLAG_FINAL), bool(flags & FLAG_LAST)
                    yield (
                        2,
                        EventRecord(
                            event_id, exchange_id, mask, deadline_ns, plan, kind, is_final, body, event, chunk, is_last
                        ),
                    )
                at = end
                continue
        record_type, rest, at = _record_at(view, at, total)
        yield record_type, rest


_EVENT_BYTES: Final = _EVENT.size
_event_at = _EVENT.unpack_from
_EVENT_REST = Struct("<QQQQHBBHI")
_CANCEL_REST = Struct("<QB")
_U64 = Struct("<Q")
_U16 = Struct("<H")


def unpack_event(rest: bytes | memoryview) -> EventRecord:
    """An EVENT record's fields; raises WireError when it is short."""
    if len(rest) < _EVENT_REST.size:
        raise WireError(f"event record of {len(rest)} bytes is shorter than its {_EVENT_REST.size} bytes of fields")
    event_id, exchange_id, mask, deadline_ns, plan, kind, flags, body, chunk = _EVENT_REST.unpack_from(rest)
    event = rest[_EVENT_REST.size :]
    if not chunk and flags <= FLAG_FINAL:  # positional and short for what nearly all are
        return EventRecord(event_id, exchange_id, mask, deadline_ns, plan, kind, flags == FLAG_FINAL, body, event)
    is_final, is_last = bool(flags & FLAG_FINAL), bool(flags & FLAG_LAST)
    return EventRecord(event_id, exchange_id, mask, deadline_ns, plan, kind, is_final, body, event, chunk, is_last)


def unpack_cancel(rest: bytes | memoryview) -> tuple[int, CancelReason, bool]:
    """(exchange id, reason, whether a further event of it follows)."""
    if len(rest) < _CANCEL_REST.size:
        raise WireError(f"cancel record of {len(rest)} bytes, want {_CANCEL_REST.size}")
    exchange_id, reason = _CANCEL_REST.unpack_from(rest)
    try:
        return exchange_id, CancelReason(reason & ~MORE_FOLLOWS), bool(reason & MORE_FOLLOWS)
    except ValueError:
        raise WireError(f"cancel record with unknown reason {reason}") from None


def unpack_end(rest: bytes | memoryview) -> int:
    """The exchange id."""
    if len(rest) < 8:
        raise WireError(f"end record of {len(rest)} bytes, want 8")
    return int(_U64.unpack_from(rest)[0])


def _version(rest: bytes | memoryview, what: str) -> bytes | memoryview:
    if len(rest) < 2:
        raise WireError(f"{what} record of {len(rest)} bytes, want 2 and JSON")
    version = _U16.unpack_from(rest)[0]
    if version != WIRE_VERSION:
        raise WireError(f"{what} speaks wire version {version}, this is version {WIRE_VERSION}")
    return rest[2:]


def unpack_register(rest: bytes | memoryview) -> Register:
    """Raises WireError for another wire version or unreadable JSON."""
    try:
        return _decode_register(_version(rest, "register"))
    except _BAD as error:
        raise WireError(f"register: {error}") from None


def unpack_registered(rest: bytes | memoryview) -> Registered:
    """Raises WireError for another wire version or unreadable JSON."""
    try:
        return _decode_registered(_version(rest, "registered"))
    except _BAD as error:
        raise WireError(f"registered: {error}") from None


def unpack_decision(rest: bytes | memoryview) -> tuple[int, Decision]:
    """(event id, decision); raises WireError when it is short or the decision is unreadable."""
    if len(rest) == 8:
        return _U64.unpack(rest)[0], ALLOW
    if len(rest) < 8:
        raise WireError(f"decision record of {len(rest)} bytes, want at least 8")
    try:
        return _U64.unpack_from(rest)[0], _decode_decision(rest[8:])
    except _BAD as error:
        raise WireError(f"decision: {error}") from None


def unpack_decision_body(rest: bytes | memoryview) -> tuple[int, int, Decision]:
    """(event id, body frame, decision without its body); raises WireError when it is short or unreadable."""
    if len(rest) < 10:
        raise WireError(f"decision record of {len(rest)} bytes, want at least 10")
    try:
        return _U64.unpack_from(rest)[0], _U16.unpack_from(rest, 8)[0], _decode_decision(rest[10:])
    except _BAD as error:
        raise WireError(f"decision: {error}") from None
