"""bench/slope.py: a leak is found among noise and restarts, noise and warm-ups are none."""

import random
from math import inf

import pytest

from bench.slope import Fit, Life, allowed_kib_per_h, fit, is_leak, verdict, warmed

HOUR = 3_600.0


def life(start_s: float, count: int, level: float, per_s: float, noise: float = 0.0, seed: int = 1) -> Life:
    chance = random.Random(seed)
    return [(start_s + i, level + per_s * i + chance.gauss(0, noise)) for i in range(count)]


def test_a_straight_line_is_found_exactly() -> None:
    """Also where a life begins at another level: the level says nothing of the slope."""
    found = fit([life(0, 50, 1_000, 2.0), life(50, 50, 7_000, 2.0)])
    assert (round(found.per_s, 9), found.samples) == (2.0, 100)
    assert found.error < 1e-6


def test_levels_of_several_lives_are_no_slope() -> None:
    """Restarts at higher and higher levels without growth in between: sizes differ, nothing leaks."""
    assert fit([life(100 * i, 50, 1_000 * i, 0.0) for i in range(5)]).per_s == pytest.approx(0.0)


def test_the_error_covers_the_truth() -> None:
    """Of a hundred noisy samples of a known slope, all but a few lie within two errors."""
    fits = [fit([life(0, 60, 1_000, 1.5, noise=20, seed=seed)]) for seed in range(100)]
    assert sum(abs(found.per_s - 1.5) <= 2 * found.error for found in fits) >= 90


def test_steps_are_no_independent_samples() -> None:
    """Random walks without any drift: half of them rise, and most of those are let pass all the same."""
    leaks = 0
    for seed in range(100):
        chance, level, walk = random.Random(seed), 1_000.0, []
        for i in range(200):
            level += chance.gauss(0, 1)
            walk.append((float(i), level))
        leaks += is_leak(fit([walk]), 0.0)
    assert leaks <= 25


@pytest.mark.parametrize("lives", [[], [[]], [[(0.0, 1.0)]], [[(0.0, 1.0), (1.0, 2.0)]], [[(1.0, 1.0)] * 9]])
def test_too_little_says_nothing(lives: list[Life]) -> None:
    found = fit(lives)
    assert found.error == inf
    assert not is_leak(found, 0.0)


def test_the_warm_up_is_left_out() -> None:
    """A quarter of a life, at most two minutes; a short life says nothing."""
    assert warmed(life(10, 40, 0, 0))[0][0] == 20
    assert warmed(life(0, 4_000, 0, 0))[0][0] == 120
    assert warmed(life(0, 9, 0, 0)) == []
    assert warmed([]) == []


def test_a_short_soak_may_gain_once_what_a_long_one_may_not_gain_hourly() -> None:
    assert allowed_kib_per_h(2 * 60) == 8_192 * 30
    assert allowed_kib_per_h(8 * HOUR) == 1_024


def test_verdict() -> None:
    """Leaks, tables, descriptors and whatever else; nothing to say = passed."""
    steep, noisy, flat = Fit(1.0, 0.01, 99), Fit(1.0, 0.5, 99), Fit(0.0, 0.01, 99)
    assert verdict({"agentd": flat, "worker": noisy}, 8 * HOUR, {"pending": 0.0}, {"agentd": 3}, ()) == []
    wrong = verdict({"agentd": steep}, 8 * HOUR, {"pending": 2.0}, {"worker": 40}, ["no answers"])
    assert [line.split()[0] for line in wrong] == ["memory", "pending", "worker", "no"]
    assert "3600 KiB/h (+- 36), 1024 allowed" in wrong[0]
    assert verdict({"agentd": steep}, 120, {}, {}, ()) == []  # 8 MiB within two minutes
