"""Reads requests from one client connection and writes their responses, in order.

Our subclass of uvicorn's httptools protocol, given to uvicorn as `http=`. It gives every accepted head to
an exchange instead of an ASGI task, and decides when bytes may be read, until when they must have come and
in which order answers leave. What the parser may be fed is decided in `guard` (the half below this one),
what a head may look like in `head`, everything after it in `exchange`.

    bytes --guard, httptools--> head --normalise, route--> Driver (exchange) ... response --> exchange_ended
                          \\__ an exchange is open: queued (reading pauses; httptools itself cannot)

Deadlines are two attributes that the worker's sweep compares: no timer per request.

Kind: IO.
"""

import asyncio
from collections import deque
from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.utils import get_remote_addr
from uvicorn.server import ServerState

from proxy import app, apply
from proxy.driver import Driver
from proxy.exchange import BEGIN, BODY, BODY_END, BROKEN, GONE, ROWS
from proxy.forwarded import peer_lines, untrusted_lines
from proxy.head import Field, Head, normalise
from proxy.limits import release
from proxy.repeat import Habits
from proxy.streams import (
    BETWEEN_REQUESTS,
    BODY_BYTE,
    FOR_CLIENT,
    FOR_DECISION,
    FOR_QUEUE,
    FOR_UPSTREAM,
    LINGERING,
    NEXT_REQUEST,
    NOTHING,
    REST_OF_HEAD,
    ClientStreams,
)
from shared import log
from shared.clock import now_ns
from shared.defaults import LINGER_BYTES
from shared.errors import RequestRefused
from shared.metrics import W_CONNECTIONS, W_OPEN_CONNECTIONS
from shared.segment_buckets import Limit
from shared.wire.audit import AuditRecord
from shared.wire.messages import connection_metadata, lasting_metadata, text


class Queued:
    """A request that arrived while another one's exchange was open."""

    __slots__ = ("body", "fields", "is_ended", "is_upgrade", "keep_alive", "method", "target", "version")

    def __init__(
        self, method: bytes, target: bytes, version: str, fields: list[Field], keep_alive: bool, is_upgrade: bool
    ) -> None:
        self.method = method
        self.target = target
        self.version = version
        self.fields = fields
        self.keep_alive = keep_alive
        self.is_upgrade = is_upgrade
        self.body: list[bytes] = []
        self.is_ended = False


