"""agentd/transport/zmq_{dealer,reception,session}.py: v2 over real sockets, frame by frame."""

import asyncio
import json
import os
import re
import socket
import stat
from pathlib import Path
from typing import Any

import pytest
import zmq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentd.memory import MemoryGuard
from agentd.peers import Peers
from agentd.stats import snapshot
from agentd.transport.unread import Remembered
from agentd.transport.zmq_session import V2Session
from shared import defaults as d
from shared.clock import MS
from shared.config.schema import CircuitBreaker
from shared.decision import Outcome, Verb
from shared.wire.agent_messages import proof
from shared.wire.envelope import CancelReason
from shared.wire.session import State
from shared.zmtp import Connection
from tests.agentd.fakes import FakeInstance
from tests.agentd.zmq_world import EVENT, RawAgent, World, agent, is_cut, zmtp_dial, zmtp_frame
from tests.support import Clock

ALLOW = {"decision": "allow"}
BLOCK = {"decision": {"block": {"status": 403, "body": "no"}}}


def session_of(world: World, name: str = "waf", instance: str = "i1") -> V2Session:
    session: V2Session = world.v2.registry.seats[name].sessions[instance]
    return session


def peers_of(world: World) -> Peers:
    assert world.v2._peers is not None
    return world.v2._peers


def verb_of(call: Any) -> Verb:
    verb: Verb = call.screened.decision.verb
    return verb


class TestIntroduction:
    async def test_the_documented_conversation(self) -> None:
        async with World(agent(config={"paranoia": 1}, timeout_ms=123)) as world:
            a = world.agent()
            a.hello(max_batch=16, version="1.0", something_new=True)
            welcome = await a.json(b"WELCOME")
            assert welcome == {"protocol": 2, "session": welcome["session"], "heartbeat_ms": d.AGENT_HEARTBEAT_MS}
            config = await a.json(b"CONFIG")
            assert config == {
                "config": {"paranoia": 1},
                "config_version": config["config_version"],
                "timeout_ms": 123,
                "max_request_body_bytes": d.MAX_AGENT_BODY_BYTES,
                "max_response_body_bytes": d.MAX_AGENT_BODY_BYTES,
            }
            a.send(b"CONFIG_RESULT", {"config_version": config["config_version"], "accepted": True})
            await world.until(lambda: world.lane.live_instances)
            calls = [world.ask(), world.ask()]
            entries = await a.events()
            assert [(e[0], e[2]) for e in entries] == [(c.call_id, json.loads(EVENT)) for c in calls]
            a.verdicts([calls[1].call_id, BLOCK], [calls[0].call_id, ALLOW])
            ended = await world.asker.wait(2)
            assert [verb_of(call) for call in ended] == [Verb.BLOCK, Verb.ALLOW]

    async def test_no_events_before_config_is_accepted(self) -> None:
        """Until then there is no instance: Disconnected at once."""
        async with World() as world:
            a = world.agent()
            a.hello()
            await a.expect(b"WELCOME")
            await a.expect(b"CONFIG")
            assert world.ask().outcome is Outcome.DISCONNECTED
            assert a.is_silent

    async def test_an_old_config_version_is_no_answer(self) -> None:
        async with World() as world:
            a = world.agent()
            a.hello()
            await a.expect(b"WELCOME")
            config = await a.json(b"CONFIG")
            a.send(b"CONFIG_RESULT", {"config_version": "older", "accepted": True})
            a.send(b"PING", b"1")
            await a.expect(b"PONG")
            assert world.lane.live_instances == 0
            a.send(b"CONFIG_RESULT", {"config_version": config["config_version"], "accepted": True})
            await world.until(lambda: world.lane.live_instances)

    async def test_config_rejected(self) -> None:
        async with World() as world:
            a = world.agent()
            a.hello()
            await a.expect(b"WELCOME")
            config = await a.json(b"CONFIG")
            a.send(
                b"CONFIG_RESULT", {"config_version": config["config_version"], "accepted": False, "error": "too strict"}
            )
            assert await a.json(b"REFUSE") == {"code": "config_rejected", "reason": "too strict"}
            assert world.lane.live_instances == 0

    async def test_queued_hellos_are_answered_once(self) -> None:
        """An agent that repeated HELLO while agentd was away."""
        async with World() as world:
            a = world.agent()
            for _ in range(30):
                a.hello()
            await a.expect(b"WELCOME")
            await a.expect(b"CONFIG")
            a.send(b"PING", b"1")
            assert (await a.expect(b"PONG")) == [b"1"]

    async def test_hello_again_later_begins_anew(self) -> None:
        """The agent forgot us, on the same connection: what it had is gone."""
        clock = Clock()
        async with World(clock=clock) as world:
            a = await world.ready()
            call = world.ask()
            await a.events()
            clock.ms(d.HELLO_RETRY_MS)
            await a.join()
            assert call.outcome is Outcome.DISCONNECTED
            await world.until(lambda: world.lane.live_instances == 1)
            world.ask()
            await a.events()

    async def test_another_hello_on_the_same_connection(self) -> None:
        async with World() as world:
            a = await world.ready()
            await a.join(instance="i2")
            await world.until(lambda: list(world.seat.sessions) == ["i2"])
            await world.until(lambda: world.lane.live_instances == 1)

    @pytest.mark.parametrize(
        ("said", "code", "is_final"),
        [
            ({"protocol": 1}, "protocol", True),
            ({"agent": "nobody"}, "unknown_agent", True),
            ({"agent": "theirs"}, "not_allowed", True),
            ({"events": ["response_headers"]}, "missing_events", True),
            ({"instance": "not possible"}, "malformed", False),
        ],
    )
    async def test_refused(self, said: dict[str, Any], code: str, is_final: bool) -> None:
        async with World(agent(), agent("theirs", allow_users=("nobody",))) as world:
            a = world.agent()
            a.send(b"HELLO", {"protocol": 2, "agent": "waf", "instance": "x", "events": ["request_headers"], **said})
            refusal = await a.json(b"REFUSE")
            assert refusal["code"] == code
            assert ("retry_after_ms" not in refusal) is is_final
            assert refusal["reason"]
            assert world.v2.registry.refused == {code: 1}

    async def test_refused_is_cut_after_it_could_read(self) -> None:
        clock = Clock()
        async with World(clock=clock) as world:
            a = world.agent()
            a.hello("nobody")
            await a.expect(b"REFUSE")
            world.v2.on_time(clock.ms(d.REFUSED_LINGER_MS - 1))
            assert world.v2.snapshot()[0]["state"] == "refused"
            world.v2.on_time(clock.ms(d.AGENT_LOOK_MS))
            assert world.v2.snapshot() == []
            await world.until(lambda: not peers_of(world).all)

    async def test_final_refusal_does_not_hear_more(self) -> None:
        async with World() as world:
            a = world.agent()
            a.hello("nobody")
            a.hello("waf")
            await a.expect(b"REFUSE")
            b = await world.ready()
            assert a.is_silent
            assert not b.is_silent or world.lane.live_instances == 1

    async def test_too_many_may_try_again_on_the_same_connection(self) -> None:
        async with World() as world:
            for number in range(d.MAX_SESSIONS_PER_AGENT):
                world.seat.sessions[f"taken{number}"] = object()
            a = world.agent()
            a.hello()
            assert (await a.json(b"REFUSE"))["code"] == "too_many"
            world.seat.sessions.clear()
            await a.join()
            await world.until(lambda: world.lane.live_instances)

    async def test_hello_first(self) -> None:
        """What a restarted agentd says to agents it does not know; at most once a second."""
        clock = Clock()
        async with World(clock=clock) as world:
            a = world.agent()
            for _ in range(3):
                a.verdicts(["n1", ALLOW])
            assert await a.json(b"REFUSE") == {
                "code": "hello_first", "reason": "this connection has no session", "retry_after_ms": 0,
            }  # fmt: skip
            await world.until(lambda: world.v2.garbage == 3)
            assert a.is_silent
            await a.join()
            await world.until(lambda: world.lane.live_instances)

    async def test_own_routing_id(self) -> None:
        """What a socket calls itself means nothing: two of the same name are two instances."""
        async with World() as world:
            agents = [world.agent(ROUTING_ID=b"me") for _ in range(2)]
            for number, a in enumerate(agents):
                await a.join(instance=f"i{number}")
            await world.until(lambda: world.lane.live_instances == 2)
            calls = {call.instance.name: call for call in (world.ask(), world.ask())}
            for number, a in enumerate(agents):
                ((call_id, _, _),) = await a.events()
                assert call_id == calls[f"i{number}"].call_id

    async def test_strangers_are_cut(self) -> None:
        """A connection that says nothing, and one that says nothing but other things."""
        clock = Clock()
        async with World(clock=clock) as world:
            world.agent()
            b = world.agent()
            b.send(b"PING")
            await b.expect(b"REFUSE")
            await world.until(lambda: len(peers_of(world).all) == 2)
            world.v2.on_time(clock.ms(d.HELLO_WITHIN_MS - 1))
            assert len(peers_of(world).all) == 2
            world.v2.on_time(clock.ms(d.AGENT_LOOK_MS))
            await world.until(lambda: not peers_of(world).all)

    async def test_users_who_are_nobodys_agent_are_cut_at_once(self) -> None:
        async with World(agent(allow_users=("nobody",))) as world:
            world.agent().hello()
            await world.until(lambda: peers_of(world).refused)
            assert world.v2.snapshot() == []


