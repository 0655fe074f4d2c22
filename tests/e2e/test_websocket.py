"""WebSocket through the real proxy: a real client and upstream (`websockets`), real agents, messages and tunnels."""

import contextlib
import os
import re
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.frames import CONT, PING, TEXT, Frame

from proxy.upgrade import accept_of
from tests.e2e.websocket_world import ACCEPTS, KEY, RESET, Raw, World, everything, raw_upstream
from tests.product import System, proxy_config
from tests.support import wait_until


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with World(tmp_path_factory.mktemp("websocket")) as made:
        yield made


@pytest.fixture
def world(whole: World) -> World:
    wait_until(lambda: whole.open_now() == 0, 10, "all of the test before is closed")
    for agent in whole.agents.values():
        agent.seen.clear()
        agent.cancelled.clear()
    upstream = whole.upstream
    wait_until(lambda: upstream.begun >= whole.accepted() - whole.known, 10, "what it left at once has begun there")
    wait_until(lambda: len(upstream.closes) == upstream.begun, 10, "the upstream's ends of it, too")
    upstream.begun = 0
    whole.known = whole.accepted()
    upstream.said.clear()
    upstream.closes.clear()
    return whole


LOOKED_AT = ["frames", "watched", "seq", "v1", "open"]


class TestMessages:
    @pytest.mark.parametrize("name", ["tunnel", *LOOKED_AT])
    @pytest.mark.parametrize("compression", ["deflate", None])
    def test_all_kinds_and_sizes(self, world: World, name: str, compression: str | None) -> None:
        with world.connect(f"/{name}", compression=compression) as ws:
            for message in ("grüße", b"\x00\xff", "", b"", "x" * 125, "y" * 126, b"z" * 65_536, os.urandom(900_000)):
                ws.send(message)
                assert ws.recv(5) == message
            ws.send(["in ", "three ", "pieces"])
            assert ws.recv(5) == "in three pieces"

    def test_what_agents_see(self, world: World) -> None:
        with world.connect("/frames", compression="deflate") as ws:
            ws.send(["plain ", "payload"])
            assert ws.recv(5) == "plain payload"
            ws.ping().wait(5)
        seen = wait_until(lambda: s if len(s := world.agents["f"].seen) == 3 else None)
        up, down, closed = ({k: v for k, v in e.items() if k != "correlation_id"} for e in seen)
        common = {"event_type": "websocket_frame", "fin": True, "route_id": "frames", "client_ip": "127.0.0.1"}
        text = {**common, "opcode": "text", "frame_index": 0, "body": b"plain payload"}
        assert up == {**text, "client_to_server": True}
        assert down == {**text, "client_to_server": False}
        assert closed == {**common, "opcode": "close", "client_to_server": True, "frame_index": 1, "body": b"\x03\xe8"}
        assert len({event["correlation_id"] for event in seen}) == 1

    def test_drop_and_replace_both_ways(self, world: World) -> None:
        with world.connect("/frames") as ws:
            ws.send("drop")
            ws.send("replace:replace:new")
            assert ws.recv(5) == "new"  # replaced on its way up, and again on its way down
        assert world.upstream.said == ["replace:new"]

    def test_in_sequence_each_sees_what_the_one_before_made(self, world: World) -> None:
        with world.connect("/seq") as ws:
            ws.send("replace:replace:a")
            assert ws.recv(5) == "a"
        assert [e["body"] for e in world.agents["f"].seen][:2] == [b"replace:replace:a", b"a"]
        assert next(e["body"] for e in world.agents["g"].seen if e["event_type"] == "websocket_frame") == b"replace:a"

    def test_an_observer_changes_nothing(self, world: World) -> None:
        with world.connect("/watched") as ws:
            for text in ("drop", "close:4001", "silence"):
                ws.send(text)
                assert ws.recv(5) == text
        wait_until(lambda: len(world.agents["o"].seen) >= 6)

    def test_many_in_flight_keep_their_order(self, world: World) -> None:
        with world.connect("/frames") as ws:
            for i in range(200):
                ws.send(f"{i}")
            assert [ws.recv(5) for _ in range(200)] == [f"{i}" for i in range(200)]

    def test_subprotocol_and_headers_of_the_handshake(self, world: World) -> None:
        with world.connect("/frames", subprotocols=["v1", "v2"]) as ws:
            assert ws.subprotocol == "v2"
            assert ws.response is not None
            assert "x-correlation-id" in ws.response.headers

    def test_bytes_right_behind_the_head(self, world: World) -> None:
        for path in ("/tunnel", "/frames"):
            with Raw(world.system.address, path, behind=Frame(TEXT, b"early").serialize(mask=True)) as raw:
                assert b" 101 " in raw.head()
                assert raw.frame() == (TEXT, b"early")

    def test_fragments_with_a_ping_between(self, world: World) -> None:
        with world.raw("/frames") as raw:
            raw.head()
            raw.send(TEXT, b"a", False)
            raw.send(PING, b"p")
            raw.send(CONT, b"b")
            assert [raw.frame(), raw.frame()] == [(10, b"p"), (TEXT, b"ab")]

    def test_extensions_that_nobody_can_look_into_are_not_negotiated(self, world: World) -> None:
        with world.raw("/frames", b"Sec-WebSocket-Extensions: x-secret, permessage-deflate") as raw:
            assert b"sec-websocket-extensions: permessage-deflate" in raw.head().lower()


