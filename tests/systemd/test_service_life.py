"""Both daemons against a real notify socket: READY, RELOADING, STOPPING, and a WATCHDOG that stops when work stops."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.segment import AgentdView, ProxyView
from tests.proxy.front import Client, Front, upstream
from tests.support import Agentd, Child, NotifySocket, python, wait_until

WATCHDOG_USEC = "200000"  # fed four times in that, which the daemons do on turns of 100 and 200 ms
# `WORKER_STALE_MS` is 5 s; the claim is about what follows, not about the number.
SOON_STALE = "import proxy.arbiter as a; a.WORKER_STALE_MS = 500"


@pytest.fixture
def front(short_tmp_dir: Path) -> Iterator[Front]:
    with upstream(short_tmp_dir) as address:
        yield Front(short_tmp_dir, address)


@pytest.fixture
def env(notify_socket: NotifySocket) -> dict[str, str]:
    return {"NOTIFY_SOCKET": notify_socket.path, "WATCHDOG_USEC": WATCHDOG_USEC}


def beats(notify_socket: NotifySocket) -> int:
    return notify_socket.fields().count("WATCHDOG=1")


def steps(notify_socket: NotifySocket) -> list[str]:
    """What was said about states, in order."""
    return [field for field in notify_socket.fields() if field in ("READY=1", "RELOADING=1", "STOPPING=1")]


def is_fed(notify_socket: NotifySocket) -> None:
    """Some more beats come."""
    there = beats(notify_socket)
    wait_until(lambda: beats(notify_socket) >= there + 3, 10, "WATCHDOG=1")


def check_reload_time(notify_socket: NotifySocket, before_ns: int) -> None:
    """RELOADING=1 comes in one datagram with the CLOCK_MONOTONIC of now, as systemd from 253 on wants it."""
    (message,) = [text for text in notify_socket.messages if "RELOADING=1" in text.split("\n")]
    (usec,) = [line.partition("=")[2] for line in message.split("\n") if line.startswith("MONOTONIC_USEC=")]
    assert before_ns // 1000 <= int(usec) <= time.monotonic_ns() // 1000


# --- proxy ------------------------------------------------------------------------------------------


def test_the_proxys_life_as_systemd_hears_it(front: Front, notify_socket: NotifySocket, env: dict[str, str]) -> None:
    """READY, beats, RELOADING and READY again, STOPPING; beats on while it drains; a text with each state."""
    with front.serving(env) as child:
        is_fed(notify_socket)
        assert steps(notify_socket) == ["READY=1"]
        before_ns = time.monotonic_ns()
        child.signal(signal.SIGHUP)
        wait_until(lambda: steps(notify_socket) == ["READY=1", "RELOADING=1", "READY=1"], 10)
        check_reload_time(notify_socket, before_ns)
        with Client(front.address) as client:
            there = front.requests()
            client.send("/slow?s=2")
            wait_until(lambda: front.requests() > there, 5)
            child.signal(signal.SIGTERM)
            wait_until(lambda: "STOPPING=1" in notify_socket.fields(), 5)
            is_fed(notify_socket)
            assert client.response()[0] == 200
        assert child.ended() == 0
    assert steps(notify_socket) == ["READY=1", "RELOADING=1", "READY=1", "STOPPING=1"]
    assert "STATUS=draining" in notify_socket.fields()
    assert any(field.startswith("STATUS=2 workers on 127.0.0.1:") for field in notify_socket.fields())


def test_the_proxys_watchdog_starves_while_all_workers_are_stopped(
    front: Front, notify_socket: NotifySocket, env: dict[str, str]
) -> None:
    """The arbiter's own loop turns on and says nothing; one worker that turns again is enough."""
    front.write(timeout_s=60)
    with front.serving(env, SOON_STALE) as child:
        pids = sorted(front.ready_pids())
        os.kill(pids[0], signal.SIGSTOP)
        wait_until(lambda: [row.pid for row in front.workers() if is_stale(row.beat_ns)] == pids[:1], 5)
        is_fed(notify_socket)
        try:
            os.kill(pids[1], signal.SIGSTOP)
            wait_until(lambda: all(is_stale(row.beat_ns) for row in front.workers()), 5)
            arbiter_turns(front, 2)  # what was said before the workers became stale has arrived
            there = beats(notify_socket)
            arbiter_turns(front, 5)
            assert beats(notify_socket) == there
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)
        is_fed(notify_socket)
        assert child.stop() == 0


