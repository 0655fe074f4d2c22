"""shared/zmtp, a connection: over socketpair() and real loops, turned by hand; the peer may be hostile."""

import asyncio
import gc
import random
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import uvloop

from shared import zmtp
from shared.zmtp import (
    COMMANDS_AT_ONCE,
    LONG_FRAME,
    MESSAGES_AT_ONCE,
    READ_BYTES,
    Connection,
    Decoder,
    Frame,
)

MIB = 1 << 20
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"NULL".ljust(20, b"\0") + bytes(32)
READY = zmtp.pack_ready(b"DEALER")
HELLO = GREETING + READY
OURS = GREETING + zmtp.pack_ready(b"ROUTER")  # what we say


def wire(*frames: bytes) -> bytes:
    return b"".join(zmtp.pack(frames))


class HandLoop:
    """A loop turned by hand: each turn looks at the sockets once. Knows who reads and writes, and what was raised."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.readers: set[int] = set()
        self.writers: set[int] = set()
        self.raised: list[BaseException] = []
        loop.set_exception_handler(lambda _, context: self.raised.append(context["exception"]))

    def add_reader(self, fd: int, callback: Callable[[], None]) -> None:
        self.readers.add(fd)
        self.loop.add_reader(fd, callback)

    def remove_reader(self, fd: int) -> None:
        self.readers.remove(fd)
        self.loop.remove_reader(fd)

    def add_writer(self, fd: int, callback: Callable[[], None]) -> None:
        assert fd not in self.writers
        self.writers.add(fd)
        self.loop.add_writer(fd, callback)

    def remove_writer(self, fd: int) -> None:
        self.writers.remove(fd)
        self.loop.remove_writer(fd)

    def call_soon(self, callback: Callable[[], None]) -> None:
        self.loop.call_soon(callback)

    def turn(self, times: int = 1) -> None:
        for _ in range(times):
            self.loop.stop()
            self.loop.run_forever()

    def until(self, predicate: Callable[[], object], meanwhile: Callable[[], object] = lambda: None) -> None:
        for _ in range(20_000):
            if predicate():
                return
            meanwhile()
            self.turn()
        raise AssertionError("it does not come to that")


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def loop(request: pytest.FixtureRequest) -> Iterator[HandLoop]:
    """Nobody may be left that reads or writes, and what was raised must have been looked at."""
    real = request.param()
    made = HandLoop(real)
    yield made
    made.turn(2)
    real.close()
    assert made.readers == set()
    assert made.writers == set()
    assert made.raised == []


class Turns:
    """A Turn whose begin and end have to be paired."""

    def __init__(self) -> None:
        self.is_begun = False
        self.count = 0

    def begin(self) -> None:
        assert not self.is_begun
        self.is_begun = True
        self.count += 1

    def end(self) -> None:
        assert self.is_begun
        self.is_begun = False


class End:
    """A connection and all that it said; `act` may be given to do something at a message."""

    def __init__(
        self,
        loop: HandLoop,
        sock: socket.socket,
        socket_type: bytes = b"ROUTER",
        *,
        max_bytes: int = 16 * MIB,
        max_frames: int = 300,
        max_unsent: int = MIB,
    ) -> None:
        self.opened = 0
        self.messages: list[list[bytes]] = []
        self.closed: list[str] = []
        self.act: Callable[[list[bytes]], None] = lambda frames: None
        self.act_opened: Callable[[], None] = lambda: None
        self.act_closed: Callable[[], None] = lambda: None
        self.turns = Turns()
        sock.setblocking(False)
        self.sock = sock
        self.connection = Connection(
            sock,
            loop,
            socket_type,
            on_message=self.on_message,
            on_closed=self.on_closed,
            on_open=self.on_open,
            max_bytes=max_bytes,
            max_frames=max_frames,
            max_unsent=max_unsent,
            turn=self.turns,
        )

    def on_open(self, connection: Connection) -> None:
        assert connection is self.connection
        assert connection.is_open
        assert self.turns.is_begun
        self.opened += 1
        self.act_opened()

    def on_message(self, connection: Connection, frames: list[Frame]) -> None:
        assert connection is self.connection
        assert self.opened == 1
        assert not self.closed
        assert self.turns.is_begun
        self.messages.append([bytes(frame) for frame in frames])
        self.act(self.messages[-1])

    def on_closed(self, connection: Connection, reason: str) -> None:
        assert connection is self.connection
        assert connection.is_closed
        assert not connection.is_open
        assert self.sock.fileno() == -1
        assert not self.closed
        self.closed.append(reason)
        self.act_closed()


class Peer:
    """The other end, by hand."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.waiting = b""
        self.heard = b""

    def say(self, data: bytes = b"") -> None:
        """As much as goes now; the rest waits for the next call."""
        self.waiting += data
        try:
            while self.waiting:
                self.waiting = self.waiting[self.sock.send(self.waiting) :]
        except BlockingIOError:
            pass

    def hear(self) -> bytes:
        """Everything until now."""
        try:
            while data := self.sock.recv(1 << 18):
                self.heard += data
        except BlockingIOError:
            pass
        return self.heard

    @property
    def is_cut(self) -> bool:
        self.hear()
        try:
            return self.sock.recv(1) == b""
        except BlockingIOError:
            return False
        except ConnectionResetError:
            return True


