"""The real proxy in front of the demo application, for tests whose claim is about processes."""

import contextlib
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path

from shared.metrics import W_REQUESTS
from shared.segment import ProxyView, Reload, WorkerRow, WorkerState
from tests.support import Child, python, wait_until

CONFIG = """
[server]
listen = [{listen}]
workers = {workers}
max_requests = {max_requests}
graceful_timeout_s = {graceful_s}
worker_timeout_s = {timeout_s}
[runtime]
dir = "{dir}"
[logging]
format = "text"
[[upstreams]]
name = "app"
targets = [{{ address = "{upstream}" }}]
[[routes]]
name = "{route}"
upstream = "app"
"""


class Front:
    """One runtime directory, one configuration file, any number of proxies started from it."""

    def __init__(self, dir: Path, upstream: str) -> None:
        self.dir = dir
        self.config = dir / "wardgate.toml"
        self.runtime = dir / "run"
        self.values = {
            "listen": '"127.0.0.1:0"',
            "workers": 2,
            "max_requests": 0,
            "graceful_s": 5,
            "timeout_s": 5,
            "dir": str(self.runtime),
            "upstream": upstream,
            "route": "all",
        }
        self.write()
        self._count = 0

    def write(self, **values: object) -> None:
        """The configuration with some values changed, as an editor would leave it: whole."""
        self.values.update(values)
        draft = self.config.with_suffix(".new")
        draft.write_text(CONFIG.format(**self.values))
        os.rename(draft, self.config)

    def start(self, env: dict[str, str] | None = None, code: str = "", wrap: tuple[str, ...] = ()) -> Child:
        """`wardgate proxy`; `code` runs first, in the arbiter; `wrap` is a command that executes the rest."""
        self._count += 1
        start = ["-m", "proxy"]
        if code:
            start = ["-c", f"{code}\nfrom proxy.cli import main\nimport sys\nmain(['proxy', *sys.argv[1:]])"]
        args = [*wrap, *python(*start, "-c", str(self.config))]
        return Child(args, self.dir / f"out-{self._count}", env)

    @contextlib.contextmanager
    def serving(self, env: dict[str, str] | None = None, code: str = "") -> Iterator[Child]:
        """One that has said that it serves."""
        with self.start(env, code) as child:
            child.wait_for("proxy.arbiter serving")
            yield child

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens."""
        host, _, port = (self.runtime / "proxy.addr").read_text().split()[0].rpartition(":")
        return host, int(port)

    def workers(self) -> list[WorkerRow]:
        """The slots in use."""
        view = ProxyView(str(self.runtime / "proxy.seg"))
        try:
            view.attach()
            return view.workers()
        finally:
            view.close()

    def reload(self) -> Reload:
        """How its reloads went."""
        view = ProxyView(str(self.runtime / "proxy.seg"))
        try:
            view.attach()
            return view.reload
        finally:
            view.close()

    def requests(self) -> int:
        """Requests that the workers have begun since the start."""
        return self.count(W_REQUESTS)

    def count(self, cell: int) -> int:
        """One of the workers' counts since the start."""
        view = ProxyView(str(self.runtime / "proxy.seg"))
        try:
            view.attach()
            totals = view.totals()
            return totals.worker[cell] if totals is not None else 0
        finally:
            view.close()

    def ready_pids(self) -> set[int]:
        """The workers whose slot says READY."""
        return {row.pid for row in self.workers() if row.state is WorkerState.READY}

    def wait_ready(self, count: int, without: set[int] = frozenset()) -> set[int]:  # type: ignore[assignment]
        """The pids of `count` ready workers, none of them in `without`."""

        def there() -> set[int]:
            pids = self.ready_pids()
            return pids if len(pids) == count and not pids & without else set()

        return wait_until(there, 10, f"{count} new ready workers")

    def left(self) -> set[str]:
        """What is in the runtime directory besides agents/."""
        return {path.name for path in self.runtime.iterdir()} - {"agents"}


class Client:
    """One connection, requests written by hand."""

    def __init__(self, address: tuple[str, int], timeout_s: float = 10.0) -> None:
        self.socket = socket.create_connection(address, timeout_s)
        self.received = b""

    def send(self, target: str, *fields: str, method: str = "GET") -> None:
        """A request without a body."""
        lines = [f"{method} {target} HTTP/1.1", "Host: test", *fields]
        self.socket.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())

    def response(self) -> tuple[int, str, bytes]:
        """(status, head, body) of one response with a length."""
        while b"\r\n\r\n" not in self.received:
            self._more()
        head, _, self.received = self.received.partition(b"\r\n\r\n")
        text = head.decode("latin-1")
        match = re.search(r"(?im)^content-length: (\d+)", text)
        assert match is not None, text
        length = int(match[1])
        while len(self.received) < length:
            self._more()
        body, self.received = self.received[:length], self.received[length:]
        return int(text.split()[1]), text.lower(), body

    def until(self, text: bytes) -> None:
        """Read until it was received."""
        while text not in self.received:
            self._more()

    def is_closed(self) -> bool:
        """Whether the other side closes now, without another byte."""
        try:
            return self.socket.recv(1) == b""
        except ConnectionResetError:
            return True

    def get(self, target: str) -> tuple[int, str, bytes]:
        self.send(target)
        return self.response()

    def _more(self) -> None:
        data = self.socket.recv(65536)
        if not data:
            raise ConnectionResetError(f"closed after {self.received!r}")
        self.received += data

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *exc: object) -> None:
        self.socket.close()


@contextlib.contextmanager
def upstream(dir: Path) -> Iterator[str]:
    """The demo application; its address."""
    with Child(python("-m", "proxy.demo.upstream"), dir / "upstream") as child:
        child.wait_for("serving http://")
        match = re.search(r"http://([0-9.]+:\d+)/", child.output())
        assert match is not None
        yield match[1]
