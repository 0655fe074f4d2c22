"""Breakers in a running system: they open, fail fast, probe one call at a time and close; operators move them.

One proxy with two workers, one agentd, and an agent for each question, so that no test needs what another left.
"""

import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from proxy.cli.admin_client import AdminClient
from shared.runtime import Runtime
from shared.wire import admin as wire
from tests.e2e.agents import ALLOW, V2Agent, Verdict
from tests.http.corpus import Client, Upstream
from tests.product import System, proxy_config
from tests.support import wait_until

SAMPLES = 20
TIMEOUT_MS = 200
FAILURES = 5
LONG_S = 300.0
# name -> seconds until an open breaker probes
AGENTS = {"opens": LONG_S, "probes": 0.5, "leaves": 0.5, "session": LONG_S, "forced": LONG_S, "steered": LONG_S}


class Switch:
    """An agent that answers, or says nothing, or holds its answers back, as the test wants."""

    def __init__(self, system: System, name: str) -> None:
        self.is_silent = False
        self.free = threading.Event()
        self.free.set()
        self.agent = V2Agent(system.agents_endpoint, name, ["request_headers"], self.decide, secret=secret_of(name))
        assert self.agent.ready.wait(10)
        admin = AdminClient(Runtime(str(system.runtime)))  # it has said that it is ready; agentd has to have read it
        wait_until(lambda: any(row.name == name and row.instances for row in admin.agents().agents), 10)

    def decide(self, event: object) -> Verdict | None:
        self.free.wait(10)
        return None if self.is_silent else ALLOW

    def __enter__(self) -> "Switch":
        return self

    def __exit__(self, *exc: object) -> None:
        self.free.set()
        self.agent.close()


def secret_of(name: str) -> bytes:
    return f"the secret of agent {name}, long enough".encode()


