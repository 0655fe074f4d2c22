"""The product as the bench runs it: configuration, command lines, processes and their CPU time.

A role is one process and its children, in a session of its own; its CPU time is theirs together, read
from /proc before and after a load. Nothing about loads or tables may be put here.

Kind: IO.
"""

import contextlib
import http.client
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
AGENT = HERE / "agents" / "allow_v2.py"
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
START_S = 20.0  # for everything to answer
CONCURRENCY = 2_000  # calls: no load of the bench may meet a queue
OUT_OF_REACH = 1_000_000  # failures: no breaker opens


@dataclass(frozen=True, slots=True)
class Route:
    """A path prefix and the agents that decide about it."""

    prefix: str
    agents: tuple[str, ...] = ()


def configure(
    directory: Path, listen: str, upstream: str, routes: Sequence[Route], failure_threshold: int = OUT_OF_REACH
) -> str:
    """Write the configuration (and the agents' secrets: they share a user); its path.

    One worker, no audit, no access log, agents that no load can overrun, breakers that no failure opens
    (but for another `failure_threshold`). Several processes may do so at once: each file appears whole.
    """
    agents = agents_of(routes)
    for agent in agents:
        path = secret_file(directory, agent)
        if not path.exists():
            with contextlib.suppress(FileExistsError):
                os.link(_written(directory, secrets.token_hex(16)), path)
    target = directory / "wardgate.toml"
    os.replace(_written(directory, _toml(directory, listen, upstream, routes, failure_threshold)), target)
    return str(target)


def agents_of(routes: Sequence[Route]) -> list[str]:
    return sorted({agent for route in routes for agent in route.agents})


def secret_file(directory: Path, agent: str) -> Path:
    return directory / f"{agent}.secret"


def _written(directory: Path, text: str) -> str:
    fd, path = tempfile.mkstemp(dir=directory)
    with os.fdopen(fd, "w", encoding="utf-8") as file:
        file.write(text)
    return path


def _toml(directory: Path, listen: str, upstream: str, routes: Sequence[Route], failure_threshold: int) -> str:
    agents = agents_of(routes)
    out = [
        f"server = {{ listen = [{json.dumps(listen)}], workers = 1, max_body_bytes = 0 }}",
        f"runtime = {{ dir = {json.dumps(f'{directory}/run')} }}",
        "admin = { listen = [] }",
        "audit = { sinks = [] }",
        'logging = { level = "error" }',
        f'[[upstreams]]\nname = "up"\nmax_connections = 4096\ntargets = [{{ address = {json.dumps(upstream)} }}]',
    ]
    for agent in agents:
        out.append(
            f'[[agents]]\nname = "{agent}"\nprotocol = "zmq-v2"\nevents = ["request_headers"]\n'
            f"timeout_ms = 1000\nsecret_file = {json.dumps(str(secret_file(directory, agent)))}\n"
            f"max_concurrent_calls = {CONCURRENCY}\nmax_queue = {CONCURRENCY}\n"
            f"circuit_breaker = {{ failure_threshold = {failure_threshold} }}"
        )
    for number, route in enumerate(routes):
        filters = ", ".join(f'{{ agent = "{agent}" }}' for agent in route.agents)
        out.append(
            f'[[routes]]\nname = "r{number}"\nupstream = "up"\n'
            f"match = {{ path_prefix = {json.dumps(route.prefix)} }}\nfilters = [{filters}]"
        )
    return "\n".join(out) + "\n"


def agentd_argv(config: str) -> list[str]:
    return [sys.executable, "-P", "-m", "agentd", "--config", config]


def proxy_argv(config: str) -> list[str]:
    return [sys.executable, "-P", "-m", "proxy", "--config", config]


def agent_argv(directory: Path, name: str) -> list[str]:
    return [
        *(sys.executable, str(AGENT), "--connect", f"ipc://{directory}/run/agents/v2", "--name", name),
        *("--secret-file", str(secret_file(directory, name)), "--log-level", "warning"),
        *("--max-concurrency", str(CONCURRENCY), "--max-batch", "256", "--drain-deadline", "1"),
    ]


