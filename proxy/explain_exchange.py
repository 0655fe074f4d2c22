"""Lets the real driver write one head upstream, without a connection to anybody; for `wardgate explain`.

Forwarding, ids, and what agents that see bodies make of the head are the driver's own doing: it is given a route
made from the plan table and stand-ins for its connection and its upstream, and what it writes is kept. Nothing is
decided here. Ids that are made anew for each request are MADE_ANEW, and a length that only the whole body tells
is LENGTH_LATER.

Kind: pure (no loop, no socket).
"""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, Final, cast

import msgspec

from proxy.app import RouteRuntime
from proxy.driver import Driver
from proxy.forwarded import peer_lines, untrusted_lines
from proxy.guardrails.rails import RouteRails
from proxy.head import Head
from proxy.plan_view import PlanView
from shared.config.schema import Server
from shared.config.schema_routes import Route
from shared.plan import Plan
from shared.wire.tokens import TokenSums

MADE_ANEW: Final = b"<new for each request>"
LENGTH_LATER: Final = b"<known when the body is whole>"
SCHEME: Final = "http"  # of every listener


class Rehearsal(msgspec.Struct, frozen=True):
    """The head as it goes upstream if no agent changes it; how agents are shown the request's body."""

    raw: bytes
    is_whole: bool = False
    is_decoded: bool = False


class _Connection(SimpleNamespace):
    """The client's connection, as much of it as a driver looks at until it has sent the head."""

    peer_scheme = SCHEME
    is_full = False

    def __init__(self, peer_ip: str, is_trusted: bool, limits: Server) -> None:
        context = SimpleNamespace(
            limits=limits, next_exchange=lambda: (1, MADE_ANEW), new_traceparent=lambda: MADE_ANEW
        )
        super().__init__(peer_ip=peer_ip, peer_is_trusted=is_trusted, context=context)

    def forwarded_lines(self, host: bytes) -> bytes:
        return untrusted_lines(host, peer_lines(self.peer_ip, SCHEME))


class _Upstream:
    """An upstream's connection that keeps what is written to it."""

    def __init__(self) -> None:
        self.raw = b""

    def write_head(self, data: bytes, is_whole: bool) -> None:
        self.raw += data


def rehearse(
    head: Head,
    peer_ip: str,
    is_trusted: bool,
    route: Route,
    plans: Sequence[Plan],
    fallback_host: str,
    limits: Server,
) -> Rehearsal:
    """With every agent of the route's plans there. Raises RequestRefused for a body that they cannot be shown."""
    views = [PlanView(plan, {}) for plan in plans]
    pool: Any = SimpleNamespace(name=route.upstream)
    no_cells: Any = []
    rails = RouteRails(route.name, route.guardrails, views, TokenSums()) if route.guardrails is not None else None
    runtime = RouteRuntime(route.name, pool, fallback_host, no_cells, views, route, None, rails)
    connection: Any = _Connection(peer_ip, is_trusted, limits)
    driver = Driver(connection, head, runtime, 0)
    if head.has_body and runtime.sees_requests:
        driver.open_request_flow()
    flow = driver.request_flow
    is_whole = flow is not None and (flow.is_whole or (rails is not None and bool(rails.prompt)))
    if is_whole:  # then its head goes when the body has come and is decided
        driver.is_body_ended = True
        driver.held = [cast(bytes, range(head.content_length or 0))]  # only its length is looked at
    upstream = _Upstream()
    driver.upstream = cast(Any, upstream)
    driver.send_head(())
    raw = upstream.raw
    if is_whole and head.content_length is None:
        raw = raw.replace(b"\r\ncontent-length: 0\r\n", b"\r\ncontent-length: %b\r\n" % LENGTH_LATER)
    return Rehearsal(raw, is_whole, flow is not None and not flow.is_plain)
