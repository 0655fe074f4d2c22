"""Who gets which connection, who waits, who is refused; with a connector and a clock of the test's own."""

from collections.abc import AsyncIterator

import pytest

from proxy.upstream.pool import UpstreamPool
from shared.defaults import UPSTREAM_KEEPALIVE_S, UPSTREAM_WAITING
from shared.metrics import (
    W_UPSTREAM_CONNECTS,
    W_UPSTREAM_FAILURES,
    W_UPSTREAM_IDLE,
    W_UPSTREAM_OPEN,
    W_UPSTREAM_REUSES,
    W_UPSTREAM_WAITING,
)
from tests.proxy.upstream_fakes import OK, Bench, FakeConnector, Recorder, turns, upstream
from tests.support import Clock

CLOSING = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
LONG = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n"


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    made = Bench()
    yield made
    await made.close()


@pytest.fixture
async def slow() -> AsyncIterator[Bench]:
    """Connects take until the test says so."""
    made = Bench(is_instant=False)
    yield made
    await made.close()


class TestReuse:
    async def test_the_last_used_first(self, bench: Bench) -> None:
        """LIFO: the rest can grow old and be closed."""
        first, second = await bench.idle(2)
        sink = await bench.acquire()
        assert second.written
        assert not first.written
        assert sink.was_reused == [True]
        bench.pool.sweep(bench.clock.s(1))  # which adds up what was counted
        assert bench.cells[W_UPSTREAM_REUSES] == 1
        assert bench.cells[W_UPSTREAM_CONNECTS] == 2

    async def test_at_once_and_without_a_task(self, bench: Bench) -> None:
        await bench.idle()
        sink = Recorder()
        bench.pool.acquire(sink, b"GET")
        assert sink.calls == ["connected"]

    async def test_not_one_that_is_dying(self, bench: Bench) -> None:
        """Closed by the transport, `connection_lost` still to come: a POST on it would fail."""
        (transport,) = await bench.idle()
        transport.ended = "broken"
        sink = await bench.acquire(b"POST")
        assert sink.was_reused == [False]
        transport.reset()

    async def test_not_one_that_has_ended(self, bench: Bench) -> None:
        (transport,) = await bench.idle()
        transport.protocol.eof_received()
        assert bench.pool.idle == 0
        transport.close()
        await turns()
        assert bench.pool.open == 0

    async def test_each_target_has_its_own(self) -> None:
        """Two targets, one idle connection each; the turn decides."""
        bench = Bench("10.0.0.1:1", "10.0.0.2:1")
        await bench.idle(2)
        sinks = [await bench.acquire() for _ in range(2)]
        assert sorted(sink.conn.target for sink in sinks if sink.conn) == ["10.0.0.1:1", "10.0.0.2:1"]
        assert all(sink.was_reused == [True] for sink in sinks)
        await bench.close()

    async def test_any_target_when_no_more_connections_may_be_made(self) -> None:
        bench = Bench("10.0.0.1:1", "10.0.0.2:1", max_connections=1)
        await bench.idle()
        sink = await bench.acquire()
        assert sink.was_reused == [True]
        assert bench.connector.attempts == ["10.0.0.1:1"]
        await bench.close()


