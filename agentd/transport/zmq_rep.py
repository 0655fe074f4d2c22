"""All v1 agents: how many connections, when they are dialled, how they end together.

One agent = `connections` lockstep connections (agentd/transport/zmq_lockstep.py), each an instance of
its lane. No tasks and no timers: the daemon calls `on_time`.

Kind: IO.
"""

import asyncio
import random
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from itertools import count, islice
from typing import Any, NamedTuple

import zmq

from agentd.lane import Lane
from agentd.memory import MemoryGuard, Suspect
from agentd.peers import Loop
from agentd.registry import configuration
from agentd.transport.verdicts import VerdictReader
from agentd.transport.zmq_fd import unread_bytes
from agentd.transport.zmq_lockstep import Link, V1Connection, connection_name
from shared import log
from shared.clock import MS, S, now_ns
from shared.config.schema import Agent
from shared.defaults import AGENT_LOOK_MS, V1_HANDOVER_MS
from shared.wire.agent_zmq import decode_v1_verdict


class _Handover(NamedTuple):
    """Old connections of an agent that serve until the new ones are up."""

    old: list[V1Connection]
    new: list[V1Connection]
    until_ns: int
    patience_ns: int  # for what the old ones know, once they drain

    @property
    def has_successor(self) -> bool:
        """Somebody else can be asked, of whatever protocol."""
        return any(not instance.is_draining and instance not in self.old for instance in self.old[0].peers)


