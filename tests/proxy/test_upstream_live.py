"""The upstream connector over real sockets, on uvloop and on asyncio's own loop."""

import asyncio
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvloop

from proxy.upstream.pool import UpstreamPool
from shared.clock import S, now_ns
from shared.config.schema import UpstreamTls
from shared.defaults import CLIENT_BUFFER_BYTES
from shared.metrics import W_RETRIES, W_UPSTREAM_CONNECTS, W_UPSTREAM_POISONED, W_UPSTREAM_REUSES
from tests.http.upstream.cases import Case, cases
from tests.proxy.upstream_fakes import OK, Recorder, upstream
from tests.support import until

TLS = Path(__file__).parent.parent / "data" / "tls"
CA = str(TLS / "ca.pem")
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
Run = Callable[[Callable[[], Coroutine[Any, Any, None]]], None]

LONG = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc"
LOOPS = {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}


@pytest.fixture(params=LOOPS)
def run(request: pytest.FixtureRequest) -> Run:
    """Runs a coroutine function on a loop of each kind; bounded in time."""

    def go(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
        with asyncio.Runner(loop_factory=LOOPS[request.param]) as runner:
            runner.run(asyncio.wait_for(main(), 20))

    return go


class Served:
    """A real listener of the test's own, and a pool that connects to it."""

    def __init__(self, server: asyncio.Server, pool: UpstreamPool, cells: list[int]) -> None:
        self.server = server
        self.pool = pool
        self.cells = cells
        self.reachable: list[bool] = []

    def begin(self, method: bytes = b"GET", *, is_complete: bool = True) -> Recorder:
        """A request whose head is written as soon as there is a connection."""
        sink = Recorder(b"%b / HTTP/1.1\r\nHost: a\r\n\r\n" % method, is_complete=is_complete)
        self.pool.acquire(sink, method)
        return sink

    async def fetch(self, method: bytes = b"GET") -> Recorder:
        """A request, done."""
        sink = self.begin(method)
        await until(lambda: sink.is_done)
        return sink


@asynccontextmanager
async def serve(
    handler: Handler,
    *,
    tls: ssl.SSLContext | None = None,
    upstream_tls: UpstreamTls | None = None,
    unix: Path | None = None,
    **settings: Any,
) -> AsyncIterator[Served]:
    """Starts both and ends both; a handler that waits is cut off."""
    tasks: set[asyncio.Task[None]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await handler(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            pass
        finally:
            writer.transport.abort()
            tasks.discard(task)

    if unix is not None:
        server = await asyncio.start_unix_server(handle, unix, ssl=tls)
        address = f"unix:{unix}"
    else:
        server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=tls)
        address = address_of(server.sockets[0])
    cells = [0] * 256
    pool = UpstreamPool(upstream(address, tls=upstream_tls, **settings), asyncio.get_running_loop(), cells)
    try:
        yield Served(server, pool, cells)
    finally:
        pool.close()
        await pool.wait_closed()
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)


def address_of(sock: socket.socket) -> str:
    host, port = sock.getsockname()
    return f"{host}:{port}"


async def request_of(reader: asyncio.StreamReader) -> bytes:
    return await reader.readuntil(b"\r\n\r\n")


def answering(*responses: bytes, is_closed_after: bool = False) -> Handler:
    """Answers each request with the next response, the last one for ever."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        count = 0
        while True:
            await request_of(reader)
            writer.write(responses[min(count, len(responses) - 1)])
            count += 1
            await writer.drain()
            if is_closed_after:
                writer.close()
                return

    return handle


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_corpus(run: Run, case: Case) -> None:
    """Every case of tests/http/upstream, as the network delivers it."""

    async def main() -> None:
        async with serve(answering(case.raw, is_closed_after=case.is_closed_after)) as served:
            sink = await served.fetch(case.method)
            if case.outcome != "complete":
                assert sink.reason == case.outcome
                assert sink.failure is not None
                assert sink.failure.status == 502
                assert case.body.startswith(sink.body)
                await until(lambda: served.pool.open == 0)
                return
            assert sink.head is not None
            assert sink.head.status == case.status
            assert sink.body == case.body
            assert sink.informational == case.informational
            if case.fields:
                assert sink.head.headers == case.fields
            if case.fate == "reused":
                again = await served.fetch(case.method)
                assert again.was_reused == [True]
                assert again.body == case.body
                assert served.cells[W_UPSTREAM_CONNECTS] == 1
            else:
                await until(lambda: served.pool.open == 0)
                assert served.cells[W_UPSTREAM_POISONED] == (case.fate == "poisoned")

    run(main)


class TestConnecting:
    def test_nodelay_and_target(self, run: Run) -> None:
        """Small requests are not held back by Nagle's algorithm."""

        async def main() -> None:
            async with serve(answering(LONG)) as served:
                sink = served.begin()
                await until(lambda: sink.head)
                assert sink.conn is not None
                assert sink.conn.target.startswith("127.0.0.1:")
                transport = sink.conn.transport
                assert transport is not None
                sock = transport.get_extra_info("socket")
                assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
                assert transport.get_write_buffer_limits()[1] == CLIENT_BUFFER_BYTES

        run(main)

    def test_refused(self, run: Run) -> None:
        async def main() -> None:
            with socket.socket() as closed:
                closed.bind(("127.0.0.1", 0))  # bound, not listening: nobody else gets the port
                pool = UpstreamPool(upstream(address_of(closed)), asyncio.get_running_loop(), [0] * 256)
                sink = Recorder()
                pool.acquire(sink, b"GET")
                await until(lambda: sink.is_done)
                assert sink.failure is not None
                assert (sink.failure.status, sink.reason) == (502, "connect_refused")
                pool.close()
                await pool.wait_closed()

        run(main)

    def test_the_next_target(self, run: Run) -> None:
        """The first refuses, the second serves."""

        async def main() -> None:
            with socket.socket() as closed:
                closed.bind(("127.0.0.1", 0))
                async with serve(answering(OK)) as served:
                    addresses = [address_of(closed), served.pool.endpoints[0].address]
                    pool = UpstreamPool(upstream(*addresses), asyncio.get_running_loop(), [0] * 256)
                    sink = Recorder()
                    pool.acquire(sink, b"POST")
                    await until(lambda: sink.is_done)
                    assert sink.body == b"abc"
                    pool.close()
                    await pool.wait_closed()

        run(main)

    def test_timeout(self, run: Run) -> None:
        """A listener whose queue is full swallows the packets; the sweep ends it, and no task is left."""

        async def main() -> None:
            with socket.socket() as full:
                full.bind(("127.0.0.1", 0))
                full.listen(0)
                fillers = []
                for _ in range(4):
                    filler = socket.socket()
                    filler.setblocking(False)
                    filler.connect_ex(full.getsockname())
                    fillers.append(filler)
                pool = UpstreamPool(upstream(address_of(full)), asyncio.get_running_loop(), [0] * 256)
                sink = Recorder()
                pool.acquire(sink, b"GET")
                await asyncio.sleep(0)
                pool.sweep(now_ns() + 1 * S)
                assert not sink.is_done
                pool.sweep(now_ns() + 3 * S)
                assert sink.failure is not None
                assert (sink.failure.status, sink.reason) == (504, "connect_timeout")
                pool.close()
                await pool.wait_closed()
                for filler in fillers:
                    filler.close()

        run(main)

    @pytest.mark.parametrize("host", ["no such host", "a..b", "\u00e4" * 70])
    def test_a_name_that_cannot_be_one(self, run: Run, host: str) -> None:
        async def main() -> None:
            pool = UpstreamPool(upstream(f"{host}:80"), asyncio.get_running_loop(), [0] * 256)
            sink = Recorder()
            pool.acquire(sink, b"GET")
            await until(lambda: sink.is_done)
            assert sink.failure is not None
            assert (sink.failure.status, sink.reason) == (502, "name_not_resolved")
            pool.close()
            await pool.wait_closed()

        run(main)

    def test_unix_socket(self, run: Run, short_tmp_dir: Path) -> None:
        async def main() -> None:
            path = short_tmp_dir / "app.sock"
            async with serve(answering(OK), unix=path) as served:
                for _ in range(2):
                    assert (await served.fetch()).body == b"abc"
                served.pool.add_up()
                assert served.cells[W_UPSTREAM_REUSES] == 1
            pool = UpstreamPool(upstream(f"unix:{path}.gone"), asyncio.get_running_loop(), [0] * 256)
            sink = Recorder()
            pool.acquire(sink, b"GET")
            await until(lambda: sink.is_done)
            assert sink.reason == "connect_refused"
            pool.close()
            await pool.wait_closed()

        run(main)

    def test_probe(self, run: Run) -> None:
        """A connect and nothing else, seen from both ends."""

        async def main() -> None:
            seen: list[bytes] = []

            async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                seen.append(await reader.read())

            async with serve(handle) as served:
                served.pool._on_reachable = lambda ok, now: served.reachable.append(ok)
                served.pool.probe()
                await until(lambda: seen)
                assert seen == [b""]
                assert served.reachable == [True]
                await until(lambda: served.pool.open == 0)

        run(main)


class TestLife:
    def test_retry_when_the_upstream_closes_as_we_write(self, run: Run) -> None:
        """The race of every keep-alive: invisible for a GET, a 502 for a POST."""

        async def main() -> None:
            requests = 0

            async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                nonlocal requests
                await request_of(reader)
                requests += 1
                writer.write(OK)
                await request_of(reader)  # the second request of a connection is read, and not answered
                requests += 1

            async with serve(handle) as served:
                await served.fetch()
                retried = await served.fetch()
                assert retried.was_reused == [True, False]
                assert retried.body == b"abc"
                assert served.cells[W_RETRIES] == 1
                assert requests == 3
                failed = await served.fetch(b"POST")
                assert failed.reason == "closed_early"
                assert failed.was_reused == [True]
                assert requests == 4

        run(main)

    def test_an_idle_connection_that_the_upstream_closes(self, run: Run) -> None:
        """Noticed while idle: the next request, even a POST, gets a new one."""

        async def main() -> None:
            async with serve(answering(OK, is_closed_after=True)) as served:
                await served.fetch()
                await until(lambda: served.pool.open == 0)
                sink = await served.fetch(b"POST")
                assert sink.was_reused == [False]
                assert sink.body == b"abc"

        run(main)

    def test_a_reset_inside_a_body_without_framing(self, run: Run) -> None:
        """Never a clean end."""

        async def main() -> None:
            async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                await request_of(reader)
                writer.write(b"HTTP/1.1 200 OK\r\n\r\nabc")
                await request_of(reader)
                sock = writer.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

            async with serve(handle) as served:
                sink = served.begin(is_complete=False)
                await until(lambda: sink.body)
                assert sink.conn is not None
                sink.conn.write_body(b"go on\r\n\r\n")
                await until(lambda: sink.is_done)
                assert sink.reason == "closed_early"

        run(main)

    def test_abort_is_seen_by_the_upstream(self, run: Run) -> None:
        """An upload that is given up never looks complete."""

        async def main() -> None:
            seen: list[bytes] = []

            async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                await request_of(reader)
                try:
                    seen.append(await reader.read())
                except ConnectionError:
                    seen.append(b"reset")

            async with serve(handle) as served:
                sink = served.begin(b"PUT", is_complete=False)
                await until(lambda: sink.conn)
                assert sink.conn is not None
                sink.conn.write_body(b"5\r\nabcde\r\n")
                sink.conn.abort()
                await until(lambda: seen)
                assert b"0\r\n\r\n" not in seen[0]
                assert sink.calls == ["connected"]

        run(main)

    def test_an_answer_before_the_request_is_complete(self, run: Run) -> None:
        async def main() -> None:
            async with serve(answering(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")) as served:
                sink = served.begin(b"POST", is_complete=False)
                await until(lambda: sink.is_done)
                assert sink.head is not None
                assert sink.head.status == 413
                await until(lambda: served.pool.open == 0)

        run(main)

    def test_many_at_once_share_few_connections(self, run: Run) -> None:
        async def main() -> None:
            async with serve(answering(OK), max_connections=4) as served:
                sinks = [served.begin() for _ in range(100)]
                await until(lambda: all(sink.is_done for sink in sinks))
                assert all(sink.body == b"abc" for sink in sinks)
                assert served.cells[W_UPSTREAM_CONNECTS] <= 4
                served.pool.add_up()
                assert served.cells[W_UPSTREAM_CONNECTS] + served.cells[W_UPSTREAM_REUSES] == 100

        run(main)


class TestBackPressure:
    def test_upload_to_an_upstream_that_does_not_read(self, run: Run) -> None:
        """Paused beyond the limit, and no more is buffered than what was given until then."""

        async def main() -> None:
            may_read = asyncio.Event()
            received = 0

            async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                nonlocal received
                await request_of(reader)
                await may_read.wait()
                while received < total:
                    received += len(await reader.read(1 << 20))
                writer.write(OK)
                await writer.drain()
                await reader.read()

            total = 1 << 62
            async with serve(handle) as served:
                sink = served.begin(b"PUT", is_complete=False)
                await until(lambda: sink.conn)
                assert sink.conn is not None
                given = 0
                while "paused" not in sink.calls:
                    sink.conn.write_body(b"x" * 65_536)
                    given += 65_536
                    await asyncio.sleep(0)
                transport = sink.conn.transport
                assert transport is not None
                assert transport.get_write_buffer_size() <= CLIENT_BUFFER_BYTES + 65_536
                total = given
                sink.conn.end_body()
                may_read.set()
                await until(lambda: sink.is_done)
                assert sink.body == b"abc"
                assert sink.calls.index("writable") < sink.calls.index("head")
                assert served.pool.idle == 1

        run(main)

    def test_download_for_a_client_that_does_not_read(self, run: Run) -> None:
        """Paused, the upstream cannot send more than the sockets hold; resumed, every byte arrives."""

        async def main() -> None:
            total = 16 * 1024 * 1024
            is_stuck = asyncio.Event()

            async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                await request_of(reader)
                writer.transport.set_write_buffer_limits(high=65_536)
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % total)
                sent = 0
                while sent < total:
                    writer.write(b"x" * 65_536)
                    sent += 65_536
                    try:
                        await asyncio.wait_for(asyncio.shield(drained := asyncio.ensure_future(writer.drain())), 0.05)
                    except TimeoutError:
                        is_stuck.set()
                        await drained
                await reader.read()

            async with serve(handle) as served:
                sink = served.begin()
                sink.react = lambda name: sink.conn.pause_reading() if name == "head" and sink.conn else None
                await is_stuck.wait()
                held = len(sink.body)
                assert held <= 262_144
                await asyncio.sleep(0)
                assert len(sink.body) == held
                assert sink.conn is not None
                sink.conn.resume_reading()
                await until(lambda: sink.is_done)
                assert len(sink.body) == total
                assert served.pool.idle == 1

        run(main)


def server_tls(name: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(TLS / f"{name}.pem", TLS / "server.key")
    return context


class TestTls:
    def test_verified(self, run: Run) -> None:
        """By address, by sni, without verification; and reused like any other."""

        async def main() -> None:
            for tls in (
                UpstreamTls(ca_file=CA),
                UpstreamTls(ca_file=CA, sni="app.internal"),
                UpstreamTls(verify=False),
            ):
                names: list[str | None] = []
                context = server_tls("server")
                context.sni_callback = lambda sock, name, _, names=names: names.append(name)  # type: ignore[misc]
                async with serve(answering(OK), tls=context, upstream_tls=tls) as served:
                    for _ in range(2):
                        assert (await served.fetch()).body == b"abc"
                    served.pool.add_up()
                    assert served.cells[W_UPSTREAM_REUSES] == 1
                    assert names == [tls.sni or None]

        run(main)

    @pytest.mark.parametrize(
        ("certificate", "tls"),
        [
            ("untrusted", UpstreamTls(ca_file=CA)),
            ("server", UpstreamTls()),
            ("expired", UpstreamTls(ca_file=CA)),
            ("other-name", UpstreamTls(ca_file=CA)),
            ("server", UpstreamTls(ca_file=CA, sni="evil.internal")),
        ],
    )
    def test_refused(self, run: Run, certificate: str, tls: UpstreamTls) -> None:
        """502, and not a byte of the request was sent."""

        async def main() -> None:
            seen: list[bytes] = []

            async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                seen.append(await reader.read())

            async with serve(handle, tls=server_tls(certificate), upstream_tls=tls) as served:
                sink = await served.fetch()
                assert sink.failure is not None
                assert (sink.failure.status, sink.reason) == (502, "tls_failed")
                assert "connected" not in sink.calls
                assert not any(seen)

        run(main)

    @pytest.mark.parametrize("says", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
    def test_no_tls_at_the_other_end(self, run: Run, says: bytes) -> None:
        async def main() -> None:
            async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                await reader.read(1)
                writer.write(says)
                await writer.drain()

            async with serve(handle, upstream_tls=UpstreamTls(ca_file=CA)) as served:
                sink = await served.fetch()
                assert sink.failure is not None
                assert (sink.failure.status, sink.reason) == (502, "tls_failed")

        run(main)

    def test_timeout_inside_the_handshake(self, run: Run) -> None:
        """Connected is not enough: the handshake belongs to the connect timeout."""

        async def main() -> None:
            is_there = asyncio.Event()

            async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                await reader.read(1)
                is_there.set()
                await reader.read()

            async with serve(handle, upstream_tls=UpstreamTls(ca_file=CA)) as served:
                sink = served.begin()
                await is_there.wait()
                served.pool.sweep(now_ns() + 3 * S)
                assert sink.reason == "connect_timeout"

        run(main)

    @pytest.mark.parametrize("is_cut", [False, True])
    def test_end_of_a_body_without_framing(self, run: Run, is_cut: bool) -> None:
        """With the goodbye of TLS it is complete; a bare end of the stream may be somebody cutting it."""

        async def main() -> None:
            async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                await request_of(reader)
                writer.write(b"HTTP/1.1 200 OK\r\n\r\nabc")
                await request_of(reader)
                if not is_cut:
                    writer.close()
                    await writer.wait_closed()

            async with serve(handle, tls=server_tls("server"), upstream_tls=UpstreamTls(ca_file=CA)) as served:
                sink = served.begin(is_complete=False)
                await until(lambda: sink.body)
                assert sink.conn is not None
                sink.conn.write_body(b"go on\r\n\r\n")
                await until(lambda: sink.is_done)
                assert (sink.calls[-1], sink.reason) == (("failed", "closed_early") if is_cut else ("end", ""))

        run(main)
