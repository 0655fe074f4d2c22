"""A route without agents does not notice that agentd is dead: closed-loop requests/s with it and without it.

The windows alternate, so that whatever else the machine does falls on both sides; the other routes are
asked at their usual pace all the time. Two connections ask without a pause, each waiting for its answer:
what the proxy takes longer for one is missing in their count.
"""

import statistics
import time

from tests.e2e.matrix import PASSED, VERDICT
from tests.e2e.stage import Stage
from tests.e2e.traffic import Traffic
from tests.support import wait_until

KEPT_SHARE = 0.95
ROUNDS = 3
WINDOWS = 2
WINDOW_S = 0.25


def kept_share(stage: Stage, traffic: Traffic) -> float:
    """Median requests/s without agentd over that with it."""
    paced = list(traffic.lanes)

    def all_end(closed: str) -> bool:
        return all(
            lane.last is not None and lane.last.end == {"closed": closed, "free": PASSED}[lane.route] for lane in paced
        )

    rates: dict[str, list[float]] = {VERDICT: [], "503": []}
    for _ in range(ROUNDS):
        for end in rates:
            if end == "503":
                stage.kill("agentd")
            elif "agentd" not in stage.running:
                stage.start("agentd")
            wait_until(lambda end=end: all_end(end), 10, f"the fail-closed route answers {end}")  # type: ignore[misc]
            rates[end] += [traffic.burst("free", 2, WINDOW_S) for _ in range(WINDOWS)]
    stage.start("agentd")
    return statistics.median(rates["503"]) / statistics.median(rates[VERDICT])


def test_a_route_without_agents_does_not_notice() -> None:
    stage = Stage()
    traffic = None
    try:
        stage.start("upstream", "agentd", "proxy", "a", "h")
        stage.wait_ready_workers()
        traffic = Traffic(stage.address, ("closed", "free"), lanes=5)
        wait_until(lambda: len(traffic.lanes) == 10, 5)
        traffic.burst("free", 2, 2 * WINDOW_S)  # everybody is warm
        first = kept_share(stage, traffic)
        if first < KEPT_SHARE:
            time.sleep(0.2)
            again = kept_share(stage, traffic)
            assert again >= KEPT_SHARE, f"{again:.3f} of the requests/s, {first:.3f} at first"
        assert not stage.undecided()
    finally:
        if traffic is not None:
            traffic.close()
        stage.close()
