"""Works out what the proxy would do with one request: route, agents, limits, fields, upstream.

Without a daemon and without a second set of rules: the head is read by explain_head, routes are judged by
explain_routes, agents come from the plan table, limits from `limit_specs`. The result is a plain value, shown by
proxy/cli/explain.py; its JSON is stable: fields are added and not renamed.

What is only known while daemons run is not here: which agents are there, what they registered for, how full a bucket
is, which target is next.

Kind: pure.
"""

from collections.abc import Iterable
from itertools import groupby
from typing import Any, Final, Literal

import msgspec

from proxy.app import host_of
from proxy.explain_exchange import Rehearsal, rehearse
from proxy.explain_head import Fields, Peer, client_ip, compare, read
from proxy.explain_routes import Standing, standings
from proxy.forwarded import Trust
from proxy.head import Field, Head
from proxy.limits import limit_specs
from proxy.upgrade import read_upgrade
from shared.clock import MS
from shared.config.build import plain
from shared.config.schema import Config
from shared.config.schema_routes import Route
from shared.defaults import HOP_BODY_MAX_BYTES, MAX_TARGET_BYTES
from shared.errors import RequestRefused
from shared.events import EventKind
from shared.plan import Plan, compile_plans
from shared.ratelimit import ONE
from shared.wire.messages import text


class Request(msgspec.Struct, frozen=True):
    """The head as it is understood. `client_ip`: whom limits and agents take for the client, "" = unknown."""

    method: str
    target: str
    path: str
    host: str
    peer_ip: str
    peer_is_trusted: bool
    client_ip: str
    body: Literal["none", "length", "chunked"]
    content_length: int | None
    expects_100: bool
    is_websocket: bool
    keep_alive: bool


class Refused(msgspec.Struct, frozen=True):
    """The proxy answers itself, before any agent is asked."""

    status: int
    reason: str
    allow: str = ""


class Asked(msgspec.Struct, frozen=True):
    """One agent in a phase. `max_body_bytes`: None where no body is shown; `is_over`: this body is longer."""

    agent: str
    mode: Literal["enforce", "observe"]
    failure_mode: str
    timeout_ms: int
    by_hello: bool
    max_body_bytes: int | None
    is_over: bool = False


class Stage(msgspec.Struct, frozen=True):
    """Agents that are asked with one event. `waits`: something is held until they have answered."""

    within_ms: int
    waits: bool
    agents: list[Asked]


class Phase(msgspec.Struct, frozen=True):
    """One kind of event. `skipped`: why this request does not come to it, "" = it may."""

    event: str
    part: str
    order: Literal["parallel", "sequential"]
    within_ms: int
    skipped: str
    stages: list[Stage]


class Bound(msgspec.Struct, frozen=True):
    """A limit in bytes or pieces, by its key; request_target has none, it is fixed.

    `limit`: 0 = no limit. `now`: what this request has of it, None = not known yet.
    """

    key: str
    limit: int
    now: int | None


class Bucket(msgspec.Struct, frozen=True):
    """A limit by rate, or (`refill_rate` None) of what is under way at once; named as in `wardgate limits`."""

    name: str
    key: str
    capacity: float
    refill_rate: float | None


class Explanation(msgspec.Struct):
    """Everything. What a refusal leaves unknown is None or empty."""

    refused: Refused | None = None
    request: Request | None = None
    routes: list[Standing] = []
    route: dict[str, Any] | None = None
    phases: list[Phase] = []
    bounds: list[Bound] = []
    limits: list[Bucket] = []
    fields: Fields | None = None
    upstream: dict[str, Any] | None = None
    upstream_head: str = ""


def explain(config: Config, data: bytes, peer_ip: str) -> Explanation:
    """What becomes of the head in `data` (with its empty line) from this peer, "" = one on a unix socket."""
    server = config.server
    trust = Trust(server.trusted_proxies)
    peer = Peer(peer_ip, trust.is_trusted(peer_ip))
    reading = read(data, server)
    found = Explanation()
    found.bounds = [
        Bound("server.max_header_bytes", server.max_header_bytes, len(data)),
        Bound("server.max_headers", server.max_headers, len(reading.received)),
    ]
    head = reading.head
    if head is None:
        found.refused = _refused(reading.refusal)
        return found
    body: Literal["none", "length", "chunked"] = "chunked" if head.is_chunked else "length" if head.has_body else "none"
    found.request = Request(
        text(head.method),
        text(head.target),
        text(head.path),
        head.host_name,
        peer.ip,
        peer.is_trusted,
        client_ip(head, peer, trust),
        body,
        head.content_length,
        head.expects_100,
        head.is_websocket,
        head.keep_alive,
    )
    length = None if head.is_chunked else head.content_length or 0
    found.bounds += [
        Bound("request_target", MAX_TARGET_BYTES, len(head.target)),
        Bound("server.max_body_bytes", server.max_body_bytes, length),
    ]
    chosen, refusal, found.routes = standings(config.routes, head)
    found.refused = _refused(refusal)
    if refusal is not None or chosen is None:
        return found
    route = config.routes[chosen]
    found.refused = _refused(_upgrade_refused(head, route))
    if found.refused is not None:
        return found
    _after_routing(found, config, route, head, peer, reading.received)
    return found


