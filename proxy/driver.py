"""Carries out what the exchange wants: one request between client, agents and upstream.

The IO side of `proxy/exchange.py`: it is the exchange (a subclass that implements the commands), the
sink of its upstream connection and the waiter for its decisions. Plain callbacks, no task, future or
timer. What is decided stands elsewhere: heads in `apply`, forwarding in `forwarded`, order in `exchange`.

Kind: IO.
"""

from time import time
from typing import TYPE_CHECKING, cast

from proxy import apply
from proxy.exchange import CONNECTED, DATA, DECISION, END, FAILED, HEAD, LOST, NEW, ROWS, WHOLE, Exchange
from proxy.forwarded import client_of, trusted_lines
from proxy.head import Field, Head, header_map
from proxy.limits import rate_lines, release
from proxy.upstream.connection import UpstreamConnection
from proxy.upstream.response import ResponseHead, end_to_end
from shared import log
from shared.clock import now_ns
from shared.decision import Decision, HeaderOp, Verb
from shared.errors import RequestRefused, UpstreamFailed
from shared.events import EventKind
from shared.metrics import (
    R_RESPONSES,
    W_CLIENT_GONE,
    W_STREAMS_ABORTED,
    observe_request,
)
from shared.wire.audit import AuditRecord
from shared.wire.envelope import CancelReason
from shared.wire.messages import (
    headers_json,
    metadata,
    request_headers_event,
    request_headers_rest,
    response_headers_event,
    target_json,
    text,
)

if TYPE_CHECKING:
    from proxy.app import RouteRuntime
    from proxy.plan_view import PlanView
    from proxy.protocol import ProxyProtocol
    from shared.segment_buckets import Limit

_REQUEST = EventKind.REQUEST_HEADERS  # a global is ten times cheaper to look up than a member (2026-11)
_CHUNKED = b"transfer-encoding: chunked\r\n"
_CLOSE = b"connection: close\r\n"
_KEEP_ALIVE = b"connection: keep-alive\r\n"
_TEXT: Field = (b"content-type", b"text/plain; charset=utf-8")
_FAILURE_TEXT = {502: b"bad gateway", 503: b"service unavailable", 504: b"gateway timeout"}


