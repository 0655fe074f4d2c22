"""shared/zmtp with real libzmq at the other end, over unix sockets: agents in any language use that."""

import asyncio
import functools
import random
import socket
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop
import zmq
import zmq.asyncio

from shared.zmtp import Connection, Frame

MIB = 1 << 20
WAIT_S = 20.0
Dial = Callable[..., zmq.asyncio.Socket]


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def runner(request: pytest.FixtureRequest) -> Iterator[asyncio.Runner]:
    with asyncio.Runner(loop_factory=request.param) as made:
        yield made


def on_both_loops(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Runs such a test with its `ours`'s runner."""

    @functools.wraps(test)  # pytest reads from it what has to be given
    def run(self: Any, **given: Any) -> None:
        given["ours"].runner.run(test(self, **given))

    return run


def no_common_mechanism(theirs: bytes) -> tuple[str, ...]:
    """Whoever sees it first ends it."""
    return "connection closed", "Connection reset by peer", f"security mechanism {theirs!r}: only NULL is spoken here"


async def soon(what: Any) -> Any:
    return await asyncio.wait_for(what, WAIT_S)


class Ours:
    """Our ends, what they say to us, and the socket libzmq dials."""

    def __init__(self, path: Path, runner: asyncio.Runner) -> None:
        self.path = path
        self.runner = runner
        self.loop = runner.get_loop()
        self.type = b"ROUTER"
        self.max_bytes = 16 * MIB
        self.opened: asyncio.Queue[Connection] = asyncio.Queue()
        self.messages: asyncio.Queue[tuple[Connection, list[bytes]]] = asyncio.Queue()
        self.closed: asyncio.Queue[str] = asyncio.Queue()
        self.made: list[Connection] = []
        self.is_echo = False
        self.reads: asyncio.Queue[None] = asyncio.Queue()
        self.listener: socket.socket | None = None
        self.theirs: list[zmq.asyncio.Socket] = []

    def listen(self) -> None:
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.setblocking(False)
        self.listener.bind(str(self.path))
        self.listener.listen()
        self.loop.add_reader(self.listener.fileno(), self.accept)

    def accept(self) -> None:
        assert self.listener is not None
        self.connect(self.listener.accept()[0])

    def dial(self) -> Connection:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(self.path))
        return self.connect(sock)

    def connect(self, sock: socket.socket) -> Connection:
        sock.setblocking(False)
        connection = Connection(
            sock,
            self.loop,
            self.type,
            on_open=self.opened.put_nowait,
            on_message=self.on_message,
            on_closed=lambda connection, reason: self.closed.put_nowait(reason),
            max_bytes=self.max_bytes,
            max_frames=300,
            max_unsent=64 * MIB,
            turn=self,
        )
        self.made.append(connection)
        return connection

    def on_message(self, connection: Connection, frames: list[Frame]) -> None:
        if self.is_echo:
            assert connection.send(frames)
        else:
            self.messages.put_nowait((connection, [bytes(frame) for frame in frames]))

    def begin(self) -> None:
        self.reads.put_nowait(None)

    def end(self) -> None:
        pass

    async def message(self) -> list[bytes]:
        frames: list[bytes] = (await soon(self.messages.get()))[1]
        return frames

    def close(self) -> None:
        for connection in self.made:
            connection.close()
        for theirs in self.theirs:
            theirs.close(linger=0)
        if self.listener is not None:
            self.loop.remove_reader(self.listener.fileno())
            self.listener.close()


@pytest.fixture
def ours(short_tmp_dir: Path, runner: asyncio.Runner) -> Iterator[Ours]:
    made = Ours(short_tmp_dir / "s", runner)
    yield made
    made.close()


@pytest.fixture
def context(runner: asyncio.Runner) -> Iterator[zmq.asyncio.Context]:
    made = zmq.asyncio.Context()
    yield made
    made.destroy(linger=0)


@pytest.fixture
def dial(ours: Ours, context: zmq.asyncio.Context) -> Dial:
    """libzmq's end, connected to ours."""

    def make(socket_type: int = zmq.DEALER, **options: Any) -> zmq.asyncio.Socket:
        if ours.listener is None:
            ours.listen()
        made = context.socket(socket_type)
        ours.theirs.append(made)
        for name, value in {"SNDHWM": 0, "RCVHWM": 0, **options}.items():
            made.set(getattr(zmq, name), value)
        made.connect(f"ipc://{ours.path}")
        return made

    return make


def conversation() -> Iterator[list[bytes]]:
    """Messages of 1 to 300 frames, frames up to 8 MiB."""
    rng = random.Random(1)
    for frames in (1, 2, 3, 64, 65, 299, 300):
        yield [rng.randbytes(rng.choice([0, 1, 255, 256, 1000])) for _ in range(frames)]
        yield [rng.randbytes(rng.choice([16_383, 16_384, 16_385])) for _ in range(frames)]
    for size in (65_535, 65_536, MIB - 1, MIB, MIB + 1, 8 * MIB - 1, 8 * MIB):
        yield [rng.randbytes(size)]
        yield [b"", rng.randbytes(size), b"z"]
    yield [rng.randbytes(8 * MIB), rng.randbytes(8 * MIB - 1), b"!"]


