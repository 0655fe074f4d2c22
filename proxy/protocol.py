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
import socket
import struct
from collections import deque
from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.utils import get_remote_addr
from uvicorn.server import ServerState

from proxy import app
from proxy.driver import Driver
from proxy.exchange import ROWS
from proxy.exchange_states import BEGIN, BROKEN, ENDED, GONE, NEW
from proxy.forwarded import peer_lines, untrusted_lines
from proxy.head import Field, Head, normalise
from proxy.limits import release
from proxy.refusals import RefusingClient
from proxy.repeat import Habits
from proxy.streams import (
    BETWEEN_REQUESTS,
    BODY_BYTE,
    CLOSE_ANSWER,
    FOR_AGENTS,
    FOR_CLIENT,
    FOR_DECISION,
    FOR_QUEUE,
    FOR_UPSTREAM,
    LINGERING,
    NEXT_REQUEST,
    NOTHING,
    REST_OF_HEAD,
)
from proxy.upgrade import Upgrade, read_upgrade
from shared.clock import now_ns
from shared.defaults import LINGER_BYTES
from shared.errors import RequestRefused
from shared.metrics import W_CONNECTIONS, W_OPEN_CONNECTIONS
from shared.segment_buckets import Limit
from shared.wire.messages import connection_metadata, lasting_metadata

_begin = ROWS[NEW][BEGIN]
_RESET = struct.pack("ii", 1, 0)  # of SO_LINGER: what is unsent is thrown away, with a RST


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


