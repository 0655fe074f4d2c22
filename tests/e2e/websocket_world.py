"""What WebSocket tests need: a real upstream and client (`websockets`), agents that do what messages say, raw ends.

Nothing about expectations may be put here."""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.frames import Frame, Opcode
from websockets.sync.client import ClientConnection, connect
from websockets.sync.server import Server, ServerConnection, serve

from proxy.upgrade import accept_of
from shared.metrics import W_WEBSOCKETS, W_WEBSOCKETS_OPEN
from shared.segment import ProxyView
from tests.e2e.agents import ALLOW, V1Agent, V2Agent
from tests.product import System, proxy_config
from tests.support import wait_until

RESET = b"\1\0\0\0\0\0\0\0"  # for SO_LINGER: close breaks the connection
KEY = b"dGhlIHNhbXBsZSBub25jZQ=="


def decide(event: dict[str, Any]) -> dict[str, Any] | None:
    """What the message itself asks for."""
    if event["event_type"] == "request_headers":
        return {"decision": {"block": {"status": 401, "body": "who?\n"}}} if "/refused" in event["uri"] else ALLOW
    if event["event_type"] == "response_headers":
        return {"decision": {"block": {"status": 451}}} if "/unwanted" in event["uri"] else ALLOW
    if event["event_type"] != "websocket_frame":
        return ALLOW
    word, _, rest = event["body"].decode("latin-1").partition(":")
    match word:
        case "drop":
            return {"websocket_decision": "drop"}
        case "replace":
            return {"websocket_decision": "replace", "body": rest.encode("latin-1")}
        case "close":
            return {"websocket_decision": {"close": {"code": int(rest), "reason": "not here"}}}
        case "spoil":
            return {"websocket_decision": "replace", "body": b"\xff"}
        case "silence":
            return None
    return {"websocket_decision": "allow"}


class Upstream:
    """Echoes; `bye:CODE` closes, `die` breaks the connection. What was said to it, and how each end closed."""

    def __init__(self) -> None:
        self.said: list[Any] = []
        self.closes: list[tuple[int | None, str | None]] = []
        self.begun = 0
        self.server: Server = serve(
            self._serve,
            "127.0.0.1",
            0,
            select_subprotocol=lambda _, offered: "v2" if "v2" in offered else None,  # type: ignore[arg-type,return-value,comparison-overlap]
            max_size=None,
        )
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()
        host, port = self.server.socket.getsockname()
        self.address = f"{host}:{port}"

    def _serve(self, ws: ServerConnection) -> None:
        self.begun += 1
        try:
            for message in ws:
                self.said.append(message)
                if message == "die":
                    ws.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                    ws.socket.close()
                    return
                if isinstance(message, str) and message.startswith("bye:"):
                    ws.close(int(message[4:]), "enough")
                    return
                ws.send(message)
        except ConnectionClosed:
            pass
        finally:
            self.closes.append((ws.close_code, ws.close_reason))

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join(5)


