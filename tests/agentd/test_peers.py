"""agentd/peers.py: connections are known by the kernel's word, cut alone, and never confused."""

import asyncio
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import zmq

from agentd.peers import MemoryGuard, Peer, Peers, Suspect, inode_of, reopen, resident_bytes, trim, unread_bytes
from shared.clock import MS
from shared.defaults import MEMORY_LOOK_MS, MEMORY_QUIET_MS, MEMORY_SETTLE_MS
from shared.pump import Pump, receive_frames
from tests.support import until

_ACCEPTED = 0x20  # zmq.EVENT_ACCEPTED on the wire of the monitor


class Watched:
    """A ROUTER with its Peers, and what they told."""

    def __init__(self, path: Path, **options: Any) -> None:
        self.path = str(path)
        self.gone: list[Peer] = []
        self.refused: list[str] = []
        self.messages: list[list[zmq.Frame]] = []
        loop = asyncio.get_running_loop()
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.router = self.context.socket(zmq.ROUTER)
        self.router.setsockopt(zmq.LINGER, 0)
        options.setdefault("may_connect", lambda uid: True)
        self.peers = Peers(
            self.router,
            loop,
            self.path,
            on_gone=self.gone.append,
            on_refused=lambda peer, why: self.refused.append(why),
            **options,
        )
        self.router.bind(f"ipc://{self.path}")
        self.pump = Pump(
            self.router,
            loop,
            self.messages.append,
            again=zmq.Again,
            error=zmq.ZMQError,
            receive=receive_frames(self.router),
        )
        self.clients: list[Any] = []

    def dial(self) -> socket.socket:
        """A connection that speaks no ZMTP."""
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(5)
        client.connect(self.path)
        self.clients.append(client)
        return client

    def dealer(self) -> "zmq.Socket[bytes]":
        client = self.context.socket(zmq.DEALER)
        client.setsockopt(zmq.LINGER, 0)
        client.setsockopt(zmq.RECONNECT_IVL, -1)
        client.connect(f"ipc://{self.path}")
        self.clients.append(client)
        return client

    @property
    def one(self) -> Peer:
        (peer,) = self.peers.by_fd.values()
        return peer

    def close(self) -> None:
        for client in self.clients:
            client.close()
        self.messages.clear()
        self.peers.close()
        self.pump.close()
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


class TestAccept:
    async def test_who_it_is(self, short_tmp_dir: Path) -> None:
        async with watched(short_tmp_dir) as w:
            w.dial()
            await until(lambda: w.peers.by_fd)
            assert (w.one.uid, w.one.gid, w.one.pid) == (os.getuid(), os.getgid(), os.getpid())
            assert w.one.address == f"localhost:{os.getuid()}:{os.getgid()}:{os.getpid()}"

    async def test_other_users_are_cut_before_a_word(self, short_tmp_dir: Path) -> None:
        async with watched(short_tmp_dir, may_connect=lambda uid: uid != os.getuid()) as w:
            client = w.dial()
            await until(lambda: w.refused)
            greeting = b""
            while data := client.recv(99):
                greeting += data
            assert len(greeting) <= 64  # libzmq's own, no message
            assert (w.peers.by_fd, w.peers.refused, w.gone) == ({}, 1, [])

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
                await until(lambda: w.peers.by_fd)
                assert (w.one.uid, w.one.gid, w.one.pid) == (65534, 65534, child.pid)
            finally:
                child.communicate(b"\n")
            await until(lambda: w.gone)

    async def test_too_many(self, short_tmp_dir: Path) -> None:
        async with watched(short_tmp_dir, max_peers=2) as w:
            for _ in range(3):
                w.dial()
            await until(lambda: w.refused)
            assert (w.refused, len(w.peers.by_fd)) == (["too many connections"], 2)

    async def test_a_number_that_is_no_connection_of_ours(self, short_tmp_dir: Path) -> None:
        """The announced fd was closed and given to something else before we looked."""
        async with watched(short_tmp_dir, may_connect=lambda uid: False) as w:
            ours, theirs = socket.socketpair()
            with ours, theirs:
                for fd in (ours.fileno(), 10_000_000, 0):
                    w.peers._event([struct.pack("=hi", _ACCEPTED, fd)])
                theirs.send(b"still here")
                assert ours.recv(99) == b"still here"
            assert (w.peers.by_fd, w.peers.refused) == ({}, 0)


