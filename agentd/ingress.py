"""Where the workers' messages arrive and their answers leave.

    DEALER of a worker --ipc, mode 0600--> ROUTER --Pump--> records [, bodies] --> Dispatcher
                       <--one message per loop tick and worker--       decisions
                       <--records, bodies: apart from the others--     those with long replacements

A worker is whoever the kernel says runs as our own user (or root): others are cut at accept, and
REGISTER is taken only from a connection that is known by that. What cannot be read is counted, logged
with the peer and dropped; a peer unknown to us is told to register again. When a worker's connection
dies, all it waits for is cancelled at once. Bodies are passed on as views of the frames that they came in. Nothing
is decided here about events.

Kind: IO.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import zmq

from agentd.dispatcher import Dispatcher, Worker
from agentd.frames import uncopied
from agentd.peers import Loop, Peer, Peers
from agentd.tokens import TokenTotals
from shared import log
from shared.clock import MS
from shared.decision import ALLOW, ChunkAction, Decision, Outcome, Verb, on_failure
from shared.defaults import (
    HELLO_WITHIN_MS,
    HOP_BODIES_BYTES,
    HOP_BODY_FRAME_BYTES,
    HOP_HWM,
    HOP_LINGER_MS,
    HOP_MAX_MESSAGE_BYTES,
    WIRE_VERSION,
    WORKER_SLOTS,
    ZMTP_HANDSHAKE_MS,
)
from shared.errors import WireError
from shared.events import EventKind
from shared.pump import Pump, Turn, receive_frames
from shared.wire.envelope import (
    NO_BODY,
    UNKNOWN_RECORD,
    RecordType,
    Registered,
    pack_decision,
    pack_decision_body,
    pack_registered,
    records,
    unpack_cancel,
    unpack_end,
    unpack_event,
    unpack_register,
)

_EVENT = int(RecordType.EVENT)
_REPLACE = ChunkAction.REPLACE
_OTHER_VERSION = "other version"  # owner of a connection that is left alone, but not served
_PEERS_MAX = 2 * WORKER_SLOTS  # a reload starts new workers before the old ones are gone


class Link:
    """One registered worker's connection, and what leaves for it at the end of this tick."""

    __slots__ = ("_ingress", "bodies", "body_out", "body_out_bytes", "identity", "out", "peer", "table", "worker")

    def __init__(self, ingress: "Ingress", identity: bytes, peer: Peer, table: bytes) -> None:
        self._ingress = ingress
        self.identity = identity
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
    """The workers' end of the hop. `path` is the socket's, without a scheme.

    `on_audit(record)` takes a worker's encoded audit record. `config_digest` is told to workers when they
    register; set it anew on reload.
    """

    def __init__(
        self,
        context: "zmq.Context[zmq.Socket[bytes]]",
        loop: Loop,
        path: str,
        dispatcher: Dispatcher,
        on_audit: Callable[[bytes], object],
        *,
        nonce: str,
        config_digest: str = "",
        turn: Turn | None = None,
        hwm: int = HOP_HWM,
    ) -> None:
        self.config_digest = config_digest
        self.messages = 0
        self.malformed = 0  # messages and records that break the format, and those of strangers
        self.unknown = 0  # messages of peers that have not registered
        self.replies_dropped = 0  # the worker does not read, or is gone
        self.links: dict[bytes, Link] = {}
        self.tokens = TokenTotals()
        self._loop = loop
        self._turn = turn = turn if turn is not None else Turn(loop)
        self._dispatcher = dispatcher
        self._on_audit = on_audit
        self._nonce = nonce
        self._dirty: list[Link] = []
        self._log = log.RateLimited("agentd.ingress")
        self._socket = _router(context, hwm)
        own = os.getuid()
        self._peers = Peers(
            self._socket,
            loop,
            path,
            lambda uid: uid in (0, own),
            self._gone,
            on_refused=self._refused,
            max_peers=_PEERS_MAX,
        )
        old_mask = os.umask(0o177)  # the socket is made with the process's umask: only we and root may connect
        try:
            self._socket.bind(f"ipc://{path}")
        except zmq.ZMQError:
            self._peers.close()
            self._socket.close(0)
            raise
        finally:
            os.umask(old_mask)
        self._path = path
        self._inode = os.stat(path).st_ino
        self._pump = Pump(
            self._socket,
            loop,
            self._received,
            again=zmq.Again,
            error=zmq.ZMQError,
            receive=receive_frames(self._socket),
            linger_ms=HOP_LINGER_MS,
            turn=turn,
        )

    def close(self) -> None:
        """Workers see the connection end and use their failure table; the socket's file goes too."""
        self._flush()
        self._peers.close()
        self._pump.close()
        try:  # libzmq leaves the file; a successor's is another inode
            if os.stat(self._path).st_ino == self._inode:
                os.unlink(self._path)
        except FileNotFoundError:
            pass
        for link in list(self.links.values()):
            self._drop(link)

    def tick(self, now: int) -> None:
        """About once a second: tell what was not logged one by one, cut who connected and never registered.

        Such a one may be a worker that came back under its old routing id before libzmq had let go of it:
        its messages then never arrive (seen 2026-11), and only a new connection helps.
        """
        self._log.tick(now)
        for peer in list(self._peers.by_fd.values()):
            if peer.owner is None and not peer.is_cut and now - peer.accepted_ns > HELLO_WITHIN_MS * MS:
                self._log.line(log.WARNING, "worker's connection cut: it did not register", peer=str(peer))
                self._peers.cut(peer)

    def local_connections(self) -> tuple[int, int, int]:
        """(open, how many there may be, refused so far) of the workers' socket."""
        return len(self._peers.by_fd), self._peers.max_peers, self._peers.refused

    # --- in ---------------------------------------------------------------------------------------

    def _received(self, frames: Sequence[Any]) -> None:
        self.messages += 1
        identity: bytes = frames[0].bytes
        link = self.links.get(identity)
        if len(frames) < 2 or (len(frames) > 2 and sum(map(len, frames)) > HOP_MAX_MESSAGE_BYTES):
            self._bad(link, identity, f"message of {len(frames)} frames and {sum(map(len, frames))} bytes")
            return
        used: set[int] = set()  # body frames
        try:
            for kind, rest in records(frames[1].buffer):
                if link is None and kind != RecordType.REGISTER:
                    self.unknown += 1
                    self._pump.send((identity, UNKNOWN_RECORD))
                    return
                try:
                    if kind == _EVENT and link is not None:
                        event = unpack_event(rest)
                        if event.body_frame == NO_BODY:
                            self._dispatcher.event(link.worker, event)
                        else:
                            self._dispatcher.event(link.worker, event, _body(event.body_frame, frames, used))
                    else:
                        link = self._other(kind, rest, link, identity, frames[1])
                except WireError as error:
                    self._bad(link, identity, str(error))
        except WireError as error:
            self._bad(link, identity, str(error))

    def _other(
        self, kind: int, rest: bytes | memoryview, link: Link | None, identity: bytes, frame: zmq.Frame
    ) -> Link | None:
        """A record that is no event; the link as it is afterwards."""
        if kind == RecordType.REGISTER:
            return self._register(rest, link, identity, frame)
        assert link is not None
        if kind == RecordType.CANCEL:
            self._dispatcher.cancel(link.worker, *unpack_cancel(rest))
        elif kind == RecordType.END:
            self._dispatcher.end(link.worker, unpack_end(rest))
        elif kind == RecordType.AUDIT:
            self._on_audit(bytes(rest))
        elif kind == RecordType.TOKENS:
            self.tokens.told(rest)
        return link  # an unknown type is a newer worker's: skipped

    def _register(self, rest: bytes | memoryview, link: Link | None, identity: bytes, frame: zmq.Frame) -> Link | None:
        peer = self._peers.of(frame)
        link = self.links.get(identity)  # asking for the peer may have shown that the old connection is gone
        if peer is None:
            self._bad(link, identity, "register from a connection that is gone")
            return link
        table = bytes(rest)
        if link is None or link.peer is not peer or link.table != table:
            if int.from_bytes(rest[:2], "little") != WIRE_VERSION:
                self._say_registered(identity)  # it reads our version there and uses its failure table
                peer.owner = peer.owner or _OTHER_VERSION
            register = unpack_register(rest)
            new = Link(self, identity, peer, table)
            new.worker = self._dispatcher.register(identity, register, new.reply)
            if link is not None:
                link.peer.owner = None
            self.links[identity] = peer.owner = link = new
            log.line("agentd.ingress", log.INFO, "worker registered", peer=str(peer), plans=len(register.plans))
        self._say_registered(identity)
        return link

    def _say_registered(self, identity: bytes) -> None:
        self._pump.send((identity, pack_registered(Registered(self._nonce, self.config_digest))))

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
                for message, count in _split(out):
                    if not self._pump.send((link.identity, message)):
                        self.replies_dropped += count
            if link.body_out:
                self.send_bodies(link)

    def send_bodies(self, link: Link) -> None:
        """Send the decisions that have frames of their own, now: one more would be too much for a message."""
        out, link.body_out = link.body_out, []
        bodies, link.bodies = link.bodies, []
        link.body_out_bytes = 0
        if not self._pump.send((link.identity, b"".join(out), *map(uncopied, bodies))):
            self.replies_dropped += len(out)

    # --- peers ------------------------------------------------------------------------------------

    def _gone(self, peer: Peer) -> None:
        link = peer.owner
        if isinstance(link, Link):
            log.line("agentd.ingress", log.INFO, "worker gone", peer=str(peer))
            self._drop(link)

    def _drop(self, link: Link) -> None:
        link.peer.owner = None
        if self.links.get(link.identity) is link:
            del self.links[link.identity]
        self._dispatcher.worker_gone(link.worker)

    def _refused(self, peer: Peer, reason: str) -> None:
        self.malformed += 1
        self._log.line(log.WARNING, "connection to the workers' socket refused", peer=str(peer), reason=reason)

    def _bad(self, link: Link | None, identity: bytes, why: str) -> None:
        self.malformed += 1
        peer = str(link.peer) if link is not None else f"unregistered {identity[:40]!r}"
        self._log.line(log.WARNING, "unusable message from a worker", peer=peer, reason=why)


