"""Decides which connection to an upstream a request gets, and what becomes of it afterwards.

One pool per upstream and worker. Per target the idle connection used last is taken first; without one a
new one is dialled (dial.py), and the request takes whichever is there sooner: that one, or one that another
request gives back. Connections are at most `max_connections`; requests beyond them wait in order, at most
`max_waiting` and no longer than `connect_timeout_s`.

A request is begun again (at most `retries` times, on a new connection) only where connection.py finds
that nobody could notice. What the response means is reader.py's; nothing here touches its bytes.

No task or timer: timeouts are found by `sweep`.

Kind: IO.
"""

import asyncio
from collections.abc import Callable, MutableSequence

from proxy.outbox import Outbox
from proxy.upstream.balance import Endpoint, RoundRobin
from proxy.upstream.connection import UpstreamConnection, UpstreamSink
from proxy.upstream.connector import Connector
from proxy.upstream.dial import Connects, Dialler
from shared.clock import MS, S, now_ns
from shared.config.schema import Upstream
from shared.defaults import CLIENT_BUFFER_BYTES, LINGER_MS, SWEEP_MS, UPSTREAM_KEEPALIVE_S, UPSTREAM_SWEEP_MAX_MS
from shared.errors import UpstreamFailed
from shared.log import WARNING, RateLimited
from shared.metrics import (
    W_RETRIES,
    W_UPSTREAM_CONNECTS,
    W_UPSTREAM_FAILURES,
    W_UPSTREAM_IDLE,
    W_UPSTREAM_OPEN,
    W_UPSTREAM_POISONED,
    W_UPSTREAM_REUSES,
    W_UPSTREAM_WAITING,
)

_log = RateLimited("proxy.upstream", 10)  # a broken upstream breaks every response


class _Waiter:
    """A request without a connection."""

    __slots__ = ("method", "retried", "since_ns")

    def __init__(self, method: bytes, since_ns: int, retried: int) -> None:
        self.method = method
        self.since_ns = since_ns
        self.retried = retried