class V1Transport:
    """All zmq-v1 agents: `connections` of each, dialled for ever. `random()` is the jitter, 0 <= x < 1."""

    def __init__(
        self,
        context: "zmq.Context[zmq.Socket[bytes]]",
        loop: Loop,
        agents: Iterable[Agent],
        lanes: Mapping[str, Lane],
        *,
        clock: Callable[[], int] = now_ns,
        random: Callable[[], float] = random.random,
        guard: MemoryGuard | None = None,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self.context = context
        self.loop = loop
        self.clock = clock
        self.random = random
        self._tell_change = on_change
        self.connections: list[V1Connection] = []
        self._guard = guard
        self._handovers: dict[str, _Handover] = {}  # by agent
        self._drained: asyncio.Future[None] | None = None
        self._add(agents, lanes)

    def _add(self, agents: Iterable[Agent], lanes: Mapping[str, Lane]) -> list[V1Connection]:
        made = []
        for agent in agents:
            if agent.protocol == "zmq-v1":
                reader = VerdictReader(agent.name, decode_v1_verdict)
                taken = {c.name for c in self.connections if c.settings.name == agent.name}
                free = (number for number in count(1) if connection_name(number) not in taken)
                for number in islice(free, agent.connections):
                    made.append(V1Connection(self, agent, lanes[agent.name], reader, number))
        self.connections += made
        return made

    def start(self) -> None:
        """Dial all of them."""
        if self._guard is not None:
            self._guard.watch(self._suspects)
        self.on_time(self.clock())

    def next_wakeup_ns(self) -> int | None:
        """When on_time has something to do."""
        times = [c.due_ns for c in self.connections if c.state not in (Link.READY, Link.CLOSED)]
        times += [c.drain_deadline_ns for c in self.connections if c.is_draining and c.state is not Link.CLOSED]
        return min(times, default=None)

    def on_time(self, now: int) -> None:
        """Dial and give up what is due; call it at next_wakeup_ns or any time later."""
        for connection in self.connections:
            connection.on_time(now)
        if self._handovers:
            self._hand_over(now)

    def configure(self, agents: Iterable[Agent], lanes: Mapping[str, Lane], drain_deadline_ns: int) -> None:
        """Another configuration: agents whose endpoint, connections or own table changed are dialled anew, and the
        old connections drained when the new ones are up; the others are left alone."""
        wanted = {agent.name: agent for agent in agents if agent.protocol == "zmq-v1"}
        now = self.clock()
        self.connections = [c for c in self.connections if c.state is not Link.CLOSED]
        leaving_us = {c.settings.name for c in self.connections} - wanted.keys()
        for name in [name for name in leaving_us if name in lanes and lanes[name].is_configured]:
            # It is to dial in from now on: these serve until it has, like those of an endpoint that has changed.
            leaving_us.discard(name)
            old = [c for c in self.connections if c.settings.name == name and c.is_live and not c.is_draining]
            self.forget((name,), drain_deadline_ns, old)
            if old:
                self._handovers[name] = _Handover(old, [], now + V1_HANDOVER_MS * MS, drain_deadline_ns - now)
        self.forget(leaving_us, drain_deadline_ns)
        for name, agent in wanted.items():
            known = self._handovers.pop(name, None)
            leaving = known.old if known is not None else []
            current = [c for c in self.connections if c.settings.name == name and not c.is_draining]
            latest = [c for c in current if c not in leaving]
            if latest and _is_same(agent, latest[0].settings):
                if known is not None:
                    self._handovers[name] = known
                continue
            new = self._add([agent], lanes)
            for connection in new:
                connection.on_time(now)
            for connection in current:
                if not connection.is_live:
                    connection.begin_drain(drain_deadline_ns)  # nothing is lost with it
            old = [c for c in current if c.is_live]
            if old:
                self._handovers[name] = _Handover(old, new, now + V1_HANDOVER_MS * MS, drain_deadline_ns - now)

    def forget(self, agents: Collection[str], drain_deadline_ns: int, but: Collection[V1Connection] = ()) -> None:
        """These agents are asked by nobody any more, or only over a few connections."""
        for connection in self.connections:
            name = connection.settings.name
            if name in agents and connection not in but:
                self._handovers.pop(name, None)
                if not connection.is_draining:
                    connection.begin_drain(drain_deadline_ns)

    @property
    def names(self) -> set[str]:
        """Agents with connections that are not about to end."""
        return {c.settings.name for c in self.connections if not c.is_draining and c.state is not Link.CLOSED}

    def on_change(self) -> None:
        """A connection came up or went down."""
        self._tell_change()
        if self._handovers:
            self.loop.call_soon(partial(self._hand_over, self.clock()))

    def _hand_over(self, now: int) -> None:
        """Let the old connections go where all new ones are up, or have not come up for too long."""
        for name, handover in list(self._handovers.items()):
            is_up = all(connection.state is Link.READY for connection in handover.new) and handover.has_successor
            if not is_up and now < handover.until_ns:
                continue
            if not is_up:
                text = "the new connections are not up in time; the old ones are drained"
                log.line("agentd.agents", log.WARNING, text, agent=name)
            del self._handovers[name]
            for connection in handover.old:
                if not connection.is_draining and connection.state is not Link.CLOSED:
                    connection.begin_drain(now + handover.patience_ns)

    @property
    def is_drained(self) -> bool:
        """Nothing is left."""
        return all(connection.state is Link.CLOSED for connection in self.connections)

    async def stop(self, deadline_ns: int) -> None:
        """Let calls and pinned requests end, up to the deadline; then close. Needs `on_time` to be called."""
        self._drained = asyncio.get_running_loop().create_future()
        for connection in self.connections:
            connection.begin_drain(deadline_ns)
        if not self.is_drained:
            wait_s = (deadline_ns - self.clock()) / S + 5 * AGENT_LOOK_MS / 1000  # in case nobody calls on_time
            await asyncio.wait((self._drained,), timeout=wait_s)
        self.close()

    def closed(self) -> None:
        """A connection has ended for good."""
        if self._drained is not None and not self._drained.done() and self.is_drained:
            self._drained.set_result(None)

    def close(self) -> None:
        """Close now; what is in flight fails as Disconnected."""
        if self._guard is not None and self.connections:
            self._guard.forget(self._suspects)
        for connection in self.connections:
            connection.close("agentd is shutting down")
        self.connections = []

    def snapshot(self) -> list[dict[str, Any]]:
        """For the admin API: every connection."""
        now = self.clock()
        return [connection.snapshot(now) for connection in self.connections]

    def _suspects(self) -> list[Suspect]:
        """For the memory guard: who has bytes under way."""
        found = []
        for connection in self.connections:
            unread = unread_bytes(connection.fd, connection.inode) if connection.fd >= 0 else 0
            found.append(Suspect(unread, connection.last_seen_ns, connection.cut, connection))
        return found


def _is_same(new: Agent, old: Agent) -> bool:
    return (new.endpoint, new.connections) == (old.endpoint, old.connections) and configuration(new) == configuration(
        old
    )
