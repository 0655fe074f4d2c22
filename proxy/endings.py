"""How an exchange ends: answers of our own, connections broken off, and what agents, audit and log are told of it.

The layer of a driver below `proxy/driver.py`. When it comes to which end is decided in proxy/exchange_ends.py; the
bytes of an answer are made in proxy/apply.py.

Kind: IO.
"""

from typing import TYPE_CHECKING, Any

from proxy import apply
from proxy.head import Field
from proxy.limits import release
from proxy.upgraded import Upgraded
from shared import log
from shared.clock import now_ns
from shared.decision import Decision, HeaderOp, Verb
from shared.errors import RequestRefused, UpstreamFailed
from shared.events import EventKind
from shared.metrics import R_RESPONSES, W_CLIENT_GONE, W_STREAMS_ABORTED, observe_request
from shared.wire.audit import AuditRecord
from shared.wire.envelope import CancelReason
from shared.wire.messages import Completion, request_complete_event, target_json, text

if TYPE_CHECKING:
    from proxy.plan_view import PlanView
    from shared.segment_buckets import Limit

_RESPONSES = R_RESPONSES - 1  # where those of status 1xx are counted, less the 1
_TEXT: Field = (b"content-type", b"text/plain; charset=utf-8")
_ACCOUNTS = {"failed": "upstream failed", "allow": "passed without an agent"}
_FAILURE_TEXT = {502: b"bad gateway", 503: b"service unavailable", 504: b"gateway timeout"}


