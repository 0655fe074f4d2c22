"""Builds agentd from a configuration, turns its loop, and takes it down again.

    lock (agentd/__main__.py)
      -> admin sockets bound      an address in use ends the start before anybody has noticed it
      -> audit sink, dispatcher with its lanes
      -> agentd.seg with the forced-open breakers of the last run
      -> workers' socket, agents' transports, admin API -> READY=1
    SIGHUP, POST /api/reload: agentd/reload.py reads, agentd/takeover.py brings it into force
    SIGTERM: no new exchanges, DRAIN and BYE to the agents -> transports, workers' socket, segment, audit

Owns every task, timer and signal handler of agentd: one task for the admin API, one for reloads, one timer
for all deadlines, one for the heartbeat. What an event, an agent or an admin request means is decided elsewhere.

Kind: IO.
"""

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
from collections.abc import Callable
from importlib import metadata

import msgspec
import zmq

from agentd.admin import Admin
from agentd.admin_http import AdminServer, address_of, bind_tcp, bind_unix
from agentd.alarm import ReadFirst
from agentd.audit.outlet import Outlet
from agentd.dispatcher import Dispatcher
from agentd.drains import Drains
from agentd.health import HealthSource, LoopLag
from agentd.ingress import Ingress
from agentd.memory import MemoryGuard
from agentd.operations import Operations, latency_of
from agentd.publish import Publisher
from agentd.reload import Fresh, Reloading
from agentd.takeover import Takeover, sink_of
from agentd.transport.zmq_dealer import V2Transport
from agentd.transport.zmq_rep import V1Transport
from shared.clock import MS, S, now_ns
from shared.config.load import Loaded
from shared.defaults import (
    AGENTD_BEAT_MS,
    AGENTD_STALE_MS,
    ALARM_LATE_MS,
    AUDIT_STOP_S,
    DRAIN_DEADLINE_MS,
    HEALTH_LOOK_SHARE,
    MEMORY_LOOK_MS,
    READ_FIRST_MS,
    READ_FIRST_TIMES,
)
from shared.errors import WardgateError
from shared.notify import Notify
from shared.runtime import Runtime
from shared.segment import AgentdWriter, BreakerState, ProxyView
from shared.turn import Turn
from shared.wire import audit
from shared.wire.segment import NEVER_NS

