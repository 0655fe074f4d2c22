"""Wardgate <-> agents over ZeroMQ: every frame of protocol 2 and of protocol 1.

Protocol 2, DEALER (agent) <-> ROUTER (agentd): `verb | frame ...`, no empty delimiter frame.

    verb           from    frames after the verb            here
    HELLO          agent   JSON                             Hello
    CHALLENGE      agentd  32 raw bytes                     Challenge
    PROOF          agent   32 raw bytes                     Proof
    WELCOME        agentd  JSON                             Welcome
    REFUSE         agentd  JSON                             Refusal
    CONFIG         agentd  JSON                             Configuration
    CONFIG_RESULT  agent   JSON                             ConfigResult
    EVENTS         agentd  JSON array, bodies ...           Events
    VERDICTS       agent   JSON array, bodies ...           Verdicts
    CANCEL         agentd  JSON array                       Cancel
    PING PONG      both    opaque ...                       Ping, Pong
    HEALTH         agent   JSON                             Health
    METRICS        agent   JSON                             Metrics
    PAUSE RESUME   agent   -                                Pause, Resume
    DRAIN          both    JSON                             Drain
    BYE            both    -                                Bye

Protocol 1, REQ-like (agentd) <-> REP (agent): one JSON frame each way, in lockstep.

    {"version":1,"event_type":"request_headers","payload":{event}}  ->  {"version":1,"decision":"allow"}

What is wrong with bytes is a WireError and never anything else. Fields that nobody knows are ignored.
docs/agent-protocol.md is the normative text, tests/vectors/ pin the bytes. What a session accepts
when stands in shared/wire/session.py, what verdicts mean in shared/wire/verdict.py.

Kind: pure.
"""

from base64 import b64encode
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, Literal, NamedTuple, TypeAlias

import msgspec
from msgspec import Raw

from shared.defaults import (
    AGENT_CONTROL_MAX_BYTES,
    AGENT_MAX_FRAMES,
    AGENT_MAX_MESSAGE_BYTES,
    AGENT_METRICS_MAX_BYTES,
    AGENT_PING_MAX_BYTES,
    VERDICTS_MAX_ENTRIES,
    VERDICTS_SALVAGE_BYTES,
)
from shared.errors import WireError
from shared.wire.agent_messages import (
    NONCE_BYTES,
    PROTOCOL,
    Bye,
    Cancel,
    Challenge,
    ConfigResult,
    Configuration,
    Drain,
    EventEntry,
    Events,
    Health,
    Hello,
    Message,
    Metrics,
    Pause,
    Ping,
    Pong,
    Proof,
    Refusal,
    Resume,
    Side,
    VerdictEntry,
    Verdicts,
    Welcome,
)
from shared.wire.verdict import Verdict


class _AnyHello(msgspec.Struct):
    protocol: int


# --- the table ------------------------------------------------------------------------------------

_BAD = (ValueError, RecursionError)  # msgspec's own errors are ValueErrors
encode_json = msgspec.json.Encoder().encode
_decode_any_hello = msgspec.json.Decoder(_AnyHello).decode
_decode_entries = msgspec.json.Decoder(list[VerdictEntry]).decode
_decode_raws = msgspec.json.Decoder(list[Raw]).decode
_decode_entry = msgspec.json.Decoder(VerdictEntry).decode
_decode_call = msgspec.json.Decoder(str).decode


def _json(kind: Callable[..., Any], max_bytes: int = AGENT_CONTROL_MAX_BYTES) -> Callable[[Sequence[bytes]], Any]:
    decode = msgspec.json.Decoder(kind).decode

    def read(frames: Sequence[bytes]) -> Any:
        if len(frames) != 1:
            raise WireError(f"has {len(frames)} frames after the verb, want one of JSON")
        if len(frames[0]) > max_bytes:
            raise WireError(f"has {len(frames[0])} bytes, at most {max_bytes} are read")
        try:
            return decode(frames[0])
        except _BAD as error:
            raise WireError(str(error)[:300]) from None

    return read


_read_hello = _json(Hello)


def _hello(frames: Sequence[bytes]) -> Hello:
    try:
        read: Hello = _read_hello(frames)
    except WireError:
        # Another protocol may have other fields: it shall hear `protocol`, not `malformed`.
        try:
            other = _decode_any_hello(frames[0]).protocol if len(frames) == 1 else PROTOCOL
        except _BAD:
            other = PROTOCOL
        if other == PROTOCOL:
            raise
        return Hello(other, "", "-", [])
    return read


def _raw(kind: Callable[[bytes], Message]) -> Callable[[Sequence[bytes]], Message]:
    def read(frames: Sequence[bytes]) -> Message:
        if len(frames) != 1 or len(frames[0]) != NONCE_BYTES:
            raise WireError(f"wants one frame of {NONCE_BYTES} raw bytes")
        return kind(frames[0])

    return read