def is_stale(beat_ns: int) -> bool:
    return time.monotonic_ns() - beat_ns > 600_000_000


def arbiter_turns(front: Front, number: int) -> None:
    """Wait until the arbiter's loop, which is what would feed, has turned so often."""
    view = ProxyView(str(front.runtime / "proxy.seg"))
    try:
        assert view.attach()
        for _ in range(number):
            beat = view.beat_ns
            wait_until(lambda beat=beat: view.beat_ns > beat, 5)  # type: ignore[misc]
    finally:
        view.close()


def test_a_proxy_that_stands_still_is_not_fed(front: Front, notify_socket: NotifySocket, env: dict[str, str]) -> None:
    """SIGSTOP to the arbiter alone: its workers serve and beat on, and still nobody speaks for it."""
    with front.serving(env) as child:
        child.signal(signal.SIGSTOP)
        try:
            there = beats(notify_socket)
            with Client(front.address) as client:
                assert client.get("/slow?s=1")[0] == 200
            assert beats(notify_socket) <= there + 1, "one may have been on its way"
        finally:
            child.signal(signal.SIGCONT)
        is_fed(notify_socket)
        assert child.stop() == 0


# --- agentd -----------------------------------------------------------------------------------------


def test_agentds_life_as_systemd_hears_it(
    short_tmp_dir: Path, notify_socket: NotifySocket, env: dict[str, str]
) -> None:
    """READY with sockets made, beats, RELOADING and READY again, STOPPING."""
    with Agentd(short_tmp_dir, env=env) as agentd:
        agentd.start(wait=False)
        wait_until(lambda: "READY=1" in notify_socket.fields(), 10)
        assert (agentd.runtime / "workers.sock").is_socket()
        assert (agentd.runtime / "agents" / "v2").is_socket()
        is_fed(notify_socket)
        before_ns = time.monotonic_ns()
        agentd.child.signal(signal.SIGHUP)
        wait_until(lambda: steps(notify_socket) == ["READY=1", "RELOADING=1", "READY=1"], 10)
        check_reload_time(notify_socket, before_ns)
        is_fed(notify_socket)
        assert agentd.child.stop() == 0
    assert steps(notify_socket) == ["READY=1", "RELOADING=1", "READY=1", "STOPPING=1"]
    assert "STATUS=0 of 0 agents live, 0 workers" in notify_socket.fields()


def test_agentds_watchdog_starves_when_its_loop_hangs(
    short_tmp_dir: Path, notify_socket: NotifySocket, env: dict[str, str]
) -> None:
    """A callback that never returns: threads and sockets live on, and the beats end with the loop's turns."""
    # The signal's handler runs in the loop, as everything that could hang.
    stuck = (
        "import sys, time, agentd.daemon as d\n"
        "d.Daemon._told_to_reopen = lambda self: (print('hangs', flush=True), time.sleep(600))\n"
        "from agentd.__main__ import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    agentd = Agentd(short_tmp_dir)
    args = python("-c", stuck, "--config", str(agentd.config))
    with Child(args, short_tmp_dir / "stuck.log", env) as child:
        wait_until(lambda: "READY=1" in notify_socket.fields(), 10)
        is_fed(notify_socket)
        child.signal(signal.SIGUSR1)
        child.wait_for("hangs")
        there = beats(notify_socket)  # the loop is in the callback: whatever it said, it has said
        view = AgentdView(str(agentd.runtime / "agentd.seg"))
        try:
            assert view.attach()
            wait_until(lambda: not view.is_alive(time.monotonic_ns()), 10, "agentd.seg to become stale")
        finally:
            view.close()
        assert beats(notify_socket) == there
        # What systemd does then, and what it leaves for whoever reads the journal.
        child.signal(signal.SIGABRT)
        assert child.ended() == -signal.SIGABRT
        assert "Fatal Python error: Aborted" in child.output()
