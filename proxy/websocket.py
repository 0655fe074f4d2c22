"""Decides what becomes of each WebSocket message between a client and an upstream where agents see them.

    sender --bytes--> frames --joined--> message --agents, stage by stage--> passes, dropped, replaced --> receiver
                        ping: answered here                         close, failure: both sides are closed

One `Way` per direction, each with one message in question at a time, so that order holds and the other direction
goes on. What has not been looked at stays bytes: nothing is inflated ahead of its turn. The closing handshake is
end to end: a close goes to the other side, and its answer comes back; only where the relay itself ends the
connection are both told at once. Reading and writing frames is websocket_peer.py's. No socket, clock or encoding
of questions here: those are tunnel.py's, which is the `Link`.

Kind: pure.
"""

import codecs
from collections import deque
from collections.abc import Callable
from typing import Protocol

from websockets.frames import BINARY, CLOSE, CONT, PING, PONG, TEXT, Frame

from proxy.upgrade import Deflate
from proxy.websocket_peer import POLICY_VIOLATION, Peer, close_payload, is_close_payload
from shared.decision import ChunkAction, Decision, Verb
from shared.defaults import WEBSOCKET_FRAMES_PER_TURN, WEBSOCKET_HELD_BYTES, WEBSOCKET_SLICE_BYTES
from shared.ratelimit import Bucket, micro

GOING_AWAY = 1001
INVALID_DATA = 1007
INTERNAL_ERROR = 1011
_OPCODES = {"text": TEXT, "binary": BINARY}
_utf8 = codecs.getincrementaldecoder("utf-8")


class Message:
    """One whole message, or the close frame that ends a direction (opcode "close"), or a broken rule (`fault`)."""

    __slots__ = ("fault", "index", "is_coded", "opcode", "payload")

    def __init__(self, opcode: str, payload: bytes, is_coded: bool = False) -> None:
        self.opcode = opcode
        self.payload = payload
        self.is_coded = is_coded
        self.index = 0  # of this direction, from 0
        self.fault: tuple[int, str] | None = None


class Link(Protocol):
    """What the relay wants done."""

    def send(self, to: Peer, data: bytes) -> None:
        """Write; `to.is_full` may be set from inside."""

    def hold(self, peer: Peer) -> None:
        """Read no more from it for now."""

    def release(self, peer: Peer) -> None:
        """Read on."""

    def ask(self, way: "Way", message: Message, stage: int) -> Decision | None:
        """Show it to the agents of a stage. None = `way.decided` is called later, never from inside."""

    def cancel(self, way: "Way") -> None:
        """Nobody waits for the answer any more."""

    def malformed(self, decision: Decision, stage: int) -> Decision | None:
        """The replacement cannot be used: what the agent's failure mode makes of it; None = it does not count."""

    def again(self, way: "Way") -> None:
        """Call `way.go_on` in a later turn of the loop."""

    def closing(self) -> None:
        """One side was told to close: it has WEBSOCKET_CLOSE_S to answer."""

    def shut(self, peer: Peer) -> None:
        """All is said: end its stream. It may still send; that is thrown away."""

    def ended(self, code: int, decision: Decision | None, reason: str) -> None:
        """Not its ends but the relay closed the connection: an agent, a failure, or a broken rule."""