class TestSecret:
    @pytest.fixture
    def secret(self, tmp_path: Path) -> str:
        (tmp_path / "secret").write_bytes(b"open sesame\n")
        return str(tmp_path / "secret")

    async def challenged(self, world: World, instance: str = "i1") -> tuple[RawAgent, bytes]:
        a = world.agent()
        a.hello(instance=instance)
        (nonce,) = await a.expect(b"CHALLENGE")
        assert len(nonce) == 32
        return a, nonce

    async def test_proved(self, secret: str) -> None:
        async with World(agent(secret_file=secret)) as world:
            a, nonce = await self.challenged(world)
            a.send(b"PROOF", proof(b"open sesame", nonce, "waf", "i1"))
            await a.expect(b"WELCOME")

    async def test_gone_from_the_configuration_before_the_proof(self, secret: str) -> None:
        """A reload between CHALLENGE and PROOF: nobody gets a seat that is no more."""
        async with World(agent(secret_file=secret)) as world:
            a, nonce = await self.challenged(world)
            world.v2.forget(["waf"], world.clock())
            a.send(b"PROOF", proof(b"open sesame", nonce, "waf", "i1"))
            assert (await a.json(b"REFUSE"))["code"] == "unknown_agent"
            assert world.lane.live_instances == 0

    async def test_back_in_the_configuration_before_the_proof(self, secret: str) -> None:
        """It sits where it is asked."""
        async with World(agent(secret_file=secret)) as world:
            a, nonce = await self.challenged(world)
            world.v2.forget(["waf"], world.clock())
            world.v2.configure(world.agents, world.lanes, world.clock())
            a.send(b"PROOF", proof(b"open sesame", nonce, "waf", "i1"))
            await a.expect(b"WELCOME")
            assert set(world.seat.sessions) == {"i1"}

    async def test_wrong(self, secret: str) -> None:
        async with World(agent(secret_file=secret)) as world:
            a, nonce = await self.challenged(world)
            a.send(b"PROOF", proof(b"open barley", nonce, "waf", "i1"))
            refusal = await a.json(b"REFUSE")
            assert (refusal["code"], refusal.get("retry_after_ms")) == ("bad_proof", None)
            assert world.seat.sessions == {}

    async def test_nonces_differ(self, secret: str) -> None:
        async with World(agent(secret_file=secret)) as world:
            assert (await self.challenged(world, "a"))[1] != (await self.challenged(world, "b"))[1]

    async def test_repeated_hello_gets_the_same_nonce(self, secret: str) -> None:
        """Both proofs may be under way; the second one is no fault."""
        async with World(agent(secret_file=secret)) as world:
            a, nonce = await self.challenged(world)
            a.hello()
            assert await a.expect(b"CHALLENGE") == [nonce]
            for _ in range(2):
                a.send(b"PROOF", proof(b"open sesame", nonce, "waf", "i1"))
            await a.expect(b"WELCOME")
            await a.expect(b"CONFIG")
            a.send(b"PING", b"1")
            await a.expect(b"PONG")
            assert world.seat.garbage == 0

    async def test_nothing_without_proof(self, secret: str) -> None:
        async with World(agent(secret_file=secret)) as world:
            a, _ = await self.challenged(world)
            a.send(b"CONFIG_RESULT", {"config_version": "x", "accepted": True})
            await world.until(lambda: world.seat.garbage == 1)
            assert world.seat.sessions == {}

    async def test_without_proof_nobody_is_replaced(self, secret: str) -> None:
        async with World(agent(secret_file=secret)) as world:
            a, nonce = await self.challenged(world)
            a.send(b"PROOF", proof(b"open sesame", nonce, "waf", "i1"))
            await a.expect(b"WELCOME")
            first = session_of(world)
            b, nonce = await self.challenged(world)
            assert session_of(world) is first
            b.send(b"PROOF", bytes(32))
            await b.expect(b"REFUSE")
            assert session_of(world) is first


