"""`wardgate run`: agentd and the proxy in one terminal, with --demo also something to proxy for and to ask.

    lock "run" -> configuration -> ports free? -> start all -> banner -> wait -> stop all

Moves bytes and signals between the children and the terminal; when something is started, restarted or
stopped is decided in proxy/cli/supervise.py, what the demo consists of in proxy/cli/demo.py.

Kind: IO.
"""

import contextlib
import os
import selectors
import shutil
import signal
import socket
import sys
from collections.abc import Iterator, Sequence

import click

from proxy import listen
from proxy.cli import EXIT_CODES_HELP, config_option
from proxy.cli.children import Process, ReadySocket, Spec, environment, group_of, python
from proxy.cli.demo import Demo, banner, directory
from proxy.cli.supervise import Action, Phase, Ready, Role, Say, Send, Start, Supervision
from proxy.cli.terminal import Terminal, has_colour
from shared.clock import S, now_ns
from shared.config.load import Loaded, load
from shared.config.read import config_path as effective
from shared.defaults import RUN_TICK_MS
from shared.errors import AlreadyRunning
from shared.runtime import LockName, Runtime, lock
from shared.segment import AgentdView

EPILOG = f"""\b
Ctrl-C stops everything in order within 5 s: the proxy, agents, agentd, the application. Ctrl-C again
kills. agentd, the demo's agents and its application are started again when they end by themselves;
without the proxy everything stops with exit code 1.

\b
Examples:
  wardgate run --demo
  wardgate run --demo --port 8081 --admin-port 9901
  wardgate run -c wardgate.toml        your upstreams and agents, started by you

{EXIT_CODES_HELP}
"""
_STOPS = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM", signal.SIGHUP: "the terminal is gone"}
_PORT = click.IntRange(0, 65_535)


@click.command(epilog=EPILOG)
@config_option
@click.option("--demo", is_flag=True, help="With an application, two agents and a configuration to try things on.")
@click.option("--port", type=_PORT, help="Port of the demo's proxy on 127.0.0.1. Default: 8080.")
@click.option("--admin-port", type=_PORT, help="Port of the demo's admin API on 127.0.0.1. Default: 9900.")
def command(config_path: str | None, demo: bool, port: int | None, admin_port: int | None) -> None:
    """Run the proxy and agentd in this terminal.

    With --demo there is nothing to configure. Otherwise the configuration says what is proxied and
    which agents decide; those and the upstreams are yours to start, before or after.
    """
    if demo and config_path is not None:
        raise click.UsageError("--demo brings its own configuration: give either --demo or --config")
    if not demo and (port is not None or admin_port is not None):
        raise click.UsageError("--port and --admin-port belong to --demo; with --config the file says where to listen")
    with contextlib.ExitStack() as stack:
        if demo:
            runtime = Runtime(directory(os.environ, os.geteuid()))
            runtime.prepare()
            stack.callback(lock(runtime.dir, "run").release)
            parts = Demo(runtime, 8080 if port is None else port, 9900 if admin_port is None else admin_port)
            stack.callback(parts.close)
            parts.open()
            path = parts.config_path
            loaded = load(path, os.environ)
        else:
            parts = None
            path = os.path.abspath(effective(config_path, os.environ))
            loaded = load(path, os.environ)
            runtime = Runtime(loaded.config.runtime.dir)
            runtime.prepare()
            stack.callback(lock(runtime.dir, "run").release)
        _need_free(loaded.config.server.listen, "--port" if demo else "server.listen")
        _need_free(loaded.config.admin.listen, "--admin-port" if demo else "admin.listen")
        running = _Running(path, loaded, runtime, parts)
        stack.callback(running.close)
        sys.exit(running.run())


def _need_free(addresses: Sequence[str], setting: str) -> None:
    """Say before anything is started what would fail, and where to change it."""
    try:
        listen.probe(addresses)
    except listen.ListenFailed as error:
        raise listen.ListenFailed(f"{error} ({setting})") from None


def _program() -> str:
    """How the user reaches this command: by name, or where `make dev` put it."""
    if shutil.which("wardgate"):
        return "wardgate"
    path = os.path.join(os.path.dirname(sys.executable), "wardgate")
    near = os.path.relpath(path)
    return path if near.startswith("..") else near


def specs_of(path: str, parts: Demo | None) -> list[Spec]:
    """What is started, in this order."""
    agentd = Spec("agentd", Role.AGENTD, python("-m", "agentd", "--config", path, executable=sys.executable))
    proxy = Spec("proxy", Role.PROXY, python("-m", "proxy", "--config", path, executable=sys.executable))
    if parts is None:
        return [agentd, proxy]
    return [parts.upstream(), agentd, proxy, *parts.agents()]


