"""Limits in the real product: two workers, one count. Buckets, concurrency, connections, identity, the commands."""

import json
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from proxy.cli import main
from shared.clock import now_ns
from shared.metrics import L_NOW, W_OPEN_CONNECTIONS
from shared.segment import ProxyView
from shared.wire.segment import slot_area
from tests.e2e.agents import ALLOW, V2Agent
from tests.http.corpus import Answer, Client, Upstream
from tests.product import Proxy, System, proxy_config
from tests.support import process_state, wait_until

NEVER = 0.000_001  # refill_rate: nothing comes back while a test runs
GET = b"GET %b HTTP/1.1\r\nHost: x\r\n%b\r\n"


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    made = Upstream()
    yield made
    made.close()


def bucket(name: str = "all", key: str = "global", capacity: int = 3, refill_rate: float = NEVER) -> dict[str, Any]:
    return {"name": name, "key": key, "capacity": capacity, "refill_rate": refill_rate}


def route(**keys: Any) -> dict[str, Any]:
    return {"name": "any", "upstream": "up", **keys}


def config(upstream: Upstream, *routes: dict[str, Any], **server: Any) -> str:
    return proxy_config(upstream.address, server={"workers": 2, **server}, routes=routes or (route(),))


def field(answer: Answer, name: bytes) -> bytes | None:
    for line in answer.head.split(b"\r\n")[1:]:
        given, _, value = line.partition(b": ")
        if given.lower() == name:
            return value
    return None


def get(client: Client, path: bytes = b"/", fields: bytes = b"") -> Answer:
    client.send(GET % (path, fields))
    return client.answer()


def once(proxy: Proxy, fields: bytes = b"", path: bytes = b"/") -> Answer:
    with Client(proxy.address) as client:
        return get(client, path, fields)


def one_on_each_worker(proxy: Proxy) -> list[Client]:
    """A connection to each worker: while the others are stopped, only one can accept it."""
    view = ProxyView(str(proxy.runtime / "proxy.seg"))
    assert view.attach()
    clients = []
    for worker in view.workers():
        others = [pid for pid in proxy.worker_pids() if pid != worker.pid]
        cell = slot_area(worker.slot) + W_OPEN_CONNECTIONS
        for pid in others:
            os.kill(pid, signal.SIGSTOP)
            wait_until(lambda pid=pid: process_state(pid) == "T")  # type: ignore[misc]
        before = view._cells[cell]
        clients.append(Client(proxy.address))
        wait_until(lambda cell=cell, before=before: view._cells[cell] > before)  # type: ignore[misc]
        for pid in others:
            os.kill(pid, signal.SIGCONT)
    view.close()
    return clients


def until_under_way(proxy: Proxy, name: str, count: int) -> None:
    """Until the limit counts so many: asking meanwhile would count, too."""
    view = ProxyView(str(proxy.runtime / "proxy.seg"))
    assert view.attach()
    names = [row.name for row in view.limits()]
    wait_until(lambda: view.limit_counts(view.limits())[names.index(name)][L_NOW] == count)
    view.close()


def test_exactly_the_capacity_passes_over_all_workers(upstream: Upstream, tmp_path: Path) -> None:
    """Eight clients on two workers ask 400 times for 50 tokens."""
    with Proxy(config(upstream, route(rate_limits=[bucket(capacity=50)])), tmp_path) as proxy:
        clients = [client for _ in range(4) for client in one_on_each_worker(proxy)]
        with ThreadPoolExecutor(8) as pool:
            rounds = pool.map(lambda client: Counter(get(client).status for _ in range(50)), clients)
        assert sum(rounds, Counter()) == {200: 50, 429: 350}
        for client in clients:
            client.close()
    assert len(upstream.seen) == 50


def test_what_a_limited_response_and_a_refusal_say(upstream: Upstream, tmp_path: Path) -> None:
    """RateLimit fields of the most restrictive limit on both; Retry-After rounded up; a keep-alive that goes on."""
    limits = [bucket("wide", capacity=100), bucket("narrow", "header:X-Key", 2, 0.01)]
    with Proxy(config(upstream, route(rate_limits=limits)), tmp_path) as proxy, Client(proxy.address) as client:
        first = get(client, fields=b"X-Key: a\r\n")
        assert first.status == 200
        assert [field(first, b"ratelimit-" + name) for name in (b"limit", b"remaining")] == [b"2", b"1"]
        assert 90 <= int(field(first, b"ratelimit-reset") or 0) <= 100
        assert get(client, fields=b"x-key: a\r\n").status == 200
        refused = get(client, fields=b"X-Key: a\r\n")
        assert refused.status == 429
        assert refused.body.startswith(b"too many requests\ncorrelation id: ")
        assert 90 <= int(field(refused, b"retry-after") or 0) <= 100
        assert field(refused, b"ratelimit-limit") == b"2"
        assert field(refused, b"ratelimit-remaining") == b"0"
        assert 190 <= int(field(refused, b"ratelimit-reset") or 0) <= 200
        client.send(b"HEAD / HTTP/1.1\r\nHost: x\r\nX-Key: a\r\n\r\n")
        assert client.answer(is_head=True).status == 429
        assert get(client, fields=b"X-Key: b\r\n").status == 200
        wait_until(lambda: "limit any/narrow" in proxy.child.output(), 5)


