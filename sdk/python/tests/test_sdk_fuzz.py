"""Nothing that a peer can send ends an agent, stops it from answering or makes it allow by accident."""

import asyncio
import contextlib
import shutil
import tempfile
from typing import Any

import orjson
import zmq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wardgate_agent import Agent, Allow, Block, Options, Runner
from wardgate_agent import wire as w
from wardgate_agent.conversation import Conversation, State
from wardgate_agent.dispatcher import Dispatcher
from wardgate_agent.session import Session

EVENT_TYPES = [
    "request_headers",
    "request_body_chunk",
    "response_headers",
    "response_body_chunk",
    "request_complete",
    "websocket_frame",
    "guardrail_inspect",
    "configure",
    "nope",
]
VERBS = [
    w.CHALLENGE,
    w.WELCOME,
    w.REFUSE,
    w.CONFIG,
    w.EVENTS,
    w.CANCEL,
    w.PING,
    w.PONG,
    w.DRAIN,
    w.BYE,
    w.HELLO,
    w.VERDICTS,
    b"",
    b"events",
]

scalars = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(max_size=8)
json_values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
events = st.fixed_dictionaries(
    {"event_type": st.sampled_from(EVENT_TYPES) | json_values},
    optional={
        "metadata": st.just({"correlation_id": "c"}) | json_values,
        "method": st.just("GET") | json_values,
        "uri": st.just("/") | json_values,
        "headers": st.just({"host": ["a"]})
        | st.dictionaries(st.text(max_size=4), json_values, max_size=3)
        | json_values,
        "status": st.just(200) | json_values,
        "chunk_index": st.integers(0, 3) | json_values,
        "is_last": st.booleans() | json_values,
        "opcode": st.just("text") | json_values,
        "client_to_server": st.booleans() | json_values,
        "content": st.text(max_size=8) | json_values,
        "inspection_type": st.just("pii_detection") | json_values,
    },
)
calls = st.sampled_from(["a", "b", "c"]) | json_values
entries = st.one_of(
    st.tuples(calls, st.integers(0, 1000) | json_values, events | json_values),
    st.tuples(calls, st.integers(0, 1000), events, st.integers(-1, 2) | json_values),
    json_values,
)
objects = st.fixed_dictionaries(
    {},
    optional={
        "protocol": st.just(2) | json_values,
        "heartbeat_ms": st.integers(-5, 2000) | json_values,
        "code": st.sampled_from(["hello_first", "too_many", "shutting_down"]) | json_values,
        "retry_after_ms": st.integers(0, 10_000) | json_values,
        "config_version": json_values,
        "config": json_values,
    },
)
frames = st.one_of(
    st.binary(max_size=40),
    json_values.map(orjson.dumps),
    objects.map(orjson.dumps),
    st.lists(entries, max_size=4).map(orjson.dumps),
    st.just(bytes(32)),
)
messages = st.tuples(st.sampled_from(VERBS) | st.binary(max_size=12), st.lists(frames, max_size=4)).map(
    lambda pair: [pair[0], *pair[1]]
)


class Nosy(Agent):
    """Looks at everything, blocks what it understood: an allow could only come from a mistake."""

    def on_request_headers(self, event: Any) -> Any:
        event.headers.get("host")
        _ = (event.path, event.query_args, event.client_ip, event.metadata.client_port, repr(event))
        return Block(403)

    async def on_response_headers(self, event: Any) -> Any:
        await asyncio.sleep(0)
        return Block(502) if event.status else None

    def on_request_body_chunk(self, event: Any) -> Any:
        return Block(413, event.body)

    def on_response_body_chunk(self, event: Any) -> Any:
        raise RuntimeError("boom")

    def on_websocket_frame(self, event: Any) -> Any:
        return None

    def on_guardrail_inspect(self, event: Any) -> Any:
        return event.content


class Port:
    """A conversation and a dispatcher, joined as the runner joins them."""

    def __init__(self, agent: Agent, secret: bytes | None) -> None:
        self.agent = agent
        self.stopped: int | None = None
        self.sent: list[list[bytes]] = []
        self.dispatcher = Dispatcher(agent, max_concurrency=2, send=self.send, wake=lambda: None)
        self.talk = Conversation(
            self,
            Session(),
            hello={"protocol": 2, "agent": "a", "instance": "i"},
            secret=secret,
            drain_deadline_s=1,
        )
        self.events = self.dispatcher.events
        self.cancel = self.dispatcher.cancel
        self.lost = self.dispatcher.lost

    def send(self, frames: list[bytes]) -> bool:
        assert all(isinstance(frame, bytes) for frame in frames)
        self.sent.append(frames)
        return True

    def unconfigured(self, frames: list[bytes]) -> None:
        self.dispatcher.refuse(frames, "not_configured", "not yet")

    def configure(self, raw: dict[str, Any], epoch: int) -> None:
        self.talk.configured(epoch, raw.get("config_version"), None)

    def in_flight(self) -> int:
        return self.dispatcher.in_flight

    def reconnect(self) -> None: ...
    def opened(self) -> None: ...

    def stop(self, exit_code: int, reason: str) -> None:
        assert self.stopped is None
        self.stopped = exit_code


