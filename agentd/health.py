"""Gathers what health needs: the conditions of shared/readiness.py, and agentd's own memory and loop.

What a condition means stands there; here is only what agentd alone can see: its loop's lag, the audit
sink, the memory of the host or of its control group. `own` is the short form that goes into agentd.seg
for whoever finds agentd hung.

Kind: IO (reads segments, /proc and /sys).
"""

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, Protocol

from shared import readiness
from shared.clock import S, now_ns
from shared.config.schema import Config
from shared.defaults import LAG_SHOWN_S, MEMORY_LOW_SHARE
from shared.segment import AgentdHealth, AgentRow, HealthStatus, ProxyView, Reload
from shared.wire.admin import Component, Health, Status

_PAGE = os.sysconf("SC_PAGE_SIZE")


class Sink(Protocol):
    """An audit sink, as far as health looks at it."""

    def status(self, now: int) -> tuple[Literal["healthy", "degraded"], str]:
        """And why."""


class LoopLag:
    """How late the loop's own timer rang at worst, over the last LAG_SHOWN_S to twice that."""

    __slots__ = ("_since", "_worst", "_worst_before")

    def __init__(self, now: int) -> None:
        self._since = now
        self._worst = 0
        self._worst_before = 0

    def add(self, lag_ns: int, now: int) -> None:
        """One ring of the timer."""
        if now - self._since > LAG_SHOWN_S * S:
            self._since, self._worst_before, self._worst = now, self._worst, 0
        self._worst = max(self._worst, lag_ns)

    @property
    def worst_ns(self) -> int:
        """The worst one."""
        return max(self._worst, self._worst_before)


class HealthSource:
    """What /health answers. `rows` are the published agents, `latency_ms(agent)` of its last call."""

    def __init__(
        self,
        config: Config,
        digest: str,
        version: str,
        rows: Callable[[], Mapping[str, AgentRow]],
        proxy: ProxyView,
        sink: Sink | None,
        lag: LoopLag,
        latency_ms: Callable[[str], float | None],
        problem: Callable[[], str],
        reload: Callable[[], Reload] = Reload,
        *,
        clock: Callable[[], int] = now_ns,
        wall_s: Callable[[], float] = time.time,
    ) -> None:
        self.config = config
        self.digest = digest
        self.is_stopping = False
        self._version = version
        self._rows = rows
        self._proxy = proxy
        self._sink = sink
        self._lag = lag
        self._latency_ms = latency_ms
        self._problem = problem
        self.reload = reload
        self._clock = clock
        self._wall_s = wall_s

    def configure(self, config: Config, digest: str) -> None:
        """Another configuration is in force."""
        self.config = config
        self.digest = digest

    def report(self) -> Health:
        """Every condition with its result, in the order of the documentation."""
        now = self._clock()
        stamp = readiness.stamper(now, self._wall_s())
        seen = readiness.read_proxy(self._proxy, now) if self._proxy.check() else None
        config, rows = self.config, self._rows()
        components = [
            self._agentd(now, stamp),
            readiness.workers_component(seen, readiness.expected_workers(config), now, stamp),
        ]
        for agent in readiness.asked_agents(config):
            needed = readiness.is_required(agent, config)
            row, latency_ms = rows.get(agent.name), self._latency_ms(agent.name)
            components.append(readiness.agent_component(agent.name, row, needed, now, stamp, latency_ms))
        components += readiness.upstream_components(config, seen, now, stamp)
        components.append(readiness.config_component(self.digest, seen, now, stamp, self.reload()))
        components.append(self._audit(now, stamp))
        components.append(memory_component(stamp(now), [row.pid for row in seen.workers] if seen else []))
        return readiness.whole(components, self._version)

    def _agentd(self, now: int, stamp: readiness.Stamp) -> Component:
        if self.is_stopping:
            return Component("agentd", Status.UNHEALTHY, f"pid {os.getpid()} is stopping", True, None, stamp(now))
        problem = self._problem()
        if problem:
            return Component("agentd", Status.DEGRADED, problem, True, None, stamp(now))
        return readiness.agentd_component(now, os.getpid(), self._lag.worst_ns, now, stamp)

    def _audit(self, now: int, stamp: readiness.Stamp) -> Component:
        if self._sink is None:
            return Component("audit", Status.HEALTHY, "no sink is configured", False, None, stamp(now))
        status, text = self._sink.status(now)
        return Component("audit", Status(status), text, False, None, stamp(now))

    def own(
        self, health: Health, workers: int, sessions: int, in_flight: int, queued: int, audit: tuple[int, int]
    ) -> AgentdHealth:
        """For agentd.seg; `audit` = (queued, dropped)."""
        first = next((c for c in health.components if c.status is not Status.HEALTHY), None)
        return AgentdHealth(
            self._clock(),
            HealthStatus[health.status.name],
            health.is_ready,
            workers,
            sessions,
            in_flight,
            queued,
            *audit,
            self._lag.worst_ns,
            resident_bytes(os.getpid()),
            f"{first.name}: {first.message}" if first is not None else "",
        )


# --- memory ----------------------------------------------------------------------------------------


def memory_component(checked: str, worker_pids: list[int], root: Path = Path("/")) -> Component:
    """Degraded when the host, or the control group that limits us, is nearly out of memory."""
    text = f"agentd {_mib(resident_bytes(os.getpid()))}"
    if worker_pids:
        text += f", workers {_mib(sum(map(resident_bytes, worker_pids)))}"
    found = [room for room in (_host(root), _group(root)) if room is not None]
    if not found:
        return Component("memory", Status.HEALTHY, text, False, None, checked)
    what, free, size = min(found, key=lambda room: room[1] / max(1, room[2]))
    text += f"; {_mib(free)} of {_mib(size)} free {what}"
    status = Status.DEGRADED if free < size * MEMORY_LOW_SHARE else Status.HEALTHY
    return Component("memory", status, text, False, None, checked)


def resident_bytes(pid: int) -> int:
    """RSS of a process, 0 when it is gone."""
    try:
        with open(f"/proc/{pid}/statm", "rb", buffering=0) as file:
            return int(file.read(128).split()[1]) * _PAGE
    except (OSError, IndexError):
        return 0


Room = tuple[str, int, int]  # where, free bytes, size in bytes


def _host(root: Path) -> Room | None:
    try:
        rows = dict(line.split(":") for line in (root / "proc/meminfo").read_text().splitlines())
        return "on this host", _kib(rows["MemAvailable"]), _kib(rows["MemTotal"])
    except (OSError, KeyError, ValueError):
        return None


def _kib(text: str) -> int:
    return int(text.split()[0]) * 1024


def _group(root: Path) -> Room | None:
    """The nearest limit of cgroup v2 above us, if there is one; page cache that can be dropped counts as free."""
    try:
        path = (root / "proc/self/cgroup").read_text().strip().rpartition("::")[2].strip("/")
        place = root / "sys/fs/cgroup" / path
        limit = (place / "memory.max").read_text().strip()
        if limit == "max":
            return None
        rows = dict(line.split() for line in (place / "memory.stat").read_text().splitlines())
        used = int((place / "memory.current").read_text()) - int(rows.get("inactive_file", 0))
        return "in its control group", max(0, int(limit) - used), int(limit)
    except (OSError, ValueError):
        return None


def _mib(size: int) -> str:
    return f"{size / (1 << 20):.0f} MiB"
