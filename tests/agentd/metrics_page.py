"""A page of metrics as a test looks at it."""

from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from agentd.exporter import Sources, render
from agentd.stats import AgentdStats, AgentStats
from shared.segment import ProxyView
from tests.support import Clock

DIGEST = "0123456789abcdef"
Page = dict[tuple[str, frozenset[tuple[str, str]]], float]


def parse(text: bytes) -> Page:
    """Samples by name and labels; a series or a family that appears twice is a failure."""
    page: Page = {}
    types = [line for line in text.decode().split("\n") if line.startswith("# TYPE ")]
    assert len({line.split()[2] for line in types}) == len(types)
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in page, key
            page[key] = sample.value
    assert len(page) == sum(line != "" and not line.startswith("#") for line in text.decode().split("\n"))
    return page


def at(page: Page, name: str, **labels: str) -> float:
    return page[name, frozenset(labels.items())]


def page_of(view: ProxyView, clock: Clock, *agents: AgentStats, **fields: Any) -> Page:
    view.check()
    stats = AgentdStats(agents=agents, config_digest=DIGEST, version="1.2.3", **fields)
    return parse(render(Sources(view, lambda: stats, clock, lambda: clock.now / 1e9 + 5000)))
