"""Stand-ins for what surrounds lanes and groups: an agent's instance, a waiting group, a whole agentd core.

Answers are given by the test (`FakeInstance.answer`), time is turned by it (`tests.support.Clock`).
"""

from collections.abc import Sequence
from typing import Any

from agentd.alarm import Alarm
from agentd.call import Asked, Call, CallState
from agentd.dispatcher import Dispatcher, Worker
from agentd.lane import Lane
from agentd.peers import Peer
from shared.clock import MS
from shared.config.schema import Agent, CircuitBreaker
from shared.decision import ALLOW, Decision, HeaderOp, OpAction, Outcome, Verb
from shared.events import EventKind
from shared.plan import Ask, Plan
from shared.wire.audit import AuditRecord
from shared.wire.envelope import CancelReason, EventRecord, Register
from shared.wire.verdict import Screened
from tests.support import Clock

HEADERS = EventKind.REQUEST_HEADERS
ALLOWED = Screened(ALLOW)
BLOCKED = Screened(Decision(Verb.BLOCK, 403, agent="?", reason="block"))
WITH_OPS = Screened(Decision(request_ops=(HeaderOp(OpAction.SET, "x-agent", "ok"),), agent="?"))


class FakeConnection:
    """A peer's, where nothing is sent."""

    max_unsent = 0
    max_bytes = 0

    def limit(self, max_bytes: int, max_frames: int) -> None:
        self.max_bytes = max_bytes


def peer(uid: int, pid: int = 77) -> Peer:
    """Somebody who has connected."""
    made = Peer(uid, uid, pid, 0)
    made.connection = FakeConnection()  # type: ignore[assignment]
    return made


class FakeInstance:
    """Takes what it is given; `lockstep` and `is_full` make it difficult."""

    def __init__(self, lane: Lane, name: str = "i1", limit: int = 100, *, lockstep: bool = False) -> None:
        self.lane = lane
        self.name = name
        self.limit = limit
        self.lockstep = lockstep
        self.calls: dict[str, Call] = {}
        self.pins = 0
        self.is_live = False
        self.is_paused = False
        self.is_draining = False
        self.is_full = False
        self.dies_on_send = False
        self.health = "healthy"
        self.load = 0.0
        self.owes = 0
        self.debt = 0
        self.max_body_bytes = 1 << 20
        self.is_lockstep = lockstep
        self.told: list[Call] = []
        self.sent: list[Call] = []
        self.cancelled: list[tuple[Call, CancelReason]] = []
        self.drained_times = 0
        self.closed = ""

    def up(self) -> "FakeInstance":
        self.lane.instance_up(self)
        return self

    def send(self, call: Call) -> bool:
        assert self.calls[call.call_id] is call
        assert call.state is CallState.SENT
        assert len(self.calls) <= self.limit
        if self.dies_on_send:
            self.lane.instance_down(self, "broken pipe")
            return False
        if self.is_full:
            return False
        self.sent.append(call)
        return True

    def tell(self, call: Call) -> bool:
        assert not self.is_lockstep
        if self.is_full:
            return False
        self.told.append(call)
        return True

    def cancel(self, call: Call, reason: CancelReason) -> bool:
        self.cancelled.append((call, reason))
        return not self.lockstep or reason is CancelReason.TIMEOUT

    def drained(self) -> None:
        assert self.is_draining
        assert not self.calls
        assert not self.pins
        self.drained_times += 1

    def begin_drain(self, deadline_ns: int) -> None:
        self.is_draining = True

    def close(self, reason: str) -> None:
        self.closed = reason
        self.lane.instance_down(self, reason)

    def answer(self, screened: Screened = ALLOWED, which: int = 0) -> Call:
        """The agent answers its oldest call (or a later one)."""
        call = list(self.calls.values())[which]
        self.lane.answered(call, screened)
        return call


class FakeWaiter:
    """A group: hears how its calls ended."""

    def __init__(self) -> None:
        self.heard: list[tuple[Call, Outcome]] = []

    def ended(self, call: Call, now: int) -> None:
        assert call.state is CallState.ENDED
        self.heard.append((call, call.outcome))

    @property
    def outcomes(self) -> list[Outcome]:
        return [outcome for _, outcome in self.heard]


def agent(name: str = "waf", **changes: object) -> Agent:
    """A configured agent."""
    return Agent(name=name, protocol="zmq-v2", **changes)  # type: ignore[arg-type]


