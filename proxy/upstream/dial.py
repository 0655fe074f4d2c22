"""Makes new connections: one target after the other, each for its share of the connect timeout.

A dial is not bound to a request: whoever waits first gets the connection (pool.py). It tries every target
once, in the order that balance.py gives, because a request that was never sent may go anywhere; an
attempt may take an equal share of the time that is left, so that a target which swallows packets leaves
some for the others. Success is the protocol's `connection_made`, told by the pool through `succeeded`.

One task per attempt, owned here; time runs out by `sweep`.

Kind: IO.
"""

import asyncio
from collections.abc import Callable
from typing import Protocol

from proxy.upstream.balance import Endpoint, RoundRobin
from proxy.upstream.connection import UpstreamConnection
from shared.errors import UpstreamFailed
from shared.log import WARNING, RateLimited

_log = RateLimited("proxy.upstream", 10)  # a target that is down fails every attempt


class Connects(Protocol):
    """One attempt at one target; connector.py."""

    async def connect(self, endpoint: Endpoint, protocol: asyncio.Protocol) -> None: ...


class DialOwner(Protocol):
    """What a dial asks of its pool: a protocol for each attempt, and to be told how it ended."""

    def new_connection(self, endpoint: Endpoint) -> UpstreamConnection: ...
    def attempt_failed(self) -> None: ...
    def dial_failed(self, conn: UpstreamConnection, failure: UpstreamFailed, now: int) -> None: ...


class _Dial:
    """A connection being made: the attempt that runs, and the targets left for the next."""

    __slots__ = ("attempt_until_ns", "is_probe", "rest", "task", "until_ns")

    def __init__(self, rest: list[Endpoint], until_ns: int, is_probe: bool) -> None:
        self.rest = rest
        self.until_ns = until_ns
        self.attempt_until_ns = 0
        self.is_probe = is_probe
        self.task: asyncio.Task[None] | None = None


class Dialler:
    """The dials of one pool."""

    __slots__ = ("_balance", "_clock", "_connector", "_dials", "_loop", "_name", "_owner", "_tasks", "_timeout_ns")

    def __init__(
        self,
        name: str,
        owner: DialOwner,
        balance: RoundRobin,
        connector: Connects,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], int],
        timeout_ns: int,
    ) -> None:
        self._name = name
        self._owner = owner
        self._balance = balance
        self._connector = connector
        self._loop = loop
        self._clock = clock
        self._timeout_ns = timeout_ns
        self._dials: dict[UpstreamConnection, _Dial] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._dials)

    def start(self, first: Endpoint | None = None, *, is_probe: bool = False) -> None:
        """Dial, beginning with `first` or whose turn it is."""
        now = self._clock()
        order = self._balance.order(first or self._balance.next(now), now)
        self._attempt(_Dial(order, now + self._timeout_ns, is_probe), now)

    def _attempt(self, dial: _Dial, now: int) -> None:
        dial.attempt_until_ns = now + (dial.until_ns - now) // len(dial.rest)
        endpoint = dial.rest.pop(0)
        conn = self._owner.new_connection(endpoint)
        self._dials[conn] = dial
        dial.task = self._loop.create_task(self._connect(conn), name=f"connect {self._name} {endpoint}")
        self._tasks.add(dial.task)
        dial.task.add_done_callback(self._tasks.discard)

    async def _connect(self, conn: UpstreamConnection) -> None:
        try:
            await self._connector.connect(conn.endpoint, conn)
        except UpstreamFailed as failure:
            self._failed(conn, failure, self._clock())

    def _failed(self, conn: UpstreamConnection, failure: UpstreamFailed, now: int) -> None:
        dial = self._dials.pop(conn, None)
        if dial is None:
            return  # it was given up before
        self._balance.went_wrong(conn.endpoint, now)
        self._owner.attempt_failed()
        _log.line(WARNING, str(failure), upstream=self._name, target=conn.target, reason=failure.reason)
        if dial.rest and now < dial.until_ns:
            self._attempt(dial, now)
        else:
            self._owner.dial_failed(conn, failure, now)

    def succeeded(self, conn: UpstreamConnection) -> tuple[bool, bool]:
        """(whether it was still wanted, whether it was a probe)."""
        dial = self._dials.pop(conn, None)
        if dial is None:
            return False, False
        self._balance.went_well(conn.endpoint)
        return True, dial.is_probe

    def sweep(self, now: int) -> None:
        """Give up the attempts that have had their time."""
        for conn, dial in list(self._dials.items()):
            if now >= dial.attempt_until_ns:
                assert dial.task is not None
                dial.task.cancel()
                self._failed(conn, UpstreamFailed(504, "connect_timeout", "no connection in time"), now)

    def cancel(self) -> None:
        """Give up all dials, without a word to the owner."""
        self._dials.clear()
        for task in self._tasks:
            task.cancel()

    async def wait_ended(self) -> None:
        """Until no task is left."""
        await asyncio.gather(*self._tasks, return_exceptions=True)
