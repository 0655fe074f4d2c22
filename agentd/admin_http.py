"""Serves the admin API: sockets, peers, limits and HTTP; what is answered is agentd/admin.py's business.

uvicorn runs inside agentd's loop on sockets bound before. One connection carries one request and ends
after ADMIN_REQUEST_S whatever it does, at most ADMIN_MAX_CONNECTIONS are open on each listener, head and body
together have at most ADMIN_MAX_REQUEST_BYTES: a slow or greedy client holds one place for five seconds, and
none on the unix socket, where the operator comes in, unless it is admitted there. h11 parses
(one Host field, no smuggling to worry about: nobody reads behind us).

The unix socket admits root, agentd's own uid and members of ADMIN_GROUP, by SO_PEERCRED when they
connect. It has mode 0600; where ADMIN_GROUP exists and agentd may hand the socket to it, 0660, since
nobody can connect to a socket that he may not write to.

Kind: IO.
"""

import asyncio
import contextlib
import grp
import logging
import os
import select
import socket
import stat
import struct
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from functools import partial
from typing import Any, NamedTuple, cast

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from agentd.admin import Admin, Peer, Request, Response, problem
from shared.clock import MS, now_ns
from shared.defaults import (
    ADMIN_GROUP,
    ADMIN_MAX_CONNECTIONS,
    ADMIN_MAX_REQUEST_BYTES,
    ADMIN_REQUEST_S,
    ADMIN_SLICE_MS,
)
from shared.errors import WardgateError

_SO_PEERGROUPS = 59  # Linux 4.13; not in Python 3.11's socket module
_UCRED = struct.Struct("3i")
_BACKLOG = 128
_PART_BYTES = 65_536  # of a long body handed to the connection at once
_SLICE_NS = int(ADMIN_SLICE_MS * MS)
_log = logging.getLogger("agentd.admin")

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


# --- sockets --------------------------------------------------------------------------------------


def bind_unix(path: str) -> socket.socket:
    """The admin socket. The caller holds the daemon's lock, so what lies there is nobody's."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise WardgateError(f"{path} exists and is no socket")
        os.unlink(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        umask = os.umask(0o177)
        try:
            sock.bind(path)
        finally:
            os.umask(umask)
        gid = admin_gid()
        if gid is not None:
            with contextlib.suppress(PermissionError):
                os.chown(path, -1, gid)
                os.chmod(path, 0o660)
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        raise WardgateError(f"cannot listen on {path}: {error.strerror}") from error
    return sock


def bind_tcp(listen: str) -> socket.socket:
    """A TCP address `host:port` or `[::1]:port` of `[admin].listen`; port 0 = any free one."""
    host, _, port = listen.rpartition(":")
    host = host.strip("[]")
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, kind, proto)
    except OSError as error:
        raise WardgateError(f"admin.listen: {listen}: {error.strerror}") from error
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        raise WardgateError(f"admin.listen: cannot listen on {listen}: {error.strerror}") from error
    return sock


def address_of(sock: socket.socket) -> str:
    """`host:port` as really bound."""
    host, port = sock.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def admin_gid() -> int | None:
    """The group that may use the socket, if this machine has it."""
    try:
        return grp.getgrnam(ADMIN_GROUP).gr_gid
    except KeyError:
        return None


# --- one connection --------------------------------------------------------------------------------


class _Protocol(H11Protocol):
    """uvicorn's h11 protocol with one request, one deadline, one byte budget, and a peer that is known."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        sock: socket.socket = transport.get_extra_info("socket")
        is_unix = sock.family == socket.AF_UNIX
        pid = uid = gid = -1
        if is_unix:
            pid, uid, gid = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
        is_admitted = not is_unix or _is_admitted(sock, uid, gid)
        # The listener it came in by; strangers at the unix socket have places of their own to be refused in.
        self._budget: tuple[int, int | bool] = (sock.family, is_admitted if is_unix else sock.getsockname()[1])
        others = sum(1 for other in self.connections if cast(_Protocol, other)._budget == self._budget)
        if others >= ADMIN_MAX_CONNECTIONS:
            transport.abort()
            return
        super().connection_made(transport)
        self._left = ADMIN_MAX_REQUEST_BYTES
        self._is_over = False
        self._timer = self.loop.call_later(ADMIN_REQUEST_S, transport.abort)
        if is_unix:
            if not is_admitted:
                self._refuse(problem(403, f"uid {uid} may not use this socket: root, agentd's user, {ADMIN_GROUP} may"))
                return
            peer, is_loopback = Peer(True, uid, pid), False
        else:
            peer = Peer(False, address="{}:{}".format(*transport.get_extra_info("peername")[:2]))
            local = transport.get_extra_info("sockname")[0]
            is_loopback = local.startswith("127.") or local == "::1"
        self.app_state = {"peer": peer, "is_loopback": is_loopback, "is_gone": partial(_is_gone, transport)}

    def data_received(self, data: bytes) -> None:
        if self._is_over:
            return  # read on and forget: closing now would reset the answer on its way
        room, self._left = self._left, self._left - len(data)
        super().data_received(data[: max(0, room)])
        if self._left >= 0 or self._is_over:
            return
        cycle = cast("RequestResponseCycle | None", self.cycle)
        if cycle is None:
            self._refuse(problem(431, f"request head over {ADMIN_MAX_REQUEST_BYTES} bytes"))
        elif not cycle.response_started:
            self._refuse(problem(413, f"request over {ADMIN_MAX_REQUEST_BYTES} bytes"))

    def send_400_response(self, msg: str) -> None:
        self._refuse(problem(400, msg))

    def connection_lost(self, exc: Exception | None) -> None:
        if hasattr(self, "_timer"):
            self._timer.cancel()
            super().connection_lost(exc)

    def _refuse(self, response: Response) -> None:
        self._is_over = True
        cycle = cast("RequestResponseCycle | None", self.cycle)
        if cycle is not None:
            cycle.disconnected = True
            cycle.message_event.set()
        head = [f"HTTP/1.1 {response.status} Refused", *(f"{name}: {value}" for name, value in fields(response))]
        self.transport.write("\r\n".join([*head, "", ""]).encode("latin-1") + response.body)
        self.transport.write_eof()


