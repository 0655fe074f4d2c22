"""One event on its way through its plan: whom to ask when, when it is decided, and what is left to tell.

Semantics 1, 3, 4, 11, 12 of docs/architecture.md. The group asks lanes, hears from them once per call,
merges by shared/decision.py and replies once; observers live on after the reply and change nothing.
No failure mode is applied and no verdict compared here: that is `merge` and `on_failure`.

    ask --> parallel: every agent at once      --> a block: decided at once, the other calls cancelled
        --> sequential: the next in the chain  --> all have ended: merged
    deadline: what is still out has timed out  --> merged
    cancelled (client or worker gone)          --> no reply

Kind: pure.
"""

from typing import TYPE_CHECKING, cast

import msgspec

from agentd.call import Asked, Call, CallState
from shared.decision import ALLOW, Answer, Decision, FailureMode, Outcome, Verb, merge, on_failure
from shared.defaults import MERGES_REMEMBERED
from shared.events import CHUNKED, EventKind
from shared.plan import Plan
from shared.wire.envelope import CancelReason
from shared.wire.verdict import HEAD, HEAD_AND_HOST, Question, Screened

if TYPE_CHECKING:
    from agentd.dispatcher import Dispatcher, Group, Worker

# Names of their own: a look-up in an Enum costs 0.10 us on CPython 3.11, a global 0.01 (2026-11).
_QUEUED, _SENT, _ENDED = CallState.QUEUED, CallState.SENT, CallState.ENDED
_ALLOWS, _BLOCKS, _DECISION = Verb.ALLOW, Verb.BLOCK, Outcome.DECISION
# Observers that were not asked say nothing about the request: counted by the lane, not audited.
_UNASKED = frozenset(
    (Outcome.QUEUE_FULL, Outcome.BREAKER_OPEN, Outcome.DISCONNECTED, Outcome.CANCELLED, Outcome.BODY_TOO_LARGE)
)
_HEADS = (EventKind.REQUEST_HEADERS, EventKind.RESPONSE_HEADERS, EventKind.REQUEST_COMPLETE)  # screened alike


Merges = dict[object, tuple[Decision, list[Decision]]]


class ResolvedPlan:
    """A worker's plan with the names looked up; `row` holds its groups (and those of plans with the same
    timeout) that await a decision."""

    __slots__ = (
        "asked",
        "enforcing_mask",
        "full_mask",
        "has_body",
        "is_sequential",
        "is_simple",
        "is_told",
        "kind",
        "lane",
        "may_set_host",
        "merges",
        "modes",
        "names",
        "number",
        "question",
        "route",
        "row",
        "timeout_ns",
    )

    def __init__(
        self,
        plan: Plan,
        asked: tuple[Asked, ...],
        row: "dict[int, tuple[int, Group]]",
        memory: "dict[object, Merges] | None" = None,
    ) -> None:
        self.number = plan.number
        self.route = plan.route
        self.kind = plan.kind
        self.may_set_host = plan.may_set_host
        self.has_body = plan.kind in CHUNKED  # then each event has a question of its own
        self.is_told = plan.kind is EventKind.REQUEST_COMPLETE
        self.question = Question(plan.kind, plan.may_set_host)
        if plan.kind in _HEADS:
            self.question = HEAD_AND_HOST if plan.may_set_host else HEAD
        self.is_sequential = plan.sequential
        self.timeout_ns = plan.timeout_ns
        self.full_mask = plan.full_mask
        self.enforcing_mask = plan.enforcing_mask
        self.is_simple = plan.full_mask == plan.enforcing_mask and not plan.sequential
        self.row = row
        self.asked = asked
        # Of its only agent, if that one decides and is known: such events are `LoneCall`s (agentd/lone.py).
        self.lane = asked[0].lane if len(asked) == 1 and not asked[0].is_observer else None
        self.names = tuple(one.agent for one in asked)
        self.modes: tuple[FailureMode, ...] = tuple(one.failure_mode for one in asked)
        # Plans that merge alike share a memory: of verdicts that never repeat 93 KiB each, times routes, times workers.
        merges = {} if memory is None else memory.setdefault((self.kind, self.names, self.modes), {})
        self.merges: Merges = merges

    def merged(self, decisions: list[Decision]) -> Decision:
        """`merge` of what every agent said, allows all, with a memory: agents repeat themselves (0.3 us, not 2).

        By identity, which is safe because what is remembered is kept; verdicts that repeat are one object
        (agentd/transport/verdicts.py). Only of whole chains: the place in `decisions` is that in the plan, which masks
        and editor of a chunk are named by.
        """
        key = id(decisions[0]) if len(decisions) == 1 else tuple(map(id, decisions))
        known = self.merges.get(key)
        if known is None:
            answers = [Answer(_DECISION, decision) for decision in decisions]
            if len(self.merges) >= MERGES_REMEMBERED:
                self.merges.clear()
            known = self.merges[key] = merge(answers, self.modes, self.names, self.kind), decisions
        return known[0]


