"""`make soak`: the real product under mixed traffic for minutes or hours, and what its memory does meanwhile.

Starts agentd, the proxy with two workers, agents of both protocols (one never answers), an upstream. Traffic is
mixed (bench/soak_load.py); meanwhile agents are killed and come back, and both daemons are reloaded. Prints the
memory and file descriptors of every process over time and what stands in the tables of /metrics, at the end a
slope for each role with its standard error, and a verdict: no role's memory may rise, and once the traffic is over
all tables must be empty.

    soak.py                    two minutes
    soak.py --hours 8
    soak.py --minutes 30 --json out.json

Exit codes: 0 passed, 1 a leak, a table that does not empty, or something that ended; 2 usage.

Kind: IO.
"""

import argparse
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

from slope import Fit, allowed_kib_per_h, fit, verdict, warmed
from stack import agent_argv, agentd_argv, proxy_argv, secret_file

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
# What must be 0 when nobody asks for anything any more.
TABLES = (
    "wardgate_requests_in_flight",
    "wardgate_route_requests_in_flight",
    "wardgate_requests_pipelined",
    "wardgate_client_buffers_full",
    "wardgate_events_pending",
    "wardgate_bodies_outstanding_bytes",
    "wardgate_upstream_waiting",
    "wardgate_worker_audit_queued",
    "wardgate_agentd_events_pending",
    "wardgate_agentd_exchanges_open",
    "wardgate_agent_calls_in_flight",
    "wardgate_agent_calls_queued",
    "wardgate_agent_calls_held",
    "wardgate_agent_exchanges_pinned",
    "wardgate_audit_queued",
)
START_S = 30.0
SETTLE_S = 20.0
CONFIG = """
server = {{ listen = ["127.0.0.1:0"], workers = 2, graceful_timeout_s = 5 }}
runtime = {{ dir = "{dir}/run" }}
admin = {{ listen = [] }}
audit = {{ path = "{dir}/audit" }}
logging = {{ level = "error" }}
[[upstreams]]
name = "up"
targets = [{{ address = "{upstream}" }}]
[[agents]]
name = "fast"
protocol = "zmq-v2"
events = ["request_headers"]
timeout_ms = 1000
secret_file = "{dir}/fast.secret"
[[agents]]
name = "hung"
protocol = "zmq-v2"
events = ["request_headers"]
timeout_ms = 200
secret_file = "{dir}/hung.secret"
circuit_breaker = {{ failure_threshold = 20, timeout_seconds = 2 }}
[[agents]]
name = "scan"
protocol = "zmq-v2"
events = ["request_body_chunk", "response_body_chunk", "request_complete"]
timeout_ms = 1000
secret_file = "{dir}/scan.secret"
[[agents]]
name = "tag"
protocol = "zmq-v1"
endpoint = "ipc://{dir}/tag.sock"
connections = 4
timeout_ms = 1000
events = ["request_headers", "response_headers"]
"""
ROUTES = {"none": (), "fast": ("fast",), "hung": ("hung",), "tag": ("tag",), "scan": ("scan",), "whole": ("scan",)}
MORE = {"scan": 'request_body = "stream"\n', "whole": 'response_body = "buffer"\n'}
DIALLING = ("fast", "hung", "scan")  # agents over zmq-v2, each with a secret
AGENTS = (*DIALLING, "tag")


