"""The worker's connection to agentd: dialled for ever, given up in time, bounded; timers are fired by hand.

What travels over it is test_dispatch.py's matter, which also has a libzmq ROUTER at the other end.
"""

import asyncio
import errno
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from proxy.dispatch import Dispatch
from shared.decision import Decision, Outcome
from shared.defaults import (
    HOP_MAX_FRAMES,
    HOP_MAX_MESSAGE_BYTES,
    RECONNECT_MAX_MS,
    RECONNECT_MS,
    ZMTP_HANDSHAKE_MS,
)
from shared.events import EventKind
from shared.metrics import (
    W_AGENTD_CONNECTED,
    W_DECISIONS_LOCAL,
    W_HOP_MALFORMED,
    W_HOP_UNSENT,
    W_HOP_UNSENT_LIMIT,
)
from shared.plan import Ask, Plan
from shared.wire.envelope import (
    NO_BODY,
    EventRecord,
    RecordType,
    Register,
    Registered,
    pack_registered,
    records,
    unpack_event,
)
from shared.wire.segment import AgentRow
from shared.zmtp import Connection, Frame
from tests.support import Clock, until

CLOSED = Ask("waf", "closed", False, 10_000)
OPEN = Ask("extra", "open", False, 10_000)
PLANS = (
    Plan(0, "r", EventKind.REQUEST_HEADERS, False, False, (CLOSED,)),
    Plan(1, "s", EventKind.REQUEST_HEADERS, False, False, (OPEN,)),
    Plan(2, "r", EventKind.REQUEST_BODY_CHUNK, False, False, (CLOSED,)),
)
HEADS, OPEN_HEADS, CHUNKS = range(3)
MIB = 1 << 20
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"NULL".ljust(20, b"\0") + bytes(32)
NOT_A_GREETING = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


class Timer:
    def __init__(self, delay_s: float, callback: Callable[[], None]) -> None:
        self.delay_s = delay_s
        self.callback = callback
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True


class Loop:
    """The running loop, but timers wait for the test."""

    def __init__(self) -> None:
        self._real = asyncio.get_running_loop()
        self.timers: list[Timer] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Timer:
        self.timers.append(Timer(delay_s, callback))
        return self.timers[-1]

    def fire(self) -> float:
        """The one timer there is, now; how long it would have taken."""
        (timer,) = [timer for timer in self.timers if not timer.is_cancelled]
        self.timers.clear()
        timer.callback()
        return timer.delay_s


class Segment:
    """A view of an agentd.seg that beats."""

    generation = 1

    def is_alive(self, now: int) -> bool:
        return True

    def agents(self) -> dict[str, AgentRow]:
        return {}

    def check(self) -> bool:
        return True


class Waiting:
    def __init__(self) -> None:
        self.exchange_id = 7
        self.decisions: list[Decision] = []

    def decided(self, decision: Decision) -> None:
        self.decisions.append(decision)


class Agentd:
    """Its end, over a listening socket of the test's."""

    def __init__(self, sock: socket.socket, loop: Any) -> None:
        self.sock = sock
        self.records: list[tuple[int, bytes]] = []
        self.events: list[tuple[EventRecord, bytes]] = []  # with their bodies
        self.frames: list[int] = []  # of each message
        self.ends: list[str] = []
        self.connection = Connection(
            sock,
            loop,
            b"ROUTER",
            on_message=self._message,
            on_closed=lambda connection, reason: self.ends.append(reason),
            max_bytes=HOP_MAX_MESSAGE_BYTES,
            max_frames=HOP_MAX_FRAMES,
            max_unsent=MIB,
        )

    def _message(self, connection: Connection, frames: list[Frame]) -> None:
        self.frames.append(len(frames))
        for kind, rest in records(frames[0]):
            self.records.append((kind, bytes(rest)))
            if kind == RecordType.REGISTER:
                connection.send((pack_registered(Registered("n", "digest")),))
            elif kind == RecordType.EVENT:
                event = unpack_event(memoryview(bytes(rest)))
                body = b"" if event.body_frame == NO_BODY else bytes(frames[event.body_frame + 1])
                self.events.append((event, body))


