"""Bodies and request_complete on the way to agents, over real sockets: v2's frames and v1's base64."""

import asyncio
import base64
import json
from typing import Any

import pytest

from agentd.call import Call
from agentd.stats import snapshot
from shared import defaults as d
from shared.decision import ALLOW as SAYS_NOTHING
from shared.decision import ChunkAction, Outcome, Verb
from shared.events import EventKind
from shared.wire.envelope import CancelReason, pack_decision, records, unpack_decision
from shared.zmtp import Connection
from tests.agentd.test_zmq_dealer import session_of
from tests.agentd.test_zmq_rep import V1World
from tests.agentd.zmq_world import RawAgent, World, agent
from tests.support import Clock

ALLOW = {"decision": "allow"}
CHUNK, FRAME = EventKind.REQUEST_BODY_CHUNK, EventKind.WEBSOCKET_FRAME
COMPLETE = EventKind.REQUEST_COMPLETE
EVENT = b'{"event_type":"request_body_chunk","chunk_index":0}'


async def frames_of(a: RawAgent) -> tuple[list[Any], list[bytes]]:
    """The next EVENTS: entries and bodies."""
    frames = await a.expect(b"EVENTS")
    return json.loads(frames[0]), frames[1:]


def replace(index: int = 0, action: str = "replace") -> dict[str, Any]:
    return {"decision": "allow", "request_body_mutation": {"chunk_index": index, "action": action}}


def said(call: Call) -> tuple[ChunkAction, bytes]:
    """What became of a chunk."""
    assert call.outcome is Outcome.DECISION, call.message
    assert call.screened is not None
    assert call.screened.decision is not None
    assert call.screened.decision.chunk is not None
    return call.screened.decision.chunk.action, call.screened.decision.body


def frame(data: bytes) -> memoryview:
    """The bytes as they come off the hop."""
    return memoryview(bytearray(data)).toreadonly()


