"""Requests that carry the same ids of a client's choice get their own verdicts, however many there are at once."""

import asyncio
import contextlib
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from shutil import rmtree

import pytest
import uvloop

from tests.e2e.hostile import Pipeline, is_own, metrics, secret_file, value
from tests.http.corpus import Upstream
from tests.product import System, proxy_config
from tests.support import Child, python, wait_until

TIMEOUT_MS = 400
LATE_MS = 500
CONNECTIONS, DEPTH = 64, 8


class World:
    """/v2 and /v1 ask an agent that answers in time, /late2 and /late1 one that answers some of it too late."""

    def __init__(self, tmp: Path) -> None:
        self.upstream = Upstream()
        self.agents = contextlib.ExitStack()
        breaker = {"failure_threshold": 1_000_000}
        agents, routes = [], []
        for name in ("v2", "late2", "v1", "late1"):
            agent = {
                "name": name, "protocol": f"zmq-v{name[-1]}", "events": ["request_headers"], "circuit_breaker": breaker,
                "timeout_ms": TIMEOUT_MS if name.startswith("late") else 10_000,
                "max_concurrent_calls": 5_000, "max_queue": 5_000,
            }  # fmt: skip
            if name.endswith("1"):
                agent |= {"endpoint": f"ipc://{tmp}/{name}", "connections": 32}
            else:
                agent["secret_file"] = str(secret_file(tmp, name))
            agents.append(agent)
            match = {"path_prefix": f"/{name}"}
            routes.append({"name": name, "upstream": "up", "match": match, "filters": [{"agent": name}]})
        config = proxy_config(self.upstream.address, server={"workers": 2}, routes=routes, agents=agents)
        self.system = System(config, tmp).__enter__()
        self.system.registered()
        for name, instances in (("v2", 2), ("late2", 2), ("v1", 1), ("late1", 1)):
            protocol = f"v{name[-1]}"
            endpoint = self.system.agents_endpoint if protocol == "v2" else f"ipc://{tmp}/{name}"
            late_ms = str(LATE_MS if name.startswith("late") else 0)
            for number in range(instances):
                args = ("-m", "tests.e2e.number_agent", protocol, endpoint, name, f"i{number}", late_ms)
                args += (f"{tmp}/{name}.secret",) if protocol == "v2" else ()
                environment = {"PYTHONPATH": str(Path(__file__).parent.parent.parent)}
                self.agents.enter_context(Child(python(*args), tmp / f"{name}-{number}.log", environment))
            self.wait_for(name, instances if protocol == "v2" else 32)

    def wait_for(self, name: str, instances: int) -> None:
        wait_until(lambda: self.count("agent_instances", agent=name) == instances, 20)

    def count(self, name: str, **labels: str) -> int:
        return value(metrics(self.system), f"wardgate_{name}", **labels)

    def close(self) -> None:
        self.agents.close()
        self.system.__exit__()
        self.upstream.close()


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    directory = Path(tempfile.mkdtemp(prefix="wg-", dir="/tmp"))
    made = World(directory)
    yield made
    made.close()
    rmtree(directory, ignore_errors=True)


@dataclass
class Found:
    own: int = 0
    statuses: Counter[bytes] = field(default_factory=Counter)  # of the others
    swapped: list[str] = field(default_factory=list)

    def answer(self, number: int, head: bytes, body: bytes) -> None:
        if is_own(number, head, body):
            self.own += 1
        elif head[9:10] == b"5":
            self.statuses[head[9:12]] += 1
        else:
            self.swapped.append(f"{number}: {head!r} {body[:60]!r}")


def request(path: str, number: int) -> bytes:
    """Both of a pair (2n and 2n + 1) say of themselves that they are the same, and so does every tenth pair."""
    same = number // 2 % 1_000
    return (
        f"GET {path}/x HTTP/1.1\r\nHost: a\r\nX-Request-Id: id-{same}\r\nX-Correlation-Id: id-{same}\r\n"
        f"traceparent: 00-{same + 1:032x}-{same + 1:016x}-01\r\ntracestate: a={same}\r\nIdempotency-Key: {same}\r\n"
        f"X-Number: {number}\r\n\r\n"
    ).encode()


def pairs(world: World, path: str, count: int, connections: int = CONNECTIONS, depth: int = DEPTH) -> Found:
    """The first of each pair on one connection, the second at the same time on another."""
    found = Found()

    async def run() -> None:
        loop = asyncio.get_running_loop()
        waits = []
        for connection in range(connections):
            numbers = range(2 * (connection // 2) + connection % 2, 2 * count, connections)
            requests = [(number, request(path, number)) for number in numbers]
            _, protocol = await loop.create_connection(
                lambda requests=requests: Pipeline(requests, depth, found.answer), *world.system.address
            )
            waits.append(protocol.done)
        async with asyncio.timeout(50):
            await asyncio.gather(*waits)

    uvloop.run(run())
    return found


def test_ten_thousand_pairs(world: World) -> None:
    """Two instances of a v2 agent, two workers."""
    found = pairs(world, "/v2", 10_000)
    assert found.swapped == []
    assert found.own == 20_000


def test_pairs_through_v1(world: World) -> None:
    found = pairs(world, "/v1", 1_000)
    assert found.swapped == []
    assert found.own == 2_000


@pytest.mark.parametrize(("path", "count"), [("/late2", 1_000), ("/late1", 200)], ids=["v2", "v1"])
def test_late_verdicts_go_to_nobody(world: World, path: str, count: int) -> None:
    """One of forty is answered when its time is over, while others are asked: 504, and nobody gets the verdict."""
    name = path.removeprefix("/")
    found = pairs(world, path, count, depth=2)
    late = sum(number % 40 == 3 for number in range(2 * count))
    assert found.swapped == []
    assert found.statuses[b"504"] >= late
    assert found.own + found.statuses.total() == 2 * count
    assert found.own >= count
    if name == "late2":
        wait_until(lambda: world.count("agent_late_verdicts_total", agent=name) >= late, 10)