_log = logging.getLogger("agentd")
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Daemon:
    """One life of agentd. The caller holds the runtime directory's lock."""

    def __init__(
        self,
        loaded: Loaded,
        runtime: Runtime,
        token: str,
        notify: Notify,
        read: Callable[[], Fresh],
        clock: Callable[[], int] = now_ns,
    ) -> None:
        self._loaded = loaded
        self._runtime = runtime
        self._token = token
        self._read = read  # the configuration again, for a reload; called in a thread
        self._notify = notify
        self._clock = clock
        self._deadline_timer: asyncio.TimerHandle | None = None
        self._beat_timer: asyncio.TimerHandle | None = None
        self._memory_timer: asyncio.TimerHandle | None = None
        self._beat_due_ns = 0
        self._alarm_due_ns = 0
        self._read_first = ReadFirst()
        self._reads = 0  # how often a late alarm was put off for what came meanwhile
        self._look_due_ns = 0
        self._watchdog_due_ns = 0
        self._audit_lost = 0
        self._told_status = ""

    async def run(self) -> int:
        """Until a signal; returns the exit code. Raises WardgateError when it cannot start."""
        self._loop = asyncio.get_running_loop()
        self._is_told_to_stop = asyncio.Event()
        self._is_told_to_hurry = asyncio.Event()
        for number in _STOP_SIGNALS:
            self._loop.add_signal_handler(number, self._told_to_stop, signal.Signals(number).name)
        self._loop.add_signal_handler(signal.SIGHUP, self._told_to_reload)
        self._loop.add_signal_handler(signal.SIGUSR1, self._told_to_reopen)
        with contextlib.ExitStack() as stack:
            try:
                self._open(stack)
            except (OSError, zmq.ZMQError) as error:
                raise WardgateError(f"cannot listen in {self._runtime.dir}: {error.strerror}") from error
            code = await self._serve()
        _log.info("agentd has stopped")
        return code

    async def _serve(self) -> int:
        serving = self._loop.create_task(self._admin.serve(), name="admin")
        reloading = self._loop.create_task(self._reloading.run(), name="reload")
        stopping = self._loop.create_task(self._is_told_to_stop.wait(), name="stop")
        try:
            self._beat()
            self._look_at_memory()
            gc.collect()
            gc.freeze()  # what is here now stays: to walk it takes each full collection 7 ms, in which nobody is served
            self._notify.ready(self._status())
            _log.info("agentd is ready", extra={"pid": os.getpid(), "runtime_dir": self._runtime.dir})
            await asyncio.wait((serving, stopping), return_when=asyncio.FIRST_COMPLETED)
            if serving.done():  # nothing but a defect ends it; somebody has to start us anew
                return 1
            await self._drain()
            return 0
        finally:
            stopping.cancel()
            self._admin.stop()
            await serving
            reloading.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await reloading

    # --- building ----------------------------------------------------------------------------------

    def _open(self, stack: contextlib.ExitStack) -> None:
        """Everything in the order of the drawing; `stack` closes it in the opposite one."""
        loaded, runtime, clock = self._loaded, self._runtime, self._clock
        config = loaded.config
        tcp = [stack.enter_context(bind_tcp(listen)) for listen in config.admin.listen]
        unix = stack.enter_context(bind_unix(runtime.admin_socket))
        stack.callback(_unlink, runtime.admin_socket)
        self._announce(tcp, stack)
        self._outlet = Outlet(sink_of(config.audit))
        stack.callback(self._close_sink)
        nonce = os.urandom(4).hex()
        self._dispatcher = Dispatcher(
            f"{nonce}-", clock, self._arm, self._audit, on_breaker=self._breaker_moved, on_lanes=self._lanes_changed
        )
        stack.callback(self._disarm)
        self._dispatcher.configure(config.agents)
        lanes = self._dispatcher.lanes
        for_v1: zmq.Context[zmq.Socket[bytes]] = zmq.Context()  # its thread starts with the first socket
        stack.callback(for_v1.destroy, 0)
        guard = MemoryGuard(accounted_bytes=self._accounted_bytes)
        moved, agents = self._lanes_moved, config.agents
        turn = Turn(self._loop)
        self._v2 = V2Transport(
            self._loop, runtime, agents, lanes, clock=clock, guard=guard, on_change=moved,
            hwm=config.runtime.agent_hwm, turn=turn,
        )  # fmt: skip
        self._v1 = V1Transport(for_v1, self._loop, agents, lanes, clock=clock, guard=guard, on_change=moved)
        writer = AgentdWriter.create(runtime.agentd_segment, loaded.digest)
        registry = self._v2.registry
        self._publisher = Publisher(writer, lanes, registry.hello_mask, runtime.breakers_file)
        stack.callback(self._publisher.close)
        self._writer: AgentdWriter | None = writer
        stack.callback(self._forget_writer)
        for name in self._publisher.kept():
            if name in lanes:
                lanes[name].breaker.force_open(clock())
                _log.warning("breaker of %s is open: an operator opened it before the restart", name)
        self._publisher.refresh()
        self._ingress = Ingress(
            self._loop,
            runtime.workers_socket,
            self._dispatcher,
            self._put_audit,
            nonce=nonce,
            config_digest=loaded.digest,
            turn=turn,
            max_unsent=config.runtime.hop_unsent_bytes,
        )
        stack.callback(self._ingress.close)
        for transport in (self._v2, self._v1):
            stack.callback(transport.close)
            transport.start()
        self._proxy = stack.enter_context(contextlib.closing(ProxyView(runtime.proxy_segment)))
        version = _version()
        self._lag = LoopLag(clock())
        self._health = HealthSource(
            config,
            loaded.digest,
            version,
            lambda: self._publisher.rows,
            self._proxy,
            self._outlet,
            self._lag,
            latency_of(lanes),
            lambda: self._publisher.problem,
            lambda: writer.reload,
            clock=clock,
        )
        self._state = Operations(
            self._dispatcher,
            registry,
            self._publisher,
            self._health,
            self._outlet,
            self._ingress,
            self._proxy,
            version,
            clock,
            self._v2,
        )
        rules = Admin(self._state, self._token)
        self._takeover = Takeover(
            loaded, self._dispatcher, self._v2, self._v1, self._publisher, writer, self._ingress, self._health,
            rules, self._outlet, self._proxy, clock=clock,
        )  # fmt: skip
        self._reloading = Reloading(
            self._takeover, self._read, writer, self._proxy, self._notify, self._state.audit_change
        )
        self._state.attach(self._reloading, Drains(lanes, self._v2, clock))
        self._admin = AdminServer(rules, [*tcp, unix])

    def _accounted_bytes(self) -> int:
        """Of what agentd holds: bodies, twice (as they came, and on their way out), and what others do not read."""
        return 2 * self._dispatcher.body_bytes + self._v2.unsent_bytes + self._ingress.all_unsent_bytes

    def _announce(self, tcp: list[socket.socket], stack: contextlib.ExitStack) -> None:
        """The addresses as bound: port 0 of the configuration is a real one here."""
        addresses = [address_of(sock) for sock in tcp]
        path = f"{self._runtime.dir}/admin.addr"
        with open(f"{path}.new", "w") as file:
            file.writelines(f"{address}\n" for address in addresses)
        os.replace(f"{path}.new", path)
        stack.callback(_unlink, path)
        for address in addresses:
            _log.info("admin API on http://%s", address, extra={"address": address})

    def _forget_writer(self) -> None:
        self._writer = None

    # --- signals -----------------------------------------------------------------------------------

    def _told_to_stop(self, name: str) -> None:
        if self._is_told_to_stop.is_set():
            self._is_told_to_hurry.set()
        self._is_told_to_stop.set()
        _log.info("%s: stopping", name)

    def _told_to_reload(self) -> None:
        _log.info("SIGHUP: reloading")
        self._reloading.ask()

    def _told_to_reopen(self) -> None:
        path = self._outlet.reopen()
        if path:
            _log.info("SIGUSR1: the audit file is opened anew", extra={"path": path})

    async def _drain(self) -> None:
        """DRAIN and BYE to the agents; a second signal ends the patience."""
        now = self._clock()
        self._health.is_stopping = True
        self._notify.stopping("draining")
        for lane in self._dispatcher.lanes.values():
            # Draining instances take no new exchange, and to queue for them would be to wait for nothing: with
            # no queue such a call ends at once. Those of pinned exchanges go on.
            lane.configure(msgspec.structs.replace(lane.settings, max_queue=0), now)
        deadline_ns = now + DRAIN_DEADLINE_MS * MS
        drains = [
            self._loop.create_task(transport.stop(deadline_ns), name=f"drain {name}")
            for name, transport in (("zmq-v2", self._v2), ("zmq-v1", self._v1))
        ]
        hurry = self._loop.create_task(self._is_told_to_hurry.wait(), name="hurry")
        both = asyncio.gather(*drains)
        try:
            await asyncio.wait((both, hurry), timeout=DRAIN_DEADLINE_MS / 1000 + 1, return_when=asyncio.FIRST_COMPLETED)
        finally:
            hurry.cancel()
            for task in drains:
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await both

    # --- time --------------------------------------------------------------------------------------

    def _arm(self, deadline_ns: int) -> None:
        """The dispatcher's alarm: ring then, and not at the time armed before."""
        if self._deadline_timer is not None:
            self._deadline_timer.cancel()
        self._alarm_due_ns = deadline_ns
        # The loop counts in whole milliseconds: rounded up, or it would ring before the deadline, for nothing.
        delay_ms = -((self._clock() - deadline_ns) // MS)
        self._deadline_timer = self._loop.call_later(max(0, delay_ms) / 1000, self._ring)

    def _ring(self) -> None:
        now = self._clock()
        wait_ms = self._read_first.wait_ms(self._alarm_due_ns, now)
        is_late = now - self._alarm_due_ns > ALARM_LATE_MS * MS
        if is_late and not wait_ms and self._reads < READ_FIRST_TIMES:
            self._reads += 1
            # Armed before: a defect in one message's handler must not leave all deadlines without their alarm.
            again = self._deadline_timer = self._loop.call_later(READ_FIRST_MS / 1000, self._ring)
            if self._v2.read_arrived():
                return  # a socket holds some 270 messages: more of them may be on their way now
            again.cancel()
        if wait_ms:
            self._deadline_timer = self._loop.call_later(wait_ms / 1000, self._ring)
            return
        self._deadline_timer = None
        self._reads = 0
        self._dispatcher.expire(now)

    def _beat(self) -> None:
        """Every AGENTD_BEAT_MS, from the loop: it turns."""
        now = self._clock()
        lag_ns = max(0, now - self._beat_due_ns) if self._beat_due_ns else 0
        self._lag.add(lag_ns, now)
        self._beat_due_ns = now + AGENTD_BEAT_MS * MS
        self._beat_timer = self._loop.call_later(AGENTD_BEAT_MS / 1000, self._beat)
        if self._writer is not None:
            self._writer.beat(now)
        if lag_ns < AGENTD_STALE_MS * MS:  # else we were away, not the agents: what they said is read first
            self._v2.on_time(now)
            self._v1.on_time(now)
        self._publisher.refresh()
        if self._notify.watchdog_s is not None and now >= self._watchdog_due_ns:
            self._watchdog_due_ns = now + int(self._notify.watchdog_s * S / 2)
            self._notify.watchdog()
        if now >= self._look_due_ns:
            self._look_due_ns = NEVER_NS  # whatever it raises, not again in 100 ms
            self._look(now)

    def _look_at_memory(self) -> None:
        """Every MEMORY_LOOK_MS: an agent's endless message grows five times a beat's worth of it unseen otherwise."""
        self._memory_timer = self._loop.call_later(MEMORY_LOOK_MS / 1000, self._look_at_memory)
        self._v2.guard.look(self._clock())

    def _look(self, now: int) -> None:
        """About once a second: agentd's own state into the segment, the proxy's new segment, what logs hold back."""
        self._ingress.tick(now)
        _, lost, queued = self._outlet.numbers()
        if lost != self._audit_lost:
            _log.warning("audit records lost", extra={"count": lost - self._audit_lost, "waiting": queued})
            self._audit_lost = lost
        dispatcher = self._dispatcher
        sessions = sum(lane.live_instances for lane in dispatcher.lanes.values())
        own = self._health.own(
            self._health.report(), len(dispatcher.workers), sessions, dispatcher.in_flight, dispatcher.queued,
            (queued, lost),
        )  # fmt: skip
        if self._writer is not None:
            self._writer.put_health(own)
        status = self._status()
        if status != self._told_status:
            self._told_status = status
            self._notify.status(status)
        took_ns = self._clock() - now
        self._look_due_ns = now + max(S, int(took_ns / HEALTH_LOOK_SHARE))

    def _status(self) -> str:
        """One line for `systemctl status`."""
        lanes = self._dispatcher.lanes.values()
        live = sum(1 for lane in lanes if lane.live_instances)
        return f"{live} of {len(lanes)} agents live, {len(self._dispatcher.workers)} workers"

    def _disarm(self) -> None:
        for timer in (self._deadline_timer, self._beat_timer, self._memory_timer):
            if timer is not None:
                timer.cancel()

    # --- what others report ------------------------------------------------------------------------

    def _breaker_moved(self, agent: str, old: BreakerState, new: BreakerState) -> None:
        self._publisher.agent_changed(agent)
        if old is not new:
            _log.warning("breaker %s -> %s", old.word, new.word, extra={"agent": agent})

    def _lanes_moved(self) -> None:
        """Agents, their instances or what they ask for."""
        if hasattr(self, "_publisher"):  # lanes are made before there is somewhere to show them
            self._publisher.refresh()

    def _audit(self, record: audit.AuditRecord) -> None:
        self._state.put_audit(record)

    def _lanes_changed(self) -> None:
        """Some came or went; what went is asked by nobody any more."""
        self._lanes_moved()
        if hasattr(self, "_takeover"):
            self._loop.call_soon(self._takeover.forget_gone)

    def _put_audit(self, record: bytes) -> None:
        self._outlet.put(record)

    def _close_sink(self) -> None:
        left = self._outlet.sink.stop(AUDIT_STOP_S) if self._outlet.sink is not None else 0
        if left:
            _log.error("audit records lost at the end: they could not be written", extra={"count": left})


def _unlink(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def _version() -> str:
    try:
        return metadata.version("wardgate")
    except metadata.PackageNotFoundError:
        return "unknown"