class TestDuplicates:
    async def test_same_user_replaces(self) -> None:
        """The old one's calls fail at once; it is told for good, or the two would replace each other for ever."""
        async with World() as world:
            old = await world.ready()
            call = world.ask()
            await old.events()
            new = world.agent()
            await new.join()
            refusal = await old.json(b"REFUSE")
            assert (refusal["code"], refusal.get("retry_after_ms")) == ("duplicate_instance", None)
            assert call.outcome is Outcome.DISCONNECTED
            await world.until(lambda: world.lane.live_instances == 1)
            world.ask()
            await new.events()

    async def test_another_user_does_not(self) -> None:
        async with World() as world:
            await world.ready()
            session_of(world).peer.uid += 1
            b = world.agent()
            b.hello()
            refusal = await b.json(b"REFUSE")
            assert refusal["code"] == "duplicate_instance"
            assert refusal["retry_after_ms"] > 0
            assert world.lane.live_instances == 1

    async def test_instances_share_a_name(self) -> None:
        async with World() as world:
            one, two = await world.ready("one"), await world.ready("two")
            world.ask()
            world.ask()
            assert len(await one.events()) == len(await two.events()) == 1


class TestEvents:
    async def test_one_message_per_tick(self) -> None:
        async with World() as world:
            a = await world.ready(max_batch=100)
            for _ in range(50):
                world.ask()
            assert len(await a.events()) == 50
            assert session_of(world).events_sent == 50

    async def test_never_more_than_max_batch(self) -> None:
        async with World() as world:
            a = await world.ready(max_batch=3)
            calls = [world.ask() for _ in range(7)]
            batches = [await a.events() for _ in range(3)]
            assert [len(batch) for batch in batches] == [3, 3, 1]
            assert [e[0] for batch in batches for e in batch] == [c.call_id for c in calls]

    async def test_default_batch_is_one(self) -> None:
        async with World() as world:
            a = await world.ready()
            world.ask()
            world.ask()
            assert [len(await a.events()), len(await a.events())] == [1, 1]

    async def test_budget_is_what_is_left(self) -> None:
        clock = Clock()
        async with World(clock=clock) as world:
            a = await world.ready()
            world.ask(timeout_ms=200)
            clock.ms(50)
            assert (await a.events())[0][1] == 150

    async def test_messages_stay_below_the_limit(self) -> None:
        """Large events are not joined beyond what the agent may refuse."""
        async with World() as world:
            a = await world.ready(max_batch=100)
            large = b'{"x":"' + b"x" * (7 * 1024 * 1024) + b'"}'
            for _ in range(4):
                world.ask(event=large)
            assert [len(await a.events()) for _ in range(2)] == [2, 2]

    async def test_cancelled_in_the_same_tick_is_never_sent(self) -> None:
        async with World() as world:
            a = await world.ready(max_batch=10)
            gone, kept = world.ask(), world.ask()
            world.lane.cancel(gone, CancelReason.CLIENT_GONE, world.clock())
            assert [e[0] for e in await a.events()] == [kept.call_id]
            a.send(b"PING", b"1")
            await a.expect(b"PONG")

    async def test_cancel(self) -> None:
        """All cancels of a tick in one message; late verdicts are no fault."""
        async with World() as world:
            a = await world.ready(max_batch=10)
            calls = [world.ask() for _ in range(3)]
            await a.events()
            world.lane.cancel(calls[0], CancelReason.CLIENT_GONE, world.clock())
            world.lane.cancel(calls[1], CancelReason.DECIDED, world.clock())
            assert await a.json(b"CANCEL") == [[calls[0].call_id, "client_gone"], [calls[1].call_id, "decided"]]
            a.verdicts([calls[0].call_id, ALLOW], [calls[2].call_id, ALLOW])
            await world.asker.wait(1)
            assert snapshot(world.lane, 0)["late_verdicts"] == 1
            assert world.seat.garbage == 0

    async def test_timeout_sends_cancel_and_takes_no_answer(self) -> None:
        clock = Clock()
        async with World(clock=clock) as world:
            a = await world.ready()
            call = world.ask(timeout_ms=200)
            await a.events()
            world.lane.expire(clock.ms(200))
            assert call.outcome is Outcome.TIMEOUT
            assert await a.json(b"CANCEL") == [[call.call_id, "timeout"]]
            a.verdicts([call.call_id, ALLOW])
            await world.until(lambda: snapshot(world.lane, 0)["late_verdicts"] == 1)
            assert world.asker.calls == [call]
            assert world.lane.live_instances == 1

    async def test_max_concurrency_of_the_instance(self) -> None:
        async with World() as world:
            a = await world.ready(max_concurrency=2, max_batch=10)
            calls = [world.ask() for _ in range(3)]
            assert len(await a.events()) == 2
            a.verdicts([calls[0].call_id, ALLOW])
            assert [e[0] for e in await a.events()] == [calls[2].call_id]


