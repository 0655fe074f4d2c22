"""Moves events to agentd and decisions back; knows when nobody need be asked.

The worker's end of the hop (the connection itself is proxy/hop.py): the events of one loop tick in one
message, pending events in rows by timeout, and a view of each plan that says at once what the segment
already tells: nobody wants this event, agentd is gone, every enforcing agent's breaker is open. What an
unanswered event means is `shared.decision.on_failure`'s business; when it counts as unanswered is
decided here.

    decide_now(view) -> Decision        nothing is sent
    send(waiter, view, event)           `waiter.decided(decision)` follows: answer, timeout, agentd's death
    send_body(..., body, index)         the same with bytes beside the event
    tell(view, event)                   nobody waits: request_complete

Kind: IO.
"""

import logging
from collections import deque
from collections.abc import Callable, MutableSequence
from functools import partial
from struct import Struct
from typing import Any, Final, Protocol

import msgspec

from proxy.hop import Hop
from proxy.plan_view import PlanView
from shared import log
from shared.clock import MS, now_ns
from shared.deadlines import Deadlines
from shared.decision import ALLOW, Decision, Outcome
from shared.defaults import (
    AUDIT_WORKER_QUEUE,
    BODIES_EASY_BYTES,
    BODY_CHUNK_BYTES,
    BODY_CHUNK_LEAST_BYTES,
    DECISION_REMEMBERED_BYTES,
    DECISIONS_REMEMBERED,
    HOP_BODIES_BYTES,
    HOP_GRACE_MS,
    HOP_MAX_FRAMES,
    HOP_MAX_MESSAGE_BYTES,
    HOP_OUTSTANDING_BYTES,
    HOP_OWED_MAX,
    HOP_PENDING_MAX,
    HOP_UNSENT_BYTES,
)
from shared.errors import WireError
from shared.metrics import (
    W_AGENTD_CONNECTED,
    W_AUDIT_DROPPED,
    W_AUDIT_QUEUED,
    W_AUDIT_QUEUED_LIMIT,
    W_BODIES_OUTSTANDING,
    W_BODIES_OUTSTANDING_LIMIT,
    W_DECISIONS_LOCAL,
    W_EVENTS_SENT,
    W_EVENTS_SKIPPED,
    W_HOP_MALFORMED,
    W_HOP_MESSAGES,
    W_LATE_DECISIONS,
    W_OBSERVED_DROPPED,
    W_PENDING_EVENTS,
    W_PENDING_LIMIT,
)
from shared.segment import AgentdView
from shared.turn import Turn
from shared.wire.envelope import (
    EVENT_FIELDS,
    FLAG_FINAL,
    FLAG_LAST,
    NO_BODY,
    CancelReason,
    RecordType,
    Register,
    endings,
    messages,
    messages_with_bodies,
    pack_audit,
    pack_cancel,
    pack_end,
    pack_event_fields,
    pack_event_front,
    pack_tokens,
    records,
    unpack_decision,
    unpack_decision_body,
    unpack_registered,
)
from shared.zmtp import Connection, Frame

_BODIES_MAX = HOP_MAX_FRAMES - 1  # of one message
# A look-up in an Enum costs ten times that of a global (2026-11).
_EVENT, _DECISION = int(RecordType.EVENT), int(RecordType.DECISION)


class Waiter(Protocol):
    """Who waits for a decision: the driver of one exchange."""

    exchange_id: int

    def decided(self, decision: Decision) -> None:
        """Called at most once per `send`, never from inside it."""


class _Nobody:
    """Stands for a waiter where only observers were sent something."""

    exchange_id = 0

    def decided(self, decision: Decision) -> None:
        """Nobody hears it."""


_NOBODY: Final = _Nobody()


def _tell(waiter: Waiter, decision: Decision) -> None:
    """A defect in one exchange must not cost others, whose decisions came with this one, their answers."""
    try:
        waiter.decided(decision)
    except Exception:
        _log.exception(_NOT_APPLIED)


_log = logging.getLogger("proxy.dispatch")
_NOT_APPLIED: Final = "a decision could not be applied"
_event_id = Struct("<Q").unpack_from
_Pending = tuple[Waiter, PlanView, int, int]  # who waits, for whom it was sent (plan, mask), bytes of its body


