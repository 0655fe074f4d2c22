"""Receives v2 agents: the sessions of all connections, from HELLO to READY and to their end.

    HELLO --registry.judge--> CHALLENGE, PROOF --registry.admit--> WELCOME, CONFIG --CONFIG_RESULT--> lane.instance_up
    whatever goes wrong --> REFUSE, or the connection is cut --> lane.instance_down, at once

The order is the table's in shared/wire/session.py, the checks are agentd/registry.py's, VERDICTS go
past here (agentd/transport/zmq_session.py). No sockets: bytes leave through the transport.

Kind: IO (the transport sends).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from agentd.peers import Peer
from agentd.registry import RETRY_AFTER_MS, No, Registry
from agentd.transport.zmq_rollout import Rollout
from agentd.transport.zmq_session import Outbox, V2Session
from shared import log
from shared.clock import MS, S
from shared.defaults import (
    AGENT_ENDED_LEAST,
    AGENT_ENDED_REMEMBERED,
    AGENT_ENDED_TOTAL,
    AGENT_LOG_LINES_PER_S,
    DRAINED_HELD_OUT_S,
    DRAINS_REMEMBERED,
    HELLO_RETRY_MS,
    HELLO_WITHIN_MS,
    PENALTIES_MAX,
    REFUSED_LINGER_MS,
)
from shared.errors import WireError
from shared.wire.agent_messages import (
    NONCE_BYTES,
    PROTOCOL,
    Bye,
    Challenge,
    ConfigResult,
    Configuration,
    Drain,
    Health,
    Hello,
    Message,
    Metrics,
    Pause,
    Ping,
    Pong,
    Proof,
    Refusal,
    RefuseCode,
    Resume,
    Side,
    Welcome,
)
from shared.wire.agent_zmq import pack, unpack
from shared.wire.session import Event, Session, State

COMPONENT = "agentd.agents"


class Farewell(NamedTuple):
    """How a session ended that was draining, with what was left of it."""

    is_finished: bool  # by our BYE
    reason: str
    calls: int
    pins: int


class Door(Outbox, Protocol):
    """What the reception needs of its transport, beside what sessions need."""

    def last_words(self, session: V2Session, frames: Sequence[bytes]) -> None:
        """Send; whether it arrives changes nothing."""

    def shut_out(self, session: V2Session, reason: str) -> None:
        """End session and connection, and take no other of that process for a while."""


class Reception:
    """The sessions by connection. A connection has at most one; it may begin another when that is over."""

    def __init__(
        self,
        registry: Registry,
        door: Door,
        clock: Callable[[], int],
        random_bytes: Callable[[int], bytes],
        heartbeat_ms: int,
        on_change: Callable[[], None],
    ) -> None:
        self.registry = registry
        self.sessions: dict[Peer, V2Session] = {}
        self.garbage = 0  # messages of connections without a session
        self.log = log.RateLimited(COMPONENT, AGENT_LOG_LINES_PER_S, clock)
        self._door = door
        self._clock = clock
        self._random_bytes = random_bytes
        self._heartbeat_ms = heartbeat_ms
        self._on_change = on_change
        self._penalties: dict[tuple[int, int], int] = {}  # (uid, pid) -> until when it is not listened to
        self.rollout = Rollout(self, clock)
        self.farewells: dict[str, Farewell] = {}  # by session id; the last DRAINS_REMEMBERED
        self._held_out: dict[tuple[int, int, str, str], int] = {}  # uid, pid, agent, instance -> until when

    def open(self, peer: Peer, since_ns: int) -> V2Session:
        """A connection begins to talk."""
        wire = Session(since_ns, self._heartbeat_ms)
        if peer.owner is not None:
            wire.inherit(peer.owner.wire)
            self.lost(peer.owner, "it begins again")
        session = V2Session(self._door, peer, wire, self._random_bytes(4).hex())
        peer.owner = self.sessions[peer] = session
        return session

    # --- what agents say --------------------------------------------------------------------------

    def control(self, session: V2Session, frames: list[bytes], now: int) -> None:
        """Any message but VERDICTS of a session that may send them."""
        wire = session.wire
        state = wire.state
        if state is State.REFUSED and (frames[0] != b"HELLO" or session.retry_at_ns is None):
            if wire.is_flood(now):  # else it may not have read yet that it was refused
                self._door.shut_out(session, "it floods us")
            return
        if wire.is_chatter(now):
            self.bad(session, "more messages a second than an agent has reason to send", now)
            return
        try:
            message = unpack(frames, Side.AGENT)
        except WireError as error:
            if state is not State.HELLO:
                self.bad(session, str(error), now)
            elif frames[0] == b"HELLO":
                self.refuse(session, RefuseCode.MALFORMED, str(error))  # at once: its author wants to know why
            else:
                self._hello_first(session, now)
            return
        if isinstance(message, Hello):
            self._hello(session, message, now)
        elif state is State.HELLO:
            self._hello_first(session, now)
        elif wire.accepts(type(message)):
            self._accepted(session, message, now)
        else:
            self.bad(session, f"{frames[0].decode()} in state {state.value}", now)

    def _accepted(self, session: V2Session, message: Message, now: int) -> None:
        match message:
            case Pong(frames):
                session.pong(frames)
            case Ping(frames):
                self._door.transmit(session, pack(Pong(frames)))
            case Proof(mac):
                self._proof(session, mac, now)
            case ConfigResult():
                self._config_result(session, message, now)
            case Health():
                session.health = message.state
                session.health_message = (message.message or "")[:200]
                session.load = message.load or 0.0
                session.pause()
            case Metrics():
                assert session.seat is not None
                session.seat.reported.report(session.name, message)
            case Pause():
                session.pause(is_asked=True)
            case Resume():
                session.pause(is_asked=False)
            case Drain():
                session.agent_drains(message, now)
            case Bye():
                self.lost(session, "the agent said BYE")

    def _hello(self, session: V2Session, hello: Hello, now: int) -> None:
        wire = session.wire
        if wire.state is not State.HELLO:
            if wire.state is not State.REFUSED and hello == session.hello and wire.is_crossed_repeat(now):
                self.say(session, Event.REPEAT, now)
                return
            session = self.open(session.peer, now)
        until = self._penalties.get((session.peer.uid, session.peer.pid), 0)
        if until > now:
            self.refuse(session, RefuseCode.MALFORMED, "too many bad messages", retry_ms=(until - now) // MS + 1)
            return
        if self._is_held_out(session.peer, hello, now):
            session.hello = hello
            self.refuse(session, RefuseCode.DRAINED, "an operator has drained this instance, to replace its process")
            return
        seat = self.registry.judge(hello, session.peer.uid)
        if isinstance(seat, No):
            session.hello = hello
            self.refuse(session, *seat)
            return
        session.introduce(hello, seat)
        if seat.secret:
            session.nonce = self._random_bytes(NONCE_BYTES)
            self.say(session, Event.CHALLENGE, now)
        else:
            self._welcome(session, now)

    def hold_out(self, session: V2Session) -> None:
        """It was drained to be replaced: the process that leaves shall not come back as what it was."""
        peer, now = session.peer, self._clock()
        if peer.pid > 0:  # 0: of another pid namespace, and then so are many
            self._held_out = {key: until for key, until in self._held_out.items() if until > now}
            self._held_out[_who(peer, session.hello)] = now + DRAINED_HELD_OUT_S * S

    def _is_held_out(self, peer: Peer, hello: Hello, now: int) -> bool:
        return bool(self._held_out) and self._held_out.get(_who(peer, hello), 0) > now

    def _proof(self, session: V2Session, mac: bytes, now: int) -> None:
        if session.wire.state is not State.CHALLENGED:
            return  # the second answer to a repeated challenge
        seat = self.registry.judge(session.hello, session.peer.uid)  # a reload may have come between
        if isinstance(seat, No):
            self.refuse(session, *seat)
            return
        session.introduce(session.hello, seat)
        if not seat.secret or seat.is_proof(mac, session.nonce, session.hello):
            self._welcome(session, now)
        else:
            self.refuse(session, RefuseCode.BAD_PROOF, "the proof does not fit the configured secret")

    def _welcome(self, session: V2Session, now: int) -> None:
        assert session.seat is not None
        old = self.registry.admit(session.seat, session)
        if isinstance(old, No):
            self.refuse(session, *old)
            return
        if old is not None:
            self.refuse(old, RefuseCode.DUPLICATE_INSTANCE, "a newer process has this instance name", is_final=True)
        self.say(session, Event.WELCOME, now)
        session.take_bounds()

    def _config_result(self, session: V2Session, result: ConfigResult, now: int) -> None:
        if result.config_version != session.config_version:
            return  # an answer to a CONFIG that a reload has overtaken
        state, seat = session.wire.state, session.seat
        assert seat is not None
        reason = result.error or "the agent rejected its configuration"
        if state is State.RECONFIGURING:
            if not result.accepted:  # a reload with a fault in it stops nobody: it goes on with what it had
                session.health, session.health_message = "degraded", f"configuration rejected: {reason}"[:200]
                self.log.line(
                    log.ERROR,
                    "instance goes on with its old configuration: it rejected the new one",
                    agent=seat.name,
                    instance=session.name,
                    reason=reason,
                )
            elif session.health_message.startswith("configuration rejected: "):
                session.health, session.health_message = "healthy", ""
            self.say(session, Event.ACCEPT, now)
            session.pause()
            self.rollout.look(now)
        elif not result.accepted:
            self.refuse(session, RefuseCode.CONFIG_REJECTED, reason)
        elif state is State.CONFIGURING:
            self.say(session, Event.ACCEPT, now)
            self.log.line(
                log.INFO,
                "instance ready",
                agent=seat.name,
                instance=session.name,
                session=session.session_id,
                peer=str(session.peer),
                version=session.hello.version or "",
            )
            session.pause()
            seat.lane.instance_up(session)
            self._on_change()

    # --- what is said to them ---------------------------------------------------------------------

    def say(self, session: V2Session, event: Event, now: int) -> None:
        """Take a transition and say what belongs to it."""
        for kind in session.wire.feed(event, now):
            if not self._door.transmit(session, pack(self._message(session, kind))):
                if session.wire.state is not State.DEAD:
                    self._door.drop(session, "it does not read: its socket is full")
                return

    def _message(self, session: V2Session, kind: type[Message]) -> Message:
        seat = session.seat
        assert seat is not None
        if kind is Challenge:
            return Challenge(session.nonce)
        if kind is Welcome:
            return Welcome(PROTOCOL, session.session_id, self._heartbeat_ms)
        assert kind is Configuration
        session.config_version = seat.configuration.config_version
        return seat.configuration

    def _hello_first(self, session: V2Session, now: int) -> None:
        """No end of a session: there is none yet. Once a second is enough for who listens."""
        self.garbage += 1
        if session.retry_at_ns is None or now >= session.retry_at_ns:
            session.retry_at_ns = now + HELLO_RETRY_MS * MS
            code = RefuseCode.HELLO_FIRST
            self.registry.refused[code.value] += 1
            refusal = Refusal(code.value, "this connection has no session", RETRY_AFTER_MS[code])
            self._door.transmit(session, pack(refusal))

    def fault(self, session: V2Session | None) -> None:
        """What came over a connection cannot be read at all."""
        if session is None:
            self.garbage += 1
        else:
            self.count_garbage(session)

    def count_garbage(self, session: V2Session) -> None:
        """A message that cannot be used."""
        session.malformed += 1
        if session.seat is not None:
            session.seat.garbage += 1
        else:
            self.garbage += 1

    def bad(self, session: V2Session, text: str, now: int) -> None:
        """One unusable message; one too many within a minute and it is not listened to for a while."""
        self.count_garbage(session)
        self._log_line("bad message", session, error=text)
        if session.wire.is_bad(now) and session.wire.state not in (State.REFUSED, State.DEAD):
            if len(self._penalties) >= PENALTIES_MAX:
                self._penalties = {key: until for key, until in self._penalties.items() if until > now}
            retry_ms = RETRY_AFTER_MS[RefuseCode.MALFORMED]
            self._penalties[(session.peer.uid, session.peer.pid)] = now + retry_ms * MS
            self.refuse(session, RefuseCode.MALFORMED, text, linger_ms=REFUSED_LINGER_MS)

    def refuse(
        self,
        session: V2Session,
        code: RefuseCode,
        reason: str,
        *,
        retry_ms: int | None = None,
        is_final: bool = False,
        linger_ms: int | None = None,
    ) -> None:
        """REFUSE and the session's end. The connection is cut a little later, or when no new HELLO comes."""
        now = self._clock()
        if retry_ms is None and not is_final:
            retry_ms = RETRY_AFTER_MS.get(code)
        self.registry.refused[code.value] += 1
        self._log_line("refused", session, code=code.value, reason=reason)
        self._door.last_words(session, pack(Refusal(code.value, reason[:1_000], retry_ms)))
        session.wire.feed(Event.REFUSE, now)
        session.retry_at_ns = None if retry_ms is None else now + retry_ms * MS
        if linger_ms is None:
            linger_ms = REFUSED_LINGER_MS if retry_ms is None else retry_ms + HELLO_WITHIN_MS
        session.wire.leaves_ns = now + linger_ms * MS
        self._leave(session, f"refused: {code.value}")

    def _log_line(self, message: str, session: V2Session, **fields: str) -> None:
        said = session.hello
        self.log.line(log.WARNING, message, agent=said.agent, instance=said.instance, peer=str(session.peer), **fields)

    # --- the ends ---------------------------------------------------------------------------------

    def finish(self, session: V2Session) -> None:
        """Its drain is over: BYE."""
        session.wire.feed(Event.DONE, self._clock())
        self._door.last_words(session, pack(Bye()))
        self.end(session, "drained", is_finished=True)

    def lost(self, session: V2Session, reason: str) -> None:
        """The session is over; the connection, if it is still there, may begin another."""
        if session.wire.state is not State.DEAD:
            session.wire.feed(Event.LOST, self._clock())
        self.end(session, reason)

    def end(self, session: V2Session, reason: str, *, is_finished: bool = False) -> None:
        """Forget it; a connection that stays has HELLO_WITHIN_MS for another HELLO."""
        if session.is_draining and session.session_id not in self.farewells:
            if len(self.farewells) >= DRAINS_REMEMBERED:
                del self.farewells[next(iter(self.farewells))]
            self.farewells[session.session_id] = Farewell(is_finished, reason, len(session.calls), session.pins)
        if self.sessions.get(session.peer) is session:
            del self.sessions[session.peer]
        if session.peer.owner is session:
            session.peer.owner = None
            session.peer.accepted_ns = self._clock()
        self._leave(session, reason)

    def _leave(self, session: V2Session, reason: str) -> None:
        """Out of registry and lane; its calls fail at once."""
        self.registry.leave(session)
        seat = session.seat
        if seat is not None and session.is_live:
            self.log.line(
                log.INFO,
                "instance gone",
                agent=seat.name,
                instance=session.name,
                session=session.session_id,
                reason=reason,
                in_flight=len(session.calls),
            )
            seat.lane.instance_down(session, reason)
            self._on_change()


def _who(peer: Peer, hello: Hello) -> tuple[int, int, str, str]:
    return peer.uid, peer.pid, hello.agent, hello.instance


def remembered_each(sessions: int) -> int:
    """How many ended calls each of so many sessions remembers."""
    return max(AGENT_ENDED_LEAST, min(AGENT_ENDED_REMEMBERED, AGENT_ENDED_TOTAL // max(1, sessions)))
