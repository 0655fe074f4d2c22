"""Decides whether a soak found a leak: a line through the samples, and what it may rise.

Processes of one role come and go (reloads, kills), each beginning at another level. So the line is fitted to all
lives of a role at once: one slope, an intercept of its own for each life. Samples of memory hang together in time,
which makes the usual standard error too small; it is widened by what the residuals say of that.

Kind: pure.
"""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from math import inf, sqrt
from typing import NamedTuple

Life = Sequence[tuple[float, float]]  # (seconds, value) of one process
SIGNIFICANT = 3.0  # standard errors
FEWEST = 8  # samples of a life, beneath which it says nothing
WARM_SHARE, WARM_MAX_S = 0.25, 120.0  # of a life that is left out: caches fill, pools grow to their size
HOURLY_KIB = 1_024.0  # what a role may gain in an hour of a long soak
SPARE_FDS = 16  # an agent's connection that comes back, a log file reopened
ONCE_KIB = 8_192.0  # and in the whole of a short one, in which an hour's worth would be noise


class Fit(NamedTuple):
    """`per_s` more a second, give or take `error` (one standard error; inf = too little is known)."""

    per_s: float
    error: float
    samples: int


def warmed(life: Life) -> Life:
    """The samples after its warm-up; none where there are too few."""
    if not life:
        return []
    begin, end = life[0][0], life[-1][0]
    after = begin + min(WARM_MAX_S, WARM_SHARE * (end - begin))
    left = [sample for sample in life if sample[0] >= after]
    return left if len(left) >= FEWEST else []


def fit(lives: Iterable[Life]) -> Fit:
    """Least squares with one slope and an intercept for each life."""
    groups = [life for life in lives if len(life) > 1]
    samples = sum(map(len, groups))
    sxx = sxy = 0.0
    for life in groups:
        mean_t, mean_y = _means(life)
        sxx += sum((t - mean_t) ** 2 for t, _ in life)
        sxy += sum((t - mean_t) * (y - mean_y) for t, y in life)
    free = samples - len(groups) - 1
    if sxx <= 0 or free < 1:
        return Fit(0.0, inf, samples)
    slope = sxy / sxx
    squares = products = 0.0
    for life in groups:
        mean_t, mean_y = _means(life)
        residuals = [y - mean_y - slope * (t - mean_t) for t, y in life]
        squares += sum(r * r for r in residuals)
        products += sum(a * b for a, b in pairwise(residuals))
    together = min(0.98, max(0.0, products / squares)) if squares > 0 else 0.0
    return Fit(slope, sqrt(squares / free / sxx * (1 + together) / (1 - together)), samples)


def _means(life: Life) -> tuple[float, float]:
    return sum(t for t, _ in life) / len(life), sum(y for _, y in life) / len(life)


def allowed_kib_per_h(seconds: float) -> float:
    """How steep a role's memory may rise in a soak of this length."""
    return max(HOURLY_KIB, ONCE_KIB / (seconds / 3_600))


def is_leak(found: Fit, allowed_per_s: float) -> bool:
    """Steeper than allowed, and not by chance."""
    return found.per_s - SIGNIFICANT * found.error > allowed_per_s


def verdict(
    memory: dict[str, Fit], seconds: float, left: dict[str, float], descriptors: dict[str, int], failed: Iterable[str]
) -> list[str]:
    """What is wrong, a line each; nothing = passed.

    `memory` in KiB by role, `left` what tables hold after the traffic, `descriptors` how many more a role has open
    at its end than at its beginning, both times idle, `failed` what else went wrong.
    """
    allowed = allowed_kib_per_h(seconds)
    wrong = [
        f"memory of {role} rises by {found.per_s * 3_600:.0f} KiB/h (+- {found.error * 3_600:.0f}), "
        f"{allowed:.0f} allowed"
        for role, found in memory.items()
        if is_leak(found, allowed / 3_600)
    ]
    wrong += [f"{name} is {value:g} after the end of the traffic, not 0" for name, value in left.items() if value]
    wrong += [f"{role} keeps {more} descriptors more" for role, more in descriptors.items() if more > SPARE_FDS]
    return [*wrong, *failed]