class Pair:
    def __init__(self, loop: HandLoop, **bounds: Any) -> None:
        ours, theirs = socket.socketpair()
        self.loop = loop
        self.peer = Peer(theirs)
        self.end = End(loop, ours, **bounds)
        self.connection = self.end.connection

    def open(self) -> "Pair":
        self.peer.say(HELLO)
        self.loop.turn(2)
        assert self.connection.is_open
        assert self.peer.hear() == OURS
        self.peer.heard = b""
        return self

    def says(self, data: bytes, turns: int = 3) -> None:
        self.peer.say(data)
        assert not self.peer.waiting
        self.loop.turn(turns)

    def messages_heard(self) -> list[list[bytes]]:
        return whole_messages(self.peer.hear())


def whole_messages(data: bytes) -> list[list[bytes]]:
    decoder = Decoder(1 << 40, 1 << 20)
    out = []
    view = memoryview(data)
    at = 0
    while at < len(data):
        piece = bytes(view[at : at + READ_BYTES])
        decoder.push(piece)
        at += len(piece)
        while (frames := decoder.next()) is not None:
            out.append([bytes(frame) for frame in frames])
    assert decoder.unfinished_bytes == 0
    return out


@pytest.fixture
def pairs(loop: HandLoop) -> Iterator[Callable[..., Pair]]:
    """Makes pairs of a connection and its peer, and ends them."""
    made: list[Pair] = []

    def make(**bounds: Any) -> Pair:
        made.append(Pair(loop, **bounds))
        return made[-1]

    yield make
    for pair in made:
        pair.connection.close()
        pair.peer.sock.close()
        assert pair.end.sock.fileno() == -1
        assert not pair.end.turns.is_begun
        assert len(pair.end.closed) <= 1


@pytest.fixture
def pair(pairs: Callable[..., Pair]) -> Pair:
    """An open one."""
    return pairs().open()


Pairs = Callable[..., Pair]


