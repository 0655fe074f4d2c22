"""shared/readiness.py: semantics 15, each condition by itself and the sum of them."""

from collections.abc import Sequence
from typing import Literal

import pytest

from shared import readiness as r
from shared.clock import S
from shared.config.schema import Agent, Config, Server, Target, Upstream
from shared.config.schema_routes import Filter, Guardrail, Guardrails, Route
from shared.segment import (
    DRAINING,
    NEVER_NS,
    READY,
    STARTING,
    AgentRow,
    BreakerState,
    Reload,
    ReloadResult,
    WorkerRow,
    WorkerState,
)
from shared.wire.admin import Component, Status

NOW = 1_000 * S
HEALTHY, DEGRADED, UNHEALTHY = Status.HEALTHY, Status.DEGRADED, Status.UNHEALTHY


def stamp(at_ns: int) -> str:
    return f"{at_ns / S:g}" if at_ns else ""


def worker(slot: int, state: WorkerState = READY, age_s: float = 0.1, digest: str = "d") -> WorkerRow:
    return WorkerRow(slot, 100 + slot, state, NOW - int(age_s * S), 1, digest)


def proxy(
    workers: Sequence[WorkerRow] = (), is_alive: bool = True, digest: str = "d", **upstreams: tuple[int, int]
) -> r.Proxy:
    return r.Proxy(is_alive, digest, workers, upstreams)


# --- agentd ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("beat_ns", "lag_s", "status", "text"),
    [
        (NOW, 0.0, HEALTHY, "pid 7"),
        (NOW - S // 2, 0.0, HEALTHY, "pid 7"),
        (NOW, 0.6, DEGRADED, "stood still for 0.6 s"),
        (NOW - 2 * S, 0.0, UNHEALTHY, "last sign of life 2.0 s ago"),
        (NOW + 5 * S, 0.0, UNHEALTHY, "last sign of life"),
        (NEVER_NS, 0.0, UNHEALTHY, "is not running"),
        (None, 0.0, UNHEALTHY, "is not running"),
    ],
)
def test_agentd_lives_by_its_heartbeat(beat_ns: int | None, lag_s: float, status: Status, text: str) -> None:
    """Stale after a second; a beat of another boot is no life."""
    component = r.agentd_component(beat_ns, 7, int(lag_s * S), NOW, stamp)
    assert component.status is status
    assert text in component.message
    assert component.is_required


# --- workers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seen", "status", "text"),
    [
        (None, UNHEALTHY, "the proxy is not running"),
        (proxy(), UNHEALTHY, "0 of 2 ready"),
        (proxy([worker(0), worker(1)]), HEALTHY, "2 of 2 ready"),
        (proxy([worker(0), worker(1, STARTING)]), DEGRADED, "1 of 2 ready; pid 101 starting"),
        (proxy([worker(0), worker(1), worker(2, DRAINING)]), HEALTHY, "2 of 2 ready; pid 102 draining"),
        (proxy([worker(0), worker(1, age_s=7)]), DEGRADED, "pid 101 gave its last sign of life 7.0 s ago"),
        (proxy([worker(0, age_s=7), worker(1, age_s=7)]), UNHEALTHY, "0 of 2 ready"),
        (proxy([worker(0), worker(1)], is_alive=False), DEGRADED, "the arbiter gives no sign of life"),
    ],
)
def test_one_worker_that_turns_is_enough_to_be_ready(seen: r.Proxy | None, status: Status, text: str) -> None:
    """Fewer than configured is degraded; none is not ready."""
    component = r.workers_component(seen, 2, NOW, stamp)
    assert component.status is status
    assert text in component.message


# --- agents ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "required", "optional", "text"),
    [
        (None, UNHEALTHY, DEGRADED, "does not know it"),
        (AgentRow("waf"), UNHEALTHY, DEGRADED, "no live instance"),
        (AgentRow("waf", 0, 1), HEALTHY, HEALTHY, "1 instance"),
        (AgentRow("waf", 0, 2), HEALTHY, HEALTHY, "2 instances"),
        (AgentRow("waf", 0, 1, BreakerState.HALF_OPEN), DEGRADED, DEGRADED, "half open"),
        (AgentRow("waf", 0, 1, BreakerState.OPEN, NOW + 3 * S), UNHEALTHY, DEGRADED, "next probe in 3.0 s"),
        (AgentRow("waf", 0, 1, BreakerState.OPEN, NOW - S), UNHEALTHY, DEGRADED, "next probe in 0.0 s"),
        (AgentRow("waf", 0, 1, BreakerState.FORCED_OPEN, NEVER_NS), UNHEALTHY, DEGRADED, "by an operator"),
    ],
)
def test_what_an_agent_lacks_counts_by_whether_it_is_required(
    row: AgentRow | None, required: Status, optional: Status, text: str
) -> None:
    """Missing optional agents degrade, and the whole stays ready."""
    for needed, status in ((True, required), (False, optional)):
        component = r.agent_component("waf", row, needed, NOW, stamp)
        assert component.status is status
        assert text in component.message
        assert ("required" if needed else "optional") in component.message
        assert component.name == "agent:waf"


