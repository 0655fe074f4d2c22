"""shared/bounds.py: what docs/bounds.md says of keys, defaults and metrics is so."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from shared import bounds
from shared import defaults as d
from shared import metrics as m
from shared import metrics_agentd as ma
from shared.config.schema import Agent, Config, Target, Upstream
from shared.config.schema_routes import WebSocket
from tests.support import ROOT
from wardgate_agent import runner
from wardgate_agent import wire as sdk

PARTS: dict[str, Any] = {
    "upstreams[]": Upstream("u", (Target("127.0.0.1:1"),)),
    "agents[]": Agent("a", "zmq-v1"),
    "routes[].websocket": WebSocket(),
}


def default_of(key: str) -> Any:
    """As the schema has it."""
    where, _, name = key.rpartition(".")
    table = PARTS[where] if where in PARTS else getattr(Config(), where)
    return getattr(table, name)


def test_the_page_is_fresh() -> None:
    assert (ROOT / "docs" / "bounds.md").read_text() == bounds.render_markdown()


@pytest.mark.parametrize("row", [row for row in bounds.rows() if row.key], ids=lambda row: row.what)
def test_every_key_exists_and_its_default_is_the_bound(row: bounds.Bound) -> None:
    assert default_of(row.key) == row.size


@pytest.mark.parametrize("row", bounds.rows(), ids=lambda row: row.what)
def test_every_metric_exists_and_is_of_the_kind_that_the_column_says(row: bounds.Bound) -> None:
    """What is in use and its limit are gauges, what was refused a counter."""
    kinds = {metric.name: metric.kind for metric in ma.families()}
    assert all(kinds[name] is m.Kind.GAUGE for name in (row.use, row.limit) if name)
    assert not row.refused or kinds[row.refused] is m.Kind.COUNTER


def test_every_limit_among_the_metrics_has_a_row() -> None:
    """A metric that says how much may be, and is not on the page, is missing there."""
    named = {row.limit for row in bounds.rows()}
    missing = [metric.name for metric in ma.families() if "_limit" in metric.name and metric.kind is m.Kind.GAUGE]
    assert set(missing) - named - {"wardgate_limit_in_use"} == set()


def test_numbers_that_stand_elsewhere() -> None:
    """The caches of a worker, the SDK's own."""
    sizes = {row.what: row.size for row in bounds.rows()}
    assert sizes["decisions remembered by their bytes"] == d.DECISIONS_REMEMBERED
    assert sizes["response heads remembered by their bytes"] == d.HEADS_REMEMBERED
    assert d.HEAD_REMEMBERED_BYTES == 1_024
    assert d.DECISION_REMEMBERED_BYTES == d.VERDICT_CACHE_BYTES == 512
    assert sizes["async hooks that run or wait"] == 2 * runner.Options(connect="ipc:///x").max_concurrency
    assert sizes["what agentd has not read"] == sdk.MAX_UNSENT_BYTES


def test_every_default_that_looks_like_a_bound_of_a_queue_is_on_the_page() -> None:
    """By its name: a new *_HWM, *_QUEUE, *_WAITING, *_UNSENT_BYTES or *_PENDING_MAX needs a row."""
    values = {row.size for row in bounds.rows()}
    for name, value in vars(d).items():
        if name.endswith(
            ("_HWM", "_QUEUE", "_QUEUE_BYTES", "_WAITING", "_PENDING_MAX", "_BUFFER_BYTES", "_UNSENT_BYTES")
        ):
            assert value in values, name


def test_the_readme_leads_here() -> None:
    assert "docs/bounds.md" in Path(ROOT, "README.md").read_text()


def test_keys_of_bounds_act_within_their_ranges() -> None:
    """Zero waiting or no buffer would be a proxy that does nothing."""
    for table, name in ((Config().server, "connection_buffer_bytes"), (Config().runtime, "hop_unsent_bytes")):
        with pytest.raises(msgspec.ValidationError, match=rf">= \d+ - at `\$.{name}`"):
            msgspec.convert({name: 0}, type(table))