def test_keys(upstream: Upstream, tmp_path: Path) -> None:
    """Client behind trusted proxies, IPv6 by /64, cookie, and one bucket for all who leave their field out."""
    routes = [
        {"name": n, "upstream": "up", "match": {"path_prefix": f"/{n}"}, "rate_limits": [bucket("l", key, 1)]}
        for n, key in (("ip", "client_ip"), ("cookie", "cookie:sid"), ("header", "header:X-Api-Key"))
    ]
    with Proxy(config(upstream, *routes), tmp_path) as proxy:

        def statuses(path: bytes, *fields: bytes) -> list[int]:
            return [once(proxy, line + b"\r\n" if line else b"", path).status for line in fields]

        forwarded = [b"X-Forwarded-For: " + ip for ip in (b"10.0.0.1", b"10.0.0.2", b"10.0.0.1")]
        assert statuses(b"/ip", *forwarded) == [200, 200, 429]
        v6 = [b"X-Forwarded-For: " + ip for ip in (b"2001:db8::1", b"2001:db8:0:1::1", b"2001:db8::2:3:4:5")]
        assert statuses(b"/ip", *v6) == [200, 200, 429]
        assert statuses(b"/cookie", b"Cookie: a=1; sid=x", b"Cookie: sid=y", b"Cookie: sid=x") == [200, 200, 429]
        assert statuses(b"/cookie", b"", b"Cookie: xsid=x", b"Cookie: sid=") == [200, 429, 200]
        assert statuses(b"/header", b"", b"X-Other: 1", b"X-Api-Key: ", b"X-Api-Key: 1") == [200, 429, 200, 200]


def test_concurrency_counts_over_all_workers(upstream: Upstream, tmp_path: Path) -> None:
    """Held requests on both workers count together; one that ends makes room; a client's share is its own."""
    limits = route(max_concurrent=3, max_concurrent_per_client=2)
    held = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nX-Forwarded-For: %b\r\n\r\n"
    with Proxy(config(upstream, limits), tmp_path) as proxy:
        holders = one_on_each_worker(proxy)
        asking = one_on_each_worker(proxy)
        for client in holders:
            client.send(held % b"10.0.0.1")
        own = [b"X-Forwarded-For: 10.0.0.1\r\n", b"X-Forwarded-For: 10.0.0.2\r\n"]
        until_under_way(proxy, "any/max_concurrent", 2)
        assert get(asking[0], fields=own[0]).status == 429
        assert get(asking[1], fields=own[0]).status == 429
        assert get(asking[1], fields=own[1]).status == 200
        until_under_way(proxy, "any/max_concurrent", 2)  # an answer leaves a moment before its place is free
        third = Client(proxy.address)
        third.send(held % b"10.0.0.2")
        until_under_way(proxy, "any/max_concurrent", 3)
        assert get(asking[0], fields=own[1]).status == 503
        refused = get(asking[1], fields=own[1])
        assert (refused.status, field(refused, b"retry-after")) == (503, b"1")
        assert refused.body.startswith(b"too many requests under way\n")
        holders[0].send(b"x")
        assert holders[0].answer().status == 200
        for client in asking:
            until_under_way(proxy, "any/max_concurrent", 2)
            assert get(client, fields=own[0]).status == 200
        third.close()  # a client that leaves gives its place back, too
        until_under_way(proxy, "any/max_concurrent", 1)
        assert get(asking[0], fields=own[1]).status == 200
        for client in (*holders, *asking):
            client.close()


