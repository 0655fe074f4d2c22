"""Decides which failures of an upstream send a request on to the next of the route's `fallback_upstreams`.

Any way of getting no response head, but those that are this worker's own; and the statuses by which providers say
that they cannot now, though another one might. What then happens stands in proxy/fallbacks.py.

Kind: pure.
"""

from typing import Final

from shared.defaults import FALLBACK_STATUSES
from shared.errors import UpstreamFailed

_OURS: Final = ("shutting_down", "internal_error")  # the next upstream would fail in the same way


def reason_of_status(status: int) -> str:
    """Why a response with this status is not taken; "" = it is."""
    return f"status_{status}" if status in FALLBACK_STATUSES else ""


def reason_of_failure(failure: UpstreamFailed) -> str:
    """Why a failure before the response's head sends the request on; "" = it does not."""
    return "" if failure.reason in _OURS else failure.reason
