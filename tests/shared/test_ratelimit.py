"""The token bucket: never more than capacity + refill * t, nothing lost but a nanosecond a take, any clock."""

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from shared.clock import S
from shared.ratelimit import NEVER_S, ONE, Bucket, micro, refilled, wait_s

CAPACITIES = st.integers(ONE, 10**9 * ONE)
REFILLS = st.integers(1, 10**6 * ONE)
STEPS = st.lists(st.integers(-S, 10 * S), min_size=1, max_size=200)


@given(CAPACITIES, REFILLS, STEPS)
def test_never_more_than_capacity_and_refill(capacity: int, refill: int, steps: list[int]) -> None:
    """Over every stretch of any history of takes, also with a clock that goes backwards."""
    bucket = Bucket(capacity, refill)
    now = 10**12
    earliest = latest = now + steps[0]
    admitted = 0
    for step in steps:
        now += step
        earliest, latest = min(earliest, now), max(latest, now)
        admitted += bucket.take(now)
        assert admitted * ONE <= capacity + Fraction(refill * (latest - earliest), S)


@given(CAPACITIES, REFILLS, st.lists(st.integers(0, S), min_size=1, max_size=200))
def test_frequent_looks_lose_next_to_nothing(capacity: int, refill: int, steps: list[int]) -> None:
    """However often it is looked at: at most a nanosecond of refill each, and never a gain."""
    tokens, at, now = 0, 10**12, 10**12
    for step in steps:
        now += step
        tokens, at = refilled(tokens, at, now, capacity, refill)
        assert at <= now
    exact = min(Fraction(capacity), Fraction(refill * (now - 10**12), S))
    # What is still in the clock counts as well.
    have = tokens + Fraction(refill * (now - at), S)
    assert have <= exact or tokens == capacity
    assert have >= exact - len(steps) * Fraction(refill, S)


def test_a_steady_rate_is_kept_exactly() -> None:
    """Three a second for an hour, asked every 7 ms."""
    bucket = Bucket(3 * ONE, 3 * ONE)
    now = 10**12
    admitted = 0
    for _ in range(3600 * 1000 // 7):
        now += 7_000_000
        admitted += bucket.take(now)
    assert 3 + 3 * 3600 - 3 <= admitted <= 3 + 3 * 3600


@given(st.integers(0, 10**15), st.integers(0, 10**15), REFILLS)
def test_the_wait_is_rounded_up(tokens: int, wanted: int, refill: int) -> None:
    """After so many seconds there are enough, and a second before there are not."""
    seconds = wait_s(tokens, wanted, refill)
    assert tokens + refill * seconds >= min(wanted, tokens + refill * seconds)
    if seconds:
        assert tokens + refill * seconds >= wanted
        assert tokens + refill * (seconds - 1) < wanted


def test_numbers_of_the_configuration() -> None:
    """The smallest rate there is, and none."""
    assert (micro(200), micro(0.000_001), micro(1e-9), micro(0)) == (200 * ONE, 1, 1, 0)
    assert wait_s(0, 1, 0) == NEVER_S


def test_other_numbers_keep_the_tokens() -> None:
    """As far as there is room; filling is a thing of its own."""
    now = 10**12
    bucket = Bucket(5 * ONE, 1)
    assert [bucket.take(now) for _ in range(4)] == [True] * 4
    bucket.configure(10 * ONE, 1)
    assert [bucket.take(now) for _ in range(2)] == [True, False]
    bucket.fill()
    bucket.configure(2 * ONE, 1)
    assert [bucket.take(now) for _ in range(3)] == [True, True, False]
