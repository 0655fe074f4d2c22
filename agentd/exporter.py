"""Puts every number into the Prometheus text format: the workers' cells, agentd's own, the agents' own.

    proxy.seg               --ProxyView.totals-->  |
    lanes, ingress, audit   --AgentdStats------->  |  _Collected.collect --prometheus-client--> text
    METRICS of the agents   --Reported---------->  |

Names, kinds and help stand in shared/metrics.py. Nothing is counted here but what agents report, because
an instance that leaves takes its numbers along, and a total must not go down.

Kind: IO (reads the segment and /proc).
"""

import math
import os
import platform
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, Final, NamedTuple

import msgspec
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4 as CONTENT_TYPE
from prometheus_client import generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from shared import metrics as m
from shared.clock import S, now_ns
from shared.defaults import AGENT_METRIC_BUCKETS, AGENT_METRIC_CHARS, AGENT_METRIC_LABELS, MAX_AGENT_METRIC_SERIES
from shared.segment import BreakerState, ProxyView, WorkerRow, WorkerState
from shared.wire.agent_messages import HistogramSeries, Metrics, Series

__all__ = ["CONTENT_TYPE", "AgentStats", "AgentdStats", "Reported", "Sources", "render"]

# --- what agents report ----------------------------------------------------------------------------

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
        sums = dict(self._gone)
        for series in self._live.values():
            for key, value in series.items():
                sums[key] = sums[key].plus(value) if key in sums else value
        return ReportedTotals(sums, self.over_limit, self.malformed)

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


# --- what agentd knows -----------------------------------------------------------------------------


class AgentStats(msgspec.Struct, frozen=True):
    """One lane. Counts since agentd's start; `calls` and `observed` by Outcome.word."""

    name: str
    calls: Mapping[str, int] = {}
    observed: Mapping[str, int] = {}
    in_flight: int = 0
    queued: int = 0
    queued_total: int = 0
    queue_s_total: float = 0.0
    instances: int = 0
    breaker: str = "closed"  # BreakerState.word
    breaker_openings: int = 0
    late_verdicts: int = 0
    garbage: int = 0
    refused_ops: int = 0
    duration_buckets: Sequence[int] = ()  # by shared.metrics.bucket_of
    duration_s_total: float = 0.0
    reported: ReportedTotals | None = None

    @classmethod
    def of_lane(
        cls, lane: Mapping[str, Any], *, garbage: int = 0, refused_ops: int = 0, reported: Reported | None = None
    ) -> "AgentStats":
        """From `Lane.snapshot()`, and what is counted beside the lane."""
        return cls(
            name=lane["name"],
            calls=lane["outcomes"],
            observed=lane["observed"],
            in_flight=lane["in_flight"],
            queued=lane["queued"],
            queued_total=lane["queued_total"],
            queue_s_total=lane["queue_ms_total"] / 1000,
            instances=len(lane["instances"]),
            breaker=lane["breaker"]["state"],
            breaker_openings=lane["breaker"]["opened_total"],
            late_verdicts=lane["late_verdicts"],
            garbage=garbage,
            refused_ops=refused_ops,
            duration_buckets=lane["duration_buckets"],
            duration_s_total=lane["duration_ms_total"] / 1000,
            reported=reported.totals() if reported is not None else None,
        )


class AgentdStats(msgspec.Struct, frozen=True):
    """Everything that agentd knows at one moment; copies, so that another thread may write them out."""

    agents: Sequence[AgentStats] = ()
    config_digest: str = ""
    version: str = ""
    workers: int = 0
    ingress_messages: int = 0
    ingress_malformed: int = 0
    audit_written: int = 0
    audit_dropped: int = 0
    audit_queued: int = 0
    sessions_refused: Mapping[str, int] = {}  # by code of REFUSE


class Sources(msgspec.Struct, frozen=True):
    """Where the numbers come from. `proxy` is checked by its owner, once a second."""

    proxy: ProxyView
    stats: Callable[[], AgentdStats]
    clock: Callable[[], int] = now_ns
    wall_s: Callable[[], float] = time.time


def render(sources: Sources) -> bytes:
    """The whole page, of CONTENT_TYPE.

    6.5 us a line (2026-11): 14 ms with 50 routes and 10 agents, 250 ms with 1,000 and 50. It may run in
    a thread beside the loop if the view is used by that thread alone and `stats` gives what was taken
    on the loop.
    """
    return generate_latest(_Collected(sources))