def _echo(kind: Callable[[Sequence[bytes]], Message]) -> Callable[[Sequence[bytes]], Message]:
    def read(frames: Sequence[bytes]) -> Message:
        if len(frames) > 8 or sum(map(len, frames)) > AGENT_PING_MAX_BYTES:
            raise WireError(f"wants at most 8 frames of {AGENT_PING_MAX_BYTES} bytes together")
        return kind(frames)

    return read


def _nothing(kind: Callable[[], Message]) -> Callable[[Sequence[bytes]], Message]:
    def read(frames: Sequence[bytes]) -> Message:
        if frames:
            raise WireError("has no frames after the verb")
        return kind()

    return read


def _verdicts(frames: Sequence[bytes]) -> Verdicts:
    if not frames:
        raise WireError("wants a frame of JSON")
    return Verdicts(unpack_verdicts(frames[0]), frames[1:])


def _events(frames: Sequence[bytes]) -> Events:
    if not frames:
        raise WireError("wants a frame of JSON")
    return Events(_read_events(frames[:1]), frames[1:])


_read_events = _json(list[EventEntry], AGENT_MAX_MESSAGE_BYTES)
_read_cancel = _json(list[tuple[str, str]], AGENT_MAX_MESSAGE_BYTES)


class _Row(NamedTuple):
    kind: type[Any]
    senders: tuple[Side, ...]
    read: Callable[[Sequence[bytes]], Any]


_A, _D = (Side.AGENT,), (Side.AGENTD,)
_BOTH = (Side.AGENT, Side.AGENTD)
VERBS: Final[dict[bytes, _Row]] = {
    b"HELLO": _Row(Hello, _A, _hello),
    b"CHALLENGE": _Row(Challenge, _D, _raw(Challenge)),
    b"PROOF": _Row(Proof, _A, _raw(Proof)),
    b"WELCOME": _Row(Welcome, _D, _json(Welcome)),
    b"REFUSE": _Row(Refusal, _D, _json(Refusal)),
    b"CONFIG": _Row(Configuration, _D, _json(Configuration, AGENT_MAX_MESSAGE_BYTES)),
    b"CONFIG_RESULT": _Row(ConfigResult, _A, _json(ConfigResult)),
    b"EVENTS": _Row(Events, _D, _events),
    b"VERDICTS": _Row(Verdicts, _A, _verdicts),
    b"CANCEL": _Row(Cancel, _D, lambda frames: Cancel(_read_cancel(frames))),
    b"PING": _Row(Ping, _BOTH, _echo(Ping)),
    b"PONG": _Row(Pong, _BOTH, _echo(Pong)),
    b"HEALTH": _Row(Health, _A, _json(Health)),
    b"METRICS": _Row(Metrics, _A, _json(Metrics, AGENT_METRICS_MAX_BYTES)),
    b"PAUSE": _Row(Pause, _A, _nothing(Pause)),
    b"RESUME": _Row(Resume, _A, _nothing(Resume)),
    b"DRAIN": _Row(Drain, _BOTH, _json(Drain)),
    b"BYE": _Row(Bye, _BOTH, _nothing(Bye)),
}
_VERB_OF: Final = {row.kind: verb for verb, row in VERBS.items()}


def verb_of(message: "Message | type[Message]") -> bytes:
    """The first frame of such a message."""
    return _VERB_OF[message if isinstance(message, type) else type(message)]


def check_size(frames: Sequence[bytes]) -> None:
    """The limits of a whole message; raises WireError."""
    if len(frames) > AGENT_MAX_FRAMES:
        raise WireError(f"message of {len(frames)} frames, at most {AGENT_MAX_FRAMES} are read")
    total = sum(map(len, frames))
    if total > AGENT_MAX_MESSAGE_BYTES:
        raise WireError(f"message of {total} bytes is over {AGENT_MAX_MESSAGE_BYTES}")


def unpack(frames: Sequence[bytes], sender: Side) -> Message:
    """The message in these frames (verb first); raises WireError."""
    check_size(frames)
    if not frames:
        raise WireError("message without frames")
    row = VERBS.get(frames[0])
    if row is None:
        raise WireError(f"unknown verb {frames[0][:20]!r}")
    if sender not in row.senders:
        raise WireError(f"{frames[0].decode()} is not for {sender.value}s to send")
    try:
        message: Message = row.read(frames[1:])
    except WireError as error:
        raise WireError(f"{frames[0].decode()}: {error}") from None
    return message


