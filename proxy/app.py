"""What one worker holds besides its connections: routes, pools, the hop, the sweep, accounts.

Built after the fork from the config and plans that the worker inherited. Everything that is the same
for many requests is computed here, once per config, and looked up per request.

Kind: IO.
"""

import asyncio
import os
import random
import secrets
from collections import Counter
from collections.abc import Sequence
from email.utils import formatdate
from struct import Struct
from time import time
from typing import TYPE_CHECKING, Any

from proxy.dispatch import Dispatch
from proxy.forwarded import Trust
from proxy.guardrails.rails import RouteRails
from proxy.limits import Doors, RouteLimits, limit_specs
from proxy.outbox import Outbox
from proxy.plan_view import PlanView
from proxy.routing import RoutingTable
from proxy.upstream.pool import UpstreamPool
from shared import log
from shared.clock import MS, S, now_ns
from shared.config.load import Loaded
from shared.config.schema import Server
from shared.config.schema_routes import Route
from shared.defaults import (
    CONNECTION_SWEEP_MS,
    DRAIN_IDLE_S,
    LINGER_MS,
    PROBE_AFTER_S,
    REACH_AGENTD_S,
    REACH_LOOK_MS,
    SWEEP_LATE_MS,
    SWEEP_MS,
    TRACES_AHEAD,
)
from shared.events import EventKind
from shared.metrics import (
    R_IN_FLIGHT,
    REFUSED_AT,
    REFUSED_OTHER,
    U_LAST_FAILURE_NS,
    U_LAST_OK_NS,
    W_BYTES_IN,
    W_BYTES_OUT,
    W_CLIENT_BUFFERED,
    W_CLIENTS_FULL,
    W_IN_FLIGHT,
    W_LOG_DROPPED,
    W_PIPELINED,
    W_REFUSED,
    W_REQUESTS,
    W_UPSTREAM_OPEN_LIMIT,
    W_UPSTREAM_WAITING_LIMIT,
)
from shared.plan import Plan
from shared.runtime import Runtime
from shared.segment import AgentdView, WorkerSlot
from shared.turn import Turn
from shared.wire.audit import AuditRecord, encode
from shared.wire.envelope import Register
from shared.wire.messages import route_metadata, timestamp
from shared.wire.tokens import TokenSums
from shared.wire.tokens import encode as encode_tokens

if TYPE_CHECKING:
    from proxy.protocol import ProxyProtocol


class RouteRuntime:
    """One route with what its requests need."""

    __slots__ = (
        "cells",
        "complete_view",
        "decodes",
        "decodes_requests",
        "decodes_responses",
        "fallback_host",
        "fallbacks",
        "frame_views",
        "judges_responses",
        "limits",
        "metadata_part",
        "name",
        "pool",
        "rails",
        "request_body_views",
        "request_is_whole",
        "request_view",
        "response_body_views",
        "response_is_whole",
        "response_view",
        "sees_requests",
        "sees_responses",
        "tally",
        "views",
        "websocket",
    )

    def __init__(
        self,
        name: str,
        pool: UpstreamPool,
        fallback_host: str,
        cells: "memoryview[int]",
        views: Sequence[PlanView],
        route: Route,
        limits: RouteLimits | None = None,
        rails: RouteRails | None = None,
        fallbacks: tuple[tuple[UpstreamPool, bytes], ...] = (),
    ) -> None:
        """`views`: the route's plans, in their order."""
        self.name = name
        self.limits = limits
        self.pool = pool
        self.fallback_host = fallback_host.encode()
        self.metadata_part = route_metadata(name, pool.name)
        self.cells = cells
        # Counted here per request (a list costs a third of a segment's cell), added to `cells` by the sweep.
        self.tally = [0] * len(cells)
        self.views = views
        self.request_view = self._only(EventKind.REQUEST_HEADERS)
        self.response_view = self._only(EventKind.RESPONSE_HEADERS)
        self.complete_view = self._only(EventKind.REQUEST_COMPLETE)
        # Stages, in order; bodies are looked at only where there are any.
        self.request_body_views = self._of(EventKind.REQUEST_BODY_CHUNK)
        self.response_body_views = self._of(EventKind.RESPONSE_BODY_CHUNK)
        self.request_is_whole = route.request_body == "buffer"
        self.response_is_whole = route.response_body == "buffer"
        self.decodes = route.decode_bodies
        self.rails = rails
        self.fallbacks = fallbacks
        self.decodes_requests = self.decodes or (rails is not None and bool(rails.prompt))
        self.judges_responses = rails is not None and bool(rails.completion)  # a guardrail does
        self.sees_requests = bool(self.request_body_views) or (rails is not None and bool(rails.prompt))
        self.sees_responses = bool(self.response_body_views) or rails is not None
        # The meter reads decoded bytes, too, but agents that asked for coded ones get them.
        self.decodes_responses = self.decodes or self.judges_responses or not self.response_body_views
        self.frame_views = self._of(EventKind.WEBSOCKET_FRAME)
        self.websocket = route.websocket

    def _of(self, kind: EventKind) -> tuple[PlanView, ...]:
        return tuple(view for view in self.views if view.kind is kind)

    def _only(self, kind: EventKind) -> PlanView | None:
        return next(iter(self._of(kind)), None)

    def add_up(self) -> None:
        """Move the counts into the segment."""
        tally, cells = self.tally, self.cells
        for at in [at for at, count in enumerate(tally) if count]:
            cells[at] += tally[at]
            tally[at] = 0