def test_a_killed_worker_gives_back_what_it_held(upstream: Upstream, tmp_path: Path) -> None:
    """Its requests under way are over, and it leaves no bucket locked."""
    limits = route(max_concurrent=1, rate_limits=[bucket(capacity=1000)])
    with Proxy(config(upstream, limits), tmp_path) as proxy:
        clients = one_on_each_worker(proxy)
        clients[0].send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n")
        until_under_way(proxy, "any/max_concurrent", 1)
        assert get(clients[1]).status == 503
        view = ProxyView(str(proxy.runtime / "proxy.seg"))
        assert view.attach()
        os.kill(view.workers()[0].pid, signal.SIGKILL)
        view.close()
        until_under_way(proxy, "any/max_concurrent", 0)
        assert get(clients[1]).status == 200
        for client in clients:
            client.close()


def test_connections_are_counted_over_all_workers(upstream: Upstream, tmp_path: Path) -> None:
    """One too many is closed without an answer, and one that closes makes room."""
    server = {"max_connections": 3, "max_connections_per_client": 2, "trusted_proxies": []}
    with Proxy(config(upstream, **server), tmp_path) as proxy:
        clients = one_on_each_worker(proxy)
        assert [get(client).status for client in clients] == [200, 200]
        with Client(proxy.address) as third:
            assert third.is_closed()
        wait_until(lambda: "limit server:max_connections_per_client" in proxy.child.output(), 5)
        clients.pop().close()

        def is_served() -> bool:
            with Client(proxy.address) as client:
                client.send(GET % (b"/", b""))
                try:
                    return client.answer().status == 200
                except (EOFError, ConnectionResetError):
                    return False

        wait_until(is_served)
        clients[0].close()


def test_the_whole_servers_connections(upstream: Upstream, tmp_path: Path) -> None:
    """Trusted proxies are not limited as clients are, but they do count."""
    with Proxy(config(upstream, max_connections=2, max_connections_per_client=1), tmp_path) as proxy:
        clients = one_on_each_worker(proxy)
        assert [get(client).status for client in clients] == [200, 200]
        with Client(proxy.address) as third:
            assert third.is_closed()
        for client in clients:
            client.close()


def limited_agent(event: dict[str, Any]) -> dict[str, Any]:
    who = event["headers"].get("x-user")
    return {**ALLOW, "routing_metadata": {"identity": who[0]}} if who else ALLOW


def command(system: Proxy, *args: str) -> Result:
    result = CliRunner().invoke(main, [*args, "--runtime-dir", str(system.runtime)])
    assert result.exit_code == 0, result.output
    return result


def test_identity_comes_from_the_agents(upstream: Upstream, tmp_path: Path) -> None:
    """After their decision, per identity, and one bucket for all whom nobody knows. Calls have a limit, too."""
    agents = [{"name": "who", "protocol": "zmq-v2", "events": ["request_headers"], "timeout_ms": 5000},
              {"name": "slow", "protocol": "zmq-v2", "secret_file": str(tmp_path / "s"),
               "rate_limit": {"capacity": 2, "refill_rate": NEVER}}]  # fmt: skip
    agents[0]["secret_file"] = str(tmp_path / "s")
    (tmp_path / "s").write_text("secret")
    (tmp_path / "s").chmod(0o600)
    routes = [
        route(rate_limits=[bucket("person", "identity", 2)], filters=[{"agent": "who"}]),
        {"name": "s", "upstream": "up", "match": {"path_prefix": "/s"}, "filters": [{"agent": "slow"}]},
    ]
    text = proxy_config(upstream.address, server={"workers": 2}, routes=routes, agents=agents)
    with (
        System(text, tmp_path) as system,
        V2Agent(system.agents_endpoint, "who", ["request_headers"], limited_agent, secret=b"secret") as agent,
        V2Agent(system.agents_endpoint, "slow", ["request_headers"], lambda _: ALLOW, secret=b"secret") as slow,
    ):
        assert agent.ready.wait(10)
        assert slow.ready.wait(10)
        system.registered()
        clients = one_on_each_worker(system)
        ann, bob = b"X-User: ann\r\n", b"X-User: " + b"b" * 1000 + b"\r\n"
        assert [get(client, fields=ann).status for client in (*clients, *clients)] == [200, 200, 429, 429]
        assert [get(client, fields=bob).status for client in (*clients, *clients)] == [200, 200, 429, 429]
        assert [get(client).status for client in (*clients, *clients)] == [200, 200, 429, 429]
        refused = get(clients[0], fields=ann)
        assert field(refused, b"ratelimit-limit") == b"2"
        assert len(upstream.seen) == 6
        wait_until(lambda: any(r.get("reason") == "limit any/person" for r in system.audit()))
        (record,) = [r for r in system.audit() if r.get("reason") == "limit any/person"][:1]
        assert (record["decision"], record["status"], record["source"]) == ("refused", 429, "worker")

        assert [get(clients[0], b"/s").status for _ in range(3)] == [200, 200, 503]
        command(system, "limits", "set", "agent:slow", "--capacity", "5", "--refill-rate", "1000")
        wait_until(lambda: get(clients[0], b"/s").status == 200)
        found = json.loads(command(system, "limits", "list", "--json").stdout)["limits"]
        (calls,) = [limit for limit in found if limit["name"] == "agent:slow"]
        assert (calls["capacity"], calls["configured_capacity"], calls["overridden"]) == (5, 2, True)
        assert calls["refused"] >= 1
        for client in clients:
            client.close()


