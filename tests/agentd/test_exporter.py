"""agentd/exporter.py: the page is readable, complete, made in small steps, and no count on it ever goes down."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentd.exporter import Sources, pieces, render
from agentd.stats import AgentdStats, AgentStats, Bound, Outstanding, snapshot
from shared import defaults
from shared import metrics as m
from shared import metrics_agentd as ma
from shared.decision import Outcome, Verb
from shared.segment import DRAINING, READY, ProxyView, ProxyWriter, Reload, ReloadResult
from shared.wire import segment as layout
from tests.agentd.metrics_page import DIGEST, at, page_of, parse
from tests.support import Clock


@pytest.fixture
def proxy(short_tmp_dir: Path) -> Iterator[ProxyWriter]:
    writer = ProxyWriter.create(f"{short_tmp_dir}/proxy.seg", DIGEST, ("api", 'odd "\\\n route'), ("app", "idle"))
    yield writer
    writer.close()


@pytest.fixture
def view(short_tmp_dir: Path) -> Iterator[ProxyView]:
    made = ProxyView(f"{short_tmp_dir}/proxy.seg")
    yield made
    made.close()


# --- the workers -----------------------------------------------------------------------------------


def test_every_family_of_the_tables_is_on_the_page(proxy: ProxyWriter, view: ProxyView, clock: Clock) -> None:
    proxy.slot(0).claim(os.getpid(), clock.now)
    view.check()
    text = render(Sources(view, AgentdStats, clock)).decode()
    for metric in ma.families():
        assert f"# TYPE {metric.name} {metric.kind.value}\n" in text
        assert f"# HELP {metric.name} {metric.help}\n" in text


def test_cells_of_workers_are_added_up(proxy: ProxyWriter, view: ProxyView, clock: Clock) -> None:
    for index in range(2):
        slot = proxy.slot(index)
        slot.claim(os.getpid(), clock.now)
        slot.cells[m.W_REQUESTS] += 3
        slot.cells[m.W_REFUSED_404] += 1
        slot.cells[m.W_DECISIONS_LOCAL + Outcome.TIMEOUT] += 2
        slot.cells[m.W_OPEN_CONNECTIONS] = 4
        slot.route_cells(0)[m.R_RESPONSES + 1] += 3
        slot.route_cells(0)[m.R_VERDICTS_REQUEST + Verb.BLOCK] += 1
        slot.route_cells(1)[m.R_VERDICTS_RESPONSE + Verb.ALLOW] += 1
    page = page_of(view, clock)
    assert at(page, "wardgate_requests_total") == 6
    assert at(page, "wardgate_requests_refused_total", status="404") == 2
    assert at(page, "wardgate_decisions_local_total", reason="timeout") == 4
    assert at(page, "wardgate_open_connections") == 8
    assert at(page, "wardgate_responses_total", route="api", code="2xx") == 6
    assert at(page, "wardgate_decisions_total", route="api", phase="request_headers", decision="block") == 2
    odd = 'odd "\\\n route'
    assert at(page, "wardgate_decisions_total", route=odd, phase="response_headers", decision="allow") == 2


def test_durations_are_cumulative_and_in_seconds(proxy: ProxyWriter, view: ProxyView, clock: Clock) -> None:
    slot = proxy.slot(0)
    slot.claim(1, clock.now)
    for duration_ns in (400_000, 900_000, 2_000_000_000, 100_000_000_000):
        m.observe_request(slot.route_cells(0), duration_ns)
    page = page_of(view, clock)
    name = "wardgate_request_duration_seconds"
    found = [at(page, f"{name}_bucket", route="api", le=le) for le in ("0.0005", "0.001", "1.0", "2.5", "60.0", "+Inf")]
    assert found == [1, 2, 2, 3, 3, 4]
    assert at(page, f"{name}_count", route="api") == 4
    assert at(page, f"{name}_sum", route="api") == pytest.approx(102.0013)


def test_a_killed_worker_leaves_every_count_on_the_page(proxy: ProxyWriter, view: ProxyView, clock: Clock) -> None:
    """A real one, killed by -9 at any point: before and after its slot is freed the counts are the same."""
    proxy.slot(0)
    pid = os.fork()
    if pid == 0:
        slot = proxy.slot(0)
        slot.claim(os.getpid(), clock.now)
        for cell in m.WORKER_TABLE:
            slot.cells[cell.at] += 1
        for cell in m.ROUTE_TABLE:
            slot.route_cells(0)[cell.at] += 1
        m.observe_request(slot.route_cells(0), 7)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    before = page_of(view, clock)
    proxy.free_slot(0)
    after = page_of(view, clock)
    kinds = {metric.name: metric.kind for metric in ma.families()}
    counts = {key for key in before if kinds.get(key[0]) is not m.Kind.GAUGE}
    assert {key: before[key] for key in counts} == {key: after[key] for key in counts}
    assert sum(before[key] for key in counts) > 50
    assert at(before, "wardgate_open_connections") == 1
    assert at(after, "wardgate_open_connections") == 0


def test_upstreams_have_wall_clock_times_once_there_are_any(proxy: ProxyWriter, view: ProxyView, clock: Clock) -> None:
    slot = proxy.slot(0)
    slot.claim(1, clock.now)
    slot.upstream_cells(0)[m.U_LAST_OK_NS] = clock.now - 3_000_000_000
    page = page_of(view, clock)
    name = "wardgate_upstream_last_connect_timestamp_seconds"
    assert at(page, name, upstream="app") == pytest.approx(clock.now / 1e9 + 5000 - 3)
    assert (name, frozenset({("upstream", "idle")})) not in page


def test_without_a_proxy_its_numbers_are_absent_not_zero(view: ProxyView, clock: Clock) -> None:
    page = page_of(view, clock)
    assert at(page, "wardgate_proxy_up") == 0
    assert at(page, "wardgate_workers", state="ready") == 0
    assert at(page, "wardgate_config_digest_mismatch") == 0
    assert not [name for name, _ in page if name.startswith("wardgate_requests")]


def test_workers_are_counted_by_state(proxy: ProxyWriter, view: ProxyView, clock: Clock) -> None:
    for index in range(4):
        slot = proxy.slot(index)
        slot.claim(1, clock.now if index else clock.now - defaults.WORKER_STALE_MS * 1_000_000)
        slot.set_state(READY if index < 3 else DRAINING)
    proxy.beat(clock.now)
    page = page_of(view, clock)
    found = {state: at(page, "wardgate_workers", state=state) for state in ("starting", "ready", "draining", "stale")}
    assert found == {"starting": 0, "ready": 2, "draining": 1, "stale": 1}
    assert at(page, "wardgate_proxy_up") == 1


@pytest.mark.parametrize(("worker", "mismatch"), [("", 0), (DIGEST, 0), ("another", 1)])
def test_a_worker_with_another_configuration_shows(
    proxy: ProxyWriter, view: ProxyView, clock: Clock, worker: str, mismatch: int
) -> None:
    proxy.slot(0).claim(1, clock.now, worker)
    assert at(page_of(view, clock), "wardgate_config_digest_mismatch") == mismatch
    proxy.set_config_digest("reloaded")
    assert at(page_of(view, clock), "wardgate_config_digest_mismatch") == 1


def test_processes_show_memory_and_descriptors(proxy: ProxyWriter, view: ProxyView, clock: Clock) -> None:
    proxy.slot(0).claim(os.getpid(), clock.now)
    proxy.slot(1).claim(1 << 22, clock.now)  # gone, not freed yet
    page = page_of(view, clock)
    for labels in (
        {"process": "agentd", "slot": ""},
        {"process": "proxy", "slot": ""},
        {"process": "worker", "slot": "0"},
    ):
        assert at(page, "wardgate_process_resident_memory_bytes", **labels) > 1_000_000
        assert at(page, "wardgate_process_max_fds", **labels) >= at(page, "wardgate_process_open_fds", **labels) > 2
    assert ("wardgate_process_open_fds", frozenset({("process", "worker"), ("slot", "1")})) not in page


# --- agentd ----------------------------------------------------------------------------------------


def test_a_lane_is_on_the_page(view: ProxyView, clock: Clock) -> None:
    buckets = [0] * m.DURATION_BUCKETS
    buckets[2] = 5
    lane = {
        "name": "waf",
        "outcomes": {outcome.word: int(outcome) for outcome in Outcome},
        "observed": {outcome.word: 9 for outcome in Outcome},
        "in_flight": 3,
        "max_concurrent_calls": 30,
        "queued": 4,
        "max_queue": 40,
        "held": 1,
        "pinned": 12,
        "queued_total": 44,
        "queue_ms_total": 1500.0,
        "instances": [{}, {}],
        "breaker": {"state": "half_open", "opened_total": 6},
        "late_verdicts": 7,
        "completions": {"sent": 20, "dropped": 21},
        "body_bytes": {"sent": 22, "received": 23},
        "duration_buckets": buckets,
        "duration_ms_total": 12.5,
    }
    beside = {
        "garbage": 8,
        "refused_ops": 10,
        "instances_limit": 64,
        "outstanding_bytes": Outstanding(700, 400, 1_000),
        "outstanding_messages": Outstanding(7, 4, 10),
        "sends_refused": {"bytes": 5, "socket": 6},
    }
    page = page_of(view, clock, AgentStats.of_lane(lane, **beside), AgentStats("v1", instances_limit=2))
    for outcome in Outcome:
        calls = at(page, "wardgate_agent_calls_total", agent="waf", mode="enforce", outcome=outcome.word)
        assert calls == outcome
    assert at(page, "wardgate_agent_calls_total", agent="waf", mode="observe", outcome="queue_full") == 9
    of_waf = frozenset({("agent", "waf")})
    found = {name.removeprefix("wardgate_agent_"): value for (name, labels), value in page.items() if labels == of_waf}
    assert found["calls_in_flight"] == 3
    assert found["calls_queued"] == 4
    assert found["calls_delayed_total"] == 44
    assert found["queue_seconds_total"] == 1.5
    assert found["instances"] == 2
    assert found["breaker_openings_total"] == 6
    assert found["late_verdicts_total"] == 7
    assert found["garbage_total"] == 8
    assert found["header_ops_refused_total"] == 10
    assert (found["calls_limit"], found["queue_limit"], found["instances_limit"]) == (30, 40, 64)
    assert (found["calls_held"], found["exchanges_pinned"]) == (1, 12)
    for what, total in (("bytes", 700), ("messages", 7)):
        assert found[f"outstanding_{what}"] == total
        assert found[f"outstanding_{what}_fullest"] == total // 7 * 4
        assert found[f"outstanding_{what}_limit"] == total // 7 * 10
    assert at(page, "wardgate_agent_sends_refused_total", agent="waf", reason="socket") == 6
    assert at(page, "wardgate_agent_completions_total", agent="waf", result="dropped") == 21
    assert at(page, "wardgate_agent_body_bytes_total", agent="waf", direction="sent") == 22
    assert ("wardgate_agent_outstanding_bytes", frozenset({("agent", "v1")})) not in page  # one call per connection
    assert found["call_duration_seconds_count"] == 5
    assert found["call_duration_seconds_sum"] == 0.0125
    states = {
        state: at(page, "wardgate_agent_breaker_state", agent="waf", state=state) for state in ("closed", "half_open")
    }
    assert states == {"closed": 0, "half_open": 1}


def test_the_lane_that_exists_has_what_the_page_wants() -> None:
    """`of_lane` reads the real snapshot, not only the one above."""
    from agentd.alarm import Alarm
    from agentd.lane import Lane
    from shared.config.schema import Agent

    clock = Clock()
    lane = Lane(Agent(name="waf", protocol="zmq-v2"), clock, Alarm(lambda deadline_ns: None))
    stats = AgentStats.of_lane(snapshot(lane, clock.now))
    assert (stats.name, stats.breaker, stats.instances) == ("waf", "closed", 0)
    assert len(stats.duration_buckets) == m.DURATION_BUCKETS
    assert set(stats.calls) == {outcome.word for outcome in Outcome}


def test_agentd_itself_is_on_the_page(view: ProxyView, clock: Clock) -> None:
    page = page_of(
        view, clock, workers=2, ingress_messages=3, ingress_malformed=4, ingress_unknown=10, replies_dropped=11,
        hop_unsent=Bound(12, 120), client_buffer_bytes=13, events_pending=14, exchanges_open=15,
        memory_cuts=16, gate=(18, 19), audit_written=5, audit_queued=Bound(7, 70, 6), audit_bytes=Bound(17, 170),
        local={"workers": Bound(1, 256, 2), "agents": Bound(3, 4_096, 4)},
        sessions_refused={"not_allowed": 8, "malformed": 9},
    )  # fmt: skip
    for name, value in (
        ("wardgate_ingress_unknown_total", 10),
        ("wardgate_ingress_replies_dropped_total", 11),
        ("wardgate_ingress_unsent_bytes", 12),
        ("wardgate_ingress_unsent_limit_bytes", 120),
        ("wardgate_client_buffer_limit_bytes", 13),
        ("wardgate_agentd_events_pending", 14),
        ("wardgate_agentd_exchanges_open", 15),
        ("wardgate_memory_cuts_total", 16),
        ("wardgate_agents_shut_out_total", 18),
        ("wardgate_agent_handshakes_refused_total", 19),
        ("wardgate_audit_queued_limit", 70),
        ("wardgate_audit_queued_bytes", 17),
        ("wardgate_audit_queued_bytes_limit", 170),
    ):
        assert at(page, name) == value
    assert at(page, "wardgate_local_connections", socket="agents") == 3
    assert at(page, "wardgate_local_connections_limit", socket="workers") == 256
    assert at(page, "wardgate_local_connections_refused_total", socket="agents") == 4
    assert at(page, "wardgate_ingress_workers") == 2
    assert at(page, "wardgate_ingress_messages_total") == 3
    assert at(page, "wardgate_ingress_malformed_total") == 4
    assert at(page, "wardgate_audit_written_total") == 5
    assert at(page, "wardgate_audit_dropped_total") == 6
    assert at(page, "wardgate_audit_queued") == 7
    assert at(page, "wardgate_sessions_refused_total", code="not_allowed") == 8
    assert [dict(labels)["version"] for name, labels in page if name == "wardgate_build_info"] == ["1.2.3"]


# --- step by step ----------------------------------------------------------------------------------


class Watched(ProxyView):
    """Notes how many cells each look at the segment adds up."""

    def __init__(self, path: str) -> None:
        self.looks: list[int] = []
        super().__init__(path)

    def _steadily(self, cells: Any, at: int, count: int, together: Any) -> Any:
        found = super()._steadily(cells, at, count, together)
        self.looks.append(count * (found[1] if found is not None else 1))
        return found


def test_no_step_of_a_large_page_is_long(short_tmp_dir: Path, clock: Clock) -> None:
    """A thousand routes, twenty agents: a step looks at few cells, or at one agent, or writes few lines."""
    routes = [f"route-{number}" for number in range(1_000)]
    writer = ProxyWriter.create(f"{short_tmp_dir}/proxy.seg", DIGEST, routes, ("app",))
    for index in range(3):
        writer.slot(index).claim(os.getpid(), clock.now)
        writer.slot(index).route_cells(999)[m.R_RESPONSES + 1] = 7
    view = Watched(f"{short_tmp_dir}/proxy.seg")
    view.check()
    taken = []

    def agents() -> Iterator[AgentStats]:
        for number in range(20):
            taken.append(number)
            yield AgentStats(f"agent-{number}")

    steps = []
    looked = asked = 0
    for piece in pieces(Sources(view, lambda: AgentdStats(agents=agents()), clock)):
        steps.append(piece)
        assert sum(view.looks[looked:]) <= 2 * defaults.SEGMENT_PIECE_CELLS
        assert len(taken) - asked <= 1
        assert piece.count(b"\n") <= 2 * defaults.METRICS_PIECE_LINES  # an item is a line, or a head of two
        looked, asked = len(view.looks), len(taken)
    page = parse(b"".join(steps))
    assert at(page, "wardgate_responses_total", route="route-999", code="2xx") == 21
    assert len(steps) > 100
    view.close()
    writer.close()


def test_a_proxy_that_starts_anew_in_the_middle_is_read_from_its_beginning(
    short_tmp_dir: Path, proxy: ProxyWriter, view: ProxyView, clock: Clock
) -> None:
    """Never half of one and half of the other."""
    view.check()
    page = pieces(Sources(view, AgentdStats, clock))
    made = [next(page)]
    proxy.close()
    successor = ProxyWriter.create(f"{short_tmp_dir}/proxy.seg", "other", ("new",), ("app",))
    view.check()
    made += page
    routes = {dict(labels).get("route") for _, labels in parse(b"".join(made))} - {None}
    assert routes == {"new"}
    successor.close()


def test_a_fold_that_never_ends_repeats_the_last_page(proxy: ProxyWriter, view: ProxyView, clock: Clock) -> None:
    """An arbiter killed while it moved counts: what was said last, not half of it."""
    slot = proxy.slot(0)
    slot.claim(1, clock.now)
    slot.cells[m.W_REQUESTS] = 5
    assert at(page_of(view, clock), "wardgate_requests_total") == 5
    proxy._cells[layout.H_FOLD_SEQ] |= 1
    slot.cells[m.W_REQUESTS] = 0
    assert at(page_of(view, clock), "wardgate_requests_total") == 5


def test_how_reloads_went(proxy: ProxyWriter, view: ProxyView, clock: Clock) -> None:
    """Of both daemons; 0 only while the last one failed; a time once there was one."""
    proxy.begin_reload()
    proxy.end_reload(ReloadResult.ROLLED_BACK, clock.now, "why")
    own = Reload(2, ReloadResult.APPLIED, clock.now, clock.now, applied=1, refused=1)
    page = page_of(view, clock, reload=own)
    assert at(page, "wardgate_config_last_reload_successful", daemon="agentd") == 1
    assert at(page, "wardgate_config_last_reload_successful", daemon="proxy") == 0
    keys = (("agentd", "applied"), ("agentd", "refused"), ("proxy", "rolled_back"), ("proxy", "applied"))
    counts = [at(page, "wardgate_config_reloads_total", daemon=name, result=result) for name, result in keys]
    assert counts == [1, 1, 1, 0]
    name = "wardgate_config_last_reload_success_timestamp_seconds"
    assert at(page, name, daemon="agentd") == pytest.approx(clock.now / 1e9 + 5000)
    assert (name, frozenset({("daemon", "proxy")})) not in page
    assert at(page_of(view, clock), "wardgate_config_last_reload_successful", daemon="agentd") == 1
