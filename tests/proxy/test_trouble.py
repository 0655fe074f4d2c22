"""What becomes of a proxy whose surroundings fail: hung starts, no forks, no files, clocks and stops."""

import contextlib
import os
import re
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.metrics import W_ACCEPT_PAUSES, W_IN_FLIGHT
from shared.segment import WorkerState
from tests.proxy.front import Client, Front, upstream
from tests.support import Child, free_port, is_running, wait_until

# Run in the arbiter before it starts: what is forked has it, too. %r is a file that turns it on.
HANGING_START = """
import os, time, proxy.worker as w
f = w.Worker.load_wsgi
def load(s):
    os.write(2, b"starting %%d\\n" %% os.getpid())
    while os.path.exists(%r):
        time.sleep(0.05)
    f(s)
w.Worker.load_wsgi = load
"""
HANGING_LOOP = """
import os, time, proxy.app as a
f, flag = a.WorkerContext._sweep, %r
def sweep_that_hangs(s):
    if os.path.exists(flag) and open(flag).read() in ("all", str(os.getpid())):
        open(f"{flag}.{os.getpid()}", "w").close()
        time.sleep(60)
    f(s)
a.WorkerContext._sweep = sweep_that_hangs
"""
FAILING_FORK = """
import os
f, left = os.fork, [3]
def fork():
    if left[0]:
        left[0] -= 1
        raise BlockingIOError(11, "Resource temporarily unavailable")
    return f()
os.fork = fork
"""
FULL_DISK = """
import os, shared.segment_proxy as s
f = s.ProxyWriter._reserve_slot
def reserve(self, index):
    if os.path.exists(%r) and index not in self._reserved:
        raise OSError(28, "No space left on device")
    f(self, index)
s.ProxyWriter._reserve_slot = reserve
"""
STEPPING_CLOCK = """
import time
f, calls = time.time, [0]
def stepping():
    calls[0] += 1
    return f() + 3600 * calls[0] * (-1) ** calls[0]
time.time = stepping
"""
FAILING_RELAY = """
from proxy.driver import Driver
def relay(self, what):
    raise RuntimeError("a bug of ours")
Driver.relay_whole = Driver.relay_head = relay  # whether one read brings the response or two
"""
FEW_FILES = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (%d, %d))"


@pytest.fixture
def front(short_tmp_dir: Path) -> Iterator[Front]:
    with upstream(short_tmp_dir) as address:
        yield Front(short_tmp_dir, address)


def serves(front: Front) -> None:
    with Client(front.address) as client:
        assert client.get("/json")[0] == 200


def kill_one(front: Front) -> None:
    """kill -9 a worker, and wait until there are as many as before."""
    old = front.ready_pids()
    os.kill(min(old), signal.SIGKILL)
    wait_until(lambda: len(front.ready_pids() - {min(old)}) == len(old), 10)


def test_a_response_that_fails_us_leaves_nobody_waiting(front: Front) -> None:
    """Whatever it is: the client is cut, not left to wait for what never comes."""
    with front.serving(code=FAILING_RELAY) as child, Client(front.address) as client:
        client.send("/json")
        assert client.is_closed()
        child.wait_for("a bug of ours", 5)
        wait_until(lambda: front.count(W_IN_FLIGHT) == 0)


# --- workers that hang ------------------------------------------------------------------------------


def test_a_worker_that_hangs_before_its_first_heartbeat_is_ended(front: Front) -> None:
    """gunicorn counts silence from the first heartbeat on; here the first start ends and says so."""
    flag = front.dir / "hang"
    flag.touch()
    front.write(timeout_s=2)
    with front.start(code=HANGING_START % str(flag)) as child:
        assert child.ended(10) == 1
        assert "worker hangs: killed" in child.output()
    assert front.left() == set()


def test_a_reload_whose_workers_hang_is_taken_back(front: Front) -> None:
    """The old workers serve all the time, and stay."""
    flag = front.dir / "hang"
    front.write(timeout_s=2)
    with front.serving(code=HANGING_START % str(flag)) as child:
        old = front.ready_pids()
        flag.touch()
        child.signal(signal.SIGHUP)
        child.wait_for("worker hangs: killed")
        serves(front)
        child.wait_for("going back")
        flag.unlink()
        child.wait_for("serving with the config from before")
        assert front.ready_pids() == old
        assert child.stop() == 0


