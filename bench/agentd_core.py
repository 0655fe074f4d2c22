"""CPU of agentd per event, sockets and event loop left out.

    python -m bench.agentd_core            # 1 and 3 agents, 64 events at a time: heads, chunks, ends of requests
    python -m bench.agentd_core --session  # one agent's session as well: EVENTS and VERDICTS, 64, 16 and 1 at a time

The core is envelope, dispatcher, lane, breaker, reply record; its agents answer a plain allow at once after the batch.
With the session it is everything between the bytes of a worker's message and those of its answer.
"""

import gc
import json
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from agentd.call import Call
from agentd.dispatcher import Dispatcher, Worker
from agentd.peers import Peer
from agentd.registry import Seat
from agentd.transport.zmq_session import V2Session
from shared.config.schema import Agent
from shared.decision import Decision
from shared.events import EventKind
from shared.plan import Ask, Plan
from shared.wire.agent_messages import Hello
from shared.wire.audit import AuditRecord
from shared.wire.envelope import (
    CancelReason,
    EventRecord,
    Register,
    pack_decision,
    pack_event_fields,
    records_of_worker,
)
from shared.wire.session import Event, Session
from shared.wire.verdict import SCREENED_ALLOW

HEAD, CHUNK, COMPLETE = EventKind.REQUEST_HEADERS, EventKind.REQUEST_BODY_CHUNK, EventKind.REQUEST_COMPLETE
EVENT = b'{"event_type":"request_headers","metadata":{},"uri":"%b"}' % (b"/" * 410)
BODY = memoryview(bytes(65_536))
TICK = 64


class EchoInstance:
    """Takes every call; the loop below answers them."""

    def __init__(self) -> None:
        self.name = "bench-1"
        self.limit = 100_000
        self.calls: dict[str, Call] = {}
        self.pins = 0
        self.is_live = self.is_paused = self.is_draining = False
        self.health = "healthy"
        self.load = 0.0
        self.owes = self.debt = 0
        self.max_body_bytes = 1 << 20
        self.is_lockstep = False

    def send(self, call: Call) -> bool:
        return True

    def tell(self, call: Call) -> bool:
        return True

    def cancel(self, call: Call, reason: CancelReason) -> bool:
        return True

    def drained(self) -> None: ...
    def begin_drain(self, deadline_ns: int) -> None: ...
    def close(self, reason: str) -> None: ...