class TestWaiting:
    async def test_whichever_is_there_sooner(self, slow: Bench) -> None:
        """A request takes a connection that another gives back; its dial makes an idle one."""
        first = await slow.acquire()
        transport = slow.connector.succeed()
        await turns()
        second = await slow.acquire()
        assert slow.pool.waiting == 1
        transport.receive(OK)
        assert first.is_done
        assert second.was_reused == [True]
        slow.connector.succeed()
        assert slow.pool.idle == 1
        assert second.calls == ["connected"]

    async def test_in_order(self, slow: Bench) -> None:
        sinks = [await slow.acquire() for _ in range(3)]
        for count in range(3):
            slow.connector.succeed()
            assert [bool(sink.calls) for sink in sinks] == [True] * (count + 1) + [False] * (2 - count)

    async def test_no_more_connections_than_allowed(self) -> None:
        bench = Bench(max_connections=2)
        sinks = [await bench.acquire() for _ in range(5)]
        assert len(bench.connector.transports) == 2
        assert bench.pool.waiting == 3
        for turn in range(5):
            assert sinks[turn].calls == ["connected"]
            bench.connector.transports[turn % 2].receive(OK)
            assert sinks[turn].is_done
        assert bench.pool.idle == 2
        assert len(bench.connector.transports) == 2
        await bench.close()

    async def test_a_closed_connection_makes_room(self) -> None:
        bench = Bench(max_connections=1)
        await bench.acquire()
        waiting = await bench.acquire()
        bench.connector.transports[0].receive(CLOSING)
        await turns()
        assert waiting.was_reused == [False]
        assert len(bench.connector.transports) == 2
        await bench.close()

    async def test_a_surplus_dial_serves_the_next(self, slow: Bench) -> None:
        """A request whose client left: its dial is not repeated for the next one."""
        gone = await slow.acquire()
        slow.pool.cancel(gone)
        sink = await slow.acquire()
        assert len(slow.connector.attempts) == 1
        slow.connector.succeed()
        assert gone.calls == []
        assert sink.calls == ["connected"]

    async def test_cancel_is_nothing_for_others(self, bench: Bench) -> None:
        sink = await bench.acquire()
        bench.pool.cancel(sink)
        bench.pool.cancel(Recorder())
        assert sink.conn is not None

    async def test_the_queue_is_bounded(self) -> None:
        bench = Bench(max_connections=1)
        await bench.acquire()
        waiting = [Recorder() for _ in range(UPSTREAM_WAITING + 1)]
        for sink in waiting:
            bench.pool.acquire(sink, b"GET")
        assert [sink.reason for sink in waiting] == [""] * UPSTREAM_WAITING + ["pool_full"]
        assert waiting[-1].failure is not None
        assert waiting[-1].failure.status == 503
        await bench.close()

    async def test_the_queues_bound_is_configured_and_its_length_shown(self) -> None:
        bench = Bench(max_connections=1, max_waiting=2)
        await bench.acquire()
        waiting = [Recorder() for _ in range(3)]
        for sink in waiting:
            bench.pool.acquire(sink, b"GET")
        assert [sink.reason for sink in waiting] == ["", "", "pool_full"]
        bench.pool.sweep(bench.clock.ms(1))
        assert bench.cells[W_UPSTREAM_WAITING] == 2
        bench.pool.cancel(waiting[0])
        bench.pool.sweep(bench.clock.s(1))
        assert bench.cells[W_UPSTREAM_WAITING] == 1
        await bench.close()
        assert bench.cells[W_UPSTREAM_WAITING] == 0

    async def test_nobody_waits_for_ever(self) -> None:
        """503 when every connection was busy all the time: nothing was wrong with connecting."""
        bench = Bench(max_connections=1, connect_timeout_s=2.0)
        await bench.acquire()
        early = await bench.acquire()
        bench.pool.sweep(bench.clock.s(1))
        late = await bench.acquire()
        bench.pool.sweep(bench.clock.s(1))
        assert early.failure is not None
        assert (early.failure.status, early.reason) == (503, "pool_full")
        assert not late.is_done
        bench.pool.sweep(bench.clock.s(1))
        assert late.reason == "pool_full"
        await bench.close()

    async def test_a_dial_that_began_late(self) -> None:
        """Its time is its own, but the request has waited long enough: 504, for it did try to connect."""
        bench = Bench(max_connections=1, connect_timeout_s=2.0)
        await bench.acquire()
        bench.connector.is_instant = False
        waiting = await bench.acquire()
        bench.pool.sweep(bench.clock.s(1))
        bench.connector.transports[0].receive(CLOSING)
        await turns()
        bench.pool.sweep(bench.clock.s(1))
        assert waiting.failure is not None
        assert (waiting.failure.status, waiting.reason) == (504, "connect_timeout")
        bench.connector.succeed()
        assert bench.pool.idle == 1
        await bench.close()


class TestConnectFailures:
    async def test_refused(self, slow: Bench) -> None:
        sink = await slow.acquire()
        slow.connector.fail()
        await turns()
        assert sink.failure is not None
        assert (sink.failure.status, sink.reason) == (502, "connect_refused")
        assert slow.reachable == [False]
        assert slow.cells[W_UPSTREAM_FAILURES] == 1
        assert slow.pool.endpoints[0].failures == 1

    async def test_each_dial_fails_one_request(self, slow: Bench) -> None:
        sinks = [await slow.acquire() for _ in range(3)]
        for count in range(1, 4):
            slow.connector.fail()
            await turns()
            assert [sink.is_done for sink in sinks] == [True] * count + [False] * (3 - count)

    async def test_more_requests_than_connections(self) -> None:
        """A dial that fails is repeated for those who still wait, each failing one of them: it ends."""
        bench = Bench(is_instant=False, max_connections=1)
        sinks = [await bench.acquire() for _ in range(3)]
        for _ in range(3):
            bench.connector.fail()
            await turns()
        assert [sink.reason for sink in sinks] == ["connect_refused"] * 3
        assert bench.connector.pending == []
        await bench.close()

    async def test_a_dial_that_nobody_waits_for_fails_nobody(self, slow: Bench) -> None:
        sink = await slow.acquire()
        slow.pool.cancel(sink)
        slow.connector.fail()
        await turns()
        assert sink.calls == []
        assert slow.pool.waiting == 0


