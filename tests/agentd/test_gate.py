"""Everybody is let in but those just cut for what they did, and those are read no further than their greeting."""

import asyncio
import json
import socket

import pytest
import zmq

from agentd.call import CallState
from agentd.gate import Gate
from agentd.transport import zmq_inbox
from shared.decision import Outcome
from shared.defaults import (
    AGENT_CHATTER_PER_S,
    AGENT_MAX_FRAMES,
    BAD_PEER_RETRY_MS,
    DRAIN_MESSAGES,
    FLOOD_MESSAGES,
    HELLO_WITHIN_MS,
    IDLERS_MAX,
    PENALTIES_MAX,
    SKIP_FRAMES,
    VERDICT_MAX_BYTES,
    VERDICT_MAX_FIELDS,
    VERDICTS_LARGE_BYTES,
)
from tests.agentd.zmq_world import GREETING, World, zmtp_dial
from tests.support import Clock


async def refused(path: str) -> None:
    """A handshake that ends without a READY."""
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX) as raw:
        raw.setblocking(False)
        await loop.sock_connect(raw, path)
        await loop.sock_sendall(raw, GREETING + b"\x04\x1c\x05READY\x0bSocket-Type\0\0\0\x06DEALER")
        read = b""
        async with asyncio.timeout(5):
            try:
                while data := await loop.sock_recv(raw, 4_096):
                    read += data
            except ConnectionResetError:
                pass
        assert b"READY" not in read


class TestGate:
    async def test_shut_out_for_a_while(self) -> None:
        """The process whose connection was shut out has no handshake until its time is over; others have."""
        clock = Clock()
        async with World(clock=clock) as world:
            a = await world.ready()
            gate, peers = world.v2._gate, world.v2._peers
            assert peers is not None
            peer = next(iter(peers.by_fd.values()))
            assert isinstance(gate, Gate)
            gate.shut_out(peer.address)
            await refused(world.runtime.agents_socket)
            assert gate.refused + peers.refused >= 1  # at accept; or by libzmq's question, if that comes first
            a.send(b"PING")  # who is in stays in
            await a.expect(b"PONG")
            clock.ms(BAD_PEER_RETRY_MS)
            (await zmtp_dial(world.runtime.agents_socket)).close()

    async def test_others_are_let_in(self) -> None:
        async with World() as world:
            gate = world.v2._gate
            assert isinstance(gate, Gate)
            gate.shut_out("localhost:0:0:1")
            await world.ready()
            assert (gate.refused, gate.is_shut_out("localhost:0:0:1")) == (0, True)

    async def test_bounded(self) -> None:
        clock = Clock()
        async with World(clock=clock) as world:
            gate = world.v2._gate
            assert isinstance(gate, Gate)
            for number in range(PENALTIES_MAX):
                gate.shut_out(f"localhost:0:0:{number}")
            clock.ms(BAD_PEER_RETRY_MS)
            gate.shut_out("localhost:0:0:1")
            assert len(gate._until) == 1

    async def test_words_that_are_no_question(self) -> None:
        """libzmq alone can speak there; whatever else it says in a later version is left unanswered."""
        async with World() as world:
            gate = world.v2._gate
            assert isinstance(gate, Gate)
            gate._asked([b"x", b"", b"2.0", b"1", b"agents", b"localhost:0:0:1"])
            gate._asked([b"x", b"", b"1.0"])
            await world.ready()


class TestFlood:
    async def test_a_flooder_is_cut_and_shut_out(self) -> None:
        """REFUSE first, for those who read; who goes on is cut, what is left of it is dropped unread."""
        async with World() as world:
            a = await world.ready()
            for _ in range(AGENT_CHATTER_PER_S + 3):
                a.send(b"PING")
            await world.until(lambda: world.v2.registry.refused["malformed"] == 1)
            assert world.lane.live_instances == 0
            assert world.v2._gate is not None
            for _ in range(FLOOD_MESSAGES):
                a.send(b"PING")
            peers = world.v2._peers
            await world.until(lambda: peers is not None and not peers.by_fd)
            assert world.v2._dead.keys() != set()
            await refused(world.runtime.agents_socket)

    async def test_the_refused_may_read_why(self) -> None:
        async with World() as world:
            a = await world.ready()
            for _ in range(AGENT_CHATTER_PER_S + 10):
                a.send(b"PING")
            async with asyncio.timeout(5):
                while (frames := await a.recv())[0] != b"REFUSE":
                    pass
            assert json.loads(frames[1])["code"] == "malformed"

    async def test_messages_of_the_dead_are_dropped(self) -> None:
        """They are taken off the socket whole, and nobody else's with them."""
        async with World() as world:
            a = await world.ready("a")
            b = await world.ready("b")
            session = next(s for s in world.v2._sessions.values() if s.name == "a")
            garbage = world.v2.garbage
            world.v2._dead[session.routing_id] = None
            del world.v2._sessions[session.routing_id]
            for _ in range(300):
                a.send(b"NONSENSE", b"x", b"y")
            b.send(b"PING")
            await b.expect(b"PONG")
            assert world.v2.garbage == garbage
            world.v2._reception.lost(session, "the test is over")