def _body(number: int, frames: Sequence[Any], used: set[int]) -> memoryview | None:
    """A view of the event's body frame; an empty one is none."""
    if number >= len(frames) - 2:
        raise WireError(f"event names body frame {number}, the message has {len(frames) - 2}")
    if number in used:
        raise WireError(f"event names body frame {number}, which another event has")
    used.add(number)
    view: memoryview = frames[number + 2].buffer
    return view if len(view) else None


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


def _router(context: "zmq.Context[zmq.Socket[bytes]]", hwm: int) -> "zmq.Socket[bytes]":
    socket: zmq.Socket[bytes] = context.socket(zmq.ROUTER)
    for option, value in (
        (zmq.ROUTER_MANDATORY, 1),
        (zmq.ROUTER_HANDOVER, 0),  # a routing id belongs to whoever has it
        (zmq.SNDHWM, hwm),
        (zmq.RCVHWM, hwm),
        (zmq.MAXMSGSIZE, HOP_MAX_MESSAGE_BYTES),
        (zmq.LINGER, 0),
        (zmq.HANDSHAKE_IVL, ZMTP_HANDSHAKE_MS),
        # No ZMTP heartbeats; see agentd/peers.py. The kernel tells that a worker died; a frozen one asks nothing.
    ):
        socket.setsockopt(option, value)
    return socket
