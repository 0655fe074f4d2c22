"""Where the workers' messages arrive and their answers leave.

    worker --unix socket, mode 0600, ZMTP--> Peers --> records [, bodies] --> Dispatcher
           <--one message per loop tick--              decisions
           <--records, bodies: apart from the others-- those with long replacements

A worker is whoever the kernel says runs as our own user (or root): others are cut at accept;
what cannot be read is counted, logged with the peer and dropped. A peer that has not registered is told to. When a
worker's connection dies, all it waits for is cancelled at once. Bodies are passed on as the frames that they came in.
Nothing is decided here about events.

Kind: IO.
"""

import os
from collections.abc import Callable, Sequence

import msgspec

from agentd.dispatcher import Dispatcher, Worker
from agentd.peers import Loop, Peer, Peers
from agentd.tokens import TokenTotals
from shared import log
from shared.clock import MS
from shared.decision import ALLOW, ChunkAction, Decision, Outcome, Verb, on_failure
from shared.defaults import (
    HELLO_WITHIN_MS,
    HOP_BODIES_BYTES,
    HOP_BODY_FRAME_BYTES,
    HOP_MAX_FRAMES,
    HOP_MAX_MESSAGE_BYTES,
    HOP_UNSENT_BYTES,
    WIRE_VERSION,
    WORKER_SLOTS,
)
from shared.errors import WireError
from shared.events import EventKind
from shared.turn import Turn
from shared.wire.envelope import (
    NO_BODY,
    UNKNOWN_RECORD,
    EventRecord,
    RecordType,
    Registered,
    pack_decision,
    pack_decision_body,
    pack_registered,
    records_of_worker,
    unpack_cancel,
    unpack_end,
    unpack_event,
    unpack_register,
)
from shared.zmtp import Frame

_REPLACE = ChunkAction.REPLACE
_OTHER_VERSION = "other version"  # owner of a connection that is left alone, but not served
_PEERS_MAX = 2 * WORKER_SLOTS  # a reload starts new workers before the old ones are gone


class Link:
    """One registered worker's connection, and what leaves for it at the end of this tick."""

    __slots__ = ("_ingress", "bodies", "body_out", "body_out_bytes", "out", "peer", "table", "worker")

    def __init__(self, ingress: "Ingress", peer: Peer, table: bytes) -> None:
        self._ingress = ingress
        self.peer = peer
        self.table = table  # its REGISTER, to tell a repetition from a change
        self.out: list[bytes] = []
        self.body_out: list[bytes] = []  # records whose bodies are frames of the same message
        self.bodies: list[bytes] = []
        self.body_out_bytes = 0
        self.worker: Worker  # set by whoever made us, at once: it needs our `reply`

    def reply(self, event_id: int, decision: Decision) -> None:
        """Queue a decision for this tick's message."""
        out = self.out
        if not out and not self.body_out:
            self._ingress.schedule(self)
        chunk = None if decision is ALLOW else decision.chunk
        if chunk is not None and chunk.action is _REPLACE and len(decision.body) >= HOP_BODY_FRAME_BYTES:
            self._reply_with_body(event_id, decision)
            return
        record = pack_decision(event_id, decision)
        if len(record) > HOP_MAX_MESSAGE_BYTES:
            record = pack_decision(event_id, _shortened(decision))
        out.append(record)

    def _reply_with_body(self, event_id: int, decision: Decision) -> None:
        record = pack_decision_body(event_id, decision, len(self.bodies))
        size = len(record) + len(decision.body)
        if size > HOP_MAX_MESSAGE_BYTES:
            self.out.append(pack_decision(event_id, _shortened(decision)))
            return
        if self.body_out and self.body_out_bytes + size > HOP_BODIES_BYTES:
            self._ingress.send_bodies(self)
            record = pack_decision_body(event_id, decision, 0)
        self.body_out.append(record)
        self.bodies.append(decision.body)
        self.body_out_bytes += size


