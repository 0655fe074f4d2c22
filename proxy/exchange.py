"""What happens next in one request: the exchange's state machine.

A pure machine: inputs come in by direct calls of `feed`, and what must happen is done by calling the
abstract methods at the end of `Exchange` (the commands), which `proxy/driver.py` implements with IO and
the tests with a list. No socket, clock or encoding here. Subclassing instead of event and command
objects: two allocations per transition cost more than the transition itself.

    NEW --begin--> ASKED --allow--> WAITING --connected--> SENDING --head--> RESPONSE_ASKED --allow--> RELAYING
                     |                 |                      |                   |                       |
                     +--- refusal, failure, client gone ------+-------------------+----> ENDED <----- end -+

ASKED and RESPONSE_ASKED are skipped where nobody is to be asked. BODY_ASKED and RESPONSE_BODY_ASKED are
the places of the body phases; no input leads there yet.

Kind: pure.
"""

from collections.abc import Callable
from enum import IntEnum
from typing import Any

from shared.decision import ALLOW, Decision, HeaderOp, Verb
from shared.errors import IllegalTransition, RequestRefused, UpstreamFailed
from shared.events import EventKind


class State(IntEnum):
    """Where an exchange stands."""

    NEW = 0
    ASKED = 1  # request_headers is with the agents; nothing has gone upstream
    BODY_ASKED = 2  # reserved: a chunk of the request body is with the agents
    WAITING = 3  # allowed; waiting for a connection to the upstream
    SENDING = 4  # the head is upstream, body follows; waiting for the response's head
    RESPONSE_ASKED = 5  # response_headers is with the agents; nothing has gone to the client
    RESPONSE_BODY_ASKED = 6  # reserved: a chunk of the response body is with the agents
    RELAYING = 7  # the response's head is with the client
    ENDED = 8


class Input(IntEnum):
    """What can happen to an exchange."""

    BEGIN = 0
    DECISION = 1  # Decision
    BODY = 2  # bytes of the request body
    BODY_END = 3
    CONNECTED = 4  # a connection to the upstream is ours (again after a retry)
    HEAD = 5  # response head
    DATA = 6  # bytes of the response body
    END = 7  # the response is complete
    FAILED = 8  # UpstreamFailed
    GONE = 9  # the client left
    BROKEN = 10  # RequestRefused: the request's body breaks a rule
    LOST = 11  # the connection died unanswered before any body; another one is on its way
    WHOLE = 12  # (response head, body or b""): HEAD, DATA and END in one


# The members under names of their own: `State.ASKED` costs 0.10 us on CPython 3.11, a global 0.01 (2026-11).
NEW, ASKED, BODY_ASKED, WAITING, SENDING, RESPONSE_ASKED, RESPONSE_BODY_ASKED, RELAYING, ENDED = State
BEGIN, DECISION, BODY, BODY_END, CONNECTED, HEAD, DATA, END, FAILED, GONE, BROKEN, LOST, WHOLE = Input
_ALLOW = Verb.ALLOW
_REQUEST = EventKind.REQUEST_HEADERS
_RESPONSE = EventKind.RESPONSE_HEADERS


class Exchange:
    """One request from its accepted head to the end of its response."""

    __slots__ = (
        "asks_request",
        "asks_response",
        "awaits_continue",
        "has_body",
        "held",
        "is_holding_upstream",
        "is_request_ended",
        "is_response_ended",
        "request_ops",
        "response",
        "response_held",
        "response_ops",
        "state",
    )

    def __init__(self) -> None:
        self.state = NEW
        self.asks_request = self.asks_response = True  # some agent may want to see it
        self.has_body = True  # a body of the request may come
        self.awaits_continue = False  # the client sends its body after 100 Continue only
        self.is_holding_upstream = False
        self.held: list[bytes] | None = None  # request body that came before it may go
        self.response_held: list[bytes] | None = None
        self.is_request_ended = False
        self.is_response_ended = False
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

    def refuse(self, decision: Decision, ops: tuple[HeaderOp, ...]) -> None:
        """Answer in the upstream's place; the exchange has ended."""
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


# --- what each row of the table does ----------------------------------------------------------------


def _begin(x: Exchange, _: Any) -> None:
    x.state = ASKED
    decision = x.ask(_REQUEST) if x.asks_request else ALLOW
    if decision is not None:
        _decided(x, decision)


def _decided(x: Exchange, decision: Decision) -> None:
    if decision.verb is not _ALLOW:
        x.state = ENDED
        x.refuse(decision, decision.response_ops)
        return
    x.response_ops = decision.response_ops
    x.state = WAITING
    x.request_ops = decision.request_ops
    if x.awaits_continue:
        x.say_continue()
    x.connect()


