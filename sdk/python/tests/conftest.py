"""A scripted agentd for the SDK's tests: a real ROUTER over ipc that says what a test tells it to."""

import asyncio
import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from typing import Any

import orjson
import pytest
import zmq
import zmq.asyncio

from wardgate_agent import wire

PATIENCE_S = 10.0


class FakeAgentd:
    """Expects and sends messages; `peer` is whoever spoke last."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.peer = b""
        self.answers_pings = True
        self._context: zmq.asyncio.Context | None = None
        self._socket: Any = None

    def start(self) -> None:
        self._context = zmq.asyncio.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.bind(self.endpoint)
        self.endpoint = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)

    def stop(self) -> None:
        """Vanish, as a killed process does."""
        if self._socket is not None and self._context is not None:
            self._socket.close(0)
            self._context.term()
            self._socket = None
            if self.endpoint.startswith("ipc://"):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self.endpoint.removeprefix("ipc://"))

    async def receive(self) -> list[bytes]:
        async with asyncio.timeout(PATIENCE_S):
            peer, *frames = await self._socket.recv_multipart()
        self.peer = peer
        return frames

    async def expect(self, verb: bytes, skip: tuple[bytes, ...] = ()) -> list[bytes]:
        """The frames after `verb` of the next message; only messages of `skip` may come before it."""
        while True:
            frames = await self.receive()
            if frames[0] == wire.PING and self.answers_pings:
                await self.send(wire.PONG, *frames[1:])
            if frames[0] == verb:
                return frames[1:]
            assert frames[0] in skip, f"expected {verb!r}, got {frames}"

    async def expect_json(self, verb: bytes, skip: tuple[bytes, ...] = ()) -> Any:
        return orjson.loads((await self.expect(verb, skip))[0])

    async def send(self, verb: bytes, *frames: Any) -> None:
        """A message to the last speaker; what is not bytes is sent as JSON."""
        body = [frame if isinstance(frame, bytes) else orjson.dumps(frame) for frame in frames]
        await self._socket.send_multipart([self.peer, verb, *body])

    async def accept(self, config: Any = None, heartbeat_ms: int = 1000, skip: tuple[bytes, ...] = ()) -> Any:
        """HELLO to CONFIG_RESULT; the HELLO."""
        hello = await self.expect_json(wire.HELLO, skip)
        await self.send(wire.WELCOME, {"protocol": 2, "session": "s", "heartbeat_ms": heartbeat_ms})
        await self.send(wire.CONFIG, {"config": config, "config_version": "1", "timeout_ms": 200})
        result = await self.expect_json(wire.CONFIG_RESULT, (wire.HELLO,))
        assert result == {"config_version": "1", "accepted": True}, result
        return hello

    async def ask(self, *events: Any, bodies: tuple[bytes, ...] = ()) -> Any:
        """Send EVENTS and wait for all of their verdicts: {call: verdict}."""
        await self.send(wire.EVENTS, list(events), *bodies)
        got: dict[str, Any] = {}
        while len(got) < len(events):
            frames = await self.expect(wire.VERDICTS, (wire.PING,))
            got |= {entry[0]: entry[1] for entry in orjson.loads(frames[0])}
        return got


@pytest.fixture
def short_dir() -> Iterator[str]:
    """A directory whose path leaves room for a unix socket's name."""
    path = tempfile.mkdtemp(prefix="wg-", dir="/tmp")
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
async def agentd(short_dir: str) -> AsyncIterator[FakeAgentd]:
    """A scripted agentd that listens."""
    fake = FakeAgentd(f"ipc://{short_dir}/v2")
    fake.start()
    yield fake
    fake.stop()


class Process:
    """A child process whose standard error is collected."""

    def __init__(self, child: asyncio.subprocess.Process) -> None:
        self.child = child

    async def exit_code(self) -> int:
        async with asyncio.timeout(PATIENCE_S):
            return await self.child.wait()

    async def output(self) -> str:
        async with asyncio.timeout(PATIENCE_S):
            out, err = await self.child.communicate()
        return (out + err).decode()


@pytest.fixture
async def agentd_over_tcp() -> AsyncIterator[FakeAgentd]:
    """The same at a port of this machine."""
    fake = FakeAgentd("tcp://127.0.0.1:*")
    fake.start()
    yield fake
    fake.stop()


@pytest.fixture
async def spawn() -> AsyncIterator[Any]:
    """Start Python with the given arguments; what is left at the end of the test is killed."""
    children: list[asyncio.subprocess.Process] = []

    async def start(*argv: str, cwd: str | None = None, env: dict[str, str] | None = None) -> Process:
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            *argv,
            cwd=cwd,
            env={**os.environ, **(env or {})},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        children.append(child)
        return Process(child)

    yield start
    for child in children:
        if child.returncode is None:
            child.kill()
        await child.communicate()
        child._transport.close()  # type: ignore[attr-defined]


def request_event(call: str = "c1", uri: str = "/", **headers: str) -> list[Any]:
    """An entry of EVENTS about a request's head."""
    event = {
        "event_type": "request_headers",
        "metadata": {"correlation_id": "cid-1", "client_ip": "127.0.0.1", "route_id": "r"},
        "method": "GET",
        "uri": uri,
        "headers": {name.replace("_", "-"): [value] for name, value in headers.items()},
        "has_body": False,
    }
    return [call, 1000, event]


@pytest.fixture
def make_event() -> Any:
    return request_event
