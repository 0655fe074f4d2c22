"""A body on its way past the agents of one plan: what is shown when, what is held, what goes on.

    bytes --take--> incoming --(one question at a time)--> shown --decided--> held? --> next stage

One plan is one stage: all agents of a parallel chain, or one of a sequential one. Semantics 5 and 13: no
byte goes on before those who decide have seen it; needs_more keeps it here until that agent says
otherwise, and what it then says acts on everything kept for it; agents' limits count the whole body.

Here is no framing, no coding and no head; questions and the end of the exchange are the flow's.

Kind: pure.
"""

from collections import deque
from collections.abc import Collection
from typing import TYPE_CHECKING, Final

from proxy.plan_view import PlanView
from shared.decision import ChunkAction, ChunkVerdict, Decision, Outcome, Verb, on_failure
from shared.defaults import BODY_CHUNK_BYTES, HOP_BODY_MAX_BYTES
from shared.events import EventKind
from shared.wire.messages import request_body_chunk_event, response_body_chunk_event

if TYPE_CHECKING:
    from proxy.flow import Flow

_ALLOW: Final = Verb.ALLOW


class Stage:
    """One step of a body: takes bytes in order, gives what may pass to `next`."""

    __slots__ = ("flow", "next")

    next: "Stage"

    def __init__(self, flow: "Flow") -> None:
        self.flow = flow

    def start(self) -> None:
        """The head was allowed. Nothing that is already known may stand against the body."""

    def take(self, data: bytes) -> None:
        """The next bytes, never empty."""
        raise NotImplementedError

    def end(self) -> None:
        """There are no more."""
        raise NotImplementedError

    def settle(self) -> None:
        """A read is over: what was taken may be shown to agents now. Not called before `start`."""


class _Piece:
    """Bytes that are kept here, and whether an agent changed them."""

    __slots__ = ("data", "is_edited")

    def __init__(self, data: bytes, is_edited: bool = False) -> None:
        self.data = data
        self.is_edited = is_edited


