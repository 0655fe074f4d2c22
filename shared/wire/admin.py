"""Messages of the admin API: JSON over HTTP/1.1, between agentd and whoever operates it.

    GET  /health            Health        200, or 503 when something required is unhealthy
    GET  /health/live       Live          200 as long as agentd's loop turns
    GET  /health/ready      Health        200 ready, 503 not
    GET  /metrics           Prometheus text
    GET  /api/agents        Agents
    GET  /api/breakers      Breakers
    POST /api/breakers/{agent}/open|close|reset          -> Breaker
    POST, PATCH /api/breakers/{agent}/set  BreakerChange -> Breaker
    any error                             Problem

A change with the header field `x-wardgate-deadline-ns` (CLOCK_MONOTONIC of this host) is refused with 408 once
that time has come: its client has given up, and says so.

Readers ignore fields that they do not know, so that a newer agentd can say more; an unknown field of a
*command* is an error, so that a mistyped threshold is not silently ignored. Who may do what is decided
in agentd/admin.py.

Kind: pure.
"""

from enum import StrEnum
from typing import Any, Literal
from urllib.parse import quote

import msgspec
from msgspec import UNSET, UnsetType

HEALTH = "/health"
LIVE = "/health/live"
READY = "/health/ready"
METRICS = "/metrics"
AGENTS = "/api/agents"
BREAKERS = "/api/breakers"
DEADLINE = "x-wardgate-deadline-ns"  # of a change; names in lower case
BreakerAction = Literal["open", "close", "reset", "set"]


def breaker_path(agent: str, action: BreakerAction) -> str:
    """Where to POST a change of one agent's breaker."""
    return f"{BREAKERS}/{quote(agent, safe='')}/{action}"


class Status(StrEnum):
    """How a component is. Everything unhealthy that is required makes the whole not ready."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"
    UNHEALTHY = "unhealthy"


class Component(msgspec.Struct, frozen=True, rename={"is_required": "required"}):
    """One condition with its result.

    name         agentd, workers, agent:NAME, upstream:NAME, config, audit, memory
    latency_ms   what the last look at it took, where a look takes time (an agent's median, a connect)
    last_check   RFC 3339: when the component itself last gave a sign
    """

    name: str
    status: Status
    message: str
    is_required: bool = False
    latency_ms: float | None = None
    last_check: str = ""


class Health(msgspec.Struct, frozen=True, rename={"is_ready": "ready"}):
    """The whole and its components, in a fixed order. `not_asked`: what could not be found out, and why."""

    status: Status
    is_ready: bool
    version: str
    components: tuple[Component, ...]
    not_asked: tuple[str, ...] = ()


class Live(msgspec.Struct, frozen=True):
    """agentd's loop turns."""

    status: str
    pid: int
    uptime_s: float


class Breaker(msgspec.Struct, frozen=True):
    """One agent's circuit breaker and its numbers as they are in effect."""

    agent: str
    state: str  # closed, half_open, open, forced_open
    failures: int  # in the window; 0 unless closed
    successes: int  # of probes; 0 unless half open
    probes: int  # under way; 0 unless half open
    retry_in_ms: int | None  # until the next probe; None unless open
    opened_total: int
    failure_threshold: int
    success_threshold: int
    timeout_seconds: float
    window_seconds: float
    half_open_max_requests: int


class Breakers(msgspec.Struct, frozen=True):
    """All breakers, in the order of the configuration."""

    breakers: tuple[Breaker, ...]


class BreakerChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The numbers to change; what is absent stays. Ranges are those of the configuration."""

    failure_threshold: int | UnsetType = UNSET
    success_threshold: int | UnsetType = UNSET
    timeout_seconds: float | UnsetType = UNSET
    window_seconds: float | UnsetType = UNSET
    half_open_max_requests: int | UnsetType = UNSET


class ProblemBody(msgspec.Struct, frozen=True):
    """`code` is stable, `message` is for people."""

    code: str
    message: str


class Problem(msgspec.Struct, frozen=True):
    """Every answer that is not 2xx, except health."""

    error: ProblemBody


class Instance(msgspec.Struct, frozen=True):
    """One live connection of an agent."""

    name: str
    health: str
    load: float
    in_flight: int
    limit: int
    pinned: int  # exchanges whose later events go to it alone
    is_paused: bool
    is_draining: bool


class LastCall(msgspec.Struct, frozen=True):
    """One line of an agent's flight recorder."""

    ago_ms: float
    call: str
    event: str
    outcome: str
    instance: str
    queued_ms: float
    duration_ms: float
    message: str


class Agent(msgspec.Struct, frozen=True, rename={"is_required": "required"}):
    """One agent: what is under way, what came of its calls so far."""

    name: str
    protocol: str
    is_required: bool
    breaker: str  # state; the rest of it: GET /api/breakers
    events: tuple[str, ...]  # that it is asked about
    timeout_ms: int
    in_flight: int
    max_concurrent_calls: int
    queued: int
    max_queue: int
    queued_total: int
    pinned: int  # exchanges
    outcomes: dict[str, int]  # Outcome.word -> calls that decided and ended so
    observed: dict[str, int]  # the same of calls whose verdict has no effect
    late_verdicts: int  # after their call had ended; dropped
    p50_ms: float | None  # upper bounds of histogram buckets; None = no call yet
    p99_ms: float | None
    instances: tuple[Instance, ...]
    last_calls: tuple[LastCall, ...]  # newest first


class Agents(msgspec.Struct, frozen=True):
    """All agents, in the order of the configuration."""

    agents: tuple[Agent, ...]


_encoder = msgspec.json.Encoder()
encode = _encoder.encode
decode_health = msgspec.json.Decoder(Health).decode
decode_agents = msgspec.json.Decoder(Agents).decode
decode_breakers = msgspec.json.Decoder(Breakers).decode
decode_breaker = msgspec.json.Decoder(Breaker).decode
decode_breaker_change = msgspec.json.Decoder(BreakerChange).decode
decode_problem = msgspec.json.Decoder(Problem).decode


def pretty(message: Any) -> bytes:
    """A message as JSON for `--json`: indented, one document."""
    return msgspec.json.format(encode(message), indent=2)
