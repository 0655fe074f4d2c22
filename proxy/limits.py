"""Decides whether a request or a connection is one too many.

    connection  Doors        server.max_connections, server.max_connections_per_client    closed without an answer
    request     RouteLimits  max_concurrent (503), max_concurrent_per_client (429)        before the agents
                             rate_limits (429), keys client_ip, header, cookie, global    before the agents
                             rate_limits (429), key identity                              after they allowed it

They are asked in this order; the first that says no ends it, and what was taken from those before stays taken. A
request without the field that it is counted by shares one bucket with all others without it: leaving a field out
is no way around a limit. Nor is giving it twice: which of them the upstream goes by is not known here, so that
such a request is in the same bucket. IPv6 clients count by their /64.

How buckets and counts are kept and shared is not known here (shared/segment_buckets.py), nor how an answer is
written (proxy/driver.py).

Kind: pure (the segment does the counting).
"""

import ipaddress
from collections.abc import Callable
from typing import TYPE_CHECKING

from proxy.exchange_states import ENDED
from proxy.forwarded import client_of
from shared import log
from shared.clock import now_ns
from shared.config.schema import Config, Server
from shared.config.schema_routes import RateLimit, Route
from shared.decision import Decision, Verb
from shared.defaults import IPV6_CLIENT_BITS, LIMIT_KEYS_CACHED
from shared.ratelimit import NEVER_S, ONE, micro, wait_s
from shared.segment_buckets import REFUSED, Limit, Limits
from shared.segment_limits import LimitSpec
from shared.wire.audit import AuditRecord

if TYPE_CHECKING:
    from proxy.app import WorkerContext
    from proxy.driver import Driver
    from proxy.protocol import ProxyProtocol

_CONNECTIONS = "server:max_connections"
_CONNECTIONS_PER_CLIENT = "server:max_connections_per_client"
_TOO_MANY = b"too many requests\n"
_ABSENT = b"-"
_IDENTITY = "identity"


def limit_specs(config: Config) -> tuple[LimitSpec, ...]:
    """Every limit of a configuration, as the segment's table has it."""
    server = config.server
    counted = [
        (_CONNECTIONS, server.max_connections),
        (_CONNECTIONS_PER_CLIENT, server.max_connections_per_client),
    ]
    tokens = []
    for route in config.routes:
        counted.append((f"{route.name}/max_concurrent", route.max_concurrent))
        counted.append((f"{route.name}/max_concurrent_per_client", route.max_concurrent_per_client))
        for limit in route.rate_limits:
            capacity, refill = micro(limit.capacity), micro(limit.refill_rate)
            tokens.append(LimitSpec(f"{route.name}/{limit.name}", limit.key, capacity, refill))
    uses = (LimitSpec(name, "", most, counts_uses=True) for name, most in counted if most)
    return (*uses, *tokens)


# --- what is counted by -----------------------------------------------------------------------------

_clients: dict[str, bytes] = {}


