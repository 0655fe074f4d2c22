"""Moves events to agentd and decisions back; knows when nobody need be asked.

The worker's end of the hop: one DEALER, the events of one loop tick in one message, pending events in
rows by timeout, and a view of each plan that says at once what the segment already tells: nobody wants
this event, agentd is gone, every enforcing agent's breaker is open. What an unanswered event means is
`shared.decision.on_failure`'s business; when it counts as unanswered is decided here.

    decide_now(view) -> Decision        nothing is sent
    send(waiter, view, event)           `waiter.decided(decision)` follows: answer, timeout, agentd's death

Kind: IO.
"""

from collections import deque
from collections.abc import Callable, MutableSequence
from typing import Any, Protocol

import zmq
from zmq.utils.monitor import parse_monitor_message

from proxy.plan_view import PlanView
from shared import log
from shared.clock import MS, now_ns
from shared.deadlines import Deadlines
from shared.decision import ALLOW, Answer, Decision, Outcome, merge
from shared.defaults import (
    AUDIT_WORKER_QUEUE,
    DECISION_REMEMBERED_BYTES,
    DECISIONS_REMEMBERED,
    HOP_GRACE_MS,
    HOP_HWM,
    HOP_MAX_MESSAGE_BYTES,
    HOP_PENDING_MAX,
    RECONNECT_MAX_MS,
    RECONNECT_MS,
    REREGISTER_MS,
    ZMTP_HANDSHAKE_MS,
)
from shared.errors import WireError
from shared.metrics import (
    W_AGENTD_CONNECTED,
    W_AUDIT_DROPPED,
    W_AUDIT_QUEUED,
    W_AUDIT_QUEUED_LIMIT,
    W_DECISIONS_LOCAL,
    W_EVENTS_SENT,
    W_EVENTS_SKIPPED,
    W_HOP_MALFORMED,
    W_HOP_MESSAGES,
    W_LATE_DECISIONS,
    W_PENDING_EVENTS,
    W_PENDING_LIMIT,
    W_REGISTRATIONS,
)
from shared.pump import Pump, Turn
from shared.segment import AgentdView
from shared.wire.envelope import (
    CancelReason,
    RecordType,
    Register,
    messages,
    pack_audit,
    pack_cancel,
    pack_end,
    pack_event_fields,
    pack_register,
    records,
    unpack_decision,
    unpack_registered,
)

_REREGISTER_NS = REREGISTER_MS * MS
_DECISION = int(RecordType.DECISION)  # a look-up in an Enum costs ten times that of a global (2026-11)
_MONITORED = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED


class Waiter(Protocol):
    """Who waits for a decision: the driver of one exchange."""

    exchange_id: int

    def decided(self, decision: Decision) -> None:
        """Called at most once per `send`, never from inside it."""