def test_a_worker_whose_loop_hangs_is_killed_with_a_traceback(front: Front) -> None:
    """After worker_timeout_s: the traceback names the place, and another worker is there."""
    flag = front.dir / "hang"
    front.write(timeout_s=2)
    with front.serving(code=HANGING_LOOP % str(flag)) as child:
        victim = min(front.ready_pids())
        flag.write_text(str(victim))
        child.wait_for("worker hangs: killed")
        child.wait_for("sweep_that_hangs")
        assert "Fatal Python error: Aborted" in child.output()
        wait_until(lambda: len(front.ready_pids() - {victim}) == 2, 10)
        serves(front)
        assert child.stop() == 0


def test_a_stop_does_not_wait_for_ever_for_workers_that_hang(front: Front) -> None:
    """After graceful_timeout_s: the traceback, then the end, with nothing left behind."""
    flag = front.dir / "hang"
    front.write(timeout_s=30, graceful_s=2)
    with front.serving(code=HANGING_LOOP % str(flag)) as child:
        pids = front.ready_pids()
        flag.write_text("all")
        wait_until(lambda: all((front.dir / f"hang.{pid}").exists() for pid in pids), 10)
        assert child.stop(8) == 0
        assert child.output().count("worker does not end: killed") == 2
        assert "sweep_that_hangs" in child.output()
    assert not any(map(is_running, pids))
    assert front.left() == set()


def test_a_stop_ends_stopped_workers(front: Front) -> None:
    """SIGSTOP keeps SIGABRT waiting, so SIGKILL follows."""
    front.write(graceful_s=2)
    with front.serving() as child:
        pids = front.ready_pids()
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        assert child.stop(8) == 0
    assert not any(map(is_running, pids))


# --- the arbiter ------------------------------------------------------------------------------------


def test_workers_go_on_while_the_arbiter_is_stopped(front: Front) -> None:
    """SIGSTOP: requests are served; SIGCONT: nobody is blamed for the time in between, also not who stood still."""
    front.write(timeout_s=2)
    with front.serving() as child:
        pids = front.ready_pids()
        victim = min(pids)
        child.signal(signal.SIGSTOP)
        os.kill(victim, signal.SIGSTOP)
        wait_until(lambda: min(row.beat_ns for row in front.workers()) < time.monotonic_ns() - 3_500_000_000)
        serves(front)
        os.kill(victim, signal.SIGCONT)
        child.signal(signal.SIGCONT)
        front.write(workers=1)
        child.signal(signal.SIGHUP)
        front.wait_ready(1, pids)
        assert "hangs" not in child.output()
        assert child.stop() == 0


def test_a_worker_that_hangs_at_its_start_does_not_outlive_the_arbiter(front: Front) -> None:
    """Nobody would end it, and it would keep the port from the next proxy."""
    flag = front.dir / "hang"
    flag.touch()
    with front.start(code=HANGING_START % str(flag)) as child:
        wait_until(lambda: child.output().count("starting ") == 2, 10)
        pids = workers_of(child)
        child.signal(signal.SIGKILL)
        wait_until(lambda: not any(map(is_running, pids)))


def test_a_stream_outlives_the_arbiter_while_a_new_one_serves(front: Front) -> None:
    """kill -9 on the arbiter: what is open is finished, new connections are the next proxy's."""
    port = free_port()
    front.write(listen=f'"127.0.0.1:{port}"', workers=1, graceful_s=20)
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(front.serving())
        (old,) = front.ready_pids()
        stream = stack.enter_context(Client(front.address))
        stream.send("/stream?n=4")
        stream.until(b"line 1\n")
        os.kill(first.pid, signal.SIGKILL)
        wait_until(lambda: "the arbiter is gone" in first.output())
        second = stack.enter_context(front.serving())
        serves(front)
        stream.until(b"line 4\n")
        wait_until(lambda: not is_running(old))
        assert second.stop() == 0


def test_steps_of_the_clock_do_not_matter(front: Front) -> None:
    """Hours forth and back at each look: nobody is killed, and a stop waits for the request under way."""
    front.write(timeout_s=2)
    with front.serving(code=STEPPING_CLOCK) as child, Client(front.address) as client:
        pids = front.ready_pids()
        client.send("/slow?s=2.5")
        wait_until(front.requests, 5)
        child.signal(signal.SIGTERM)
        assert client.response()[0] == 200
        assert child.ended() == 0
        assert child.output().count("exit_code=0") == len(pids)


