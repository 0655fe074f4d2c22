"""agentd/peers.py: who may connect, who is cut, and that everybody else goes on; the clients are libzmq's."""

import asyncio
import errno
import gc
import os
import resource
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import zmq

from agentd import peers as peers_module
from agentd.peers import Peer, Peers
from shared.zmtp import HANDSHAKE_MAX_BYTES, Connection, Frame
from tests.agentd.zmq_world import GREETING, is_cut, zmtp_dial, zmtp_frame
from tests.support import until

MAX_BYTES, MAX_FRAMES, MAX_UNSENT = 100_000, 10, 1_000_000


def connections() -> int:
    """How many there are in this process."""
    return sum(isinstance(thing, Connection) for thing in gc.get_objects())


class Watched:
    """Peers with a socket of their own, and what they told."""

    def __init__(self, path: Path, **options: Any) -> None:
        self.path = str(path)
        self.gone: list[Peer] = []
        self.reasons: list[str] = []
        self.refused: list[str] = []
        self.messages: list[tuple[Peer, list[bytes]]] = []
        self.on_message: Callable[[Peer, list[Frame]], None] = lambda peer, frames: None
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        options.setdefault("may_connect", lambda uid: True)
        options.setdefault("max_peers", 100)
        self.peers = Peers(
            asyncio.get_running_loop(),
            self.path,
            self._message,
            self._gone,
            on_refused=lambda peer, why: self.refused.append(why),
            max_bytes=MAX_BYTES,
            max_frames=MAX_FRAMES,
            max_unsent=MAX_UNSENT,
            **options,
        )
        self.peers.listen(0o077)
        self.clients: list[Any] = []

    def _message(self, peer: Peer, frames: list[Frame]) -> None:
        self.messages.append((peer, [bytes(frame) for frame in frames]))
        self.on_message(peer, frames)

    def _gone(self, peer: Peer, reason: str) -> None:
        assert peer not in self.peers.all
        self.gone.append(peer)
        self.reasons.append(reason)

    def dial(self) -> socket.socket:
        """A connection that says nothing."""
        client = socket.socket(socket.AF_UNIX)
        client.setblocking(False)
        client.connect(self.path)
        self.clients.append(client)
        return client

    async def shaken(self) -> socket.socket:
        """One after the handshake."""
        client = await zmtp_dial(self.path)
        self.clients.append(client)
        return client

    def dealer(self, **options: Any) -> "zmq.Socket[bytes]":
        client = self.context.socket(zmq.DEALER)
        client.setsockopt(zmq.LINGER, 0)
        client.setsockopt(zmq.RECONNECT_IVL, -1)
        for name, value in options.items():
            client.setsockopt(getattr(zmq, name), value)
        client.connect(f"ipc://{self.path}")
        self.clients.append(client)
        return client

    @property
    def one(self) -> Peer:
        (peer,) = self.peers.all
        return peer

    def close(self) -> None:
        for client in self.clients:
            client.close()
        self.peers.close()
        self.context.destroy(0)


@asynccontextmanager
async def watched(path: Path, **options: Any) -> AsyncIterator[Watched]:
    made = Watched(path / "sock", **options)
    try:
        yield made
    finally:
        made.close()


def _python(code: str, **options: Any) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-c", code], **options)