def config(agent: Agent, *filters: Filter) -> Config:
    return Config(
        server=Server(workers=0),
        agents=(agent, Agent("unused", "zmq-v2")),
        upstreams=(Upstream("app", (Target("127.0.0.1:1"),)), Upstream("spare", (Target("127.0.0.1:2"),))),
        routes=(Route("r", "app", filters=filters),),
    )


@pytest.mark.parametrize(
    ("agent", "filters", "expected"),
    [
        (Agent("waf", "zmq-v2"), [Filter("waf")], True),
        (Agent("waf", "zmq-v2", failure_mode="open"), [Filter("waf")], False),
        (Agent("waf", "zmq-v2", failure_mode="open"), [Filter("waf", failure_mode="closed")], True),
        (Agent("waf", "zmq-v2"), [Filter("waf", failure_mode="open")], False),
        (Agent("waf", "zmq-v2"), [Filter("waf", mode="observe")], False),
        (Agent("waf", "zmq-v2"), [], False),
        (Agent("waf", "zmq-v2", required=False), [Filter("waf")], False),
        (Agent("waf", "zmq-v2", required=True), [Filter("waf", mode="observe")], True),
    ],
)
def test_required_unless_it_says_otherwise_where_some_enforcing_filter_is_fail_closed(
    agent: Agent, filters: list[Filter], expected: bool
) -> None:
    """Semantics 15."""
    assert r.is_required(agent, config(agent, *filters)) is expected


def test_what_no_route_names_is_no_condition() -> None:
    """It is never asked, so it is never missing."""
    made = config(Agent("waf", "zmq-v2"), Filter("waf"))
    assert [agent.name for agent in r.asked_agents(made)] == ["waf"]
    assert r.used_upstreams(made) == ("app",)
    assert r.expected_workers(made) >= 1


def guarded(agent: Agent) -> Config:
    """A route whose only agent is the one that its guardrails name."""
    table = Guardrails(completion=Guardrail((agent.name,)))
    return Config(
        agents=(agent,),
        upstreams=(Upstream("llm", (Target("127.0.0.1:1"),)),),
        routes=(Route("r", "llm", guardrails=table),),
    )


@pytest.mark.parametrize(("failure_mode", "required", "expected"), [
    ("closed", None, True), ("open", None, False), ("closed", False, False), ("open", True, True),
])  # fmt: skip
def test_an_agent_that_only_guardrails_name_is_a_condition(
    failure_mode: Literal["closed", "open"], required: bool | None, expected: bool
) -> None:
    """Without it every prompt of the route is refused."""
    made = guarded(Agent("guard", "zmq-v2", failure_mode=failure_mode, required=required))
    assert [agent.name for agent in r.asked_agents(made)] == ["guard"]
    assert r.is_required(made.agents[0], made) is expected


# --- upstreams -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("up", "required"),
    [
        (("a", "b", "c"), {"c"}),
        (("b", "c"), {"b", "c"}),  # b stands in for a, and is the last one
        (("a", "c"), {"a", "c"}),
        (("c",), {"a", "b", "c"}),
        (("a", "b"), {"c"}),
        ((), {"a", "b", "c"}),
    ],
)
def test_of_a_route_with_fallbacks_one_upstream_has_to_be_reachable(up: tuple[str, ...], required: set[str]) -> None:
    """All are shown; the whole is not ready only where a route has nobody to ask."""
    made = Config(
        upstreams=tuple(Upstream(name, (Target("127.0.0.1:1"),)) for name in "abcd"),
        routes=(Route("r", "a", fallback_upstreams=("b",)), Route("s", "c")),
    )
    times = {name: (NOW - S, 0) if name in up else (0, NOW - S) for name in "abc"}
    components = r.upstream_components(made, proxy(**times), NOW, stamp)
    assert [one.name for one in components] == ["upstream:a", "upstream:b", "upstream:c"]
    assert {one.name[-1] for one in components if one.is_required} == required
    is_served = "c" in up and bool({"a", "b"} & set(up))
    assert r.whole(components, "1").is_ready is is_served


