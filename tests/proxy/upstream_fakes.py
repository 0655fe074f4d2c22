"""Stand-ins for what the upstream connector talks to: a transport, a sink, a connect that the test decides."""

import asyncio
from collections.abc import Callable

from proxy.upstream.balance import Endpoint
from proxy.upstream.connection import UpstreamConnection
from proxy.upstream.pool import UpstreamPool
from proxy.upstream.response import Field, ResponseHead
from shared.config.schema import Target, Upstream
from shared.defaults import UPSTREAM_SWEEP_MAX_MS
from shared.errors import UpstreamFailed
from tests.support import Clock

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc"


class FakeTransport(asyncio.Transport):
    """Remembers what is written; closing it tells the protocol in a later turn of the loop, as real ones do."""

    def __init__(self, protocol: asyncio.Protocol) -> None:
        super().__init__()
        self.protocol = protocol
        self.written = b""
        self.ended = ""  # "closed" or "aborted"
        self.is_reading_paused = False
        self.unsent = 0

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def get_extra_info(self, name: str, default: object = None) -> object:
        return default

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self.high = high

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.ended, "written after it was closed"
        self.written += data

    def is_closing(self) -> bool:
        return self.ended != ""

    def _end(self, how: str) -> None:
        if not self.ended:
            self.ended = how
            asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)

    def close(self) -> None:
        self._end("closed")

    def abort(self) -> None:
        self._end("aborted")

    def pause_reading(self) -> None:
        self.is_reading_paused = True

    def resume_reading(self) -> None:
        self.is_reading_paused = False

    # what the network does

    def receive(self, *segments: bytes) -> None:
        """Give the protocol what the upstream has sent; a closed transport gives nothing."""
        for segment in segments:
            if not self.ended:
                self.protocol.data_received(segment)

    def end_of_stream(self) -> None:
        """The upstream has closed its side."""
        self.protocol.eof_received()
        self.close()

    def reset(self) -> None:
        """The connection broke."""
        self.ended = self.ended or "reset"
        self.protocol.connection_lost(ConnectionResetError("reset by peer"))


class Recorder:
    """A sink that writes a request at once and keeps everything it is told.

    `request_body`: None = no body; b"" = a body that the test gives. `react(name)` runs inside a callback.
    """

    def __init__(self, head: bytes = b"GET / HTTP/1.1\r\n\r\n", *, is_complete: bool = True) -> None:
        self.request_head = head
        self.is_complete = is_complete
        self.calls: list[str] = []
        self.conn: UpstreamConnection | None = None
        self.head: ResponseHead | None = None
        self.informational: list[int] = []
        self.body = b""
        self.more: list[bool] = []
        self.failure: UpstreamFailed | None = None
        self.react: Callable[[str], None] = lambda name: None
        self.was_reused: list[bool] = []
        self.lost = 0

    def _called(self, name: str) -> None:
        self.calls.append(name)
        self.react(name)

    @property
    def is_done(self) -> bool:
        return "end" in self.calls or "failed" in self.calls

    @property
    def reason(self) -> str:
        return self.failure.reason if self.failure else ""

    def upstream_connected(self, conn: UpstreamConnection) -> None:
        self.conn = conn
        self.was_reused.append(conn.is_reused)
        conn.write_head(self.request_head)
        if self.is_complete:
            conn.end_body()
        self._called("connected")

    def upstream_lost(self) -> None:
        self.lost += 1

    def upstream_informational(self, status: int, headers: list[Field]) -> None:
        self.informational.append(status)
        self._called("informational")

    def upstream_head(self, head: ResponseHead) -> None:
        self.head = head
        assert self.conn is not None
        self.more.append(self.conn.has_more)
        self._called("head")

    def upstream_body(self, data: bytes) -> None:
        assert data
        self.body += data
        assert self.conn is not None
        self.more.append(self.conn.has_more)
        self._called("body")

    def upstream_end(self) -> None:
        self.conn = None
        self._called("end")

    def upstream_whole(self, head: ResponseHead, body: bytes) -> None:
        """Told as its parts, so that no test need know how many reads there were."""
        self.conn = None
        self.head = head
        self.body += body
        for name in ("head", "body", "end") if body else ("head", "end"):
            self._called(name)

    def upstream_failed(self, failure: UpstreamFailed) -> None:
        self.failure = failure
        self.conn = None
        self._called("failed")

    def upstream_paused(self) -> None:
        self._called("paused")

    def upstream_writable(self) -> None:
        self._called("writable")


