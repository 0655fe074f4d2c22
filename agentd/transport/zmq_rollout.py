"""A reload's way through the sessions: who gets CONFIG when, who has to leave.

An agent's instances are configured one after the other, so that the rest of them goes on; an agent that has moved to
zmq-v1 serves here until it has been dialled. What each session may say and hear meanwhile is decided in
shared/wire/session.py; who is admitted in the first place in zmq_reception.py.

Kind: pure (the clock is given; the reception sends).
"""

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

from agentd.registry import Seat
from shared.clock import MS
from shared.defaults import DRAIN_DEADLINE_MS, RECONFIGURE_WITHIN_MS, V1_HANDOVER_MS
from shared.wire.agent_messages import RefuseCode
from shared.wire.session import Event, State

if TYPE_CHECKING:
    from agentd.transport.zmq_reception import Reception


class Rollout:
    """The sessions on their way to the configuration that the registry has."""

    def __init__(self, reception: "Reception", clock: Callable[[], int]) -> None:
        self._reception = reception
        self._clock = clock
        self._has_more = False  # some instance waits until a sibling has taken its configuration
        self._outgoing: dict[Seat, int] = {}  # of agents that changed their protocol: until when they serve at most

    def take(self, gone: Collection[Seat], moved: Collection[Seat], drain_deadline_ns: int) -> None:
        """The registry has another one: CONFIG, DRAIN or REFUSE to whom it concerns. Agents that have `moved` to zmq-v1
        serve until they have been dialled."""
        now = self._clock()
        self._outgoing.update(dict.fromkeys(moved, now + V1_HANDOVER_MS * MS))
        for session in list(self._reception.sessions.values()):
            seat, state = session.seat, session.wire.state
            if seat is None or state in (State.HELLO, State.CHALLENGED, State.REFUSED):
                continue
            session.take_bounds()
            missing = seat.missing_events(session.hello.events)
            if seat in gone:
                session.begin_drain(drain_deadline_ns)
            elif session.peer.uid not in seat.uids:
                reason = "the configuration does not allow this user any more"
                self._reception.refuse(session, RefuseCode.NOT_ALLOWED, reason)
            elif missing:
                reason = f"HELLO lacks {', '.join(missing)}, which the configuration lists"
                self._reception.refuse(session, RefuseCode.MISSING_EVENTS, reason)
        self.go_on(now)

    def go_on(self, now: int) -> None:
        """CONFIG to whoever has an earlier one, an agent's instances one after the other: the rest goes on."""
        late_ns = now - RECONFIGURE_WITHIN_MS * MS
        sessions = list(self._reception.sessions.values())
        busy = {s.seat for s in sessions if s.wire.state is State.RECONFIGURING and s.wire.since_ns > late_ns}
        self._has_more = False
        for session in sessions:
            seat, state = session.seat, session.wire.state
            if seat is None or state not in (State.CONFIGURING, State.READY, State.RECONFIGURING):
                continue
            if session.config_version == seat.configuration.config_version:
                continue
            if state is State.READY and seat in busy:
                self._has_more = True
                continue
            session.flush(now)  # what it was asked before, before CONFIG
            if session.wire.state is not state:
                continue  # its connection was found broken
            if state is State.READY:
                busy.add(seat)
            self._reception.say(session, Event.RECONFIGURE, now)
            session.pause()

    def look(self, now: int) -> None:
        """Perhaps the next one's turn has come, or its time to leave."""
        if self._has_more:
            self.go_on(now)
        for seat, until in list(self._outgoing.items()):
            leaving = list(seat.sessions.values())
            if now >= until or any(instance not in leaving for instance in seat.lane.pool.instances) or not leaving:
                del self._outgoing[seat]
                for session in leaving:
                    session.begin_drain(now + DRAIN_DEADLINE_MS * MS)
