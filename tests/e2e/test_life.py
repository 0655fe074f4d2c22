"""Reload, recycling and the end under load, with real processes and an agent that decides on every request."""

import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.agents import ALLOW, V2Agent
from tests.e2e.load import Load
from tests.http.corpus import Client, Upstream
from tests.product import System, proxy_config
from tests.support import Child, python, wait_until

AGENT = {"name": "a", "protocol": "zmq-v2", "timeout_ms": 5_000, "events": ["request_headers"]}
EVERYTHING = {"name": "any", "upstream": "up", "filters": [{"agent": "a"}]}


@contextmanager
def served(config: str, tmp: Path) -> Iterator[System]:
    """agentd and the proxy, with agent `a` connected."""
    with (
        System(config, tmp) as system,
        V2Agent(system.agents_endpoint, "a", ["request_headers"], lambda event: ALLOW) as agent,
    ):
        assert agent.ready.wait(10)
        system.registered()
        yield system


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    made = Upstream()
    yield made
    made.close()


def lines(child: Child, text: str) -> Callable[[int], Any]:
    """Waits until so many lines hold `text`."""
    return lambda count: wait_until(lambda: child.output().count(text) >= count, 15, f"{count} times {text}")


def test_reloads_under_load_lose_nothing(short_tmp_dir: Path, upstream: Upstream) -> None:
    """Ten reloads that move the upstream and change the routes: not one failed, reset or undecided request."""
    other = Upstream()

    def config(number: int) -> str:
        target = (upstream, other)[number % 2].address
        routes = [EVERYTHING, {"name": f"r{number}", "upstream": "up", "match": {"path_prefix": f"/r{number}"}}]
        return proxy_config(target, server={"workers": 2}, routes=routes, agents=[AGENT])

    try:
        with served(config(0), short_tmp_dir) as system, Load(system.address) as load:
            reloaded, refused = lines(system.child, '"reloaded"'), lines(system.child, "the running config stays")
            for number in range(1, 11):
                system.rewrite(config(number))
                system.child.signal(signal.SIGHUP)
                reloaded(number)
                if number in (3, 7):  # a file that nobody can read changes nothing, and the next one works
                    system.rewrite(config(number) + "[[routes]]\nname = 7\n")
                    system.child.signal(signal.SIGHUP)
                    refused(1 + number // 7)
            wait_until(lambda: len(system.worker_pids()) == 2, 15)
            since = len(load.done)
            wait_until(lambda: len(load.done) > since + 100)
        assert load.failures == {}
        assert load.announced >= 10, "kept connections were moved to the new workers"
        assert re.search(r"config refused: .*name", system.child.output())
        assert len(upstream.seen) > 100
        assert len(other.seen) > 100
        assert not re.search(r"worker died|by force|connections cut", system.child.output())
    finally:
        other.close()


def test_recycling_under_load_loses_nothing(short_tmp_dir: Path, upstream: Upstream) -> None:
    """A single worker replaced again and again: no failure, and somebody serves all the time."""
    config = proxy_config(
        upstream.address, server={"workers": 1, "max_requests": 150}, routes=[EVERYTHING], agents=[AGENT]
    )
    with served(config, short_tmp_dir) as system, Load(system.address) as load:
        lines(system.child, "has served server.max_requests")(12)
    assert load.failures == {}
    assert len(load.done) > 11 * 150
    serving = 0
    for change in re.findall(r'"message":"(worker ready|draining)"', system.child.output()):
        serving += 1 if change == "worker ready" else -1
        assert serving >= 1, "nobody drains before somebody else serves"
    assert not re.search(r"worker died|by force|connections cut", system.child.output())


def test_a_stop_under_load_finishes_what_was_begun(short_tmp_dir: Path, upstream: Upstream) -> None:
    """The proxy first, then agentd: every request that was read is answered and decided; the agent gets DRAIN."""
    config = proxy_config(upstream.address, server={"workers": 2}, routes=[EVERYTHING], agents=[AGENT])
    slow = threading.Event()

    def decide(event: dict[str, Any]) -> dict[str, Any]:
        if event["uri"].startswith("/held"):
            slow.wait(10)
        return ALLOW

    with (
        System(config, short_tmp_dir) as system,
        V2Agent(system.agents_endpoint, "a", ["request_headers"], decide, batch=1) as agent,
    ):
        assert agent.ready.wait(10)
        system.registered()
        assert system.agentd is not None
        with Client(system.address, 15) as held:
            held.send(b"GET /held HTTP/1.1\r\nHost: a\r\n\r\n")
            wait_until(lambda: any(event["uri"] == "/held" for event in agent.seen))
            system.child.signal(signal.SIGTERM)
            system.child.wait_for("draining")
            refused = wait_until(lambda: not _connects(system.address))
            assert refused, "nobody takes new connections"
            slow.set()
            answer = held.answer()
            assert answer.status == 200, "its verdict came after the SIGTERM"
            assert b"connection: close" in answer.head.lower()
        assert system.child.ended() == 0
        assert system.agentd.popen.poll() is None
        assert agent.drains == []
        assert system.agentd.stop() == 0
        wait_until(lambda: agent.drains == [len(agent.seen)], what="DRAIN after the last event")
        assert not re.search(r"worker died|by force|connections cut", system.child.output())


def test_ctrl_c_under_load_answers_what_it_has_read(short_tmp_dir: Path, upstream: Upstream) -> None:
    """`wardgate run`: the proxy goes first, so every request that was read has its verdict; then agentd, with DRAIN."""
    runtime = short_tmp_dir / "run"
    config = short_tmp_dir / "wardgate.toml"
    tables = {"runtime": {"dir": str(runtime)}, "audit": {"path": str(short_tmp_dir / "audit")}}
    routes = [EVERYTHING]
    config.write_text(proxy_config(upstream.address, server={"workers": 2}, routes=routes, agents=[AGENT], **tables))
    command = python("-c", "from proxy.cli import main; main()", "run", "--config", str(config))
    with (
        Child(command, short_tmp_dir / "run.log") as run,
        V2Agent(f"ipc://{runtime}/agents/v2", "a", ["request_headers"], lambda event: ALLOW) as agent,
    ):
        run.wait_for("Wardgate is ready.", 20)
        assert agent.ready.wait(10)
        host, _, port = (runtime / "proxy.addr").read_text().split()[0].rpartition(":")
        wait_until(lambda: _status((host, int(port))) == 200, 10)
        with Load((host, int(port)), kept=8, fresh=0) as load:
            wait_until(lambda: len(load.done) > 200)
            run.signal(signal.SIGINT)
            wait_until(lambda: load.failures or run.popen.poll() is not None, 10)
            assert run.ended() == 0
        wait_until(lambda: agent.drains == [len(agent.seen)], what="DRAIN after the last event")
        assert not [failure for failure in load.failures if failure[0].isdigit()], "nothing for want of agentd"
        assert all("0 bytes" in failure for failure in load.failures if "Incomplete" in failure), "no answer was cut"
        assert load.announced >= 8
        assert "does not stop" not in run.output()


def _status(address: tuple[str, int]) -> int:
    with Client(address) as client:
        client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        return client.answer().status


def _connects(address: tuple[str, int]) -> bool:
    try:
        Client(address, 1).close()
    except OSError:
        return False
    return True
