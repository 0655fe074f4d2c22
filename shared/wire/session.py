"""One v2 session as agentd sees it: what may come when, what is said then, when its agent counts as dead.

    HELLO --challenge--> CHALLENGED --welcome--> CONFIGURING --accept--> READY <--> RECONFIGURING
      +------------------welcome------------------->+                      |              |
                                                    +--------drain---------+----drain-----+--> DRAINING --done--> DEAD
    every state but the last: --refuse--> REFUSED, --lost--> DEAD

Who may be whom is agentd/registry.py's business, the frames are shared/wire/agent_zmq.py's: here are no
names, users, secrets, sockets or calls. A session that begins again is a new object.

Kind: pure.
"""

from collections import deque
from enum import Enum
from typing import Final, TypeAlias

from shared.clock import MS, S
from shared.defaults import (
    AGENT_CHATTER_PER_S,
    AGENT_HEARTBEAT_MS,
    BAD_MESSAGES_PER_MIN,
    FLOOD_MESSAGES,
    HELLO_RETRY_MS,
    HELLO_WITHIN_MS,
)
from shared.errors import IllegalTransition
from shared.wire.agent_messages import (
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
    Resume,
    Verdicts,
    Welcome,
)


class State(Enum):
    """The value is what `wardgate agents` shows."""

    HELLO = "hello"  # connected; nothing acceptable was said
    CHALLENGED = "challenged"  # HELLO is fine, the secret is still to be proved
    CONFIGURING = "configuring"  # welcomed; CONFIG is with the agent
    READY = "ready"
    RECONFIGURING = "reconfiguring"  # a reload's CONFIG is with it: no new requests until it answers
    DRAINING = "draining"  # finishes what it knows
    REFUSED = "refused"  # may read why; cut in a moment, or HELLO again
    DEAD = "dead"


class Event(Enum):
    """What happened, after it was judged."""

    CHALLENGE = "challenge"  # HELLO is fine, but its agent has a secret
    REPEAT = "repeat"  # the same HELLO again
    WELCOME = "welcome"  # HELLO is fine, and proved where a proof is asked for
    ACCEPT = "accept"  # CONFIG_RESULT to the latest CONFIG says yes
    RECONFIGURE = "reconfigure"  # the configuration changed
    DRAIN = "drain"  # we want it to leave
    AGENT_DRAINS = "agent_drains"  # it wants to leave
    DONE = "done"  # nothing of its is left, or the drain's deadline passed
    REFUSE = "refuse"
    LOST = "lost"  # disconnected, silent, BYE


Sent: TypeAlias = tuple[type[Message], ...]
_OPEN = (State.CHALLENGED, State.CONFIGURING, State.READY, State.RECONFIGURING, State.DRAINING)

# (state, event) -> (next state, what is said). A pair that is not here is a bug of the caller.
TRANSITIONS: Final[dict[tuple[State, Event], tuple[State, Sent]]] = {
    (State.HELLO, Event.CHALLENGE): (State.CHALLENGED, (Challenge,)),
    (State.HELLO, Event.WELCOME): (State.CONFIGURING, (Welcome, Configuration)),
    (State.CHALLENGED, Event.REPEAT): (State.CHALLENGED, (Challenge,)),  # the same nonce: two proofs may be under way
    (State.CHALLENGED, Event.WELCOME): (State.CONFIGURING, (Welcome, Configuration)),
    (State.CONFIGURING, Event.REPEAT): (State.CONFIGURING, ()),  # it crossed our WELCOME
    (State.CONFIGURING, Event.ACCEPT): (State.READY, ()),
    (State.CONFIGURING, Event.RECONFIGURE): (State.CONFIGURING, (Configuration,)),
    (State.CONFIGURING, Event.DRAIN): (State.DRAINING, (Drain,)),
    (State.CONFIGURING, Event.AGENT_DRAINS): (State.DRAINING, ()),
    (State.READY, Event.REPEAT): (State.READY, ()),
    (State.READY, Event.RECONFIGURE): (State.RECONFIGURING, (Configuration,)),
    (State.READY, Event.DRAIN): (State.DRAINING, (Drain,)),
    (State.READY, Event.AGENT_DRAINS): (State.DRAINING, ()),
    (State.RECONFIGURING, Event.REPEAT): (State.RECONFIGURING, ()),
    (State.RECONFIGURING, Event.ACCEPT): (State.READY, ()),
    (State.RECONFIGURING, Event.RECONFIGURE): (State.RECONFIGURING, (Configuration,)),
    (State.RECONFIGURING, Event.DRAIN): (State.DRAINING, (Drain,)),
    (State.RECONFIGURING, Event.AGENT_DRAINS): (State.DRAINING, ()),
    (State.DRAINING, Event.REPEAT): (State.DRAINING, ()),
    (State.DRAINING, Event.ACCEPT): (State.DRAINING, ()),
    (State.DRAINING, Event.RECONFIGURE): (State.DRAINING, ()),
    (State.DRAINING, Event.DRAIN): (State.DRAINING, (Drain,)),  # perhaps with a nearer deadline
    (State.DRAINING, Event.AGENT_DRAINS): (State.DRAINING, ()),
    (State.DRAINING, Event.DONE): (State.DEAD, (Bye,)),
    (State.HELLO, Event.REFUSE): (State.REFUSED, (Refusal,)),
    (State.HELLO, Event.LOST): (State.DEAD, ()),
    **{(state, Event.REFUSE): (State.REFUSED, (Refusal,)) for state in _OPEN},
    **{(state, Event.LOST): (State.DEAD, ()) for state in _OPEN},
    (State.REFUSED, Event.LOST): (State.DEAD, ()),
}