def test_forks_that_fail_are_tried_again(front: Front) -> None:
    """Too many processes for a moment: said, and then it serves."""
    with front.serving(code=FAILING_FORK) as child:
        assert child.output().count("cannot start a worker: [Errno 11]") == 3
        assert len(front.ready_pids()) == 2
        assert child.stop() == 0


# --- files ------------------------------------------------------------------------------------------


def test_a_full_runtime_directory(front: Front) -> None:
    """Dead workers are replaced; a reload has no room for new ones and is taken back; with room it works."""
    flag = front.dir / "full"
    with front.serving(code=FULL_DISK % str(flag)) as child:
        flag.touch()
        kill_one(front)
        old = front.ready_pids()
        front.write(workers=3)
        child.signal(signal.SIGHUP)
        child.wait_for("No space left on device")
        child.wait_for("serving with the config from before")
        assert front.ready_pids() == old
        serves(front)
        flag.unlink()
        child.signal(signal.SIGHUP)
        front.wait_ready(3, old)
        assert child.stop() == 0


def test_a_removed_runtime_directory(front: Front) -> None:
    """Serves on, replaces workers, reloads and stops in order."""
    with front.serving() as child:
        address, pids = front.address, workers_of(child)
        shutil.rmtree(front.runtime)
        child.wait_for("proxy.seg was removed: health and metrics see no proxy until a restart")
        for number, sig in enumerate((signal.SIGKILL, signal.SIGTERM), 1):
            os.kill(pids[number - 1], sig)
            wait_until(lambda pid=pids[number - 1]: not is_running(pid))  # type: ignore[misc]
        wait_until(lambda: child.output().count("worker ready") == 4, 10)
        with Client(address) as client:
            assert client.get("/json")[0] == 200
        child.signal(signal.SIGHUP)
        wait_until(lambda: child.output().count("worker ready") == 6, 10)
        with Client(address) as client:
            assert client.get("/json")[0] == 200
        assert child.stop() == 0


def workers_of(child: Child) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()]


# --- file descriptors -------------------------------------------------------------------------------


def test_the_limit_of_open_files_is_raised(front: Front) -> None:
    """From the soft to the hard limit, in every worker; and said when that is not much."""
    code = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (200, 700))"
    with front.serving(code=code) as child:
        for pid in front.ready_pids():
            assert re.search(r"Max open files +700 +700 ", Path(f"/proc/{pid}/limits").read_text())
        assert "a worker may open 700 files and would need 832" in child.output()
        assert child.stop() == 0


def test_a_worker_without_descriptors_keeps_what_it_has(front: Front) -> None:
    """Who is connected is served, who is not waits; one line says so; it accepts again when some are free."""
    front.write(workers=1)
    with front.serving(code=FEW_FILES % (160, 160)) as child, contextlib.ExitStack() as stack:
        (pid,) = front.ready_pids()
        first = stack.enter_context(Client(front.address))
        assert first.get("/json")[0] == 200
        held = stack.enter_context(contextlib.ExitStack())
        while "not accepting" not in child.output():
            assert len(front.workers()) == 1
            for _ in range(8):
                held.enter_context(Client(front.address)).get("/json")
            ticked = front.workers()[0].beat_ns
            wait_until(lambda seen=ticked: front.workers()[0].beat_ns > seen)  # type: ignore[misc]
        status, head, _ = first.get("/json")
        assert status == 200
        assert "connection: close" in head, "who is there makes room in time"
        waiting = stack.enter_context(Client(front.address))
        waiting.send("/json")
        before = cpu_ticks(pid)
        began = time.monotonic()
        assert waiting.response()[0] == 200, "the idle ones were closed after a while"
        assert (cpu_ticks(pid) - before) / os.sysconf("SC_CLK_TCK") < 0.5 * (time.monotonic() - began) + 0.1
        assert len(os.listdir(f"/proc/{pid}/fd")) < 160
        assert child.output().count("not accepting") == 1
        assert front.count(W_ACCEPT_PAUSES) >= 1
        assert front.ready_pids() == {pid}
        assert {row.state for row in front.workers()} == {WorkerState.READY}
        assert child.stop() == 0


def cpu_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])