class TestVerdicts:
    async def test_any_grouping(self) -> None:
        async with World() as world:
            a = await world.ready(max_batch=10)
            ids = [world.ask().call_id for _ in range(5)]
            await a.events()
            a.verdicts([ids[4], ALLOW])
            a.verdicts()
            a.verdicts([ids[0], BLOCK], [ids[2], ALLOW], [ids[1], ALLOW])
            a.verdicts([ids[3], {"error": {"code": "x", "message": "y"}}])
            await world.asker.wait(5)
            assert world.asker.outcomes() == {
                ids[0]: Outcome.DECISION,
                ids[1]: Outcome.DECISION,
                ids[2]: Outcome.DECISION,
                ids[3]: Outcome.AGENT_ERROR,
                ids[4]: Outcome.DECISION,
            }

    async def test_a_bad_entry_is_that_calls_alone(self) -> None:
        async with World() as world:
            a = await world.ready(max_batch=10)
            ids = [world.ask().call_id for _ in range(5)]
            await a.events()
            a.verdicts(
                [ids[0], {"decision": "deny"}], [ids[1]], [ids[2], ALLOW, "zero"], [ids[3], ALLOW], [ids[4], ALLOW, 0]
            )
            await world.asker.wait(5)
            outcomes = list(world.asker.outcomes().items())
            assert dict(outcomes) == {
                ids[0]: Outcome.MALFORMED,
                ids[1]: Outcome.MALFORMED,
                ids[2]: Outcome.MALFORMED,
                ids[3]: Outcome.DECISION,
                ids[4]: Outcome.MALFORMED,  # there is no body frame 0
            }
            assert world.seat.garbage == 0

    async def test_bodies(self) -> None:
        """A body frame is a block's body; frames are not shared."""
        async with World() as world:
            a = await world.ready(max_batch=10)
            ids = [world.ask().call_id for _ in range(4)]
            await a.events()
            block = {"decision": {"block": {"status": 403}}}
            a.verdicts(
                [ids[0], block, 1], [ids[1], block, 0], [ids[2], block, 1], [ids[3], block, -1],
                bodies=[b"zero", b"\0one"],
            )  # fmt: skip
            calls = {call.call_id: call for call in await world.asker.wait(4)}
            assert [calls[i].outcome for i in ids] == [
                Outcome.DECISION, Outcome.DECISION, Outcome.MALFORMED, Outcome.MALFORMED,
            ]  # fmt: skip
            bodies = [calls[i].screened.decision.body for i in ids[:2]]
            assert bodies == [b"\0one", b"zero"]

    async def test_twice_is_late(self) -> None:
        async with World() as world:
            a = await world.ready()
            call = world.ask()
            await a.events()
            a.verdicts([call.call_id, BLOCK], [call.call_id, ALLOW])
            a.verdicts([call.call_id, ALLOW])
            await world.until(lambda: snapshot(world.lane, 0)["late_verdicts"] == 2)
            assert verb_of(call) is Verb.BLOCK
            assert world.seat.garbage == 0

    async def test_never_asked_is_garbage(self) -> None:
        async with World() as world:
            a = await world.ready()
            call = world.ask()
            await a.events()
            a.verdicts(["guess", ALLOW], [call.call_id, ALLOW])
            await world.asker.wait(1)
            assert call.outcome is Outcome.DECISION
            await world.until(lambda: world.seat.garbage == 1)

    async def test_anothers_call_is_garbage(self) -> None:
        """An instance cannot answer for another, even of its own agent."""
        async with World() as world:
            one, two = await world.ready("one"), await world.ready("two")
            call = world.ask()
            asked, other = (one, two) if call.instance.name == "one" else (two, one)
            await asked.events()
            other.verdicts([call.call_id, ALLOW])
            await world.until(lambda: world.seat.garbage == 1)
            assert call.call_id not in world.asker.outcomes()
            asked.verdicts([call.call_id, BLOCK])
            await world.asker.wait(1)
            assert call.outcome is Outcome.DECISION

    async def test_host_only_where_the_route_says(self) -> None:
        """The memory of verdicts does not mix routes."""
        async with World() as world:
            a = await world.ready(max_batch=10)
            verdict = {"decision": "allow", "request_headers": [{"set": {"name": "host", "value": "b"}}]}
            for _ in range(2):
                may, may_not = world.ask(may_set_host=True), world.ask(may_set_host=False)
                await a.events()
                a.verdicts([may.call_id, verdict], [may_not.call_id, verdict])
                await world.asker.wait(len(world.asker.calls) + 2)
                assert [op.name for op in may.screened.decision.request_ops] == ["host"]
                assert may_not.screened.refused_ops == ("host",)

    def test_remembered_is_bounded(self) -> None:
        memory = Remembered(10)
        for number in range(1_000):
            memory.add(str(number))
        assert all(str(number) in memory for number in range(991, 1_000))
        assert len(memory._young) + len(memory._older) <= 20


class TestLife:
    async def test_ping_both_ways(self) -> None:
        clock = Clock()
        async with World(clock=clock) as world:
            a = await world.ready()
            a.send(b"PING", b"a", b"", b"c")
            assert await a.expect(b"PONG") == [b"a", b"", b"c"]
            world.v2.on_time(clock.ms(d.AGENT_HEARTBEAT_MS))
            frames = await a.expect(b"PING")
            a.send(b"PONG", *frames)
            await world.until(lambda: world.v2.snapshot()[0]["last_seen_ms"] == 0)

    async def test_silent_for_three_heartbeats(self) -> None:
        """Its I/O thread still lives; the agent does not."""
        clock = Clock()
        async with World(clock=clock) as world:
            await world.ready()
            call = world.ask()
            for _ in range(29):
                world.v2.on_time(clock.ms(100))
            assert world.lane.live_instances == 1
            world.v2.on_time(clock.ms(100))
            assert world.lane.live_instances == 0
            assert call.outcome is Outcome.DISCONNECTED
            await world.until(lambda: not peers_of(world).all)

    async def test_our_own_standing_still_kills_nobody(self) -> None:
        clock = Clock()
        async with World(clock=clock) as world:
            a = await world.ready()
            world.v2.on_time(clock.s(60))
            assert world.lane.live_instances == 1
            await a.expect(b"PING")

    async def test_connection_lost(self) -> None:
        async with World() as world:
            a = await world.ready()
            call = world.ask()
            await a.events()
            changes = world.changes
            a.close()
            await world.asker.wait(1)
            assert call.outcome is Outcome.DISCONNECTED
            assert (world.lane.live_instances, world.seat.sessions) == (0, {})
            assert world.changes == changes + 1

    async def test_bye_of_the_agent(self) -> None:
        async with World() as world:
            a = await world.ready()
            call = world.ask()
            await a.events()
            a.send(b"BYE")
            await world.asker.wait(1)
            assert call.outcome is Outcome.DISCONNECTED
            await a.join()
            await world.until(lambda: world.lane.live_instances == 1)

    async def test_pause_and_resume(self) -> None:
        """Paused: new requests queue; pinned ones go on."""
        async with World() as world:
            a = await world.ready(max_batch=10)
            key = (b"w", 1)
            world.ask(key=key)
            await a.events()
            a.send(b"PAUSE")
            await world.until(lambda: session_of(world).is_paused)
            waiting, pinned = world.ask(), world.ask(key=key)
            assert [e[0] for e in await a.events()] == [pinned.call_id]
            a.send(b"RESUME")
            assert [e[0] for e in await a.events()] == [waiting.call_id]

    async def test_health_weighs_in_the_choice(self) -> None:
        async with World() as world:
            one, two = await world.ready("one"), await world.ready("two")
            one.send(b"HEALTH", {"state": "unhealthy", "message": "no rules", "load": 0.2})
            await world.until(lambda: session_of(world, instance="one").health == "unhealthy")
            for _ in range(5):
                world.ask()
                await two.events()
            row = next(row for row in world.v2.snapshot() if row["instance"] == "one")
            assert (row["health_message"], row["load"]) == ("no rules", 0.2)

    async def test_metrics_are_kept_for_the_exporter(self) -> None:
        async with World() as world:
            a = await world.ready()
            a.send(b"METRICS", {"counters": [{"name": "hits", "labels": {"rule": "1"}, "value": 3}]})
            await world.until(lambda: world.seat.reported.totals().series)

    async def test_a_new_session_half_opens_the_breaker(self) -> None:
        async with World(agent(circuit_breaker=CircuitBreaker(failure_threshold=1))) as world:
            a = await world.ready()
            world.ask()
            await a.events()
            a.close()
            await world.asker.wait(1)
            assert world.ask().outcome is Outcome.BREAKER_OPEN
            b = await world.ready()
            world.ask()
            await b.events()


