"""Moves the bytes of one connection to an upstream between its transport and whoever uses it.

Its user is a sink: the driver of one exchange. The pool gives and takes connections (pool.py), the
reader says what the bytes mean (reader.py); here is only when which of them is told.

    connecting --connection_made--> given to a sink --response and request complete--> idle --> given ...
                                        |  anything else                                | a byte, EOF
                                        +----------------------> closed <---------------+

After a 101 that was asked for, the bytes are the sink's own business, in both directions, until it leaves.

Nothing here waits, and no timer is set: `marked_ns` is 0 after every sign of life, the pool's sweep puts
the time there and compares.

Kind: IO.
"""

import asyncio
import socket
import ssl
from typing import Protocol, cast

from proxy.outbox import Outbox
from proxy.upstream.balance import Endpoint
from proxy.upstream.reader import ResponseReader
from proxy.upstream.response import Field, ResponseHead
from shared.defaults import BODY_COPIED_BYTES
from shared.errors import UpstreamFailed

# RFC 9110 9.2.2; a request that may have had its effect is repeated only if that changes nothing.
IDEMPOTENT = frozenset((b"GET", b"HEAD", b"OPTIONS", b"PUT", b"DELETE", b"TRACE"))


class UpstreamSink(Protocol):
    """Who asked for an upstream: the driver of one exchange; hashable by identity.

    Exactly one of `upstream_end` and `upstream_failed` ends every `acquire` that was neither cancelled nor
    aborted. From then on, and after its own `abort`, the sink must forget the connection: it may already
    be another request's. All of these may be called from inside `acquire`.
    """

    def upstream_connected(self, conn: "UpstreamConnection") -> None:
        """The connection is yours: write the request's head now.

        A second call for the same `acquire` is a retry: the reused connection of the first died before
        a byte of the response came. No body byte had been given (`write_body`), so begin again on the
        new connection: head, and `end_body` where the request is complete.
        """

    def upstream_lost(self) -> None:
        """The reused connection died unanswered and nothing of a body had gone: another one follows, by
        `upstream_connected` or `upstream_failed`. Hold what comes of the body; `pool.cancel` gives up."""

    def upstream_informational(self, status: int, headers: list[Field]) -> None:
        """A response 1xx other than 100 and 101; more heads follow."""

    def upstream_head(self, head: ResponseHead) -> None:
        """The final head. `conn.has_more`: body or end follow before this read is over, hold your write."""

    def upstream_body(self, data: bytes) -> None:
        """Body bytes without their framing, never empty, at most one call per read. `conn.has_more` as above."""

    def upstream_end(self) -> None:
        """The response is complete; the connection is already back in its pool, or closed."""

    def upstream_whole(self, head: ResponseHead, body: bytes) -> None:
        """Head, body (b"" = none) and end in one: one read brought them all, as most do."""

    def upstream_failed(self, failure: UpstreamFailed) -> None:
        """There is no response, or (after `upstream_head`) no end of it. The text names the target: for logs only."""

    def upstream_eof(self) -> None:
        """After a 101: it says nothing more, but may still listen. Only `leave` or `abort` ends the connection."""

    def upstream_idle(self) -> None:
        """After a 101: nothing came or went for idle_timeout_s. `leave` or `abort` is expected."""

    def upstream_paused(self) -> None:
        """More than server.connection_buffer_bytes of the request are unsent: give no more until `upstream_writable`.

        May be called from inside `write_head` and `write_body`.
        """

    def upstream_writable(self) -> None:
        """The unsent bytes are few again."""


