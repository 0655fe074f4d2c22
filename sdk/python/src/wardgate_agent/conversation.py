"""What is said to agentd and when: the states of a zmq-v2 session, without socket or clock.

    AWAY --up--> GREETING --CHALLENGE--> PROVING
                    |  \\-------WELCOME-----/ |
    WAITING <--REFUSE (retry_after_ms), BYE   v
       |  (time)                         CONFIGURING --CONFIG accepted--> READY
       \\--> GREETING      any state --down, silence--> AWAY      REFUSE (final) --> LEFT

HELLO is repeated until it is answered; REFUSE hello_first (a restarted agentd) leads back to GREETING.
Leaving (SIGTERM) is no state but a wish: DRAIN, then BYE from agentd or the deadline, then our BYE.
What an input does not fit is ignored and counted: nothing that agentd sends may end the agent, only a
final REFUSE or a secret that does not match the configuration does.

Kind: pure (feeds a `Port`; `now_s` is given).
"""

import logging
from enum import Enum
from typing import Any, Final, Protocol

import orjson

from wardgate_agent import wire
from wardgate_agent.session import Session
from wardgate_agent.zmtp import Frame

log = logging.getLogger("wardgate_agent")


class State(Enum):
    AWAY = "away"  # no connection
    GREETING = "greeting"  # HELLO said
    PROVING = "proving"  # PROOF said
    CONFIGURING = "configuring"  # welcomed, no configuration accepted yet
    READY = "ready"  # events come
    WAITING = "waiting"  # told to come back later
    LEFT = "left"  # over


class Input(Enum):
    UP = "up"
    DOWN = "down"
    CHALLENGE = "CHALLENGE"
    WELCOME = "WELCOME"
    ACCEPTED = "accepted"  # our own hook accepted a configuration
    HELLO_FIRST = "REFUSE hello_first"
    LATER = "REFUSE with retry_after_ms, or BYE"
    RETRY = "the time has come"
    END = "end"


_ANY_END: Final = {Input.DOWN: State.AWAY, Input.LATER: State.WAITING, Input.END: State.LEFT}
TRANSITIONS: Final[dict[State, dict[Input, State]]] = {
    State.AWAY: {Input.UP: State.GREETING, Input.DOWN: State.AWAY, Input.END: State.LEFT},
    State.GREETING: {
        **_ANY_END,
        Input.CHALLENGE: State.PROVING,
        Input.WELCOME: State.CONFIGURING,
    },
    State.PROVING: {**_ANY_END, Input.WELCOME: State.CONFIGURING, Input.HELLO_FIRST: State.GREETING},
    State.CONFIGURING: {**_ANY_END, Input.ACCEPTED: State.READY, Input.HELLO_FIRST: State.GREETING},
    State.READY: {**_ANY_END, Input.ACCEPTED: State.READY, Input.HELLO_FIRST: State.GREETING},
    State.WAITING: {**_ANY_END, Input.RETRY: State.GREETING, Input.UP: State.WAITING},
    State.LEFT: {},
}
_READY: Final = State.READY  # looked at for every message; an Enum's members are slow to look up on CPython 3.11
_WITH_SESSION: Final = frozenset((State.CONFIGURING, State.READY))

EXIT_OK: Final = 0
EXIT_REFUSED: Final = 1
EXIT_CONFIG: Final = 2


class Port(Protocol):
    """What a conversation may do to the world."""

    def send(self, frames: list[bytes]) -> bool: ...
    def reconnect(self) -> None: ...
    def opened(self) -> None: ...
    def configure(self, raw: dict[str, Any], epoch: int) -> None: ...
    def events(self, frames: list[Frame]) -> None: ...
    def unconfigured(self, frames: list[Frame]) -> None: ...
    def cancel(self, frames: list[Frame]) -> None: ...
    def lost(self) -> None: ...
    def in_flight(self) -> int: ...
    def stop(self, exit_code: int, reason: str) -> None: ...