class TestTimeouts:
    async def test_connect(self) -> None:
        bench = Bench(is_instant=False, connect_timeout_s=2.0)
        sink = await bench.acquire()
        bench.pool.sweep(bench.clock.ms(1_999))
        assert not sink.is_done
        bench.pool.sweep(bench.clock.s(1))
        assert sink.failure is not None
        assert (sink.failure.status, sink.reason) == (504, "connect_timeout")
        await turns()
        assert bench.connector.pending == []
        assert bench.reachable == [False]
        await bench.close()

    async def test_response(self) -> None:
        bench = Bench(response_timeout_s=10.0)
        sink = await bench.acquire()
        bench.late(9)
        assert not sink.is_done
        bench.pool.sweep(bench.clock.s(1))
        assert sink.failure is not None
        assert (sink.failure.status, sink.reason) == (504, "response_timeout")
        assert bench.connector.transports[0].ended == "aborted"
        await bench.close()

    async def test_response_counts_from_the_last_byte_of_the_request(self) -> None:
        bench = Bench(response_timeout_s=10.0)
        sink = await bench.acquire(b"POST", is_complete=False)
        assert sink.conn is not None
        for _ in range(3):
            bench.late(9)
            sink.conn.write_body(b"x")
        bench.late(9)
        sink.conn.end_body()
        bench.late(9)
        assert not sink.is_done
        bench.pool.sweep(bench.clock.s(2))
        assert sink.reason == "response_timeout"
        await bench.close()

    async def test_response_counts_on_for_an_upstream_that_does_not_read(self) -> None:
        """Paused by a full buffer: silence is still the upstream's; taking bytes is a sign of life."""
        bench = Bench(response_timeout_s=10.0)
        sink = await bench.acquire(b"POST", is_complete=False)
        transport = bench.connector.transports[0]
        transport.protocol.pause_writing()
        bench.late(9)
        transport.protocol.resume_writing()
        bench.late(9)
        assert not sink.is_done
        bench.pool.sweep(bench.clock.s(2))
        assert sink.reason == "response_timeout"
        await bench.close()

    async def test_a_partial_head_is_no_head(self) -> None:
        """Every byte is a sign of life, up to the limit of a head."""
        bench = Bench(response_timeout_s=10.0)
        sink = await bench.acquire()
        for byte in (b"H", b"T", b"T"):
            bench.late(9)
            bench.connector.transports[0].receive(byte)
        bench.late(11)
        assert sink.reason == "response_timeout"
        await bench.close()

    async def test_idle_inside_a_response(self) -> None:
        bench = Bench(idle_timeout_s=5.0)
        sink = await bench.acquire()
        transport = bench.connector.transports[0]
        transport.receive(LONG)
        bench.late(4)
        transport.receive(b"a")
        bench.late(4)
        assert not sink.is_done
        bench.pool.sweep(bench.clock.s(2))
        assert sink.calls == ["connected", "head", "body", "failed"]
        assert sink.failure is not None
        assert (sink.failure.status, sink.reason) == (504, "idle_timeout")
        await bench.close()

    async def test_idle_does_not_count_while_the_client_is_slow(self) -> None:
        bench = Bench(idle_timeout_s=5.0)
        sink = await bench.acquire()
        bench.connector.transports[0].receive(LONG)
        assert sink.conn is not None
        sink.conn.pause_reading()
        for _ in range(5):
            bench.late(4)
        sink.conn.resume_reading()
        bench.late(4)
        assert not sink.is_done
        bench.late(2)
        assert sink.reason == "idle_timeout"
        await bench.close()

    async def test_no_idle_timeout(self) -> None:
        """0 = none: event streams."""
        bench = Bench(idle_timeout_s=0.0)
        sink = await bench.acquire()
        bench.connector.transports[0].receive(LONG)
        bench.late(100_000)
        assert not sink.is_done
        await bench.close()

    async def test_old_idle_connections_are_closed(self, bench: Bench) -> None:
        (transport,) = await bench.idle()
        bench.late(UPSTREAM_KEEPALIVE_S - 1)
        sink = await bench.acquire()
        transport.receive(OK)
        assert sink.is_done
        bench.late(UPSTREAM_KEEPALIVE_S - 1)
        assert bench.pool.idle == 1
        bench.pool.sweep(bench.clock.s(2))
        assert bench.pool.idle == 0
        assert transport.ended == "closed"

    async def test_never_early_whatever_the_sweep(self) -> None:
        """Swept every 20 ms a timeout is noticed in time, and not before."""
        bench = Bench(response_timeout_s=1.0)
        sink = await bench.acquire()
        begun = bench.clock()
        while not sink.is_done:
            bench.pool.sweep(bench.clock.ms(20))
        assert 1.0 <= (bench.clock() - begun) / 1e9 <= 1.3
        await bench.close()


