"""Reloads and drains with real processes under traffic: what is changed acts, and not one request fails."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from proxy.cli.admin_client import AdminClient
from shared.runtime import Runtime
from shared.wire import admin as wire
from tests.e2e.agents import ALLOW, Decide, V1Agent, V2Agent
from tests.http.corpus import Answer, Client, Upstream
from tests.product import System, proxy_config
from tests.support import wait_until


class Load:
    """Keep-alive connections, a few to each path, that ask without a pause; `failed` must stay empty."""

    def __init__(self, address: tuple[str, int], paths: list[str], lanes: int = 3) -> None:
        self.address = address
        self.answers: Counter[str] = Counter()
        self.failed: list[str] = []
        self._paths = len(paths)
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._main, args=(path,), daemon=True) for path in paths for _ in range(lanes)
        ]
        for thread in self._threads:
            thread.start()

    def _main(self, path: str) -> None:
        client: Client | None = None
        while not self._stop.is_set():
            try:
                client = client or Client(self.address, 10)
                client.send(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
                answer = client.answer()
            except (OSError, EOFError) as error:
                self.failed.append(f"{path}: {error!r}")
                client = None
                continue
            if answer.status != 200:
                self.failed.append(f"{path}: {answer.status} {answer.body[:200]!r}")
            self.answers[path] += 1
            if b"connection: close" in answer.head.lower():
                client.close()
                client = None
            self._stop.wait(0.002)
        if client is not None:
            client.close()

    def more(self, count: int = 50) -> None:
        """Until each path has been answered so many times more."""
        before = self.answers.copy()
        paths = list(before)
        wait_until(lambda: all(self.answers[path] >= before[path] + count for path in paths), 20)

    def __enter__(self) -> "Load":
        wait_until(lambda: len(self.answers) == self._paths, 10)
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(10)


ROUTES: list[dict[str, Any]] = [
    {"name": "free", "upstream": "up"},
    {"name": "a", "upstream": "up", "match": {"path_prefix": "/a"}, "filters": [{"agent": "a"}]},
    {"name": "b", "upstream": "up", "match": {"path_prefix": "/b"}, "filters": [{"agent": "b"}]},
    {"name": "old", "upstream": "up", "match": {"path_prefix": "/old"}, "filters": [{"agent": "old"}]},
]


class World:
    """Agents a and b dial in, `old` is dialled; a route each."""

    def __init__(self, tmp: Path) -> None:
        self.tmp = tmp
        self.upstream = Upstream()
        self.agents: list[V2Agent | V1Agent] = []
        self.rows: dict[str, dict[str, Any]] = {name: self.row(name) for name in ("a", "b")}
        self.rows["old"] = {
            "name": "old", "protocol": "zmq-v1", "timeout_ms": 2_000, "endpoint": f"ipc://{tmp}/old-1",
            "connections": 2,
        }  # fmt: skip
        self.routes = list(ROUTES)
        self.audit = str(tmp)
        self.listen = "127.0.0.1:0"
        self.system = System(self._text(), tmp)
        self.system.__enter__()
        self.v1(f"ipc://{tmp}/old-1")
        self.v2("a")
        self.v2("b")
        self.system.registered()
        wait_until(lambda: all(self.get(path).status == 200 for path in ("/", "/a", "/b", "/old")), 10)

    def row(self, name: str) -> dict[str, Any]:
        """A v2 agent of the configuration, with a secret: they all run as one user."""
        path = self.tmp / f"{name}.secret"
        path.write_text(name * 40)
        path.chmod(0o600)
        events = ["request_headers", "response_headers"]  # so that a request belongs to one instance to its end
        settings = {"timeout_ms": 2_000, "events": events, "secret_file": str(path)}
        return {"name": name, "protocol": "zmq-v2", **settings}

    def _text(self) -> str:
        return proxy_config(
            self.upstream.address,
            server={"workers": 2, "listen": [self.listen]},
            routes=self.routes,
            agents=list(self.rows.values()),
        )

    def write(self) -> None:
        """The configuration as it is meant now."""
        tail = f'\n[runtime]\ndir = "{self.system.runtime}"\n[audit]\npath = "{self.audit}"\n'
        self.system.config.write_text(self._text() + tail)

    def v2(self, name: str, instance: str = "t-1", decide: Decide = lambda event: ALLOW) -> V2Agent:
        secret, events = (name * 40).encode(), self.rows[name]["events"]
        agent = V2Agent(self.system.agents_endpoint, name, events, decide, instance=instance, secret=secret)
        self.agents.append(agent)
        assert agent.ready.wait(10)
        return agent

    def v1(self, endpoint: str) -> V1Agent:
        agent = V1Agent(endpoint, lambda event: ALLOW)
        self.agents.append(agent)
        return agent

    @property
    def client(self) -> AdminClient:
        return AdminClient(Runtime(str(self.system.runtime)), 5)

    def agent(self, name: str) -> wire.Agent:
        return next(agent for agent in self.client.agents().agents if agent.name == name)

    def sessions(self, name: str) -> dict[str, str]:
        return {instance.name: instance.session for instance in self.agent(name).instances}

    def component(self, name: str) -> wire.Component:
        return next(c for c in self.client.health().components if c.name == name)

    def get(self, path: str) -> Answer:
        with Client(self.system.address) as client:
            client.send(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
            return client.answer()

    def cli(self, *args: str) -> subprocess.CompletedProcess[str]:
        command = [str(Path(sys.executable).parent / "wardgate"), *args, "--config", str(self.system.config)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    def load(self, *paths: str) -> Load:
        return Load(self.system.address, list(paths) or ["/", "/a", "/b", "/old"])

    def close(self) -> None:
        for agent in self.agents:
            agent.close()
        self.system.__exit__()
        self.upstream.close()


@pytest.fixture
def world(short_tmp_dir: Path) -> Iterator[World]:
    made = World(short_tmp_dir)
    yield made
    made.close()


def test_a_reload_under_load_loses_nothing(world: World) -> None:
    """Changed agents get their settings, untouched ones are left alone, new ones are asked; 0 failed requests."""
    untouched, changed = world.sessions("b"), world.sessions("a")
    configs = [agent.config for agent in world.agents if isinstance(agent, V2Agent)]
    second = world.v1(f"ipc://{world.tmp}/old-2")
    with world.load() as load:
        load.more()
        world.rows["a"] |= {"config": {"rule": 2}, "max_concurrent_calls": 7, "timeout_ms": 1_900}
        world.rows["old"] |= {"endpoint": f"ipc://{world.tmp}/old-2", "connections": 3}
        world.rows["new"] = world.row("new")
        route = {"name": "new", "upstream": "up", "match": {"path_prefix": "/new"}, "filters": [{"agent": "new"}]}
        world.routes.append(route)
        world.write()
        result = world.cli("reload", "--json")
        assert result.returncode == 0, result.stdout + result.stderr
        new = world.v2("new")
        load.more()
    assert load.failed == []
    document = json.loads(result.stdout)
    assert (document["ok"], document["agentd"]["result"], document["proxy"]["result"]) == (True, "applied", "applied")
    assert document["digest"] == document["agentd"]["digest"] == document["proxy"]["digest"]
    assert world.sessions("b") == untouched
    assert world.sessions("a") == changed, "its settings changed without a new session"
    a, b = (agent for agent in world.agents if isinstance(agent, V2Agent) and agent is not new)
    assert a.config["config"] == {"rule": 2}
    assert b.config == configs[1]
    assert world.agent("a").max_concurrent_calls == 7
    assert second.seen, "asked at its new endpoint"
    wait_until(lambda: len(world.agent("old").instances) == 3)
    assert world.get("/new").status == 200
    assert new.seen
    wait_until(lambda: world.component("config").status is wire.Status.HEALTHY)


def test_an_agent_that_is_removed_serves_the_old_workers_to_the_end(world: World) -> None:
    """agentd has reloaded and the proxy has not: its workers still ask who is gone, and are answered."""
    with world.load() as load:
        load.more()
        world.routes = [{key: row[key] for key in row if key != "filters"} for row in world.routes]
        for name in ("a", "old"):
            del world.rows[name]
        world.write()
        (world.tmp / "a.secret").unlink()  # whoever removes an agent removes that as well
        assert world.system.agentd is not None
        world.system.agentd.signal(signal.SIGHUP)
        wait_until(lambda: world.client.reloads().agentd.applied == 1)
        load.more()
        assert {"a", "old"} <= {agent.name for agent in world.client.agents().agents}
        mismatch = world.component("config")
        assert (mismatch.status, "the proxy" in mismatch.message) == (wire.Status.DEGRADED, True)
        world.system.child.signal(signal.SIGHUP)
        wait_until(lambda: (found := world.client.reloads().proxy) is not None and found.applied == 1, 20)
        wait_until(lambda: [agent.name for agent in world.client.agents().agents] == ["b"], 10)
        load.more()
    assert load.failed == []
    wait_until(lambda: "drained" in world.system.agentd.output() if world.system.agentd else False)
    a = world.agents[1]  # after `old`
    assert isinstance(a, V2Agent)
    wait_until(lambda: [refusal["code"] for refusal in a.refused][-1:] == ["unknown_agent"])


@pytest.mark.parametrize(
    ("break_it", "why"),
    [
        (lambda world: world.rows["a"].update(timeout_ms=0), "agents[a].timeout_ms"),
        (lambda world: setattr(world, "audit", "/proc/nowhere"), "audit.path: /proc/nowhere/audit.jsonl"),
        (lambda world: setattr(world, "listen", "127.0.0.1:1"), "server.listen: changed, and that needs a restart"),
    ],
    ids=["bad", "audit", "restart"],
)
def test_what_is_refused_changes_nothing_and_says_why(
    world: World, break_it: Callable[[World], object], why: str
) -> None:
    """In the log, in health, in the metrics, in the command's words; a good file makes it well again."""
    sessions, before = world.sessions("a"), world.client.reloads().agentd.digest
    break_it(world)
    world.rows["b"]["max_queue"] = 77
    world.write()
    assert world.system.agentd is not None
    with world.load("/a", "/old") as load:
        world.system.agentd.signal(signal.SIGHUP)
        wait_until(lambda: world.client.reloads().agentd.refused == 1)
        load.more(20)
    assert load.failed == []
    found = world.client.reloads().agentd
    assert (found.result, found.digest, why in found.message) == ("refused", before, True), found
    assert why in world.system.agentd.output()
    assert world.agent("b").max_queue == 200
    assert world.sessions("a") == sessions
    component = world.component("config")
    assert component.status is wire.Status.DEGRADED
    assert "the last reload of agentd was refused" in component.message
    assert why in component.message
    result = world.cli("reload")
    assert result.returncode == (2 if "timeout_ms" in why else 1)
    assert why in result.stderr
    proxy = world.client.reloads().proxy
    assert proxy is not None
    assert proxy.begun == 0, "the proxy was not told"
    page = world.client._ask("GET", "/metrics")[1].decode()
    assert 'wardgate_config_last_reload_successful{daemon="agentd"} 0' in page
    assert 'wardgate_config_last_reload_successful{daemon="proxy"} 1' in page


