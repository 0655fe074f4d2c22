"""Files that an agent lives by: read at the start, and again whenever they have changed and come to rest.

    start      read once; what is wrong is raised, and the agent's configuration is rejected
    look       another signature than that of the last reading, twice in a row  ->  read again, in a thread
    failure    absent, unreadable, a bad line: the last good value stays, the log and the agent's health say so

A change is taken when two looks in a row saw the same files: half of a file that is still being written would be a
list with holes, and nobody would notice. What the files mean is the reader's matter and not known here.

Kind: IO.
"""

import asyncio
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, Generic, Protocol, TypeVar

from wardgate_agent import Session

log = logging.getLogger("wardgate_agents")

MAX_FILE_BYTES: Final = 64 * 1024 * 1024  # a list of a million networks has 20 MB
REST_S: Final = 2.0  # a file changed so recently may change again within the resolution of its time stamp

T = TypeVar("T")
_Stamp = tuple[int, int, int, int, int] | None
_Signature = tuple[_Stamp, ...]


class BadFile(Exception):
    """A file, or a line of one, will not do. Its text begins with `path:line:` or `path:`."""


def read_text(path: str) -> str:
    """A whole file of UTF-8; BadFile says what is wrong with it."""
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise BadFile(f"{path}: {error.strerror}") from None
    if len(content) > MAX_FILE_BYTES:
        raise BadFile(f"{path}: more than {MAX_FILE_BYTES} bytes")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise BadFile(f"{path}:{line}: not UTF-8") from None


def lines_of(path: str) -> Iterator[tuple[int, str]]:
    """(number, text) of the lines that say something: stripped, no blank ones, none that begin with `#`."""
    for number, line in enumerate(read_text(path).split("\n"), 1):
        text = line.strip()
        if text and text[0] != "#":
            yield number, text


def _stamp(path: str) -> _Stamp:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


class Health:
    """What is wrong with which part of an agent; said to agentd as `degraded` until nothing is."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._problems: dict[str, str] = {}

    def bad(self, part: str, problem: str) -> None:
        """Say so once per problem."""
        if self._problems.get(part) != problem:
            self._problems[part] = problem
            log.error("%s: the last good version stays in force: %s", part, problem)
            self._tell()

    def good(self, part: str) -> None:
        if self._problems.pop(part, None) is not None:
            log.info("%s: in order again", part)
            self._tell()

    def clear(self) -> None:
        """Another configuration: nothing is known about its parts."""
        if self._problems:
            self._problems.clear()
            self._tell()

    def _tell(self) -> None:
        if self._problems:
            self._session.health("degraded", "; ".join(f"{part}: {text}" for part, text in self._problems.items()))
        else:
            self._session.health("healthy")


class Watched(Generic[T]):
    """What some files hold, `value`: read by `read()`, which raises BadFile.

    `part` names it in log and health, `taken(value)` is called with each value that comes into force.
    """

    def __init__(
        self, part: str, paths: Sequence[str], read: Callable[[], T], taken: Callable[[T], object] = lambda _: None
    ) -> None:
        self.part = part
        self._paths = tuple(paths)
        self._read = read
        self._taken = taken
        self._loaded: _Signature | None = None  # of the files as they were read last, with success or without
        self._seen: _Signature | None = None
        self.value: T

    async def start(self) -> None:
        """The first reading; raises BadFile."""
        signature = self._signature()
        value = await asyncio.to_thread(self._read)
        newest_s = max((stamp[3] for stamp in signature if stamp is not None), default=0) / 1e9
        self._loaded = signature if time.time() - newest_s > REST_S else None  # None: look again when it rests
        self.value = value
        self._taken(value)

    async def look(self, health: Health) -> bool:
        """One look; whether another value has come into force."""
        signature = self._signature()
        rests, self._seen = signature == self._seen, signature
        if signature == self._loaded or not rests:
            return False
        try:
            value = await asyncio.to_thread(self._read)
        except BadFile as error:
            self._loaded = signature
            health.bad(self.part, str(error))
            return False
        if self._signature() != signature:  # changed while it was read
            return False
        self._loaded = signature
        self.value = value
        self._taken(value)
        health.good(self.part)
        return True

    def _signature(self) -> _Signature:
        return tuple(map(_stamp, self._paths))


class Looked(Protocol):
    """A Watched of whatever kind."""

    part: str

    async def start(self) -> None: ...

    async def look(self, health: Health) -> bool: ...


class Follower:
    """Looks after the files of one agent: one task, ended by `stop` or with the event loop."""

    def __init__(self, health: Health) -> None:
        self._health = health
        self._task: asyncio.Task[None] | None = None

    def follow(self, watched: Iterable[Looked], interval_s: float) -> None:
        """From now on these, and no others."""
        self.stop()
        self._health.clear()
        self._task = asyncio.get_running_loop().create_task(self._run(tuple(watched), interval_s), name="files")

    def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            self._task = None

    async def _run(self, watched: tuple[Looked, ...], interval_s: float) -> None:
        while True:
            await asyncio.sleep(interval_s)
            for one in watched:
                try:
                    await one.look(self._health)
                except Exception as error:  # a fault of ours must not end the watch
                    log.exception("%s: cannot be read again", one.part)
                    self._health.bad(one.part, f"{type(error).__name__}: {error}")
