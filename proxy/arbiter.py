"""The process above the workers: gunicorn's arbiter, taught to wait for nothing and to lose nothing.

    start     sockets and segment are there (proxy/serve.py): fork; READY=1 when all slots are marked ready
    turn      every 0.2 s: reap, read the slots, ask proxy/roster.py what to do, do it, feed the watchdog
    HUP       validate, compile once, fork with it; the old workers drain when the new ones serve.
              A config that is refused, or whose workers cannot start, leaves everything as it was
    TERM      STOPPING=1, close the sockets, drain the workers; INT, QUIT: at once
    silence   a worker that stops beating: SIGABRT (a traceback), then SIGKILL

What gunicorn does otherwise, and what that cost (2026-11): a config error in a reload exits the arbiter
and orphans its workers; a reload blocks the loop (7.9 s seen) so that a watchdog kills it; READY=1 is
sent before a worker exists; a worker that drains by itself still counts, so its successor comes late; a
worker that hangs before its first heartbeat is waited for for ever; a step of the clock ends a drain.

What is served is not known here, and no config is compiled twice: workers inherit it.

Kind: IO (the decisions are proxy/roster.py's).
"""

import logging
import os
import signal
import socket
from collections.abc import Callable
from typing import Any

import gunicorn.arbiter
import msgspec
from gunicorn.app.base import BaseApplication
from gunicorn.errors import HaltServer

from proxy import gunicorn_conf, listen, worker
from proxy.limits import limit_specs
from proxy.roster import Member, decide, respawn_wait_ns
from shared import log
from shared.clock import MS, S, now_ns
from shared.config.load import Loaded
from shared.config.reload import in_short, needs_restart
from shared.defaults import (
    ARBITER_TICK_MS,
    FORCED_STOP_S,
    QUICK_STOP_S,
    SHORT_LIFE_MS,
    STOOD_STILL_S,
    WORKER_SLOTS,
    WORKER_STALE_MS,
)
from shared.errors import ConfigError, SegmentError, WardgateError
from shared.metrics import W_REQUESTS
from shared.notify import Notify
from shared.plan import PlanTable, compile_plans
from shared.segment import ProxyWriter, ReloadResult, WorkerSlot, WorkerState
from shared.segment_limits import LimitRow, LimitSpec

_log = logging.getLogger("proxy.arbiter")


class Accepted(msgspec.Struct, frozen=True):
    """A config that passed, with all that is computed from it before the fork."""

    loaded: Loaded
    plans: PlanTable
    generation: int


class Birth(msgspec.Struct, frozen=True):
    """What one worker takes over from the arbiter through the fork."""

    accepted: Accepted
    slot: WorkerSlot
    boot_error: int = gunicorn.arbiter.Arbiter.WORKER_BOOT_ERROR


class Application(BaseApplication):  # type: ignore[misc]
    """How gunicorn asks for its settings and for the application."""

    birth: Birth

    def __init__(self, accepted: Accepted) -> None:
        self.accepted = accepted
        super().__init__()

    def do_load_config(self) -> None:
        """gunicorn's own prints a config error and exits; ours was checked before."""
        self.load_default_config()
        for name, value in gunicorn_conf.settings(self.accepted.loaded.config).items():
            self.cfg.set(name, value)

    def load(self) -> Any:
        """What uvicorn serves beside our protocol: nothing."""
        return worker.no_application


