"""proxy/arbiter.py and proxy/serve.py with real processes: start, reload, recycling, death, end."""

import os
import signal
import socket
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from proxy.arbiter import Arbiter
from shared.clock import MS, S
from shared.defaults import WORKER_STALE_MS
from shared.segment import ReloadResult, WorkerState
from tests.proxy.front import Client, Front, upstream
from tests.support import Child, NotifySocket, free_port, is_running, wait_until

# Run in the arbiter before it starts: what is forked has it, too.
SLOW_START = """
import time, proxy.app as a
f = a.WorkerContext.start
a.WorkerContext.start = lambda s: (time.sleep(0.7), f(s))
"""
FAILING_START = """
import os, proxy.app as a
f = a.WorkerContext.start
def start(s):
    if os.path.exists(%r):
        raise RuntimeError("no such luck")
    f(s)
a.WorkerContext.start = start
"""


@pytest.fixture
def front(short_tmp_dir: Path) -> Iterator[Front]:
    with upstream(short_tmp_dir) as address:
        yield Front(short_tmp_dir, address)


# --- start ------------------------------------------------------------------------------------------


def test_ready_is_said_when_every_worker_is_ready(front: Front, notify_socket: NotifySocket) -> None:
    """gunicorn says READY=1 before any worker exists; ours says it once all slots are marked."""
    with front.start({"NOTIFY_SOCKET": notify_socket.path}, SLOW_START) as child:
        wait_until(lambda: len(front.workers()) == 2 if (front.runtime / "proxy.seg").exists() else 0, 10)
        assert "READY=1" not in notify_socket.fields()
        wait_until(lambda: "READY=1" in notify_socket.fields(), 10)
        assert len(front.ready_pids()) == 2
        assert notify_socket.fields()[0] == "STATUS=starting workers"
        assert child.stop() == 0


def test_a_second_start_says_so_and_touches_nothing(front: Front) -> None:
    """Exit 1, the first one's pid, the same files, still served."""
    with front.serving() as first:
        before = {p.name: p.stat() for p in front.runtime.iterdir()}
        with front.start() as second:
            assert second.ended() == 1
            assert f"proxy is already running in {front.runtime} with pid {first.pid}" in second.output()
        assert {p.name: p.stat().st_ino for p in front.runtime.iterdir()} == {n: s.st_ino for n, s in before.items()}
        with Client(front.address) as client:
            assert client.get("/json")[0] == 200


