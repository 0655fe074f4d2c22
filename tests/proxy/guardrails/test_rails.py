"""Which stages a route's bodies go through."""

import json
from typing import Any

import pytest

from proxy.guardrails.rails import RouteRails
from proxy.guardrails.stream import StreamStage
from proxy.guardrails.usage import MeterStage
from proxy.guardrails.whole import WholeStage
from proxy.plan_view import PlanView
from shared.config.schema import Agent, Config, Target, Upstream
from shared.config.schema_routes import Guardrail, Guardrails, Route
from shared.decision import Decision, Verb
from shared.events import EventKind
from shared.plan import compile_plans
from shared.wire.segment import AgentRow
from shared.wire.tokens import TokenSums
from tests.proxy.guardrails.rail import End, FakeFlow, found


def rails(order: Any, **config: Any) -> RouteRails:
    guardrails = Guardrails(**config)
    route = Route("llm", "up", order=order, guardrails=guardrails)
    agents = tuple(Agent(name, "zmq-v2") for name in "ab")
    plans = compile_plans(Config((Upstream("up", (Target("x:1"),)),), agents=agents, routes=(route,)))
    return RouteRails("llm", guardrails, [PlanView(plan, {}) for plan in plans], TokenSums())


def test_one_stage_for_all_agents_or_one_for_each() -> None:
    both = Guardrail(("a", "b"))
    assert [len(made.prompt) for made in (rails("parallel", prompt=both), rails("sequential", prompt=both))] == [1, 2]
    made = rails("parallel", completion=both)
    assert (len(made.prompt), len(made.completion)) == (0, 1)


def test_named_agents_are_asked_whatever_their_hello_says() -> None:
    made = rails("parallel", prompt=Guardrail(("a", "b")))
    assert [ask.by_hello for ask in made.prompt[0].view.plan.asks] == [False, False]


@pytest.mark.parametrize(("mode", "mask"), [("closed", 1), ("open", 0)])
def test_an_agent_that_cannot_inspect_is_a_failure(mode: Any, mask: int) -> None:
    """Its HELLO lacks the event: fail-closed refuses, fail-open goes on; nobody takes its silence for an allow."""
    route = Route("llm", "up", guardrails=Guardrails(prompt=Guardrail(("a",))))
    agents = (Agent("a", "zmq-v2", failure_mode=mode),)
    (plan,) = compile_plans(Config((Upstream("up", (Target("x:1"),)),), agents=agents, routes=(route,)))
    view = PlanView(plan, {})
    view.refresh({"a": AgentRow("a", EventKind.REQUEST_HEADERS.bit, 1)}, True)
    assert view.mask == mask
    if mode == "closed":
        assert view.local is not None
        assert (view.local.verb, view.local.status, view.local.reason) == (Verb.FAIL, 503, "agent_error")
    view.refresh({"a": AgentRow("a", EventKind.GUARDRAIL_INSPECT.bit, 1)}, True)
    assert (view.mask, view.local) == (1, None)


@pytest.mark.parametrize(
    ("content_type", "kind"),
    [(b"text/event-stream", StreamStage), (b"application/json", WholeStage), (b"", WholeStage)],
)
def test_a_stage_by_content_type(content_type: bytes, kind: type) -> None:
    flow: Any = FakeFlow(lambda event: Decision(), content_type=content_type)
    made = rails("parallel", completion=Guardrail(("a",)))
    assert [type(stage) for stage in made.completion_stages(flow)] == [kind]
    assert type(made.meter(flow)) is MeterStage


def test_in_sequence_each_gets_what_the_one_before_left() -> None:
    made = rails("sequential", prompt=Guardrail(("a", "b"), "redact", ("pii_detection",)))
    flow: Any = FakeFlow(lambda event: found(event, "SECRET-[0-9]"))
    flow.account = lambda *args, **more: None
    flow.route = type("R", (), {"tally": [0] * 64})()
    first, second = made.prompt_stages(flow)
    first.next, second.next = second, End(flow)
    first.take(b'{"prompt": "a SECRET-1 b"}')
    first.end()
    first.settle()
    assert [event["content"] for event in flow.events] == ["a SECRET-1 b", "a [REDACTED] b"]
    assert json.loads(flow.body) == {"prompt": "a [REDACTED] b"}
    assert flow.is_ended
