"""Decides what an admin request may do and what it is answered: a table of routes over one state.

Reading is open to whoever can connect. Changing needs either the unix socket (its peers were checked
by uid when they connected) or, over TCP, the bearer token; a request that a browser sent on behalf of
another page never changes anything. Every change is audited with who made it. No socket, no HTTP
parsing here (agentd/admin_http.py), no rule about breakers or health either: the state is asked.

Kind: pure (the state it is given does the work).
"""

import hmac
import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Final, NamedTuple, Protocol
from urllib.parse import unquote_to_bytes

import msgspec

from shared.clock import MS, now_ns
from shared.errors import AdminRefused
from shared.wire import admin as wire

_log = logging.getLogger("agentd.admin")
JSON: Final = "application/json"


class Peer(NamedTuple):
    """Who is at the other end: a process by the kernel's word, or an address."""

    is_unix: bool
    uid: int = -1
    pid: int = -1
    address: str = ""

    def __str__(self) -> str:
        return f"uid {self.uid} pid {self.pid}" if self.is_unix else f"token from {self.address}"


class Request(NamedTuple):
    """One request; header names in lower case. `is_loopback`: it came in on a loopback address."""

    method: str
    path: str  # raw, as received
    headers: dict[str, str]
    peer: Peer
    body: bytes = b""
    is_loopback: bool = False
    is_gone: Callable[[], bool] = lambda: False  # whether the client has hung up meanwhile


class Response(NamedTuple):
    """One answer."""

    status: int
    body: bytes
    content_type: str = JSON
    headers: tuple[tuple[str, str], ...] = ()
    pieces: Iterator[bytes] | None = None  # the body, for whoever sends it to make: a little at a time
    later: "Callable[[], Awaitable[Response]] | None" = None  # what is to be awaited and sent instead of this


class State(Protocol):
    """What agentd can be asked and told here."""

    def health(self) -> wire.Health:
        """Every component."""

    def live(self) -> wire.Live:
        """A sign of life."""

    def metrics(self, accept: str) -> tuple[str, Iterator[bytes]]:
        """Content type and exposition, a piece a step."""

    def each_agent(self) -> Iterator[wire.Agent]:
        """Every agent, one a step."""

    def breakers(self) -> tuple[wire.Breaker, ...]:
        """Every breaker."""

    def change_breaker(self, agent: str, action: wire.BreakerAction, change: wire.BreakerChange) -> wire.Breaker:
        """Do it, publish it; raises AdminRefused (404 unknown agent, 400 a number out of range)."""

    def reloads(self) -> wire.Reloads:
        """How both daemons' last reloads went."""

    def reload(self, who: str) -> Awaitable[wire.Reload]:
        """Read the configuration anew, and audit what came of it; ends with it, or when that takes long."""

    def reload_proxy(self) -> wire.Reload:
        """Tell the proxy to, and how it was before; raises AdminRefused (409 it does not run, or may not be told)."""

    def drain(self, agent: str, request: wire.DrainRequest) -> wire.Drains:
        """Begin it; raises AdminRefused (404 unknown, 409 it cannot be done without failing requests)."""

    def drains(self) -> wire.Drains:
        """The last ones."""

    def limits(self) -> wire.Limits:
        """Every limit."""

    def overrides(self) -> wire.Overrides:
        """What differs from the configuration."""

    def change_limit(self, name: str, action: wire.LimitAction, change: wire.LimitChange) -> wire.Limit:
        """Do it in all workers; raises AdminRefused (404 unknown limit, 400 a number out of range)."""

    def audit_change(self, who: str, what: str, target: str, text: str) -> None:
        """Write down that it was done."""


Handler = Callable[["Admin", Request, tuple[str, ...]], Response]


class Row(NamedTuple):
    """One route: `*` in the path stands for one segment, given to the handler decoded."""

    methods: tuple[str, ...]
    path: str
    handler: Handler
    is_change: bool = False


def _health(admin: "Admin", request: Request, args: tuple[str, ...]) -> Response:
    health = admin.state.health()
    return _json(503 if health.status is wire.Status.UNHEALTHY else 200, health)


