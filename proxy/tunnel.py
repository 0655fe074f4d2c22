"""Moves the bytes of an upgraded connection between client and upstream: as they are, or as messages.

    ByteTunnel      nobody looks: bytes both ways, each end's EOF passed on
    FrameTunnel     agents look: the `Link` of a relay (websocket.py); asks, writes, holds, closes

Both pause the side that sends more than the other takes. An end that breaks breaks the other. What the exchange
knows of all this is one state; it is told once when it is over. What becomes of a message is decided in
websocket.py; no timer here: the pool's sweep finds idleness, the connections' sweep an unanswered close.

Kind: IO.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from proxy.plan_view import PlanView
from proxy.upgrade import Deflate
from proxy.upstream.connection import UpstreamConnection
from proxy.websocket import GOING_AWAY, Message, Relay, Way
from proxy.websocket_peer import Peer
from shared.clock import now_ns
from shared.config.schema_routes import WebSocket
from shared.decision import Decision, Outcome, on_failure
from shared.wire.envelope import CancelReason
from shared.wire.messages import websocket_frame_event

if TYPE_CHECKING:
    from proxy.upgraded import Upgraded


class ByteTunnel:
    """Bytes as they come. `upstream` is None once it is gone."""

    def __init__(self, driver: "Upgraded", upstream: UpstreamConnection) -> None:
        self._driver = driver
        self._protocol = driver.protocol
        self._upstream: UpstreamConnection | None = upstream
        self._client_ended = self._upstream_ended = False
        self._is_over = False

    def client_data(self, data: bytes) -> None:
        """From the client."""
        self._driver.received += len(data)
        if self._upstream is not None:
            self._upstream.write_body(data)

    def upstream_data(self, data: bytes) -> None:
        """From the upstream."""
        if not self._is_over:
            self._driver.sent += len(data)
            self._protocol.write(data)

    def client_eof(self) -> None:
        """The client says nothing more."""
        self._client_ended = True
        if self._upstream_ended:
            self._end()
        elif self._upstream is not None:
            self._upstream.end_writing()

    def upstream_eof(self) -> None:
        """Nor does the upstream."""
        self._upstream_ended = True
        if self._client_ended:
            self._end()
        else:
            self._protocol.end_writing()

    def client_lost(self) -> None:
        """Its connection is closed: in good order only if it had ended its stream before."""
        if self._client_ended:
            self._end()
            return
        self._is_over = True
        self._driver.error = "client_gone"
        if self._upstream is not None:
            self._upstream.abort()
            self._upstream = None
        self._driver.tunnel_over()

    def upstream_lost(self, reason: str) -> None:
        """The same of the upstream's."""
        self._upstream = None
        if self._upstream_ended:
            self._end()
            return
        self._driver.error = reason
        self._is_over = True
        self._driver.tunnel_over()
        self._protocol.abort()

    def client_is_full(self, is_full: bool) -> None:
        """It reads slower than we write, or has caught up."""
        if self._upstream is not None:
            if is_full:
                self._upstream.pause_reading()
            else:
                self._upstream.resume_reading()

    def upstream_is_full(self, is_full: bool) -> None:
        """The same of the upstream."""
        if is_full:
            self._protocol.hold_for_upstream()
        else:
            self._protocol.release_for_upstream()

    def close(self, reason: bytes) -> None:
        """It has been idle for too long, was not closed in time, or the worker stops."""
        self._end()

    def _end(self) -> None:
        if self._is_over:
            return
        self._is_over = True
        if self._upstream is not None:
            self._upstream.leave()
            self._upstream = None
        self._driver.tunnel_over()
        self._protocol.tunnel_ended(is_eof=self._client_ended)


class _Question:
    """One message with the agents of one stage."""

    __slots__ = ("_tunnel", "_way", "event_id", "exchange_id", "view")

    def __init__(self, tunnel: "FrameTunnel", way: Way, view: PlanView, exchange_id: int) -> None:
        self._tunnel = tunnel
        self._way = way
        self.view = view
        self.exchange_id = exchange_id
        self.event_id = 0

    def decided(self, decision: Decision) -> None:
        self._tunnel.answered(self, self._way, decision)


