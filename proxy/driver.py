"""Carries out what the exchange wants: one request between client, agents and upstream.

The IO side of `proxy/exchange.py`: it is the exchange (a subclass that implements the commands), the
sink of its upstream connection and the waiter for its decisions. Plain callbacks, no task, future or
timer. Its layers, each with a matter of its own: bodies.py, fallbacks.py, upgraded.py, endings.py. What is
decided stands elsewhere: heads in `apply`, forwarding in `forwarded`, order in `exchange`.

Kind: IO.
"""

from time import time
from typing import TYPE_CHECKING, cast

from proxy import apply
from proxy.endings import Endings
from proxy.exchange import ROWS
from proxy.exchange_states import CONNECTED, DATA, DECISION, END, FAILED, HEAD, LOST, NEW, WHOLE
from proxy.forwarded import client_of, trusted_lines
from proxy.head import Field, Head, header_map
from proxy.limits import rate_lines
from proxy.upstream.connection import UpstreamConnection
from proxy.upstream.response import ResponseHead, end_to_end
from shared.clock import now_ns
from shared.decision import Decision, HeaderOp
from shared.defaults import BODY_COPIED_BYTES
from shared.errors import UpstreamFailed
from shared.events import EventKind
from shared.wire.messages import (
    headers_json,
    metadata,
    request_headers_event,
    request_headers_rest,
    response_headers_event,
    target_json,
)

if TYPE_CHECKING:
    from proxy.app import RouteRuntime
    from proxy.plan_view import PlanView
    from proxy.protocol import ProxyProtocol

_REQUEST = EventKind.REQUEST_HEADERS  # a global is ten times cheaper to look up than a member (2026-11)
_CHUNKED = b"transfer-encoding: chunked\r\n"
_CLOSE = b"connection: close\r\n"
_KEEP_ALIVE = b"connection: keep-alive\r\n"


