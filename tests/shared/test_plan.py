"""One plan for everybody: which agents are asked about what, in which order, for how long."""

import pytest

from shared.clock import MS
from shared.config.schema import Agent, Config, Target, Upstream
from shared.config.schema_routes import Filter, Guardrail, Guardrails, Match, Route
from shared.events import CHUNKED, SUPPORTED, EventKind
from shared.plan import Ask, Plan, PlanTable, compile_plans, decode_table, encode_table

REQUEST, RESPONSE = EventKind.REQUEST_HEADERS, EventKind.RESPONSE_HEADERS
UPSTREAM = Upstream(name="app", targets=(Target(address="127.0.0.1:1"),))


def agent(name: str, events: tuple[str, ...] | None = None, **fields: object) -> Agent:
    return Agent(name=name, protocol=fields.pop("protocol", "zmq-v2"), events=events, **fields)  # type: ignore[arg-type]


def compiled(agents: list[Agent], *filters: Filter, **route: object) -> PlanTable:
    made = Route(name="r", upstream="app", filters=filters, **route)  # type: ignore[arg-type]
    return compile_plans(Config(upstreams=(UPSTREAM,), agents=tuple(agents), routes=(made,)))


class TestCompile:
    def test_one_plan_per_route_and_kind(self) -> None:
        """Numbered by their place, in route order; a route nobody watches has none."""
        config = Config(
            upstreams=(UPSTREAM,),
            agents=(agent("a", ("request_headers",)), agent("b", ("request_headers", "response_headers"))),
            routes=(
                Route(name="x", upstream="app", filters=(Filter(agent="a"), Filter(agent="b"))),
                Route(name="none", upstream="app", match=Match(path_prefix="/n/")),
                Route(name="y", upstream="app", filters=(Filter(agent="a"),)),
            ),
        )
        plans = compile_plans(config)
        assert [(p.number, p.route, p.kind, [ask.agent for ask in p.asks]) for p in plans] == [
            (0, "x", REQUEST, ["a", "b"]),
            (1, "x", RESPONSE, ["b"]),
            (2, "y", REQUEST, ["a"]),
        ]

    def test_configured_events_are_the_whole_truth(self) -> None:
        """Then HELLO has no say; without them a v2 agent's HELLO decides, and v1 gets everything."""
        agents = [agent("a", ("response_headers",)), agent("b"), agent("c", protocol="zmq-v1", endpoint="ipc:///x")]
        plans = compiled(agents, Filter(agent="a"), Filter(agent="b"), Filter(agent="c"))
        # Guardrails are asked where a route names them, not by its filters.
        assert [plan.kind for plan in plans] == [kind for kind in SUPPORTED if kind is not EventKind.GUARDRAIL_INSPECT]
        for plan in plans:
            others = [("a", False)] if plan.kind is RESPONSE else []
            assert [(ask.agent, ask.by_hello) for ask in plan.asks] == [*others, ("b", True), ("c", False)]

    def test_failure_mode_of_the_filter_wins(self) -> None:
        """Else the agent's; the default is closed."""
        events = ("request_headers",)
        agents = [agent("a", events), agent("b", events, failure_mode="open")]
        (plan,) = compiled(agents, Filter(agent="a"), Filter(agent="b"), Filter(agent="b", failure_mode="closed"))
        assert [ask.failure_mode for ask in plan.asks] == ["closed", "open", "closed"]

    def test_route_settings(self) -> None:
        """Order, observers, timeouts and the permission for Host arrive in the plan."""
        agents = [agent("a", ("request_headers",), timeout_ms=70)]
        filters = (Filter(agent="a", mode="observe"), Filter(agent="a"))
        (plan,) = compiled(agents, *filters, order="sequential", agents_may_set_host=True)
        assert (plan.sequential, plan.may_set_host) == (True, True)
        assert [(ask.observe, ask.timeout_ms) for ask in plan.asks] == [(True, 70), (False, 70)]


