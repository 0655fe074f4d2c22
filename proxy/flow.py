"""One direction of an exchange's body, from its source past the agents to the other side.

    source --take, end--> [decoder] --> stage --> stage --> sink --> exchange (whole, or piece by piece)

Built only where somebody wants to see the body. A flow knows what all stages share: the questions that
are out, whether the exchange is over, how much waits for a decision (back-pressure), and what a content
coding means: agents see decoded bytes, the other side gets the coded ones as they came unless an agent
changed something, then the whole body goes decoded. Coded bytes go on when everything that they decode
to was let through.

What is shown, held and changed stands in proxy/chunks.py, when heads go in proxy/exchange.py.

Kind: IO (questions go through dispatch; no socket here).
"""

from collections import deque
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from proxy.chunks import ChunkStage, Stage
from proxy.coding import Decoder, decoder
from proxy.plan_view import PlanView
from shared.clock import now_ns
from shared.decision import Decision, Outcome
from shared.defaults import BODY_CHUNK_BYTES
from shared.errors import CodingBroken, CodingTooLarge
from shared.events import EventKind
from shared.metrics import W_BODY_TOO_LARGE

if TYPE_CHECKING:
    from proxy.app import RouteRuntime
    from proxy.bodies import Bodies


class Asker(Protocol):
    """Who asked: a stage, or one question of a stage."""

    def decided(self, decision: Decision) -> None:
        """The answer to what `Flow.ask` said None to."""


class _Ticket:
    """One question that is out."""

    __slots__ = ("asker", "event_id", "exchange_id", "flow", "view")

    def __init__(self, flow: "Flow", asker: Asker, view: PlanView) -> None:
        self.flow = flow
        self.asker = asker
        self.view = view
        self.exchange_id = flow.exchange_id
        self.event_id = 0

    def decided(self, decision: Decision) -> None:
        flow = self.flow
        flow.tickets.discard(self)
        if flow.is_over:
            return
        flow.count(self.view, decision)
        self.asker.decided(decision)
        flow.pass_on()


class _Sink(Stage):
    """Behind the last stage: what was let through, until the flow passes it on."""

    __slots__ = ()

    def take(self, data: bytes) -> None:
        self.flow.let_through(data)

    def end(self) -> None:
        self.flow.let_through_end()


