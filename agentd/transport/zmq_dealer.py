"""The v2 ROUTER: moves messages between agents that dialled in and their sessions.

    socket --Pump--> stranger? --> Reception --HELLO ...--> V2Session --VERDICTS--> lane.answered
    lane --V2Session.send--> (loop tick) --flush--> EVENTS
    monitor --Peers--> a connection ended: its session's calls fail at once

No verb is understood here but VERDICTS, which have a way of their own. No tasks and no timers: the
daemon calls `on_time` by `next_wakeup_ns`. A listener on tcp would be a second socket beside this one,
with CURVE, a ZAP handler, ZAP_ENFORCE_DOMAIN and peers known by key instead of uid.

Kind: IO.
"""

import asyncio
import os
import resource
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import zmq

from agentd.gate import Gate
from agentd.lane import Lane
from agentd.peers import Loop, MemoryGuard, Peer, Peers, Suspect, unread_bytes
from agentd.registry import Registry
from agentd.transport.zmq_inbox import agents_socket, is_older, receiver, take_large
from agentd.transport.zmq_reception import COMPONENT, Farewell, Reception, remembered_each
from agentd.transport.zmq_session import V2Session
from shared import log
from shared.clock import MS, S, now_ns
from shared.config.schema import Agent
from shared.defaults import (
    AGENT_HEARTBEAT_MS,
    AGENT_HWM,
    AGENT_LAST_WORDS_MS,
    AGENT_LINGER_MS,
    AGENT_LOOK_MS,
    AGENT_MAX_FRAMES,
    AGENT_PEERS_MAX,
    HELLO_WITHIN_MS,
    IDLERS_MAX,
    PENALTIES_MAX,
    VERDICTS_LARGE_BYTES,
)
from shared.pump import Pump, Turn
from shared.runtime import Runtime
from shared.wire.agent_messages import Bye, RefuseCode
from shared.wire.agent_zmq import pack
from shared.wire.session import MAY_HAVE_CALLS, Due, State

_VERDICTS = b"VERDICTS"
_EARLY_NS = AGENT_LOOK_MS * MS // 4  # a caller with a beat of the same length may come a little early
_LAST_LOOKS = 20
_NEVER_WAS = {Due.NO_HELLO: "not introduced in time", Due.REFUSED: "refused"}


class _NeverRaised(Exception):
    """For Pump: errors other than EAGAIN shall come through."""