class Role:
    """A running process and its children."""

    def __init__(self, name: str, argv: Sequence[str], log: Path) -> None:
        self.name = name
        self.log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )

    def cpu_s(self) -> float:
        """User and system time of every process of its session."""
        return sum(ticks for _, ticks in self._members()) / TICKS_PER_S

    def _members(self) -> Iterator[tuple[int, int]]:
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                try:
                    text = Path("/proc", entry, "stat").read_text()
                except (FileNotFoundError, ProcessLookupError):
                    continue
                fields = text.rpartition(")")[2].split()
                if int(fields[3]) == self.process.pid:
                    yield int(entry), int(fields[11]) + int(fields[12])

    def check(self) -> None:
        """Raise if it has ended."""
        if self.process.poll() is not None:
            text = self.log.read_text(errors="replace")[-2_000:]
            raise RuntimeError(f"{self.name} ended with {self.process.returncode}: {text}")

    def stop(self) -> None:
        """TERM, then KILL to the whole session after 3 s."""
        self.process.terminate()
        try:
            self.process.wait(3)
        except subprocess.TimeoutExpired:
            pass
        for pid, _ in list(self._members()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


@dataclass(slots=True)
class Stack:
    """Everything that runs, by role; `url` is the proxy's, `upstream_url` what lies behind it."""

    directory: Path
    url: str = ""
    upstream_url: str = ""
    roles: list[Role] = field(default_factory=list)

    def start(self, name: str, argv: Sequence[str]) -> Role:
        role = Role(name, argv, self.directory / f"{name}.log")
        self.roles.append(role)
        return role

    def cpu_s(self) -> dict[str, float]:
        """CPU seconds so far; roles named `agent-...` count as one, agents."""
        out: dict[str, float] = {}
        for role in self.roles:
            key = role.name.partition("-")[0]
            out[key] = out.get(key, 0.0) + role.cpu_s()
        return out

    def check(self) -> None:
        for role in self.roles:
            role.check()

    def stop(self, role: Role) -> None:
        """One of them before the others."""
        self.roles.remove(role)
        role.stop()

    def metrics(self) -> str:
        """agentd's, over its admin API's unix socket."""
        connection = http.client.HTTPConnection("localhost", timeout=5)
        connection.sock = socket.socket(socket.AF_UNIX)
        with contextlib.closing(connection):
            connection.sock.connect(str(self.directory / "run" / "admin.sock"))
            connection.request("GET", "/metrics")
            return connection.getresponse().read().decode()

    def get(self, path: str, headers: Mapping[str, str] | None = None) -> tuple[int, bytes]:
        return fetch(self.url + path, headers)


def fetch(url: str, headers: Mapping[str, str] | None = None) -> tuple[int, bytes]:
    """Status and body; (0, the error's text) without an answer."""
    request = urllib.request.Request(url, headers=dict(headers or {}))
    try:
        with urllib.request.urlopen(request, timeout=5) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()
    except OSError as error:
        return 0, str(error).encode()


@contextlib.contextmanager
def running(
    routes: Sequence[Route],
    upstream_kind: str = "python",
    *,
    absent: Sequence[str] = (),
    failure_threshold: int = OUT_OF_REACH,
) -> Iterator[Stack]:
    """Upstream, agentd, the agents of these routes (but the `absent`) and the proxy; all gone at the end."""
    directory = Path(tempfile.mkdtemp(prefix="wg-bench-", dir="/tmp"))
    stack = Stack(directory)
    try:
        upstream = _start_upstream(stack, upstream_kind)
        stack.upstream_url = f"http://{upstream}"
        config = configure(directory, "127.0.0.1:0", upstream, routes, failure_threshold)
        stack.start("agentd", agentd_argv(config))
        for agent in agents_of(routes):
            if agent in absent:
                continue
            stack.start(f"agent-{agent}", agent_argv(directory, agent))
        stack.start("worker", proxy_argv(config))
        addresses = directory / "run" / "proxy.addr"
        _wait(stack, lambda: addresses.exists() and addresses.read_text().strip())
        stack.url = "http://" + addresses.read_text().split()[0]
        for route in routes:
            if not set(route.agents) & set(absent):
                _wait(stack, lambda route=route: stack.get(route.prefix + "/x")[0] == 200)
        yield stack
        stack.check()
    finally:
        for role in reversed(stack.roles):
            role.stop()
        shutil.rmtree(directory, ignore_errors=True)


def _wait(stack: Stack, is_done: Callable[[], object]) -> None:
    end = time.monotonic() + START_S
    while not is_done():
        stack.check()
        if time.monotonic() > end:
            logs = "\n".join(f"{role.name}: {role.log.read_text(errors='replace')[-500:]}" for role in stack.roles)
            raise RuntimeError(f"not up within {START_S:g} s\n{logs}")
        time.sleep(0.02)


def _start_upstream(stack: Stack, kind: str) -> str:
    if kind == "nginx":
        port = free_port()
        config = stack.directory / "nginx.conf"
        config.write_text(NGINX.format(dir=stack.directory, port=port, body="x" * 1_023))
        stack.start("upstream", ["nginx", "-c", str(config), "-p", str(stack.directory)])
        _wait(stack, lambda: fetch(f"http://127.0.0.1:{port}/x")[0] == 200)
        return f"127.0.0.1:{port}"
    role = stack.start("upstream", [sys.executable, str(HERE / "upstream.py")])
    _wait(stack, lambda: role.log.read_text().endswith("\n"))
    return f"127.0.0.1:{int(role.log.read_text())}"


def free_port() -> int:
    """A port that was free a moment ago, for programs that cannot bind port 0."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


NGINX = """\
daemon off; worker_processes 1; pid {dir}/nginx.pid; error_log stderr crit;
events {{ worker_connections 4096; }}
http {{
  access_log off; default_type text/plain; keepalive_requests 1000000000; keepalive_timeout 600s;
  client_body_temp_path {dir}/t1; proxy_temp_path {dir}/t2; fastcgi_temp_path {dir}/t3;
  uwsgi_temp_path {dir}/t4; scgi_temp_path {dir}/t5;
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location ~ /echo$ {{ return 200 "$http_x_agent"; }}
    location / {{ return 200 "{body}\\n"; }}
  }}
}}
"""