class FakeConnector:
    """Attempts wait until the test says how they end; with `is_instant` they succeed at once."""

    def __init__(self, *, is_instant: bool = False) -> None:
        self.is_instant = is_instant
        self.attempts: list[str] = []
        self.pending: list[tuple[str, asyncio.Protocol, asyncio.Future[None]]] = []
        self.transports: list[FakeTransport] = []

    async def connect(self, endpoint: Endpoint, protocol: asyncio.Protocol) -> None:
        self.attempts.append(endpoint.address)
        if self.is_instant:
            self._made(protocol)
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (endpoint.address, protocol, future)
        self.pending.append(entry)
        try:
            await future
        finally:
            if entry in self.pending:
                self.pending.remove(entry)

    def _made(self, protocol: asyncio.Protocol) -> FakeTransport:
        transport = FakeTransport(protocol)
        self.transports.append(transport)
        protocol.connection_made(transport)
        return transport

    def succeed(self) -> FakeTransport:
        """The oldest attempt connects."""
        _, protocol, future = self.pending.pop(0)
        future.set_result(None)
        return self._made(protocol)

    def fail(self, status: int = 502, reason: str = "connect_refused") -> None:
        """The oldest attempt fails."""
        _, _, future = self.pending.pop(0)
        future.set_exception(UpstreamFailed(status, reason, "not today"))


def upstream(*addresses: str, weights: tuple[int, ...] = (), **settings: object) -> Upstream:
    """An upstream of the configuration."""
    addresses = addresses or ("127.0.0.1:9",)
    weights = weights or (1,) * len(addresses)
    targets = tuple(Target(address=a, weight=w) for a, w in zip(addresses, weights, strict=True))
    return Upstream(name="app", targets=targets, **settings)  # type: ignore[arg-type]


class Bench:
    """A pool with a fake connector and a clock turned by hand."""

    def __init__(self, *addresses: str, is_instant: bool = True, **settings: object) -> None:
        self.clock = Clock()
        self.cells = [0] * 256
        self.reachable: list[bool] = []
        self.connector = FakeConnector(is_instant=is_instant)
        self.pool = UpstreamPool(
            upstream(*addresses, **settings),
            asyncio.get_running_loop(),
            self.cells,
            on_reachable=lambda ok, now: self.reachable.append(ok),
            clock=self.clock,
            connector=self.connector,
        )

    async def acquire(self, method: bytes = b"GET", *, is_complete: bool = True) -> Recorder:
        """A new request, after the loop has turned."""
        sink = Recorder(is_complete=is_complete)
        self.pool.acquire(sink, method)
        await turns()
        return sink

    async def idle(self, count: int = 1) -> list[FakeTransport]:
        """`count` connections that have done a request and are idle."""
        sinks = [await self.acquire() for _ in range(count)]
        made = self.connector.transports[-count:]
        for transport in made:
            transport.receive(OK)
        assert all(sink.calls[-1] == "end" for sink in sinks)
        assert self.pool.idle == count
        for transport in made:
            transport.written = b""
        return made

    def late(self, seconds: float) -> None:
        """A sweep that sees the last sign of life, and one after so much time."""
        self.pool.sweep(self.clock.ms(UPSTREAM_SWEEP_MAX_MS))
        self.clock.s(seconds)
        self.pool.sweep(self.clock())

    async def close(self) -> None:
        self.pool.close()
        await self.pool.wait_closed()


async def turns(count: int = 5) -> None:
    """Let the loop turn, so that tasks begin and closed transports say so."""
    for _ in range(count):
        await asyncio.sleep(0)