def pack(message: Message) -> list[bytes]:
    """The frames of a message, verb first."""
    verb = _VERB_OF[type(message)]
    if isinstance(message, Events):
        return pack_events([(e.call, e.budget_ms, bytes(e.event), e.n) for e in message.entries], message.bodies)
    if isinstance(message, Verdicts):
        rows = [(e.call, e.verdict) if e.n is None else (e.call, e.verdict, e.n) for e in message.entries]
        return [verb, encode_json(rows), *message.bodies]
    if isinstance(message, Cancel):
        return [verb, encode_json(message.entries)]
    if isinstance(message, Challenge | Proof):
        return [verb, message[0]]
    if isinstance(message, Ping | Pong):
        return [verb, *message.frames]
    if isinstance(message, Pause | Resume | Bye):
        return [verb]
    return [verb, encode_json(message)]


def text(frames: Sequence[bytes]) -> str:
    """For people: the frames as docs/agent-protocol.md writes them, long ones cut."""
    parts = []
    for frame in frames:
        shown = frame[:200].decode("utf-8", "backslashreplace")
        if not shown.isprintable():
            shown = f"<{len(frame)} bytes>"
        parts.append(shown if len(frame) <= 200 else f"{shown}... ({len(frame)} bytes)")
    return " | ".join(parts)


# --- the hot paths --------------------------------------------------------------------------------

EventRow: TypeAlias = "tuple[str, int, bytes | memoryview, int | None]"


def pack_events(rows: Iterable[EventRow], bodies: Sequence[bytes] = ()) -> list[bytes]:
    """EVENTS of (call, budget_ms, event, body index or None); the events' bytes are joined, not decoded.

    0.3 us an event (2026-11); formatting each entry with b"%b" of a memoryview took 0.75.
    """
    parts: list[bytes | memoryview] = []
    between = "["
    for call, budget_ms, event, n in rows:
        parts.append(f'{between}["{call}",{budget_ms if budget_ms > 0 else 0},'.encode())
        parts.append(event)
        between = "]," if n is None else f",{n}],"
    parts.append(f"{between[:-1]}]".encode() if parts else b"[]")
    return [b"EVENTS", b"".join(parts), *bodies]


def unpack_verdicts(data: bytes) -> list[VerdictEntry]:
    """The entries of VERDICTS with their verdicts as raw bytes; raises WireError if any is no entry."""
    try:
        return _decode_entries(data)
    except _BAD as error:
        raise WireError(str(error)[:300]) from None


def salvage_verdicts(data: bytes) -> tuple[list[VerdictEntry], list[str], int]:
    """What can be used of VERDICTS with bad entries: (entries, calls answered badly, entries without a call).

    Raises WireError when it is not even an array, or one too large to look for the good ones.
    """
    if len(data) > VERDICTS_SALVAGE_BYTES:
        raise WireError(f"VERDICTS: bad entries in {len(data)} bytes of JSON")
    good: list[VerdictEntry] = []
    bad: list[str] = []
    lost = 0
    try:
        raws = _decode_raws(data)
    except _BAD as error:
        raise WireError(f"VERDICTS: {str(error)[:300]}") from None
    if len(raws) > VERDICTS_MAX_ENTRIES:
        raise WireError(f"VERDICTS: bad ones among {len(raws)} entries")
    for raw in raws:
        try:
            good.append(_decode_entry(raw))
        except _BAD:
            try:
                bad.append(_decode_call(_decode_raws(raw)[0]))
            except (*_BAD, IndexError):
                lost += 1
    return good, bad, lost


# --- protocol 1 -----------------------------------------------------------------------------------


class V1Verdict(Verdict):
    """The same verdict, with the protocol's number."""

    version: Literal[1] = 1


decode_v1_verdict = msgspec.json.Decoder(V1Verdict).decode


def pack_v1(event_type: str, payload: "bytes | memoryview", body: "bytes | memoryview | None" = None) -> bytes:
    """The one frame that carries an event to a v1 agent; its body, if it can have one, as the last member `data`."""
    head = b'{"version":1,"event_type":"%b","payload":' % event_type.encode()
    if body is None:
        return b"".join((head, payload, b"}"))
    return b"".join((head, payload[:-1], b',"data":"', b64encode(body), b'"}}'))


def pack_v1_configure(agent: str, settings: Configuration) -> bytes:
    """`configure`, the first message on every connection: CONFIG's fields and the agent's name."""
    payload = {"event_type": "configure", "agent_id": agent, **msgspec.structs.asdict(settings)}
    return pack_v1("configure", encode_json(payload))


def unpack_v1(frames: Sequence[bytes]) -> V1Verdict:
    """A v1 agent's reply, the delimiter removed; raises WireError."""
    if len(frames) != 1:
        raise WireError(f"reply of {len(frames)} frames, want one of JSON")
    if len(frames[0]) > AGENT_MAX_MESSAGE_BYTES:
        raise WireError(f"reply of {len(frames[0])} bytes is over {AGENT_MAX_MESSAGE_BYTES}")
    try:
        return decode_v1_verdict(frames[0])
    except _BAD as error:
        raise WireError(str(error)[:300]) from None
