"""One v2 agent instance: batches its events out, takes its verdicts in, knows what it has not read yet.

Out: `send`, `tell` and `cancel` only note; the transport calls `flush` once per loop tick, and everything noted
leaves as one EVENTS message (per `max_batch`: agentd/transport/batches.py) and one CANCEL. In: verdicts in any
order and grouping.

What an agent that does not read has not taken lies in the kernel and in ours. So what was sent and not yet shown to
be read is counted here, in messages and bytes; a verdict or a PONG shows that everything sent before
was read. Over the bound `send` is False (QueueFull), however the calls ended meanwhile; `tell`, for what needs
no answer, is so somewhat earlier: no request shall be refused for it.

What the session may say and hear stands in shared/wire/session.py. No sockets here, no identity checks.

Kind: IO (the transport sends).
"""

from collections import deque
from collections.abc import Sequence
from typing import Any, Protocol

from agentd.call import Call, CallState
from agentd.peers import Peer
from agentd.registry import Seat
from agentd.transport.batches import EVENTS_MAX_BYTES, ROW_BYTES, Batch, Told, batches, size_of
from agentd.transport.unread import Remembered, Unread
from shared.clock import MS
from shared.decision import Outcome
from shared.defaults import (
    AGENT_CONTROL_MAX_BYTES,
    AGENT_ENDED_REMEMBERED,
    AGENT_HWM,
    AGENT_MAX_FRAMES,
    AGENT_MAX_MESSAGE_BYTES,
    DRAIN_DEADLINE_MS,
    HOP_BODY_MAX_BYTES,
    SESSION_MAX_BYTES,
    VERDICTS_MAX_ENTRIES,
)
from shared.errors import WireError
from shared.wire.agent_messages import Cancel, Drain, Hello, Ping, VerdictEntry
from shared.wire.agent_zmq import check_size, pack, pack_events, salvage_verdicts, unpack_verdicts
from shared.wire.envelope import CancelReason
from shared.wire.session import MAY_HAVE_CALLS, Event, Session, State
from shared.wire.verdict import HEAD, Screened

_SENT = CallState.SENT
_WELCOMED = MAY_HAVE_CALLS | {State.CONFIGURING}
_TOLD = "."  # ends the call id of what needs no answer


class Outbox(Protocol):
    """What a session needs of its transport."""

    def clock(self) -> int:
        """CLOCK_MONOTONIC ns."""

    def mark(self, session: "V2Session") -> None:
        """Call its `flush` in this loop tick."""

    def transmit(self, session: "V2Session", frames: Sequence[Any]) -> bool:
        """False: not taken, its pipe is full or gone (then the session is over)."""

    def finish(self, session: "V2Session") -> None:
        """It is drained: BYE, and over."""

    def drop(self, session: "V2Session", reason: str) -> None:
        """End the session and its connection."""


