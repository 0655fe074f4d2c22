"""Route A's agent hangs, lies, floods or reads nothing: route B's requests get their verdicts, agentd stays small.

The coarse version of `make bench ARGS=--isolation`, which measures what this only bounds.
"""

import asyncio
import itertools
import signal
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from shutil import rmtree

import pytest

from tests.e2e.agents import V2Agent
from tests.e2e.hostile import (
    WRONG,
    Answers,
    Asker,
    Memory,
    again_once,
    hostile,
    metrics,
    own_verdict,
    secret_file,
    value,
)
from tests.http.corpus import Upstream
from tests.product import System, proxy_config
from tests.support import ROOT, Child, python, until, wait_until

EVENTS = ["request_headers"]
A_CONNECTIONS, B_CONNECTIONS, B_REQUESTS = 50, 8, 600
TIMEOUT_MS = 300
B_MEDIAN_S = 0.1  # a few ms on an idle machine; far below A's timeout in any case


class World:
    """/a asks agent a, /old a zmq-v1 agent (their breakers out of reach), /broken c (breaker on), /b b."""

    def __init__(self, tmp: Path) -> None:
        self.upstream = Upstream()
        self.secrets = {name: secret_file(tmp, name) for name in "abc"}
        agents = [
            {
                "name": name, "protocol": "zmq-v2", "events": EVENTS, "secret_file": str(self.secrets[name]),
                "timeout_ms": TIMEOUT_MS if name != "b" else 5_000,
                "max_concurrent_calls": 5_000, "max_queue": 0 if name == "a" else 1_000,
                "circuit_breaker": {"failure_threshold": 5 if name == "c" else 1_000_000},
            }
            for name in "abc"
        ]  # fmt: skip
        self.old_socket = tmp / "old.sock"
        agents.append(
            {
                "name": "old", "protocol": "zmq-v1", "endpoint": f"ipc://{self.old_socket}", "connections": 4,
                "events": EVENTS, "timeout_ms": TIMEOUT_MS, "max_queue": 0,
                "circuit_breaker": {"failure_threshold": 1_000_000},
            }
        )  # fmt: skip
        routes = [
            {"name": name, "upstream": "up", "match": {"path_prefix": f"/{name}"}, "filters": [{"agent": agent}]}
            for name, agent in (("a", "a"), ("b", "b"), ("broken", "c"), ("old", "old"))
        ]
        server = {"workers": 2, "max_header_bytes": 262_144}
        config = proxy_config(self.upstream.address, server=server, routes=routes, agents=agents)
        self.system = System(config, tmp).__enter__()
        self.b = self.agent("b")
        self.system.registered()
        self.numbers = itertools.count()

    def agent(self, name: str) -> V2Agent:
        """An honest one."""
        secret = self.secrets[name].read_bytes().rstrip(b"\n")
        made = V2Agent(self.system.agents_endpoint, name, EVENTS, own_verdict, instance=f"{name}-honest", secret=secret)
        assert made.ready.wait(10)
        return made

    def close(self) -> None:
        self.b.close()
        self.system.__exit__()
        self.upstream.close()

    @property
    def agentd_pid(self) -> int:
        assert self.system.agentd is not None
        return self.system.agentd.pid

    def asker(self, path: str, **fields: str) -> Asker:
        return Asker(self.system.address, path, {name.replace("_", "-"): text for name, text in fields.items()})

    def both(self, a_path: str = "/a", a_pause_s: float = 0.0) -> tuple[Answers, Answers]:
        """A's connections go on until B's requests are answered."""

        async def run() -> tuple[Answers, Answers]:
            a, b = self.asker(a_path), self.asker("/b")
            a.is_strict = False
            is_over = False
            some = itertools.takewhile(lambda _: not is_over, self.numbers)
            hammering = asyncio.ensure_future(a.ask(some, A_CONNECTIONS, a_pause_s))
            first = next(self.numbers)
            await until(lambda: a.answers.latencies_s, what="A's agent is being asked")
            found = await b.ask(range(first, first + B_REQUESTS), B_CONNECTIONS)
            is_over = True
            return await hammering, found

        async def bounded() -> tuple[Answers, Answers]:
            async with asyncio.timeout(30):
                return await run()

        return asyncio.run(bounded())

    def b_is_well(self, b: Answers) -> None:
        """Every request its own verdict, none failed."""
        assert b.wrong == []
        assert (b.gone, b.statuses.total()) == (0, B_REQUESTS)
        assert set(b.statuses) == {200, 403}

    def count(self, name: str, **labels: str) -> int:
        return value(metrics(self.system), f"wardgate_{name}", **labels)


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    directory = Path(tempfile.mkdtemp(prefix="wg-", dir="/tmp"))
    made = World(directory)
    yield made
    made.close()
    rmtree(directory, ignore_errors=True)


