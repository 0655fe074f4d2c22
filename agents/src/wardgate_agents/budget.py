"""How an agent that is too busy says so in time: an explicit refusal, before its caller has given up.

A call that times out counts as a failure of the agent, and enough of those open its circuit breaker: a few clients that
ask for much would close the door to everybody. A refusal is a verdict like any other, and moves no breaker.

Kind: table.
"""

from typing import Final

from wardgate_agent import Block

_SHARE: Final = 0.8  # of the time that an answer is of use; the rest is for its way back
_BUSY_STATUS: Final = 503


def answer_within_s(budget_ms: float) -> float:
    """How long an answer may take at most."""
    return max(0.0, budget_ms / 1000 * _SHARE)


def busy(text: str, status: int = _BUSY_STATUS) -> Block:
    """Not now. `status`: 429 where it is this client's own doing."""
    return Block(status, text, {"Retry-After": "1"})
