"""Decides how well the whole is, from what the two segments say: one rule for agentd and for the CLI.

agentd answers /health by it; `wardgate health` computes the same from the segments alone when agentd is
dead or hung. Semantics 15 of docs/architecture.md: ready = a live agentd, at least one ready worker,
every required agent, every upstream reachable. What is missing without being required, fewer workers
than configured, or daemons of different configurations make it degraded, and it stays ready.

Kind: pure (a mapped segment is read, nothing is opened).
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from shared.clock import MS, S
from shared.config.schema import Agent, Config
from shared.defaults import AGENTD_STALE_MS, UPSTREAM_KNOWN_S
from shared.metrics import U_LAST_FAILURE_NS, U_LAST_OK_NS
from shared.segment import (
    DRAINING,
    NEVER_NS,
    READY,
    AgentRow,
    BreakerState,
    ProxyView,
    Reload,
    ReloadResult,
    WorkerRow,
)
from shared.wire.admin import Component, Health, Status
from shared.wire.messages import timestamp

_NO_RELOAD = Reload()
Stamp = Callable[[int], str]  # CLOCK_MONOTONIC ns -> RFC 3339


class Proxy(NamedTuple):
    """What proxy.seg says; `upstreams`: name -> (last success, last failure) in ns, 0 = never."""

    is_alive: bool
    config_digest: str
    workers: Sequence[WorkerRow]
    upstreams: Mapping[str, tuple[int, int]]
    reload: Reload = _NO_RELOAD


def read_proxy(view: ProxyView, now: int) -> Proxy:
    """What a mapped proxy.seg says now."""
    totals = view.totals()
    upstreams = totals.upstreams if totals is not None else {}
    times = {name: (cells[U_LAST_OK_NS], cells[U_LAST_FAILURE_NS]) for name, cells in upstreams.items()}
    return Proxy(view.is_alive(now), view.config_digest, view.workers(), times, view.reload)


def stamper(now: int, wall_s: float) -> Stamp:
    """CLOCK_MONOTONIC ns as RFC 3339; 0 = never, an empty text."""

    def stamp(at_ns: int) -> str:
        return timestamp(wall_s - (now - at_ns) / S).decode() if at_ns else ""

    return stamp


def expected_workers(config: Config) -> int:
    """How many workers the configuration asks for; 0 = one per core."""
    return config.server.workers or os.cpu_count() or 1


def asked_agents(config: Config) -> tuple[Agent, ...]:
    """The agents that some route names; the others are never asked, so they are no condition."""
    named = {item.agent for route in config.routes for item in route.filters} | _inspectors(config)
    return tuple(agent for agent in config.agents if agent.name in named)


def _inspectors(config: Config) -> set[str]:
    """The agents that some route's guardrails name."""
    tables = (route.guardrails for route in config.routes if route.guardrails is not None)
    parts = (part for table in tables for part in (table.prompt, table.completion) if part is not None)
    return {agent for part in parts for agent in part.agents}


def used_upstreams(config: Config) -> tuple[str, ...]:
    """The upstreams that some route names, as its own or as a fallback."""
    named = {name for route in config.routes for name in (route.upstream, *route.fallback_upstreams)}
    return tuple(upstream.name for upstream in config.upstreams if upstream.name in named)


def is_required(agent: Agent, config: Config) -> bool:
    """Whether readiness needs it: as it says, else where an enforcing filter or a guardrail is fail-closed."""
    if agent.required is not None:
        return agent.required
    if agent.failure_mode == "closed" and agent.name in _inspectors(config):
        return True
    return any(
        item.agent == agent.name and item.mode == "enforce" and (item.failure_mode or agent.failure_mode) == "closed"
        for route in config.routes
        for item in route.filters
    )


def whole(components: Sequence[Component], version: str, not_asked: Iterable[str] = ()) -> Health:
    """The sum of the components: unhealthy where a required one is, degraded where any is not healthy."""
    is_ready = not any(c.is_required and c.status is Status.UNHEALTHY for c in components)
    if not is_ready:
        status = Status.UNHEALTHY
    elif all(c.status is Status.HEALTHY for c in components):
        status = Status.HEALTHY
    else:
        status = Status.DEGRADED
    return Health(status, is_ready, version, tuple(components), tuple(not_asked))


def agentd_component(beat_ns: int | None, pid: int, lag_ns: int, now: int, stamp: Stamp) -> Component:
    """From its heartbeat; None = there is no segment."""
    if beat_ns is None or beat_ns >= NEVER_NS:
        return Component("agentd", Status.UNHEALTHY, "is not running", True)
    age_ns = now - beat_ns
    seen = stamp(beat_ns)
    if not -AGENTD_STALE_MS * MS < age_ns < AGENTD_STALE_MS * MS:
        text = f"pid {pid} gave its last sign of life {age_ns / S:.1f} s ago"
        return Component("agentd", Status.UNHEALTHY, text, True, None, seen)
    if lag_ns >= AGENTD_STALE_MS * MS // 2:
        text = f"pid {pid}, its loop stood still for {lag_ns / S:.1f} s"
        return Component("agentd", Status.DEGRADED, text, True, lag_ns / MS, seen)
    return Component("agentd", Status.HEALTHY, f"pid {pid}", True, round(lag_ns / MS, 3), seen)


