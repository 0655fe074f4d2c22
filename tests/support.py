"""What many tests need: waiting with a bound, child processes that never outlive a test, free ports.

Import it as `from tests.support import wait_until, Child, ...`; fixtures stand in tests/conftest.py.
Nothing about the product may be put here but how to start it.
"""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
ROOT = Path(__file__).resolve().parent.parent
POLL_S = 0.005


def wait_until(predicate: Callable[[], T], timeout_s: float = 5.0, what: str = "") -> T:
    """The predicate's first true value; fails the test when there is none in time."""
    end = time.monotonic() + timeout_s
    while True:
        value = predicate()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"not within {timeout_s} s: {what or getattr(predicate, '__name__', predicate)}")
        time.sleep(POLL_S)


async def until(predicate: Callable[[], T], timeout_s: float = 5.0, what: str = "") -> T:
    """`wait_until` for a test inside an event loop, which goes on turning meanwhile."""
    end = time.monotonic() + timeout_s
    while True:
        value = predicate()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"not within {timeout_s} s: {what or getattr(predicate, '__name__', predicate)}")
        await asyncio.sleep(POLL_S)


def free_port() -> int:
    """A TCP port of 127.0.0.1 that was free a moment ago; for programs that cannot bind port 0 themselves."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def is_running(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    return process_state(pid) not in ("", "Z", "X")


def process_state(pid: int) -> str:
    """The state letter of proc(5) (R, S, T, Z ...); "" when there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


class Clock:
    """A clock turned by hand: call it for nanoseconds."""

    def __init__(self, now: int = 1_000_000_000_000) -> None:
        self.now = now

    def __call__(self) -> int:
        return self.now

    def ms(self, milliseconds: float) -> int:
        """Turn it forward; returns the new time."""
        self.now += int(milliseconds * 1_000_000)
        return self.now

    def s(self, seconds: float) -> int:
        """Turn it forward; returns the new time."""
        return self.ms(seconds * 1000)


class Child:
    """A child process whose output can be read while it runs. Use it as a context manager.

    At the end it is killed with SIGKILL if it still runs, together with its process group.
    """

    def __init__(
        self,
        args: Sequence[str | os.PathLike[str]],
        output: Path,
        env: Mapping[str, str] | None = None,
        pass_fds: Sequence[int] = (),
    ) -> None:
        self.args = [os.fspath(a) for a in args]
        self.path = output
        with open(output, "ab") as sink:
            self.popen = subprocess.Popen(
                self.args,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(env or {})},
                cwd=ROOT,
                start_new_session=True,
                pass_fds=pass_fds,
            )

    @property
    def pid(self) -> int:
        return self.popen.pid

    def output(self) -> str:
        """Everything it has written so far."""
        return self.path.read_text(errors="replace")

    def wait_for(self, text: str, timeout_s: float = 10.0) -> None:
        """Until `text` stands in its output; fails early, with the output, when it ends before."""

        def there() -> bool:
            if text in self.output():
                return True
            if self.popen.poll() is not None:
                assert text in self.output(), f"ended with {self.popen.returncode}:\n{self.output()}"
            return text in self.output()

        wait_until(there, timeout_s, f"{text!r} in the output of {self.args}; so far:\n{self.output()}")

    def signal(self, number: int) -> None:
        """To the process alone, not to its group."""
        self.popen.send_signal(number)

    def ended(self, timeout_s: float = 10.0) -> int:
        """Its exit code, once it has ended by itself; negative = by that signal."""
        try:
            return self.popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.args} still runs after {timeout_s} s:\n{self.output()}") from None

    def stop(self, timeout_s: float = 10.0) -> int:
        """SIGTERM, then its exit code."""
        self.signal(signal.SIGTERM)
        return self.ended(timeout_s)

    def kill(self) -> None:
        """SIGKILL to whatever is left of its process group."""
        try:
            os.killpg(self.popen.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.popen.wait()

    def __enter__(self) -> "Child":
        return self

    def __exit__(self, *exc: object) -> None:
        self.kill()


def python(*args: str) -> list[str]:
    """A command line of our interpreter, safe against the working directory (-P)."""
    return [sys.executable, "-P", *args]


class NotifySocket:
    """The service manager's end of sd_notify: what a daemon has said so far."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.bind(self.path)
        self.messages: list[str] = []

    def fields(self) -> list[str]:
        """Every `NAME=value` received, in order."""
        while True:
            try:
                self.messages.append(self._socket.recv(65536).decode())
            except BlockingIOError:
                return [field for message in self.messages for field in message.split("\n")]

    def close(self) -> None:
        self._socket.close()


class Agentd:
    """A real agentd on a configuration of its own, in a directory short enough for its sockets."""

    def __init__(self, directory: Path, config: str = "", env: Mapping[str, str] | None = None) -> None:
        self.dir = directory
        self.runtime = directory / "run"
        self.config = directory / "wardgate.toml"
        self.audit = directory / "log" / "audit.jsonl"
        self.env = dict(env or {})
        self.starts = 0
        self.child: Child
        self.write(config)

    def write(self, config: str) -> None:
        """The configuration, with what every test needs before it."""
        self.config.write_text(
            f'runtime.dir = "{self.runtime}"\nadmin.listen = ["127.0.0.1:0"]\n'
            f'audit.path = "{self.audit.parent}"\nlogging.level = "debug"\n{config}'
        )

    def start(self, wait: bool = True) -> "Agentd":
        """Start it (again) and wait until it is ready."""
        self.starts += 1
        output = self.dir / f"agentd.{self.starts}.log"
        self.child = Child(python("-m", "agentd", "--config", str(self.config)), output, self.env)
        if wait:
            self.child.wait_for("agentd is ready")
        return self

    @property
    def admin_address(self) -> tuple[str, int]:
        """Of the TCP admin API."""
        host, _, port = (self.runtime / "admin.addr").read_text().splitlines()[0].rpartition(":")
        return host, int(port)

    def __enter__(self) -> "Agentd":
        return self

    def __exit__(self, *exc: object) -> None:
        if hasattr(self, "child"):
            self.child.kill()