class World:
    """A dispatch, and the path at which agentd may listen."""

    def __init__(self, dir: Path, clock: Clock) -> None:
        self.path = f"{dir}/w.sock"
        self.clock = clock
        self.loop = Loop()
        self.cells = [0] * 128
        self.listener: socket.socket | None = None
        self.accepted_socks: list[socket.socket] = []
        self.agentds: list[Agentd] = []
        self.dispatch: Dispatch

    def start(self, **bounds: int) -> None:
        register = Register(1, 0, "digest", "c-", PLANS)
        segment: Any = Segment()
        self.dispatch = Dispatch(self.loop, self.path, segment, register, self.cells, self.clock, **bounds)  # type: ignore[arg-type]

    def listen(self, backlog: int = 8) -> None:
        Path(self.path).unlink(missing_ok=True)
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.path)
        self.listener.listen(backlog)
        self.listener.setblocking(False)

    def accept(self) -> socket.socket:
        """Who has dialled: a unix socket is connected at once."""
        assert self.listener is not None
        sock, _ = self.listener.accept()
        sock.setblocking(False)
        self.accepted_socks.append(sock)
        return sock

    async def up(self, **bounds: int) -> Agentd:
        self.listen()
        self.start(**bounds)
        return await self.accepted()

    async def accepted(self) -> Agentd:
        agentd = Agentd(self.accept(), self.loop)
        self.agentds.append(agentd)
        await until(lambda: self.dispatch.is_registered and self.dispatch.is_up)
        return agentd

    async def timer(self) -> None:
        """Until it is to be dialled again."""
        await until(lambda: self.loop.timers)

    def ask(self, plan: int = HEADS, event: bytes = b"{}") -> "tuple[Waiting, int | Decision]":
        waiting = Waiting()
        view, now = self.dispatch.views[plan], self.clock()
        decision = self.dispatch.decide_now(view, now) if view.may_decide_now else None
        if decision is not None:
            return waiting, decision
        return waiting, self.dispatch.send(waiting, view, 7, event, now, view.flags)

    def show(self, body: bytes) -> "tuple[Waiting, int | Decision]":
        waiting = Waiting()
        view = self.dispatch.views[CHUNKS]
        return waiting, self.dispatch.send_body(waiting, view, 1, b"{}", body, 0, False, self.clock())

    def local(self, outcome: Outcome) -> int:
        return self.cells[W_DECISIONS_LOCAL + outcome]

    def close(self) -> None:
        self.dispatch.close()
        if self.listener is not None:
            self.listener.close()
        for agentd in self.agentds:
            agentd.connection.close()
        for sock in self.accepted_socks:
            sock.close()


@pytest.fixture
async def world(short_tmp_dir: Path, clock: Clock) -> Any:
    made = World(short_tmp_dir, clock)
    yield made
    made.close()


def is_over(sock: socket.socket) -> bool:
    """Whether the other end has closed it; what it said before is read."""
    try:
        while sock.recv(4096):
            pass
    except BlockingIOError:
        return False
    return True


def wholes_ms() -> Iterator[int]:
    """The waits without jitter."""
    wait = RECONNECT_MS
    while True:
        yield min(wait, RECONNECT_MAX_MS)
        wait *= 2


# --- dialling ---------------------------------------------------------------------------------------


async def test_it_is_dialled_for_ever(world: World) -> None:
    """Nobody there for ten thousand tries: the waits grow to the cap and stay so; then all is as on the first day."""
    world.start()
    waits = [world.loop.fire() * 1000 for _ in range(10_000)]
    for wait, whole in zip(waits, wholes_ms(), strict=False):
        assert int(whole / 2) <= wait <= whole
    assert len({round(wait) for wait in waits[100:]}) > 100, "with jitter"
    world.listen()
    world.loop.fire()
    agentd = await world.accepted()
    agentd.connection.close()
    await world.timer()
    assert world.loop.fire() * 1000 <= RECONNECT_MS


@pytest.mark.parametrize("leaves_its_file", [False, True])
async def test_agentd_is_away_at_the_start(world: World, leaves_its_file: bool) -> None:
    """Decided at once by failure mode, also where a dead agentd's file lies there; once it listens, it is asked."""
    if leaves_its_file:
        world.listen()
        assert world.listener is not None
        world.listener.close()
    world.start()
    assert not world.dispatch.is_up
    decision = world.ask()[1]
    assert isinstance(decision, Decision)
    assert decision.status == 503
    world.listen()
    world.loop.fire()
    agentd = await world.accepted()
    assert not world.loop.timers
    world.ask()
    await until(lambda: agentd.events)


async def test_agentd_closes_at_once(world: World) -> None:
    """As it does with a connection too many: no handshake, so the waits grow."""
    world.listen()
    world.start()
    for whole in [RECONNECT_MS << tries for tries in range(4)]:
        world.accept().close()
        await world.timer()
        assert whole / 2 <= world.loop.fire() * 1000 <= whole
    assert world.cells[W_HOP_MALFORMED] == 0
    await world.accepted()


