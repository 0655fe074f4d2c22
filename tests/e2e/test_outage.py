"""agentd dead, hung and back; an agent gone; a breaker opened by hand: what clients see, with real processes."""

import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.agents import ALLOW, V2Agent
from tests.e2e.stage import Stage
from tests.e2e.traffic import Traffic
from tests.http.corpus import Answer, Client, Upstream
from tests.product import System, proxy_config
from tests.support import wait_until


class World:
    """Three routes: /closed and /open ask agent a by their failure mode, / asks nobody."""

    def __init__(self, tmp: Path) -> None:
        self.upstream = Upstream()
        routes = [
            {"name": "free", "upstream": "up"},
            {"name": "closed", "upstream": "up", "match": {"path_prefix": "/closed"}, "filters": [{"agent": "a"}]},
            {"name": "open", "upstream": "up", "match": {"path_prefix": "/open"},
             "filters": [{"agent": "a", "failure_mode": "open"}]},
        ]  # fmt: skip
        agents = [{"name": "a", "protocol": "zmq-v2", "timeout_ms": 500, "events": ["request_headers"]}]
        config = proxy_config(self.upstream.address, server={"workers": 2}, routes=routes, agents=agents)
        self.system = System(config, tmp).__enter__()
        self.agent: V2Agent | None = None
        self.dial()
        self.system.registered()

    def dial(self) -> None:
        self.agent = V2Agent(self.system.agents_endpoint, "a", ["request_headers"], lambda event: ALLOW)
        assert self.agent.ready.wait(10)

    def hang_up(self) -> None:
        if self.agent is not None:
            self.agent.close()
            self.agent = None

    def close(self) -> None:
        self.hang_up()
        self.system.__exit__()
        self.upstream.close()

    def get(self, path: str) -> Answer:
        with Client(self.system.address) as client:
            client.send(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
            return client.answer()

    def statuses(self) -> tuple[int, int, int]:
        """(free, closed, open)."""
        return self.get("/").status, self.get("/closed").status, self.get("/open").status

    def settled(self, expected: tuple[int, int, int], timeout_s: float = 5.0) -> None:
        """Both workers answer so: eight times in a row."""

        def so() -> bool:
            return all(self.statuses() == expected for _ in range(8))

        wait_until(so, timeout_s, f"answers {expected}")

    def cli(self, *args: str) -> subprocess.CompletedProcess[str]:
        command = [str(Path(sys.executable).parent / "wardgate"), *args, "--config", str(self.system.config)]
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


@pytest.fixture
def world(short_tmp_dir: Path) -> Iterator[World]:
    made = World(short_tmp_dir)
    yield made
    made.close()


PING = b"\x04\x07\x04PING\x00\x00"


def flood(path: str, messages: int) -> None:
    """A ZMTP peer that sends messages with PINGs between them, reads nothing, and hangs up."""
    socket_type = b"\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER"
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"NULL".ljust(20, b"\0") + bytes(32)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(2)
        try:
            sock.connect(path)
            sock.sendall(greeting + b"\x04" + bytes([len(socket_type)]) + socket_type)
            got = b""
            while b"READY" not in got:
                more = sock.recv(4096)
                if not more:
                    return
                got += more
            sock.sendall((b"\x00\x02hi" + PING) * messages)
        except OSError:
            return  # cut: that is what it is for


WELL = (200, 200, 200)
WITHOUT = (200, 503, 200)


def test_agentd_killed_and_back(world: World) -> None:
    """Dead: decided at once by failure mode, routes without agents do not notice; back: by itself."""
    world.settled(WELL)
    assert world.system.agentd is not None
    world.system.agentd.kill()
    world.settled(WITHOUT)
    began = time.monotonic()
    answers = [world.get("/closed") for _ in range(20)]
    assert {answer.status for answer in answers} == {503}
    assert (time.monotonic() - began) / 20 < 0.1, "nobody waits for a timeout"
    health = world.cli("health")
    assert health.returncode in (1, 3)
    assert "agentd" in health.stdout + health.stderr
    world.system.start_agentd()
    world.settled(WELL)


def test_agentd_frozen_and_thawed(world: World) -> None:
    """SIGSTOP: the heartbeat goes stale within a second and then nobody waits; SIGCONT: by itself."""
    world.settled(WELL)
    assert world.system.agentd is not None
    world.system.agentd.signal(signal.SIGSTOP)
    try:
        world.settled(WITHOUT)
        health = world.cli("health")
        assert health.returncode in (1, 3)
    finally:
        world.system.agentd.signal(signal.SIGCONT)
    world.settled(WELL)


def test_agent_gone_and_back(world: World) -> None:
    """No live instance is Disconnected at once, never a wait; a new one is used as soon as it is there."""
    world.settled(WELL)
    world.hang_up()
    world.settled(WITHOUT)
    world.dial()
    world.settled(WELL)


def test_breaker_by_hand(world: World) -> None:
    """`breaker open` acts in all workers, `breaker close` ends it; both say what they did."""
    world.settled(WELL)
    opened = world.cli("breaker", "open", "a")
    assert opened.returncode == 0, opened.stderr
    world.settled(WITHOUT, 1.0)
    assert "open" in world.cli("breaker", "list").stdout
    closed = world.cli("breaker", "close", "a")
    assert closed.returncode == 0, closed.stderr
    world.settled(WELL, 1.0)
    assert world.cli("breaker", "open", "nobody").returncode in (1, 2)


def test_health_when_all_is_well(world: World) -> None:
    def well() -> bool:
        return world.cli("health").returncode == 0

    wait_until(well, 15)


def test_pings_in_a_flood_do_not_kill_agentd(world: World) -> None:
    """libzmq 4.3.5 aborted on a PING behind unread messages of a connection that had ended."""
    world.settled(WELL)
    assert world.system.agentd is not None
    path = world.system.agents_endpoint.removeprefix("ipc://")
    for _ in range(6):
        threads = [threading.Thread(target=flood, args=(path, 3000)) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert world.system.agentd.popen.poll() is None, world.system.agentd.output()
    world.settled(WELL)


def test_agents_are_not_blamed_for_a_freeze_of_agentd() -> None:
    """Verdicts that were given in time and lay unread while agentd was stopped are no timeouts (30 of 30 were)."""
    stage = Stage()
    traffic = None
    try:
        stage.start("upstream", "agentd", "proxy", "a", "h")
        stage.wait_ready_workers()
        traffic = Traffic(stage.address, ("closed",))
        lanes = traffic.lanes
        wait_until(lambda: len(lanes) == 10 and all(lane.last and lane.last.end == "verdict" for lane in lanes), 10)
        before = stage.blame()
        traffic.close()

        def in_flight() -> int:
            return next(agent.in_flight for agent in stage.admin.agents().agents if agent.name == "a")

        traffic = Traffic(stage.address, ())
        held = traffic.once("closed", 30, {"X-Agent-Hold-Ms": "150"})
        wait_until(lambda: in_flight() >= 30, 5)
        with stage.stopped([stage.running["agentd"].pid]):
            wait_until(lambda: all(lane.is_done for lane in held), 5, "the workers have given up")
        wait_until(lambda: in_flight() == 0, 5)
        assert {lane.last.end for lane in held if lane.last} == {"504"}
        assert stage.blame() == before
    finally:
        if traffic is not None:
            traffic.close()
        stage.close()
