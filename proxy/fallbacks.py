"""The part of a driver that sends a request to the next upstream when one has failed it.

Between `proxy/bodies.py` and `proxy/upgraded.py`. Only before a response's head was taken: agents and the client see
one response. The request's body is kept, as it went upstream, for as long as it may be needed and up to
FALLBACK_KEPT_BYTES; a longer one has one upstream. Any way of getting no response head counts, but those that are this
worker's own; so do the statuses by which a server says that it cannot now, though another one might.

Kind: IO.
"""

from typing import Final

from proxy.bodies import Bodies
from proxy.exchange_states import SENDING, WAITING
from proxy.upstream.pool import UpstreamPool
from shared.defaults import FALLBACK_KEPT_BYTES, FALLBACK_STATUSES
from shared.errors import UpstreamFailed
from shared.metrics import R_FALLBACKS

_OURS: Final = ("shutting_down", "internal_error")  # the next upstream would fail in the same way


def reason_of_status(status: int) -> str:
    """Why a response with this status is not taken; "" = it is."""
    return f"status_{status}" if status in FALLBACK_STATUSES else ""


def reason_of_failure(failure: UpstreamFailed) -> str:
    """Why a failure before the response's head sends the request on; "" = it does not."""
    return "" if failure.reason in _OURS else failure.reason


class Fallbacks(Bodies):
    """An exchange with several upstreams, one after the other."""

    __slots__ = ("fallback_host", "pool")

    pool: UpstreamPool  # the upstream that is asked now
    fallback_host: bytes  # the Host that it gets where the client gave none
    _kept: list[bytes] | None = None  # of the request's body; None = this upstream is the last
    _kept_bytes = 0
    _tried = 0

    def _begin_fallbacks(self) -> None:
        """As part of the construction, where the route has others to fall back on."""
        self._kept = []

    def keep(self, data: bytes) -> None:
        """Bytes of the request's body that go upstream."""
        kept = self._kept
        if kept is not None:
            self._kept_bytes += len(data)
            kept.append(data)
            if self._kept_bytes > FALLBACK_KEPT_BYTES:
                self._kept = None

    def falls_back_from(self, failure: UpstreamFailed) -> bool:
        """The upstream failed; True = another one is asked."""
        return self._kept is not None and self._fall_back(reason_of_failure(failure))

    def falls_back_after(self, status: int) -> bool:
        """The upstream answers with this status; True = another one is asked, and this response is over."""
        if self._kept is None:
            return False
        if self._fall_back(reason_of_status(status)):
            return True
        self._kept = None  # this response is the one
        return False

    def _fall_back(self, reason: str) -> bool:
        kept, fallbacks = self._kept, self.route.fallbacks
        if not reason or kept is None or self._tried >= len(fallbacks) or self.state not in (WAITING, SENDING):
            return False
        failed = self.pool.name
        self.abort_upstream()
        self.pool, self.fallback_host = fallbacks[self._tried]
        self._tried += 1
        self.route.tally[R_FALLBACKS] += 1
        self.note_fallback(reason, failed, self.pool.name)
        self.protocol.release_for_upstream()
        self._kept, self._kept_bytes = [], 0
        if kept:
            self.held = kept + self.held if self.held is not None else kept
        self.state = WAITING
        self.connect()
        return True

    def note_fallback(self, reason: str, failed: str, upstream: str) -> None:
        """Into the audit: which upstream failed and why, and which one is asked now."""
        raise NotImplementedError
