"""A connection to an upstream after its 101: bytes both ways, its ends, and what is left when its sink leaves."""

from collections.abc import AsyncIterator

import pytest

from proxy.upstream.reader import ResponseReader
from shared.defaults import LINGER_MS
from shared.errors import UpstreamFailed
from shared.metrics import W_UPSTREAM_FAILURES, W_UPSTREAM_POISONED
from tests.proxy.upstream_fakes import OK, Bench, FakeConnector, FakeTransport, Recorder, turns

SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"


class HalfClosable(FakeTransport):
    """With an end of each direction's own."""

    eof_written = False

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.eof_written = True

    def end_of_stream(self) -> None:
        if not self.protocol.eof_received():
            self.close()


class Connector(FakeConnector):
    def _made(self, protocol: object) -> FakeTransport:
        transport = HalfClosable(protocol)  # type: ignore[arg-type]
        self.transports.append(transport)
        protocol.connection_made(transport)  # type: ignore[attr-defined]
        return transport


class Sink(Recorder):
    """Asks for an upgrade."""

    def upstream_connected(self, conn: object) -> None:
        conn.ask_upgrade()  # type: ignore[attr-defined]
        super().upstream_connected(conn)  # type: ignore[arg-type]

    def upstream_eof(self) -> None:
        self._called("eof")

    def upstream_idle(self) -> None:
        self._called("idle")


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    made = Bench()
    made.connector = Connector(is_instant=True)
    made.pool._dialler._connector = made.connector
    yield made
    await made.close()


async def begin(bench: Bench, answer: bytes = SWITCH) -> tuple[Sink, HalfClosable]:
    sink = Sink()
    bench.pool.acquire(sink, b"GET")
    await turns()
    transport = bench.connector.transports[-1]
    assert isinstance(transport, HalfClosable)
    transport.receive(answer)
    return sink, transport


class TestReader:
    def test_a_101_that_was_asked_for_is_final(self) -> None:
        for cut in (len(SWITCH), 5, len(SWITCH) - 1):
            reader = ResponseReader()
            reader.begin(False)
            reader.may_upgrade = True
            body = b""
            for piece in (SWITCH[:cut], SWITCH[cut:] + b"\x81\x02hi", b"\r\n\r\n"):
                if piece:
                    reader.feed(piece)
                    body += reader.body
            assert reader.head is not None
            assert (reader.head.status, reader.head.has_body, reader.is_tunnel) == (101, False, True)
            assert (body, reader.is_complete, reader.eof()) == (b"\x81\x02hi\r\n\r\n", False, False)

    def test_it_is_not_remembered_for_who_did_not_ask(self) -> None:
        reader = ResponseReader()
        reader.begin(False)
        reader.may_upgrade = True
        reader.feed(SWITCH)
        other = ResponseReader()
        other.begin(False)
        with pytest.raises(UpstreamFailed):
            other.feed(SWITCH)

    def test_asking_lasts_for_one_request(self) -> None:
        reader = ResponseReader()
        reader.begin(False)
        reader.may_upgrade = True
        reader.feed(OK)
        reader.begin(False)
        with pytest.raises(UpstreamFailed):
            reader.feed(SWITCH)


class TestTunnel:
    async def test_bytes_both_ways(self, bench: Bench) -> None:
        sink, transport = await begin(bench, SWITCH + b"\x81\x00")
        assert sink.conn is not None
        assert sink.conn.is_tunnel
        transport.receive(OK)  # no response any more
        sink.conn.write_body(b"up")
        assert sink.body == b"\x81\x00" + OK
        assert transport.written.endswith(b"up")
        assert sink.calls == ["connected", "head", "body", "body"]

    async def test_another_answer_is_an_ordinary_one(self, bench: Bench) -> None:
        sink, _ = await begin(bench, OK)
        assert sink.calls == ["connected", "head", "body", "end"]
        assert bench.pool.idle == 1

    async def test_its_end_leaves_our_direction_open(self, bench: Bench) -> None:
        sink, transport = await begin(bench)
        transport.end_of_stream()
        assert (sink.calls[-1], transport.ended) == ("eof", "")
        assert sink.conn is not None
        sink.conn.write_body(b"more")
        assert transport.written.endswith(b"more")
        sink.conn.leave()
        assert transport.ended == "closed"
        assert bench.cells[W_UPSTREAM_FAILURES] == 0

    async def test_our_end_leaves_its_direction_open(self, bench: Bench) -> None:
        sink, transport = await begin(bench)
        assert sink.conn is not None
        sink.conn.end_writing()
        assert transport.eof_written
        transport.receive(b"still there")
        assert sink.body == b"still there"

    async def test_a_break_is_a_failure(self, bench: Bench) -> None:
        sink, transport = await begin(bench)
        transport.reset()
        assert (sink.calls[-1], sink.reason) == ("failed", "closed_early")

    async def test_silence_is_told_and_ends_nothing(self, bench: Bench) -> None:
        sink, transport = await begin(bench)
        bench.late(299)
        assert "idle" not in sink.calls
        bench.late(301)
        assert (sink.calls[-1], transport.ended) == ("idle", "")

    async def test_bytes_in_either_direction_are_no_silence(self, bench: Bench) -> None:
        sink, transport = await begin(bench)
        for _ in range(3):
            bench.late(200)
            assert sink.conn is not None
            sink.conn.write_body(b"x")
            bench.late(200)
            transport.receive(b"x")
        assert "idle" not in sink.calls


class TestLeaving:
    async def test_what_still_comes_is_thrown_away(self, bench: Bench) -> None:
        sink, transport = await begin(bench)
        assert sink.conn is not None
        sink.conn.pause_reading()
        sink.conn.leave()
        assert transport.eof_written
        assert not transport.is_reading_paused
        transport.receive(b"x" * 1000)
        assert sink.body == b""
        transport.end_of_stream()
        assert transport.ended == "closed"
        await turns()
        assert bench.pool.open == 0
        assert (bench.cells[W_UPSTREAM_POISONED], bench.cells[W_UPSTREAM_FAILURES]) == (0, 0)

    async def test_one_that_does_not_end_is_cut(self, bench: Bench) -> None:
        sink, transport = await begin(bench)
        assert sink.conn is not None
        sink.conn.leave()
        bench.late(LINGER_MS / 1000 / 2)
        assert transport.ended == ""
        bench.late(LINGER_MS / 1000)
        assert transport.ended == "aborted"

    async def test_it_is_never_used_again(self, bench: Bench) -> None:
        sink, transport = await begin(bench)
        assert sink.conn is not None
        sink.conn.leave()
        await bench.acquire()
        assert bench.connector.transports[-1] is not transport