class ConnectionOwner(Protocol):
    """What a connection asks of its pool."""

    outbox: Outbox
    buffer_bytes: int  # high-water mark of the write buffer

    def connected(self, conn: "UpstreamConnection") -> None: ...
    def take_back(self, conn: "UpstreamConnection") -> None: ...
    def forget_idle(self, conn: "UpstreamConnection") -> None: ...
    def poisoned(self, conn: "UpstreamConnection") -> None: ...
    def failed(self, conn: "UpstreamConnection", sink: UpstreamSink, failure: UpstreamFailed) -> None: ...
    def died_unanswered(self, conn: "UpstreamConnection", sink: UpstreamSink) -> bool: ...
    def lost(self, conn: "UpstreamConnection") -> None: ...


class UpstreamConnection(asyncio.Protocol):
    """One connection to one endpoint; `sink` is its user, None while it connects, is idle or is closed.

    For the sink: `is_reused` (an earlier request used it), `target` (the address as configured),
    `has_more` (see UpstreamSink), and the methods from `write_head` to `resume_reading`.
    """

    __slots__ = (
        "_is_body_given",
        "_is_eof",
        "_is_paused",
        "_is_request_complete",
        "_is_stalled",
        "_reader",
        "endpoint",
        "has_more",
        "is_head_told",
        "is_leaving",
        "is_reused",
        "marked_ns",
        "method",
        "owner",
        "retried",
        "sink",
        "transport",
    )

    def __init__(self, owner: ConnectionOwner, endpoint: Endpoint) -> None:
        self.owner = owner
        self.endpoint = endpoint
        self.sink: UpstreamSink | None = None
        self.is_reused = False
        self.has_more = False
        self.is_head_told = False
        self.is_leaving = False  # its sink is done: what comes is thrown away, until it ends
        self.marked_ns = 0
        self.method = b""
        self.retried = 0
        self.transport: asyncio.Transport | None = None
        self._reader = ResponseReader()
        self._is_paused = False  # by the sink: it takes no more of the response
        self._is_stalled = False  # by the transport: it takes no more of the request
        self._is_request_complete = False
        self._is_body_given = False
        self._is_eof = False

    @property
    def target(self) -> str:
        """The address as configured."""
        return self.endpoint.address

    def give_to(self, sink: UpstreamSink, method: bytes, retried: int) -> None:
        """Begin a request; ends with `upstream_connected`."""
        self.sink = sink
        self.method = method
        self.retried = retried
        self.marked_ns = 0
        self.is_head_told = self._is_request_complete = self._is_body_given = False
        reader = self._reader
        if reader.state or method == b"HEAD":
            reader.begin(method == b"HEAD")
        sink.upstream_connected(self)

    # --- called by the sink -----------------------------------------------------------------------

    def ask_upgrade(self) -> None:
        """Before `write_head`: it asks for an upgrade, a 101 is the answer."""
        self._reader.may_upgrade = True

    def end_writing(self) -> None:
        """After a 101: nothing more will be written. Over TLS that ends the connection."""
        transport = self.transport
        if self.sink is not None and transport is not None and not transport.is_closing():
            self.owner.outbox.flush(transport)
            if transport.can_write_eof():
                transport.write_eof()
            else:
                transport.close()

    def leave(self) -> None:
        """After a 101: all is said. What the upstream still says is thrown away, so that nothing said is lost by a
        reset; the pool ends it if the upstream does not."""
        transport = self.transport
        if self.sink is None:
            return
        self.sink = None
        self.is_leaving = True
        self.marked_ns = 0
        if transport is None or transport.is_closing():
            return
        self.owner.outbox.flush(transport)
        if self._is_eof or not transport.can_write_eof():
            transport.close()
            return
        if self._is_paused:
            self._is_paused = False
            transport.resume_reading()
        transport.write_eof()

    def write_head(self, data: bytes, is_whole: bool = False) -> None:
        """The request's head, and nothing of its body. `is_whole`: there is none; as if `end_body` followed."""
        if self.sink is not None and self.transport is not None:
            self._is_request_complete = is_whole
            self.owner.outbox.write(self.transport, data)

    def write_body(self, data: bytes) -> None:
        """Body bytes, framed by the caller. From the first on the request is never retried."""
        if self.sink is not None and self.transport is not None:
            self._is_body_given = True
            self.marked_ns = 0
            self.owner.outbox.write(self.transport, data)

    def write_chunk(self, data: bytes) -> None:
        """The same in a chunk of its own; a large one is not copied for its frame."""
        if len(data) < BODY_COPIED_BYTES:
            self.write_body(b"%x\r\n%b\r\n" % (len(data), data))
        elif self.sink is not None and self.transport is not None:
            self._is_body_given = True
            self.marked_ns = 0
            self.owner.outbox.write_pieces(self.transport, (b"%x\r\n" % len(data), data, b"\r\n"))

    def end_body(self) -> None:
        """The request is complete, with or without a body; without this the connection is never reused."""
        if self.sink is not None:
            self._is_request_complete = True
            self.marked_ns = 0

    def abort(self) -> None:
        """The client is gone or was refused: close at once, tell the sink nothing more."""
        if self.sink is not None:
            self.sink = None
            self._drop()

    def pause_reading(self) -> None:
        """The client takes no more for now. What this read has already brought is still delivered."""
        if self.sink is not None and not self._is_paused and self.transport is not None:
            self._is_paused = True
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        """The client takes more again."""
        if self.sink is not None and self._is_paused and self.transport is not None:
            self._is_paused = False
            self.marked_ns = 0
            self.transport.resume_reading()

    # --- called by the transport ------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = made = cast(asyncio.Transport, transport)
        made.set_write_buffer_limits(high=self.owner.buffer_bytes)
        sock = made.get_extra_info("socket")
        if sock is not None and sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.owner.connected(self)

    def data_received(self, data: bytes) -> None:
        sink = self.sink
        if sink is None:
            if not self.is_leaving:
                self._unasked()
            return
        reader = self._reader
        head = reader.whole(data)
        if head is None:
            head = self._feed(sink, reader, data)
            if head is None:
                return
        body = reader.body
        try:
            self._let_go()  # perhaps to another request, which may fail us, too
            sink.upstream_whole(head, body)
        except Exception:
            # Nothing ties the request to this connection any more: it must not be left hanging.
            self.owner.failed(self, sink, UpstreamFailed(502, "internal_error", "the response failed us"))
            raise

    def _feed(self, sink: UpstreamSink, reader: ResponseReader, data: bytes) -> ResponseHead | None:
        """Tell the sink what this read brought; but a response that it brought all of is returned, and not told."""
        self.marked_ns = 0
        try:
            reader.feed(data)
        except UpstreamFailed as failure:
            self.fail(failure)
            return None
        if not self.is_head_told:
            if reader.informational is not None:
                for status, headers in reader.informational:
                    sink.upstream_informational(status, headers)
                    if self.sink is not sink:
                        return None
            head = reader.head
            if head is None:
                return None
            self.is_head_told = True
            if reader.is_complete:
                return head
            self.has_more = reader.is_complete or reader.body != b""
            sink.upstream_head(head)
            if self.sink is not sink:
                return None
        if reader.body:
            self.has_more = reader.is_complete
            sink.upstream_body(reader.body)
            if self.sink is not sink:
                return None
        if reader.is_complete:
            self._finish(sink)
        return None

    def eof_received(self) -> bool:
        """True: the transport stays open for what is still to be written (not over TLS)."""
        sink = self.sink
        if sink is None:
            self.owner.forget_idle(self)
        elif self._reader.is_tunnel and not self._is_cut():
            self._is_eof = True
            sink.upstream_eof()
            return self.sink is sink and self.transport is not None and self.transport.can_write_eof()
        elif not self._is_cut() and self._reader.eof():
            self._finish(sink)
        else:
            self._drop()  # a transport with unsent bytes would go on trying; connection_lost tells the rest
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        if self.transport is not None:
            self.owner.outbox.drop(self.transport)
        self.transport = None
        sink = self.sink
        self.sink = None
        self.owner.lost(self)
        if sink is not None and not (self._may_retry() and self.owner.died_unanswered(self, sink)):
            text = f"closed before the response was complete: {exc or 'end of stream'}"
            self.owner.failed(self, sink, UpstreamFailed(502, "closed_early", text))

    def pause_writing(self) -> None:
        self._is_stalled = True
        if self.sink is not None:
            self.sink.upstream_paused()

    def resume_writing(self) -> None:
        self._is_stalled = False
        self.marked_ns = 0
        if self.sink is not None:
            self.sink.upstream_writable()

    # --- called by the pool -----------------------------------------------------------------------

    def is_usable(self) -> bool:
        """Whether a request can still be written; an idle connection may have died in this turn of the loop."""
        return self.transport is not None and not self.transport.is_closing()

    def is_held_by_client(self) -> bool:
        """Whether silence is the client's doing."""
        return self._is_paused

    @property
    def is_tunnel(self) -> bool:
        """Whether a 101 was said on it."""
        return self._reader.is_tunnel

    def idle(self) -> None:
        """Nothing came or went for too long: its sink ends it."""
        if self.sink is not None:
            self.sink.upstream_idle()

    def fail(self, failure: UpstreamFailed) -> None:
        """End the request without a response; the connection is closed."""
        sink = self.sink
        self.sink = None
        self._drop()
        if sink is not None:
            self.owner.failed(self, sink, failure)

    def close(self) -> None:
        """Close an idle or finished connection in good order."""
        if self.transport is not None:
            self.owner.outbox.flush(self.transport)
            self.transport.close()

    def drop(self) -> None:
        """Close at once whatever state it is in; a sink is not told."""
        self.sink = None
        self._drop()

    def _drop(self) -> None:
        if self.transport is not None:
            self.owner.outbox.drop(self.transport)
            self.transport.abort()

    def _has_unsent(self) -> bool:
        """Whether bytes of the request are still here; only a body can be that long."""
        if not self._is_body_given:
            return self._is_stalled
        transport = self.transport
        return transport is None or transport.get_write_buffer_size() > 0 or self.owner.outbox.holds(transport)

    def _is_cut(self) -> bool:
        """Whether TLS ended without its goodbye: anybody on the way could have ended it (RFC 9112 9.8).

        uvloop reports only a true end, asyncio any.
        """
        tls = self.transport.get_extra_info("ssl_object") if self.transport is not None else None
        if tls is None:
            return False
        try:
            return bool(tls.read(1))
        except ssl.SSLZeroReturnError:
            return False
        except ssl.SSLError:
            return True

    def _may_retry(self) -> bool:
        """Whether the dead request can be begun again without anybody noticing."""
        return self.is_reused and self._reader.is_untouched and not self._is_body_given and self.method in IDEMPOTENT

    def _finish(self, sink: UpstreamSink) -> None:
        self._let_go()
        sink.upstream_end()

    def _let_go(self) -> None:
        """The response is complete: back into the pool, if nothing speaks against it."""
        reader = self._reader
        self.sink = None
        self.has_more = False
        if self._is_paused:  # an idle connection must read, or its end would go unnoticed
            self._is_paused = False
            if self.transport is not None:
                self.transport.resume_reading()
        if reader.has_extra:
            self.owner.poisoned(self)
            self._drop()
        elif not self._is_request_complete or ((self._is_body_given or self._is_stalled) and self._has_unsent()):
            # It answered before it had the request; what it does with the rest is not our business.
            self._drop()
        elif not reader.is_keep_alive:
            self.close()
        else:
            self.is_reused = True
            self.owner.take_back(self)

    def _unasked(self) -> None:
        """Bytes without a request: whatever they are, the next response could no longer be told apart."""
        transport = self.transport
        if transport is not None and not transport.is_closing():
            self.owner.forget_idle(self)
            self.owner.poisoned(self)
            self._drop()
