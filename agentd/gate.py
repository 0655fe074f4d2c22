"""Decides who may open a connection to the agents' socket at all: not those that were just cut for what they did.

A flooder that dials again after each cut would be read for a moment each time, fifty times a second. Known by pid
and uid, by the word of the kernel (agentd/peers.py asks at accept). Nothing about sessions, verbs or secrets may be
put here.

Kind: pure.
"""

from collections.abc import Callable

from agentd.peers import Peer
from shared.clock import MS
from shared.defaults import BAD_PEER_RETRY_MS, PENALTIES_MAX


class Gate:
    """Who has to wait, and until when."""

    def __init__(self, clock: Callable[[], int]) -> None:
        self.shut_outs = 0
        self.refused = 0  # connections of those shut out
        self._clock = clock
        self._until: dict[tuple[int, int], int] = {}  # (uid, pid) -> when it may come again

    def shut_out(self, address: tuple[int, int]) -> None:
        """Whoever connects from there (`Peer.address`) has to wait for BAD_PEER_RETRY_MS."""
        self.shut_outs += 1
        now = self._clock()
        if len(self._until) >= PENALTIES_MAX:
            self._until = {known: until for known, until in self._until.items() if until > now}
        self._until[address] = now + BAD_PEER_RETRY_MS * MS

    def refuses(self, peer: Peer) -> bool:
        """Whether it has to wait still; counted."""
        until = self._until.get(peer.address)
        if until is None or until <= self._clock():
            return False
        self.refused += 1
        return True
