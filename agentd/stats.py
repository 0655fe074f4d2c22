"""What agentd knows of itself at one moment, as /metrics shows it.

Filled by agentd/operations.py, written out by agentd/exporter.py. Nothing is counted here.

Kind: table.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from agentd.reported import ReportedTotals
from shared.segment import Reload
from shared.wire.tokens import TokenRow

if TYPE_CHECKING:
    from agentd.lane import Lane


class Bound(msgspec.Struct, frozen=True):
    """Something bounded: how much there is, how much there may be, how often it was refused for that."""

    now: int = 0
    limit: int = 0
    refused: int = 0


class Outstanding(msgspec.Struct, frozen=True):
    """What the instances of one agent have not read yet."""

    total: int = 0
    fullest: int = 0  # of the instance that has most
    limit: int = 0  # of one instance


class AgentStats(msgspec.Struct, frozen=True):
    """One lane. Counts since agentd's start; `calls` and `observed` by Outcome.word."""

    name: str
    calls: Mapping[str, int] = {}
    observed: Mapping[str, int] = {}
    in_flight: int = 0
    in_flight_limit: int = 0
    queued: int = 0
    queue_limit: int = 0
    queued_total: int = 0
    queue_s_total: float = 0.0
    held: int = 0
    pinned: int = 0
    instances: int = 0
    instances_limit: int = 0
    outstanding_bytes: Outstanding = Outstanding()
    outstanding_messages: Outstanding = Outstanding()
    sends_refused: Mapping[str, int] = {}  # by reason
    breaker: str = "closed"  # BreakerState.word
    breaker_openings: int = 0
    late_verdicts: int = 0
    completions: Mapping[str, int] = {}  # of request_complete: sent, dropped
    body_bytes: Mapping[str, int] = {}  # sent, received
    garbage: int = 0
    refused_ops: int = 0
    duration_buckets: Sequence[int] = ()  # by shared.metrics.bucket_of
    duration_s_total: float = 0.0
    reported: ReportedTotals | None = None

    @classmethod
    def of_lane(cls, lane: Mapping[str, Any], **beside: Any) -> "AgentStats":
        """From `snapshot`, and what is counted beside the lane."""
        return cls(
            name=lane["name"],
            calls=lane["outcomes"],
            observed=lane["observed"],
            in_flight=lane["in_flight"],
            in_flight_limit=lane["max_concurrent_calls"],
            queued=lane["queued"],
            queue_limit=lane["max_queue"],
            queued_total=lane["queued_total"],
            queue_s_total=lane["queue_ms_total"] / 1000,
            held=lane["held"],
            pinned=lane["pinned"],
            instances=len(lane["instances"]),
            breaker=lane["breaker"]["state"],
            breaker_openings=lane["breaker"]["opened_total"],
            late_verdicts=lane["late_verdicts"],
            completions=lane["completions"],
            body_bytes=lane["body_bytes"],
            duration_buckets=lane["duration_buckets"],
            duration_s_total=lane["duration_ms_total"] / 1000,
            **beside,
        )


class AgentdStats(msgspec.Struct, frozen=True):
    """Everything that agentd knows at one moment, the agents one after the other.

    `agents` is walked through once, an item a step; None = a step without a result.
    """

    agents: Iterable[AgentStats | None] = ()
    config_digest: str = ""
    reload: Reload = Reload()
    version: str = ""
    workers: int = 0
    events_pending: int = 0
    exchanges_open: int = 0
    ingress_messages: int = 0
    ingress_malformed: int = 0
    ingress_unknown: int = 0
    replies_dropped: int = 0
    hop_unsent: Bound = Bound()
    client_buffer_bytes: int = 0
    local: Mapping[str, Bound] = {}  # connections, by socket: workers, agents
    memory_cuts: int = 0
    gate: tuple[int, int] = (0, 0)  # processes shut out, handshakes refused for that
    audit_written: int = 0
    audit_queued: Bound = Bound()
    audit_bytes: Bound = Bound()
    sessions_refused: Mapping[str, int] = {}  # by code of REFUSE
    tokens: Sequence[TokenRow] = ()


def snapshot(lane: "Lane", now: int) -> dict[str, Any]:
    """Everything about a lane, times in ms: for the admin API, and for `AgentStats.of_lane`."""
    return {
        "name": lane.name,
        "is_configured": lane.is_configured,
        "breaker": lane.breaker.snapshot(now),
        "in_flight": lane.in_flight,
        "queued": lane.queued,
        "held": len(lane.held),
        "pinned": len(lane.pool.pins),
        "max_concurrent_calls": lane.settings.max_concurrent_calls,
        "max_queue": lane.settings.max_queue,
        "instances": lane.pool.snapshot(),
        **lane.ledger.snapshot(now),
    }