def test_a_port_in_use_ends_the_start_with_the_way_out(front: Front) -> None:
    """Exit 1, the port named, nothing left in the runtime directory."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        front.write(listen=f'"127.0.0.1:{port}"')
        with front.start() as child:
            assert child.ended() == 1
            assert f"port {port} is already in use" in child.output()
    assert front.left() == set()


def test_a_config_error_starts_nothing(front: Front) -> None:
    """Exit 2 and the finding; no runtime directory was made."""
    front.write(workers='"two"')
    with front.start() as child:
        assert child.ended() == 2
        assert "server.workers" in child.output()
    assert not front.runtime.exists()


def test_workers_that_cannot_start_end_the_first_start(front: Front) -> None:
    """Exit 1 with the reason in the log, everything removed."""
    with front.start(code=FAILING_START % "/") as child:
        assert child.ended() == 1
        assert "no such luck" in child.output()
    assert front.left() == set()


def test_unix_sockets_have_a_sane_mode_and_go_with_the_proxy(front: Front) -> None:
    """0660, and no file afterwards."""
    path = front.dir / "s"
    front.write(listen=f'"unix:{path}"')
    with front.serving() as child:
        assert path.stat().st_mode & 0o777 == 0o660
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(5)
            sock.connect(str(path))
            sock.sendall(b"GET /json HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert sock.recv(100).startswith(b"HTTP/1.1 200")
        assert child.stop() == 0
    assert not path.exists()


def test_sockets_passed_by_the_service_manager(front: Front) -> None:
    """LISTEN_FDS wins over server.listen, and the sockets outlive the proxy."""
    front.write(listen='"127.0.0.1:1"')  # could not be bound
    with socket.create_server(("127.0.0.1", 0)) as given:
        os.set_inheritable(given.fileno(), True)
        script = f'exec 3<&{given.fileno()}; export LISTEN_FDS=1 LISTEN_PID=$$; exec "$@"'
        args = ["bash", "-c", script, "-", sys.executable, "-P", "-m", "proxy", "-c", str(front.config)]
        for number in range(2):
            with Child(args, front.dir / f"passed-{number}", pass_fds=(given.fileno(),)) as child:
                with Client(given.getsockname()) as client:  # queued until somebody accepts
                    assert client.get("/json")[0] == 200
                assert child.stop() == 0


# --- end --------------------------------------------------------------------------------------------


def test_term_drains_and_leaves_nothing(front: Front, notify_socket: NotifySocket) -> None:
    """The request under way gets its answer; STOPPING=1; no process, no file; exit 0."""
    with front.serving({"NOTIFY_SOCKET": notify_socket.path}) as child, Client(front.address) as client:
        pids = front.ready_pids()
        client.send("/slow?s=1")
        wait_until(front.requests, 5)
        child.signal(signal.SIGTERM)
        status, head, _ = client.response()
        assert status == 200
        assert "connection: close" in head
        assert child.ended() == 0
        assert "STOPPING=1" in notify_socket.fields()
        assert child.output().count("exit_code=0") == 2
    assert front.left() == set()
    assert not any(map(is_running, pids))


def is_refused(address: tuple[str, int]) -> bool:
    try:
        Client(address).socket.close()
    except ConnectionRefusedError:
        return True
    return False


def test_a_stream_is_finished_while_new_connections_are_refused(front: Front) -> None:
    """Nobody listens from the SIGTERM on; what streams has until graceful_timeout_s."""
    front.write(graceful_s=20)
    with front.serving() as child, Client(front.address) as client:
        address = front.address
        client.send("/stream?n=3")
        client.until(b"line 1\n")
        child.signal(signal.SIGTERM)
        wait_until(lambda: is_refused(address))
        client.until(b"line 3\n")
        client.until(b"\r\n0\r\n\r\n")
        assert child.ended() == 0
        assert "by force" not in child.output()


def test_int_stops_at_once(front: Front) -> None:
    """Ctrl-C on a proxy in the foreground does not wait for a stream."""
    with front.serving() as child, Client(front.address) as client:
        client.send("/slow?s=30")
        wait_until(front.requests, 5)
        child.signal(signal.SIGINT)
        assert child.ended(4) == 0
        assert client.is_closed()
    assert front.left() == set()


def test_term_then_int_stops_waiting(front: Front) -> None:
    """Impatience is possible at any time."""
    front.write(graceful_s=60)
    with front.serving() as child, Client(front.address) as client:
        client.send("/slow?s=30")
        wait_until(front.requests, 5)
        child.signal(signal.SIGTERM)
        child.wait_for("draining the workers")
        child.signal(signal.SIGINT)
        assert child.ended(4) == 0


def test_workers_leave_when_the_arbiter_was_killed(front: Front) -> None:
    """kill -9 on the arbiter: its workers go, and a new proxy starts beside nothing."""
    port = free_port()
    front.write(listen=f'"127.0.0.1:{port}"')
    with front.serving() as child:
        pids = front.ready_pids()
        os.kill(child.pid, signal.SIGKILL)
        wait_until(lambda: not any(map(is_running, pids)), 5)
        assert "the arbiter is gone" in child.output()
    with front.serving():
        assert front.address[1] == port


# --- reload -----------------------------------------------------------------------------------------


def test_reload_replaces_the_workers_after_the_new_ones_serve(front: Front, notify_socket: NotifySocket) -> None:
    """RELOADING=1, new workers with the new digest, READY=1; what was under way is answered by the old ones."""
    with front.serving({"NOTIFY_SOCKET": notify_socket.path}) as child, Client(front.address) as client:
        old = front.ready_pids()
        digests = {row.config_digest for row in front.workers()}
        client.send("/slow?s=1")
        wait_until(front.requests, 5)
        front.write(route="other")
        child.signal(signal.SIGHUP)
        new = front.wait_ready(2, old)
        assert client.response()[0] == 200
        wait_until(lambda: not old & {row.pid for row in front.workers()}, 10)
        assert not any(map(is_running, old))
        assert not digests & {row.config_digest for row in front.workers()}
        assert front.ready_pids() == new
        fields = notify_socket.fields()
        assert fields.count("RELOADING=1") == 1
        assert [f for f in fields if f in ("READY=1", "RELOADING=1")] == ["READY=1", "RELOADING=1", "READY=1"]
        assert any(field.startswith("MONOTONIC_USEC=") for field in fields)
        assert child.stop() == 0


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"workers": '"many"'}, "server.workers"),
        ({"route": "x\\u0001"}, "name"),
        ({"listen": '"127.0.0.1:1"'}, "server.listen: changed, and that needs a restart"),
    ],
)
def test_a_config_that_is_refused_changes_nothing(
    front: Front, notify_socket: NotifySocket, values: dict[str, object], why: str
) -> None:
    """gunicorn would exit and leave its workers alone; ours says why and goes on with the same workers."""
    with front.serving({"NOTIFY_SOCKET": notify_socket.path}) as child:
        old = front.ready_pids()
        front.write(**values)
        child.signal(signal.SIGHUP)
        child.wait_for("the running config stays")
        assert "config refused" in child.output()
        assert why in child.output()
        assert front.ready_pids() == old
        wait_until(lambda: notify_socket.fields().count("READY=1") == 2)
        with Client(front.address) as client:
            assert client.get("/json")[0] == 200
        assert child.stop() == 0


def test_a_config_whose_workers_cannot_start_is_taken_back(front: Front) -> None:
    """It passed the check, and still the old workers serve on; the next reload works."""
    flag = front.dir / "boom"
    with front.serving(code=FAILING_START % str(flag)) as child:
        old = front.ready_pids()
        flag.touch()
        child.signal(signal.SIGHUP)
        child.wait_for("going back")
        child.wait_for("serving with the config from before")
        assert front.ready_pids() == old
        assert front.reload().result is ReloadResult.ROLLED_BACK
        with Client(front.address) as client:
            assert client.get("/json")[0] == 200
        flag.unlink()
        child.signal(signal.SIGHUP)
        front.wait_ready(2, old)
        wait_until(lambda: front.reload().result is ReloadResult.APPLIED)
        assert child.stop() == 0


def test_reload_changes_the_number_of_workers(front: Front) -> None:
    """One key of [server] that a reload can change."""
    with front.serving() as child:
        old = front.ready_pids()
        front.write(workers=1)
        child.signal(signal.SIGHUP)
        front.wait_ready(1, old)
        assert child.stop() == 0


# --- workers that go --------------------------------------------------------------------------------


def test_a_recycling_worker_does_not_delay_its_successor(front: Front) -> None:
    """max_requests with a stream still open: stock gunicorn let new connections wait 7.3 s."""
    front.write(workers=1, max_requests=2)
    with front.serving() as child, Client(front.address) as stream, Client(front.address) as other:
        old = front.ready_pids()
        stream.send("/stream?n=20")
        stream.until(b"line 1\n")
        assert other.get("/json")[0] == 200
        other.send("/json", "Connection: close")
        assert other.response()[0] == 200
        new = front.wait_ready(1, old)
        assert any(row.state is WorkerState.DRAINING and {row.pid} == old for row in front.workers())
        with Client(front.address, 2) as third:
            assert third.get("/json")[0] == 200
        stream.until(b"line 3\n")
        assert new != old
        child.signal(signal.SIGINT)
        assert child.ended() == 0


def test_a_killed_worker_is_replaced_and_its_counts_stay(front: Front) -> None:
    """kill -9: another is there soon, its slot is free again, and totals do not go down."""
    with front.serving() as child:
        with Client(front.address) as client:
            for _ in range(5):
                assert client.get("/json")[0] == 200
        before = front.requests()
        old = front.ready_pids()
        for pid in old:
            os.kill(pid, signal.SIGKILL)
        front.wait_ready(2, old)
        assert front.requests() == before
        assert child.output().count("worker died") == 2
        with Client(front.address) as client:
            assert client.get("/json")[0] == 200
        assert child.stop() == 0


def test_a_stopped_worker_is_replaced(front: Front) -> None:
    """SIGSTOP: no heartbeat for worker_timeout_s, then it is killed; the other one serves meanwhile."""
    front.write(timeout_s=2)
    with front.serving() as child:
        old = front.ready_pids()
        victim = min(old)
        os.kill(victim, signal.SIGSTOP)
        wait_until(lambda: not is_running(victim), 8)
        wait_until(lambda: len(front.ready_pids() - {victim}) == 2, 5)
        assert child.stop() == 0


def test_a_worker_that_hangs_leaves_a_traceback(front: Front) -> None:
    """The SIGABRT of the arbiter shows where it stood."""
    with front.serving() as child:
        os.kill(min(front.ready_pids()), signal.SIGABRT)
        child.wait_for("Fatal Python error: Aborted")
        child.wait_for("signal=SIGABRT")
        assert child.stop() == 0


def test_the_watchdog_is_fed_while_a_worker_beats(front: Front, notify_socket: NotifySocket) -> None:
    """WATCHDOG=1 again and again, also while a reload is under way."""
    env = {"NOTIFY_SOCKET": notify_socket.path, "WATCHDOG_USEC": "400000"}
    with front.serving(env) as child:
        wait_until(lambda: notify_socket.fields().count("WATCHDOG=1") >= 3, 5)
        with Client(front.address) as client:
            client.send("/slow?s=3")
            wait_until(front.requests, 5)
            child.signal(signal.SIGHUP)
            child.wait_for("reloaded")
            there = notify_socket.fields().count("WATCHDOG=1")
            wait_until(lambda: notify_socket.fields().count("WATCHDOG=1") >= there + 3, 2)
        assert child.stop() == 0


def test_the_watchdog_starves_when_no_worker_beats() -> None:
    """An arbiter that turns over workers that hang is not alive; one worker that beats is enough."""
    told: list[str] = []
    beats: list[int] = []
    arbiter = SimpleNamespace(
        _writer=SimpleNamespace(beat=beats.append),
        _notify=SimpleNamespace(watchdog_s=1.0, watchdog=lambda: told.append("WATCHDOG=1")),
        _slots={1: SimpleNamespace(beat_ns=100 * S), 2: SimpleNamespace(beat_ns=100 * S)},
        _fed_ns=0,
        _looked_ns=1_000 * S,
    )
    feed = partial(Arbiter._feed, arbiter)  # type: ignore[arg-type]
    feed(101 * S)
    feed(101 * S + 400 * MS)  # not due again
    assert len(told) == 1
    stale = 101 * S + WORKER_STALE_MS * MS
    feed(stale)
    assert len(told) == 1
    arbiter._slots[2].beat_ns = stale - S
    feed(stale)
    assert len(told) == 2
    assert beats[-1] == stale, "its own heartbeat is only about itself"


def test_ttin_and_ttou_change_the_number_of_workers(front: Front) -> None:
    """One more, one less, by signal."""
    with front.serving() as child:
        old = front.ready_pids()
        child.signal(signal.SIGTTIN)
        assert front.wait_ready(3) > old
        child.signal(signal.SIGTTOU)
        wait_until(lambda: len(front.ready_pids()) == 2, 5)
        assert child.stop() == 0


def test_a_signal_during_the_start_is_not_lost(front: Front) -> None:
    """TERM while workers are between fork and loop: they end, and quickly."""
    with front.start(code=SLOW_START) as child:
        wait_until(lambda: len(front.workers()) == 2 if (front.runtime / "proxy.seg").exists() else 0, 10)
        child.signal(signal.SIGTERM)
        assert child.ended(4) == 0
        assert "by force" not in child.output()
    assert front.left() == set()