class Ingress:
    """The workers' end of the hop. `path` is the socket's.

    `on_audit(record)` takes a worker's encoded audit record. `config_digest` is told to workers when they
    register; set it anew on reload. `max_unsent` bytes of decisions may wait for a worker that does not read.
    """

    def __init__(
        self,
        loop: Loop,
        path: str,
        dispatcher: Dispatcher,
        on_audit: Callable[[bytes], object],
        *,
        nonce: str,
        config_digest: str = "",
        turn: Turn | None = None,
        max_unsent: int = HOP_UNSENT_BYTES,
    ) -> None:
        self.config_digest = config_digest
        self.messages = 0
        self.malformed = 0  # messages and records that break the format, and those of strangers
        self.unknown = 0  # messages of peers that have not registered
        self.replies_dropped = 0  # the worker does not read, or is gone
        self.links: dict[Peer, Link] = {}
        self.tokens = TokenTotals()
        self._turn = turn = turn if turn is not None else Turn(loop)
        self._dispatcher = dispatcher
        self._on_audit = on_audit
        self._nonce = nonce
        self._registered = 0
        self._dirty: list[Link] = []
        self._log = log.RateLimited("agentd.ingress")
        own = os.getuid()
        self._peers = Peers(
            loop,
            path,
            self._received,
            self._gone,
            may_connect=lambda uid: uid in (0, own),
            on_refused=self._refused,
            max_peers=_PEERS_MAX,
            max_bytes=HOP_MAX_MESSAGE_BYTES,
            max_frames=HOP_MAX_FRAMES,
            max_unsent=max_unsent,
            turn=turn,
        )
        self._peers.listen(0o177)  # only we and root may connect

    def close(self) -> None:
        """Workers see the connection end and use their failure table; the socket's file goes too."""
        self._flush()
        self._peers.close()
        for link in list(self.links.values()):
            self._drop(link)

    def tick(self, now: int) -> None:
        """About once a second: tell what was not logged one by one, cut who connected and never registered."""
        self._log.tick(now)
        for peer in list(self._peers.all):
            if peer.owner is None and now - peer.accepted_ns > HELLO_WITHIN_MS * MS:
                self._log.line(log.WARNING, "worker's connection cut: it did not register", peer=str(peer))
                self._peers.cut(peer)

    def local_connections(self) -> tuple[int, int, int]:
        """(open, how many there may be, refused so far) of the workers' socket."""
        return len(self._peers.all), self._peers.max_peers, self._peers.refused

    @property
    def all_unsent_bytes(self) -> int:
        """Of decisions that wait for any worker."""
        return self._peers.unsent_bytes

    @property
    def unsent_bytes(self) -> int:
        """Of decisions that wait for the worker that reads least."""
        return max((peer.connection.unsent_bytes for peer in self._peers.all), default=0)

    # --- in ---------------------------------------------------------------------------------------

    def _received(self, peer: Peer, frames: Sequence[Frame]) -> None:
        self.messages += 1
        link = self.links.get(peer)
        dispatcher = self._dispatcher
        used: set[int] = set()  # body frames
        try:
            for kind, rest in records_of_worker(frames[0]):
                if link is None and kind != RecordType.REGISTER:
                    self.unknown += 1
                    peer.connection.send((UNKNOWN_RECORD,))
                    return
                try:
                    if isinstance(rest, EventRecord):
                        assert link is not None
                        if rest.body_frame == NO_BODY:
                            dispatcher.event(link.worker, rest)
                        else:
                            dispatcher.event(link.worker, rest, _body(rest.body_frame, frames, used))
                    else:
                        link = self._other(kind, rest, link, peer)
                except WireError as error:
                    self._bad(peer, str(error))
        except WireError as error:
            self._bad(peer, str(error))

    def _other(self, kind: int, rest: bytes | memoryview, link: Link | None, peer: Peer) -> Link | None:
        """A record that is no event; the link as it is afterwards."""
        if kind == RecordType.REGISTER:
            return self._register(rest, link, peer)
        assert link is not None
        if kind == RecordType.EVENT:
            unpack_event(rest)  # raises: it is too short
        elif kind == RecordType.CANCEL:
            self._dispatcher.cancel(link.worker, *unpack_cancel(rest))
        elif kind == RecordType.END:
            self._dispatcher.end(link.worker, unpack_end(rest))
        elif kind == RecordType.AUDIT:
            self._on_audit(bytes(rest))
        elif kind == RecordType.TOKENS:
            self.tokens.told(rest)
        return link  # an unknown type is a newer worker's: skipped

    def _register(self, rest: bytes | memoryview, link: Link | None, peer: Peer) -> Link:
        table = bytes(rest)
        if link is None or link.table != table:
            if int.from_bytes(rest[:2], "little") != WIRE_VERSION:
                self._say_registered(peer)  # it reads our version there and uses its failure table
                peer.owner = peer.owner or _OTHER_VERSION
            register = unpack_register(rest)
            new = Link(self, peer, table)
            self._registered += 1
            identity = link.worker.identity if link is not None else b"%d-%d" % (peer.pid, self._registered)
            new.worker = self._dispatcher.register(identity, register, new.reply)
            self.links[peer] = peer.owner = link = new
            log.line("agentd.ingress", log.INFO, "worker registered", peer=str(peer), plans=len(register.plans))
        self._say_registered(peer)
        return link

    def _say_registered(self, peer: Peer) -> None:
        peer.connection.send((pack_registered(Registered(self._nonce, self.config_digest)),))

    # --- out --------------------------------------------------------------------------------------

    def schedule(self, link: Link) -> None:
        """The link has something to say at the end of this tick."""
        if not self._dirty:
            self._turn.at_end(self._flush)
        self._dirty.append(link)

    def _flush(self) -> None:
        dirty, self._dirty = self._dirty, []
        for link in dirty:
            out, link.out = link.out, []
            if out:
                send = link.peer.connection.send
                for message, count in _split(out):
                    if not send((message,)):
                        self.replies_dropped += count
            if link.body_out:
                self.send_bodies(link)

    def send_bodies(self, link: Link) -> None:
        """Send the decisions that have frames of their own, now: one more would be too much for a message."""
        out, link.body_out = link.body_out, []
        bodies, link.bodies = link.bodies, []
        link.body_out_bytes = 0
        if not link.peer.connection.send((b"".join(out), *bodies)):
            self.replies_dropped += len(out)

    # --- peers ------------------------------------------------------------------------------------

    def _gone(self, peer: Peer, reason: str) -> None:
        if peer.connection.is_fault:
            self._bad(peer, reason)
        link = self.links.get(peer)
        if link is not None:
            log.line("agentd.ingress", log.INFO, "worker gone", peer=str(peer), reason=reason)
            self._drop(link)

    def _drop(self, link: Link) -> None:
        link.peer.owner = None
        del self.links[link.peer]
        self._dispatcher.worker_gone(link.worker)

    def _refused(self, peer: Peer, reason: str) -> None:
        self.malformed += 1
        self._log.line(log.WARNING, "connection to the workers' socket refused", peer=str(peer), reason=reason)

    def _bad(self, peer: Peer, why: str) -> None:
        self.malformed += 1
        who = str(peer) if peer in self.links else f"unregistered {peer}"
        self._log.line(log.WARNING, "unusable message from a worker", peer=who, reason=why)