class Dispatch(Hop):
    """The worker's end of the hop."""

    def __init__(
        self,
        loop: Any,
        path: str,
        segment: AgentdView,
        register: Register,
        cells: "MutableSequence[int] | memoryview[int]",
        clock: Callable[[], int] = now_ns,
        *,
        turn: Turn | None = None,
        max_unsent: int = HOP_UNSENT_BYTES,
        max_pending: int = HOP_PENDING_MAX,
        max_audit: int = AUDIT_WORKER_QUEUE,
    ) -> None:
        turn = turn if turn is not None else Turn(loop)
        super().__init__(loop, path, segment, register, cells, clock, turn, max_unsent)
        self._max_pending = cells[W_PENDING_LIMIT] = max_pending
        self._max_outstanding = cells[W_BODIES_OUTSTANDING_LIMIT] = HOP_OUTSTANDING_BYTES
        self._outstanding = 0  # bytes of bodies that were sent and not yet decided on
        self._bodies: list[bytes] = []  # this tick's, in the order of their numbers
        self._bodies_bytes = 0
        cells[W_AUDIT_QUEUED_LIMIT] = max_audit
        self._pending: Deadlines[_Pending] = Deadlines()
        self._waiting = 0
        self._next_event = 0
        self._out: list[bytes] = []
        self._first = 1  # event of this tick's message
        self._owed: deque[bytes] = deque(maxlen=HOP_OWED_MAX)  # ends of exchanges that agentd has not been told
        self._decisions: dict[bytes, Decision] = {}
        self._audit: deque[bytes] = deque(maxlen=max_audit)
        self._generation = -1
        self.views = {plan.number: PlanView(plan, self._pending.row(plan.timeout_ns)) for plan in register.plans}
        by_route: dict[str, list[PlanView]] = {}
        for view in self.views.values():
            by_route.setdefault(view.plan.route, []).append(view)
        self._routes = list(by_route.values())  # each in the order of the request's life
        self._refresh()
        self.dial()

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

    def send(
        self, waiter: Waiter, view: PlanView, exchange_id: int, event: bytes, now: int, flags: int = 0
    ) -> "int | Decision":
        """Queue an event for this tick's message. An id = pending (for `forget`); a Decision = no waiting.

        `flags`: the view's, `flags` or `bodyless_flags`.
        """
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
        size = EVENT_FIELDS + len(event)
        out.append(
            pack_event_front(
                size, _EVENT, event_id, exchange_id, mask, deadline, view.number, view.kind, flags, NO_BODY, 0
            )
        )
        out.append(event)
        if not waits:
            return answer
        view.row[event_id] = (deadline + _GRACE_NS, (waiter, view, mask, 0))
        self._waiting += 1
        return event_id

    def send_body(
        self,
        waiter: Waiter,
        view: PlanView,
        mask: int,
        event: bytes,
        body: bytes,
        index: int,
        is_last: bool,
        now: int,
    ) -> "int | Decision":
        """The same with bytes beside the event, for those of the view's agents that are still asked."""
        if not self.is_up:
            return self.failed(view, mask, Outcome.DISCONNECTED)
        answer: Decision = ALLOW
        if view.local is not None and now < view.local_until:
            self._cells[W_DECISIONS_LOCAL + view.local_outcome] += 1
            answer, mask = view.failed(mask, view.local_outcome), mask & ~view.deciders
            if not mask:
                return answer
        size = len(body)
        waits = bool(mask & view.deciders)
        if waits and (self._waiting >= self._max_pending or self._outstanding + size > self._max_outstanding):
            return self.failed(view, mask, Outcome.QUEUE_FULL)
        weight = size + len(event)
        is_much = self._bodies_bytes + weight > HOP_BODIES_BYTES or len(self._bodies) >= _BODIES_MAX
        if is_much and self._bodies_bytes:
            self._flush_early()
        self._bodies_bytes += weight
        self._next_event = event_id = self._next_event + 1
        deadline = now + view.timeout_ns
        out = self._out
        if not out:
            self._turn.at_end(self._flush)
        frame = NO_BODY
        if size:
            frame = len(self._bodies)
            self._bodies.append(body)
        flags = FLAG_LAST if is_last else 0
        fields = pack_event_fields(
            event_id, waiter.exchange_id, mask, deadline, view.number, view.kind, flags, len(event), frame, index
        )
        out += (fields, event)
        # Also where nobody waits: what is on its way to agentd is bounded.
        view.row[event_id] = (deadline + _GRACE_NS, (waiter if waits else _NOBODY, view, mask, size))
        self._waiting += 1
        self._outstanding += size
        return event_id if waits else answer

    def has_room(self, size: int) -> bool:
        """For a chunk that nobody waits for: at most half of it all, the rest is for those who decide. Counts a no."""
        if self._waiting < self._max_pending >> 1 and self._outstanding + size <= self._max_outstanding >> 1:
            return True
        self._cells[W_OBSERVED_DROPPED] += 1
        return False

    @property
    def chunk_bytes(self) -> int:
        """How long a chunk of a streamed body should be now: shorter, the more of them are on their way."""
        room = (BODIES_EASY_BYTES - self._outstanding) >> 3
        return min(BODY_CHUNK_BYTES, max(BODY_CHUNK_LEAST_BYTES, room))

    def tell(self, view: PlanView, exchange_id: int, event: bytes, now: int) -> None:
        """An event that nobody waits for, the last of its exchange."""
        self._next_event = event_id = self._next_event + 1
        if not self._out:
            self._turn.at_end(self._flush)
        deadline = now + view.timeout_ns
        fields = pack_event_fields(
            event_id, exchange_id, view.mask, deadline, view.number, view.kind, FLAG_FINAL, len(event)
        )
        self._out += (fields, event)

    def forget(self, view: PlanView, event_id: int) -> None:
        """Nobody waits for this event any more; `cancel_exchange` follows."""
        entry = view.row.pop(event_id, None)
        if entry is not None:
            self._waiting -= 1
            self._outstanding -= entry[1][3]

    def cancel_exchange(self, exchange_id: int, reason: CancelReason, *, more_follows: bool = False) -> None:
        """None of its events is waited for; agentd tells the agents. `more_follows`: `tell` comes next."""
        if self._is_connected:
            self._queue(pack_cancel(exchange_id, reason, more_follows=more_follows))

    def end(self, exchange_id: int) -> None:
        """No further event of this exchange; what was pinned for it is free."""
        if self._is_connected:
            self._queue(pack_end(exchange_id))

    def audit(self, record: bytes) -> None:
        """One audit record for agentd's sinks; kept, bounded, while agentd is away, stands still or knows us not."""
        audit = self._audit
        if len(audit) == audit.maxlen:
            self._cells[W_AUDIT_DROPPED] += 1
        audit.append(record)
        if not self._out:
            self._audit_soon()

    def _audit_soon(self) -> None:
        if self._audit and self.is_registered and self.is_up:
            self._queue(b"")

    def tokens(self, rows: bytes) -> None:
        """Sums of tokens for agentd's metrics; while it is up."""
        self._queue(pack_tokens(rows))

    def _queue(self, record: bytes) -> None:
        if not self._out:
            self._turn.at_end(self._flush)
        self._out.append(record)

    def _flush_early(self) -> None:
        """The bodies of this tick are many: send them now; what comes after goes at its end, as arranged."""
        unsent = self._send_out()
        if unsent is not None:  # told later: it may end the very exchange that is about to send something
            self._turn.at_end(partial(self._fail_events, *unsent))
        self._out.append(b"")

    def _flush(self) -> None:
        unsent = self._send_out()
        if unsent is not None:
            self._fail_events(*unsent)

    def _send_out(self) -> tuple[int, int, Outcome] | None:
        """This tick's events. None = they are on their way; else the first, the one behind the last, and why not."""
        out, first = self._out, self._first
        bodies, self._bodies = self._bodies, []
        bodies_bytes, self._bodies_bytes = self._bodies_bytes, 0
        self._out, self._first = [], self._next_event + 1
        self._cells[W_EVENTS_SENT] += self._first - first
        audit = 0
        if self._audit and self.is_registered and self.is_up:
            audit = len(self._audit)
            out += map(pack_audit, self._audit)
            self._audit.clear()
        self._cells[W_HOP_MESSAGES] += 1
        if self._owed:
            out[:0] = self._owed
            self._owed.clear()
        whole = b"".join(out)
        if not bodies:
            is_sent = all(self._transmit((message,)) for message in messages(whole))
        elif len(whole) + bodies_bytes <= HOP_MAX_MESSAGE_BYTES:
            is_sent = self._transmit((whole, *bodies))
        else:
            is_sent = all(map(self._transmit, messages_with_bodies(whole, bodies)))
        if is_sent:
            return None
        self._cells[W_AUDIT_DROPPED] += audit
        connection = self._connection
        is_full = self._is_connected and connection is not None and not connection.is_broken
        if is_full:  # else another agentd, which knows of none of them
            self._owed += endings(whole)
        return first, self._first, Outcome.QUEUE_FULL if is_full else Outcome.DISCONNECTED

    def _fail_events(self, first: int, end: int, outcome: Outcome) -> None:
        for row in self._pending.rows():
            for event_id in [event_id for event_id in row if first <= event_id < end]:
                entry = row.pop(event_id, None)  # None: forgotten, an earlier one has ended their exchange
                if entry is not None:
                    self._fail(entry[1], outcome)

    def _fail(self, pending: "_Pending", outcome: Outcome) -> None:
        """What the failure modes make of one outcome for all that were asked is the decision."""
        waiter, view, mask, size = pending
        self._waiting -= 1
        self._outstanding -= size
        if waiter is not _NOBODY:
            self._cells[W_DECISIONS_LOCAL + outcome] += 1
            _tell(waiter, view.failed(mask, outcome))

    def _refused(self, view: PlanView, outcome: Outcome) -> Decision:
        return self.failed(view, view.mask, outcome)

    def failed(self, view: PlanView, mask: int, outcome: Outcome) -> Decision:
        """What the failure modes make of it where nobody is asked; counted."""
        self._cells[W_DECISIONS_LOCAL + outcome] += 1
        return view.failed(mask, outcome)

    # --- answers ------------------------------------------------------------------------------------

    def _received(self, connection: Connection, frames: list[Frame]) -> None:
        try:
            for kind, rest in records(frames[0]):
                if kind == _DECISION:
                    self._decision(rest)
                elif kind == RecordType.DECISION_BODY:
                    event_id, frame, decision = unpack_decision_body(rest)
                    if frame + 1 >= len(frames):
                        raise WireError(f"decision names body frame {frame}, the message has {len(frames) - 1}")
                    self._decided(event_id, msgspec.structs.replace(decision, body=frames[frame + 1]))
                elif kind == RecordType.UNKNOWN:
                    self.is_registered = False
                    self._send_register()
                elif kind == RecordType.REGISTERED:
                    unpack_registered(rest)
                    self.is_registered = True
                    self._cells[W_AGENTD_CONNECTED] = 1
                    self._audit_soon()
        except WireError as error:
            self._cells[W_HOP_MALFORMED] += 1
            log.line("proxy.dispatch", log.ERROR, f"agentd sent a message that is not understood: {error}")
            if not self.is_registered:
                # Another wire version: never ask it, answer by failure_mode until it is replaced.
                self._is_refused = True
                self._changed()

    def _decision(self, rest: bytes | memoryview) -> None:
        size = len(rest)
        if size == 8:
            event_id, decision = _event_id(rest)[0], ALLOW
        elif 8 < size <= DECISION_REMEMBERED_BYTES:
            # The same few decisions come again and again; decoding costs ten times the look-up.
            event_id, key = _event_id(rest)[0], bytes(rest[8:])
            cached = self._decisions.get(key)
            if cached is None:
                cached = unpack_decision(rest)[1]
                if len(self._decisions) >= DECISIONS_REMEMBERED:
                    self._decisions.clear()
                self._decisions[key] = cached
            decision = cached
        else:
            event_id, decision = unpack_decision(rest)
        self._decided(event_id, decision)

    def _decided(self, event_id: int, decision: Decision) -> None:
        for row in self._pending.rows():
            entry = row.pop(event_id, None)
            if entry is not None:
                self._waiting -= 1
                waiter, _, _, size = entry[1]
                self._outstanding -= size
                try:  # `_tell`, in the way of every decision
                    waiter.decided(decision)
                except Exception:
                    _log.exception(_NOT_APPLIED)
                return
        self._cells[W_LATE_DECISIONS] += 1

    # --- agentd comes and goes ------------------------------------------------------------------------

    def _changed(self) -> None:
        """Whether agentd can be asked may have changed; when not, all that is pending is answered at once."""
        if not self._is_connected:
            self._owed.clear()
        is_up = self.can_be_asked
        if is_up == self.is_up:
            return
        self.is_up = is_up
        self._refresh()
        self._audit_soon()
        if not is_up:
            for pending in self._pending.clear():
                if self._is_connected and not self._is_refused:  # it stands still; its agents need not answer any more
                    self._queue(pack_cancel(pending[0].exchange_id, CancelReason.TIMEOUT))
                self._fail(pending, Outcome.DISCONNECTED)

    def _refresh(self) -> None:
        self._generation = self._segment.generation
        agents = self._segment.agents()
        for view in self.views.values():
            view.refresh(agents, self.is_up)
        for route in self._routes:
            is_final = is_final_bodyless = True
            for view in reversed(route):
                view.flags = FLAG_FINAL if is_final and not view.is_chunked else 0
                view.bodyless_flags = FLAG_FINAL if is_final_bodyless and not view.is_chunked else 0
                is_final = is_final and not view.mask
                is_final_bodyless = is_final_bodyless and (not view.mask or view.is_of_request_body)

    def sweep(self, now: int) -> None:
        """Every SWEEP_MS: answer what is overdue, look whether agentd still beats."""
        if self._segment.generation != self._generation:
            self._refresh()
        self.look(now)
        if self._owed and not self._out:
            self._queue(b"")
        if self._waiting:
            for pending in self._pending.expired(now):
                self._fail(pending, Outcome.TIMEOUT)
        self._cells[W_PENDING_EVENTS] = self._waiting
        self._cells[W_BODIES_OUTSTANDING] = self._outstanding
        self._cells[W_AUDIT_QUEUED] = len(self._audit)

    def close(self) -> None:
        """Pending events are answered as Disconnected, the socket is closed."""
        if self._out:
            self._flush()
        self.disconnect()
        self._cells[W_AUDIT_DROPPED] += len(self._audit)
        self._audit.clear()


_GRACE_NS = HOP_GRACE_MS * MS