class TestListen:
    async def test_mode(self, short_tmp_dir: Path) -> None:
        async with watched(short_tmp_dir) as w:
            assert stat.S_IMODE(os.stat(w.path).st_mode) == 0o700
            mask = os.umask(0o022)
            os.umask(mask)
            assert mask != 0o077

    async def test_a_file_of_an_earlier_life(self, short_tmp_dir: Path) -> None:
        """Of an agentd that was killed."""
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(short_tmp_dir / "sock"))
        async with watched(short_tmp_dir) as w:
            w.dial()
            await until(lambda: w.peers.all)

    async def test_no_such_directory(self, short_tmp_dir: Path) -> None:
        async with watched(short_tmp_dir) as w:
            w.peers.close()
            w.peers._path = str(short_tmp_dir / "no" / "sock")
            before = len(os.listdir("/proc/self/fd"))
            with pytest.raises(FileNotFoundError):
                w.peers.listen(0o077)
            assert len(os.listdir("/proc/self/fd")) == before
        mask = os.umask(0o022)
        os.umask(mask)
        assert mask != 0o077

    async def test_close_ends_all_without_a_word(self, short_tmp_dir: Path) -> None:
        async with watched(short_tmp_dir) as w:
            client = w.dial()
            await until(lambda: w.peers.all)
            w.peers.close()
            assert (w.gone, w.peers.all) == ([], {})
            assert await is_cut(client)
            assert os.listdir(short_tmp_dir) == []
            w.peers.close()

    async def test_close_leaves_a_successors_file(self, short_tmp_dir: Path) -> None:
        async with watched(short_tmp_dir) as w:
            os.rename(w.path, f"{w.path}.old")  # keeps its inode taken
            async with watched(short_tmp_dir) as successor:
                w.peers.close()
                successor.dial()
                await until(lambda: successor.peers.all)

    async def test_close_of_what_is_gone(self, short_tmp_dir: Path) -> None:
        async with watched(short_tmp_dir) as w:
            os.unlink(w.path)
            w.peers.close()

    async def test_closed_while_others_wait_to_be_accepted(self, short_tmp_dir: Path) -> None:
        async with watched(short_tmp_dir) as w:
            clients = [w.dial() for _ in range(3)]
            w.peers.close()
            for client in clients:
                assert await is_cut(client)
            assert w.peers.all == {}


