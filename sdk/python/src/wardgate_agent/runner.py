"""Runs an agent: its link, conversation and dispatcher on one event loop, signals, exit code.

Everything that owns a task, a timer or a signal handler is here or in the dispatcher. One timer serves
heartbeats, HELLO and deadlines; nothing is made per event.

Kind: IO.
"""

import asyncio
import importlib
import inspect
import logging
import os
import re
import secrets
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from wardgate_agent import wire
from wardgate_agent.agent import Agent, kebab, wanted_events
from wardgate_agent.conversation import EXIT_CONFIG, EXIT_OK, Conversation
from wardgate_agent.dispatcher import Dispatcher
from wardgate_agent.events import Configure
from wardgate_agent.link import Link, endpoint_problem
from wardgate_agent.verdicts import AgentError
from wardgate_agent.zmtp import Connection, Frame

log = logging.getLogger("wardgate_agent")
_INSTANCE = re.compile(r"[A-Za-z0-9._:-]{1,64}\Z")
_AWAY_NOTE_S = 2.0  # so long without a connection before the log says so
_FAREWELL_S = 0.2  # for the last BYE to reach agentd


class OptionsError(ValueError):
    """An option makes no sense; the text says which and why."""


@dataclass(frozen=True, slots=True)
class Options:
    """How to run an agent. `name` "" = the class's, `instance` "" = host, process id and four random digits."""

    connect: str = wire.DEFAULT_ENDPOINT
    name: str = ""
    instance: str = ""
    secret_file: str = ""
    max_batch: int = 64
    max_concurrency: int = 100
    max_body_bytes: int = 1_048_576
    drain_deadline_s: float = 30.0
    version: str = ""

    def checked(self) -> "Options":
        """Itself, or OptionsError."""
        problem = endpoint_problem(self.connect)
        if problem:
            raise OptionsError(f"connect: {problem}")
        if len(self.name) > wire.MAX_NAME_CHARS or len(self.version) > wire.MAX_NAME_CHARS:
            raise OptionsError(f"name, version: at most {wire.MAX_NAME_CHARS} characters")
        if self.instance and not _INSTANCE.match(self.instance):
            raise OptionsError("instance: 1 to 64 of letters, digits and . _ : -")
        for field, low, high in (("max_batch", 1, 256), ("max_concurrency", 1, 100_000), ("max_body_bytes", 1, 2**24)):
            if not low <= getattr(self, field) <= high:
                raise OptionsError(f"{field}: from {low} to {high}")
        if not 0 <= self.drain_deadline_s <= 3600:
            raise OptionsError("drain_deadline_s: from 0 to 3600")
        return self

    def secret(self) -> bytes | None:
        """The secret, or None when there is no file."""
        if not self.secret_file:
            return None
        try:
            with open(self.secret_file, "rb") as file:
                content = wire.read_secret(file.read(65_536))
        except OSError as error:
            raise OptionsError(f"secret_file {self.secret_file}: {error.strerror}") from None
        if not content:
            raise OptionsError(f"secret_file {self.secret_file} is empty")
        return content


def default_instance() -> str:
    """Unique per process, also in containers that share host name and process id."""
    host = re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname())[:40]
    return f"{host}-{os.getpid()}-{secrets.token_hex(2)}"


