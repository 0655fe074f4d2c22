"""The worker's connection to agentd: dialled for ever, whether agentd is there, and that it knows this worker's plans.

agentd can be asked while three things hold: the connection is open, its beat in agentd.seg is fresh, and it speaks our
wire version. Whoever derives from this is told by `_changed` when one of them may have changed. What goes over the
connection is proxy/dispatch.py's matter.

Kind: IO.
"""

import random
import socket
from collections.abc import Callable, MutableSequence, Sequence
from typing import Any

from shared import log
from shared.backoff import BackOff
from shared.clock import MS
from shared.defaults import (
    HOP_MAX_FRAMES,
    HOP_MAX_MESSAGE_BYTES,
    RECONNECT_MAX_MS,
    RECONNECT_MS,
    REREGISTER_MS,
    ZMTP_HANDSHAKE_MS,
)
from shared.metrics import (
    W_AGENTD_CONNECTED,
    W_HOP_MALFORMED,
    W_HOP_UNSENT,
    W_HOP_UNSENT_LIMIT,
    W_REGISTRATIONS,
)
from shared.segment import AgentdView
from shared.turn import Turn
from shared.wire.envelope import Register, pack_register
from shared.zmtp import Buffer, Connection, Frame

_REREGISTER_NS = REREGISTER_MS * MS


class Hop:
    """The connection. `dial` begins; `look` is called by the sweep. `path` is the socket's."""

    def __init__(
        self,
        loop: Any,
        path: str,
        segment: AgentdView,
        register: Register,
        cells: "MutableSequence[int] | memoryview[int]",
        clock: Callable[[], int],
        turn: Turn,
        max_unsent: int,
    ) -> None:
        self._loop = loop
        self._path = path
        self._segment = segment
        self._cells = cells
        self._clock = clock
        self._turn = turn
        self._max_unsent = cells[W_HOP_UNSENT_LIMIT] = max_unsent
        self._register = pack_register(register)
        self._is_connected = False
        self._is_alive = False
        self._is_refused = False  # it speaks another wire version
        self._registered_at = 0
        self.is_registered = False
        self.is_up = False
        self.connects = 0  # so far: another agentd knows nothing of what an earlier one was shown
        self._connection: Connection | None = None
        self._dialled_at = 0
        self._back_off = BackOff(RECONNECT_MS, RECONNECT_MAX_MS, random.random)
        self._redial: Any = None  # a timer, while nothing is dialled

    def _received(self, connection: Connection, frames: list[Frame]) -> None:
        raise NotImplementedError

    def _changed(self) -> None:
        """Whether agentd can be asked may have changed: see `can_be_asked`."""
        raise NotImplementedError

    @property
    def can_be_asked(self) -> bool:
        """Connected, alive, and of our wire version."""
        return self._is_connected and self._is_alive and not self._is_refused

    # --- dialling -----------------------------------------------------------------------------------

    def dial(self) -> None:
        """Try now, and again after each failure and each end, for ever."""
        self._redial = None
        sock = None
        try:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)  # fails where no descriptor is left
            sock.setblocking(False)
            sock.connect(self._path)  # a unix socket is connected at once or not at all
            self._dialled_at = self._clock()
            self._connection = Connection(
                sock,
                self._loop,
                b"DEALER",
                on_open=self._opened,
                on_message=self._received,
                on_closed=self._lost,
                max_bytes=HOP_MAX_MESSAGE_BYTES,
                max_frames=HOP_MAX_FRAMES,
                max_unsent=self._max_unsent,
                turn=self._turn,
            )
        except OSError:
            if sock is not None:
                sock.close()
            self._dial_later()

    def _dial_later(self) -> None:
        self._connection = None
        self._cells[W_HOP_UNSENT] = 0
        self._redial = self._loop.call_later(self._back_off.next_ms() / 1000, self.dial)

    def _opened(self, connection: Connection) -> None:
        self._back_off.reset()
        self._is_connected = True
        self.connects += 1
        self._is_refused = False
        self.is_registered = False
        self._registered_at = 0
        self._segment.check()
        self._is_alive = self._segment.is_alive(self._clock())
        self._send_register()
        self._changed()

    def _lost(self, connection: Connection, reason: str) -> None:
        self._is_connected = False
        self.is_registered = False
        self._cells[W_AGENTD_CONNECTED] = 0
        if connection.is_fault:  # something else listens there, or it has a defect; at most as often as we dial
            self._cells[W_HOP_MALFORMED] += 1
            log.line("proxy.hop", log.ERROR, f"connection to agentd given up: {reason}", path=self._path)
        self._dial_later()
        self._changed()

    def _transmit(self, frames: Sequence[Buffer]) -> bool:
        """False: there is no connection, or agentd does not read."""
        return self._connection is not None and self._connection.send(frames)

    def _send_register(self) -> None:
        now = self._clock()
        if now - self._registered_at < _REREGISTER_NS:
            return
        self._registered_at = now
        self._cells[W_REGISTRATIONS] += 1
        self._transmit((self._register,))

    def look(self, now: int) -> None:
        """Does it still beat, does it know us, does it answer at all?"""
        is_alive = self._segment.is_alive(now)
        if is_alive != self._is_alive:
            self._is_alive = is_alive
            self._changed()
        connection = self._connection
        if connection is None:
            return
        self._cells[W_HOP_UNSENT] = connection.unsent_bytes
        if not self._is_connected:
            if now - self._dialled_at > ZMTP_HANDSHAKE_MS * MS:
                connection.close()
                self._dial_later()
        elif not self.is_registered and not self._is_refused:
            self._send_register()

    def check_segment(self) -> None:
        """Once a second: a restarted agentd has made a new segment."""
        self._segment.check()

    def disconnect(self) -> None:
        """The end; `_changed` is told."""
        self._is_connected = False
        self._changed()
        if self._redial is not None:
            self._redial.cancel()
        if self._connection is not None:
            self._connection.close()
            self._connection = None
