"""No message is left unread and none read twice, whatever is sent meanwhile; sends never block or raise."""

import asyncio
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from agentd.transport.pump import Pump
from shared.defaults import DRAIN_MESSAGES
from shared.turn import Turn
from tests.support import until


class Again(Exception):
    """Stands for zmq.Again."""


class Fault(Exception):
    """Stands for zmq.ZMQError."""


class FakeLoop:
    """Runs callbacks when told to."""

    def __init__(self) -> None:
        self.readers: dict[int, Any] = {}
        self.soon: deque[Any] = deque()

    def add_reader(self, fd: int, callback: Any) -> None:
        self.readers[fd] = callback

    def remove_reader(self, fd: int) -> None:
        del self.readers[fd]

    def call_soon(self, callback: Any) -> None:
        self.soon.append(callback)

    def turn(self) -> int:
        """One iteration; how many callbacks ran."""
        ready, self.soon = self.soon, deque()
        for callback in ready:
            callback()
        return len(ready)


class FakeFrame:
    """A received frame."""

    def __init__(self, data: bytes, more: bool) -> None:
        self.bytes = data
        self.more = more


class FakeSocket:
    """A socket with an inbox; `refuse` is what a send raises."""

    def __init__(self, *messages: bytes) -> None:
        self.inbox = deque([message] for message in messages)
        self.sent: list[Any] = []
        self._parts: list[bytes] = []
        self.refuse: type[Exception] | None = None
        self.arrives: tuple[bytes, ...] = ()  # during the next send, unannounced
        self.closed: int | None = None

    def fileno(self) -> int:
        return 7

    def getsockopt(self, option: int) -> int:
        assert option == zmq.EVENTS
        return zmq.POLLOUT | (zmq.POLLIN if self.inbox else 0)

    def recv(self, flags: int, copy: bool) -> "FakeFrame":
        assert flags == zmq.NOBLOCK
        assert not copy
        if not self.inbox:
            raise Again
        frames = self.inbox[0]
        frame = FakeFrame(frames.pop(0), bool(frames))
        if not frames:
            self.inbox.popleft()
        return frame

    def send(self, frame: bytes, flags: int) -> None:
        assert flags in (zmq.NOBLOCK, zmq.NOBLOCK | zmq.SNDMORE)
        self.inbox.extend([message] for message in self.arrives)
        self.arrives = ()
        if self.refuse is not None:
            raise self.refuse
        self._parts.append(frame)
        if not flags & zmq.SNDMORE:
            self.sent.append(self._parts)
            self._parts = []

    def close(self, linger: int) -> None:
        self.closed = linger


class Bench:
    """A pump between a fake socket and a fake loop."""

    def __init__(self, *messages: bytes) -> None:
        self.loop = FakeLoop()
        self.socket = FakeSocket(*messages)
        self.got: list[bytes] = []
        self.pump = Pump(self.socket, self.loop, self.take, again=Again, error=Fault)

    def take(self, frames: list[bytes]) -> None:
        self.got.append(frames[0])


def test_what_was_there_before_is_read() -> None:
    """The edge may have been before add_reader: one look is scheduled at once."""
    bench = Bench(b"a", b"b")
    bench.loop.turn()
    assert bench.got == [b"a", b"b"]
    assert not bench.loop.soon


def test_bounded_drain() -> None:
    """After so many messages the loop turns, and the rest is not forgotten."""
    bench = Bench(*[b"x"] * (2 * DRAIN_MESSAGES + 1))
    seen = []
    while bench.loop.soon:
        bench.loop.turn()
        seen.append(len(bench.got))
    assert seen == [DRAIN_MESSAGES, 2 * DRAIN_MESSAGES, 2 * DRAIN_MESSAGES + 1]


def test_a_look_after_every_send() -> None:
    """A message that arrived during a send is never announced: it is read all the same."""
    bench = Bench()
    bench.loop.turn()
    bench.socket.arrives = (b"in",)
    assert bench.pump.send([b"out"])
    assert bench.got == [], "not from inside the send"
    bench.loop.turn()
    assert bench.socket.sent == [[b"out"]]
    assert bench.got == [b"in"]


def test_nothing_to_read_costs_no_turn() -> None:
    """The look after a send is taken at once; only what is there to be read needs a turn of the loop."""
    bench = Bench()
    bench.loop.turn()
    assert bench.pump.send([b"out"])
    assert not bench.loop.soon


def test_one_pending_look_only() -> None:
    """However many sends and wake-ups: never more than one re-arm at a time."""
    bench = Bench()
    for _ in range(50):
        for _ in range(3):
            bench.socket.arrives = (b"in",)
            bench.pump.send([b"out"])
        assert len(bench.loop.soon) == 1
        assert bench.loop.turn() == 1


@pytest.mark.parametrize("error", [Again, Fault])
def test_a_refused_send_is_an_outcome(error: type[Exception]) -> None:
    """High-water mark or unknown peer: False, not an exception; and still one more look."""
    bench = Bench()
    bench.loop.turn()
    bench.socket.refuse = error
    bench.socket.arrives = (b"in",)
    assert bench.pump.send([b"out"]) is False
    bench.loop.turn()
    assert bench.got == [b"in"]


