"""Moves messages between v2 agents that dialled in and their sessions.

    Peers --message--> stranger? --> Reception --HELLO ...--> V2Session --VERDICTS--> lane.answered
    lane --V2Session.send--> (loop tick) --flush--> EVENTS
    Peers --a connection ended--> its session's calls fail at once

No verb is understood here but VERDICTS, which have a way of their own. No tasks and no timers: the
daemon calls `on_time` by `next_wakeup_ns`. A listener on tcp would be a second one beside this one, with CURVE, and
peers known by key instead of uid.

Kind: IO.
"""

import asyncio
import os
import resource
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from agentd.gate import Gate
from agentd.lane import Lane
from agentd.memory import MemoryGuard, Suspect
from agentd.peers import Loop, Peer, Peers
from agentd.registry import Registry
from agentd.transport.zmq_inbox import take_large
from agentd.transport.zmq_reception import COMPONENT, Farewell, Reception, remembered_each
from agentd.transport.zmq_session import V2Session
from shared import log
from shared.clock import MS, S, now_ns
from shared.config.schema import Agent
from shared.defaults import (
    AGENT_CONTROL_MAX_BYTES,
    AGENT_HEARTBEAT_MS,
    AGENT_HWM,
    AGENT_LAST_WORDS_MS,
    AGENT_LOOK_MS,
    AGENT_PEERS_MAX,
    HELLO_WITHIN_MS,
    IDLERS_MAX,
    READS_FIRST_MAX,
    STRANGER_MAX_FRAMES,
    VERDICTS_LARGE_BYTES,
)
from shared.runtime import Runtime
from shared.turn import Turn
from shared.wire.agent_messages import Bye, RefuseCode
from shared.wire.agent_zmq import pack
from shared.wire.session import MAY_HAVE_CALLS, Due, State
from shared.zmtp import Buffer, Frame

_VERDICTS = b"VERDICTS"
_EARLY_NS = AGENT_LOOK_MS * MS // 4  # a caller with a beat of the same length may come a little early
_LAST_LOOKS = 20
_NEVER_WAS = {Due.NO_HELLO: "not introduced in time", Due.REFUSED: "refused"}