def _body(number: int, frames: Sequence[Frame], used: set[int]) -> Frame | None:
    """The event's body frame; an empty one is none."""
    if number >= len(frames) - 1:
        raise WireError(f"event names body frame {number}, the message has {len(frames) - 1}")
    if number in used:
        raise WireError(f"event names body frame {number}, which another event has")
    used.add(number)
    return frames[number + 1] or None


def _shortened(decision: Decision) -> Decision:
    """What arrives of one too long for a message: a refusal without its page; an allow that cannot be told is none."""
    if decision.verb is Verb.ALLOW:
        refusal = on_failure(Outcome.MALFORMED, "closed", EventKind.RESPONSE_BODY_CHUNK, decision.agent)
        assert refusal is not None
        return refusal
    short = msgspec.structs.replace(decision, body=b"")
    if len(pack_decision(0, short)) > HOP_MAX_MESSAGE_BYTES:
        short = msgspec.structs.replace(short, headers=(), response_ops=())
    return short


def _split(out: Sequence[bytes]) -> list[tuple[bytes, int]]:
    """The records in as few messages as the limit allows, each with its number of records."""
    whole = b"".join(out)
    if len(whole) <= HOP_MAX_MESSAGE_BYTES:
        return [(whole, len(out))]
    messages: list[tuple[bytes, int]] = []
    part: list[bytes] = []
    size = 0
    for record in out:
        if part and size + len(record) > HOP_MAX_MESSAGE_BYTES:
            messages.append((b"".join(part), len(part)))
            part, size = [], 0
        part.append(record)
        size += len(record)
    messages.append((b"".join(part), len(part)))
    return messages
