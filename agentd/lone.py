"""An event that one agent alone decides, which is what nearly all are: call and group in one.

To the lane it is a Call like any other, to the dispatcher what an EventGroup is (agentd/group.py). With nobody
beside the agent nothing is pending, cancelled or compared: its answer is the decision. Plans with observers, with
several agents, or with a name that this agentd does not know have groups. docs/adr/0036 tells what it is worth.

    dispatcher.event --> lane.submit --> answered, failed, timed out --> merged as a chain of one --> reply

Kind: pure.
"""

from typing import TYPE_CHECKING

from agentd.call import Call, CallState
from agentd.group import ResolvedPlan, is_telling
from shared.decision import ALLOW, Answer, Decision, Outcome, merge
from shared.wire.envelope import CancelReason

if TYPE_CHECKING:
    from agentd.dispatcher import Dispatcher, Worker

_QUEUED, _SENT, _ENDED = CallState.QUEUED, CallState.SENT, CallState.ENDED


class LoneCall(Call, eq=False, kw_only=True):
    """One event. Its own `group` until it has ended; the worker's row watches its deadline, not the lane's."""

    dispatcher: "Dispatcher"
    worker: "Worker"
    plan: ResolvedPlan
    event_id: int
    exchange_id: int
    is_final: bool
    decision: Decision | None = None  # for the auditor: None where there is nothing to tell
    is_closed: bool = False  # decided or cancelled: the dispatcher has let go of it
    is_eventful: bool = False  # something an auditor wants to know
    body_bytes: int = 0  # its body's length

    is_awaited = True  # by the worker, always

    @property
    def calls(self) -> "tuple[Call]":
        """As a group has them."""
        return (self,)

    def too_late(self, now: int) -> None:
        """The event arrived after its deadline: the agent is not asked."""
        self.call_id = ""
        self.event = b""
        self.body = None
        self.outcome = Outcome.TIMEOUT
        self.message = "no time left to ask"
        self.state = _ENDED
        self.ended_ns = now
        self.group = None
        self.ended(self, now)

    def ended(self, call: Call, now: int) -> None:
        """The lane tells how it ended."""
        screened, plan = self.screened, self.plan
        decision = screened.decision if screened is not None else None
        if decision is None or screened is None or not screened.is_quiet:
            self.is_eventful = is_telling(screened)
            if decision is not ALLOW:
                answer = Answer(self.outcome if decision is None else Outcome.DECISION, decision)
                decision = merge((answer,), plan.modes, plan.names, plan.kind)
            self.decision = decision
        elif decision is not ALLOW:
            decision = plan.merged([decision])
        plan.row.pop(self.event_id, None)
        self.worker.reply(self.event_id, decision)
        self.dispatcher.closed(self, now)

    def expire(self, now: int) -> None:
        """The deadline is here: it has timed out."""
        lane = self.asked.lane
        assert lane is not None
        lane.timed_out(self, now)

    def cancel(self, reason: CancelReason, now: int, with_observers: bool) -> None:
        """Nobody waits for the decision any more."""
        if self.is_closed:
            return  # cancelling another one gave a permit back, and that has just ended this one
        self.plan.row.pop(self.event_id, None)
        lane = self.asked.lane
        assert lane is not None
        lane.cancel(self, reason, now)
        self.dispatcher.closed(self, now)