class ProxyProtocol(RefusingClient):
    """One client connection."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(app.context(), config, server_state, app_state, _loop)
        self.driver = None
        self.is_draining = False
        self.peer_ip = ""
        self.uses: tuple[tuple[Limit, int], ...] = ()  # connection limits that count it
        self.peer_is_trusted = False
        self.peer_scheme = "http"
        self.metadata_part = b""
        self._lasting: tuple[object, ...] = ()  # what `_lasting_part` was made of
        self._lasting_part = b""
        self._habits = Habits()
        self._started: Head | None = None  # by the parser, in this read
        self._forwarded_parts = (b"", b"")
        self._forwarded_host: bytes | None = None
        self._forwarded = b""
        self._queue = deque()
        self._receiving = None
        self._is_next_scheduled = False
        self._lingered = 0
        self.is_ended_by_close = False  # the answer's length is told by the connection's end alone (HTTP/1.0)

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
        self._tunnel = None
        driver = self.driver
        if driver is not None:
            self.driver = None
            driver.feed(GONE)
        self.parser = None  # type: ignore[assignment]

    @property
    def pipelined(self) -> int:
        """Requests that wait for an earlier one's answer."""
        return len(self._queue)

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
        sock = self.transport.get_extra_info("socket") if self.is_ended_by_close else None
        if sock is not None:  # what is cut must not look like its end: a reset, no FIN
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.transport.abort()

    def timeout(self) -> None:
        """From the sweep: `waiting_until` is over."""
        what = self.waiting_for
        self.waiting_until = 0
        if what == REST_OF_HEAD:
            self._refuse_now(RequestRefused(408, "the request's head did not arrive in time"))
        elif what == CLOSE_ANSWER and self._tunnel is not None:
            self._tunnel.close(b"the close was not answered in time")
        elif what == BODY_BYTE and self.driver is not None:
            self.driver.feed(BROKEN, RequestRefused(408, "no byte of the request's body arrived in time"))
        else:
            self._is_lingering = True
            self.context.outbox.flush(self.transport)
            if self.transport.get_write_buffer_size():
                self.abort()  # a close would wait for a client that does not read
            elif what == LINGERING:
                self.transport.abort()
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
        if self._early is not None:
            self._take_raw(data)
            return
        is_new = self.waiting_for in BETWEEN_REQUESTS and not self.is_full
        if is_new and len(data) <= self._limits.max_header_bytes:
            head = self._habits.head_of(data)
            if head is not None:  # a request like one before it needs no parser
                self.context.requests += 1
                self._begin(head)
                return
        self._take(data)
        head, self._started = self._started, None
        if is_new and head is not None:  # its exchange may be over by now
            self._habits.learn(data, head)
        driver = self.driver
        if driver is not None and driver.request_flow is not None:
            driver.request_flow.settle()
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
        if is_upgrade and method != b"CONNECT":
            if version != "1.1" or not _asks_websocket(self.headers):
                self._refeed, self._method, self._version = self.headers, method, version
                return
            self._early = []
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
        driver.client_body(body)

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
            driver.client_body_end()

    # --- exchanges ------------------------------------------------------------------------------------

    def _start(
        self, method: bytes, target: bytes, version: str, fields: list[Field], keep_alive: bool, is_upgrade: bool
    ) -> None:
        context = self.context
        context.requests += 1
        try:
            head = normalise(method, target, version, fields, keep_alive, self._limits.max_body_bytes)
            if head.is_websocket != is_upgrade:
                # llhttp has stopped at this head, or not, and what follows is something else to us than to it.
                raise RequestRefused(400, "ambiguous Upgrade")
            upgrade = read_upgrade(head) if is_upgrade else None
        except RequestRefused as refusal:
            self._answer_refusal(refusal, method, target, fields, keep_alive)
            return
        self._started = head
        if upgrade is not None:
            head.keep_alive = False  # whatever the answer is: nothing behind it is read as HTTP
        self._begin(head, upgrade)

    def _begin(self, head: Head, upgrade: Upgrade | None = None) -> None:
        context = self.context
        route = head.route
        if route is None:
            try:
                route = head.route = context.routes[context.table.choose(head.host_name, head.path, head.method)]
            except RequestRefused as refusal:
                self._answer_refusal(refusal, head.method, head.target, head.fields, head.keep_alive)
                return
        if upgrade is not None and not route.websocket.enabled:
            disabled = RequestRefused(403, "WebSocket is not enabled for this route")
            self._answer_refusal(disabled, head.method, head.target, head.fields, head.keep_alive)
            return
        driver = self.driver = Driver(self, head, route, now_ns())
        if upgrade is not None:
            driver.upgrade = upgrade
        if head.has_body:
            self._is_chunked = head.is_chunked
            self.waiting_for = BODY_BYTE
            if not self._paused:  # of a queued request, whose body is not read yet
                self.waiting_until = context.now + context.body_timeout_ns
            if route.sees_requests:
                try:
                    driver.open_request_flow()
                except RequestRefused as refusal:
                    driver.state = ENDED
                    driver.reject(refusal)
                    return
        else:
            self.waiting_for = NOTHING
            self.waiting_until = 0
        if route.limits is None or not route.limits.refuses(driver):
            _begin(driver, None)

    def tunnel_ended(self, *, is_eof: bool) -> None:
        """From the tunnel: all is said. `is_eof`: also by the client."""
        self.driver = self._tunnel = None
        self._release(self._paused)
        self._linger(not is_eof)

    def exchange_ended(self, close: bool) -> None:
        """From the driver: its response is written. Go on with the next request, or close."""
        driver = self.driver
        self.driver = None
        if self._paused:
            self._release(FOR_DECISION | FOR_UPSTREAM | FOR_AGENTS)
        if close:
            self._linger(driver is None or (driver.head.has_body and not driver.is_request_ended))
            return
        if self._queue:
            self._schedule_next()
        elif self._refusal is not None:
            self._refuse_now(self._refusal)
        elif self._paused or self._in_head or self.is_full or self.is_draining:
            self._await_next()
        else:  # the same, as it is nearly always
            context = self.context
            self.waiting_for = NEXT_REQUEST
            self.waiting_until = context.now + context.keepalive_ns

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
        self._started = None  # its bytes came in an earlier read
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
            driver.client_body(data)
            if self.driver is not driver:
                return
        if queued.is_ended:
            self.waiting_for = NOTHING
            self.waiting_until = 0
            if self.driver is driver:
                driver.client_body_end()
        elif is_last and self._refusal is None:
            self._release(FOR_QUEUE)  # the rest of its body has yet to come
        elif self._refusal is not None:
            driver.feed(BROKEN, self._refusal)
        if driver.request_flow is not None:
            driver.request_flow.settle()

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
