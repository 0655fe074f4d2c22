"""One connection to a v1 agent: agentd dials the REP socket that the agent binds; one call at a time.

    WAITING --time--> CONNECTING --handshake--> CONFIGURING --allow--> READY      (then an Instance of its lane)
       ^                  |                          |                   |
       +---- backed off --+----- closed, late, anything but allow -------+

A socket dials once (ZeroMQ's own reconnecting is off): its end is always known, and after a timeout
nothing of the old lockstep is left. A DEALER with the empty delimiter that a REP expects stands in for
REQ, which would raise where this counts. Dialling again never ends; the wait is 0.1 s, doubled to 1 s,
with jitter.

What a reply means is decided in shared/wire/verdict.py, whom to ask in agentd/lane.py.

Kind: IO.
"""

import struct
from collections.abc import Callable, Sequence
from enum import Enum
from functools import partial
from typing import Any, Protocol

import zmq

from agentd.call import Call, Instance
from agentd.lane import Lane
from agentd.peers import Loop
from agentd.registry import configuration
from agentd.transport.pump import REPLY_FRAMES_MAX, Pump, receive_reply
from agentd.transport.verdicts import VerdictReader
from agentd.transport.zmq_fd import inode_of
from shared import log
from shared.backoff import BackOff
from shared.clock import MS
from shared.config.schema import Agent
from shared.defaults import (
    AGENT_MAX_MESSAGE_BYTES,
    HOP_BODY_MAX_BYTES,
    V1_CONFIGURE_MS,
    V1_RECONNECT_MAX_MS,
    V1_RECONNECT_MS,
    ZMTP_HANDSHAKE_MS,
)
from shared.errors import WireError
from shared.wire.agent_messages import Configuration
from shared.wire.agent_zmq import pack_v1, pack_v1_configure, unpack_v1
from shared.wire.envelope import CancelReason
from shared.wire.verdict import SCREENED_ALLOW, Screened

_COMPONENT = "agentd.agents"
_MAX_BODY_BYTES = HOP_BODY_MAX_BYTES // 4 * 3  # base64 makes four bytes of three
_EVENT = struct.Struct("=hi")  # zmq_socket_monitor(3): event, value
_CONNECTED = int(zmq.EVENT_CONNECTED)  # the value is the fd
_UP = int(zmq.EVENT_HANDSHAKE_SUCCEEDED)
# One of these is the end of a socket that dials once.
_DOWN = {
    int(zmq.EVENT_CLOSED): "nobody listens there",
    int(zmq.EVENT_DISCONNECTED): "connection closed",
}


class Host(Protocol):
    """What a connection needs of its transport."""

    context: "zmq.Context[zmq.Socket[bytes]]"
    loop: Loop
    clock: Callable[[], int]
    random: Callable[[], float]

    def on_change(self) -> None:
        """A connection came up or went down."""

    def closed(self) -> None:
        """A connection has ended for good."""


class Link(Enum):
    """State of a connection; see the drawing above."""

    WAITING = "waiting"
    CONNECTING = "connecting"
    CONFIGURING = "configuring"
    READY = "ready"
    CLOSED = "closed"


def connection_name(number: int) -> str:
    """For people."""
    return f"connection-{number}"