def check_verdicts(sent: list[list[bytes]]) -> None:
    for message in sent:
        if message[0] != w.VERDICTS:
            continue
        bodies = message[2:]
        used = []
        for call, verdict, *index in orjson.loads(message[1]):
            assert isinstance(call, str)
            assert verdict.get("decision") != "allow"
            assert "error" in verdict or "decision" in verdict
            used += index
        assert used == list(range(len(bodies)))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(messages, max_size=12), st.booleans(), st.booleans())
def test_no_message_raises(script: list[list[bytes]], has_secret: bool, is_ready: bool) -> None:
    async def play() -> None:
        port = Port(Nosy(), b"secret" if has_secret else None)
        now = 0.0
        port.talk.up(now)
        if is_ready:
            if has_secret:
                port.talk.received([w.CHALLENGE, bytes(32)], now)
            port.talk.received([w.WELCOME, b'{"protocol":2}'], now)
            port.talk.received([w.CONFIG, b"{}"], now)
            assert port.talk.state is State.READY
        for message in script:
            now += 0.4
            port.talk.received(message, now)
            due = port.talk.tick(now)
            assert due > now
            await asyncio.sleep(0)
            port.dispatcher.flush()
        assert (port.talk.state is State.LEFT) == (port.stopped is not None)
        await port.dispatcher.stop()
        port.dispatcher.flush()
        check_verdicts(port.sent)

    asyncio.run(play())


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(entries, max_size=6), st.lists(st.binary(max_size=5), max_size=2))
def test_every_readable_call_is_answered_once(batch: list[Any], bodies: list[bytes]) -> None:
    """Whatever the event is: an answer, or nothing for request_complete and calls that cannot be named."""

    async def play() -> None:
        port = Port(Nosy(), None)
        for number, entry in enumerate(batch):
            sent = orjson.dumps([entry])
            port.dispatcher.events([w.EVENTS, sent, *bodies])
            for _ in range(4):
                await asyncio.sleep(0)
            port.dispatcher.flush()
            answers = [row for message in port.sent for row in orjson.loads(message[1])]
            port.sent.clear()
            decoded = orjson.loads(sent)[0]
            call = decoded[0] if isinstance(decoded, list) and decoded else None
            event = decoded[2] if isinstance(decoded, list) and len(decoded) > 2 else None
            kind = event.get("event_type") if isinstance(event, dict) else None
            if isinstance(call, str) and len(call) <= 32 and kind != "request_complete":
                assert [row[0] for row in answers] == [call], (number, entry)
            elif not isinstance(call, str):
                assert answers == []
        await port.dispatcher.stop()

    asyncio.run(play())


class Plain(Agent):
    def on_request_headers(self, event: Any) -> Any:
        return Allow()


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(messages, min_size=5, max_size=30))
def test_over_a_real_socket_the_agent_lives_on(script: list[list[bytes]]) -> None:
    """After any salvo a fresh agentd is greeted, unless the salvo held a final refusal."""

    async def play(directory: str) -> None:
        context = zmq.Context()
        router = context.socket(zmq.ROUTER)
        router.setsockopt(zmq.LINGER, 0)
        router.bind(f"ipc://{directory}/v2")
        runner = Runner(Plain(), Options(connect=f"ipc://{directory}/v2"))
        task = asyncio.create_task(runner.serve())

        async def received() -> list[bytes]:
            async with asyncio.timeout(10):
                while not router.poll(0):
                    if task.done():
                        return []
                    await asyncio.sleep(0)
            return router.recv_multipart()

        try:
            peer, verb, _ = await received()
            assert verb == w.HELLO
            for message in script:
                router.send_multipart([peer, *message])
            router.send_multipart([peer, w.PING, b"the end"])
            while answer := await received():
                if answer[1:] == [w.PONG, b"the end"]:
                    break
            else:
                assert task.result() in (1, 2)  # refused, or asked for a secret it has not
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            router.close(0)
            context.term()

    directory = tempfile.mkdtemp(prefix="wg-", dir="/tmp")
    try:
        asyncio.run(play(directory))
    finally:
        shutil.rmtree(directory)
