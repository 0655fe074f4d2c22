"""agentd/reported.py: sums over an agent's instances never go down, and nothing an agent says spoils the page."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentd.exporter import Sources, render
from agentd.reported import Reported
from agentd.stats import AgentdStats, AgentStats
from shared import defaults
from shared.segment import ProxyView
from shared.wire.agent_messages import HistogramSeries, Metrics, Series
from tests.agentd.metrics_page import Page, at, page_of, parse
from tests.support import Clock


@pytest.fixture
def view(short_tmp_dir: Path) -> Iterator[ProxyView]:
    made = ProxyView(f"{short_tmp_dir}/proxy.seg")
    yield made
    made.close()


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