class TestGone:
    async def test_closed_by_the_peer(self, short_tmp_dir: Path) -> None:
        async with watched(short_tmp_dir) as w:
            client = w.dial()
            await until(lambda: w.peers.by_fd)
            peer = w.one
            client.close()
            await until(lambda: w.gone)
            assert (w.gone, w.peers.by_fd) == ([peer], {})

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

    async def test_cut(self, short_tmp_dir: Path) -> None:
        """One peer is cut; the other does not notice."""
        async with watched(short_tmp_dir) as w:
            one, other = w.dealer(), w.dealer()
            one.send(b"one")
            other.send(b"other")
            await until(lambda: len(w.messages) == 2)
            by_text = {frames[1].bytes: w.peers.of(frames[1]) for frames in w.messages}
            w.peers.cut(by_text[b"one"])
            await until(lambda: w.gone)
            assert w.gone == [by_text[b"one"]]
            other.send(b"again")
            await until(lambda: len(w.messages) == 3)
            assert w.peers.of(w.messages[2][1]) is by_text[b"other"]

    async def test_cut_of_what_is_gone_already(self, short_tmp_dir: Path) -> None:
        """Its number belongs to somebody else by now, who must not be touched."""
        async with watched(short_tmp_dir) as w:
            ours, theirs = socket.socketpair()
            with ours, theirs:
                peer = Peer(ours.fileno(), 1, 0, 0, 0, 0)
                w.peers.by_fd[peer.fd] = peer
                w.peers.cut(peer)
                assert w.gone == [peer]
                theirs.send(b"still here")
                assert ours.recv(99) == b"still here"

    async def test_many_times_the_same_number(self, short_tmp_dir: Path) -> None:
        """libzmq gives the next connection the number of the last: each is its own peer."""
        async with watched(short_tmp_dir) as w:
            seen: list[Peer] = []
            for _ in range(20):
                client = w.dial()
                await until(lambda: w.peers.by_fd)
                seen.append(w.one)
                client.close()
                await until(lambda: not w.peers.by_fd)
            assert w.gone == seen
            assert len({peer.inode for peer in seen}) == 20
            assert len({peer.fd for peer in seen}) < 20

    async def test_replaced_without_a_word(self, short_tmp_dir: Path) -> None:
        """ACCEPTED for a number that we still know: its former holder is gone."""
        async with watched(short_tmp_dir) as w:
            w.dial()
            await until(lambda: w.peers.by_fd)
            old = w.one
            w.peers._event([struct.pack("=hi", _ACCEPTED, old.fd)])
            assert w.gone == [old]
            assert w.one is not old


class TestOf:
    async def test_sender_of_a_message(self, short_tmp_dir: Path) -> None:
        async with watched(short_tmp_dir) as w:
            w.dealer().send(b"x")
            await until(lambda: w.messages)
            assert w.peers.of(w.messages[0][1]) is w.one

    async def test_message_of_a_connection_that_is_gone(self, short_tmp_dir: Path) -> None:
        async with watched(short_tmp_dir) as w:
            w.dealer().send(b"x")
            await until(lambda: w.messages)
            w.peers.cut(w.one)
            await until(lambda: w.gone)
            assert w.peers.of(w.messages[0][1]) is None

    async def test_message_whose_number_changed_hands(self, short_tmp_dir: Path) -> None:
        async with watched(short_tmp_dir) as w:
            w.dealer().send(b"x")
            await until(lambda: w.messages)
            peer = w.one
            w.peers.by_fd[peer.fd] = Peer(peer.fd, 7, peer.uid, peer.gid, peer.pid + 1, 0)
            assert w.peers.of(w.messages[0][1]) is None

    async def test_a_frame_of_ours(self, short_tmp_dir: Path) -> None:
        async with watched(short_tmp_dir) as w:
            assert w.peers.of(zmq.Frame(b"x")) is None


class TestDescriptors:
    def test_unread(self) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            inode = inode_of(ours.fileno())
            assert unread_bytes(ours.fileno(), inode) == 0
            theirs.send(b"12345")
            assert unread_bytes(ours.fileno(), inode) == 5
            assert unread_bytes(ours.fileno(), inode + 1) == 0
        assert unread_bytes(-1, inode) == 0
        assert inode_of(-1) == 0

    def test_reopen_leaks_nothing(self) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            before = os.listdir("/proc/self/fd")
            assert reopen(ours.fileno(), 1) is None
            again = reopen(ours.fileno(), inode_of(ours.fileno()))
            assert again is not None
            again.close()
            assert os.listdir("/proc/self/fd") == before

    def test_resident(self) -> None:
        assert 1 << 20 < resident_bytes() < 1 << 40


MIB = 1 << 20