async def test_something_else_listens_there(world: World) -> None:
    """An HTTP server: given up at its first words, counted, told; the waits grow, and agentd is found afterwards."""
    world.listen()
    world.start()
    for times, whole in enumerate((RECONNECT_MS, 2 * RECONNECT_MS, 4 * RECONNECT_MS), 1):
        sock = world.accept()
        sock.sendall(NOT_A_GREETING)
        await world.timer()
        assert is_over(sock)
        assert world.cells[W_HOP_MALFORMED] == times
        assert whole / 2 <= world.loop.fire() * 1000 <= whole
    assert not world.dispatch.is_up
    await world.accepted()


@pytest.mark.parametrize("says", [b"", GREETING], ids=["silent", "without READY"])
async def test_a_handshake_that_never_ends_is_given_up(world: World, says: bytes) -> None:
    """agentd stands still, or is none: after a while somebody else may listen there."""
    world.listen()
    world.start()
    sock = world.accept()
    sock.sendall(says)
    if says:
        await until(lambda: b"READY" in sock.recv(4096, socket.MSG_PEEK))
    world.dispatch.look(world.clock.ms(ZMTP_HANDSHAKE_MS))
    assert not world.loop.timers
    world.dispatch.look(world.clock.ms(1))
    assert is_over(sock)
    world.dispatch.look(world.clock.ms(ZMTP_HANDSHAKE_MS + 1))  # nothing is dialled: nothing to give up
    assert world.loop.fire() * 1000 <= RECONNECT_MS
    world.dispatch.look(world.clock())
    await world.accepted()


async def test_a_full_backlog_is_no_end(world: World) -> None:
    """EAGAIN instead of a wait: tried again like any other failure."""
    world.listen(0)
    first = socket.socket(socket.AF_UNIX)
    first.connect(world.path)
    world.start()
    assert [world.loop.fire() <= RECONNECT_MAX_MS / 1000 for _ in range(20)] == [True] * 20
    world.accept().close()
    first.close()
    world.loop.fire()
    await world.accepted()


@pytest.mark.parametrize(
    ("where", "dialled"), [("proxy.hop.socket.socket", 0), ("shared.zmtp.hangups.select.epoll", 2)]
)
async def test_no_descriptor_is_no_end(world: World, monkeypatch: pytest.MonkeyPatch, where: str, dialled: int) -> None:
    """Clients have them all, or all but one: one of them will go."""
    world.listen()

    def none_left(*args: Any) -> socket.socket:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(where, none_left)
        world.start()
        world.loop.fire()
    assert all(is_over(world.accept()) for _ in range(dialled))
    world.loop.fire()
    await world.accepted()


async def test_the_end_stops_dialling(world: World) -> None:
    """No timer is left, whatever state it was in; a connection is closed."""
    world.start()
    world.dispatch.close()
    assert [timer.is_cancelled for timer in world.loop.timers] == [True]
    world.loop.timers.clear()
    world.listen()
    world.start()
    sock = world.accept()
    world.dispatch.close()
    assert is_over(sock)
    world.start()
    agentd = await world.accepted()
    asked, _ = world.ask()
    world.dispatch.close()
    await until(lambda: agentd.ends)
    assert (agentd.ends, len(agentd.events)) == (["connection closed"], 1), "what was said before arrives"
    assert asked.decisions[0].status == 503
    assert not world.dispatch.is_up
    world.dispatch.look(world.clock.s(60))
    assert not world.loop.timers


# --- an agentd that breaks or does not read ------------------------------------------------------------


@pytest.mark.parametrize("leaves_unread", [False, True])
async def test_a_broken_connection_fails_what_is_pending_at_once(world: World, leaves_unread: bool) -> None:
    """By failure mode; also where the kernel says `reset`, because something was not read."""
    agentd = await world.up()
    if leaves_unread:
        world.loop.remove_reader(agentd.sock.fileno())
    closed, _ = world.ask()
    opened, _ = world.ask(OPEN_HEADS)
    if leaves_unread:
        world.dispatch._flush()
    else:
        await until(lambda: len(agentd.events) == 2)
    agentd.connection.close()
    await until(lambda: closed.decisions and opened.decisions)
    assert (closed.decisions[0].status, opened.decisions[0].verb.word) == (503, "allow")
    assert world.local(Outcome.DISCONNECTED) == 2
    assert world.cells[W_AGENTD_CONNECTED] == 0
    assert world.cells[W_HOP_MALFORMED] == 0
    assert isinstance(world.ask()[1], Decision)
    world.loop.fire()
    again = await world.accepted()
    assert not again.events, "the next one was never asked"