class ChunkStage(Stage):
    """The agents of one plan. `is_whole`: they see the body at once; `total`: its length, -1 = not told."""

    __slots__ = (
        "_asks",
        "_deciders",
        "_event",
        "_held",
        "_incoming",
        "_index",
        "_is_asking",
        "_is_done",
        "_is_ended",
        "_is_last",
        "_is_whole",
        "_least_limit",
        "_left_out",
        "_seen",
        "_shown",
        "_since",
        "_total",
        "_waiting",
        "view",
    )

    def __init__(self, flow: "Flow", view: PlanView, is_whole: bool, total: int) -> None:
        super().__init__(flow)
        self.view = view
        is_request = view.kind is EventKind.REQUEST_BODY_CHUNK
        self._event = request_body_chunk_event if is_request else response_body_chunk_event
        self._total = total
        # Settled when the body begins: a HELLO in the middle of it frees nobody from what he was shown, or holds.
        self._asks = view.mask
        self._deciders = view.mask & view.deciders
        self._is_whole = is_whole and bool(self._deciders)
        self._incoming: deque[bytes] = deque()
        self._waiting = 0  # bytes of `_incoming`
        self._seen = 0  # bytes of the body so far, those waiting included
        self._index = 0  # of the next chunk
        self._is_asking = False
        self._shown = b""  # the chunk that is with the agents
        self._is_last = False  # and it is the last one
        self._is_ended = False
        self._is_done = False
        self._least_limit = min([HOP_BODY_MAX_BYTES, *(ask.max_body_bytes for ask in view.plan.asks)])
        self._left_out = 0  # agents that are not asked any more: skip_body, or over their limit
        self._held: list[_Piece] = []
        self._since: dict[int, int] = {}  # agent's place -> first piece that is held for it

    def start(self) -> None:
        if self._total > self._least_limit:
            self._fits(self._total)

    def leave_out(self, agents: Collection[str]) -> None:
        """These are not asked about it."""
        for place, ask in enumerate(self.view.plan.asks):
            if ask.agent in agents:
                self._left_out |= 1 << place
        self._look_who_is_left()

    def take(self, data: bytes) -> None:
        self._seen += len(data)
        if self._seen > self._least_limit and not self._fits(self._seen):
            return
        if len(data) <= BODY_CHUNK_BYTES or self._is_whole:
            self._incoming.append(data)
        else:  # of an agent before this one, or decoded
            self._incoming += [data[at : at + BODY_CHUNK_BYTES] for at in range(0, len(data), BODY_CHUNK_BYTES)]
        self._waiting += len(data)
        if not self._is_whole:
            self.flow.pressure(len(data))

    def end(self) -> None:
        self._is_ended = True

    def settle(self) -> None:
        while not self._is_asking and not self._is_done and not self.flow.is_over:
            if not self._incoming and not self._is_ended:
                return
            if self._is_whole and not self._is_ended:
                return
            self._show(self._asks & ~self._left_out)

    # --- asking -----------------------------------------------------------------------------------

    def _show(self, mask: int) -> None:
        data = self._next_chunk(mask)
        seen = self._seen - self._waiting
        is_last = not self._incoming and (self._is_ended or seen == self._total)
        if not mask & self._deciders:
            if self._held:
                self._let_go(False)  # whoever held it has left
            if mask and not self.flow.has_room(len(data)):
                self._left_out |= mask  # observers that cannot keep up lose the rest (semantics 12)
                mask = 0
        if not mask:
            self._pass(data, is_last)
            return
        self._shown, self._is_last = data, is_last
        index, self._index = self._index, self._index + 1
        flow = self.flow
        event = self._event(flow.correlation_id, index, is_last, self._total, seen)
        self._is_asking = True
        decision = flow.ask(self, self.view, event, data, index, is_last, mask)
        if decision is not None:
            self._is_asking = False
            self._decided(decision)

    def _next_chunk(self, mask: int) -> bytes:
        incoming = self._incoming
        if not incoming:
            return b""
        if self._is_whole:
            data = incoming[0] if len(incoming) == 1 else b"".join(incoming)
            incoming.clear()
        elif not mask or len(incoming) == 1:
            data = incoming.popleft()
        else:
            data = self._some()
        self._waiting -= len(data)
        if not self._is_whole:
            self.flow.pressure(-len(data))
        return data

    def _some(self) -> bytes:
        """What came while the agents were busy, up to a chunk: a question costs more than copying 256 KiB."""
        incoming, room = self._incoming, self.flow.chunk_bytes()
        parts = [incoming.popleft()]
        room -= len(parts[0])
        while incoming and len(incoming[0]) <= room:
            room -= len(incoming[0])
            parts.append(incoming.popleft())
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _fits(self, size: int) -> bool:
        """Whether a body of so many bytes may go on; agents for whom it is too long are left out, or refuse it."""
        for place, ask in enumerate(self.view.plan.asks):
            bit = 1 << place
            most = min(ask.max_body_bytes, HOP_BODY_MAX_BYTES) if self._is_whole else ask.max_body_bytes
            if size <= most or not self._asks & bit or self._left_out & bit:
                continue
            self._left_out |= bit
            refusal = None
            if bit & self._deciders:
                refusal = on_failure(Outcome.BODY_TOO_LARGE, ask.failure_mode, self.view.kind, ask.agent)
            self.flow.count_too_large(self.view, ask.agent, is_passed_on=refusal is None)
            if refusal is not None:
                self.flow.refuse(refusal, self.view.kind)
                return False
        self._look_who_is_left()
        return True

    def _look_who_is_left(self) -> None:
        """Where nobody decides any more there is nothing to collect: what waits passes, or counts as waiting."""
        if self._is_whole and not self._deciders & ~self._left_out:
            self._is_whole = False
            self.flow.pressure(self._waiting)

    # --- decisions --------------------------------------------------------------------------------

    def decided(self, decision: Decision) -> None:
        """From the flow: what the agents say of the chunk that was shown."""
        self._is_asking = False
        self._decided(decision)
        self.settle()

    def _decided(self, decision: Decision) -> None:
        data, self._shown = self._shown, b""
        if decision.verb is not _ALLOW:
            self.flow.refuse(decision, self.view.kind)
            return
        self.flow.add_ops(decision)
        said = decision.chunk
        if said is None and not self._held:
            self._pass(data, self._is_last)
            return
        said = said or _PASSES
        self._held.append(_Piece(data))
        if said.editor >= 0:
            refusal = self._edit(said, decision.body)
            if refusal is not None:
                self.flow.refuse(refusal, self.view.kind)
                return
        self._left_out |= said.skip
        last = len(self._held) - 1
        self._since = {place: self._since.get(place, last) for place in _places(said.hold)}
        if not said.hold:
            self._let_go(self._is_last)

    def _let_go(self, is_last: bool) -> None:
        held, self._held = self._held, []
        self._since.clear()
        self._pass(b"".join([piece.data for piece in held]), is_last)

    def _edit(self, said: ChunkVerdict, replacement: bytes) -> Decision | None:
        """Put an agent's bytes in the place of everything held for it; a refusal if it may not."""
        held = self._held
        first = self._since.get(said.editor, len(held) - 1)
        ask = self.view.plan.asks[said.editor]
        if any(piece.is_edited for piece in held[first:]) or not self.flow.edited(ask.agent):
            # Somebody else has changed one of these bytes already, or it is too late: that agent's Malformed.
            return on_failure(Outcome.MALFORMED, ask.failure_mode, self.view.kind, ask.agent)
        held[first:] = [_Piece(b"" if said.action is ChunkAction.DROP else replacement, is_edited=True)]
        self._since = {place: min(at, first) for place, at in self._since.items()}
        return None

    def _pass(self, data: bytes, is_last: bool) -> None:
        if data:
            self.next.take(data)
        if is_last and not self.flow.is_over:
            self._is_done = True
            self.next.end()
        self.next.settle()


def _places(mask: int) -> list[int]:
    return [place for place in range(mask.bit_length()) if mask >> place & 1]


_PASSES: Final = ChunkVerdict()