NAMES = ("a", "b", "o", "c")
CHAIN = (Filter(agent="a"), Filter(agent="b"), Filter(agent="o", mode="observe"), Filter(agent="c"))
BOTH_PARTS = Guardrails(prompt=Guardrail(agents=("c", "a")), completion=Guardrail(agents=("b",)))


def shape(plans: PlanTable, kind: EventKind) -> list[tuple[str, int, list[str]]]:
    return [(plan.part, plan.stage, [ask.agent for ask in plan.asks]) for plan in plans if plan.kind is kind]


class TestStages:
    @pytest.mark.parametrize("kind", sorted(CHUNKED))
    def test_in_sequence_each_gets_its_predecessors_bytes(self, kind: EventKind) -> None:
        """A plan of its own for everybody who decides; observers see what came in."""
        plans = compiled([agent(name) for name in NAMES], *CHAIN, order="sequential")
        assert shape(plans, kind) == [("", 0, ["o", "a"]), ("", 1, ["b"]), ("", 2, ["c"])]
        assert not any(plan.sequential for plan in plans if plan.kind is kind)

    @pytest.mark.parametrize("kind", [REQUEST, RESPONSE])
    def test_heads_are_asked_in_one_plan(self, kind: EventKind) -> None:
        """Each sees the original; agentd goes through the chain."""
        plans = compiled([agent(name) for name in NAMES], *CHAIN, order="sequential")
        assert shape(plans, kind) == [("", 0, list(NAMES))]
        assert all(plan.sequential for plan in plans if plan.kind is kind)

    @pytest.mark.parametrize("kind", sorted(CHUNKED))
    def test_in_parallel_there_is_one(self, kind: EventKind) -> None:
        """In the order of the chain."""
        plans = compiled([agent(name) for name in NAMES], *CHAIN)
        assert shape(plans, kind) == [("", 0, list(NAMES))]

    def test_observers_alone_are_one_stage(self) -> None:
        """Nobody waits for them."""
        filters = [Filter(agent=name, mode="observe") for name in "ab"]
        plans = compiled([agent("a"), agent("b")], *filters, order="sequential")
        assert shape(plans, EventKind.REQUEST_BODY_CHUNK) == [("", 0, ["a", "b"])]

    def test_only_who_asks_for_it_has_a_stage(self) -> None:
        """The stages are numbered without gaps."""
        agents = [agent("a", ("request_headers",)), agent("b"), agent("c", ("request_body_chunk",))]
        plans = compiled(agents, *(Filter(agent=name) for name in "abc"), order="sequential")
        assert shape(plans, EventKind.REQUEST_BODY_CHUNK) == [("", 0, ["b"]), ("", 1, ["c"])]

    def test_a_deadline_is_that_of_its_stage(self) -> None:
        """Not the sum: each stage is asked by itself."""
        agents = [agent("a", timeout_ms=50), agent("b", timeout_ms=70)]
        plans = compiled(agents, Filter(agent="a"), Filter(agent="b"), order="sequential")
        assert [plan.timeout_ns for plan in plans if plan.kind is EventKind.REQUEST_BODY_CHUNK] == [50 * MS, 70 * MS]
        assert [plan.timeout_ns for plan in plans if plan.kind is REQUEST] == [120 * MS]


