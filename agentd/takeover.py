"""Brings another configuration into force while agentd serves: what is checked before, in which order it acts.

    objections --> audit file open? (thread) --> one turn of the loop: lanes, transports, breakers, token,
                                                 health, digest, log --> the old audit file is let go

An agent that is gone from the configuration is asked on as long as a worker of the old one names it; then
its lane goes, and `forget_gone` lets its connections go, too. When a reload begins and how it is told stands
in agentd/reload.py.

Kind: IO (a thread waits for files).
"""

import asyncio
from collections.abc import Callable

from agentd.admin import Admin
from agentd.audit.file import FileSink
from agentd.audit.outlet import Outlet
from agentd.dispatcher import Dispatcher
from agentd.health import HealthSource
from agentd.ingress import Ingress
from agentd.publish import Publisher
from agentd.reload import Fresh
from agentd.transport.zmq_dealer import V2Transport
from agentd.transport.zmq_rep import V1Transport
from shared import log
from shared.clock import MS, now_ns
from shared.config.load import Loaded
from shared.config.reload import needs_restart
from shared.config.schema import Audit
from shared.defaults import AUDIT_OPEN_S, AUDIT_STOP_S, DRAIN_DEADLINE_MS
from shared.errors import ConfigError, WardgateError
from shared.segment import AgentdWriter, ProxyView


class Takeover:
    """`agentd.reload.Target`: everything in agentd that a configuration means something to."""

    def __init__(
        self,
        loaded: Loaded,
        dispatcher: Dispatcher,
        v2: V2Transport,
        v1: V1Transport,
        publisher: Publisher,
        writer: AgentdWriter,
        ingress: Ingress,
        health: HealthSource,
        rules: Admin,
        outlet: Outlet,
        proxy: ProxyView,
        *,
        clock: Callable[[], int] = now_ns,
    ) -> None:
        self.loaded = loaded  # in force
        self._dispatcher = dispatcher
        self._v2 = v2
        self._v1 = v1
        self._publisher = publisher
        self._writer = writer
        self._ingress = ingress
        self._health = health
        self._rules = rules
        self._outlet = outlet
        self._proxy = proxy
        self._clock = clock

    def objections(self, loaded: Loaded) -> list[str]:
        """Why it cannot be taken over while agentd runs.

        What needs a restart of the proxy is refused here, too, or agentd would run it and the proxy would not; but
        not once the proxy runs it.
        """
        if self._health.is_stopping:
            return ["agentd is stopping"]
        proxy = self._proxy
        has_other = proxy.check() and proxy.is_alive(self._clock()) and proxy.config_digest != loaded.digest
        return needs_restart(self.loaded.config, loaded.config, ("agentd", "proxy") if has_other else ("agentd",))

    async def take(self, fresh: Fresh) -> None:
        """Bring it into force. Raises WardgateError, and then nothing has changed."""
        new, old = fresh.loaded.config.audit, self.loaded.config.audit
        has_other_sink = (new.sinks, new.path) != (old.sinks, old.path)
        sink = await asyncio.to_thread(_opened, new) if has_other_sink else None
        try:
            if self._health.is_stopping:
                raise WardgateError("agentd is stopping")
            self._apply(fresh)
        except BaseException:
            if sink is not None:
                await asyncio.to_thread(sink.stop, 0.0)
            raise
        leaving = self._outlet.replace(sink) if has_other_sink else None
        if leaving is not None:
            self._outlet.left(leaving, await asyncio.to_thread(leaving.stop, AUDIT_STOP_S))

    def _apply(self, fresh: Fresh) -> None:
        """In one turn of the loop: no event sees half of it."""
        loaded, lanes = fresh.loaded, self._dispatcher.lanes
        agents, known = loaded.config.agents, set(lanes)
        self._dispatcher.configure(agents)
        kept = [lane.settings for lane in lanes.values() if not lane.is_configured]
        deadline_ns = self._clock() + DRAIN_DEADLINE_MS * MS
        try:
            self._v2.configure([*agents, *kept], lanes, deadline_ns)
        except ConfigError:  # a secret that was there a moment ago
            self._dispatcher.configure(self.loaded.config.agents)
            raise
        self._v1.configure([*agents, *kept], lanes, deadline_ns)
        if lanes.keys() - known:
            for name in self._publisher.kept():  # an operator's word outlives the agent's absence
                if name in lanes and name not in known:
                    lanes[name].force_open(self._clock())
        self.loaded = loaded
        self._rules.configure(fresh.token)
        self._health.configure(loaded.config, loaded.digest)
        self._ingress.config_digest = loaded.digest
        self._writer.set_config_digest(loaded.digest)
        self._publisher.refresh()
        log.configure(loaded.config.logging.level, loaded.config.logging.format)

    def forget_gone(self) -> None:
        """Transports let go of agents that neither the configuration nor a worker names."""
        gone = (self._v2.registry.seats.keys() | self._v1.names) - self._dispatcher.lanes.keys()
        if gone:
            deadline_ns = self._clock() + DRAIN_DEADLINE_MS * MS
            self._v2.forget(gone, deadline_ns)
            self._v1.forget(gone, deadline_ns)


def sink_of(audit: Audit) -> FileSink | None:
    """The configured sink, started; None = none is configured."""
    if "file" not in audit.sinks:
        return None
    sink = FileSink(audit.path, queue_records=audit.queue_records, queue_bytes=audit.queue_bytes)
    sink.start()
    return sink


def _opened(audit: Audit) -> FileSink | None:
    """The same, for a reload: a file that cannot be opened is a reason to refuse it. Not for the event loop."""
    sink = sink_of(audit)
    why = sink.why_not_open(AUDIT_OPEN_S) if sink is not None else ""
    if sink is not None and why:
        sink.stop(0.0)
        raise ConfigError(f"audit.path: {why}")
    return sink
