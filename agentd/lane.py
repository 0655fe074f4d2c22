"""One agent's lane: breaker, capacity, bounded queue, choice of instance; then the transport.

Semantics 8, 9, 12 of docs/architecture.md. Counters and dicts driven by callbacks: nothing here waits,
creates a task or owns a timer. A call that enters by `submit` ends exactly once: its group hears
`ended(call)`, or the group itself cancels it. No merging here, no failure modes, no bytes.

    submit --> breaker --refused--> BREAKER_OPEN
                  |
             live instance? --no--> DISCONNECTED (also: the pinned one is gone)
                  |
             permit free? --no--> queue --full--> QUEUE_FULL
                  |                 |  woken by whatever gives a permit back, or expired
                  v                 v
             instance.send --False everywhere--> QUEUE_FULL (or BODY_TOO_LARGE for all of them)
                  |
             answered | failed | timed_out | instance_down | cancel

An event that is told (request_complete) asks nothing: it takes no permit, moves nothing, and is dropped where there
is no room; only a lockstep connection has to be free for it.

Only what was really sent can blame the agent. A permit is back when the call ends for us, except on a
lockstep connection: there a cancelled call is HELD, with its permit, until released() or its deadline.

Kind: pure (the clock is given).
"""

from collections.abc import Callable

from agentd.alarm import Alarm
from agentd.call import Call, CallState, Instance
from agentd.ledger import Ledger
from agentd.pool import ExchangeKey, Pool, Queue
from agentd.rate import CallRate
from shared.breaker import Breaker, OnChange, Refused
from shared.config.schema import Agent
from shared.deadlines import Deadlines
from shared.decision import Outcome
from shared.wire.envelope import CancelReason
from shared.wire.verdict import Screened

_QUEUED, _SENT, _HELD, _ENDED = CallState.QUEUED, CallState.SENT, CallState.HELD, CallState.ENDED
_DECISION = Outcome.DECISION
_QUEUE_FULL, _BODY_TOO_LARGE = Outcome.QUEUE_FULL, Outcome.BODY_TOO_LARGE


