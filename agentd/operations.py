"""What an operator sees of agentd and may change in it: the state behind the admin API.

Puts together what lanes, registry, audit and segments say, and passes changes to the lane they are
meant for: done, published and kept before the answer leaves. Who may do it was decided before
(agentd/admin.py); how a breaker moves is decided by it (shared/breaker.py).

Kind: IO (asks those who read /proc and the segments).
"""

import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any, Protocol

import msgspec

from agentd.dispatcher import Dispatcher
from agentd.exporter import CONTENT_TYPE, AgentdStats, AgentStats, Sources, render
from agentd.health import HealthSource
from agentd.lane import Lane
from agentd.publish import Publisher
from agentd.registry import Registry
from shared import readiness
from shared.clock import MS, S
from shared.config.schema import CircuitBreaker
from shared.errors import AdminRefused
from shared.events import SUPPORTED, EventKind, names_of
from shared.metrics import DURATION_BOUNDS_S
from shared.segment import ProxyView
from shared.wire import admin as wire
from shared.wire import audit
from shared.wire.messages import timestamp

_log = logging.getLogger("agentd.operations")


class Sink(Protocol):
    """Where audit records go."""

    def put(self, record: "bytes | memoryview") -> bool:
        """Take over one encoded record."""

    def numbers(self) -> tuple[int, int, int]:
        """(written, dropped, queued)."""


class Ingress(Protocol):
    """The workers' socket, as far as its counters go."""

    messages: int
    malformed: int


class Operations:
    """`agentd.admin.State`, and the numbers of /metrics."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        registry: Registry,
        publisher: Publisher,
        health: HealthSource,
        sink: Sink | None,
        ingress: Ingress,
        proxy: ProxyView,
        version: str,
        clock: Callable[[], int],
    ) -> None:
        self._dispatcher = dispatcher
        self._registry = registry
        self._publisher = publisher
        self._health = health
        self._sink = sink
        self._ingress = ingress
        self._version = version
        self._clock = clock
        self._since_ns = clock()
        self.refused_ops: Counter[str] = Counter()  # header operations that were not applied, by agent
        self._sources = Sources(proxy, self.stats)

    # --- seeing ------------------------------------------------------------------------------------

    def health(self) -> wire.Health:
        """Every component."""
        return self._health.report()

    def live(self) -> wire.Live:
        """A sign of life."""
        return wire.Live("live", os.getpid(), round((self._clock() - self._since_ns) / S, 3))

    def metrics(self, accept: str) -> tuple[str, bytes]:
        """Content type and exposition. `accept` is not looked at: every scraper takes the plain format."""
        return CONTENT_TYPE, render(self._sources)

    def agents(self) -> wire.Agents:
        """Every lane, those of the configuration first."""
        return wire.Agents(tuple(self._agent(lane) for lane in self._dispatcher.lanes.values()))

    def breakers(self) -> tuple[wire.Breaker, ...]:
        """Every lane's breaker."""
        return tuple(self._breaker(lane) for lane in self._dispatcher.lanes.values())

    def stats(self) -> AgentdStats:
        """For the exporter."""
        now = self._clock()
        written, dropped, queued = self._sink.numbers() if self._sink is not None else (0, 0, 0)
        agents = []
        for lane in self._dispatcher.lanes.values():
            seat = self._registry.seats.get(lane.name)
            agents.append(
                AgentStats.of_lane(
                    lane.snapshot(now),
                    garbage=seat.garbage if seat is not None else 0,
                    refused_ops=self.refused_ops[lane.name],
                    reported=seat.reported if seat is not None else None,
                )
            )
        return AgentdStats(
            agents=agents,
            config_digest=self._health.digest,
            version=self._version,
            workers=len(self._dispatcher.workers),
            ingress_messages=self._ingress.messages,
            ingress_malformed=self._ingress.malformed,
            audit_written=written,
            audit_dropped=dropped,
            audit_queued=queued,
            sessions_refused=self._registry.refused,
        )

    def _agent(self, lane: Lane) -> wire.Agent:
        row = lane.snapshot(self._clock())
        settings = lane.settings
        if settings.events is not None:
            events: tuple[str, ...] = tuple(settings.events)
        elif settings.protocol == "zmq-v2":
            seen = self._registry.hello_mask(lane.name) & ~EventKind.CONFIGURE.bit
            events = tuple(names_of(seen & sum(kind.bit for kind in SUPPORTED)))
        else:
            events = tuple(kind.wire_name for kind in SUPPORTED)
        config = self._health.config
        return wire.Agent(
            name=lane.name,
            protocol=settings.protocol,
            is_required=readiness.is_required(settings, config),
            breaker=row["breaker"]["state"],
            events=events,
            timeout_ms=settings.timeout_ms,
            in_flight=row["in_flight"],
            max_concurrent_calls=row["max_concurrent_calls"],
            queued=row["queued"],
            max_queue=row["max_queue"],
            queued_total=row["queued_total"],
            pinned=row["pinned"],
            outcomes=row["outcomes"],
            observed=row["observed"],
            late_verdicts=row["late_verdicts"],
            p50_ms=percentile_ms(row["duration_buckets"], 0.5),
            p99_ms=percentile_ms(row["duration_buckets"], 0.99),
            instances=tuple(msgspec.convert(instance, wire.Instance) for instance in row["instances"]),
            last_calls=tuple(_last_call(call) for call in row["last_calls"]),
        )

    def _breaker(self, lane: Lane) -> wire.Breaker:
        return msgspec.convert({"agent": lane.name, **lane.breaker.snapshot(self._clock())}, wire.Breaker)

    # --- changing ----------------------------------------------------------------------------------

    def change_breaker(self, agent: str, action: wire.BreakerAction, change: wire.BreakerChange) -> wire.Breaker:
        """Done, published to all workers and, if it has to survive, written down when this returns."""
        lane = self._dispatcher.lanes.get(agent)
        if lane is None:
            known = ", ".join(self._dispatcher.lanes) or "none"
            raise AdminRefused(404, f"there is no agent {agent!r}; there are: {known}"[:500])
        now = self._clock()
        if action == "open":
            lane.force_open(now)
        elif action == "set":
            lane.configure(msgspec.structs.replace(lane.settings, circuit_breaker=_changed(lane, change)), now)
        else:
            lane.close_breaker(now)
        self._publisher.agent_changed(agent)
        if action != "set":
            self._publisher.keep()
        return self._breaker(lane)

    def put_audit(self, record: audit.AuditRecord) -> None:
        """A decided event that an auditor wants to know of."""
        for entry in record.agents:
            if entry.refused_ops:
                self.refused_ops[entry.agent] += len(entry.refused_ops)
        if self._sink is not None:
            self._sink.put(audit.encode(record))

    def audit_change(self, who: str, what: str, target: str, text: str) -> None:
        """One record: `decision` admin, `phase` what was done, `decided_by` who did it."""
        entry = audit.AgentEntry(agent=target, outcome="changed", message=text)
        record = audit.AuditRecord(
            ts=timestamp(time.time()).decode(),
            source="agentd",
            correlation_id="",
            decision="admin",
            phase=what,
            decided_by=who,
            agents=[entry],
        )
        self.put_audit(record)


