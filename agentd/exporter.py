"""Writes every number in the Prometheus text format: the workers' cells, agentd's own, the agents' own.

    proxy.seg               --ProxyView.adding_up-->  |
    lanes, ingress, audit   --AgentdStats---------->  |  pieces --> lines of text
    METRICS of the agents   --ReportedTotals------->  |

A page of a thousand routes takes agentd's loop longer than a decision may wait. So it is made piece by piece, and
whoever sends it lets the loop turn in between (agentd/admin_http.py). One series is always of one moment, the page
as a whole is not. Names, kinds and help stand in shared/metrics.py, escaping is the format's (docs/adr/0030).

Kind: IO (reads the segment and /proc).
"""

import os
import platform
import resource
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Final

import msgspec

from agentd.reported import Key, Value
from agentd.stats import AgentdStats, AgentStats
from shared import metrics as m
from shared import metrics_agentd as ma
from shared.clock import S, now_ns
from shared.defaults import METRICS_PIECE_LINES
from shared.segment import DRAINING, BreakerState, ProxyView, ReloadResult, WorkerRow, WorkerState

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


class Sources(msgspec.Struct, frozen=True):
    """Where the numbers come from. `proxy` is checked by its owner, once a second."""

    proxy: ProxyView
    stats: Callable[[], AgentdStats]
    clock: Callable[[], int] = now_ns
    wall_s: Callable[[], float] = time.time


# --- the page --------------------------------------------------------------------------------------


def render(sources: Sources) -> bytes:
    """The whole page, of CONTENT_TYPE, in one go."""
    return b"".join(pieces(sources))


def pieces(sources: Sources) -> Iterator[bytes]:
    """The page, a piece a step; a piece may be empty. No step takes much longer than METRICS_PIECE_LINES lines.

    1.0 us a line in the whole, where prometheus-client takes 6.5 (2026-11, 1,000 routes and 50 agents).
    """
    lines: list[str] = []
    for line in _lines(sources):
        if line:
            lines.append(line)
        if not line or len(lines) >= METRICS_PIECE_LINES:
            yield "".join(lines).encode()
            lines.clear()
    yield "".join(lines).encode()


def _lines(sources: Sources) -> Iterator[str]:
    """A line, or a family's head, an item; "" = a step of work that wrote nothing."""
    stats = sources.stats()
    yield from _of_proxy(sources)
    yield from _of_limits(sources.proxy)
    agents = []
    for agent in stats.agents:
        if agent is not None:
            agents.append(agent)
        yield ""
    yield from _of_agents(agents)
    yield from _of_agentd(stats, sources)
    yield ""
    yield from _of_processes(sources.proxy)
    yield from _of_reports(agents)


def _head(name: str, kind: m.Kind, help: str) -> str:
    told = help.replace("\\", r"\\").replace("\n", r"\n")
    return f"# HELP {name} {told}\n# TYPE {name} {kind.value}\n"


def _labels(names: Iterable[str], values: Iterable[str]) -> str:
    """`a="x",b="y"`; "" without any."""
    pairs = []
    for name, value in zip(names, values, strict=True):
        if "\\" in value or '"' in value or "\n" in value:
            value = value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
        pairs.append(f'{name}="{value}"')
    return ",".join(pairs)


def _braced(labels: str) -> str:
    return f"{{{labels}}}" if labels else ""


def _one(metric: m.Metric, rows: Iterable[tuple[Sequence[str], float]]) -> Iterator[str]:
    yield _head(metric.name, metric.kind, metric.help)
    names = metric.labels
    for values, number in rows:
        yield f"{metric.name}{_braced(_labels(names, values))} {_number(number)}\n"


def _histogram(metric: m.Metric, rows: Iterable[tuple[Sequence[str], Sequence[int], float]]) -> Iterator[str]:
    """Rows of label values, counts per bucket (not cumulative), sum in seconds."""
    yield _head(metric.name, metric.kind, metric.help)
    for values, counts, total_s in rows:
        yield from _distribution(metric.name, _labels(metric.labels, values), _LE, list(accumulate(counts)), total_s)


def _distribution(
    name: str, labels: str, bounds: Sequence[str], counts: Sequence[float], total: float
) -> Iterator[str]:
    """One histogram; counts are cumulative, the last one is that of all."""
    before = f"{labels}," if labels else ""
    for bound, count in zip(bounds, counts, strict=True):
        yield f'{name}_bucket{{{before}le="{bound}"}} {_number(count)}\n'
    yield f"{name}_count{_braced(labels)} {_number(counts[-1])}\n"
    yield f"{name}_sum{_braced(labels)} {_number(total)}\n"


