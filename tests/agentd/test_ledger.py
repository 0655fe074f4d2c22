"""What is counted of a lane's calls, and which of them the flight recorder shows."""

from agentd.stats import snapshot
from shared.decision import Outcome
from shared.defaults import FLIGHT_RECORDER_CALLS, FLIGHT_RECORDER_MS
from shared.metrics import DURATION_BOUNDS_NS
from shared.wire.envelope import CancelReason
from shared.wire.verdict import Screened
from tests.agentd.fakes import LaneBench
from tests.support import Clock

ERROR = Screened(error="oops: broken")


def test_flight_recorder_shows_the_last_calls(clock: Clock) -> None:
    """Newest first, with times and where they went; refusals by a full queue or breaker are only counted."""
    bench = LaneBench(clock, max_concurrent_calls=1, max_queue=1)
    instance = bench.instance()
    bench.call()
    bench.call(timeout_ms=1000)
    bench.call()
    clock.ms(3)
    instance.answer()
    clock.ms(4)
    instance.answer(ERROR)
    clock.ms(1)
    found = snapshot(bench.lane, clock())
    newest, oldest = found["last_calls"]
    assert newest == {
        "ago_ms": 1.0,
        "call": "c2",
        "event": "request_headers",
        "outcome": "agent_error",
        "instance": "i1",
        "queued_ms": 3.0,
        "duration_ms": 4.0,
        "message": "oops: broken",
    }
    assert (oldest["outcome"], oldest["duration_ms"]) == ("decision", 3.0)
    assert found["outcomes"]["queue_full"] == 1
    assert found["duration_ms_total"] == 7.0
    assert found["queue_ms_total"] == 3.0
    assert sum(found["duration_buckets"]) == 2


def test_snapshot_shows_instances_and_limits(clock: Clock) -> None:
    """What `wardgate agents` prints."""
    bench = LaneBench(clock, max_concurrent_calls=7)
    bench.instance("i9", limit=3)
    bench.call(exchange=1)
    found = snapshot(bench.lane, clock())
    assert (found["in_flight"], found["queued"], found["pinned"]) == (1, 0, 1)
    assert found["max_concurrent_calls"] == 7
    assert found["instances"][0]["name"] == "i9"
    assert found["instances"][0]["limit"] == 3
    assert found["breaker"]["state"] == "closed"


def test_observers_are_counted_apart(clock: Clock) -> None:
    """They tell nothing about the agent's refusals of requests, but their durations count."""
    bench = LaneBench(clock)
    instance = bench.instance()
    bench.call(observer=True)
    instance.answer()
    ledger = bench.lane.ledger
    assert (ledger.outcomes[Outcome.DECISION], ledger.observed[Outcome.DECISION]) == (0, 1)
    assert sum(ledger.buckets) == 1


def test_durations_fall_into_the_published_buckets(clock: Clock) -> None:
    """A duration equal to a bound is below it (le); cancelled and unsent calls have none."""
    bench = LaneBench(clock)
    instance = bench.instance()
    bench.call(timeout_ms=600_000)
    clock.now += DURATION_BOUNDS_NS[3]
    instance.answer()
    bench.lane.cancel(bench.call(), CancelReason.CLIENT_GONE, clock())
    bench.lane.instance_down(instance, "gone")
    bench.call()
    assert [i for i, count in enumerate(bench.lane.ledger.buckets) if count] == [3]
    assert bench.lane.ledger.outcomes[Outcome.CANCELLED] == 1
    assert bench.lane.ledger.outcomes[Outcome.DISCONNECTED] == 1


def test_a_flood_of_decisions_leaves_failures_in_the_recorder(clock: Clock) -> None:
    """Of decisions in the same millisecond one is kept, of failures all; everything is counted."""
    bench = LaneBench(clock)
    instance = bench.instance()
    for screened in (None, None, ERROR, None, ERROR):
        bench.call()
        instance.answer(*(() if screened is None else (screened,)))
    found = snapshot(bench.lane, clock())
    assert [call["outcome"] for call in found["last_calls"]] == ["agent_error", "agent_error", "decision"]
    assert (found["outcomes"]["decision"], found["outcomes"]["agent_error"]) == (3, 2)


def test_the_recorder_is_bounded(clock: Clock) -> None:
    """Only the last calls are kept."""
    bench = LaneBench(clock)
    instance = bench.instance()
    for _ in range(FLIGHT_RECORDER_CALLS + 5):
        clock.ms(FLIGHT_RECORDER_MS)
        bench.call()
        instance.answer()
    last_calls = snapshot(bench.lane, clock())["last_calls"]
    assert len(last_calls) == FLIGHT_RECORDER_CALLS
    assert last_calls[0]["call"] == f"c{FLIGHT_RECORDER_CALLS + 5:x}"
