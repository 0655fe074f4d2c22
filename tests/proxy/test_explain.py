"""What a request comes to, from a configuration alone: agents by phase, limits, upstream."""

import msgspec
import pytest

from proxy.explain import Explanation, Phase, explain
from shared.config.schema import Agent, AgentRateLimit, Config, Server, Target, Upstream, UpstreamTls
from shared.config.schema_routes import Filter, Guardrail, Guardrails, Match, RateLimit, Route, WebSocket
from shared.defaults import HOP_BODY_MAX_BYTES
from shared.events import SUPPORTED
from shared.plan import compile_plans

UPGRADE = (
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
)


def config(route: Route, *agents: Agent, server: Server | None = None, upstreams: tuple[Upstream, ...] = ()) -> Config:
    up = Upstream("up", (Target("127.0.0.1:9000"),))
    return Config(server=server or Server(), upstreams=(up, *upstreams), agents=agents, routes=(route,))


def ask(made: Config, *fields: str, first: str = "GET /x HTTP/1.1", peer: str = "192.0.2.1") -> Explanation:
    return explain(made, "\r\n".join([first, "Host: h", *fields, "", ""]).encode(), peer)


def agent(name: str, *events: str, **values: object) -> Agent:
    return msgspec.convert({"name": name, "protocol": "zmq-v2", "events": events or None, **values}, Agent)


def shape(phases: list[Phase]) -> list[tuple[str, str, list[list[str]]]]:
    """(event, order, the agents of each stage)."""
    return [
        (phase.event, phase.order, [[asked.agent for asked in stage.agents] for stage in phase.stages])
        for phase in phases
    ]


class TestPhases:
    A = agent("a", timeout_ms=100)
    B = agent("b", "request_headers", "request_body_chunk", timeout_ms=300, failure_mode="open")
    SEEN = agent("seen", "request_headers", timeout_ms=900)
    FILTERS = (Filter("a"), Filter("b"), Filter("seen", mode="observe"))

    def test_parallel(self) -> None:
        found = ask(config(Route("r", "up", filters=self.FILTERS), self.A, self.B, self.SEEN))
        first = found.phases[0]
        assert shape([first]) == [("request_headers", "parallel", [["a", "b", "seen"]])]
        assert first.within_ms == 300
        assert [(one.mode, one.failure_mode, one.by_hello) for one in first.stages[0].agents] == [
            ("enforce", "closed", True),
            ("enforce", "open", False),
            ("observe", "closed", False),
        ]

    def test_sequential_heads_are_one_event_and_bodies_are_stages(self) -> None:
        route = Route("r", "up", order="sequential", filters=self.FILTERS)
        found = ask(config(route, self.A, self.B, self.SEEN), "Content-Length: 5", first="POST /x HTTP/1.1")
        by_event = {phase.event: phase for phase in found.phases}
        assert shape([by_event["request_headers"]]) == [("request_headers", "sequential", [["a", "b", "seen"]])]
        assert by_event["request_headers"].within_ms == 400
        assert shape([by_event["request_body_chunk"]]) == [("request_body_chunk", "sequential", [["a"], ["b"]])]
        assert [stage.within_ms for stage in by_event["request_body_chunk"].stages] == [100, 300]
        assert by_event["request_body_chunk"].within_ms == 400

    def test_every_plan_is_in_one_stage_in_the_order_of_events(self) -> None:
        """Generic over the table: a new kind of plan shows up by itself."""
        guardrails = Guardrails(Guardrail(("a", "b")), Guardrail(("b",)))
        for order in ("parallel", "sequential"):
            route = Route("r", "up", order=order, filters=self.FILTERS, guardrails=guardrails)
            made = config(route, self.A, self.B, self.SEEN)
            found = ask(made)
            stages = [stage for phase in found.phases for stage in phase.stages]
            plans = compile_plans(made)
            assert [[one.agent for one in stage.agents] for stage in stages] == [
                [one.agent for one in plan.asks] for plan in plans
            ]
            order_of = [kind.wire_name for kind in SUPPORTED]
            events = [phase.event for phase in found.phases]
            assert events == sorted(events, key=order_of.index)
            assert [phase.part for phase in found.phases if phase.event == "guardrail_inspect"] == [
                "prompt",
                "completion",
            ]

    def test_what_this_request_does_not_come_to(self) -> None:
        made = config(Route("r", "up", filters=(Filter("a"),)), self.A)
        skipped = {phase.event: phase.skipped for phase in ask(made).phases}
        assert skipped["request_body_chunk"] == "the request has no body"
        assert skipped["websocket_frame"] == "the request is no WebSocket upgrade"
        assert skipped["request_headers"] == ""
        for fields, first in (
            (("Content-Length: 1",), "PUT /x HTTP/1.1"),
            (("Transfer-Encoding: chunked",), "GET / HTTP/1.1"),
        ):
            skipped = {phase.event: phase.skipped for phase in ask(made, *fields, first=first).phases}
            assert skipped["request_body_chunk"] == ""
        skipped = {phase.event: phase.skipped for phase in ask(made, *UPGRADE).phases}
        assert skipped["websocket_frame"] == ""

    @pytest.mark.parametrize(("length", "is_over"), [(10, False), (11, True)])
    def test_a_body_longer_than_an_agent_sees(self, length: int, is_over: bool) -> None:
        small = agent("small", "request_body_chunk", "response_body_chunk", max_request_body_bytes=10)
        made = config(Route("r", "up", filters=(Filter("small"),)), small)
        request, response = ask(made, f"Content-Length: {length}", first="POST /x HTTP/1.1").phases
        assert request.stages[0].agents[0].max_body_bytes == 10
        assert request.stages[0].agents[0].is_over is is_over
        assert not response.stages[0].agents[0].is_over

    def test_nobody_waits_for_observers_and_completions(self) -> None:
        made = config(Route("r", "up", filters=(Filter("a"), Filter("seen", mode="observe"))), self.A, self.SEEN)
        waits = {phase.event: phase.stages[0].waits for phase in ask(made).phases}
        assert waits["request_headers"]
        assert not waits["request_complete"]
        assert [one.max_body_bytes for one in ask(made).phases[0].stages[0].agents] == [None, None]


