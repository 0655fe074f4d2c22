"""Real traffic decided by agents over ZeroMQ: every decision, both phases, header operations, failure modes."""

import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.agents import ALLOW, V1Agent, V2Agent
from tests.http.corpus import Answer, Client, Upstream
from tests.product import System, proxy_config
from tests.support import wait_until

BOTH = ["request_headers", "response_headers"]


def scripted(name: str) -> Any:
    """An agent that does what the request's `x-do-NAME` or the query's `NAME-response` says, in verdict JSON."""

    def decide(event: dict[str, Any]) -> dict[str, Any] | None:
        if event["event_type"] == "request_headers":
            wish = event["headers"].get(f"x-do-{name}")
        else:
            found = re.search(rf"{name}-response=([0-9a-f]+)", event["uri"])
            wish = [bytes.fromhex(found[1]).decode()] if found else None
        return (json.loads(wish[0]) if wish[0] != "silence" else None) if wish else ALLOW

    return decide


class World:
    """Proxy, agentd, upstream, and four agents: a and b (v2), c (v1, fail-open), o (v2, observer)."""

    def __init__(self, tmp: Path) -> None:
        self.upstream = Upstream()
        agents = [
            {"name": "a", "protocol": "zmq-v2", "secret_file": str(tmp / "a"), "events": BOTH, "timeout_ms": 400},
            {"name": "b", "protocol": "zmq-v2", "secret_file": str(tmp / "b"), "events": BOTH, "timeout_ms": 400},
            {"name": "c", "protocol": "zmq-v1", "endpoint": f"ipc://{tmp}/c.sock", "events": ["request_headers"],
             "timeout_ms": 300, "failure_mode": "open"},
            {"name": "o", "protocol": "zmq-v2", "secret_file": str(tmp / "o"), "events": BOTH, "timeout_ms": 400},
        ]  # fmt: skip
        agents = [{**a, "circuit_breaker": {"failure_threshold": 1000}} for a in agents]
        for one in "abo":
            (tmp / one).write_text("secret")
            (tmp / one).chmod(0o600)
        ab = [{"agent": "a"}, {"agent": "b"}]
        routes = [
            {"name": "all", "upstream": "up", "filters": [*ab, {"agent": "c"}, {"agent": "o", "mode": "observe"}]},
            {"name": "seq", "upstream": "up", "match": {"path_prefix": "/seq"}, "order": "sequential", "filters": ab},
            {"name": "seen", "upstream": "up", "match": {"path_prefix": "/seen"},
             "filters": [{"agent": "o", "mode": "observe"}]},
            {"name": "host", "upstream": "up", "match": {"path_prefix": "/host"}, "agents_may_set_host": True,
             "filters": [{"agent": "a"}]},
        ]  # fmt: skip
        config = proxy_config(self.upstream.address, routes=routes, agents=agents)
        self.system = System(config, tmp).__enter__()
        endpoint = self.system.agents_endpoint
        self.agents: dict[str, Any] = {
            name: V2Agent(endpoint, name, BOTH, scripted(name), instance=f"{name}-1", secret=b"secret")
            for name in "abo"
        }
        self.agents["c"] = V1Agent(f"ipc://{tmp}/c.sock", scripted("c"))
        for agent in self.agents.values():
            assert agent.ready.wait(10)
        assert self.system.agentd is not None
        self.system.agentd.wait_for("connection ready")  # a v1 agent cannot tell that its answer was read
        self.system.registered()

    def close(self) -> None:
        for agent in self.agents.values():
            agent.close()
        self.system.__exit__()
        self.upstream.close()

    def get(self, path: str = "/", method: str = "GET", **do: Any) -> Answer:
        """One request; `a={...}` is agent a's verdict on its head, `a_response={...}` on the response's."""
        self.upstream.seen.clear()
        for agent in self.agents.values():
            agent.seen.clear()
        query = "&".join(
            f"{name.partition('_')[0]}-response={json.dumps(verdict).encode().hex()}"
            for name, verdict in do.items()
            if name.endswith("_response")
        )
        fields = "".join(
            f"x-do-{name}: {verdict if isinstance(verdict, str) else json.dumps(verdict)}\r\n"
            for name, verdict in do.items()
            if not name.endswith("_response")
        )
        with Client(self.system.address) as client:
            client.send(f"{method} {path}?{query} HTTP/1.1\r\nHost: a.example\r\n{fields}\r\n".encode())
            return client.answer(is_head=method == "HEAD")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    tmp = Path(tempfile.mkdtemp(prefix="wg-", dir="/tmp"))
    made = World(tmp)
    yield made
    made.close()
    shutil.rmtree(tmp, ignore_errors=True)