# How much agentd may grow, MiB: the slack of the memory guard, what comes in until it acts, and some.
# `counted`: what moves because of A's agent: a counter of its, an outcome of its calls, or `refused CODE`.
CASES = [
    ("mute", {504}, "timeout", 40),
    ("late", {504}, "late_verdicts", 40),
    ("oversized", {503, 504}, "disconnected", 80),
    ("endless", {503, 504}, "disconnected", 250),
    ("crumbs", {503, 504}, "disconnected", 250),
    ("grains", {503, 504}, "garbage", 150),
    ("garbage", {503, 504}, "refused malformed", 40),
    ("heavy", {503, 504}, "garbage", 200),
    ("stranger", {503, 504}, "garbage", 40),
    ("impostor", {503}, "refused bad_proof", 40),
    ("flood", {503, 504}, "refused malformed", 150),
    ("deaf", {504}, "timeout", 60),
]


def series(counted: str) -> tuple[str, dict[str, str]]:
    """Where it stands on the page of metrics."""
    if counted.startswith("refused "):
        return "sessions_refused_total", {"code": counted.removeprefix("refused ")}
    if counted in ("garbage", "late_verdicts"):
        return f"agent_{counted}_total", {"agent": "a"}
    return "agent_calls_total", {"agent": "a", "mode": "enforce", "outcome": counted}


@pytest.mark.parametrize(("mode", "statuses", "counted", "may_grow_mib"), CASES, ids=[case[0] for case in CASES])
def test_a_fast_route_beside(world: World, mode: str, statuses: set[int], counted: str, may_grow_mib: int) -> None:
    name, labels = series(counted)
    before = world.count(name, **labels)
    garbage = world.count("agent_garbage_total", agent="a")
    memory = Memory(world.agentd_pid)
    pause_s = 0.0 if mode in ("mute", "late", "deaf") else 0.05  # instant refusals would be a load of their own
    seen: Counter[int] = Counter()
    with hostile(world.system, mode, "a", secret=world.secrets["a"], victim="b"):
        wait_until(lambda: world.count("agent_instances", agent="a") or world.count(name, **labels) > before, 10)

        def median_s() -> float:
            a, b = world.both(a_pause_s=pause_s)
            seen.update(a.statuses)
            world.b_is_well(b)
            return b.median_s

        again_once(median_s, B_MEDIAN_S)
        for _ in range(20):  # some need more time for their harm than B for its requests
            if world.count(name, **labels) > before:
                break
            median_s()
        grown_mib = memory.grown_mib()
    assert world.count(name, **labels) > before
    assert seen.total() > 0
    assert set(seen) <= statuses
    assert WRONG not in seen
    assert grown_mib < may_grow_mib
    if mode in ("mute", "late", "deaf"):
        assert world.count("agent_garbage_total", agent="a") == garbage  # slow is no fault
    # B's agent has noticed nothing, and another process may be A's agent at once.
    assert (world.b.refused, world.count("agent_instances", agent="b")) == ([], 1)
    wait_until(lambda: not world.count("agent_instances", agent="a"), 10)
    with world.agent("a"):
        wait_until(lambda: world.count("agent_instances", agent="a") == 1, 10)
        answers = asyncio.run(world.asker("/a").ask(range(20), 2))
        assert (answers.wrong, answers.gone) == ([], 0)


# What a zmq-v1 agent does, how its calls end then, and how much agentd may grow meanwhile, MiB.
OLD_CASES = [
    ("mute", "timeout", 40),
    ("garbage", "malformed", 40),
    ("unasked", "disconnected", 40),
    ("endless", "disconnected", 250),
    ("grains", "disconnected", 150),
    ("drop", "disconnected", 40),
]