class Lane:
    """All calls to one agent. `in_flight` counts permits taken; `held`: HELD calls, by number."""

    __slots__ = (
        "_alarm",
        "_clock",
        "_deadlines",
        "_queue",
        "breaker",
        "held",
        "in_flight",
        "is_configured",
        "ledger",
        "name",
        "pool",
        "rate",
        "settings",
    )

    def __init__(self, settings: Agent, clock: Callable[[], int], alarm: Alarm, on_change: OnChange | None = None):
        self.name = settings.name
        self.settings = settings
        self.is_configured = True  # False: gone from the configuration, kept for workers that still name it
        self.breaker = Breaker(settings.name, settings.circuit_breaker, on_change)
        self.pool = Pool()
        self.in_flight = 0
        self.ledger = Ledger()
        self.rate = CallRate(settings)
        self._clock = clock
        self._alarm = alarm
        self._deadlines: Deadlines[Call] = Deadlines()
        self.held: dict[int, Call] = {}
        self._queue = Queue()

    # --- from the dispatcher ----------------------------------------------------------------------

    def submit(self, call: Call, now: int, is_timed: bool) -> None:
        """Ask. `is_timed`: the lane watches the call's deadline (always start + timeout_ms then); else its
        group does, because the event's deadline comes first."""
        if is_timed:
            row = call.row = self._deadlines.row(call.asked.timeout_ns)
            row[call.number] = (call.deadline_ns, call)
            if call.deadline_ns < self._alarm.at_ns:
                self._alarm.by(call.deadline_ns)
        if call.asked.is_observer:
            self._observe(call, now)
            return
        permit = self.breaker.shared
        if permit is None:
            probe = self.breaker.admit(now)
            if isinstance(probe, Refused):
                self._end(call, Outcome.BREAKER_OPEN, now, "breaker is open")
                return
            permit = probe
        call.permit = permit
        if self.rate.bucket is not None and not self.rate.take(now):
            self._refuse(call, Outcome.QUEUE_FULL, now, "over its rate_limit")
            return
        if (
            call.exchange_key is not None
            or self._queue.length
            or self.in_flight >= self.settings.max_concurrent_calls
            or not self._send(call, now)
        ):
            self._place(call, now)

    def cancel(self, call: Call, reason: CancelReason, now: int) -> None:
        """Nobody waits any more; the group hears nothing."""
        state = call.state
        if state is not _QUEUED and state is not _SENT:
            return
        call.group = None
        if call.permit is not None:
            call.permit.release(now)
        self._forget_deadline(call)
        if state is _QUEUED:
            self._queue.remove(call)
            self._close(call, now)
            return
        instance = call.instance
        assert instance is not None
        call.state = _HELD
        if not instance.cancel(call, reason):
            if call.state is _HELD:  # else the transport gave up the connection meanwhile
                call.body = None
                self.held[call.number] = call
                self._alarm.by(call.deadline_ns)
            return
        self._free(call, now)

    def timed_out(self, call: Call, now: int) -> None:
        """Its deadline is here: blamed if it was sent, not if it never left our queue."""
        if call.state is _QUEUED:
            self._queue.remove(call)
            self._refuse(call, Outcome.TIMEOUT, now, "timed out in the queue")
            return
        if call.state is not _SENT:
            return
        instance = call.instance
        assert instance is not None
        self._take_back(call)
        if not call.asked.is_told and self.pool.let_down(instance) and call.permit is not None:
            call.permit.release(now)  # its first timeout has told the breaker
            call.permit = None
        call.state = _ENDED  # the transport may take the whole instance down now
        instance.cancel(call, CancelReason.TIMEOUT)
        self._finish(call, Outcome.TIMEOUT, now, "no answer in time")

    def release_pin(self, key: ExchangeKey) -> None:
        """The exchange has ended."""
        instance = self.pool.unpin(key)
        if instance is not None and instance.is_draining:
            self._check_drained(instance)

    # --- from transports --------------------------------------------------------------------------

    def instance_up(self, instance: Instance) -> None:
        """A session is ready for calls."""
        now = self._clock()
        self.pool.add(instance)
        self.breaker.new_session(now)
        self._wake(now)

    def instance_down(self, instance: Instance, message: str) -> None:
        """Its connection is gone: what was sent there fails at once."""
        if not instance.is_live:
            return
        now = self._clock()
        self.pool.remove(instance)
        calls = list(instance.calls.values())
        instance.calls.clear()
        self.in_flight -= len(calls)
        lost = self._queue.row(instance)
        if not self.pool.instances:
            lost += self._queue.row(None)
        for call in calls:
            if call.state is _SENT:
                self._finish(call, Outcome.DISCONNECTED, now, message)
            elif call.state is _HELD:
                self.held.pop(call.number, None)
                self._close(call, now)
        for call in lost:
            if call.state is _QUEUED:
                self._queue.remove(call)
                self._refuse(call, Outcome.DISCONNECTED, now, message)
        self._wake(now)

    def answered(self, call: Call, screened: Screened, now: int = 0) -> None:
        """The agent's verdict on a call found in `instance.calls`. `now`: when it came, where that is known."""
        if call.state is not _SENT:
            self.late_verdict()
            self.released(call)
            return
        if not now:
            now = self._clock()
        call.screened = screened
        if screened.decision is None:
            self._take_back(call)
            if screened.error:
                self._finish(call, Outcome.AGENT_ERROR, now, screened.error)
            else:
                self._finish(call, Outcome.MALFORMED, now, screened.malformed)
            return
        # `_take_back` and `_finish` in one piece: nearly all calls end here.
        instance = call.instance
        if instance is not None and instance.calls.pop(call.call_id, None) is not None:
            self.in_flight -= 1
        permit = call.permit
        if permit is not self.breaker.shared and permit is not None:
            permit.success(now)
        if call.row is not None:
            self._forget_deadline(call)
        call.outcome = _DECISION
        call.state = _ENDED
        call.ended_ns = now
        call.event = b""
        if call.asked.is_observer:
            self.ledger.add(call)
        else:
            self.ledger.decided(call)
        if instance is not None and instance.is_draining:
            self._check_drained(instance)
        group = call.group
        call.group = None
        if group is not None:
            group.ended(call, now)
        if self._queue.length:
            self._wake(now)

    def failed(self, call: Call, outcome: Outcome, message: str) -> None:
        """A call found in `instance.calls` ended without a verdict that could be read."""
        if call.state is not _SENT:
            self.released(call)
            return
        self._take_back(call)
        self._finish(call, outcome, self._clock(), message)

    def late_verdict(self) -> None:
        """An answer nobody waits for: no fault of the agent's."""
        self.ledger.late_verdicts += 1

    def released(self, call: Call) -> None:
        """A HELD call's connection is free again."""
        if call.state is _HELD:
            self._free(call, self._clock())

    def woken(self) -> None:
        """An instance's limit, pause or health changed."""
        self._wake(self._clock())

    # --- from the daemon --------------------------------------------------------------------------

    def expire(self, now: int) -> None:
        """End what is due."""
        for call in self._deadlines.expired(now):
            call.row = None
            self.timed_out(call, now)
        for call in [call for call in self.held.values() if call.deadline_ns <= now]:
            if call.state is _HELD:
                assert call.instance is not None
                self._take_back(call)
                del self.held[call.number]
                self._close(call, now)
                call.instance.cancel(call, CancelReason.TIMEOUT)
                self._wake(now)

    def next_deadline(self) -> int | None:
        """When expire() has something to do."""
        held = (call.deadline_ns for call in self.held.values())
        return min((ns for ns in (self._deadlines.earliest(), *held) if ns is not None), default=None)

    def configure(self, settings: Agent, now: int) -> None:
        """Other numbers, at once; calls under way keep theirs."""
        self.settings = self.rate.configure(settings)
        self.is_configured = True
        self.breaker.configure(settings.circuit_breaker)
        self._wake(now)

    def force_open(self, now: int) -> None:
        """The operator's `breaker open`: what waits is refused too, what was sent may still be answered."""
        self.breaker.force_open(now)
        self._wake(now)

    @property
    def queued(self) -> int:
        """How many calls wait for a permit."""
        return self._queue.length

    @property
    def live_instances(self) -> int:
        """How many instances could be asked, paused ones included."""
        return len(self.pool.instances)

    # --- placing ----------------------------------------------------------------------------------

    def _place(self, call: Call, now: int, is_next: bool = False) -> None:
        """Send now, queue, or refuse a call that has its breaker permit. `is_next`: its turn in the queue has come."""
        pool = self.pool
        if call.exchange_key is not None and not self.pool.follow(call):
            self._refuse(call, Outcome.DISCONNECTED, now, "the request's instance is gone")
            return
        if not pool.instances:
            self._refuse(call, Outcome.DISCONNECTED, now, "no live instance")
            return
        if (
            self.in_flight < self.settings.max_concurrent_calls
            and (is_next or not self._queue.length or not self._queue.has_row(call.instance))
            and self._send(call, now)
        ):
            return
        if not self._queue.has_room(call, self.settings.max_queue, self.settings.max_outstanding_bytes):
            self._refuse(call, Outcome.QUEUE_FULL, now, "queue is full")
            return
        self.ledger.queued_total += not call.asked.is_told
        self._queue.add(call)

    def _observe(self, call: Call, now: int) -> None:
        """An observer's call: now or not at all, and only to an agent that is well."""
        if call.asked.is_told:
            self._tell(call, now)
            return
        outcome, message = Outcome.QUEUE_FULL, "no free permit for an observer"
        if not self.breaker.is_closed:
            outcome, message = Outcome.BREAKER_OPEN, "breaker is open"
        elif not self.pool.instances:
            outcome, message = Outcome.DISCONNECTED, "no live instance"
        elif call.exchange_key is not None and not self.pool.follow(call):
            outcome, message = Outcome.DISCONNECTED, "the request's instance is gone"
        elif self._queue.length or self.in_flight >= self.settings.max_concurrent_calls:
            pass  # before the rate: what is not asked costs those that decide no token
        elif self.rate.bucket is not None and not self.rate.take(now):
            message = "over its rate_limit"
        elif self._send(call, now):
            return
        self._end(call, outcome, now, message)

    def _tell(self, call: Call, now: int) -> None:
        """request_complete: nobody waits, and where there is no room it is dropped."""
        pool = self.pool
        outcome, message = Outcome.DISCONNECTED, "no live instance"
        if not self.breaker.is_closed:
            outcome, message = Outcome.BREAKER_OPEN, "breaker is open"
        elif call.exchange_key is not None and not pool.follow(call):
            message = "the request's instance is gone"
        elif pool.instances:
            instance = call.instance or pool.choose() or pool.somebody()
            if instance is not None and instance.is_lockstep:
                self._place(call, now)
                return
            if instance is not None and instance.tell(call):
                outcome, message = _DECISION, ""
                call.instance, call.sent_ns = instance, now
            else:
                outcome, message = _QUEUE_FULL, "no room for what needs no answer"
        self._end(call, outcome, now, message)

    def _send(self, call: Call, now: int) -> bool:
        """Hand it to its pinned instance or to the best free one. False = it has to wait.

        When every instance that is free says that its socket is full, the call ends here as QUEUE_FULL; when its body
        is longer than any of them takes, as BODY_TOO_LARGE.
        """
        body = call.body
        pinned = call.instance
        if pinned is None:
            instance = self.pool.choose()
        else:
            instance = pinned if len(pinned.calls) < pinned.limit else None
        full: tuple[Instance, ...] = ()
        while instance is not None:
            if body is not None and len(body) > instance.max_body_bytes:
                full += (instance,)
                instance = None if pinned is not None else self.pool.choose(full)
                continue
            call.state = _SENT
            call.instance = instance
            call.sent_ns = now
            instance.calls[call.call_id] = call
            self.in_flight += 1
            if instance.send(call):
                if body is not None:
                    self.ledger.body_bytes_sent += len(body)
                if call.exchange_key is not None:
                    self.pool.pin(call.exchange_key, instance)
                return True
            if call.state is not _SENT:
                return True  # send() found the connection dead, and that has ended the call
            self._take_back(call)
            call.state = _QUEUED
            call.instance = pinned
            call.sent_ns = 0
            full += (instance,)
            instance = None if pinned is not None else self.pool.choose(full)
        if not full:
            return False
        if body is not None and all(len(body) > instance.max_body_bytes for instance in full):
            self._refuse(call, _BODY_TOO_LARGE, now, "the body is longer than its instance takes")
        else:
            self._refuse(call, _QUEUE_FULL, now, "its socket is full")
        return True

    def _wake(self, now: int) -> None:
        """Give free permits to those who wait longest; refuse them if the breaker has opened since."""
        if self._queue.length and not self.breaker.is_closed:
            for call in list(self._queue):
                if call.state is _QUEUED and not self._is_admitted(call, now):
                    self._queue.remove(call)
                    self._end(call, Outcome.BREAKER_OPEN, now, "breaker opened")
        while self._queue.length and self.in_flight < self.settings.max_concurrent_calls:
            found = self._queue.head(self.pool)
            if found is None:
                return
            self._queue.remove(found)
            if found.deadline_ns <= now:
                self._refuse(found, Outcome.TIMEOUT, now, "timed out in the queue")
            elif not self._is_admitted(found, now):
                self._end(found, Outcome.BREAKER_OPEN, now, "breaker opened")
            else:
                self._place(found, now, is_next=True)

    def _is_admitted(self, call: Call, now: int) -> bool:
        """Whether the breaker still wants it: a permit of an earlier state is exchanged for a new one."""
        if call.permit is None:  # a lockstep agent's request_complete
            return self.breaker.is_closed
        if call.permit.is_current:
            return True
        permit = self.breaker.admit(now)
        if isinstance(permit, Refused):
            return False
        call.permit = permit
        return True

    # --- ending -----------------------------------------------------------------------------------

    def _take_back(self, call: Call) -> None:
        """The permit of a call that was sent; nothing to do if its instance went down meanwhile."""
        instance = call.instance
        assert instance is not None
        if instance.calls.pop(call.call_id, None) is not None:
            self.in_flight -= 1

    def _free(self, call: Call, now: int) -> None:
        """A cancelled call gives its permit back."""
        self.held.pop(call.number, None)
        if call.state is not _ENDED:
            self._take_back(call)
            self._close(call, now)
        self._wake(now)

    def _refuse(self, call: Call, outcome: Outcome, now: int, message: str) -> None:
        """An end that says nothing about the agent."""
        if call.permit is not None:
            call.permit.release(now)
        self._end(call, outcome, now, message)

    def _finish(self, call: Call, outcome: Outcome, now: int, message: str = "") -> None:
        """The end of a call that was sent and has given its permit back: the breaker hears of it."""
        permit = call.permit
        if permit is not None:
            if outcome is _DECISION:
                permit.success(now)
            elif outcome is _QUEUE_FULL or outcome is _BODY_TOO_LARGE:
                permit.release(now)  # its socket did not take it after all: it was never asked (semantics 8)
            else:
                permit.failure(now)
        self._end(call, outcome, now, message)
        if self._queue.length:
            self._wake(now)

    def _end(self, call: Call, outcome: Outcome, now: int, message: str) -> None:
        """The one way out of the lane for a call that is not cancelled."""
        if call.row is not None:
            self._forget_deadline(call)
        call.outcome = outcome
        call.message = message
        self._close(call, now)
        group = call.group
        call.group = None
        if group is not None:
            group.ended(call, now)

    def _forget_deadline(self, call: Call) -> None:
        if call.row is not None:
            call.row.pop(call.number, None)
            call.row = None

    def _close(self, call: Call, now: int) -> None:
        call.state = _ENDED
        call.ended_ns = now
        call.event = b""  # a view keeps the worker's whole message alive
        call.body = None
        self.ledger.add(call)
        instance = call.instance
        if instance is not None and instance.is_draining:
            self._check_drained(instance)

    def _check_drained(self, instance: Instance) -> None:
        if instance.is_live and not instance.calls and not instance.pins:
            instance.drained()