def test_commands_act_on_all_workers_until_a_reload(upstream: Upstream, tmp_path: Path) -> None:
    """set, reset, overrides, --keep; how long a change takes is what the median of 20 says."""
    limits = [bucket("a", capacity=1), bucket("b", "header:X-Key", 1000)]
    text = config(upstream, route(rate_limits=limits, max_concurrent=10), max_connections=100)
    with System(text, tmp_path) as system:
        clients = one_on_each_worker(system)
        assert [get(client).status for client in (*clients, *clients)] == [200, 429, 429, 429]
        listed = command(system, "limits", "list").stdout.splitlines()
        assert listed[0].split()[:3] == ["NAME", "KEY", "CAPACITY"]
        assert {line.split()[0] for line in listed[1:]} == {
            "any/a", "any/b", "any/max_concurrent", "server:max_connections"
        }  # fmt: skip
        (row,) = [line.split() for line in listed if line.startswith("any/a")]
        assert row == ["any/a", "global", "1", "1e-06/s", "1", "1", "3", "0", "-"]
        assert command(system, "overrides").stdout == "nothing differs from the configuration\n"

        took = []
        for _ in range(20):
            command(system, "limits", "reset", "any/a")
            begin = now_ns()
            assert get(clients[0]).status == 200
            assert get(clients[1]).status == 429
            took.append(now_ns() - begin)
        assert sorted(took)[10] < 100_000_000

        command(system, "limits", "set", "any/a", "--capacity", "3", "--refill-rate", "1000")
        deadline = time.monotonic() + 5
        assert get(clients[0]).status in (200, 429)
        while get(clients[1]).status != 200:
            assert time.monotonic() < deadline
        assert field(get(clients[1]), b"ratelimit-limit") == b"3"
        command(system, "limits", "set", "any/b", "--capacity", "2", "--keep")
        command(system, "breaker", "list")
        lines = command(system, "overrides").stdout.splitlines()
        assert [line.split() for line in lines[1:]] == [
            ["limit", "any/a", "capacity", "1", "3", "no"],
            ["limit", "any/a", "refill_rate", "1e-06", "1000", "no"],
            ["limit", "any/b", "capacity", "1000", "2", "yes"],
        ]

        pids = set(system.worker_pids())
        os.kill(system.child.pid, signal.SIGHUP)
        wait_until(lambda: not pids & set(system.worker_pids()) and len(system.worker_pids()) == 2, 20)
        for client in clients:
            client.close()
        lines = command(system, "overrides").stdout.splitlines()
        assert [line.split()[:2] + line.split()[-2:] for line in lines[1:]] == [["limit", "any/b", "2", "yes"]]
        answers = [once(system) for _ in range(4)]
        assert 429 in [answer.status for answer in answers], "the configuration's single token again"
        assert any(record.get("phase") == "limit.set" for record in system.audit())


def test_what_cannot_be_set(upstream: Upstream, tmp_path: Path) -> None:
    """Unknown names, numbers out of range, a rate for something without one."""
    text = config(upstream, route(rate_limits=[bucket("a")], max_concurrent=10))
    with System(text, tmp_path) as system:

        def refused(*args: str) -> str:
            result = CliRunner().invoke(main, ["limits", *args, "--runtime-dir", str(system.runtime)])
            assert result.exit_code in (1, 2), result.output
            return result.stderr

        assert "there is no limit 'any/b'; there are: any/max_concurrent, any/a" in refused("reset", "any/b")
        assert "counts what is under way" in refused("set", "any/max_concurrent", "--refill-rate", "1")
        assert "--capacity" in refused("set", "any/a", "--capacity", "0")
        assert "--refill-rate" in refused("set", "any/a", "--refill-rate", "0")
        assert "give --capacity" in refused("set", "any/a")
        assert "there is no limit 'agent:x'" in refused("set", "agent:x", "--capacity", "1")