class Arbiter(gunicorn.arbiter.Arbiter):  # type: ignore[misc]
    """One per runtime directory. `read` loads the config again, for a reload."""

    app: Application
    WORKERS: dict[int, worker.Worker]
    LISTENERS: list[socket.socket]

    def __init__(
        self,
        app: Application,
        read: Callable[[], Loaded],
        listeners: listen.Listeners,
        writer: ProxyWriter,
        notify: Notify,
    ) -> None:
        self.WORKERS = {}
        self.LISTENERS = []
        self._read = read
        self._listeners = listeners
        self._writer = writer
        self._notify = notify
        self._members: dict[int, Member] = {}
        self._slots: dict[int, WorkerSlot] = {}  # by pid, as the members
        self._generations = app.accepted.generation
        self._previous: Accepted | None = None  # to go back to while a reload is not settled
        self._limits: list[LimitRow] = []  # as they were before the last reload
        self._change = "serving"  # what is under way, as it is told once the current generation serves; "" = nothing
        self._was_ready = False  # READY=1 was said once
        self._is_stopping = False
        self._reload_again = False
        self._short_lives = 0
        self._spawn_not_before = 0
        self._fed_ns = 0
        self._looked_ns = 0
        self._is_seen = True  # our segment, by others
        self._turned_ns = now_ns()
        self._silent_from_ns = 0  # nobody's silence is counted from before: we did not turn ourselves
        super().__init__(app)

    # --- start and turn ---------------------------------------------------------------------------

    def start(self) -> None:
        """Instead of gunicorn's, which binds, and says READY=1 before any worker exists."""
        self.pid = os.getpid()
        self.LISTENERS = self._listeners.sockets
        self.init_signals()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, worker.INHERITED)
        self._notify.status("starting workers")

    def wait_for_signals(self, timeout: float = 1.0) -> list[int]:
        """gunicorn's, with a shorter turn: a ready or draining worker says so in its slot, not by a signal."""
        signals: list[int] = super().wait_for_signals(timeout=ARBITER_TICK_MS / 1000)
        return signals

    def manage_workers(self) -> None:
        """One turn: see how the workers are, and do the next step."""
        if self._is_stopping:
            return
        now = now_ns()
        self._observe(now)
        free = WORKER_SLOTS - len(self._members)
        grace_ns = int(self.cfg.graceful_timeout * S) + S
        step = decide(self._members.values(), self.num_workers, self.app.accepted.generation, free, now, grace_ns)
        for pid in step.kill:
            _log.error("worker did not drain in time: killed", extra={"pid": pid})
            self._force(pid)
        for pid in step.drain:
            self._members[pid].drain_ns = now
            self.kill_worker(pid, signal.SIGTERM)
        if step.is_settled:
            self._previous = None  # its workers were just told to drain: no way back
        if step.spawn and now >= self._spawn_not_before:
            for _ in range(step.spawn):
                if not self.spawn_worker():
                    break
        if step.is_settled and self._change:
            self._settle()
        self._feed(now)

    def _settle(self) -> None:
        """The current generation serves; the others were told to drain in this very step."""
        change, self._change = self._change, ""
        self._previous = None
        self._was_ready = True
        names = ", ".join(self._listeners.addresses())
        digest = self.app.accepted.loaded.digest
        _log.info(change, extra={"listen": names, "workers": self.num_workers, "digest": digest})
        self._writer.set_state(WorkerState.READY)
        self._writer.end_reload(ReloadResult.APPLIED, now_ns())
        self._notify.ready(f"{self.num_workers} workers on {names}")
        if self._reload_again:
            self._reload_again = False
            self.reload()

    def _observe(self, now: int) -> None:
        """Bring the members up to date with what their slots say."""
        for pid, member in self._members.items():
            state = self._slots[pid].state
            member.is_ready = state is WorkerState.READY
            if not member.is_spent and self._slots[pid].cells[W_REQUESTS] >= self.WORKERS[pid].max_requests:
                member.is_spent = True
                _log.info("worker has served server.max_requests", extra={"pid": pid})
            if member.is_ready and not member.was_ready:
                member.was_ready = True
                self._short_lives = 0
            if state is WorkerState.DRAINING and not member.drain_ns:
                member.drain_ns = now

    def _feed(self, now: int) -> None:
        """Beat in the segment; WATCHDOG=1 when this loop turns and at least one worker's does."""
        self._writer.beat(now)
        if now - self._looked_ns > S:
            self._looked_ns = now
            was_seen, self._is_seen = self._is_seen, os.path.exists(self._writer.path)
            if was_seen and not self._is_seen:
                _log.error("%s was removed: health and metrics see no proxy until a restart", self._writer.path)
        every_s = self._notify.watchdog_s
        if every_s is None or now - self._fed_ns < every_s * S / 2:
            return
        stale = now - WORKER_STALE_MS * MS
        if any(slot.beat_ns > stale for slot in self._slots.values()):
            self._fed_ns = now
            self._notify.watchdog()

    def murder_workers(self) -> None:
        """Whose loop has not turned for server.worker_timeout_s, counted from the fork on, is ended.

        The slot is the heartbeat. Time in which we stood still ourselves (SIGSTOP, a frozen machine) is nobody's.
        """
        now = now_ns()
        if now - self._turned_ns > STOOD_STILL_S * S:
            self._silent_from_ns = now
        self._turned_ns = now
        for pid, member in list(self._members.items()):
            heard_ns = max(self._slots[pid].beat_ns, member.spawned_ns, self._silent_from_ns)
            if now - heard_ns > self.timeout * S:
                _log.critical("worker hangs: killed", extra={"pid": pid, "silent_s": (now - heard_ns) // S})
                self._force(pid)

    def _force(self, pid: int) -> None:
        """SIGABRT, which leaves a traceback; SIGKILL the next time."""
        worker = self.WORKERS[pid]
        is_again, worker.aborted = worker.aborted, True
        self.kill_worker(pid, signal.SIGKILL if is_again else signal.SIGABRT)

    # --- processes --------------------------------------------------------------------------------

    def spawn_worker(self) -> bool:
        """Fork one, into a slot chosen before. In the child this does not return. False: it could not be done."""
        taken = {member.slot for member in self._members.values()}
        index = next(index for index in range(WORKER_SLOTS) if index not in taken)
        accepted = self.app.accepted
        now = now_ns()
        # A signal sent to a worker before its handlers stand would be lost in a copy of our queue, or kill it
        # half made: what comes is kept until the worker's server captures it.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, worker.INHERITED)
        try:
            slot = self._writer.slot(index)  # its memory: a full tmpfs says so here
            self.app.birth = Birth(accepted, slot)
            pid = super().spawn_worker()
        except (OSError, MemoryError) as error:
            _log.error("cannot start a worker: %s", error)
            self._short_lives += 1
            self._spawn_not_before = now + respawn_wait_ns(self._short_lives)
            if self._previous is not None:
                self._go_back()
            return False
        finally:
            if os.getpid() == self.pid:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self._slots[pid] = slot
        self._members[pid] = Member(pid, self.worker_age, accepted.generation, index, now)
        return True

    def reap_workers(self) -> None:
        """Bury who is dead. A worker that cannot start stops us only at the very first start."""
        has_failed = False
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if not pid:
                break
            dead = self.WORKERS.pop(pid, None)
            if dead is None:
                continue  # an orphan that became ours because we are process 1
            dead.tmp.close()
            has_failed |= self._bury(self._members.pop(pid), os.waitstatus_to_exitcode(status), now_ns())
        self._feed(now_ns())
        if has_failed and not self._was_ready and not self._is_stopping:
            raise HaltServer("a worker could not start", self.WORKER_BOOT_ERROR)

    def _bury(self, member: Member, code: int, now: int) -> bool:
        """Free its slot and say how it ended; True when it never became ready."""
        slot = self._slots.pop(member.pid)
        was_ready = member.was_ready or slot.state in (WorkerState.READY, WorkerState.DRAINING)
        self._writer.free_slot(slot)
        how = {"pid": member.pid, "slot": member.slot, **end_of(code)}
        if code == 0:
            _log.info("worker ended", extra=how)
        elif member.is_killed or member.drain_ns or self._is_stopping:
            _log.warning("worker ended by force", extra=how)
        else:
            _log.error("worker died", extra=how)
        if now - member.spawned_ns < SHORT_LIFE_MS * MS and not member.drain_ns and not self._is_stopping:
            self._short_lives += 1
            self._spawn_not_before = now + respawn_wait_ns(self._short_lives)
        if not was_ready and self._previous is not None and member.generation == self.app.accepted.generation:
            self._go_back()
        return not was_ready

    def kill_worker(self, pid: int, sig: int) -> None:
        """gunicorn's; remembered, so that the worker's end is not taken for a crash."""
        member = self._members.get(pid)
        if member is not None and sig in (signal.SIGABRT, signal.SIGKILL):
            member.is_killed = True
        super().kill_worker(pid, sig)

    # --- reload -----------------------------------------------------------------------------------

    def reload(self) -> None:
        """Validate, compile, fork; everything else is the next turns' work. Never raises, never waits."""
        if self._change:
            self._reload_again = True
            _log.info("still starting workers: will reload after that")
            return
        self._notify.reloading()
        self._writer.begin_reload()
        running = self.app.accepted
        try:
            loaded = self._read()
            problems = needs_restart(running.loaded.config, loaded.config, ("proxy",))
            if problems:
                raise ConfigError(problems)
            self._generations += 1
            accepted = Accepted(loaded, compile_plans(loaded.config), self._generations)
            self._limits = self._writer.limits()
            self._writer.reconfigure(loaded.digest, *row_names(loaded))
        except WardgateError as error:
            problems = error.problems if isinstance(error, ConfigError) else [str(error)]
            for problem in problems:
                _log.error("config refused: %s", problem)
            self._keep(running, problems)
            return
        except Exception as error:  # whatever it is: no reload may end a proxy that serves
            _log.exception("config refused")
            self._keep(running, [f"{type(error).__name__}: {error}"])
            return
        for warning in loaded.warnings:
            _log.warning("%s", warning)
        self._stats["reloads"] += 1
        self._previous = running
        self._adopt(accepted, "reloaded")
        _log.info("config accepted, starting workers with it", extra={"digest": loaded.digest})
        self.manage_workers()

    def _keep(self, running: Accepted, problems: list[str]) -> None:
        _log.error("the running config stays", extra={"digest": running.loaded.digest})
        self._writer.end_reload(ReloadResult.REFUSED, now_ns(), in_short(problems))
        self._notify.ready("reload refused, the running config stays; see the log")

    def _go_back(self) -> None:
        """A worker of the new config did not come up: the old config is the current one again."""
        previous = self._previous
        assert previous is not None
        self._previous = None
        _log.error("a worker could not start with the new config: going back")
        why = "a worker could not start with the new configuration; see the log"
        self._writer.end_reload(ReloadResult.ROLLED_BACK, now_ns(), why)
        try:
            self._writer.reconfigure(previous.loaded.digest, *row_names(previous.loaded))
            self._writer.put_back(self._limits)
        except SegmentError as error:  # agentd stands still in the table of limits: no reason to end what serves
            _log.error("limits keep the numbers of the new config: %s", error)
        self._adopt(previous, "serving with the config from before")

    def _adopt(self, accepted: Accepted, change: str) -> None:
        self._change = change
        self.app.accepted = accepted
        self.app.do_load_config()
        logging_ = accepted.loaded.config.logging
        log.configure(logging_.level, logging_.format)
        self.setup(self.app)

    # --- end --------------------------------------------------------------------------------------

    def stop(self, graceful: bool = True) -> None:
        """Tell the workers and wait for them; then whoever is left is ended. Leaves no zombie.

        gunicorn's counts by the wall clock, which may be set meanwhile.
        """
        if not self._is_stopping:
            self._is_stopping = True
            self._writer.set_state(WorkerState.DRAINING)
            self._notify.stopping("draining" if graceful else "stopping")
            _log.info(
                "draining the workers" if graceful else "stopping the workers", extra={"workers": len(self.WORKERS)}
            )
        self._listeners.close()
        self.LISTENERS = []
        if graceful:
            self.kill_workers(signal.SIGTERM)
            graceful = not self._wait_for_workers(self.cfg.graceful_timeout)
        if not graceful:
            self.kill_workers(signal.SIGQUIT)
            self._wait_for_workers(QUICK_STOP_S)
        for _ in range(2):
            for pid in list(self.WORKERS):
                _log.error("worker does not end: killed", extra={"pid": pid})
                self._force(pid)
            self._wait_for_workers(FORCED_STOP_S)

    def _wait_for_workers(self, timeout_s: float) -> bool:
        """Until all have ended or the time is over; True as soon as a signal asks for more haste."""
        deadline = now_ns() + int(timeout_s * S)
        while self.WORKERS and now_ns() < deadline:
            if {signal.SIGINT, signal.SIGQUIT} & set(self.wait_for_signals()):
                _log.info("asked to stop at once")
                return True
            self.reap_workers()
        return False

    def handle_winch(self) -> None:
        """Nothing: a terminal's new size reaches every process in it."""

    def handle_usr2(self) -> None:
        """gunicorn would fork a second arbiter here, which our lock must refuse."""
        _log.warning("SIGUSR2 does nothing; to replace the program, restart with socket activation")


def row_names(loaded: Loaded) -> tuple[tuple[str, ...], tuple[str, ...], tuple[LimitSpec, ...]]:
    """The rows of the segment's counters: routes, upstreams and limits."""
    config = loaded.config
    routes = tuple(route.name for route in config.routes)
    return routes, tuple(upstream.name for upstream in config.upstreams), limit_specs(config)


def end_of(code: int) -> dict[str, Any]:
    """How a process ended, as log fields, from `os.waitstatus_to_exitcode`."""
    return {"exit_code": code} if code >= 0 else {"signal": signal.Signals(-code).name}