@pytest.mark.parametrize(
    ("ok_s", "failure_s", "status", "text"),
    [
        (None, None, UNHEALTHY, "no worker has tried it yet"),
        (1, None, HEALTHY, "reached 1.0 s ago"),
        (1, 5, HEALTHY, "reached 1.0 s ago"),
        (20, 1, DEGRADED, "reached 20.0 s ago, failed 1.0 s ago"),
        (None, 1, UNHEALTHY, "failed 1.0 s ago"),
        (100, 1, UNHEALTHY, "failed 1.0 s ago"),
        (100, None, UNHEALTHY, "last reached 100 s ago"),
    ],
)
def test_an_upstream_is_reachable_by_its_last_connect(
    ok_s: int | None, failure_s: int | None, status: Status, text: str
) -> None:
    """Of any worker; a failure after a recent success means that some target lives: degraded."""
    times = tuple(0 if s is None else NOW - s * S for s in (ok_s, failure_s))
    component = r.upstream_component("app", proxy(app=(times[0], times[1])), NOW, stamp)
    assert component.status is status
    assert text in component.message


def test_without_a_proxy_nothing_is_known_of_an_upstream() -> None:
    """Not reachable as far as anybody knows."""
    assert r.upstream_component("app", None, NOW, stamp).status is UNHEALTHY


# --- config and the whole --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("digest", "seen", "status"),
    [
        ("d", proxy([worker(0)]), HEALTHY),
        ("d", proxy([worker(0), worker(1, digest="")]), HEALTHY),
        ("d", None, HEALTHY),
        ("e", proxy([worker(0)]), DEGRADED),
        ("d", proxy([worker(0), worker(1, digest="old")]), DEGRADED),
        ("", proxy([worker(0)]), DEGRADED),
    ],
)
def test_different_configurations_degrade(digest: str, seen: r.Proxy | None, status: Status) -> None:
    """They never meet inside an event, so it is no reason not to be ready."""
    component = r.config_component(digest, seen, NOW, stamp)
    assert component.status is status
    assert not component.is_required


def test_a_draining_worker_may_run_what_it_was_started_with() -> None:
    """A reload is over when the new workers serve; old ones may take long to end."""
    seen = proxy([worker(0), worker(1, state=WorkerState.DRAINING, digest="old")])
    assert r.config_component("d", seen, NOW, stamp).status is HEALTHY


@pytest.mark.parametrize("who", ["agentd", "the proxy"])
@pytest.mark.parametrize(
    ("result", "how"), [(ReloadResult.REFUSED, "refused"), (ReloadResult.ROLLED_BACK, "taken back")]
)
def test_a_reload_that_failed_degrades_until_one_succeeds(who: str, result: ReloadResult, how: str) -> None:
    """With the reason, whoever runs the same otherwise."""
    failed = Reload(3, result, NOW - 5 * S, refused=3, message="a.b: wrong")
    seen = proxy([worker(0)])
    good = Reload(4, ReloadResult.APPLIED, NOW, applied=1, refused=3)
    for last, status in ((failed, DEGRADED), (good, HEALTHY)):
        of_proxy = seen._replace(reload=last) if who == "the proxy" else seen
        component = r.config_component("d", of_proxy, NOW, stamp, last if who == "agentd" else Reload())
        assert component.status is status
    component = r.config_component(
        "d", seen._replace(reload=failed) if who == "the proxy" else seen, NOW, stamp,
        failed if who == "agentd" else Reload(),
    )  # fmt: skip
    assert component.message == f"d; the last reload of {who} was {how} 5 s ago: a.b: wrong"
    assert not component.is_required


@pytest.mark.parametrize(
    ("statuses", "status", "is_ready"),
    [
        ([(HEALTHY, True), (HEALTHY, False)], HEALTHY, True),
        ([(HEALTHY, True), (DEGRADED, True)], DEGRADED, True),
        ([(HEALTHY, True), (UNHEALTHY, False)], DEGRADED, True),
        ([(DEGRADED, False), (UNHEALTHY, True)], UNHEALTHY, False),
        ([], HEALTHY, True),
    ],
)
def test_the_whole_is_ready_unless_something_required_is_unhealthy(
    statuses: list[tuple[Status, bool]], status: Status, is_ready: bool
) -> None:
    """Everything else only degrades."""
    health = r.whole([Component(str(n), s, "", needed) for n, (s, needed) in enumerate(statuses)], "1", ["audit: x"])
    assert (health.status, health.is_ready, health.not_asked) == (status, is_ready, ("audit: x",))


def test_times_of_the_monotonic_clock_become_times_of_day() -> None:
    """0 = never = an empty text."""
    stamper = r.stamper(NOW, 1_000_000_000.5)
    assert stamper(NOW - 2 * S) == "2001-09-09T01:46:38.500Z"
    assert stamper(0) == ""
