"""The processes that the failure matrix breaks: each by name, started, stopped and looked at from outside.

    upstream    recording_upstream.py          a        the agent that everything asks, signing_agent.py
    agentd      wardgate agentd                h        the agent that is asked about held requests
    proxy       wardgate proxy, with 2 workers

Every part can be missing at the beginning. `close` leaves nothing running, whatever happened before. What
is done to whom, and what must come of it, is decided in matrix_rows.py.

Kind: IO.
"""

import contextlib
import os
import shutil
import signal
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from proxy.cli.admin_client import AdminClient
from shared.metrics import W_PENDING_EVENTS
from shared.runtime import Runtime
from shared.segment import ProxyView, WorkerState
from tests.e2e.signing_agent import sign
from tests.e2e.traffic import Address
from tests.product import proxy_config
from tests.support import Child, python, wait_until

HERE = Path(__file__).parent
PARTS = ("upstream", "agentd", "proxy", "a", "h")
TIMEOUT_MS = 250  # of agent a
HELD_TIMEOUT_MS = 10_000  # of agent h: whatever ends long before was not waited for
BREAKER_WAIT_S = 1.0
FAILURES = 20  # open the breaker: as many as there are lanes that ask a, so that each sees one timeout
RESPONSE_TIMEOUT_S = 0.9
ROUTES = ("closed", "open", "free")
START_S = 20.0