class V2Transport:
    """All zmq-v2 agents behind `runtime.agents_endpoint`.

    `random_bytes(n)` makes nonces and session ids; `on_change()` is called when a session became ready or
    ended. `registry.seats` has what is counted per agent. Raises ConfigError for a secret that cannot be read.
    """

    def __init__(
        self,
        context: "zmq.Context[zmq.Socket[bytes]]",
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
        self._hwm = hwm
        self._turn = turn if turn is not None else Turn(loop)
        self.registry = Registry(agents, lanes, hwm=hwm)
        self.clock = clock
        self.not_taken = 0  # messages that ZeroMQ refused: a full pipe, a peer that is gone
        self._reception = Reception(self.registry, self, clock, random_bytes, heartbeat_ms, on_change)
        self._sessions = self._reception.sessions
        self._context = context
        self._loop = loop
        self._runtime = runtime
        self._heartbeat_ms = heartbeat_ms
        self.guard = MemoryGuard() if guard is None else guard  # V1Transport may share it
        self._marked: list[V2Session] = []
        self._dead: dict[bytes, None] = {}  # routing ids of connections cut for what they did, the latest
        self._gate: Gate | None = None
        self._pump: Pump | None = None
        self._peers: Peers | None = None
        self._looked_ns = 0
        self._next_look_ns = 0
        self._drained: asyncio.Future[None] | None = None

    # --- life -------------------------------------------------------------------------------------

    def start(self) -> None:
        """Bind. The caller holds the runtime directory's lock: a second bind would steal the path."""
        socket = agents_socket(self._context, self._hwm)
        path = self._runtime.agents_socket
        self._peers = Peers(
            socket,
            self._loop,
            path,
            lambda uid: uid in self.registry.uids,
            self._gone,
            on_refused=self._log_cut,
            max_peers=min(AGENT_PEERS_MAX, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2),
            is_shut_out=self._is_shut_out,
            clock=self.clock,
        )
        old = os.umask(0o117)  # 0660; around bind alone, it would make directories untraversable
        try:
            self._gate = Gate(self._context, self._loop, self.clock)
            socket.bind(self._runtime.agents_endpoint)
        except zmq.ZMQError:
            self._peers.close()
            socket.close(0)
            if self._gate is not None:
                self._gate.close()
            raise
        finally:
            os.umask(old)
        try:
            os.chown(path, -1, os.stat(os.path.dirname(path)).st_gid)  # agents reach it by the directory's group
        except PermissionError:
            log.line(COMPONENT, log.WARNING, "the agents' socket keeps this process's group", path=path)
        self._pump = Pump(
            socket,
            self._loop,
            self._message,
            again=zmq.Again,
            error=_NeverRaised,
            receive=receiver(socket, self._sessions, self._dead, self._cut_endless),
            linger_ms=AGENT_LINGER_MS,  # for the last BYE
            turn=self._turn,
        )
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

        With ZMQ_IMMEDIATE, which agents shall set, libzmq throws away what an agent has not read when the
        connection ends (seen 2026-11: BYE lost for two of three agents).
        """
        for _ in range(_LAST_LOOKS):
            if self._peers is None or not self._peers.by_fd:
                return
            await asyncio.sleep(AGENT_LAST_WORDS_MS / 1000 / _LAST_LOOKS)

    def close(self) -> None:
        """Close now; what is in flight fails as Disconnected."""
        if self._pump is None or self._peers is None or self._gate is None:
            return
        for session in list(self._sessions.values()):
            if session.wire.state in MAY_HAVE_CALLS or session.wire.state is State.CONFIGURING:
                self.last_words(session, pack(Bye()))
            self._reception.lost(session, "agentd is shutting down")
        self.guard.forget(self._suspects)
        self._peers.close()
        self._pump.close()
        self._gate.close()
        self._pump = self._peers = self._gate = None
        try:
            os.unlink(self._runtime.agents_socket)
        except FileNotFoundError:
            pass

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
        session.flush(self.clock())  # what it was asked before, before DRAIN
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
    def memory_cuts(self) -> int:
        """Connections cut because of a message without end."""
        return self.guard.cuts

    def local_connections(self) -> tuple[int, int, int]:
        """(open, how many there may be, refused so far) of the agents' socket."""
        peers = self._peers
        return (len(peers.by_fd), peers.max_peers, peers.refused) if peers is not None else (0, 0, 0)

    def gate_counts(self) -> tuple[int, int]:
        """(how often a process was shut out, handshakes refused for that)."""
        return (self._gate.shut_outs, self._gate.refused) if self._gate is not None else (0, 0)

    @property
    def garbage(self) -> int:
        """Messages of connections without a session; the rest is counted per seat."""
        return self._reception.garbage

    # --- time -------------------------------------------------------------------------------------

    def next_wakeup_ns(self) -> int | None:
        """When on_time has something to do."""
        return self._next_look_ns if self._pump is not None else None

    def on_time(self, now: int) -> None:
        """Look at silence, strangers, drains and memory; call it at next_wakeup_ns or any time later."""
        if now < self._next_look_ns - _EARLY_NS or self._peers is None or self._gate is None:
            return
        stood_still = now - self._looked_ns > self._heartbeat_ms * MS
        self._looked_ns = now
        self._next_look_ns = now + AGENT_LOOK_MS * MS
        remembered = remembered_each(len(self._sessions))
        idle: Counter[str] = Counter()  # connections cut for saying nothing of use, by process
        for session in list(self._sessions.values()):
            if stood_still:
                session.wire.forgive(now)
            session.remember(remembered)
            if self._look(session, now):
                idle[session.peer.address] += 1
        for peer in list(self._peers.by_fd.values()):
            if peer.owner is None and now - peer.accepted_ns >= HELLO_WITHIN_MS * MS:
                idle[peer.address] += not peer.is_cut
                self._cut(peer, "no HELLO in time")
        for address, count in idle.items():
            if count >= IDLERS_MAX and not stood_still:
                self._gate.shut_out(address)
        self.guard.look(now)
        self._reception.log.tick(now)
        self._reception.rollout.look(now)
        self._tell_drained()

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

    def _message(self, frames: list[Any]) -> None:
        if not frames:
            return
        session = self._sessions.get(frames[0])
        now = self.clock()
        if session is None:
            session = self._stranger(frames)
            if session is None:
                return
            frames = [frames[0], *(frame.bytes for frame in frames[1:])]
        session.wire.heard(now)
        if frames[1] == _VERDICTS and session.wire.state in MAY_HAVE_CALLS:
            is_large = len(frames) > 2 and len(frames[2]) > VERDICTS_LARGE_BYTES
            take = partial(take_large, self.shut_out, session) if is_large else session.take_verdicts
            wrong = take(frames[2:], now)
            if not wrong and not session.was_useful and session.wire.is_chatter(now):
                wrong = "VERDICTS: too many for calls that nobody waits for"
            if wrong:
                self._reception.bad(session, wrong, now)
        else:
            self._reception.control(session, [f if isinstance(f, bytes) else f.bytes for f in frames[1:]], now)

    def _stranger(self, frames: list[Any]) -> V2Session | None:
        """The first message of a connection: whose is it? None = the connection is gone already."""
        assert self._peers is not None
        peer = self._peers.of(frames[1])
        if peer is None or peer.is_cut:
            return None
        # Left over from an earlier connection of the same process, whose fd this one has now?
        if peer.owner is not None and is_older(frames[0], peer.owner.routing_id):
            return None
        return self._reception.open(peer, frames[0], peer.accepted_ns)

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
        for session in marked:
            session.flush(now)
        if self._drained is not None:
            self._tell_drained()

    def transmit(self, session: V2Session, frames: Sequence[Any]) -> bool:
        """Send; a peer that is gone ends its session here."""
        pump = self._pump
        if pump is None:
            return False
        try:
            if pump.send((session.routing_id, *frames)):
                return True
        except zmq.ZMQError as error:  # EHOSTUNREACH: its DISCONNECTED is on the way
            self._reception.lost(session, f"unreachable: {error.strerror}")
        self.not_taken += 1
        return False

    def last_words(self, session: V2Session, frames: Sequence[bytes]) -> None:
        """Send; whether it arrives changes nothing."""
        try:
            if self._pump is not None:
                self._pump.send((session.routing_id, *frames))
        except zmq.ZMQError:
            pass

    def finish(self, session: V2Session) -> None:
        """Its drain is over."""
        self._reception.finish(session)

    def drop(self, session: V2Session, reason: str) -> None:
        """End session and connection."""
        peer = session.peer
        self._reception.lost(session, reason)
        self._cut(peer, reason)

    def shut_out(self, session: V2Session, reason: str) -> None:
        """`drop`, and nothing that is left of it is looked at, nor may its process dial again for a while."""
        self._bury(session.routing_id)
        peer = session.peer
        self._reception.lost(session, reason)
        self._shut_out(peer, reason)

    def _bury(self, routing_id: bytes) -> None:
        if len(self._dead) >= PENALTIES_MAX:
            del self._dead[next(iter(self._dead))]
        self._dead[routing_id] = None

    def _cut_endless(self, routing_id: bytes, frame: zmq.Frame) -> None:
        """More frames than any message has, and more to come."""
        reason = f"message of more than {AGENT_MAX_FRAMES} frames"
        session = self._sessions.get(routing_id)
        if session is not None:
            self._reception.count_garbage(session)
            self.shut_out(session, reason)
            return
        self._bury(routing_id)
        peer = self._peers.of(frame) if self._peers is not None else None
        if peer is not None:
            if peer.owner is not None:
                self._reception.lost(peer.owner, reason)
            self._shut_out(peer, reason)

    # --- connections ------------------------------------------------------------------------------

    def _is_shut_out(self, address: str) -> bool:
        return self._gate is not None and self._gate.is_shut_out(address)

    def _shut_out(self, peer: Peer, reason: str) -> None:
        if self._gate is not None:
            self._gate.shut_out(peer.address)
        self._cut(peer, reason)

    def _gone(self, peer: Peer) -> None:
        if peer.owner is not None:
            self._reception.lost(peer.owner, "connection closed")

    def _cut(self, peer: Peer, reason: str) -> None:
        if self._peers is not None and not peer.is_cut:
            self._log_cut(peer, reason)
            self._peers.cut(peer)

    def _log_cut(self, peer: Peer, reason: str) -> None:
        self._reception.log.line(log.WARNING, "connection cut", peer=str(peer), reason=reason)

    def _suspects(self) -> list[Suspect]:
        """For the memory guard: who has bytes under way."""
        found = []
        for peer in list(self._peers.by_fd.values()) if self._peers is not None else ():
            seen_ns = peer.accepted_ns if peer.owner is None else peer.owner.wire.last_seen_ns
            cut = partial(self._shut_out, peer, "endless message")
            found.append(Suspect(unread_bytes(peer.fd, peer.inode), seen_ns, cut, peer))
        return found