class Way:
    """One direction."""

    __slots__ = (
        "_bucket",
        "_clock",
        "_count",
        "_decoder",
        "_is_coded",
        "_is_held",
        "_is_scheduled",
        "_joined",
        "_link",
        "_opcode",
        "_raw",
        "_raw_bytes",
        "_relay",
        "_stage",
        "is_ended",
        "messages",
        "question",
        "receiver",
        "sender",
    )

    def __init__(self, relay: "Relay", sender: Peer, receiver: Peer) -> None:
        self._relay = relay
        self._link = relay.link
        self.sender = sender
        self.receiver = receiver
        self.question: Message | None = None  # with the agents
        self.messages: deque[Message] = deque()  # read, their turn has not come
        self.is_ended = False  # a close or a fault was read: nothing follows
        self._stage = 0
        self._raw: deque[bytes | memoryview] = deque()
        self._raw_bytes = 0
        self._count = 0
        self._opcode = ""  # of the message being joined
        self._joined = bytearray()
        self._is_coded = False
        self._decoder = _utf8()
        self._is_held = self._is_scheduled = False
        self._clock: Callable[[], int] | None = None
        self._bucket: Bucket | None = None

    @property
    def is_from_client(self) -> bool:
        """Client to server."""
        return self.sender.is_client

    def limit(self, messages_per_s: float, clock: Callable[[], int]) -> None:
        """At most so many messages and pings in the long run, a second's worth at once."""
        self._bucket = Bucket(micro(max(messages_per_s, 1.0)), micro(messages_per_s))
        self._clock = clock

    def take(self, data: bytes) -> None:
        """Bytes of the sender."""
        if self.is_ended or self._relay.is_over:
            return
        self._raw.append(data)
        self._raw_bytes += len(data)
        if self._is_scheduled:
            self._regulate()  # its turn comes
        else:
            self.run()

    def decided(self, decision: Decision) -> None:
        """The answer to the question."""
        message = self.question
        if message is None:
            return
        self.question = None
        if self._applied(message, decision):
            self._ask(message, self._stage + 1)
        self.run()

    def run(self) -> None:
        """As far as it goes: until a question waits, the receiver is full, or nothing is left."""
        relay, receiver = self._relay, self.receiver
        frames = 0
        while self.question is None and not receiver.is_full and not relay.is_over:
            if self.messages:
                self._show(self.messages.popleft())
            elif self.is_ended or not self._raw:
                if self.sender.is_gone and not self.is_ended:
                    relay.close(GOING_AWAY, b"the other side is gone")
                break
            elif frames >= WEBSOCKET_FRAMES_PER_TURN:
                if not self._is_scheduled:
                    self._is_scheduled = True
                    self._link.again(self)
                break
            else:
                frames += 1 + self._read()
        self._regulate()

    def go_on(self) -> None:
        """In a later turn, after `Link.again`."""
        self._is_scheduled = False
        self.run()

    def _regulate(self) -> None:
        """Read no more from the sender while what it sent may not go on."""
        is_much = self._raw_bytes > WEBSOCKET_HELD_BYTES or (self._is_held and self._raw_bytes > 0)
        wants = (is_much or self.receiver.is_full) and not self._relay.is_over
        if wants is not self._is_held:
            self._is_held = wants
            if wants:
                self._link.hold(self.sender)
            else:
                self._link.release(self.sender)

    # --- frames to messages -----------------------------------------------------------------------

    def _read(self) -> int:
        """Take the next bytes apart; how many frames they completed."""
        data = self._raw[0]
        if len(data) > WEBSOCKET_SLICE_BYTES:
            view = memoryview(data)
            data, self._raw[0] = view[:WEBSOCKET_SLICE_BYTES], view[WEBSOCKET_SLICE_BYTES:]
        else:
            self._raw.popleft()
        self._raw_bytes -= len(data)
        sender = self.sender
        frames = sender.read(data)
        for frame in frames:
            self._take_frame(frame)
            if self.is_ended:
                break
        if sender.fault is not None and not self.is_ended:
            self._end(sender.fault)
        return len(frames)

    def _take_frame(self, frame: Frame) -> None:
        opcode = frame.opcode
        if opcode is CLOSE:
            self._end(None)
            self.messages.append(Message("close", bytes(frame.data)))
        elif opcode is not PING and opcode is not PONG:
            self._take_data(frame)
        elif self._has_turn() and opcode is PING:
            self._answer_ping(bytes(frame.data))

    def _has_turn(self) -> bool:
        """Whether the sender may say one thing more: pings cost us as much as messages do."""
        if self._bucket is None or self._clock is None or self._bucket.take(self._clock()):
            return True
        self._end((POLICY_VIOLATION, "too many messages"))
        return False

    def _take_data(self, frame: Frame) -> None:
        if frame.opcode is not CONT:
            coding = self.sender.coding
            self._is_coded = coding is not None and coding.was_coded
            self._opcode = "text" if frame.opcode is TEXT else "binary"
        if self._opcode == "text":
            try:
                self._decoder.decode(frame.data, frame.fin)
            except UnicodeDecodeError:
                self._end((INVALID_DATA, "text that is not UTF-8"))
                return
        if not frame.fin:
            self._joined += frame.data
            return
        if frame.opcode is CONT:
            self._joined += frame.data
            payload, self._joined = bytes(self._joined), bytearray()
        else:
            payload = bytes(frame.data)
        if self._has_turn():
            self.messages.append(Message(self._opcode, payload, self._is_coded))

    def _end(self, fault: tuple[int, str] | None) -> None:
        """Nothing of the sender's is read any more; a fault has its turn behind what came before."""
        self.is_ended = True
        self._raw.clear()
        self._raw_bytes = 0
        self._joined = bytearray()
        if fault is not None:
            message = Message("", b"")
            message.fault = fault
            self.messages.append(message)

    def _answer_ping(self, payload: bytes) -> None:
        """At once; to a sender that does not read only the last of several (RFC 6455 5.5.3)."""
        sender = self.sender
        if sender.is_full:
            sender.owed = payload
        elif not sender.is_told:
            self._link.send(sender, sender.write(PONG, payload))

    # --- messages to their receiver -----------------------------------------------------------------

    def _show(self, message: Message) -> None:
        if message.fault is not None:
            self._relay.broken(self.sender, *message.fault)
        elif message.opcode == "close" and self.sender.is_told:
            self._relay.pass_close(self, message.payload)  # the answer to one that the agents have seen
        else:
            message.index = self._count
            self._count += 1
            self._ask(message, 0)

    def _ask(self, message: Message, stage: int) -> None:
        for at in range(stage, self._relay.stages):
            decision = self._link.ask(self, message, at)
            if decision is None:
                self.question, self._stage = message, at
                return
            self._stage = at
            if not self._applied(message, decision):
                return
        if message.opcode == "close":
            self._relay.pass_close(self, message.payload)
        elif not self.receiver.is_told:
            opcode = _OPCODES[message.opcode]
            self._link.send(self.receiver, self.receiver.write(opcode, message.payload, message.is_coded))

    def _applied(self, message: Message, decision: Decision) -> bool:
        """Whether the message goes on, perhaps changed."""
        if decision.verb is not Verb.ALLOW:
            self._relay.decided_to_close(decision)
            return False
        chunk = decision.chunk
        if chunk is None or chunk.action is ChunkAction.PASS:
            return True
        payload = decision.body if chunk.action is ChunkAction.REPLACE else b""
        if chunk.action is ChunkAction.DROP:
            if message.opcode != "close":
                return False
        elif not _fits(message.opcode, payload):
            refusal = self._link.malformed(decision, self._stage)
            if refusal is not None:
                self._relay.decided_to_close(refusal)
            return refusal is None
        message.payload = payload  # a close cannot be dropped: it goes on without code and reason
        return True

    def forget(self) -> None:
        """The connection is over."""
        if self.question is not None:
            self.question = None
            self._link.cancel(self)
        self.messages.clear()
        self._end(None)