class TestManyFrames:
    """A frame costs a microsecond to take off the socket: a message of a million of them must not be taken in one go,
    nor the next one at all."""

    async def test_of_an_instance(self) -> None:
        async with World() as world:
            a = await world.ready("a")
            b = await world.ready("b")
            garbage = world.seat.garbage
            a.send(b"VERDICTS", *[b""] * AGENT_MAX_FRAMES, *[b""] * 10 * SKIP_FRAMES * DRAIN_MESSAGES)
            await world.until(lambda: world.lane.live_instances == 1)
            assert world.seat.garbage == garbage + 1
            await refused(world.runtime.agents_socket)
            for _ in range(3):  # what is left of it is taken off while others are heard
                b.send(b"PING")
                await b.expect(b"PONG")

    async def test_the_loop_turns_meanwhile(self) -> None:
        async with World() as world:
            a = await world.ready()
            turns = 0

            def turn() -> None:
                nonlocal turns
                turns += 1
                if world.v2._pump is not None and not is_over():
                    world.loop.call_soon(turn)

            def is_over() -> bool:
                return world.v2._pump is None or not world.v2._pump.socket.getsockopt(zmq.EVENTS) & zmq.POLLIN

            a.send(b"VERDICTS", *[b""] * AGENT_MAX_FRAMES, *[b""] * 10 * SKIP_FRAMES * DRAIN_MESSAGES)
            await world.until(lambda: not world.lane.live_instances)
            turn()
            await world.until(is_over)
            assert turns >= 8

    async def test_of_a_stranger(self) -> None:
        """Before any HELLO."""
        async with World() as world:
            a = world.agent()
            a.send(b"HELLO", *[b""] * 2 * AGENT_MAX_FRAMES)
            peers = world.v2._peers
            await world.until(lambda: world.v2._dead and peers is not None and not peers.by_fd)
            await refused(world.runtime.agents_socket)

    async def test_as_many_as_may_be(self) -> None:
        async with World() as world:
            a = await world.ready()
            call = world.ask()
            ((call_id, _, _),) = await a.events()
            a.verdicts([call_id, {"decision": "allow"}], bodies=[b""] * (AGENT_MAX_FRAMES - 2))
            await world.until(lambda: call.state is CallState.ENDED)
            assert call.outcome is Outcome.DECISION


class TestIdlers:
    """Connections that say nothing of use take places that others need."""

    async def test_a_process_with_many(self) -> None:
        clock = Clock()
        async with World(clock=clock) as world:
            await world.ready()
            for _ in range(IDLERS_MAX):
                world.agent()
            peers, gate = world.v2._peers, world.v2._gate
            assert peers is not None
            assert gate is not None
            await world.until(lambda: len(peers.by_fd) == IDLERS_MAX + 1)
            address = next(iter(peers.by_fd.values())).address
            for _ in range(4):
                world.v2.on_time(clock.ms(HELLO_WITHIN_MS // 4))
            assert gate.is_shut_out(address)
            await world.until(lambda: len(peers.by_fd) == 1)  # the instance stays
            assert world.lane.live_instances == 1
            before = peers.refused
            await refused(world.runtime.agents_socket)
            await world.until(lambda: peers.refused > before)  # at once: it takes no place

    async def test_a_few_are_only_cut(self) -> None:
        clock = Clock()
        async with World(clock=clock) as world:
            for _ in range(IDLERS_MAX - 1):
                world.agent()
            peers, gate = world.v2._peers, world.v2._gate
            assert peers is not None
            assert gate is not None
            await world.until(lambda: len(peers.by_fd) == IDLERS_MAX - 1)
            address = next(iter(peers.by_fd.values())).address
            for _ in range(4):
                world.v2.on_time(clock.ms(HELLO_WITHIN_MS // 4))
            await world.until(lambda: not peers.by_fd)
            assert not gate.is_shut_out(address)


class TestCostlyVerdicts:
    """JSON within all limits of size may still take a second to read, while nobody else is served."""

    async def test_a_million_entries(self) -> None:
        """Of no call: they are not looked at one by one."""
        async with World() as world:
            a = await world.ready()
            call = world.ask()
            await a.events()
            a.send(b"VERDICTS", b"[" + b"7," * 1_000_000 + b"7]")
            await world.until(lambda: world.seat.garbage == 1)
            a.send(b"VERDICTS", [["nobody", {"decision": "allow"}]] * 5_000)
            await world.until(lambda: world.seat.garbage == 2)
            assert call.state is CallState.SENT

    async def test_more_fields_than_anybody_needs(self) -> None:
        async with World() as world:
            a = await world.ready()
            op = {"set": {"name": "x-a", "value": "1"}}
            block = {"block": {"status": 403, "headers": {f"x-{n}": "1" for n in range(VERDICT_MAX_FIELDS + 1)}}}
            for verdict in (
                {"decision": "allow", "request_headers": [op] * (VERDICT_MAX_FIELDS + 1)},
                {"decision": block},
                {"decision": {"block": {"status": 403, "body": "x" * VERDICT_MAX_BYTES}}},
            ):
                call = world.ask()
                ((call_id, _, _),) = await a.events()
                a.verdicts([call_id, verdict])
                await world.until(lambda call=call: call.state is CallState.ENDED)  # type: ignore[misc]
                assert call.outcome is Outcome.MALFORMED
                assert "at most" in call.message

    async def test_what_takes_too_long_ends_the_session(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """By our CPU time: a bad message first, then the last one."""
        async with World() as world:
            a = await world.ready()
            for limit, garbage, instances in (("VERDICTS_MAX_MS", 1, 1), ("VERDICTS_CUT_MS", 2, 0)):
                monkeypatch.setattr(zmq_inbox, limit, -1_000)
                call = world.ask()
                ((call_id, _, _),) = await a.events()
                a.verdicts([call_id, {"decision": {"block": {"status": 403, "body": "x" * VERDICTS_LARGE_BYTES}}}])
                await world.until(lambda call=call: call.state is CallState.ENDED)  # type: ignore[misc]
                assert call.outcome is Outcome.DECISION
                await world.until(lambda garbage=garbage: world.seat.garbage == garbage)  # type: ignore[misc]
                assert world.lane.live_instances == instances