class Guarded:
    """A guard with a hand on the memory."""

    def __init__(self) -> None:
        self.rss = 100 * MIB
        self.accounted = 0
        self.suspects: dict[str, Suspect] = {}
        self.cut: list[str] = []
        self.given_back = 0
        self.guard = MemoryGuard(
            slack_bytes=64 * MIB,
            rss_bytes=lambda: self.rss,
            accounted_bytes=lambda: self.accounted,
            give_back=self.give_back,
        )
        self.guard.watch(lambda: self.suspects.values())
        self.now = 1_000_000_000_000

    def give_back(self) -> None:
        self.given_back += 1

    def peer(self, name: str, unread: int = 200_000, seen_ms_ago: int = 900) -> None:
        """As it looks from now on."""

        def cut() -> None:
            self.cut.append(name)
            del self.suspects[name]

        self.suspects[name] = Suspect(unread, self.now - seen_ms_ago * MS, cut, name)

    def look(self, after_ms: int = MEMORY_LOOK_MS) -> None:
        self.now += after_ms * MS
        self.guard.look(self.now)

    def looks(self, ms: int) -> None:
        """For so long."""
        for _ in range(ms // MEMORY_LOOK_MS):
            self.look()


@pytest.fixture
def guarded() -> Guarded:
    made = Guarded()
    made.look()
    return made


class TestMemoryGuard:
    def test_growth_with_a_suspect(self, guarded: Guarded) -> None:
        guarded.peer("endless")
        guarded.peer("idle", unread=0)
        guarded.looks(200)
        assert guarded.cut == []
        guarded.rss += 65 * MIB
        guarded.looks(MEMORY_QUIET_MS + 2 * MEMORY_LOOK_MS)
        assert (guarded.cut, guarded.guard.cuts) == (["endless"], 1)

    def test_a_large_message_counts_from_its_beginning(self, guarded: Guarded) -> None:
        """A peer that was idle for long and sends a large message now is not the one that has sent for longer."""
        guarded.rss += 40 * MIB
        guarded.peer("endless", seen_ms_ago=100)
        guarded.looks(60)
        guarded.rss += 40 * MIB
        guarded.peer("large", seen_ms_ago=5_000)
        guarded.look()
        assert guarded.cut == ["endless"]

    def test_a_busy_peer_is_no_suspect(self, guarded: Guarded) -> None:
        """Whoever finishes messages sends a lot, but none without end."""
        guarded.rss += 70 * MIB
        for _ in range(20):
            guarded.peer("busy", seen_ms_ago=10)
            guarded.look()
        assert guarded.cut == []

    def test_one_at_a_time_unless_it_is_too_much(self, guarded: Guarded) -> None:
        for name in ("one", "two", "three"):
            guarded.peer(name)
        guarded.rss += 70 * MIB
        guarded.looks(80)
        assert guarded.cut == ["one"]
        guarded.look()  # what was freed may be on its way
        assert guarded.cut == ["one"]
        guarded.rss += 70 * MIB
        guarded.look()
        assert guarded.cut == ["one", "two", "three"]

    def test_growth_goes_on_after_a_cut(self, guarded: Guarded) -> None:
        guarded.peer("one")
        guarded.peer("two")
        guarded.rss += 70 * MIB
        guarded.looks(80)
        guarded.looks(MEMORY_QUIET_MS + MEMORY_LOOK_MS)
        assert guarded.cut == ["one", "two"]

    def test_what_was_freed_is_given_back(self, guarded: Guarded) -> None:
        guarded.peer("one")
        guarded.rss += 70 * MIB
        guarded.looks(200)
        assert (guarded.cut, guarded.given_back) == (["one"], 1)

    def test_growth_that_is_accounted_for(self, guarded: Guarded) -> None:
        guarded.peer("slow")
        guarded.rss += 200 * MIB
        guarded.accounted = 190 * MIB
        guarded.looks(400)
        assert guarded.cut == []

    def test_lasting_growth_without_a_suspect_is_ours(self, guarded: Guarded) -> None:
        """The new level becomes the ground: the next 64 MiB count from there."""
        guarded.rss += 100 * MIB
        guarded.looks(MEMORY_SETTLE_MS + 100)
        guarded.peer("endless")
        guarded.rss += 60 * MIB
        guarded.looks(200)
        assert guarded.cut == []
        guarded.rss += 5 * MIB
        guarded.looks(200)
        assert guarded.cut == ["endless"]

    def test_a_pause_between_two_of_them_moves_no_ground(self, guarded: Guarded) -> None:
        """Whoever dials again after a cut does not raise the level at which it is cut."""
        guarded.rss += 100 * MIB
        guarded.looks(MEMORY_SETTLE_MS // 2)
        guarded.peer("endless")
        guarded.looks(MEMORY_QUIET_MS + 2 * MEMORY_LOOK_MS)
        assert guarded.cut == ["endless"]

    def test_ground_sinks_with_memory_given_back(self, guarded: Guarded) -> None:
        guarded.rss -= 50 * MIB
        guarded.look()
        guarded.peer("endless")
        guarded.rss += 65 * MIB
        guarded.looks(100)
        assert guarded.cut == ["endless"]

    def test_nobody_is_blamed_for_our_standing_still(self, guarded: Guarded) -> None:
        """After a pause of ours everybody has unread bytes and an old last message; the next looks decide."""
        guarded.rss += 100 * MIB
        guarded.peer("anybody", seen_ms_ago=0)
        guarded.look(after_ms=5_000)
        guarded.look()
        assert guarded.cut == []
        guarded.looks(MEMORY_QUIET_MS + MEMORY_LOOK_MS)
        assert guarded.cut == ["anybody"]

    def test_forgotten_sources_are_not_asked(self) -> None:
        guard = MemoryGuard()
        source: Callable[[], list[Suspect]] = list
        guard.watch(source)
        guard.forget(source)
        guard.look(1)

    def test_trim(self) -> None:
        trim()
