"""What a sink is told, in which order, and what becomes of the connection; with a transport made of memory."""

from collections.abc import AsyncIterator

import pytest

from proxy.upstream.connection import IDEMPOTENT
from shared.defaults import CLIENT_BUFFER_BYTES
from shared.metrics import W_RETRIES, W_UPSTREAM_CONNECTS, W_UPSTREAM_FAILURES, W_UPSTREAM_POISONED, W_UPSTREAM_REUSES
from tests.proxy.upstream_fakes import OK, Bench, FakeTransport, Recorder, turns

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
LONG = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n"


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    made = Bench()
    yield made
    await made.close()


async def begin(bench: Bench, method: bytes = b"GET", *, is_complete: bool = True) -> tuple[Recorder, FakeTransport]:
    sink = await bench.acquire(method, is_complete=is_complete)
    return sink, bench.connector.transports[-1]


class TestCallbacks:
    async def test_one_read_is_one_call(self, bench: Bench) -> None:
        """Head, body and end in one, so that one write will do; the connection is back before it."""
        sink, transport = await begin(bench)
        assert transport.written == b"GET / HTTP/1.1\r\n\r\n"
        transport.receive(OK)
        assert sink.calls == ["connected", "head", "body", "end"]
        assert sink.more == [], "not told in pieces"
        assert sink.body == b"abc"
        assert bench.pool.idle == 1

    async def test_body_that_goes_on(self, bench: Bench) -> None:
        """`has_more` is False where the sink should write what it has."""
        sink, transport = await begin(bench)
        transport.receive(LONG, b"abcd", b"efghij")
        assert sink.calls == ["connected", "head", "body", "body", "end"]
        assert sink.more == [False, False, True]

    async def test_head_with_a_part_of_the_body(self, bench: Bench) -> None:
        sink, transport = await begin(bench)
        transport.receive(LONG + b"abcd")
        assert sink.more == [True, False]

    async def test_no_body_no_body_call(self, bench: Bench) -> None:
        sink, transport = await begin(bench, b"HEAD")
        transport.receive(LONG)
        assert sink.calls == ["connected", "head", "end"]
        assert bench.pool.idle == 1

    async def test_informational(self, bench: Bench) -> None:
        sink, transport = await begin(bench)
        transport.receive(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n", OK)
        assert sink.calls == ["connected", "informational", "head", "body", "end"]
        assert sink.informational == [103]

    async def test_the_end_comes_after_the_connection_is_back(self, bench: Bench) -> None:
        """So the sink can begin its next request on it from inside `upstream_end`."""
        sink, transport = await begin(bench)
        again = Recorder()

        def react(name: str) -> None:
            if name == "end":
                assert bench.pool.idle == 1
                bench.pool.acquire(again, b"GET")

        sink.react = react
        transport.receive(OK)
        assert again.calls == ["connected"]
        assert again.was_reused == [True]
        transport.receive(OK)
        assert again.calls[-1] == "end"
        assert len(bench.connector.transports) == 1


class TestAbort:
    @pytest.mark.parametrize("at", ["connected", "informational", "head", "body"])
    async def test_from_inside_a_callback(self, bench: Bench, at: str) -> None:
        """Nothing more is told, and the connection is never used again."""
        sink = Recorder()
        sink.react = lambda name: sink.conn.abort() if name == at and sink.conn else None
        bench.pool.acquire(sink, b"GET")
        await turns()
        transport = bench.connector.transports[0]
        transport.receive(b"HTTP/1.1 103 Early Hints\r\n\r\n" + LONG + b"abc")
        await turns()
        assert sink.calls[-1] == at
        assert transport.ended == "aborted"
        assert bench.pool.open == 0

    async def test_between_callbacks(self, bench: Bench) -> None:
        sink, transport = await begin(bench)
        transport.receive(LONG)
        assert sink.conn is not None
        conn = sink.conn
        conn.abort()
        conn.abort()
        conn.write_body(b"late")
        conn.pause_reading()
        conn.resume_reading()
        await turns()
        conn.write_body(b"later")
        assert sink.calls == ["connected", "head"]
        assert transport.ended == "aborted"
        assert bench.pool.idle == bench.pool.open == 0
        assert bench.cells[W_UPSTREAM_FAILURES] == 0


class TestRequestBody:
    async def test_a_body_is_written_as_given(self, bench: Bench) -> None:
        sink, transport = await begin(bench, b"POST", is_complete=False)
        assert sink.conn is not None
        sink.conn.write_body(b"ab")
        sink.conn.write_body(b"c")
        sink.conn.end_body()
        transport.receive(OK)
        assert transport.written == b"GET / HTTP/1.1\r\n\r\nabc"
        assert bench.pool.idle == 1

    async def test_an_answer_before_the_end_of_the_request(self, bench: Bench) -> None:
        """Delivered whole; the connection is closed because the upstream still waits for the rest."""
        sink, transport = await begin(bench, b"POST", is_complete=False)
        assert sink.conn is not None
        sink.conn.write_body(b"ab")
        transport.receive(OK)
        assert sink.calls == ["connected", "head", "body", "end"]
        assert transport.ended == "aborted"
        assert bench.pool.idle == 0

    async def test_a_head_before_the_end_of_the_request(self, bench: Bench) -> None:
        """The rest of the request may still be given; then the connection is good."""
        sink, transport = await begin(bench, b"POST", is_complete=False)
        transport.receive(LONG)
        assert sink.conn is not None
        sink.conn.write_body(b"ab")
        sink.conn.end_body()
        transport.receive(b"0123456789")
        assert sink.calls[-1] == "end"
        assert bench.pool.idle == 1

    async def test_back_pressure(self, bench: Bench) -> None:
        sink, transport = await begin(bench, b"POST", is_complete=False)
        assert transport.high == CLIENT_BUFFER_BYTES
        transport.protocol.pause_writing()
        transport.protocol.resume_writing()
        assert sink.calls == ["connected", "paused", "writable"]

    async def test_a_body_that_was_not_read_to_its_end_forbids_reuse(self, bench: Bench) -> None:
        """All of it was given, but it is still here: the upstream answered without it."""
        sink, transport = await begin(bench, b"POST", is_complete=False)
        assert sink.conn is not None
        sink.conn.write_body(b"abc")
        sink.conn.end_body()
        transport.unsent = 1
        transport.receive(OK)
        assert sink.calls[-1] == "end"
        assert transport.ended == "aborted"

    async def test_an_unsent_head_forbids_reuse(self, bench: Bench) -> None:
        sink, transport = await begin(bench, b"POST")
        transport.protocol.pause_writing()
        transport.receive(OK)
        assert sink.calls[-1] == "end"
        assert transport.ended == "aborted"
        assert bench.pool.idle == 0

    async def test_pausing_without_a_sink_is_nothing(self, bench: Bench) -> None:
        (transport,) = await bench.idle()
        transport.protocol.pause_writing()
        transport.protocol.resume_writing()


class TestPausedReading:
    async def test_pause_and_resume(self, bench: Bench) -> None:
        sink, transport = await begin(bench)
        transport.receive(LONG)
        assert sink.conn is not None
        sink.conn.pause_reading()
        sink.conn.pause_reading()
        assert transport.is_reading_paused
        sink.conn.resume_reading()
        sink.conn.resume_reading()
        assert not transport.is_reading_paused

    async def test_an_idle_connection_reads_again(self, bench: Bench) -> None:
        """Paused inside the read that brought the end: an idle one must notice its end."""
        sink, transport = await begin(bench)
        sink.react = lambda name: sink.conn.pause_reading() if name == "head" and sink.conn else None
        transport.receive(OK)
        assert sink.calls[-1] == "end"
        assert not transport.is_reading_paused
        assert bench.pool.idle == 1


class TestPoison:
    async def test_bytes_on_an_idle_connection(self, bench: Bench) -> None:
        (transport,) = await bench.idle()
        transport.receive(b"HTTP/1.1 408 Request Timeout\r\n\r\n")
        assert transport.ended == "aborted"
        assert bench.pool.idle == 0
        assert bench.cells[W_UPSTREAM_POISONED] == 1
        transport.protocol.data_received(b"more")
        assert bench.cells[W_UPSTREAM_POISONED] == 1

    async def test_bytes_behind_a_response(self, bench: Bench) -> None:
        """The response is good, the connection is not."""
        sink, transport = await begin(bench)
        transport.receive(OK + b"HTTP/1.1 200 EVIL\r\nContent-Length: 0\r\n\r\n")
        assert sink.calls == ["connected", "head", "body", "end"]
        assert sink.body == b"abc"
        assert transport.ended == "aborted"
        assert bench.pool.idle == 0
        assert bench.cells[W_UPSTREAM_POISONED] == 1


class TestEnds:
    async def test_connection_close(self, bench: Bench) -> None:
        sink, transport = await begin(bench)
        transport.receive(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
        assert sink.calls[-1] == "end"
        assert transport.ended == "closed"
        assert bench.pool.idle == 0

    async def test_end_of_stream_ends_a_body_without_framing(self, bench: Bench) -> None:
        sink, transport = await begin(bench)
        transport.receive(b"HTTP/1.1 200 OK\r\n\r\nabc", b"def")
        transport.end_of_stream()
        assert sink.calls == ["connected", "head", "body", "body", "end"]
        assert sink.more == [True, False, False]
        await turns()
        assert bench.pool.open == 0

    async def test_a_reset_does_not_end_it(self, bench: Bench) -> None:
        sink, transport = await begin(bench)
        transport.receive(b"HTTP/1.1 200 OK\r\n\r\nabc")
        transport.reset()
        assert sink.calls == ["connected", "head", "body", "failed"]
        assert sink.reason == "closed_early"

    async def test_end_of_stream_inside_a_response(self, bench: Bench) -> None:
        """Never a clean end; unsent bytes of the request do not hold it up."""
        sink, transport = await begin(bench)
        transport.receive(LONG + b"abc")
        transport.end_of_stream()
        assert transport.ended == "aborted"
        await turns()
        assert sink.calls == ["connected", "head", "body", "failed"]
        assert sink.failure is not None
        assert (sink.failure.status, sink.reason) == (502, "closed_early")
        assert "app (127.0.0.1:9)" in str(sink.failure)
        assert bench.cells[W_UPSTREAM_FAILURES] == 1

    async def test_malformed(self, bench: Bench) -> None:
        sink, transport = await begin(bench)
        transport.receive(b"HTTP/1.1 200 OK\nA: b\n\n")
        assert sink.calls == ["connected", "failed"]
        assert sink.reason == "malformed_response"
        assert transport.ended == "aborted"
        await turns()
        assert sink.calls == ["connected", "failed"]
        assert bench.cells[W_UPSTREAM_FAILURES] == 1

    async def test_malformed_after_the_head(self, bench: Bench) -> None:
        sink, transport = await begin(bench)
        transport.receive(CHUNKED + b"3\r\nabc\r\n", b"xyz\r\n")
        assert sink.calls == ["connected", "head", "body", "failed"]

    async def test_a_driver_that_raises(self, bench: Bench) -> None:
        """The transport closes the connection, and the request still ends."""
        sink, transport = await begin(bench)

        def react(name: str) -> None:
            if name == "head":
                raise ZeroDivisionError

        sink.react = react
        with pytest.raises(ZeroDivisionError):
            transport.receive(OK)
        transport.reset()
        assert sink.calls == ["connected", "head", "failed"]


class TestRetry:
    """Only where nobody could notice."""

    async def test_a_reused_connection_that_is_dead(self, bench: Bench) -> None:
        """The request is begun again on a new connection; the sink is given that one."""
        (transport,) = await bench.idle()
        sink = await bench.acquire()
        assert sink.was_reused == [True]
        transport.reset()
        await turns()
        assert sink.calls == ["connected", "connected"]
        assert sink.was_reused == [True, False]
        assert sink.lost == 1, "told in between, so that body is held"
        fresh = bench.connector.transports[-1]
        assert fresh is not transport
        assert fresh.written == sink.request_head
        fresh.receive(OK)
        assert sink.calls[-1] == "end"
        assert bench.cells[W_RETRIES] == 1
        assert bench.cells[W_UPSTREAM_FAILURES] == 0
        bench.pool.add_up()
        assert bench.cells[W_UPSTREAM_REUSES] == 1
        assert bench.cells[W_UPSTREAM_CONNECTS] == 2

    async def test_end_of_stream_counts_the_same(self, bench: Bench) -> None:
        (transport,) = await bench.idle()
        sink = await bench.acquire()
        transport.end_of_stream()
        await turns()
        assert sink.calls == ["connected", "connected"]

    @pytest.mark.parametrize("method", sorted(IDEMPOTENT))
    async def test_idempotent_methods(self, bench: Bench, method: bytes) -> None:
        (transport,) = await bench.idle()
        sink = await bench.acquire(method)
        transport.reset()
        await turns()
        assert sink.calls == ["connected", "connected"]

    @pytest.mark.parametrize("method", [b"POST", b"PATCH", b"LOCK", b"get", b"QUERY"])
    async def test_no_other(self, bench: Bench, method: bytes) -> None:
        (transport,) = await bench.idle()
        sink = await bench.acquire(method)
        transport.reset()
        await turns()
        assert sink.calls == ["connected", "failed"]
        assert sink.reason == "closed_early"

    async def test_not_on_a_new_connection(self, bench: Bench) -> None:
        sink, transport = await begin(bench)
        transport.reset()
        await turns()
        assert sink.calls == ["connected", "failed"]

    async def test_not_after_a_byte_of_the_response(self, bench: Bench) -> None:
        (transport,) = await bench.idle()
        sink = await bench.acquire()
        transport.receive(b"H")
        transport.reset()
        await turns()
        assert sink.calls == ["connected", "failed"]

    async def test_not_after_an_informational_response(self, bench: Bench) -> None:
        (transport,) = await bench.idle()
        sink = await bench.acquire()
        transport.receive(b"HTTP/1.1 100 Continue\r\n\r\n")
        transport.reset()
        await turns()
        assert sink.calls == ["connected", "failed"]

    async def test_not_after_a_byte_of_the_body(self, bench: Bench) -> None:
        (transport,) = await bench.idle()
        sink = await bench.acquire(b"PUT", is_complete=False)
        assert sink.conn is not None
        sink.conn.write_body(b"a")
        transport.reset()
        await turns()
        assert sink.calls == ["connected", "failed"]

    async def test_with_a_body_not_yet_given(self, bench: Bench) -> None:
        (transport,) = await bench.idle()
        sink = await bench.acquire(b"PUT", is_complete=False)
        transport.reset()
        await turns()
        assert sink.calls == ["connected", "connected"]
        assert sink.conn is not None
        sink.conn.write_body(b"a")
        assert bench.connector.transports[-1].written.endswith(b"a")

    async def test_retries_are_counted_per_request(self) -> None:
        """Each time on a connection of another request that died too; then no more."""
        bench = Bench(retries=2, max_connections=1)
        (transport,) = await bench.idle()
        sink = await bench.acquire()
        for _ in range(2):
            other = Recorder()
            bench.pool.acquire(other, b"GET")  # waits: its connection will be the one that is given on
            transport.reset()
            await turns()
            assert other.calls == ["connected"]
            transport = bench.connector.transports[-1]
            transport.receive(OK)  # other is done, the connection is reused by the retried one
            assert sink.calls[-1] == "connected"
        transport.reset()
        await turns()
        assert sink.calls == ["connected"] * 3 + ["failed"]
        assert bench.cells[W_RETRIES] == 2
        await bench.close()

    async def test_none_when_configured_so(self) -> None:
        bench = Bench(retries=0)
        (transport,) = await bench.idle()
        sink = await bench.acquire()
        transport.reset()
        assert sink.calls == ["connected", "failed"]
        await bench.close()

    async def test_no_idle_connection_is_tried(self, bench: Bench) -> None:
        """The others have probably died of the same cause."""
        transports = await bench.idle(3)
        sink = await bench.acquire()
        transports[-1].reset()
        await turns()
        assert sink.was_reused == [True, False]
        assert bench.pool.idle == 2

    async def test_its_place_is_free(self) -> None:
        """All connections made and in use or idle: the dead one leaves room for the new one."""
        bench = Bench(max_connections=2)
        transports = await bench.idle(2)
        sink = await bench.acquire()
        transports[1].reset()
        await turns()
        assert sink.was_reused == [True, False]
        assert bench.pool.open == 2
        await bench.close()


async def test_random_bytes_never_raise(bench: Bench) -> None:
    """Whatever an upstream sends, data_received returns, and the request ends once."""
    import random

    rng = random.Random(7)
    pieces = [b"HTTP/1.1 ", b"200 OK", b"\r\n", b"Content-Length: ", b"5", b"Transfer-Encoding: chunked", b"\r\n\r\n"]
    pieces += [b"\n", b"\x00", b"HTTP/1.1 101 X\r\n\r\n", b"0\r\n\r\n", b"Upgrade: x\r\nConnection: upgrade\r\n"]
    for _ in range(1_500):
        sink, transport = await begin(bench, rng.choice([b"GET", b"HEAD"]))
        for _ in range(rng.randrange(12)):
            transport.receive(rng.choice(pieces) if rng.random() < 0.8 else rng.randbytes(rng.randrange(1, 9)))
        if not transport.ended:
            transport.end_of_stream()
        await turns(3)
        assert sink.calls.count("end") + sink.calls.count("failed") == 1
        assert sink.calls[-1] in ("end", "failed")
    assert bench.pool.open == 0