class UpstreamPool:
    """All connections of this worker to one upstream."""

    __slots__ = (
        "_balance",
        "_cells",
        "_clock",
        "_closed",
        "_connect_ns",
        "_connections",
        "_dialler",
        "_idle",
        "_idle_ns",
        "_loop",
        "_max_connections",
        "_max_waiting",
        "_next_sweep_ns",
        "_on_reachable",
        "_only",
        "_published",
        "_response_ns",
        "_retries",
        "_reuses",
        "_sweep_ns",
        "_waiters",
        "buffer_bytes",
        "name",
        "outbox",
    )

    def __init__(
        self,
        upstream: Upstream,
        loop: asyncio.AbstractEventLoop,
        cells: "MutableSequence[int] | memoryview[int]",
        *,
        on_reachable: Callable[[bool, int], None] | None = None,
        clock: Callable[[], int] = now_ns,
        connector: Connects | None = None,
        outbox: Outbox | None = None,
        buffer_bytes: int = CLIENT_BUFFER_BYTES,
    ) -> None:
        """`cells`: the worker's metric cells. `on_reachable(ok, now_ns)`: how each dial ended.

        `outbox`: the worker's; without one every write goes out at once.
        ConfigError if the TLS settings cannot be used.
        """
        self.name = upstream.name
        self.outbox = outbox if outbox is not None else Outbox(None)
        self._loop = loop
        self._cells = cells
        self._clock = clock
        self._on_reachable = on_reachable
        self._balance = RoundRobin(upstream.targets)
        endpoints = self._balance.endpoints
        self._only = endpoints[0] if len(endpoints) == 1 else None
        self._idle: dict[Endpoint, list[UpstreamConnection]] = {endpoint: [] for endpoint in endpoints}
        self._connections: set[UpstreamConnection] = set()
        self._waiters: dict[UpstreamSink, _Waiter] = {}
        self._max_connections = upstream.max_connections
        self._max_waiting = upstream.max_waiting
        self.buffer_bytes = buffer_bytes  # high-water mark of each connection's write buffer
        self._retries = upstream.retries
        self._connect_ns = int(upstream.connect_timeout_s * S)
        self._dialler = Dialler(
            upstream.name,
            self,
            self._balance,
            connector if connector is not None else Connector(upstream, loop),
            loop,
            clock,
            self._connect_ns,
        )
        self._response_ns = int(upstream.response_timeout_s * S)
        self._idle_ns = int(upstream.idle_timeout_s * S)
        timeouts = (self._connect_ns // len(endpoints), self._response_ns, self._idle_ns)
        shortest = min(timeout for timeout in timeouts if timeout)
        self._sweep_ns = min(max(shortest // 10, SWEEP_MS * MS), UPSTREAM_SWEEP_MAX_MS * MS)
        self._next_sweep_ns = 0
        self._published = (0, 0, 0)
        self._reuses = 0  # counted here per request, added to the cells by the sweep
        self._closed: asyncio.Future[None] | None = None  # set by close(); done with the last connection

    @property
    def idle(self) -> int:
        """Connections kept for reuse now."""
        return sum(map(len, self._idle.values()))

    @property
    def open(self) -> int:
        """Connections open now, idle ones included."""
        return len(self._connections)

    @property
    def waiting(self) -> int:
        """Requests waiting for a connection now."""
        return len(self._waiters)

    @property
    def endpoints(self) -> list[Endpoint]:
        """The targets, with their failed connects."""
        return self._balance.endpoints

    # --- for the exchange -------------------------------------------------------------------------

    def acquire(self, sink: UpstreamSink, method: bytes) -> None:
        """Begin a request: `sink.upstream_connected` follows, at once where a connection is idle.

        Or `sink.upstream_failed`, which may be at once too: 503 pool_full when too many wait already.
        """
        endpoint = self._only or self._balance.next(self._clock())
        idle = self._idle[endpoint]
        while idle:
            conn = idle.pop()
            transport = conn.transport
            if transport is not None and not transport.is_closing():  # `is_usable`, in the way of every request
                self._reuses += 1
                conn.give_to(sink, method, 0)
                return
        self._wait(sink, _Waiter(method, self._clock(), 0), endpoint)

    def cancel(self, sink: UpstreamSink) -> None:
        """The request that waits for a connection is given up; nothing happens if it does not wait."""
        self._waiters.pop(sink, None)

    def _wait(self, sink: UpstreamSink, waiter: _Waiter, endpoint: Endpoint) -> None:
        if self._closed is not None:
            self._refuse(sink, UpstreamFailed(503, "shutting_down", f"{self.name}: this worker is stopping"))
            return
        if waiter.retried == 0 and self._size() >= self._max_connections:
            for idle in self._idle.values():  # the turn is another target's, but all connections are made
                while idle:
                    conn = idle.pop()
                    if conn.is_usable():
                        self._reuses += 1
                        conn.give_to(sink, waiter.method, 0)
                        return
        if len(self._waiters) >= self._max_waiting:
            self._refuse(
                sink, UpstreamFailed(503, "pool_full", f"{self.name}: {self._max_waiting} requests wait already")
            )
            return
        self._waiters[sink] = waiter
        self._dial_for_waiters(endpoint)

    def _refuse(self, sink: UpstreamSink, failure: UpstreamFailed) -> None:
        self._cells[W_UPSTREAM_FAILURES] += 1
        sink.upstream_failed(failure)

    def _dial_for_waiters(self, first: Endpoint | None = None) -> None:
        """As many dials as requests wait, within `max_connections`; the first one to `first`."""
        while len(self._dialler) < len(self._waiters) and self._size() < self._max_connections:
            self._dialler.start(first)
            first = None

    def _size(self) -> int:
        return len(self._connections) + len(self._dialler)

    # --- for dials (DialOwner) --------------------------------------------------------------------

    def new_connection(self, endpoint: Endpoint) -> UpstreamConnection:
        """A protocol for one attempt."""
        return UpstreamConnection(self, endpoint)

    def attempt_failed(self) -> None:
        """One target could not be connected to; the dial may go on with others."""
        self._cells[W_UPSTREAM_FAILURES] += 1

    def dial_failed(self, conn: UpstreamConnection, failure: UpstreamFailed, now: int) -> None:
        """None of the targets could."""
        if self._on_reachable is not None:
            self._on_reachable(False, now)
        if len(self._waiters) > len(self._dialler):
            sink = next(iter(self._waiters))
            del self._waiters[sink]
            sink.upstream_failed(self._told(failure, conn))
        self._dial_for_waiters()

    # --- for connections (ConnectionOwner) --------------------------------------------------------

    def connected(self, conn: UpstreamConnection) -> None:
        """A dial has succeeded."""
        is_wanted, is_probe = self._dialler.succeeded(conn)
        if not is_wanted:
            conn.drop()
            return
        self._connections.add(conn)
        self._cells[W_UPSTREAM_CONNECTS] += 1
        if self._on_reachable is not None:
            self._on_reachable(True, self._clock())
        if self._waiters:
            self._serve_first(conn)
        elif is_probe:
            conn.close()
        else:
            self._idle[conn.endpoint].append(conn)

    def take_back(self, conn: UpstreamConnection) -> None:
        """A connection has done its work and may do more."""
        if self._waiters:
            self._reuses += 1
            self._serve_first(conn)
        else:
            conn.marked_ns = 0
            self._idle[conn.endpoint].append(conn)

    def _serve_first(self, conn: UpstreamConnection) -> None:
        sink = next(iter(self._waiters))
        waiter = self._waiters.pop(sink)
        conn.give_to(sink, waiter.method, waiter.retried)

    def forget_idle(self, conn: UpstreamConnection) -> None:
        """It can no longer be used."""
        try:
            self._idle[conn.endpoint].remove(conn)
        except ValueError:
            pass

    def poisoned(self, conn: UpstreamConnection) -> None:
        """It said something that nobody had asked for."""
        self._cells[W_UPSTREAM_POISONED] += 1
        _log.line(WARNING, "bytes after a complete response", upstream=self.name, target=conn.target)

    def failed(self, conn: UpstreamConnection, sink: UpstreamSink, failure: UpstreamFailed) -> None:
        """A request on it has ended without a response."""
        self._cells[W_UPSTREAM_FAILURES] += 1
        sink.upstream_failed(self._told(failure, conn))

    def _told(self, failure: UpstreamFailed, conn: UpstreamConnection) -> UpstreamFailed:
        return UpstreamFailed(failure.status, failure.reason, f"{self.name} ({conn.target}): {failure}")

    def died_unanswered(self, conn: UpstreamConnection, sink: UpstreamSink) -> bool:
        """A reused connection died before its request had any effect on us: whether the request is begun again."""
        if conn.retried >= self._retries or self._closed is not None:
            return False
        self._cells[W_RETRIES] += 1
        sink.upstream_lost()
        # No idle one is tried: they have probably died of the same cause. Its own place is free already.
        self._wait(sink, _Waiter(conn.method, self._clock(), conn.retried + 1), conn.endpoint)
        return True

    def lost(self, conn: UpstreamConnection) -> None:
        """It is closed."""
        self._connections.discard(conn)
        self.forget_idle(conn)
        if self._closed is None:
            self._dial_for_waiters()
        elif not self._connections and not self._closed.done():
            self._closed.set_result(None)

    # --- for the worker ---------------------------------------------------------------------------

    def probe(self) -> None:
        """Connect once, to tell `on_reachable`, and close again; for readiness while there is no traffic."""
        if self._closed is None and not self._dialler and self._size() < self._max_connections:
            self._dialler.start(is_probe=True)

    def sweep(self, now: int) -> None:
        """Find what has waited too long; call it every SWEEP_MS, it looks as often as its timeouts need."""
        if now < self._next_sweep_ns or self._closed is not None:
            return
        self._next_sweep_ns = now + self._sweep_ns
        self._publish(self.idle, len(self._connections), len(self._waiters))
        self._dialler.sweep(now)
        while self._waiters:
            sink, waiter = next(iter(self._waiters.items()))
            if now - waiter.since_ns < self._connect_ns:
                break
            del self._waiters[sink]
            if self._dialler:
                self._refuse(sink, UpstreamFailed(504, "connect_timeout", f"{self.name}: no connection in time"))
            else:
                self._refuse(sink, UpstreamFailed(503, "pool_full", f"{self.name}: no connection became free in time"))
        late = []
        keepalive_ns = int(UPSTREAM_KEEPALIVE_S * S)
        for conn in self._connections:
            if conn.sink is None:
                limit = LINGER_MS * MS if conn.is_leaving else keepalive_ns
            elif not conn.is_head_told:
                limit = self._response_ns
            elif conn.is_held_by_client():
                conn.marked_ns = 0
                continue
            else:
                limit = self._idle_ns
            if conn.marked_ns == 0:
                conn.marked_ns = now
            elif limit and now - conn.marked_ns >= limit:
                late.append(conn)
        for conn in late:
            if conn.is_leaving:
                conn.drop()
            elif conn.sink is None:
                self.forget_idle(conn)
                conn.close()
            elif conn.is_tunnel:
                conn.idle()
            elif conn.is_head_told:
                conn.fail(UpstreamFailed(504, "idle_timeout", "the response stood still for too long"))
            else:
                conn.fail(UpstreamFailed(504, "response_timeout", "no response in time"))

    def add_up(self) -> None:
        """Move what is counted per request into the worker's cells."""
        self._cells[W_UPSTREAM_REUSES] += self._reuses
        self._reuses = 0

    def _publish(self, idle: int, connections: int, waiting: int) -> None:
        """The gauges are sums over the pools of a worker: each adds what has changed."""
        before = self._published
        self._published = (idle, connections, waiting)
        self.add_up()
        self._cells[W_UPSTREAM_IDLE] += idle - before[0]
        self._cells[W_UPSTREAM_OPEN] += connections - before[1]
        self._cells[W_UPSTREAM_WAITING] += waiting - before[2]

    def close(self) -> None:
        """Cut everything: requests that wait or run fail with 503 shutting_down."""
        if self._closed is not None:
            return
        self._closed = self._loop.create_future()
        self._publish(0, 0, 0)
        self._dialler.cancel()
        waiting = list(self._waiters)
        self._waiters.clear()
        for idle in self._idle.values():
            idle.clear()
        failure = UpstreamFailed(503, "shutting_down", f"{self.name}: this worker is stopping")
        for sink in waiting:
            self._refuse(sink, failure)
        for conn in list(self._connections):
            if conn.sink is None:
                conn.drop()
            else:
                conn.fail(failure)
        if not self._connections:
            self._closed.set_result(None)

    async def wait_closed(self) -> None:
        """After `close`: until every dial has ended and every connection is closed."""
        assert self._closed is not None
        await self._dialler.wait_ended()
        await self._closed
