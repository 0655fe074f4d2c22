"""The connection to agentd: dialling, back-off, the handshake's end, what waits at the end. Raw peers and libzmq's."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from wardgate_agent import wire as w
from wardgate_agent import zmtp
from wardgate_agent.link import Link

PATIENCE_S = 10.0
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"NULL".ljust(20, b"\0") + bytes(32)
READY = zmtp.pack_ready(b"ROUTER")


class Told:
    """What a link has told, and its turns."""

    def __init__(self) -> None:
        self.log: list[Any] = []
        self.new = asyncio.Event()

    def add(self, what: Any) -> None:
        self.log.append(what)
        self.new.set()

    def begin(self) -> None:
        self.add("begin")

    def end(self) -> None:
        self.add("end")

    def link(self, endpoint: str, loop: Any = None, backoff_max_s: float = 1.0) -> Link:
        return Link(
            endpoint,
            loop or asyncio.get_running_loop(),
            on_message=lambda connection, frames: self.add([bytes(frame) for frame in frames]),
            on_up=lambda: self.add("up"),
            on_down=lambda reason: self.add(("down", reason)),
            turn=self,
            backoff_max_s=backoff_max_s,
        )

    async def until(self, wanted: Any) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while wanted not in self.log:
                self.new.clear()
                await self.new.wait()

    def without_turns(self) -> list[Any]:
        return [what for what in self.log if what not in ("begin", "end")]


class StillLoop:
    """A loop that does nothing by itself: what shall happen later stands in `later`."""

    def __init__(self) -> None:
        self.later: list[tuple[float, Callable[[], None]]] = []

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Any:
        entry = (delay_s, callback)
        self.later.append(entry)

        class Handle:
            def cancel(handle) -> None:
                if entry in self.later:
                    self.later.remove(entry)

        return Handle()

    def happen(self) -> float:
        """Let the one thing happen that is due; how long it would have taken."""
        [(delay_s, callback)] = self.later
        self.later.clear()
        callback()
        return delay_s

    def add_reader(self, fd: int, callback: Any) -> None: ...
    def remove_reader(self, fd: int) -> None: ...
    def add_writer(self, fd: int, callback: Any) -> None: ...
    def remove_writer(self, fd: int) -> None: ...


@pytest.fixture
def listener(short_dir: str) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as made:
        made.bind(f"{short_dir}/v2")
        made.listen(5)
        made.setblocking(False)
        yield made


@pytest.fixture
async def told() -> Told:
    return Told()


@pytest.fixture
async def link(told: Told, listener: socket.socket) -> AsyncIterator[Link]:
    made = told.link(f"ipc://{listener.getsockname()}")
    made.open()
    yield made
    made.close()


async def accepted(listener: socket.socket) -> socket.socket:
    async with asyncio.timeout(PATIENCE_S):
        peer, _ = await asyncio.get_running_loop().sock_accept(listener)
    peer.setblocking(False)
    return peer


async def say(peer: socket.socket, data: bytes) -> None:
    async with asyncio.timeout(PATIENCE_S):
        await asyncio.get_running_loop().sock_sendall(peer, data)


async def hear(peer: socket.socket, count: int) -> bytes:
    got = b""
    async with asyncio.timeout(PATIENCE_S):
        while len(got) < count:
            more = await asyncio.get_running_loop().sock_recv(peer, count - len(got))
            assert more, "the link ended it"
            got += more
    return got


async def ended(peer: socket.socket) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while await asyncio.get_running_loop().sock_recv(peer, 65_536):
            pass


async def opened(told: Told, listener: socket.socket) -> socket.socket:
    peer = await accepted(listener)
    await say(peer, GREETING + READY)
    await told.until("up")
    await hear(peer, 64 + len(zmtp.pack_ready(b"DEALER")))
    return peer


# --- dialling and back-off -----------------------------------------------------------------------


@pytest.fixture
def _no_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wardgate_agent.link.random.uniform", lambda low, high: high)


@pytest.mark.usefixtures("_no_jitter")
def test_attempts_go_on_with_back_off_until_settled(short_dir: str) -> None:
    loop = StillLoop()
    link = Told().link(f"ipc://{short_dir}/nobody", loop)
    link.open()
    assert [loop.happen() for _ in range(6)] == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.0, 1.0])
    assert "no such socket" in link.trouble
    link.settle()
    link.reconnect()
    assert loop.happen() == pytest.approx(0.1)
    link.close()
    assert loop.later == []


def test_the_back_off_is_jittered(short_dir: str) -> None:
    loop = StillLoop()
    link = Told().link(f"ipc://{short_dir}/nobody", loop, backoff_max_s=w.BACKOFF_S)
    link.open()
    waits = {loop.happen() for _ in range(20)}
    assert len(waits) == 20
    assert all(0.05 <= wait_s <= 0.1 for wait_s in waits)


@pytest.mark.usefixtures("_no_jitter")
def test_a_handshake_without_an_answer_is_given_up(listener: socket.socket) -> None:
    loop = StillLoop()
    link = Told().link(f"ipc://{listener.getsockname()}", loop)
    link.open()
    assert loop.happen() == 2.0
    assert "no answer" in link.trouble
    assert loop.happen() == pytest.approx(0.1)  # dialled again
    assert [delay_s for delay_s, _ in loop.later] == [2.0]
    link.close()
    assert loop.later == []
    for _ in range(2):
        peer, _ = listener.accept()
        with peer:
            assert peer.recv(1000) == GREETING
            assert peer.recv(1000) == b""


def test_a_loop_that_was_held_up_does_not_give_up(listener: socket.socket) -> None:
    loop, told = StillLoop(), Told()
    link = told.link(f"ipc://{listener.getsockname()}", loop)
    link.open()
    with listener.accept()[0] as peer:
        peer.sendall(GREETING + READY)
        assert loop.happen() == 2.0
        assert link.is_open
        assert told.without_turns() == ["up"]
        assert loop.later == []
        link.close()


@pytest.mark.usefixtures("_no_jitter")
def test_a_loop_that_was_held_up_and_a_peer_that_has_left(listener: socket.socket) -> None:
    loop = StillLoop()
    link = Told().link(f"ipc://{listener.getsockname()}", loop)
    link.open()
    listener.accept()[0].close()
    loop.happen()
    assert [delay_s for delay_s, _ in loop.later] == [pytest.approx(0.1)]  # dialled again, once
    link.close()


def test_a_full_backlog_is_tried_again(short_dir: str) -> None:
    loop = StillLoop()
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(f"{short_dir}/v2")
        listener.listen(0)
        first.connect(f"{short_dir}/v2")
        link = Told().link(f"ipc://{short_dir}/v2", loop)
        link.open()
        assert "does not take new connections" in link.trouble
        listener.accept()[0].close()
        loop.happen()
        assert [delay_s for delay_s, _ in loop.later] == [2.0]  # the handshake
        link.close()


@pytest.mark.parametrize("where", ["link.socket.socket", "zmtp.hangups.select.epoll"])
def test_no_descriptor_left_is_tried_again(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def none_left(*_: Any) -> None:
        raise OSError(24, "Too many open files")

    loop = StillLoop()
    link = Told().link(f"ipc://{listener.getsockname()}", loop)
    monkeypatch.setattr(f"wardgate_agent.{where}", none_left)
    link.open()
    assert link.trouble == "Too many open files"
    monkeypatch.undo()
    loop.happen()
    assert [delay_s for delay_s, _ in loop.later] == [2.0]
    link.close()


# --- the handshake -------------------------------------------------------------------------------


async def test_up_once_both_are_ready(link: Link, told: Told, listener: socket.socket) -> None:
    peer = await accepted(listener)
    assert await hear(peer, 64) == GREETING
    assert not link.send([w.HELLO, b"{}"])
    await say(peer, GREETING)
    assert await hear(peer, len(zmtp.pack_ready(b"DEALER"))) == zmtp.pack_ready(b"DEALER")
    assert not link.is_open
    await say(peer, READY)
    await told.until("up")
    assert link.is_open
    assert link.send([w.HELLO, b"{}"])
    assert await hear(peer, 11) == b"\x01\x05HELLO\x00\x02{}"
    peer.close()


@pytest.mark.parametrize(
    ("said", "trouble"),
    [
        (b"", "in the handshake"),  # reset, since what we said was not read
        (b"HTTP/1.1 400 Bad Request\r\n", "no ZMTP greeting"),
        (GREETING.replace(b"NULL", b"PLAIN"), "security mechanism"),
        (GREETING + zmtp.pack_ready(b"PUB"), "does not fit"),
        (GREETING + zmtp.pack_command(b"ERROR", b"\x02no"), "the peer gives up: b'no'"),
        (GREETING + b"\x00\x05HELLO", "a message before READY"),
    ],
)
async def test_a_refused_handshake_is_tried_again(
    link: Link, told: Told, listener: socket.socket, said: bytes, trouble: str
) -> None:
    peer = await accepted(listener)
    await say(peer, said)
    if said:
        await ended(peer)
    peer.close()
    await in_trouble(link)
    assert trouble in link.trouble
    again = await opened(told, listener)
    assert link.trouble == ""
    assert told.without_turns() == ["up"]
    again.close()


# --- messages ------------------------------------------------------------------------------------


async def test_a_message_in_crumbs(link: Link, told: Told, listener: socket.socket) -> None:
    peer = await accepted(listener)
    for byte in GREETING + READY + b"".join(zmtp.pack([w.PING, b"x" * 300])):
        await say(peer, bytes((byte,)))
        link.drain()
    await told.until([w.PING, b"x" * 300])
    peer.close()


async def test_what_came_together_is_handled_in_one_turn(link: Link, told: Told, listener: socket.socket) -> None:
    peer = await opened(told, listener)
    told.log.clear()
    await say(peer, b"".join(piece for i in range(3) for piece in zmtp.pack([w.PING, b"%d" % i])))
    link.drain()
    assert told.log == ["begin", [w.PING, b"0"], [w.PING, b"1"], [w.PING, b"2"], "end"]
    peer.close()


async def test_a_broken_connection_is_made_again(link: Link, told: Told, listener: socket.socket) -> None:
    peer = await opened(told, listener)
    peer.close()
    await told.until(("down", "connection closed"))
    assert not link.is_open
    assert not link.send([w.PING])
    told.log.clear()
    again = await opened(told, listener)
    assert link.send([w.PING])
    assert await hear(again, 6) == b"\x00\x04PING"
    again.close()


async def test_a_message_over_the_limit_ends_the_connection(
    told: Told, listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(w, "MAX_MESSAGE_BYTES", 1000)
    link = told.link(f"ipc://{listener.getsockname()}")
    link.open()
    peer = await opened(told, listener)
    await say(peer, b"".join(zmtp.pack([w.EVENTS, b"x" * 994])))
    await told.until([w.EVENTS, b"x" * 994])
    await say(peer, b"".join(zmtp.pack([w.EVENTS, b"x" * 500, b"y" * 495])))
    await told.until(("down", "a message of more than 1000 bytes"))
    await ended(peer)
    told.log.clear()
    again = await opened(told, listener)
    for one in (peer, again):
        one.close()
    link.close()


# --- the end -------------------------------------------------------------------------------------


async def test_a_peer_that_does_not_read_is_refused_more(
    link: Link, told: Told, listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer = await opened(told, listener)
    link._connection.max_unsent = 1_000_000  # type: ignore[union-attr]
    sent = 0
    while link.send([w.VERDICTS, b"x" * 100_000]):
        sent += 1
    assert 10 <= sent < 100
    await hear(peer, sent * 100_000)
    assert link.send([w.VERDICTS, b"x"])
    peer.close()


async def test_a_farewell_waits_for_what_was_said_last(link: Link, told: Told, listener: socket.socket) -> None:
    peer = await opened(told, listener)
    body = b"x" * 2_000_000
    assert link.send([w.VERDICTS, body])
    assert link.send([w.BYE])
    leaving = asyncio.create_task(link.farewell(PATIENCE_S))
    await asyncio.sleep(0)
    assert not leaving.done()
    said = b"".join(zmtp.pack([w.VERDICTS, body])) + b"\x00\x03BYE"
    assert await hear(peer, len(said)) == said
    await leaving
    await ended(peer)
    peer.close()


async def test_a_farewell_does_not_wait_for_ever(link: Link, told: Told, listener: socket.socket) -> None:
    peer = await opened(told, listener)
    assert link.send([w.VERDICTS, b"x" * 2_000_000])
    await link.farewell(0.01)
    assert not link.is_open
    await ended(peer)
    peer.close()


async def in_trouble(link: Link) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not link.trouble:  # noqa: ASYNC110 - a failed attempt is not announced
            await asyncio.sleep(0)


# --- tcp -----------------------------------------------------------------------------------------


async def test_tcp_is_dialled_without_waiting(told: Told) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        link = told.link(f"tcp://localhost:{listener.getsockname()[1]}")
        link.open()
        peer = await opened(told, listener)
        assert link.send([w.HELLO, b"{}"])
        assert await hear(peer, 11) == b"\x01\x05HELLO\x00\x02{}"
        peer.close()
        await told.until(("down", "connection closed"))
        told.log.clear()
        again = await opened(told, listener)
        link.close()
        again.close()


async def test_tcp_without_a_listener_goes_on(told: Told) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed_soon:
        port = closed_soon.getsockname()[1]
    link = told.link(f"tcp://127.0.0.1:{port}", backoff_max_s=0.1)
    link.open()
    await in_trouble(link)
    assert "is agentd running" in link.trouble
    with socket.create_server(("127.0.0.1", port)) as listener:
        listener.setblocking(False)
        (await opened(told, listener)).close()
        link.close()


async def test_closing_while_tcp_is_dialled(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(*_: Any, **__: Any) -> Any:
        await asyncio.Event().wait()

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", never)
    link = told.link("tcp://localhost:1")
    link.open()
    dialling = link._dialling
    assert dialling is not None
    await asyncio.sleep(0)
    link.close()
    with pytest.raises(asyncio.CancelledError):
        await dialling
    assert told.log == []


async def test_a_name_that_does_not_answer_in_time(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(*_: Any, **__: Any) -> Any:
        await asyncio.Event().wait()

    monkeypatch.setattr(w, "CONNECT_TCP_S", 0.0)
    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", never)
    link = told.link("tcp://localhost:1")
    link.open()
    await in_trouble(link)
    assert "no answer" in link.trouble
    link.close()