def workers_component(proxy: Proxy | None, expected: int, now: int, stamp: Stamp) -> Component:
    """How many of the configured workers are ready and turn."""
    if proxy is None:
        return Component("workers", Status.UNHEALTHY, "the proxy is not running", True)
    ready = [row for row in proxy.workers if row.state is READY and row.is_live(now)]
    seen = stamp(max((row.beat_ns for row in proxy.workers), default=0))
    text = f"{len(ready)} of {expected} ready"
    others = [_worker(row, now) for row in proxy.workers if row not in ready]
    if others:
        text += "; " + ", ".join(others)
    if not proxy.is_alive:
        text += "; the arbiter gives no sign of life"
    if not ready:
        status = Status.UNHEALTHY
    elif len(ready) < expected or not proxy.is_alive:
        status = Status.DEGRADED
    else:
        status = Status.HEALTHY
    return Component("workers", status, text, True, None, seen)


def _worker(row: WorkerRow, now: int) -> str:
    if row.is_live(now):
        return f"pid {row.pid} {row.state.word}"
    return f"pid {row.pid} gave its last sign of life {(now - row.beat_ns) / S:.1f} s ago"


def agent_component(
    agent: str, row: AgentRow | None, needed: bool, now: int, stamp: Stamp, latency_ms: float | None = None
) -> Component:
    """A live instance and a breaker that lets calls through; what an optional agent lacks only degrades."""
    name = f"agent:{agent}"
    bad = Status.UNHEALTHY if needed else Status.DEGRADED
    role = "required" if needed else "optional"
    if row is None:
        return Component(name, bad, f"{role}, agentd does not know it", needed)
    instances = f"{row.live_instances} instance" + ("" if row.live_instances == 1 else "s")
    if row.breaker is BreakerState.FORCED_OPEN:
        return Component(name, bad, f"{role}, breaker opened by an operator, {instances}", needed, latency_ms)
    if not row.live_instances:
        return Component(name, bad, f"{role}, no live instance", needed, latency_ms)
    if row.breaker is BreakerState.OPEN:
        text = f"{role}, breaker open, next probe in {max(0, row.retry_at_ns - now) / S:.1f} s, {instances}"
        return Component(name, bad, text, needed, latency_ms, stamp(now))
    if row.breaker is BreakerState.HALF_OPEN:
        return Component(
            name, Status.DEGRADED, f"{role}, breaker half open, {instances}", needed, latency_ms, stamp(now)
        )
    return Component(name, Status.HEALTHY, f"{role}, {instances}", needed, latency_ms, stamp(now))


def upstream_components(config: Config, proxy: Proxy | None, now: int, stamp: Stamp) -> list[Component]:
    """Of every upstream in use. A route is served as long as one of its own and its fallbacks is reachable."""
    seen = {name: upstream_component(name, proxy, now, stamp) for name in used_upstreams(config)}
    groups = [{route.upstream, *route.fallback_upstreams} for route in config.routes]
    needed = {
        name
        for group in groups
        for name in group
        if all(seen[other].status is Status.UNHEALTHY for other in group - {name} if other in seen)
    }
    return [msgspec.structs.replace(one, is_required=name in needed) for name, one in seen.items()]


def upstream_component(name: str, proxy: Proxy | None, now: int, stamp: Stamp) -> Component:
    """Reachable by the last real connect of any worker, or by the lowest live worker's own try."""
    label = f"upstream:{name}"
    ok_ns, failure_ns = proxy.upstreams.get(name, (0, 0)) if proxy is not None else (0, 0)
    seen = stamp(max(ok_ns, failure_ns)) if ok_ns or failure_ns else ""
    if not ok_ns and not failure_ns:
        return Component(label, Status.UNHEALTHY, "no worker has tried it yet", True)
    if ok_ns and now - ok_ns > UPSTREAM_KNOWN_S * S and failure_ns <= ok_ns:
        text = f"last reached {(now - ok_ns) / S:.0f} s ago, no worker has tried since"
        return Component(label, Status.UNHEALTHY, text, True, None, seen)
    if failure_ns <= ok_ns:
        return Component(label, Status.HEALTHY, f"reached {(now - ok_ns) / S:.1f} s ago", True, None, seen)
    if ok_ns and now - ok_ns <= UPSTREAM_KNOWN_S * S:
        text = f"reached {(now - ok_ns) / S:.1f} s ago, failed {(now - failure_ns) / S:.1f} s ago"
        return Component(label, Status.DEGRADED, text, True, None, seen)
    return Component(label, Status.UNHEALTHY, f"failed {(now - failure_ns) / S:.1f} s ago", True, None, seen)


def config_component(
    agentd_digest: str, proxy: Proxy | None, now: int, stamp: Stamp, reload: Reload = _NO_RELOAD
) -> Component:
    """Whether everybody runs the same configuration, and the one that was last asked for; `reload` is agentd's.

    Workers that drain are left out: what they run is going.
    """
    failed = [("agentd", reload), *([("the proxy", proxy.reload)] if proxy is not None else [])]
    texts = [_failed(who, last, now) for who, last in failed if last.has_failed]
    seen = stamp(now)
    if proxy is None:
        running = f"agentd runs {agentd_digest}" if agentd_digest else "no daemon is running"
        others = set()
    elif not agentd_digest:
        running = f"the proxy runs {proxy.config_digest}, agentd is not running"
        others = {proxy.config_digest}
    else:
        rows = (row for row in proxy.workers if row.state is not DRAINING)
        others = {proxy.config_digest, *(row.config_digest for row in rows if row.config_digest)} - {agentd_digest}
        running = agentd_digest
        if others:
            running = f"agentd runs {agentd_digest}, the proxy {' and '.join(sorted(others))}"
    status = Status.DEGRADED if others or texts else Status.HEALTHY
    return Component("config", status, "; ".join([running, *texts]), False, None, seen)


def _failed(who: str, reload: Reload, now: int) -> str:
    how = "refused" if reload.result is ReloadResult.REFUSED else "taken back"
    return f"the last reload of {who} was {how} {(now - reload.at_ns) / S:.0f} s ago: {reload.message}"
