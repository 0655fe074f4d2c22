"""The messages of agent protocol 2, one class per verb, with the limits of their fields.

Both sides ignore fields that nobody knows; absent and null mean the default. Which frames carry them
stands in shared/wire/agent_zmq.py, what a session accepts when in shared/wire/session.py, what a
verdict means in shared/wire/messages.py.

Kind: table.
"""

import hashlib
import hmac
from collections.abc import Sequence
from enum import Enum
from typing import Annotated, Any, Final, Literal, NamedTuple, TypeAlias

import msgspec
from msgspec import Meta, Raw

from shared.defaults import (
    HELLO_MAX_BATCH,
    HELLO_MAX_BODY_BYTES,
    HELLO_MAX_CONCURRENCY,
    MAX_BATCH,
    MAX_CALL_ID_CHARS,
)

PROTOCOL: Final = 2
NONCE_BYTES: Final = 32
PROOF_LABEL: Final = b"wardgate-v2\0"

_Short = Annotated[str, Meta(max_length=100)]
_Long = Annotated[str, Meta(max_length=2_000)]
_Count = Annotated[int, Meta(ge=1)]
_Milliseconds = Annotated[int, Meta(ge=0, le=86_400_000)]


class Side(Enum):
    """Who sends."""

    AGENT = "agent"
    AGENTD = "agentd"


# --- introduction ---------------------------------------------------------------------------------


class Hello(msgspec.Struct, frozen=True, omit_defaults=True):
    """An agent's instance introduces itself; absent and null mean the default."""

    protocol: int
    agent: _Short
    instance: Annotated[str, Meta(pattern=r"^[A-Za-z0-9._:-]{1,64}\Z")]
    events: Annotated[list[_Short], Meta(max_length=64)]
    version: _Short | None = None
    max_concurrency: _Count | None = None
    max_batch: _Count | None = None
    max_body_bytes: _Count | None = None

    @property
    def calls(self) -> int:
        """Calls that it takes at a time."""
        return self.max_concurrency or HELLO_MAX_CONCURRENCY

    @property
    def batch(self) -> int:
        """Events that one EVENTS message to it may hold."""
        return min(self.max_batch or HELLO_MAX_BATCH, MAX_BATCH)

    @property
    def body_bytes(self) -> int:
        """The longest body frame that it takes."""
        return self.max_body_bytes or HELLO_MAX_BODY_BYTES


class Challenge(NamedTuple):
    """Prove that you know the secret."""

    nonce: bytes


class Proof(NamedTuple):
    """`proof()` of the challenge."""

    mac: bytes


def proof(secret: bytes, nonce: bytes, agent: str, instance: str) -> bytes:
    """HMAC-SHA256(secret, "wardgate-v2\\0" + nonce + agent + "\\0" + instance), 32 bytes."""
    text = PROOF_LABEL + nonce + agent.encode() + b"\0" + instance.encode()
    return hmac.new(secret, text, hashlib.sha256).digest()


class Welcome(msgspec.Struct, frozen=True, omit_defaults=True):
    """The HELLO is accepted; `session` is for logs."""

    protocol: int
    session: str
    heartbeat_ms: int


class RefuseCode(Enum):
    """Why; the value is the word on the wire. The comment says whether trying again helps."""

    MALFORMED = "malformed"  # later: three messages within a minute that could not be read
    PROTOCOL = "protocol"  # final: another protocol number
    UNKNOWN_AGENT = "unknown_agent"  # final: no such name in the configuration
    NOT_ALLOWED = "not_allowed"  # final: its user may not register under this name
    BAD_PROOF = "bad_proof"  # final
    MISSING_EVENTS = "missing_events"  # final: the configuration lists one that HELLO lacks
    DUPLICATE_INSTANCE = "duplicate_instance"  # later for the newcomer, final for one that was replaced
    CONFIG_REJECTED = "config_rejected"  # final: its own CONFIG_RESULT said so
    TOO_MANY = "too_many"  # later: instances of this name
    HELLO_FIRST = "hello_first"  # at once: agentd knows no session of this connection
    SHUTTING_DOWN = "shutting_down"  # later
    DRAINED = "drained"  # final: an operator drained this process, to replace it


class Refusal(msgspec.Struct, frozen=True, omit_defaults=True):
    """No; without `retry_after_ms` for good. An unknown code is to be treated by `retry_after_ms` alone."""

    code: str
    reason: str
    retry_after_ms: int | None = None


class Configuration(msgspec.Struct, frozen=True):
    """The agent's own table of the configuration, and its limits."""

    config: Any
    config_version: str
    timeout_ms: int
    max_request_body_bytes: int
    max_response_body_bytes: int


class ConfigResult(msgspec.Struct, frozen=True, omit_defaults=True):
    """Whether the agent can work with it."""

    config_version: _Short
    accepted: bool
    error: _Long | None = None


# --- work -----------------------------------------------------------------------------------------


class EventEntry(msgspec.Struct, frozen=True, array_like=True):
    """One question; `n` is the index of its body frame."""

    call: Annotated[str, Meta(max_length=MAX_CALL_ID_CHARS)]
    budget_ms: int
    event: Raw
    n: int | None = None


class Events(NamedTuple):
    entries: list[EventEntry]
    bodies: Sequence[bytes] = ()


class VerdictEntry(msgspec.Struct, array_like=True, gc=False):
    """One answer, its verdict not decoded yet; `n` is the index of its body frame."""

    call: str
    verdict: Raw
    n: int | None = None


class Verdicts(NamedTuple):
    entries: list[VerdictEntry]
    bodies: Sequence[bytes] = ()


class Cancel(NamedTuple):
    """Nobody waits any more for these: (call, reason)."""

    entries: list[tuple[str, str]]


# --- life -----------------------------------------------------------------------------------------


class Ping(NamedTuple):
    frames: Sequence[bytes] = ()


class Pong(NamedTuple):
    """The PING's frames."""

    frames: Sequence[bytes] = ()


class Health(msgspec.Struct, frozen=True, omit_defaults=True):
    """How the instance feels; honoured when one is chosen."""

    state: Literal["healthy", "degraded", "draining", "unhealthy"]
    message: _Long | None = None
    load: Annotated[float, Meta(ge=0, le=1)] | None = None


class Series(msgspec.Struct, frozen=True):
    """A counter's or gauge's present value."""

    name: str
    value: float
    labels: dict[str, str] = {}


class HistogramSeries(msgspec.Struct, frozen=True):
    """A histogram; `buckets` are (upper bound, observations up to it), the last without +Inf."""

    name: str
    sum: float
    count: int
    buckets: list[tuple[float, int]]
    labels: dict[str, str] = {}


class Metrics(msgspec.Struct, frozen=True, omit_defaults=True):
    """Totals since the agent's start."""

    counters: list[Series] = []
    gauges: list[Series] = []
    histograms: list[HistogramSeries] = []


class Pause(NamedTuple):
    """No new requests to this instance; those it knows go on."""


class Resume(NamedTuple):
    """The end of PAUSE."""


class Drain(msgspec.Struct, frozen=True, omit_defaults=True):
    """No new requests to this instance any more; those it knows are finished, up to the deadline."""

    deadline_ms: _Milliseconds | None = None


class Bye(NamedTuple):
    """agentd: nothing of yours is left. Agent: gone now."""


Message: TypeAlias = (
    Hello | Challenge | Proof | Welcome | Refusal | Configuration | ConfigResult | Events | Verdicts | Cancel
    | Ping | Pong | Health | Metrics | Pause | Resume | Drain | Bye
)  # fmt: skip