def _is_gone(transport: asyncio.Transport) -> bool:
    """Whether nobody is there to read an answer. Over TCP that shows when the answer is sent, if at all."""
    if transport.is_closing():
        return True
    poll = select.poll()
    poll.register(transport.get_extra_info("socket").fileno(), 0)  # POLLHUP and POLLERR come unasked
    return bool(poll.poll(0))


def _is_admitted(sock: socket.socket, uid: int, gid: int) -> bool:
    if uid in (0, os.geteuid()):
        return True
    wanted = admin_gid()
    if wanted is None:
        return False
    if wanted == gid:
        return True
    try:
        raw = sock.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 1024)  # Python's bound; 256 groups
    except OSError:
        return False
    return wanted in struct.unpack(f"{len(raw) // 4}I", raw)


def fields(response: Response, size: int | None = None) -> list[tuple[str, str]]:
    """The header fields of an answer, whose body has `size` bytes; every connection ends after it."""
    return [
        ("content-type", response.content_type),
        ("content-length", str(len(response.body) if size is None else size)),
        ("cache-control", "no-store"),
        ("x-content-type-options", "nosniff"),
        ("connection", "close"),
        *response.headers,
    ]


# --- the application and its server ----------------------------------------------------------------


class App:
    """ASGI around `Admin.handle`: collect the body, answer."""

    def __init__(self, admin: Admin, clock: Callable[[], int] = now_ns) -> None:
        self._admin = admin
        self._pages = Pages(clock)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = b""
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
        state = scope["state"]
        request = Request(
            method=scope["method"],
            path=scope["raw_path"].decode("ascii"),
            headers={name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]},
            peer=state["peer"],
            body=body,
            is_loopback=state["is_loopback"],
            is_gone=state["is_gone"],
        )
        response = self._admin.handle(request)
        if response.later is not None:
            response = await self._admin.finish(response.later)
        parts = [response.body]
        if response.pieces is not None:
            try:
                parts = await self._pages.made(request.path, response.pieces)
            except Exception:
                _log.exception("admin request failed: %s %s", request.method, request.path[:200])
                response = problem(500, "internal error; the log has the details")
                parts = [response.body]
        size = sum(len(part) for part in parts)
        headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in fields(response, size)]
        await send({"type": "http.response.start", "status": response.status, "headers": headers})
        for part in parts:
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


class _Page(NamedTuple):
    path: str
    began_ns: int
    parts: list[bytes]


class Pages:
    """Makes long bodies a little at a time, one after the other: agentd's loop turns after each ADMIN_SLICE_MS.

    Whoever asks while another's page is made gets one that was begun after he asked, together with all who wait:
    however many ask at once, two are made, and no more than one is made at a time.
    """

    def __init__(self, clock: Callable[[], int]) -> None:
        self._clock = clock
        self._one_at_a_time = asyncio.Lock()
        self._waiting = 0
        self._page: _Page | None = None

    async def made(self, path: str, pieces: Iterator[bytes]) -> list[bytes]:
        """The pieces, put together to parts of some 64 KiB."""
        asked_ns = self._clock()
        self._waiting += 1
        try:
            async with self._one_at_a_time:
                page = self._page
                if page is None or page.path != path or page.began_ns < asked_ns:
                    page = self._page = _Page(path, self._clock(), await self._make(pieces))
                return page.parts
        finally:
            self._waiting -= 1
            if not self._waiting:
                self._page = None  # megabytes

    async def _make(self, pieces: Iterator[bytes]) -> list[bytes]:
        parts: list[bytes] = []
        part: list[bytes] = []
        size = 0
        until_ns = self._clock() + _SLICE_NS
        for piece in pieces:
            part.append(piece)
            size += len(piece)
            if size >= _PART_BYTES:
                parts.append(b"".join(part))
                part, size = [], 0
            if self._clock() >= until_ns:
                await asyncio.sleep(0)
                until_ns = self._clock() + _SLICE_NS
        parts.append(b"".join(part))
        return parts


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: agentd's daemon has its own."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class AdminServer:
    """The API on given, bound sockets. `serve` is a task of the daemon; `stop` ends it."""

    def __init__(self, admin: Admin, sockets: list[socket.socket]) -> None:
        self.sockets = sockets
        config = uvicorn.Config(
            cast(Any, App(admin)),
            http=_Protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=1,
            backlog=_BACKLOG,
        )
        self._server = _Server(config)

    async def serve(self) -> None:
        """Until `stop`."""
        await self._server.serve(self.sockets)

    @property
    def has_started(self) -> bool:
        """Whether requests are answered."""
        return self._server.started

    def stop(self) -> None:
        """Close the listeners, let requests under way finish (one second), end `serve`."""
        self._server.should_exit = True