class TestLimits:
    def test_all_kinds_by_their_names(self) -> None:
        limited = agent("a", rate_limit={"capacity": 7, "refill_rate": 0.5})
        unasked = agent("b", rate_limit={"capacity": 1, "refill_rate": 1})
        assert limited.rate_limit == AgentRateLimit(7, 0.5)
        route = Route(
            "r",
            "up",
            max_concurrent=9,
            max_concurrent_per_client=3,
            rate_limits=(RateLimit("one", "header:X-Key", 20, 0.25), RateLimit("two", "global", 5, 5)),
            filters=(Filter("a"),),
        )
        server = Server(max_connections=100, max_connections_per_client=10, trusted_proxies=("10.0.0.0/8",))
        made = config(route, limited, unasked, server=server)
        found = [(one.name, one.key, one.capacity, one.refill_rate) for one in ask(made).limits]
        assert found == [
            ("server:max_connections", "", 100, None),
            ("server:max_connections_per_client", "", 10, None),
            ("r/max_concurrent", "", 9, None),
            ("r/max_concurrent_per_client", "", 3, None),
            ("r/one", "header:X-Key", 20, 0.25),
            ("r/two", "global", 5, 5),
            ("agent:a", "", 7, 0.5),
        ]
        for peer in ("10.1.1.1", ""):  # their connections are not one client's
            names = [one.name for one in ask(made, peer=peer).limits]
            assert "server:max_connections_per_client" not in names
            assert "server:max_connections" in names

    def test_bounds_with_what_the_request_has(self) -> None:
        found = ask(config(Route("r", "up")), "Content-Length: 12", first="POST /x HTTP/1.1")
        assert {one.key: one.now for one in found.bounds} == {
            "server.max_header_bytes": 49,
            "server.max_headers": 2,
            "request_target": 2,
            "server.max_body_bytes": 12,
        }
        chunked = ask(config(Route("r", "up")), "Transfer-Encoding: chunked")
        assert chunked.bounds[-1].now is None

    def test_a_body_over_the_servers_limit(self) -> None:
        found = ask(config(Route("r", "up"), server=Server(max_body_bytes=10)), "Content-Length: 11")
        assert found.refused is not None
        assert found.refused.status == 413
        assert found.route is None


