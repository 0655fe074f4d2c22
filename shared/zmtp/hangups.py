"""Notices that peers have gone where the loop does not tell.

Kind: IO.
"""

import select
from collections.abc import Callable
from typing import Any, Final, Protocol

HAS_EPOLL: Final = hasattr(select, "epoll")  # Linux; elsewhere only agents run, and loops tell them by themselves


class Readers(Protocol):
    """What is needed of an event loop."""

    def add_reader(self, fd: int, callback: Callable[[], None], /) -> Any: ...
    def remove_reader(self, fd: int, /) -> Any: ...


class Hangups:
    """Notices that peers have gone, for all connections of one loop, at one more descriptor.

    uvloop (0.23, by libuv) stops to watch a socket that has an error, and a unix socket has one when its peer closes
    with something unread: the reader is called once more, whatever there is to be read, and never again.
    """

    def __init__(self, loop: Readers) -> None:
        self._loop = loop
        self._callbacks: dict[int, Callable[[], None]] = {}
        self._epoll = select.epoll()
        loop.add_reader(self._epoll.fileno(), self._readable)

    @classmethod
    def of(cls, loop: Readers) -> "Hangups":
        """The loop's. Raises OSError where no descriptor is left."""
        found = _hangups.get(loop)
        if found is None:
            found = _hangups[loop] = cls(loop)
        return found

    def watch(self, fd: int, callback: Callable[[], None]) -> None:
        """Raises OSError where the kernel watches as many as it may."""
        self._epoll.register(fd, select.EPOLLONESHOT)  # errors and hang-ups are told without being asked for
        self._callbacks[fd] = callback

    def forget(self, fd: int) -> None:
        """The last one ends it."""
        if self._callbacks.pop(fd, None) is not None:
            self._epoll.unregister(fd)
        if not self._callbacks:
            self._loop.remove_reader(self._epoll.fileno())
            self._epoll.close()
            del _hangups[self._loop]

    def _readable(self) -> None:
        for fd, _ in self._epoll.poll(0):
            self._callbacks[fd]()


_hangups: dict[Readers, Hangups] = {}
