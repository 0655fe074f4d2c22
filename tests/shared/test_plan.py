"""One plan for everybody: which agents are asked about what, in which order, for how long."""

import pytest

from shared.clock import MS
from shared.config.schema import Agent, Config, Filter, Match, Route, Target, Upstream
from shared.events import EventKind
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
        assert [[(ask.agent, ask.by_hello) for ask in plan.asks] for plan in plans] == [
            [("b", True), ("c", False)],
            [("a", False), ("b", True), ("c", False)],
        ]

    def test_failure_mode_of_the_filter_wins(self) -> None:
        """Else the agent's; the default is closed."""
        agents = [agent("a"), agent("b", failure_mode="open")]
        (plan, _) = compiled(agents, Filter(agent="a"), Filter(agent="b"), Filter(agent="b", failure_mode="closed"))
        assert [ask.failure_mode for ask in plan.asks] == ["closed", "open", "closed"]

    def test_route_settings(self) -> None:
        """Order, observers, timeouts and the permission for Host arrive in the plan."""
        agents = [agent("a", timeout_ms=70)]
        filters = (Filter(agent="a", mode="observe"), Filter(agent="a"))
        (plan, _) = compiled(agents, *filters, order="sequential", agents_may_set_host=True)
        assert (plan.sequential, plan.may_set_host) == (True, True)
        assert [(ask.observe, ask.timeout_ms) for ask in plan.asks] == [(True, 70), (False, 70)]


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
    table = compiled([agent("a"), agent("b", ("request_headers",))], Filter(agent="a"), Filter(agent="b"))
    assert decode_table(encode_table(table)) == table