class World:
    def __init__(self, tmp: Path) -> None:
        self.tmp = tmp
        self.upstream = Upstream()
        self.known = 0  # connections that it had accepted when the test began
        frames = ["websocket_frame"]
        self.offers = {
            "f": frames,
            "g": [*frames, "request_headers", "response_headers", "request_complete"],
            "o": frames,
        }
        agents: list[dict[str, Any]] = [
            {"name": "f", "protocol": "zmq-v2", "events": frames},
            {"name": "g", "protocol": "zmq-v2", "events": self.offers["g"]},
            {"name": "o", "protocol": "zmq-v2", "events": frames},
            {"name": "dead", "protocol": "zmq-v2", "events": frames},
            {"name": "v1", "protocol": "zmq-v1", "endpoint": f"ipc://{tmp}/v1.sock", "events": frames},
        ]  # fmt: skip
        for agent in agents:
            if agent["protocol"] == "zmq-v2":
                agent["secret_file"] = str(tmp / "secret")
            agent |= {"timeout_ms": 400, "circuit_breaker": {"failure_threshold": 1000}}
        (tmp / "secret").write_text("secret")
        (tmp / "secret").chmod(0o600)
        chains: dict[str, dict[str, Any]] = {
            "tunnel": {},
            "off": {"websocket": {"enabled": False}},
            "frames": {"filters": [{"agent": "f"}]},
            "gate": {"filters": [{"agent": "g"}]},
            "watched": {"filters": [{"agent": "o", "mode": "observe"}]},
            "dead": {"filters": [{"agent": "dead"}]},
            "open": {"filters": [{"agent": "dead", "failure_mode": "open"}, {"agent": "f", "failure_mode": "open"}]},
            "seq": {"order": "sequential", "filters": [{"agent": "f"}, {"agent": "g"}]},
            "v1": {"filters": [{"agent": "v1"}]},
            "small": {"filters": [{"agent": "f"}], "websocket": {"max_message_bytes": 1000}},
            "slow": {"filters": [{"agent": "f"}], "websocket": {"max_messages_per_s": 3}},
        }
        routes = [
            {"name": name, "upstream": "up", "match": {"path_prefix": f"/{name}"}, **rest}
            for name, rest in chains.items()
        ]
        config = proxy_config(self.upstream.address, routes=routes, agents=agents, server={"graceful_timeout_s": 4})
        self.system = System(config, tmp)
        self.agents: dict[str, Any] = {}

    def __enter__(self) -> "World":
        try:
            self.system.__enter__()
            self._start_agents()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start_agents(self) -> None:
        for name, offered in self.offers.items():
            self.agents[name] = V2Agent(self.system.agents_endpoint, name, offered, decide, secret=b"secret")
        self.agents["v1"] = V1Agent(f"ipc://{self.tmp}/v1.sock", decide)
        self.system.registered()
        for agent in self.agents.values():
            assert agent.ready.wait(10)
        self.probe()

    def probe(self) -> None:
        """Until every agent decides: a worker hears of it a moment after agentd."""
        for name in ("frames", "gate", "v1"):
            wait_until(lambda name=name: self.echoes(name), 10, f"/{name} decides")  # type: ignore[misc]

    def echoes(self, name: str) -> bool:
        try:
            with self.connect(f"/{name}") as ws:
                ws.send("probe")
                return ws.recv(5) == "probe"
        except (ConnectionClosed, InvalidStatus):
            return False

    def connect(self, path: str, **options: Any) -> ClientConnection:
        host, port = self.system.address
        return connect(f"ws://{host}:{port}{path}", proxy=None, max_size=None, close_timeout=3, **options)

    def raw(self, path: str, *more: bytes) -> "Raw":
        return Raw(self.system.address, path, *more)

    def audit(self, **wanted: Any) -> dict[str, Any]:
        """The record with these fields, once it is written."""

        def found() -> dict[str, Any] | None:
            records = [r for r in self.system.audit() if all(r.get(k) == v for k, v in wanted.items())]
            return records[-1] if records else None

        return wait_until(found, 5, f"an audit record with {wanted}")  # type: ignore[return-value]

    def open_now(self) -> int:
        return self._total(W_WEBSOCKETS_OPEN)

    def accepted(self) -> int:
        """How many an upstream has accepted so far."""
        return self._total(W_WEBSOCKETS)

    def _total(self, cell: int) -> int:
        view = ProxyView(str(self.system.runtime / "proxy.seg"))
        try:
            view.attach()
            totals = view.totals()
            return totals.worker[cell] if totals is not None else -1
        finally:
            view.close()

    def __exit__(self, *exc: object) -> None:
        for agent in self.agents.values():
            agent.close()
        self.system.__exit__()
        self.upstream.close()


class Raw:
    """A client of bytes."""

    def __init__(self, address: tuple[str, int], path: str, *more: bytes, behind: bytes = b"") -> None:
        self.socket = socket.create_connection(address, 5)
        lines = [b"GET %b HTTP/1.1" % path.encode(), b"Host: a", b"Upgrade: websocket", b"Connection: Upgrade"]
        lines += [b"Sec-WebSocket-Key: " + KEY, b"Sec-WebSocket-Version: 13", *more]
        self.socket.sendall(b"\r\n".join(lines) + b"\r\n\r\n" + behind)
        self.buffer = b""

    def head(self) -> bytes:
        while b"\r\n\r\n" not in self.buffer:
            self.buffer += self.socket.recv(65536)
        head, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
        return head

    def frame(self) -> tuple[int, bytes]:
        """(opcode, payload) of one short frame."""
        while len(self.buffer) < 2 or len(self.buffer) < 2 + self.buffer[1]:
            data = self.socket.recv(65536)
            if not data:
                raise EOFError(self.buffer)
            self.buffer += data
        size = self.buffer[1]
        opcode, payload = self.buffer[0] & 15, self.buffer[2 : 2 + size]
        self.buffer = self.buffer[2 + size :]
        return opcode, payload

    def send(self, opcode: Opcode, payload: bytes = b"", fin: bool = True) -> None:
        self.socket.sendall(Frame(opcode, payload, fin).serialize(mask=True))

    def __enter__(self) -> "Raw":
        return self

    def __exit__(self, *exc: object) -> None:
        self.socket.close()


ACCEPTS = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: %b\r\n\r\n" % accept_of(KEY)
)


def everything(conn: socket.socket) -> bytes:
    """What comes until the end."""
    pieces = []
    while data := conn.recv(65536):
        pieces.append(data)
    return b"".join(pieces)


@contextlib.contextmanager
def raw_upstream(answer: bytes, rest: Callable[[socket.socket], object]) -> Iterator[str]:
    """One upgrade is answered with these bytes, then it is `rest`'s."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def main() -> None:
            while True:
                conn, _ = server.accept()
                with conn:
                    head = b""
                    while b"\r\n\r\n" not in head and (data := conn.recv(65536)):
                        head += data
                    if head:  # else the proxy only looked whether somebody is there
                        conn.sendall(answer)
                        rest(conn)
                        return

        thread = threading.Thread(target=main)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        thread.join(5)
