"""A call goes to its pinned instance, else to the least busy healthy one; the queue holds up nobody else."""

from agentd.call import Call
from agentd.pool import Pool, Queue, is_free
from tests.agentd.fakes import FakeInstance, LaneBench
from tests.support import Clock


def instances(clock: Clock, count: int, limit: int = 10) -> tuple[Pool, list[FakeInstance]]:
    """A pool of idle instances."""
    lane = LaneBench(clock).lane
    pool = Pool()
    made = [FakeInstance(lane, f"i{i}", limit) for i in range(count)]
    for instance in made:
        pool.add(instance)
    return pool, made


def load(instance: FakeInstance, calls: int) -> None:
    """As if so many calls were in flight."""
    instance.calls = {str(i): None for i in range(calls)}  # type: ignore[misc]


class TestChoose:
    def test_nobody(self, clock: Clock) -> None:
        """An empty pool, a full one, a paused one: None."""
        assert Pool().choose() is None
        for count in (1, 2):
            pool, made = instances(clock, count, limit=1)
            for instance in made:
                load(instance, 1)
            assert pool.choose() is None
            for instance in made:
                load(instance, 0)
                instance.is_paused = True
            assert pool.choose() is None

    def test_least_busy_by_its_own_limit(self, clock: Clock) -> None:
        """Three of ten is less busy than one of two."""
        pool, (big, small) = instances(clock, 2)
        small.limit = 2
        load(big, 3)
        load(small, 1)
        assert pool.choose() is big
        assert pool.choose() is big

    def test_in_turn_on_a_tie(self, clock: Clock) -> None:
        """Equally busy instances take turns, each as often as the others."""
        pool, made = instances(clock, 3)
        chosen = [pool.choose() for _ in range(9)]
        assert all(chosen.count(instance) == 3 for instance in made)

    def test_health_before_load(self, clock: Clock) -> None:
        """A busy healthy one before an idle degraded one, that before an unhealthy one."""
        pool, (healthy, degraded, unhealthy) = instances(clock, 3)
        degraded.health, unhealthy.health = "degraded", "unhealthy"
        load(healthy, 9)
        healthy.load = 1.0
        assert pool.choose() is healthy
        load(healthy, 10)
        assert pool.choose() is degraded
        load(degraded, 10)
        assert pool.choose() is unhealthy

    def test_reported_load_weighs(self, clock: Clock) -> None:
        """What HEALTH said of its load counts like calls in flight."""
        pool, (busy, idle) = instances(clock, 2)
        busy.load = 0.5
        load(idle, 4)
        assert pool.choose() is idle

    def test_not_the_ones_ruled_out(self, clock: Clock) -> None:
        """`without` leaves only the others, also when there is only one."""
        pool, (one, other) = instances(clock, 2)
        assert pool.choose([one]) is other
        assert pool.choose([one, other]) is None
        pool.remove(other)
        assert pool.choose([one]) is None

    def test_whoever_may_not(self, clock: Clock) -> None:
        """Paused, draining, or draining by its own word: no new exchange."""
        _, (instance,) = instances(clock, 1)
        assert is_free(instance)
        for name, value in (("is_paused", True), ("is_draining", True), ("health", "draining")):
            before = getattr(instance, name)
            setattr(instance, name, value)
            assert not is_free(instance)
            setattr(instance, name, before)


