"""Whose turn it is among an upstream's targets."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from proxy.upstream.balance import Endpoint, RoundRobin, smooth_cycle
from shared.clock import S
from shared.config.schema import Target
from shared.defaults import UPSTREAM_TARGET_RETRY_S

RETRY_NS = int(UPSTREAM_TARGET_RETRY_S * S)


def robin(*targets: tuple[str, int]) -> RoundRobin:
    return RoundRobin([Target(address=address, weight=weight) for address, weight in targets])


def names(balance: RoundRobin, count: int, now: int = 0) -> str:
    return "".join(balance.next(now).host for _ in range(count))


def test_equal_weights_take_turns() -> None:
    assert names(robin(("a:1", 5), ("b:1", 5), ("c:1", 5)), 7) == "abcabca"


def test_weights_are_spread() -> None:
    """The heavy one is not asked five times in a row."""
    assert names(robin(("a:1", 5), ("b:1", 1), ("c:1", 1)), 14) == "aabacaa" * 2


@given(st.lists(st.integers(1, 1_000), min_size=1, max_size=5))
def test_each_as_often_as_its_weight_says(weights: list[int]) -> None:
    cycle = smooth_cycle(weights)
    counts = Counter(cycle)
    for index, weight in enumerate(weights):
        assert counts[index] * sum(weights) == weight * len(cycle)


def test_a_failed_target_is_asked_last_for_a_while() -> None:
    balance = robin(("a:1", 1), ("b:1", 1))
    balance.went_wrong(balance.endpoints[0], 0)
    assert balance.endpoints[0].failures == 1
    assert names(balance, 4, now=1) == "bbbb"
    assert [e.host for e in balance.order(balance.endpoints[0], 1)] == ["b", "a"]
    assert names(balance, 4, now=RETRY_NS) == "abab"


def test_a_target_that_answers_again_is_back_at_once() -> None:
    balance = robin(("a:1", 1), ("b:1", 1))
    balance.went_wrong(balance.endpoints[0], 0)
    balance.went_well(balance.endpoints[0])
    assert names(balance, 4, now=1) == "abab"


def test_all_failed_means_all_are_tried() -> None:
    balance = robin(("a:1", 1), ("b:1", 1))
    for endpoint in balance.endpoints:
        balance.went_wrong(endpoint, 0)
    assert names(balance, 4, now=1) == "abab"
    assert len(balance.order(balance.endpoints[1], 1)) == 2


def test_order_begins_with_the_chosen() -> None:
    balance = robin(("a:1", 1), ("b:1", 1), ("c:1", 1))
    assert [e.host for e in balance.order(balance.endpoints[1], 0)] == ["b", "c", "a"]


def test_addresses_are_taken_apart() -> None:
    def parts(address: str) -> tuple[str, int, str]:
        endpoint = Endpoint(Target(address=address))
        assert str(endpoint) == address
        return endpoint.host, endpoint.port, endpoint.path

    assert parts("app.internal:8080") == ("app.internal", 8080, "")
    assert parts("[::1]:8080") == ("::1", 8080, "")
    assert parts("unix:/run/app.sock") == ("", 0, "/run/app.sock")
