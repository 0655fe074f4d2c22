"""An event that one agent decides: in everything as a group of one, and in one object."""

import gc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.lone import LoneCall
from agentd.stats import snapshot
from shared.config.schema import CircuitBreaker
from shared.decision import ALLOW, Verb
from shared.events import EventKind
from shared.plan import Plan
from shared.wire.envelope import CancelReason
from shared.wire.verdict import SCREENED_ALLOW, Screened
from tests.agentd.fakes import ALLOWED, BLOCKED, HEADERS, WITH_OPS, Core, agent, ask, core_of, plan, refusing
from tests.support import Clock

CHUNK = EventKind.REQUEST_BODY_CHUNK
SAID = [
    SCREENED_ALLOW,
    ALLOWED,
    WITH_OPS,
    BLOCKED,
    refusing(Verb.REDIRECT, 302, "a"),
    Screened(ALLOW, audit={"why": "not"}),
    Screened(ALLOW, refused_ops=("host",)),
    Screened(WITH_OPS.decision, is_kept=True, is_quiet=True),
    Screened(malformed="no verdict"),
    Screened(error="oops: broken"),
]
STEPS = ["event", "event", "answer", "answer", "late", "wait", "cancel", "end", "down"]


def lone(core: Core) -> LoneCall:
    ((found,),) = core.worker.exchanges.values()
    assert isinstance(found, LoneCall)
    return found


@pytest.mark.parametrize("kind", [HEADERS, CHUNK])
def test_who_is_alone(clock: Clock, kind: EventKind) -> None:
    """One agent that decides and is known; with an observer, another one, or a name nobody knows it is a group."""
    alone = [plan(ask("a"), kind=kind), plan(ask("a", "open"), kind=kind, number=1)]
    groups = [[ask("a"), ask("b")], [ask("a"), ask("b", observe=True)], [ask("a", observe=True)], [ask("ghost")]]
    plans = [*alone, *(plan(*asks, kind=kind, number=2 + i) for i, asks in enumerate(groups))]
    core = Core(clock, plans, [agent("a"), agent("b")])
    assert [resolved.lane is not None for resolved in core.worker.plans] == [True, True, *[False] * len(groups)]
    core.event()
    assert lone(core).is_awaited


@given(st.data())
def test_it_is_a_group_of_one(data: st.DataObject) -> None:
    """Whatever happens: the same decisions, records, counts and CANCELs as by the group that it replaces."""
    mode = data.draw(st.sampled_from(["closed", "open"]))
    kind = data.draw(st.sampled_from([HEADERS, CHUNK, EventKind.WEBSOCKET_FRAME]))
    is_sequential = data.draw(st.booleans()) and kind is HEADERS
    lockstep = data.draw(st.booleans())
    one: Plan = plan(ask("a", mode, timeout_ms=200), kind=kind, sequential=is_sequential)
    quick = agent("a", max_concurrent_calls=2, max_queue=2, circuit_breaker=CircuitBreaker(failure_threshold=2))
    cores = [Core(Clock(), [one], [quick]), Core(Clock(), [one], [quick])]
    cores[1].worker.plans[0].lane = None
    for core in cores:
        core.instances["a"].lockstep = core.instances["a"].is_lockstep = lockstep
    for _ in range(data.draw(st.integers(1, 25))):
        step = data.draw(
            st.sampled_from(["event", "event", "answer", "answer", "late", "wait", "cancel", "end", "down"])
        )
        exchange, number = data.draw(st.integers(0, 3)), data.draw(st.integers(0, 5))
        said, is_final = data.draw(st.sampled_from(SAID)), data.draw(st.booleans())
        reason = data.draw(st.sampled_from([CancelReason.CLIENT_GONE, CancelReason.DECIDED]))
        for core in cores:
            instance = core.instances["a"]
            if step == "event":
                body = b"x" * 10 if kind is not HEADERS else None
                core.event(exchange=exchange, final=is_final, body=body, index=number)
            elif step == "late":
                core.event(exchange=exchange, final=is_final, in_ms=-1)
            elif step == "answer" and instance.calls:
                instance.answer(said, number % len(instance.calls))
            elif step == "wait":
                core.pass_ms(60)
            elif step == "cancel":
                core.dispatcher.cancel(core.worker, exchange, reason)
            elif step == "end":
                core.dispatcher.end(core.worker, exchange)
            elif step == "down":
                instance.close("gone")
                instance.up()
    seen = [_seen(core) for core in cores]
    assert seen[0] == seen[1]
    for core in cores:
        core.dispatcher.worker_gone(core.worker)
        assert core.dispatcher.body_bytes == 0
        assert core.dispatcher.awaited == 0


def _seen(core: Core) -> dict[str, Any]:
    found = snapshot(core.dispatcher.lanes["a"], core.clock())
    for one in found["last_calls"]:
        del one["call"]  # a call that is too late to be asked takes no number in a group
    for record in core.audit:
        for entry in record.agents:
            entry.duration_ms = round(entry.duration_ms)
    instance = core.instances["a"]
    return {
        "replies": core.replies,
        "audit": core.audit,
        "lane": found,
        "cancelled": [reason for _, reason in instance.cancelled],
        "sent": [(call.exchange_key, call.deadline_ns, call.question) for call in instance.sent],
        "bodies": core.dispatcher.body_bytes,
        "expired": core.dispatcher.expired_total,
        "open": sorted(core.worker.exchanges),
        "pins": sorted(core.worker.pins),
        "next": core.dispatcher.next_deadline(),
    }


def test_it_is_freed_without_the_collector(clock: Clock) -> None:
    """It is its own group until it has ended, however it ends."""
    core = core_of(clock, "closed")
    gc.disable()
    try:
        before = sum(isinstance(o, LoneCall) for o in gc.get_objects())
        core.event(exchange=1)
        core.answer("a")
        core.event(exchange=2)
        core.dispatcher.cancel(core.worker, 2, CancelReason.CLIENT_GONE)
        core.event(exchange=3)
        core.pass_ms(200)
        core.event(exchange=4, in_ms=-1)
        core.instances["a"].sent.clear()
        core.instances["a"].cancelled.clear()
        assert sum(isinstance(o, LoneCall) for o in gc.get_objects()) == before
    finally:
        gc.enable()


def test_a_transport_that_answers_inside_send(clock: Clock) -> None:
    """One decision, nothing left."""
    core = core_of(clock, "closed")
    instance = core.instances["a"]
    instance.send = lambda call: instance.lane.answered(call, BLOCKED) or True  # type: ignore[method-assign]
    core.event()
    assert core.decided == [("block", 403, "?", "block")]
    core.assert_idle()
