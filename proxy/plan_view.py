"""What one worker knows of one plan now: whom to ask, or what to answer without asking.

Worked out anew only when agentd has published something else (the segment's generation) or has come or gone, so
that a request looks at a few attributes. How events travel stands in dispatch.py, what a failure means in
shared/decision.py.

Kind: pure.
"""

from typing import Any

from shared.decision import Answer, Decision, Outcome, merge
from shared.events import EventKind
from shared.metrics import R_VERDICTS_REQUEST, R_VERDICTS_RESPONSE
from shared.plan import Plan
from shared.wire.envelope import FLAG_FINAL
from shared.wire.segment import AgentRow, BreakerState


class PlanView:
    """One plan as this worker sees it now; recomputed only when the segment's generation moves."""

    __slots__ = (
        "flags",
        "is_final",
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

    def __init__(self, plan: Plan, row: dict[int, tuple[int, Any]], is_final: bool) -> None:
        self.plan = plan
        self.number = plan.number
        self.kind = plan.kind
        self.timeout_ns = plan.timeout_ns
        self.row = row
        self.flags = FLAG_FINAL if is_final else 0
        # Where a route's cells count the decisions of this phase.
        self.verdicts_at = R_VERDICTS_REQUEST if plan.kind is EventKind.REQUEST_HEADERS else R_VERDICTS_RESPONSE
        self.may_decide_now = True  # False: somebody is to be asked, `decide_now` would say None
        self.is_final = is_final  # no later event of the exchange can follow
        self.mask = plan.full_mask  # whom to ask
        self.observers = 0  # the mask's observers
        self.waits = True  # somebody whose verdict acts is asked
        self.local: Decision | None = None  # the decision, without asking those whose verdict acts
        self.local_outcome = Outcome.DISCONNECTED
        self.local_until = 0

    def refresh(self, agents: dict[str, AgentRow], is_up: bool) -> None:
        """Whom to ask, or what to answer without asking, by what agentd last published."""
        self._look(agents, is_up)
        self.may_decide_now = not self.mask or self.local is not None

    def _look(self, agents: dict[str, AgentRow], is_up: bool) -> None:
        mask = observers = 0
        enforcing: list[int] = []
        asks = self.plan.asks
        for i, ask in enumerate(asks):
            row = agents.get(ask.agent)
            if ask.by_hello and row is not None and row.hello_mask and not row.hello_mask & self.kind.bit:
                continue
            mask |= 1 << i
            if ask.observe:
                observers |= 1 << i
            else:
                enforcing.append(i)
        self.mask, self.observers, self.waits = mask, observers, bool(enforcing)
        self.local = None
        if not is_up:
            self._decide(enforcing, Outcome.DISCONNECTED, _FOR_EVER)
            self.observers = 0
        elif enforcing:
            until = _FOR_EVER
            for i in enforcing:
                row = agents.get(asks[i].agent)
                if row is None or row.breaker not in _OPEN:
                    return
                if row.breaker is BreakerState.OPEN:
                    until = min(until, row.retry_at_ns)
            self._decide(enforcing, Outcome.BREAKER_OPEN, until)

    def _decide(self, enforcing: list[int], outcome: Outcome, until: int) -> None:
        asks = [self.plan.asks[i] for i in enforcing]
        answer = Answer(outcome)
        self.local = merge([answer] * len(asks), [a.failure_mode for a in asks], [a.agent for a in asks], self.kind)
        self.local_outcome = outcome
        self.local_until = until


_FOR_EVER = 1 << 63
_OPEN = frozenset((BreakerState.OPEN, BreakerState.FORCED_OPEN))
