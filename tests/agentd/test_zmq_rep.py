"""agentd/transport/zmq_{rep,lockstep}.py: v1 over real sockets; lockstep, and dialling for ever."""

import asyncio
import itertools
import json
import socket
from collections.abc import Sequence
from typing import Any

import pytest
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st

from agentd.memory import MemoryGuard
from agentd.stats import snapshot
from agentd.transport.pump import REPLY_FRAMES_MAX
from agentd.transport.zmq_lockstep import Link, V1Connection
from agentd.transport.zmq_rep import V1Transport
from shared import defaults as d
from shared.clock import MS
from shared.config.schema import Agent
from shared.decision import Outcome, Verb
from shared.events import EventKind
from shared.wire.envelope import CancelReason
from tests.agentd.fakes import FakeInstance
from tests.agentd.zmq_world import EVENT, GREETING, RepAgent, World, agent, zmtp_frame
from tests.support import Clock

ALLOW = {"version": 1, "decision": "allow"}


def v1(endpoint: str, **settings: Any) -> Agent:
    settings.setdefault("name", "old")
    return agent(settings.pop("name"), protocol="zmq-v1", endpoint=endpoint, **settings)


class V1World(World):
    """A world whose only agent is a v1 agent at `rep`; `answers` are taken one by one, then ALLOW."""

    def __init__(
        self,
        *,
        connections: int = 1,
        clock: Any = None,
        is_bound: bool = True,
        answers: Sequence[Any] = (),
        **settings: Any,
    ) -> None:
        super().__init__(agent(), **({"clock": clock} if clock is not None else {}))
        self.connections = connections
        self.settings = settings
        self.is_bound = is_bound
        self.answers: list[Any] = list(answers)

    async def __aenter__(self) -> "V1World":
        await super().__aenter__()
        self.endpoint = f"ipc://{self.dir}/rep"
        old = v1(self.endpoint, connections=self.connections, **self.settings)
        self.lanes = {"old": type(self.lane)(old, self.clock, self.lane._alarm)}
        self.v1 = V1Transport(
            self.context,
            self.loop,
            [old],
            self.lanes,
            clock=self.clock,
            random=lambda: 0.0,
            on_change=self._changed,
        )
        self.settings_made = old
        if self.is_bound:
            self.bind()
        self.v1.start()
        return self

    def bind(self) -> RepAgent:
        self.agent_v1 = self.rep("rep", self.answer)
        return self.agent_v1

    def answer(self, message: dict[str, Any]) -> Any:
        return self.answers.pop(0) if self.answers else ALLOW

    async def up(self) -> None:
        """Until every connection is ready."""
        await self.until(lambda: self.lane.live_instances == self.connections)

    @property
    def connection(self) -> V1Connection:
        return self.v1.connections[0]

    def states(self) -> list[Link]:
        return [connection.state for connection in self.v1.connections]

    async def seen(self, count: int) -> list[dict[str, Any]]:
        await self.until(lambda: len(self.agent_v1.seen) >= count)
        return self.agent_v1.seen


