"""Child processes of `wardgate run`: started, listened to, signalled.

Each is in a process group of its own (Ctrl-C reaches only `run`) and gets SIGTERM from the kernel when
`run` dies, however it dies. Its output comes through a pipe, its READY=1 through one datagram socket,
where the kernel says which process spoke.

When to start and stop whom is proxy/cli/supervise.py's.

Kind: IO.
"""

import ctypes
import os
import signal
import socket
import struct
import subprocess
from collections.abc import Callable, Mapping, Sequence

import msgspec

from proxy.cli.supervise import Force, Role

_PR_SET_PDEATHSIG = 1
_LINE_MAX_BYTES = 16_384  # a longer line is shown in pieces
_READ_BYTES = 65_536
_CREDENTIALS = struct.Struct("3i")
_SIGNALS: dict[Force, signal.Signals] = {"term": signal.SIGTERM, "quit": signal.SIGQUIT, "kill": signal.SIGKILL}
# Not for children: another manager's sockets and watchdog.
_NOT_INHERITED = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "WATCHDOG_USEC", "WATCHDOG_PID")


class Spec(msgspec.Struct, frozen=True):
    """What to start. `agent`: the configured name whose connection makes it ready; "" = READY=1 does."""

    label: str
    role: Role
    args: tuple[str, ...]
    agent: str = ""
    pass_fds: tuple[int, ...] = ()


class Process:
    """One running child."""

    __slots__ = ("_rest", "popen", "spec")

    def __init__(self, spec: Spec, environ: Mapping[str, str]) -> None:
        """Start it. Raises OSError."""
        self.spec = spec
        self._rest = b""
        self.popen = subprocess.Popen(
            spec.args,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,
            cwd="/",
            env=environ,
            pass_fds=spec.pass_fds,
            process_group=0,
            preexec_fn=_follow_parent(),
        )
        os.set_blocking(self.fd, False)

    @property
    def fd(self) -> int:
        """The pipe with its output."""
        assert self.popen.stdout is not None
        return self.popen.stdout.fileno()

    def lines(self) -> list[str] | None:
        """One read's complete lines; None = nobody is left who could write. Never waits."""
        try:
            data = os.read(self.fd, _READ_BYTES)
        except BlockingIOError:
            return []
        if not data:
            return None
        whole = (self._rest + data).split(b"\n")
        self._rest = whole.pop()
        if len(self._rest) > _LINE_MAX_BYTES:
            whole.append(self._rest)
            self._rest = b""
        return [_text(line) for line in whole]

    def rest(self) -> list[str]:
        """After its end: everything that was still in the pipe."""
        found: list[str] = []
        while lines := self.lines():
            found += lines
        last, self._rest = self._rest, b""
        return [*found, _text(last)] if last else found

    def end(self) -> str:
        """How it ended in words, once it has; "" while it runs."""
        code = self.popen.poll()
        if code is None:
            return ""
        if code < 0:
            return f"was killed by {signal.Signals(-code).name}"
        return f"ended with exit code {code}"

    def send(self, force: Force) -> None:
        """A signal to it; kill goes to its whole group."""
        try:
            if force == "kill":
                os.killpg(self.popen.pid, signal.SIGKILL)
            else:
                self.popen.send_signal(_SIGNALS[force])
        except ProcessLookupError:
            pass

    def close(self) -> None:
        """After its end; whatever it left in its group is killed."""
        self.send("kill")
        if self.popen.stdout is not None:
            self.popen.stdout.close()


def _text(line: bytes) -> str:
    return line.decode("utf-8", "replace").rstrip("\r")


def _follow_parent() -> Callable[[], None]:
    """Runs in the child before exec: SIGTERM when the parent dies, also if it just has."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    parent = os.getpid()

    def follow() -> None:
        prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)

    return follow


class ReadySocket:
    """Where children say READY=1 (sd_notify); an abstract name, so that nothing is left behind."""

    def __init__(self) -> None:
        name = f"wardgate-run-{os.getpid()}-{os.urandom(4).hex()}"
        self.name = f"@{name}"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._socket.bind(f"\0{name}")

    def fileno(self) -> int:
        """For select."""
        return self._socket.fileno()

    def pids(self) -> list[int]:
        """The processes that said READY=1 since the last call."""
        found: list[int] = []
        while True:
            try:
                data, control, _, _ = self._socket.recvmsg(4096, socket.CMSG_SPACE(_CREDENTIALS.size))
            except BlockingIOError:
                return found
            for level, kind, value in control:
                if level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS and b"READY=1" in data.split(b"\n"):
                    found.append(_CREDENTIALS.unpack(value)[0])

    def close(self) -> None:
        """No more."""
        self._socket.close()


def environment(environ: Mapping[str, str], ready: ReadySocket) -> dict[str, str]:
    """What children find in theirs."""
    kept = {name: value for name, value in environ.items() if name not in _NOT_INHERITED}
    # Our daemons tell UTC; in one terminal everybody should.
    return {**kept, "NOTIFY_SOCKET": ready.name, "PYTHONUNBUFFERED": "1", "TZ": "UTC"}


def python(*args: str, executable: str) -> tuple[str, ...]:
    """A command line of our interpreter, safe against the working directory (-P)."""
    return (executable, "-P", *args)


def group_of(specs: Sequence[Spec]) -> list[tuple[str, Role]]:
    """What the supervision needs to know."""
    return [(spec.label, spec.role) for spec in specs]