def _number(value: float) -> str:
    return repr(value) if isinstance(value, float) else str(int(value))


_LE: Final = (*map(str, m.DURATION_BOUNDS_S), "+Inf")


def _by_metric(table: Sequence[m.Cell]) -> dict[m.Metric, list[m.Cell]]:
    found: dict[m.Metric, list[m.Cell]] = {}
    for cell in table:
        found.setdefault(cell.metric, []).append(cell)
    return found


_WORKER: Final = _by_metric(m.WORKER_TABLE)
_ROUTE: Final = _by_metric(m.ROUTE_TABLE)
_UPSTREAM: Final = _by_metric(m.UPSTREAM_TABLE)
_LIMIT: Final = _by_metric(m.LIMIT_TABLE)


def _of_proxy(sources: Sources) -> Iterator[str]:
    adding = sources.proxy.adding_up()
    while True:
        try:
            next(adding)
        except StopIteration as end:
            totals = end.value
            break
        yield ""
    if totals is None:
        return  # no proxy, or one that was killed while it moved counts: absent is true, 0 is not
    for metric, cells in _WORKER.items():
        yield from _one(metric, ((cell.values, totals.worker[cell.at]) for cell in cells))
    for metric, cells in _ROUTE.items():
        yield from _one(
            metric,
            (((route, *cell.values), block[cell.at]) for route, block in totals.routes.items() for cell in cells),
        )
    buckets = slice(m.R_DURATION, m.R_DURATION + m.DURATION_BUCKETS)
    yield from _histogram(
        m.REQUEST_DURATION,
        (((route,), block[buckets], block[m.R_DURATION_SUM_NS] / S) for route, block in totals.routes.items()),
    )
    began_s = sources.wall_s() - sources.clock() / S  # of the monotonic clock
    for metric, cells in _UPSTREAM.items():
        yield from _one(
            metric,
            (
                ((name,), began_s + row[cell.at] / S)
                for name, row in totals.upstreams.items()
                for cell in cells
                if row[cell.at]
            ),
        )


def _of_limits(proxy: ProxyView) -> Iterator[str]:
    limits = proxy.limits()
    counts = list(zip(limits, proxy.limit_counts(limits), strict=True))
    yield ""
    for metric, cells in _LIMIT.items():
        yield from _one(metric, (((row.name,), sums[cell.at]) for row, sums in counts if row.name for cell in cells))


def _of_agents(agents: Sequence[AgentStats]) -> Iterator[str]:
    def each(metric: m.Metric, number: Callable[[AgentStats], float]) -> Iterator[str]:
        return _one(metric, (((agent.name,), number(agent)) for agent in agents))

    modes = [(agent.name, mode, calls) for agent in agents for mode, calls in
             (("enforce", agent.calls), ("observe", agent.observed))]  # fmt: skip
    yield from _one(ma.A_CALLS, (((name, mode, word), n) for name, mode, calls in modes for word, n in calls.items()))
    empty = (0,) * m.DURATION_BUCKETS
    yield from _histogram(ma.A_DURATION, (((a.name,), a.duration_buckets or empty, a.duration_s_total) for a in agents))
    for metric, number in _OF_AGENT:
        yield from each(metric, number)
    for metric, counts in (
        (ma.A_COMPLETIONS, [(a.name, a.completions) for a in agents]),
        (ma.A_BODY_BYTES, [(a.name, a.body_bytes) for a in agents]),
    ):
        yield from _one(metric, (((name, word), n) for name, by_word in counts for word, n in by_word.items()))
    states = [state.word for state in BreakerState]
    yield from _one(ma.A_BREAKER, (((a.name, state), a.breaker == state) for a in agents for state in states))
    counted = [agent for agent in agents if agent.outstanding_bytes.limit]  # zmq-v1 has one call per connection
    for metric, read in _OUTSTANDING:
        yield from _one(metric, (((agent.name,), read(agent)) for agent in counted))
    refusals = [(agent.name, agent.sends_refused) for agent in agents]
    yield from _one(
        ma.A_SENDS_REFUSED, (((name, reason), n) for name, counts in refusals for reason, n in sorted(counts.items()))
    )