@pytest.mark.parametrize(("mode", "counted", "may_grow_mib"), OLD_CASES, ids=[case[0] for case in OLD_CASES])
def test_a_fast_route_beside_a_v1_agent(world: World, mode: str, counted: str, may_grow_mib: int) -> None:
    before = world.count("agent_calls_total", agent="old", outcome=counted)
    memory = Memory(world.agentd_pid)
    script = str(ROOT / "tests" / "e2e" / "hostile_v1.py")
    with Child(python(script, mode, str(world.old_socket)), world.system.tmp / f"v1-{mode}.log") as child:
        child.wait_for("listening")
        wait_until(lambda: world.count("agent_instances", agent="old"), 10)

        def median_s() -> float:
            a, b = world.both("/old", a_pause_s=0.05)
            world.b_is_well(b)
            # Never allowed: `unasked` answers in time, and refuses.
            assert set(a.statuses) <= {503, 504, *([WRONG] if mode == "unasked" else [])}
            return b.median_s

        again_once(median_s, B_MEDIAN_S)
        for _ in range(20):
            if world.count("agent_calls_total", agent="old", outcome=counted) > before:
                break
            median_s()
        grown_mib = memory.grown_mib()
    assert world.count("agent_calls_total", agent="old", outcome=counted) > before
    assert grown_mib < may_grow_mib
    wait_until(lambda: not world.count("agent_instances", agent="old"), 10)
    assert world.count("agent_instances", agent="b") == 1


def test_breaker_on(world: World) -> None:
    """A's agent never answers, its breaker opens: refusals at once, and B does not notice a fixed rate of them."""
    with hostile(world.system, "mute", "c", secret=world.secrets["c"]):
        wait_until(lambda: world.count("agent_instances", agent="c"), 10)
        a, b = world.both("/broken", a_pause_s=0.05)
        world.b_is_well(b)
        assert set(a.statuses) <= {503, 504}
        assert world.count("agent_breaker_openings_total", agent="c") >= 1

        def median_s() -> float:
            a, b = world.both("/broken", a_pause_s=0.05)
            world.b_is_well(b)
            assert set(a.statuses) <= {503, 504}
            return a.median_s

        again_once(median_s, 0.05)


def test_an_agent_that_reads_nothing(world: World) -> None:
    """Its socket fills: what agentd keeps for it is bounded in bytes, and beyond that calls end as queue_full."""
    with hostile(world.system, "deaf", "a", secret=world.secrets["a"]):
        wait_until(lambda: world.count("agent_instances", agent="a"), 10)
        memory = Memory(world.agentd_pid)
        before = metrics(world.system)
        big = world.asker("/a", **{f"x_{number}": "y" * 8_000 for number in range(20)})
        big.is_strict = False

        async def fill() -> None:
            async with asyncio.timeout(30):
                while not world.count("agent_calls_total", agent="a", outcome="queue_full") > value(
                    before, "wardgate_agent_calls_total", agent="a", outcome="queue_full"
                ):
                    await big.ask(itertools.islice(world.numbers, 100), 50)

        asyncio.run(fill())
        assert set(big.answers.statuses) == {503, 504}
        world.b_is_well(asyncio.run(world.asker("/b").ask(range(B_REQUESTS), B_CONNECTIONS)))
        assert memory.grown_mib() < 150


def is_closed(world: World) -> bool:
    """After another request to c: each may be the probe that closes the breaker."""
    asker = world.asker("/broken")
    asker.is_strict = False
    asyncio.run(asker.ask([0], 1))
    return world.count("agent_breaker_state", agent="c", state="closed") == 1


@pytest.mark.parametrize("how", ["stopped", "mute"])
def test_a_hung_instance_beside_a_well_one(world: World, how: str) -> None:
    """What it holds when it hangs times out, once; then its sibling is asked, and the breaker stays closed."""
    openings = world.count("agent_breaker_openings_total", agent="c")
    secret = world.secrets["c"]
    number_agent = ("-m", "tests.e2e.number_agent", "v2", world.system.agents_endpoint, "c", "second", "0", str(secret))
    with world.agent("c") as well:
        wait_until(lambda: is_closed(world), 10)
        hung = hostile(world.system, "mute", "c", secret=secret)
        if how == "stopped":
            hung = Child(python(*number_agent), world.system.tmp / "second.log", {"PYTHONPATH": str(ROOT)})
        with hung as second:
            wait_until(lambda: world.count("agent_instances", agent="c") == 2, 10)
            if how == "stopped":
                second.signal(signal.SIGSTOP)
            asker = world.asker("/broken")
            asker.is_strict = False
            answers = asyncio.run(asker.ask(range(B_REQUESTS), B_CONNECTIONS))
            assert (answers.wrong, answers.gone) == ([], 0)
            assert set(answers.statuses) <= {200, 403, 504}
            assert answers.statuses[504] <= B_CONNECTIONS + 2
            assert world.count("agent_breaker_openings_total", agent="c") == openings
            if how == "stopped":
                second.signal(signal.SIGCONT)

                def is_asked_again() -> bool:
                    seen = len(well.seen)
                    answers = asyncio.run(world.asker("/broken").ask(range(20), 2))
                    assert (answers.wrong, answers.gone) == ([], 0)
                    return len(well.seen) < seen + 20

                wait_until(is_asked_again, 15)
