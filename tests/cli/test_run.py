"""proxy/cli/run.py with real processes: one terminal, everything starts, everything stops, nothing is left."""

import http.client
import json
import os
import re
import signal
import socket
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from proxy.cli import main
from tests.support import Child, free_port, is_running, python, wait_until

READY = "Wardgate is ready."
LABELS = ("upstream", "agentd", "proxy", "agent-1")  # agent-2 has ten lines and none of them speaks


class Run:
    """One `wardgate run` in its own runtime directory."""

    def __init__(self, dir: Path) -> None:
        self.dir = dir
        self.runtime = dir / "wardgate-demo"
        self.admin_port = free_port()
        self._count = 0

    def start(self, *args: str, env: dict[str, str] | None = None) -> Child:
        self._count += 1
        given = args or ("--demo", "--port", "0", "--admin-port", str(self.admin_port))
        command = python("-c", "from proxy.cli import main; main()", "run", *given)
        plain = {"XDG_RUNTIME_DIR": str(self.dir), "NO_COLOR": "", "FORCE_COLOR": ""}
        return Child(command, self.dir / f"out-{self._count}", {**plain, **(env or {})})

    def get(self, path: str, headers: dict[str, str] | None = None) -> tuple[http.client.HTTPResponse, bytes]:
        """One request to the proxy."""
        host, _, port = (self.runtime / "proxy.addr").read_text().split()[0].rpartition(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=10)
        try:
            connection.request("GET", path, headers=headers or {})
            response = connection.getresponse()
            return response, response.read()
        finally:
            connection.close()

    def left(self) -> set[str]:
        """Files below the runtime directory that are not the audit."""
        return {p.name for p in self.runtime.rglob("*") if not p.is_dir() and p.parent.name != "audit"}


@pytest.fixture
def run(short_tmp_dir: Path) -> Run:
    return Run(short_tmp_dir)


def descendants(pid: int) -> set[int]:
    """Every process below one."""
    found: set[int] = set()
    todo = [pid]
    while todo:
        try:
            children = Path(f"/proc/{todo[-1]}/task/{todo.pop()}/children").read_text().split()
        except FileNotFoundError:
            continue
        found.update(map(int, children))
        todo.extend(map(int, children))
    return found


def child_pid(pid: int, part: str) -> int:
    """The direct child whose command line holds `part`."""
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        if part in Path(f"/proc/{child}/cmdline").read_text().replace("\0", " "):
            return int(child)
    raise AssertionError(f"no child with {part}")


def test_the_demo_does_what_the_banner_says_and_ctrl_c_leaves_nothing(run: Run) -> None:
    """Every answer of the two agents, then an orderly stop within 5 s: no process, socket or segment."""
    with run.start() as child:
        child.wait_for(READY, 30)
        response, body = run.get("/echo")
        assert response.status == 200
        assert response.headers["X-Served-Through"] == "wardgate"
        seen = {name.lower(): value for name, value in json.loads(body)["headers"]}
        assert seen["x-agent"] == "ok"
        assert seen["x-demo-tag"] == "v1"
        assert run.get("/")[0].headers["Content-Type"].startswith("text/html")
        assert json.loads(run.get("/json")[1])["ok"] is True
        for path, headers in (("/admin", {}), ("/admin/x", {}), ("/json", {"X-Block": "1"})):
            response, body = run.get(path, headers)
            assert response.status == 403
            assert response.headers["X-Blocked-By"]
            assert body
        response, _ = run.get("/old/page")
        assert response.status == 302
        assert response.headers["Location"]
        response, _ = run.get("/members")
        assert response.status == 401
        assert response.headers["WWW-Authenticate"].startswith("Basic")
        pids = descendants(child.pid)
        assert len(pids) == 7  # five children and two workers
        began = time.monotonic()
        child.signal(signal.SIGINT)
        assert child.ended(8) == 0
        assert time.monotonic() - began < 5
        lines = child.output().splitlines()
        for label in LABELS:
            assert any(line.startswith(f"{label:8} | ") for line in lines), label
    assert not any(map(is_running, pids))
    assert run.left() == set()
    assert list((run.runtime / "audit").iterdir())


def test_a_second_start_says_so_and_touches_nothing(run: Run) -> None:
    """Exit 1 with the pid of the first, which goes on serving."""
    with run.start() as first:
        first.wait_for(READY, 30)
        before = {p: p.stat().st_ino for p in run.runtime.rglob("*")}
        with run.start() as second:
            assert second.ended() == 1
            assert f"already running in {run.runtime} with pid {first.pid}" in second.output()
            assert len(second.output().splitlines()) == 1
        assert {p: p.stat().st_ino for p in run.runtime.rglob("*")} == before
        assert run.get("/json")[0].status == 200
        assert first.stop() == 0