class TestDrain:
    async def test_of_the_agent(self) -> None:
        """No new requests, pinned ones go on, BYE when the last has ended."""
        async with World() as world:
            a = await world.ready(max_batch=10)
            key = (b"w", 1)
            first = world.ask(key=key)
            await a.events()
            a.send(b"DRAIN", {"deadline_ms": 60_000})
            await world.until(lambda: session_of(world).is_draining)
            other, pinned = world.ask(), world.ask(key=key)
            assert [e[0] for e in await a.events()] == [pinned.call_id]
            a.verdicts([first.call_id, ALLOW], [pinned.call_id, ALLOW])
            await world.asker.wait(2)
            a.send(b"PING", b"1")
            await a.expect(b"PONG")
            world.lane.release_pin(key)
            await a.expect(b"BYE")
            assert other.outcome is Outcome.DISCONNECTED
            assert world.seat.sessions == {}

    async def test_with_nothing_to_do(self) -> None:
        async with World() as world:
            a = await world.ready()
            a.send(b"DRAIN", {})
            await a.expect(b"BYE")

    async def test_before_config_was_accepted(self) -> None:
        async with World() as world:
            a = world.agent()
            a.hello()
            await a.expect(b"WELCOME")
            await a.expect(b"CONFIG")
            a.send(b"DRAIN", {})
            await a.expect(b"BYE")

    async def test_at_the_deadline(self) -> None:
        clock = Clock()
        async with World(clock=clock) as world:
            a = await world.ready()
            call = world.ask()
            await a.events()
            a.send(b"DRAIN", {"deadline_ms": 500})
            await world.until(lambda: session_of(world).is_draining)
            world.v2.on_time(clock.ms(400))
            a.send(b"PING", b"1")
            await a.expect(b"PONG")
            world.v2.on_time(clock.ms(100))
            await a.expect(b"BYE")
            assert call.outcome is Outcome.DISCONNECTED

    async def test_stop(self) -> None:
        """DRAIN to all, BYE to each as it is done, newcomers refused, the socket gone."""
        async with World() as world:
            busy, idle = await world.ready("busy"), await world.ready("idle")
            session_of(world, instance="idle").is_paused = True
            call = world.ask()
            await busy.events()
            stopping = world.loop.create_task(world.v2.stop(world.clock() + 60_000 * MS))
            drain = await busy.json(b"DRAIN")
            assert 59_000 < drain["deadline_ms"] <= 60_000
            await idle.expect(b"DRAIN")
            await idle.expect(b"BYE")
            late = world.agent()
            late.hello(instance="late")
            refusal = await late.json(b"REFUSE")
            assert (refusal["code"], refusal["retry_after_ms"]) == ("shutting_down", d.HELLO_RETRY_MS)
            busy.verdicts([call.call_id, ALLOW])
            await busy.expect(b"BYE")
            async with asyncio.timeout(5):
                await stopping
            assert call.outcome is Outcome.DECISION
            assert os.listdir(world.runtime.agents_dir) == []

    async def test_stop_at_the_deadline(self) -> None:
        clock = Clock()
        async with World(clock=clock) as world:
            a = await world.ready()
            call = world.ask()
            await a.events()
            stopping = world.loop.create_task(world.v2.stop(clock.now + 1_000 * MS))
            await a.expect(b"DRAIN")
            world.v2.on_time(clock.ms(1_000))
            await a.expect(b"BYE")
            async with asyncio.timeout(5):
                await stopping
            assert call.outcome is Outcome.DISCONNECTED

    async def test_late_is_no_fault_but_again_and_again_is(self) -> None:
        """More late answers a second than an agent may chat: no blame. The same ones over and over: bad messages."""
        async with World(clock=Clock()) as world:
            a = await world.ready()
            late = []
            for _ in range(d.AGENT_CHATTER_PER_S + 20):
                call = world.ask()
                await a.events()
                world.lane.cancel(call, CancelReason.CLIENT_GONE, world.clock())
                await a.expect(b"CANCEL")
                late.append(call.call_id)
            for call_id in late:
                a.verdicts([call_id, ALLOW])
            a.send(b"PING", b"after")
            assert await a.expect(b"PONG") == [b"after"]
            for _ in range(d.AGENT_CHATTER_PER_S + d.BAD_MESSAGES_PER_MIN):
                a.verdicts([late[-1], ALLOW])
            assert (await a.json(b"REFUSE"))["code"] == "malformed"

    async def test_the_last_words_reach_an_agent_with_immediate(self) -> None:
        """libzmq throws away what such an agent has not read when the connection ends: agentd waits a moment."""
        async with World() as world:
            a = world.agent(IMMEDIATE=1)
            await world.until(lambda: a.socket.getsockopt(zmq.EVENTS) & zmq.POLLOUT)
            await a.join()
            await world.until(lambda: world.lane.live_instances)
            world.loop.remove_reader(a.socket.fileno())  # it reads a little later than agentd says BYE
            reads = world.loop.call_later(d.AGENT_LAST_WORDS_MS / 4000, a.pump.drain)
            async with asyncio.timeout(5):
                await world.v2.stop(world.clock() + 1_000 * MS)
            reads.cancel()
            await world.until(lambda: not a.socket.getsockopt(zmq.EVENTS) & zmq.POLLOUT)  # its I/O thread knows too
            a.pump.drain()
            world.loop.add_reader(a.socket.fileno(), a.pump.drain)
            await a.expect(b"DRAIN")
            await a.expect(b"BYE")

    async def test_close_fails_what_is_in_flight(self) -> None:
        async with World() as world:
            a = await world.ready()
            call = world.ask()
            await a.events()
            world.v2.close()
            assert call.outcome is Outcome.DISCONNECTED
            await a.expect(b"BYE")
            world.v2.close()

    async def test_an_operator_drains_one(self) -> None:
        """The lane's `begin_drain`, and a session closed by force."""
        async with World() as world:
            one, two = await world.ready("one"), await world.ready("two")
            session_of(world, instance="one").begin_drain(world.clock() + 1_000 * MS)
            await one.expect(b"DRAIN")
            await one.expect(b"BYE")
            session_of(world, instance="two").close("operator")
            await world.until(lambda: world.lane.live_instances == 0)
            assert two.is_silent


