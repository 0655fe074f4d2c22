"""Which failures send a request on, and which are passed on."""

import pytest

from proxy.fallbacks import reason_of_failure, reason_of_status
from shared.errors import UpstreamFailed


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504, 529])
def test_a_provider_that_cannot_now(status: int) -> None:
    assert reason_of_status(status) == f"status_{status}"


@pytest.mark.parametrize("status", [200, 201, 204, 301, 400, 401, 403, 404, 413, 422, 501, 505])
def test_an_answer(status: int) -> None:
    assert reason_of_status(status) == ""


@pytest.mark.parametrize(
    "reason", ["connect_refused", "connect_timeout", "response_timeout", "closed_early", "pool_full"]
)
def test_no_answer(reason: str) -> None:
    assert reason_of_failure(UpstreamFailed(502, reason, "")) == reason


@pytest.mark.parametrize("reason", ["shutting_down", "internal_error"])
def test_our_own_failure(reason: str) -> None:
    assert reason_of_failure(UpstreamFailed(503, reason, "")) == ""
