"""What a client's connection is behind the head of an upgrade: bytes that are no HTTP, for a tunnel or for nobody.

The layer between `streams` and `protocol`. Until the upstream has said 101 such bytes are kept (one read; then reading
pauses), afterwards they are the tunnel's (proxy/tunnel.py); after any other answer they are thrown away.

Kind: IO.
"""

from typing import TYPE_CHECKING, Any

from proxy.streams import CLOSE_ANSWER, FOR_DECISION, FOR_QUEUE, ClientStreams
from shared.clock import S
from shared.defaults import WEBSOCKET_CLOSE_S

if TYPE_CHECKING:
    from proxy.tunnel import Tunnel


class UpgradableClient(ClientStreams):
    """A client connection that may become a WebSocket."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._early: list[bytes] | None = None  # behind an upgrade's head; None = there was none
        self._tunnel: Tunnel | None = None

    def _behind_upgrade(self, rest: bytes) -> bytes:
        if rest and self._early is not None and not self._is_lingering:
            self._take_raw(rest)
        return b""

    def _take_raw(self, data: bytes) -> None:
        """For the tunnel, or kept until there is one."""
        if self._tunnel is not None:
            self._tunnel.client_data(data)
        elif self._early is not None:
            self._early.append(data)
            self._pause(FOR_DECISION)

    def eof_received(self) -> bool:  # type: ignore[override]
        """A half-closed client counts as gone (the transport closes itself), but for a tunnel (True)."""
        tunnel = self._tunnel
        if tunnel is None:
            return False
        tunnel.client_eof()
        return self._tunnel is tunnel and self.transport.can_write_eof()

    def cut(self) -> None:
        """The worker stops: a WebSocket is told, everything else is broken off."""
        if self._tunnel is not None:
            self._tunnel.close(b"the proxy stops")
        else:
            self.abort()

    # --- for drivers and tunnels ----------------------------------------------------------------------

    def enter_tunnel(self, tunnel: "Tunnel") -> list[bytes]:
        """From the driver: a 101 is written. Returns what the client has sent already."""
        self._tunnel = tunnel
        early, self._early = self._early or [], []
        self._release(FOR_DECISION | FOR_QUEUE)
        return early

    def end_writing(self) -> None:
        """Nothing more will be written, but the client may go on."""
        if self.transport.can_write_eof() and not self.transport.is_closing():
            self.context.outbox.flush(self.transport)
            self.transport.write_eof()

    def await_close(self) -> None:
        """A close frame was written to one side; its answer has its time."""
        self.waiting_for = CLOSE_ANSWER
        self.waiting_until = self.context.now + int(WEBSOCKET_CLOSE_S * S)