class TestReload:
    async def test_changed_config_is_sent_and_pauses_until_accepted(self) -> None:
        async with World(agent(config={"a": 1})) as world:
            a = await world.ready()
            world.v2.configure([agent(config={"a": 2})], world.lanes, 0)
            config = await a.json(b"CONFIG")
            assert config["config"] == {"a": 2}
            world.ask()
            assert session_of(world).wire.state is State.RECONFIGURING
            a.send(b"CONFIG_RESULT", {"config_version": config["config_version"], "accepted": True})
            await a.events()

    @pytest.mark.parametrize("verb", [b"CONFIG", b"DRAIN"])
    async def test_what_was_asked_before_comes_before(self, verb: bytes) -> None:
        """In the very tick of a reload, whether it brings CONFIG or DRAIN: what it says is about what follows."""
        async with World() as world:
            a = await world.ready()
            call = world.ask()
            others = [agent(config={"a": 2})] if verb == b"CONFIG" else []
            world.v2.configure(others, world.lanes if others else {}, world.clock() + 60_000 * MS)
            assert [entry[0] for entry in await a.events()] == [call.call_id]
            await a.expect(verb)

    async def test_gone_when_a_reload_has_something_for_it(self) -> None:
        """The connection breaks under what is sent before CONFIG: an end like any other."""
        async with World() as world:
            raw = await zmtp_dial(world.runtime.agents_socket)
            hello = json.dumps(
                {"protocol": 2, "agent": "waf", "instance": "i1", "events": ["request_headers"]}
            ).encode()
            version = world.seat.configuration.config_version
            accepted = json.dumps({"config_version": version, "accepted": True}).encode()
            for verb, body in ((b"HELLO", hello), (b"CONFIG_RESULT", accepted)):
                await world.loop.sock_sendall(raw, zmtp_frame(verb, more=True) + zmtp_frame(body, more=False))
            await world.until(lambda: world.lane.live_instances)
            raw.close()
            call = world.ask()
            world.v2.configure([agent(config={"a": 2})], world.lanes, 0)
            assert call.outcome is Outcome.DISCONNECTED
            assert world.lane.live_instances == 0

    async def test_a_rejected_reload_leaves_the_old_configuration_in_place(self) -> None:
        """A fault in the agent's own table stops nobody: it goes on, degraded, until a reload that it accepts."""
        async with World(agent(config={"a": 1})) as world:
            a = await world.ready()
            for value, answer, health in ((2, {"accepted": False, "error": "a: too strict"}, "degraded"),
                                          (3, {"accepted": True}, "healthy")):  # fmt: skip
                world.v2.configure([agent(config={"a": value})], world.lanes, 0)
                config = await a.json(b"CONFIG")
                a.send(b"CONFIG_RESULT", {"config_version": config["config_version"], **answer})
                await world.until(lambda: session_of(world).wire.state is State.READY)
                session = session_of(world)
                assert session.health == health
                assert session.health_message == ("configuration rejected: a: too strict" if value == 2 else "")
                world.ask()
                await a.events()

    async def test_instances_get_it_one_after_the_other(self) -> None:
        """While one of them takes it the other goes on; one that does not answer holds up nobody for long."""
        clock = Clock()
        async with World(agent(config={"a": 1}), clock=clock) as world:
            one, two = await world.ready(instance="one"), await world.ready(instance="two")
            world.v2.configure([agent(config={"a": 2})], world.lanes, 0)
            config = await one.json(b"CONFIG")
            assert two.is_silent
            world.ask()
            assert len(session_of(world, instance="two").calls) == 1
            await world.until(lambda: not session_of(world, instance="two").is_marked)
            one.send(b"CONFIG_RESULT", {"config_version": config["config_version"], "accepted": True})
            await two.events()
            assert (await two.json(b"CONFIG"))["config"] == {"a": 2}
            world.v2.configure([agent(config={"a": 3})], world.lanes, 0)
            assert (await two.json(b"CONFIG"))["config"] == {"a": 3}, "it was not yet done with the one before"
            assert one.is_silent
            clock.ms(d.RECONFIGURE_WITHIN_MS + 1)
            world.v2.on_time(clock())
            assert (await one.json(b"CONFIG"))["config"] == {"a": 3}

    async def test_same_config_is_not_sent(self) -> None:
        async with World() as world:
            a = await world.ready()
            world.v2.configure([agent(max_queue=3)], world.lanes, 0)
            a.send(b"PING")
            await a.expect(b"PONG")

    async def test_what_no_longer_fits_is_refused(self) -> None:
        async with World() as world:
            a = await world.ready(events=["request_headers"])
            world.v2.configure([agent(events=("request_headers", "response_headers"))], world.lanes, 0)
            assert (await a.json(b"REFUSE"))["code"] == "missing_events"
            b = world.agent()
            await b.join()
            world.v2.configure([agent(allow_users=("nobody",))], world.lanes, 0)
            assert (await b.json(b"REFUSE"))["code"] == "not_allowed"

    async def test_an_agent_that_is_dialled_from_now_on(self) -> None:
        """Another protocol: it serves until somebody else can be asked."""
        async with World() as world:
            a = await world.ready()
            other = agent(protocol="zmq-v1", endpoint="ipc:///nowhere")
            world.lane.configure(other, world.clock())
            for _ in range(2):
                world.v2.configure([other], world.lanes, world.clock())
            world.v2.on_time(world.clock() + 200 * MS)
            call = world.ask()
            ((call_id, _, _),) = await a.events()
            a.verdicts([call_id, {"decision": "allow"}])
            await world.asker.wait(1)
            assert call.outcome is Outcome.DECISION
            FakeInstance(world.lane, "other").up()
            world.v2.on_time(world.clock() + 400 * MS)
            await a.expect(b"DRAIN")
            await a.expect(b"BYE")
            assert [instance.name for instance in world.lane.pool.instances] == ["other"]

    async def test_nobody_is_waited_for_for_ever(self) -> None:
        async with World() as world:
            a = await world.ready()
            other = agent(protocol="zmq-v1", endpoint="ipc:///nowhere")
            world.v2.configure([other], world.lanes, world.clock())
            world.v2._reception.rollout.look(world.clock() + d.V1_HANDOVER_MS * MS - 10**9)
            assert world.lane.live_instances == 1
            world.v2._reception.rollout.look(world.clock() + d.V1_HANDOVER_MS * MS)
            await a.expect(b"DRAIN")

    async def test_agent_that_is_gone_is_drained(self) -> None:
        async with World() as world:
            a = await world.ready()
            world.v2.configure([], {}, world.clock() + 1_000 * MS)
            await a.expect(b"DRAIN")
            await a.expect(b"BYE")
            a.hello()
            assert (await a.json(b"REFUSE"))["code"] == "unknown_agent"