def correlation_of(answer: Answer) -> str:
    return answer.head.lower().partition(b"x-correlation-id: ")[2].partition(b"\r\n")[0].decode()


def entry_of(world: World, answer: Answer, agent: str) -> dict[str, Any] | None:
    """What the audit says of one agent's part in the request of this answer."""
    records = [r for r in world.system.audit() if r["correlation_id"] == correlation_of(answer)]
    return next((e for r in records for e in r.get("agents", ()) if e["agent"] == agent), None)


BLOCK = {"decision": {"block": {"status": 403, "body": "no", "headers": {"X-Blocked-By": "a"}}}}
REDIRECT = {"decision": {"redirect": {"url": "/new", "status": 307}}}
CHALLENGE = {"decision": {"challenge": {"challenge_type": "basic", "params": {"realm": "x"}}}}
CAPTCHA = {"decision": {"challenge": {"challenge_type": "captcha", "params": {"site": "k"}}}}


def op(kind: str, name: str, value: str = "") -> dict[str, Any]:
    return {kind: {"name": name, "value": value}}


def test_all_allow(world: World) -> None:
    """Everybody allows: the upstream answers, and each agent saw what it asked for, with true metadata."""
    answer = world.get("/x")
    assert (answer.status, answer.body) == (200, b"ok")
    wait_until(lambda: len(world.agents["o"].seen) == 2)
    first, second = world.agents["a"].seen
    assert (first["event_type"], first["method"], first["headers"]["host"]) == ("request_headers", "GET", ["a.example"])
    assert (second["event_type"], second["status"], second["has_body"]) == ("response_headers", 200, True)
    meta = first["metadata"]
    assert meta["client_ip"] == "127.0.0.1"
    assert meta["route_id"] == "all"
    assert meta["protocol"] == "HTTP/1.1"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", meta["timestamp"])
    assert f"x-correlation-id: {meta['correlation_id']}".encode() in answer.head.lower()
    assert f"x-correlation-id: {meta['correlation_id']}".encode() in world.upstream.seen[0].lower()
    assert [event["event_type"] for event in world.agents["c"].seen] == ["request_headers"]


@pytest.mark.parametrize("phase", ["a", "a_response"])
@pytest.mark.parametrize(
    ("verdict", "status", "field", "body"),
    [
        (BLOCK, 403, b"x-blocked-by: a", b"no"),
        (REDIRECT, 307, b"location: /new", b""),
        (CHALLENGE, 401, b'www-authenticate: basic realm="x"', b"authentication required\n"),
        (CAPTCHA, 403, b"x-challenge-type: captcha", b'{"challenge_type":"captcha","params":{"site":"k"}}'),
    ],
)
def test_every_refusal_in_both_phases(
    world: World, phase: str, verdict: dict[str, Any], status: int, field: bytes, body: bytes
) -> None:
    """Block, redirect and challenge act on requests and on responses alike."""
    answer = world.get(**{phase: verdict})
    assert (answer.status, answer.body) == (status, body)
    assert field in answer.head.lower()
    assert len(world.upstream.seen) == (phase != "a")


def test_a_block_of_head_carries_no_body(world: World) -> None:
    answer = world.get(method="HEAD", a=BLOCK)
    assert answer.status == 403
    assert b"content-length: 2" in answer.head


