"""Shows one content to a plan's agents, once per inspection type, and waits until all have answered.

What an agent's failure means was decided by its failure mode before it comes here: a decision that does not allow
ends the exchange at once. What the findings come to stands in inspect.py.

Kind: IO (through the flow alone).
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from proxy.guardrails.inspect import Joined, Judged, judge
from proxy.plan_view import PlanView
from shared.config.schema_routes import Guardrail
from shared.decision import Decision, Inspection, Verb
from shared.wire.messages import guardrail_inspect_event

if TYPE_CHECKING:
    from proxy.flow import Flow

_ALLOW = Verb.ALLOW


class Watch(Protocol):
    """Who accounts for what a guardrail did (proxy/guardrails/account.py)."""

    def found(self, flow: "Flow", part: str, judged: Judged) -> None: ...


class Rail:
    """One guardrail as one stage asks it: the plan's view, the rules, who accounts."""

    __slots__ = ("max_bytes", "may_redact", "part", "route", "rules", "view", "watch", "window_chars")

    def __init__(
        self, view: PlanView, part: str, rules: Guardrail, max_bytes: int, window_chars: int, route: str, watch: Watch
    ) -> None:
        self.view = view
        self.part = part
        self.rules = rules
        self.may_redact = "redact" in (rules.action, *rules.categories.values())
        self.max_bytes = max_bytes
        self.window_chars = window_chars
        self.route = route
        self.watch = watch


class _Answer:
    """Waits for one inspection type."""

    __slots__ = ("inspection", "round")

    def __init__(self, round: "Round", inspection: str) -> None:
        self.round = round
        self.inspection = inspection

    def decided(self, decision: Decision) -> None:
        if self.round.take(self.inspection, decision):
            self.round.done()


class Round:
    """One content, all inspection types. `done` is called once, later, unless `start` says that it is over."""

    __slots__ = ("_on_done", "_waiting", "answers", "flow", "is_refused", "joined", "rail")

    def __init__(self, flow: "Flow", rail: Rail, joined: Joined, on_done: Callable[["Round"], None]) -> None:
        self.flow = flow
        self.rail = rail
        self.joined = joined
        self.answers: list[tuple[str, Sequence[Inspection]]] = []
        self.is_refused = False
        self._on_done = on_done
        self._waiting = 0

    def start(self, model: str) -> bool:
        """Ask; True = all has been answered already, `done` is not called."""
        rail, flow = self.rail, self.flow
        if not rail.view.mask:  # none of them can inspect, and all are fail-open
            return True
        self._waiting = len(rail.rules.inspect)
        for inspection in rail.rules.inspect:
            event = guardrail_inspect_event(
                flow.correlation_id,
                inspection,
                self.joined.content,
                rail.part,
                model,
                (),
                rail.route,
                {"client_ip": flow.client_ip},
            )
            decision = flow.ask(_Answer(self, inspection), rail.view, event)
            if decision is not None:
                self.take(inspection, decision)
            if self.is_refused:
                return True
        return not self._waiting

    def take(self, inspection: str, decision: Decision) -> bool:
        """One answer; True = it was the last that mattered."""
        if self.is_refused:
            return False
        self._waiting -= 1
        if decision.verb is not _ALLOW:
            self.is_refused = True
            self.flow.refuse(decision, self.rail.view.kind)
            return True
        if decision.request_ops or decision.response_ops:
            self.flow.add_ops(decision)
        if decision.inspections:
            self.answers.append((inspection, decision.inspections))
        return not self._waiting

    def done(self) -> None:
        self._on_done(self)

    def judged(self) -> Judged:
        """After the last answer; findings are accounted for here."""
        return judge(self.rail.rules, self.joined, self.answers)
