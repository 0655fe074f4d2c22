"""The rows that end an exchange before its time: refused by agents, failed by the upstream, client gone, broken rules.

Each does what the state it is for still needs: take the question back, give the upstream up, answer or break off.
Which row stands where is the table's matter (proxy/exchange.py).

Kind: pure.
"""

from typing import TYPE_CHECKING, Any

from proxy.exchange_states import ENDED, WAITING
from shared.decision import Decision
from shared.errors import RequestRefused, UpstreamFailed

if TYPE_CHECKING:
    from proxy.exchange_commands import Exchange


def refused(x: "Exchange", decision: Decision) -> None:
    """By the agents of a body: nothing has gone to the client."""
    if x.state >= WAITING and not x.is_response_ended:
        x.abort_upstream()
    x.state = ENDED
    x.refuse(decision, decision.response_ops)


def refused_while_asked(x: "Exchange", decision: Decision) -> None:
    x.cancel_ask()
    refused(x, decision)


def refused_while_response_asked(x: "Exchange", decision: Decision) -> None:
    x.cancel_ask()
    refused(x, decision)


def refused_while_relaying(x: "Exchange", decision: Decision) -> None:
    x.state = ENDED
    if not x.is_response_ended:
        x.abort_upstream()
    x.break_off(decision)


def late_connection(x: "Exchange", _: Any) -> None:
    """A connection for an exchange that has ended meanwhile: nobody else may get it half used."""
    x.abort_upstream()


def failed(x: "Exchange", failure: UpstreamFailed) -> None:
    x.state = ENDED
    x.fail(failure)


def failed_while_asked(x: "Exchange", failure: UpstreamFailed) -> None:
    x.state = ENDED
    x.cancel_ask()
    x.fail(failure)


def failed_while_relaying(x: "Exchange", failure: UpstreamFailed) -> None:
    x.state = ENDED
    x.abort_client(failure.reason)


def gone_while_asked(x: "Exchange", _: Any) -> None:
    x.state = ENDED
    x.cancel_ask()
    x.vanish()


def gone_while_body_asked(x: "Exchange", _: Any) -> None:
    x.state = ENDED
    x.vanish()


def gone_while_response_body_asked(x: "Exchange", _: Any) -> None:
    x.state = ENDED
    if not x.is_response_ended:
        x.abort_upstream()
    x.vanish()


def gone(x: "Exchange", _: Any) -> None:
    x.state = ENDED
    x.abort_upstream()
    x.vanish()


def gone_while_response_asked(x: "Exchange", _: Any) -> None:
    x.state = ENDED
    x.cancel_ask()
    if not x.is_response_ended:
        x.abort_upstream()
    x.vanish()


def broken_while_asked(x: "Exchange", refusal: RequestRefused) -> None:
    x.state = ENDED
    x.cancel_ask()
    x.reject(refusal)


def broken_while_body_asked(x: "Exchange", refusal: RequestRefused) -> None:
    x.state = ENDED
    x.reject(refusal)


def broken_while_response_body_asked(x: "Exchange", refusal: RequestRefused) -> None:
    x.state = ENDED
    if not x.is_response_ended:
        x.abort_upstream()
    x.reject(refusal)


def broken(x: "Exchange", refusal: RequestRefused) -> None:
    x.state = ENDED
    x.abort_upstream()
    x.reject(refusal)


def broken_while_response_asked(x: "Exchange", refusal: RequestRefused) -> None:
    x.state = ENDED
    x.cancel_ask()
    if not x.is_response_ended:
        x.abort_upstream()
    x.reject(refusal)


def broken_while_relaying(x: "Exchange", refusal: RequestRefused) -> None:
    x.state = ENDED
    x.abort_upstream()
    x.abort_client(refusal.reason)


def late(x: "Exchange", _: Any) -> None:
    """The exchange has ended; whoever still has something to say was on its way already."""
