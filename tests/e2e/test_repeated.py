"""One connection, always the same lines, targets of several routes in any order: none inherits another's policy."""

import random
import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.agents import ALLOW, V2Agent
from tests.http.corpus import Client, Upstream
from tests.product import System, proxy_config

LINES = b"Host: www.example.com\r\nUser-Agent: x/1\r\n\r\n"
TARGETS = (b"/guarded/a", b"/guarded/b?x=1", b"/guarded/deny", b"/open/a", b"/open/deny", b"/nowhere", b"/only-post")


def by_uri(event: dict[str, Any]) -> dict[str, Any]:
    """Blocks what has `deny` in it, and tells the upstream which target it was asked about."""
    if "deny" in event["uri"]:
        return {"decision": {"block": {"status": 403, "body": event["uri"]}}}
    return {**ALLOW, "request_headers": [{"set": {"name": "x-decided", "value": event["uri"]}}]}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[System, Upstream]]:
    upstream = Upstream()
    agents = [{"name": "uri", "protocol": "zmq-v2", "events": ["request_headers"]}]
    match = {name: {"path_prefix": f"/{name}"} for name in ("guarded", "open", "only-post")}
    routes = [
        {"name": "guarded", "upstream": "up", "match": match["guarded"], "filters": [{"agent": "uri"}]},
        {"name": "open", "upstream": "up", "match": match["open"]},
        {"name": "post", "upstream": "up", "match": {**match["only-post"], "methods": ["POST"]}},
    ]
    config = proxy_config(upstream.address, routes=routes, agents=agents)
    with System(config, tmp_path_factory.mktemp("repeated")) as system:
        agent = V2Agent(system.agents_endpoint, "uri", ["request_headers"], by_uri)
        try:
            assert agent.ready.wait(10)
            system.registered()
            yield system, upstream
        finally:
            agent.close()
            upstream.close()


def expected(target: bytes) -> tuple[int, bytes]:
    """(status, what the upstream is told of the decision)."""
    if target == b"/nowhere":
        return 404, b""
    if target == b"/only-post":
        return 405, b""
    if target.startswith(b"/guarded"):
        return (403, b"") if b"deny" in target else (200, target)
    return 200, b""


@pytest.mark.parametrize("seed", range(4))
def test_any_order(world: tuple[System, Upstream], seed: int) -> None:
    """A target may follow itself, or any other; each is routed and decided as if it were alone."""
    system, upstream = world
    chosen = random.Random(seed)
    with system.connect() as probe, Client(probe.getpeername()) as client:
        target = TARGETS[0]
        for _ in range(150):
            if chosen.random() < 0.6:
                target = chosen.choice(TARGETS)
            upstream.seen.clear()
            client.send(b"GET %b HTTP/1.1\r\n" % target + LINES)
            answer = client.answer()
            status, decided = expected(target)
            assert answer.status == status, target
            if status == 200:
                (seen,) = upstream.seen
                assert seen.startswith(b"GET %b HTTP/1.1\r\n" % target)
                told = re.search(rb"x-decided: (\S+)", seen)
                assert (told[1] if told else b"") == decided
            else:
                assert upstream.seen == []
                if status == 403:
                    assert answer.body == target
