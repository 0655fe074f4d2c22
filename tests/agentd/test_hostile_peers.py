"""Peers that break the protocol below ours or just behave badly: they cost nobody else anything, and end in order.

Raw sockets, in both event loops: uvloop is what agentd runs in.
"""

import asyncio
import socket
import struct
from typing import Any

import pytest

from agentd.gate import Gate
from agentd.memory import MemoryGuard
from agentd.transport.zmq_session import V2Session
from shared import defaults as d
from shared.decision import Outcome
from shared.events import EventKind
from shared.zmtp import COMMANDS_AT_ONCE, pack_command
from tests.agentd.test_zmq_dealer import introduce, message, peers_of, session_of
from tests.agentd.zmq_world import RawAgent, World, agent, is_cut, zmtp_dial, zmtp_frame
from tests.support import Clock

ALLOW = {"decision": "allow"}
MIB = 1 << 20
PING = pack_command(b"PING", b"\x00\x0a")
HEAD = bytes(2)


async def sends(raw: socket.socket, data: bytes) -> None:
    await asyncio.get_running_loop().sock_sendall(raw, data)


async def raw_instance(world: World, instance: str = "raw", *, is_paused: bool = True, **hello: Any) -> socket.socket:
    """An instance whose every byte is ours; paused it is asked nothing."""
    before = world.lane.live_instances
    raw = await zmtp_dial(world.runtime.agents_socket)
    world.opened.append(raw)
    await introduce(raw, instance, **hello)
    await world.until(lambda: world.lane.live_instances == before + 1)
    session_of(world, instance=instance).is_paused = is_paused
    return raw


async def is_served(world: World, a: RawAgent) -> None:
    """Asked and answered, with nobody else to do it."""
    calls = len(world.asker.calls)
    call = world.ask()
    for _ in range(10):
        frames = await a.recv()
        if frames[0] == b"EVENTS":
            break
    a.verdicts([call.call_id, ALLOW])
    await world.asker.wait(calls + 1)
    assert call.outcome is Outcome.DECISION


class TestLastWords:
    """BYE and REFUSE arrive, though the connection is closed at once and much of the peer's lies unread in it."""

    async def test_a_raw_peer(self) -> None:
        async with World() as world:
            raw = await raw_instance(world)
            fill(raw, message(b"PING", b"x" * 200))
            world.v2.close()
            read = await everything(raw)
            assert message(b"BYE")[-3:] in read

    async def test_libzmq(self) -> None:
        async with World() as world:
            a = await world.ready()
            for _ in range(200):
                a.send(b"METRICS", b"x" * 1_000)
            world.v2.close()
            await a.expect(b"BYE")

    async def test_refused_and_closed(self) -> None:
        async with World() as world:
            raw = await raw_instance(world)
            fill(raw, message(b"PING", b"x" * 200))
            session = session_of(world, instance="raw")
            world.v2._reception.bad(session, "once", 1)
            world.v2._reception.bad(session, "twice", 1)
            world.v2._reception.bad(session, "thrice", 1)
            world.v2.shut_out(session, "the test says so")
            assert b'"code":"malformed"' in await everything(raw)

    async def test_what_the_peer_said_before_it_left_is_heard(self) -> None:
        """Verdicts and the end of their connection come together, with something of ours unread in it."""
        async with World() as world:
            raw = await raw_instance(world, is_paused=False)
            calls = [world.ask() for _ in range(3)]
            await world.until(lambda: not session_of(world, instance="raw").is_marked)
            await sends(raw, message(b"VERDICTS", [[call.call_id, ALLOW] for call in calls]))
            raw.close()
            await world.asker.wait(3)
            assert {call.outcome for call in calls} == {Outcome.DECISION}
            await world.until(lambda: world.lane.live_instances == 0)


def fill(raw: socket.socket, data: bytes) -> None:
    """Until the kernel takes no more."""
    try:
        while True:
            raw.send(data)
    except BlockingIOError:
        pass


async def everything(raw: socket.socket) -> bytes:
    """Until the connection's end."""
    loop = asyncio.get_running_loop()
    read = b""
    async with asyncio.timeout(5):
        try:
            while data := await loop.sock_recv(raw, 65_536):
                read += data
        except ConnectionResetError:
            pass
    return read