def _live(admin: "Admin", request: Request, args: tuple[str, ...]) -> Response:
    return _json(200, admin.state.live())


def _ready(admin: "Admin", request: Request, args: tuple[str, ...]) -> Response:
    health = admin.state.health()
    return _json(200 if health.is_ready else 503, health)


def _metrics(admin: "Admin", request: Request, args: tuple[str, ...]) -> Response:
    content_type, pieces = admin.state.metrics(request.headers.get("accept", ""))
    return Response(200, b"", content_type, pieces=pieces)


def _agents(admin: "Admin", request: Request, args: tuple[str, ...]) -> Response:
    return Response(200, b"", pieces=_listed(b"agents", admin.state.each_agent()))


def _breakers(admin: "Admin", request: Request, args: tuple[str, ...]) -> Response:
    return _json(200, wire.Breakers(admin.state.breakers()))


def _change_breaker(action: wire.BreakerAction) -> Handler:
    def handler(admin: "Admin", request: Request, args: tuple[str, ...]) -> Response:
        change = wire.BreakerChange()
        if action == "set":
            try:
                change = wire.decode_breaker_change(request.body)
            except msgspec.MsgspecError as error:
                raise AdminRefused(400, f"body: {error}") from None
            if change == wire.BreakerChange():
                raise AdminRefused(400, "body: no number given; see GET /api/breakers for their names")
        elif request.body.strip():
            raise AdminRefused(400, f"{action} takes no body")
        (agent,) = args
        breaker = admin.state.change_breaker(agent, action, change)
        text = wire.encode(change).decode() if action == "set" else breaker.state
        admin.state.audit_change(str(request.peer), f"breaker.{action}", agent, text)
        _log.warning("breaker %s of %s by %s", action, agent, request.peer, extra={"agent": agent, "now": text})
        return _json(200, breaker)

    return handler


def _reloads(admin: "Admin", request: Request, args: tuple[str, ...]) -> Response:
    return _json(200, admin.state.reloads())


def _reload(admin: "Admin", request: Request, args: tuple[str, ...]) -> Response:
    if request.body.strip():
        raise AdminRefused(400, "a reload takes no body")
    _log.warning("reload asked for by %s", request.peer)
    ended = admin.state.reload(str(request.peer))

    async def later() -> Response:
        found = await ended
        if found.is_under_way:
            return _json(202, found)
        if found.result != "applied":
            return problem(409, "\n".join(found.problems) or found.message)
        return _json(200, found)

    return Response(202, b"", later=later)


def _reload_proxy(admin: "Admin", request: Request, args: tuple[str, ...]) -> Response:
    if request.body.strip():
        raise AdminRefused(400, "a reload takes no body")
    before = admin.state.reload_proxy()
    admin.state.audit_change(str(request.peer), "reload", "proxy", "told to reload")
    _log.warning("reload of the proxy asked for by %s", request.peer)
    return _json(202, before)


def _drain(admin: "Admin", request: Request, args: tuple[str, ...]) -> Response:
    try:
        wanted = wire.decode_drain_request(request.body) if request.body.strip() else wire.DrainRequest()
    except msgspec.MsgspecError as error:
        raise AdminRefused(400, f"body: {error}") from None
    (agent,) = args
    begun = admin.state.drain(agent, wanted)
    names = ", ".join(drain.instance for drain in begun.drains)
    text = f"{names}, within {wanted.timeout_s:g} s"
    admin.state.audit_change(str(request.peer), "agent.drain", agent, text)
    _log.warning("drain of %s/%s by %s", agent, names, request.peer, extra={"agent": agent, "instances": names})
    return _json(200, begun)


def _drains(admin: "Admin", request: Request, args: tuple[str, ...]) -> Response:
    return _json(200, admin.state.drains())


def _limits(admin: "Admin", request: Request, args: tuple[str, ...]) -> Response:
    return _json(200, admin.state.limits())


def _overrides(admin: "Admin", request: Request, args: tuple[str, ...]) -> Response:
    return _json(200, admin.state.overrides())