class V2Transport:
    """All zmq-v2 agents behind `runtime.agents_endpoint`.

    `random_bytes(n)` makes nonces and session ids; `on_change()` is called when a session became ready or
    ended. `registry.seats` has what is counted per agent. Raises ConfigError for a secret that cannot be read.
    """

    def __init__(
        self,
        loop: Loop,
        runtime: Runtime,
        agents: Iterable[Agent],
        lanes: Mapping[str, Lane],
        *,
        clock: Callable[[], int] = now_ns,
        random_bytes: Callable[[int], bytes] = os.urandom,
        heartbeat_ms: int = AGENT_HEARTBEAT_MS,
        guard: MemoryGuard | None = None,
        on_change: Callable[[], None] = lambda: None,
        hwm: int = AGENT_HWM,
        turn: Turn | None = None,
    ) -> None:
        self._turn = turn if turn is not None else Turn(loop)
        self.registry = Registry(agents, lanes, hwm=hwm)
        self.clock = clock
        self.not_taken = 0  # messages to a peer that does not read, or is gone
        self._reception = Reception(self.registry, self, clock, random_bytes, heartbeat_ms, on_change)
        self._sessions = self._reception.sessions
        self._loop = loop
        self._runtime = runtime
        self._heartbeat_ms = heartbeat_ms
        self.guard = MemoryGuard() if guard is None else guard  # V1Transport may share it
        self._marked: list[V2Session] = []
        self._gate = Gate(clock)
        self._peers: Peers | None = None
        self._looked_ns = 0
        self._next_look_ns = 0
        self._drained: asyncio.Future[None] | None = None

    # --- life -------------------------------------------------------------------------------------

    def start(self) -> None:
        """Listen. Raises OSError."""
        path = self._runtime.agents_socket
        peers = Peers(
            self._loop,
            path,
            self._message,
            self._gone,
            may_connect=lambda uid: uid in self.registry.uids,
            is_shut_out=self._gate.refuses,
            on_refused=self._log_cut,
            max_peers=min(AGENT_PEERS_MAX, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2),
            max_bytes=AGENT_CONTROL_MAX_BYTES,  # until there is a session
            max_frames=STRANGER_MAX_FRAMES,
            max_unsent=AGENT_CONTROL_MAX_BYTES,
            turn=self._turn,
            clock=self.clock,
        )
        peers.listen(0o117)  # 0660
        try:
            os.chown(path, -1, os.stat(os.path.dirname(path)).st_gid)  # agents reach it by the directory's group
        except PermissionError:
            log.line(COMPONENT, log.WARNING, "the agents' socket keeps this process's group", path=path)
        self._peers = peers
        self.guard.watch(self._suspects)
        self._looked_ns = self.clock()
        self._next_look_ns = self._looked_ns + AGENT_LOOK_MS * MS

    def begin_drain(self, deadline_ns: int) -> None:
        """agentd leaves: DRAIN to every instance, no new sessions."""
        self.registry.is_closing = True
        for session in list(self._sessions.values()):
            if session.wire.state is State.CHALLENGED:
                self._reception.refuse(session, RefuseCode.SHUTTING_DOWN, "agentd is shutting down")
            else:
                session.begin_drain(deadline_ns)

    @property
    def is_drained(self) -> bool:
        """Every instance has got its BYE, or is gone."""
        return not any(session.wire.state in MAY_HAVE_CALLS for session in self._sessions.values())

    async def stop(self, deadline_ns: int) -> None:
        """DRAIN to all, BYE to each when nothing of its is left or at the deadline, then close.

        Calls that come meanwhile for pinned requests are still sent. Needs `on_time` to be called.
        """
        self.begin_drain(deadline_ns)
        self._flush()
        if not self.is_drained:
            self._drained = asyncio.get_running_loop().create_future()
            wait_s = (deadline_ns - self.clock()) / S + 5 * AGENT_LOOK_MS / 1000  # in case nobody calls on_time
            await asyncio.wait((self._drained,), timeout=wait_s)
        await self._last_words_read()
        self.close()

    async def _last_words_read(self) -> None:
        """Give agents a moment for DRAIN and BYE, or until they hang up.

        With ZMQ_IMMEDIATE, which agents shall set, their libzmq throws away what they have not read when the
        connection ends (seen 2026-11: BYE lost for two of three agents).
        """
        for _ in range(_LAST_LOOKS):
            if self._peers is None or not self._peers.all:
                return
            await asyncio.sleep(AGENT_LAST_WORDS_MS / 1000 / _LAST_LOOKS)

    def close(self) -> None:
        """Close now; what is in flight fails as Disconnected."""
        if self._peers is None:
            return
        for session in list(self._sessions.values()):
            if session.wire.state in MAY_HAVE_CALLS or session.wire.state is State.CONFIGURING:
                self.last_words(session, pack(Bye()))
            self._reception.lost(session, "agentd is shutting down")
        self.guard.forget(self._suspects)
        self._peers.close()
        self._peers = None

    def configure(self, agents: Iterable[Agent], lanes: Mapping[str, Lane], drain_deadline_ns: int) -> None:
        """Another configuration: CONFIG to whom it concerns, DRAIN to agents that are gone from it.

        Raises ConfigError and changes nothing when a secret cannot be read.
        """
        gone = self.registry.configure(agents, lanes)
        moved = [seat for seat in gone if seat.name in lanes and lanes[seat.name].is_configured]
        self._reception.rollout.take([s for s in gone if s not in moved], moved, drain_deadline_ns)

    def forget(self, agents: Collection[str], drain_deadline_ns: int) -> None:
        """These agents are asked by nobody any more."""
        for seat in self.registry.drop(agents):
            for session in list(seat.sessions.values()):
                if not session.is_draining:
                    session.begin_drain(drain_deadline_ns)

    def drain(self, session: V2Session, deadline_ns: int) -> None:
        """An operator wants this one replaced: DRAIN, then BYE, and its process is not let in again for a while."""
        self._reception.hold_out(session)
        session.begin_drain(deadline_ns)
        session.pause()  # whoever waits for a place may go elsewhere now

    def farewell(self, session: V2Session) -> Farewell | None:
        """How a draining session ended; None = it has not."""
        return self._reception.farewells.get(session.session_id)

    def snapshot(self) -> list[dict[str, Any]]:
        """For the admin API: every connection that has said something."""
        now = self.clock()
        return [session.snapshot(now) for session in self._sessions.values()]

    @property
    def unsent_bytes(self) -> int:
        """That wait for agents that do not read."""
        return self._peers.unsent_bytes if self._peers is not None else 0

    @property
    def memory_cuts(self) -> int:
        """Connections cut because of a message without end."""
        return self.guard.cuts

    def local_connections(self) -> tuple[int, int, int]:
        """(open, how many there may be, refused so far) of the agents' socket."""
        peers = self._peers
        return (len(peers.all), peers.max_peers, peers.refused) if peers is not None else (0, 0, 0)

    def gate_counts(self) -> tuple[int, int]:
        """(how often a process was shut out, connections refused for that)."""
        return self._gate.shut_outs, self._gate.refused

    @property
    def garbage(self) -> int:
        """Messages of connections without a session; the rest is counted per seat."""
        return self._reception.garbage

    # --- time -------------------------------------------------------------------------------------

    def next_wakeup_ns(self) -> int | None:
        """When on_time has something to do."""
        return self._next_look_ns if self._peers is not None else None

    def on_time(self, now: int) -> None:
        """Look at silence, strangers, drains and memory; call it at next_wakeup_ns or any time later."""
        if now < self._next_look_ns - _EARLY_NS or self._peers is None:
            return
        stood_still = now - self._looked_ns > self._heartbeat_ms * MS
        self._looked_ns = now
        self._next_look_ns = now + AGENT_LOOK_MS * MS
        remembered = remembered_each(len(self._sessions))
        idle: Counter[tuple[int, int]] = Counter()  # connections cut for saying nothing of use, by process
        for session in list(self._sessions.values()):
            if stood_still:
                session.wire.forgive(now)
            session.remember(remembered)
            if self._look(session, now):
                idle[session.peer.address] += 1
        for peer in list(self._peers.all):
            if peer.owner is None and now - peer.accepted_ns >= HELLO_WITHIN_MS * MS:
                idle[peer.address] += 1
                self._cut(peer, "no HELLO in time")
        for address, count in idle.items():
            if count >= IDLERS_MAX and not stood_still:
                self._gate.shut_out(address)
        self.guard.look(now)
        self._reception.log.tick(now)
        self._reception.rollout.look(now)
        self._tell_drained()

    def read_arrived(self) -> bool:
        """agentd stood still: take what has come from those that owe answers, before they are blamed for silence.
        Whether that was any of the answers.

        The loop reads so much of each and turns; 5,000 verdicts of ten instances take it five turns (2026-11).
        """
        has_answers = False
        for session in list(self._sessions.values()):
            taken = session.verdicts_taken
            for _ in range(READS_FIRST_MAX):
                if not session.calls or not session.peer.connection.read():
                    break
            has_answers = has_answers or session.verdicts_taken > taken
        return has_answers

    def _look(self, session: V2Session, now: int) -> bool:
        """True: cut, it never was an instance."""
        due = session.wire.due(now)
        wants_pong = session.look(now)
        if due is Due.PING or (wants_pong and due is Due.NOTHING):
            self.transmit(session, session.ping())
        elif due is Due.SILENT:
            self.drop(session, f"silent for {3 * self._heartbeat_ms} ms")
        elif due in _NEVER_WAS:
            self.drop(session, _NEVER_WAS[due])
            return True
        return False

    def _tell_drained(self) -> None:
        if self._drained is not None and not self._drained.done() and self.is_drained:
            self._drained.set_result(None)

    # --- in ---------------------------------------------------------------------------------------

    def _message(self, peer: Peer, frames: list[Frame]) -> None:
        now = self.clock()
        session: V2Session | None = peer.owner
        if session is None:
            session = self._reception.open(peer, peer.accepted_ns)
        session.wire.heard(now)
        if frames[0] == _VERDICTS and session.wire.state in MAY_HAVE_CALLS:
            is_large = len(frames) > 1 and len(frames[1]) > VERDICTS_LARGE_BYTES
            take = partial(take_large, self.shut_out, session) if is_large else session.take_verdicts
            wrong = take(frames[1:], now)
            if not wrong and not session.was_useful and session.wire.is_chatter(now):
                wrong = "VERDICTS: too many for calls that nobody waits for"
            if wrong:
                self._reception.bad(session, wrong, now)
        else:
            self._reception.control(session, frames, now)

    # --- out (Door, Outbox) -----------------------------------------------------------------------

    def mark(self, session: V2Session) -> None:
        """Flush it with this loop tick."""
        session.is_marked = True
        if not self._marked:
            self._turn.at_end(self._flush)
        self._marked.append(session)

    def _flush(self) -> None:
        marked, self._marked = self._marked, []
        now = self.clock()
        for place, session in enumerate(marked, 1):
            try:
                session.flush(now)
            except BaseException:
                for left in marked[place:]:  # a defect in one of them must not leave the others waiting for ever
                    self.mark(left)
                raise
        if self._drained is not None:
            self._tell_drained()

    def transmit(self, session: V2Session, frames: Sequence[Buffer]) -> bool:
        """Send; False: it does not read, or is gone (its end is on the way)."""
        connection = session.peer.connection
        if connection.send(frames):
            return True
        if connection.is_broken and session.wire.state is not State.DEAD:
            self._broken(session)
        self.not_taken += 1
        return False

    def _broken(self, session: V2Session) -> None:
        """Its end, but for what it said before: that counts, where we are not in the middle of reading it."""
        try:
            for _ in range(READS_FIRST_MAX if not self._turn.is_draining else 0):
                if not session.peer.connection.read():
                    break
        finally:
            self._reception.lost(session, "connection broken")

    def last_words(self, session: V2Session, frames: Sequence[bytes]) -> None:
        """Send; whether it arrives changes nothing."""
        session.peer.connection.send(frames)

    def finish(self, session: V2Session) -> None:
        """Its drain is over."""
        self._reception.finish(session)

    def drop(self, session: V2Session, reason: str) -> None:
        """End session and connection."""
        peer = session.peer
        self._reception.lost(session, reason)
        self._cut(peer, reason)

    def shut_out(self, session: V2Session, reason: str) -> None:
        """`drop`, and its process may not dial again for a while."""
        peer = session.peer
        self._reception.lost(session, reason)
        self._shut_out(peer, reason)

    # --- connections ------------------------------------------------------------------------------

    def _shut_out(self, peer: Peer, reason: str) -> None:
        self._gate.shut_out(peer.address)
        self._cut(peer, reason)

    def _gone(self, peer: Peer, reason: str) -> None:
        session: V2Session | None = peer.owner
        if peer.connection.is_fault:  # it breaks the protocol below ours, or a bound
            self._reception.fault(session)
            self._gate.shut_out(peer.address)
            self._log_cut(peer, reason)
        if session is not None:
            self._reception.lost(session, reason)

    def _cut(self, peer: Peer, reason: str) -> None:
        if self._peers is not None and not peer.is_cut:
            self._log_cut(peer, reason)
            self._peers.cut(peer)

    def _log_cut(self, peer: Peer, reason: str) -> None:
        self._reception.log.line(log.WARNING, "connection cut", peer=str(peer), reason=reason)

    def _suspects(self) -> list[Suspect]:
        """For the memory guard: who has bytes under way."""
        found = []
        for peer in self._peers.all if self._peers is not None else ():
            seen_ns = peer.accepted_ns if peer.owner is None else peer.owner.wire.last_seen_ns
            cut = partial(self._shut_out, peer, "endless message")
            found.append(Suspect(peer.connection.unfinished_bytes, seen_ns, cut, peer))
        return found
