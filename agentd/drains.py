"""Drains that an operator asked for: which instance may leave, and how each of them left.

    begin --> DRAIN: no new requests for it; those it knows end --> BYE --> drained | cut at the deadline | lost

An instance may leave when another one of its agent takes calls, or when the operator insists. What DRAIN
means on the wire is agentd/transport's business, whom the lane asks instead agentd/pool.py's.

Kind: pure (the transport does the work).
"""

from collections import deque
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

from agentd.call import Instance
from agentd.lane import Lane
from agentd.registry import Registry
from agentd.transport.zmq_reception import Farewell
from agentd.transport.zmq_session import V2Session
from shared.clock import MS, S
from shared.defaults import DRAINS_REMEMBERED
from shared.errors import AdminRefused
from shared.wire import admin as wire


class Transport(Protocol):
    """The sessions of zmq-v2."""

    registry: Registry

    def drain(self, session: V2Session, deadline_ns: int) -> None:
        """DRAIN, BYE when nothing is left or at the deadline; its process may not register again at once."""

    def farewell(self, session: V2Session) -> Farewell | None:
        """How the session ended; None = it has not."""


class _Row(NamedTuple):
    agent: str
    session: V2Session
    deadline_ns: int


class Drains:
    """`lanes`: the dispatcher's own mapping."""

    def __init__(self, lanes: Mapping[str, Lane], transport: Transport, clock: Callable[[], int]) -> None:
        self._lanes = lanes
        self._transport = transport
        self._clock = clock
        self._rows: deque[_Row] = deque(maxlen=DRAINS_REMEMBERED)

    def begin(self, agent: str, request: wire.DrainRequest) -> wire.Drains:
        """Raises AdminRefused: 404 no such agent or instance, 409 requests would fail for it, or it cannot be done."""
        lane = self._lanes.get(agent)
        if lane is None:
            known = ", ".join(self._lanes) or "none"
            raise AdminRefused(404, f"there is no agent {agent!r}; there are: {known}"[:500])
        if lane.settings.protocol != "zmq-v2":
            text = f"{agent} speaks zmq-v1: agentd dials it, and its connections are no instances of their own. "
            text += "Start the new one at another endpoint, change `endpoint`, and run `wardgate reload`: the old "
            raise AdminRefused(409, text + "connections are drained when the new ones are up")
        leaving = self._leaving(agent, lane, request)
        staying = [i for i in lane.pool.instances if _takes_calls(i) and i not in leaving]
        if not staying and not request.is_forced:
            names = ", ".join(session.name for session in leaving)
            text = f"no other instance of {agent} takes calls now: without {names} its requests would fail. "
            raise AdminRefused(409, text + "Start another one first, or insist with --force (`force` in the API)")
        deadline_ns = self._clock() + int(request.timeout_s * S)
        for session in leaving:
            self._rows.append(_Row(agent, session, deadline_ns))
            self._transport.drain(session, deadline_ns)
        return wire.Drains(tuple(map(self._row, list(self._rows)[-len(leaving) :])))

    def rows(self) -> wire.Drains:
        """The last ones, newest first."""
        return wire.Drains(tuple(map(self._row, reversed(self._rows))))

    def _leaving(self, agent: str, lane: Lane, request: wire.DrainRequest) -> list[V2Session]:
        seat = self._transport.registry.seats.get(agent)
        live = {session.name: session for session in (seat.sessions.values() if seat else ()) if session.is_live}
        names = ", ".join(live) or "none"
        if request.instance:
            if request.instance not in live:
                text = f"{agent} has no instance {request.instance!r}; there are: {names}"
                raise AdminRefused(404, text[:500])
            return [live[request.instance]]
        if not live:
            raise AdminRefused(409, f"{agent} has no instance")
        if len(live) > 1 and not request.is_forced:
            text = f"{agent} has {len(live)} instances: {names}. Name one of them, or insist on all of them with "
            raise AdminRefused(409, (text + "--force (`force` in the API)")[:2_000])
        return list(live.values())

    def _row(self, row: _Row) -> wire.Drain:
        session = row.session
        end = self._transport.farewell(session)
        if end is None:
            left_ms = max(0, row.deadline_ns - self._clock()) // MS
            calls, pins = len(session.calls), session.pins
            return wire.Drain(row.agent, session.name, session.session_id, "draining", calls, pins, left_ms)
        state = "cut" if end.is_finished else "lost"
        if not end.calls and not end.pins:
            state = "drained"
        return wire.Drain(row.agent, session.name, session.session_id, state, end.calls, end.pins, 0, end.reason)


def _takes_calls(instance: Instance) -> bool:
    return not (instance.is_draining or instance.is_paused or instance.health == "draining")