class TestTheyDial:
    @on_both_loops
    async def test_both_ways(self, ours: Ours, dial: Dial) -> None:
        theirs = dial()
        await theirs.send_multipart([b"a", b"", b"c"])
        connection, frames = await soon(ours.messages.get())
        assert frames == [b"a", b"", b"c"]
        assert connection.send([b"", b"d"])
        assert await soon(theirs.recv_multipart()) == [b"", b"d"]
        assert ours.opened.qsize() == 1

    @on_both_loops
    async def test_many_small_messages(self, ours: Ours, dial: Dial) -> None:
        """None is lost and none overtakes another, in either direction."""
        theirs = dial()
        ours.is_echo = True

        async def say() -> None:
            for i in range(10_000):
                await theirs.send_multipart([b"%d" % i, b"x" * (i % 700)])

        saying = asyncio.create_task(say())
        for i in range(10_000):
            assert await soon(theirs.recv_multipart()) == [b"%d" % i, b"x" * (i % 700)]
        await saying

    @on_both_loops
    async def test_messages_of_all_sizes(self, ours: Ours, dial: Dial) -> None:
        theirs = dial()
        ours.is_echo = True
        for frames in conversation():
            await theirs.send_multipart(frames)
            assert await soon(theirs.recv_multipart()) == frames

    @on_both_loops
    async def test_req(self, ours: Ours, dial: Dial) -> None:
        """Its empty frame is ours to keep."""
        theirs = dial(zmq.REQ)
        for question in (b"1", b"2"):
            await theirs.send(question)
            connection, frames = await soon(ours.messages.get())
            assert frames == [b"", question]
            assert connection.send([b"", b"answer to " + question])
            assert await soon(theirs.recv()) == b"answer to " + question

    @on_both_loops
    async def test_a_routing_id(self, ours: Ours, dial: Dial) -> None:
        theirs = dial(ROUTING_ID=b"i" * 255)
        await theirs.send(b"x")
        assert await ours.message() == [b"x"]

    @pytest.mark.parametrize(
        ("socket_type", "name"), [(zmq.SUB, b"SUB"), (zmq.PUSH, b"PUSH"), (zmq.PAIR, b"PAIR"), (zmq.REP, b"REP")]
    )
    @on_both_loops
    async def test_others_are_refused(self, ours: Ours, dial: Dial, socket_type: int, name: bytes) -> None:
        dial(socket_type, RECONNECT_IVL=-1)
        assert await soon(ours.closed.get()) == f"socket type {name!r} does not fit ROUTER"
        assert ours.made[0].is_fault
        assert ours.opened.empty()

    @on_both_loops
    async def test_curve_is_refused(self, ours: Ours, dial: Dial) -> None:
        server, _ = zmq.curve_keypair()
        public, secret = zmq.curve_keypair()
        dial(CURVE_SERVERKEY=server, CURVE_PUBLICKEY=public, CURVE_SECRETKEY=secret, RECONNECT_IVL=-1)
        assert await soon(ours.closed.get()) in no_common_mechanism(b"CURVE")
        assert ours.opened.empty()

    @on_both_loops
    async def test_plain_is_refused(self, ours: Ours, dial: Dial) -> None:
        dial(PLAIN_USERNAME=b"u", PLAIN_PASSWORD=b"p", RECONNECT_IVL=-1)
        assert await soon(ours.closed.get()) in no_common_mechanism(b"PLAIN")
        assert ours.opened.empty()

    @on_both_loops
    async def test_it_comes_back_by_itself(self, ours: Ours, dial: Dial) -> None:
        """After we have closed; and it is served as before."""
        theirs = dial(RECONNECT_IVL=1)
        for i in range(3):
            connection = await soon(ours.opened.get())
            await theirs.send(b"%d" % i)
            assert await ours.message() == [b"%d" % i]
            connection.close()
        assert len(ours.made) >= 3
        assert ours.closed.empty()

    @on_both_loops
    async def test_it_comes_back_after_a_fault(self, ours: Ours, dial: Dial) -> None:
        ours.max_bytes = 1000
        theirs = dial(RECONNECT_IVL=1)
        await soon(ours.opened.get())
        await theirs.send(bytes(1001))
        assert await soon(ours.closed.get()) == "a message of more than 1000 bytes"
        await soon(ours.opened.get())
        await theirs.send(b"x")
        assert await ours.message() == [b"x"]

    @on_both_loops
    async def test_its_last_words(self, ours: Ours, dial: Dial) -> None:
        """Everything it had said before it closed is delivered before its end is told."""
        theirs = dial()
        connection = await soon(ours.opened.get())
        for i in range(3000):
            await theirs.send(b"%d" % i)
        assert connection.send([b"never read"])
        theirs.close(linger=-1)
        assert await soon(ours.closed.get()) in ("connection closed", "Connection reset by peer")
        assert [(await ours.message())[0] for _ in range(3000)] == [b"%d" % i for i in range(3000)]
        assert ours.messages.empty()

    @on_both_loops
    async def test_it_does_not_read(self, ours: Ours, dial: Dial) -> None:
        """Until it does: nothing that was not refused is lost."""
        theirs = dial(RCVHWM=10)
        connection = await soon(ours.opened.get())
        connection.max_unsent = MIB
        said = 0
        while connection.send([b"%d" % said, bytes(5000)]):
            said += 1
        assert said > 150
        for i in range(said):
            assert await soon(theirs.recv_multipart()) == [b"%d" % i, bytes(5000)]
        assert connection.unsent_bytes == 0
        assert connection.send([b"more"])
        assert await soon(theirs.recv()) == b"more"

    @on_both_loops
    async def test_many_at_once(self, ours: Ours, dial: Dial) -> None:
        ours.is_echo = True
        everyone = [dial() for _ in range(20)]
        for i, theirs in enumerate(everyone):
            await theirs.send(b"%d" % i)
        for i, theirs in enumerate(everyone):
            assert await soon(theirs.recv()) == b"%d" % i