_LIFE: Final = frozenset((Hello, Ping, Pong, Bye))
# A second PROOF answers a repeated challenge; it was right or the session would be refused.
_WELCOMED: Final = _LIFE | {Proof, ConfigResult, Health, Metrics, Pause, Resume, Drain}
ACCEPTS: Final[dict[State, frozenset[type]]] = {
    State.HELLO: frozenset((Hello,)),
    State.CHALLENGED: _LIFE | {Proof},
    State.CONFIGURING: _WELCOMED,
    State.READY: _WELCOMED | {Verdicts},
    State.RECONFIGURING: _WELCOMED | {Verdicts},
    State.DRAINING: _WELCOMED | {Verdicts},
    State.REFUSED: frozenset(),
    State.DEAD: frozenset(),
}
MAY_HAVE_CALLS: Final = frozenset((State.READY, State.RECONFIGURING, State.DRAINING))


class Due(Enum):
    """What time has brought."""

    NOTHING = "nothing"
    PING = "ping"
    SILENT = "silent"  # dead: three heartbeats without a sign of life
    NO_HELLO = "no_hello"  # introduced too slowly
    REFUSED = "refused"  # REFUSE has had its time to be read


class Session:
    """State and times of one session; times are CLOCK_MONOTONIC ns."""

    __slots__ = (
        "_bad",
        "_chatter",
        "_chatter_ns",
        "_heartbeat_ns",
        "_pings",
        "last_seen_ns",
        "leaves_ns",
        "since_ns",
        "state",
    )

    def __init__(self, now: int, heartbeat_ms: int = AGENT_HEARTBEAT_MS) -> None:
        self.state = State.HELLO
        self.since_ns = now  # of the state
        self.last_seen_ns = now
        self.leaves_ns = 0  # when a refused one is cut; set by whoever refuses
        self._heartbeat_ns = heartbeat_ms * MS
        self._pings = 0  # since it was last heard of
        self._bad: deque[int] = deque(maxlen=BAD_MESSAGES_PER_MIN)
        self._chatter = 0
        self._chatter_ns = now

    def feed(self, event: Event, now: int) -> Sent:
        """Take the transition and return what is to be said, in order; an illegal pair raises.

        Whoever feeds REFUSE sets `leaves_ns`.
        """
        row = TRANSITIONS.get((self.state, event))
        if row is None:
            raise IllegalTransition(f"session: no {event.value} in state {self.state.value}")
        if row[0] is not self.state:
            self.state, self.since_ns = row[0], now
        return row[1]

    def accepts(self, message: type) -> bool:
        """Whether the agent may say this now."""
        return message in ACCEPTS[self.state]

    def is_crossed_repeat(self, now: int) -> bool:
        """Whether the same HELLO again was sent before our answer arrived; later it means a new beginning."""
        return self.state is State.CHALLENGED or now - self.since_ns < HELLO_RETRY_MS * MS

    def heard(self, now: int) -> None:
        """Any message is a sign of life."""
        self.last_seen_ns = now
        self._pings = 0

    def forgive(self, now: int) -> None:
        """We ourselves stood still: whoever seems silent gets a ping and two heartbeats to answer it."""
        if now - self.last_seen_ns > self._heartbeat_ns:
            self.last_seen_ns = now - self._heartbeat_ns
            self._pings = 0

    def inherit(self, old: "Session") -> None:
        """The connection begins anew; what it did to us before counts on."""
        self._bad = old._bad
        self._chatter = old._chatter
        self._chatter_ns = old._chatter_ns

    def is_bad(self, now: int) -> bool:
        """Count one unusable message; True when it is one too many within a minute."""
        self._bad.append(now)
        return len(self._bad) == BAD_MESSAGES_PER_MIN and now - self._bad[0] <= 60 * S

    def is_chatter(self, now: int) -> bool:
        """Count one message other than VERDICTS; True when this second already had too many."""
        if now - self._chatter_ns >= S:
            self._chatter_ns = now
            self._chatter = 0
        self._chatter += 1
        return self._chatter > AGENT_CHATTER_PER_S

    def is_flood(self, now: int) -> bool:
        """Count one message of a refused session, like `is_chatter`; True when it goes on and on."""
        self.is_chatter(now)
        return self._chatter > FLOOD_MESSAGES

    def due(self, now: int) -> Due:
        """Look every AGENT_LOOK_MS. PING is said once per heartbeat of silence."""
        state = self.state
        if state is State.HELLO or state is State.CHALLENGED:
            return Due.NO_HELLO if now - self.since_ns >= HELLO_WITHIN_MS * MS else Due.NOTHING
        if state is State.REFUSED:
            return Due.REFUSED if now >= self.leaves_ns else Due.NOTHING
        silent = now - self.last_seen_ns
        if silent < self._heartbeat_ns * (self._pings + 1) or state is State.DEAD:
            return Due.NOTHING
        if silent >= 3 * self._heartbeat_ns:
            return Due.SILENT
        self._pings += 1
        return Due.PING