class TestPeers:
    MADE = config(Route("r", "up"), server=Server(trusted_proxies=("10.0.0.0/8",)))

    def test_the_client_behind_trusted_proxies(self) -> None:
        found = ask(self.MADE, "X-Forwarded-For: 203.0.113.9, 10.0.0.2", peer="10.0.0.1")
        assert found.request is not None
        assert (found.request.client_ip, found.request.peer_is_trusted) == ("203.0.113.9", True)
        assert "x-forwarded-for: 203.0.113.9, 10.0.0.2, 10.0.0.1\r\n" in found.upstream_head

    def test_a_stranger_is_the_client(self) -> None:
        found = ask(self.MADE, "X-Forwarded-For: 203.0.113.9")
        assert found.request is not None
        assert found.request.client_ip == "192.0.2.1"
        assert "x-forwarded-for: 192.0.2.1\r\n" in found.upstream_head

    def test_a_unix_socket_has_no_address(self) -> None:
        found = ask(self.MADE, peer="")
        assert "x-forwarded-for: unknown\r\n" in found.upstream_head


def test_the_upstream_and_the_settings_of_the_route() -> None:
    tls = Upstream("tls", (Target("unix:/run/app.sock", 3),), tls=UpstreamTls(verify=False))
    route = Route("r", "tls", decode_bodies=True, fallback_upstreams=("up",), match=Match(("h",)))
    found = explain(config(route, upstreams=(tls,)), b"GET /x HTTP/1.0\r\n\r\n", "192.0.2.1")
    assert found.refused is not None  # no Host: no route with hosts fits
    route = msgspec.structs.replace(route, match=Match())
    found = explain(config(route, upstreams=(tls,)), b"GET /x HTTP/1.0\r\n\r\n", "192.0.2.1")
    assert found.upstream is not None
    assert found.route is not None
    assert found.upstream["tls"]["verify"] is False
    assert (found.route["decode_bodies"], found.route["fallback_upstreams"]) == (True, ["up"])
    assert "\r\nhost: localhost\r\n" in found.upstream_head


def test_a_route_without_websocket() -> None:
    made = config(Route("r", "up", websocket=WebSocket(enabled=False)))
    refused = ask(made, *UPGRADE).refused
    assert refused is not None
    assert refused.status == 403
    assert ask(made).refused is None


def test_a_handshake_that_no_server_may_accept() -> None:
    refused = ask(config(Route("r", "up")), *UPGRADE[:3]).refused
    assert refused is not None
    assert refused.status == 400


def test_a_body_that_agents_cannot_be_shown() -> None:
    made = config(Route("r", "up", decode_bodies=True, filters=(Filter("a"),)), agent("a", "request_body_chunk"))
    refused = ask(made, "Content-Length: 1", "Content-Encoding: compress", first="POST /x HTTP/1.1").refused
    assert refused is not None
    assert refused.status == 415


def test_how_long_a_coded_body_is_decoded_is_not_known() -> None:
    seen = agent("a", "request_body_chunk", max_request_body_bytes=1)
    for decodes in (False, True):
        made = config(Route("r", "up", decode_bodies=decodes, filters=(Filter("a"),)), seen)
        found = ask(made, "Content-Length: 2", "Content-Encoding: gzip", first="POST /x HTTP/1.1")
        assert found.phases[0].stages[0].agents[0].is_over is not decodes


def test_more_at_once_than_one_event_carries() -> None:
    seen = agent("a", "request_body_chunk", max_request_body_bytes=1 << 30)
    for shown, is_over in (("buffer", True), ("stream", False)):
        route = Route("r", "up", request_body=shown, filters=(Filter("a"),))
        made = config(route, seen, server=Server(max_body_bytes=0))
        found = ask(made, f"Content-Length: {HOP_BODY_MAX_BYTES + 1}", first="POST /x HTTP/1.1")
        assert found.phases[0].stages[0].agents[0].is_over is is_over
