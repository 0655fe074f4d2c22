"""Proxy, agentd, an upstream and agents that do with bodies what the test says: for tests of the body phases.

`world.on["a"] = lambda event: verdict` for agents a, b (v2), c (v1) and o (v2, observing); None = no answer.
d (v2) asks for bodies alone, h (v2) for heads alone.
Routes are told apart by their first path segment, see ROUTES.
"""

import json
import tempfile
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tests.e2e.agents import ALLOW, V1Agent, V2Agent
from tests.e2e.scripted_upstream import ScriptedUpstream
from tests.http.corpus import Answer, Client, one_chunk
from tests.product import System, proxy_config
from tests.support import wait_until

LIMIT = 65_536  # max_*_body_bytes of every agent but the large ones
EVENTS = ["request_headers", "request_body_chunk", "response_headers", "response_body_chunk", "request_complete"]
BODIES = ["request_body_chunk", "response_body_chunk"]
HEADS = ["request_headers", "response_headers"]
NAMES = "abodh"  # of the zmq-v2 agents
ONLY = {"d": BODIES, "h": HEADS}  # those that do not ask for everything
A, B = {"agent": "a"}, {"agent": "b"}
OPEN_A = {"agent": "a", "failure_mode": "open"}
ROUTES: dict[str, dict[str, Any]] = {
    "buffer": {"filters": [A], "response_body": "buffer"},
    "stream": {"filters": [A], "request_body": "stream"},
    "par": {"filters": [A, B], "request_body": "stream"},
    "seq": {"filters": [A, {"agent": "o", "mode": "observe"}, B], "request_body": "stream", "order": "sequential"},
    "open": {"filters": [OPEN_A], "response_body": "buffer"},
    "openstream": {"filters": [OPEN_A], "request_body": "stream"},
    "v1": {"filters": [{"agent": "c"}], "request_body": "stream"},
    "seen": {"filters": [{"agent": "o", "mode": "observe"}]},
    "z": {"filters": [A], "response_body": "buffer", "decode_bodies": True},
    "zs": {"filters": [A], "request_body": "stream", "decode_bodies": True},
    "bodies": {"filters": [{"agent": "d"}]},
    "heads": {"filters": [{"agent": "h"}, {"agent": "o", "mode": "observe"}]},
    "patient": {"filters": [A], "request_body": "stream", "upstream": "impatient"},
}


def chunked(*pieces: bytes) -> bytes:
    """As chunks, with the last one."""
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


def head(path: str, *fields: str, method: str = "POST") -> bytes:
    return "\r\n".join((f"{method} {path} HTTP/1.1", "Host: a.example", *fields, "", "")).encode()


def split(message: bytes) -> tuple[dict[str, list[str]], bytes]:
    """(fields by lower-case name, body without its framing) of a request as the upstream got it."""
    top, _, body = message.partition(b"\r\n\r\n")
    fields: dict[str, list[str]] = {}
    for line in top.decode("latin-1").split("\r\n")[1:]:
        name, _, value = line.partition(": ")
        fields.setdefault(name.lower(), []).append(value)
    if "transfer-encoding" in fields:
        whole = one_chunk(message).partition(b"\r\n\r\n")[2]
        body = b"" if whole.startswith(b"0\r\n") else whole.partition(b"\r\n")[2].rpartition(b"\r\n0\r\n\r\n")[0]
    return fields, body


def payload(answer: Answer) -> bytes:
    """The body of an answer without its framing."""
    return split(answer.head + b"\r\n\r\n" + answer.body)[1]