class TestAccept:
    async def test_who_it_is(self, short_tmp_dir: Path) -> None:
        async with watched(short_tmp_dir) as w:
            w.dial()
            await until(lambda: w.peers.all)
            assert (w.one.uid, w.one.gid, w.one.pid) == (os.getuid(), os.getgid(), os.getpid())
            assert w.one.address == (os.getuid(), os.getpid())
            assert str(w.one) == f"pid {os.getpid()} uid {os.getuid()}"

    async def test_other_users_are_cut_before_a_word(self, short_tmp_dir: Path) -> None:
        async with watched(short_tmp_dir, may_connect=lambda uid: uid != os.getuid()) as w:
            client = w.dial()
            await until(lambda: w.refused)
            assert client.recv(99) == b""
            assert (w.peers.all, w.peers.refused, w.gone) == ({}, 1, [])

    @pytest.mark.skipif(os.getuid() != 0, reason="needs root to become somebody else")
    async def test_the_uid_is_the_kernels(self, short_tmp_dir: Path) -> None:
        """A process that gave up root is known by what it is, not by who started it."""
        os.chmod(short_tmp_dir, 0o755)
        async with watched(short_tmp_dir) as w:
            os.chmod(w.path, 0o666)
            code = (
                "import os, socket; os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
                f"s = socket.socket(1); s.connect({w.path!r}); input()"
            )
            child = _python(code, stdin=subprocess.PIPE)
            try:
                await until(lambda: w.peers.all)
                assert (w.one.uid, w.one.gid, w.one.pid) == (65534, 65534, child.pid)
            finally:
                child.communicate(b"\n")
            await until(lambda: w.gone)

    async def test_too_many(self, short_tmp_dir: Path) -> None:
        """There is room again when one of them has left."""
        async with watched(short_tmp_dir, max_peers=2) as w:
            first, _, third = [w.dial() for _ in range(3)]
            await until(lambda: w.refused)
            assert (w.refused, len(w.peers.all)) == (["too many connections"], 2)
            assert await is_cut(third)
            first.close()
            await until(lambda: w.gone)
            w.dial()
            await until(lambda: len(w.peers.all) == 2)
            assert w.peers.refused == 1

    async def test_a_crowd(self, short_tmp_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """After so many at once nobody is accepted for a moment: a storm of dials leaves time for those who are in."""
        monkeypatch.setattr(peers_module, "ACCEPTS_AT_ONCE", 4)
        monkeypatch.setattr(peers_module, "ACCEPT_REST_S", 3_600)
        async with watched(short_tmp_dir) as w:
            for _ in range(9):
                w.dial()
            await until(lambda: len(w.peers.all) == 4)
            inside = w.clients[0]
            inside.send(GREETING)
            await until(lambda: b"READY" in inside.recv(4_096, socket.MSG_PEEK))
            assert len(w.peers.all) == 4
            monkeypatch.setattr(peers_module, "ACCEPT_REST_S", 0.001)
            w.peers._accept_again()
            await until(lambda: len(w.peers.all) == 9)

    async def test_shut_out(self, short_tmp_dir: Path) -> None:
        """By process, before it has said a word; until it is not any more."""
        shut_out: set[tuple[int, int]] = set()
        async with watched(short_tmp_dir, is_shut_out=lambda peer: peer.address in shut_out) as w:
            w.dial()
            await until(lambda: w.peers.all)
            shut_out.add(w.one.address)
            assert await is_cut(w.dial())
            assert (w.refused, w.peers.refused) == (["shut out for a while"], 1)
            assert len(w.peers.all) == 1, "who is in stays in"
            shut_out.clear()
            w.dial()
            await until(lambda: len(w.peers.all) == 2)

    async def test_no_descriptors_left(self, short_tmp_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Nobody is accepted for a moment, and no CPU burnt; who is in is served; then it goes on by itself."""
        monkeypatch.setattr(peers_module, "ACCEPT_PAUSE_S", 0.05)
        async with watched(short_tmp_dir) as w:
            inside = await w.shaken()
            outside = w.dial()
            accepts = 0
            listener = w.peers._listener

            class Full:
                """As the kernel answers when RLIMIT_NOFILE is reached."""

                def accept(self) -> Any:
                    nonlocal accepts
                    accepts += 1
                    raise OSError(errno.EMFILE, "Too many open files")

                def fileno(self) -> int:
                    assert listener is not None
                    return listener.fileno()

            w.peers._listener = Full()  # type: ignore[assignment]
            await until(lambda: accepts == 2)
            await asyncio.get_running_loop().sock_sendall(inside, zmtp_frame(b"served", more=False))
            await until(lambda: w.messages)
            w.peers._listener = listener
            await until(lambda: len(w.peers.all) == 2)
            assert accepts < 10
            assert outside.recv(99).startswith(b"\xff")

    async def test_the_limit_of_descriptors_itself(
        self, short_tmp_dir: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(peers_module, "ACCEPT_PAUSE_S", 0.02)
        async with watched(short_tmp_dir) as w:
            clients = [w.dial() for _ in range(4)]
            limits = resource.getrlimit(resource.RLIMIT_NOFILE)
            fullest = max(map(int, os.listdir("/proc/self/fd")))
            spare = [os.open("/dev/null", os.O_RDONLY)]
            while spare[-1] < fullest:
                spare.append(os.open("/dev/null", os.O_RDONLY))
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(spare) + 1, limits[1]))
            said = ""
            try:
                while said.count("cannot accept: Too many open files") < 2:
                    await asyncio.sleep(0)
                    said += capfd.readouterr().err
                assert w.peers.all == {}
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, limits)
                for fd in spare:
                    os.close(fd)
            await until(lambda: len(w.peers.all) == len(clients))

    async def test_the_last_descriptor_was_its_own(self, short_tmp_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """None is left to notice its end by: it is sent away, and whoever comes later is served."""
        monkeypatch.setattr(peers_module, "ACCEPT_PAUSE_S", 0.02)

        def none_left() -> Any:
            raise OSError(errno.EMFILE, "Too many open files")

        async with watched(short_tmp_dir) as w:
            with monkeypatch.context() as patch:
                patch.setattr("shared.zmtp.hangups.select.epoll", none_left)
                assert await is_cut(w.dial())
            w.dial()
            await until(lambda: len(w.peers.all) == 1)

    async def test_closed_while_it_pauses(self, short_tmp_dir: Path) -> None:
        """It does not listen again, on a number that is somebody else's by now."""
        async with watched(short_tmp_dir) as w:
            w.peers.close()
            w.peers._accept_again()
            client = socket.socket(socket.AF_UNIX)
            w.clients.append(client)
            with pytest.raises(FileNotFoundError):
                client.connect(w.path)


class TestMessages:
    async def test_both_ways_with_libzmq(self, short_tmp_dir: Path) -> None:
        async with watched(short_tmp_dir) as w:
            client = w.dealer()
            for frames in ([b"one"], [b"", b"two", b"x" * 90_000], [b""]):
                client.send_multipart(frames)
            await until(lambda: len(w.messages) == 3)
            assert [frames for _, frames in w.messages] == [[b"one"], [b"", b"two", b"x" * 90_000], [b""]]
            assert w.one.connection.send((b"back", b"y" * 50_000))
            assert client.poll(5_000)
            assert client.recv_multipart() == [b"back", b"y" * 50_000]

    async def test_the_same_routing_id_twice(self, short_tmp_dir: Path) -> None:
        """What a peer calls itself is nothing to us: two connections are two peers."""
        async with watched(short_tmp_dir) as w:
            for text in (b"one", b"other"):
                w.dealer(ROUTING_ID=b"me").send(text)
            await until(lambda: len(w.messages) == 2)
            (one, _), (other, _) = w.messages
            assert one is not other
            for peer in (one, other):
                assert peer.connection.send((b"yours",))
            for client in w.clients:
                assert client.poll(5_000)
                assert client.recv() == b"yours"

    @pytest.mark.parametrize("kind", ["REQ", "ROUTER"])
    async def test_others_that_may_talk_to_a_router(self, short_tmp_dir: Path, kind: str) -> None:
        async with watched(short_tmp_dir) as w:
            client = w.context.socket(getattr(zmq, kind))
            client.setsockopt(zmq.LINGER, 0)
            w.clients.append(client)
            client.connect(f"ipc://{w.path}")
            await until(lambda: w.peers.all and w.one.connection.is_open)

    @pytest.mark.parametrize("kind", ["SUB", "PULL", "REP"])
    async def test_others_that_may_not(self, short_tmp_dir: Path, kind: str) -> None:
        async with watched(short_tmp_dir) as w:
            client = w.context.socket(getattr(zmq, kind))
            client.setsockopt(zmq.RECONNECT_IVL, -1)
            w.clients.append(client)
            client.connect(f"ipc://{w.path}")
            await until(lambda: w.gone)
            assert w.gone[0].connection.is_fault
            assert "does not fit" in w.reasons[0]

    @pytest.mark.parametrize(
        "data",
        [
            b"GET / HTTP/1.1\r\n\r\n",
            b"\x16\x03\x01" + bytes(100),
            GREETING.replace(b"NULL", b"PLAI"),
            GREETING + zmtp_frame(b"a message before READY", more=False),
            GREETING + b"\x04\x09\x05READYxyz",
            GREETING + b"\x06" + (HANDSHAKE_MAX_BYTES * 4).to_bytes(8, "big"),
            GREETING + b"\x02" + (2**63).to_bytes(8, "big"),
        ],
        ids=["http", "tls", "mechanism", "early message", "broken READY", "long command", "long frame"],
    )
    async def test_garbage(self, short_tmp_dir: Path, data: bytes) -> None:
        async with watched(short_tmp_dir) as w:
            other = w.dealer()
            client = w.dial()
            client.send(data)
            await until(lambda: w.gone)
            assert w.gone[0].connection.is_fault
            assert await is_cut(client)
            other.send(b"well")
            await until(lambda: w.messages)

    @pytest.mark.parametrize(
        ("frames", "reason"),
        [
            ([MAX_BYTES + 1], "more than 100000 bytes"),
            ([MAX_BYTES // 2, MAX_BYTES // 2 + 1], "more than 100000 bytes"),
            ([1] * (MAX_FRAMES + 1), "more than 10 frames"),
        ],
        ids=str,
    )
    async def test_bounds(self, short_tmp_dir: Path, frames: list[int], reason: str) -> None:
        """As soon as it shows, by the frame's head: what follows is never read."""
        async with watched(short_tmp_dir) as w:
            client = await w.shaken()
            *before, last = frames
            data = b"".join(zmtp_frame(bytes(size), more=True) for size in before)
            await asyncio.get_running_loop().sock_sendall(client, data + b"\x02" + last.to_bytes(8, "big"))
            if len(frames) <= MAX_FRAMES:
                await until(lambda: w.gone)
            else:
                await asyncio.get_running_loop().sock_sendall(client, b"x")
                await until(lambda: w.gone)
            assert reason in w.reasons[0]
            assert w.gone[0].connection.is_fault

    async def test_as_much_as_may_be(self, short_tmp_dir: Path) -> None:
        async with watched(short_tmp_dir) as w:
            client = w.dealer()
            client.send(bytes(MAX_BYTES))
            client.send_multipart([b"x"] * MAX_FRAMES)
            await until(lambda: len(w.messages) == 2)
            assert w.gone == []

    async def test_a_peer_that_does_not_read(self, short_tmp_dir: Path) -> None:
        """Refused beyond the bound; what was taken arrives whole."""
        async with watched(short_tmp_dir) as w:
            client = await w.shaken()
            await until(lambda: w.peers.all and w.one.connection.is_open)
            sent = 0
            while w.one.connection.send((bytes([sent % 256]) * 10_000,)):
                sent += 1
            assert MAX_UNSENT <= w.one.connection.unsent_bytes <= MAX_UNSENT + 10_100
            loop = asyncio.get_running_loop()
            read = b""
            async with asyncio.timeout(5):
                while len(read) < sent * 10_009:
                    read += await loop.sock_recv(client, 1 << 20)
            assert read[-10_000:] == bytes([(sent - 1) % 256]) * 10_000
            assert w.one.connection.unsent_bytes == 0
            assert w.one.connection.send((b"again",))


class TestGone:
    async def test_closed_by_the_peer(self, short_tmp_dir: Path) -> None:
        async with watched(short_tmp_dir) as w:
            client = w.dial()
            await until(lambda: w.peers.all)
            peer = w.one
            client.close()
            await until(lambda: w.gone)
            assert (w.gone, w.peers.all, peer.connection.is_fault) == ([peer], {}, False)

    async def test_killed(self, short_tmp_dir: Path) -> None:
        """kill -9 is seen at once, without a heartbeat."""
        async with watched(short_tmp_dir) as w:
            code = (
                f"import zmq; s = zmq.Context().socket(zmq.DEALER); s.connect('ipc://{w.path}'); s.send(b'x'); s.recv()"
            )
            child = _python(code)
            await until(lambda: w.messages)
            assert w.one.pid == child.pid
            child.send_signal(signal.SIGKILL)
            await until(lambda: w.gone, timeout_s=2.0)
            child.wait()

    async def test_what_it_said_last_is_heard(self, short_tmp_dir: Path) -> None:
        """Before its end, even where we had more to say and find out by that."""
        async with watched(short_tmp_dir) as w:
            client = await w.shaken()
            await until(lambda: w.peers.all and w.one.connection.is_open)
            peer = w.one
            client.send(zmtp_frame(b"last", more=False) * 3)
            client.close()
            assert not peer.connection.send((b"x",))
            assert peer.connection.is_broken
            assert not w.gone
            await until(lambda: w.gone)
            assert [frames for _, frames in w.messages] == [[b"last"]] * 3

    async def test_cut(self, short_tmp_dir: Path) -> None:
        """One peer is cut, at once; the other does not notice."""
        async with watched(short_tmp_dir) as w:
            one, other = w.dealer(), w.dealer()
            one.send(b"one")
            other.send(b"other")
            await until(lambda: len(w.messages) == 2)
            by_text = {frames[0]: peer for peer, frames in w.messages}
            w.peers.cut(by_text[b"one"])
            assert (w.gone, w.reasons) == ([by_text[b"one"]], ["connection cut"])
            w.peers.cut(by_text[b"one"])
            other.send(b"again")
            await until(lambda: len(w.messages) == 3)
            assert w.messages[2][0] is by_text[b"other"]
            assert len(w.gone) == 1

    async def test_cut_from_its_own_message(self, short_tmp_dir: Path) -> None:
        """What it said behind that is not heard."""
        async with watched(short_tmp_dir) as w:
            w.on_message = lambda peer, frames: w.peers.cut(peer)
            client = await w.shaken()
            client.send(zmtp_frame(b"x", more=False) * 3)
            await until(lambda: w.gone)
            assert await is_cut(client)
            assert len(w.messages) == len(w.gone) == 1

    async def test_cut_of_another_whose_bytes_are_waiting(self, short_tmp_dir: Path) -> None:
        """Whichever comes first cuts the others: nobody of them is heard or told gone twice."""
        async with watched(short_tmp_dir) as w:
            w.on_message = lambda peer, frames: [w.peers.cut(other) for other in list(w.peers.all) if other is not peer]
            clients = [await w.shaken() for _ in range(4)]
            await until(lambda: len(w.peers.all) == 4 and all(p.connection.is_open for p in w.peers.all))
            for client in clients:
                client.send(zmtp_frame(b"x", more=False) * 200)
            await until(lambda: len(w.messages) == 200)
            assert len({id(peer) for peer, _ in w.messages}) == 1
            assert len(w.gone) == len({id(peer) for peer in w.gone}) == 3

    async def test_closed_from_a_message(self, short_tmp_dir: Path) -> None:
        async with watched(short_tmp_dir) as w:
            w.on_message = lambda peer, frames: w.peers.close()
            client = await w.shaken()
            client.send(zmtp_frame(b"x", more=False) * 300)
            assert await is_cut(client)
            assert (len(w.messages), w.gone) == (1, [])

    async def test_in_the_middle_of_a_message(self, short_tmp_dir: Path) -> None:
        async with watched(short_tmp_dir) as w:
            client = await w.shaken()
            client.send(zmtp_frame(b"x", more=True) + zmtp_frame(bytes(50_000), more=False)[:-1])
            await until(lambda: w.peers.all and w.one.connection.unfinished_bytes == 50_000)
            client.close()
            await until(lambda: w.gone)
            assert w.messages == []

    @pytest.mark.parametrize("by", ["peer", "us", "all"])
    async def test_nothing_is_held_of_who_is_gone(self, short_tmp_dir: Path, by: str) -> None:
        """Nor is it left to the collector, which agentd has look as seldom as can be."""
        async with watched(short_tmp_dir) as w:
            gc.collect()
            gc.disable()
            try:
                before = connections()
                client = w.dial()
                await until(lambda: w.peers.all)
                assert connections() == before + 1
                if by == "peer":
                    client.close()
                    await until(lambda: w.gone)
                elif by == "us":
                    w.peers.cut(next(iter(w.peers.all)))
                else:
                    w.peers.close()
                w.gone.clear()
                await until(lambda: connections() == before)
            finally:
                gc.enable()

    async def test_descriptors_are_given_back(self, short_tmp_dir: Path) -> None:
        async with watched(short_tmp_dir) as w:
            before = len(os.listdir("/proc/self/fd"))
            for _ in range(20):
                client = w.dial()
                await until(lambda: w.peers.all)
                client.close()
                await until(lambda: not w.peers.all)
            assert len(w.gone) == 20
            w.clients.clear()
            assert len(os.listdir("/proc/self/fd")) == before