class TestBadPeers:
    async def test_three_bad_messages(self) -> None:
        clock = Clock()
        async with World(clock=clock) as world:
            a = await world.ready()
            call = world.ask()
            await a.events()
            for frames in ([b"NONSENSE"], [b"VERDICTS", b"{"], [b"", b"HELLO"]):
                a.send(*frames)
            refusal = await a.json(b"REFUSE")
            assert (refusal["code"], refusal["retry_after_ms"]) == ("malformed", d.BAD_PEER_RETRY_MS)
            assert world.seat.garbage == 3
            assert call.outcome is Outcome.DISCONNECTED
            # a new connection of the same process is not listened to either, until the time is over
            b = world.agent()
            b.hello()
            again = await b.json(b"REFUSE")
            assert again["code"] == "malformed"
            assert 0 < again["retry_after_ms"] <= d.BAD_PEER_RETRY_MS + 1
            world.v2.on_time(clock.ms(d.REFUSED_LINGER_MS))
            await world.until(lambda: len(peers_of(world).all) == 1)
            clock.ms(d.BAD_PEER_RETRY_MS)
            await b.join()
            await world.until(lambda: world.lane.live_instances)

    async def test_beginning_anew_forgets_nothing(self) -> None:
        """A new HELLO does not clear the count of bad messages."""
        async with World(clock=Clock()) as world:
            a = world.agent()
            for number in range(d.BAD_MESSAGES_PER_MIN):
                a.hello(instance=f"i{number}")
                await a.expect(b"WELCOME")
                await a.expect(b"CONFIG")
                a.send(b"NONSENSE")
            assert (await a.json(b"REFUSE"))["code"] == "malformed"

    async def test_agentds_own_verbs(self) -> None:
        async with World() as world:
            a = await world.ready()
            a.send(b"WELCOME", {"protocol": 2, "session": "x", "heartbeat_ms": 1})
            await world.until(lambda: world.seat.garbage == 1)

    async def test_chatter(self) -> None:
        async with World(clock=Clock()) as world:
            a = await world.ready()
            for _ in range(d.AGENT_CHATTER_PER_S + 3):
                a.send(b"HEALTH", {"state": "healthy"})
            assert (await a.json(b"REFUSE"))["code"] == "malformed"

    @pytest.mark.parametrize("parts", [1, 2], ids=["one frame", "its frames together"])
    async def test_over_the_limit(self, parts: int) -> None:
        """16 MiB, in one frame or over all of them: cut, and shut out."""
        async with World() as world:
            a = await world.ready()
            call = world.ask()
            await a.events()
            half = bytes(d.AGENT_MAX_MESSAGE_BYTES // parts)
            a.verdicts([call.call_id, ALLOW], bodies=[half] * parts)
            await world.asker.wait(1)
            assert call.outcome is Outcome.DISCONNECTED
            assert "more than" in call.message
            assert (world.seat.garbage, world.v2.gate_counts()[0]) == (1, 1)

    async def test_64_kib_before_hello(self) -> None:
        """Who has not introduced itself has no reason to say more."""
        async with World() as world:
            a = world.agent()
            a.hello(version="x" * d.AGENT_CONTROL_MAX_BYTES)
            await world.until(lambda: world.v2.garbage)
            assert world.v2.gate_counts()[0] == 1

    async def test_an_agent_that_reads_nothing(self) -> None:
        """Bounded by bytes: QueueFull, whatever became of the calls meanwhile; a PONG shows what was read."""
        clock = Clock()
        async with World(agent(max_concurrent_calls=10_000), clock=clock) as world:
            a = await world.ready(max_concurrency=10_000, max_batch=100)
            world.loop.remove_reader(a.socket.fileno())
            large = b'{"x":"' + b"x" * (1024 * 1024) + b'"}'
            sent = 0
            while (call := world.ask(event=large, timeout_ms=100)).outcome is not Outcome.QUEUE_FULL:
                sent += 1
                await asyncio.sleep(0)
            assert sent == d.SESSION_MAX_BYTES // (len(large) + 64)
            assert call.message == "its socket is full"
            assert session_of(world).seat.sends_refused["bytes"] == session_of(world).sends_refused >= 1
            world.lane.expire(clock.ms(100))
            world.lane.breaker.close(clock.now)
            assert world.ask(event=large).outcome is Outcome.QUEUE_FULL
            world.loop.add_reader(a.socket.fileno(), a.pump.drain)
            a.pump.drain()
            world.v2.on_time(clock.ms(d.AGENT_LOOK_MS))
            while (frames := await a.recv())[0] != b"PING":
                pass
            a.send(b"PONG", *frames[1:])
            await world.until(lambda: session_of(world).unread_bytes == 0)
            assert world.ask(event=large).outcome is not Outcome.QUEUE_FULL

    async def test_what_is_remembered_of_ended_calls_is_shared_out(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Thousands of sessions remember fewer each: memory is bounded over all of them."""
        monkeypatch.setattr("agentd.transport.zmq_reception.AGENT_ENDED_TOTAL", 200)
        clock = Clock()
        async with World(agent(max_concurrent_calls=1_000), clock=clock) as world:
            await world.ready(max_concurrency=1_000, max_batch=100)
            world.v2.on_time(clock.ms(d.AGENT_LOOK_MS))
            for _ in range(900):
                world.ask(timeout_ms=100)
            await world.until(lambda: not session_of(world).is_marked)
            world.lane.expire(clock.ms(100))
            session = session_of(world)
            kept = len(session._unanswered._young) + len(session._unanswered._older)
            assert 200 <= kept <= 400
            assert session._answered.maxlen == 25

    async def test_the_bound_in_bytes_is_the_configurations(self) -> None:
        """Also of sessions that were there before a reload."""
        async with World(agent(max_outstanding_bytes=100_000)) as world:
            a = await world.ready()
            world.loop.remove_reader(a.socket.fileno())
            event = b'{"x":"' + b"x" * 60_000 + b'"}'
            assert world.ask(event=event).outcome is not Outcome.QUEUE_FULL
            assert world.ask(event=event).outcome is Outcome.QUEUE_FULL
            world.v2.configure([agent(max_outstanding_bytes=1_000_000)], {"waf": world.lane}, 0)
            assert world.ask(event=event).outcome is not Outcome.QUEUE_FULL

    async def test_messages_unread_are_bounded_too(self) -> None:
        clock = Clock()
        async with World(agent(max_concurrent_calls=10_000), clock=clock) as world:
            a = await world.ready(max_concurrency=10_000)
            world.loop.remove_reader(a.socket.fileno())
            for _ in range(d.AGENT_HWM + 100):
                world.ask()
            await world.until(lambda: not session_of(world).is_marked)
            outcomes = [call.outcome for call in world.asker.calls]
            assert len(outcomes) > 100
            assert set(outcomes) == {Outcome.QUEUE_FULL}
            assert world.v2.not_taken == 0

    async def test_verdicts_show_what_was_read(self) -> None:
        async with World() as world:
            a = await world.ready()
            for _ in range(20):
                world.ask()
                ((call, _, _),) = await a.events()
                a.verdicts([call, ALLOW])
                await world.until(lambda: not session_of(world).calls)
            assert session_of(world).unread_bytes <= 2 * (len(EVENT) + 64)

    async def test_full_socket(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The connection refuses although our count did not foresee it: QueueFull, and tried again at the next look."""
        clock = Clock()
        async with World(clock=clock) as world:
            a = await world.ready()
            call = world.ask()
            monkeypatch.setattr(Connection, "send", lambda self, frames: False)
            await world.asker.wait(1)
            assert call.outcome is Outcome.QUEUE_FULL
            assert world.ask().outcome is Outcome.QUEUE_FULL
            assert world.v2.not_taken == 1
            monkeypatch.undo()
            world.lane.breaker.close(clock.now)
            world.v2.on_time(clock.ms(d.AGENT_LOOK_MS))
            world.ask()
            await a.events()

    async def test_unreachable_peer(self) -> None:
        """The send finds out before the end was read: it is read then, and the session ends there."""
        async with World() as world:
            with await zmtp_dial(world.runtime.agents_socket) as raw:
                await introduce(raw)
                await world.until(lambda: world.lane.live_instances)
                call = world.ask()
                raw.close()
                session_of(world).flush(world.clock())
                assert call.outcome is Outcome.DISCONNECTED
                assert call.message == "connection closed"
                assert world.seat.sessions == {}
                await world.until(lambda: not peers_of(world).all)

    async def test_a_message_without_end(self) -> None:
        """It fills memory, which nobody accounts for; its sender is cut, and nobody else."""
        mib = 1024 * 1024

        def resident() -> int:
            return 100 * mib + sum(peer.connection.unfinished_bytes for peer in peers_of(world).all)

        async with World(guard=MemoryGuard(slack_bytes=4 * mib, rss_bytes=resident)) as world:
            a = await world.ready()
            world.v2.on_time(world.clock() + 100 * MS)
            loop = asyncio.get_running_loop()
            with await zmtp_dial(world.runtime.agents_socket) as raw:
                await introduce(raw, "i2")
                await world.until(lambda: world.lane.live_instances == 2)
                await loop.sock_sendall(raw, zmtp_frame(b"VERDICTS", more=True))
                await loop.sock_sendall(raw, zmtp_frame(bytes(12 * mib), more=True))

                def cut() -> bool:
                    world.v2.on_time(world.clock())
                    return world.v2.guard.cuts == 1

                await world.until(cut)
                assert await is_cut(raw)
            assert world.lane.live_instances == 1
            assert world.v2.gate_counts()[0] == 1
            a.send(b"PING")
            await a.expect(b"PONG")


async def introduce(raw: socket.socket, instance: str = "i1", **fields: Any) -> None:
    """HELLO to READY by hand."""
    loop = asyncio.get_running_loop()
    hello = {"protocol": 2, "agent": "waf", "instance": instance, "events": ["request_headers"], **fields}
    await loop.sock_sendall(raw, message(b"HELLO", hello))
    read = b""
    async with asyncio.timeout(5):
        while (found := re.search(rb'"config_version":"([^"]+)"', read)) is None:
            read += await loop.sock_recv(raw, 65_536)
    result = {"config_version": found[1].decode(), "accepted": True}
    await loop.sock_sendall(raw, message(b"CONFIG_RESULT", result))


def message(verb: bytes, *frames: Any) -> bytes:
    """As it is on the wire."""
    parts = [verb, *(part if isinstance(part, bytes) else json.dumps(part).encode() for part in frames)]
    return b"".join(zmtp_frame(part, more=part is not parts[-1]) for part in parts)


JUNK = st.lists(st.binary(max_size=40), min_size=1, max_size=4)
VERB = st.sampled_from([b"HELLO", b"PROOF", b"CONFIG_RESULT", b"VERDICTS", b"PING", b"HEALTH", b"METRICS", b"DRAIN"])


class TestFuzz:
    @settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(messages=st.lists(st.tuples(VERB, JUNK).map(lambda m: [m[0], *m[1]]) | JUNK, min_size=1, max_size=12))
    def test_survives_any_frames(self, messages: list[list[bytes]]) -> None:
        """Whatever an agent sends, another is served by the same transport afterwards."""

        async def scenario() -> None:
            async with World() as world:
                bad = await world.ready("bad")
                stranger = world.agent()
                for frames in messages:
                    stranger.send(*frames)
                    bad.send(*frames)
                stranger.close()
                bad.close()
                await world.until(lambda: not world.v2.snapshot())
                world.v2._reception._penalties.clear()
                good = await world.ready("good")
                call = world.ask()
                await good.events()
                good.verdicts([call.call_id, ALLOW])
                await world.asker.wait(1)
                assert call.outcome is Outcome.DECISION

        asyncio.run(scenario())


class TestSocket:
    async def test_mode_and_place(self) -> None:
        async with World() as world:
            path = world.runtime.agents_socket
            assert stat.S_IMODE(os.stat(path).st_mode) == 0o660
            assert os.stat(path).st_gid == os.stat(os.path.dirname(path)).st_gid
            assert stat.S_IMODE(os.stat(os.path.dirname(path)).st_mode) == 0o750
            mask = os.umask(0)
            os.umask(mask)
            assert mask != 0o117

    async def test_a_path_that_cannot_be_bound(self) -> None:
        async with World() as world:
            world.v2.close()
            os.rmdir(world.runtime.agents_dir)
            with pytest.raises(FileNotFoundError):
                world.v2.start()
            os.mkdir(world.runtime.agents_dir)

    async def test_snapshot(self) -> None:
        async with World() as world:
            await world.ready(version="3")
            (row,) = world.v2.snapshot()
            assert (row["agent"], row["instance"], row["state"], row["version"]) == ("waf", "i1", "ready", "3")
            assert (row["uid"], row["pid"], row["in_flight"], row["limit"]) == (os.getuid(), os.getpid(), 0, 100)
            json.dumps(row)

    async def test_wakeups(self) -> None:
        async with World(clock=Clock()) as world:
            due = world.v2.next_wakeup_ns()
            assert due == world.clock() + d.AGENT_LOOK_MS * MS
            world.v2.close()
            assert world.v2.next_wakeup_ns() is None
            world.v2.on_time(due)
