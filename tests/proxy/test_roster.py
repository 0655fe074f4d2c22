"""proxy/roster.py: which workers to start, to drain and to kill. Sentences about members, no process."""

import pytest

from proxy.roster import Member, Step, decide, respawn_wait_ns
from shared.clock import MS, S
from shared.defaults import RESPAWN_MAX_MS, RESPAWN_MS

NOW = 1_000 * S
GRACE = 30 * S


def member(pid: int, generation: int = 1, *, ready: bool = True, spent: bool = False, drain_ns: int = 0) -> Member:
    return Member(
        pid, pid, generation, pid, NOW - S, is_ready=ready, is_spent=spent, was_ready=ready, drain_ns=drain_ns
    )


def step(*members: Member, wanted: int = 2, generation: int = 1, free: int = 100) -> Step:
    return decide(members, wanted, generation, free, NOW, GRACE)


def test_nobody_yet_means_start_all() -> None:
    """The first turn starts every worker, and nothing is settled."""
    assert step() == Step(spawn=2, drain=(), kill=(), is_settled=False)


def test_settled_is_when_all_are_ready() -> None:
    """A starting worker counts as there, but not as serving."""
    assert step(member(1), member(2, ready=False)) == Step(0, (), (), False)
    assert step(member(1), member(2)) == Step(0, (), (), True)


def test_a_draining_worker_does_not_count() -> None:
    """A stream that outlives its worker's max_requests must not delay the successor."""
    assert step(member(1), member(2, drain_ns=NOW)).spawn == 1


def test_a_spent_worker_serves_until_its_successor_does() -> None:
    """It counts as serving, not as there; who is told to go is the oldest, one for each successor."""
    spent = member(1, spent=True), member(2, spent=True)
    assert step(*spent) == Step(2, (), (), True)
    assert step(*spent, member(3, ready=False), member(4, ready=False)) == Step(0, (), (), True)
    assert step(*spent, member(3), member(4, ready=False)) == Step(0, (1,), (), True)
    assert step(*spent, member(3), member(4)) == Step(0, (1, 2), (), True)


def test_a_worker_that_is_spent_at_once_still_takes_a_place() -> None:
    """So many requests that nobody is seen unspent: the others go, one after the other."""
    assert step(member(1, spent=True), member(2, spent=True), wanted=1) == Step(1, (1,), (), True)


def test_a_spent_worker_without_a_free_slot_serves_on() -> None:
    """Whatever keeps the successor from starting."""
    assert step(member(1, spent=True), wanted=1, free=0) == Step(0, (), (), True)


def test_spent_workers_of_the_old_generation_serve_until_a_reload_is_complete() -> None:
    """A config whose workers cannot start leaves nobody without a worker, however long it takes."""
    assert step(member(1, spent=True), member(2, 2, ready=False), wanted=1, generation=2) == Step(0, (), (), False)


def test_old_generation_stays_until_the_new_one_serves() -> None:
    """A config whose workers cannot start takes nobody's place."""
    old = member(1), member(2)
    assert step(*old, generation=2) == Step(2, (), (), False)
    assert step(*old, member(3, 2), member(4, 2, ready=False), generation=2) == Step(0, (), (), False)
    assert step(*old, member(3, 2), member(4, 2), generation=2) == Step(0, (1, 2), (), True)


def test_told_once() -> None:
    """Who drains is not told again: a second TERM would be taken for impatience."""
    old = member(1, drain_ns=NOW), member(2, drain_ns=NOW)
    assert step(*old, member(3, 2), member(4, 2), generation=2) == Step(0, (), (), True)


def test_going_back_drains_the_failed_generation() -> None:
    """After a rollback the workers of the config that failed are the old ones."""
    assert step(member(1), member(2), member(3, 2, ready=False), generation=1) == Step(0, (3,), (), True)


def test_surplus_drains_the_oldest() -> None:
    """Fewer workers wanted: the youngest stay."""
    assert step(member(1), member(2), member(3), wanted=1).drain == (1, 2)


def test_who_does_not_drain_in_time_is_killed() -> None:
    """After the grace, not before."""
    assert step(member(1), member(2), member(3, drain_ns=NOW - GRACE)).kill == ()
    assert step(member(1), member(2), member(3, drain_ns=NOW - GRACE - 1)).kill == (3,)


def test_never_more_than_there_are_slots() -> None:
    """What does not fit waits until a draining worker has left."""
    assert step(wanted=5, free=3).spawn == 3
    assert step(wanted=5, free=0).spawn == 0


@pytest.mark.parametrize(("lives", "wait_ms"), [(0, 0), (1, RESPAWN_MS), (2, 2 * RESPAWN_MS), (4, 8 * RESPAWN_MS)])
def test_respawn_waits_longer_each_time(lives: int, wait_ms: int) -> None:
    """Doubling from the first short life on."""
    assert respawn_wait_ns(lives) == wait_ms * MS


def test_respawn_has_a_cap_and_no_last_attempt() -> None:
    """A thousand crashes later it is still tried once a second."""
    assert respawn_wait_ns(1_000) == RESPAWN_MAX_MS * MS