class TestConversation:
    async def test_no_zmtp_heartbeats(self) -> None:
        """With them libzmq 4.3.5 aborts the process when a connection ends that it has stopped to read."""
        async with V1World() as world:
            await world.up()
            assert world.connection._pump is not None
            assert world.connection._pump.socket.getsockopt(zmq.HEARTBEAT_IVL) == 0

    async def test_configure_then_events(self) -> None:
        """The bytes are those of the protocol; the event is the worker's own."""
        async with V1World(config={"paranoia": 1}, timeout_ms=50) as world:
            await world.up()
            configure = world.agent_v1.seen[0]
            assert configure["version"] == 1
            assert configure["event_type"] == "configure"
            assert configure["payload"] == {
                "event_type": "configure",
                "agent_id": "old",
                "config": {"paranoia": 1},
                "config_version": configure["payload"]["config_version"],
                "timeout_ms": 50,
                "max_request_body_bytes": d.MAX_AGENT_BODY_BYTES,
                "max_response_body_bytes": d.MAX_AGENT_BODY_BYTES,
            }
            world.answers = [{"version": 1, "decision": {"block": {"status": 403}}}]
            call = world.ask(kind=EventKind.RESPONSE_HEADERS)
            await world.asker.wait(1)
            assert call.outcome is Outcome.DECISION
            assert call.screened.decision.verb is Verb.BLOCK
            assert world.agent_v1.seen[1] == {
                "version": 1, "event_type": "response_headers", "payload": json.loads(EVENT),
            }  # fmt: skip

    async def test_one_call_per_connection(self) -> None:
        """The second waits for the first; two connections take two."""
        async with V1World(connections=2) as world:
            await world.up()
            world.agent_v1.answer = lambda message: None
            for _ in range(3):
                world.ask()
            await world.seen(3)  # two configures, one event: a REP works on one at a time
            assert world.lane.in_flight == 2
            world.agent_v1.answer = world.answer
            world.agent_v1.reply(ALLOW)
            await world.asker.wait(3)
            assert len(world.agent_v1.seen) == 5

    async def test_a_request_is_pinned_to_its_connection(self) -> None:
        async with V1World(connections=4) as world:
            await world.up()
            first = world.ask(key=(b"w", 1))
            await world.asker.wait(1)
            for number in range(2, 8):
                call = world.ask(key=(b"w", 1))
                await world.asker.wait(number)
                assert call.instance is first.instance

    @pytest.mark.parametrize(
        ("reply", "outcome"),
        [
            (b"allow", Outcome.MALFORMED),
            ({"version": 2, "decision": "allow"}, Outcome.MALFORMED),
            ({"decision": "deny"}, Outcome.MALFORMED),
            ([b'{"decision":"allow"}', b""], Outcome.MALFORMED),
            (b"", Outcome.MALFORMED),
            ({"error": {"code": "x", "message": "y"}}, Outcome.AGENT_ERROR),
            ({"decision": "allow"}, Outcome.DECISION),
        ],
        ids=str,
    )
    async def test_replies(self, reply: Any, outcome: Outcome) -> None:
        """A bad reply is one call's; lockstep holds, the connection stays."""
        async with V1World() as world:
            await world.up()
            world.answers = [reply]
            call = world.ask()
            await world.asker.wait(1)
            assert call.outcome is outcome
            again = world.ask()
            await world.asker.wait(2)
            assert again.outcome is Outcome.DECISION
            assert world.connection.dials == 1

    @settings(max_examples=25, deadline=None)
    @given(st.lists(st.binary(max_size=60), min_size=1, max_size=3))
    def test_survives_any_reply(self, frames: list[bytes]) -> None:
        async def scenario() -> None:
            async with V1World() as world:
                await world.up()
                world.answers = [frames]
                world.ask()
                await world.asker.wait(1)
                again = world.ask()
                await world.asker.wait(2)
                assert again.outcome is Outcome.DECISION

        asyncio.run(scenario())