class TestHandshake:
    def test_we_greet_first_and_say_ready_to_a_greeting(self, loop: HandLoop, pairs: Pairs) -> None:
        pair = pairs()
        assert pair.peer.hear() == GREETING
        assert not pair.connection.send([b"too early"])
        pair.says(GREETING)
        assert pair.peer.hear() == OURS
        assert not pair.connection.is_open
        assert not pair.connection.send([b"too early"])
        pair.says(READY)
        assert pair.connection.is_open
        assert pair.end.opened == 1
        assert pair.connection.send([b"now"])
        assert pair.peer.hear() == OURS + wire(b"now")

    @pytest.mark.parametrize("cut", range(1, len(HELLO) + 6))
    def test_cut_anywhere(self, pairs: Pairs, cut: int) -> None:
        said = HELLO + wire(b"a", b"b") + wire(b"c")
        pair = pairs()
        pair.says(said[:cut])
        pair.says(said[cut:])
        assert pair.end.messages == [[b"a", b"b"], [b"c"]]
        assert pair.end.opened == 1

    def test_byte_by_byte(self, pairs: Pairs) -> None:
        pair = pairs()
        for byte in HELLO + wire(b"a", b"b" * 300):
            pair.says(bytes((byte,)), 1)
        assert pair.end.messages == [[b"a", b"b" * 300]]

    def test_ours_with_ours(self, loop: HandLoop) -> None:
        ours, theirs = socket.socketpair()
        a, b = End(loop, ours, b"ROUTER"), End(loop, theirs, b"DEALER")
        loop.until(lambda: a.opened and b.opened)
        assert a.connection.send([b"1", b"2"])
        assert b.connection.send([b"3"])
        loop.until(lambda: a.messages and b.messages)
        assert (a.messages, b.messages) == ([[b"3"]], [[b"1", b"2"]])
        a.connection.close()
        loop.until(lambda: b.closed)
        assert b.closed == ["connection closed"]
        assert a.closed == []

    @pytest.mark.parametrize("theirs", [b"DEALER", b"REQ", b"ROUTER"])
    def test_who_fits(self, pairs: Pairs, theirs: bytes) -> None:
        pair = pairs()
        pair.says(GREETING + zmtp.pack_ready(theirs))
        assert pair.connection.is_open

    @pytest.mark.parametrize(
        "properties",
        [
            b"\x0bSOCKET-type\0\0\0\x03REQ",
            b"\x08Identity\0\0\0\0\x0bSocket-Type\0\0\0\x06DEALER",
            b"\x01X\0\0\0\x05\0\xff\n\x1b!\x0bSocket-Type\0\0\0\x06DEALER\x01X\0\0\0\0",
            b"\x08Identity\0\0\x01\x2c" + b"i" * 300 + b"\x0bSocket-Type\0\0\0\x06DEALER",
        ],
    )
    def test_odd_properties(self, pairs: Pairs, properties: bytes) -> None:
        pair = pairs()
        pair.says(GREETING + zmtp.pack_command(b"READY", properties))
        assert pair.connection.is_open

    @pytest.mark.parametrize(
        ("said", "reason"),
        [
            (b"GET / HTTP/1.1\r\n\r\n", "no ZMTP greeting"),
            (b"\x01\0", "no ZMTP greeting"),
            (GREETING[:10] + b"\x01\x05", "ZMTP 1: 3.0 is needed"),
            (GREETING.replace(b"NULL\0", b"CURVE"), "security mechanism b'CURVE': only NULL is spoken here"),
            (GREETING.replace(b"NULL\0", b"PLAIN"), "security mechanism b'PLAIN': only NULL is spoken here"),
            (GREETING + zmtp.pack_ready(b"SUB"), "socket type b'SUB' does not fit ROUTER"),
            (GREETING + zmtp.pack_ready(b"REP"), "socket type b'REP' does not fit ROUTER"),
            (GREETING + zmtp.pack_ready(b"dealer"), "socket type b'dealer' does not fit ROUTER"),
            (GREETING + zmtp.pack_command(b"READY", b""), "socket type b'' does not fit ROUTER"),
            (GREETING + zmtp.pack_command(b"READY", b"\x0bSocket"), "READY with a broken property"),
            (GREETING + zmtp.pack_command(b"PING", b"\0\0"), "b'PING' before READY"),
            (GREETING + zmtp.pack_command(b"HELLO", b"user"), "b'HELLO' before READY"),
            (GREETING + b"\x04\0", "a command without a name"),
            (GREETING + zmtp.pack_command(b"ERROR", b"\x04gone"), "the peer gives up: b'gone'"),
            (GREETING + wire(b"hello"), "a message before READY"),
            (GREETING + wire(b"") + READY, "a message before READY"),
            (GREETING + struct.pack(">BQ", 2, 8193), "a message of more than 8192 bytes"),
            (GREETING + struct.pack(">BQ", 2, 1 << 63), "a message of more than 8192 bytes"),
            (GREETING + b"\x01\0" * 301, "a message of more than 300 frames"),
            (GREETING + b"\x40\0", "a frame with flags 0x40"),
        ],
    )
    @pytest.mark.parametrize("is_dribbled", [False, True])
    def test_refused(self, loop: HandLoop, pairs: Pairs, said: bytes, reason: str, is_dribbled: bool) -> None:
        pair = pairs()
        for piece in [said[i : i + 1] for i in range(len(said))] if is_dribbled else [said]:
            if not pair.connection.is_closed:
                pair.says(piece, 1)
        loop.turn()
        assert pair.end.closed == [reason]
        assert pair.connection.is_fault
        assert pair.end.opened == 0
        assert pair.end.messages == []
        assert pair.peer.is_cut

    @pytest.mark.parametrize(
        "said",
        [
            GREETING[:12] + b"\n\x1b[2J\0\xff".ljust(20, b"\xff") + GREETING[32:],
            GREETING + zmtp.pack_ready(b"\n\x1b[2J\xff" * 600),
            GREETING + zmtp.pack_command(b"\n\x1b[2J\xff" * 40, b"x"),
            GREETING + zmtp.pack_command(b"ERROR", b"\xff" + b"\n\x1b[2J\xff" * 40),
            HELLO + zmtp.pack_command(b"ERROR", b"\xff" + b"\n\x1b[2J\xff" * 600),
        ],
    )
    def test_a_reason_is_short_and_can_be_printed(self, pairs: Pairs, said: bytes) -> None:
        """It goes into logs and to the administrator's terminal."""
        pair = pairs()
        pair.says(said)
        [reason] = pair.end.closed
        assert reason.isascii()
        assert reason.isprintable()
        assert len(reason) < 400

    def test_ready_twice_changes_nothing(self, pair: Pair) -> None:
        pair.says(wire(b"a") + READY + zmtp.pack_ready(b"SUB") + wire(b"b"))
        assert pair.end.messages == [[b"a"], [b"b"]]
        assert pair.end.opened == 1

    def test_error_after_ready(self, pair: Pair) -> None:
        pair.says(wire(b"a") + zmtp.pack_command(b"ERROR", b"\x03bad") + wire(b"b"))
        assert pair.end.messages == [[b"a"]]
        assert pair.end.closed == ["the peer gives up: b'bad'"]

    @pytest.mark.parametrize("cut", [0, 1, 63, 64, 70, len(HELLO) - 1])
    def test_ended_before_it_began(self, loop: HandLoop, pairs: Pairs, cut: int) -> None:
        pair = pairs()
        pair.says(HELLO[:cut], 1)
        pair.peer.hear()
        pair.peer.sock.close()
        loop.turn(2)
        assert pair.end.closed == ["connection closed"]
        assert not pair.connection.is_fault

    def test_a_peer_that_is_gone_already(self, loop: HandLoop) -> None:
        ours, theirs = socket.socketpair()
        theirs.close()
        end = End(loop, ours)
        loop.turn(2)
        assert end.closed == ["connection closed"]


