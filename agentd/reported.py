"""Adds up the metrics that an agent's instances report, so that no total ever goes down.

An instance that leaves takes its gauges along and leaves its counts; one that begins again at less goes on where it
was. What would make the page unreadable, or is too much, is dropped and counted. How the page is written stands in
agentd/exporter.py.

Kind: pure.
"""

import math
import re
from collections.abc import Generator, Sequence
from typing import Final, NamedTuple

from shared import metrics as m
from shared.defaults import AGENT_METRIC_BUCKETS, AGENT_METRIC_CHARS, AGENT_METRIC_LABELS, MAX_AGENT_METRIC_SERIES
from shared.wire.agent_messages import HistogramSeries, Metrics, Series

_NAME: Final = re.compile(rf"[a-zA-Z_][a-zA-Z0-9_]{{0,{AGENT_METRIC_CHARS - 1}}}\Z")

_TOTAL: Final = re.compile(r"(_total)+\Z")


class Key(NamedTuple):
    """One series of an agent; a counter's name is without `_total`."""

    kind: m.Kind
    name: str
    labels: tuple[tuple[str, str], ...]


class Value(NamedTuple):
    """(value,) of a counter or gauge; (count, *cumulative buckets, sum) of a histogram with these bounds."""

    numbers: tuple[float, ...]
    bounds: tuple[float, ...] = ()

    def plus(self, other: "Value") -> "Value":
        return Value(tuple(a + b for a, b in zip(self.numbers, other.numbers, strict=True)), self.bounds)

    def began_again(self, before: "Value") -> bool:
        """A count went down. (A histogram's sum may: it may observe negative values.)"""
        return self.numbers[0] < before.numbers[0]


class ReportedTotals(NamedTuple):
    """What `Reported` came to at one moment."""

    series: dict[Key, Value]
    over_limit: int
    malformed: int


class Reported:
    """One agent's own metrics: the sum over its instances, those that are gone included."""

    __slots__ = ("_gone", "_live", "malformed", "over_limit")

    def __init__(self) -> None:
        self._live: dict[str, dict[Key, Value]] = {}
        self._gone: dict[Key, Value] = {}  # never gauges
        self.over_limit = 0
        self.malformed = 0

    def report(self, instance: str, said: Metrics) -> None:
        """A METRICS message: totals since that instance's start. Never raises; what it drops it counts."""
        before = self._live.get(instance, {})
        # What is not said any more stays, gauges aside: they hold now or not at all.
        now = self._live[instance] = {key: value for key, value in before.items() if key.kind is not m.Kind.GAUGE}
        known = {*self._gone, *(key for series in self._live.values() for key in series)}
        rows: tuple[tuple[m.Kind, Sequence[Series | HistogramSeries]], ...] = (
            (m.Kind.COUNTER, said.counters),
            (m.Kind.GAUGE, said.gauges),
            (m.Kind.HISTOGRAM, said.histograms),
        )
        for kind, series in rows:
            self.over_limit += max(0, len(series) - MAX_AGENT_METRIC_SERIES)
            for one in series[:MAX_AGENT_METRIC_SERIES]:  # a message may hold thousands: not even looked at
                parsed = _parse(kind, one)
                if parsed is None:
                    self.malformed += 1
                elif parsed[0] not in known and len(known) >= MAX_AGENT_METRIC_SERIES:
                    self.over_limit += 1
                else:
                    known.add(parsed[0])
                    self._take(now, *parsed)

    def gone(self, instance: str) -> None:
        """The instance left: its gauges with it, its counts stay."""
        for key, value in self._live.pop(instance, {}).items():
            if key.kind is not m.Kind.GAUGE:
                self._keep(key, value)

    def totals(self) -> ReportedTotals:
        """A copy, added up."""
        adding = self.adding_up()
        try:
            while True:
                next(adding)
        except StopIteration as end:
            made: ReportedTotals = end.value
            return made

    def adding_up(self) -> Generator[None, None, ReportedTotals]:
        """`totals` for somebody who may not stand still: a step adds up one instance."""
        sums = dict(self._gone)
        over_limit, malformed = self.over_limit, self.malformed
        for series in list(self._live.values()):  # of this moment: a later report is another dict
            for key, value in list(series.items()):
                sums[key] = sums[key].plus(value) if key in sums else value
            yield
        return ReportedTotals(sums, over_limit, malformed)

    def _take(self, now: dict[Key, Value], key: Key, value: Value) -> None:
        for series in (self._gone, *self._live.values()):
            if key in series and series[key].bounds != value.bounds:
                del series[key]  # another version of the agent: sums over different buckets mean nothing
        before = now.get(key)
        if before is not None and value.began_again(before):
            self._keep(key, before)
        now[key] = value

    def _keep(self, key: Key, value: Value) -> None:
        self._gone[key] = self._gone[key].plus(value) if key in self._gone else value


def _parse(kind: m.Kind, one: Series | HistogramSeries) -> tuple[Key, Value] | None:
    """None = it would make the page unreadable, and with it everybody's numbers."""
    labels: dict[str, str] = {}
    for given, text in one.labels.items():
        label = f"exported_{given}" if given in ("agent", "le") else given
        if not _NAME.match(label) or label.startswith("__") or label in labels or not _is_text(text):
            return None
        labels[label] = text
    if not _NAME.match(one.name) or len(labels) > AGENT_METRIC_LABELS:
        return None
    name = _TOTAL.sub("", one.name) if kind is m.Kind.COUNTER else one.name
    key = Key(kind, name, tuple(sorted(labels.items())))
    if isinstance(one, Series):
        is_wrong = not math.isfinite(one.value) or (kind is m.Kind.COUNTER and one.value < 0)
        return None if is_wrong else (key, Value((one.value,)))
    bounds = tuple(bound for bound, _ in one.buckets)
    counts = [count for _, count in one.buckets]
    is_growing = list(bounds) == sorted(set(bounds)) and [0, *counts, one.count] == sorted([0, *counts, one.count])
    if len(bounds) > AGENT_METRIC_BUCKETS or not is_growing or not all(map(math.isfinite, (one.sum, *bounds))):
        return None
    return key, Value((one.count, *counts, one.sum), bounds)


def _is_text(text: str) -> bool:
    if len(text) > AGENT_METRIC_CHARS:
        return False
    try:
        text.encode()
    except UnicodeEncodeError:  # half a surrogate pair
        return False
    return True