class Flow:
    """The body of one direction. `is_enforcing`: somebody decides; else it is only shown as it passes."""

    __slots__ = (
        "_coded",
        "_coded_bytes",
        "_decoded",
        "_decoder",
        "_driver",
        "_first",
        "_is_full",
        "_is_started",
        "_kept",
        "_out",
        "_passed",
        "_stages",
        "_waiting",
        "charset",
        "content_type",
        "correlation_id",
        "exchange_id",
        "has_passed_coded",
        "is_edited",
        "is_ended",
        "is_enforcing",
        "is_over",
        "is_plain",
        "is_request",
        "is_whole",
        "route",
        "tickets",
    )

    def __init__(
        self,
        driver: "Bodies",
        views: Sequence[PlanView],
        *,
        is_request: bool,
        is_whole: bool,
        total: int,
        content_type: bytes = b"",
        charset: bytes = b"",
        codings: bytes = b"",
        max_bytes: int = 0,
    ) -> None:
        """`total`: Content-Length, -1 = not told; `codings`: Content-Encoding where it is to be decoded.

        Raises CodingUnknown.
        """
        self._driver = driver
        self.route: RouteRuntime = driver.route
        self.exchange_id = driver.exchange_id
        self.correlation_id = driver.correlation_id
        self.content_type = content_type
        self.charset = charset
        self.is_request = is_request
        self.is_enforcing = any(view.enforcing for view in views)
        self.is_whole = is_whole and self.is_enforcing
        self.is_over = False
        self.is_edited = False
        self.is_ended = False  # all of it was let through
        self._is_started = False
        self._is_full = False
        self._waiting = 0
        self.tickets: set[_Ticket] = set()
        self._decoder: Decoder | None = decoder(codings, max_bytes) if codings else None
        self.is_plain = self._decoder is None  # bytes go on as agents saw them
        self.has_passed_coded = False
        self._coded: deque[tuple[int, bytes]] = deque()  # (decoded bytes up to here, coded bytes)
        self._decoded = self._passed = self._coded_bytes = 0
        self._kept: list[bytes] = []  # decoded and let through, while nothing coded has gone
        self._out: list[bytes] = []
        known = total if self._decoder is None else -1
        # Behind the first stage the body may have another length: whoever was before may have changed it.
        lengths = [known, *[-1] * len(views)][: len(views)]
        self._stages: list[Stage] = [
            ChunkStage(self, view, self.is_whole, length) for view, length in zip(views, lengths, strict=True)
        ]
        self._first = self._chain()

    def _chain(self) -> Stage:
        first: Stage = _Sink(self)
        for stage in reversed(self._stages):
            stage.next = first
            first = stage
        return first

    def add_stage(self, stage: Stage, *, is_enforcing: bool = True) -> None:
        """One more, behind those that are there; before the first byte. `is_enforcing`: it decides."""
        self._stages.append(stage)
        self.is_enforcing = self.is_enforcing or is_enforcing
        self._first = self._chain()

    def leave_out(self, agents: Collection[str]) -> None:
        """These are shown nothing of it."""
        for stage in self._stages:
            if isinstance(stage, ChunkStage):
                stage.leave_out(agents)

    # --- the source -------------------------------------------------------------------------------

    def start(self) -> None:
        """The head was allowed: agents may be asked."""
        self._is_started = True
        for stage in self._stages:
            if not self.is_over:
                stage.start()
        self.settle()

    def take(self, data: bytes) -> None:
        """Bytes of the body, never empty."""
        if self.is_over:
            return
        if self._decoder is None:
            self._first.take(data)
            return
        try:
            plain = self._decoder.feed(data)
        except (CodingBroken, CodingTooLarge) as error:
            self._driver.coding_failed(self, error)
            return
        self._keep_coded(len(plain), data)
        if plain and not self.is_over:
            self._first.take(plain)

    def end(self) -> None:
        """The source has no more."""
        if self.is_over:
            return
        if self._decoder is not None:
            try:
                rest = self._decoder.finish()
            except (CodingBroken, CodingTooLarge) as error:
                self._driver.coding_failed(self, error)
                return
            if rest:
                self._keep_coded(len(rest), b"")
                self._first.take(rest)
        self._first.end()

    def _keep_coded(self, size: int, data: bytes) -> None:
        """Until so many decoded bytes more were let through; not where the decoded ones go on in their place."""
        if self.is_plain:
            return
        self._decoded += size
        self._coded.append((self._decoded, data))
        self._coded_bytes += len(data)
        # Pressure and limits count decoded bytes: what decodes to next to nothing must not pile up beside them.
        if self._coded_bytes > 2 * (self._decoded - self._passed) + BODY_CHUNK_BYTES:
            self._driver.coding_failed(self, CodingTooLarge("is far longer than what it decodes to"))

    def settle(self) -> None:
        """A read is over: ask about what it brought."""
        if self._is_started and not self.is_over:
            self._first.settle()
            self.pass_on()

    def close(self) -> bool:
        """The exchange is over; True = questions were out, and are forgotten."""
        self.is_over = True
        tickets, self.tickets = self.tickets, set()
        for ticket in tickets:
            self._driver.protocol.context.dispatch.forget(ticket.view, ticket.event_id)
        return bool(tickets)

    # --- for stages -------------------------------------------------------------------------------

    @property
    def client_ip(self) -> str:
        """Who asked."""
        return self._driver.client_ip

    @property
    def method(self) -> bytes:
        """The request's."""
        return self._driver.head.method

    def account(
        self,
        what: str,
        reason: str,
        agent: str,
        *,
        guardrail: dict[str, Any] | None = None,
        tokens: dict[str, Any] | None = None,
    ) -> None:
        """Something for the audit that ends nothing."""
        self._driver.account_text(what, reason, agent, guardrail=guardrail, tokens=tokens)

    def ask(
        self,
        asker: Asker,
        view: PlanView,
        event: bytes,
        body: bytes = b"",
        index: int = 0,
        is_last: bool = False,
        mask: int | None = None,
    ) -> Decision | None:
        """Show an event to the view's agents; None = `asker.decided` will be called, else the decision."""
        ticket = _Ticket(self, asker, view)
        dispatch = self._driver.protocol.context.dispatch
        mask = view.mask if mask is None else mask
        if self._driver.connects != dispatch.connects:
            if self._driver.connects:  # agentd has restarted: whoever it would ask now has not seen what came before
                return dispatch.failed(view, mask, Outcome.DISCONNECTED)
            self._driver.connects = dispatch.connects
        self._driver.was_shown = True
        said = dispatch.send_body(ticket, view, mask, event, body, index, is_last, now_ns())
        if isinstance(said, Decision):
            self.count(view, said)
            return said
        ticket.event_id = said
        self.tickets.add(ticket)
        return None

    def count(self, view: PlanView, decision: Decision) -> None:
        """One decision more of the route."""
        self.route.tally[view.verdicts_at + decision.verb] += 1

    def count_too_large(self, view: PlanView, agent: str, *, is_passed_on: bool) -> None:
        """The body is too long for this agent; `is_passed_on`: it goes on without it, else a refusal follows."""
        self._driver.protocol.context.cells[W_BODY_TOO_LARGE] += 1
        if is_passed_on:
            self._driver.note_passed_on(view.kind, agent)

    def refuse(self, decision: Decision, kind: EventKind) -> None:
        """The exchange ends with this decision: answered if nothing went to the client yet, else broken off."""
        if not self.is_over:
            self.is_over = True
            self._driver.flow_refused(decision, kind)

    def add_ops(self, decision: Decision) -> None:
        """Header operations beside an allow act while the head they are for is still here."""
        if decision.request_ops or decision.response_ops:
            self._driver.add_ops(decision)

    def edited(self, agent: str) -> bool:
        """Before other bytes than came are put out; False = too late, coded bytes have gone already."""
        if not self.is_plain:
            if self.has_passed_coded:
                return False
            self.is_plain = True
            self._out += self._kept
            self._kept.clear()
            self._coded.clear()
        self.is_edited = True
        return True

    def pressure(self, delta_bytes: int) -> None:
        """So many bytes more, or less, wait for a decision; too many stop the source."""
        self._waiting += delta_bytes
        if not self._is_full:
            if self._waiting > self.chunk_bytes():
                self._is_full = True
                self._driver.hold_source(self)
        elif self._waiting <= self.chunk_bytes() // 2:
            self._is_full = False
            self._driver.release_source(self)

    def has_room(self, size: int) -> bool:
        """Whether observers may be shown so much more; if not it is counted."""
        return self._driver.protocol.context.dispatch.has_room(size)

    def chunk_bytes(self) -> int:
        """How much may be shown at a time now, and how much may wait for its turn."""
        return self._driver.protocol.context.dispatch.chunk_bytes

    # --- what was let through ---------------------------------------------------------------------

    def let_through(self, data: bytes) -> None:
        """From the last stage."""
        if self.is_plain:
            self._out.append(data)
            return
        self._passed += len(data)
        if not self.has_passed_coded:
            self._kept.append(data)
        coded = self._coded
        while coded and coded[0][0] <= self._passed:
            self._pass_coded(coded.popleft()[1])

    def let_through_end(self) -> None:
        """From the last stage: that was all."""
        self.is_ended = True
        if not self.is_plain:
            while self._coded:
                self._pass_coded(self._coded.popleft()[1])

    def _pass_coded(self, data: bytes) -> None:
        self.has_passed_coded = True
        self._kept.clear()
        self._coded_bytes -= len(data)
        if data:
            self._out.append(data)

    def pass_on(self) -> None:
        """Give the exchange what has been let through."""
        if self.is_over or not (self._out or self.is_ended):
            return
        out, self._out = self._out, []
        if self.is_ended:
            self.is_over = True
        self._driver.let_through(self, out, self.is_ended)

    def length(self, out: Sequence[bytes]) -> int:
        """Of the body that goes on, where that is known now, else -1."""
        return sum(map(len, out)) if self.is_ended else -1