class V1Connection:
    """An `Instance` (agentd/call.py) whenever it is READY; `limit` is 1, that is lockstep."""

    def __init__(self, host: Host, settings: Agent, lane: Lane, reader: VerdictReader, number: int) -> None:
        # what the lane reads and keeps
        self.name = connection_name(number)
        self.limit = 1
        self.calls: dict[str, Call] = {}
        self.pins = 0
        self.is_live = False
        self.is_paused = False
        self.is_draining = False
        self.health = "healthy"
        self.load = 0.0
        self.owes = 0
        self.debt = 0
        self.max_body_bytes = _MAX_BODY_BYTES
        self.is_lockstep = True
        # what it is
        self.settings = settings
        self.state = Link.WAITING
        self.since_ns = 0
        self.due_ns = 0  # when the state has lasted long enough
        self.drain_deadline_ns = 0
        self.reason = "not dialled yet"  # why it is not READY
        self.fd = -1
        self.inode = 0
        # counters for people
        self.dials = 0
        self.malformed = 0
        self.events_sent = 0
        self.last_seen_ns = 0
        self._host = host
        self._lane = lane
        self._reader = reader
        self._configuration: Configuration = configuration(settings)
        self._back_off = BackOff(V1_RECONNECT_MS, V1_RECONNECT_MAX_MS, host.random)
        self._told = ""
        self._pump: Pump | None = None
        self._monitor: Pump | None = None

    @property
    def peers(self) -> Sequence[Instance]:
        """All live instances of its agent."""
        return self._lane.pool.instances

    # --- for the lane -----------------------------------------------------------------------------

    def send(self, call: Call) -> bool:
        """The one call."""
        if self._pump is None or self.state is not Link.READY or len(self.calls) > 1:
            return False
        asked, body = call.asked, call.body
        if asked.has_body and body is None:
            body = b""
        if not self._pump.send((b"", pack_v1(asked.event, call.event, body))):
            return False
        call.body = None
        self.events_sent += 1
        return True

    def tell(self, call: Call) -> bool:
        """Every event of this protocol is answered."""
        return False

    def cancel(self, call: Call, reason: CancelReason) -> bool:
        """A REP agent cannot be told. At the deadline the connection is closed and dialled anew."""
        if reason is not CancelReason.TIMEOUT:
            return False
        self._down("no answer in time")
        if self.state is Link.WAITING:
            self._dial(self._host.clock())  # at once: it was well until now
        return True

    def drained(self) -> None:
        """The lane has nothing left for it."""
        self._host.loop.call_soon(partial(self._close, "drained"))

    def begin_drain(self, deadline_ns: int) -> None:
        """Nothing new; closed when nothing is left, at the deadline at the latest."""
        self.is_draining = True
        self.drain_deadline_ns = deadline_ns
        if not self.is_live or (not self.calls and not self.pins):
            self._close("drained")

    def close(self, reason: str) -> None:
        """End it for good."""
        self._close(reason)

    def cut(self) -> None:
        """It is in the middle of a message that does not end."""
        self._down("endless message")

    # --- time -------------------------------------------------------------------------------------

    def on_time(self, now: int) -> None:
        """Whatever waits for time to pass."""
        if self.is_draining and now >= self.drain_deadline_ns and self.state is not Link.CLOSED:
            self._close("drain deadline")
        elif now < self.due_ns:
            return
        elif self.state is Link.WAITING:
            self._dial(now)
        elif self.state is Link.CONNECTING:
            self._down("no connection in time")
        elif self.state is Link.CONFIGURING:
            self._down("no answer to configure in time")

    # --- dialling ---------------------------------------------------------------------------------

    def _enter(self, state: Link, now: int, wait_ms: int) -> None:
        self.state = state
        self.since_ns = now
        self.due_ns = now + wait_ms * MS

    def _dial(self, now: int) -> None:
        self.dials += 1
        context = self._host.context
        socket = context.socket(zmq.DEALER)
        for option, value in (
            (zmq.LINGER, 0),
            (zmq.IMMEDIATE, 1),
            (zmq.SNDHWM, 2),  # one call and, at a crossing, configure
            (zmq.RCVHWM, 2),
            (zmq.MAXMSGSIZE, AGENT_MAX_MESSAGE_BYTES),
            (zmq.RECONNECT_IVL, -1),
            (zmq.CONNECT_TIMEOUT, ZMTP_HANDSHAKE_MS),
            (zmq.HANDSHAKE_IVL, ZMTP_HANDSHAKE_MS),
            # No ZMTP heartbeats: the memory guard may cut this one, too (agentd/peers.py). A silent agent
            # is found by its first call, whose timeout closes the connection.
        ):
            socket.setsockopt(option, value)
        endpoint = f"inproc://v1-{id(self):x}-{self.dials}"
        socket.monitor(endpoint, _CONNECTED | _UP | sum(_DOWN))
        monitor = context.socket(zmq.PAIR)
        monitor.connect(endpoint)
        loop = self._host.loop
        self._monitor = Pump(monitor, loop, self._announced, again=zmq.Again, error=zmq.ZMQError)
        self._pump = Pump(
            socket, loop, self._message, again=zmq.Again, error=zmq.ZMQError, receive=receive_reply(socket)
        )
        self._enter(Link.CONNECTING, now, 2 * ZMTP_HANDSHAKE_MS)
        try:
            socket.connect(self.settings.endpoint)
        except zmq.ZMQError as error:
            self._down(f"{self.settings.endpoint}: {error.strerror}")

    def _announced(self, frames: list[bytes]) -> None:
        event, value = _EVENT.unpack_from(frames[0])
        if event == _CONNECTED:
            self.fd, self.inode = value, inode_of(value)
        elif event in _DOWN:
            self._down(_DOWN[event])
        elif event == _UP and self._pump is not None:
            now = self.last_seen_ns = self._host.clock()
            self._enter(Link.CONFIGURING, now, V1_CONFIGURE_MS)
            if not self._pump.send((b"", pack_v1_configure(self.settings.name, self._configuration))):
                self._down("it takes no configure")

    def _down(self, reason: str) -> None:
        """The connection is over; another is dialled when the wait is."""
        self._drop_sockets()
        if self.is_draining:
            self._enter(Link.CLOSED, self._host.clock(), 0)
        elif self.state is not Link.CLOSED:
            self._enter(Link.WAITING, self._host.clock(), self._back_off.next_ms())
        self._tell(reason)
        self._leave(reason)

    def _close(self, reason: str) -> None:
        """The connection is over and no other follows."""
        self._drop_sockets()
        self._enter(Link.CLOSED, self._host.clock(), 0)
        self._leave(reason)
        self._host.closed()

    def _drop_sockets(self) -> None:
        pump, monitor = self._pump, self._monitor
        self._pump = self._monitor = None
        self.fd = -1
        if pump is not None and monitor is not None:
            pump.socket.monitor(None, 0)
            monitor.close()
            pump.close()

    def _leave(self, reason: str) -> None:
        if self.is_live:
            self._lane.instance_down(self, reason)
            self._host.on_change()

    def _tell(self, reason: str) -> None:
        """Once per reason, not once per dial."""
        self.reason = reason
        if reason != self._told:
            self._told = reason
            log.line(
                _COMPONENT,
                log.WARNING,
                "connection down",
                agent=self.settings.name,
                instance=self.name,
                endpoint=self.settings.endpoint,
                reason=reason,
            )

    # --- in ---------------------------------------------------------------------------------------

    def _message(self, frames: list[bytes]) -> None:
        self.last_seen_ns = self._host.clock()
        if self.state is Link.CONFIGURING:
            self._configured(frames)
            return
        if len(frames) >= REPLY_FRAMES_MAX:
            self.malformed += 1
            self._down(f"message of {REPLY_FRAMES_MAX} frames or more")
            return
        call = next(iter(self.calls.values()), None)
        if call is None or frames[0] != b"":
            self.malformed += 1
            self._down("it spoke without being asked" if call is None else "its reply has no empty delimiter frame")
            return
        if call.asked.is_told:
            screened = SCREENED_ALLOW  # whatever it says
        elif len(frames) == 2:
            screened = self._reader.read(frames[1], call.question)
            decision = screened.decision
            if decision is not None and decision.chunk is not None:
                self._lane.ledger.body_bytes_received += len(decision.body)
        else:
            screened = Screened(malformed=f"reply of {len(frames) - 1} frames, want one of JSON")
        if screened.malformed:
            self.malformed += 1
        self._lane.answered(call, screened)

    def _configured(self, frames: list[bytes]) -> None:
        """The answer to configure: allow, or the lane stays Disconnected."""
        try:
            if frames[0] != b"":
                raise WireError("its reply has no empty delimiter frame")
            verdict = unpack_v1(frames[1:])
        except WireError as error:
            self.malformed += 1
            self._down(f"configure: {error}")
            return
        if verdict.decision != "allow" or verdict.error is not None:
            why = "" if verdict.error is None else f": {verdict.error.code} {verdict.error.message}"
            self._down(f"it rejected its configuration{why}"[:300])
            return
        self._back_off.reset()
        self._told = self.reason = ""
        self.owes = min(self.owes, 1)
        self._enter(Link.READY, self.last_seen_ns, 0)
        log.line(
            _COMPONENT,
            log.INFO,
            "connection ready",
            agent=self.settings.name,
            instance=self.name,
            endpoint=self.settings.endpoint,
        )
        self._lane.instance_up(self)
        self._host.on_change()

    def snapshot(self, now: int) -> dict[str, Any]:
        """For the admin API; the keys of zmq_session.V2Session.snapshot that make sense here."""
        return {
            "agent": self.settings.name,
            "instance": self.name,
            "session": "",
            "transport": "zmq-v1",
            "state": self.state.value,
            "endpoint": self.settings.endpoint,
            "reason": self.reason,
            "dials": self.dials,
            "in_flight": len(self.calls),
            "limit": self.limit,
            "pinned": self.pins,
            "is_paused": self.is_paused,
            "is_draining": self.is_draining,
            "health": self.health,
            "load": self.load,
            "since_ms": (now - self.since_ns) // MS,
            "last_seen_ms": (now - self.last_seen_ns) // MS if self.last_seen_ns else None,
            "events_sent": self.events_sent,
            "malformed": self.malformed,
        }