_OUTSTANDING: Final[tuple[tuple[m.Metric, Callable[[AgentStats], int]], ...]] = (
    (ma.A_BYTES, lambda agent: agent.outstanding_bytes.total),
    (ma.A_BYTES_FULLEST, lambda agent: agent.outstanding_bytes.fullest),
    (ma.A_BYTES_LIMIT, lambda agent: agent.outstanding_bytes.limit),
    (ma.A_MESSAGES, lambda agent: agent.outstanding_messages.total),
    (ma.A_MESSAGES_FULLEST, lambda agent: agent.outstanding_messages.fullest),
    (ma.A_MESSAGES_LIMIT, lambda agent: agent.outstanding_messages.limit),
)
_OF_AGENT: Final[tuple[tuple[m.Metric, Callable[[AgentStats], float]], ...]] = (
    (ma.A_IN_FLIGHT, lambda agent: agent.in_flight),
    (ma.A_LIMIT, lambda agent: agent.in_flight_limit),
    (ma.A_QUEUED, lambda agent: agent.queued),
    (ma.A_QUEUE_LIMIT, lambda agent: agent.queue_limit),
    (ma.A_QUEUE_TOTAL, lambda agent: agent.queued_total),
    (ma.A_QUEUE_SECONDS, lambda agent: agent.queue_s_total),
    (ma.A_HELD, lambda agent: agent.held),
    (ma.A_PINNED, lambda agent: agent.pinned),
    (ma.A_INSTANCES, lambda agent: agent.instances),
    (ma.A_INSTANCES_LIMIT, lambda agent: agent.instances_limit),
    (ma.A_OPENINGS, lambda agent: agent.breaker_openings),
    (ma.A_LATE, lambda agent: agent.late_verdicts),
    (ma.A_GARBAGE, lambda agent: agent.garbage),
    (ma.A_OPS_REFUSED, lambda agent: agent.refused_ops),
)


def _of_agentd(stats: AgentdStats, sources: Sources) -> Iterator[str]:
    proxy, now = sources.proxy, sources.clock()
    workers = proxy.workers()
    yield from _one(ma.M_SESSIONS_REFUSED, (((code,), count) for code, count in sorted(stats.sessions_refused.items())))
    taken = [((row.route, row.model, "input"), row.input) for row in stats.tokens]
    given = [((row.route, row.model, "output"), row.output) for row in stats.tokens]
    yield from _one(ma.M_TOKENS, taken + given)
    yield from _one(ma.M_TOKEN_RESPONSES, (((row.route, row.model), row.responses) for row in stats.tokens))
    for metric, number in (
        (ma.M_INGRESS_MESSAGES, stats.ingress_messages),
        (ma.M_INGRESS_MALFORMED, stats.ingress_malformed),
        (ma.M_INGRESS_WORKERS, stats.workers),
        (ma.M_UNKNOWN, stats.ingress_unknown),
        (ma.M_REPLIES_DROPPED, stats.replies_dropped),
        (ma.M_UNSENT, stats.hop_unsent.now),
        (ma.M_UNSENT_LIMIT, stats.hop_unsent.limit),
        (ma.M_EVENTS, stats.events_pending),
        (ma.M_EXCHANGES, stats.exchanges_open),
        (ma.M_CLIENT_BUFFER, stats.client_buffer_bytes),
        (ma.M_MEMORY_CUTS, stats.memory_cuts),
        (ma.M_SHUT_OUT, stats.gate[0]),
        (ma.M_HANDSHAKES_REFUSED, stats.gate[1]),
        (ma.M_AUDIT_WRITTEN, stats.audit_written),
        (ma.M_AUDIT_DROPPED, stats.audit_queued.refused),
        (ma.M_AUDIT_QUEUED, stats.audit_queued.now),
        (ma.M_AUDIT_QUEUED_LIMIT, stats.audit_queued.limit),
        (ma.M_AUDIT_BYTES, stats.audit_bytes.now),
        (ma.M_AUDIT_BYTES_LIMIT, stats.audit_bytes.limit),
        (ma.M_DIGEST_MISMATCH, _is_mismatch(stats.config_digest, proxy, workers)),
        (ma.M_PROXY_UP, proxy.is_alive(now)),
    ):
        yield from _one(metric, (((), number),))
    for metric, of in (
        (ma.M_LOCAL, "now"),
        (ma.M_LOCAL_LIMIT, "limit"),
        (ma.M_LOCAL_REFUSED, "refused"),
    ):
        yield from _one(metric, (((name,), getattr(bound, of)) for name, bound in stats.local.items()))
    reloads = {"agentd": stats.reload, **({"proxy": proxy.reload} if proxy.is_mapped else {})}.items()
    yield from _one(ma.M_RELOADS, (((name, w), getattr(r, w)) for name, r in reloads for w in _RELOAD_RESULTS))
    yield from _one(ma.M_RELOAD_OK, (((name,), not r.has_failed) for name, r in reloads))
    began_s = sources.wall_s() - now / S  # of the monotonic clock
    yield from _one(ma.M_RELOAD_AT, (((name,), began_s + r.applied_ns / S) for name, r in reloads if r.applied_ns))
    states = [worker.state.word if worker.is_live(now) else "stale" for worker in workers]
    words = (WorkerState.STARTING.word, WorkerState.READY.word, WorkerState.DRAINING.word, "stale")
    yield from _one(ma.M_WORKERS, (((word,), states.count(word)) for word in words))
    yield from _one(ma.M_BUILD, (((stats.version, platform.python_version()), 1),))


