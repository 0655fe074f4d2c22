"""The connection to agentd: a DEALER of ZMTP (zmtp/) on the event loop, made again for ever.

    dial --connected--> handshake --READY--> open        `on_up`, messages; the end: `on_down`
      ^---- back-off ----/--------------------/          the wait doubles until `settle`

A unix socket connects at once or not at all, so only tcp:// needs a task. One timer: back-off, or the handshake's
deadline. No routing id is ever set: agentd names its peers.

Kind: IO.
"""

import asyncio
import os
import random
import socket
import stat
from collections.abc import Callable, Sequence

from wardgate_agent import wire
from wardgate_agent.zmtp import Buffer, Connection, Frame, Turn

_FAREWELL_LOOK_S = 0.005  # how often what was said last is looked after


class Link:
    """One connection, made again whenever it is lost.

    `on_message(connection, frames)` for every message, inside of `turn`: its `end` is the time to send what they
    led to. `on_up()`: the connection is there; `on_down(reason)`: it is gone.
    """

    def __init__(
        self,
        endpoint: str,
        loop: asyncio.AbstractEventLoop,
        *,
        on_message: Callable[[Connection, list[Frame]], None],
        on_up: Callable[[], None],
        on_down: Callable[[str], None],
        turn: Turn,
        backoff_max_s: float,
    ) -> None:
        self.endpoint = endpoint
        self.trouble = ""  # why the last attempt came to nothing
        self._loop = loop
        self._on_message = on_message
        self._on_up = on_up
        self._on_down = on_down
        self._turn = turn
        self._backoff_s = wire.BACKOFF_S
        self._backoff_max_s = backoff_max_s
        self._connection: Connection | None = None
        self._is_up = False
        self._timer: asyncio.TimerHandle | None = None
        self._dialling: asyncio.Task[None] | None = None

    @property
    def is_open(self) -> bool:
        """Both sides have said READY."""
        return self._is_up

    def open(self) -> None:
        """Begin to connect; it goes on for ever."""
        if self.endpoint.startswith("tcp"):
            self._dialling = self._loop.create_task(self._dial_tcp())
        else:
            self._dial_unix()

    def close(self) -> None:
        """End the connection, or the attempts at one. What was not sent yet is dropped."""
        self._is_up = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._dialling is not None:
            self._dialling.cancel()
            self._dialling = None
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def reconnect(self) -> None:
        """This connection is of no use: make another one, after the back-off. It is not announced by `on_down`."""
        self.close()
        self._retry()

    def settle(self) -> None:
        """This is whom we want to talk to: after the next loss the back-off begins anew."""
        self._backoff_s = wire.BACKOFF_S

    async def farewell(self, wait_s: float) -> None:
        """Close, giving what was said last so long to leave."""
        deadline_s = self._loop.time() + wait_s
        while self._has_unsent() and self._loop.time() < deadline_s:  # noqa: ASYNC110 - nobody tells when it has left
            await asyncio.sleep(_FAREWELL_LOOK_S)
        self.close()

    def _has_unsent(self) -> bool:
        return self._connection is not None and self._connection.unsent_bytes > 0

    def send(self, frames: Sequence[Buffer]) -> bool:
        """True if the message is on its way whole; False without a connection, or to a peer that does not read."""
        connection = self._connection
        return connection is not None and connection.send(frames)

    def drain(self) -> bool:
        """Read what has come already; whether there was something."""
        return self._connection is not None and self._connection.read()

    # --- connecting -------------------------------------------------------------------------------

    def _dial_unix(self) -> None:
        try:
            made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        except OSError as error:
            self._failed(str(error.strerror))
            return
        try:
            made.connect(self.endpoint.removeprefix("ipc://"))
        except OSError as error:
            made.close()
            is_full = isinstance(error, BlockingIOError)  # the backlog
            self._failed("agentd does not take new connections" if is_full else why_unreachable(self.endpoint))
            return
        self._shake_hands(made)

    async def _dial_tcp(self) -> None:
        host, _, port = self.endpoint.removeprefix("tcp://").rpartition(":")
        try:
            async with asyncio.timeout(wire.CONNECT_TCP_S):
                made = await self._connected(host.strip("[]"), int(port))
        except (OSError, UnicodeError) as error:  # TimeoutError is the former, a strange host name the latter
            self._dialling = None
            self._failed(f"{str(error) or 'no answer'}: {why_unreachable(self.endpoint)}")
            return
        self._dialling = None
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._shake_hands(made)

    async def _connected(self, host: str, port: int) -> socket.socket:
        """A connection to the first of the host's addresses that takes one."""
        failure = OSError(0, "the host has no address")
        for family, kind, number, _, address in await self._loop.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            try:
                made = socket.socket(family, kind | socket.SOCK_NONBLOCK, number)
            except OSError as error:
                failure = error
                continue
            try:
                await self._loop.sock_connect(made, address)
                return made
            except OSError as error:
                made.close()
                failure = error
            except BaseException:
                made.close()
                raise
        raise failure

    def _shake_hands(self, made: socket.socket) -> None:
        try:
            self._connection = Connection(
                made,
                self._loop,
                b"DEALER",
                on_message=self._on_message,
                on_closed=self._closed,
                on_open=self._opened,
                max_bytes=wire.MAX_MESSAGE_BYTES,
                max_frames=wire.MAX_BODIES + 2,
                max_unsent=wire.MAX_UNSENT_BYTES,
                turn=self._turn,
            )
        except OSError as error:
            made.close()
            self._failed(str(error.strerror))
            return
        self._timer = self._loop.call_later(wire.HANDSHAKE_S, self._too_late)

    def _opened(self, connection: Connection) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._is_up = True
        self.trouble = ""
        self._on_up()

    def _too_late(self) -> None:
        self._timer = None
        self.drain()  # a loop that was held up has not seen the answer yet
        if self._connection is not None and not self._is_up:
            self.close()
            self._failed("there is no answer to the ZMTP handshake")

    def _closed(self, connection: Connection, reason: str) -> None:
        was_up = self._is_up
        self.close()
        self._retry()
        if was_up:
            self._on_down(reason)
        else:
            self.trouble = f"{reason} in the handshake (agentd's log says why)"

    def _failed(self, trouble: str) -> None:
        self.trouble = trouble
        self._retry()

    def _retry(self) -> None:
        self._timer = self._loop.call_later(self._backoff_s * random.uniform(0.5, 1.0), self._again)  # noqa: S311
        self._backoff_s = min(self._backoff_s * 2, self._backoff_max_s)

    def _again(self) -> None:
        self._timer = None
        self.open()