class TestCommands:
    async def test_a_flood_is_cut(self) -> None:
        async with World() as world:
            good, raw = await world.ready(), await raw_instance(world)
            await sends(raw, PING * (COMMANDS_AT_ONCE + 1))
            await world.until(lambda: len(peers_of(world).all) == 1)
            assert world.v2.gate_counts()[0] == 1
            await is_served(world, good)

    async def test_pongs_that_are_never_read(self) -> None:
        """Nothing piles up: who has not taken what was sent before gets no other PONG."""
        async with World() as world:
            good, raw = await world.ready(), await raw_instance(world)
            connection = session_of(world, instance="raw").peer.connection
            for _ in range(3_000):  # of 6 bytes each: their PONGs fill the kernel's buffer
                await sends(raw, PING)
                await asyncio.sleep(0)
            assert connection.unsent_bytes < 100
            world.v2.drop(session_of(world, instance="raw"), "enough")
            await is_served(world, good)

    async def test_heartbeats_of_libzmq(self) -> None:
        """They are answered: an agent that sets ZMQ_HEARTBEAT_IVL stays connected."""
        async with World() as world:
            a = world.agent(HEARTBEAT_IVL=30, HEARTBEAT_TIMEOUT=60)
            await a.join()
            await world.until(lambda: world.lane.live_instances)
            connection = session_of(world).peer.connection
            seen: list[bytes] = []
            commanded = type(connection)._commanded

            def counted(self: Any, body: bytes) -> bytes | None:
                seen.append(body)
                return commanded(self, body)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(type(connection), "_commanded", counted)
                await world.until(lambda: len(seen) >= 8)
            assert world.lane.live_instances == 1

    async def test_pings_behind_a_flood_of_an_ended_connection(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """libzmq 4.3.5 aborted here (ADR 0023)."""
        monkeypatch.setattr(Gate, "refuses", lambda self, peer: False)
        async with World() as world:
            good = await world.ready()
            for _ in range(16):
                with await zmtp_dial(world.runtime.agents_socket) as raw:
                    fill(raw, (b"\x00\x02hi" + PING) * 1_000)
            await world.until(lambda: len(peers_of(world).all) == 1)
            await is_served(world, good)


class TestFlood:
    async def test_of_tiny_messages(self) -> None:
        """It has at most so many of them handled in a turn, and is cut for them soon."""
        async with World() as world:
            good, raw = await world.ready(), await raw_instance(world)
            fill(raw, message(b"PING") * 1_000)
            await is_served(world, good)
            assert await is_cut(raw)
            await world.until(lambda: len(peers_of(world).all) == 1)
            assert world.v2.gate_counts()[0] == 1

    async def test_of_a_stranger(self) -> None:
        async with World() as world:
            good = await world.ready()
            raw = await zmtp_dial(world.runtime.agents_socket)
            with raw:
                fill(raw, zmtp_frame(b"", more=False) * 1_000)
                assert await is_cut(raw)
            await is_served(world, good)

    async def test_garbage_in_the_middle_of_a_conversation(self) -> None:
        async with World() as world:
            good, raw = await world.ready(), await raw_instance(world)
            await sends(raw, message(b"PING", b"1") + b"\xff" * 1_000)
            await world.until(lambda: world.lane.live_instances == 1)
            assert world.seat.garbage == 1
            await is_served(world, good)


class TestLongMessages:
    async def test_no_room_before_the_secret_is_proved(self, tmp_path: Any) -> None:
        """HELLO alone is not enough for 16 MiB; the welcomed may send them."""
        (tmp_path / "secret").write_bytes(b"open sesame\n")
        async with World(agent(secret_file=str(tmp_path / "secret"))) as world:
            raw = await zmtp_dial(world.runtime.agents_socket)
            world.opened.append(raw)
            hello = {"protocol": 2, "agent": "waf", "instance": "x", "events": ["request_headers"]}
            await sends(raw, message(b"HELLO", hello))
            await world.until(lambda: world.v2.snapshot() and world.v2.snapshot()[0]["state"] == "challenged")
            await sends(raw, b"\x03" + struct.pack(">Q", d.AGENT_CONTROL_MAX_BYTES + 1))
            assert await is_cut(raw)

    async def test_crumbs_of_strangers(self) -> None:
        """4,000 frames of two bytes take 230 KiB, and nobody who is not in has reason for more than a few."""
        async with World() as world:
            good = await world.ready()
            raw = await zmtp_dial(world.runtime.agents_socket)
            world.opened.append(raw)
            await sends(raw, zmtp_frame(b"xx", more=True) * (d.STRANGER_MAX_FRAMES + 1))
            assert await is_cut(raw)
            await is_served(world, good)

    async def test_room_from_welcome_on(self) -> None:
        async with World() as world:
            a = await world.ready()
            call = world.ask()
            await a.events()
            a.verdicts([call.call_id, {"decision": {"block": {"status": 403}}}, 0], bodies=[bytes(d.VERDICT_MAX_BYTES)])
            await world.asker.wait(1)
            assert call.outcome in (Outcome.DECISION, Outcome.MALFORMED)
            assert world.lane.live_instances == 1

    async def test_dribbled(self) -> None:
        """Byte by byte where it hurts most: at the heads of frames. Others are served meanwhile."""
        async with World() as world:
            good, raw = await world.ready(), await raw_instance(world)
            body = bytes(8 * MIB)
            whole = zmtp_frame(b"VERDICTS", more=True) + zmtp_frame(b"[]", more=True) + zmtp_frame(body, more=False)
            for at in range(40):
                await sends(raw, whole[at : at + 1])
                await asyncio.sleep(0)
            served = asyncio.ensure_future(is_served(world, good))
            for at in range(40, len(whole), 100_000):
                await sends(raw, whole[at : at + 100_000])
            await served
            connection = session_of(world, instance="raw").peer.connection
            await world.until(lambda: not connection.unfinished_bytes)
            assert (world.lane.live_instances, world.seat.garbage) == (2, 0)

    async def test_many_that_are_never_finished(self) -> None:
        """Each within what a stranger may send: the guard finds them, those that were at it longest first."""

        def resident() -> int:
            return 100 * MIB + sum(peer.connection.unfinished_bytes for peer in peers_of(world).all)

        clock = Clock()
        async with World(clock=clock, guard=MemoryGuard(slack_bytes=4 * MIB, rss_bytes=resident)) as world:
            good = await world.ready()
            world.v2.on_time(clock.ms(100))
            for _ in range(150):
                raw = await zmtp_dial(world.runtime.agents_socket)
                world.opened.append(raw)
                await sends(raw, b"\x02" + struct.pack(">Q", 65_000) + bytes(60_000))
            await world.until(lambda: resident() > 108 * MIB)
            for _ in range(4):
                world.v2.on_time(clock.ms(100))
            assert resident() <= 104 * MIB
            assert world.v2.memory_cuts >= 80
            await is_served(world, good)


class TestReentrancy:
    async def test_a_flush_finds_out_that_the_peer_is_gone(self) -> None:
        """In the first of many messages: every call ends once, as Disconnected, and the books are balanced."""
        async with World() as world:
            raw = await raw_instance(world, is_paused=False)
            calls = [world.ask() for _ in range(20)]
            for _ in range(3):
                world.ask(kind=EventKind.REQUEST_COMPLETE, observer=True)
            session = session_of(world, instance="raw")
            raw.close()
            session.flush(world.clock())
            assert [call.outcome for call in calls] == [Outcome.DISCONNECTED] * 20
            assert (world.lane.in_flight, world.lane.live_instances) == (0, 0)
            assert world.lane.ledger.completions_sent == 0
            assert world.lane.ledger.completions_dropped == 3

    async def test_what_was_told_to_a_session_that_is_over(self) -> None:
        """Its connection may be another's already: nothing of it is sent there."""
        async with World() as world:
            a = await world.ready()
            world.ask(kind=EventKind.REQUEST_COMPLETE, observer=True)
            session = session_of(world)
            assert session.is_marked
            world.v2._reception.lost(session, "the test says so")
            await a.join()
            await world.until(lambda: world.lane.live_instances == 1)
            assert a.is_silent
            assert world.lane.ledger.completions_sent == 0

    async def test_a_defect_in_one_flush(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The loop is told of it; the others' events leave."""
        async with World() as world:
            agents = [await world.ready(f"i{number}", max_concurrency=1) for number in range(3)]
            broken = session_of(world, instance="i0")
            flush = V2Session.flush

            def flushed(self: V2Session, now: int) -> None:
                if self is broken:
                    raise ZeroDivisionError
                flush(self, now)

            monkeypatch.setattr(V2Session, "flush", flushed)
            told: list[Any] = []
            world.loop.set_exception_handler(lambda loop, context: told.append(context))
            for _ in range(3):
                world.ask()
            for a in agents[1:]:
                await a.events()
            assert isinstance(told[0]["exception"], ZeroDivisionError)

    async def test_a_verdict_that_ends_another_session(self) -> None:
        """Both have bytes waiting in the same turn."""
        async with World() as world:
            one, other = [await raw_instance(world, name, is_paused=False) for name in ("one", "other")]
            calls = [world.ask(), world.ask()]
            await world.until(lambda: not session_of(world, instance="one").is_marked)
            ended = world.asker.ended

            def end(call: Any, now: int) -> None:
                ended(call, now)
                for session in list(world.v2._sessions.values()):
                    if session is not call.instance and call.outcome is Outcome.DECISION:
                        world.v2.drop(session, "the test says so")

            world.asker.ended = end  # type: ignore[method-assign]
            for raw, name in ((one, "one"), (other, "other")):
                ids = [call.call_id for call in calls if call.instance is session_of(world, instance=name)]
                raw.send(message(b"VERDICTS", [[call_id, ALLOW] for call_id in ids]))
            await world.asker.wait(2)
            assert sorted(call.outcome.name for call in calls) == ["DECISION", "DISCONNECTED"]
            assert len(peers_of(world).all) == len(world.v2._sessions) == 1


class TestLastVerdicts:
    async def test_they_count_where_the_end_is_noticed_by_sending(self) -> None:
        """Else a route that is open for failures lets pass what its agent has blocked."""
        async with World(agent(max_concurrent_calls=1_000)) as world:
            raw = await raw_instance(world, is_paused=False, max_concurrency=1_000, max_batch=256)
            answered = [world.ask() for _ in range(250)]
            await world.until(lambda: not session_of(world, instance="raw").is_marked)
            raw.send(b"".join(message(b"VERDICTS", [[call.call_id, ALLOW]]) for call in answered))
            raw.close()
            late = world.ask()
            world.v2._flush()
            assert world.lane.live_instances == 0
            assert [call.outcome for call in answered] == [Outcome.DECISION] * len(answered)
            assert late.outcome is Outcome.DISCONNECTED
            await world.until(lambda: not peers_of(world).all)
            assert world.v2.garbage == 0


class TestStandStill:
    async def test_what_has_come_is_read_at_once(self) -> None:
        """More than one turn of the loop would take; whoever owes nothing waits for its turn."""
        async with World(agent(max_concurrent_calls=1_000)) as world:
            other = await raw_instance(world, "other")
            raw = await raw_instance(world, is_paused=False, max_concurrency=1_000, max_batch=256)
            calls = [world.ask() for _ in range(900)]
            await world.until(lambda: not session_of(world, instance="raw").is_marked)
            raw.send(b"".join(message(b"VERDICTS", [[call.call_id, ALLOW]]) for call in calls))
            fill(other, message(b"PING") * 100)
            assert world.v2.read_arrived()
            assert [call.outcome for call in calls] == [Outcome.DECISION] * 900
            assert session_of(world, instance="other").malformed == 0

    async def test_who_answers_nothing_is_not_read_for_ever(self) -> None:
        async with World() as world:
            raw = await raw_instance(world, is_paused=False)
            call = world.ask()
            fill(raw, b"\x02")
            assert not world.v2.read_arrived()
            assert call.outcome is not Outcome.DECISION