class Dispatch:
    """The worker's end of the hop."""

    def __init__(
        self,
        context: zmq.Context[Any],
        loop: Any,
        endpoint: str,
        segment: AgentdView,
        register: Register,
        cells: "MutableSequence[int] | memoryview[int]",
        clock: Callable[[], int] = now_ns,
        *,
        turn: Turn | None = None,
        hwm: int = HOP_HWM,
        max_pending: int = HOP_PENDING_MAX,
        max_audit: int = AUDIT_WORKER_QUEUE,
    ) -> None:
        self._hwm = hwm
        self._max_pending = cells[W_PENDING_LIMIT] = max_pending
        cells[W_AUDIT_QUEUED_LIMIT] = max_audit
        self._context = context
        self._loop = loop
        self._turn = turn if turn is not None else Turn(loop)
        self._endpoint = endpoint
        self._segment = segment
        self._register = pack_register(register)
        self._cells = cells
        self._clock = clock
        self._pending: Deadlines[tuple[Waiter, PlanView]] = Deadlines()
        self._waiting = 0
        self._next_event = 0
        self._out: list[bytes] = []
        self._first = 1  # event of this tick's message
        self._decisions: dict[bytes, Decision] = {}
        self._audit: deque[bytes] = deque(maxlen=max_audit)
        self._generation = -1
        self._is_connected = False
        self._is_alive = False
        self._is_refused = False
        self._registered_at = 0
        self.is_registered = False
        self.is_up = False
        last_of_route = {plan.route: plan.number for plan in register.plans}
        self.views = {
            plan.number: PlanView(
                plan,
                self._pending.row(plan.timeout_ns),
                last_of_route[plan.route] == plan.number,
            )
            for plan in register.plans
        }
        self._socket = self._open()
        self._pump = Pump(self._socket, loop, self._received, again=zmq.Again, error=zmq.ZMQError, turn=self._turn)
        self._monitor = Pump(
            self._socket.get_monitor_socket(_MONITORED), loop, self._monitored, again=zmq.Again, error=zmq.ZMQError
        )
        self._socket.connect(endpoint)
        self._refresh()

    def _open(self) -> "zmq.Socket[bytes]":
        socket: zmq.Socket[bytes] = self._context.socket(zmq.DEALER)
        for option, value in (
            (zmq.LINGER, 0),
            (zmq.IMMEDIATE, 1),
            (zmq.SNDHWM, self._hwm),
            (zmq.RCVHWM, self._hwm),
            (zmq.MAXMSGSIZE, HOP_MAX_MESSAGE_BYTES),
            (zmq.RECONNECT_IVL, RECONNECT_MS),
            (zmq.RECONNECT_IVL_MAX, RECONNECT_MAX_MS),
            (zmq.HANDSHAKE_IVL, ZMTP_HANDSHAKE_MS),
        ):
            socket.setsockopt(option, value)
        # No ZMTP heartbeats: they can abort whoever gets them (agentd/peers.py); the segment's beat tells more anyway.
        # No ROUTING_ID: a worker that reconnects under an id that the ROUTER still holds loses its first messages.
        return socket

    # --- asking -------------------------------------------------------------------------------------

    def decide_now(self, view: PlanView, now: int) -> Decision | None:
        """The decision where it is known without asking; None = encode the event and `send` it.

        Need not be called while `view.may_decide_now` is False.
        """
        if self._segment.generation != self._generation:  # before deciding alone; the sweep does it for the rest
            self._refresh()
        if not view.mask:
            self._cells[W_EVENTS_SKIPPED] += 1
            return ALLOW
        local = view.local
        if local is not None and now < view.local_until and not view.observers:
            self._cells[W_DECISIONS_LOCAL + view.local_outcome] += 1
            return local
        return None

    def send(self, waiter: Waiter, view: PlanView, exchange_id: int, event: bytes, now: int) -> "int | Decision":
        """Queue an event for this tick's message. An id = pending (for `cancel`); a Decision = no waiting."""
        mask = view.mask
        waits = view.waits
        answer: Decision = ALLOW
        local = view.local
        if local is not None and now < view.local_until:  # observers are told, nobody is waited for
            mask, waits, answer = view.observers, False, local
            self._cells[W_DECISIONS_LOCAL + view.local_outcome] += 1
        if waits and self._waiting >= self._max_pending:
            return self._refused(view, Outcome.QUEUE_FULL)
        self._next_event = event_id = self._next_event + 1
        deadline = now + view.timeout_ns
        out = self._out
        if not out:
            self._turn.at_end(self._flush)
        out.append(
            pack_event_fields(
                event_id,
                exchange_id,
                mask,
                deadline,
                view.number,
                view.kind,
                view.flags,
                len(event),
            )
        )
        out.append(event)
        if not waits:
            return answer
        view.row[event_id] = (deadline + _GRACE_NS, (waiter, view))
        self._waiting += 1
        return event_id

    def cancel(self, view: PlanView, event_id: int, exchange_id: int, reason: CancelReason) -> None:
        """Nobody waits for this event any more; agentd tells the agents."""
        if view.row.pop(event_id, None) is not None:
            self._waiting -= 1
        if self._is_connected:
            self._queue(pack_cancel(exchange_id, reason))

    def end(self, exchange_id: int) -> None:
        """No further event of this exchange; what was pinned for it is free."""
        if self._is_connected:
            self._queue(pack_end(exchange_id))

    def audit(self, record: bytes) -> None:
        """One audit record for agentd's sinks; kept, bounded, while agentd is away."""
        audit = self._audit
        if len(audit) == audit.maxlen:
            self._cells[W_AUDIT_DROPPED] += 1
        audit.append(record)
        if self._is_connected and not self._out:
            self._turn.at_end(self._flush)
            self._out.append(b"")

    def _queue(self, record: bytes) -> None:
        if not self._out:
            self._turn.at_end(self._flush)
        self._out.append(record)

    def _flush(self) -> None:
        out, first = self._out, self._first
        self._out, self._first = [], self._next_event + 1
        self._cells[W_EVENTS_SENT] += self._first - first
        audit = 0
        if self._audit and self._is_connected:
            audit = len(self._audit)
            out += map(pack_audit, self._audit)
            self._audit.clear()
        self._cells[W_HOP_MESSAGES] += 1
        if not all(self._pump.send((message,)) for message in messages(b"".join(out))):
            self._cells[W_AUDIT_DROPPED] += audit
            outcome = Outcome.QUEUE_FULL if self._is_connected else Outcome.DISCONNECTED
            for row in self._pending.rows():
                for event_id in [event_id for event_id in row if first <= event_id < self._first]:
                    waiter, view = row.pop(event_id)[1]
                    self._waiting -= 1
                    waiter.decided(self._refused(view, outcome))

    def _refused(self, view: PlanView, outcome: Outcome) -> Decision:
        """What the plan's failure modes make of one outcome for all its enforcing agents."""
        self._cells[W_DECISIONS_LOCAL + outcome] += 1
        asks = [ask for i, ask in enumerate(view.plan.asks) if not ask.observe and view.mask >> i & 1]
        answer = Answer(outcome)
        return merge([answer] * len(asks), [a.failure_mode for a in asks], [a.agent for a in asks], view.kind)

    # --- answers ------------------------------------------------------------------------------------

    def _received(self, frames: list[bytes]) -> None:
        try:
            for kind, rest in records(frames[0]):
                if kind == _DECISION:
                    self._decision(rest)
                elif kind == RecordType.UNKNOWN:
                    self.is_registered = False
                    self._send_register()
                elif kind == RecordType.REGISTERED:
                    unpack_registered(rest)
                    self.is_registered = True
                    self._cells[W_AGENTD_CONNECTED] = 1
        except WireError as error:
            self._cells[W_HOP_MALFORMED] += 1
            log.line("proxy.dispatch", log.ERROR, f"agentd sent a message that is not understood: {error}")
            if not self.is_registered:
                # Another wire version: never ask it, answer by failure_mode until it is replaced.
                self._is_refused = True
                self._changed()

    def _decision(self, rest: bytes | memoryview) -> None:
        if len(rest) == 8:
            event_id, decision = int.from_bytes(rest, "little"), ALLOW
        elif len(rest) <= DECISION_REMEMBERED_BYTES:
            # The same few decisions come again and again; decoding costs ten times the look-up.
            event_id, key = int.from_bytes(rest[:8], "little"), bytes(rest[8:])
            cached = self._decisions.get(key)
            if cached is None:
                cached = unpack_decision(rest)[1]
                if len(self._decisions) >= DECISIONS_REMEMBERED:
                    self._decisions.clear()
                self._decisions[key] = cached
            decision = cached
        else:
            event_id, decision = unpack_decision(rest)
        for row in self._pending.rows():
            entry = row.pop(event_id, None)
            if entry is not None:
                self._waiting -= 1
                entry[1][0].decided(decision)
                return
        self._cells[W_LATE_DECISIONS] += 1

    # --- agentd comes and goes ------------------------------------------------------------------------

    def _monitored(self, frames: list[bytes]) -> None:
        event = parse_monitor_message(frames)["event"]
        if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self._is_connected = True
            self._is_refused = False
            self.is_registered = False
            self._registered_at = 0
            self._segment.check()
            self._is_alive = self._segment.is_alive(self._clock())
            self._send_register()
        else:
            self._is_connected = False
            self.is_registered = False
            self._cells[W_AGENTD_CONNECTED] = 0
        self._changed()

    def _send_register(self) -> None:
        now = self._clock()
        if now - self._registered_at < _REREGISTER_NS:
            return
        self._registered_at = now
        self._cells[W_REGISTRATIONS] += 1
        self._pump.send((self._register,))

    def _changed(self) -> None:
        """Whether agentd can be asked may have changed; when not, all that is pending is answered at once."""
        is_up = self._is_connected and self._is_alive and not self._is_refused
        if is_up == self.is_up:
            return
        self.is_up = is_up
        self._refresh()
        if not is_up:
            for waiter, view in self._pending.clear():
                self._waiting -= 1
                if self._is_connected and not self._is_refused:  # it stands still; its agents need not answer any more
                    self._queue(pack_cancel(waiter.exchange_id, CancelReason.TIMEOUT))
                waiter.decided(self._refused(view, Outcome.DISCONNECTED))

    def _refresh(self) -> None:
        self._generation = self._segment.generation
        agents = self._segment.agents()
        for view in self.views.values():
            view.refresh(agents, self.is_up)

    def sweep(self, now: int) -> None:
        """Every SWEEP_MS: answer what is overdue, look whether agentd still beats."""
        if self._segment.generation != self._generation:
            self._refresh()
        is_alive = self._segment.is_alive(now)
        if is_alive != self._is_alive:
            self._is_alive = is_alive
            self._changed()
        if self._is_connected and not self.is_registered and not self._is_refused:
            self._send_register()
        if self._waiting:
            for waiter, view in self._pending.expired(now):
                self._waiting -= 1
                waiter.decided(self._refused(view, Outcome.TIMEOUT))
        self._cells[W_PENDING_EVENTS] = self._waiting
        self._cells[W_AUDIT_QUEUED] = len(self._audit)

    def check_segment(self) -> None:
        """Once a second: a restarted agentd has made a new segment."""
        self._segment.check()

    def close(self) -> None:
        """Pending events are answered as Disconnected, the socket is closed."""
        if self._out:
            self._flush()
        self._is_connected = False
        self._changed()
        self._socket.disable_monitor()
        self._monitor.close()
        self._pump.close()


_GRACE_NS = HOP_GRACE_MS * MS
