"""agentd/drains.py over real sockets: who may leave, how it leaves, and what is told of it."""

import pytest

from agentd.drains import Drains
from shared import defaults as d
from shared.errors import AdminRefused
from shared.wire import admin as wire
from tests.agentd.test_zmq_dealer import session_of
from tests.agentd.zmq_world import World
from tests.support import Clock


async def test_drained_and_held_out() -> None:
    """DRAIN, BYE when its last call has ended; its process is refused for a minute, another name is not."""
    clock = Clock()
    async with World(clock=clock) as world:
        a, b = await world.ready("one", max_batch=16), await world.ready("two", max_batch=16)
        session = session_of(world, instance="one")
        drains = Drains(world.lanes, world.v2, clock)
        call = world.ask()
        while call.instance is not session:
            call = world.ask()
        (row,) = drains.begin("waf", wire.DrainRequest("one", 5.0)).drains
        assert (row.state, row.instance, row.session, row.left_ms) == ("draining", "one", session.session_id, 5_000)
        await a.events()
        await a.expect(b"DRAIN")
        later = world.ask()
        assert later.instance is not session
        a.send(b"VERDICTS", [[c.call_id, {"decision": "allow"}] for c in list(session.calls.values())])
        await a.expect(b"BYE")
        assert [(row.state, row.calls, row.pinned) for row in drains.rows().drains] == [("drained", 0, 0)]
        a.hello(instance="one")
        refusal = await a.json(b"REFUSE")
        assert (refusal["code"], refusal.get("retry_after_ms")) == ("drained", None)
        clock.s(d.DRAINED_HELD_OUT_S)
        again = world.agent()
        await again.join(instance="one")
        assert b is not again


async def test_who_may_leave() -> None:
    """Not the last one, not an unnamed one of several, nobody unknown; all of them if it is insisted on."""
    async with World() as world:
        drains = Drains(world.lanes, world.v2, world.clock)
        await world.ready(instance="one")
        for name, request, status in (
            ("nobody", wire.DrainRequest(), 404),
            ("waf", wire.DrainRequest("two"), 404),
            ("waf", wire.DrainRequest("one"), 409),
            ("waf", wire.DrainRequest(), 409),
        ):
            with pytest.raises(AdminRefused) as refused:
                drains.begin(name, request)
            assert refused.value.status == status
        await world.ready(instance="two")
        session_of(world, instance="two").pause(is_asked=True)
        with pytest.raises(AdminRefused, match="no other instance of waf takes calls"):
            drains.begin("waf", wire.DrainRequest("one"))
        session_of(world, instance="two").pause(is_asked=False)
        with pytest.raises(AdminRefused, match="Name one of them"):
            drains.begin("waf", wire.DrainRequest())
        begun = drains.begin("waf", wire.DrainRequest(is_forced=True)).drains
        assert sorted(row.instance for row in begun) == ["one", "two"]


async def test_lost_and_cut_are_told_apart() -> None:
    """It ended by itself with a call left; or its time was over."""
    clock = Clock()
    async with World(clock=clock) as world:
        drains = Drains(world.lanes, world.v2, clock)
        one, two = await world.ready("one", max_batch=16), await world.ready("two", max_batch=16)
        calls = [world.ask() for _ in range(4)]
        assert {call.instance.name for call in calls if call.instance} == {"one", "two"}
        drains.begin("waf", wire.DrainRequest("one", 1.0))
        drains.begin("waf", wire.DrainRequest("two", 1.0, is_forced=True))
        await one.expect(b"EVENTS")
        await one.expect(b"DRAIN")
        one.send(b"BYE")
        await world.until(lambda: world.lane.live_instances == 1)
        clock.s(1)
        world.v2.on_time(clock())
        await two.expect(b"EVENTS")
        await two.expect(b"DRAIN")
        await two.expect(b"BYE")
        assert {(r.instance, r.state, r.calls > 0) for r in drains.rows().drains} == {
            ("one", "lost", True),
            ("two", "cut", True),
        }