class Driver(Endings):
    """One exchange with everything it touches. Times are CLOCK_MONOTONIC ns."""

    __slots__ = ("_asked", "_asked_phase", "_client_is_full", "_traceparent")

    _asked: int  # event id that is pending
    _close_after = False
    _is_chunked_out = False

    def __init__(self, protocol: "ProxyProtocol", head: Head, route: "RouteRuntime", started_ns: int) -> None:
        self.state = NEW
        self.has_body = has_body = head.has_body
        self.is_request_ended = not has_body
        if has_body:
            self.awaits_continue = head.expects_100
            self.is_chunked_up = head.is_chunked
        self.asks_request = route.request_view is not None
        self.asks_response = route.response_view is not None
        self.response = None
        self.request_ops = self.response_ops = ()
        self.protocol = protocol
        self.head = head
        self.route = route
        self.started_ns = started_ns
        self.exchange_id, self.correlation_id = protocol.context.next_exchange()
        self.client_ip = protocol.peer_ip
        self.pool = route.pool
        self.fallback_host = route.fallback_host
        if route.fallbacks:
            self._begin_fallbacks()
        self.was_shown = False
        self.attempts = self.sent = self.status = 0
        self.upstream = self.upgrade = self.limited = self._unsent = None
        self.uses = ()
        self._asked_phase: PlanView | None = None
        self._client_is_full = protocol.is_full
        self._meta = self._traceparent = b""

    # --- agents -------------------------------------------------------------------------------------

    def ask(self, kind: EventKind) -> Decision | None:
        route = self.route
        is_request = kind is _REQUEST
        if is_request:
            view, now = route.request_view, self.started_ns
        else:
            view, now = route.response_view, now_ns()
        assert view is not None
        dispatch = self.protocol.context.dispatch
        decision = dispatch.decide_now(view, now) if view.may_decide_now else None
        if decision is None:
            event = self._request_event() if is_request else self._response_event()
            flags = view.flags if self.has_body or self.upgrade is not None else view.bodyless_flags
            result = dispatch.send(self, view, self.exchange_id, event, now, flags)
            if not flags:
                self.was_shown = True
                self.connects = dispatch.connects
            if type(result) is int:
                self._asked = result
                self._asked_phase = view
                return None
            decision = cast(Decision, result)
        self.route.tally[view.verdicts_at + decision.verb] += 1
        limits = route.limits
        if is_request and limits is not None and limits.has_identity:
            return limits.after(self, decision)
        return decision

    def _request_event(self) -> bytes:
        head = self.head
        self._meta = meta = self._metadata()
        rest = head.event_rest
        if rest is None:
            headers = head.map_json if head.map_json is not None else headers_json(header_map(head.fields))
            rest = request_headers_rest(head.method, target_json(head.target), headers, head.has_body)
            head.event_rest = rest
        return request_headers_event(meta, rest)

    def _response_event(self) -> bytes:
        head = self.head
        self.know_client()
        uri = target_json(head.target)
        response: ResponseHead = self.response
        headers = headers_json(header_map(response.headers))
        return response_headers_event(self._meta, head.method, uri, response.status, headers, response.has_body)

    def _metadata(self) -> bytes:
        head = self.head
        request_id = b""
        lasting = head.lasting
        if lasting is None or self.protocol.peer_is_trusted:
            protocol = self.protocol
            if protocol.peer_is_trusted:
                request_id = head.request_id
                if head.forwarded_for or head.forwarded:
                    self.client_ip = client_of(head, protocol.peer_ip, protocol.context.trust)
            lasting = head.lasting = protocol.lasting_metadata(self.client_ip, self.route, head)
        trace = head.traceparent or self._traceparent or self._trace()
        return metadata(self.correlation_id, request_id, lasting, trace, time())

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
        if view is None:  # what failed together with it, a chunk's question, has ended the exchange already
            return
        self._asked_phase = None
        self.route.tally[view.verdicts_at + decision.verb] += 1
        limits = self.route.limits
        if limits is not None and limits.has_identity and view.kind is _REQUEST:
            decision = limits.after(self, decision)
        if decision.chunk is not None:
            self.skip_bodies(view, decision.chunk.skip)
        ROWS[self.state][DECISION](self, decision)
        if self._unsent:
            self._flush()

    def cancel_ask(self) -> None:
        view = self._asked_phase
        if view is not None:
            self._asked_phase = None
            self.protocol.context.dispatch.forget(view, self._asked)
            self._is_forgotten = True
            self.was_shown = True  # also where it was the only event of the exchange: it is taken back

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
        self.pool.acquire(self, self.head.method)

    def send_head(self, ops: tuple[HeaderOp, ...]) -> None:
        upstream = self.upstream
        assert upstream is not None
        head = self.head
        front = head.front
        trace = self._traceparent or self._trace()
        if front is not None and front.ops is ops and not self.route.sees_responses:
            made = apply.repeated_head(head, front, self.correlation_id, trace)
        else:
            made = self._request_head(upstream, ops, trace)
        upstream.write_head(made, not self.has_body)
        if self._client_is_full:
            upstream.pause_reading()

    def _request_head(self, upstream: UpstreamConnection, ops: tuple[HeaderOp, ...], trace: bytes) -> bytes:
        head = self.head
        protocol = self.protocol
        if protocol.peer_is_trusted and head.is_forwarded:
            forwarded = trusted_lines(head, protocol.peer_ip, protocol.peer_scheme)
        else:
            forwarded = protocol.forwarded_lines(head.host)
        fields = framing = None
        if self.request_flow is not None or self.route.sees_responses:
            fields, framing = self.request_fields()
        if self.upgrade is not None:
            fields = self.upgrade_fields(self.upgrade, fields)
            upstream.ask_upgrade()
        return apply.request_head(head, self.fallback_host, ops, forwarded, self.correlation_id, trace, fields, framing)

    def send_body(self, data: bytes) -> None:
        upstream = self.upstream
        if self.route.fallbacks:
            self.keep(data)
        if upstream is not None:
            if self.is_chunked_up:
                upstream.write_chunk(data)
            else:
                upstream.write_body(data)

    def end_body(self) -> None:
        upstream = self.upstream
        if upstream is not None:
            if self.is_chunked_up:
                upstream.write_body(b"0\r\n\r\n")
            upstream.end_body()

    def hold_upstream(self) -> None:
        if self.upstream is not None:
            self.upstream.pause_reading()

    def release_upstream(self) -> None:
        self.read_upstream()

    def read_upstream(self) -> None:
        is_held = self._client_is_full or self.is_holding_upstream or self._agents_are_full
        if not is_held and self.upstream is not None:
            self.upstream.resume_reading()

    def abort_upstream(self) -> None:
        upstream = self.upstream
        if upstream is not None:
            self.upstream = None
            upstream.abort()
        else:
            self.pool.cancel(self)

    # --- upstream: callbacks --------------------------------------------------------------------------

    def upstream_connected(self, conn: UpstreamConnection) -> None:
        self.upstream = conn
        self.attempts += 1
        ROWS[self.state][CONNECTED](self, None)

    def upstream_lost(self) -> None:
        self.upstream = None
        ROWS[self.state][LOST](self, None)

    def upstream_informational(self, status: int, headers: list[Field]) -> None:
        """103 and the like are not passed on: they would come before the response was decided."""

    def upstream_head(self, head: ResponseHead) -> None:
        if self.route.fallbacks and self.falls_back_after(head.status):
            return
        if head.status == 101 and not self.accepts_upgrade(head):
            return
        if self.route.sees_responses and not self._opens_response_flow(head):
            return
        ROWS[self.state][HEAD](self, head)
        upstream = self.upstream
        if self._unsent and (upstream is None or not upstream.has_more):
            self._flush()

    def _opens_response_flow(self, head: ResponseHead) -> bool:
        """False = its coding cannot be looked into, and that has ended the exchange."""
        try:
            self.open_response_flow(head)
        except UpstreamFailed as failure:
            self.abort_upstream()
            ROWS[self.state][FAILED](self, failure)
            return False
        return True

    def upstream_body(self, data: bytes) -> None:
        flow = self.response_flow
        if flow is not None:
            flow.take(data)
        if flow is None or not flow.is_enforcing:
            ROWS[self.state][DATA](self, data)
        upstream = self.upstream
        if upstream is None or not upstream.has_more:
            if flow is not None:
                flow.settle()
            if self._unsent:
                self._flush()

    def upstream_end(self) -> None:
        self.upstream = None
        flow = self.response_flow
        if flow is not None:
            self.is_response_ended = flow.is_enforcing
            flow.end()
            flow.settle()
        if flow is None or not flow.is_enforcing:
            ROWS[self.state][END](self, None)

    def upstream_whole(self, head: ResponseHead, body: bytes) -> None:
        self.upstream = None
        if self.route.fallbacks and self.falls_back_after(head.status):
            return
        if not self.route.sees_responses or not head.has_body:
            ROWS[self.state][WHOLE](self, (head, body))
        elif self._opens_response_flow(head):
            flow = self.response_flow
            if flow is None:
                ROWS[self.state][WHOLE](self, (head, body))
                return
            self.is_response_ended = flow.is_enforcing
            ROWS[self.state][HEAD](self, head)
            if body:
                self.upstream_body(body)
            self.upstream_end()

    def upstream_failed(self, failure: UpstreamFailed) -> None:
        self.upstream = None
        if self.route.fallbacks and self.falls_back_from(failure):
            return
        ROWS[self.state][FAILED](self, failure)

    def upstream_paused(self) -> None:
        if self.tunnel is not None:
            self.tunnel.upstream_is_full(True)
        else:
            self.protocol.hold_for_upstream()

    def upstream_writable(self) -> None:
        if self.tunnel is not None:
            self.tunnel.upstream_is_full(False)
        else:
            self.protocol.release_for_upstream()

    def client_full(self) -> None:
        """The client's write buffer is above its high-water mark."""
        self._client_is_full = True
        if self.tunnel is not None:
            self.tunnel.client_is_full(True)
        elif self.upstream is not None and not self.is_holding_upstream:
            self.upstream.pause_reading()

    def client_writable(self) -> None:
        """It has drained."""
        self._client_is_full = False
        if self.tunnel is not None:
            self.tunnel.client_is_full(False)
        else:
            self.read_upstream()

    # --- the response -----------------------------------------------------------------------------------

    def relay_whole(self, body: bytes) -> None:
        """The common case on its own: framing by Content-Length, nothing to change, one write."""
        response: ResponseHead = self.response
        head = self.head
        protocol = self.protocol
        status = response.status
        if (
            self.response_ops
            or self.limited is not None
            or protocol.is_draining
            or not self.is_request_ended
            or not head.keep_alive
            or head.is_http_1_0
            or status == 204
            or (response.content_length is None and response.has_body)
        ):
            if not self.is_request_ended:  # what is left of it has nowhere to go: say that the connection ends
                self._close_after = True
            self.relay_head(self.response_ops)
            if body:
                self.relay_data(body)
            self.relay_end()
            return
        self.status = status
        self.sent = len(body)
        protocol.write(apply.relayed_whole(response, self.correlation_id, body))
        self._done()
        protocol.exchange_ended(False)

    def relay_head(self, ops: tuple[HeaderOp, ...]) -> None:
        response: ResponseHead = self.response
        self.status = status = response.status
        head = self.head
        framing = b""
        keep_alive = head.keep_alive and not (self.protocol.is_draining or self._close_after)
        flow = self.response_flow
        is_judged = flow is not None and flow.is_enforcing
        if is_judged and self.known_length >= 0 and not self.is_request_ended:
            keep_alive = False
        if is_judged and self.known_length >= 0:
            framing = b"content-length: %d\r\n" % self.known_length
        elif response.has_body and (is_judged or response.content_length is None):
            if head.is_http_1_0:
                keep_alive = False
                self.protocol.is_ended_by_close = True
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
        if not ops and status != 204 and not is_judged:
            made = apply.relayed_head(status, response.lines(), framing, self.correlation_id, via)
        else:
            fields = self.response_fields(response) if is_judged else end_to_end(response.headers)
            if status == 204:  # RFC 9110 8.6: no Content-Length
                fields = [field for field in fields if field[0].lower() != b"content-length"]
            made = apply.response_head(status, fields, ops, framing, self.correlation_id, via)
        self._unsent = [made]

    def relay_data(self, data: bytes) -> None:
        self.sent += len(data)
        unsent = self._unsent
        if unsent is None:
            unsent = self._unsent = []
        if self._is_chunked_out:
            unsent += (b"%x\r\n" % len(data), data, b"\r\n")
        else:
            unsent.append(data)

    def _flush(self) -> None:
        """Write what this turn has for the client in one system call: each write is one (uvloop 0.23)."""
        unsent, self._unsent = self._unsent, None
        if unsent is None:
            return
        if len(unsent) == 1:
            self.protocol.write(unsent[0])
        elif max(map(len, unsent)) < BODY_COPIED_BYTES:
            self.protocol.write(b"".join(unsent))
        else:
            self.protocol.write_pieces(unsent)

    def flush_response(self) -> None:
        self._flush()

    def relay_end(self) -> None:
        if self._is_chunked_out:
            self._unsent = [*(self._unsent or ()), b"0\r\n\r\n"]
        self._flush()
        self._finish(self._close_after or (self.head.has_body and not self.is_request_ended))