def run(agents: int, is_final: bool, events: int, kind: EventKind = HEAD) -> float:
    """Microseconds of CPU per event."""
    dispatcher = Dispatcher("0badf00d-", time.monotonic_ns, lambda deadline_ns: None, _no_audit)
    names = [f"a{i}" for i in range(agents)]
    dispatcher.configure([Agent(name=n, protocol="zmq-v2", max_concurrent_calls=100_000) for n in names])
    instances = [EchoInstance() for _ in names]
    for name, instance in zip(names, instances, strict=True):
        dispatcher.lanes[name].instance_up(instance)
    asks = tuple(Ask(name, "closed", kind is COMPLETE, 200) for name in names)
    plan = Plan(0, "r", kind, False, False, asks)
    body = BODY if kind is CHUNK else None
    out: list[bytes] = []

    def reply(event_id: int, decision: Decision) -> None:
        out.append(pack_decision(event_id, decision))

    worker: Worker = dispatcher.register(b"w", Register(1, 0, "", "p-", (plan,)), reply)
    lanes = list(dispatcher.lanes.values())
    began = time.process_time_ns()
    for tick in range(events // TICK):
        deadline = time.monotonic_ns() + 200_000_000
        first = tick * TICK
        frame = b"".join(
            part
            for i in range(first, first + TICK)
            for part in (pack_event_fields(i, i, plan.full_mask, deadline, 0, kind, int(is_final), len(EVENT)), EVENT)
        )
        take(frame, dispatcher, worker, body)
        for lane, instance in zip(lanes, instances, strict=True):
            for call in list(instance.calls.values()):
                lane.answered(call, SCREENED_ALLOW)
        if not is_final:
            for i in range(first, first + TICK):
                dispatcher.end(worker, i)
        assert len(out) == (0 if kind is COMPLETE else TICK)
        out.clear()
    return (time.process_time_ns() - began) / 1000 / events


class NoConnection:
    max_unsent = 0

    def limit(self, max_bytes: int) -> None: ...


class OneSession:
    """An agent's session without a socket, and the way out of what it sends."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self.clock = time.monotonic_ns
        self.marked: list[V2Session] = []
        self.sent: list[Sequence[Any]] = []
        wire = Session(0, 1_000)
        peer = Peer(0, 0, 1, 0)
        peer.connection = NoConnection()  # type: ignore[assignment]
        self.session = V2Session(self, peer, wire, "s")
        lane = dispatcher.lanes["a0"]
        hello = Hello(2, "a0", "i1", ["request_headers"], max_batch=TICK, max_concurrency=1_000)
        self.session.introduce(hello, Seat(lane.settings, lane, 0, 1_000))
        for event in (Event.WELCOME, Event.ACCEPT):
            wire.feed(event, 0)
        lane.instance_up(self.session)

    def mark(self, session: V2Session) -> None:
        session.is_marked = True
        self.marked.append(session)

    def flush(self) -> None:
        marked, self.marked = self.marked, []
        now = self.clock()
        for session in marked:
            session.flush(now)

    def transmit(self, session: V2Session, frames: Sequence[Any]) -> bool:
        self.sent.append(frames)
        return True

    def finish(self, session: V2Session) -> None: ...
    def drop(self, session: V2Session, reason: str) -> None: ...


def take(message: bytes, dispatcher: Dispatcher, worker: Worker, body: memoryview | None = None) -> None:
    """As agentd/ingress.py does."""
    for _, record in records_of_worker(message):
        if isinstance(record, EventRecord):
            dispatcher.event(worker, record, body)


def _messages(plan: Plan, events: int, batch: int) -> Iterator[bytes]:
    """A worker's messages."""
    deadline = time.monotonic_ns() + 3_600_000_000_000
    for first in range(0, events, batch):
        yield b"".join(
            part
            for i in range(first, first + batch)
            for part in (pack_event_fields(i, i, plan.full_mask, deadline, 0, HEAD, 1, len(EVENT)), EVENT)
        )


def run_session(events: int, batch: int) -> float:
    """Microseconds of CPU per event, with one agent's session."""
    took = 0
    verdicts: list[bytes] = []
    for is_timed in (False, True):  # call ids count up: the answers of the first run fit the second
        dispatcher = Dispatcher("0badf00d-", time.monotonic_ns, lambda deadline_ns: None, _no_audit)
        dispatcher.configure([Agent(name="a0", protocol="zmq-v2", max_concurrent_calls=100_000)])
        way = OneSession(dispatcher)
        plan = Plan(0, "r", HEAD, False, False, (Ask("a0", "closed", False, 200),))
        out: list[bytes] = []

        def reply(event_id: int, decision: Decision, out: list[bytes] = out) -> None:
            out.append(pack_decision(event_id, decision))

        worker = dispatcher.register(b"w", Register(1, 0, "", "p-", (plan,)), reply)
        if not is_timed:
            for message in _messages(plan, events, batch):
                take(message, dispatcher, worker)
                way.flush()
                entries = [[row[0], {"decision": "allow"}] for row in json.loads(way.sent.pop()[1])]
                verdicts.append(json.dumps(entries, separators=(",", ":")).encode())
                way.session.take_verdicts([verdicts[-1]], way.clock())
            continue
        messages = list(_messages(plan, events, batch))
        gc.collect()
        began = time.process_time_ns()
        for message, answer in zip(messages, verdicts, strict=True):
            take(message, dispatcher, worker)
            way.flush()
            way.sent.clear()
            way.session.take_verdicts((answer,), way.clock())
            assert len(out) == batch
            b"".join(out)
            out.clear()
        took = time.process_time_ns() - began
    return took / 1000 / events


def _no_audit(record: AuditRecord) -> None:
    raise AssertionError(record)


def main() -> None:
    gc.freeze()
    if "--session" in sys.argv:
        for batch in (TICK, 16, 1):
            best = min(run_session(32_000, batch) for _ in range(5))
            sys.stdout.write(f"with a session, {batch} at a time: {best:.2f} us per event\n")
        return
    for agents in (1, 3):
        for is_final in (True, False):
            best = min(run(agents, is_final, 64_000) for _ in range(3))
            sys.stdout.write(f"{agents} agents, {'final' if is_final else 'pinned'}: {best:.2f} us per event\n")
        for kind, is_final in ((CHUNK, False), (COMPLETE, True)):
            best = min(run(agents, is_final, 64_000, kind) for _ in range(3))
            sys.stdout.write(f"{agents} agents, {kind.wire_name}: {best:.2f} us per event\n")


if __name__ == "__main__":
    main()