class TestHeartbeats:
    @on_both_loops
    async def test_theirs_are_answered(self, ours: Ours, dial: Dial) -> None:
        """Nobody says anything else, and the connection lives on for many times the timeout."""
        theirs = dial(HEARTBEAT_IVL=10, HEARTBEAT_TIMEOUT=100)
        connection = await soon(ours.opened.get())
        while not ours.reads.empty():
            ours.reads.get_nowait()
        for _ in range(40):  # each is a PING: 400 ms of silence
            await soon(ours.reads.get())
        assert ours.closed.empty()
        assert ours.messages.empty()
        assert connection.send([b"x"])
        assert await soon(theirs.recv()) == b"x"
        assert len(ours.made) == 1


class TestWeDial:
    @pytest.fixture
    def bind(self, ours: Ours, context: zmq.asyncio.Context) -> Dial:
        """libzmq's end, that we can dial."""

        def make(socket_type: int = zmq.ROUTER, **options: Any) -> zmq.asyncio.Socket:
            made = context.socket(socket_type)
            ours.theirs.append(made)
            for name, value in {"SNDHWM": 0, "RCVHWM": 0, **options}.items():
                made.set(getattr(zmq, name), value)
            made.bind(f"ipc://{ours.path}")
            ours.type = b"DEALER"
            return made

        return make

    @on_both_loops
    async def test_router(self, ours: Ours, bind: Dial) -> None:
        theirs = bind()
        connection = ours.dial()
        await soon(ours.opened.get())
        for frames in conversation():
            assert connection.send(frames)
            peer, *heard = await soon(theirs.recv_multipart())
            assert heard == frames
            await theirs.send_multipart([peer, *frames])
            assert await ours.message() == frames

    @on_both_loops
    async def test_two_of_us(self, ours: Ours, bind: Dial) -> None:
        """A ROUTER tells them apart by itself."""
        theirs = bind()
        for connection, name in ((ours.dial(), b"1"), (ours.dial(), b"2")):
            await soon(ours.opened.get())
            assert connection.send([name])
        peers = dict([(await soon(theirs.recv_multipart()))[::-1] for _ in range(2)])
        assert len(set(peers.values())) == 2
        await theirs.send_multipart([peers[b"2"], b"for 2"])
        assert await soon(ours.messages.get()) == (ours.made[1], [b"for 2"])

    @on_both_loops
    async def test_rep(self, ours: Ours, bind: Dial) -> None:
        theirs = bind(zmq.REP)
        connection = ours.dial()
        await soon(ours.opened.get())
        assert connection.send([b"", b"question"])
        assert await soon(theirs.recv()) == b"question"
        await theirs.send(b"answer")
        assert await ours.message() == [b"", b"answer"]

    @on_both_loops
    async def test_many_small_messages(self, ours: Ours, bind: Dial) -> None:
        theirs = bind()
        connection = ours.dial()
        await soon(ours.opened.get())
        for i in range(10_000):
            assert connection.send([b"%d" % i])
        for i in range(10_000):
            peer, heard = await soon(theirs.recv_multipart())
            assert heard == b"%d" % i
            await theirs.send_multipart([peer, heard])
        for i in range(10_000):
            assert await ours.message() == [b"%d" % i]

    @on_both_loops
    async def test_it_goes(self, ours: Ours, bind: Dial) -> None:
        theirs = bind()
        connection = ours.dial()
        await soon(ours.opened.get())
        theirs.close(linger=0)
        assert await soon(ours.closed.get()) in ("connection closed", "Connection reset by peer")
        assert not connection.send([b"x"])

    @on_both_loops
    async def test_a_pub_does_not_fit(self, ours: Ours, bind: Dial) -> None:
        bind(zmq.PUB)
        ours.dial()
        assert await soon(ours.closed.get()) == "socket type b'PUB' does not fit DEALER"

    @on_both_loops
    async def test_a_curve_server_is_left(self, ours: Ours, bind: Dial) -> None:
        _, secret = zmq.curve_keypair()
        bind(CURVE_SERVER=1, CURVE_SECRETKEY=secret)
        ours.dial()
        assert await soon(ours.closed.get()) in no_common_mechanism(b"CURVE")
        assert ours.opened.empty()