def _hold_body(x: Exchange, data: bytes) -> None:
    if x.held is None:
        x.held = []
    x.held.append(data)
    x.hold_client()


def _note_body_end(x: Exchange, _: Any) -> None:
    x.is_request_ended = True


def _connected(x: Exchange, _: Any) -> None:
    x.state = SENDING
    x.send_head(x.request_ops)
    if x.held is not None or (x.is_request_ended and x.has_body):
        _send_held(x)


def _lost(x: Exchange, _: Any) -> None:
    x.state = WAITING  # as before the first connection: body that comes now is held


def _late_connection(x: Exchange, _: Any) -> None:
    """A connection for an exchange that has ended meanwhile: nobody else may get it half used."""
    x.abort_upstream()


def _send_held(x: Exchange) -> None:
    held = x.held
    if held is not None:
        x.held = None
        for data in held:
            x.send_body(data)
        x.release_client()
    if x.is_request_ended:
        x.end_body()


def _send_body(x: Exchange, data: bytes) -> None:
    x.send_body(data)


def _send_body_end(x: Exchange, _: Any) -> None:
    x.is_request_ended = True
    x.end_body()


def _drop_body(x: Exchange, _: Any) -> None:
    """The response is complete; what still comes of the request has nowhere to go."""


def _response_head(x: Exchange, head: Any) -> None:
    x.response = head
    x.state = RESPONSE_ASKED
    decision = x.ask(_RESPONSE) if x.asks_response else ALLOW
    if decision is None:
        x.is_holding_upstream = True
        x.hold_upstream()
    else:
        _response_decided(x, decision)


def _response_whole(x: Exchange, response: tuple[Any, bytes]) -> None:
    if x.asks_response:
        _response_head_and_end(x, response)
        return
    x.response, body = response
    x.state = RELAYING  # until it is done: FAILED, for an exception in there, must not come too late
    x.relay_whole(body)
    x.state = ENDED


def _response_head_and_end(x: Exchange, response: tuple[Any, bytes]) -> None:
    x.response, body = response
    x.state = RESPONSE_ASKED
    x.is_response_ended = True
    if body:
        x.response_held = [body]
    decision = x.ask(_RESPONSE)
    if decision is not None:
        _response_decided(x, decision)


def _hold_data(x: Exchange, data: bytes) -> None:
    if x.response_held is None:
        x.response_held = []
    x.response_held.append(data)


def _note_response_end(x: Exchange, _: Any) -> None:
    x.is_response_ended = True


def _response_decided(x: Exchange, decision: Decision) -> None:
    if decision.verb is not _ALLOW:
        x.state = ENDED
        if not x.is_response_ended:
            x.abort_upstream()
        x.refuse(decision, decision.response_ops)
        return
    x.state = RELAYING
    x.relay_head(x.response_ops + decision.response_ops if decision.response_ops else x.response_ops)
    held = x.response_held
    if held is not None:
        x.response_held = None
        for data in held:
            x.relay_data(data)
    if x.is_response_ended:
        x.state = ENDED
        x.relay_end()
    elif x.is_holding_upstream:
        x.is_holding_upstream = False
        x.release_upstream()


def _relay_data(x: Exchange, data: bytes) -> None:
    x.relay_data(data)


def _relay_end(x: Exchange, _: Any) -> None:
    x.state = ENDED
    x.relay_end()


def _failed(x: Exchange, failure: UpstreamFailed) -> None:
    x.state = ENDED
    x.fail(failure)


def _failed_while_asked(x: Exchange, failure: UpstreamFailed) -> None:
    x.state = ENDED
    x.cancel_ask()
    x.fail(failure)


def _failed_while_relaying(x: Exchange, failure: UpstreamFailed) -> None:
    x.state = ENDED
    x.abort_client(failure.reason)


def _gone_while_asked(x: Exchange, _: Any) -> None:
    x.state = ENDED
    x.cancel_ask()
    x.vanish()


def _gone(x: Exchange, _: Any) -> None:
    x.state = ENDED
    x.abort_upstream()
    x.vanish()


def _gone_while_response_asked(x: Exchange, _: Any) -> None:
    x.state = ENDED
    x.cancel_ask()
    if not x.is_response_ended:
        x.abort_upstream()
    x.vanish()


def _broken_while_asked(x: Exchange, refusal: RequestRefused) -> None:
    x.state = ENDED
    x.cancel_ask()
    x.reject(refusal)


def _broken(x: Exchange, refusal: RequestRefused) -> None:
    x.state = ENDED
    x.abort_upstream()
    x.reject(refusal)


def _broken_while_response_asked(x: Exchange, refusal: RequestRefused) -> None:
    x.state = ENDED
    x.cancel_ask()
    if not x.is_response_ended:
        x.abort_upstream()
    x.reject(refusal)