class TestLockstep:
    async def test_timeout_closes_and_dials_anew(self) -> None:
        """The late answer fits nothing; another connection's calls are not touched."""
        clock = Clock()
        async with V1World(clock=clock) as world:
            await world.up()
            world.agent_v1.answer = lambda message: None
            call = world.ask(timeout_ms=200)
            await world.seen(2)
            world.lane.expire(clock.ms(200))
            assert call.outcome is Outcome.TIMEOUT
            assert world.lane.live_instances == 0
            assert world.connection.dials == 2
            world.agent_v1.answer = world.answer
            world.agent_v1.reply({"version": 1, "decision": {"block": {"status": 403}}})
            await world.up()
            again = world.ask()
            await world.asker.wait(2)
            assert again.screened.decision.verb is Verb.ALLOW

    async def test_timeout_is_that_connections_alone(self) -> None:
        clock = Clock()
        async with V1World(connections=2, clock=clock) as world:
            await world.up()
            world.agent_v1.answer = lambda message: None
            short, long = world.ask(timeout_ms=100), world.ask(timeout_ms=60_000)
            await world.seen(3)
            world.lane.expire(clock.ms(100))
            assert (short.outcome, world.lane.live_instances, world.lane.in_flight) == (Outcome.TIMEOUT, 1, 1)
            world.agent_v1.answer = world.answer
            world.agent_v1.reply(ALLOW)
            await world.asker.wait(2)
            assert long.outcome is Outcome.DECISION

    async def test_cancelled_keeps_connection_and_permit_until_the_answer(self) -> None:
        async with V1World() as world:
            await world.up()
            world.agent_v1.answer = lambda message: None
            gone = world.ask()
            await world.seen(2)
            waiting = world.ask()
            world.lane.cancel(gone, CancelReason.CLIENT_GONE, world.clock())
            assert (world.lane.in_flight, waiting.outcome) == (1, Outcome.CANCELLED)
            world.agent_v1.answer = world.answer
            world.agent_v1.reply({"version": 1, "decision": {"block": {"status": 403}}})
            await world.asker.wait(1)
            assert waiting.screened.decision.verb is Verb.ALLOW
            assert (world.connection.dials, world.lane.in_flight) == (1, 0)
            assert snapshot(world.lane, 0)["late_verdicts"] == 1

    async def test_cancelled_and_never_answered(self) -> None:
        """At its deadline the connection is given up, and with it the permit."""
        clock = Clock()
        async with V1World(clock=clock) as world:
            await world.up()
            world.agent_v1.answer = lambda message: None
            gone = world.ask(timeout_ms=200)
            await world.seen(2)
            world.lane.cancel(gone, CancelReason.CLIENT_GONE, clock.now)
            world.lane.expire(clock.ms(199))
            assert (world.connection.dials, world.lane.in_flight) == (1, 1)
            world.lane.expire(clock.ms(1))
            assert (world.connection.dials, world.lane.in_flight, world.asker.calls) == (2, 0, [])

    async def test_an_agent_that_speaks_unasked(self) -> None:
        """A peer that is no REP: nothing it says can fit a later call."""
        async with V1World(is_bound=False) as world:
            rogue = world.context.socket(zmq.ROUTER)
            rogue.setsockopt(zmq.LINGER, 0)
            rogue.bind(world.endpoint)
            world.opened.append(rogue)
            await world.until(lambda: world.connection.state is Link.CONFIGURING or _again(world))
            peer, _, _ = await world.until(lambda: _try(rogue))
            rogue.send_multipart([peer, b"", json.dumps(ALLOW).encode()])
            await world.up()
            rogue.send_multipart([peer, b"", json.dumps(ALLOW).encode()])
            await world.until(lambda: world.lane.live_instances == 0)
            assert world.connection.reason == "it spoke without being asked"
            assert world.connection.malformed == 1

    async def test_a_reply_without_delimiter(self) -> None:
        async with V1World(is_bound=False) as world:
            rogue = world.context.socket(zmq.ROUTER)
            rogue.setsockopt(zmq.LINGER, 0)
            rogue.bind(world.endpoint)
            world.opened.append(rogue)
            await world.until(lambda: world.connection.state is Link.CONFIGURING or _again(world))
            peer, _, _ = await world.until(lambda: _try(rogue))
            rogue.send_multipart([peer, json.dumps(ALLOW).encode()])
            await world.until(lambda: world.connection.state is Link.WAITING)
            assert "delimiter" in world.connection.reason


def _again(world: V1World) -> bool:
    """Time passes for the transport; never true."""
    world.v1.on_time(world.clock())
    return False


def _try(sock: "zmq.Socket[bytes]") -> list[bytes] | None:
    try:
        return sock.recv_multipart(zmq.NOBLOCK)
    except zmq.Again:
        return None