class _Running:
    """The loop: children's output, signals and time in; what the supervision says, out."""

    def __init__(self, path: str, loaded: Loaded, runtime: Runtime, parts: Demo | None) -> None:
        self._path = path
        self._loaded = loaded
        self._runtime = runtime
        self._is_demo = parts is not None
        specs = specs_of(path, parts)
        self._specs = {spec.label: spec for spec in specs}
        self._supervision = Supervision(group_of(specs))
        self._processes: dict[str, Process] = {}
        colour = has_colour(sys.stdout.isatty(), os.environ)
        self._terminal = Terminal(sys.stdout, self._specs, colour)
        self._selector = selectors.DefaultSelector()
        self._ready = ReadySocket()
        self._environ = environment(os.environ, self._ready)
        self._segment = AgentdView(runtime.agentd_segment)
        self._signals: list[int] = []
        self._is_dirty = False  # a child was killed, by whomever, and may have left files behind

    def run(self) -> int:
        """Until everything is gone again; the exit code."""
        supervision = self._supervision
        for warning in self._loaded.warnings:
            self._terminal.say(warning)
        with self._woken_by_signals():
            self._selector.register(self._ready, selectors.EVENT_READ, self._hear)
            self._do(supervision.begin(now_ns()))
            while supervision.phase is not Phase.DONE:
                for key, _ in self._selector.select(self._patience_s()):
                    key.data()
                self._reap()
                while self._signals:
                    self._do(supervision.stop(_STOPS[signal.Signals(self._signals.pop(0))], now_ns()))
                if supervision.phase is Phase.STARTING:
                    self._look_for_agents()
                if self._terminal.is_gone and supervision.phase in (Phase.STARTING, Phase.RUNNING):
                    self._do(supervision.stop("nobody reads", now_ns()))
                self._do(supervision.tick(now_ns()))
        if self._is_dirty:
            self._sweep()
        self._terminal.say("stopped" if not supervision.exit_code else "stopped after a failure")
        return supervision.exit_code

    def close(self) -> None:
        """Also after an error in here: no child may be left."""
        for process in self._processes.values():
            process.close()
            process.popen.wait()
        self._segment.close()
        self._ready.close()
        self._selector.close()

    # --- what the supervision says ------------------------------------------------------------------

    def _do(self, actions: Sequence[Action]) -> None:
        for action in actions:
            match action:
                case Start(label):
                    self._start(self._specs[label])
                case Send(label, force):
                    self._processes[label].send(force)
                case Say(text, is_bad):
                    self._terminal.say(text, is_bad=is_bad)
                case Ready(missing):
                    self._show_banner(missing)

    def _start(self, spec: Spec) -> None:
        process = Process(spec, self._environ)
        self._processes[spec.label] = process
        self._selector.register(process.fd, selectors.EVENT_READ, lambda: self._read(process))

    def _show_banner(self, missing: tuple[str, ...]) -> None:
        self._segment.check()
        agents = self._segment.agents()
        absent = [
            a.name for a in self._loaded.config.agents if a.name not in agents or not agents[a.name].live_instances
        ]
        text = banner(
            addresses=listen.read_addresses(self._runtime.dir),
            admin=listen.read_addresses(self._runtime.dir, listen.ADMIN_ADDRESS_FILE),
            config_path=self._path,
            audit_dir=self._loaded.config.audit.path,
            absent=absent,
            is_demo=self._is_demo,
            program=_program(),
            bold=self._terminal.bold,
        )
        self._terminal.block(text)

    # --- what happens -------------------------------------------------------------------------------

    def _read(self, process: Process) -> None:
        lines = process.lines()
        if lines is None:
            self._selector.unregister(process.fd)
        else:
            self._terminal.lines(process.spec.label, lines)

    def _hear(self) -> None:
        labels = {process.popen.pid: label for label, process in self._processes.items()}
        for pid in self._ready.pids():
            if pid in labels:
                self._do(self._supervision.ready(labels[pid], now_ns()))

    def _look_for_agents(self) -> None:
        if not self._segment.check() or not self._segment.is_alive(now_ns()):
            return
        agents = self._segment.agents()
        for label, spec in self._specs.items():
            if spec.agent in agents and agents[spec.agent].live_instances:
                self._do(self._supervision.ready(label, now_ns()))

    def _reap(self) -> None:
        for label, process in list(self._processes.items()):
            how = process.end()
            if how:
                del self._processes[label]
                self._is_dirty |= process.popen.returncode < 0
                with contextlib.suppress(KeyError):
                    self._selector.unregister(process.fd)
                self._terminal.lines(label, process.rest())
                process.close()
                self._do(self._supervision.ended(label, how, now_ns()))

    def _patience_s(self) -> float | None:
        due = self._supervision.next_ns()
        if due is None:
            return None
        left = max(0.0, (due - now_ns()) / S)
        return min(left, RUN_TICK_MS / 1000) if self._supervision.phase is Phase.STARTING else left

    @contextlib.contextmanager
    def _woken_by_signals(self) -> Iterator[None]:
        """SIGCHLD and the signals that stop, as bytes on a socket that the selector watches."""
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):
            end.setblocking(False)
        before = {sig: signal.signal(sig, lambda number, _: self._signals.append(number)) for sig in _STOPS}
        before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda number, _: None)
        signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
        self._selector.register(ours, selectors.EVENT_READ, lambda: ours.recv(4096))
        try:
            yield
        finally:
            signal.set_wakeup_fd(-1)
            for sig, handler in before.items():
                signal.signal(sig, handler)
            self._selector.unregister(ours)
            ours.close()
            theirs.close()

    def _sweep(self) -> None:
        """What killed daemons could not remove themselves; only where no other holds the daemon's lock."""
        runtime = self._runtime
        left: dict[LockName, tuple[str, ...]] = {
            "agentd": (
                runtime.workers_socket,
                runtime.agents_socket,
                runtime.admin_socket,
                runtime.agentd_segment,
                f"{runtime.dir}/{listen.ADMIN_ADDRESS_FILE}",
            ),
            "proxy": (runtime.proxy_segment, f"{runtime.dir}/{listen.ADDRESS_FILE}"),
        }
        for name, paths in left.items():
            try:
                held = lock(runtime.dir, name)
            except AlreadyRunning:
                continue
            for path in paths:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
            held.release()
