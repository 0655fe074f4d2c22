"""From a worker's records to lanes, and from groups back to the worker.

Knows the registered workers and their plans, makes one EventGroup per event, keeps lanes for the
configured agents and for whatever a live worker's table still names, and ends what is due. How one
event is decided stands in agentd/group.py, how one agent is asked in agentd/lane.py; no sockets here.

Kind: pure (clock and wall clock are given).
"""

import time
from collections.abc import Callable, Sequence

from agentd.alarm import Alarm
from agentd.call import Asked
from agentd.group import EventGroup, Merges, ResolvedPlan
from agentd.lane import Lane
from agentd.lone import LoneCall
from agentd.record import audit_record
from shared.clock import MS
from shared.config.schema import Agent
from shared.deadlines import Deadlines
from shared.decision import Decision
from shared.defaults import FILTERS_PER_ROUTE
from shared.errors import WireError
from shared.events import CHUNKED
from shared.plan import Plan
from shared.wire.audit import AuditRecord
from shared.wire.envelope import CancelReason, EventRecord, Register
from shared.wire.segment import NEVER_NS, BreakerState
from shared.wire.verdict import HEAD, Question

_NOBODY: dict[int, int] = {}
Group = EventGroup | LoneCall
Reply = Callable[[int, Decision], None]


class Worker:
    """One registered worker: its plans and what it waits for. `reply(event_id, decision)` is its way back."""

    __slots__ = ("deadlines", "exchanges", "identity", "pins", "plans", "register", "reply", "skips")

    def __init__(self, identity: bytes, register: Register, reply: Reply) -> None:
        self.identity = identity
        self.register = register
        self.reply = reply
        self.plans: tuple[ResolvedPlan, ...] = ()
        # Events that await a decision. A row per timeout is in order: one worker's deadlines only grow.
        self.deadlines: Deadlines[Group] = Deadlines()
        self.exchanges: dict[int, list[Group]] = {}  # whatever is not closed, by exchange
        self.pins: dict[int, list[Lane]] = {}  # lanes that may have pinned the exchange
        # Observers that want no more of a body: exchange -> plan -> mask. Only of exchanges that are in `pins`.
        self.skips: dict[int, dict[int, int]] = {}

    def remember_pin(self, exchange_id: int, lane: Lane) -> None:
        """The lane is asked to forget the exchange when it ends."""
        lanes = self.pins.get(exchange_id)
        if lanes is None:
            self.pins[exchange_id] = [lane]
        elif lane not in lanes:
            lanes.append(lane)

    def remember_skip(self, exchange_id: int, plan: int, index: int) -> None:
        """This observer is not asked again by this plan, unless the exchange is over already."""
        if exchange_id in self.pins:
            skips = self.skips.setdefault(exchange_id, {})
            skips[plan] = skips.get(plan, 0) | 1 << index