class TestV2:
    async def test_bodies_are_frames(self) -> None:
        """Numbered within the message; an event without one has no number; what was sent is held by nobody."""
        async with World() as world:
            a = await world.ready(max_batch=10)
            calls = [
                world.ask(kind=CHUNK, event=EVENT, body=frame(b"\x00\xff" * 50_000)),
                world.ask(),
                world.ask(kind=CHUNK, event=EVENT),
                world.ask(kind=FRAME, event=EVENT, body=b"small"),
            ]
            entries, bodies = await frames_of(a)
            assert [entry[0] for entry in entries] == [call.call_id for call in calls]
            assert [entry[3:] for entry in entries] == [[0], [], [], [1]]
            assert bodies == [b"\x00\xff" * 50_000, b"small"]
            assert all(call.body is None for call in calls)
            assert snapshot(world.lane, 0)["body_bytes"] == {"sent": 100_005, "received": 0}

    async def test_verdicts_with_bodies(self) -> None:
        """A replacement from a frame, an empty one from none; a frame named wrongly is that call's fault."""
        async with World() as world:
            a = await world.ready(max_batch=10)
            calls = [world.ask(kind=CHUNK, event=EVENT, body=b"x") for _ in range(6)]
            await frames_of(a)
            ids = [call.call_id for call in calls]
            a.verdicts(
                [ids[0], replace(), 1],
                [ids[1], replace()],
                [ids[2], replace(), 2],
                [ids[3], replace(), 1],
                [ids[4], replace(index=1), 0],
                [ids[5], replace(action="drop")],
                bodies=[b"wrong chunk", b"new"],
            )
            await world.asker.wait(6)
            assert said(calls[0]) == (ChunkAction.REPLACE, b"new")
            assert said(calls[1]) == (ChunkAction.DROP, b"")
            assert said(calls[5]) == (ChunkAction.DROP, b"")
            assert [call.message for call in calls[2:5]] == [
                "names body frame 2, the message has 2",
                "names body frame 1, which another verdict has",
                "the mutation is of chunk 1, the event's is 0",
            ]
            assert all(call.outcome is Outcome.MALFORMED for call in calls[2:5])
            assert snapshot(world.lane, 0)["body_bytes"]["received"] == len(b"newwrong chunk")
            assert world.seat.garbage == 0

    async def test_long_bodies_of_verdicts(self) -> None:
        """A replacement leaves as it came; a page is put into the record."""
        async with World() as world:
            a = await world.ready(max_batch=10)
            calls = [world.ask(kind=CHUNK, event=EVENT, body=b"x") for _ in range(2)]
            calls.append(world.ask())
            await frames_of(a)
            long, page = b"n" * 300_000, b"p" * 300_000
            block = {"decision": {"block": {"status": 403}}}
            ids = [call.call_id for call in calls]
            a.verdicts([ids[0], replace(), 0], [ids[1], block, 1], [ids[2], block, 2], bodies=[long, page, page])
            await world.asker.wait(3)
            action, body = said(calls[0])
            assert (action, body) == (ChunkAction.REPLACE, long)
            assert type(body) is bytes
            for call in calls[1:]:
                assert call.screened is not None
                assert call.screened.decision is not None
                record = pack_decision(1, call.screened.decision)
                ((_, rest),) = records(record)
                assert unpack_decision(rest)[1].body == page

    async def test_long_frames_where_none_belong(self) -> None:
        """Other verbs have their frames as bytes: too long ones are bad messages, nothing breaks."""
        async with World() as world:
            a = await world.ready()
            a.send(b"PING", b"x" * 10_000, b"y" * 10_000)
            a.send(b"HEALTH", b"{}", b"y" * 10_000)
            await world.until(lambda: world.seat.garbage == 2)
            a.send(b"PING", b"1", b"2")
            assert await a.expect(b"PONG") == [b"1", b"2"]

    async def test_what_repeats_is_remembered_and_what_is_last_is_another_question(self) -> None:
        async with World() as world:
            a = await world.ready(max_batch=10)
            verdict = {"decision": "allow", "needs_more": True}
            for index in range(3):
                call = world.ask(kind=CHUNK, event=EVENT, body=b"x", index=index, is_last=index == 2)
                await frames_of(a)
                a.verdicts([call.call_id, verdict])
                await world.asker.wait(index + 1)
            outcomes = [call.outcome for call in world.asker.calls]
            assert outcomes == [Outcome.DECISION, Outcome.DECISION, Outcome.MALFORMED]

    async def test_longer_than_it_said_it_takes(self) -> None:
        """BODY_TOO_LARGE, before it is sent; by default a MiB."""
        async with World() as world:
            a = await world.ready(max_body_bytes=1_000)
            assert session_of(world).max_body_bytes == 1_000
            over = world.ask(kind=CHUNK, event=EVENT, body=bytes(1_001))
            assert over.outcome is Outcome.BODY_TOO_LARGE
            fits = world.ask(kind=CHUNK, event=EVENT, body=bytes(1_000))
            entries, _ = await frames_of(a)
            assert [entry[0] for entry in entries] == [fits.call_id]
            other = await world.ready(instance="i2")
            assert session_of(world, instance="i2").max_body_bytes == d.HELLO_MAX_BODY_BYTES
            assert other.is_silent

    async def test_never_longer_than_a_message(self) -> None:
        """Whatever HELLO says; one of that length arrives."""
        async with World(agent(max_outstanding_bytes=100_000_000)) as world:
            a = await world.ready(max_body_bytes=1 << 40)
            assert session_of(world).max_body_bytes == d.HOP_BODY_MAX_BYTES
            longest = bytes(d.HOP_BODY_MAX_BYTES)
            world.ask(kind=CHUNK, event=EVENT, body=longest)
            world.ask(kind=CHUNK, event=EVENT, body=longest)
            for _ in range(2):
                entries, bodies = await frames_of(a)
                assert (len(entries), len(bodies[0])) == (1, len(longest))

    async def test_a_batch_is_cut_at_the_length_of_a_message(self) -> None:
        async with World(agent(max_outstanding_bytes=100_000_000)) as world:
            a = await world.ready(max_batch=100, max_body_bytes=8_000_000)
            calls = [world.ask(kind=CHUNK, event=EVENT, body=bytes([i]) * 5_000_000) for i in range(5)]
            seen = []
            for expected in (3, 2):
                entries, bodies = await frames_of(a)
                assert len(entries) == expected
                seen += [(entry[0], bodies[entry[3]][:1]) for entry in entries]
            assert seen == [(call.call_id, bytes([i])) for i, call in enumerate(calls)]

    async def test_unread_bytes_count_bodies(self) -> None:
        """Over the bound QueueFull; a verdict shows that everything before was read."""
        async with World(agent(max_outstanding_bytes=1_000_000)) as world:
            a = await world.ready(max_body_bytes=1 << 30)
            session = session_of(world)
            assert session.max_body_bytes == 500_000
            calls = [world.ask(kind=CHUNK, event=EVENT, body=bytes(400_000)) for _ in range(3)]
            assert calls[2].outcome is Outcome.QUEUE_FULL
            assert world.seat.sends_refused == {"bytes": 1}
            await frames_of(a)
            await frames_of(a)
            a.verdicts([calls[0].call_id, ALLOW], [calls[1].call_id, ALLOW])
            await world.asker.wait(3)
            third = world.ask(kind=CHUNK, event=EVENT, body=bytes(400_000))
            await frames_of(a)
            a.verdicts([third.call_id, ALLOW])
            await world.asker.wait(4)
            await world.until(lambda: session.unread_bytes < 410_000)

    async def test_cancelled_before_it_left(self) -> None:
        """Nothing is sent, and its bytes are not counted as unread."""
        async with World() as world:
            a = await world.ready()
            call = world.ask(kind=CHUNK, event=EVENT, body=bytes(100_000))
            world.lane.cancel(call, CancelReason.CLIENT_GONE, world.clock())
            assert session_of(world).unread_bytes == 0
            assert call.body is None
            later = world.ask(kind=CHUNK, event=EVENT, body=b"later")
            assert (await frames_of(a))[1] == [b"later"]
            world.lane.cancel(later, CancelReason.DECIDED, world.clock())
            assert await a.json(b"CANCEL") == [[later.call_id, "decided"]]

    async def test_an_event_that_fits_no_message(self) -> None:
        """A text of the worker's, almost as long as a message of the hop: no blame."""
        async with World() as world:
            await world.ready()
            event = b'{"content":"' + b"x" * (d.AGENT_MAX_MESSAGE_BYTES - 1_000) + b'"}'
            call = world.ask(kind=EventKind.GUARDRAIL_INSPECT, event=event)
            await world.asker.wait(1)
            assert call.outcome is Outcome.BODY_TOO_LARGE
            assert world.lane.breaker.snapshot(0)["failures"] == 0
            assert session_of(world).unread_bytes == 0

    async def test_a_close(self) -> None:
        """The verdict on a frame."""
        async with World() as world:
            a = await world.ready()
            call = world.ask(kind=FRAME, event=EVENT, body=b"x")
            await frames_of(a)
            a.verdicts([call.call_id, {"websocket_decision": {"close": {"code": 4000, "reason": "no"}}}])
            await world.asker.wait(1)
            assert call.screened is not None
            decision = call.screened.decision
            assert decision is not None
            assert (decision.verb, decision.status, decision.body) == (Verb.BLOCK, 4000, b"no")