_RELOAD_RESULTS: Final = [result.word for result in ReloadResult if result]


def _is_mismatch(digest: str, proxy: ProxyView, workers: Sequence[WorkerRow]) -> bool:
    others = {
        proxy.config_digest,
        *(worker.config_digest for worker in workers if worker.pid and worker.state is not DRAINING),
    }
    return bool(others - {digest, ""})


def _of_processes(proxy: ProxyView) -> Iterator[str]:
    found = [("agentd", "", os.getpid())]
    if proxy.pid:
        found.append(("proxy", "", proxy.pid))
    found.extend(("worker", str(worker.slot), worker.pid) for worker in proxy.workers() if worker.pid)
    for metric, read in ((ma.M_RSS, _rss_bytes), (ma.M_FDS, _open_fds), (ma.M_MAX_FDS, _max_fds)):
        numbers = ((process, slot, read(pid)) for process, slot, pid in found)
        yield from _one(metric, (((process, slot), n) for process, slot, n in numbers if n is not None))


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


def _max_fds(pid: int) -> int | None:
    try:
        return resource.prlimit(pid, resource.RLIMIT_NOFILE)[0]
    except OSError:
        return None


def _of_reports(agents: Sequence[AgentStats]) -> Iterator[str]:
    reports = [(agent.name, agent.reported) for agent in agents if agent.reported is not None]
    yield from _one(ma.A_SERIES, (((agent,), len(totals.series)) for agent, totals in reports))
    reasons = [(agent, (("limit", t.over_limit), ("malformed", t.malformed))) for agent, t in reports]
    yield from _one(ma.A_SERIES_DROPPED, (((agent, word), count) for agent, pairs in reasons for word, count in pairs))
    owners: dict[str, tuple[m.Kind, str]] = {}  # of each name that a line begins with
    families: dict[tuple[m.Kind, str], list[tuple[str, Key, Value]]] = {}
    for agent, totals in reports:
        for key, value in totals.series.items():
            owner = (key.kind, key.name)
            names = [key.name + ending for ending in _ENDINGS[key.kind]]
            if any(owners.get(name, owner) != owner for name in names):
                continue  # a name belongs to the kind that had it first: a family of two kinds is unreadable
            owners.update(dict.fromkeys(names, owner))
            families.setdefault(owner, []).append((agent, key, value))
        yield ""
    for (kind, own_name), series in families.items():
        name = ma.REPORTED_PREFIX + own_name + _ENDINGS[kind][0]
        yield _head(name, kind, "Reported by agents.")
        for agent, key, value in series:
            yield from _of_report(name, agent, key, value)


_ENDINGS: Final = {
    m.Kind.COUNTER: ("_total",),
    m.Kind.GAUGE: ("",),
    m.Kind.HISTOGRAM: ("", "_bucket", "_sum", "_count"),
}


def _of_report(name: str, agent: str, key: Key, value: Value) -> Iterator[str]:
    labels = _labels(("agent", *(label for label, _ in key.labels)), (agent, *(text for _, text in key.labels)))
    if key.kind is not m.Kind.HISTOGRAM:
        yield f"{name}{{{labels}}} {_number(value.numbers[0])}\n"
        return
    count, *counts, total = value.numbers
    yield from _distribution(name, labels, (*map(str, map(float, value.bounds)), "+Inf"), (*counts, count), total)