class Soak:
    """Everything that runs. Logs go to files of `directory`; it stays there when something went wrong."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.failed: list[str] = []
        self.lives: dict[str, dict[int, list[tuple[float, float]]]] = defaultdict(dict)  # role -> pid -> KiB
        self.address = ""

    # --- processes ---------------------------------------------------------------------------------

    def start(self, name: str, argv: list[str], **environment: str) -> None:
        with open(self.directory / f"{name}.log", "ab") as log:
            self.running[name] = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=ROOT,
                env={**os.environ, **environment},
                start_new_session=True,
            )

    def start_agent(self, name: str) -> None:
        if name == "tag":
            endpoint = f"ipc://{self.directory}/tag.sock"
            self.start(name, [sys.executable, str(ROOT / "proxy/demo/agents/tag_agent.py"), endpoint])
        elif name == "scan":
            argv = agent_argv(self.directory, name)
            self.start(name, [argv[0], str(HERE / "agents" / "scan_v2.py"), *argv[2:]])
        else:
            self.start(name, agent_argv(self.directory, name), HANG="1" if name == "hung" else "0")

    def up(self) -> None:
        """All of it, and an answer on every route."""
        port = self._upstream()
        for name in DIALLING:
            path = secret_file(self.directory, name)
            path.write_text(f"secret-of-{name}-{os.getpid()}")
            path.chmod(0o600)
        routes = "".join(
            f'[[routes]]\nname = "{name}"\nupstream = "up"\nmatch = {{ path_prefix = "/{name}/" }}\n'
            f"filters = [{', '.join(f'{{ agent = {json.dumps(agent)} }}' for agent in agents)}]\n{MORE.get(name, '')}"
            for name, agents in ROUTES.items()
        )
        config = self.directory / "wardgate.toml"
        config.write_text(CONFIG.format(dir=self.directory, upstream=f"127.0.0.1:{port}") + routes)
        self.start("agentd", agentd_argv(str(config)))
        for name in AGENTS:
            self.start_agent(name)
        self.start("proxy", proxy_argv(str(config)))
        addresses = self.directory / "run" / "proxy.addr"
        self.wait("an address", lambda: addresses.exists() and addresses.read_text().strip() != "")
        self.address = addresses.read_text().split()[0]
        for name, expected in (("none", 200), ("fast", 200), ("tag", 200), ("whole", 200), ("hung", 504)):
            self.wait(f"/{name}/json", lambda name=name, expected=expected: self.status(f"/{name}/json") == expected)

    def _upstream(self) -> int:
        script = HERE / "soak_upstream.py"
        self.start("upstream", [sys.executable, str(script)])
        log = self.directory / "upstream.log"
        self.wait("the upstream", lambda: log.read_text().endswith("\n"))
        return int(log.read_text())

    def wait(self, what: str, is_so: Callable[[], bool]) -> None:
        end = time.monotonic() + START_S
        while not is_so():
            self.check()
            if self.failed or time.monotonic() > end:
                raise RuntimeError(f"{what}: not there within {START_S:.0f} s; {'; '.join(self.failed)}")
            time.sleep(0.05)

    def check(self) -> None:
        """Whether anything ended by itself."""
        for name, process in self.running.items():
            if process.poll() is not None and name != "load":
                said = f"{name} ended with {process.returncode}"
                if said not in self.failed:
                    self.failed.append(said)

    def down(self) -> None:
        for name in ("load", "proxy", *AGENTS, "agentd", "upstream"):
            process = self.running.pop(name, None)
            if process is None:
                continue
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            try:
                process.wait(8)
            except subprocess.TimeoutExpired:
                self.failed.append(f"{name} does not end")
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

    # --- disturbances ------------------------------------------------------------------------------

    def disturb(self, turn: int) -> str:
        """The next in turn: an agent killed and started anew, a reload."""
        what = ("kill fast", "reload proxy", "kill tag", "reload agentd", "kill hung")[turn % 5]
        verb, name = what.split()
        if verb == "reload":
            self.running[name].send_signal(signal.SIGHUP)
        else:
            self.running[name].kill()
            self.running[name].wait()
            self.start_agent(name)
        return what

    # --- looking -----------------------------------------------------------------------------------

    def status(self, path: str) -> int:
        host, _, port = self.address.rpartition(":")
        try:
            with socket.create_connection((host, int(port)), 5) as sock:
                sock.settimeout(5)
                sock.sendall(f"GET {path} HTTP/1.1\r\nhost: soak\r\nconnection: close\r\n\r\n".encode())
                return int(sock.recv(64)[9:12])
        except (OSError, ValueError):
            return 0

    def page(self) -> dict[str, float]:
        """Sums of all series, by name; {} while agentd does not answer."""
        found: dict[str, float] = defaultdict(float)
        try:
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(5)
                sock.connect(f"{self.directory}/run/admin.sock")
                sock.sendall(b"GET /metrics HTTP/1.1\r\nhost: localhost\r\n\r\n")
                data = b"".join(iter(lambda: sock.recv(1 << 16), b""))
        except OSError:
            return {}
        for line in data.partition(b"\r\n\r\n")[2].decode().splitlines():
            if not line.startswith("#"):
                series, _, value = line.rpartition(" ")
                found[series.partition("{")[0]] += float(value)
        return found

    def processes(self) -> Iterator[tuple[str, int]]:
        """(role, pid) of everything of ours, workers apart."""
        for name in ("agentd", "proxy", *AGENTS):
            process = self.running.get(name)
            if process is not None and process.poll() is None:
                yield name, process.pid
        with contextlib.suppress(OSError, KeyError):
            pid = self.running["proxy"].pid
            for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
                yield "worker", int(child)

    def look(self, at_s: float) -> dict[str, list[tuple[int, int]]]:
        """(KiB, descriptors) of every process, noted."""
        found: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for role, pid in self.processes():
            try:
                kib = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1_024
                fds = len(os.listdir(f"/proc/{pid}/fd"))
            except (OSError, IndexError):
                continue
            if kib:
                self.lives[role].setdefault(pid, []).append((at_s, float(kib)))
                found[role].append((kib, fds))
        return found


ROLES = ("agentd", "proxy", "worker", *AGENTS)
HEAD = f"{'s':>6} " + "".join(f"{role:>17}" for role in ROLES) + "   in flight  pending  (MiB of each process, fds)"


def line(at_s: float, seen: dict[str, list[tuple[int, int]]], page: dict[str, float], note: str) -> str:
    cells = []
    for role in ROLES:
        rows = seen.get(role, [])
        sizes = "+".join(f"{kib / 1_024:.0f}" for kib, _ in rows[:3])
        cells.append(f"{sizes} {sum(fds for _, fds in rows)}".rjust(17))
    flight = page.get("wardgate_agent_calls_in_flight", 0)
    pending = page.get("wardgate_events_pending", 0) + page.get("wardgate_agentd_events_pending", 0)
    return f"{at_s:6.0f} {''.join(cells)}  {flight:10.0f} {pending:8.0f}  {note}"


def descriptors(seen: dict[str, list[tuple[int, int]]]) -> dict[str, int]:
    """Per role, of the process that has most."""
    return {role: max(fds for _, fds in rows) for role, rows in seen.items()}


def run(soak: Soak, seconds: float, disturb_s: float) -> tuple[dict[str, Fit], dict[str, float], dict[str, int]]:
    """Traffic for so long; what `verdict` wants."""
    soak.up()
    time.sleep(1.0)  # every worker has published its idle state
    idle = descriptors(soak.look(0.0))
    soak.lives.clear()
    soak.start("load", [sys.executable, str(HERE / "soak_load.py"), soak.address])
    begun = time.monotonic()
    step = min(60.0, max(0.5, seconds / 240))
    told_at, disturbed_at, turn = -1e9, 0.0, 0
    note = "traffic begins"
    print(HEAD, flush=True)
    while (at_s := time.monotonic() - begun) < seconds:
        soak.check()
        if soak.failed:
            break
        seen = soak.look(at_s)
        # Nothing is disturbed near the end: what is measured there is the product alone.
        if at_s - disturbed_at >= disturb_s and at_s < 0.9 * seconds:
            note = f"{note}, {soak.disturb(turn)}".strip(", ")
            disturbed_at, turn = at_s, turn + 1
        if at_s - told_at >= max(2.0, seconds / 30):
            print(line(at_s, seen, soak.page(), note), flush=True)
            told_at, note = at_s, ""
        time.sleep(max(0.0, step - (time.monotonic() - begun - at_s)))
    served = finish_load(soak)
    page = settle(soak)
    after = soak.look(time.monotonic() - begun)
    print(line(time.monotonic() - begun, after, page, "traffic is over"), flush=True)
    kept = page.get("wardgate_upstream_idle_connections", 0)
    more = {
        role: fds - idle.get(role, fds) - (round(kept) if role == "worker" else 0)
        for role, fds in descriptors(after).items()
    }
    left = {name: page.get(name, -1.0) for name in TABLES}
    print("\nanswers: " + "; ".join(f"{kind} {counts}" for kind, counts in served.items()))
    for kind, counts in served.items():
        if not counts:
            soak.failed.append(f"{kind}: nothing was answered")
    memory = {role: fit(map(warmed, lives.values())) for role, lives in soak.lives.items()}
    return memory, left, more


def finish_load(soak: Soak) -> dict[str, dict[str, int]]:
    """Stop the traffic; what it counted."""
    load = soak.running.pop("load")
    load.terminate()
    load.wait(20)
    try:
        counts: dict[str, dict[str, int]] = json.loads((soak.directory / "load.log").read_text().splitlines()[-1])
    except (ValueError, IndexError):
        soak.failed.append("the traffic's process said nothing")
        return {}
    return counts


def settle(soak: Soak) -> dict[str, float]:
    """/metrics once all tables are empty, or when the patience is over."""
    end = time.monotonic() + SETTLE_S
    while True:
        page = soak.page()
        if page and not any(page.get(name, -1.0) for name in TABLES):
            return page
        if soak.failed or time.monotonic() > end:
            return page
        time.sleep(0.25)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bench/soak.py",
        description=__doc__.rpartition("\n\nKind")[0],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--hours", type=float, default=0.0)
    parser.add_argument("--minutes", type=float, default=0.0, help="default: 2")
    parser.add_argument("--disturb", type=float, metavar="SECONDS", help="from one disturbance to the next")
    parser.add_argument("--json", metavar="FILE", help="write all samples there")
    arguments = parser.parse_args(argv)
    arguments.seconds = arguments.hours * 3_600 + arguments.minutes * 60 or 120.0
    if not 1 <= arguments.seconds <= 30 * 86_400:
        parser.error("from a second to thirty days")
    if arguments.disturb is None:
        arguments.disturb = min(300.0, max(5.0, arguments.seconds / 12))
    return arguments


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    soak = Soak(Path(tempfile.mkdtemp(prefix="wg-soak-", dir="/tmp")))
    wrong = ["it did not run to its end"]
    try:
        memory, left, more = run(soak, arguments.seconds, arguments.disturb)
        soak.down()
        print(f"\n{'role':8} {'KiB/h':>10} {'+-':>9} {'samples':>8} {'fds more':>9}")
        for role, found in memory.items():
            error = f"{found.error * 3_600:9.0f}" if found.error < 1e9 else "        ?"
            print(f"{role:8} {found.per_s * 3_600:10.0f} {error} {found.samples:8} {more.get(role, 0):9}")
        print(f"allowed: {allowed_kib_per_h(arguments.seconds):.0f} KiB/h in a soak of this length")
        print("tables: " + ", ".join(f"{name.removeprefix('wardgate_')} {value:g}" for name, value in left.items()))
        wrong = verdict(memory, arguments.seconds, left, more, soak.failed)
        if arguments.json:
            Path(arguments.json).write_text(json.dumps({"lives": soak.lives, "left": left, "wrong": wrong}))
    except RuntimeError as error:
        wrong = [str(error)]
    finally:
        soak.down()
        if wrong:
            print(f"logs are in {soak.directory}", file=sys.stderr)
        else:
            subprocess.run(["rm", "-rf", str(soak.directory)], check=False)
    for text in wrong:
        print(f"FAILED: {text}")
    if not wrong:
        print("passed")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