class FrameTunnel:
    """Messages, each shown to agents before it goes on."""

    def __init__(
        self,
        driver: "Upgraded",
        upstream: UpstreamConnection,
        views: Sequence[PlanView],
        settings: WebSocket,
        deflate: Deflate | None,
    ) -> None:
        self._driver = driver
        self._protocol = driver.protocol
        self._upstream: UpstreamConnection | None = upstream
        self._views = views
        # Settled with the upgrade: a HELLO in the middle of it frees no message from those who decide.
        self._masks = [view.mask for view in views]
        self._questions: dict[Way, _Question] = {}
        self._connects = driver.connects  # of dispatch, when something was first shown; 0: nothing was
        self._is_client_gone = self._client_ended = False
        self._relay = relay = Relay(self, len(views), settings.max_message_bytes, deflate)
        if settings.max_messages_per_s:
            relay.from_client.limit(settings.max_messages_per_s, now_ns)

    # --- what happens to its ends -------------------------------------------------------------------

    def client_data(self, data: bytes) -> None:
        """From the client."""
        self._driver.received += len(data)
        if self._upstream is not None:
            self._upstream.marked_ns = 0  # also what does not go on, a ping, is a sign of life
        self._relay.from_client.take(data)

    def upstream_data(self, data: bytes) -> None:
        """From the upstream."""
        self._relay.from_upstream.take(data)

    def client_eof(self) -> None:
        """The client says nothing more."""
        self._client_ended = True
        self._relay.eof(self._relay.client)

    def upstream_eof(self) -> None:
        """Nor does the upstream."""
        self._relay.eof(self._relay.upstream)

    def client_lost(self) -> None:
        """Its connection is closed."""
        self._is_client_gone = True
        self._note_lost(self._relay.client, "client_gone")
        self._relay.lost(self._relay.client)

    def upstream_lost(self, reason: str) -> None:
        """The upstream's is."""
        self._upstream = None
        self._note_lost(self._relay.upstream, reason)
        self._relay.lost(self._relay.upstream)

    def _note_lost(self, peer: Peer, reason: str) -> None:
        if not peer.has_closed:
            self._driver.error = self._driver.error or reason

    def client_is_full(self, is_full: bool) -> None:
        """It reads slower than we write, or has caught up."""
        (self._relay.full if is_full else self._relay.writable)(self._relay.client)

    def upstream_is_full(self, is_full: bool) -> None:
        """The same of the upstream."""
        (self._relay.full if is_full else self._relay.writable)(self._relay.upstream)

    def close(self, reason: bytes) -> None:
        """It has been idle for too long, was not closed in time, or the worker stops."""
        self._relay.close(GOING_AWAY, reason)

    def answered(self, question: _Question, way: Way, decision: Decision) -> None:
        """From dispatch, by way of the question."""
        if self._questions.get(way) is question:
            del self._questions[way]
            self._driver.count(question.view, decision)
            way.decided(decision)

    # --- what the relay wants (websocket.Link) ------------------------------------------------------

    def send(self, to: Peer, data: bytes) -> None:
        if not to.is_client:
            if self._upstream is not None:
                self._upstream.write_body(data)
        elif not self._is_client_gone:
            self._driver.sent += len(data)
            self._protocol.write(data)

    def hold(self, peer: Peer) -> None:
        if peer.is_client:
            self._protocol.hold_for_upstream()
        elif self._upstream is not None:
            self._upstream.pause_reading()

    def release(self, peer: Peer) -> None:
        if peer.is_client:
            self._protocol.release_for_upstream()
        elif self._upstream is not None:
            self._upstream.resume_reading()

    def ask(self, way: Way, message: Message, stage: int) -> Decision | None:
        view, mask = self._views[stage], self._masks[stage]
        driver = self._driver
        dispatch = self._protocol.context.dispatch
        if self._connects != dispatch.connects:
            if self._connects:  # agentd has restarted: whoever it would ask now has not seen what came before
                refusal = dispatch.failed(view, mask, Outcome.DISCONNECTED)
                driver.count(view, refusal)
                return refusal
            self._connects = dispatch.connects
        event = websocket_frame_event(
            driver.correlation_id,
            message.opcode,
            way.is_from_client,
            message.index,
            True,
            driver.route.name,
            driver.client_ip,
        )
        question = _Question(self, way, view, driver.exchange_id)
        driver.was_shown = True
        said = dispatch.send_body(question, view, mask, event, message.payload, message.index, False, now_ns())
        if isinstance(said, Decision):
            driver.count(view, said)
            return said
        question.event_id = said
        self._questions[way] = question
        return None

    def cancel(self, way: Way) -> None:
        question = self._questions.pop(way, None)
        if question is not None:
            self._protocol.context.dispatch.forget(question.view, question.event_id)
            self._driver.cancels_with(CancelReason.CLIENT_GONE if self._is_client_gone else CancelReason.DECIDED)

    def malformed(self, decision: Decision, stage: int) -> Decision | None:
        view = self._views[stage]
        assert decision.chunk is not None
        ask = view.plan.asks[decision.chunk.editor]
        return on_failure(Outcome.MALFORMED, ask.failure_mode, view.kind, ask.agent)

    def again(self, way: Way) -> None:
        self._protocol.loop.call_soon(way.go_on)

    def closing(self) -> None:
        if not self._is_client_gone:
            self._protocol.await_close()

    def shut(self, peer: Peer) -> None:
        if peer.is_client:
            self._driver.tunnel_over()
            if not self._is_client_gone:
                self._protocol.tunnel_ended(is_eof=self._client_ended)
        elif self._upstream is not None:
            self._upstream.leave()
            self._upstream = None

    def ended(self, code: int, decision: Decision | None, reason: str) -> None:
        self._driver.websocket_closed(code, decision, reason)


Tunnel = ByteTunnel | FrameTunnel
