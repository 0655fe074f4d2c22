"""Messages of the admin API: JSON over HTTP/1.1, between agentd and whoever operates it.

    GET  /health            Health        200, or 503 when something required is unhealthy
    GET  /health/live       Live          200 as long as agentd's loop turns
    GET  /health/ready      Health        200 ready, 503 not
    GET  /metrics           Prometheus text
    GET  /api/agents        Agents
    GET  /api/breakers      Breakers
    POST /api/breakers/{agent}/open|close|reset          -> Breaker
    POST, PATCH /api/breakers/{agent}/set  BreakerChange -> Breaker
    GET  /api/reload        Reloads       how the last reload of each daemon went
    POST /api/reload                      -> Reload       agentd's; 202 while it is still under way
    POST /api/reload/proxy                -> Reload       the proxy's from before it was told
    GET  /api/drains        Drains        the last ones
    POST /api/agents/{agent}/drain  DrainRequest -> Drains
    GET  /api/limits        Limits
    POST /api/limits/{name}/set            LimitChange   -> Limit      (the name's / as %2F)
    POST /api/limits/{name}/reset                        -> Limit
    GET  /api/overrides     Overrides
    any error                             Problem

A change with the header field `x-wardgate-deadline-ns` (CLOCK_MONOTONIC of this host) is refused with 408 once
that time has come: its client has given up, and says so.

Readers ignore fields that they do not know, so that a newer agentd can say more; an unknown field of a
*command* is an error, so that a mistyped threshold is not silently ignored. Who may do what is decided
in agentd/admin.py.

Kind: pure.
"""

from enum import StrEnum
from typing import Annotated, Any, Literal
from urllib.parse import quote

import msgspec
from msgspec import UNSET, UnsetType

from shared.defaults import DRAIN_DEADLINE_MS

HEALTH = "/health"
LIVE = "/health/live"
READY = "/health/ready"
METRICS = "/metrics"
AGENTS = "/api/agents"
BREAKERS = "/api/breakers"
LIMITS = "/api/limits"
OVERRIDES = "/api/overrides"
DEADLINE = "x-wardgate-deadline-ns"  # of a change; names in lower case
RELOAD = "/api/reload"
RELOAD_PROXY = "/api/reload/proxy"
DRAINS = "/api/drains"
BreakerAction = Literal["open", "close", "reset", "set"]


def breaker_path(agent: str, action: BreakerAction) -> str:
    """Where to POST a change of one agent's breaker."""
    return f"{BREAKERS}/{quote(agent, safe='')}/{action}"


def drain_path(agent: str) -> str:
    """Where to POST a DrainRequest."""
    return f"{AGENTS}/{quote(agent, safe='')}/drain"


LimitAction = Literal["set", "reset"]


def limit_path(name: str, action: LimitAction) -> str:
    """Where to POST a change of one limit."""
    return f"{LIMITS}/{quote(name, safe='')}/{action}"


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


class Limit(msgspec.Struct, frozen=True, rename={"is_overridden": "overridden", "is_kept": "kept"}):
    """One limit as it is in effect, over all workers.

    name      ROUTE/NAME, server:NAME, agent:NAME
    kind      tokens (a bucket per key), uses (what is under way), calls (to an agent)
    active    tokens: keys whose bucket is not full; uses: under way now
    """

    name: str
    kind: str
    key: str
    capacity: int
    refill_rate: float  # a second; 0 for uses
    configured_capacity: int
    configured_refill_rate: float
    is_overridden: bool
    is_kept: bool  # the override outlives a reload
    active: int
    admitted: int
    refused: int
    overflowed: int  # keys that found no row in a full table


class Limits(msgspec.Struct, frozen=True):
    """All limits."""

    limits: tuple[Limit, ...]


class LimitChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The numbers to change; what is absent stays. Ranges are those of the configuration."""

    capacity: int | UnsetType = UNSET
    refill_rate: float | UnsetType = UNSET
    keep: bool = False  # over reloads


class Override(msgspec.Struct, frozen=True, rename={"is_kept": "kept"}):
    """One setting that is in effect and differs from the configuration."""

    kind: str  # limit, breaker
    name: str
    setting: str
    configured: str
    now: str
    is_kept: bool  # it outlives a reload


class Overrides(msgspec.Struct, frozen=True):
    """All of them."""

    overrides: tuple[Override, ...]


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
    session: str = ""  # zmq-v2: another registration has another one
    outstanding_bytes: int = 0  # sent, and not shown to be read; zmq-v1 has one call at most
    outstanding_messages: int = 0
    sends_refused: int = 0  # times it was passed over for that
    health_message: str = ""  # zmq-v2: why, in the agent's words


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
    max_instances: int = 0
    max_outstanding_bytes: int = 0  # of one instance; 0 = zmq-v1, one call a connection
    max_outstanding_messages: int = 0
    sends_refused: dict[str, int] = {}  # reason -> times an instance was passed over: bytes, messages, socket
    garbage: int = 0  # unreadable messages, verdicts for calls never asked
    refused_ops: int = 0  # header operations that it may not do


class Agents(msgspec.Struct, frozen=True):
    """All agents, in the order of the configuration."""

    agents: tuple[Agent, ...]


class Reload(msgspec.Struct, frozen=True, rename={"is_under_way": "under_way"}):
    """How one daemon's reloads went since it started.

    result    of the last one that has ended: none, applied, refused, rolled_back
    message   why it was refused or rolled back; problems: all of it, from agentd about itself only
    """

    daemon: str  # agentd, proxy
    digest: str  # of the configuration that it runs
    is_under_way: bool = False
    begun: int = 0
    result: str = "none"
    at: str = ""  # RFC 3339: when that was
    applied_at: str = ""  # when one was last applied
    applied: int = 0
    refused: int = 0
    rolled_back: int = 0
    message: str = ""
    problems: tuple[str, ...] = ()


class Reloads(msgspec.Struct, frozen=True):
    """Both daemons; None = the proxy does not run."""

    agentd: Reload
    proxy: Reload | None


class DrainRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"is_forced": "force"}):
    """Which instance (absent: the only one) shall leave, within which time; `force`: even if nobody is left then."""

    instance: str = ""
    timeout_s: Annotated[float, msgspec.Meta(ge=0, le=86_400)] = DRAIN_DEADLINE_MS / 1000
    is_forced: bool = False


class Drain(msgspec.Struct, frozen=True):
    """One instance that leaves, or has left.

    state   draining
            drained   nothing of its was left when it got BYE
            cut       the time was over: `calls` and `pinned` were left, and failed
            lost      it ended by itself, perhaps with calls left
    """

    agent: str
    instance: str
    session: str
    state: str
    calls: int  # under way, or left at its end
    pinned: int  # requests whose later events go to it alone
    left_ms: int  # until it is cut
    message: str = ""


class Drains(msgspec.Struct, frozen=True):
    """Newest first."""

    drains: tuple[Drain, ...]


_encoder = msgspec.json.Encoder()
encode = _encoder.encode
decode_health = msgspec.json.Decoder(Health).decode
decode_agents = msgspec.json.Decoder(Agents).decode
decode_breakers = msgspec.json.Decoder(Breakers).decode
decode_breaker = msgspec.json.Decoder(Breaker).decode
decode_breaker_change = msgspec.json.Decoder(BreakerChange).decode
decode_reload = msgspec.json.Decoder(Reload).decode
decode_reloads = msgspec.json.Decoder(Reloads).decode
decode_drain_request = msgspec.json.Decoder(DrainRequest).decode
decode_drains = msgspec.json.Decoder(Drains).decode
decode_limits = msgspec.json.Decoder(Limits).decode
decode_limit = msgspec.json.Decoder(Limit).decode
decode_limit_change = msgspec.json.Decoder(LimitChange).decode
decode_overrides = msgspec.json.Decoder(Overrides).decode
decode_problem = msgspec.json.Decoder(Problem).decode


def pretty(message: Any) -> bytes:
    """A message as JSON for `--json`: indented, one document."""
    return msgspec.json.format(encode(message), indent=2)