class _Collected(Collector):
    """What prometheus-client asks; one per scrape."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources

    def collect(self) -> Iterator[Family]:
        stats = self._sources.stats()
        yield from _of_proxy(self._sources)
        yield from _of_agents(stats.agents)
        yield from _of_agentd(stats, self._sources)
        yield from _of_processes(self._sources.proxy)
        yield from _of_reports(stats.agents)


def _one(metric: m.Metric, rows: Iterable[tuple[Sequence[str], float]]) -> Family:
    make = CounterMetricFamily if metric.kind is m.Kind.COUNTER else GaugeMetricFamily
    family = make(metric.name, metric.help, labels=metric.labels)
    for values, number in rows:
        family.add_metric(values, number)
    return family


def _histogram(metric: m.Metric, rows: Iterable[tuple[Sequence[str], Sequence[int], float]]) -> Family:
    """Rows of label values, counts per bucket (not cumulative), sum in seconds."""
    family = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
    for values, counts, total_s in rows:
        family.add_metric(values, list(zip(_LE, accumulate(counts), strict=True)), total_s)
    return family


_LE: Final = (*map(str, m.DURATION_BOUNDS_S), "+Inf")


def _by_metric(table: Sequence[m.Cell]) -> dict[m.Metric, list[m.Cell]]:
    found: dict[m.Metric, list[m.Cell]] = {}
    for cell in table:
        found.setdefault(cell.metric, []).append(cell)
    return found


_WORKER: Final = _by_metric(m.WORKER_TABLE)
_ROUTE: Final = _by_metric(m.ROUTE_TABLE)
_UPSTREAM: Final = _by_metric(m.UPSTREAM_TABLE)


def _of_proxy(sources: Sources) -> Iterator[Family]:
    totals = sources.proxy.totals()
    if totals is None:
        return  # no proxy, or one that was killed while it moved counts: absent is true, 0 is not
    for metric, cells in _WORKER.items():
        yield _one(metric, ((cell.values, totals.worker[cell.at]) for cell in cells))
    for metric, cells in _ROUTE.items():
        yield _one(
            metric,
            (((route, *cell.values), block[cell.at]) for route, block in totals.routes.items() for cell in cells),
        )
    buckets = slice(m.R_DURATION, m.R_DURATION + m.DURATION_BUCKETS)
    yield _histogram(
        m.REQUEST_DURATION,
        (((route,), block[buckets], block[m.R_DURATION_SUM_NS] / S) for route, block in totals.routes.items()),
    )
    began_s = sources.wall_s() - sources.clock() / S  # of the monotonic clock
    for metric, cells in _UPSTREAM.items():
        yield _one(
            metric,
            (
                ((name,), began_s + row[cell.at] / S)
                for name, row in totals.upstreams.items()
                for cell in cells
                if row[cell.at]
            ),
        )


def _of_agents(agents: Sequence[AgentStats]) -> Iterator[Family]:
    def each(metric: m.Metric, number: Callable[[AgentStats], float]) -> Family:
        return _one(metric, (((agent.name,), number(agent)) for agent in agents))

    modes = [(agent.name, mode, calls) for agent in agents for mode, calls in
             (("enforce", agent.calls), ("observe", agent.observed))]  # fmt: skip
    yield _one(m.A_CALLS, (((name, mode, word), n) for name, mode, calls in modes for word, n in calls.items()))
    empty = (0,) * m.DURATION_BUCKETS
    yield _histogram(m.A_DURATION, (((a.name,), a.duration_buckets or empty, a.duration_s_total) for a in agents))
    yield each(m.A_IN_FLIGHT, lambda agent: agent.in_flight)
    yield each(m.A_QUEUED, lambda agent: agent.queued)
    yield each(m.A_INSTANCES, lambda agent: agent.instances)
    states = [state.word for state in BreakerState]
    yield _one(m.A_BREAKER, (((a.name, state), a.breaker == state) for a in agents for state in states))
    yield each(m.A_OPENINGS, lambda agent: agent.breaker_openings)
    yield each(m.A_LATE, lambda agent: agent.late_verdicts)
    yield each(m.A_GARBAGE, lambda agent: agent.garbage)
    yield each(m.A_OPS_REFUSED, lambda agent: agent.refused_ops)
    yield each(m.A_QUEUE_TOTAL, lambda agent: agent.queued_total)
    yield each(m.A_QUEUE_SECONDS, lambda agent: agent.queue_s_total)


def _of_agentd(stats: AgentdStats, sources: Sources) -> Iterator[Family]:
    proxy, now = sources.proxy, sources.clock()
    workers = proxy.workers()
    yield _one(m.M_SESSIONS_REFUSED, (((code,), count) for code, count in sorted(stats.sessions_refused.items())))
    for metric, number in (
        (m.M_INGRESS_MESSAGES, stats.ingress_messages),
        (m.M_INGRESS_MALFORMED, stats.ingress_malformed),
        (m.M_INGRESS_WORKERS, stats.workers),
        (m.M_AUDIT_WRITTEN, stats.audit_written),
        (m.M_AUDIT_DROPPED, stats.audit_dropped),
        (m.M_AUDIT_QUEUED, stats.audit_queued),
        (m.M_DIGEST_MISMATCH, _is_mismatch(stats.config_digest, proxy, workers)),
        (m.M_PROXY_UP, proxy.is_alive(now)),
    ):
        yield _one(metric, (((), number),))
    states = [worker.state.word if worker.is_live(now) else "stale" for worker in workers]
    words = (WorkerState.STARTING.word, WorkerState.READY.word, WorkerState.DRAINING.word, "stale")
    yield _one(m.M_WORKERS, (((word,), states.count(word)) for word in words))
    yield _one(m.M_BUILD, (((stats.version, platform.python_version()), 1),))


def _is_mismatch(digest: str, proxy: ProxyView, workers: Sequence[WorkerRow]) -> bool:
    others = {proxy.config_digest, *(worker.config_digest for worker in workers if worker.pid)}
    return bool(others - {digest, ""})


def _of_processes(proxy: ProxyView) -> Iterator[Family]:
    found = [("agentd", "", os.getpid())]
    if proxy.pid:
        found.append(("proxy", "", proxy.pid))
    found.extend(("worker", str(worker.slot), worker.pid) for worker in proxy.workers() if worker.pid)
    for metric, read in ((m.M_RSS, _rss_bytes), (m.M_FDS, _open_fds)):
        numbers = ((process, slot, read(pid)) for process, slot, pid in found)
        yield _one(metric, (((process, slot), n) for process, slot, n in numbers if n is not None))


def _rss_bytes(pid: int) -> int | None:
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):
        return None


def _open_fds(pid: int) -> int | None:
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return None


def _of_reports(agents: Sequence[AgentStats]) -> Iterator[Family]:
    reports = [(agent.name, agent.reported) for agent in agents if agent.reported is not None]
    yield _one(m.A_SERIES, (((agent,), len(totals.series)) for agent, totals in reports))
    reasons = [(agent, (("limit", t.over_limit), ("malformed", t.malformed))) for agent, t in reports]
    yield _one(m.A_SERIES_DROPPED, (((agent, word), count) for agent, pairs in reasons for word, count in pairs))
    owners: dict[str, tuple[m.Kind, str]] = {}  # of each name that a line begins with
    families: dict[tuple[m.Kind, str], Family] = {}
    for agent, totals in reports:
        for key, value in totals.series.items():
            owner = (key.kind, key.name)
            names = [key.name + ending for ending in _ENDINGS[key.kind]]
            if any(owners.get(name, owner) != owner for name in names):
                continue  # a name belongs to the kind that had it first: a family of two kinds is unreadable
            owners.update(dict.fromkeys(names, owner))
            if owner not in families:
                families[owner] = Family(m.REPORTED_PREFIX + key.name, "Reported by agents.", key.kind.value)
            _add_reported(families[owner], agent, key, value)
    yield from families.values()


_ENDINGS: Final = {
    m.Kind.COUNTER: ("_total",),
    m.Kind.GAUGE: ("",),
    m.Kind.HISTOGRAM: ("", "_bucket", "_sum", "_count"),
}


def _add_reported(family: Family, agent: str, key: Key, value: Value) -> None:
    # Not add_metric: it wants the same label names of every series of a family.
    labels = {"agent": agent, **dict(key.labels)}
    if key.kind is not m.Kind.HISTOGRAM:
        family.add_sample(family.name + _ENDINGS[key.kind][0], labels, value.numbers[0])
        return
    count, *counts, total = value.numbers
    for bound, seen in zip((*map(str, map(float, value.bounds)), "+Inf"), (*counts, count), strict=True):
        family.add_sample(family.name + "_bucket", {**labels, "le": bound}, seen)
    family.add_sample(family.name + "_count", labels, count)
    family.add_sample(family.name + "_sum", labels, total)