class WorkerContext:
    """One per worker process; `context()` finds it."""

    def __init__(self, loaded: Loaded, plans: Sequence[Plan], slot: WorkerSlot, loop: Any) -> None:
        config = loaded.config
        self._loop = loop
        self._slot = slot
        self.cells = slot.cells
        self.limits: Server = config.server
        self.header_timeout_ns = int(config.server.header_timeout_s * S)
        self.body_timeout_ns = int(config.server.body_timeout_s * S)
        self.keepalive_ns = int(config.server.keepalive_timeout_s * S)
        self.drain_idle_ns = int(DRAIN_IDLE_S * S)
        self.linger_ns = LINGER_MS * MS
        self.trust = Trust(config.server.trusted_proxies)
        self.table = RoutingTable(config.routes)
        self._limits = slot.limits() if limit_specs(config) else None
        has_doors = config.server.max_connections or config.server.max_connections_per_client
        self.doors = Doors(config.server, self._limits) if self._limits is not None and has_doors else None
        self.connections: set[ProxyProtocol] = set()
        self.now = now_ns()
        self.date = b""
        self._tell_date()
        # Trace ids want to be unlike each other, not unguessable; seeded from the system.
        self._random_bytes = random.Random(secrets.randbits(256)).randbytes  # noqa: S311
        self._traces: list[bytes] = []
        self._prefix = f"{secrets.token_hex(5)}-".encode()
        self._exchange_id = 0
        self._log = log.RateLimited("proxy.request")
        self._is_audited = bool(config.audit.sinks)
        self._sweeps = 0
        self._is_late = False
        # Counted here per request, added to the segment's cells by the sweep.
        self.bytes_in = self.bytes_out = self.requests = 0
        self._timer: Any = None
        runtime = Runtime(config.runtime.dir)
        self._segment = AgentdView(runtime.agentd_segment)
        self._segment.attach()
        turn = Turn(loop)
        self.outbox = Outbox(loop, turn)
        self._pools = self._make_pools(loaded)
        register = Register(
            pid=os.getpid(),
            slot=slot.index,
            config_digest=loaded.digest,
            correlation_prefix=self._prefix.decode(),
            plans=tuple(plans),
        )
        self.dispatch = Dispatch(
            loop,
            runtime.workers_socket,
            self._segment,
            register,
            self.cells,
            turn=turn,
            max_unsent=config.runtime.hop_unsent_bytes,
            max_pending=config.runtime.max_pending_events,
            max_audit=config.audit.worker_queue_records,
        )
        self.tokens = TokenSums()
        self.routes = self._make_routes(loaded, plans)

    @classmethod
    def build(cls, loaded: Loaded, plans: Sequence[Plan], slot: WorkerSlot, loop: Any) -> "WorkerContext":
        """Make the process's context; call after the fork, from the worker's running loop."""
        global _context
        _context = cls(loaded, plans, slot, loop)
        return _context

    def _make_pools(self, loaded: Loaded) -> dict[str, UpstreamPool]:
        rows = {name: row for row, name in enumerate(self._slot.upstreams())}
        pools = {}
        for upstream in loaded.config.upstreams:
            reachable = self._slot.upstream_cells(rows[upstream.name])

            def note(ok: bool, now: int, cells: "memoryview[int]" = reachable) -> None:
                cells[U_LAST_OK_NS if ok else U_LAST_FAILURE_NS] = now

            pools[upstream.name] = UpstreamPool(
                upstream,
                self._loop,
                self.cells,
                on_reachable=note,
                outbox=self.outbox,
                buffer_bytes=self.limits.connection_buffer_bytes,
            )
        self.cells[W_UPSTREAM_OPEN_LIMIT] = sum(upstream.max_connections for upstream in loaded.config.upstreams)
        self.cells[W_UPSTREAM_WAITING_LIMIT] = sum(upstream.max_waiting for upstream in loaded.config.upstreams)
        return pools

    def _make_routes(self, loaded: Loaded, plans: Sequence[Plan]) -> list[RouteRuntime]:
        views: dict[str, list[PlanView]] = {}
        for plan in plans:
            views.setdefault(plan.route, []).append(self.dispatch.views[plan.number])
        rows = {name: row for row, name in enumerate(self._slot.routes())}
        hosts = {upstream.name: host_of(upstream.targets[0].address) for upstream in loaded.config.upstreams}
        return [
            RouteRuntime(
                route.name,
                self._pools[route.upstream],
                hosts[route.upstream],
                self._slot.route_cells(rows[route.name]),
                views.get(route.name, ()),
                route,
                self._limits_of(route),
                self._rails_of(route, views.get(route.name, ())),
                tuple((self._pools[name], hosts[name].encode()) for name in route.fallback_upstreams),
            )
            for route in loaded.config.routes
        ]

    def _rails_of(self, route: Route, views: Sequence[PlanView]) -> RouteRails | None:
        if route.guardrails is None:
            return None
        return RouteRails(route.name, route.guardrails, views, self.tokens)

    def _limits_of(self, route: Route) -> RouteLimits | None:
        if self._limits is None or not (route.rate_limits or route.max_concurrent or route.max_concurrent_per_client):
            return None
        return RouteLimits(route, self._limits)

    # --- life -----------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin the sweep."""
        self._sweep()

    async def reach_agentd(self) -> None:
        """Before the first request: a worker that is not connected yet would refuse what a live agentd allows."""
        until = now_ns() + int(REACH_AGENTD_S * S)
        while not self.dispatch.is_up and self._segment.is_alive(now_ns()) and now_ns() < until:  # noqa: ASYNC110
            await asyncio.sleep(REACH_LOOK_MS / 1000)

    def drain(self) -> None:
        """The worker accepts no more; what is open goes on (each connection is told by `shutdown`)."""

    async def stop(self) -> None:
        """After the last connection: close pools and the hop."""
        if self._timer is not None:
            self._timer.cancel()
        self._add_up()
        self._add_up_routes()
        self._tell_tokens()
        for pool in self._pools.values():
            pool.close()
        self.dispatch.close()
        for pool in self._pools.values():
            await pool.wait_closed()
        self._segment.close()

    # --- the sweep --------------------------------------------------------------------------------------

    def _sweep(self) -> None:
        """Every SWEEP_MS: everything that has a deadline, in one go."""
        self._timer = self._loop.call_later(SWEEP_MS / 1000, self._sweep)
        before, self.now = self.now, now_ns()
        now = self.now
        # The loop stood still: what has come meanwhile is read before anybody's time is found to be over. Once only,
        # or a loop that is always late would never look.
        self._is_late = not self._is_late and now - before > SWEEP_LATE_MS * MS
        if self._is_late:
            return
        self.dispatch.sweep(now)
        for pool in self._pools.values():
            pool.sweep(now)
        self._add_up()
        sweeps = self._sweeps = self._sweeps + 1
        if not sweeps % (CONNECTION_SWEEP_MS // SWEEP_MS):
            overdue = [c for c in self.connections if 0 < c.waiting_until <= now]
            for connection in overdue:
                connection.timeout()
            for connection in [c for c in self.connections if 0 < c.stalled_until <= now]:
                connection.stalled()
            self._add_up_routes()
        if not sweeps % (1000 // SWEEP_MS):
            self._each_second(now)

    def _add_up(self) -> None:
        cells = self.cells
        cells[W_BYTES_IN] += self.bytes_in
        cells[W_BYTES_OUT] += self.bytes_out
        cells[W_REQUESTS] += self.requests
        self.bytes_in = self.bytes_out = self.requests = 0

    def _add_up_routes(self) -> None:
        # Less often than the rest: there may be a thousand routes, and most of them idle.
        for route in self.routes:
            if any(route.tally):
                route.add_up()

    def _each_second(self, now: int) -> None:
        self._tell_date()
        self.dispatch.check_segment()
        self._tell_tokens()
        self._log.tick(now)
        cells = self.cells
        cells[W_LOG_DROPPED] = self._log.suppressed + log.dropped()
        in_flight = Counter(c.driver.route for c in self.connections if c.driver is not None)
        cells[W_IN_FLIGHT] = in_flight.total()
        for route in self.routes:
            route.cells[R_IN_FLIGHT] = in_flight[route]
        full = [c for c in self.connections if c.is_full]
        cells[W_CLIENTS_FULL] = len(full)
        cells[W_CLIENT_BUFFERED] = sum(c.transport.get_write_buffer_size() for c in full)
        cells[W_PIPELINED] = sum(c.pipelined for c in self.connections)
        if self._slot.is_lowest_live(now):
            self._probe(now)

    def _probe(self, now: int) -> None:
        """Readiness without traffic: nobody heard of an upstream for a while, so one worker knocks."""
        rows = {name: row for row, name in enumerate(self._slot.upstreams())}
        for name, pool in self._pools.items():
            cells = self._slot.upstream_cells(rows[name])
            if now - max(cells[U_LAST_OK_NS], cells[U_LAST_FAILURE_NS]) >= PROBE_AFTER_S * S:
                pool.probe()

    def _tell_tokens(self) -> None:
        if self.dispatch.is_up:
            rows = self.tokens.take()
            if rows:
                self.dispatch.tokens(encode_tokens(rows))

    def _tell_date(self) -> None:
        self.date = formatdate(usegmt=True).encode()

    # --- ids and accounts -------------------------------------------------------------------------------

    def next_exchange(self) -> tuple[int, bytes]:
        """(exchange id, correlation id): ours, never the client's (semantics 2)."""
        self._exchange_id = number = self._exchange_id + 1
        return number, b"%b%x" % (self._prefix, number)

    def new_traceparent(self) -> bytes:
        """For a request that brought none. Made many at a time: 0.2 us each instead of 1.5 (2026-11)."""
        traces = self._traces
        if not traces:
            digits = self._random_bytes(24 * TRACES_AHEAD).hex().encode()
            traces += map(b"00-%b-%b-00".__mod__, _IDS.iter_unpack(digits))
        return traces.pop()

    def timestamp(self) -> str:
        """Now, RFC 3339 with milliseconds."""
        return timestamp(time()).decode()

    def count_refused(self, status: int) -> None:
        """A request refused by the rules of HTTP, by limits or for want of a route."""
        self.cells[W_REFUSED + REFUSED_AT.get(status, REFUSED_OTHER)] += 1

    def account(self, record: AuditRecord, level: int, message: str) -> None:
        """A refusal or failure: into the audit, if anybody keeps one, and one log line unless there is a flood."""
        if self._is_audited:
            self.dispatch.audit(encode(record))
        self._log.line(
            level,
            message,
            correlation_id=record.correlation_id,
            decision=record.decision,
            status=record.status,
            reason=record.reason,
            decided_by=record.decided_by,
            route=record.route,
            client_ip=record.client_ip,
            method=record.method,
            uri=record.uri,
            **({"request_id": record.request_id} if record.request_id else {}),
        )


def host_of(address: str) -> str:
    """What Host says for an upstream's address; a unix socket has no name."""
    return "localhost" if address.startswith("unix:") else address


_IDS = Struct("32s16s")  # of a trace and of a span, in digits
_context: WorkerContext | None = None


def context() -> WorkerContext:
    """This worker's context."""
    assert _context is not None, "WorkerContext.build has not run in this process"
    return _context