def _fits(opcode: str, payload: bytes) -> bool:
    """Whether a message of that kind may say it."""
    if opcode == "binary":
        return True
    if opcode == "close":
        return is_close_payload(payload)
    try:
        payload.decode()
    except UnicodeDecodeError:
        return False
    return True


class Relay:
    """Both directions, and how they end."""

    __slots__ = ("client", "from_client", "from_upstream", "is_over", "link", "stages", "upstream")

    def __init__(self, link: Link, stages: int, max_message_bytes: int, deflate: Deflate | None) -> None:
        self.link = link
        self.stages = stages
        self.is_over = False
        self.client = Peer(True, deflate, max_message_bytes)
        self.upstream = Peer(False, deflate, max_message_bytes)
        self.from_client = Way(self, self.client, self.upstream)
        self.from_upstream = Way(self, self.upstream, self.client)

    def eof(self, peer: Peer) -> None:
        """Its stream has ended: what it said before still counts."""
        peer.is_gone = True
        self._way_of(peer).run()

    def lost(self, peer: Peer) -> None:
        """Its connection broke: only a close that it had sent still counts."""
        peer.is_gone = peer.is_lost = True
        if peer.has_closed:
            self._finish()
        elif self._way_of(peer).is_ended:
            self._way_of(peer).run()
        else:
            self.close(GOING_AWAY, b"the other side is gone")

    def full(self, peer: Peer) -> None:
        """It reads slower than we write."""
        peer.is_full = True
        self._way_to(peer).run()

    def writable(self, peer: Peer) -> None:
        """It has caught up."""
        peer.is_full = False
        if peer.owed is not None and not peer.is_told and not self.is_over:
            payload, peer.owed = peer.owed, None
            self.link.send(peer, peer.write(PONG, payload))
        self._way_to(peer).run()

    def pass_close(self, way: Way, payload: bytes) -> None:
        """The sender has closed, and may: tell the other side. If that had closed before, this was the answer."""
        sender, receiver = way.sender, way.receiver
        sender.has_closed = True
        self._tell(receiver, payload)
        if receiver.has_closed or receiver.is_gone or sender.is_lost:
            self._finish()
        else:
            self.link.closing()

    def decided_to_close(self, decision: Decision) -> None:
        """An agent's verdict, or its failure."""
        if decision.verb is Verb.BLOCK:
            payload = close_payload(decision.status, decision.body)
        else:
            payload = close_payload(INTERNAL_ERROR, b"")
        code = int.from_bytes(payload[:2], "big")
        self.link.ended(code, decision, decision.reason)
        self.close(code, payload[2:])

    def broken(self, peer: Peer, code: int, reason: str) -> None:
        """It broke a rule: it is told which, the other side that it is gone."""
        self.link.ended(code, None, reason)
        self._tell(peer, close_payload(code, reason.encode()[:123]))
        self.close(GOING_AWAY, b"the other side is gone")

    def close(self, code: int, reason: bytes) -> None:
        """Tell both sides that were not told yet, and wait for nobody."""
        if self.is_over:
            return
        payload = close_payload(code, reason)
        self._tell(self.client, payload)
        self._tell(self.upstream, payload)
        self._finish()

    def _tell(self, peer: Peer, payload: bytes) -> None:
        if not peer.is_told:
            peer.is_told = True
            self.link.send(peer, peer.write(CLOSE, payload))

    def _finish(self) -> None:
        if self.is_over:
            return
        self.is_over = True
        self.from_client.forget()
        self.from_upstream.forget()
        self.link.shut(self.client)
        self.link.shut(self.upstream)

    def _way_of(self, peer: Peer) -> Way:
        return self.from_client if peer.is_client else self.from_upstream

    def _way_to(self, peer: Peer) -> Way:
        return self.from_upstream if peer.is_client else self.from_client