def test_request_operations_in_chain_order(world: World) -> None:
    """Each agent's operations, agent after agent; the client's other lines stay."""
    world.get(
        a={**ALLOW, "request_headers": [op("set", "X-A", "1"), op("add", "x-list", "a")]},
        b={**ALLOW, "request_headers": [op("set", "x-a", "2"), op("add", "x-list", "b"), op("remove", "x-do-a")]},
    )
    seen = world.upstream.seen[0].lower()
    assert b"\r\nx-a: 2\r\n" in seen
    assert b"\r\nx-a: 1" not in seen
    assert b"x-list: a\r\nx-list: b\r\n" in seen
    assert b"\r\nx-do-a:" not in seen
    assert b"\r\nx-do-b:" in seen


def test_response_operations_of_both_phases(world: World) -> None:
    """Those given early run before those of the response phase."""
    answer = world.get(
        a={**ALLOW, "response_headers": [op("set", "x-r", "early"), op("set", "x-early", "1")]},
        b_response={**ALLOW, "response_headers": [op("set", "x-r", "late")]},
    )
    assert b"x-r: late" in answer.head
    assert b"x-early: 1" in answer.head
    assert b"x-r: early" not in answer.head


def test_a_refusal_carries_only_its_own_operations(world: World) -> None:
    answer = world.get(
        a={**ALLOW, "response_headers": [op("set", "x-from-a", "1")]},
        b={**BLOCK, "response_headers": [op("set", "x-from-b", "1")]},
    )
    assert answer.status == 403
    assert b"x-from-b: 1" in answer.head
    assert b"x-from-a" not in answer.head


def test_protected_fields_are_refused_and_the_rest_applied(world: World) -> None:
    """Framing, hop-by-hop, Host and control characters: not applied, audited; the others are."""
    bad = [
        "Connection",
        "Transfer-Encoding",
        "Content-Length",
        "Host",
        "Upgrade",
        "TE",
        "Trailer",
        "Via",
        "X-Correlation-Id",
    ]
    answer = world.get(
        a={
            **ALLOW,
            "request_headers": [
                *(op("set", name, "9") for name in bad),
                op("set", "x-c", "a\r\nb: c"),
                op("set", "x-ok", "1"),
            ],
        }
    )
    seen = world.upstream.seen[0].lower()
    assert b"x-ok: 1\r\n" in seen
    assert b"host: a.example\r\n" in seen
    for line in (b"\r\ncontent-length", b"\r\ntransfer-encoding", b"\r\nte: 9", b"\r\nx-c:", b"\r\nb: c"):
        assert line not in seen
    assert set((wait_until(lambda: entry_of(world, answer, "a")) or {})["refused_ops"]) == {*bad, "x-c"}


def test_host_where_the_route_allows_it(world: World) -> None:
    world.get("/host", a={**ALLOW, "request_headers": [op("set", "host", "b.example")]})
    assert b"host: b.example\r\n" in world.upstream.seen[0].lower()
    assert b"a.example\r\nx-do" not in world.upstream.seen[0]


def test_block_outweighs_challenge_redirect_and_failure(world: World) -> None:
    assert world.get(a=REDIRECT, b=CHALLENGE).status == 401
    assert world.get(a="silence", b=REDIRECT).status == 307
    assert world.get(a=CHALLENGE, b=BLOCK).status == 403


def test_first_block_ends_the_phase(world: World) -> None:
    """The other agent's call is cancelled and nobody waits for it."""
    world.agents["b"].cancelled.clear()
    assert world.get(a=BLOCK, b="silence").status == 403
    wait_until(lambda: [reason for _, reason in world.agents["b"].cancelled] == ["decided"])


@pytest.mark.parametrize(
    ("verdict", "status"),
    [
        ("silence", 504),
        ({"decision": "alow"}, 503),
        ({"error": {"code": "db", "message": "down"}}, 503),
        ({"decision": {"block": {"status": 99}}}, 503),
        ({"decision": {"redirect": {"url": "/a\r\nb"}}}, 503),
        ({}, 503),
    ],
)
def test_fail_closed(world: World, verdict: Any, status: int) -> None:
    """Timeout is 504, everything else 503; the upstream is never reached; an allow does not outweigh it."""
    answer = world.get(a=verdict)
    assert answer.status == status
    assert b"correlation id: " in answer.body
    assert not world.upstream.seen