class EventGroup(msgspec.Struct, eq=False):
    """One event. `calls` is in chain order, None where an agent was not (yet) asked."""

    dispatcher: "Dispatcher"
    worker: "Worker"
    plan: ResolvedPlan
    event_id: int
    exchange_id: int
    exchange_key: tuple[bytes, int] | None
    is_final: bool
    deadline_ns: int
    event: bytes | memoryview
    mask: int
    calls: list[Call | None]
    decision: Decision | None = None
    is_decided: bool = False  # also when cancelled: then there is no decision
    is_closed: bool = False  # decided, and no observer is out: the dispatcher has let go of it
    is_eventful: bool = False  # something an auditor wants to know
    is_plain: bool = True  # every answer so far is an allow without operations
    pending: int = 0  # enforcing agents that have not answered, asked or not
    observing: int = 0
    at: int = 0  # sequential: next place in the chain
    question: Question = HEAD
    body: bytes | memoryview | None = None  # until all are asked
    body_bytes: int = 0  # its length

    @property
    def is_awaited(self) -> bool:
        """The worker waits for a decision: somebody enforcing is asked."""
        return bool(self.mask & self.plan.enforcing_mask)

    def ask(self, now: int) -> None:
        """Send the event to whom the mask names; the deadline is in the future."""
        mask = self.mask
        plan = self.plan
        if plan.is_simple and mask == plan.full_mask:
            self.pending = len(plan.asked)
            for asked in plan.asked:
                self._submit(asked, now)
                if self.is_decided:
                    break
            self.event = b""
            self.body = None
            return
        enforcing = mask & plan.enforcing_mask
        self.pending = enforcing.bit_count()
        observers = [asked for asked in plan.asked if asked.is_observer and mask >> asked.index & 1]
        self.observing = len(observers) + 1  # one more until all are submitted, so that none closes the group
        for asked in observers:
            self._submit(asked, now)
        if not enforcing:
            self.is_decided = True
            if plan.has_body:
                self.worker.reply(self.event_id, ALLOW)  # not awaited, but until then it counts as on its way to us
        elif plan.is_sequential:
            self._submit_next(now)
        else:
            for asked in plan.asked:
                if enforcing >> asked.index & 1 and not self.is_decided:
                    self._submit(asked, now)
            self.event = b""
        self.body = None  # what has a body is never asked in sequence
        self._observer_ended(now)

    def too_late(self, now: int) -> None:
        """The event arrived after its deadline: nobody is asked, observers neither."""
        enforcing = self.mask & self.plan.enforcing_mask
        self.mask = enforcing
        self.body = None
        self.pending = enforcing.bit_count()
        if not enforcing:
            self.is_decided = True
            self._close(now)
        elif self.plan.is_sequential:
            self._submit_next(now)
        else:
            for asked in self.plan.asked:
                if enforcing >> asked.index & 1:
                    self._no_time(asked, now)

    def ended(self, call: Call, now: int) -> None:
        """A lane tells how one of our calls ended."""
        if call.asked.is_observer:
            if not call.asked.is_told:
                self._observed(call)
            self._observer_ended(now)
            return
        if self.is_decided:
            return
        pending = self.pending = self.pending - 1
        screened = call.screened
        if screened is not None and screened.is_quiet:
            verb = _ALLOWS
            if screened.decision is not ALLOW:
                self.is_plain = False
        else:
            verb = self._weigh(call)
        if not pending or verb is _BLOCKS:
            self._decide(now)
        elif self.plan.is_sequential:
            if verb is _ALLOWS:
                self._submit_next(now)
            else:
                self._decide(now)

    def expire(self, now: int) -> None:
        """The event's deadline is here: whoever has not answered has timed out."""
        for call in list(self.calls):
            if call is not None and not call.asked.is_observer and call.state in (_QUEUED, _SENT):
                assert call.asked.lane is not None
                call.asked.lane.timed_out(call, now)

    def cancel(self, reason: CancelReason, now: int, with_observers: bool) -> None:
        """Nobody waits for the decision any more."""
        if self.is_closed:
            return  # cancelling another group gave a permit back, and that has just ended this one
        self.is_decided = True
        self.plan.row.pop(self.event_id, None)
        self.event = b""
        self.body = None
        for call in list(self.calls):
            if call is None or call.asked.lane is None or call.state not in (_QUEUED, _SENT):
                continue
            if not call.asked.is_observer:
                call.asked.lane.cancel(call, reason, now)
            elif with_observers:
                self.observing -= 1
                call.asked.lane.cancel(call, reason, now)
        if not self.observing:
            self._close(now)

    # --- asking -----------------------------------------------------------------------------------

    def _submit(self, asked: Asked, now: int) -> None:
        dispatcher = self.dispatcher
        lane = asked.lane
        deadline_ns = now + asked.timeout_ns
        # An observer is nobody's to wait for: its own timeout alone ends it.
        is_timed = deadline_ns < self.deadline_ns or asked.is_observer
        number = dispatcher.calls = dispatcher.calls + 1
        call = self.calls[asked.index] = Call(
            number,
            f"{dispatcher.call_prefix}{number:x}",
            self.event,
            asked,
            self,
            now,
            deadline_ns if is_timed else self.deadline_ns,
            self.exchange_key,
        )
        if self.question is not HEAD:
            call.question = self.question
            call.body = self.body
        if lane is None:
            self._unasked(call, Outcome.DISCONNECTED, "no agent of this name", now)
            return
        if self.exchange_key is not None:
            self.worker.remember_pin(self.exchange_id, lane)
        lane.submit(call, now, is_timed)

    def _submit_next(self, now: int) -> None:
        """Sequential: ask the next of the chain; nobody is asked after the deadline."""
        plan = self.plan
        while self.at < len(plan.asked):
            asked = plan.asked[self.at]
            self.at += 1
            if asked.is_observer or not self.mask >> asked.index & 1:
                continue
            if now < self.deadline_ns:
                self._submit(asked, now)
            else:
                self._no_time(asked, now)
            return

    def _no_time(self, asked: Asked, now: int) -> None:
        call = self.calls[asked.index] = Call(0, "", b"", asked, self, now, now)
        self._unasked(call, Outcome.TIMEOUT, "no time left to ask", now)

    def _unasked(self, call: Call, outcome: Outcome, message: str, now: int) -> None:
        """A call that no lane gets to see."""
        call.outcome = outcome
        call.message = message
        call.state = _ENDED
        call.ended_ns = now
        call.group = None
        self.ended(call, now)

    # --- deciding ---------------------------------------------------------------------------------

    def _weigh(self, call: Call) -> Verb:
        """What an answer that is no plain allow means for the phase, and whether it is worth a record."""
        screened = call.screened
        decision = screened.decision if screened is not None else None
        if screened is None or decision is None:
            self.is_plain = False
            self.is_eventful = True
            failure = on_failure(call.outcome, call.asked.failure_mode, self.plan.kind, call.asked.agent)
            return _ALLOWS if failure is None else failure.verb
        if decision is not ALLOW:
            self.is_plain = False
        if is_telling(screened):
            self.is_eventful = True
        return decision.verb

    def _decide(self, now: int) -> None:
        """The phase has ended: reply, then cancel whoever is still working."""
        decision = ALLOW if self.is_plain else self._merge()
        self.decision = decision
        self.is_decided = True
        self.event = b""
        self.plan.row.pop(self.event_id, None)
        self.worker.reply(self.event_id, decision)
        if self.pending:
            for call in self.calls:
                if call is not None and not call.asked.is_observer and call.state is not _ENDED:
                    assert call.asked.lane is not None
                    call.asked.lane.cancel(call, CancelReason.DECIDED, now)
        if not self.observing:
            self._close(now)

    def _merge(self) -> Decision:
        plan = self.plan
        if plan.enforcing_mask == plan.full_mask:
            decisions = []
            for call in self.calls:
                screened = call.screened if call is not None else None
                if screened is None or not screened.is_quiet:
                    break
                decisions.append(cast(Decision, screened.decision))
            else:
                return plan.merged(decisions)
        if plan.has_body:
            self._mark_clash()
        return merge(self._answers(), plan.modes, plan.names, plan.kind)

    def _mark_clash(self) -> None:
        """Two mutations of one chunk: `merge` lets the first act, and the audit tells of the others."""
        first = ""
        for call in self.calls:
            decision = call.screened.decision if call is not None and call.screened is not None else None
            if call is None or call.asked.is_observer or decision is None or not _edits(decision):
                continue
            if first:
                self.is_eventful = True
                call.outcome, call.message = Outcome.MALFORMED, f"mutates a chunk that {first} mutates already"
            first = first or call.asked.agent

    def _answers(self) -> list[Answer | None]:
        answers: list[Answer | None] = []
        for call in self.calls:
            if call is None or call.asked.is_observer or call.state is not _ENDED:
                answers.append(None)
            else:
                decision = call.screened.decision if call.screened is not None else None
                answers.append(Answer(call.outcome if decision is None else _DECISION, decision))
        return answers

    def _observed(self, call: Call) -> None:
        """What an observer said: worth a record if it would have changed something; its skip_body alone acts."""
        screened = call.screened
        decision = screened.decision if screened is not None else None
        if screened is None or decision is None:
            if call.outcome not in _UNASKED:
                self.is_eventful = True
            return
        if screened.audit is not None or screened.refused_ops:
            self.is_eventful = True
        if decision is ALLOW:
            return
        chunk = decision.chunk
        if chunk is None or _edits(decision) or decision.request_ops or decision.response_ops:
            self.is_eventful = True
        if chunk is not None and chunk.skip:
            self.worker.remember_skip(self.exchange_id, self.plan.number, call.asked.index)

    def _observer_ended(self, now: int) -> None:
        self.observing -= 1
        if not self.observing and self.is_decided:
            self._close(now)

    def _close(self, now: int) -> None:
        self.dispatcher.closed(self, now)
        self.calls.clear()  # calls and groups know each other: without this only the collector frees them


def is_telling(screened: Screened | None) -> bool:
    """Whether an auditor wants to know what an agent that decides has said; None is a failure."""
    decision = screened.decision if screened is not None else None
    if screened is None or decision is None or decision.verb is not _ALLOWS:
        return True
    return bool(screened.refused_ops) or screened.audit is not None


def _edits(decision: Decision) -> bool:
    return decision.chunk is not None and decision.chunk.editor >= 0