class V2Session:
    """An `Instance` (agentd/call.py) from its WELCOME on; before, a connection that has said something."""

    __slots__ = (
        "_answered",
        "_cancels",
        "_is_full",
        "_is_probing",
        "_out",
        "_outbox",
        "_told",
        "_told_unanswered",
        "_unanswered",
        "_unread",
        "batch",
        "calls",
        "config_version",
        "debt",
        "drain_deadline_ns",
        "events_sent",
        "has_asked_pause",
        "health",
        "health_message",
        "hello",
        "is_drained",
        "is_draining",
        "is_live",
        "is_lockstep",
        "is_marked",
        "is_paused",
        "limit",
        "load",
        "malformed",
        "max_body_bytes",
        "max_bytes",
        "max_messages",
        "name",
        "nonce",
        "owes",
        "peer",
        "pins",
        "retry_at_ns",
        "seat",
        "sends_refused",
        "session_id",
        "strays",
        "verdicts_taken",
        "was_useful",
        "wire",
    )

    def __init__(self, outbox: Outbox, peer: Peer, wire: Session, session_id: str) -> None:
        # what the lane reads and keeps
        self.name = ""
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
        self.max_body_bytes = HOP_BODY_MAX_BYTES
        self.is_lockstep = False
        # who it is
        self.wire = wire
        self.peer = peer
        self.session_id = session_id
        self.seat: Seat | None = None
        self.hello = Hello(0, "", "-", [])
        self.batch = 1
        self.nonce = b""
        self.config_version = ""  # of the latest CONFIG
        self.health_message = ""
        self.has_asked_pause = False
        self.drain_deadline_ns = 0
        self.retry_at_ns: int | None = None  # of a refusal; None = final
        self.is_drained = False
        # counters for people
        self.malformed = 0
        self.strays = 0  # verdicts for calls never sent here
        self.events_sent = 0
        self.sends_refused = 0  # calls not taken: too much is unread
        self.verdicts_taken = 0
        self.was_useful = True  # the latest VERDICTS answered a call for the first time, in time or late
        # what is to be sent in this tick
        self.is_marked = False
        self._out: list[Call] = []
        self._told: list[Told] = []
        self._told_unanswered = 0  # there may be so many answers to them, which are no garbage
        self._cancels: list[tuple[str, str]] = []
        self._unread = Unread()
        self.max_bytes = SESSION_MAX_BYTES  # of those
        self.max_messages = AGENT_HWM
        self._is_full = False
        self._is_probing = False
        self._unanswered = Remembered(AGENT_ENDED_REMEMBERED)
        self._answered: deque[str] = deque(maxlen=AGENT_ENDED_REMEMBERED // 8)  # only duplicates look for theirs
        self._outbox = outbox

    # --- for the lane -----------------------------------------------------------------------------

    def send(self, call: Call) -> bool:
        """Note it for this tick's EVENTS."""
        unread, out = self._unread, self._out
        size = len(call.event) + ROW_BYTES  # size_of(call), which is a call less
        if call.body is not None:
            size += len(call.body)
        messages = unread.messages + len(out) // self.batch
        if self._is_full or unread.bytes + size > self.max_bytes or messages >= self.max_messages - 1:
            self._count_refused(messages)
            return False
        unread.bytes += size
        out.append(call)
        if not self.is_marked:
            self._outbox.mark(self)
        return True

    def _count_refused(self, messages: int) -> None:
        reason = "socket" if self._is_full else "messages" if messages >= self.max_messages - 1 else "bytes"
        self.sends_refused += 1
        if self.seat is not None:
            self.seat.sends_refused[reason] += 1

    def tell(self, call: Call) -> bool:
        """Note it for this tick's EVENTS; no answer is awaited."""
        size = size_of(call)
        messages = self._unread.messages + (len(self._out) + len(self._told)) // self.batch
        bytes_left = self.max_bytes - self.max_bytes // 4 - self._unread.bytes
        if self._is_full or size > bytes_left or messages >= self.max_messages - self.max_messages // 4 - 1:
            return False
        self._unread.bytes += size
        self._told_unanswered += 1
        self._told.append((call.call_id + _TOLD, call.deadline_ns, call.event))
        if not self.is_marked:
            self._outbox.mark(self)
        return True

    def cancel(self, call: Call, reason: CancelReason) -> bool:
        """Note it for this tick's CANCEL, unless the agent has never seen it."""
        if call in self._out:
            self._unread.bytes -= size_of(call)
            self._out.remove(call)
            return True
        self._unanswered.add(call.call_id)
        self._cancels.append((call.call_id, reason.word))
        if not self.is_marked:
            self._outbox.mark(self)
        return True

    def drained(self) -> None:
        """The lane has nothing left for it; BYE leaves with this tick."""
        if self.wire.state is State.DRAINING:
            self.is_drained = True
            if not self.is_marked:
                self._outbox.mark(self)

    def begin_drain(self, deadline_ns: int) -> None:
        """Say DRAIN; BYE follows when nothing is left, at the deadline at the latest."""
        now = self._outbox.clock()
        self.flush(now)  # what it was asked before, before DRAIN
        if self.wire.state in _WELCOMED:
            self.wire.feed(Event.DRAIN, now)
            self._outbox.transmit(self, pack(Drain(deadline_ms=max(0, (deadline_ns - now) // MS))))
            self._drain_until(deadline_ns)

    def close(self, reason: str) -> None:
        """End it now."""
        self._outbox.drop(self, reason)

    # --- for the transport ------------------------------------------------------------------------

    def introduce(self, hello: Hello, seat: Seat) -> None:
        """It may become an instance of this agent."""
        self.hello = hello
        self.seat = seat
        self.name = hello.instance
        self.limit = hello.calls
        self.batch = hello.batch
        self.take_bounds()

    def remember(self, ended_calls: int) -> None:
        """So many ended calls from now on, and an eighth of it of answered ones: only duplicates ask for these."""
        self._unanswered.limit = ended_calls
        if self._answered.maxlen != max(1, ended_calls // 8):
            self._answered = deque(self._answered, max(1, ended_calls // 8))

    def take_bounds(self) -> None:
        """What the configuration says that it may leave unread."""
        if self.seat is not None:
            self.max_bytes = self.seat.settings.max_outstanding_bytes
            self.max_messages = self.seat.hwm
        self.max_body_bytes = min(self.hello.body_bytes, HOP_BODY_MAX_BYTES, self.max_bytes // 2)
        if self.wire.state in _WELCOMED:  # whoever has a secret to prove yet gets no room for long messages
            connection = self.peer.connection
            connection.max_unsent = self.max_bytes + AGENT_CONTROL_MAX_BYTES
            connection.limit(AGENT_MAX_MESSAGE_BYTES, AGENT_MAX_FRAMES)

    def pause(self, *, is_asked: bool | None = None) -> None:
        """Work out `is_paused` anew; `is_asked` by PAUSE or RESUME."""
        if is_asked is not None:
            self.has_asked_pause = is_asked
        self.is_paused = self.has_asked_pause or self.wire.state is State.RECONFIGURING
        if self.is_live and not self.is_paused:
            assert self.seat is not None
            self.seat.lane.woken()

    def agent_drains(self, drain: Drain, now: int) -> None:
        """The agent said DRAIN."""
        self.wire.feed(Event.AGENT_DRAINS, now)
        wait_ms = DRAIN_DEADLINE_MS if drain.deadline_ms is None else drain.deadline_ms
        self._drain_until(now + wait_ms * MS)

    def _drain_until(self, deadline_ns: int) -> None:
        self.drain_deadline_ns = deadline_ns
        self.is_draining = True
        if not self.calls and not self.pins:
            self.drained()

    def flush(self, now: int) -> None:
        """Send what this tick has noted."""
        self.is_marked = False
        if self._out or self._told:
            self._flush_events(now)
        if self._cancels:
            cancels, self._cancels = self._cancels, []
            if self.wire.state in MAY_HAVE_CALLS:
                self._transmit(pack(Cancel(cancels)), 0, now)
        if self.is_drained and self.wire.state is State.DRAINING:
            self._outbox.finish(self)

    def _flush_events(self, now: int) -> None:
        out, self._out = self._out, []
        told, self._told = self._told, []
        for batch in batches(out, told, self.batch, now):
            self._send_batch(batch, now)

    def _send_batch(self, batch: Batch, now: int) -> None:
        size = batch.size
        if size > EVENTS_MAX_BYTES:
            self._take_back(batch, Outcome.BODY_TOO_LARGE, "its event fits no message")
            return
        is_over = self.wire.state not in MAY_HAVE_CALLS  # what is left needs no answer
        if is_over or self._is_full or not self._transmit(pack_events(batch.rows, batch.bodies), size, now):
            self._is_full = True  # until the next look
            self._take_back(batch, Outcome.QUEUE_FULL, "its socket is full")
            return
        self.events_sent += len(batch.rows)
        if batch.bodies:
            for call in batch.calls:
                call.body = None  # the connection has it

    def _take_back(self, batch: Batch, outcome: Outcome, message: str) -> None:
        """Not sent after all."""
        self._unread.bytes -= batch.size
        if batch.told_count and self.seat is not None:
            self.seat.lane.ledger.completions_sent -= batch.told_count
            self.seat.lane.ledger.completions_dropped += batch.told_count
        for call in batch.calls:
            if call.state is _SENT:
                self._lane_failed(call, outcome, message)

    def _transmit(self, frames: Sequence[Any], size: int, now: int) -> bool:
        if not self._outbox.transmit(self, frames):
            return False
        self._unread.left(size, now)
        return True

    def _lane_failed(self, call: Call, outcome: Outcome, message: str) -> None:
        assert self.seat is not None
        self.seat.lane.failed(call, outcome, message)

    def take_verdicts(self, frames: Sequence[Any], now: int) -> str:
        """VERDICTS: `frames` from the JSON on. What is wrong with it, "" if nothing is."""
        seat = self.seat
        assert seat is not None
        self.was_useful = False
        wrong = ""
        bodies: Sequence[Any] = ()
        try:
            if len(frames) > 1:
                check_size(frames)
                bodies = frames[1:]
            elif not frames:
                raise WireError("VERDICTS: wants a frame of JSON")
            entries = unpack_verdicts(frames[0])
        except WireError as error:
            try:
                check_size(frames)
                entries, bad, lost = salvage_verdicts(frames[0] if frames else b"")
            except WireError:
                return str(error)
            for call_id in bad:
                if not self._answer(call_id, Screened(malformed=str(error))):
                    lost += 1
            if lost:
                wrong = f"VERDICTS: {lost} entries belong to no call"
        if len(entries) > len(self.calls) + VERDICTS_MAX_ENTRIES:
            return f"VERDICTS: {len(entries)} entries, more than calls"
        calls, lane, read, remember = self.calls, seat.lane, seat.reader.read, self._answered.append
        plain = seat.reader.plain
        used: set[int] | None = None
        sent_ns = 0
        for entry in entries:
            call = calls.get(entry.call)
            if call is None:
                wrong = self._stray(entry.call) or wrong
                continue
            sent_ns = call.sent_ns
            remember(entry.call)
            if entry.n is None:
                screened = plain.get(bytes(entry.verdict)) if call.question is HEAD else None
                lane.answered(call, screened or read(entry.verdict, call.question), now)
            else:
                used = set() if used is None else used
                lane.answered(call, self._with_body(entry, call, bodies, used), now)
        self.verdicts_taken += len(entries)
        if sent_ns:
            self.was_useful = True
            self.owes = 0
            self._unread.answered(sent_ns)
        return wrong

    def _answer(self, call_id: str, screened: Screened) -> bool:
        """False: no call of this session's."""
        call = self.calls.get(call_id)
        if call is None:
            return not self._stray(call_id)
        self._answered.append(call_id)
        assert self.seat is not None
        self.seat.lane.answered(call, screened)
        return True

    def _with_body(self, entry: VerdictEntry, call: Call, bodies: Sequence[Any], used: set[int]) -> Screened:
        assert self.seat is not None
        n = entry.n
        if n is None or not 0 <= n < len(bodies):
            return Screened(malformed=f"names body frame {n}, the message has {len(bodies)}")
        if n in used:
            return Screened(malformed=f"names body frame {n}, which another verdict has")
        used.add(n)
        body = bodies[n]
        self.seat.lane.ledger.body_bytes_received += len(body)
        return self.seat.reader.read(entry.verdict, call.question, body)

    def _stray(self, call_id: str) -> str:
        """A verdict for no call in flight: late if it was sent here once, else garbage (what is wrong)."""
        assert self.seat is not None
        if self._told_unanswered and call_id.endswith(_TOLD):
            self._told_unanswered -= 1
            self.was_useful = True  # not asked for, and ignored
            return ""
        if self._unanswered.take(call_id):
            self._answered.append(call_id)
            self.was_useful = True  # late is no fault, and there are only as many as calls were sent
            self.owes -= self.owes > 1  # a sign of life, which is not yet an answer in time
            self.seat.lane.late_verdict()
            return ""
        if call_id in self._answered:
            self.seat.lane.late_verdict()
            return ""
        self.strays += 1
        return f"VERDICTS: call {call_id[:40]!r} was never sent to this session"

    # --- what was read ----------------------------------------------------------------------------

    def pong(self, frames: Sequence[bytes]) -> None:
        """The answer to a `ping`; another's is only a sign of life."""
        self._is_probing = False
        self.owes -= self.owes > 1
        if len(frames) == 1 and len(frames[0]) <= 16 and frames[0].isdigit():
            self._unread.echoed(int(frames[0]))

    def ping(self) -> list[bytes]:
        """PING with the number of the last message; whoever echoes it has read that."""
        return pack(Ping((b"%d" % self._unread.number,)))

    def look(self, now: int) -> bool:
        """Every AGENT_LOOK_MS: try a full socket again; True = ask for a PONG to see what was read."""
        self._is_full = False
        if self.drain_deadline_ns and now >= self.drain_deadline_ns:
            self.drained()
        if self._is_probing or (
            self._unread.bytes < self.max_bytes // 2 and self._unread.messages < self.max_messages // 2
        ):
            return False
        self._is_probing = True
        return True

    @property
    def unread_bytes(self) -> int:
        """Sent, and not shown to be read."""
        return self._unread.bytes

    @property
    def unread_messages(self) -> int:
        """Messages sent, and not shown to be read."""
        return self._unread.messages

    def snapshot(self, now: int) -> dict[str, Any]:
        """For the admin API."""
        return {
            "agent": self.seat.name if self.seat is not None else "",
            "instance": self.name,
            "session": self.session_id,
            "transport": "zmq-v2",
            "state": self.wire.state.value,
            "uid": self.peer.uid,
            "pid": self.peer.pid,
            "version": self.hello.version or "",
            "events": list(self.hello.events),
            "in_flight": len(self.calls),
            "limit": self.limit,
            "max_batch": self.batch,
            "pinned": self.pins,
            "is_paused": self.is_paused,
            "is_draining": self.is_draining,
            "health": self.health,
            "health_message": self.health_message,
            "load": self.load,
            "unread_bytes": self._unread.bytes,
            "since_ms": (now - self.wire.since_ns) // MS,
            "last_seen_ms": (now - self.wire.last_seen_ns) // MS,
            "events_sent": self.events_sent,
            "verdicts": self.verdicts_taken,
            "malformed": self.malformed,
            "strays": self.strays,
        }