def _refused(refusal: RequestRefused | None) -> Refused | None:
    return None if refusal is None else Refused(refusal.status, refusal.reason, refusal.allow)


def _upgrade_refused(head: Head, route: Route) -> RequestRefused | None:
    if not head.is_websocket:
        return None
    if not route.websocket.enabled:
        return RequestRefused(403, "WebSocket is not enabled for this route")
    try:
        read_upgrade(head)
    except RequestRefused as refusal:
        return refusal
    return None


def _after_routing(
    found: Explanation, config: Config, route: Route, head: Head, peer: Peer, received: list[Field]
) -> None:
    """What the route adds: agents, limits, upstream."""
    plans = [plan for plan in compile_plans(config) if plan.route == route.name]
    upstream = next(one for one in config.upstreams if one.name == route.upstream)
    try:
        address = host_of(upstream.targets[0].address)
        rehearsal = rehearse(head, peer.ip, peer.is_trusted, route, plans, address, config.server)
    except RequestRefused as refusal:
        found.refused = _refused(refusal)
        return
    found.route = {key: value for key, value in plain(route).items() if key not in _SHOWN_ELSEWHERE}
    found.phases = phases(plans, head, rehearsal)
    found.limits = buckets(config, route.name, plans, peer)
    found.fields = compare(received, head, rehearsal.raw, peer)
    found.upstream = plain(upstream)
    found.upstream_head = text(rehearsal.raw)


_SHOWN_ELSEWHERE: Final = frozenset(("filters", "rate_limits", "max_concurrent", "max_concurrent_per_client"))


# --- agents -----------------------------------------------------------------------------------------

_BODY_KINDS: Final = (EventKind.REQUEST_BODY_CHUNK, EventKind.RESPONSE_BODY_CHUNK)


def phases(plans: Iterable[Plan], head: Head, rehearsal: Rehearsal) -> list[Phase]:
    """The plans of one route, in their order: those of one kind (and part) are the stages of one phase."""
    out = []
    for (kind, part), group in groupby(plans, key=lambda plan: (plan.kind, plan.part)):
        staged = list(group)
        stages = [_stage(plan, head, rehearsal) for plan in staged]
        is_sequential = len(staged) > 1 or staged[0].sequential
        out.append(
            Phase(
                kind.wire_name,
                part,
                "sequential" if is_sequential else "parallel",
                sum(stage.within_ms for stage in stages),
                _skipped(kind, part, head),
                stages,
            )
        )
    return out


def _stage(plan: Plan, head: Head, rehearsal: Rehearsal) -> Stage:
    shows_body = plan.kind in _BODY_KINDS
    # Not known beforehand: how long it is when it is decoded. At once goes no more than one event may carry.
    is_told = plan.kind is EventKind.REQUEST_BODY_CHUNK and not rehearsal.is_decoded
    length = head.content_length or 0 if is_told else 0
    most = HOP_BODY_MAX_BYTES if rehearsal.is_whole else length
    asked = [
        Asked(
            ask.agent,
            "observe" if ask.observe else "enforce",
            ask.failure_mode,
            ask.timeout_ms,
            ask.by_hello,
            ask.max_body_bytes if shows_body else None,
            shows_body and length > min(ask.max_body_bytes, most),
        )
        for ask in plan.asks
    ]
    return Stage(plan.timeout_ns // MS, bool(plan.enforcing_mask), asked)


def _skipped(kind: EventKind, part: str, head: Head) -> str:
    if (kind is EventKind.REQUEST_BODY_CHUNK or part == "prompt") and not head.has_body:
        return "the request has no body"
    if kind is EventKind.WEBSOCKET_FRAME and not head.is_websocket:
        return "the request is no WebSocket upgrade"
    return ""


# --- limits -----------------------------------------------------------------------------------------


_PER_CLIENT: Final = "server:max_connections_per_client"


def buckets(config: Config, route: str, plans: Iterable[Plan], peer: Peer) -> list[Bucket]:
    """What counts this request: the server's, the route's, and those of the agents asked."""
    out = []
    for spec in limit_specs(config):
        if spec.name == _PER_CLIENT and (peer.is_trusted or not peer.ip):
            continue  # proxy/limits.py Doors: these connections are not one client's
        if spec.name.startswith(("server:", f"{route}/")):
            if spec.counts_uses:
                out.append(Bucket(spec.name, "", spec.capacity, None))
            else:
                out.append(Bucket(spec.name, spec.key, spec.capacity / ONE, spec.refill / ONE))
    asked = {ask.agent for plan in plans for ask in plan.asks}
    for agent in config.agents:
        if agent.name in asked and agent.rate_limit is not None:
            limit = agent.rate_limit
            out.append(Bucket(f"agent:{agent.name}", "", limit.capacity, limit.refill_rate))
    return out