class TestClosing:
    @pytest.mark.parametrize("name", ["tunnel", *LOOKED_AT])
    def test_of_the_client(self, world: World, name: str) -> None:
        with world.connect(f"/{name}") as ws:
            ws.close(4001, "done")
        wait_until(lambda: world.upstream.closes == [(4001, "done")])
        assert (ws.close_code, ws.close_reason) == (4001, "done")

    @pytest.mark.parametrize("name", ["tunnel", *LOOKED_AT])
    def test_of_the_upstream(self, world: World, name: str) -> None:
        with world.connect(f"/{name}") as ws:
            ws.send("bye:4002")
            with pytest.raises(ConnectionClosed):
                ws.recv(5)
        assert (ws.close_code, ws.close_reason) == (4002, "enough")
        wait_until(lambda: world.upstream.closes == [(4002, "enough")])

    def test_an_agent_closes_both(self, world: World) -> None:
        with world.connect("/frames") as ws:
            ws.send("close:4008")
            with pytest.raises(ConnectionClosed):
                ws.recv(5)
        assert (ws.close_code, ws.close_reason) == (4008, "not here")
        wait_until(lambda: world.upstream.closes == [(4008, "not here")])
        assert world.upstream.said == []
        record = world.audit(source="worker", status=4008)
        assert (record["decision"], record["decided_by"], record["phase"]) == ("block", "f", "websocket_frame")

    @pytest.mark.parametrize(("name", "reason"), [("dead", "disconnected"), ("frames", "timeout")])
    def test_a_failure_is_1011(self, world: World, name: str, reason: str) -> None:
        with world.connect(f"/{name}") as ws:
            ws.send("silence")
            with pytest.raises(ConnectionClosed):
                ws.recv(5)
        assert ws.close_code == 1011
        wait_until(lambda: [code for code, _ in world.upstream.closes] == [1011])
        record = world.audit(source="worker", status=1011, route=name)
        assert (record["decision"], record["reason"]) == ("fail", reason)

    def test_text_replaced_by_what_is_none(self, world: World) -> None:
        with world.connect("/frames") as ws:
            ws.send("spoil")
            with pytest.raises(ConnectionClosed):
                ws.recv(5)
        assert ws.close_code == 1011
        with world.connect("/open") as ws:
            ws.send("spoil")
            assert ws.recv(5) == "spoil"

    def test_a_message_too_long(self, world: World) -> None:
        with world.connect("/small") as ws:
            ws.send("x" * 1000)
            assert ws.recv(5) == "x" * 1000
            ws.send("x" * 1001)
            with pytest.raises(ConnectionClosed):
                ws.recv(5)
        assert ws.close_code == 1009
        wait_until(lambda: [code for code, _ in world.upstream.closes] == [1001])
        assert world.audit(source="worker", status=1009)["decision"] == "refused"

    def test_too_many_messages(self, world: World) -> None:
        with world.connect("/slow") as ws:
            for i in range(20):
                with contextlib.suppress(ConnectionClosed):
                    ws.send(f"{i}")
            with pytest.raises(ConnectionClosed):
                while True:
                    ws.recv(5)
        assert ws.close_code == 1008

    @pytest.mark.parametrize("name", ["tunnel", "frames"])
    def test_an_upstream_that_breaks(self, world: World, name: str) -> None:
        with world.connect(f"/{name}") as ws:
            ws.send("die")
            with pytest.raises(ConnectionClosed):
                ws.recv(5)
        assert ws.close_code == (1006 if name == "tunnel" else 1001)

    @pytest.mark.parametrize("name", ["tunnel", "frames"])
    def test_a_client_that_breaks(self, world: World, name: str) -> None:
        with world.raw(f"/{name}") as raw:
            raw.head()
            if name == "frames":
                raw.send(TEXT, b"silence")
                wait_until(lambda: world.agents["f"].seen)
            raw.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        wait_until(lambda: [code for code, _ in world.upstream.closes] == [1006 if name == "tunnel" else 1001])
        if name == "frames":
            wait_until(lambda: [reason for _, reason in world.agents["f"].cancelled] == ["client_gone"])

    def test_the_ends_of_a_tunnel_close_one_by_one(self, tmp_path: Path) -> None:
        """Each hears the other to the end, and a byte of that is no frame to anybody."""
        ends: list[bytes] = []

        def serve_raw(conn: socket.socket) -> None:
            ends.append(everything(conn))
            conn.sendall(b"and " + bytes(300_000))

        with (
            raw_upstream(ACCEPTS + b"hello", serve_raw) as address,
            System(proxy_config(address), tmp_path) as system,
            Raw(system.address, "/") as raw,
        ):
            raw.head()
            raw.socket.sendall(bytes(300_000))
            raw.socket.shutdown(socket.SHUT_WR)
            assert raw.buffer + everything(raw.socket) == b"helloand " + bytes(300_000)
        assert ends == [bytes(300_000)]


