"""The token bucket: how many tokens there are now, whether one may be taken, when there will be more.

A bucket is two integers, `tokens` in millionths and `at_ns`, the time (CLOCK_MONOTONIC) they are counted up to. It
holds at most `capacity` and gains `refill` millionths a second. Over any time t it never gives more than
capacity + refill * t. What is lost by rounding is at most a nanosecond of refill a take, in the same direction.
A clock that goes backwards adds nothing and takes nothing away.

Where a bucket is kept, and who locks it, is decided elsewhere: shared/segment_buckets.py for those that all
workers share, `Bucket` for one that a single process has to itself.

Kind: pure.
"""

from shared.clock import S

ONE = 1_000_000  # a token in millionths


def micro(tokens: float) -> int:
    """A capacity or rate of the configuration in millionths; never 0 for something that is more than that."""
    return max(1, round(tokens * ONE)) if tokens > 0 else 0


def refilled(tokens: int, at_ns: int, now_ns: int, capacity: int, refill: int) -> tuple[int, int]:
    """(tokens, the time that they are counted up to) at `now_ns`."""
    elapsed = now_ns - at_ns
    if elapsed <= 0:
        return (tokens if tokens < capacity else capacity), at_ns
    gained, rest = divmod(elapsed * refill, S)
    tokens += gained
    if tokens >= capacity:
        return capacity, now_ns
    # What did not make a whole millionth stays in the clock, so that frequent looks lose nothing.
    return tokens, (now_ns - rest // refill if refill else now_ns)


def wait_s(tokens: int, wanted: int, refill: int) -> int:
    """Whole seconds, rounded up, until there are `wanted`."""
    if tokens >= wanted:
        return 0
    return -((tokens - wanted) // refill) if refill else NEVER_S


NEVER_S = 2**31 - 1  # what a Retry-After says of a bucket that does not refill


class Bucket:
    """One bucket of one process; begins full."""

    __slots__ = ("_at_ns", "_tokens", "capacity", "refill")

    def __init__(self, capacity: int, refill: int) -> None:
        self.capacity = capacity
        self.refill = refill
        self._tokens = capacity
        self._at_ns = 0

    def take(self, now_ns: int) -> bool:
        """One token, if there is one."""
        self._tokens, self._at_ns = refilled(self._tokens, self._at_ns, now_ns, self.capacity, self.refill)
        if self._tokens < ONE:
            return False
        self._tokens -= ONE
        return True

    def configure(self, capacity: int, refill: int) -> None:
        """Other numbers; the tokens stay, as far as there is room for them."""
        self.capacity = capacity
        self.refill = refill
        self._tokens = min(self._tokens, capacity)

    def fill(self) -> None:
        """As at the beginning."""
        self._tokens = self.capacity
