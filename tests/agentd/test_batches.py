"""EVENTS messages: what goes into one, and in which order."""

import json

from hypothesis import given
from hypothesis import strategies as st

from agentd.call import Asked, Call, CallState
from agentd.transport.batches import EVENTS_MAX_BYTES, ROW_BYTES, batches, size_of
from shared.clock import MS
from shared.defaults import AGENT_MAX_FRAMES, AGENT_MAX_MESSAGE_BYTES
from shared.events import EventKind
from shared.wire.agent_messages import Events, Side
from shared.wire.agent_zmq import pack_events, unpack


def call(number: int, body: bytes | memoryview | None = None, event: bytes = b'{"e":1}') -> Call:
    asked = Asked("waf", None, 0, EventKind.REQUEST_BODY_CHUNK, "closed", False, False, 5 * MS)
    made = Call(number, f"n-{number:x}", event, asked, None, 0, 5 * MS, body=body)
    made.state = CallState.SENT
    return made


_SIZES = st.one_of(st.none(), st.integers(1, 50), st.sampled_from([EVENTS_MAX_BYTES // 2, EVENTS_MAX_BYTES - 100]))


@given(st.lists(_SIZES, max_size=12), st.integers(0, 5), st.integers(1, 5))
def test_everything_leaves_once_in_order_within_the_limits(sizes: list[int | None], told: int, limit: int) -> None:
    """Each row's number is that of its own bytes; what an agent reads of it is what was meant."""
    whole = bytes(EVENTS_MAX_BYTES)
    calls = [call(i, None if size is None else memoryview(whole)[:size]) for i, size in enumerate(sizes)]
    rows: list[tuple[str, int | None]] = []
    for batch in batches(calls, [(f"t{i}", 9 * MS, b"{}") for i in range(told)], limit, 0):
        assert 1 <= len(batch.rows) <= limit
        assert len(batch.bodies) <= AGENT_MAX_FRAMES - 2
        frames = pack_events(batch.rows, batch.bodies)
        assert sum(map(len, frames)) <= AGENT_MAX_MESSAGE_BYTES
        bodies = [bytes(frame) for frame in frames[2:]]
        message = unpack([frames[0], frames[1], *bodies], Side.AGENTD)
        assert isinstance(message, Events)
        rows += [(entry.call, None if entry.n is None else len(message.bodies[entry.n])) for entry in message.entries]
        assert sum(map(size_of, batch.calls)) + batch.told_count * (2 + ROW_BYTES) == batch.size
    assert rows == [*((f"n-{i:x}", size) for i, size in enumerate(sizes)), *((f"t{i}", None) for i in range(told))]


def test_what_ended_in_this_tick_stays_out() -> None:
    """Cancelled or answered before it left."""
    calls = [call(i, b"x") for i in range(3)]
    calls[1].state = CallState.ENDED
    (batch,) = batches(calls, (), 10, 0)
    assert batch.calls == [calls[0], calls[2]]
    assert [n for *_, n in batch.rows] == [0, 1]
    assert list(batches(calls[1:2], (), 10, 0)) == []


def test_the_time_that_is_left() -> None:
    """Of each its own, none below zero on the wire."""
    (batch,) = batches([call(1)], [("t", 1 * MS, b"{}")], 10, 2 * MS)
    entries = json.loads(pack_events(batch.rows)[1])
    assert [entry[1] for entry in entries] == [3, 0]


def test_an_event_that_fits_no_message_is_alone() -> None:
    """Whoever sends it has to see that."""
    found = list(batches([call(1), call(2, event=bytes(EVENTS_MAX_BYTES)), call(3)], (), 10, 0))
    assert [len(batch.rows) for batch in found] == [1, 1, 1]
    assert found[1].size > EVENTS_MAX_BYTES