class World:
    """The system, and one connection to each worker."""

    def __init__(self, tmp: Path) -> None:
        self.upstream = Upstream()
        agents = []
        for name, wait_s in AGENTS.items():
            file = tmp / f"{name}.secret"
            file.write_bytes(secret_of(name))
            file.chmod(0o600)
            breaker = {"failure_threshold": FAILURES, "timeout_seconds": wait_s, "success_threshold": 2}
            agents.append(
                {"name": name, "protocol": "zmq-v2", "timeout_ms": TIMEOUT_MS, "events": ["request_headers"],
                 "secret_file": str(file), "circuit_breaker": breaker}
            )  # fmt: skip
        routes = [
            {"name": name, "upstream": "up", "match": {"path_prefix": f"/{name}"}, "filters": [{"agent": name}]}
            for name in AGENTS
        ]
        config = proxy_config(self.upstream.address, server={"workers": 2}, routes=routes, agents=agents)
        self.system = System(config, tmp).__enter__()
        self.clients: list[Client] = []
        try:
            self.system.registered()
            self.admin = AdminClient(Runtime(str(self.system.runtime)))
            self.clients = self._one_per_worker()
        except BaseException:
            self.close()
            raise

    def _one_per_worker(self) -> list[Client]:
        """Connections until each worker has one: a worker's file descriptors tell."""
        found: dict[int, Client] = {}
        spare = []
        workers = self.system.worker_pids()

        def sockets(pid: int) -> int:
            return sum(1 for fd in Path(f"/proc/{pid}/fd").iterdir() if fd.is_symlink())

        for _ in range(200):
            before = {pid: sockets(pid) for pid in workers}
            client = Client(self.system.address)
            # An answer, so that it was accepted; nobody asks an agent about an unknown route.
            client.send(b"GET /nobody HTTP/1.1\r\nHost: a\r\n\r\n")
            client.answer()
            pid = next((pid for pid in workers if sockets(pid) > before[pid]), 0)
            if pid and pid not in found:
                found[pid] = client
            else:
                spare.append(client)
            if len(found) == len(workers):
                break
        for client in spare:
            client.close()
        assert len(found) == len(workers)
        return list(found.values())

    def ask(self, name: str, worker: int = 0) -> int:
        client = self.clients[worker]
        client.send(f"GET /{name} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        return client.answer().status

    def timed(self, name: str, worker: int = 0) -> tuple[int, float]:
        began = time.monotonic()
        return self.ask(name, worker), (time.monotonic() - began) * 1000

    def breaker(self, name: str) -> wire.Breaker:
        return next(row for row in self.admin.breakers().breakers if row.agent == name)

    def break_it(self, name: str, switch: Switch) -> None:
        """As many timeouts as configured."""
        switch.is_silent = True
        assert [self.ask(name) for _ in range(FAILURES)] == [504] * FAILURES
        switch.is_silent = False

    def cli(self, *args: str) -> None:
        command = [str(Path(sys.executable).parent / "wardgate"), "breaker", *args, "--config", str(self.system.config)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode == 0, done.stderr

    def close(self) -> None:
        for client in self.clients:
            client.close()
        self.system.__exit__()
        self.upstream.close()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World(tmp_path_factory.mktemp("breakers"))
    yield made
    made.close()


def twice(measure: Callable[[], float], bound_ms: float) -> None:
    """A bound on a median: measured again once before it fails."""
    first = measure()
    if first >= bound_ms:
        assert measure() < bound_ms, f"first {first:.1f} ms"


def test_opens_after_the_configured_failures_and_then_fails_fast(world: World) -> None:
    """Not one earlier; then 503 in under 10 ms from both workers, without a call."""
    with Switch(world.system, "opens") as switch:
        assert world.ask("opens") == 200
        switch.is_silent = True
        answers = [world.timed("opens") for _ in range(FAILURES)]
        assert [status for status, _ in answers] == [504] * FAILURES
        assert all(took >= TIMEOUT_MS * 0.9 for _, took in answers)
        asked = len(switch.agent.seen)
        assert asked == FAILURES + 1

        def refused_ms() -> float:
            answers = [world.timed("opens", i % 2) for i in range(2 * SAMPLES)]
            assert {status for status, _ in answers} == {503}
            return statistics.median(took for _, took in answers)

        twice(refused_ms, 10)
        assert len(switch.agent.seen) == asked
        assert world.breaker("opens").state == "open"


def test_probes_one_call_at_a_time_and_closes(world: World) -> None:
    """After the wait one call is let through, whoever else asks is refused meanwhile; two successes close it."""
    with Switch(world.system, "probes") as switch:
        world.break_it("probes", switch)
        asked = len(switch.agent.seen)
        switch.free.clear()
        # The wait goes by; the first call after it is the probe and stays with the agent.
        answers: list[int] = []
        clients = [Client(world.system.address) for _ in range(12)]
        try:

            def probe() -> bool:
                return world.breaker("probes").probes == 1

            def ask_again() -> bool:
                clients[0].send(b"GET /probes HTTP/1.1\r\nHost: a\r\n\r\n")
                if wait_short(probe):
                    return True
                answers.append(clients[0].answer().status)
                return False

            wait_until(ask_again, 5, "a probe")
            assert set(answers) <= {503}
            for client in clients[1:]:
                client.send(b"GET /probes HTTP/1.1\r\nHost: a\r\n\r\n")
            assert [client.answer().status for client in clients[1:]] == [503] * (len(clients) - 1)
            switch.free.set()
            assert clients[0].answer().status == 200
            assert len(switch.agent.seen) == asked + 1, "one probe and nobody else"
        finally:
            for client in clients:
                client.close()
        assert world.breaker("probes").state == "half_open"
        assert world.ask("probes") == 200
        assert world.breaker("probes").state == "closed"
        assert [world.ask("probes", i % 2) for i in range(10)] == [200] * 10


def wait_short(predicate: Callable[[], bool]) -> bool:
    """Whether it comes true within 100 ms."""
    end = time.monotonic() + 0.1
    while time.monotonic() < end:
        if predicate():
            return True
    return False


def test_a_failed_probe_opens_it_again(world: World) -> None:
    with Switch(world.system, "probes") as switch:
        world.break_it("probes", switch)
        opened = world.breaker("probes").opened_total
        switch.is_silent = True
        wait_until(lambda: world.ask("probes") == 504, 5, "the probe times out")
        assert world.breaker("probes").opened_total == opened + 1
        assert world.ask("probes") == 503
        switch.is_silent = False
        wait_until(lambda: [world.ask("probes", i) for i in (0, 1)] == [200, 200], 5, "closed again")


def test_a_probe_whose_client_left_is_released(world: World) -> None:
    """Its place is free at once: the next call is the next probe, long before the first one's timeout."""
    with Switch(world.system, "leaves") as switch:
        world.admin.change_breaker("leaves", "set", wire.BreakerChange(failure_threshold=1))
        switch.is_silent = True
        assert world.ask("leaves") == 504
        asked = len(switch.agent.seen)

        def probe_leaves() -> bool:
            client = Client(world.system.address)
            client.send(b"GET /leaves HTTP/1.1\r\nHost: a\r\n\r\n")
            is_out = wait_short(lambda: world.breaker("leaves").probes == 1)
            client.close()
            return is_out

        wait_until(probe_leaves, 5, "a probe")
        wait_until(lambda: world.breaker("leaves").probes == 0, 5, "released")
        wait_until(lambda: len(switch.agent.seen) == asked + 1, 5)
        assert world.breaker("leaves").state == "half_open", "nobody waited for a verdict: no failure"
        switch.is_silent = False
        assert world.ask("leaves", 1) == 200


def test_a_new_session_half_opens_it_at_once(world: World) -> None:
    """Not after five minutes."""
    with Switch(world.system, "session") as switch:
        world.break_it("session", switch)
        assert [world.ask("session", i) for i in (0, 1)] == [503, 503]
    with Switch(world.system, "session"):
        began = time.monotonic()
        wait_until(lambda: [world.ask("session", i % 2) for i in range(4)] == [200] * 4, 2, "asked again")
        assert time.monotonic() - began < 2
        assert world.breaker("session").state == "closed"


def test_a_new_session_does_not_open_what_an_operator_closed_off(world: World) -> None:
    """`wardgate breaker open` lasts until `close`; over a restart of agentd, too (tests/agentd/test_daemon.py)."""
    with Switch(world.system, "forced") as switch:
        assert world.ask("forced") == 200
        world.cli("open", "forced")
        assert [world.ask("forced", i) for i in (0, 1)] == [503, 503]
    with Switch(world.system, "forced") as switch:
        assert [world.ask("forced", i % 2) for i in range(10)] == [503] * 10
        assert world.breaker("forced").state == "forced_open"
        assert not switch.agent.seen
        world.cli("close", "forced")
        assert [world.ask("forced", i) for i in (0, 1)] == [200, 200]


def test_what_the_command_line_changes_acts_in_all_workers_at_once(world: World) -> None:
    """`open`, `close`, `reset` and `set`: seen in both workers within 100 ms of being sent."""
    name = "steered"
    with Switch(world.system, name) as switch:
        assert [world.ask(name, i) for i in (0, 1)] == [200, 200]

        def acts_ms(action: wire.BreakerAction, expected: int) -> list[float]:
            took = []
            began = time.monotonic()
            world.admin.change_breaker(name, action)
            for worker in (0, 1):
                wait_until(lambda worker=worker: world.ask(name, worker) == expected, 5)  # type: ignore[misc]
                took.append((time.monotonic() - began) * 1000)
            return took

        def round_ms() -> float:
            took = []
            for _ in range(SAMPLES // 4):
                took += acts_ms("open", 503) + acts_ms("close", 200) + acts_ms("open", 503) + acts_ms("reset", 200)
            assert len(took) >= SAMPLES
            return statistics.median(took)

        twice(round_ms, 100)

        def threshold_ms() -> float:
            """A threshold of 1 opens it with the next failure, one of a thousand does not."""
            took = []
            switch.is_silent = True
            for i in range(SAMPLES):
                world.admin.change_breaker(name, "set", wire.BreakerChange(failure_threshold=1))
                assert world.ask(name, i % 2) == 504
                began = time.monotonic()
                for worker in (0, 1):
                    wait_until(lambda worker=worker: world.ask(name, worker) == 503, 5)  # type: ignore[misc]
                    took.append((time.monotonic() - began) * 1000)
                world.admin.change_breaker(name, "reset")
            switch.is_silent = False
            return statistics.median(took)

        twice(threshold_ms, 100)
        # The command itself, one time each: what it has done acts when it returns.
        for args, expected in ((("open",), 503), (("reset",), 200), (("open",), 503), (("close",), 200)):
            world.cli(args[0], name)
            assert [world.ask(name, i) for i in (0, 1)] == [expected] * 2
        world.cli("set", name, "--failure-threshold", "1")
        switch.is_silent = True
        assert [world.ask(name, 0), world.ask(name, 1), world.ask(name, 0)] == [504, 503, 503]