class LaneBench:
    """One lane with a clock, and calls to put through it."""

    def __init__(self, clock: Clock, **settings: object) -> None:
        self.clock = clock
        self.armed: list[int] = []
        self.alarm = Alarm(self.armed.append)
        settings.setdefault("circuit_breaker", CircuitBreaker())
        self.lane = Lane(agent(**settings), clock, self.alarm)  # type: ignore[arg-type]
        self.waiter = FakeWaiter()
        self.made = 0

    def call(
        self, *, timeout_ms: int = 200, exchange: int | None = None, observer: bool = False, deadline_ms: int = 10_000
    ) -> Call:
        """Submit a call; timed by the lane when its own timeout is the shorter one."""
        now = self.clock()
        self.made += 1
        asked = Asked("waf", self.lane, 0, HEADERS, "closed", observer, False, timeout_ms * MS)
        is_timed = timeout_ms < deadline_ms
        key = None if exchange is None else (b"w1", exchange)
        call = Call(
            self.made, f"c{self.made:x}", b"{}", asked, self.waiter, now, now + min(timeout_ms, deadline_ms) * MS, key
        )
        self.lane.submit(call, now, is_timed)
        return call

    def instance(self, name: str = "i1", limit: int = 100, **options: bool) -> FakeInstance:
        return FakeInstance(self.lane, name, limit, **options).up()

    def assert_idle(self) -> None:
        """Every permit is back, nothing waits, no deadline is left."""
        assert self.lane.in_flight == 0
        assert self.lane.queued == 0
        assert list(self.lane._queue) == []
        assert self.lane.next_deadline() is None


class Core:
    """Dispatcher, lanes with fake instances, one worker whose replies are collected."""

    def __init__(self, clock: Clock, plans: Sequence[Plan], agents: Sequence[Agent], **hooks: Any) -> None:
        self.clock = clock
        self.armed: list[int] = []
        self.audit: list[AuditRecord] = []
        self.replies: list[tuple[int, Decision]] = []
        self.dispatcher = Dispatcher("n0nce-", clock, self.armed.append, self.audit.append, wall=lambda: 1.5, **hooks)
        self.dispatcher.configure(agents)
        self.instances = {a.name: FakeInstance(self.dispatcher.lanes[a.name], f"{a.name}-1").up() for a in agents}
        self.worker = self.register(b"w1", plans)
        self.last_event = 0

    def register(self, identity: bytes, plans: Sequence[Plan]) -> Worker:
        register = Register(1, 0, "digest", "corr-", tuple(plans))
        return self.dispatcher.register(identity, register, lambda i, decision: self.replies.append((i, decision)))

    def event(
        self,
        plan: int = 0,
        *,
        exchange: int = 7,
        mask: int | None = None,
        final: bool = True,
        in_ms: float | None = None,
        worker: Worker | None = None,
        body: bytes | memoryview | None = None,
        index: int = 0,
        last: bool = False,
    ) -> int:
        """One event with a fresh id, deadline as a worker makes it."""
        worker = worker or self.worker
        resolved = worker.plans[plan]
        self.last_event += 1
        deadline = self.clock() + (resolved.timeout_ns if in_ms is None else int(in_ms * MS))
        record = EventRecord(
            self.last_event,
            exchange,
            resolved.full_mask if mask is None else mask,
            deadline,
            plan,
            int(resolved.kind),
            final,
            0xFFFF,
            memoryview(b'{"event_type":"request_headers"}'),
            index,
            last,
        )
        self.dispatcher.event(worker, record, body)
        return self.last_event

    def answer(self, name: str, screened: Screened = ALLOWED, which: int = 0) -> Call:
        """An agent's instance answers."""
        return self.instances[name].answer(screened, which)

    @property
    def decided(self) -> list[tuple[str, int, str, str]]:
        """(verb, status, agent, reason) of each reply."""
        return [(d.verb.word, d.status, d.agent, d.reason) for _, d in self.replies]

    def pass_ms(self, milliseconds: float) -> None:
        """Turn the clock and let the alarm ring."""
        self.clock.ms(milliseconds)
        self.dispatcher.expire(self.clock())

    def assert_idle(self) -> None:
        """Nothing is under way anywhere."""
        assert self.dispatcher.in_flight == 0
        assert self.dispatcher.queued == 0
        assert self.dispatcher.awaited == 0
        assert self.dispatcher.next_deadline() is None
        for worker in self.dispatcher.workers.values():
            assert worker.exchanges == {}
            assert worker.pins == {}
        for lane in self.dispatcher.lanes.values():
            assert lane.pool.pins == {}
            assert list(lane._queue) == []
            for instance in lane.pool.instances:
                assert instance.calls == {}
                assert instance.pins == 0


def plan(
    *asks: Ask,
    sequential: bool = False,
    kind: EventKind = HEADERS,
    number: int = 0,
    may_set_host: bool = False,
) -> Plan:
    """A plan of route `r`."""
    return Plan(number, "r", kind, sequential, may_set_host, asks)


def ask(name: str, mode: str = "closed", *, observe: bool = False, timeout_ms: int = 200) -> Ask:
    """One agent of a plan."""
    return Ask(name, mode, observe, timeout_ms)  # type: ignore[arg-type]


NAMES = ("a", "b", "c")
AGENTS = [agent(name) for name in NAMES]


def core_of(clock: Clock, *modes: str, sequential: bool = False) -> Core:
    """Agents a, b, c with these failure modes ("observe" = an observer) in one plan."""
    asks = [
        ask(n, "closed" if m == "observe" else m, observe=m == "observe") for n, m in zip(NAMES, modes, strict=False)
    ]
    return Core(clock, [plan(*asks, sequential=sequential)], AGENTS)


def refusing(verb: Verb, status: int, agent_name: str) -> Screened:
    """An answer that is no allow."""
    return Screened(Decision(verb, status, agent=agent_name, reason=verb.word))
