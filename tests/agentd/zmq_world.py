"""A lane, a transport and raw agents in one event loop, for the tests of the ZeroMQ transports."""

import asyncio
import json
import socket
import struct
import tempfile
from collections.abc import Callable, Iterable, Mapping
from shutil import rmtree
from typing import Any

import zmq

from agentd.alarm import Alarm
from agentd.call import Asked, Call
from agentd.lane import Lane
from agentd.transport.pump import Pump
from agentd.transport.zmq_dealer import V2Transport
from agentd.transport.zmq_rep import V1Transport
from shared.clock import MS, now_ns
from shared.config.schema import Agent
from shared.decision import Outcome
from shared.events import EventKind
from shared.runtime import Runtime
from shared.wire.verdict import HEAD, HEAD_AND_HOST, Question
from tests.support import until

EVENT = b'{"event_type":"request_headers","method":"GET","uri":"/","headers":{},"has_body":false}'
WAIT_S = 5.0


class Asker:
    """Who asked: remembers how each call ended."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.changed = asyncio.Event()

    def ended(self, call: Call, now: int) -> None:
        self.calls.append(call)
        self.changed.set()

    def outcomes(self) -> dict[str, Outcome]:
        return {call.call_id: call.outcome for call in self.calls}

    async def wait(self, count: int) -> list[Call]:
        """Until so many calls have ended."""
        async with asyncio.timeout(WAIT_S):
            while len(self.calls) < count:
                self.changed.clear()
                await self.changed.wait()
        return self.calls


class World:
    """`async with World(agents...) as world`: lanes for every agent, both transports where they are needed."""

    def __init__(self, *agents: Agent, clock: Callable[[], int] = now_ns, **options: Any) -> None:
        self.agents = agents or (agent(),)
        self.clock = clock
        self.options = options
        self.asker = Asker()
        self.number = 0
        self.changes = 0
        self.opened: list[Any] = []

    async def __aenter__(self) -> "World":
        self.loop = asyncio.get_running_loop()
        self.dir = tempfile.mkdtemp(prefix="wg", dir="/tmp")
        self.runtime = Runtime(f"{self.dir}/r")
        self.runtime.prepare()
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        alarm = Alarm(lambda ns: None)
        self.lanes = {a.name: Lane(a, self.clock, alarm) for a in self.agents}
        self.v2 = V2Transport(
            self.loop,
            self.runtime,
            self.agents,
            self.lanes,
            clock=self.clock,
            on_change=self._changed,
            **self.options,
        )
        self.v1 = V1Transport(
            self.context,
            self.loop,
            self.agents,
            self.lanes,
            clock=self.clock,
            random=lambda: 0.0,
            on_change=self._changed,
        )
        self.v2.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.v1.close()
        self.v2.close()
        for one in self.opened:
            one.close()
        self.context.destroy(0)
        rmtree(self.dir)

    def _changed(self) -> None:
        self.changes += 1

    @property
    def lane(self) -> Lane:
        return next(iter(self.lanes.values()))

    @property
    def seat(self) -> Any:
        return next(iter(self.v2.registry.seats.values()))

    def agent(self, **options: Any) -> "RawAgent":
        """A DEALER that has connected and said nothing yet."""
        made = RawAgent(self.context, self.loop, self.runtime.agents_endpoint, options)
        self.opened.append(made)
        return made

    def rep(self, name: str, answer: "Callable[[dict[str, Any]], Any]") -> "RepAgent":
        """A v1 agent bound at `ipc://<dir>/<name>`."""
        made = RepAgent(self.context, self.loop, f"ipc://{self.dir}/{name}", answer)
        self.opened.append(made)
        return made

    async def ready(self, instance: str = "i1", **hello: Any) -> "RawAgent":
        """An agent that is a live instance of the first lane."""
        made = self.agent()
        before = self.lane.live_instances
        await made.join(self.agents[0].name, instance, **hello)
        await self.until(lambda: self.lane.live_instances == before + 1)
        return made

    def ask(
        self,
        lane: Lane | None = None,
        *,
        event: bytes | memoryview = EVENT,
        key: tuple[bytes, int] | None = None,
        may_set_host: bool = False,
        timeout_ms: int = 60_000,
        kind: EventKind = EventKind.REQUEST_HEADERS,
        body: bytes | memoryview | None = None,
        index: int = 0,
        is_last: bool = False,
        observer: bool = False,
    ) -> Call:
        """Submit one call."""
        lane = lane or self.lane
        self.number += 1
        now = self.clock()
        asked = Asked(lane.name, lane, 0, kind, "closed", observer, may_set_host, timeout_ms * MS)
        call = Call(self.number, f"n{self.number:x}", event, asked, self.asker, now, now + timeout_ms * MS, key)
        call.question = HEAD_AND_HOST if may_set_host else HEAD
        if kind not in (EventKind.REQUEST_HEADERS, EventKind.RESPONSE_HEADERS, EventKind.REQUEST_COMPLETE):
            call.question, call.body = Question(kind, may_set_host, index, is_last), body
        lane.submit(call, now, True)
        return call

    async def until(self, predicate: Callable[[], Any], what: str = "") -> Any:
        """Turn the loop until it is so."""
        return await until(predicate, WAIT_S, what)


def agent(name: str = "waf", **settings: Any) -> Agent:
    settings.setdefault("protocol", "zmq-v2")
    settings.setdefault("events", ("request_headers",))
    return Agent(name=name, **settings)


class RawAgent:
    """A DEALER as an agent's author would use it: no SDK, frames as they are."""

    def __init__(self, context: Any, loop: Any, endpoint: str, options: Mapping[str, Any] = {}) -> None:
        self.socket = context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.RECONNECT_IVL, 60_000)  # never, but for -1 libzmq would drop what is unread
        for name, value in options.items():
            self.socket.setsockopt(getattr(zmq, name), value)
        self.queue: asyncio.Queue[list[bytes]] = asyncio.Queue()
        self.pump = Pump(self.socket, loop, self.queue.put_nowait, again=zmq.Again, error=zmq.ZMQError)
        self.socket.connect(endpoint)

    def close(self) -> None:
        self.pump.close()

    def send(self, verb: bytes, *frames: Any) -> None:
        """Frames that are not bytes are sent as JSON."""
        assert self.pump.send([verb, *(f if isinstance(f, bytes) else json.dumps(f).encode() for f in frames)])

    def hello(self, name: str = "waf", instance: str = "i1", **fields: Any) -> None:
        fields.setdefault("events", ["request_headers", "response_headers"])
        self.send(b"HELLO", {"protocol": 2, "agent": name, "instance": instance, **fields})

    async def recv(self) -> list[bytes]:
        """The next message, PINGs included."""
        async with asyncio.timeout(WAIT_S):
            return await self.queue.get()

    async def expect(self, verb: bytes) -> list[bytes]:
        """The frames after the verb of the next message that is no PING; it has to be this verb."""
        while True:
            frames = await self.recv()
            if frames[0] != b"PING" or verb == b"PING":
                assert frames[0] == verb, frames
                return frames[1:]

    async def json(self, verb: bytes) -> Any:
        frames = await self.expect(verb)
        return json.loads(frames[0])

    async def join(self, name: str = "waf", instance: str = "i1", **hello: Any) -> Any:
        """HELLO to READY; returns the CONFIG."""
        self.hello(name, instance, **hello)
        welcome = await self.json(b"WELCOME")
        assert welcome["protocol"] == 2
        config = await self.json(b"CONFIG")
        self.send(b"CONFIG_RESULT", {"config_version": config["config_version"], "accepted": True})
        return config

    async def events(self) -> list[Any]:
        """The entries of the next EVENTS."""
        found: list[Any] = await self.json(b"EVENTS")
        return found

    def verdicts(self, *entries: Any, bodies: Iterable[bytes] = ()) -> None:
        self.send(b"VERDICTS", list(entries), *bodies)

    @property
    def is_silent(self) -> bool:
        return self.queue.empty()


