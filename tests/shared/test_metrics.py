"""The tables of metrics fit the segment, follow Prometheus' conventions, and are what the reference says."""

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared import metrics as m
from shared import metrics_agentd as ma
from shared.decision import Outcome, Verb
from shared.wire import segment as layout
from tests.support import ROOT

TABLES = {
    "worker": (m.WORKER_TABLE, layout.WORKER_CELLS),
    "route": (m.ROUTE_TABLE, layout.ROUTE_CELLS),
    "upstream": (m.UPSTREAM_TABLE, layout.UPSTREAM_CELLS),
}


def constants(prefix: str) -> dict[str, int]:
    return {name: value for name, value in vars(m).items() if re.match(prefix, name) and isinstance(value, int)}


# --- cells -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TABLES)
def test_every_cell_has_its_own_place_inside_the_block(name: str) -> None:
    table, room = TABLES[name]
    places = [cell.at for cell in table]
    if name == "route":
        places += [m.R_DURATION_SUM_NS, *range(m.R_DURATION, m.R_DURATION + m.DURATION_BUCKETS)]
    assert len(set(places)) == len(places)
    assert all(0 <= place < room for place in places)


@pytest.mark.parametrize(("prefix", "name"), [("W_", "worker"), ("U_", "upstream")])
def test_every_constant_has_a_row(prefix: str, name: str) -> None:
    """A cell that somebody counts in and nobody exports is a lie by omission."""
    places = {cell.at for cell in TABLES[name][0]}
    bases = {"W_DECISIONS_LOCAL"}  # + outcome
    for constant, at in constants(prefix).items():
        assert at in places or constant in bases, constant


def test_every_outcome_that_a_worker_decides_by_has_a_cell() -> None:
    rows = {cell.at: cell.values for cell in m.WORKER_TABLE}
    for outcome in Outcome:
        if outcome not in (Outcome.DECISION, Outcome.CANCELLED):
            assert rows[m.W_DECISIONS_LOCAL + outcome] == (outcome.word,)


def test_every_verb_has_a_cell_in_both_phases() -> None:
    rows = {cell.at: cell.values for cell in m.ROUTE_TABLE}
    for verb in Verb:
        assert rows[m.R_VERDICTS_REQUEST + verb] == ("request_headers", verb.word)
        assert rows[m.R_VERDICTS_RESPONSE + verb] == ("response_headers", verb.word)


def test_refusals_are_counted_by_status() -> None:
    rows = {cell.at: cell.values for cell in m.WORKER_TABLE}
    for name, at in constants(r"W_REFUSED_\d").items():
        assert rows[at] == (name.removeprefix("W_REFUSED_"),)
    assert rows[m.W_REFUSED + m.REFUSED_AT.get(418, m.REFUSED_OTHER)] == ("other",)
    assert rows[m.W_REFUSED_OTHER] == ("other",)


def test_gauges_are_told_from_counters() -> None:
    """The arbiter forgets the ones of a gone worker and keeps the others."""
    assert m.W_OPEN_CONNECTIONS in m.WORKER_GAUGES
    assert m.W_REQUESTS not in m.WORKER_GAUGES
    assert frozenset({m.R_IN_FLIGHT}) == m.ROUTE_GAUGES


# --- durations -------------------------------------------------------------------------------------


def test_bounds_are_the_same_in_both_units() -> None:
    assert m.DURATION_BOUNDS_NS == (
        500_000, 1_000_000, 2_500_000, 5_000_000, 10_000_000, 25_000_000, 50_000_000, 100_000_000, 250_000_000,
        500_000_000, 1_000_000_000, 2_500_000_000, 5_000_000_000, 10_000_000_000, 30_000_000_000, 60_000_000_000,
    )  # fmt: skip
    assert [ns / 1e9 for ns in m.DURATION_BOUNDS_NS] == list(m.DURATION_BOUNDS_S)


@settings(deadline=None)
@given(st.integers(0, 1 << 40))
def test_a_duration_falls_into_the_first_bucket_that_holds_it(duration_ns: int) -> None:
    """le: the bound itself belongs to its bucket."""
    bucket = m.bucket_of(duration_ns)
    bounds = (-1, *m.DURATION_BOUNDS_NS, 1 << 62)
    assert bounds[bucket] < duration_ns <= bounds[bucket + 1]


def test_a_request_is_observed_in_its_route() -> None:
    cells = memoryview(bytearray(layout.ROUTE_CELLS * 8)).cast("Q")
    for duration_ns in (1, 500_000, 500_001, 10**12):
        m.observe_request(cells, duration_ns)
    assert cells[m.R_DURATION : m.R_DURATION + m.DURATION_BUCKETS].tolist() == [2, 1, *[0] * 14, 1]
    assert cells[m.R_DURATION_SUM_NS] == 1_000_001_000_002


# --- names -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ma.families(), ids=lambda metric: metric.name)
def test_names_follow_the_conventions(metric: m.Metric) -> None:
    assert re.fullmatch(r"wardgate_[a-z0-9_]+", metric.name)
    assert metric.name.endswith("_total") == (metric.kind is m.Kind.COUNTER)
    if metric.kind is m.Kind.HISTOGRAM:
        assert metric.name.endswith("_seconds")
    for unit in ("_ms", "_ns", "_kb", "_mb", "_milliseconds"):
        assert unit not in metric.name.removesuffix("_total")[-len(unit) :]
    assert not metric.name.startswith(ma.REPORTED_PREFIX)
    assert all(re.fullmatch(r"[a-z][a-z0-9_]*", label) and label != "le" for label in metric.labels)
    assert re.fullmatch(r"[A-Z0-9].*\.", metric.help)
    assert "|" not in metric.help  # a table's cell


def test_names_are_given_once() -> None:
    names = [metric.name for metric in ma.families()]
    assert len(set(names)) == len(names)


def test_every_family_of_the_module_is_in_a_table() -> None:
    made = {value for value in vars(m).values() if isinstance(value, m.Metric)}
    assert made <= set(ma.families())


# --- the reference ---------------------------------------------------------------------------------


def test_the_reference_is_fresh() -> None:
    """`make docs` writes it."""
    assert (Path(ROOT) / "docs" / "metrics.md").read_text() == ma.render_markdown()


def test_the_reference_names_every_family_with_its_labels() -> None:
    lines = ma.render_markdown().splitlines()
    for metric in ma.families():
        row = f"| `{metric.name}` | {metric.kind.value} | {', '.join(metric.labels)} | {metric.help} |"
        assert lines.count(row) == 1