def _broken_while_relaying(x: Exchange, refusal: RequestRefused) -> None:
    x.state = ENDED
    x.abort_upstream()
    x.abort_client(refusal.reason)


def _late(x: Exchange, _: Any) -> None:
    """The exchange has ended; whoever still has something to say was on its way already."""


Row = Callable[[Exchange, Any], None]
_ANY_END = {ENDED}

# (state, input) -> what is done, and the states it may lead to (checked by the tests for every path).
TRANSITIONS: dict[tuple[State, Input], tuple[Row, set[State]]] = {
    (NEW, BEGIN): (_begin, {ASKED, WAITING, SENDING, ENDED}),
    (ASKED, DECISION): (_decided, {WAITING, SENDING, ENDED}),
    (ASKED, BODY): (_hold_body, {ASKED}),
    (ASKED, BODY_END): (_note_body_end, {ASKED}),
    (ASKED, GONE): (_gone_while_asked, _ANY_END),
    (ASKED, BROKEN): (_broken_while_asked, _ANY_END),
    (WAITING, BODY): (_hold_body, {WAITING}),
    (WAITING, BODY_END): (_note_body_end, {WAITING}),
    (WAITING, CONNECTED): (_connected, {SENDING}),
    (WAITING, FAILED): (_failed, _ANY_END),
    (WAITING, GONE): (_gone, _ANY_END),
    (WAITING, BROKEN): (_broken, _ANY_END),
    (SENDING, BODY): (_send_body, {SENDING}),
    (SENDING, BODY_END): (_send_body_end, {SENDING}),
    (SENDING, LOST): (_lost, {WAITING}),
    (SENDING, HEAD): (_response_head, {RESPONSE_ASKED, RELAYING, ENDED}),
    (SENDING, WHOLE): (_response_whole, {RESPONSE_ASKED, ENDED}),
    (SENDING, FAILED): (_failed, _ANY_END),
    (SENDING, GONE): (_gone, _ANY_END),
    (SENDING, BROKEN): (_broken, _ANY_END),
    (RESPONSE_ASKED, DECISION): (_response_decided, {RELAYING, ENDED}),
    (RESPONSE_ASKED, BODY): (_send_body, {RESPONSE_ASKED}),
    (RESPONSE_ASKED, BODY_END): (_send_body_end, {RESPONSE_ASKED}),
    (RESPONSE_ASKED, DATA): (_hold_data, {RESPONSE_ASKED}),
    (RESPONSE_ASKED, END): (_note_response_end, {RESPONSE_ASKED}),
    (RESPONSE_ASKED, FAILED): (_failed_while_asked, _ANY_END),
    (RESPONSE_ASKED, GONE): (_gone_while_response_asked, _ANY_END),
    (RESPONSE_ASKED, BROKEN): (_broken_while_response_asked, _ANY_END),
    (RELAYING, BODY): (_send_body, {RELAYING}),
    (RELAYING, BODY_END): (_send_body_end, {RELAYING}),
    (RELAYING, DATA): (_relay_data, {RELAYING}),
    (RELAYING, END): (_relay_end, _ANY_END),
    (RELAYING, FAILED): (_failed_while_relaying, _ANY_END),
    (RELAYING, GONE): (_gone, _ANY_END),
    (RELAYING, BROKEN): (_broken_while_relaying, _ANY_END),
    (ENDED, DECISION): (_late, _ANY_END),
    (ENDED, BODY): (_drop_body, _ANY_END),
    (ENDED, BODY_END): (_note_body_end, _ANY_END),
    (ENDED, DATA): (_late, _ANY_END),
    (ENDED, END): (_late, _ANY_END),
    (ENDED, FAILED): (_late, _ANY_END),
    (ENDED, CONNECTED): (_late_connection, _ANY_END),
    (ENDED, LOST): (_late, _ANY_END),
    (ENDED, HEAD): (_late, _ANY_END),
    (ENDED, WHOLE): (_late, _ANY_END),
    (ENDED, GONE): (_late, _ANY_END),
    (ENDED, BROKEN): (_late, _ANY_END),
}


def _illegal(what: Input) -> Row:
    def refuse(x: Exchange, _: Any) -> None:
        raise IllegalTransition(f"exchange in {x.state.name} cannot take {what.name}")

    return refuse


# The same as nested tuples: two index operations instead of hashing a pair (0.05 against 0.15 us, 2026-11).
# `feed` in one expression, for the driver's hot callbacks: `ROWS[self.state][DATA](self, data)`.
ROWS: tuple[tuple[Row, ...], ...] = tuple(
    tuple(TRANSITIONS[state, what][0] if (state, what) in TRANSITIONS else _illegal(what) for what in Input)
    for state in State
)