class ProxyProtocol(ClientStreams):
    """One client connection."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(app.context(), config, server_state, app_state, _loop)
        self.driver: Driver | None = None
        self.is_draining = False
        self.peer_ip = ""
        self.uses: tuple[tuple[Limit, int], ...] = ()  # connection limits that count it
        self.peer_is_trusted = False
        self.peer_scheme = "http"
        self.metadata_part = b""
        self._lasting: tuple[object, ...] = ()  # what `_lasting_part` was made of
        self._lasting_part = b""
        self._habits = Habits()
        self._forwarded_parts = (b"", b"")
        self._forwarded_host: bytes | None = None
        self._forwarded = b""
        self._queue: deque[Queued] = deque()
        self._receiving: Queued | None = None  # whose body the parser is reading; None = the driver's
        self._is_next_scheduled = False
        self._lingered = 0

    # --- the connection's life ------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport
        self.connections.add(self)
        self.context.connections.add(self)
        transport.set_write_buffer_limits(self._limits.connection_buffer_bytes)
        peer = get_remote_addr(transport)
        context = self.context
        context.cells[W_CONNECTIONS] += 1
        context.cells[W_OPEN_CONNECTIONS] += 1
        ip, port = peer if peer else ("", 0)
        if ip.startswith("::ffff:"):
            ip = ip[7:]
        self.client = (ip, port)
        self.peer_ip = ip
        self.peer_is_trusted = context.trust.is_trusted(ip)
        self.metadata_part = connection_metadata(ip, port)
        self._forwarded_parts = peer_lines(ip, self.peer_scheme)
        if context.doors is not None:
            context.doors.admits(self)

    def close_now(self) -> None:
        """From the doors: one connection too many. Whatever it says is not read."""
        self._is_lingering = True
        self.transport.close()

    def forwarded_lines(self, host: bytes) -> bytes:
        """Our X-Forwarded-* and Forwarded lines for a request without any of a trusted proxy's."""
        if host != self._forwarded_host:
            self._forwarded_host = host
            self._forwarded = untrusted_lines(host, self._forwarded_parts)
        return self._forwarded

    def lasting_metadata(self, client_ip: str, route: "app.RouteRuntime", head: Head) -> bytes:
        """What events say of this connection, route and host; a client behind a trusted proxy has no known port."""
        made_of = (client_ip, route, head.host_name, head.is_http_1_0)
        if made_of != self._lasting:
            self._lasting = made_of
            part = self.metadata_part if client_ip == self.peer_ip else connection_metadata(client_ip, 0)
            self._lasting_part = lasting_metadata(head.host_name, part, route.metadata_part, head.is_http_1_0)
        return self._lasting_part

    def connection_lost(self, exc: Exception | None) -> None:
        self.connections.discard(self)
        self.context.connections.discard(self)
        self.context.outbox.drop(self.transport)
        self.context.cells[W_OPEN_CONNECTIONS] -= 1
        if self.uses:
            release(self.uses)
        self.waiting_for = NOTHING
        self.waiting_until = 0
        self._is_lingering = True  # the parser's remaining callbacks of this read mean nothing
        self._queue.clear()
        driver = self.driver
        if driver is not None:
            self.driver = None
            driver.feed(GONE)
        self.parser = None  # type: ignore[assignment]

    @property
    def pipelined(self) -> int:
        """Requests that wait for an earlier one's answer."""
        return len(self._queue)

    def eof_received(self) -> None:
        """A half-closed client counts as gone (the transport closes itself)."""

    def shutdown(self) -> None:
        """Drain: the next answer says `Connection: close`; a connection that stays idle is closed later.

        Stock uvicorn closes idle connections at once, which breaks requests that are on their way.
        """
        self.is_draining = True
        if self.driver is None and not self._queue and not self._is_lingering:
            self.waiting_until = self.context.now + self.context.drain_idle_ns

    def abort(self) -> None:
        """Break the connection now."""
        self._is_lingering = True
        self.context.outbox.drop(self.transport)
        self.transport.abort()

    def timeout(self) -> None:
        """From the sweep: `waiting_until` is over."""
        what = self.waiting_for
        self.waiting_until = 0
        if what == REST_OF_HEAD:
            self._refuse_now(RequestRefused(408, "the request's head did not arrive in time"))
        elif what == BODY_BYTE and self.driver is not None:
            self.driver.feed(BROKEN, RequestRefused(408, "no byte of the request's body arrived in time"))
        else:
            self._is_lingering = True
            self.context.outbox.flush(self.transport)
            if what == LINGERING or self.transport.get_write_buffer_size():
                self.transport.abort()  # a close would wait for a client that does not read
            else:
                self.transport.close()

    # --- bytes in -------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        self.context.bytes_in += len(data)
        if self._is_lingering:
            self._lingered += len(data)
            if self._lingered > LINGER_BYTES:
                self.transport.close()
            return
        is_new = self.waiting_for in BETWEEN_REQUESTS and not self.is_full
        if is_new and len(data) <= self._limits.max_header_bytes:
            head = self._habits.head_of(data)
            if head is not None:  # a request like one before it needs no parser
                self.context.requests += 1
                self._begin(head)
                return
        self._take(data)
        if is_new and self.driver is not None:
            self._habits.learn(data, self.driver.head)
        if self._wants_hold:
            self._wants_hold = False
            driver = self.driver
            if driver is not None and driver.held is not None and not driver.is_request_ended:
                self._pause(FOR_DECISION)

    # --- parser callbacks -----------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self._is_lingering:
            return
        self.url = b""
        self.headers = []
        self._in_head = True
        self._field_bytes = 0
        if self.driver is None and not self._queue and not self.is_full:
            self.waiting_for = REST_OF_HEAD
            self.waiting_until = self.context.now + self.context.header_timeout_ns
        elif not self._paused & FOR_QUEUE:
            self._pause(FOR_QUEUE)

    def on_headers_complete(self) -> None:
        if self._is_lingering:
            return
        parser = self.parser
        method = parser.get_method()
        version = parser.get_http_version()
        is_upgrade = parser.should_upgrade()
        if is_upgrade and method != b"CONNECT" and not _asks_websocket(self.headers):
            self._refeed, self._method, self._version = self.headers, method, version
            return
        self._in_head = False
        self._trailers = self._body_bytes = self._raw_body_bytes = 0
        keep_alive = parser.should_keep_alive()
        if self.driver is not None or self._queue or self._refusal is not None or self.is_full:
            if len(self._queue) >= self._limits.max_pipelined:
                raise RequestRefused(503, f"more than {self._limits.max_pipelined} pipelined requests in one read")
            queued = Queued(method, self.url, version, self.headers, keep_alive, is_upgrade)
            self._queue.append(queued)
            self._receiving = queued
            return
        self._receiving = None
        self._start(method, self.url, version, self.headers, keep_alive, is_upgrade)

    def on_body(self, body: bytes) -> None:
        if self._is_lingering:
            return
        receiving = self._receiving
        if receiving is not None:
            receiving.body.append(body)
            return
        driver = self.driver
        if driver is None:
            return
        self._body_bytes += len(body)
        limit = self._limits.max_body_bytes
        if limit and self._body_bytes > limit:
            raise RequestRefused(413, f"body is over max_body_bytes = {limit}")
        if not self._paused:  # else it is we who do not read
            self.waiting_until = self.context.now + self.context.body_timeout_ns
        ROWS[driver.state][BODY](driver, body)

    def on_message_complete(self) -> None:
        if self._is_lingering or self._refeed is not None:
            return
        self._ended_in_read = True
        self._is_chunked = False
        receiving = self._receiving
        if receiving is not None:
            receiving.is_ended = True
            return
        driver = self.driver
        if driver is not None and not driver.is_request_ended:
            self.waiting_for = NOTHING
            self.waiting_until = 0
            ROWS[driver.state][BODY_END](driver, None)

    # --- exchanges ------------------------------------------------------------------------------------

    def _start(
        self, method: bytes, target: bytes, version: str, fields: list[Field], keep_alive: bool, is_upgrade: bool
    ) -> None:
        context = self.context
        context.requests += 1
        try:
            head = normalise(method, target, version, fields, keep_alive, self._limits.max_body_bytes)
            if head.is_websocket:
                raise RequestRefused(501, "WebSocket is not supported yet")
            if is_upgrade:
                # llhttp has stopped at this head and told nothing of a body: there is no going on from here.
                raise RequestRefused(400, "ambiguous Upgrade")
        except RequestRefused as refusal:
            self._answer_refusal(refusal, method, target, fields, keep_alive)
            return
        self._begin(head)

    def _begin(self, head: Head) -> None:
        context = self.context
        route = head.route
        if route is None:
            try:
                route = head.route = context.routes[context.table.choose(head.host_name, head.path, head.method)]
            except RequestRefused as refusal:
                self._answer_refusal(refusal, head.method, head.target, head.fields, head.keep_alive)
                return
        driver = self.driver = Driver(self, head, route, now_ns())
        if head.has_body:
            self._is_chunked = head.is_chunked
            self.waiting_for = BODY_BYTE
            self.waiting_until = context.now + context.body_timeout_ns
        else:
            self.waiting_for = NOTHING
            self.waiting_until = 0
        if route.limits is None or not route.limits.refuses(driver):
            ROWS[driver.state][BEGIN](driver, None)

    def exchange_ended(self, close: bool) -> None:
        """From the driver: its response is written. Go on with the next request, or close."""
        driver = self.driver
        self.driver = None
        self.server_state.total_requests += 1
        if self._paused:
            self._release(FOR_DECISION | FOR_UPSTREAM)
        if close:
            self._linger(driver is None or (driver.head.has_body and not driver.is_request_ended))
            return
        if self._queue:
            self._schedule_next()
        elif self._refusal is not None:
            self._refuse_now(self._refusal)
        else:
            self._await_next()

    def _schedule_next(self) -> None:
        """Not from inside the ended exchange's own stack: a long pipeline would recurse."""
        if not self._is_next_scheduled:
            self._is_next_scheduled = True
            self.loop.call_soon(self._next)

    def _await_next(self) -> None:
        if self.is_full:
            self._pause(FOR_CLIENT)
        if self._paused:
            self._release(FOR_QUEUE)
        context = self.context
        if not self._in_head:
            self.waiting_for = NEXT_REQUEST
            self.waiting_until = context.now + (context.drain_idle_ns if self.is_draining else context.keepalive_ns)
        else:
            self.waiting_for = REST_OF_HEAD
            self.waiting_until = context.now + context.header_timeout_ns

    def _next(self) -> None:
        """Start the first queued request; it answers after everything before it."""
        self._is_next_scheduled = False
        # A client that does not read its answers gets no further ones made: `resume_writing` goes on.
        if self._is_lingering or self.driver is not None or self.is_full or not self._queue:
            return
        queued = self._queue.popleft()
        is_last = not self._queue
        if self._receiving is queued:
            self._receiving = None
        self._body_bytes = 0
        self._start(queued.method, queued.target, queued.version, queued.fields, queued.keep_alive, queued.is_upgrade)
        driver = self.driver
        if driver is None:  # refused; the connection goes on or lingers
            if not self._is_lingering and self._queue:
                self._schedule_next()
            elif not self._is_lingering and self._refusal is not None:
                self._refuse_now(self._refusal)
            return
        for data in queued.body:
            self._body_bytes += len(data)
            limit = self._limits.max_body_bytes
            if limit and self._body_bytes > limit:
                driver.feed(BROKEN, RequestRefused(413, f"body is over max_body_bytes = {limit}"))
                return
            driver.feed(BODY, data)
        if queued.is_ended:
            self.waiting_for = NOTHING
            self.waiting_until = 0
            if self.driver is driver:
                driver.feed(BODY_END)
        elif is_last and self._refusal is None:
            self._release(FOR_QUEUE)  # the rest of its body has yet to come
        elif self._refusal is not None:
            driver.feed(BROKEN, self._refusal)

    # --- refusals -------------------------------------------------------------------------------------

    def _broken(self, refusal: RequestRefused) -> None:
        """What arrives breaks a rule. Requests before it are answered first."""
        driver = self.driver
        if driver is not None and not driver.is_request_ended and self._receiving is None and not self._in_head:
            driver.feed(BROKEN, refusal)
            return
        self._refuse(refusal)

    def _refuse(self, refusal: RequestRefused) -> None:
        """Refuse what is being parsed, once what was before it is answered."""
        if self.driver is None and not self._queue:
            self._refuse_now(refusal)
            return
        if self._receiving is not None and not self._receiving.is_ended and not self._in_head:
            self._queue.remove(self._receiving)  # its body is what is broken
            self._receiving = None
        self._refusal = refusal
        self._pause(FOR_QUEUE)

    def _refuse_now(self, refusal: RequestRefused) -> None:
        self._refusal = None
        self.context.requests += 1
        method = b""
        if not self._in_head:
            self.url, self.headers = b"", []
        elif self.url and self.parser.get_method() == b"HEAD":
            method = b"HEAD"  # its answer has no body
        self._answer_refusal(refusal, method, self.url or b"", [], False)

    def _answer_refusal(
        self, refusal: RequestRefused, method: bytes, target: bytes, fields: list[Field], keep_alive: bool
    ) -> None:
        """Answer a request that has no exchange: status, one log line, audit, metric."""
        context = self.context
        status = refusal.status
        context.count_refused(status)
        correlation_id = context.next_exchange()[1]
        close = refusal.close or not keep_alive or self.is_draining or _has_body(fields)
        head_fields: list[Field] = [(b"content-type", b"text/plain; charset=utf-8")]
        if refusal.allow:
            head_fields.append((b"allow", refusal.allow.encode()))
        elif status == 405:
            head_fields.append((b"allow", b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"))
        body = b"%b\ncorrelation id: %b\n" % (refusal.reason.encode(), correlation_id)
        self.write(
            apply.own_response(
                status, head_fields, (), body, correlation_id, context.date, is_head=method == b"HEAD", close=close
            )
        )
        context.account(
            AuditRecord(
                ts=context.timestamp(),
                source="worker",
                correlation_id=correlation_id.decode(),
                decision="refused",
                status=status,
                reason=refusal.reason,
                client_ip=self.peer_ip,
                method=method.decode("latin-1"),
                uri=text(target)[:1024],
            ),
            log.WARNING,
            "request refused",
        )
        self.server_state.total_requests += 1
        if close:
            self._linger(not fields or _has_body(fields))
        elif self.driver is None and not self._queue and self._refusal is None:
            self._await_next()

    def _linger(self, more: bool) -> None:
        """Close. `more`: something of the client's may be on its way; read on for a moment, because a reset
        would destroy the answer on its way to the client (RFC 9112 9.6)."""
        self._is_lingering = True
        more = more or bool(self._queue)
        self._queue.clear()
        self.waiting_for = LINGERING
        self.waiting_until = self.context.now + self.context.linger_ns
        transport = self.transport
        if transport.is_closing():
            return
        self.context.outbox.flush(transport)
        if transport.can_write_eof() and (more or self._in_head or self._paused):
            self._release(self._paused)
            transport.write_eof()
        else:
            transport.close()

    # --- back-pressure towards the client -----------------------------------------------------------------

    def pause_writing(self) -> None:
        """The client reads slower than we write."""
        self.write_is_full()
        if self.driver is not None:
            self.driver.client_full()

    def resume_writing(self) -> None:
        """It has caught up: go on where it was left."""
        self.is_full = False
        self.stalled_until = 0
        if self._is_lingering:
            return
        if self.driver is not None:
            self.driver.client_writable()
        elif self._queue:
            self._schedule_next()
        elif self._refusal is not None:
            self._refuse_now(self._refusal)
        else:
            self._await_next()
        self._release(FOR_CLIENT)


def _asks_websocket(fields: list[Field]) -> bool:
    return any(
        name.lower() == b"upgrade" and any(token.strip().lower() == b"websocket" for token in value.split(b","))
        for name, value in fields
    )


def _has_body(fields: list[Field]) -> bool:
    for name, value in fields:
        lower = name.lower()
        if lower == b"transfer-encoding" or (lower == b"content-length" and value != b"0"):
            return True
    return False