class BodyWorld:
    """Everything running; `reset` between tests."""

    def __init__(self, tmp: Path) -> None:
        self.upstream = ScriptedUpstream()
        self.on: dict[str, Callable[[dict[str, Any]], dict[str, Any] | None]] = {}
        common = {"timeout_ms": 700, "circuit_breaker": {"failure_threshold": 1000}}
        limits = {"max_request_body_bytes": LIMIT, "max_response_body_bytes": LIMIT}
        agents: list[dict[str, Any]] = []
        for name in NAMES:
            secret = tmp / f"{name}.secret"
            secret.write_text(f"secret-{name}")
            secret.chmod(0o600)
            agents.append(
                {
                    "name": name,
                    "protocol": "zmq-v2",
                    "secret_file": str(secret),
                    "events": ONLY.get(name, EVENTS),
                    **common,
                    **limits,
                }
            )
        self.v1_endpoint = f"ipc://{tempfile.mkdtemp(prefix='wg-', dir=tmp)}/c.sock"
        agents.append(
            {"name": "c", "protocol": "zmq-v1", "endpoint": self.v1_endpoint, "events": EVENTS, **common, **limits}
        )
        routes = [
            {"name": name, "upstream": "up", "match": {"path_prefix": f"/{name}/"}, **route}
            for name, route in ROUTES.items()
        ]
        config = proxy_config(
            self.upstream.address,
            routes=routes,
            agents=agents,
            upstreams=[
                {"name": "impatient", "targets": [{"address": self.upstream.address}], "response_timeout_s": 1.0}
            ],
            server={"workers": 1, "max_body_bytes": 4_000_000},
        )
        self.system = System(config, tmp).__enter__()
        self.agents: dict[str, Any] = {}
        for name in NAMES:
            self.agents[name] = V2Agent(
                self.system.agents_endpoint,
                name,
                ONLY.get(name, EVENTS),
                self._decide(name),
                instance=f"{name}-1",
                secret=f"secret-{name}".encode(),
            )
        self.agents["c"] = V1Agent(self.v1_endpoint, self._decide("c"))
        for agent in self.agents.values():
            assert agent.ready.wait(10)
        assert self.system.agentd is not None
        self.system.agentd.wait_for("connection ready")  # a v1 agent cannot tell that its answer was read
        self.system.registered()

    def _decide(self, name: str) -> Callable[[dict[str, Any]], dict[str, Any] | None]:
        def decide(event: dict[str, Any]) -> dict[str, Any] | None:
            wish = self.on.get(name)
            return ALLOW if wish is None else wish(event)

        return decide

    def reset(self) -> None:
        self.on.clear()
        self.upstream.seen.clear()
        self.upstream.cut.clear()
        self.upstream.broken.clear()
        self.upstream.is_hasty = False
        self.upstream.reply = lambda request: [b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"]
        for agent in self.agents.values():
            agent.seen.clear()
            agent.cancelled.clear()

    def close(self) -> None:
        for agent in self.agents.values():
            agent.close()
        self.system.__exit__()
        self.upstream.close()

    def client(self) -> Client:
        return Client(self.system.address, 10)

    def post(self, path: str, *pieces: bytes, fields: Iterable[str] = (), is_chunked: bool = False) -> Answer:
        """A POST in one go; chunked, or with Content-Length."""
        with self.client() as client:
            if is_chunked:
                client.send(head(path, *fields, "Transfer-Encoding: chunked") + chunked(*pieces))
            else:
                body = b"".join(pieces)
                client.send(head(path, *fields, f"Content-Length: {len(body)}") + body)
            return client.answer()

    def events(self, agent: str, event_type: str) -> list[dict[str, Any]]:
        """What an agent was shown, of one type."""
        return [event for event in list(self.agents[agent].seen) if event["event_type"] == event_type]

    def completion(self, uri: str, agent: str = "a") -> dict[str, Any]:
        """request_complete of the one request with this target; those of earlier tests may come late."""
        found: list[dict[str, Any]] = []

        def look() -> bool:
            found[:] = [event for event in self.events(agent, "request_complete") if event["uri"] == uri]
            return bool(found)

        wait_until(look, 10)
        assert len(found) == 1
        return found[0]

    def wait_for(self, agent: str, event_type: str, count: int = 1) -> list[dict[str, Any]]:
        wait_until(lambda: len(self.events(agent, event_type)) >= count, 10)
        return self.events(agent, event_type)

    def records(self, answer: Answer) -> list[dict[str, Any]]:
        """The audit's records of the request with this answer."""
        correlation_id = split(answer.head + b"\r\n\r\n")[0]["x-correlation-id"][0]
        return [record for record in self.system.audit() if record["correlation_id"] == correlation_id]


def chunk_is(event: dict[str, Any], direction: str = "request") -> bool:
    return bool(event["event_type"] == f"{direction}_body_chunk")


def edit(event: dict[str, Any], action: str, body: bytes = b"") -> dict[str, Any]:
    """An allow that changes the event's chunk."""
    field = "request_body_mutation" if chunk_is(event) else "response_body_mutation"
    verdict: dict[str, Any] = {"decision": "allow", field: {"chunk_index": event["chunk_index"], "action": action}}
    return {**verdict, "body": body} if body else verdict


NEEDS_MORE = {"decision": "allow", "needs_more": True}
BLOCK = {"decision": {"block": {"status": 403, "body": "no"}}}


class Gate(threading.Event):
    """An answer of an agent's that waits for the test."""

    def hold(self, verdict: dict[str, Any]) -> dict[str, Any]:
        self.wait(10)
        return verdict


def as_json(value: Any) -> bytes:
    return json.dumps(value).encode()
