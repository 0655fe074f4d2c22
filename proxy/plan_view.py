"""What one worker knows of one plan now: whom to ask, or what to answer without asking.

Worked out anew only when agentd has published something else (the segment's generation) or has come or gone, so
that a request looks at a few attributes. How events travel stands in dispatch.py, what a failure means in
shared/decision.py.

Kind: pure.
"""

from typing import Any

from shared.decision import Answer, Decision, Outcome, merge
from shared.events import CHUNKED, EventKind
from shared.metrics import R_VERDICTS
from shared.plan import Plan
from shared.wire.segment import AgentRow, BreakerState


class PlanView:
    """One plan as this worker sees it now; recomputed only when the segment's generation moves."""

    __slots__ = (
        "bodyless_flags",
        "deciders",
        "enforcing",
        "flags",
        "is_chunked",
        "is_of_request_body",
        "kind",
        "local",
        "local_outcome",
        "local_until",
        "mask",
        "may_decide_now",
        "number",
        "observers",
        "plan",
        "row",
        "timeout_ns",
        "verdicts_at",
        "waits",
    )

    def __init__(self, plan: Plan, row: dict[int, tuple[int, Any]]) -> None:
        self.plan = plan
        self.number = plan.number
        self.kind = plan.kind
        self.timeout_ns = plan.timeout_ns
        self.row = row
        # Whether a later event of the exchange can follow: if the request has a body or becomes a WebSocket, else.
        # Set by who knows the route's other plans.
        self.flags = self.bodyless_flags = 0
        self.verdicts_at = R_VERDICTS.get(plan.kind, 0)  # where a route's cells count the decisions of this phase
        self.may_decide_now = True  # False: somebody is to be asked, `decide_now` would say None
        self.is_chunked = plan.kind in CHUNKED or plan.kind is EventKind.GUARDRAIL_INSPECT  # one exchange, many events
        self.mask = plan.full_mask  # whom to ask
        self.observers = 0  # the mask's observers
        self.enforcing = plan.enforcing_mask  # and the others
        self.deciders = plan.enforcing_mask  # the same, whether they want the event or not: what began is ended by it
        self.waits = True  # somebody whose verdict acts is asked
        self.local: Decision | None = None  # the decision, without asking those whose verdict acts
        self.local_outcome = Outcome.DISCONNECTED
        self.local_until = 0

        self.is_of_request_body = (
            plan.kind in (EventKind.REQUEST_BODY_CHUNK, EventKind.WEBSOCKET_FRAME) or plan.part == "prompt"
        )

    def refresh(self, agents: dict[str, AgentRow], is_up: bool) -> None:
        """Whom to ask, or what to answer without asking, by what agentd last published."""
        self._look(agents, is_up)
        self.may_decide_now = not self.mask or self.local is not None

    def failed(self, mask: int, outcome: Outcome) -> Decision:
        """What the failure modes make of one outcome for all of these that decide."""
        asks = [ask for i, ask in enumerate(self.plan.asks) if not ask.observe and mask >> i & 1]
        answer = Answer(outcome)
        return merge([answer] * len(asks), [a.failure_mode for a in asks], [a.agent for a in asks], self.kind)

    def _look(self, agents: dict[str, AgentRow], is_up: bool) -> None:
        mask = observers = 0
        enforcing: list[int] = []
        asks = self.plan.asks
        unfit = 0  # named by a guardrail, and cannot inspect: a failure, which acts by its mode
        for i, ask in enumerate(asks):
            row = agents.get(ask.agent)
            if row is not None and row.hello_mask and not row.hello_mask & self.kind.bit:
                if ask.by_hello:
                    continue
                if self.kind is EventKind.GUARDRAIL_INSPECT:
                    unfit |= 1 << i
                    if ask.failure_mode == "open":
                        continue
            mask |= 1 << i
            if ask.observe:
                observers |= 1 << i
            else:
                enforcing.append(i)
        self.mask, self.observers, self.waits = mask, observers, bool(enforcing)
        self.enforcing = mask & ~observers
        self.local = None
        if not is_up:
            self._decide(mask, Outcome.DISCONNECTED, _FOR_EVER)
            self.observers = 0
        elif unfit & mask:
            self._decide(unfit, Outcome.AGENT_ERROR, _FOR_EVER)
        elif enforcing:
            until = _FOR_EVER
            for i in enforcing:
                row = agents.get(asks[i].agent)
                if row is None or row.breaker not in _OPEN:
                    return
                if row.breaker is BreakerState.OPEN:
                    until = min(until, row.retry_at_ns)
            self._decide(mask, Outcome.BREAKER_OPEN, until)

    def _decide(self, mask: int, outcome: Outcome, until: int) -> None:
        self.local = self.failed(mask, outcome)
        self.local_outcome = outcome
        self.local_until = until


_FOR_EVER = 1 << 63
_OPEN = frozenset((BreakerState.OPEN, BreakerState.FORCED_OPEN))