def client_key(client_ip: str) -> bytes:
    """What a client's address counts as; "" (a unix socket's peer) is one client."""
    found = _clients.get(client_ip)
    if found is None:
        found = client_ip.encode()
        if ":" in client_ip:
            try:
                found = b"6:" + ipaddress.IPv6Address(client_ip).packed[: IPV6_CLIENT_BITS // 8]
            except ValueError:
                pass  # no address of any kind: counts as the text that it is
        if len(_clients) >= LIMIT_KEYS_CACHED:
            _clients.clear()
        _clients[client_ip] = found
    return found


def _by_client(driver: "Driver") -> bytes:
    return client_key(driver.client_ip)


def _globally(driver: "Driver") -> bytes:
    return b""


def _by_header(name: bytes) -> Callable[["Driver"], bytes]:
    def key(driver: "Driver") -> bytes:
        found = [value for field, value in driver.head.fields if field.lower() == name]
        return b"=" + found[0] if len(found) == 1 else _ABSENT

    return key


def _by_cookie(name: bytes) -> Callable[["Driver"], bytes]:
    def key(driver: "Driver") -> bytes:
        found = None
        for field, value in driver.head.fields:
            if field.lower() == b"cookie":
                for pair in value.split(b";"):
                    cookie, sign, text = pair.partition(b"=")
                    if sign and cookie.strip() == name:
                        if found is not None:
                            return _ABSENT
                        found = text.strip()
        return b"=" + found if found is not None else _ABSENT

    return key


def _key_of(limit: RateLimit) -> Callable[["Driver"], bytes]:
    kind, _, field = limit.key.partition(":")
    if kind == "header":
        return _by_header(field.lower().encode())
    if kind == "cookie":
        return _by_cookie(field.encode())
    return _by_client if kind == "client_ip" else _globally


# --- requests ---------------------------------------------------------------------------------------


class RouteLimits:
    """The limits of one route, in one worker."""

    __slots__ = ("_all", "_concurrent", "_identity", "_per_client", "_tokens", "has_identity")

    def __init__(self, route: Route, limits: Limits) -> None:
        self._all = limits

        def uses(name: str, most: int) -> Limit | None:
            return limits.limit(f"{route.name}/{name}") if most else None

        self._concurrent = uses("max_concurrent", route.max_concurrent)
        self._per_client = uses("max_concurrent_per_client", route.max_concurrent_per_client)
        found = [(one.key, limits.limit(f"{route.name}/{one.name}"), _key_of(one)) for one in route.rate_limits]
        self._tokens = tuple((limit, key) for kind, limit, key in found if kind != _IDENTITY)
        self._identity = tuple(limit for kind, limit, _ in found if kind == _IDENTITY)
        self.has_identity = bool(self._identity)

    def refuses(self, driver: "Driver") -> bool:
        """Before anybody is asked. True: it has been answered."""
        refusal = self._before(driver)
        if refusal is None:
            return False
        driver.state = ENDED
        driver.refuse(refusal, ())
        return True

    def after(self, driver: "Driver", decision: Decision) -> Decision:
        """What the agents' decision on the request comes to."""
        if decision.verb is not Verb.ALLOW:
            return decision
        self._all.refresh()
        key = b"=" + decision.identity.encode("utf-8", "surrogatepass") if decision.identity else _ABSENT
        now = now_ns()
        for limit in self._identity:
            taken, left = limit.take(key, now)
            if not taken:
                return _without_token(driver, limit, left)
            if driver.limited is None or left < driver.limited[1]:
                driver.limited = (limit, left)
        return decision

    def _before(self, driver: "Driver") -> Decision | None:
        self._all.refresh()
        protocol = driver.protocol
        head = driver.head
        if protocol.peer_is_trusted and (head.forwarded_for or head.forwarded):
            driver.client_ip = client_of(head, protocol.peer_ip, protocol.context.trust)
        limit = self._per_client
        if limit is not None and not _enter(driver, limit, client_key(driver.client_ip)):
            return _too_many(driver, limit, 429)
        limit = self._concurrent
        if limit is not None and not _enter(driver, limit, b""):
            return _too_many(driver, limit, 503)
        now = driver.started_ns
        for limit, key in self._tokens:
            taken, left = limit.take(key(driver), now)
            if not taken:
                return _without_token(driver, limit, left)
            if driver.limited is None or left < driver.limited[1]:
                driver.limited = (limit, left)
        return None


def _enter(driver: "Driver", limit: Limit, key: bytes) -> bool:
    place = limit.enter(key)
    if place == REFUSED:
        return False
    driver.uses = (*driver.uses, (limit, place))
    return True


def _without_token(driver: "Driver", limit: Limit, left: int) -> Decision:
    after = min(max(1, wait_s(left, ONE, limit.refill)), NEVER_S)
    fields = (("retry-after", str(after)), *((name, str(value)) for name, value in _rate_fields(limit, left)))
    return _refusal(driver, limit, 429, fields, _TOO_MANY)


def _too_many(driver: "Driver", limit: Limit, status: int) -> Decision:
    text = _TOO_MANY if status == 429 else b"too many requests under way\n"
    return _refusal(driver, limit, status, (("retry-after", "1"),), text)


def _refusal(driver: "Driver", limit: Limit, status: int, fields: tuple[tuple[str, str], ...], text: bytes) -> Decision:
    """A refusal by nobody's verdict: no agent's name in it."""
    driver.protocol.context.count_refused(status)
    return Decision(Verb.FAIL, status, fields, text, reason=f"limit {limit.row.name}")


def _rate_fields(limit: Limit, left: int) -> tuple[tuple[str, int], ...]:
    """draft-ietf-httpapi-ratelimit-headers, as clients know it: the three fields of its older form."""
    left = max(left, 0)
    reset = min(wait_s(left, limit.capacity, limit.refill), NEVER_S)
    return (
        ("ratelimit-limit", limit.capacity // ONE),
        ("ratelimit-remaining", left // ONE),
        ("ratelimit-reset", reset),
    )


def rate_lines(limited: tuple[Limit, int]) -> bytes:
    """The same as field lines, for the response of a request that was let through."""
    limit, left = limited
    reset = min(wait_s(left, limit.capacity, limit.refill), NEVER_S)
    return b"ratelimit-limit: %d\r\nratelimit-remaining: %d\r\nratelimit-reset: %d\r\n" % (
        limit.capacity // ONE,
        left // ONE,
        reset,
    )


def release(uses: tuple[tuple[Limit, int], ...]) -> None:
    """What `refuses` or `Doors.enter` counted as under way is over."""
    for limit, place in uses:
        limit.leave(place)


# --- connections ------------------------------------------------------------------------------------


class Doors:
    """How many connections there may be, in one worker."""

    __slots__ = ("_all", "_per_client", "_total")

    def __init__(self, server: Server, limits: Limits) -> None:
        self._all = limits
        self._total = limits.limit(_CONNECTIONS) if server.max_connections else None
        self._per_client = limits.limit(_CONNECTIONS_PER_CLIENT) if server.max_connections_per_client else None

    def admits(self, connection: "ProxyProtocol") -> bool:
        """A new connection. False: it was one too many and is being closed."""
        self._all.refresh()
        ip = connection.peer_ip
        # All clients of a trusted proxy come over its connections, and those of a unix socket have no address.
        if self._per_client is not None and ip and not connection.peer_is_trusted:
            place = self._per_client.enter(client_key(ip))
            if place == REFUSED:
                return self._close(connection, self._per_client)
            connection.uses = ((self._per_client, place),)
        if self._total is not None:
            place = self._total.enter(b"")
            if place == REFUSED:
                return self._close(connection, self._total)
            connection.uses = (*connection.uses, (self._total, place))
        return True

    def _close(self, connection: "ProxyProtocol", limit: Limit) -> bool:
        context: WorkerContext = connection.context
        connection.close_now()
        context.account(
            AuditRecord(
                ts=context.timestamp(),
                source="worker",
                correlation_id="",
                decision="refused",
                reason=f"limit {limit.row.name}",
                client_ip=connection.peer_ip,
            ),
            log.WARNING,
            "connection refused",
        )
        return False
