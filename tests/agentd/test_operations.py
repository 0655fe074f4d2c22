"""agentd/operations.py: what an operator sees is what lanes say; what he changes is checked, shown and kept."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentd.dispatcher import Dispatcher
from agentd.health import HealthSource, LoopLag
from agentd.operations import Operations, latency_of, percentile_ms
from agentd.publish import Publisher
from agentd.registry import Registry
from agentd.tokens import TokenTotals
from shared.config.schema import Agent, Config, Target, Upstream
from shared.config.schema_routes import Filter, Route
from shared.errors import AdminRefused
from shared.events import SUPPORTED
from shared.metrics import DURATION_BUCKETS, bucket_of
from shared.segment import AgentdWriter, BreakerState, ProxyView
from shared.wire.admin import BreakerChange
from shared.wire.audit import AgentEntry, AuditRecord
from tests.support import Clock

CONFIG = Config(
    agents=(Agent("waf", "zmq-v2"), Agent("old", "zmq-v1", "ipc:///x", failure_mode="open")),
    upstreams=(Upstream("app", (Target("127.0.0.1:1"),)),),
    routes=(Route("r", "app", filters=(Filter("waf"), Filter("old"))),),
)


class Sink:
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.rows: list[bytes] = []

    def put(self, record: "bytes | memoryview") -> bool:
        self.rows.append(bytes(record))
        return True

    def numbers(self) -> tuple[int, int, int]:
        return 11, 12, 13

    def room(self) -> tuple[int, int, int]:
        return 14, 15, 16


class Ingress:
    messages = 5
    malformed = 6
    unknown = 7
    replies_dropped = 8
    unsent_bytes = 10
    memory_cuts = 9
    tokens = TokenTotals()

    def gate_counts(self) -> tuple[int, int]:
        return 11, 12

    def local_connections(self) -> tuple[int, int, int]:
        return 1, 2, 3


class World:
    """Lanes, a segment and the state behind the API; no sockets."""

    def __init__(self, directory: Path, clock: Clock, sink: Sink | None) -> None:
        self.clock = clock
        self.file = directory / "breakers.json"
        self.dispatcher = Dispatcher("n-", clock, lambda _: None, lambda _: None, on_breaker=self._moved)
        self.dispatcher.configure(CONFIG.agents)
        lanes = self.dispatcher.lanes
        self.registry = Registry(CONFIG.agents, lanes)
        self.writer = AgentdWriter.create(str(directory / "agentd.seg"), "d")
        self.publisher = Publisher(self.writer, lanes, self.registry.hello_mask, str(self.file))
        self.publisher.refresh()
        proxy = ProxyView(str(directory / "proxy.seg"))
        rows = lambda: self.publisher.rows  # noqa: E731
        health = HealthSource(
            CONFIG, "d", "1", rows, proxy, None, LoopLag(clock()), latency_of(lanes), lambda: "", clock=clock
        )
        self.state = Operations(
            self.dispatcher, self.registry, self.publisher, health, sink, Ingress(), proxy, "1", clock, Ingress()
        )

    def _moved(self, agent: str, old: BreakerState, new: BreakerState) -> None:
        self.publisher.agent_changed(agent)


@pytest.fixture
def sink() -> Sink:
    return Sink()


@pytest.fixture
def world(tmp_path: Path, clock: Clock, sink: Sink) -> Iterator[World]:
    made = World(tmp_path, clock, sink)
    yield made
    made.writer.close()


def test_forced_open_is_published_and_kept_when_the_call_returns(world: World) -> None:
    """In the rows that workers read and in the file that the next agentd reads."""
    assert world.state.change_breaker("waf", "open", BreakerChange()).state == "forced_open"
    assert world.publisher.rows["waf"].breaker is BreakerState.FORCED_OPEN
    assert json.loads(world.file.read_text()) == {"forced_open": ["waf"]}
    assert [breaker.state for breaker in world.state.breakers()] == ["forced_open", "closed"]
    assert world.state.change_breaker("waf", "reset", BreakerChange()).state == "closed"
    assert json.loads(world.file.read_text()) == {"forced_open": []}


def test_numbers_change_together_or_not_at_all(world: World) -> None:
    """One out of range refuses the whole; what is not given stays."""
    breaker = world.state.change_breaker("waf", "set", BreakerChange(failure_threshold=9, window_seconds=5.0))
    assert (breaker.failure_threshold, breaker.window_seconds, breaker.success_threshold) == (9, 5.0, 2)
    with pytest.raises(AdminRefused, match="timeout_seconds") as refused:
        world.state.change_breaker("waf", "set", BreakerChange(failure_threshold=3, timeout_seconds=-1.0))
    assert refused.value.status == 400
    assert world.state.breakers()[0].failure_threshold == 9
    assert not world.file.exists(), "numbers are not kept"


def test_an_unknown_agent_is_404_with_the_known_ones(world: World) -> None:
    """So that a typing error is seen at once."""
    with pytest.raises(AdminRefused, match="there are: waf, old") as refused:
        world.state.change_breaker("vaf", "open", BreakerChange())
    assert refused.value.status == 404


def test_a_change_is_one_audit_record(world: World, sink: Sink) -> None:
    """Of the same type as every other."""
    world.state.audit_change("uid 0 pid 1", "breaker.open", "waf", "forced_open")
    (row,) = map(json.loads, sink.rows)
    assert row.pop("ts").endswith("Z")
    assert row == {
        "source": "agentd",
        "correlation_id": "",
        "decision": "admin",
        "phase": "breaker.open",
        "decided_by": "uid 0 pid 1",
        "agents": [{"agent": "waf", "outcome": "changed", "message": "forced_open"}],
    }


def test_without_a_sink_nothing_is_written_and_nothing_breaks(tmp_path: Path, clock: Clock) -> None:
    """`audit.sinks = []`."""
    world = World(tmp_path, clock, None)
    world.state.audit_change("a", "b", "c", "d")
    assert world.state.stats().audit_written == 0
    world.writer.close()


def test_agents_show_configuration_and_lane(world: World) -> None:
    """What an agent without `events` is asked about: v1 everything, v2 nothing before its HELLO."""
    waf, old = world.state.agents().agents
    assert (waf.name, waf.is_required, waf.events, waf.p50_ms) == ("waf", True, (), None)
    assert (old.name, old.is_required) == ("old", False)
    assert old.events == tuple(kind.wire_name for kind in SUPPORTED)
    world.registry.seats["waf"].hello_mask = 0b1010011  # what it was seen to offer
    assert world.state.agents().agents[0].events == ("request_headers", "response_body_chunk", "websocket_frame")


def test_metrics_show_what_agentd_counts(world: World) -> None:
    """One page in the plain text format."""
    content_type, steps = world.state.metrics("")
    page = b"".join(steps)
    assert content_type.startswith("text/plain")
    for line in (
        b"wardgate_audit_written_total 11",
        b"wardgate_audit_dropped_total 12",
        b"wardgate_audit_queued 13",
        b"wardgate_ingress_messages_total 5",
        b"wardgate_ingress_malformed_total 6",
        b'wardgate_agent_breaker_state{agent="waf",state="closed"} 1',
    ):
        assert line in page


def test_refused_header_operations_are_counted_by_agent(world: World, sink: Sink) -> None:
    """The record goes to the sink as it is; the page shows the sum."""
    entries = [AgentEntry("waf", "decision", refused_ops=["host", "te"]), AgentEntry("old", "decision")]
    world.state.put_audit(AuditRecord("t", "agentd", "c", "allow", agents=entries))
    assert json.loads(sink.rows[0])["agents"][0]["refused_ops"] == ["host", "te"]
    assert {agent.name: agent.refused_ops for agent in world.state.stats().agents} == {"waf": 2, "old": 0}


def test_live_tells_how_long(world: World, clock: Clock) -> None:
    """Since it was built."""
    clock.s(90)
    assert world.state.live().uptime_s == 90.0


@pytest.mark.parametrize(
    ("durations_ms", "share", "expected_ms"),
    [
        ([], 0.5, None),
        ([0.3], 0.5, 0.5),
        ([0.3, 0.3, 40], 0.5, 0.5),
        ([0.3, 0.3, 40], 0.99, 50.0),
        ([90_000_000], 0.5, 60_000.0),
    ],
)
def test_percentiles_are_upper_bounds_of_buckets(
    durations_ms: list[float], share: float, expected_ms: float | None
) -> None:
    """The last bucket has no upper bound; its lower one is shown."""
    buckets = [0] * DURATION_BUCKETS
    for duration in durations_ms:
        buckets[bucket_of(int(duration * 1e6))] += 1
    assert percentile_ms(buckets, share) == expected_ms