async def test_a_connection_that_breaks_under_the_message_is_disconnected_and_not_full(world: World) -> None:
    """Its end is not read yet when this turn's message leaves."""
    agentd = await world.up()
    waiting, _ = world.ask()
    agentd.connection.close()
    world.dispatch._flush()
    assert waiting.decisions[0].status == 503
    assert (world.local(Outcome.DISCONNECTED), world.local(Outcome.QUEUE_FULL)) == (1, 0)
    assert world.dispatch._waiting == 0


async def test_in_the_middle_of_a_message_agentd_ends(world: World) -> None:
    """Killed between two system calls: half a decision is none."""
    agentd = await world.up()
    waiting, event_id = world.ask()
    await until(lambda: agentd.events)
    assert isinstance(event_id, int)
    agentd.sock.send(b"\x02" + (100_000).to_bytes(8, "big") + b"x" * 50_000)
    agentd.connection.close()
    await until(lambda: waiting.decisions)
    assert waiting.decisions[0].status == 503
    assert world.cells[W_HOP_MALFORMED] == 0
    world.loop.fire()
    again = await world.accepted()
    world.ask()
    await until(lambda: again.events)


async def test_agentd_does_not_read(world: World) -> None:
    """Beyond so many bytes its events end as queue_full at once; the rest arrives whole when it reads on."""
    agentd = await world.up(max_unsent=MIB)
    assert world.cells[W_HOP_UNSENT_LIMIT] == MIB
    world.loop.remove_reader(agentd.sock.fileno())
    asked: list[Waiting] = []
    while not world.local(Outcome.QUEUE_FULL):
        waiting, event_id = world.ask(event=b"%06d" % len(asked) + bytes(60_000))
        assert isinstance(event_id, int), "one decides only when the message was refused"
        asked.append(waiting)
        world.dispatch._flush()
    assert asked[-1].decisions[0].status == 503
    assert not any(waiting.decisions for waiting in asked[:-1])
    world.dispatch.look(world.clock())
    assert MIB < world.cells[W_HOP_UNSENT] < MIB + 100_000
    assert world.dispatch.is_up, "it beats still"
    world.loop.add_reader(agentd.sock.fileno(), agentd.connection.read)
    await until(lambda: len(agentd.events) == len(asked) - 1)
    assert [bytes(event.event[:6]) for event, _ in agentd.events] == [b"%06d" % n for n in range(len(asked) - 1)]
    world.dispatch.look(world.clock())
    assert world.cells[W_HOP_UNSENT] == 0
    waiting, _ = world.ask(event=b"again")
    await until(lambda: bytes(agentd.events[-1][0].event) == b"again")
    assert not waiting.decisions


async def test_what_waited_for_a_lost_agentd_is_nobodys(world: World) -> None:
    """It is neither counted any more nor said to the next one."""
    agentd = await world.up()
    world.loop.remove_reader(agentd.sock.fileno())
    asked = [world.ask(event=bytes(60_000))[0] for _ in range(30)]
    world.dispatch._flush()
    world.dispatch.look(world.clock())
    assert world.cells[W_HOP_UNSENT] > MIB
    agentd.connection.close()
    await until(lambda: all(waiting.decisions for waiting in asked))
    assert world.cells[W_HOP_UNSENT] == 0
    world.loop.fire()
    again = await world.accepted()
    assert [kind for kind, _ in again.records] == [RecordType.REGISTER]


# --- what one turn may have to say --------------------------------------------------------------------


async def test_many_small_bodies_of_one_turn_are_several_messages(world: World) -> None:
    """A message has so many frames at most; more would cost the connection, and all that is pending with it."""
    agentd = await world.up()
    count = HOP_MAX_FRAMES + 500
    shown = [world.show(b"%d" % number) for number in range(count)]
    await until(lambda: len(agentd.events) == count)
    assert [body for _, body in agentd.events] == [b"%d" % number for number in range(count)]
    assert agentd.frames[-2:] == [HOP_MAX_FRAMES, 1 + count - (HOP_MAX_FRAMES - 1)]
    assert not any(waiting.decisions for waiting, _ in shown)


async def test_heads_beside_a_long_body_are_several_messages(world: World) -> None:
    """Together they are more than a message may be: all arrive in their order, and the connection stays."""
    agentd = await world.up()
    body = b"b" * (HOP_MAX_MESSAGE_BYTES - 100_000)
    asked = [world.ask(event=b"1" * 60_000), world.show(body), world.ask(event=b"2" * 60_000), world.show(b"last")]
    await until(lambda: len(agentd.events) == 4)
    assert [event.event_id for event, _ in agentd.events] == [event_id for _, event_id in asked]
    assert [found for _, found in agentd.events] == [b"", body, b"", b"last"]
    assert agentd.frames[-3:] == [2, 1, 2]
    assert world.dispatch.is_up
    assert not any(waiting.decisions for waiting, _ in asked)