def latency_of(lanes: Mapping[str, Lane]) -> Callable[[str], float | None]:
    """What the last call to an agent took, in ms; None = it had none."""

    def latency_ms(agent: str) -> float | None:
        lane = lanes.get(agent)
        if lane is None:
            return None
        for _, _, _, _, instance, _, duration_ns, _ in reversed(lane.ledger.recorder):
            if instance:
                return round(duration_ns / MS, 3)
        return None

    return latency_ms


def percentile_ms(buckets: Sequence[int], share: float) -> float | None:
    """Upper bound of the bucket in which the share is reached; the last, open one counts as its lower bound."""
    total = sum(buckets)
    if not total:
        return None
    for index, count in enumerate(accumulate(buckets)):
        if count >= share * total:
            return DURATION_BOUNDS_S[min(index, len(DURATION_BOUNDS_S) - 1)] * 1000
    return None


def _changed(lane: Lane, change: wire.BreakerChange) -> CircuitBreaker:
    """The lane's numbers with the given ones replaced, in the ranges of the configuration."""
    given = {name: value for name, value in msgspec.structs.asdict(change).items() if value is not msgspec.UNSET}
    try:
        return msgspec.convert({**msgspec.structs.asdict(lane.breaker.settings), **given}, CircuitBreaker)
    except msgspec.ValidationError as error:
        raise AdminRefused(400, str(error)) from None


def _last_call(row: dict[str, Any]) -> wire.LastCall:
    return msgspec.convert(row, wire.LastCall)
