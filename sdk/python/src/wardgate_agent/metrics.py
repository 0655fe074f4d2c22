"""Counters, gauges and histograms that agentd re-exports with the label `agent`.

    self.refused = self.session.metrics.counter("refused")
    self.refused.inc(rule="sqli")

Series are bounded (agentd drops what is beyond as well); what is beyond is counted in `dropped`. Use
them from the event loop's thread.

Kind: pure.
"""

import math
import re
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from wardgate_agent.wire import MAX_SERIES

_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]{0,99}\Z")
SECONDS_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_Labels = tuple[tuple[str, str], ...]
M = TypeVar("M", bound="Metric")


class Metric:
    """A name and its series by labels."""

    side = ""  # its list in METRICS

    def __init__(self, name: str, registry: "Metrics") -> None:
        if not _NAME.match(name):
            raise ValueError(f"{name!r} is no metric name (letters, digits and _)")
        self.name = name
        self._registry = registry
        self._series: dict[_Labels, Any] = {}

    def _key(self, labels: dict[str, str], value: float) -> _Labels | None:
        """The series of these labels; None if there is no room for it or the value is no finite number."""
        if not math.isfinite(value):
            self._registry.dropped += 1  # it has no JSON, and is no reason to fail a request
            return None
        key = tuple(sorted((name, str(text)) for name, text in labels.items())) if labels else ()
        if key not in self._series and not self._registry.may_add():
            return None
        return key

    def rows(self) -> list[dict[str, Any]]:
        """Its series as METRICS carries them."""
        return [{"name": self.name, "labels": dict(key), "value": value} for key, value in self._series.items()]


class Counter(Metric):
    """Only grows."""

    side = "counters"

    def inc(self, amount: float = 1, **labels: str) -> None:
        if amount < 0:
            raise ValueError("a counter only grows")
        key = self._key(labels, amount)
        if key is not None:
            self._series[key] = self._series.get(key, 0) + amount
            self._registry.changed = True


class Gauge(Metric):
    """Goes up and down."""

    side = "gauges"

    def set(self, value: float, **labels: str) -> None:
        key = self._key(labels, value)
        if key is not None:
            self._series[key] = value
            self._registry.changed = True

    def inc(self, amount: float = 1, **labels: str) -> None:
        key = self._key(labels, amount)
        if key is not None:
            self._series[key] = self._series.get(key, 0) + amount
            self._registry.changed = True

    def dec(self, amount: float = 1, **labels: str) -> None:
        self.inc(-amount, **labels)


class Histogram(Metric):
    """How often which size. `buckets` are the upper bounds, inclusive; the last, infinity, is added by itself."""

    side = "histograms"

    def __init__(self, name: str, registry: "Metrics", buckets: Sequence[float]) -> None:
        super().__init__(name, registry)
        if not buckets or list(buckets) != sorted(set(buckets)):
            raise ValueError("buckets grow")
        self.buckets = tuple(map(float, buckets))

    def observe(self, value: float, **labels: str) -> None:
        key = self._key(labels, value)
        if key is None:
            return
        series = self._series.get(key)
        if series is None:
            series = self._series[key] = [0.0, [0] * (len(self.buckets) + 1)]
        series[0] += value
        series[1][bisect_left(self.buckets, value)] += 1
        self._registry.changed = True

    def rows(self) -> list[dict[str, Any]]:
        """Bucket counts are cumulative, as in Prometheus; `count` is the one of infinity."""
        out = []
        for key, (total, counts) in self._series.items():
            seen = 0
            buckets = []
            for bound, count in zip(self.buckets, counts, strict=False):
                seen += count
                buckets.append([bound, seen])
            row = {"name": self.name, "labels": dict(key), "sum": total, "count": sum(counts), "buckets": buckets}
            out.append(row)
        return out


class Metrics:
    """The metrics of one agent; asking for a name again gives the same metric."""

    def __init__(self) -> None:
        self._metrics: dict[str, Metric] = {}
        self.changed = False
        self.dropped = 0

    def counter(self, name: str) -> Counter:
        return self._get(name, Counter, lambda: Counter(name, self))

    def gauge(self, name: str) -> Gauge:
        return self._get(name, Gauge, lambda: Gauge(name, self))

    def histogram(self, name: str, buckets: Sequence[float] = SECONDS_BUCKETS) -> Histogram:
        return self._get(name, Histogram, lambda: Histogram(name, self, buckets))

    def __bool__(self) -> bool:
        return bool(self._metrics)

    def _get(self, name: str, kind: type[M], make: Callable[[], M]) -> M:
        metric = self._metrics.get(name)
        if metric is None:
            metric = self._metrics[name] = make()
        if not isinstance(metric, kind):
            raise ValueError(f"metric {name} is a {type(metric).__name__.lower()} already")
        return metric

    def may_add(self) -> bool:
        """Room for one more series? Counts the refusal if not."""
        if sum(len(metric._series) for metric in self._metrics.values()) < MAX_SERIES:
            return True
        self.dropped += 1
        return False

    def snapshot(self) -> dict[str, Any]:
        """The body of a METRICS message."""
        parts: dict[str, list[dict[str, Any]]] = {"counters": [], "gauges": [], "histograms": []}
        for metric in self._metrics.values():
            side = (
                "counters" if isinstance(metric, Counter) else "gauges" if isinstance(metric, Gauge) else "histograms"
            )
            parts[side].extend(metric.rows())
        return parts
