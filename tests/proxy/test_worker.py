"""proxy/worker.py with real processes: how a worker drains, beats and ends."""

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from proxy.app import WorkerContext
from shared.clock import S, now_ns
from shared.defaults import DRAIN_IDLE_S, REACH_AGENTD_S
from shared.segment import WorkerState
from tests.proxy.front import Client, Front, upstream
from tests.support import is_running, wait_until


@pytest.fixture
def front(short_tmp_dir: Path) -> Iterator[Front]:
    with upstream(short_tmp_dir) as address:
        yield Front(short_tmp_dir, address)


def test_a_worker_exits_with_status_0_and_runs_its_atexit(front: Front) -> None:
    """uvicorn raises SIGTERM again at its end: no atexit, no worker_exit, 0 % coverage of worker code."""
    say = "import atexit, os; atexit.register(lambda: os.write(2, b'goodbye %d\\n' % os.getpid()))"
    with front.serving(code=say) as child:
        pids = front.ready_pids()
        assert child.stop() == 0
        for pid in pids:
            assert f"goodbye {pid}\n" in child.output()
        assert child.output().count("exit_code=0") == 2


def test_a_draining_worker_answers_the_next_request_of_an_idle_connection(front: Front) -> None:
    """Stock uvicorn cuts it, and a request on its way is lost (307 of 4 x 64 reloads)."""
    with front.serving() as child, Client(front.address) as client:
        assert client.get("/json")[0] == 200
        child.signal(signal.SIGTERM)
        wait_until(lambda: {row.state for row in front.workers()} == {WorkerState.DRAINING} or child.popen.poll(), 5)
        client.send("/json")
        status, head, _ = client.response()
        assert status == 200
        assert "connection: close" in head
        assert client.is_closed()
        assert child.ended() == 0


def test_a_draining_worker_closes_what_stays_idle(front: Front) -> None:
    """After DRAIN_IDLE_S, not after the whole graceful timeout."""
    front.write(graceful_s=30)
    with front.serving() as child, Client(front.address) as client:
        assert client.get("/json")[0] == 200
        began = time.monotonic()
        child.signal(signal.SIGTERM)
        assert client.is_closed()
        assert DRAIN_IDLE_S - 0.5 < time.monotonic() - began < DRAIN_IDLE_S + 2
        assert child.ended(3) == 0


def test_a_drain_ends_by_itself_before_the_arbiters_patience(front: Front) -> None:
    """graceful_timeout_s - 1: what is still open is closed by the worker, which exits with status 0."""
    front.write(graceful_s=2)
    with front.serving() as child, Client(front.address) as client:
        client.send("/slow?s=30")
        wait_until(front.requests, 5)
        child.signal(signal.SIGTERM)
        assert child.ended(4) == 0
        assert client.is_closed()
        assert "graceful timeout: connections cut" in child.output()
        assert "by force" not in child.output()


def test_a_drain_may_take_longer_than_the_worker_timeout(front: Front) -> None:
    """The heartbeat goes on while a stream ends; stock uvicorn's stops and the arbiter kills the worker."""
    front.write(workers=1, graceful_s=20, timeout_s=2)
    with front.serving() as child, Client(front.address) as client:
        client.send("/stream?n=7")
        client.until(b"line 1\n")
        (old,) = front.ready_pids()
        os.kill(old, signal.SIGTERM)
        front.wait_ready(1, {old})
        client.until(b"line 7\n")
        wait_until(lambda: not is_running(old), 5)
        assert "died" not in child.output()
        assert child.stop() == 0


def test_a_worker_told_to_quit_does_not_wait(front: Front) -> None:
    """QUIT to one worker: its connections are cut, it exits with status 0, another takes its place."""
    front.write(workers=1)
    with front.serving() as child, Client(front.address) as client:
        client.send("/slow?s=30")
        wait_until(front.requests, 5)
        (old,) = front.ready_pids()
        os.kill(old, signal.SIGQUIT)
        assert client.is_closed()
        front.wait_ready(1, {old})
        assert "exit_code=0" in child.output()
        assert child.stop() == 0


def test_workers_read_no_configuration(front: Front) -> None:
    """It comes through the fork: a file that breaks after the start is no matter to a worker started later."""
    with front.serving() as child:
        old = front.ready_pids()
        front.config.write_text("this is not TOML")
        for pid in old:
            os.kill(pid, signal.SIGKILL)
        front.wait_ready(2, old)
        with Client(front.address) as client:
            assert client.get("/json")[0] == 200
        assert child.stop() == 0


async def test_a_new_worker_waits_for_its_connection_to_a_live_agentd() -> None:
    """Before, it would refuse what agentd allows: a reload would fail requests. A dead agentd is not waited for."""
    looks = 0

    def is_alive(now: int) -> bool:
        nonlocal looks
        looks += 1
        dispatch.is_up = looks == 3
        return answer

    dispatch = SimpleNamespace(is_up=False)
    context: Any = SimpleNamespace(dispatch=dispatch, _segment=SimpleNamespace(is_alive=is_alive))
    answer = False
    await WorkerContext.reach_agentd(context)
    assert looks == 1
    answer, looks = True, 0
    await WorkerContext.reach_agentd(context)
    assert looks == 3


async def test_it_does_not_wait_for_ever() -> None:
    """An agentd that lives and takes nobody."""
    context: Any = SimpleNamespace(
        dispatch=SimpleNamespace(is_up=False), _segment=SimpleNamespace(is_alive=lambda now: True)
    )
    began = now_ns()
    await asyncio.wait_for(WorkerContext.reach_agentd(context), REACH_AGENTD_S + 5)
    assert now_ns() - began >= REACH_AGENTD_S * S
