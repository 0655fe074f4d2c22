"""Puts what a session has noted in a tick into EVENTS messages, within the limits of a message and of the instance.

    calls, told events --batches--> Batch(rows, bodies) --> EVENTS | rows as JSON | body ... --> socket

The workers' bytes are joined, not decoded; bodies stay the frames that they came in. What may
be sent at all was decided before; nothing here knows a budget.

Kind: pure.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from agentd.call import Call, CallState
from shared.clock import MS
from shared.defaults import AGENT_MAX_FRAMES, AGENT_MAX_MESSAGE_BYTES
from shared.wire.agent_zmq import EventRow

_SENT = CallState.SENT
ROW_BYTES = 64  # of a call's id, budget and punctuation in EVENTS, rounded up
EVENTS_MAX_BYTES = AGENT_MAX_MESSAGE_BYTES - 4_096
_BODIES_MAX = AGENT_MAX_FRAMES - 2  # verb and JSON

Told = tuple[str, int, bytes | memoryview]  # call id, deadline, event: nobody waits for an answer


class Batch:
    """One EVENTS message: of `told_count` events nobody waits for an answer. `size` as it was counted before."""

    __slots__ = ("bodies", "calls", "rows", "size", "told_count")

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.rows: list[EventRow] = []
        self.bodies: list[Any] = []
        self.size = 0
        self.told_count = 0


def size_of(call: Call) -> int:
    """Bytes of its event in a message, rounded up."""
    size = len(call.event) + ROW_BYTES
    return size if call.body is None else size + len(call.body)


def batches(calls: Iterable[Call], told: Iterable[Told], limit: int, now: int) -> Iterator[Batch]:
    """At most `limit` events a batch; what does not fit a message with others is alone in one."""
    batch = Batch()
    rows, bodies, size = batch.rows, batch.bodies, 0
    for call in calls:
        if call.state is not _SENT:
            continue  # it ended in this very tick
        event, body = call.event, call.body
        room = len(event) + ROW_BYTES
        if body is not None:
            room += len(body)
        if len(rows) >= limit or size + room > EVENTS_MAX_BYTES or len(bodies) >= _BODIES_MAX:
            if rows:
                batch.size = size
                yield batch
            batch = Batch()
            rows, bodies, size = batch.rows, batch.bodies, 0
        n = None
        if body is not None:
            n = len(bodies)
            bodies.append(body)
        batch.calls.append(call)
        rows.append((call.call_id, (call.deadline_ns - now) // MS, event, n))
        size += room
    batch.size = size
    for call_id, deadline_ns, event in told:
        room = len(event) + ROW_BYTES
        if len(batch.rows) >= limit or batch.size + room > EVENTS_MAX_BYTES:
            if batch.rows:
                yield batch
            batch = Batch()
        batch.rows.append((call_id, (deadline_ns - now) // MS, event, None))
        batch.size += room
        batch.told_count += 1
    if batch.rows:
        yield batch
