"""How a client connection answers what becomes no request: broken rules, and no route; and how it is closed after that.

The layer between the parser's reading and the requests (proxy/protocol.py), which it answers in their order: what
comes before a refusal is answered first. Which rule was broken is known by whoever raised `RequestRefused`.

Kind: IO.
"""

from collections import deque
from typing import TYPE_CHECKING

from proxy import apply
from proxy.client_tunnel import UpgradableClient
from proxy.exchange_states import BROKEN
from proxy.head import Field
from proxy.streams import FOR_QUEUE, LINGERING
from shared import log
from shared.errors import RequestRefused
from shared.wire.audit import AuditRecord
from shared.wire.messages import text

if TYPE_CHECKING:
    from proxy.driver import Driver
    from proxy.protocol import Queued


class RefusingClient(UpgradableClient):
    """A connection that can say no."""

    driver: "Driver | None"
    is_draining: bool
    peer_ip: str
    _queue: "deque[Queued]"
    _receiving: "Queued | None"  # whose body the parser is reading; None = the driver's

    def _await_next(self) -> None:
        """The connection goes on with its next request."""
        raise NotImplementedError

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
        elif status == 426:
            head_fields += [(b"upgrade", b"websocket"), (b"sec-websocket-version", b"13")]
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


def _has_body(fields: list[Field]) -> bool:
    for name, value in fields:
        lower = name.lower()
        if lower == b"transfer-encoding" or (lower == b"content-length" and value != b"0"):
            return True
    return False
