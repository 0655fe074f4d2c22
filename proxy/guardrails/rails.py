"""The guardrails of one route: which stages its bodies go through.

    request    prompt: one stage per plan (one for all agents, or one for each where the route asks in sequence)
    response   the meter, then completion: the same; an event stream event by event, anything else whole

Kind: pure.
"""

from collections.abc import Iterable, Iterator

from proxy.chunks import Stage
from proxy.flow import Flow
from proxy.guardrails.account import Account
from proxy.guardrails.asking import Rail
from proxy.guardrails.stream import StreamStage
from proxy.guardrails.usage import MeterStage
from proxy.guardrails.whole import WholeStage
from proxy.plan_view import PlanView
from shared.config.schema_routes import Guardrails
from shared.events import EventKind
from shared.wire.tokens import TokenSums

EVENT_STREAM = b"text/event-stream"


class RouteRails:
    """Built once per configuration."""

    __slots__ = ("_account", "_max_bytes", "completion", "prompt")

    def __init__(self, route: str, config: Guardrails, views: Iterable[PlanView], tokens: TokenSums) -> None:
        self._account = Account(route, tokens)
        self._max_bytes = config.max_text_bytes
        rails: dict[str, list[Rail]] = {"prompt": [], "completion": []}
        for view in views:
            part = view.plan.part
            rules = config.prompt if part == "prompt" else config.completion
            if view.kind is EventKind.GUARDRAIL_INSPECT and rules is not None:
                rail = Rail(view, part, rules, config.max_text_bytes, config.window_chars, route, self._account)
                rails[part].append(rail)
        self.prompt = tuple(rails["prompt"])
        self.completion = tuple(rails["completion"])

    def prompt_stages(self, flow: Flow) -> Iterator[Stage]:
        """For the body of a request."""
        for rail in self.prompt:
            yield WholeStage(flow, rail)

    def completion_stages(self, flow: Flow) -> Iterator[Stage]:
        """For the body of a response."""
        for rail in self.completion:
            yield StreamStage(flow, rail) if flow.content_type == EVENT_STREAM else WholeStage(flow, rail)

    def meter(self, flow: Flow) -> Stage:
        """Which decides nothing."""
        return MeterStage(flow, self._account, self._max_bytes)