class Conversation:
    """One agent's talk with agentd over any number of connections."""

    def __init__(
        self,
        port: Port,
        session: Session,
        *,
        hello: dict[str, Any],
        secret: bytes | None,
        drain_deadline_s: float,
    ) -> None:
        self.state = State.AWAY
        self._port = port
        self._session = session
        self._hello = orjson.dumps(hello)
        self._agent: str = hello["agent"]
        self._instance: str = hello["instance"]
        self._secret = secret
        self._drain_deadline_s = drain_deadline_s
        self._heartbeat_s = wire.HEARTBEAT_MS / 1000
        self._is_up = False
        self._hello_at = 0.0  # when to say HELLO (again)
        self._heard_at = 0.0
        self._pinged_at = 0.0
        self._metrics_at = 0.0
        self._leave_by: float | None = None
        self._may_leave = False  # agentd said BYE after our DRAIN
        self._epoch = 0  # of sessions: what began in an older one is not said in a newer
        self.ignored = 0  # messages that fitted nothing

    @property
    def is_leaving(self) -> bool:
        return self._leave_by is not None

    # --- from the socket --------------------------------------------------------------------------

    def up(self, now_s: float) -> None:
        """A connection is there."""
        if self.state is State.LEFT:
            return
        if self._is_up:
            self.down(now_s)  # its end was not announced
        self._is_up = True
        self._heard_at = now_s
        self._enter(Input.UP)
        if self.state is State.GREETING:
            self._greet(now_s)

    def down(self, now_s: float) -> None:
        """The connection is gone; the link makes the next one."""
        if self.state is State.LEFT or not self._is_up:
            return
        self._is_up = False
        self._drop_session()
        if self.state is not State.WAITING:  # a refusal outlives its connection
            self._enter(Input.DOWN)
        if self.is_leaving:
            self._finish("the connection is gone")

    def heard(self, now_s: float) -> None:
        """Something came, be it a part of a message: a sign of life."""
        self._heard_at = now_s

    def received(self, frames: list[Frame], now_s: float) -> None:
        """One message, whatever it is."""
        self._heard_at = now_s
        if frames[0] == wire.EVENTS and self.state is _READY:
            self._port.events(frames)
            return
        verb = frames[0]
        handler = _HANDLERS.get(verb)
        if handler is None or self.state is State.LEFT:
            self._ignore(verb)
        else:
            handler(self, frames, now_s)

    def _on_events(self, frames: list[Frame], now_s: float) -> None:
        if self.state is State.CONFIGURING:
            self._port.unconfigured(frames)
        else:
            self._ignore(frames[0])

    def _on_cancel(self, frames: list[Frame], now_s: float) -> None:
        if self.state in _WITH_SESSION:
            self._port.cancel(frames)

    def _on_ping(self, frames: list[Frame], now_s: float) -> None:
        self._port.send([wire.PONG, *map(bytes, frames[1:])])

    def _on_pong(self, frames: list[Frame], now_s: float) -> None:
        pass  # hearing it is what it is for

    def _on_challenge(self, frames: list[Frame], now_s: float) -> None:
        if self.state in (State.AWAY, State.WAITING) or len(frames) != 2 or len(frames[1]) != wire.NONCE_BYTES:
            self._ignore(frames[0])
        elif self._secret is None:
            self._end(EXIT_CONFIG, f"agentd asks {self._agent} for its secret, and none is configured (--secret-file)")
        else:
            self._port.send([wire.PROOF, wire.proof(self._secret, frames[1], self._agent, self._instance)])
            if self.state is State.GREETING:
                self._enter(Input.CHALLENGE)

    def _on_welcome(self, frames: list[Frame], now_s: float) -> None:
        welcome = wire.json_object(frames)
        if welcome is None or self.state in (State.AWAY, State.WAITING):
            self._ignore(frames[0])
            return
        heartbeat_ms = wire.as_milliseconds(welcome.get("heartbeat_ms"), wire.HEARTBEAT_MS, 10, 600_000)
        self._heartbeat_s = (heartbeat_ms or wire.HEARTBEAT_MS) / 1000
        if self.state in _WITH_SESSION:
            return  # the answer to a HELLO that we had said twice
        if welcome.get("protocol") != wire.PROTOCOL:
            self._end(EXIT_REFUSED, f"agentd speaks protocol {welcome.get('protocol')!r}, this agent {wire.PROTOCOL}")
            return
        if self._secret is not None and self.state is not State.PROVING:
            self._end(EXIT_CONFIG, f"agentd welcomed {self._agent} without asking for the secret it has: not trusted")
            return
        self._enter(Input.WELCOME)
        self._epoch += 1
        log.info("welcomed as %s, instance %s, session %s", self._agent, self._instance, welcome.get("session"))
        self._port.opened()
        for message in self._session.greeting():
            self._port.send(message)
        if self.is_leaving:
            self._say_drain(now_s)

    def _on_refuse(self, frames: list[Frame], now_s: float) -> None:
        refusal = wire.json_object(frames) or {}
        code, reason = refusal.get("code"), refusal.get("reason")
        if code == "hello_first":
            if Input.HELLO_FIRST in TRANSITIONS[self.state]:
                log.warning("agentd does not know this session any more: saying HELLO again")
                self._drop_session()
                self._enter(Input.HELLO_FIRST)
                self._greet(now_s)
            return  # in GREETING: it is about something said before HELLO
        if self.state is State.AWAY:
            self._ignore(frames[0])
            return
        retry_ms = wire.as_milliseconds(refusal.get("retry_after_ms"), None)
        if retry_ms is None and code == "shutting_down":
            retry_ms = int(wire.BYE_BACKOFF_S * 1000)  # there will be a next agentd
        text = f"agentd refused {self._agent}: {str(code)[:100]}: {str(reason)[:500]}"
        if retry_ms is None and code is not None:
            self._end(EXIT_REFUSED, text)
            return
        self._later(max(retry_ms or 0, int(wire.BACKOFF_S * 1000)) / 1000, now_s)
        log.warning("%s; trying again in %.1f s", text, self._hello_at - now_s)

    def _on_config(self, frames: list[Frame], now_s: float) -> None:
        config = wire.json_object(frames)
        if self.state not in _WITH_SESSION or config is None:
            self._ignore(frames[0])
        else:
            self._port.configure(config, self._epoch)

    def _on_drain(self, frames: list[Frame], now_s: float) -> None:
        log.info("agentd drains this instance: no new requests")

    def _on_bye(self, frames: list[Frame], now_s: float) -> None:
        if self.state not in _WITH_SESSION:
            self._ignore(frames[0])
        elif self.is_leaving:
            self._may_leave = True
            self.idle(now_s)
        else:
            log.info("agentd ended the session; saying HELLO again soon")
            self._later(wire.BYE_BACKOFF_S, now_s)

    # --- from the agent ---------------------------------------------------------------------------

    def configured(self, epoch: int, config_version: object, problem: str | None) -> bool:
        """The answer to a CONFIG of `epoch`; True if it was said (and accepted unless there is a problem)."""
        if epoch != self._epoch or self.state not in _WITH_SESSION:
            return False
        result: dict[str, Any] = {"config_version": config_version, "accepted": problem is None}
        if problem is not None:
            result["error"] = problem[: wire.MAX_REASON_CHARS].encode("utf-8", "replace").decode()
        self._port.send([wire.CONFIG_RESULT, orjson.dumps(result)])
        if problem is None:
            self._enter(Input.ACCEPTED)
            self._session.is_ready = True
        return True

    def leave(self, now_s: float) -> None:
        """SIGTERM: let go of what is new, finish what is begun, then stop."""
        if self.state is State.LEFT:
            return
        if self.is_leaving:
            self._finish("told to stop twice")
            return
        self._leave_by = now_s + self._drain_deadline_s
        if self.state in _WITH_SESSION:
            self._say_drain(now_s)
        else:
            self._finish("no session")

    def idle(self, now_s: float) -> None:
        """The last running hook ended, or agentd said BYE."""
        if self._may_leave and self._port.in_flight() == 0:
            self._finish("drained")

    # --- time -------------------------------------------------------------------------------------

    def tick(self, now_s: float) -> float:
        """Do what is due; the answer is when to be asked again."""
        state = self.state
        if state is State.LEFT:
            return now_s + 3600.0
        if self._leave_by is not None and now_s >= self._leave_by:
            self._finish("the drain deadline has passed")
            return now_s + 3600.0
        if state is State.WAITING and now_s >= self._hello_at:
            self._enter(Input.RETRY)
            if self._is_up:
                self._heard_at = now_s
                self._greet(now_s)
            else:
                self._enter(Input.DOWN)
        elif state is State.GREETING and now_s >= self._hello_at:
            self._greet(now_s)
        if self._is_up and self.state is not State.WAITING:
            self._watch(now_s)
        if self.state is State.READY and now_s >= self._metrics_at:
            self._report(now_s)
        return self._next(now_s)

    def _watch(self, now_s: float) -> None:
        silent_s = now_s - self._heard_at
        if silent_s >= wire.SILENT_BEATS * self._heartbeat_s:
            log.warning("agentd has been silent for %.1f s: connecting again", silent_s)
            self._is_up = False
            self._drop_session()
            self._enter(Input.DOWN)
            if self.is_leaving:
                self._finish("agentd is silent")
                return
            self._port.reconnect()
        elif (
            silent_s >= self._heartbeat_s
            and now_s - self._pinged_at >= self._heartbeat_s
            and self.state in _WITH_SESSION
        ):
            self._pinged_at = now_s
            self._port.send([wire.PING, b"%d" % int(now_s * 1000)])

    def _next(self, now_s: float) -> float:
        due = [now_s + self._heartbeat_s]
        if self.state in (State.GREETING, State.WAITING):
            due.append(self._hello_at)
        if self._is_up:
            due.append(max(self._heard_at, self._pinged_at) + self._heartbeat_s)
        if self._leave_by is not None:
            due.append(self._leave_by)
        return max(min(due), now_s + 0.01)

    # --- parts ------------------------------------------------------------------------------------

    def _greet(self, now_s: float) -> None:
        is_sent = self._port.send([wire.HELLO, self._hello])
        self._hello_at = now_s + (wire.HELLO_EVERY_S if is_sent else wire.BACKOFF_S)

    def _later(self, after_s: float, now_s: float) -> None:
        self._drop_session()
        self._enter(Input.LATER)
        self._hello_at = now_s + after_s
        if self.is_leaving:
            self._finish("the session is over")

    def _say_drain(self, now_s: float) -> None:
        if self._leave_by is not None:
            left_ms = max(0, int((self._leave_by - now_s) * 1000))
            self._port.send([wire.DRAIN, orjson.dumps({"deadline_ms": left_ms})])

    def _report(self, now_s: float) -> None:
        self._metrics_at = now_s + wire.METRICS_EVERY_S
        metrics = self._session.metrics
        if metrics.changed:
            try:
                body = orjson.dumps(metrics.snapshot())
            except TypeError as error:
                log.error("metrics cannot be written as JSON: %s", error)
                metrics.changed = False
                return
            if len(body) > wire.MAX_METRICS_BYTES:
                log.error("metrics of %d bytes are more than agentd reads (long label values?)", len(body))
                metrics.changed = False
            elif self._port.send([wire.METRICS, body]):
                metrics.changed = False

    def _drop_session(self) -> None:
        self._epoch += 1
        self._session.is_ready = False
        self._session.metrics.changed = bool(self._session.metrics)  # a new agentd knows none of them
        self._port.lost()

    def _finish(self, reason: str) -> None:
        """Our own wish to leave, fulfilled."""
        if self.state is State.LEFT:
            return
        if self.state in _WITH_SESSION:
            if self.state is State.READY:
                self._report(self._metrics_at)
            self._port.send([wire.BYE])
        self._end(EXIT_OK, reason)

    def _end(self, exit_code: int, reason: str) -> None:
        self._drop_session()
        self._enter(Input.END)
        self._port.stop(exit_code, reason)

    def _enter(self, event: Input) -> None:
        following = TRANSITIONS[self.state].get(event)
        if following is None:
            raise RuntimeError(f"{event} does not fit {self.state}")
        self.state = following

    def _ignore(self, verb: bytes) -> None:
        self.ignored += 1
        log.debug("ignored %r in state %s", verb[:32], self.state.value)


_HANDLERS: Final = {
    wire.EVENTS: Conversation._on_events,
    wire.CANCEL: Conversation._on_cancel,
    wire.PING: Conversation._on_ping,
    wire.PONG: Conversation._on_pong,
    wire.CHALLENGE: Conversation._on_challenge,
    wire.WELCOME: Conversation._on_welcome,
    wire.REFUSE: Conversation._on_refuse,
    wire.CONFIG: Conversation._on_config,
    wire.DRAIN: Conversation._on_drain,
    wire.BYE: Conversation._on_bye,
}
