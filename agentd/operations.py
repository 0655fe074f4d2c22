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
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, Protocol

import msgspec

from agentd.dispatcher import Dispatcher
from agentd.drains import Drains
from agentd.exporter import CONTENT_TYPE, Sources, pieces
from agentd.health import HealthSource
from agentd.lane import Lane
from agentd.limits import LimitDesk
from agentd.publish import Publisher
from agentd.registry import Registry, Seat
from agentd.reload import Reloading
from agentd.stats import AgentdStats, AgentStats, Bound, Outstanding, snapshot
from agentd.tokens import TokenTotals
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

    def room(self) -> tuple[int, int, int]:
        """(bytes queued, how many records and how many bytes may be)."""


class Ingress(Protocol):
    """The workers' socket, as far as its counters go."""

    messages: int
    malformed: int
    unknown: int
    replies_dropped: int
    tokens: TokenTotals

    @property
    def unsent_bytes(self) -> int:
        """Of decisions that wait for the worker that reads least."""

    def local_connections(self) -> tuple[int, int, int]:
        """(open, how many there may be, refused)."""


class Agents(Protocol):
    """The agents' socket, as far as its counters go."""

    def local_connections(self) -> tuple[int, int, int]:
        """(open, how many there may be, refused)."""

    @property
    def memory_cuts(self) -> int:
        """Connections cut because of a message without end."""

    def gate_counts(self) -> tuple[int, int]:
        """(how often a process was shut out, handshakes refused for that)."""


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
        agents: Agents,
    ) -> None:
        self._sockets = agents
        self._hop_limit = health.config.runtime.hop_unsent_bytes  # as the socket was made
        self._dispatcher = dispatcher
        self._registry = registry
        self._publisher = publisher
        self._health = health
        self._sink = sink
        self._ingress = ingress
        self._version = version
        self._clock = clock
        self._since_ns = clock()
        self._limits = LimitDesk(dispatcher.lanes, proxy, lambda: health.config, clock)
        self.refused_ops: Counter[str] = Counter()  # header operations that were not applied, by agent
        self._reloading: Reloading | None = None
        self._drains: Drains | None = None
        self._sources = Sources(proxy, self.stats)

    # --- seeing ------------------------------------------------------------------------------------

    def health(self) -> wire.Health:
        """Every component."""
        return self._health.report()

    def live(self) -> wire.Live:
        """A sign of life."""
        return wire.Live("live", os.getpid(), round((self._clock() - self._since_ns) / S, 3))

    def metrics(self, accept: str) -> tuple[str, Iterator[bytes]]:
        """Content type and exposition. `accept` is not looked at: every scraper takes the plain format."""
        return CONTENT_TYPE, pieces(self._sources)

    def agents(self) -> wire.Agents:
        """Every lane, those of the configuration first."""
        return wire.Agents(tuple(self.each_agent()))

    def each_agent(self) -> Iterator[wire.Agent]:
        """The same, one a step."""
        return map(self._agent, list(self._dispatcher.lanes.values()))

    def breakers(self) -> tuple[wire.Breaker, ...]:
        """Every lane's breaker."""
        return tuple(self._breaker(lane) for lane in self._dispatcher.lanes.values())

    def stats(self) -> AgentdStats:
        """For the exporter."""
        written, dropped, queued = self._sink.numbers() if self._sink is not None else (0, 0, 0)
        queued_bytes, max_records, max_bytes = self._sink.room() if self._sink is not None else (0, 0, 0)
        workers = self._dispatcher.workers.values()
        return AgentdStats(
            agents=self._one_by_one(),
            config_digest=self._health.digest,
            reload=self._health.reload(),
            version=self._version,
            workers=len(workers),
            events_pending=self._dispatcher.awaited,
            exchanges_open=sum(len(worker.exchanges) for worker in workers),
            ingress_messages=self._ingress.messages,
            ingress_malformed=self._ingress.malformed,
            ingress_unknown=self._ingress.unknown,
            replies_dropped=self._ingress.replies_dropped,
            hop_unsent=Bound(self._ingress.unsent_bytes, self._hop_limit),
            client_buffer_bytes=self._health.config.server.connection_buffer_bytes,
            local={
                "workers": Bound(*self._ingress.local_connections()),
                "agents": Bound(*self._sockets.local_connections()),
            },
            memory_cuts=self._sockets.memory_cuts,
            gate=self._sockets.gate_counts(),
            audit_written=written,
            audit_queued=Bound(queued, max_records, dropped),
            audit_bytes=Bound(queued_bytes, max_bytes),
            sessions_refused=self._registry.refused,
            tokens=self._ingress.tokens.rows(),
        )

    def _one_by_one(self) -> Iterator[AgentStats | None]:
        """An agent a step; those of which many instances report metrics take several."""
        for lane in list(self._dispatcher.lanes.values()):
            seat = self._registry.seats.get(lane.name)
            settings = lane.settings
            if seat is None:
                yield AgentStats.of_lane(
                    snapshot(lane, self._clock()),
                    refused_ops=self.refused_ops[lane.name],
                    instances_limit=settings.connections if settings.protocol == "zmq-v1" else 0,
                )
                continue
            reported = yield from seat.reported.adding_up()
            sessions = seat.sessions.values()
            yield AgentStats.of_lane(
                snapshot(lane, self._clock()),
                garbage=seat.garbage,
                refused_ops=self.refused_ops[lane.name],
                instances_limit=settings.max_instances,
                outstanding_bytes=_outstanding([s.unread_bytes for s in sessions], settings.max_outstanding_bytes),
                outstanding_messages=_outstanding([s.unread_messages for s in sessions], seat.hwm),
                sends_refused=dict(seat.sends_refused),
                reported=reported,
            )

    def _agent(self, lane: Lane) -> wire.Agent:
        row = snapshot(lane, self._clock())
        settings = lane.settings
        if settings.events is not None:
            events: tuple[str, ...] = tuple(settings.events)
        elif settings.protocol == "zmq-v2":
            seen = self._registry.hello_mask(lane.name) & ~EventKind.CONFIGURE.bit
            events = tuple(names_of(seen & sum(kind.bit for kind in SUPPORTED)))
        else:
            events = tuple(kind.wire_name for kind in SUPPORTED)
        config = self._health.config
        seat = self._registry.seats.get(lane.name)
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
            instances=tuple(_instance(instance, seat) for instance in row["instances"]),
            last_calls=tuple(_last_call(call) for call in row["last_calls"]),
            max_instances=settings.max_instances if seat is not None else settings.connections,
            max_outstanding_bytes=settings.max_outstanding_bytes if seat is not None else 0,
            max_outstanding_messages=seat.hwm if seat is not None else 0,
            sends_refused=dict(seat.sends_refused) if seat is not None else {},
            garbage=seat.garbage if seat is not None else 0,
            refused_ops=self.refused_ops[lane.name],
        )

    def _breaker(self, lane: Lane) -> wire.Breaker:
        return msgspec.convert({"agent": lane.name, **lane.breaker.snapshot(self._clock())}, wire.Breaker)

    def attach(self, reloading: Reloading, drains: Drains) -> None:
        """What is made after us."""
        self._reloading = reloading
        self._drains = drains

    def reloads(self) -> wire.Reloads:
        """How both daemons' went."""
        assert self._reloading is not None
        return self._reloading.all()

    def drains(self) -> wire.Drains:
        """The last ones."""
        assert self._drains is not None
        return self._drains.rows()

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
            lane.breaker.close(now)
        self._publisher.agent_changed(agent)
        if action != "set":
            self._publisher.keep()
        return self._breaker(lane)

    def limits(self) -> wire.Limits:
        """Every limit."""
        return self._limits.limits()

    def overrides(self) -> wire.Overrides:
        """What differs from the configuration."""
        return self._limits.overrides()

    def change_limit(self, name: str, action: wire.LimitAction, change: wire.LimitChange) -> wire.Limit:
        """In effect in all workers when this returns."""
        return self._limits.change(name, action, change)

    def reload(self, who: str) -> Awaitable[wire.Reload]:
        """Ends with it, or when that takes long."""
        assert self._reloading is not None
        return self._reloading.answer(self._reloading.ask(who))

    def reload_proxy(self) -> wire.Reload:
        """Told to; how it was before."""
        assert self._reloading is not None
        return self._reloading.tell_proxy()

    def drain(self, agent: str, request: wire.DrainRequest) -> wire.Drains:
        """Begun when this returns."""
        assert self._drains is not None
        return self._drains.begin(agent, request)

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


def _instance(row: Mapping[str, Any], seat: Seat | None) -> wire.Instance:
    session = seat.sessions.get(row["name"]) if seat is not None else None
    if session is not None:
        row = {
            **row,
            "session": session.session_id,
            "outstanding_bytes": session.unread_bytes,
            "outstanding_messages": session.unread_messages,
            "sends_refused": session.sends_refused,
            "health_message": session.health_message,
        }
    return msgspec.convert(row, wire.Instance)


def _outstanding(of_instances: Sequence[int], limit: int) -> Outstanding:
    return Outstanding(sum(of_instances), max(of_instances, default=0), limit)


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