class TestHung:
    """An instance that let a call time out looks idle; it is asked again when it has shown that it lives."""

    def test_only_when_no_other_can(self, clock: Clock) -> None:
        pool, (hung, well) = instances(clock, 2, limit=2)
        assert not pool.let_down(hung)  # the first time is news
        assert [pool.choose() for _ in range(4)] == [well] * 4
        load(well, 2)
        assert pool.choose() is hung

    def test_known_to_hang(self, clock: Clock) -> None:
        """What more of its calls time out says nothing new, as long as somebody else is trusted."""
        pool, (hung, well) = instances(clock, 2)
        assert [pool.let_down(hung) for _ in range(3)] == [False, True, True]
        assert not pool.let_down(well)
        assert not pool.let_down(well)

    def test_on_trial(self, clock: Clock) -> None:
        """After a sign of life one call at a time."""
        pool, (hung, well) = instances(clock, 2)
        pool.let_down(hung)
        hung.owes -= 1
        load(well, 1)
        assert pool.choose() is hung
        load(hung, 1)
        load(well, 5)
        assert pool.choose() is well

    def test_each_failed_trial_asks_for_more(self, clock: Clock) -> None:
        pool, (hung, _) = instances(clock, 2)
        owed = []
        for _ in range(8):
            pool.let_down(hung)
            owed.append(hung.owes - 1)
            pool.let_down(hung)  # one that was sent before it hung
            hung.owes = 1
        assert owed == [1, 2, 4, 8, 16, 32, 32, 32]

    def test_an_answer_makes_good(self, clock: Clock) -> None:
        pool, (hung, _) = instances(clock, 2)
        for _ in range(3):
            pool.let_down(hung)
            hung.owes = 1
        hung.owes = 0
        pool.let_down(hung)
        assert hung.owes == 2


class TestPins:
    def test_counted_per_instance(self, clock: Clock) -> None:
        """The first pin of an exchange stays; unpinning twice is harmless."""
        pool, (one, other) = instances(clock, 2)
        pool.pin((b"w", 1), one)
        pool.pin((b"w", 1), other)
        pool.pin((b"w", 2), other)
        assert (one.pins, other.pins) == (1, 1)
        assert pool.unpin((b"w", 1)) is one
        assert pool.unpin((b"w", 1)) is None
        assert (one.pins, other.pins, list(pool.pins)) == (0, 1, [(b"w", 2)])

    def test_a_gone_instance_keeps_its_exchanges(self, clock: Clock) -> None:
        """They are not free to be moved, and not its own again when it is back."""
        pool, (one, other) = instances(clock, 2)
        pool.pin((b"w", 1), one)
        pool.pin((b"w", 2), other)
        pool.remove(one)
        assert pool.pins == {(b"w", 1): None, (b"w", 2): other}
        assert (one.is_live, one.pins) == (False, 0)
        pool.add(one)
        pool.pin((b"w", 1), one)
        assert pool.pins[(b"w", 1)] is None
        assert pool.unpin((b"w", 1)) is None
        assert (pool.unpin((b"w", 2)), one.pins, other.pins) == (other, 0, 0)


class TestQueue:
    def test_oldest_that_can_be_placed(self, clock: Clock) -> None:
        """A call for a busy pinned instance does not hold up the others, and gets its turn by age."""
        pool, (one, other) = instances(clock, 2, limit=1)
        bench = LaneBench(clock)
        calls = [bench.call() for _ in range(3)]  # no instance there: ended, only their numbers matter here
        queue = Queue()
        calls[0].instance = one
        for call in calls:
            queue.add(call)
        load(one, 1)
        assert queue.head(pool) is calls[1]
        load(other, 1)
        assert queue.head(pool) is None
        load(one, 0)
        assert queue.head(pool) is calls[0]
        assert list(queue) == calls

    def test_length_and_rows(self, clock: Clock) -> None:
        """Adding and removing keep the count; empty rows go."""
        _, (one,) = instances(clock, 1)
        bench = LaneBench(clock)
        calls: list[Call] = [bench.call() for _ in range(3)]
        queue = Queue()
        calls[0].instance = one
        for call in calls:
            queue.add(call)
        assert (queue.length, queue.row(one), queue.row(None)) == (3, [calls[0]], calls[1:])
        queue.remove(calls[0])
        assert (queue.length, queue.has_row(one), queue.has_row(None)) == (2, False, True)
        queue.remove(calls[2])
        queue.remove(calls[1])
        assert (queue.length, list(queue), queue.row(None)) == (0, [], [])
