"""The page of metrics is readable whatever agents report, and no count on it ever goes down."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from agentd.exporter import AgentdStats, AgentStats, Reported, Sources, render
from shared import defaults
from shared import metrics as m
from shared.decision import Outcome, Verb
from shared.segment import DRAINING, READY, ProxyView, ProxyWriter
from shared.wire.agent_messages import HistogramSeries, Metrics, Series
from tests.support import Clock

DIGEST = "0123456789abcdef"
Page = dict[tuple[str, frozenset[tuple[str, str]]], float]


def parse(text: bytes) -> Page:
    """Samples by name and labels; a series or a family that appears twice is a failure."""
    page: Page = {}
    types = [line for line in text.decode().splitlines() if line.startswith("# TYPE ")]
    assert len({line.split()[2] for line in types}) == len(types)
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in page, key
            page[key] = sample.value
    assert len(page) == sum(not line.startswith("#") for line in text.decode().splitlines())
    return page


def at(page: Page, name: str, **labels: str) -> float:
    return page[name, frozenset(labels.items())]


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


def page_of(view: ProxyView, clock: Clock, *agents: AgentStats, **fields: Any) -> Page:
    view.check()
    stats = AgentdStats(agents=agents, config_digest=DIGEST, version="1.2.3", **fields)
    return parse(render(Sources(view, lambda: stats, clock, lambda: clock.now / 1e9 + 5000)))


# --- the workers -----------------------------------------------------------------------------------


def test_every_family_of_the_tables_is_on_the_page(proxy: ProxyWriter, view: ProxyView, clock: Clock) -> None:
    proxy.slot(0).claim(os.getpid(), clock.now)
    view.check()
    text = render(Sources(view, AgentdStats, clock)).decode()
    for metric in m.families():
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
    kinds = {metric.name: metric.kind for metric in m.families()}
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
        assert at(page, "wardgate_process_open_fds", **labels) > 2
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
        "queued": 4,
        "queued_total": 44,
        "queue_ms_total": 1500.0,
        "instances": [{}, {}],
        "breaker": {"state": "half_open", "opened_total": 6},
        "late_verdicts": 7,
        "duration_buckets": buckets,
        "duration_ms_total": 12.5,
    }
    page = page_of(view, clock, AgentStats.of_lane(lane, garbage=8, refused_ops=10))
    for outcome in Outcome:
        calls = at(page, "wardgate_agent_calls_total", agent="waf", mode="enforce", outcome=outcome.word)
        assert calls == outcome
    assert at(page, "wardgate_agent_calls_total", agent="waf", mode="observe", outcome="queue_full") == 9
    found = {name.removeprefix("wardgate_agent_"): value for (name, labels), value in page.items() if len(labels) == 1}
    assert found["calls_in_flight"] == 3
    assert found["calls_queued"] == 4
    assert found["calls_delayed_total"] == 44
    assert found["queue_seconds_total"] == 1.5
    assert found["instances"] == 2
    assert found["breaker_openings_total"] == 6
    assert found["late_verdicts_total"] == 7
    assert found["garbage_total"] == 8
    assert found["header_ops_refused_total"] == 10
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
    stats = AgentStats.of_lane(lane.snapshot(clock.now))
    assert (stats.name, stats.breaker, stats.instances) == ("waf", "closed", 0)
    assert len(stats.duration_buckets) == m.DURATION_BUCKETS
    assert set(stats.calls) == {outcome.word for outcome in Outcome}


def test_agentd_itself_is_on_the_page(view: ProxyView, clock: Clock) -> None:
    page = page_of(
        view, clock, workers=2, ingress_messages=3, ingress_malformed=4, audit_written=5, audit_dropped=6,
        audit_queued=7, sessions_refused={"not_allowed": 8, "malformed": 9},
    )  # fmt: skip
    assert at(page, "wardgate_ingress_workers") == 2
    assert at(page, "wardgate_ingress_messages_total") == 3
    assert at(page, "wardgate_ingress_malformed_total") == 4
    assert at(page, "wardgate_audit_written_total") == 5
    assert at(page, "wardgate_audit_dropped_total") == 6
    assert at(page, "wardgate_audit_queued") == 7
    assert at(page, "wardgate_sessions_refused_total", code="not_allowed") == 8
    assert [dict(labels)["version"] for name, labels in page if name == "wardgate_build_info"] == ["1.2.3"]


# --- what agents report ----------------------------------------------------------------------------


def counter(value: float, name: str = "hits", **labels: str) -> Metrics:
    return Metrics(counters=[Series(name, value, labels)])


def reported(view: ProxyView, clock: Clock, **agents: Reported) -> Page:
    return page_of(view, clock, *(AgentStats(name, reported=told.totals()) for name, told in agents.items()))


def test_reports_of_instances_are_added_up_under_the_agents_name(view: ProxyView, clock: Clock) -> None:
    waf = Reported()
    waf.report("i1", Metrics([Series("hits", 1.0, {"rule": "a"})], [Series("depth", 2.0)]))
    waf.report("i2", Metrics([Series("hits_total", 10.0, {"rule": "a"})], [Series("depth", 5.0)]))
    page = reported(view, clock, waf=waf)
    assert at(page, "wardgate_reported_hits_total", agent="waf", rule="a") == 11
    assert at(page, "wardgate_reported_depth", agent="waf") == 7
    assert at(page, "wardgate_agent_reported_series", agent="waf") == 2


def test_a_gone_instance_leaves_its_counts_and_takes_its_gauges() -> None:
    waf = Reported()
    waf.report("i1", Metrics([Series("hits", 5.0)], [Series("depth", 2.0)]))
    waf.gone("i1")
    waf.gone("i1")
    waf.report("i1", counter(1.0))  # a new process of the same name
    assert {key.name: value.numbers for key, value in waf.totals().series.items()} == {"hits": (6.0,)}


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.sampled_from(["i1", "i2", "i3"]), st.floats(0, 1e6)),
            st.tuples(st.sampled_from(["i1", "i2", "i3"]), st.none()),
        ),
        max_size=30,
    )
)
def test_a_reported_count_never_goes_down(steps: list[tuple[str, float | None]]) -> None:
    """Whatever instances come, go, begin again at less, or fall silent."""
    waf, last = Reported(), 0.0
    for instance, value in steps:
        if value is None:
            waf.gone(instance)
        else:
            waf.report(instance, counter(value) if value > 1 else Metrics())
        total = sum(one.numbers[0] for one in waf.totals().series.values())
        assert total >= last * (1 - 1e-12)
        last = total


def test_histograms_are_added_up_while_their_buckets_agree(view: ProxyView, clock: Clock) -> None:
    def told(count: int, *bounds: float) -> Metrics:
        return Metrics(histograms=[HistogramSeries("took", -0.5, count, [(b, i) for i, b in enumerate(bounds, 1)])])

    waf = Reported()
    waf.report("i1", told(4, 0.1, 1.0))
    waf.gone("i1")
    waf.report("i2", told(3, 0.1, 1.0))
    name = "wardgate_reported_took"
    page = reported(view, clock, waf=waf)
    assert [at(page, f"{name}_bucket", agent="waf", le=le) for le in ("0.1", "1.0", "+Inf")] == [2, 4, 7]
    assert (at(page, f"{name}_count", agent="waf"), at(page, f"{name}_sum", agent="waf")) == (7, -1.0)
    waf.report("i3", told(5, 0.2))  # the next version of the agent has others: the old ones end
    page = reported(view, clock, waf=waf)
    assert [labels for (sample, labels) in page if sample == f"{name}_count"] == [frozenset({("agent", "waf")})]
    assert at(page, f"{name}_bucket", agent="waf", le="0.2") == 1
    assert at(page, f"{name}_count", agent="waf") == 5


BAD = [
    Metrics(counters=[Series("with space", 1.0)]),
    Metrics(counters=[Series("", 1.0)]),
    Metrics(counters=[Series('x{agent="other"} 1\nwardgate_requests_total', 1.0)]),
    Metrics(counters=[Series("x" * 129, 1.0)]),
    Metrics(counters=[Series("x", -1.0)]),
    Metrics(counters=[Series("x", float("nan"))]),
    Metrics(gauges=[Series("x", float("inf"))]),
    Metrics(gauges=[Series("x", 1.0, {"bad label": "y"})]),
    Metrics(gauges=[Series("x", 1.0, {"__name__": "y"})]),
    Metrics(gauges=[Series("x", 1.0, {"a": "v" * 129})]),
    Metrics(gauges=[Series("x", 1.0, {"a": "\ud800"})]),
    Metrics(gauges=[Series("x", 1.0, {"agent": "a", "exported_agent": "b"})]),
    Metrics(gauges=[Series("x", 1.0, {f"l{i}": "" for i in range(9)})]),
    Metrics(histograms=[HistogramSeries("x", 1.0, 1, [(1.0, 2)])]),
    Metrics(histograms=[HistogramSeries("x", 1.0, 2, [(1.0, 2), (0.5, 2)])]),
    Metrics(histograms=[HistogramSeries("x", 1.0, 2, [(1.0, 2), (2.0, 1)])]),
    Metrics(histograms=[HistogramSeries("x", 1.0, 2, [(1.0, -1)])]),
    Metrics(histograms=[HistogramSeries("x", 1.0, -2, [])]),
    Metrics(histograms=[HistogramSeries("x", 1.0, 2, [(float("inf"), 2)])]),
    Metrics(histograms=[HistogramSeries("x", float("nan"), 2, [])]),
    Metrics(histograms=[HistogramSeries("x", 1.0, 99, [(float(i), i) for i in range(33)])]),
]


@pytest.mark.parametrize("said", BAD)
def test_what_would_spoil_the_page_is_dropped_and_counted(view: ProxyView, clock: Clock, said: Metrics) -> None:
    waf = Reported()
    waf.report("i1", said)
    waf.report("i1", counter(1.0))
    page = reported(view, clock, waf=waf)
    assert at(page, "wardgate_agent_reported_dropped_total", agent="waf", reason="malformed") == 1
    assert at(page, "wardgate_agent_reported_series", agent="waf") == 1


labels = st.dictionaries(st.text(max_size=6), st.text(max_size=6), max_size=3)
names = st.one_of(
    st.sampled_from(["a", "a_total", "a_bucket", "a_sum", "a_count", "a_created", "a_info"]), st.text(max_size=5)
)
series = st.lists(st.builds(Series, names, st.floats(), labels), max_size=5)
histograms = st.lists(
    st.builds(
        HistogramSeries, names, st.floats(), st.integers(0, 20),
        st.lists(st.tuples(st.sampled_from([0.1, 1.0, 2.0]), st.integers(0, 20)), max_size=3), labels,
    ),
    max_size=4,
)  # fmt: skip


@settings(deadline=None, max_examples=60)
@given(st.lists(st.builds(Metrics, series, series, histograms), max_size=3))
def test_no_report_makes_the_page_unreadable(said: list[Metrics]) -> None:
    """Any names, any kinds under one name, from several agents and instances: each series once, one type a name."""
    told = [Reported() for _ in said]
    for i, one in enumerate(said):
        told[i].report("i1", one)
        told[i].report("i2", said[0])
    stats = AgentdStats(agents=[AgentStats(f"agent{i}", reported=t.totals()) for i, t in enumerate(told)])
    view = ProxyView("/nowhere/proxy.seg")
    parse(render(Sources(view, lambda: stats, Clock())))


def test_labels_of_the_agents_own_are_escaped_and_kept_apart(view: ProxyView, clock: Clock) -> None:
    waf = Reported()
    text = 'a"b\\c\nd{}=ü,'
    waf.report("i1", Metrics(gauges=[Series("x", 1.5, {"agent": text, "le": "1"})]))
    page = reported(view, clock, waf=waf)
    assert at(page, "wardgate_reported_x", agent="waf", exported_agent=text, exported_le="1") == 1.5


def test_series_are_bounded_over_all_instances(view: ProxyView, clock: Clock) -> None:
    waf, limit = Reported(), defaults.MAX_AGENT_METRIC_SERIES
    waf.report("i1", Metrics(gauges=[Series("x", 1.0, {"n": str(n)}) for n in range(limit)]))
    waf.report("i2", counter(1.0))
    waf.report("i1", Metrics(counters=[Series("x", 1.0, {"n": str(n)}) for n in range(limit + 500)]))
    page = reported(view, clock, waf=waf)
    assert at(page, "wardgate_agent_reported_series", agent="waf") == limit
    assert at(page, "wardgate_agent_reported_dropped_total", agent="waf", reason="limit") == 1 + 500
    waf.gone("i1")
    waf.gone("i2")
    waf.report("i3", counter(1.0, "another"))  # counts of the gone stay, and take room
    assert len(waf.totals().series) == limit


def test_two_kinds_under_one_name_are_not_mixed(view: ProxyView, clock: Clock) -> None:
    """The first has the name; one family of two kinds would cost everybody's numbers."""
    one, other = Reported(), Reported()
    one.report("i1", Metrics(gauges=[Series("x_total", 1.0)]))
    other.report("i1", Metrics(counters=[Series("x", 2.0), Series("y", 3.0)]))
    page = reported(view, clock, one=one, other=other)
    found = {name: value for (name, _), value in page.items() if name.startswith("wardgate_reported")}
    assert found == {"wardgate_reported_x_total": 1.0, "wardgate_reported_y_total": 3.0}