class TestGuardrails:
    def test_prompts_and_completions_have_plans_of_their_own(self) -> None:
        """In the order that the route gives, whatever the filters are."""
        plans = compiled([agent(name) for name in "abc"], guardrails=BOTH_PARTS)
        assert shape(plans, EventKind.GUARDRAIL_INSPECT) == [("prompt", 0, ["c", "a"]), ("completion", 0, ["b"])]
        assert len(plans) == 2

    def test_in_sequence_they_have_stages(self) -> None:
        """What one redacted the next does not see."""
        plans = compiled([agent(name) for name in "abc"], guardrails=BOTH_PARTS, order="sequential")
        assert shape(plans, EventKind.GUARDRAIL_INSPECT) == [
            ("prompt", 0, ["c"]),
            ("prompt", 1, ["a"]),
            ("completion", 0, ["b"]),
        ]

    def test_failure_mode_is_the_agents_and_hello_has_no_say(self) -> None:
        """A guardrail names agents, not filters; a text never passes because nobody has registered for it."""
        agents = [
            agent("a", failure_mode="open", timeout_ms=7),
            agent("b", ("guardrail_inspect",)),
            agent("c", protocol="zmq-v1", endpoint="ipc:///c"),
        ]
        (plan, _) = compiled(agents, guardrails=Guardrails(Guardrail(agents=("a", "b", "c")), Guardrail(agents=("b",))))
        assert plan.asks == (
            Ask("a", "open", False, 7, False),
            Ask("b", "closed", False, 200, False),
            Ask("c", "closed", False, 200, False),
        )

    def test_filters_do_not_ask_about_guardrails(self) -> None:
        """Nor do guardrails about anything else."""
        assert compiled([agent("a", ("guardrail_inspect",))], Filter(agent="a")) == ()


class TestCompletion:
    def test_nobody_waits_for_it(self) -> None:
        """Whoever decides elsewhere is told here, as observers are."""
        plans = compiled([agent(name) for name in NAMES], *CHAIN, order="sequential")
        (plan,) = [plan for plan in plans if plan.kind is EventKind.REQUEST_COMPLETE]
        assert [ask.agent for ask in plan.asks] == list(NAMES)
        assert all(ask.observe for ask in plan.asks)
        assert plan.enforcing_mask == 0

    def test_it_comes_last(self) -> None:
        """Kinds stand as a request meets them."""
        plans = compiled([agent("a")], Filter(agent="a"), guardrails=Guardrails(prompt=Guardrail(agents=("a",))))
        assert [plan.kind for plan in plans] == list(SUPPORTED)
        assert [plan.number for plan in plans] == list(range(len(plans)))
        assert plans[-1].kind is EventKind.REQUEST_COMPLETE


def test_byte_limits_are_those_of_the_direction() -> None:
    """Elsewhere there are none."""
    agents = [agent("a", max_request_body_bytes=5, max_response_body_bytes=7)]
    plans = compiled(agents, Filter(agent="a"))
    limits = {plan.kind: plan.asks[0].max_body_bytes for plan in plans}
    assert {kind: limit for kind, limit in limits.items() if limit} == {
        EventKind.REQUEST_BODY_CHUNK: 5,
        EventKind.RESPONSE_BODY_CHUNK: 7,
    }


class TestPlan:
    @pytest.mark.parametrize(
        ("sequential", "asks", "expected_ms"),
        [
            (False, [(False, 50), (False, 200), (True, 900)], 200),
            (True, [(False, 50), (False, 200), (True, 900)], 250),
            (False, [(True, 900), (True, 100)], 900),
        ],
    )
    def test_deadline(self, sequential: bool, asks: list[tuple[bool, int]], expected_ms: int) -> None:
        """Longest enforcing timeout in parallel, their sum in sequence; observers count only among themselves."""
        made = tuple(Ask("a", "closed", observe, timeout_ms) for observe, timeout_ms in asks)
        assert Plan(0, "r", REQUEST, sequential, False, made).timeout_ns == expected_ms * MS

    def test_masks(self) -> None:
        """Bit i is the i-th agent; observers are not in the enforcing mask."""
        plan = Plan(0, "r", REQUEST, False, False, tuple(Ask("a", "closed", o, 1) for o in (False, True, False)))
        assert (plan.full_mask, plan.enforcing_mask) == (0b111, 0b101)


def test_a_table_survives_the_wire() -> None:
    """What a worker registers is what agentd runs."""
    agents = [agent("a"), agent("b", ("request_headers",))]
    filters = (Filter(agent="a"), Filter(agent="b"))
    table = compiled(agents, *filters, order="sequential", guardrails=Guardrails(Guardrail(agents=("a",))))
    assert decode_table(encode_table(table)) == table
