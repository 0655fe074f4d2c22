"""Names, modes and locks of the runtime directory; one daemon of a kind in it.

    <dir>/                 0711   made by whoever starts first, or by tmpfiles.d
      workers.sock         0600   workers <-> agentd
      admin.sock           0600   CLI <-> agentd
      agentd.seg proxy.seg 0640   shared/segment.py
      agentd.lock ...      0600   flock; the text is the holder's pid, for people
      agents/              0750   v2: the socket that agents dial

Nothing is created or bound before the daemon's lock is held: a second bind on a live ipc path would
steal it. What the files hold is decided elsewhere.

Kind: IO.
"""

import fcntl
import grp
import os
import stat
from dataclasses import dataclass
from typing import Literal

from shared.defaults import AGENT_GROUP, SUN_PATH_MAX
from shared.errors import AlreadyRunning, ConfigError

LockName = Literal["agentd", "proxy", "run"]


@dataclass(frozen=True, slots=True)
class Runtime:
    """Every path below one runtime directory. Making one touches nothing."""

    dir: str

    @property
    def workers_socket(self) -> str:
        return f"{self.dir}/workers.sock"

    @property
    def workers_endpoint(self) -> str:
        return f"ipc://{self.workers_socket}"

    @property
    def agents_dir(self) -> str:
        return f"{self.dir}/agents"

    @property
    def agents_socket(self) -> str:
        return f"{self.agents_dir}/v2"

    @property
    def agents_endpoint(self) -> str:
        return f"ipc://{self.agents_socket}"

    @property
    def admin_socket(self) -> str:
        return f"{self.dir}/admin.sock"

    @property
    def agentd_segment(self) -> str:
        return f"{self.dir}/agentd.seg"

    @property
    def proxy_segment(self) -> str:
        return f"{self.dir}/proxy.seg"

    @property
    def breakers_file(self) -> str:
        return f"{self.dir}/breakers.json"

    def problems(self) -> list[str]:
        """What is wrong with the name alone; for the check of a configuration."""
        if not os.path.isabs(self.dir):
            return [f"runtime.dir: {self.dir!r} is not an absolute path"]
        longest = max(
            (self.workers_socket, self.agents_socket, self.admin_socket), key=lambda path: len(os.fsencode(path))
        )
        size = len(os.fsencode(longest))
        if size > SUN_PATH_MAX:
            return [f"runtime.dir: {longest} has {size} bytes, a unix socket's path has at most {SUN_PATH_MAX}"]
        return []

    def prepare(self) -> None:
        """Make the directory and `agents/`, or refuse what is there. Raises ConfigError.

        A directory that exists keeps its mode if nobody else may write in it: an operator's choice.
        """
        problems = self.problems()
        if problems:
            raise ConfigError(problems)
        try:
            parent = os.path.dirname(self.dir.rstrip("/"))
            if parent:
                os.makedirs(parent, mode=0o755, exist_ok=True)
            _make_dir(self.dir, 0o711)
            _make_dir(self.agents_dir, 0o750, AGENT_GROUP)
        except OSError as error:
            raise ConfigError(f"runtime.dir: {error.filename or self.dir}: {error.strerror}") from error


def _make_dir(path: str, mode: int, group: str = "") -> None:
    try:
        os.mkdir(path, 0o700)
        is_new = True
    except FileExistsError:
        is_new = False
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except NotADirectoryError:
        raise ConfigError(f"runtime.dir: {path} is not a directory (a symbolic link is refused)") from None
    try:
        status = os.fstat(fd)
        if status.st_uid != os.geteuid():
            raise ConfigError(
                f"runtime.dir: {path} belongs to uid {status.st_uid}, this process runs as {os.geteuid()}"
            )
        if not is_new and status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise ConfigError(
                f"runtime.dir: {path} is writable by others (mode {stat.S_IMODE(status.st_mode):04o}): "
                "they could replace its sockets"
            )
        if group:
            give_to_group(fd, group)
        if is_new:
            os.fchmod(fd, mode)  # mkdir's mode went through the umask
    finally:
        os.close(fd)


def give_to_group(fd: int, group: str) -> bool:
    """Change a file's group where that group exists and we may; False = left as it was."""
    try:
        gid = grp.getgrnam(group).gr_gid
    except KeyError:
        return False
    try:
        os.fchown(fd, -1, gid)
    except PermissionError:
        return False
    return True


# --- locks ----------------------------------------------------------------------------------------

# A forked child shares the open file description and would hold the lock for as long as it lives: an
# arbiter killed by -9 could not be started again while one of its workers is left. So children close it.
_held: "set[Lock]" = set()


class Lock:
    """A held lock; free again when it is released or its process ends, however that ends."""

    __slots__ = ("_fd", "path")

    def __init__(self, path: str, fd: int) -> None:
        self.path = path
        self._fd = fd
        _held.add(self)

    @property
    def is_held(self) -> bool:
        return self._fd >= 0

    def release(self) -> None:
        """Remove the file and free the lock. Twice is once; in a forked child it does nothing."""
        if self._fd < 0:
            return
        # Removed while still held: who opened it before finds after its flock that the path leads
        # elsewhere, and opens again.
        if _is_at(self._fd, self.path):
            os.unlink(self.path)
        self._close()

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        _held.discard(self)
        os.close(fd)


def lock(dir: str, name: LockName) -> Lock:
    """Take `<dir>/<name>.lock` at once or raise AlreadyRunning, which names directory and pid."""
    path = f"{dir}/{name}.lock"
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(fd, path):
                os.ftruncate(fd, 0)
                os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
                return Lock(path, fd)
        except BlockingIOError:
            pid = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
            os.close(fd)
            raise AlreadyRunning(
                f"{name} is already running in {dir} with pid {pid or 'unknown'}; stop that one first"
            ) from None
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)  # its last holder removed it between our open and our flock


def _is_at(fd: int, path: str) -> bool:
    try:
        there = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(fd), there)


def _close_in_child() -> None:
    for held in tuple(_held):
        held._close()


os.register_at_fork(after_in_child=_close_in_child)
