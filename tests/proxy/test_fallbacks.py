"""A driver whose upstream failed asks the next one, with the whole body, and only as long as no response was taken."""

from types import SimpleNamespace
from typing import Any

import pytest

from proxy.exchange_states import ASKED, RELAYING, RESPONSE_ASKED, SENDING, WAITING, State
from proxy.fallbacks import Fallbacks
from shared.defaults import FALLBACK_KEPT_BYTES
from shared.errors import UpstreamFailed
from shared.metrics import R_FALLBACKS

REFUSED = UpstreamFailed(502, "connect_refused", "no")


class Exchange(Fallbacks):
    """With everything that it would do to the outside written down."""

    def __init__(self, fallbacks: int = 2) -> None:
        super().__init__()
        pools = [SimpleNamespace(name=name) for name in ("first", "second", "third")]
        self.did: list[Any] = []
        route: Any = SimpleNamespace(
            pool=pools[0],
            fallback_host=b"first",
            fallbacks=tuple((pool, pool.name.encode()) for pool in pools[1 : fallbacks + 1]),
            tally=[0] * 64,
        )
        self.route = route
        self.protocol = SimpleNamespace(release_for_upstream=lambda: self.did.append("release"))  # type: ignore[assignment]
        self.pool, self.fallback_host = route.pool, route.fallback_host
        if route.fallbacks:
            self._begin_fallbacks()
        self.state = SENDING

    def abort_upstream(self) -> None:
        self.did.append(f"abort {self.pool.name}")

    def connect(self) -> None:
        self.did.append(f"connect {self.pool.name}")

    def note_fallback(self, reason: str, failed: str, upstream: str) -> None:
        self.did.append((reason, failed, upstream))


def test_one_after_the_other() -> None:
    x = Exchange()
    x.keep(b"one")
    x.keep(b"two")
    assert x.falls_back_after(529)
    assert x.did == ["abort first", ("status_529", "first", "second"), "release", "connect second"]
    assert (x.state, x.held, x.fallback_host) == (WAITING, [b"one", b"two"], b"second")
    assert x.falls_back_from(REFUSED)  # before anything was sent
    assert (x.held, x.fallback_host) == ([b"one", b"two"], b"third")
    assert not x.falls_back_from(REFUSED)
    assert x.route.tally[R_FALLBACKS] == 2


def test_body_that_came_meanwhile_stays_behind() -> None:
    x = Exchange()
    x.keep(b"one")
    x.state, x.held = WAITING, [b"two"]  # after a lost connection
    assert x.falls_back_from(REFUSED)
    assert x.held == [b"one", b"two"]


def test_without_a_body() -> None:
    x = Exchange()
    assert x.falls_back_from(REFUSED)
    assert x.held is None


@pytest.mark.parametrize("state", [ASKED, RESPONSE_ASKED, RELAYING])
def test_not_when_a_response_was_taken(state: State) -> None:
    x = Exchange()
    x.state = state
    assert not x.falls_back_from(REFUSED)
    assert x.did == []


def test_a_response_that_is_taken_lets_go_of_the_body() -> None:
    x = Exchange()
    x.keep(b"one")
    assert not x.falls_back_after(200)
    assert not x.falls_back_from(REFUSED)


def test_a_body_too_long_to_keep() -> None:
    x = Exchange()
    x.keep(b"x" * FALLBACK_KEPT_BYTES)
    assert x.falls_back_after(503)
    for data in x.held or ():
        x.keep(data)
    x.state = SENDING
    x.keep(b"x")
    assert not x.falls_back_after(503)


def test_routes_without_fallbacks_keep_nothing() -> None:
    x = Exchange(0)
    x.keep(b"one")
    assert not x.falls_back_after(503)
    assert not x.falls_back_from(REFUSED)