def test_a_handler_that_fails_leaves_nothing_unread() -> None:
    """The error goes to the loop, the rest is read in its next turn."""
    bench = Bench(b"bad", b"good")

    def take(frames: list[bytes]) -> None:
        bench.got.append(frames[0])
        if frames[0] == b"bad":
            raise ValueError("bug")

    bench.pump._on_message = take
    with pytest.raises(ValueError, match="bug"):
        bench.loop.turn()
    bench.loop.turn()
    assert bench.got == [b"bad", b"good"]


def test_a_handlers_own_eagain_is_not_an_empty_socket() -> None:
    """What the handler raises is the handler's, even if it looks like the socket's."""
    bench = Bench(b"bad", b"good")

    def take(frames: list[bytes]) -> None:
        bench.got.append(frames[0])
        if frames[0] == b"bad":
            raise Again

    bench.pump._on_message = take
    with pytest.raises(Again):
        bench.loop.turn()
    bench.loop.turn()
    assert bench.got == [b"bad", b"good"]


def test_close_inside_a_handler() -> None:
    """Nothing is read from a closed socket; sends say False; closing twice is harmless."""
    bench = Bench(b"a", b"b")

    def take(frames: list[bytes]) -> None:
        bench.got.append(frames[0])
        bench.pump.close()

    bench.pump._on_message = take
    bench.loop.turn()
    bench.pump.close()
    assert bench.got == [b"a"]
    assert bench.socket.closed == 0
    assert bench.loop.readers == {}
    assert bench.pump.send([b"x"]) is False
    assert not bench.loop.soon


def test_a_look_scheduled_before_closing() -> None:
    """It finds the pump closed and reads nothing."""
    bench = Bench(b"a")
    bench.pump.close()
    bench.loop.turn()
    assert bench.got == []


class TestRealSocket:
    """The same with libzmq's own descriptor."""

    @pytest.fixture
    def context(self) -> Iterator[zmq.Context]:
        context = zmq.Context()
        yield context
        context.term()

    async def test_ping_pong_under_load(self, context: zmq.Context, short_tmp_dir: Path) -> None:
        """Two pumps that answer each other at once lose no message: the edge-triggered trap."""
        loop = asyncio.get_running_loop()
        endpoint = f"ipc://{short_tmp_dir}/s"
        left, right = context.socket(zmq.PAIR), context.socket(zmq.PAIR)
        left.bind(endpoint)
        right.connect(endpoint)
        counts = {"left": 0, "right": 0}

        def counter(name: str) -> Any:
            def take(frames: list[bytes]) -> None:
                counts[name] += 1
                if counts[name] <= 2000:
                    assert pumps[name].send(frames)

            return take

        pumps = {
            "left": Pump(left, loop, counter("left"), again=zmq.Again, error=zmq.ZMQError),
            "right": Pump(right, loop, counter("right"), again=zmq.Again, error=zmq.ZMQError),
        }
        try:
            for _ in range(8):
                await until(lambda: pumps["left"].send([b"ball"]), what="connected")
            await until(lambda: counts["left"] >= 2000 and counts["right"] >= 2000, 20.0)
        finally:
            for pump in pumps.values():
                pump.close()

    async def test_unknown_peer_is_an_outcome(self, context: zmq.Context, short_tmp_dir: Path) -> None:
        """ROUTER_MANDATORY's EHOSTUNREACH."""
        router = context.socket(zmq.ROUTER)
        router.setsockopt(zmq.ROUTER_MANDATORY, 1)
        router.bind(f"ipc://{short_tmp_dir}/s")
        loop = asyncio.get_running_loop()
        pump = Pump(router, loop, lambda frames: None, again=zmq.Again, error=zmq.ZMQError)
        assert pump.send([b"nobody", b"x"]) is False
        pump.close()


class TestTurn:
    """What a drain leads to is done at its end; everything else waits for the loop's next turn."""

    def test_outside_of_a_drain(self) -> None:
        loop = FakeLoop()
        done: list[int] = []
        Turn(loop).at_end(lambda: done.append(1))
        assert not done
        loop.turn()
        assert done == [1]

    def test_at_the_end_of_a_drain(self) -> None:
        """Once, after all of its messages, and without a turn of the loop."""
        loop, socket = FakeLoop(), FakeSocket(b"a", b"b")
        turn = Turn(loop)
        done: list[bytes] = []

        def take(frames: list[bytes]) -> None:
            if not done:
                turn.at_end(lambda: done.append(b"end"))
            done.append(frames[0])

        Pump(socket, loop, take, again=Again, error=Fault, turn=turn)
        loop.turn()
        assert done == [b"a", b"b", b"end"]
        assert not loop.soon
        turn.at_end(lambda: done.append(b"later"))
        assert done[-1] == b"end"
        loop.turn()
        assert done[-1] == b"later"

    def test_a_callback_that_fails_takes_none_with_it(self) -> None:
        loop = FakeLoop()
        turn = Turn(loop)
        done: list[int] = []
        turn.begin()
        turn.at_end(lambda: 1 // 0)  # type: ignore[arg-type,return-value]
        turn.at_end(lambda: done.append(2))
        with pytest.raises(ZeroDivisionError):
            turn.end()
        loop.turn()
        assert done == [2]

    def test_what_the_end_itself_puts_off_waits_for_the_loop(self) -> None:
        """No round and round inside one drain."""
        loop = FakeLoop()
        turn = Turn(loop)
        done: list[int] = []

        def again() -> None:
            done.append(1)
            turn.at_end(again)

        turn.begin()
        turn.at_end(again)
        turn.end()
        assert (done, len(loop.soon)) == ([1], 1)