class TestAccounts:
    async def test_gauges_are_summed_over_pools(self) -> None:
        """The cells are the worker's: each pool adds only what has changed, and takes it away at the end."""
        one, two = Bench(), Bench()
        two.cells = one.cells
        two.pool = UpstreamPool(upstream(), two.pool._loop, one.cells, clock=two.clock, connector=two.connector)
        await one.idle(2)
        await two.idle(1)
        await two.acquire(b"GET")
        await two.acquire(b"GET")
        one.late(1)
        two.late(1)
        assert one.cells[W_UPSTREAM_OPEN] == 4
        assert one.cells[W_UPSTREAM_IDLE] == 2
        await one.close()
        assert one.cells[W_UPSTREAM_OPEN] == 2
        await two.close()
        assert one.cells[W_UPSTREAM_OPEN] == one.cells[W_UPSTREAM_IDLE] == 0

    async def test_a_memoryview_will_do(self) -> None:
        """The segment's cells."""
        import asyncio

        cells = memoryview(bytearray(8 * 256)).cast("Q")
        connector = FakeConnector(is_instant=True)
        pool = UpstreamPool(upstream(), asyncio.get_running_loop(), cells, clock=Clock(), connector=connector)
        pool.acquire(Recorder(), b"GET")
        await turns()
        connector.transports[0].receive(OK)
        assert cells[W_UPSTREAM_CONNECTS] == 1
        pool.sweep(1 << 50)
        assert cells[W_UPSTREAM_IDLE] == 1
        pool.close()
        await pool.wait_closed()
        assert cells[W_UPSTREAM_IDLE] == 0


class TestProbe:
    async def test_success(self, slow: Bench) -> None:
        slow.pool.probe()
        slow.pool.probe()
        await turns()
        assert len(slow.connector.attempts) == 1
        transport = slow.connector.succeed()
        assert slow.reachable == [True]
        assert transport.ended == "closed"
        assert transport.written == b""
        await turns()
        assert slow.pool.open == 0

    async def test_failure(self, slow: Bench) -> None:
        slow.pool.probe()
        await turns()
        slow.connector.fail()
        await turns()
        assert slow.reachable == [False]

    async def test_a_request_takes_it(self, slow: Bench) -> None:
        slow.pool.probe()
        sink = await slow.acquire()
        assert len(slow.connector.attempts) == 1
        slow.connector.succeed()
        assert sink.calls == ["connected"]

    async def test_not_beyond_the_limit(self) -> None:
        bench = Bench(max_connections=1)
        await bench.acquire()
        bench.pool.probe()
        await turns()
        assert len(bench.connector.attempts) == 1
        await bench.close()


class TestClose:
    async def test_everything_ends(self) -> None:
        bench = Bench(is_instant=False, max_connections=3)
        idle = await bench.acquire()
        bench.connector.succeed().receive(OK)
        running = await bench.acquire()
        second = await bench.acquire()
        bench.connector.succeed().receive(LONG)
        waiting = [await bench.acquire(), await bench.acquire()]
        assert idle.is_done
        assert second.calls == ["connected", "head"]
        bench.pool.close()
        bench.pool.close()
        await bench.pool.wait_closed()
        for sink in (running, second, *waiting):
            assert sink.failure is not None
            assert (sink.failure.status, sink.reason) == (503, "shutting_down")
        assert all(transport.ended for transport in bench.connector.transports)
        assert bench.connector.pending == []
        assert bench.pool.open == bench.pool.idle == bench.pool.waiting == 0

    async def test_nothing_begins_afterwards(self, bench: Bench) -> None:
        await bench.close()
        sink = await bench.acquire()
        assert sink.reason == "shutting_down"
        bench.pool.probe()
        bench.pool.sweep(bench.clock.s(100))
        await turns()
        assert bench.connector.attempts == []

    async def test_a_connection_that_is_made_while_closing(self, slow: Bench) -> None:
        await slow.acquire()
        _, protocol, _ = slow.connector.pending[0]
        slow.pool.close()
        assert slow.connector._made(protocol).ended == "aborted"
        await slow.pool.wait_closed()