class TestOut:
    def test_order(self, loop: HandLoop, pair: Pair) -> None:
        rng = random.Random(1)
        said = [
            [rng.randbytes(rng.choice([0, 1, 255, 256, 600, LONG_FRAME - 1, LONG_FRAME, 100_000]))] * rng.choice([1, 3])
            for _ in range(300)
        ]
        at = 0
        while at < len(said):
            while at < len(said) and pair.connection.send(said[at]):
                at += 1
            pair.peer.hear()
            loop.turn()
        loop.until(lambda: not pair.connection.unsent_bytes, pair.peer.hear)
        assert pair.messages_heard() == said

    @pytest.mark.parametrize("size", [0, 600, LONG_FRAME, 3 * MIB])
    def test_a_peer_that_does_not_read(self, loop: HandLoop, pair: Pair, size: int) -> None:
        """Refused beyond the bound; what was not refused comes whole and in order, and then it goes on."""
        said: list[list[bytes]] = []

        def fill() -> None:
            while pair.connection.send(message := [b"%d" % len(said), bytes(size)]):
                said.append(message)

        for _ in range(3):
            fill()
            loop.turn(2)
            fill()
            connection = pair.connection
            assert connection.unsent_bytes <= connection.max_unsent + size + 20
            assert not connection.send([b"one more"])
            assert loop.writers
            loop.until(lambda: not pair.connection.unsent_bytes, pair.peer.hear)
            assert not loop.writers
        loop.turn()
        assert pair.messages_heard() == said
        assert pair.end.closed == []

    def test_memory_for_a_peer_that_does_not_read(self, pair: Pair) -> None:
        """The bound is about memory: tiny messages must not take many times as much."""
        pair.connection.max_unsent = MIB
        while pair.connection.send([b"x"]):
            pass
        while pair.connection.send([b"x"]):
            pass
        assert len(pair.connection._unsent) <= MIB // 256 + 1

    def test_unsent_bytes_is_exact(self, loop: HandLoop, pair: Pair) -> None:
        said = 0
        while pair.connection.send([b"x" * 1000, b"y" * LONG_FRAME]):
            said += len(wire(b"x" * 1000, b"y" * LONG_FRAME))
        heard = len(pair.peer.hear())
        assert heard + pair.connection.unsent_bytes == said
        while heard < said:
            loop.turn()
            heard = len(pair.peer.hear())
            assert heard + pair.connection.unsent_bytes == said
        assert len(pair.peer.heard) == said

    def test_torn_writes(self, loop: HandLoop, pairs: Pairs) -> None:
        """The kernel takes next to nothing at a time."""
        pair = pairs(max_unsent=64 * MIB)
        pair.end.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        pair.open()
        rng = random.Random(2)
        said = [[rng.randbytes(rng.choice([1, 500, 20_000])) for _ in range(rng.randrange(1, 100))] for _ in range(8)]
        for message in said:
            assert pair.connection.send(message)
        loop.until(lambda: not pair.connection.unsent_bytes, pair.peer.hear)
        assert pair.messages_heard() == said

    def test_more_pieces_than_one_system_call_takes(self, loop: HandLoop, pair: Pair) -> None:
        said = [b"%d" % i * (LONG_FRAME // 2) for i in range(200)]
        assert pair.connection.send(said)
        loop.until(lambda: not pair.connection.unsent_bytes, pair.peer.hear)
        assert pair.messages_heard() == [said]

    def test_views_of_frames(self, loop: HandLoop, pair: Pair) -> None:
        """What was received is passed on as it is."""
        data = random.Random(3).randbytes(100_000)
        said = [memoryview(data), bytearray(b"abc"), memoryview(data)[5:9]]
        assert pair.connection.send(said)
        loop.until(lambda: not pair.connection.unsent_bytes, pair.peer.hear)
        assert pair.messages_heard() == [[data, b"abc", data[5:9]]]

    @pytest.mark.parametrize("count", [1, 250])
    @pytest.mark.parametrize("is_blocked", [False, True])
    def test_last_words_come_before_the_end(self, loop: HandLoop, pair: Pair, count: int, is_blocked: bool) -> None:
        """The peer has gone when we send; what it had said before counts."""
        while is_blocked and pair.connection.send([bytes(1000)]):
            pass
        pair.peer.say(b"".join(wire(b"%d" % i) for i in range(count)))
        pair.peer.sock.close()
        if not is_blocked:
            assert not pair.connection.send([b"nobody hears it"])
            assert not pair.connection.send([b"nobody hears it"])
        assert pair.end.closed == []
        loop.turn(count // 50 + 3)
        assert pair.end.messages == [[b"%d" % i] for i in range(count)]
        assert len(pair.end.closed) == 1
        assert pair.end.closed[0] in ("connection closed", "Connection reset by peer")
        assert not pair.connection.send([b"nobody hears it"])
        assert pair.connection.unsent_bytes == 0

    def test_last_words_of_a_peer_that_goes_inside_a_message(self, loop: HandLoop, pair: Pair) -> None:
        """A message is being answered, the answer fails, two more messages are there still."""
        sent = []

        def act(frames: list[bytes]) -> None:
            if not sent:
                pair.peer.hear()
                pair.peer.sock.close()
            sent.append(pair.connection.send([b"answer"]))

        pair.end.act = act
        pair.says(wire(b"1") + wire(b"2") + wire(b"3"))
        assert sent == [False] * 3
        assert pair.end.messages == [[b"1"], [b"2"], [b"3"]]
        assert pair.end.closed == ["connection closed"]

    @pytest.mark.parametrize("said", [b"", wire(b"x"), wire(b"x") * 10_000, wire(b"x", bytes(50_000))[:30_000]])
    def test_a_peer_that_goes_with_something_unread(self, loop: HandLoop, pair: Pair, said: bytes) -> None:
        """Its end is noticed though nobody sends: the kernel calls this an error, which loops do not tell alike."""
        assert pair.connection.send([b"unread"])
        pair.peer.say(said)
        pair.peer.sock.close()
        loop.until(lambda: pair.end.closed)
        assert pair.end.closed == ["Connection reset by peer"]
        assert len(pair.end.messages) == said.count(b"\0\x01x")

    def test_many_go_at_once(self, loop: HandLoop, pairs: Pairs) -> None:
        made = [pairs().open() for _ in range(50)]
        for pair in made:
            assert pair.connection.send([b"unread"])
            pair.peer.say(wire(b"x"))
            pair.peer.sock.close()
        loop.until(lambda: all(pair.end.closed for pair in made))
        assert all(pair.end.messages == [[b"x"]] for pair in made)

    def test_a_peer_that_takes_nothing_any_more(self, loop: HandLoop, pair: Pair) -> None:
        """It could stay like this for ever: it is over then, behind what it has said."""
        pair.peer.say(wire(b"1"))
        pair.peer.sock.shutdown(socket.SHUT_RD)
        assert not pair.connection.send([b"x"])
        loop.until(lambda: pair.end.closed)
        assert pair.end.closed == ["connection broken"]
        assert pair.end.messages == [[b"1"]]

    def test_close_lets_out_what_the_kernel_takes(self, loop: HandLoop, pair: Pair) -> None:
        assert pair.connection.send([b"last"])
        pair.connection.close()
        assert pair.messages_heard() == [[b"last"]]
        assert pair.peer.is_cut
        assert pair.end.closed == []

    def test_close_drops_the_rest(self, loop: HandLoop, pair: Pair) -> None:
        while pair.connection.send([bytes(1000)]):
            pass
        taken = len(pair.peer.hear())  # there is room again, and nobody has told the connection yet
        pair.connection.close()
        assert len(pair.peer.hear()) > taken
        assert pair.connection.unsent_bytes == 0
        assert loop.writers == set()
        assert not pair.connection.send([b"x"])

    def test_a_number_used_again(self, loop: HandLoop, pairs: Pairs) -> None:
        """The next connection gets the closed one's descriptor within the turn: they are not taken for each other."""
        first = pairs().open()
        while first.connection.send([bytes(1000)]):
            pass
        fd = first.end.sock.fileno()
        first.connection.close()
        second = pairs()
        assert fd in (second.end.sock.fileno(), second.peer.sock.fileno())
        second.open()
        second.says(wire(b"x"))
        assert second.end.messages == [[b"x"]]
        assert first.end.messages == []


class TestIn:
    def test_frames_of_every_size(self, loop: HandLoop, pair: Pair) -> None:
        rng = random.Random(4)
        said = [
            [rng.randbytes(rng.choice([0, 1, 255, 256, LONG_FRAME, 200_000, (1 << 20) + 1])) for _ in range(n)]
            for n in (1, 3, 7, 2)
        ]
        pair.peer.say(b"".join(wire(*message) for message in said))
        loop.until(lambda: len(pair.end.messages) == len(said), pair.peer.say)
        assert pair.end.messages == said
        assert pair.connection.unfinished_bytes == 0

    def test_the_largest_and_one_more(self, loop: HandLoop, pairs: Pairs) -> None:
        pair = pairs(max_bytes=2 * MIB).open()
        pair.peer.say(wire(bytes(MIB), bytes(MIB)))
        loop.until(lambda: pair.end.messages, pair.peer.say)
        pair.peer.say(wire(bytes(MIB), bytes(MIB + 1)))
        loop.until(lambda: pair.end.closed, lambda: pair.peer.waiting and pair.peer.say())
        assert pair.end.closed == ["a message of more than 2097152 bytes"]
        assert pair.connection.is_fault

    @pytest.mark.parametrize("cut", [1, 2, 100, 302, 303, 400, 30_000, 200_000])
    def test_ended_in_the_middle(self, loop: HandLoop, pair: Pair, cut: int) -> None:
        """Nothing of a message that is not whole is delivered."""
        pair.peer.say((wire(b"x" * 300, b"y" * 300, b"z" * MIB))[:cut])
        loop.turn(2)
        loop.until(lambda: not pair.peer.waiting, pair.peer.say)
        loop.turn(8)
        assert pair.connection.unfinished_bytes > 0
        pair.peer.sock.close()
        loop.turn(2)
        assert pair.end.messages == []
        assert pair.end.closed == ["connection closed"]
        assert not pair.connection.is_fault

    def test_what_came_before_a_fault_counts(self, pair: Pair) -> None:
        pair.says(wire(b"a") + b"\x80\0" + wire(b"b"))
        assert pair.end.messages == [[b"a"]]
        assert pair.end.closed == ["a frame with flags 0x80"]
        assert pair.connection.is_fault
        assert pair.peer.is_cut

    def test_read_takes_what_has_come(self, loop: HandLoop, pair: Pair) -> None:
        """Without a turn of the loop; nothing there is nothing done."""
        pair.connection.read()
        assert pair.end.messages == []
        pair.peer.say(wire(b"a"))
        pair.connection.read()
        assert pair.end.messages == [[b"a"]]
        pair.connection.close()
        pair.connection.read()
        assert pair.end.closed == []

    def test_read_while_messages_wait(self, loop: HandLoop, pair: Pair) -> None:
        """The order stays, nothing comes twice."""
        said = [[b"%d" % i] for i in range(5 * MESSAGES_AT_ONCE)]
        pair.peer.say(b"".join(wire(*message) for message in said))
        for _ in range(3):
            pair.connection.read()
        assert pair.end.messages == said[: 3 * MESSAGES_AT_ONCE]
        loop.until(lambda: len(pair.end.messages) == len(said))
        assert pair.end.messages == said


class TestCallbacks:
    @pytest.mark.parametrize("at", [0, 1, MESSAGES_AT_ONCE - 1, MESSAGES_AT_ONCE, 150])
    def test_close_in_a_message(self, loop: HandLoop, pair: Pair, at: int) -> None:
        pair.end.act = lambda frames: pair.connection.close() if frames == [b"%d" % at] else None
        pair.says(b"".join(wire(b"%d" % i) + zmtp.pack_command(b"PING", b"\0\0") * (i == at) for i in range(300)), 10)
        assert pair.end.messages == [[b"%d" % i] for i in range(at + 1)]
        assert pair.end.closed == []
        assert pair.peer.is_cut

    def test_close_when_it_opens(self, loop: HandLoop, pairs: Pairs) -> None:
        pair = pairs()
        pair.end.act_opened = pair.connection.close
        pair.says(HELLO + wire(b"a"))
        assert pair.end.opened == 1
        assert pair.end.messages == []
        assert pair.end.closed == []
        assert pair.peer.is_cut

    def test_close_when_it_is_closed(self, loop: HandLoop, pair: Pair) -> None:
        pair.end.act_closed = pair.connection.close
        pair.peer.sock.close()
        loop.turn(3)
        assert len(pair.end.closed) == 1

    def test_send_when_it_opens(self, pairs: Pairs) -> None:
        pair = pairs()
        pair.end.act_opened = lambda: pair.end.messages.append([b"%d" % pair.connection.send([b"hello"])])
        pair.says(HELLO)
        assert pair.end.messages == [[b"1"]]
        assert pair.peer.hear() == OURS + wire(b"hello")

    @pytest.mark.parametrize("raised", [ValueError, OSError, BlockingIOError, InterruptedError, ConnectionResetError])
    @pytest.mark.parametrize("places", [(0,), (0, 1, 2), (99,), (100,), (98, 99, 100, 101), (249,), range(250)])
    def test_an_exception_is_the_handlers_own(
        self, loop: HandLoop, pair: Pair, raised: type[Exception], places: Sequence[int]
    ) -> None:
        """Each message is delivered once, and the loop gets to know each exception: it is not the socket's."""
        errors: list[BaseException] = []

        def act(frames: list[bytes]) -> None:
            if int(frames[0]) in places:
                errors.append(raised(frames[0]))
                raise errors[-1]

        pair.end.act = act
        said = [[b"%d" % i] for i in range(250)]
        pair.peer.say(b"".join(wire(*message) for message in said))
        loop.until(lambda: len(pair.end.messages) == 250)
        loop.turn(3)
        assert pair.end.messages == said
        assert loop.raised == errors
        loop.raised.clear()
        assert pair.end.closed == []
        assert pair.connection.is_open

    @pytest.mark.parametrize("raised", [ValueError, OSError, BlockingIOError])
    def test_an_exception_when_it_opens_or_closes(self, loop: HandLoop, pairs: Pairs, raised: type[Exception]) -> None:
        errors = [raised("open"), raised("closed")]

        def fail(error: Exception) -> None:
            raise error

        pair = pairs()
        pair.end.act_opened = lambda: fail(errors[0])
        pair.end.act_closed = lambda: fail(errors[1])
        pair.says(HELLO + wire(b"a"))
        assert pair.end.messages == [[b"a"]]
        pair.peer.sock.close()
        loop.turn(3)
        assert len(pair.end.closed) == 1
        assert loop.raised == errors
        loop.raised.clear()

    def test_one_connection_closes_another(self, loop: HandLoop, pairs: Pairs) -> None:
        """Both have something to read in the same turn."""
        one, other = pairs().open(), pairs().open()
        one.end.act = lambda frames: other.connection.close()
        other.end.act = lambda frames: one.connection.close()
        one.peer.say(wire(b"x"))
        other.peer.say(wire(b"x"))
        loop.turn(3)
        assert len(one.end.messages + other.end.messages) == 1
        assert one.end.closed + other.end.closed == []

    def test_nothing_is_held_of_a_closed_one(self, loop: HandLoop, pairs: Pairs) -> None:
        """No cycle keeps it, nor does the loop."""
        ours, theirs = socket.socketpair()
        connection = Connection(
            ours,
            loop,
            b"ROUTER",
            on_message=lambda connection, frames: None,
            on_closed=lambda connection, reason: None,
            max_bytes=1,
            max_frames=1,
            max_unsent=1,
        )
        ours.setblocking(False)
        theirs.sendall(HELLO)
        loop.turn(2)
        connection.close()
        theirs.close()
        del ours
        loop.turn(2)
        gc.collect()
        assert [thing for thing in gc.get_objects() if isinstance(thing, Connection)] == [connection]
        before = len(gc.get_referrers(connection))
        assert before <= 1  # this test


class TestFloods:
    """What one peer says is handled in bounded pieces, and the loop turns between them."""

    def test_tiny_messages(self, loop: HandLoop, pair: Pair) -> None:
        """At most MESSAGES_AT_ONCE in a turn, however many have come and go on coming."""
        flood = wire(b"") * 200_000
        total = 200_000
        pair.peer.say(flood)
        before = 0
        while before < total:
            loop.turn()
            assert len(pair.end.messages) - before < 2 * MESSAGES_AT_ONCE  # the last of one read, the first of the next
            before = len(pair.end.messages)
            pair.peer.say()
            if before > 60_000:
                break
        assert pair.end.closed == []
        pair.end.messages.clear()

    def test_others_have_their_turn(self, loop: HandLoop, pairs: Pairs) -> None:
        """A quiet connection's message waits for no more than one turn's messages of the flood."""
        flood, quiet = pairs().open(), pairs().open()
        flood.peer.say(wire(b"") * 150_000)
        loop.turn(2)
        for place in range(100):
            before = len(flood.end.messages)
            quiet.peer.say(wire(b"q"))
            loop.until(lambda place=place: len(quiet.end.messages) > place, flood.peer.say)  # type: ignore[misc]
            assert len(flood.end.messages) - before <= 2 * MESSAGES_AT_ONCE
        flood.end.messages.clear()

    def test_bytes_of_a_read(self, loop: HandLoop, pairs: Pairs) -> None:
        """One system call a turn: READ_BYTES of messages, or what the kernel holds for a long frame."""
        pair = pairs(max_bytes=64 * MIB).open()
        message = wire(b"x" * 1000)
        pair.peer.say(message * 2000)
        seen = 0
        while seen < 2000:
            loop.turn()
            assert (len(pair.end.messages) - seen) * len(message) <= READ_BYTES + len(message)
            seen = len(pair.end.messages)
            pair.peer.say()
        kernel = pair.peer.sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        pair.peer.say(wire(bytes(32 * MIB)))
        held = 0
        while len(pair.end.messages) == seen:
            loop.turn()
            assert pair.connection.unfinished_bytes - held <= max(READ_BYTES, 2 * kernel)
            held = pair.connection.unfinished_bytes
            pair.peer.say()

    def test_tiny_frames(self, loop: HandLoop, pair: Pair) -> None:
        """A message that never ends is a fault when it has too many frames."""
        pair.peer.say(b"\x01\0" * 100_000)
        loop.turn(3)
        assert pair.end.closed == ["a message of more than 300 frames"]
        assert pair.connection.is_fault

    def test_frames_that_never_end(self, loop: HandLoop, pairs: Pairs) -> None:
        pair = pairs(max_bytes=MIB).open()
        frame = wire(b"x" * 9000, b"")[: 9 + 9000]
        held = 0
        while not pair.end.closed:
            pair.peer.say(frame if len(pair.peer.waiting) < MIB else b"")
            loop.turn()
            if not pair.end.closed:
                held = max(held, pair.connection.unfinished_bytes)
        assert pair.end.closed == ["a message of more than 1048576 bytes"]
        assert MIB - 10_000 < held < MIB + 9
        assert pair.end.messages == []

    @pytest.mark.parametrize("body", [b"\x01x", b"\x04PING\0\0", b"\x04PONG", b"\x05READY", b"\x09SUBSCRIBE"])
    def test_commands(self, loop: HandLoop, pair: Pair, body: bytes) -> None:
        pair.peer.say(bytes((4, len(body))) + body)
        pair.peer.say((bytes((4, len(body))) + body) * 20_000)
        loop.turn(3)
        assert pair.end.closed == ["a flood of commands"]
        assert pair.connection.is_fault

    def test_as_many_commands_as_are_no_flood(self, loop: HandLoop, pair: Pair) -> None:
        some = zmtp.pack_command(b"PING", b"\0\0") * COMMANDS_AT_ONCE
        for _ in range(5):
            pair.says(some)
        assert pair.end.closed == []

    def test_a_commands_without_a_name(self, loop: HandLoop, pair: Pair) -> None:
        pair.says(b"\x04\0" * 1000)
        assert pair.end.closed == ["a command without a name"]

    def test_one_byte_at_a_time(self, loop: HandLoop, pair: Pair) -> None:
        """It costs the peer as much as us, and hurts nobody."""
        said = wire(b"a", b"b" * 300, b"c" * (LONG_FRAME + 10))
        for place in range(len(said)):
            pair.peer.say(said[place : place + 1])
            pair.connection.read()
            assert pair.connection.unfinished_bytes <= place + 1
        assert pair.end.messages == [[b"a", b"b" * 300, b"c" * (LONG_FRAME + 10)]]

    def test_a_flood_that_ends(self, loop: HandLoop, pair: Pair) -> None:
        """Every one of its messages is delivered before its end is told."""
        pair.peer.say(wire(b"x") * 10_000)
        assert not pair.peer.waiting
        pair.peer.sock.close()
        loop.until(lambda: pair.end.closed)
        assert len(pair.end.messages) == 10_000


class TestPing:
    @pytest.mark.parametrize("context", [b"", b"\0", b"context", b"x" * 16])
    def test_it_gets_a_pong(self, pair: Pair, context: bytes) -> None:
        """libzmq sends them without a context."""
        pair.says(zmtp.pack_command(b"PING", b"\0\x0a" + context))
        assert pair.peer.hear() == zmtp.pack_command(b"PONG", context)

    def test_a_context_is_16_bytes_at_most(self, pair: Pair) -> None:
        pair.says(zmtp.pack_command(b"PING", b"\0\x0a" + bytes(range(200))))
        assert pair.peer.hear() == zmtp.pack_command(b"PONG", bytes(range(16)))

    def test_one_for_all_of_a_read(self, loop: HandLoop, pair: Pair) -> None:
        """The last one's."""
        pair.says(
            b"".join(zmtp.pack_command(b"PING", b"\0\x0a%d" % i) + wire(b"m") for i in range(20))
            + zmtp.pack_command(b"PING", b"\0\x0a")
            + zmtp.pack_command(b"PONG", b"")
        )
        assert pair.peer.hear() == zmtp.pack_command(b"PONG", b"")
        assert len(pair.end.messages) == 20

    def test_none_for_a_peer_that_does_not_read(self, loop: HandLoop, pair: Pair) -> None:
        while pair.connection.send([bytes(1000)]):
            pass
        unsent = pair.connection.unsent_bytes
        for _ in range(50):
            pair.says(zmtp.pack_command(b"PING", b"\0\0x"), 1)
        assert pair.connection.unsent_bytes == unsent

    def test_a_pong_behind_what_was_sent_in_a_message(self, pair: Pair) -> None:
        pair.end.act = lambda frames: pair.connection.send([b"answer"]) and None
        pair.says(zmtp.pack_command(b"PING", b"\0\0c") + wire(b"m"))
        assert pair.peer.hear() == wire(b"answer") + zmtp.pack_command(b"PONG", b"c")

    def test_even_if_a_handler_fails(self, loop: HandLoop, pair: Pair) -> None:
        pair.end.act = lambda frames: [][0]
        pair.says(zmtp.pack_command(b"PING", b"\0\0c") + wire(b"m"))
        assert pair.peer.hear() == zmtp.pack_command(b"PONG", b"c")
        assert len(loop.raised) == 1
        loop.raised.clear()


class TestTurn:
    def test_none_is_needed(self, loop: HandLoop) -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        seen: list[list[Frame]] = []
        connection = Connection(
            ours,
            loop,
            b"ROUTER",
            on_message=lambda connection, frames: seen.append(frames),
            on_closed=lambda connection, reason: None,
            max_bytes=10,
            max_frames=1,
            max_unsent=10,
        )
        theirs.sendall(HELLO + wire(b"a"))
        loop.turn(2)
        assert seen == [[b"a"]]
        connection.close()
        theirs.close()

    def test_one_for_all_messages_of_a_read(self, loop: HandLoop, pair: Pair) -> None:
        before = pair.end.turns.count
        pair.peer.say(wire(b"x") * 50)
        loop.turn()
        assert len(pair.end.messages) == 50
        assert pair.end.turns.count == before + 1