class TestHandshake:
    def test_switched_off(self, world: World) -> None:
        with pytest.raises(InvalidStatus) as refused:
            world.connect("/off")
        assert refused.value.response.status_code == 403

    @pytest.mark.parametrize(("path", "status"), [("/gate/refused", 401), ("/gate/unwanted", 451)])
    def test_refused_by_an_agent(self, world: World, path: str, status: int) -> None:
        """As an ordinary response, in either phase."""
        with pytest.raises(InvalidStatus) as refused:
            world.connect(path)
        assert refused.value.response.status_code == status
        assert refused.value.response.headers["connection"] == "close"

    def test_agents_see_the_101_and_how_it_ended(self, world: World) -> None:
        def seen() -> list[dict[str, Any]]:  # what an earlier test's request had to say may come late
            return [e for e in list(world.agents["g"].seen) if e.get("uri") == "/gate/ended"]

        with world.connect("/gate/ended", compression=None) as ws:
            ws.send("hello")
            assert ws.recv(5) == "hello"
        done = wait_until(lambda: [e for e in seen() if e["event_type"] == "request_complete"])[0]
        assert [e["event_type"] for e in seen()] == ["request_headers", "response_headers", "request_complete"]
        assert seen()[1]["status"] == 101
        assert (done["status"], done["upstream_attempts"], "error" in done) == (101, 1, False)
        assert done["request_body_size"] == (6 + 5) + (6 + 2)
        assert done["response_body_size"] == (2 + 5) + (2 + 2)

    def test_an_upstream_that_answers_otherwise(self, world: World) -> None:
        """Its answer is relayed as it is."""
        with world.raw("/tunnel", b"Origin: x") as raw:
            assert b" 101 " in raw.head()
        host, port = world.system.address
        with socket.create_connection((host, port), 5) as plain:
            plain.sendall(b"GET /tunnel HTTP/1.1\r\nHost: a\r\n\r\n")
            assert b" 426 " in plain.recv(65536)  # `websockets` wants an upgrade

    def test_a_101_that_lies(self, world: World, tmp_path: Path) -> None:
        """A wrong Sec-WebSocket-Accept: 502, and no byte of what follows."""
        lie = ACCEPTS.replace(accept_of(KEY), accept_of(b"x" * 22 + b"==")) + b"\x81\x02no"
        with (
            raw_upstream(lie, everything) as address,
            System(proxy_config(address), tmp_path) as system,
            Raw(system.address, "/") as raw,
        ):
            assert b" 502 " in raw.head()
            assert b"bad upgrade" in raw.buffer + everything(raw.socket)


class TestPressure:
    @pytest.mark.parametrize("name", ["tunnel", "frames"])
    def test_a_client_that_does_not_read_stops_the_upstream(self, world: World, name: str) -> None:
        """16 MiB of echo for a client that reads nothing: they wait where they came from, not in the worker."""
        total = 64
        with world.connect(f"/{name}", compression=None, max_queue=1) as ws:
            sender = threading.Thread(target=lambda: [ws.send(b"x" * 262_144) for _ in range(total)])
            sender.start()
            for _ in range(total):
                assert len(ws.recv(10)) == 262_144
            sender.join(10)


class TestDrain:
    def test_open_ones_are_closed_with_1001(self, tmp_path: Path) -> None:
        """After SIGTERM they go on for the graceful timeout, then both sides are told."""
        with World(tmp_path) as world, world.connect("/tunnel") as tunnel, world.connect("/frames") as frames:
            world.system.child.signal(signal.SIGTERM)
            wait_until(lambda: "draining" in world.system.child.output())
            for ws in (tunnel, frames):
                ws.send("still there")
                assert ws.recv(5) == "still there"
            with pytest.raises(ConnectionClosed):
                frames.recv(10)
            assert (frames.close_code, frames.close_reason) == (1001, "the proxy stops")
            with pytest.raises(ConnectionClosed):
                tunnel.recv(10)
            wait_until(lambda: (1001, "the proxy stops") in world.upstream.closes)
            assert re.search(r"connections cut", world.system.child.output())
            assert world.system.child.ended(10) == 0
