"""A call shows transports what they need, and holds nothing back from being freed."""

import gc
import weakref

from agentd.call import Asked, Call, CallState
from shared.decision import Outcome
from shared.events import EventKind
from shared.wire.verdict import HEAD
from tests.agentd.fakes import FakeWaiter, LaneBench
from tests.support import Clock


def asked(**changes: object) -> Asked:
    fields = {"agent": "waf", "lane": None, "index": 2, "kind": EventKind.RESPONSE_HEADERS, "failure_mode": "open"}
    fields |= {"is_observer": True, "may_set_host": True, "timeout_ns": 5}
    return Asked(**{**fields, **changes})  # type: ignore[arg-type]


def test_shows_its_plan() -> None:
    """Kind, index and observer are those of the plan's entry; what is asked by default is a head."""
    call = Call(1, "n-1", b"{}", asked(), FakeWaiter(), 10, 20)
    assert call.kind is EventKind.RESPONSE_HEADERS
    assert (call.index, call.is_observer) == (2, True)
    assert call.question is HEAD
    assert call.asked.event == "response_headers"


def test_begins_unsent() -> None:
    """A new call is queued, without instance, permit or deadline row; its outcome is that of one nobody waits for."""
    call = Call(1, "n-1", b"{}", asked(), FakeWaiter(), 10, 20)
    assert call.state is CallState.QUEUED
    assert (call.instance, call.permit, call.row, call.exchange_key, call.screened) == (None, None, None, None, None)
    assert call.outcome is Outcome.CANCELLED


def test_calls_are_themselves() -> None:
    """Two calls with equal fields are two calls."""
    one = asked()
    waiter = FakeWaiter()
    assert Call(1, "n-1", b"", one, waiter, 1, 2) != Call(1, "n-1", b"", one, waiter, 1, 2)


def test_an_ended_call_lets_the_event_and_its_group_go(clock: Clock) -> None:
    """Without the collector: the flight recorder keeps words, not calls or workers' messages."""
    bench = LaneBench(clock)
    instance = bench.instance()
    gc.disable()
    try:
        call = bench.call()
        bench.waiter = FakeWaiter()  # the call alone holds the old one
        waiter = weakref.ref(call.group)  # type: ignore[type-var, arg-type]
        instance.answer()
        instance.sent.clear()
        assert waiter() is None
        assert call.event == b""
    finally:
        gc.enable()
