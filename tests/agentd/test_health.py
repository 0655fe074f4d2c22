"""agentd/health.py: the report of a whole agentd, its loop's lag, and memory."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest

from agentd.health import HealthSource, LoopLag, memory_component
from shared.clock import MS
from shared.config.schema import Agent, Config, Target, Upstream
from shared.config.schema_routes import Filter, Route
from shared.metrics import U_LAST_OK_NS
from shared.segment import READY, AgentRow, HealthStatus, ProxyView, ProxyWriter
from shared.wire.admin import Status
from tests.support import Clock

CONFIG = Config(
    agents=(Agent("waf", "zmq-v2"), Agent("tracer", "zmq-v1", failure_mode="open")),
    upstreams=(Upstream("app", (Target("127.0.0.1:1"),)),),
    routes=(Route("r", "app", filters=(Filter("waf"), Filter("tracer"))),),
)


class World:
    """A healthy system, made of a proxy segment and what agentd knows."""

    def __init__(self, directory: Path, clock: Clock) -> None:
        self.clock = clock
        self.rows = {"waf": AgentRow("waf", 0, 1), "tracer": AgentRow("tracer", 0, 1)}
        self.sink: tuple[Literal["healthy", "degraded"], str] = ("healthy", "fine")
        self.problem = ""
        path = str(directory / "proxy.seg")
        self.writer = ProxyWriter(path, "d", clock(), ["r"], ["app"])
        for index in range(2):
            slot = self.writer.slot(index)
            slot.claim(4_000_000 + index, clock(), "d")
            slot.set_state(READY)
        slot.upstream_cells(0)[U_LAST_OK_NS] = clock()
        self.view = ProxyView(path)
        self.lag = LoopLag(clock())
        self.source = HealthSource(
            CONFIG,
            "d",
            "1.2.3",
            lambda: self.rows,
            self.view,
            self,
            self.lag,
            {"waf": 1.5}.get,
            lambda: self.problem,
            clock=clock,
            wall_s=lambda: 1e9,
        )

    def status(self, now: int) -> tuple[Literal["healthy", "degraded"], str]:
        return self.sink

    def component(self, name: str) -> tuple[Status, str]:
        (found,) = [c for c in self.source.report().components if c.name == name]
        return found.status, found.message


@pytest.fixture
def world(tmp_path: Path, clock: Clock) -> Iterator[World]:
    made = World(tmp_path, clock)
    yield made
    made.view.close()
    made.writer.close()


def test_a_healthy_system_names_every_condition(world: World) -> None:
    """Semantics 15: agentd, workers, each agent, each upstream, config, audit, memory."""
    health = world.source.report()
    assert [c.name for c in health.components] == [
        "agentd",
        "workers",
        "agent:waf",
        "agent:tracer",
        "upstream:app",
        "config",
        "audit",
        "memory",
    ]
    assert health.is_ready
    assert health.version == "1.2.3"
    assert {c.status for c in health.components if c.name != "memory"} == {Status.HEALTHY}
    waf, tracer = health.components[2:4]
    assert (waf.latency_ms, waf.is_required, tracer.latency_ms, tracer.is_required) == (1.5, True, None, False)
    assert all(c.last_check for c in health.components)


def test_a_missing_optional_agent_degrades_and_a_required_one_is_not_ready(world: World) -> None:
    """200 and 503 of /health/ready."""
    world.rows["tracer"] = AgentRow("tracer")
    assert world.component("agent:tracer")[0] is Status.DEGRADED
    assert world.source.report().is_ready
    world.rows["waf"] = AgentRow("waf")
    assert not world.source.report().is_ready


def test_audit_trouble_degrades(world: World) -> None:
    """A full disk is no reason to stop serving, and is not silent either."""
    world.sink = ("degraded", "No space left on device")
    assert world.component("audit") == (Status.DEGRADED, "No space left on device")
    assert world.source.report().status is Status.DEGRADED
    assert world.source.report().is_ready


def test_no_proxy_is_not_ready(world: World) -> None:
    """Its segment is gone with it."""
    world.writer.close()
    assert world.component("workers") == (Status.UNHEALTHY, "the proxy is not running")


def test_stopping_is_not_ready_and_a_problem_is_degraded(world: World) -> None:
    """A load balancer leaves before the socket does."""
    world.problem = "breakers.json cannot be written"
    assert world.component("agentd") == (Status.DEGRADED, "breakers.json cannot be written")
    world.source.is_stopping = True
    status, text = world.component("agentd")
    assert status is Status.UNHEALTHY
    assert text.endswith("is stopping")


def test_the_short_form_names_the_first_condition_that_is_not_met(world: World, clock: Clock) -> None:
    """For whoever finds agentd hung."""
    world.rows["waf"] = AgentRow("waf")
    own = world.source.own(world.source.report(), 2, 3, 4, 5, (6, 7))
    assert (own.at_ns, own.status, own.is_ready) == (clock(), HealthStatus.UNHEALTHY, False)
    assert (own.workers, own.sessions, own.calls_in_flight, own.calls_queued) == (2, 3, 4, 5)
    assert (own.audit_queued, own.audit_dropped) == (6, 7)
    assert own.message == "agent:waf: required, no live instance"
    assert own.rss_bytes > 1 << 20


def test_a_stall_of_the_loop_is_shown_for_a_while(world: World, clock: Clock) -> None:
    """At least ten seconds, at most twenty and a bit."""
    world.lag.add(700 * MS, clock())
    assert world.component("agentd")[0] is Status.DEGRADED
    for second in range(1, 40):
        world.lag.add(MS, clock.s(1))
        assert (world.lag.worst_ns == 700 * MS) == (second < 22), second


# --- memory ----------------------------------------------------------------------------------------


def fake_root(directory: Path, available_kib: int, limit: str = "max", current: int = 0, inactive: int = 0) -> Path:
    (directory / "proc/self").mkdir(parents=True)
    (directory / "sys/fs/cgroup/unit").mkdir(parents=True)
    (directory / "proc/meminfo").write_text(f"MemTotal:  1000000 kB\nMemAvailable:  {available_kib} kB\n")
    (directory / "proc/self/cgroup").write_text("0::/unit\n")
    group = directory / "sys/fs/cgroup/unit"
    (group / "memory.max").write_text(limit + "\n")
    (group / "memory.current").write_text(f"{current}\n")
    (group / "memory.stat").write_text(f"anon 1\ninactive_file {inactive}\n")
    return directory


@pytest.mark.parametrize(
    ("room", "status", "text"),
    [
        ({"available_kib": 500_000}, Status.HEALTHY, "free on this host"),
        ({"available_kib": 40_000}, Status.DEGRADED, "free on this host"),
        ({"available_kib": 500_000, "limit": "1000", "current": 990}, Status.DEGRADED, "free in its control group"),
        ({"available_kib": 500_000, "limit": "1000", "current": 990, "inactive": 900}, Status.HEALTHY, "on this host"),
    ],
)
def test_memory_is_degraded_when_the_tighter_of_host_and_group_is_nearly_full(
    tmp_path: Path, room: dict[str, int], status: Status, text: str
) -> None:
    """Page cache that can be dropped is not in use."""
    component = memory_component("now", [], fake_root(tmp_path, **room))  # type: ignore[arg-type]
    assert component.status is status
    assert component.message.startswith("agentd ")
    assert component.message.endswith(text)


def test_without_proc_memory_says_what_it_can(tmp_path: Path) -> None:
    """No numbers of the host is no illness."""
    assert memory_component("now", [1], tmp_path).status is Status.HEALTHY