class Stage:
    """One runtime directory with whatever runs in it."""

    def __init__(self, *, workers: int = 2, worker_timeout_s: int = 30, is_v1: bool = False) -> None:
        self.dir = Path(tempfile.mkdtemp(prefix="wg-", dir="/tmp"))
        self.runtime = self.dir / "run"
        self.front = f"{self.dir}/front"
        self.upstream_log = self.dir / "upstream.log"
        self.config = self.dir / "wardgate.toml"
        self.workers = workers
        self.is_v1 = is_v1  # agent a speaks zmq-v1
        self.running: dict[str, Child] = {}
        self._starts = 0
        self._read = 0
        self._write_config(worker_timeout_s)

    def _write_config(self, worker_timeout_s: int) -> None:
        breaker = {"failure_threshold": FAILURES, "timeout_seconds": BREAKER_WAIT_S}
        agents: list[dict[str, object]] = [
            {"name": "a", "timeout_ms": TIMEOUT_MS, "circuit_breaker": breaker},
            {"name": "h", "timeout_ms": HELD_TIMEOUT_MS, "circuit_breaker": {**breaker, "failure_threshold": 1_000}},
        ]
        for agent in agents:
            agent.update(self._how(str(agent["name"])))
            secret = self.dir / f"{agent['name']}.secret"
            secret.write_text(f"the secret of agent {agent['name']}, long enough")
            secret.chmod(0o600)
        chains: Mapping[str, list[dict[str, str]]] = {
            "closed": [{"agent": "a"}],
            "open": [{"agent": "a", "failure_mode": "open"}],
            "free": [],
            "held": [{"agent": "h"}],
        }
        text = proxy_config(
            f"unix:{self.dir}/upstream",
            server={
                "listen": ["127.0.0.1:0", f"unix:{self.front}"],
                "workers": self.workers,
                "worker_timeout_s": worker_timeout_s,
                "graceful_timeout_s": 5,
            },
            upstreams=[],
            agents=agents,
            routes=[
                {"name": name, "upstream": "up", "match": {"path_prefix": f"/{name}"}, "filters": filters}
                for name, filters in chains.items()
            ],
            runtime={"dir": str(self.runtime)},
            audit={"path": str(self.dir)},
        )
        # The one upstream's timeout: proxy_config knows addresses only.
        self.config.write_text(
            text.replace('name = "up"\n', f'name = "up"\nresponse_timeout_s = {RESPONSE_TIMEOUT_S}\n', 1)
        )

    def _how(self, agent: str) -> dict[str, object]:
        """How agentd gets to the agent."""
        events = {"events": ["request_headers"]}
        if self.is_v1 and agent == "a":
            return {"protocol": "zmq-v1", "endpoint": f"ipc://{self.dir}/v1", "connections": 8, **events}
        # Both are of one user, so each has a secret.
        return {"protocol": "zmq-v2", "secret_file": f"{self.dir}/{agent}.secret", **events}

    # --- starting and stopping --------------------------------------------------------------------

    def start(self, *parts: str) -> None:
        """Start them side by side and wait until each says that it is there."""
        for part in parts:
            self.launch(part)
        for part in parts:
            self.wait_for(part)

    def launch(self, part: str) -> None:
        """Start it without waiting."""
        endpoint = f"ipc://{self.runtime}/agents/v2"
        if part == "upstream":
            args = [str(HERE / "recording_upstream.py"), f"{self.dir}/upstream", str(self.upstream_log)]
        elif part == "a" and self.is_v1:
            args = [str(HERE / "signing_agent.py"), "--v1", f"ipc://{self.dir}/v1"]
        elif part in ("a", "h"):
            args = [str(HERE / "signing_agent.py"), "--connect", endpoint, "--name", part]
            args += ["--secret-file", f"{self.dir}/{part}.secret"]
        else:
            args = ["-m", part, "--config", str(self.config)]
        self._starts += 1
        self.running[part] = Child(python(*args), self.dir / f"{part}-{self._starts}.log")

    def wait_for(self, part: str) -> None:
        """The process is back: it has come far enough to do its work, or to look for whom it works for."""
        said = {"upstream": "serving", "agentd": "agentd is ready", "proxy": '"serving"'}.get(part, "started")
        self.running[part].wait_for(said, START_S)

    def kill(self, *parts: str) -> None:
        """SIGKILL, and gone when this returns."""
        for part in parts:
            self.running[part].signal(signal.SIGKILL)
        for part in parts:
            self.running.pop(part).kill()

    def stop(self, *parts: str) -> None:
        """SIGTERM, and gone when this returns."""
        for part in parts:
            self.running[part].signal(signal.SIGTERM)
        for part in parts:
            child = self.running.pop(part)
            try:
                child.ended(10)
            finally:
                child.kill()

    @contextlib.contextmanager
    def stopped(self, pids: Iterable[int]) -> Iterator[None]:
        """SIGSTOP now, SIGCONT at the end, also when what is between fails."""
        pids = list(pids)
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    def close(self) -> None:
        """Kill what is left and remove the directory."""
        for child in self.running.values():
            child.kill()
        shutil.rmtree(self.dir, ignore_errors=True)

    def logs(self) -> str:
        """The last lines of everybody's output, for a failure's message."""
        texts = []
        for path in sorted(self.dir.glob("*-*.log")):
            tail = path.read_text(errors="replace").splitlines()[-12:]
            texts.append("\n".join([f"--- {path.name}", *tail]))
        return "\n".join(texts)

    # --- looking ----------------------------------------------------------------------------------

    @property
    def address(self) -> Address:
        """Of the proxy, over TCP."""
        host, _, port = (self.runtime / "proxy.addr").read_text().split()[0].rpartition(":")
        return host, int(port)

    @property
    def admin(self) -> AdminClient:
        return AdminClient(Runtime(str(self.runtime)))

    def worker_states(self) -> dict[int, WorkerState]:
        """What the slots say, by pid."""
        with self._proxy_view() as view:
            return {row.pid: row.state for row in view.workers()}

    def children(self) -> set[int]:
        """The arbiter's children, ready or not."""
        pid = self.running["proxy"].pid
        try:
            return set(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))
        except FileNotFoundError:
            return set()

    def pending_events(self) -> int:
        """Events that workers wait for."""
        with self._proxy_view() as view:
            totals = view.totals()
            return totals.worker[W_PENDING_EVENTS] if totals is not None else 0

    @contextlib.contextmanager
    def _proxy_view(self) -> Iterator[ProxyView]:
        view = ProxyView(str(self.runtime / "proxy.seg"))
        try:
            if (self.runtime / "proxy.seg").exists():
                view.attach()
            yield view
        finally:
            view.close()

    def ready_workers(self, without: Iterable[int] = ()) -> set[int]:
        """The pids of all workers once there are as many as configured, else nothing."""
        pids = {pid for pid, state in self.worker_states().items() if state is WorkerState.READY}
        return pids if len(pids) == self.workers and not pids & set(without) else set()

    def wait_ready_workers(self, without: Iterable[int] = ()) -> set[int]:
        return wait_until(lambda: self.ready_workers(without), 10, "all workers ready")

    def served_by(self, ports: Iterable[int]) -> dict[int, int]:
        """Which worker holds the connection from each of these local TCP ports."""
        address = self.address
        assert isinstance(address, tuple)
        inodes = {}
        wanted = set(ports)
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
            _, local, remote, *_rest = line.split()
            port = int(remote.rpartition(":")[2], 16)
            if port in wanted and int(local.rpartition(":")[2], 16) == address[1]:
                inodes[line.split()[9]] = port
        found = {}
        for pid in self.children():
            for fd in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(FileNotFoundError):
                    target = os.readlink(fd)
                    if target.startswith("socket:[") and target[8:-1] in inodes:
                        found[inodes[target[8:-1]]] = pid
        return found

    def has_reached(self, request_ids: Iterable[str]) -> bool:
        """Whether the upstream has got these requests."""
        log = self.upstream_log.read_text() if self.upstream_log.exists() else ""
        return all(f" {request_id} " in log for request_id in request_ids)

    def undecided(self) -> list[str]:
        """What has reached the upstream, since the last call, from a fail-closed route without its true verdict."""
        if not self.upstream_log.exists():
            return []
        with open(self.upstream_log, "rb") as file:
            file.seek(self._read)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._read += len(whole)
        found = []
        for line in whole.decode().splitlines():
            path, request_id, verdict = line.split()
            if path.startswith(("/closed", "/held")) and verdict != sign(request_id):
                found.append(line)
        return found

    def blame(self) -> dict[str, int]:
        """How many calls to each agent have ended in anything but a decision."""
        innocent = ("decision", "cancelled")
        return {
            agent.name: sum(count for outcome, count in agent.outcomes.items() if outcome not in innocent)
            for agent in self.admin.agents().agents
        }