def _change_limit(action: wire.LimitAction) -> Handler:
    def handler(admin: "Admin", request: Request, args: tuple[str, ...]) -> Response:
        change = wire.LimitChange()
        if action == "set":
            try:
                change = wire.decode_limit_change(request.body)
            except msgspec.MsgspecError as error:
                raise AdminRefused(400, f"body: {error}") from None
            if change.capacity is msgspec.UNSET and change.refill_rate is msgspec.UNSET and not change.keep:
                raise AdminRefused(400, "body: want capacity, refill_rate or keep")
        elif request.body.strip():
            raise AdminRefused(400, f"{action} takes no body")
        (name,) = args
        limit = admin.state.change_limit(name, action, change)
        text = wire.encode(change).decode() if action == "set" else f"{limit.capacity} {limit.refill_rate:g}"
        admin.state.audit_change(str(request.peer), f"limit.{action}", name, text)
        _log.warning("limit %s of %s by %s", action, name, request.peer, extra={"limit": name, "now": text})
        return _json(200, limit)

    return handler


ROUTES: Final = (
    Row(("GET",), wire.HEALTH, _health),
    Row(("GET",), wire.LIVE, _live),
    Row(("GET",), wire.READY, _ready),
    Row(("GET",), wire.METRICS, _metrics),
    Row(("GET",), wire.AGENTS, _agents),
    Row(("GET",), wire.BREAKERS, _breakers),
    Row(("POST",), wire.BREAKERS + "/*/open", _change_breaker("open"), is_change=True),
    Row(("POST",), wire.BREAKERS + "/*/close", _change_breaker("close"), is_change=True),
    Row(("POST",), wire.BREAKERS + "/*/reset", _change_breaker("reset"), is_change=True),
    Row(("POST", "PATCH"), wire.BREAKERS + "/*/set", _change_breaker("set"), is_change=True),
    Row(("GET",), wire.RELOAD, _reloads),
    Row(("POST",), wire.RELOAD, _reload, is_change=True),
    Row(("POST",), wire.RELOAD_PROXY, _reload_proxy, is_change=True),
    Row(("GET",), wire.DRAINS, _drains),
    Row(("POST",), wire.AGENTS + "/*/drain", _drain, is_change=True),
    Row(("GET",), wire.LIMITS, _limits),
    Row(("POST", "PATCH"), wire.LIMITS + "/*/set", _change_limit("set"), is_change=True),
    Row(("POST",), wire.LIMITS + "/*/reset", _change_limit("reset"), is_change=True),
    Row(("GET",), wire.OVERRIDES, _overrides),
)
_SEGMENTS: Final = tuple((row, tuple(row.path.split("/"))) for row in ROUTES)
_CODES: Final = {
    400: "bad_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    408: "too_late",
    409: "conflict",
    413: "too_large",
    421: "misdirected",
    431: "too_large",
    500: "internal",
}


