"""What an author says through self.session, and the metrics behind it."""

import threading

import pytest

from wardgate_agent import wire
from wardgate_agent.metrics import Metrics
from wardgate_agent.session import Session


def test_nothing_is_said_without_a_connection() -> None:
    session = Session()
    session.pause()
    session.health("degraded")
    assert session.is_paused
    assert session.greeting() == [[wire.HEALTH, b'{"state":"degraded"}'], [wire.PAUSE]]


def test_another_thread_goes_through_the_loop() -> None:
    """ZeroMQ sockets belong to one thread."""
    session = Session()
    direct: list[list[bytes]] = []
    through: list[list[bytes]] = []
    session.opened(direct.append, lambda send, frames: through.append(frames))
    thread = threading.Thread(target=session.pause)
    thread.start()
    thread.join()
    session.resume()
    assert (direct, through) == ([[wire.RESUME]], [[wire.PAUSE]])


@pytest.mark.parametrize(("state", "load"), [("ill", None), ("healthy", 1.5), ("healthy", -0.1)])
def test_health_is_checked(state: str, load: float | None) -> None:
    with pytest.raises(ValueError):
        Session().health(state, load=load)  # type: ignore[arg-type]


def test_metrics_snapshot() -> None:
    metrics = Metrics()
    assert not metrics
    hits = metrics.counter("hits")
    hits.inc(rule="a")
    hits.inc(2, rule="a")
    hits.inc(rule="b")
    gauge = metrics.gauge("queue")
    gauge.set(5)
    gauge.inc()
    gauge.dec(2)
    times = metrics.histogram("seconds", (0.1, 1.0))
    for value in (0.05, 0.1, 0.5, 7.0):
        times.observe(value)
    assert metrics.changed
    assert metrics.snapshot() == {
        "counters": [
            {"name": "hits", "labels": {"rule": "a"}, "value": 3},
            {"name": "hits", "labels": {"rule": "b"}, "value": 1},
        ],
        "gauges": [{"name": "queue", "labels": {}, "value": 4}],
        "histograms": [
            {"name": "seconds", "labels": {}, "sum": 7.65, "count": 4, "buckets": [[0.1, 2], [1.0, 3]]},
        ],
    }


def test_a_name_is_one_metric() -> None:
    metrics = Metrics()
    assert metrics.counter("a") is metrics.counter("a")
    with pytest.raises(ValueError, match="counter already"):
        metrics.gauge("a")


def test_series_are_bounded() -> None:
    metrics = Metrics()
    hits = metrics.counter("hits")
    for i in range(wire.MAX_SERIES + 5):
        hits.inc(client=str(i))
    hits.inc(client="0")
    assert len(hits.rows()) == wire.MAX_SERIES
    assert metrics.dropped == 5


@pytest.mark.parametrize("name", ["", "a-b", "1a", "x" * 101])
def test_metric_names_are_checked(name: str) -> None:
    with pytest.raises(ValueError):
        Metrics().counter(name)


def test_counters_only_grow_and_buckets_too() -> None:
    metrics = Metrics()
    with pytest.raises(ValueError):
        metrics.counter("a").inc(-1)
    with pytest.raises(ValueError):
        metrics.histogram("h", (2.0, 1.0))


def test_what_has_no_json_is_dropped_not_raised() -> None:
    """A metric is no reason to fail a request, and one NaN none to have the whole message refused."""
    metrics = Metrics()
    metrics.gauge("g").set(float("nan"))
    metrics.counter("c").inc(float("inf"))
    metrics.histogram("h").observe(float("-inf"))
    metrics.counter("c").inc(code=404)  # type: ignore[arg-type]
    assert metrics.dropped == 3
    assert metrics.snapshot()["counters"] == [{"name": "c", "labels": {"code": "404"}, "value": 1}]
