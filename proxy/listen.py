"""Opens the sockets that the workers will accept on: from the configuration, or passed by systemd.

    "127.0.0.1:8080"   "[::1]:8080"   "unix:/run/app.sock"   port 0 = any free one

They are bound once, before the first fork, and every worker accepts on the same ones: with SO_REUSEPORT
the connections queued behind a dying worker are reset. uvicorn's own `uds=` would leave a unix socket
with mode 0666.

Nothing here accepts, and nothing knows what is served.

Kind: IO.
"""

import errno
import os
import socket
import stat
from collections.abc import Iterable, MutableMapping

import msgspec

from shared.errors import WardgateError

ADDRESS_FILE = "proxy.addr"  # in the runtime directory, beside agentd's own:
ADMIN_ADDRESS_FILE = "admin.addr"
SD_LISTEN_FDS_START = 3
UNIX_MODE_UMASK = 0o117  # 0660: the proxy in front of us is usually in our group


class ListenFailed(WardgateError):
    """A socket could not be bound; the text names the address and the way out."""

    code = "listen"


class Address(msgspec.Struct, frozen=True):
    """Where to listen: `path` for a unix socket, else host and port."""

    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse(text: str) -> Address:
    """The address in one entry of `server.listen`; ListenFailed if it is none (the config's check says it first)."""
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        if path.startswith("/"):
            return Address(path=path)
    else:
        host, colon, port = text.rpartition(":")
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
        elif ":" in host:
            colon = ""
        if colon and host and port.isascii() and port.isdigit() and int(port) < 65_536:
            return Address(host, int(port))
    raise ListenFailed(f'"{text}" is not an address: use "host:port", "[::1]:port" or "unix:/path"')


class Listeners:
    """The open sockets. `is_passed`: they are systemd's, and so is what becomes of them."""

    __slots__ = ("_paths", "is_passed", "sockets")

    def __init__(self, sockets: list[socket.socket], paths: dict[str, tuple[int, int]], is_passed: bool) -> None:
        self.sockets = sockets
        self._paths = paths  # of the unix sockets that we made, with what tells ours from a successor's
        self.is_passed = is_passed

    def addresses(self) -> list[str]:
        """As really bound, one text per socket, ports filled in."""
        return [name_of(sock) for sock in self.sockets]

    def close(self) -> None:
        """Stop listening, and remove the unix sockets that are still ours."""
        for sock in self.sockets:
            sock.close()
        self.sockets = []
        for path, mark in self._paths.items():
            try:
                if _mark(path) == mark:
                    os.unlink(path)
            except OSError:
                pass
        self._paths = {}


def name_of(sock: socket.socket) -> str:
    """ "host:port", "[::1]:port" or "unix:/path" of a bound socket."""
    name = sock.getsockname()
    if isinstance(name, tuple):
        return str(Address(name[0], name[1]))
    return f"unix:{name if isinstance(name, str) else os.fsdecode(name)}"


def open_all(texts: Iterable[str], backlog: int, environ: MutableMapping[str, str]) -> Listeners:
    """The sockets passed by systemd if there are any, else one per address. All or none."""
    passed = _passed(environ)
    if passed:
        return Listeners(passed, {}, True)
    sockets: list[socket.socket] = []
    paths: dict[str, tuple[int, int]] = {}
    try:
        for address in map(parse, texts):
            sock = _bind(address)
            sockets.append(sock)
            if address.path:
                paths[address.path] = _mark(address.path)
            sock.listen(backlog)
    except OSError as error:
        Listeners(sockets, paths, False).close()
        raise ListenFailed(str(error)) from None
    except ListenFailed:
        Listeners(sockets, paths, False).close()
        raise
    return Listeners(sockets, paths, False)


def probe(texts: Iterable[str]) -> None:
    """Bind every address and let go again: ListenFailed says what is in the way before anything is started."""
    open_all(texts, 1, {}).close()


def write_addresses(dir: str, addresses: Iterable[str]) -> None:
    """Tell tests, `wardgate run` and people where the proxy really listens: one address per line."""
    path = f"{dir}/{ADDRESS_FILE}"
    fd = os.open(f"{path}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "w") as file:
        file.write("".join(f"{address}\n" for address in addresses))
    os.rename(f"{path}.new", path)


def read_addresses(dir: str, name: str = ADDRESS_FILE) -> list[str]:
    """Where the daemon of this runtime directory listens; nothing when it does not run."""
    try:
        with open(f"{dir}/{name}") as file:
            return file.read().splitlines()
    except FileNotFoundError:
        return []


def remove_addresses(dir: str) -> None:
    """The proxy leaves."""
    try:
        os.unlink(f"{dir}/{ADDRESS_FILE}")
    except FileNotFoundError:
        pass


def _passed(environ: MutableMapping[str, str]) -> list[socket.socket]:
    """sd_listen_fds(3): descriptors from 3 on, if they are meant for this process. The variables are taken away."""
    pid, count = environ.get("LISTEN_PID", ""), environ.get("LISTEN_FDS", "")
    if pid != str(os.getpid()) or not count.isdigit():
        return []
    for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        environ.pop(name, None)
    sockets: list[socket.socket] = []
    for fd in range(SD_LISTEN_FDS_START, SD_LISTEN_FDS_START + int(count)):
        why = "not a listening stream socket"
        try:
            sock = socket.socket(fileno=fd)
            sockets.append(sock)
            is_good = sock.type == socket.SOCK_STREAM and sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        except OSError as error:
            is_good, why = False, error.strerror or str(error)
        if not is_good:
            for sock in sockets:
                sock.close()
            raise ListenFailed(f"descriptor {fd} passed by the service manager: {why}")
        sock.setblocking(False)
        sock.set_inheritable(False)
    return sockets


def _bind(address: Address) -> socket.socket:
    if address.path:
        return _bind_unix(address)
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # accepted sockets inherit it
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # "[::]" beside "0.0.0.0" must work
        sock.setblocking(False)
        sock.bind((address.host, address.port))
    except OSError as error:
        sock.close()
        raise ListenFailed(f"cannot listen on {address}: {_why(error, address)}") from None
    return sock


def _bind_unix(address: Address) -> socket.socket:
    """A unix socket with mode 0660. A path that a dead process left is taken over, one that answers is not."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _clear_stale(address.path)
        sock.setblocking(False)
        before = os.umask(UNIX_MODE_UMASK)
        try:
            sock.bind(address.path)
        finally:
            os.umask(before)
    except OSError as error:
        sock.close()
        raise ListenFailed(f"cannot listen on {address}: {_why(error, address)}") from None
    return sock


def _mark(path: str) -> tuple[int, int]:
    """An inode number alone is soon given to the next file; a socket's mtime is when it was bound."""
    status = os.lstat(path)
    return status.st_ino, status.st_mtime_ns


def _clear_stale(path: str) -> None:
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise OSError(errno.EEXIST, "there is a file of that name which is not a socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
        other.settimeout(1.0)
        try:
            other.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)  # nobody is behind it any more
            return
        except OSError:
            pass  # its queue is full: somebody is
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


def _why(error: OSError, address: Address) -> str:
    if error.errno == errno.EADDRINUSE:
        if address.path:
            return "another process is listening there"
        return f"port {address.port} is already in use (who: `ss -ltnp sport = :{address.port}`); choose another port"
    if error.errno == errno.EADDRNOTAVAIL:
        return "this machine has no such address"
    if error.errno == errno.EACCES and not address.path:
        return "not permitted; ports below 1024 need CAP_NET_BIND_SERVICE or a systemd socket unit"
    return error.strerror or str(error)