@pytest.mark.parametrize("which", ["--port", "--admin-port"])
def test_a_port_in_use_is_named_and_nothing_is_started(run: Run, which: str) -> None:
    """Exit 1, the port and the way out, nothing left running."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with run.start("--demo", "--port", "0", "--admin-port", str(run.admin_port), which, str(port)) as child:
            assert child.ended() == 1
            assert f"port {port} is already in use" in child.output()
            assert which in child.output()
    assert run.left() == set()


def test_kill_9_on_run_leaves_no_process(run: Run) -> None:
    """The kernel tells the children; each leaves as it would after SIGTERM. The next start works."""
    with run.start() as child:
        child.wait_for(READY, 30)
        pids = descendants(child.pid)
        os.kill(child.pid, signal.SIGKILL)
        wait_until(lambda: not any(map(is_running, pids)), 8)
    assert not {name for name in run.left() if name.endswith((".seg", ".sock"))}
    with run.start() as child:
        child.wait_for(READY, 30)
        assert child.stop() == 0


def test_agentd_and_the_agents_are_started_again(run: Run) -> None:
    """kill -9 on each: said in the terminal, back by itself, and decisions are made again."""
    with run.start() as child:
        child.wait_for(READY, 30)
        for label, part in (("agentd", "-m agentd"), ("agent-1", "policy_agent"), ("agent-2", "tag_agent")):
            os.kill(child_pid(child.pid, part), signal.SIGKILL)
            child.wait_for(f"{label} was killed by SIGKILL; starting it again")
            wait_until(lambda: run.get("/admin")[0].status == 403, 10)
            wait_until(lambda: run.get("/json")[0].status == 200, 10)
        assert child.stop() == 0
    assert run.left() == set()


def test_without_the_proxy_everything_stops(run: Run) -> None:
    """kill -9 on the arbiter: its workers go, too; exit 1; what it could not remove is removed."""
    with run.start() as child:
        child.wait_for(READY, 30)
        pids = descendants(child.pid)
        os.kill(child_pid(child.pid, "-m proxy --config"), signal.SIGKILL)
        assert child.ended(10) == 1
        assert "nothing to run without it" in child.output()
        wait_until(lambda: not any(map(is_running, pids)), 5)
    assert run.left() == set()


def test_a_second_ctrl_c_kills(run: Run) -> None:
    """Somebody does not stop: the second time nobody is asked."""
    with run.start() as child:
        child.wait_for(READY, 30)
        pids = descendants(child.pid)
        os.kill(child_pid(child.pid, "-m proxy --config"), signal.SIGSTOP)
        child.signal(signal.SIGINT)
        child.wait_for("Ctrl-C: stopping")
        began = time.monotonic()
        child.signal(signal.SIGINT)
        child.wait_for("killing what is left")
        assert child.ended(5) == 0
        assert time.monotonic() - began < 2
        wait_until(lambda: not any(map(is_running, pids)), 2)
    assert run.left() == set()


def test_colour_when_forced(run: Run) -> None:
    """Labels in colour, and the escapes end where they begin."""
    with run.start(env={"FORCE_COLOR": "1"}) as child:
        child.wait_for(READY, 30)
        assert child.stop() == 0
        assert re.search(r"\x1b\[\d+mproxy *\x1b\[0m ", child.output())


def test_a_users_own_configuration(run: Run) -> None:
    """--config: agentd and the proxy only; requests reach the user's upstream."""
    with Child(python("-m", "proxy.demo.upstream"), run.dir / "upstream") as upstream:
        upstream.wait_for("serving http://")
        found = re.search(r"http://([0-9.]+:\d+)/", upstream.output())
        assert found is not None
        config = run.dir / "own.toml"
        config.write_text(
            f'[server]\nlisten = ["127.0.0.1:0"]\n[runtime]\ndir = "{run.runtime}"\n[admin]\nlisten = []\n'
            f'[audit]\npath = "{run.runtime}/audit"\n[logging]\nformat = "text"\n'
            f'[[upstreams]]\nname = "app"\ntargets = [{{ address = "{found[1]}" }}]\n'
            '[[agents]]\nname = "late"\nprotocol = "zmq-v2"\nfailure_mode = "open"\n'
            '[[routes]]\nname = "all"\nupstream = "app"\nfilters = [{ agent = "late" }]\n'
        )
        with run.start("--config", str(config)) as child:
            child.wait_for(READY, 30)
            child.wait_for("Not connected yet: late.")
            assert run.get("/json")[0].status == 200
            assert child.stop() == 0
    assert run.left() == set()


def test_a_config_error_is_told_as_check_tells_it(run: Run) -> None:
    """Exit 2, file:line, nothing started."""
    config = run.dir / "own.toml"
    config.write_text("[server]\nworkerz = 2\n")
    with run.start("--config", str(config)) as child:
        assert child.ended() == 2
        assert f"{config}:2" in child.output()
        assert "did you mean" in child.output()


@pytest.mark.parametrize("args", [["--demo", "--config", "x"], ["--port", "1"], ["--demo", "--port", "70000"]])
def test_usage_errors(args: list[str]) -> None:
    """Exit 2 before anything is looked at."""
    assert CliRunner().invoke(main, ["run", *args]).exit_code == 2