class Endings(Upgraded):
    """An exchange that knows how to end."""

    __slots__ = ("_meta", "_unsent", "attempts", "started_ns", "uses")

    started_ns: int
    uses: "tuple[tuple[Limit, int], ...]"  # concurrency limits that count it
    attempts: int  # connections to upstreams that it was given
    _is_forgotten = False  # a head's question is out that nobody waits for any more
    _meta: bytes  # `"metadata":{...}` of its events, once it was made
    _unsent: list[bytes] | None  # of the response, until this turn's bytes are together

    def _metadata(self) -> bytes:
        raise NotImplementedError

    # --- answers of our own, and breaks ---------------------------------------------------------------

    def refuse(self, decision: Decision, ops: tuple[HeaderOp, ...]) -> None:
        self.decided_by = decision.agent
        if decision.verb is Verb.FAIL:
            self.error = decision.reason
        fields = [(name.encode(), apply.encode_value(value)) for name, value in decision.headers]
        body = decision.body
        if decision.verb is Verb.FAIL:
            fields.append(_TEXT)
            body += b"correlation id: %b\n" % self.correlation_id
        self._answer(decision.status, fields, ops, body)
        what = decision.verb.word if decision.agent else "refused"  # a limit's refusal has no agent
        self._account(what, decision.status, decision.reason, decision.agent)

    def break_off(self, decision: Decision) -> None:
        self.decided_by = decision.agent
        self.protocol.context.cells[W_STREAMS_ABORTED] += 1
        self.error = decision.reason
        self._account(decision.verb.word, self.status, decision.reason, decision.agent, aborted=True)
        self._done()
        self._unsent = None
        self.protocol.abort()

    def fail(self, failure: UpstreamFailed) -> None:
        self.error = failure.reason
        body = b"%b: %b\ncorrelation id: %b\n" % (
            _FAILURE_TEXT.get(failure.status, b"upstream failed"),
            failure.reason.replace("_", " ").encode(),  # the text names the target: that is for the log
            self.correlation_id,
        )
        self._answer(failure.status, [_TEXT], self.response_ops, body)
        self._account("failed", failure.status, failure.reason, "")

    def reject(self, refusal: RequestRefused) -> None:
        self.protocol.context.count_refused(refusal.status)
        self.error = refusal.reason
        body = b"%b\ncorrelation id: %b\n" % (refusal.reason.encode(), self.correlation_id)
        self.is_request_ended = False  # whatever follows on this connection is not a request
        self._answer(refusal.status, [_TEXT], (), body)
        self._account("refused", refusal.status, refusal.reason, "")

    def _answer(self, status: int, fields: list[Field], ops: tuple[HeaderOp, ...], body: bytes) -> None:
        head = self.head
        self.status = status
        self.sent = 0 if head.method == b"HEAD" else len(body)
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
        self.error = why
        self.protocol.context.cells[W_STREAMS_ABORTED] += 1
        self._account("failed", self.status, why, "", aborted=True)
        self._done()
        self._unsent = None
        self.protocol.abort()

    def vanish(self) -> None:
        self.protocol.context.cells[W_CLIENT_GONE] += 1
        self.error = "client_gone"
        self._done()

    # --- the end ------------------------------------------------------------------------------------------

    def finish(self) -> None:
        self._done()

    def _finish(self, close: bool) -> None:
        self._done()
        self.protocol.exchange_ended(close)

    def _done(self) -> None:
        status = self.status
        if status:
            tally = self.route.tally
            tally[status // 100 + _RESPONSES] += 1
            if status != 101:  # which lasts as long as somebody has something to say
                observe_request(tally, now_ns() - self.started_ns)
        if self.uses:
            uses, self.uses = self.uses, ()
            release(uses)
        complete = self.route.complete_view
        if self.was_shown or complete is not None:
            self._tell_agents(complete)

    def _tell_agents(self, complete: "PlanView | None") -> None:
        """That the exchange is over: cancel what is out, then request_complete, or let go of what is pinned."""
        dispatch = self.protocol.context.dispatch
        reason = self._cancels
        is_forgotten = self._is_forgotten
        for flow in (self.request_flow, self.response_flow):
            if flow is not None and flow.close():
                is_forgotten = True
        if is_forgotten and reason is None:
            reason = CancelReason.CLIENT_GONE if self.error == "client_gone" else CancelReason.DECIDED
        is_told = complete is not None and complete.mask and dispatch.is_up
        if reason is not None:
            dispatch.cancel_exchange(self.exchange_id, reason, more_follows=bool(is_told))
        if complete is not None and is_told:
            dispatch.tell(complete, self.exchange_id, self._completion(), now_ns())
        elif reason is None and self.was_shown:
            dispatch.end(self.exchange_id)

    def _completion(self) -> bytes:
        head = self.head
        done = Completion(
            self.status,
            (now_ns() - self.started_ns) / 1_000_000,
            self.received,
            self.sent,
            self.attempts,
            self.error,
            self.decided_by,
        )
        meta = self._meta or self._metadata()
        return request_complete_event(meta, head.method, target_json(head.target), done)

    def know_client(self) -> None:
        if not self._meta:
            self._meta = self._metadata()

    def account(self, what: str, status: int, reason: str, agent: str) -> None:
        self._account(what, status, reason, agent)

    def account_text(
        self,
        what: str,
        reason: str,
        agent: str,
        *,
        guardrail: dict[str, Any] | None = None,
        tokens: dict[str, Any] | None = None,
    ) -> None:
        message = "guardrail finding" if guardrail is not None else "tokens taken"
        self.protocol.context.account(
            self._record(what, 0, reason, agent, EventKind.GUARDRAIL_INSPECT, guardrail=guardrail, tokens=tokens),
            log.INFO,
            message,
        )

    def note_fallback(self, reason: str, failed: str, upstream: str) -> None:
        record = self._record("failed", 0, reason, "", EventKind.REQUEST_HEADERS, upstreams=[failed, upstream])
        self.protocol.context.account(record, log.WARNING, "upstream failed, the next one is asked")

    def note_passed_on(self, kind: EventKind, agent: str) -> None:
        self._account("allow", 0, "body_too_large", agent, phase=kind)

    def _account(
        self,
        what: str,
        status: int,
        reason: str,
        agent: str,
        *,
        aborted: bool = False,
        phase: EventKind | None = None,
    ) -> None:
        """Every refusal and failure: audit record and (rate-limited) log line; its metric is elsewhere."""
        phase = phase or self.decided_in
        if phase is None:
            phase = EventKind.REQUEST_HEADERS if self.response is None else EventKind.RESPONSE_HEADERS
        self.protocol.context.account(
            self._record(what, status, reason, agent, phase),
            log.INFO if what in ("block", "redirect", "challenge") else log.WARNING,
            _said(what, status, aborted),
        )

    def _record(self, what: str, status: int, reason: str, agent: str, phase: EventKind, **more: Any) -> AuditRecord:
        head = self.head
        return AuditRecord(
            ts=self.protocol.context.timestamp(),
            source="worker",
            correlation_id=self.correlation_id.decode(),
            decision=what,
            route=self.route.name,
            phase=phase.wire_name,
            status=status,
            decided_by=agent,
            reason=reason,
            client_ip=self.client_ip,
            method=head.method.decode(),
            uri=text(head.target)[:1024],
            request_id=head.request_id.decode() if self.protocol.peer_is_trusted else "",
            **more,
        )


def _said(what: str, status: int, aborted: bool) -> str:
    """The log line's message; a status from 1000 on is a close code."""
    if status >= 1000:
        return "WebSocket closed"
    return "response aborted" if aborted else _ACCOUNTS.get(what, "request refused")
