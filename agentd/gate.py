"""Decides who may open a connection to the agents' socket at all: not those that were just cut for what they did.

libzmq accepts, reads and queues in a thread of its own, and what a peer sends behind its handshake is there before
our loop turns: a flooder that dials again after each cut would be read for a moment each time, fifty times a
second. With a ZAP domain libzmq asks before it ends a handshake (RFC 27), also for NULL on ipc, and takes nothing
else from the peer until it is answered. Everybody is let in but those shut out; they get status 300 (try again
later) without a word, and their handshake costs us 0.1 ms (2026-11).

Known by pid and uid, by the kernel's word. Nothing about sessions, verbs or secrets may be put here. Peers of a
tcp listener would be known by their CURVE key, which comes in the same request.

Kind: IO.
"""

from collections.abc import Callable
from typing import Any

import zmq

from agentd.peers import Loop
from shared.clock import MS
from shared.defaults import BAD_PEER_RETRY_MS, PENALTIES_MAX
from shared.pump import Pump

DOMAIN = b"agents"  # ZMQ_ZAP_DOMAIN of the agents' socket
_ENDPOINT = "inproc://zeromq.zap.01"  # where libzmq asks, one for each context
_VERSION = b"1.0"
_LET_IN, _LATER = (b"200", b"ok"), (b"300", b"later")


class Gate:
    """Open it before the socket with the DOMAIN is bound."""

    def __init__(self, context: "zmq.Context[zmq.Socket[bytes]]", loop: Loop, clock: Callable[[], int]) -> None:
        self.shut_outs = 0
        self.refused = 0  # handshakes of those shut out
        self._clock = clock
        self._until: dict[str, int] = {}  # address -> when it may come again
        socket = context.socket(zmq.ROUTER)
        socket.bind(_ENDPOINT)
        self._pump = Pump(socket, loop, self._asked, again=zmq.Again, error=zmq.ZMQError)

    def shut_out(self, address: str) -> None:
        """Whoever connects from there (`Peer.address`) has to wait for BAD_PEER_RETRY_MS."""
        self.shut_outs += 1
        now = self._clock()
        if len(self._until) >= PENALTIES_MAX:
            self._until = {address: until for address, until in self._until.items() if until > now}
        self._until[address] = now + BAD_PEER_RETRY_MS * MS

    def is_shut_out(self, address: str) -> bool:
        """Whether it has to wait still."""
        until = self._until.get(address)
        return until is not None and until > self._clock()

    def close(self) -> None:
        """libzmq lets everybody in from now on; the caller has closed the socket, or does so next."""
        self._pump.socket.unbind(_ENDPOINT)  # now: close() alone leaves that to another thread
        self._pump.close()

    def _asked(self, frames: list[Any]) -> None:
        # routing id, "", version, request id, domain, address, identity, mechanism
        if len(frames) < 6 or frames[2] != _VERSION:
            return
        status, text = _LET_IN
        if self._until and self.is_shut_out(frames[5].decode("latin-1")):
            self.refused += 1
            status, text = _LATER
        self._pump.send((frames[0], b"", _VERSION, frames[3], status, text, b"", b""))
