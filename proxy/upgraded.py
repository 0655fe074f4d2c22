"""The part of a driver that knows of WebSocket: from the upgrade's head to the end of what follows a 101.

Between `proxy/bodies.py` and `proxy/driver.py`; without an upgrade nothing here runs but an `is None`. Which
handshake may be believed is decided in proxy/upgrade.py, what becomes of bytes and messages in proxy/tunnel.py.
For the exchange all of it is one state, UPGRADED.

Kind: IO.
"""

from collections.abc import Sequence

from proxy import apply
from proxy.exchange import ROWS
from proxy.exchange_states import CLOSED, EOF, FAILED
from proxy.fallbacks import Fallbacks
from proxy.head import Field
from proxy.limits import rate_lines
from proxy.plan_view import PlanView
from proxy.tunnel import ByteTunnel, FrameTunnel, Tunnel
from proxy.upgrade import Deflate, Upgrade, check_answer, decodable
from proxy.upstream.response import ResponseHead, end_to_end
from shared.decision import Decision, HeaderOp, Verb
from shared.errors import UpstreamFailed
from shared.events import EventKind
from shared.metrics import W_WEBSOCKETS, W_WEBSOCKETS_CLOSED, W_WEBSOCKETS_OPEN
from shared.segment_buckets import Limit
from shared.wire.envelope import CancelReason


class Upgraded(Fallbacks):
    """An exchange that may become a WebSocket."""

    __slots__ = ("limited", "status", "upgrade")

    upgrade: Upgrade | None
    tunnel: Tunnel | None = None
    limited: "tuple[Limit, int] | None"  # the most restrictive rate limit, and what it has left
    status: int
    error = ""
    decided_by = ""
    _cancels: CancelReason | None = None  # a question of the tunnel's is out that nobody waits for any more
    _deflate: Deflate | None
    _frame_views: tuple[PlanView, ...]

    # --- the handshake ------------------------------------------------------------------------------

    def upgrade_fields(self, upgrade: Upgrade, fields: list[Field] | None) -> list[Field] | None:
        """The fields for the upstream. From now on it is settled whether agents will see messages."""
        self._frame_views = tuple(view for view in self.route.frame_views if view.mask)
        if self._frame_views:
            return decodable(self.head.kept if fields is None else fields, upgrade)
        return fields

    def accepts_upgrade(self, response: ResponseHead) -> bool:
        """Whether the upstream's 101 may be believed; if not, that has ended the exchange."""
        assert self.upgrade is not None
        try:
            self._deflate = check_answer(response, self.upgrade, is_decoded=bool(self._frame_views))
        except UpstreamFailed as failure:
            self.abort_upstream()
            ROWS[self.state][FAILED](self, failure)
            return False
        self.is_upgrading = True
        return True

    # --- the exchange's commands --------------------------------------------------------------------

    def open_tunnel(self, ops: tuple[HeaderOp, ...], held: Sequence[bytes]) -> None:
        upstream, protocol, response = self.upstream, self.protocol, self.response
        assert upstream is not None
        self.status = 101
        cells = protocol.context.cells
        cells[W_WEBSOCKETS] += 1
        cells[W_WEBSOCKETS_OPEN] += 1
        framing = apply.UPGRADE_LINES + (rate_lines(self.limited) if self.limited is not None else b"")
        fields = [field for field in end_to_end(response.headers) if field[0].lower() != b"content-length"]
        protocol.write(apply.response_head(101, fields, ops, framing, self.correlation_id, apply.VIA))
        self.know_client()
        tunnel: Tunnel
        if self._frame_views:
            tunnel = FrameTunnel(self, upstream, self._frame_views, self.route.websocket, self._deflate)
        else:
            tunnel = ByteTunnel(self, upstream)
        self.tunnel = tunnel
        early = protocol.enter_tunnel(tunnel)
        if protocol.is_full:
            tunnel.client_is_full(True)
        for data in held:
            tunnel.upstream_data(data)
        for data in early:
            tunnel.client_data(data)

    def tunnel_data(self, data: bytes) -> None:
        assert self.tunnel is not None
        self.tunnel.upstream_data(data)

    def tunnel_eof(self) -> None:
        assert self.tunnel is not None
        self.tunnel.upstream_eof()

    def tunnel_failed(self, failure: UpstreamFailed) -> None:
        assert self.tunnel is not None
        self.tunnel.upstream_lost(failure.reason)

    def tunnel_gone(self) -> None:
        assert self.tunnel is not None
        self.tunnel.client_lost()

    # --- from the connection to the upstream ----------------------------------------------------------

    def upstream_eof(self) -> None:
        ROWS[self.state][EOF](self, None)

    def upstream_idle(self) -> None:
        if self.tunnel is not None:
            self.error = self.error or "idle_timeout"
            self.tunnel.close(b"nothing was said for too long")

    # --- from the tunnel --------------------------------------------------------------------------------

    def tunnel_over(self) -> None:
        """Both ends were told, or are gone."""
        self.upstream = None
        self.protocol.context.cells[W_WEBSOCKETS_OPEN] -= 1
        ROWS[self.state][CLOSED](self, None)

    def count(self, view: PlanView, decision: Decision) -> None:
        """One decision more of the route."""
        self.route.tally[view.verdicts_at + decision.verb] += 1

    def cancels_with(self, reason: CancelReason) -> None:
        """A question is out that nobody waits for any more."""
        self._cancels = self._cancels or reason

    def websocket_closed(self, code: int, decision: Decision | None, reason: str) -> None:
        """By an agent, by a failure or for a broken rule; not by its ends."""
        self.protocol.context.cells[W_WEBSOCKETS_CLOSED] += 1
        self.decided_in = EventKind.WEBSOCKET_FRAME
        if decision is None or decision.verb is Verb.FAIL:
            self.error = reason
        self.decided_by = decision.agent if decision is not None else ""
        self.account("refused" if decision is None else decision.verb.word, code, reason, self.decided_by)

    def know_client(self) -> None:
        """Who the client is, also where nobody has been told yet."""
        raise NotImplementedError

    def account(self, what: str, status: int, reason: str, agent: str) -> None:
        """Audit record and log line."""
        raise NotImplementedError