def endpoint_problem(endpoint: str) -> str | None:
    """Why nobody could ever connect to this endpoint; None if it looks right."""
    scheme, separator, rest = endpoint.partition("://")
    if not separator or scheme not in ("ipc", "tcp") or not rest or "\0" in rest:
        return f"{endpoint!r} is not ipc://PATH or tcp://HOST:PORT"
    if scheme == "ipc" and len(os.fsencode(rest)) > wire.SUN_PATH_MAX:
        return f"the path in {endpoint!r} is longer than {wire.SUN_PATH_MAX} bytes, the limit of unix sockets"
    host, _, port = rest.rpartition(":")
    if scheme == "tcp":
        if not (host and port.isascii() and port.isdigit() and 0 < int(port) < 65_536):
            return f"{endpoint!r} has no host or no port"
        try:
            host.encode("idna")
        except UnicodeError:
            return f"{host!r} in {endpoint!r} is no host name"
        if len(host.split()) != 1:
            return f"{host!r} in {endpoint!r} is no host name"
    return None


def why_unreachable(endpoint: str) -> str:
    """A guess for the log at why there is no connection yet."""
    scheme, _, path = endpoint.partition("://")
    if scheme != "ipc":
        return "is agentd running, and listening there?"
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return "no such socket: is agentd running, with this runtime directory?"
    except PermissionError:
        return "permission denied: may this user enter the directory? (group wardgate-agent)"
    except OSError as error:
        return str(error.strerror)
    if not stat.S_ISSOCK(mode):
        return "this is no socket"
    if not os.access(path, os.W_OK):
        return "permission denied: may this user write to the socket? (group wardgate-agent)"
    return "is agentd running?"
