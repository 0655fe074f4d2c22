"""What an exchange can be told to do: the commands that `proxy/driver.py` and the layers below it implement.

The attributes are what the rows of proxy/exchange.py remember between two inputs.

Kind: pure.
"""

from typing import Any

from proxy.exchange import ROWS
from proxy.exchange_states import NEW, Input
from shared.decision import Decision, HeaderOp
from shared.errors import RequestRefused, UpstreamFailed
from shared.events import EventKind


class Exchange:
    """One request from its accepted head to the end of its response.

    What every exchange sets has a slot. What most never touch (bodies, questions about responses, upgrades) has its
    first value in the class: 60 stores a request cost 0.3 us, 25 half of it (2026-11).
    """

    __slots__ = (
        "__dict__",
        "asks_request",
        "asks_response",
        "has_body",
        "is_request_ended",
        "request_ops",
        "response",
        "response_ops",
        "state",
    )

    awaits_continue = False  # the client sends its body after 100 Continue only
    holds_head = False  # it goes upstream with what is let through of the body, not before
    holds_response_head = False
    is_holding_upstream = False
    is_upgrading = False  # the response's head is a 101 that may be passed on
    held: list[bytes] | None = None  # request body that came before it may go
    response_held: list[bytes] | None = None
    is_body_ended = False  # all of the request's body, where it has one, may go upstream
    is_response_ended = False  # the upstream has sent all of it
    is_data_ended = False  # and all of it may go to the client

    def __init__(self) -> None:
        self.state = NEW
        self.asks_request = self.asks_response = True  # some agent may want to see it
        self.has_body = True  # a body of the request may come
        self.is_request_ended = False  # the client has sent all of it
        self.request_ops: tuple[HeaderOp, ...] = ()
        self.response: Any = None  # the upstream's head
        self.response_ops: tuple[HeaderOp, ...] = ()  # given in the request phase, for the response

    def feed(self, what: Input, value: Any = None) -> None:
        """Take one input; raises IllegalTransition for a pair that the table has no row for."""
        ROWS[self.state][what](self, value)

    # --- commands -------------------------------------------------------------------------------

    def ask(self, kind: EventKind) -> Decision | None:
        """Show the event to the agents. None = a DECISION will be fed; else decided already."""
        raise NotImplementedError

    def cancel_ask(self) -> None:
        """Nobody waits for the pending decision any more."""
        raise NotImplementedError

    def begin_body(self) -> None:
        """The head was allowed: its body may be shown. May feed RELEASED, REFUSED or BODY at once."""

    def begin_response_body(self) -> None:
        """The same for the response's."""

    def say_continue(self) -> None:
        """The head was allowed: send 100 Continue."""
        raise NotImplementedError

    def hold_client(self) -> None:
        """Body is arriving that may not go yet: stop reading from the client."""
        raise NotImplementedError

    def release_client(self) -> None:
        """Read on."""
        raise NotImplementedError

    def connect(self) -> None:
        """Get a connection; CONNECTED or FAILED will be fed (perhaps at once)."""
        raise NotImplementedError

    def send_head(self, ops: tuple[HeaderOp, ...]) -> None:
        """Write the request head upstream; again after LOST and CONNECTED. Without `has_body` that is all of it."""
        raise NotImplementedError

    def send_body(self, data: bytes) -> None:
        """Write body bytes upstream."""
        raise NotImplementedError

    def end_body(self) -> None:
        """The request is complete."""
        raise NotImplementedError

    def hold_upstream(self) -> None:
        """Stop reading from the upstream until the agents have decided."""
        raise NotImplementedError

    def release_upstream(self) -> None:
        """Read on."""
        raise NotImplementedError

    def abort_upstream(self) -> None:
        """Give up the connection, or the wait for one; it will not be used again."""
        raise NotImplementedError

    def relay_head(self, ops: tuple[HeaderOp, ...]) -> None:
        """Write the response's head to the client."""
        raise NotImplementedError

    def relay_data(self, data: bytes) -> None:
        """Write body bytes to the client."""
        raise NotImplementedError

    def relay_end(self) -> None:
        """The response is complete; the exchange has ended."""
        raise NotImplementedError

    def relay_whole(self, body: bytes) -> None:
        """`relay_head` with the response operations, `relay_data` unless empty, and `relay_end` in one."""
        raise NotImplementedError

    def open_tunnel(self, ops: tuple[HeaderOp, ...], held: list[bytes]) -> None:
        """Write the 101 to the client; from now on bytes go both ways, `held` first. CLOSED will be fed."""
        raise NotImplementedError

    def tunnel_data(self, data: bytes) -> None:
        """Bytes of the upstream's behind its 101."""
        raise NotImplementedError

    def tunnel_eof(self) -> None:
        """It says nothing more."""
        raise NotImplementedError

    def tunnel_failed(self, failure: UpstreamFailed) -> None:
        """It is gone."""
        raise NotImplementedError

    def tunnel_gone(self) -> None:
        """The client is gone."""
        raise NotImplementedError

    def finish(self) -> None:
        """What followed the 101 is over; the exchange has ended."""
        raise NotImplementedError

    def refuse(self, decision: Decision, ops: tuple[HeaderOp, ...]) -> None:
        """Answer in the upstream's place; the exchange has ended."""
        raise NotImplementedError

    def break_off(self, decision: Decision) -> None:
        """A refusal comes too late for an answer: break the connection; the exchange has ended."""
        raise NotImplementedError

    def fail(self, failure: UpstreamFailed) -> None:
        """Answer 502 or 504; the exchange has ended."""
        raise NotImplementedError

    def reject(self, refusal: RequestRefused) -> None:
        """Answer that the request was malformed; the exchange has ended."""
        raise NotImplementedError

    def abort_client(self, why: str) -> None:
        """Break the connection, so that a partial response is never taken for a whole one; ended."""
        raise NotImplementedError

    def vanish(self) -> None:
        """The client is gone; the exchange has ended without an answer."""
        raise NotImplementedError
