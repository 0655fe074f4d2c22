"""Everybody is let in but those just cut for what they did; hostile peers cost nobody else anything."""

import asyncio
import json
import socket

import pytest

from agentd.call import CallState
from agentd.gate import Gate
from agentd.peers import Peers
from agentd.transport import zmq_inbox
from shared.decision import Outcome
from shared.defaults import (
    AGENT_CHATTER_PER_S,
    AGENT_MAX_FRAMES,
    BAD_PEER_RETRY_MS,
    FLOOD_MESSAGES,
    HELLO_WITHIN_MS,
    IDLERS_MAX,
    PENALTIES_MAX,
    VERDICT_MAX_BYTES,
    VERDICT_MAX_FIELDS,
    VERDICTS_LARGE_BYTES,
)
from tests.agentd.fakes import peer
from tests.agentd.zmq_world import World, is_cut, zmtp_dial
from tests.support import Clock


def peers_of(world: World) -> Peers:
    assert world.v2._peers is not None
    return world.v2._peers


async def refused(path: str) -> None:
    """A connection that ends before a word was said."""
    with socket.socket(socket.AF_UNIX) as raw:
        raw.setblocking(False)
        await asyncio.get_running_loop().sock_connect(raw, path)
        assert await is_cut(raw, without=b"\xff")


class TestGate:
    def test_for_a_while(self, clock: Clock) -> None:
        """By process and user; others are let in."""
        gate = Gate(clock)
        gate.shut_out((1000, 77))
        assert gate.refuses(peer(1000, 77))
        assert not gate.refuses(peer(1000, 78))
        assert not gate.refuses(peer(1001, 77))
        clock.ms(BAD_PEER_RETRY_MS - 1)
        assert gate.refuses(peer(1000, 77))
        clock.ms(1)
        assert not gate.refuses(peer(1000, 77))
        assert (gate.shut_outs, gate.refused) == (1, 2)

    def test_again_counts_from_then(self, clock: Clock) -> None:
        gate = Gate(clock)
        gate.shut_out((1000, 77))
        clock.ms(BAD_PEER_RETRY_MS // 2)
        gate.shut_out((1000, 77))
        clock.ms(BAD_PEER_RETRY_MS // 2)
        assert gate.refuses(peer(1000, 77))

    def test_bounded(self, clock: Clock) -> None:
        gate = Gate(clock)
        for number in range(PENALTIES_MAX):
            gate.shut_out((1000, number))
        clock.ms(BAD_PEER_RETRY_MS)
        gate.shut_out((1000, 1))
        assert len(gate._until) == 1

    async def test_at_the_socket(self) -> None:
        clock = Clock()
        async with World(clock=clock) as world:
            a = await world.ready()
            (inside,) = peers_of(world).all
            world.v2._gate.shut_out(inside.address)
            await refused(world.runtime.agents_socket)
            assert world.v2.gate_counts() == (1, 1)
            assert peers_of(world).refused == 1
            a.send(b"PING")  # who is in stays in
            await a.expect(b"PONG")
            clock.ms(BAD_PEER_RETRY_MS)
            (await zmtp_dial(world.runtime.agents_socket)).close()


class TestFlood:
    async def test_a_flooder_is_cut_and_shut_out(self) -> None:
        """REFUSE first, for those who read; who goes on is cut, what is left of it is dropped unread."""
        async with World() as world:
            a = await world.ready()
            for _ in range(AGENT_CHATTER_PER_S + 3):
                a.send(b"PING")
            await world.until(lambda: world.v2.registry.refused["malformed"] == 1)
            assert world.lane.live_instances == 0
            for _ in range(FLOOD_MESSAGES):
                a.send(b"PING")
            await world.until(lambda: not peers_of(world).all)
            assert world.v2.snapshot() == []
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


class TestManyFrames:
    """A message of a million frames is not taken in, nor the next one of that process."""

    async def test_of_an_instance(self) -> None:
        async with World() as world:
            a = await world.ready("a")
            b = await world.ready("b")
            garbage = world.seat.garbage
            a.send(b"VERDICTS", *[b""] * 100_000)
            await world.until(lambda: world.lane.live_instances == 1)
            assert world.seat.garbage == garbage + 1
            await refused(world.runtime.agents_socket)
            b.send(b"PING")
            await b.expect(b"PONG")

    async def test_of_a_stranger(self) -> None:
        """Before any HELLO."""
        async with World() as world:
            a = world.agent()
            a.send(b"HELLO", *[b""] * 2 * AGENT_MAX_FRAMES)
            await world.until(lambda: world.v2.garbage and not peers_of(world).all)
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
            peers, gate = peers_of(world), world.v2._gate
            await world.until(lambda: len(peers.all) == IDLERS_MAX + 1)
            inside = next(iter(peers.all))
            for _ in range(4):
                world.v2.on_time(clock.ms(HELLO_WITHIN_MS // 4))
            assert gate.refuses(inside)
            await world.until(lambda: len(peers.all) == 1)  # the instance stays
            assert world.lane.live_instances == 1
            before = peers.refused
            await refused(world.runtime.agents_socket)
            await world.until(lambda: peers.refused > before)  # at once: it takes no place

    async def test_a_few_are_only_cut(self) -> None:
        clock = Clock()
        async with World(clock=clock) as world:
            for _ in range(IDLERS_MAX - 1):
                world.agent()
            peers, gate = peers_of(world), world.v2._gate
            await world.until(lambda: len(peers.all) == IDLERS_MAX - 1)
            inside = next(iter(peers.all))
            for _ in range(4):
                world.v2.on_time(clock.ms(HELLO_WITHIN_MS // 4))
            await world.until(lambda: not peers.all)
            assert not gate.refuses(inside)


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
