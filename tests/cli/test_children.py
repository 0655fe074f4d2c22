"""proxy/cli/children.py with real processes: output, readiness, signals, the parent's death."""

import os
import signal
import sys
from pathlib import Path

from proxy.cli.children import Process, ReadySocket, Spec, environment
from proxy.cli.supervise import Role
from tests.support import Child, is_running, python, wait_until


def started(code: str, environ: dict[str, str] | None = None) -> Process:
    return Process(Spec("x", Role.AGENT, (sys.executable, "-P", "-c", code)), {**os.environ, **(environ or {})})


def ended(process: Process) -> str:
    return wait_until(process.end, 10)


def test_lines_come_whole() -> None:
    """Half a line waits for its other half; what has no end comes at the end."""
    process = started("import os, sys\nos.write(1, b'a\\nb')\nsys.stdin.read()\nos.write(2, b'c\\r\\nrest')")
    assert ended(process) == "ended with exit code 0"
    assert process.rest() == ["a", "bc", "rest"]
    process.close()


def test_an_endless_line_comes_in_pieces() -> None:
    """No child fills our memory by never ending its line."""
    process = started("import os\nfor _ in range(10): os.write(1, b'x' * 30000)")
    found: list[str] = []

    def is_over() -> bool:
        found.extend(process.lines() or [])
        return bool(process.end())

    wait_until(is_over, 10)
    found += process.rest()
    assert len(found) > 3
    assert "".join(found) == "x" * 300_000
    process.close()


def test_how_it_ended_in_words() -> None:
    """Exit code or signal."""
    process = started("import sys; sys.exit(3)")
    assert ended(process) == "ended with exit code 3"
    process.close()
    process = started("import time; print('up', flush=True); time.sleep(60)")
    wait_until(lambda: process.lines())
    assert process.end() == ""
    process.send("term")
    assert ended(process) == "was killed by SIGTERM"
    process.send("term")
    process.close()


def test_kill_reaches_its_whole_group() -> None:
    """A grandchild does not survive its parent's SIGKILL."""
    process = started(
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print(child.pid, flush=True)\ntime.sleep(60)"
    )
    (line,) = wait_until(lambda: process.lines())
    process.send("kill")
    ended(process)
    process.close()
    wait_until(lambda: not is_running(int(line)))


def test_ready_is_attributed_to_who_said_it() -> None:
    """The kernel says which process spoke; another's sockets and watchdog are not passed on."""
    ready = ReadySocket()
    environ = environment({**os.environ, "WATCHDOG_USEC": "1", "LISTEN_FDS": "3"}, ready)
    assert "WATCHDOG_USEC" not in environ
    assert "LISTEN_FDS" not in environ
    code = "import os; from shared.notify import Notify; n = Notify(os.environ); n.status('x'); n.ready('up')"
    process = started(code, environ)
    ended(process)
    assert ready.pids() == [process.popen.pid]
    assert ready.pids() == []
    process.close()
    ready.close()


def test_a_child_goes_when_its_parent_is_killed(tmp_path: Path) -> None:
    """PR_SET_PDEATHSIG: SIGTERM from the kernel."""
    code = (
        "import sys, time, os; from proxy.cli.children import *\n"
        "p = Process(Spec('x', Role.AGENT, (sys.executable, '-c', 'import time; time.sleep(60)')), os.environ)\n"
        "print(f'pid={p.popen.pid}.', flush=True); time.sleep(60)"
    )
    with Child(python("-c", code), tmp_path / "out") as parent:
        parent.wait_for(".")
        pid = int(parent.output().partition("=")[2].partition(".")[0])
        os.kill(parent.pid, signal.SIGKILL)
        wait_until(lambda: not is_running(pid))
