"""CPU of agentd's core per event: envelope, dispatcher, lane, breaker, reply record; no ZeroMQ, no JSON.

    python -m bench.agentd_core            # 1 and 3 agents, 64 events at a time: heads, chunks, ends of requests

The agents answer a plain allow at once after the batch. What the sockets and codecs cost is on top.
"""

import gc
import sys
import time

from agentd.call import Call
from agentd.dispatcher import Dispatcher, Worker
from shared.config.schema import Agent
from shared.decision import ALLOW, Decision
from shared.events import EventKind
from shared.plan import Ask, Plan
from shared.wire.audit import AuditRecord
from shared.wire.envelope import (
    CancelReason,
    Register,
    pack_decision,
    pack_event_fields,
    records,
    unpack_event,
)
from shared.wire.verdict import Screened

HEAD, CHUNK, COMPLETE = EventKind.REQUEST_HEADERS, EventKind.REQUEST_BODY_CHUNK, EventKind.REQUEST_COMPLETE
EVENT = b'{"event_type":"request_headers","metadata":{}}' * 10
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
    allow = Screened(ALLOW)
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
        for _, rest in records(frame):
            dispatcher.event(worker, unpack_event(rest), body)
        for lane, instance in zip(lanes, instances, strict=True):
            for call in list(instance.calls.values()):
                lane.answered(call, allow)
        if not is_final:
            for i in range(first, first + TICK):
                dispatcher.end(worker, i)
        assert len(out) == (0 if kind is COMPLETE else TICK)
        out.clear()
    return (time.process_time_ns() - began) / 1000 / events


def _no_audit(record: AuditRecord) -> None:
    raise AssertionError(record)


def main() -> None:
    gc.freeze()
    for agents in (1, 3):
        for is_final in (True, False):
            best = min(run(agents, is_final, 64_000) for _ in range(3))
            sys.stdout.write(f"{agents} agents, {'final' if is_final else 'pinned'}: {best:.2f} us per event\n")
        for kind, is_final in ((CHUNK, False), (COMPLETE, True)):
            best = min(run(agents, is_final, 64_000, kind) for _ in range(3))
            sys.stdout.write(f"{agents} agents, {kind.wire_name}: {best:.2f} us per event\n")


if __name__ == "__main__":
    main()