class Admin:
    """The routes over one state. `token` = "" : no change over TCP."""

    def __init__(self, state: State, token: str = "", clock: Callable[[], int] = now_ns) -> None:
        self.state = state
        self.configure(token)
        self._clock = clock

    def configure(self, token: str) -> None:
        """Another token, from the next request on."""
        self._token = token.encode("latin-1")  # as bytes, whatever they mean: header fields are read so, too

    def handle(self, request: Request) -> Response:
        """The answer; never raises."""
        try:
            return self._handle(request)
        except AdminRefused as error:
            return problem(error.status, str(error))
        except Exception:
            _log.exception("admin request failed: %s %s", request.method, request.path[:200])
            return problem(500, "internal error; the log has the details")

    async def finish(self, later: Callable[[], Awaitable[Response]]) -> Response:
        """The answer that takes its time; never raises."""
        try:
            return await later()
        except Exception:
            _log.exception("admin request failed")
            return problem(500, "internal error; the log has the details")

    def _handle(self, request: Request) -> Response:
        if request.is_loopback and not _is_local(request.headers.get("host", "localhost")):
            # A page of another site whose name was made to resolve to us sends its own name here. None at all
            # comes from HTTP/1.0 alone, which no browser speaks.
            raise AdminRefused(421, "this address answers to localhost and IP addresses only")
        rows, args = _find(request.path)
        method = "GET" if request.method == "HEAD" else request.method
        row = next((row for row in rows if method in row.methods), None)
        if row is None:
            methods = [method for row in rows for method in row.methods]
            allow = ", ".join([*methods, *(["HEAD"] if "GET" in methods else [])])
            return problem(405, f"{request.path} takes {allow}", (("allow", allow),))
        if row.is_change:
            refusal = self._why_not(request) or self._too_late(request)
            if refusal is not None:
                who = str(request.peer) if request.peer.is_unix else f"a client at {request.peer.address}"
                extra = {"status": refusal.status}
                _log.warning("admin change refused: %s %s by %s", method, request.path[:200], who, extra=extra)
                return refusal
        return row.handler(self, request, args)

    def _why_not(self, request: Request) -> Response | None:
        if "origin" in request.headers or request.headers.get("sec-fetch-site", "none") != "none":
            return problem(403, "changes are not taken from web pages")
        if request.peer.is_unix:
            return None
        if not self._token:
            return problem(403, "changes over TCP need admin.token_file; use the unix socket in runtime.dir")
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        # hmac.compare_digest takes the same time wherever the first difference is
        if scheme.lower() == "bearer" and hmac.compare_digest(given.encode("latin-1", "replace").strip(), self._token):
            return None
        return problem(401, "a bearer token is needed", (("www-authenticate", 'Bearer realm="wardgate"'),))

    def _too_late(self, request: Request) -> Response | None:
        """Whoever was told that it failed must not find it done later: agentd may have stood still meanwhile."""
        if request.is_gone():
            return problem(408, "the client has hung up; nothing was changed")
        text = request.headers.get(wire.DEADLINE)
        if text is None:
            return None
        if not (text.isascii() and text.isdigit() and len(text) <= 20):
            return problem(400, f"{wire.DEADLINE}: want nanoseconds of CLOCK_MONOTONIC")
        late_ns = self._clock() - int(text)
        if late_ns < 0:
            return None
        return problem(408, f"the client's deadline was {late_ns // MS} ms ago; nothing was changed")


def problem(status: int, message: str, headers: tuple[tuple[str, str], ...] = ()) -> Response:
    """An error as JSON."""
    body = wire.encode(wire.Problem(wire.ProblemBody(_CODES.get(status, "error"), message)))
    return Response(status, body, headers=headers)


def _json(status: int, message: msgspec.Struct) -> Response:
    return Response(status, wire.encode(message))


def _listed(name: bytes, rows: Iterable[msgspec.Struct]) -> Iterator[bytes]:
    """An object with one list, a row at a time: with a thousand instances the whole would take long."""
    yield b'{"%b":[' % name
    for number, row in enumerate(rows):
        yield (b"," if number else b"") + wire.encode(row)
    yield b"]}"


def _find(path: str) -> tuple[list[Row], tuple[str, ...]]:
    """The rows of this path, one for reading and one for changing perhaps, and what stands in its places."""
    segments = path.split("/")
    found: list[Row] = []
    args: tuple[str, ...] = ()
    for row, wanted in _SEGMENTS:
        if len(wanted) != len(segments):
            continue
        if all(want in ("*", part) for want, part in zip(wanted, segments, strict=True)):
            args = tuple(_decoded(part) for want, part in zip(wanted, segments, strict=True) if want == "*")
            found.append(row)
    if found:
        return found, args
    raise AdminRefused(404, f"there is nothing at {path[:200]}")


def _decoded(segment: str) -> str:
    try:
        return unquote_to_bytes(segment).decode()
    except UnicodeDecodeError:
        raise AdminRefused(400, "the path is not UTF-8") from None


def _is_local(host: str) -> bool:
    """localhost or an IP address, with or without a port; a name is somebody else's."""
    name = host.lower()
    if name.startswith("["):
        return "]" in name
    name = name.rpartition(":")[0] if ":" in name else name
    return name == "localhost" or (name.count(".") == 3 and name.replace(".", "").isdigit())
