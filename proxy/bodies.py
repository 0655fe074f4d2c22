"""The part of a driver that lets agents see bodies: when flows are made, and what they do to the exchange.

Between `proxy/exchange.py` (order) and `proxy/driver.py` (everything else an exchange touches). A flow is
made only where some agent wants to see the body; without one nothing here runs but an `is None`. What is
shown and held is decided in proxy/chunks.py, what a coding means in proxy/flow.py, heads are built in
proxy/apply.py from what stands here.

Kind: IO.
"""

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from proxy.exchange import ROWS
from proxy.exchange_commands import Exchange
from proxy.exchange_states import (
    BODY,
    BODY_ASKED,
    BODY_END,
    BROKEN,
    DATA,
    END,
    FAILED,
    REFUSED,
    RELAYING,
    RELEASED,
    RESPONSE_BODY_ASKED,
    WAITING,
)
from proxy.flow import Flow
from proxy.head import Field, Head
from proxy.upstream.response import ResponseHead, end_to_end
from shared.decision import Decision
from shared.errors import CodingTooLarge, CodingUnknown, RequestRefused, UpstreamFailed
from shared.events import EventKind

if TYPE_CHECKING:
    from proxy.app import RouteRuntime
    from proxy.plan_view import PlanView
    from proxy.protocol import ProxyProtocol
    from proxy.upstream.connection import UpstreamConnection

_LENGTH = frozenset((b"content-length",))
_CODING = frozenset((b"content-encoding",))
# What a body of its own bytes no longer fits (RFC 9530, RFC 3230, RFC 1864, RFC 9110 8.8.3 and 14.3).
_DIGESTS = frozenset((b"digest", b"content-digest", b"repr-digest", b"content-md5"))
_VALIDATORS = _DIGESTS | {b"etag", b"accept-ranges"}
# A part of a response cannot be judged like the whole: agents that decide on bodies see all of it.
_RANGES = frozenset((b"range", b"if-range"))
_ACCEPT_CODING = frozenset((b"accept-encoding",))
_CHARSET = re.compile(rb"charset\s*=\s*\"?([^\s;,\"]*)", re.I)
_CHUNKED = b"transfer-encoding: chunked\r\n"