class Dispatcher:
    """All lanes, all workers, all events under way.

    `arm(deadline_ns)`: see to it that `expire` is called then, instead of at the time armed before.
    `audit` takes a record of whatever was not a plain allow. `on_breaker(agent, old, new)` hears of every
    change of a breaker (old == new: only its retry time); `on_lanes()` of lanes that came or went.
    """

    def __init__(
        self,
        call_prefix: str,
        clock: Callable[[], int],
        arm: Callable[[int], None],
        audit: Callable[[AuditRecord], None],
        *,
        on_breaker: Callable[[str, BreakerState, BreakerState], None] | None = None,
        on_lanes: Callable[[], None] | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.call_prefix = call_prefix  # a nonce of this start: an answer left over from the last one fits nothing
        self.calls = 0
        self.lanes: dict[str, Lane] = {}
        self.workers: dict[bytes, Worker] = {}
        self.events_total = 0
        self.body_bytes = 0  # of the events that are open
        self.expired_total = 0  # events whose deadline had passed when they arrived
        self._merges: dict[object, Merges] = {}  # what is remembered of verdicts, by what their merge depends on
        self._alarm = Alarm(arm)
        self._clock = clock
        self._audit = audit
        self._on_breaker = on_breaker
        self._on_lanes = on_lanes
        self._wall = wall

    # --- configuration ----------------------------------------------------------------------------

    def configure(self, agents: Sequence[Agent]) -> None:
        """The agents of the configuration in force: lanes are made, changed, or kept only as long as needed."""
        now = self._clock()
        for lane in self.lanes.values():
            lane.is_configured = False
        for agent in agents:
            known = self.lanes.get(agent.name)
            if known is None:
                self.lanes[agent.name] = Lane(agent, self._clock, self._alarm, self._listener(agent.name))
            else:
                known.configure(agent, now)
        self._merges = {}
        for worker in self.workers.values():
            self._resolve(worker)
        self._retire()
        if self._on_lanes is not None:
            self._on_lanes()

    def _listener(self, name: str) -> Callable[[BreakerState, BreakerState], None]:
        def tell(old: BreakerState, new: BreakerState) -> None:
            if self._on_breaker is not None:
                self._on_breaker(name, old, new)

        return tell

    def _retire(self) -> bool:
        """Drop lanes that neither the configuration nor a live worker names. True if there were any."""
        named = {ask.agent for worker in self.workers.values() for plan in worker.register.plans for ask in plan.asks}
        gone = [name for name, lane in self.lanes.items() if not lane.is_configured and name not in named]
        for name in gone:
            lane = self.lanes.pop(name)
            for instance in list(lane.pool.instances):
                instance.begin_drain(self._clock())  # nobody waits for it any more
        return bool(gone)

    def _resolve(self, worker: Worker) -> None:
        """Look the names of a worker's table up; events under way keep what they began with."""
        worker.plans = tuple(
            ResolvedPlan(plan, self._asked(plan), worker.deadlines.row(plan.timeout_ns), self._merges)
            for plan in worker.register.plans
        )

    def _asked(self, plan: Plan) -> tuple[Asked, ...]:
        return tuple(
            Asked(
                ask.agent,
                self.lanes.get(ask.agent),
                index,
                plan.kind,
                ask.failure_mode,
                ask.observe,
                plan.may_set_host,
                ask.timeout_ms * MS,
            )
            for index, ask in enumerate(plan.asks)
        )

    # --- workers ----------------------------------------------------------------------------------

    def register(self, identity: bytes, register: Register, reply: Reply) -> Worker:
        """A worker introduces itself, perhaps again: what its earlier self waited for is cancelled.

        Raises WireError for a table that cannot be run.
        """
        for number, plan in enumerate(register.plans):
            is_sound = 0 < len(plan.asks) <= FILTERS_PER_ROUTE and all(ask.timeout_ms > 0 for ask in plan.asks)
            # One after the other, each agent changes what the next one gets: those are plans of their own.
            is_sound = is_sound and not (plan.sequential and plan.kind in CHUNKED)
            if not is_sound or plan.number != number:
                raise WireError(f"register: plan {number} of route {plan.route!r} cannot be run")
        before = self.workers.get(identity)
        if before is not None:
            self.worker_gone(before)
        worker = self.workers[identity] = Worker(identity, register, reply)
        self._resolve(worker)
        return worker

    def worker_gone(self, worker: Worker) -> None:
        """Its connection died: cancel all its calls."""
        if self.workers.get(worker.identity) is worker:
            del self.workers[worker.identity]
        now = self._clock()
        for groups in reversed(list(worker.exchanges.values())):
            _cancel(groups, CancelReason.CLIENT_GONE, now, with_observers=True)
        for exchange_id in list(worker.pins):
            self._release_pins(worker, exchange_id)
        if self._retire() and self._on_lanes is not None:
            self._on_lanes()

    def event(self, worker: Worker, record: EventRecord, body: bytes | memoryview | None = None) -> None:
        """Ask whom the event's plan and mask name; raises WireError for a record that fits no plan.

        `body` is passed on as it is; a view keeps what it is a view of, so it is let go of as soon as possible.
        """
        try:
            plan = worker.plans[record.plan]
        except IndexError:
            raise WireError(f"event of plan {record.plan}, the table has {len(worker.plans)}") from None
        mask = record.mask
        if record.kind != plan.kind or mask & ~plan.full_mask:
            raise WireError(f"event of kind {record.kind} with mask {mask:x} does not fit plan {record.plan}")
        if body is not None and not plan.has_body:
            raise WireError(f"event of kind {record.kind} has no body")
        event_id, exchange_id = record.event_id, record.exchange_id
        row = plan.row
        if event_id in row:
            raise WireError(f"event {event_id} is under way already")
        now = self._clock()
        self.events_total += 1
        # A worker's clock is ours; one that errs must not hold up the row that its deadline stands in.
        deadline_ns = now + plan.timeout_ns
        if record.deadline_ns < deadline_ns:
            deadline_ns = record.deadline_ns
        key = None if record.is_final and exchange_id not in worker.pins else (worker.identity, exchange_id)
        group: Group
        lane = plan.lane
        if lane is not None and mask:
            number = self.calls = self.calls + 1
            group = LoneCall(
                number,
                f"{self.call_prefix}{number:x}",
                record.event,
                plan.asked[0],
                None,
                now,
                deadline_ns,
                key,
                dispatcher=self,
                worker=worker,
                plan=plan,
                event_id=event_id,
                exchange_id=exchange_id,
                is_final=record.is_final,
            )
            group.group = group
        else:
            if plan.has_body and worker.skips:
                mask &= ~worker.skips.get(exchange_id, _NOBODY).get(record.plan, 0)
            group = EventGroup(
                self,
                worker,
                plan,
                event_id,
                exchange_id,
                key,
                record.is_final,
                deadline_ns,
                record.event,
                mask,
                [None] * len(plan.asked),
            )
        if plan.question is not HEAD:
            group.question = plan.question
            if plan.has_body:
                group.question = Question(plan.kind, plan.may_set_host, record.chunk_index, record.is_last)
                group.body = body
                if body is not None:
                    group.body_bytes = len(body)
                    self.body_bytes += group.body_bytes
        groups = worker.exchanges.get(exchange_id)
        if groups is None:
            worker.exchanges[exchange_id] = [group]
        else:
            groups.append(group)
        if deadline_ns <= now and not plan.is_told:
            self.expired_total += 1
            group.too_late(now)
            return
        if mask & plan.enforcing_mask:
            row[event_id] = (deadline_ns, group)
            if deadline_ns < self._alarm.at_ns:
                self._alarm.by(deadline_ns)
        if isinstance(group, EventGroup):
            group.ask(now)
            return
        assert lane is not None
        if key is not None:
            worker.remember_pin(exchange_id, lane)
        lane.submit(group, now, False)

    def cancel(self, worker: Worker, exchange_id: int, reason: CancelReason, more_follows: bool = False) -> None:
        """The exchange is over before its time. Observers go on only if it was over by a decision.

        `more_follows`: its last event is still to come, and goes to where the others went.
        """
        self._stop(worker, exchange_id, reason, reason is not CancelReason.DECIDED, more_follows)

    def end(self, worker: Worker, exchange_id: int) -> None:
        """The exchange is over; observers may finish."""
        self._stop(worker, exchange_id, CancelReason.DECIDED, False)

    def _stop(
        self, worker: Worker, exchange_id: int, reason: CancelReason, with_observers: bool, more_follows: bool = False
    ) -> None:
        groups = worker.exchanges.get(exchange_id)
        if groups is not None:
            _cancel(groups, reason, self._clock(), with_observers)
        if not more_follows and exchange_id in worker.pins:
            self._release_pins(worker, exchange_id)

    # --- from groups ------------------------------------------------------------------------------

    def closed(self, group: Group, now: int) -> None:
        """Decided or cancelled, and no observer is out."""
        group.is_closed = True
        worker, exchange_id = group.worker, group.exchange_id
        groups = worker.exchanges[exchange_id]
        if len(groups) == 1:
            del worker.exchanges[exchange_id]
            if group.is_final and group.exchange_key is not None:
                self._release_pins(worker, exchange_id)
        else:
            groups.remove(group)
            if group.is_final:
                groups[0].is_final = True  # whichever of them closes last ends the exchange
        if group.body_bytes:
            self.body_bytes -= group.body_bytes
        if group.is_eventful:
            self._audit(audit_record(group, self._wall()))

    def _release_pins(self, worker: Worker, exchange_id: int) -> None:
        if worker.skips:
            worker.skips.pop(exchange_id, None)
        for lane in worker.pins.pop(exchange_id, ()):
            lane.release_pin((worker.identity, exchange_id))

    # --- time -------------------------------------------------------------------------------------

    def expire(self, now: int) -> None:
        """End what is due and arm the alarm anew. To be called when the alarm rings."""
        self._alarm.at_ns = NEVER_NS
        for worker in list(self.workers.values()):
            for group in worker.deadlines.expired(now):
                group.expire(now)
        for lane in list(self.lanes.values()):
            lane.expire(now)
        following = self.next_deadline()
        if following is not None:
            self._alarm.by(following)

    def next_deadline(self) -> int | None:
        """The earliest deadline of all, or None."""
        deadlines = [worker.deadlines.earliest() for worker in self.workers.values()]
        deadlines += [lane.next_deadline() for lane in self.lanes.values()]
        return min((deadline for deadline in deadlines if deadline is not None), default=None)

    # --- for health -------------------------------------------------------------------------------

    @property
    def in_flight(self) -> int:
        """Permits taken, over all lanes."""
        return sum(lane.in_flight for lane in self.lanes.values())

    @property
    def queued(self) -> int:
        """Calls waiting for a permit, over all lanes."""
        return sum(lane.queued for lane in self.lanes.values())

    @property
    def awaited(self) -> int:
        """Events that a worker waits for."""
        return sum(len(worker.deadlines) for worker in self.workers.values())


def _cancel(groups: list[Group], reason: CancelReason, now: int, with_observers: bool) -> None:
    """Newest first: what waits in a queue leaves before a permit comes back, or it would be sent now."""
    for group in reversed(groups.copy()):
        group.cancel(reason, now, with_observers)
