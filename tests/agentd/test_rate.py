"""An agent's rate_limit: over it a call ends as a full queue would, and nobody is blamed."""

import msgspec

from shared.config.schema import AgentRateLimit
from shared.decision import Outcome
from tests.agentd.fakes import LaneBench
from tests.support import Clock

RATE = AgentRateLimit(2, 1.0)


def test_calls_over_it_are_refused_before_anything_is_sent(clock: Clock) -> None:
    """Two in a burst, then one a second; breaker and permits do not notice."""
    bench = LaneBench(clock, rate_limit=RATE)
    instance = bench.instance()
    for _ in range(3):
        bench.call()
    assert len(instance.sent) == 2
    assert bench.waiter.outcomes == [Outcome.QUEUE_FULL]
    instance.answer()
    instance.answer()
    clock.s(1)
    bench.call()
    bench.call()
    assert len(instance.sent) == 3
    assert bench.waiter.outcomes.count(Outcome.QUEUE_FULL) == 2
    assert (bench.lane.rate.admitted, bench.lane.rate.refused) == (3, 2)
    assert bench.lane.breaker.failures(clock()) == 0
    instance.answer()
    bench.assert_idle()


def test_observers_count_as_well(clock: Clock) -> None:
    """They are calls to the same agent."""
    bench = LaneBench(clock, rate_limit=RATE)
    instance = bench.instance()
    for _ in range(3):
        bench.call(observer=True)
    assert len(instance.sent) == 2
    assert bench.waiter.outcomes == [Outcome.QUEUE_FULL]


def test_other_numbers_act_at_once_and_an_operators_stay_if_kept(clock: Clock) -> None:
    """None, new, other; a reload brings the configuration's unless others are to be kept."""
    bench = LaneBench(clock)
    lane = bench.lane
    instance = bench.instance()
    configured = lane.settings
    assert lane.rate.bucket is None
    lane.configure(msgspec.structs.replace(configured, rate_limit=RATE), clock())
    for _ in range(3):
        bench.call()
    assert len(instance.sent) == 2
    lane.rate.kept = AgentRateLimit(1, 0.5)
    lane.configure(msgspec.structs.replace(configured, rate_limit=RATE), clock())
    assert lane.settings.rate_limit == AgentRateLimit(1, 0.5)
    lane.configure(configured, clock())
    bench.call()
    assert len(instance.sent) == 3


def test_an_observer_that_is_not_asked_takes_no_token(clock: Clock) -> None:
    bench = LaneBench(clock, rate_limit=AgentRateLimit(2, 0.001), max_concurrent_calls=1)
    instance = bench.instance()
    bench.call()
    for _ in range(5):
        assert bench.call(observer=True).outcome is Outcome.QUEUE_FULL
    instance.answer()
    assert bench.call().outcome is not Outcome.QUEUE_FULL
    assert bench.lane.rate.admitted == 2