class TestDialling:
    async def test_nobody_there_is_disconnected_at_once(self) -> None:
        async with V1World(is_bound=False) as world:
            await world.until(lambda: world.connection.state is Link.WAITING)
            assert world.ask().outcome is Outcome.DISCONNECTED
            assert world.connection.reason == "nobody listens there"

    async def test_started_late(self) -> None:
        """Found by the next dial, however late."""
        clock = Clock()
        async with V1World(is_bound=False, clock=clock) as world:
            for _ in range(10):
                await world.until(lambda: world.connection.state is Link.WAITING)
                world.v1.on_time(clock.ms(d.V1_RECONNECT_MAX_MS))
            await world.until(lambda: world.connection.state is Link.WAITING)
            assert world.connection.dials == 11
            world.bind()
            world.v1.on_time(clock.ms(d.V1_RECONNECT_MAX_MS))
            await world.up()

    async def test_death_fails_the_call_and_it_is_dialled_again(self) -> None:
        clock = Clock()
        async with V1World(clock=clock) as world:
            await world.up()
            world.agent_v1.answer = lambda message: None
            call = world.ask()
            await world.seen(2)
            changes = world.changes
            world.agent_v1.close()
            await world.asker.wait(1)
            assert call.outcome is Outcome.DISCONNECTED
            assert world.changes == changes + 1
            assert world.ask().outcome is Outcome.DISCONNECTED
            world.bind()
            world.v1.on_time(clock.ms(d.V1_RECONNECT_MS))
            await world.up()
            world.ask()
            await world.asker.wait(3)

    async def test_a_listener_that_is_mute(self) -> None:
        """It accepts and never says READY."""
        clock = Clock()
        async with V1World(is_bound=False, clock=clock) as world:
            mute = socket.socket(socket.AF_UNIX)
            with mute:
                mute.bind(f"{world.dir}/rep")
                mute.listen(9)
                await world.until(lambda: world.connection.state is Link.WAITING)
                world.v1.on_time(clock.ms(d.V1_RECONNECT_MAX_MS))
                assert world.connection.state is Link.CONNECTING
                world.v1.on_time(clock.ms(2 * d.ZMTP_HANDSHAKE_MS))
                assert world.connection.reason == "no connection in time"

    async def test_wrong_endpoint(self) -> None:
        async with V1World(is_bound=False) as world:
            world.v1.configure([v1("ipc:///tmp/" + "x" * 200)], world.lanes, 0)
            (connection,) = [c for c in world.v1.connections if c.state is not Link.CLOSED]
            assert connection.state is Link.WAITING
            assert "File name too long" in connection.reason

    @pytest.mark.parametrize(
        ("reply", "reason"),
        [
            ({"decision": {"block": {"status": 403}}}, "it rejected its configuration"),
            ({"error": {"code": "config", "message": "what?"}}, "it rejected its configuration: config what?"),
            (b"nonsense", "configure: "),
            ([b"{}", b"{}"], "configure: reply of 2 frames"),
        ],
        ids=str,
    )
    async def test_configure_rejected(self, reply: Any, reason: str) -> None:
        """The lane stays Disconnected; it is tried again, as the agent may be repaired."""
        clock = Clock()
        async with V1World(clock=clock, answers=[reply]) as world:
            await world.until(lambda: world.connection.state is Link.WAITING)
            assert len(world.agent_v1.seen) == 1
            assert world.connection.reason.startswith(reason)
            assert world.ask().outcome is Outcome.DISCONNECTED
            world.v1.on_time(clock.ms(d.V1_RECONNECT_MAX_MS))
            await world.up()
            assert world.connection.reason == ""

    async def test_configure_unanswered(self) -> None:
        clock = Clock()
        async with V1World(clock=clock) as world:
            world.agent_v1.answer = lambda message: None
            await world.seen(1)
            assert world.connection.state is Link.CONFIGURING
            world.v1.on_time(clock.ms(d.V1_CONFIGURE_MS - 1))
            assert world.connection.state is Link.CONFIGURING
            world.v1.on_time(clock.ms(1))
            assert world.connection.reason == "no answer to configure in time"