class TestTold:
    """request_complete over v2."""

    async def test_an_answer_is_ignored(self) -> None:
        """As many as there were events; not late, not garbage; one more is garbage, so is one never sent."""
        async with World() as world:
            a = await world.ready(max_batch=5)
            for _ in range(2):
                world.ask(kind=COMPLETE, observer=True, event=b'{"event_type":"request_complete"}')
            entries = await a.events()
            assert [entry[2]["event_type"] for entry in entries] == ["request_complete"] * 2
            assert all(len(entry) == 3 for entry in entries)
            assert len(world.asker.calls) == 2
            assert world.lane.in_flight == 0
            a.verdicts(*[[entry[0], {"anything": 1}] for entry in entries])
            call = world.ask()
            ((call_id, *_),) = await a.events()
            a.verdicts([call_id, ALLOW])
            await world.asker.wait(3)
            assert call.outcome is Outcome.DECISION
            assert world.seat.garbage == 0
            assert snapshot(world.lane, 0)["late_verdicts"] == 0
            a.verdicts([entries[0][0], ALLOW])
            await world.until(lambda: world.seat.garbage == 1)

    async def test_in_a_batch_behind_the_calls(self) -> None:
        """One message for what a tick has, the end of a request after its other events; PING shows it was read."""
        async with World() as world:
            a = await world.ready(max_batch=5)
            world.ask(kind=COMPLETE, observer=True, event=b'{"e":2}')
            world.ask(kind=CHUNK, event=b'{"e":1}', body=b"x")
            entries, bodies = await frames_of(a)
            assert [entry[2]["e"] for entry in entries] == [1, 2]
            assert len(bodies) == 1
            assert session_of(world).unread_bytes > 0

    async def test_beyond_three_quarters_of_the_bound_they_are_dropped(self) -> None:
        """Calls are still taken; when all was read they are told again."""
        clock = Clock()
        async with World(agent(max_outstanding_bytes=65_536), clock=clock) as world:
            a = await world.ready()
            session = session_of(world)
            event = b'{"x":"' + b"x" * 10_000 + b'"}'
            for _ in range(6):
                world.ask(kind=COMPLETE, observer=True, event=event)
            found = snapshot(world.lane, 0)["completions"]
            assert found == {"sent": 4, "dropped": 2}
            world.ask(event=event)
            assert world.lane.in_flight == 1
            for _ in range(5):
                await a.events()
            clock.ms(d.AGENT_LOOK_MS)
            world.v2.on_time(clock())
            ping = await a.expect(b"PING")
            a.send(b"PONG", *ping)
            await world.until(lambda: session.unread_bytes == 0)
            world.ask(kind=COMPLETE, observer=True, event=event)
            assert snapshot(world.lane, 0)["completions"] == {"sent": 5, "dropped": 2}

    async def test_a_full_socket(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Counted as dropped after all."""
        async with World() as world:
            await world.ready()
            session = session_of(world)
            world.ask(kind=COMPLETE, observer=True)
            monkeypatch.setattr(Connection, "send", lambda self, frames: False)
            session.flush(world.clock())
            assert snapshot(world.lane, 0)["completions"] == {"sent": 0, "dropped": 1}


class TestV1:
    async def test_bodies_are_base64(self) -> None:
        """The payload is the event and `data`, also for an empty one; heads have no `data`."""
        async with V1World() as world:
            await world.up()
            for kind, body in ((CHUNK, b"\x00\xff" * 1_000), (FRAME, b"text"), (CHUNK, None)):
                call = world.ask(kind=kind, event=EVENT, body=None if body is None else memoryview(body))
                await world.asker.wait(len(world.asker.calls) + 1)
                assert call.outcome is Outcome.DECISION or kind is FRAME
                seen = world.agent_v1.seen[-1]
                assert seen["event_type"] == kind.wire_name
                assert base64.b64decode(seen["payload"].pop("data"), validate=True) == (body or b"")
                assert seen["payload"] == json.loads(EVENT)
                assert call.body is None
            world.ask()
            await world.asker.wait(4)
            assert "data" not in world.agent_v1.seen[-1]["payload"]
            assert snapshot(world.lane, 0)["body_bytes"] == {"sent": 2_004, "received": 0}

    @pytest.mark.parametrize(
        ("mutation", "expected"),
        [
            ({"data": base64.b64encode(b"new").decode()}, (ChunkAction.REPLACE, b"new")),
            ({"data": ""}, (ChunkAction.DROP, b"")),
            ({"data": None}, None),
            ({"action": "drop"}, (ChunkAction.DROP, b"")),
            ({"data": "#"}, "the mutation's data is not base64"),
        ],
        ids=str,
    )
    async def test_mutations(self, mutation: dict[str, Any], expected: Any) -> None:
        answer = {"version": 1, "decision": "allow", "request_body_mutation": {"chunk_index": 0, **mutation}}
        async with V1World(answers=[{"version": 1, "decision": "allow"}, answer]) as world:
            await world.up()
            call = world.ask(kind=CHUNK, event=EVENT, body=b"x")
            await world.asker.wait(1)
            if isinstance(expected, str):
                assert (call.outcome, call.message) == (Outcome.MALFORMED, expected)
            elif expected is None:
                assert call.screened is not None
                assert call.screened.decision is SAYS_NOTHING
            else:
                assert said(call) == expected
                assert snapshot(world.lane, 0)["body_bytes"]["received"] == len(expected[1])

    async def test_longer_than_a_message_in_base64(self) -> None:
        """No blame; the longest that fits arrives."""
        async with V1World() as world:
            await world.up()
            longest = world.connection.max_body_bytes
            over = world.ask(kind=CHUNK, event=EVENT, body=bytes(longest + 1))
            assert over.outcome is Outcome.BODY_TOO_LARGE
            call = world.ask(kind=CHUNK, event=EVENT, body=bytes(longest))
            await world.asker.wait(2)
            assert call.outcome is Outcome.DECISION

    @pytest.mark.parametrize(
        "reply", [{}, {"success": True}, [], "gone", b"no JSON", [b"{}", b"{}"], {"decision": "deny"}], ids=str
    )
    async def test_odd_replies_to_request_complete(self, reply: Any) -> None:
        """None is a failure; the next call is served on the same connection."""
        reply = [b"[]"] if reply == [] else reply
        async with V1World(answers=[{"version": 1, "decision": "allow"}, reply]) as world:
            await world.up()
            world.ask(kind=COMPLETE, observer=True)
            await world.asker.wait(1)
            world.ask()
            await world.asker.wait(2)
            assert [call.outcome for call in world.asker.calls] == [Outcome.DECISION] * 2
            assert (world.connection.malformed, world.connection.dials) == (0, 1)
            assert snapshot(world.lane, 0)["completions"] == {"sent": 1, "dropped": 0}

    async def test_request_complete_unanswered(self) -> None:
        """The lockstep is lost: dialled anew, without blame."""
        async with V1World(answers=[{"version": 1, "decision": "allow"}, None]) as world:
            await world.up()
            call = world.ask(kind=COMPLETE, observer=True, timeout_ms=50)
            await world.seen(2)
            await asyncio.sleep(0)
            world.lane.timed_out(call, world.clock())
            assert world.connection.owes == 0
            await world.until(lambda: world.connection.dials == 2)
            assert world.lane.breaker.snapshot(0)["failures"] == 0