@pytest.mark.parametrize(
    ("verdict", "outcome"),
    [("silence", "timeout"), ({"decision": "alow"}, "malformed"), ({"error": {"code": "db"}}, "agent_error")],
)
def test_fail_open(world: World, verdict: Any, outcome: str) -> None:
    """A fail-open agent's failure is skipped, counted and audited."""

    def answers_again() -> bool:  # its lockstep connection is made anew after a timeout
        world.get()
        return bool(world.agents["c"].seen)

    wait_until(answers_again)
    answer = world.get(c=verdict)
    assert answer.status == 200
    assert (wait_until(lambda: entry_of(world, answer, "c")) or {})["outcome"] == outcome


def test_observer_has_no_effect(world: World) -> None:
    """It sees everything; verdict, operations, silence and failure change nothing; audited as would-have."""
    before = len(world.system.audit())
    answer = world.get(o={**BLOCK, "response_headers": [op("set", "x-o", "1")]}, o_response={"decision": "alow"})
    assert answer.status == 200
    assert b"x-o" not in answer.head

    def told() -> bool:
        entries = [e for record in world.system.audit()[before:] for e in record["agents"] if e["agent"] == "o"]
        return any(e.get("would_have") for e in entries)

    wait_until(told)


def test_a_plan_of_observers_is_not_waited_for(world: World) -> None:
    """Even a silent observer does not delay the request."""
    assert world.get("/seen", o="silence").status == 200
    wait_until(lambda: [e["event_type"] for e in world.agents["o"].seen][:1] == ["request_headers"])


def test_sequential_stops_at_the_first_that_does_not_allow(world: World) -> None:
    """b is asked only after a has allowed."""
    assert world.get("/seq", a=BLOCK).status == 403
    assert not world.agents["b"].seen
    assert world.get("/seq", b=REDIRECT).status == 307
    assert len(world.agents["a"].seen) == 1


def test_client_gone_is_cancelled(world: World) -> None:
    """The client leaves while an agent thinks: the agent hears of it."""
    world.agents["a"].cancelled.clear()
    client = Client(world.system.address)
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\nx-do-a: silence\r\n\r\n")
    wait_until(lambda: any("x-do-a" in event["headers"] for event in world.agents["a"].seen))
    client.close()
    wait_until(lambda: [reason for _, reason in world.agents["a"].cancelled] == ["client_gone"], 5)


def test_same_client_ids_do_not_swap_verdicts(world: World) -> None:
    """Two requests with the same X-Request-Id and X-Correlation-Id each get their own verdict."""
    with Client(world.system.address) as one, Client(world.system.address) as two:
        same = b"Host: a\r\nX-Request-Id: same\r\nX-Correlation-Id: same\r\n"
        for _ in range(50):
            one.send(b"GET / HTTP/1.1\r\n" + same + b"x-do-a: " + json.dumps(BLOCK).encode() + b"\r\n\r\n")
            two.send(b"GET / HTTP/1.1\r\n" + same + b"\r\n")
            assert (one.answer().status, two.answer().status) == (403, 200)


def test_events_of_one_tick_travel_together(world: World) -> None:
    """Pipelined or concurrent requests of one loop tick reach an agent in one message."""
    clients = [Client(world.system.address) for _ in range(32)]
    world.agents["a"].batches.clear()
    for client in clients:
        client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    for client in clients:
        assert client.answer().status == 200
        client.close()
    assert max(world.agents["a"].batches) > 1


def test_refusals_are_in_log_audit_and_metrics(world: World) -> None:
    """One refusal: a log line and an audit record with the client's correlation id, and a counter."""
    answer = world.get("/path", a=BLOCK)
    correlation_id = correlation_of(answer)
    wait_until(lambda: correlation_id in world.system.child.output())

    def records() -> set[str]:
        return {r["source"] for r in world.system.audit() if r["correlation_id"] == correlation_id}

    wait_until(lambda: records() == {"agentd", "worker"})
    record = next(r for r in world.system.audit() if r["correlation_id"] == correlation_id and r["source"] == "worker")
    assert (record["decision"], record["status"], record["decided_by"], record["method"]) == ("block", 403, "a", "GET")
