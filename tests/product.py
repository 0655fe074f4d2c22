"""Starts pieces of the product as real processes, with a config written for the test."""

import json
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.support import Child, python, wait_until


def toml(value: Any) -> str:
    """A TOML value; tables inline."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {toml(item)}" for key, item in value.items()) + " }"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(value)


def proxy_config(
    upstream: str,
    *,
    server: Mapping[str, Any] | None = None,
    routes: Sequence[Mapping[str, Any]] = ({"name": "any", "upstream": "up"},),
    agents: Sequence[Mapping[str, Any]] = (),
    upstreams: Sequence[Mapping[str, Any]] = (),
    admin: Mapping[str, Any] | None = None,
    **tables: Mapping[str, Any],
) -> str:
    """A configuration with one upstream `up`, listening on a port of the kernel's choice."""
    out = []
    for name, table in {
        "server": {"listen": ["127.0.0.1:0"], "workers": 1, **(server or {})},
        "admin": {"listen": ["127.0.0.1:0"], **(admin or {})},
        "logging": {"level": "info"},
        **tables,
    }.items():
        out.append(f"[{name}]")
        out += [f"{key} = {toml(value)}" for key, value in table.items()]
    rows = [("upstreams", {"name": "up", "targets": [{"address": upstream}]})]
    rows += [("upstreams", row) for row in upstreams]
    rows += [("agents", row) for row in agents]
    rows += [("routes", row) for row in routes]
    for name, row in rows:
        out.append(f"[[{name}]]")
        out += [f"{key} = {toml(value)}" for key, value in row.items()]
    return "\n".join(out) + "\n"


class Proxy:
    """A real arbiter with its workers on a free port; `address` is where it listens."""

    def __init__(self, config: str, tmp: Path, env: Mapping[str, str] | None = None) -> None:
        self.runtime = Path(tempfile.mkdtemp(prefix="wg-", dir="/tmp"))
        self.tmp = tmp
        self.config = tmp / "wardgate.toml"
        self.config.write_text(config + f'\n[runtime]\ndir = "{self.runtime}"\n[audit]\npath = "{tmp}"\n')
        self.env = {"WARDGATE_CONFIG": str(self.config), **(env or {})}
        self.child = Child(python("-m", "proxy", "--config", str(self.config)), tmp / "proxy.log", self.env)
        self.address: tuple[str, int] = ("127.0.0.1", 0)

    def __enter__(self) -> "Proxy":
        try:
            line = self.child.wait_for('"serving"', 20) or wait_until(self._address, 5)
        except BaseException:
            self.__exit__()
            raise
        host, _, port = line.rpartition(":")
        self.address = (host, int(port))
        return self

    def rewrite(self, config: str) -> None:
        """Another configuration in the same file, as an editor would leave it: whole. Nobody is told."""
        draft = self.tmp / "wardgate.new"
        draft.write_text(config + f'\n[runtime]\ndir = "{self.runtime}"\n[audit]\npath = "{self.tmp}"\n')
        os.rename(draft, self.config)

    def _address(self) -> str:
        path = self.runtime / "proxy.addr"
        return path.read_text().split()[0] if path.exists() and path.read_text().strip() else ""

    def __exit__(self, *exc: object) -> None:
        self.child.kill()
        shutil.rmtree(self.runtime, ignore_errors=True)

    def worker_pids(self) -> list[int]:
        """The arbiter's children."""
        return [int(pid) for pid in Path(f"/proc/{self.child.pid}/task/{self.child.pid}/children").read_text().split()]

    def connect(self) -> socket.socket:
        return socket.create_connection(self.address, 5)


class System(Proxy):
    """A real proxy and a real agentd in one runtime directory. Agents and upstreams are the test's own."""

    def __init__(self, config: str, tmp: Path, env: Mapping[str, str] | None = None) -> None:
        self.agentd: Child | None = None
        super().__init__(config, tmp, env)

    def __enter__(self) -> "System":
        try:
            self.start_agentd()
            super().__enter__()
        except BaseException:
            self.__exit__()
            raise
        return self

    def start_agentd(self) -> Child:
        """Start agentd (again) and wait until it is ready."""
        log = self.tmp / f"agentd-{time.monotonic_ns()}.log"
        self.agentd = Child(python("-m", "agentd", "--config", str(self.config)), log, self.env)
        self.agentd.wait_for("agentd is ready", 20)
        return self.agentd

    @property
    def agents_endpoint(self) -> str:
        return f"ipc://{self.runtime}/agents/v2"

    def registered(self) -> None:
        """Wait until every worker has registered with this agentd."""
        assert self.agentd is not None
        workers = len(self.worker_pids())
        wait_until(lambda: self.agentd and self.agentd.output().count("worker registered") >= workers, 10)

    def audit(self) -> list[dict[str, Any]]:
        """The audit records written so far."""
        path = self.tmp / "audit.jsonl"
        text = path.read_text() if path.exists() else ""
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]

    def __exit__(self, *exc: object) -> None:
        if self.agentd is not None:
            self.agentd.kill()
        super().__exit__()
