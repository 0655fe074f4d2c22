"""Pending things by id, found again by time: in order within a timeout, whatever was removed meanwhile."""

from hypothesis import given
from hypothesis import strategies as st

from shared.deadlines import Deadlines


def test_empty() -> None:
    """Nothing pending: no deadline, nothing expired."""
    pending: Deadlines[str] = Deadlines()
    assert (len(pending), pending.earliest(), pending.expired(10**18), pending.clear()) == (0, None, [], [])


def test_expired_up_to_now_inclusive() -> None:
    """What is due exactly now has expired; the rest stays."""
    pending: Deadlines[str] = Deadlines()
    row = pending.row(100)
    row[1], row[2], row[3] = (100, "a"), (101, "b"), (102, "c")
    assert pending.earliest() == 100
    assert pending.expired(99) == []
    assert pending.expired(101) == ["a", "b"]
    assert (len(pending), pending.earliest()) == (1, 102)


def test_rows_of_several_timeouts() -> None:
    """A short timeout added later is found before a long one added earlier."""
    pending: Deadlines[str] = Deadlines()
    pending.row(1000)[1] = (1000, "slow")
    pending.row(10)[2] = (500, "fast")
    assert pending.row(10) is pending.row(10)
    assert pending.earliest() == 500
    assert pending.expired(600) == ["fast"]
    assert pending.earliest() == 1000
    assert [dict(row) for row in pending.rows()] == [{1: (1000, "slow")}, {}]


def test_removed_by_its_owner() -> None:
    """What was answered does not expire, and does not hide the next deadline."""
    pending: Deadlines[str] = Deadlines()
    row = pending.row(1)
    row[1], row[2] = (5, "a"), (6, "b")
    assert row.pop(1, None) == (5, "a")
    assert row.pop(1, None) is None
    assert pending.earliest() == 6
    assert pending.clear() == ["b"]
    assert len(pending) == 0


@given(
    st.lists(st.tuples(st.sampled_from([5, 20, 100]), st.integers(0, 3), st.booleans()), max_size=60),
    st.integers(0, 200),
)
def test_like_a_sorted_list(events: list[tuple[int, int, bool]], until: int) -> None:
    """Added as time passes, some removed again: exactly those due are given out, once."""
    pending: Deadlines[int] = Deadlines()
    model: dict[int, int] = {}
    now = 0
    for number, (timeout, step, is_removed) in enumerate(events):
        now += step
        pending.row(timeout)[number] = (now + timeout, number)
        model[number] = now + timeout
        if is_removed:
            assert pending.row(timeout).pop(number, None) is not None
            del model[number]
    assert len(pending) == len(model)
    assert pending.earliest() == min(model.values(), default=None)
    due = {number for number, deadline in model.items() if deadline <= until}
    assert set(pending.expired(until)) == due
    assert set(pending.clear()) == set(model) - due
