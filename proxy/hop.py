"""The worker's connection to agentd: one DEALER, whether agentd is there, and that it knows this worker's plans.

agentd can be asked while three things hold: the connection is made, its beat in agentd.seg is fresh, and it speaks our
wire version. Whoever derives from this is told by `_changed` when one of them may have changed. What goes over the
connection is proxy/dispatch.py's matter.

Kind: IO.
"""

from collections.abc import Callable, MutableSequence
from typing import Any

import zmq
from zmq.utils.monitor import parse_monitor_message

from shared.clock import MS
from shared.defaults import (
    HOP_LINGER_MS,
    HOP_MAX_MESSAGE_BYTES,
    RECONNECT_MAX_MS,
    RECONNECT_MS,
    REREGISTER_MS,
    ZMTP_HANDSHAKE_MS,
)
from shared.metrics import W_AGENTD_CONNECTED, W_REGISTRATIONS
from shared.pump import Pump, Turn
from shared.segment import AgentdView
from shared.wire.envelope import Register, pack_register

_REREGISTER_NS = REREGISTER_MS * MS
_MONITORED = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED


class Hop:
    """The connection. `connect` begins; `look` is called by the sweep."""

    def __init__(
        self,
        context: zmq.Context[Any],
        loop: Any,
        segment: AgentdView,
        register: Register,
        cells: "MutableSequence[int] | memoryview[int]",
        clock: Callable[[], int],
        turn: Turn,
        hwm: int,
    ) -> None:
        self._segment = segment
        self._cells = cells
        self._clock = clock
        self._turn = turn
        self._register = pack_register(register)
        self._is_connected = False
        self._is_alive = False
        self._is_refused = False  # it speaks another wire version
        self._registered_at = 0
        self.is_registered = False
        self.is_up = False
        self.connects = 0  # so far: another agentd knows nothing of what an earlier one was shown
        self._socket = _dealer(context, hwm)
        self._pump = Pump(
            self._socket,
            loop,
            self._received,
            again=zmq.Again,
            error=zmq.ZMQError,
            linger_ms=HOP_LINGER_MS,
            turn=turn,
        )
        self._monitor = Pump(
            self._socket.get_monitor_socket(_MONITORED), loop, self._monitored, again=zmq.Again, error=zmq.ZMQError
        )

    def connect(self, endpoint: str) -> None:
        """From now on, for ever: libzmq tries again by itself."""
        self._socket.connect(endpoint)

    def _received(self, frames: list[bytes]) -> None:
        raise NotImplementedError

    def _changed(self) -> None:
        """Whether agentd can be asked may have changed: see `can_be_asked`."""
        raise NotImplementedError

    @property
    def can_be_asked(self) -> bool:
        """Connected, alive, and of our wire version."""
        return self._is_connected and self._is_alive and not self._is_refused

    def _monitored(self, frames: list[bytes]) -> None:
        event = parse_monitor_message(frames)["event"]
        if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self._is_connected = True
            self.connects += 1
            self._is_refused = False
            self.is_registered = False
            self._registered_at = 0
            self._segment.check()
            self._is_alive = self._segment.is_alive(self._clock())
            self._send_register()
        else:
            self._is_connected = False
            self.is_registered = False
            self._cells[W_AGENTD_CONNECTED] = 0
        self._changed()

    def _send_register(self) -> None:
        now = self._clock()
        if now - self._registered_at < _REREGISTER_NS:
            return
        self._registered_at = now
        self._cells[W_REGISTRATIONS] += 1
        self._pump.send((self._register,))

    def look(self, now: int) -> None:
        """Does it still beat, and does it know us?"""
        is_alive = self._segment.is_alive(now)
        if is_alive != self._is_alive:
            self._is_alive = is_alive
            self._changed()
        if self._is_connected and not self.is_registered and not self._is_refused:
            self._send_register()

    def check_segment(self) -> None:
        """Once a second: a restarted agentd has made a new segment."""
        self._segment.check()

    def disconnect(self) -> None:
        """The end; `_changed` is told."""
        self._is_connected = False
        self._changed()
        self._socket.disable_monitor()
        self._monitor.close()
        self._pump.close()


def _dealer(context: zmq.Context[Any], hwm: int) -> "zmq.Socket[bytes]":
    socket: zmq.Socket[bytes] = context.socket(zmq.DEALER)
    for option, value in (
        (zmq.LINGER, 0),
        (zmq.IMMEDIATE, 1),
        (zmq.SNDHWM, hwm),
        (zmq.RCVHWM, hwm),
        (zmq.MAXMSGSIZE, HOP_MAX_MESSAGE_BYTES),
        (zmq.RECONNECT_IVL, RECONNECT_MS),
        (zmq.RECONNECT_IVL_MAX, RECONNECT_MAX_MS),
        (zmq.HANDSHAKE_IVL, ZMTP_HANDSHAKE_MS),
    ):
        socket.setsockopt(option, value)
    # No ZMTP heartbeats: they can abort whoever gets them (agentd/peers.py); the segment's beat tells more anyway.
    # No ROUTING_ID: a worker that reconnects under an id that the ROUTER still holds loses its first messages.
    return socket