class TestBackOff:
    async def test_policy_with_a_turned_clock(self) -> None:
        """Ten seconds of nobody there: the dials stand where the policy says, to the millisecond."""
        clock = Clock()
        async with V1World(is_bound=False, clock=clock) as world:
            start, dialled = clock.now, []
            while clock.now < start + 10_000 * MS:
                dialled.append((clock.now - start) // MS)
                await world.until(lambda: world.connection.state is Link.WAITING)
                due = world.v1.next_wakeup_ns()
                world.v1.on_time(due - 1)
                assert world.connection.state is Link.WAITING
                clock.now = due
                world.v1.on_time(due)
                assert world.connection.state is Link.CONNECTING
            assert dialled[:6] == [0, 50, 150, 350, 750, 1_250]
            assert {b - a for a, b in itertools.pairwise(dialled[5:])} == {500}


class TestLeaving:
    async def test_stop_waits_for_the_call(self) -> None:
        async with V1World(connections=2) as world:
            await world.up()
            world.agent_v1.answer = lambda message: None
            call = world.ask()
            await world.seen(3)
            stopping = world.loop.create_task(world.v1.stop(world.clock() + 60_000 * MS))
            await world.until(lambda: sorted(s.value for s in world.states()) == ["closed", "ready"])
            world.agent_v1.reply(ALLOW)
            async with asyncio.timeout(5):
                await stopping
            assert call.outcome is Outcome.DECISION
            assert world.v1.connections == []

    async def test_stop_at_the_deadline(self) -> None:
        clock = Clock()
        async with V1World(clock=clock) as world:
            await world.up()
            world.agent_v1.answer = lambda message: None
            call = world.ask()
            await world.seen(2)
            stopping = world.loop.create_task(world.v1.stop(clock.now + 1_000 * MS))
            await world.until(lambda: world.connection.is_draining)
            assert world.v1.next_wakeup_ns() == clock.now + 1_000 * MS
            world.v1.on_time(clock.ms(1_000))
            async with asyncio.timeout(5):
                await stopping
            assert call.outcome is Outcome.DISCONNECTED

    async def test_stop_without_agents(self) -> None:
        async with World() as world:
            async with asyncio.timeout(5):
                await world.v1.stop(world.clock())
            assert world.v1.next_wakeup_ns() is None

    async def test_draining_keeps_pinned_requests(self) -> None:
        async with V1World() as world:
            await world.up()
            key = (b"w", 1)
            world.ask(key=key)
            await world.asker.wait(1)
            world.connection.begin_drain(world.clock() + 60_000 * MS)
            pinned = world.ask(key=key)
            await world.asker.wait(2)
            assert pinned.outcome is Outcome.DECISION
            assert world.connection.state is Link.READY
            world.lane.release_pin(key)
            await world.until(lambda: world.connection.state is Link.CLOSED)

    async def test_reload(self) -> None:
        """Changed agents are drained and dialled anew, the others left alone."""
        async with V1World() as world:
            await world.up()
            old = world.connection
            world.v1.configure([world.settings_made], world.lanes, 0)
            assert world.v1.connections == [old]
            world.v1.configure([v1(world.endpoint, config={"new": 1})], world.lanes, world.clock() + 1_000 * MS)
            await world.until(lambda: old.state is Link.CLOSED)
            await world.until(lambda: world.lane.live_instances == 1)
            assert world.agent_v1.seen[-1]["payload"]["config"] == {"new": 1}
            world.v1.configure([], {}, world.clock())
            await world.until(lambda: world.lane.live_instances == 0)

    async def test_the_old_connection_serves_until_the_new_one_is_up(self) -> None:
        """The new endpoint is silent at first: calls go where they went. Once it answers, the old one drains."""
        async with V1World() as world:
            await world.up()
            old = world.connection
            moved = v1(f"ipc://{world.dir}/moved")
            world.v1.configure([moved], world.lanes, world.clock() + 1_000 * MS)
            assert [c.name for c in world.v1.connections] == ["connection-1", "connection-2"]
            call = world.ask()
            await world.asker.wait(1)
            assert (call.outcome, call.instance) == (Outcome.DECISION, old)
            world.v1.configure([moved], world.lanes, world.clock() + 1_000 * MS)
            assert len(world.v1.connections) == 2, "the same again changes nothing"
            world.rep("moved", lambda message: {"version": 1, "decision": "allow"})
            await world.until(lambda: world.v1.on_time(world.clock()) or old.state is Link.CLOSED)
            assert world.lane.live_instances == 1

    async def test_an_agent_that_is_to_dial_in_from_now_on(self) -> None:
        """Another protocol: the old connections serve until it has dialled in."""
        async with V1World() as world:
            await world.up()
            lane, changed = world.lane, agent("old")
            lane.configure(changed, world.clock())
            for _ in range(2):  # another reload meanwhile changes nothing
                world.v1.configure([changed], world.lanes, world.clock() + 60_000 * MS)
                world.v1.on_time(world.clock())
            call = world.ask()
            await world.asker.wait(1)
            assert call.outcome is Outcome.DECISION
            FakeInstance(lane).up()
            world.v1.on_time(world.clock())
            await world.until(lambda: world.states() == [Link.CLOSED])
            assert lane.live_instances == 1

    async def test_the_old_connection_does_not_wait_for_ever(self) -> None:
        async with V1World() as world:
            await world.up()
            old = world.connection
            begun = world.clock()
            world.v1.configure([v1(f"ipc://{world.dir}/nobody")], world.lanes, begun + 1_000 * MS)
            world.v1.on_time(begun + (d.V1_HANDOVER_MS - 1) * MS)
            assert old.state is Link.READY
            world.v1.on_time(world.clock() + (d.V1_HANDOVER_MS + 1) * MS)
            assert old.state is Link.CLOSED

    async def test_snapshot(self) -> None:
        async with V1World() as world:
            await world.up()
            (row,) = world.v1.snapshot()
            assert (row["agent"], row["instance"], row["state"], row["reason"]) == ("old", "connection-1", "ready", "")
            json.dumps(row)


async def test_a_reply_of_many_frames() -> None:
    """It is not taken off the socket: the connection is closed with it, and dialled anew."""
    async with V1World(answers=[ALLOW]) as world:
        await world.up()
        world.answers = [[b""] * 100_000]
        call = world.ask()
        await world.asker.wait(1)
        assert call.outcome is Outcome.DISCONNECTED
        assert call.message == f"message of {REPLY_FRAMES_MAX} frames or more"
        await world.until(lambda: world.v1.on_time(world.clock()) or world.lane.live_instances)
        assert world.connection.dials == 2
        again = world.ask()
        await world.asker.wait(2)
        assert again.outcome is Outcome.DECISION


async def test_endless_reply() -> None:
    """The memory guard finds an agent whose answer never ends among those that we dialled, too."""
    async with V1World(is_bound=False) as world:
        guard = MemoryGuard(slack_bytes=16 * 1024 * 1024)
        guard.watch(world.v1._suspects)
        loop = world.loop
        await world.until(lambda: world.connection.state is Link.WAITING)
        listener = socket.socket(socket.AF_UNIX)
        with listener:
            listener.setblocking(False)
            listener.bind(f"{world.dir}/rep")
            listener.listen()
            await world.until(lambda: world.connection.state is Link.CONNECTING or _again(world))
            async with asyncio.timeout(5):
                raw, _ = await loop.sock_accept(listener)
            with raw:
                raw.setblocking(False)
                async with asyncio.timeout(5):
                    await _be_a_rep(loop, raw)
                await world.until(lambda: world.connection.state is Link.CONFIGURING)
                guard.look(world.clock())
                flood = loop.create_task(_flood(loop, raw, zmtp_frame(bytes(65_536), more=True) * 16))

                def cut() -> bool:
                    guard.look(world.clock())
                    return flood.done()

                await world.until(cut)
            assert world.connection.reason == "endless message"


async def _be_a_rep(loop: Any, raw: socket.socket) -> None:
    body = b"\x05READY\x0bSocket-Type\x00\x00\x00\x03REP"
    await loop.sock_sendall(raw, GREETING + b"\x04" + bytes((len(body),)) + body)
    read = b""
    while b"configure" not in read:
        read += await loop.sock_recv(raw, 4096)


async def _flood(loop: Any, raw: socket.socket, chunk: bytes) -> str:
    try:
        while True:
            await loop.sock_sendall(raw, chunk)
    except OSError as error:
        return type(error).__name__