class RepAgent:
    """The ten-line v1 agent. `answer(message)` returns the reply: an object, bytes, a list of frames, or None
    for no answer at all."""

    def __init__(self, context: Any, loop: Any, endpoint: str, answer: Callable[[dict[str, Any]], Any]) -> None:
        self.endpoint = endpoint
        self.answer = answer
        self.seen: list[dict[str, Any]] = []
        self.socket = context.socket(zmq.REP)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.bind(endpoint)
        self.pump = Pump(self.socket, loop, self._message, again=zmq.Again, error=zmq.ZMQError)

    def _message(self, frames: list[bytes]) -> None:
        message = json.loads(frames[0])
        self.seen.append(message)
        reply = self.answer(message)
        if reply is not None:
            self.reply(reply)

    def reply(self, reply: Any) -> None:
        """Answer the message that is open."""
        frames = (
            reply if isinstance(reply, list) else [reply if isinstance(reply, bytes) else json.dumps(reply).encode()]
        )
        assert self.pump.send(frames)

    def close(self) -> None:
        self.pump.close()


# --- ZMTP by hand, for what no ZeroMQ library would send (rfc.zeromq.org/spec/23) -------------------

GREETING = b"\xff" + bytes(8) + b"\x7f" + b"\x03\x01" + b"NULL".ljust(20, b"\0") + b"\0" + bytes(31)


READY = b"\x04\x1c\x05READY\x0bSocket-Type\0\0\0\x06DEALER"


async def zmtp_dial(path: str, identity: bytes = b"") -> socket.socket:
    """A connection after the handshake."""
    loop = asyncio.get_running_loop()
    raw = socket.socket(socket.AF_UNIX)
    raw.setblocking(False)
    await loop.sock_connect(raw, path)
    body = b"\x05READY"
    for name, value in ((b"Socket-Type", b"DEALER"), (b"Identity", identity)):
        body += bytes((len(name),)) + name + struct.pack(">I", len(value)) + value
    await loop.sock_sendall(raw, GREETING + b"\x04" + bytes((len(body),)) + body)
    read = b""
    async with asyncio.timeout(WAIT_S):
        while b"READY" not in read:
            data = await loop.sock_recv(raw, 4096)
            assert data, "refused"
            read += data
    return raw


def zmtp_frame(data: bytes, more: bool) -> bytes:
    """A long frame."""
    return bytes((0x02 | more,)) + struct.pack(">Q", len(data)) + data


async def is_cut(raw: socket.socket, *, without: bytes = b"") -> bool:
    """Read it to its end: whether there is one, and these bytes did not come before."""
    loop = asyncio.get_running_loop()
    read = b""
    async with asyncio.timeout(WAIT_S):
        try:
            while data := await loop.sock_recv(raw, 65_536):
                read += data
        except ConnectionError:
            pass
    return not without or without not in read