def test_the_proxy_tells_how_its_reload_went(world: World) -> None:
    """A HUP to the arbiter alone, on a file that it refuses: health says so, also when agentd is dead."""
    world.listen = "127.0.0.1:1"
    world.write()
    world.system.child.signal(signal.SIGHUP)
    wait_until(lambda: (found := world.client.reloads().proxy) is not None and found.refused == 1)
    component = world.component("config")
    assert component.status is wire.Status.DEGRADED
    assert "the last reload of the proxy was refused" in component.message
    assert "server.listen: changed, and that needs a restart of the proxy" in component.message
    assert world.system.agentd is not None
    world.system.agentd.kill()
    result = world.cli("health", "--json")
    assert result.returncode == 3
    config = next(c for c in json.loads(result.stdout)["components"] if c["name"] == "config")
    assert "the last reload of the proxy was refused" in config["message"]
    result = world.cli("reload")
    assert result.returncode == 3
    assert "agentd is not running" in result.stderr


def test_an_instance_is_drained_under_load(world: World) -> None:
    """Two instances, one leaves: what it had is answered, nothing new goes there, no request fails."""
    slow = threading.Event()

    def decide(event: Any) -> Any:
        slow.wait(0.01)  # so that calls are under way when the drain begins
        return ALLOW

    leaving = world.v2("a", "t-2", decide)
    with world.load("/a", "/b") as load:
        load.more()
        wait_until(lambda: leaving.seen)
        result = world.cli("agents", "drain", "a/t-2", "--json")
        assert result.returncode == 0, result.stdout + result.stderr
        (row,) = json.loads(result.stdout)["drains"]
        assert (row["agent"], row["instance"], row["state"], row["calls"], row["pinned"]) == (
            "a",
            "t-2",
            "drained",
            0,
            0,
        )
        seen = len(leaving.seen)
        assert list(world.sessions("a")) == ["t-1"]
        load.more()
        wait_until(lambda: [refusal["code"] for refusal in leaving.refused][-1:] == ["drained"], 10)
        assert len(leaving.seen) == seen
    assert load.failed == []
    changes = [r for r in world.system.audit() if r["decision"] == "admin" and r["phase"] == "agent.drain"]
    assert [(r["decided_by"].split()[:2], r["agents"][0]["agent"]) for r in changes] == [
        (["uid", str(os.getuid())], "a")
    ]


