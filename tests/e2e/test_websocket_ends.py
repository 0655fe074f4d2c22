"""How WebSocket connections end without anybody's close, and what stands before an upgrade on its connection."""

import socket
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from websockets.frames import CLOSE, TEXT, Frame

from proxy.upgrade import accept_of
from tests.e2e.agents import ALLOW, V2Agent
from tests.e2e.websocket_world import ACCEPTS, KEY, Raw, Upstream, decide, everything, raw_upstream
from tests.product import System, proxy_config
from tests.support import python, wait_until

IDLE_S = 0.4


class World:
    """Agentd and one agent; `/agent` in front of any upstream, everything else a tunnel; idle after 0.4 s."""

    def __init__(
        self, tmp: Path, upstream: str, idle_s: float = IDLE_S, events: Sequence[str] | None = ("websocket_frame",)
    ) -> None:
        config = proxy_config(
            "127.0.0.1:1",
            upstreams=[{"name": "app", "targets": [{"address": upstream}], "idle_timeout_s": idle_s}],
            agents=[{"name": "f", "protocol": "zmq-v2", "timeout_ms": 5000, **({"events": events} if events else {})}],
            routes=[
                {"name": "agent", "upstream": "app", "match": {"path_prefix": "/agent"}, "filters": [{"agent": "f"}]},
                {"name": "tunnel", "upstream": "app"},
            ],
        )
        self.system = System(config, tmp)

    def __enter__(self) -> "World":
        self.system.__enter__()
        self.agent = V2Agent(self.system.agents_endpoint, "f", ["websocket_frame"], decide)
        self.system.registered()
        assert self.agent.ready.wait(10)
        assert self.system.agentd is not None
        self.system.agentd.wait_for("instance ready")  # from now on it is asked
        return self

    def __exit__(self, *exc: object) -> None:
        self.agent.close()
        self.system.__exit__()


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    made = Upstream()
    yield made
    made.close()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream) -> Iterator[World]:
    with World(tmp_path_factory.mktemp("ends"), upstream.address) as made:
        yield made


class TestSilence:
    def test_messages(self, world: World) -> None:
        """Both sides are told; a ping now and then keeps it open."""
        with Raw(world.system.address, "/agent") as raw:
            raw.head()
            assert raw.frame() == (CLOSE, b"\x03\xe9nothing was said for too long")
            assert raw.socket.recv(1) == b""

    def test_a_tunnel(self, world: World) -> None:
        with Raw(world.system.address, "/") as raw:
            raw.head()
            assert everything(raw.socket) == b""


def test_a_hello_in_the_middle_frees_no_message(tmp_path: Path, upstream: Upstream) -> None:
    """Without `events` the latest HELLO says who sees what; an upgrade of before stays with those who decided then."""
    with World(tmp_path, upstream.address, idle_s=60, events=None) as world, Raw(world.system.address, "/agent") as old:
        old.head()
        old.send(TEXT, b"before")
        assert old.frame() == (TEXT, b"before")
        world.agent.close()
        world.agent = V2Agent(world.system.agents_endpoint, "f", ["request_headers"], lambda event: ALLOW)
        assert world.agent.ready.wait(10)

        def is_a_tunnel() -> bool:
            with Raw(world.system.address, "/agent") as new:
                new.head()
                new.send(TEXT, b"unseen")
                return bool(new.frame() == (TEXT, b"unseen"))

        wait_until(is_a_tunnel, 10)
        old.send(TEXT, b"after")
        assert old.frame() == (CLOSE, b"\x03\xf3")