class Bodies(Exchange):
    """An exchange whose bodies agents may see."""

    __slots__ = (
        "client_ip",
        "correlation_id",
        "exchange_id",
        "head",
        "protocol",
        "route",
        "sent",
        "upstream",
        "was_shown",
    )

    protocol: "ProxyProtocol"
    head: Head
    route: "RouteRuntime"
    upstream: "UpstreamConnection | None"
    client_ip: str
    correlation_id: bytes
    exchange_id: int
    was_shown: bool  # agentd may hold a pin for us
    connects = 0  # dispatch's, when it was: another agentd knows nothing of the exchange
    sent: int  # body bytes to the client
    received = 0  # and from it
    request_flow: Flow | None = None
    response_flow: Flow | None = None
    is_chunked_up = False
    decided_in: EventKind | None = None  # the phase that a body's refusal came from
    known_length = -1  # of the body that goes on, where that is known when its head goes
    _agents_are_full = False

    # --- the request's body -----------------------------------------------------------------------

    def open_request_flow(self) -> None:
        """Where agents want to see it. Raises RequestRefused for a coding that they could not look into."""
        route, head = self.route, self.head
        rails = route.rails
        inspects = rails is not None and bool(rails.prompt)
        views = [view for view in route.request_body_views if view.mask]
        if not views and not inspects:
            return
        is_enforcing = inspects or any(view.enforcing for view in views)
        codings = _values(head.fields, b"content-encoding") if route.decodes or inspects else b""
        try:
            flow = Flow(
                self,
                views,
                is_request=True,
                is_whole=route.request_is_whole,
                total=-1 if head.content_length is None else head.content_length,
                content_type=_media_type(_values(head.fields, b"content-type")),
                charset=_charset(_values(head.fields, b"content-type")),
                codings=codings,
                max_bytes=self.protocol.context.limits.max_body_bytes,
            )
        except CodingUnknown as error:
            if is_enforcing:
                raise RequestRefused(415, str(error)) from None
            return
        self.request_flow = flow
        if rails is not None:
            for stage in rails.prompt_stages(flow):
                flow.add_stage(stage)
        self.holds_head = flow.is_enforcing and (flow.is_whole or not flow.is_plain or inspects)

    def client_body(self, data: bytes) -> None:
        """Bytes of the request's body."""
        self.received += len(data)
        flow = self.request_flow
        if flow is None:
            ROWS[self.state][BODY](self, data)
            return
        if self.upstream is not None:
            self.upstream.marked_ns = 0  # its request is on its way, however long agents keep it (needs_more)
        flow.take(data)
        if not flow.is_enforcing:
            ROWS[self.state][BODY](self, data)

    def client_body_end(self) -> None:
        """The request is complete."""
        flow = self.request_flow
        if flow is None:
            ROWS[self.state][BODY_END](self, None)
            return
        self.is_request_ended = True
        flow.end()
        if not flow.is_enforcing:
            ROWS[self.state][BODY_END](self, None)

    def begin_body(self) -> None:
        if self.request_flow is not None:
            self.request_flow.start()

    def request_fields(self) -> tuple[list[Field] | None, bytes]:
        """(fields instead of the kept ones, framing lines): what agents that see bodies make of the head."""
        flow, head = self.request_flow, self.head
        drop: frozenset[bytes] = frozenset()
        framing = _CHUNKED if head.is_chunked else b""
        if flow is not None and flow.is_enforcing:
            drop = _LENGTH
            if self.is_body_ended:
                self.is_chunked_up = False
                framing = b"content-length: %d\r\n" % sum(map(len, self.held or ()))
            else:
                self.is_chunked_up = True
                framing = _CHUNKED
            if flow.is_edited or not self.is_body_ended:
                drop |= _DIGESTS
            if self.route.decodes_requests and flow.is_plain:
                drop |= _CODING
        if self.route.judges_responses or any(view.enforcing for view in self.route.response_body_views):
            drop |= _RANGES
            if self.route.decodes_responses:
                drop |= _ACCEPT_CODING
                framing += b"accept-encoding: identity\r\n"
        return (without(head.kept, drop) if drop else None), framing

    # --- the response's body ----------------------------------------------------------------------

    def open_response_flow(self, response: ResponseHead) -> bool:
        """Where agents want to see it; False = nobody does. Raises UpstreamFailed for an unknown coding."""
        route = self.route
        rails = route.rails
        inspects = rails is not None and bool(rails.completion)
        views = [view for view in route.response_body_views if view.mask]
        if not (views or rails is not None) or not response.has_body:
            return False
        headers = response.headers
        content_type = _media_type(_values(headers, b"content-type"))
        codings = _values(headers, b"content-encoding") if route.decodes_responses else b""
        is_enforcing = inspects or any(view.enforcing for view in views)
        try:
            flow = Flow(
                self,
                views,
                is_request=False,
                is_whole=route.response_is_whole,
                total=-1 if response.content_length is None else response.content_length,
                content_type=content_type,
                charset=_charset(_values(headers, b"content-type")),
                codings=codings,
            )
        except CodingUnknown as error:
            if is_enforcing:
                raise UpstreamFailed(502, "unknown_coding", str(error)) from None
            return False
        self.response_flow = flow
        if rails is not None:
            flow.add_stage(rails.meter(flow), is_enforcing=False)
            for stage in rails.completion_stages(flow):
                flow.add_stage(stage)
        # The head of an event stream goes at once: its reader waits for it, the first event may take its time.
        # (Where a guardrail inspects it, it goes with the first event without text: there may be a proper refusal.)
        is_stream = content_type == b"text/event-stream" and flow.is_plain and not flow.is_whole and not inspects
        self.holds_response_head = flow.is_enforcing and not is_stream
        return True

    def begin_response_body(self) -> None:
        if self.response_flow is not None:
            self.response_flow.start()

    def response_fields(self, response: ResponseHead) -> list[Field]:
        """The fields for the client where agents that decide have seen the body; framing is written anew."""
        flow = self.response_flow
        assert flow is not None
        drop = _LENGTH
        if flow.is_edited or self.known_length < 0:
            drop |= _VALIDATORS
        if self.route.decodes_responses and flow.is_plain:
            drop |= _CODING
        return without(end_to_end(response.headers), drop)

    def skip_bodies(self, view: "PlanView", mask: int) -> None:
        """skip_body beside a head: these agents want to see nothing of its body."""
        flow = self.request_flow if view.kind is EventKind.REQUEST_HEADERS else self.response_flow
        if flow is not None:
            flow.leave_out({ask.agent for place, ask in enumerate(view.plan.asks) if mask >> place & 1})

    # --- from flows -------------------------------------------------------------------------------

    def let_through(self, flow: Flow, out: Sequence[bytes], is_all: bool) -> None:
        """The flow's agents let these bytes pass."""
        if not flow.is_enforcing:
            return
        if flow.is_request:
            if self.state is BODY_ASKED:
                ROWS[BODY_ASKED][RELEASED](self, (list(out), is_all))
                return
            for data in out:
                ROWS[self.state][BODY](self, data)
            if is_all:
                ROWS[self.state][BODY_END](self, None)
            return
        if self.state is RESPONSE_BODY_ASKED:
            self.known_length = flow.length(out)
            ROWS[RESPONSE_BODY_ASKED][RELEASED](self, (out, is_all))
        else:
            for data in out:
                ROWS[self.state][DATA](self, data)
            if is_all:
                ROWS[self.state][END](self, None)
        self.flush_response()

    def flow_refused(self, decision: Decision, kind: EventKind) -> None:
        """A decision on a body is no allow."""
        self.decided_in = kind
        ROWS[self.state][REFUSED](self, decision)

    def coding_failed(self, flow: Flow, error: Exception) -> None:
        """The body is not what its Content-Encoding says, or is a bomb."""
        flow.is_over = True
        if not flow.is_enforcing:
            return
        if flow.is_request:
            status = 413 if isinstance(error, CodingTooLarge) else 400
            ROWS[self.state][BROKEN](self, RequestRefused(status, str(error)))
            return
        if not self.is_response_ended and self.upstream is not None:
            self.upstream.abort()
            self.upstream = None
        self.is_response_ended = True
        ROWS[self.state][FAILED](self, UpstreamFailed(502, "bad_coding", str(error)))

    def add_ops(self, decision: Decision) -> None:
        """Header operations beside an allowed chunk, as long as their head is still here."""
        if self.state <= WAITING:
            self.request_ops += decision.request_ops
        if self.state < RELAYING:
            self.response_ops += decision.response_ops

    def hold_source(self, flow: Flow) -> None:
        """Too much waits for agents: read no more of it."""
        if flow.is_request:
            self.protocol.hold_for_agents()
            return
        self._agents_are_full = True
        if self.upstream is not None:
            self.upstream.pause_reading()

    def release_source(self, flow: Flow) -> None:
        """They have caught up."""
        if flow.is_request:
            self.protocol.release_for_agents()
            return
        self._agents_are_full = False
        self.read_upstream()

    def read_upstream(self) -> None:
        """Read on from the upstream unless something speaks against it."""
        raise NotImplementedError

    def flush_response(self) -> None:
        """Write what there is for the client."""
        raise NotImplementedError

    def account_text(
        self,
        what: str,
        reason: str,
        agent: str,
        *,
        guardrail: dict[str, Any] | None = None,
        tokens: dict[str, Any] | None = None,
    ) -> None:
        """What a guardrail found, or what a model took: into the audit."""
        raise NotImplementedError

    def note_passed_on(self, kind: EventKind, agent: str) -> None:
        """The body is too long for an agent, and goes on without it."""
        raise NotImplementedError


def without(fields: Iterable[Field], names: frozenset[bytes]) -> list[Field]:
    """The fields but those of these (lower-case) names."""
    return [field for field in fields if field[0].lower() not in names]


def _values(fields: Iterable[Field], name: bytes) -> bytes:
    return b",".join([value for key, value in fields if len(key) == len(name) and key.lower() == name])


def _media_type(value: bytes) -> bytes:
    return value.partition(b";")[0].strip().lower()


def _charset(value: bytes) -> bytes:
    """What the parameters say, b"" = nothing; of several all, which is the name of none."""
    return b",".join(_CHARSET.findall(value)).lower()