class Runner:
    """One agent, running. `await serve()` gives the exit code."""

    def __init__(self, agent: Agent, options: Options) -> None:
        options = options.checked()
        wanted = wanted_events(agent)
        if not wanted:
            raise OptionsError(f"{type(agent).__name__} overrides no hook and lists no events: it would see nothing")
        self.agent = agent
        self.session = agent.session
        self._options = options
        self._secret = options.secret()
        self.session.agent = options.name or agent.name or kebab(type(agent).__name__)
        self.session.instance = options.instance or default_instance()
        self._hello: dict[str, Any] = {
            "protocol": wire.PROTOCOL,
            "agent": self.session.agent,
            "instance": self.session.instance,
            "events": wanted,
            "max_concurrency": options.max_concurrency,
            "max_batch": options.max_batch,
            "max_body_bytes": options.max_body_bytes,
        }
        if options.version:
            self._hello["version"] = options.version
        self._stopped: asyncio.Future[int] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._away_since_s: float | None = None
        self._next_config: tuple[dict[str, Any], int] | None = None
        self._config_task: asyncio.Task[None] | None = None
        self._is_flushing = False

    async def serve(self, *, handle_signals: bool = False) -> int:
        """Run until a signal, `leave` or a final refusal; the exit code."""
        loop = self._loop = asyncio.get_running_loop()
        self._stopped = loop.create_future()
        options = self._options
        self._link = Link(
            options.connect,
            loop,
            on_message=self._on_message,
            on_up=self._on_up,
            on_down=self._on_down,
            turn=self,
            backoff_max_s=wire.BACKOFF_MAX_TCP_S if options.connect.startswith("tcp") else wire.BACKOFF_MAX_S,
        )
        self.dispatcher = Dispatcher(
            self.agent,
            max_concurrency=options.max_concurrency,
            send=self._link.send,
            wake=self._flush_soon,
            idle=self._on_idle,
        )
        self.events = self.dispatcher.events
        self.conversation = Conversation(
            self,
            self.session,
            hello=self._hello,
            secret=self._secret,
            drain_deadline_s=options.drain_deadline_s,
        )
        signals = (signal.SIGTERM, signal.SIGINT) if handle_signals else ()
        for number in signals:
            loop.add_signal_handler(number, self.leave)
        exit_code = EXIT_OK
        try:
            self._away_since_s = time.monotonic()
            self._link.open()
            self._tick()
            exit_code = await self._stopped
        finally:
            for number in signals:
                loop.remove_signal_handler(number)
            if self._timer is not None:
                self._timer.cancel()
            self.session.closed()
            if self._config_task is not None:
                self._config_task.cancel()
                await asyncio.wait([self._config_task], timeout=1.0)
            await self.dispatcher.stop()
            await self._link.farewell(_FAREWELL_S if exit_code == EXIT_OK else 0)
        return exit_code

    def leave(self) -> None:
        """Drain and stop; a second call does not wait."""
        log.info("leaving: draining up to %g s", self._options.drain_deadline_s)
        self.conversation.leave(time.monotonic())
        self._tick()

    # --- the link's side --------------------------------------------------------------------------

    def _on_message(self, connection: Connection, frames: list[Frame]) -> None:
        self.conversation.received(frames, time.monotonic())

    def begin(self) -> None:
        """Messages begin to be handled."""

    def end(self) -> None:
        """They were handled: what they led to leaves now, together."""
        self.dispatcher.flush()

    def _on_up(self) -> None:
        self._away_since_s = None
        log.info("connected to %s", self._link.endpoint)
        self.conversation.up(time.monotonic())
        self._tick()

    def _on_down(self, reason: str) -> None:
        if self._away_since_s is None:
            self._away_since_s = time.monotonic()
            log.warning("the connection to agentd is gone (%s); connecting again", reason)
        self.conversation.down(time.monotonic())
        self._tick()

    def _flush_soon(self) -> None:
        """An async hook has ended: its verdict waits a turn of the loop for those that end together with it."""
        if not self.dispatcher.in_flight:
            self.dispatcher.flush()
        elif not self._is_flushing:
            self._is_flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._is_flushing = False
        self.dispatcher.flush()

    def _on_idle(self) -> None:
        if self.conversation.is_leaving:
            self._flush()
            self.conversation.idle(time.monotonic())

    def _tick(self) -> None:
        if self._stopped is None or self._stopped.done():
            return
        if self._timer is not None:
            self._timer.cancel()
        now_s = time.monotonic()
        if self._away_since_s is not None and now_s - self._away_since_s >= _AWAY_NOTE_S:
            self._away_since_s = float("inf")  # once per outage
            log.warning("no connection to %s: %s", self._link.endpoint, self._link.trouble or "no answer yet")
        due_s = self.conversation.tick(now_s)
        self._timer = self._loop.call_later(max(0.0, due_s - now_s), self._on_time)

    def _on_time(self) -> None:
        if self._link.drain():  # a loop that a slow hook held up must not take what it did not read for silence
            self.conversation.heard(time.monotonic())
        self._tick()

    # --- conversation.Port ------------------------------------------------------------------------

    def send(self, frames: list[bytes]) -> bool:
        return self._link.send(frames)

    def reconnect(self) -> None:
        self._away_since_s = time.monotonic()
        self._link.reconnect()

    def opened(self) -> None:
        self._link.settle()
        self.session.opened(self.send, self._loop.call_soon_threadsafe)
        self._loop.call_soon(self._on_time)  # there is another heartbeat now

    def unconfigured(self, frames: list[Frame]) -> None:
        self.dispatcher.refuse(frames, "not_configured", "no configuration was accepted yet")

    def cancel(self, frames: list[Frame]) -> None:
        self.dispatcher.cancel(frames)

    def lost(self) -> None:
        self.session.closed()
        self.dispatcher.lost()
        self._next_config = None

    def in_flight(self) -> int:
        return self.dispatcher.in_flight

    def stop(self, exit_code: int, reason: str) -> None:
        if exit_code == EXIT_OK:
            log.info("stopping: %s", reason)
        else:
            log.error("giving up: %s", reason)
        if self._stopped is not None and not self._stopped.done():
            self._stopped.set_result(exit_code)

    # --- configuration ----------------------------------------------------------------------------

    def configure(self, raw: dict[str, Any], epoch: int) -> None:
        """Ask the hook, one configuration at a time; of those that come meanwhile only the last counts."""
        if self._next_config is not None:
            before, epoch_before = self._next_config
            self.conversation.configured(epoch_before, before.get("config_version"), "superseded by a newer one")
        self._next_config = raw, epoch
        if self._config_task is None:
            self._config_next()

    def _config_next(self) -> None:
        while self._next_config is not None and self._config_task is None:
            (raw, epoch), self._next_config = self._next_config, None
            configure = Configure(raw)
            try:
                result = self.agent.on_configure(configure)
            except Exception as error:
                self._configured(configure, epoch, error)
                continue
            if inspect.isawaitable(result):
                self._config_task = self._loop.create_task(self._await_config(result, configure, epoch))
                self._config_task.add_done_callback(self._config_done)
            else:
                self._configured(configure, epoch, result)

    async def _await_config(self, result: Any, configure: Configure, epoch: int) -> None:
        try:
            outcome = await result
        except Exception as error:
            outcome = error
        self._configured(configure, epoch, outcome)

    def _config_done(self, task: "asyncio.Task[None]") -> None:
        self._config_task = None
        if not task.cancelled() and task.exception() is not None:
            log.error("on_configure failed", exc_info=task.exception())
        if self._stopped is not None and not self._stopped.done():
            self._config_next()

    def _configured(self, configure: Configure, epoch: int, outcome: object) -> None:
        problem: str | None = None
        if isinstance(outcome, AgentError):
            problem = f"{outcome.code}: {outcome.message}"
            log.error("the configuration is rejected: %s", problem)
        elif isinstance(outcome, BaseException):
            problem = f"{type(outcome).__name__}: {outcome}"
            log.error("on_configure raised: the configuration is rejected", exc_info=outcome)
        elif outcome is not None:
            problem = f"on_configure returned {type(outcome).__name__}; it returns nothing and raises to reject"
            log.error("%s", problem)
        if self.conversation.configured(epoch, configure.config_version, problem) and problem is None:
            self.session.configuration = configure
            self._loop.call_soon(self._on_time)  # metrics may go
            log.info("configured, version %s", str(configure.config_version)[:100])


def new_event_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's factory if it is installed, else asyncio's own."""
    try:
        uvloop = importlib.import_module("uvloop")
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def run(agent: Agent | type[Agent], connect: str = wire.DEFAULT_ENDPOINT, **options: Any) -> int:
    """Run an agent until SIGTERM or SIGINT; the process's exit code: `sys.exit(run(MyAgent, "ipc://..."))`.

    Options as in `Options`. 0 = asked to leave, 1 = agentd refused for good, 2 = an option or secret is wrong.
    """
    try:
        made = agent() if isinstance(agent, type) else agent
        runner = Runner(made, Options(connect=connect, **options))
    except ValueError as error:  # OptionsError, and what wanted_events says
        log.error("%s", error)
        return EXIT_CONFIG
    with asyncio.Runner(loop_factory=new_event_loop()) as loop:
        return loop.run(runner.serve(handle_signals=True))