class TestAgentd:
    def test_killed_while_a_message_is_in_question(self, tmp_path: Path, upstream: Upstream) -> None:
        """1011 at once, not when the agent's time is over; a tunnel goes on; with it back, messages pass again."""
        with World(tmp_path, upstream.address, idle_s=60) as world, Raw(world.system.address, "/agent") as old:
            old.head()
            old.send(TEXT, b"before")
            assert old.frame() == (TEXT, b"before")
            self.kill(world)
            world.agent.ready.clear()
            world.system.start_agentd()
            world.system.registered()
            assert world.agent.ready.wait(10)
            wait_until(lambda: self.echoes(world), 10)
            # Nobody knows what was said here before.
            old.send(TEXT, b"after")
            assert old.frame() == (CLOSE, b"\x03\xf3")

    def kill(self, world: World) -> None:
        with Raw(world.system.address, "/agent") as raw, Raw(world.system.address, "/") as tunnel:
            raw.head()
            tunnel.head()
            raw.send(TEXT, b"silence")
            wait_until(lambda: world.agent.seen[-1]["body"] == b"silence")
            assert world.system.agentd is not None
            world.system.agentd.kill()
            assert raw.frame() == (CLOSE, b"\x03\xf3")
            tunnel.send(TEXT, b"on")
            assert tunnel.frame() == (TEXT, b"on")

    def echoes(self, world: World) -> bool:
        with Raw(world.system.address, "/agent") as again:
            again.head()
            again.send(TEXT, b"again")
            return again.frame() == (TEXT, b"again")


class TestBeforeTheUpgrade:
    def test_requests_on_the_same_connection(self, world: World) -> None:
        """Two requests and an upgrade with its first message, all in one segment: answers in order, then frames."""
        with socket.create_connection(world.system.address, 5) as sock:
            plain = b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n"
            upgrade = (
                b"GET /agent HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Key: %b\r\nSec-WebSocket-Version: 13\r\n\r\n" % KEY
            )
            sock.sendall(plain % 1 + plain % 2 + upgrade + Frame(TEXT, b"early").serialize(mask=True))
            got = b""
            while not got.endswith(b"early"):
                data = sock.recv(65536)
                assert data, got
                got += data
            assert got.count(b"HTTP/1.1 426 ") == 2  # `websockets` wants an upgrade
            assert got.index(b"HTTP/1.1 101 ") > got.rindex(b"HTTP/1.1 426 ")

    def test_cut_into_single_bytes(self, world: World) -> None:
        request = b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n"
        request += b"Sec-WebSocket-Key: %b\r\nSec-WebSocket-Version: 13\r\n\r\n" % KEY
        with socket.create_connection(world.system.address, 5) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for byte in request:
                sock.sendall(bytes([byte]))
            assert accept_of(KEY) in sock.recv(65536)


# Workers are forked from this process: the time for a close's answer is 0.3 s in them.
HURRIED = """
import sys
import proxy.client_tunnel
from proxy.cli import main
proxy.client_tunnel.WEBSOCKET_CLOSE_S = 0.3
main(["proxy", *sys.argv[1:]])
"""


class TestAnswersToAClose:
    def test_an_upstream_that_never_answers(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The client does not wait for it for ever."""

        def hurried(*args: str) -> list[str]:
            return python("-c", HURRIED, *args[2:]) if args[:2] == ("-m", "proxy") else python(*args)

        monkeypatch.setattr("tests.product.python", hurried)
        with (
            raw_upstream(ACCEPTS, everything) as address,
            World(tmp_path, address, idle_s=60) as world,
            Raw(world.system.address, "/agent") as raw,
        ):
            raw.head()
            raw.send(CLOSE, b"\x0f\xa1")
            assert raw.frame() == (CLOSE, b"\x03\xe9the close was not answered in time")
            assert raw.socket.recv(1) == b""

    def test_an_upstream_that_goes_on_talking(self, tmp_path: Path) -> None:
        """After the client's close its messages still come, then its own close; then both connections end."""
        ended = threading.Event()

        def serve(conn: socket.socket) -> None:
            while b"\x88" not in conn.recv(65536):
                pass
            conn.sendall(Frame(TEXT, b"but").serialize(mask=False))
            conn.sendall(Frame(CLOSE, b"\x0f\xa2").serialize(mask=False))
            everything(conn)
            ended.set()

        with raw_upstream(ACCEPTS, serve) as address, World(tmp_path, address) as world:
            with Raw(world.system.address, "/agent") as raw:
                raw.head()
                raw.send(CLOSE, b"\x0f\xa1")
                assert [raw.frame(), raw.frame()] == [(TEXT, b"but"), (CLOSE, b"\x0f\xa2")]
                assert raw.socket.recv(1) == b""
            assert ended.wait(5)
            kinds = [(event["client_to_server"], event["opcode"]) for event in world.agent.seen]
            assert kinds == [(True, "close"), (False, "text")]