class Driver(Exchange):
    """One exchange with everything it touches. Times are CLOCK_MONOTONIC ns."""

    __slots__ = (
        "_asked",
        "_asked_phase",
        "_client_is_full",
        "_close_after",
        "_is_chunked_out",
        "_meta",
        "_sent_plan_events",
        "_traceparent",
        "_unsent",
        "client_ip",
        "correlation_id",
        "decided_by",
        "exchange_id",
        "head",
        "limited",
        "protocol",
        "route",
        "started_ns",
        "status",
        "upstream",
        "uses",
    )

    def __init__(self, protocol: "ProxyProtocol", head: Head, route: "RouteRuntime", started_ns: int) -> None:
        self.state = NEW
        self.held = self.response_held = None
        self.is_response_ended = self.is_holding_upstream = False
        self.has_body = head.has_body
        self.is_request_ended = not head.has_body
        self.awaits_continue = head.expects_100 and head.has_body
        self.asks_request = route.request_view is not None
        self.asks_response = route.response_view is not None
        self.response = None
        self.request_ops = self.response_ops = ()
        self.protocol = protocol
        self.head = head
        self.route = route
        self.started_ns = started_ns
        context = protocol.context
        self.exchange_id, self.correlation_id = context.next_exchange()
        self.client_ip = protocol.peer_ip
        self.upstream: UpstreamConnection | None = None
        self.status = 0
        self.decided_by = ""
        self.limited: tuple[Limit, int] | None = None  # the most restrictive rate limit, and what it has left
        self.uses: tuple[tuple[Limit, int], ...] = ()  # concurrency limits that count it
        self._asked: int = 0  # event id that is pending
        self._asked_phase: PlanView | None = None
        self._sent_plan_events = False  # agentd may hold a pin for us
        self._close_after = False
        self._client_is_full = protocol.is_full
        self._is_chunked_out = False
        self._meta = b""
        self._traceparent = b""
        self._unsent: list[bytes] = []  # of the response, until this turn's bytes are together

    # --- agents -------------------------------------------------------------------------------------

    def ask(self, kind: EventKind) -> Decision | None:
        route = self.route
        view = route.request_view if kind is _REQUEST else route.response_view
        assert view is not None
        dispatch = self.protocol.context.dispatch
        now = self.started_ns if kind is _REQUEST else now_ns()
        decision = dispatch.decide_now(view, now) if view.may_decide_now else None
        if decision is None:
            result = dispatch.send(self, view, self.exchange_id, self._event(kind), now)
            if not view.is_final:
                self._sent_plan_events = True
            if type(result) is int:
                self._asked = result
                self._asked_phase = view
                return None
            decision = cast(Decision, result)
        self.route.tally[view.verdicts_at + decision.verb] += 1
        limits = route.limits
        if limits is not None and limits.has_identity and kind is _REQUEST:
            return limits.after(self, decision)
        return decision

    def _event(self, kind: EventKind) -> bytes:
        head = self.head
        meta = self._meta
        if not meta:
            meta = self._meta = self._metadata()
        if kind is _REQUEST:
            rest = head.event_rest
            if rest is None:
                headers = head.map_json if head.map_json is not None else headers_json(header_map(head.fields))
                rest = request_headers_rest(head.method, target_json(head.target), headers, head.has_body)
                head.event_rest = rest
            return request_headers_event(meta, rest)
        uri = target_json(head.target)
        response: ResponseHead = self.response
        headers = headers_json(header_map(response.headers))
        return response_headers_event(meta, head.method, uri, response.status, headers, response.has_body)

    def _metadata(self) -> bytes:
        head = self.head
        protocol = self.protocol
        request_id = b""
        if protocol.peer_is_trusted:
            request_id = head.request_id
            if head.forwarded_for or head.forwarded:
                self.client_ip = client_of(head, protocol.peer_ip, protocol.context.trust)
        lasting = protocol.lasting_metadata(self.client_ip, self.route, head)
        return metadata(self.correlation_id, request_id, lasting, self._trace() or head.traceparent, time())

    def _trace(self) -> bytes:
        """A traceparent of our own where the client sent none; b"" where its own line goes upstream."""
        if self.head.traceparent:
            return b""
        trace = self._traceparent
        if not trace:
            trace = self._traceparent = self.protocol.context.new_traceparent()
        return trace

    def decided(self, decision: Decision) -> None:
        """From dispatch: the pending event's decision."""
        view = self._asked_phase
        assert view is not None
        self._asked_phase = None
        self.route.tally[view.verdicts_at + decision.verb] += 1
        limits = self.route.limits
        if limits is not None and limits.has_identity and view.kind is _REQUEST:
            decision = limits.after(self, decision)
        ROWS[self.state][DECISION](self, decision)
        if self._unsent:
            self._flush()

    def cancel_ask(self) -> None:
        view = self._asked_phase
        if view is not None:
            self._asked_phase = None
            self.protocol.context.dispatch.cancel(view, self._asked, self.exchange_id, CancelReason.CLIENT_GONE)
            self._sent_plan_events = False  # a cancel also ends the exchange for agentd

    # --- the client's side ----------------------------------------------------------------------------

    def say_continue(self) -> None:
        if not self.is_request_ended and not self.head.is_http_1_0:
            self.protocol.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def hold_client(self) -> None:
        self.protocol.hold_body()

    def release_client(self) -> None:
        self.protocol.release_body()

    # --- upstream: commands ---------------------------------------------------------------------------

    def connect(self) -> None:
        self.route.pool.acquire(self, self.head.method)

    def send_head(self, ops: tuple[HeaderOp, ...]) -> None:
        upstream = self.upstream
        assert upstream is not None
        head = self.head
        protocol = self.protocol
        if protocol.peer_is_trusted and head.is_forwarded:
            forwarded = trusted_lines(head, protocol.peer_ip, protocol.peer_scheme)
        else:
            forwarded = protocol.forwarded_lines(head.host)
        upstream.write_head(
            apply.request_head(head, self.route.fallback_host, ops, forwarded, self.correlation_id, self._trace()),
            not head.has_body,
        )
        if self._client_is_full:
            upstream.pause_reading()

    def send_body(self, data: bytes) -> None:
        upstream = self.upstream
        if upstream is not None:
            upstream.write_body(b"%x\r\n%b\r\n" % (len(data), data) if self.head.is_chunked else data)

    def end_body(self) -> None:
        upstream = self.upstream
        if upstream is not None:
            if self.head.is_chunked:
                upstream.write_body(b"0\r\n\r\n")
            upstream.end_body()

    def hold_upstream(self) -> None:
        if self.upstream is not None:
            self.upstream.pause_reading()

    def release_upstream(self) -> None:
        if not self._client_is_full and self.upstream is not None:
            self.upstream.resume_reading()

    def abort_upstream(self) -> None:
        upstream = self.upstream
        if upstream is not None:
            self.upstream = None
            upstream.abort()
        else:
            self.route.pool.cancel(self)

    # --- upstream: callbacks --------------------------------------------------------------------------

    def upstream_connected(self, conn: UpstreamConnection) -> None:
        self.upstream = conn
        ROWS[self.state][CONNECTED](self, None)

    def upstream_lost(self) -> None:
        self.upstream = None
        ROWS[self.state][LOST](self, None)

    def upstream_informational(self, status: int, headers: list[Field]) -> None:
        """103 and the like are not passed on: they would come before the response was decided."""

    def upstream_head(self, head: ResponseHead) -> None:
        ROWS[self.state][HEAD](self, head)
        upstream = self.upstream
        if self._unsent and (upstream is None or not upstream.has_more):
            self._flush()

    def upstream_body(self, data: bytes) -> None:
        ROWS[self.state][DATA](self, data)
        upstream = self.upstream
        if self._unsent and (upstream is None or not upstream.has_more):
            self._flush()

    def upstream_end(self) -> None:
        self.upstream = None
        ROWS[self.state][END](self, None)

    def upstream_whole(self, head: ResponseHead, body: bytes) -> None:
        self.upstream = None
        ROWS[self.state][WHOLE](self, (head, body))

    def upstream_failed(self, failure: UpstreamFailed) -> None:
        self.upstream = None
        ROWS[self.state][FAILED](self, failure)

    def upstream_paused(self) -> None:
        self.protocol.hold_for_upstream()

    def upstream_writable(self) -> None:
        self.protocol.release_for_upstream()

    def client_full(self) -> None:
        """The client's write buffer is above its high-water mark."""
        self._client_is_full = True
        if self.upstream is not None and not self.is_holding_upstream:
            self.upstream.pause_reading()

    def client_writable(self) -> None:
        """It has drained."""
        self._client_is_full = False
        if self.upstream is not None and not self.is_holding_upstream:
            self.upstream.resume_reading()

    # --- the response -----------------------------------------------------------------------------------

    def relay_whole(self, body: bytes) -> None:
        """The common case on its own: framing by Content-Length, nothing to change, one write."""
        response: ResponseHead = self.response
        head = self.head
        protocol = self.protocol
        ops = self.response_ops
        status = response.status
        is_framed = not response.has_body or response.content_length is not None
        is_common = is_framed and head.keep_alive and not (head.is_http_1_0 or protocol.is_draining)
        if not is_common or ops or status == 204 or self.limited is not None:
            self.relay_head(ops)
            if body:
                self.relay_data(body)
            self.relay_end()
            return
        self.status = status
        via = apply.VIA_1_0 if response.http_1_0 else apply.VIA
        protocol.write(apply.relayed_head(status, response.lines(), b"", self.correlation_id, via, body))
        self._done()
        protocol.exchange_ended(not self.is_request_ended)

    def relay_head(self, ops: tuple[HeaderOp, ...]) -> None:
        response: ResponseHead = self.response
        self.status = status = response.status
        head = self.head
        framing = b""
        keep_alive = head.keep_alive and not self.protocol.is_draining
        if response.has_body and response.content_length is None:
            if head.is_http_1_0:
                keep_alive = False
            else:
                framing = _CHUNKED
                self._is_chunked_out = True
        if not keep_alive:
            framing += _CLOSE
            self._close_after = True
        elif head.is_http_1_0:
            framing += _KEEP_ALIVE
        if self.limited is not None:
            framing += rate_lines(self.limited)
        via = apply.VIA_1_0 if response.http_1_0 else apply.VIA
        if not ops and status != 204:
            made = apply.relayed_head(status, response.lines(), framing, self.correlation_id, via)
        else:
            fields = end_to_end(response.headers)
            if status == 204:  # RFC 9110 8.6: no Content-Length
                fields = [field for field in fields if field[0].lower() != b"content-length"]
            made = apply.response_head(status, fields, ops, framing, self.correlation_id, via)
        self._unsent.append(made)

    def relay_data(self, data: bytes) -> None:
        if self._is_chunked_out:
            self._unsent += (b"%x\r\n" % len(data), data, b"\r\n")
        else:
            self._unsent.append(data)

    def _flush(self) -> None:
        """Write what this turn has for the client in one system call: each write is one (uvloop 0.23)."""
        unsent = self._unsent
        self._unsent = []
        self.protocol.write(unsent[0] if len(unsent) == 1 else b"".join(unsent))

    def relay_end(self) -> None:
        if self._is_chunked_out:
            self._unsent.append(b"0\r\n\r\n")
        if self._unsent:
            self._flush()
        self._finish(self._close_after or (self.head.has_body and not self.is_request_ended))

    def refuse(self, decision: Decision, ops: tuple[HeaderOp, ...]) -> None:
        self.decided_by = decision.agent
        fields = [(name.encode(), apply.encode_value(value)) for name, value in decision.headers]
        body = decision.body
        if decision.verb is Verb.FAIL:
            fields.append(_TEXT)
            body += b"correlation id: %b\n" % self.correlation_id
        self._answer(decision.status, fields, ops, body)
        what = decision.verb.word if decision.agent else "refused"  # a limit's refusal has no agent
        self._account(what, decision.status, decision.reason, decision.agent)

    def fail(self, failure: UpstreamFailed) -> None:
        body = b"%b: %b\ncorrelation id: %b\n" % (
            _FAILURE_TEXT.get(failure.status, b"upstream failed"),
            failure.reason.replace("_", " ").encode(),  # the text names the target: that is for the log
            self.correlation_id,
        )
        self._answer(failure.status, [_TEXT], self.response_ops, body)
        self._account("failed", failure.status, failure.reason, "")

    def reject(self, refusal: RequestRefused) -> None:
        self.protocol.context.count_refused(refusal.status)
        body = b"%b\ncorrelation id: %b\n" % (refusal.reason.encode(), self.correlation_id)
        self.is_request_ended = False  # whatever follows on this connection is not a request
        self._answer(refusal.status, [_TEXT], (), body)
        self._account("refused", refusal.status, refusal.reason, "")

    def _answer(self, status: int, fields: list[Field], ops: tuple[HeaderOp, ...], body: bytes) -> None:
        head = self.head
        self.status = status
        # What is left of the request has nowhere to go: the connection cannot be used further.
        close = not self.is_request_ended and head.has_body
        close = close or not head.keep_alive or self.protocol.is_draining
        self.protocol.write(
            apply.own_response(
                status,
                fields,
                ops,
                body,
                self.correlation_id,
                self.protocol.context.date,
                is_head=head.method == b"HEAD",
                close=close,
                keep_alive_line=head.is_http_1_0,
            )
        )
        if not close:
            self.is_request_ended = True
        self._finish(close)

    def abort_client(self, why: str) -> None:
        self.protocol.context.cells[W_STREAMS_ABORTED] += 1
        self._account("failed", self.status, why, "", aborted=True)
        self._done()
        self._unsent.clear()
        self.protocol.abort()

    def vanish(self) -> None:
        self.protocol.context.cells[W_CLIENT_GONE] += 1
        self._done()

    # --- the end ------------------------------------------------------------------------------------------

    def _finish(self, close: bool) -> None:
        self._done()
        self.protocol.exchange_ended(close)

    def _done(self) -> None:
        status = self.status
        if status:
            tally = self.route.tally
            tally[R_RESPONSES + status // 100 - 1] += 1
            observe_request(tally, now_ns() - self.started_ns)
        if self.uses:
            uses, self.uses = self.uses, ()
            release(uses)
        if self._sent_plan_events:
            self.protocol.context.dispatch.end(self.exchange_id)

    def _account(self, what: str, status: int, reason: str, agent: str, *, aborted: bool = False) -> None:
        """Every refusal and failure: audit record and (rate-limited) log line; its metric is elsewhere."""
        context = self.protocol.context
        head = self.head
        correlation_id = self.correlation_id.decode()
        method, uri = head.method.decode(), text(head.target)[:1024]
        phase = EventKind.REQUEST_HEADERS if self.response is None else EventKind.RESPONSE_HEADERS
        context.account(
            AuditRecord(
                ts=context.timestamp(),
                source="worker",
                correlation_id=correlation_id,
                decision=what,
                route=self.route.name,
                phase=phase.wire_name,
                status=status,
                decided_by=agent,
                reason=reason,
                client_ip=self.client_ip,
                method=method,
                uri=uri,
                request_id=head.request_id.decode() if self.protocol.peer_is_trusted else "",
            ),
            log.INFO if what in ("block", "redirect", "challenge") else log.WARNING,
            "response aborted" if aborted else "request refused" if what != "failed" else "upstream failed",
        )
