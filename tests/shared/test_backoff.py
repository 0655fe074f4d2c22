"""Waits between two dials: doubling, capped, apart from each other."""

from shared.backoff import BackOff


def test_doubles_to_the_cap_for_ever() -> None:
    back_off = BackOff(100, 1_000, lambda: 0.999_999)
    assert [back_off.next_ms() for _ in range(7)] == [99, 199, 399, 799, 999, 999, 999]
    assert {back_off.next_ms() for _ in range(100_000)} == {999}


def test_jitter_is_half_of_it() -> None:
    back_off = BackOff(100, 1_000, lambda: 0.0)
    assert [back_off.next_ms() for _ in range(6)] == [50, 100, 200, 400, 500, 500]


def test_reset() -> None:
    back_off = BackOff(100, 1_000, lambda: 0.0)
    for _ in range(9):
        back_off.next_ms()
    back_off.reset()
    assert back_off.next_ms() == 50