def test_the_only_instance_is_replaced_by_one_started_before(world: World) -> None:
    """Alone it may not leave; with its successor there, it leaves and no request fails."""
    refused = world.cli("agents", "drain", "a")
    assert refused.returncode == 1
    assert "no other instance of a takes calls" in refused.stderr
    assert world.cli("agents", "drain", "a/nobody").returncode == 1
    v1 = world.cli("agents", "drain", "old")
    assert v1.returncode == 1
    assert "zmq-v1" in v1.stderr
    with world.load("/a") as load:
        load.more()
        world.v2("a", "t-2")
        unnamed = world.cli("agents", "drain", "a")
        assert unnamed.returncode == 1
        assert "Name one of them" in unnamed.stderr
        assert world.cli("agents", "drain", "a/t-1").returncode == 0
        assert list(world.sessions("a")) == ["t-2"]
        load.more()
    assert load.failed == []


def test_a_drain_that_takes_too_long_is_cut_and_says_so(world: World) -> None:
    """A call that is never answered holds the drain for its time; then the exit code is 1."""
    world.v2("b", "t-2", lambda event: None)
    with Client(world.system.address, 10) as client:
        for _ in range(2):  # one of them goes to the instance that does not answer
            client.send(b"GET /b HTTP/1.1\r\nHost: a\r\n\r\n")
        wait_until(lambda: any(i.name == "t-2" and i.in_flight for i in world.agent("b").instances))
        began = time.monotonic()
        result = world.cli("agents", "drain", "b/t-2", "--timeout", "0.3")
        assert time.monotonic() - began < 10
    assert result.returncode == 1
    assert "cut after 0.3 s with 1 calls" in result.stdout
