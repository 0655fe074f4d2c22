"""How many passwords are compared at a time, who waits for that, and who need not: whoever was right a moment ago.

A comparison costs 100 ms and more, on purpose. So that a load of requests with passwords is no way to stop everything:
`max_concurrent` threads, `max_waiting` requests at most that wait, and so many of one client; the same question asked
twice is one comparison, and a password that was right is known for a while by a keyed hash (1 us). Wrong ones are not
remembered: there is no end to them.

Kind: IO (owns the threads).
"""

import asyncio
import secrets
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from socket import AF_INET6, inet_pton
from typing import Final

from wardgate_agents.auth.passwords import Hashed, matches
from wardgate_agents.auth.recent import Recent
from wardgate_agents.auth.settings import BasicSettings

_KEY_BYTES: Final = 32


class Crowded(Exception):
    """Too many comparisons are waiting; `is_client`: of this client alone."""

    def __init__(self, is_client: bool) -> None:
        super().__init__("too many passwords to compare" + (" from this client" if is_client else ""))
        self.is_client = is_client


def _one_client(address: str) -> str:
    """What counts as one: an address of IPv4, a /64 of IPv6, which is what one subscriber has."""
    if ":" not in address:
        return address
    try:
        return inet_pton(AF_INET6, address.partition("%")[0])[:8].hex()
    except OSError:
        return address


class Gate:
    """Compares passwords, off the event loop and within bounds."""

    def __init__(
        self,
        settings: BasicSettings,
        *,
        clock_s: Callable[[], float] = time.monotonic,
        compare: Callable[[str, Hashed], bool] = matches,
    ) -> None:
        self._settings = settings
        self._clock_s = clock_s
        self._compare = compare
        self._key = secrets.token_bytes(_KEY_BYTES)  # of this process: what is remembered is of no use elsewhere
        self._right: Recent[bool] = Recent(settings.cache_size, clock_s)
        self._threads = ThreadPoolExecutor(settings.max_concurrent, thread_name_prefix="password")
        self._asked: dict[bytes, asyncio.Future[bool]] = {}
        self._held = 0
        self._by_client: Counter[str] = Counter()

    @property
    def waiting(self) -> int:
        """Requests whose comparison is under way or waiting for a thread."""
        return self._held

    def question(self, user: str, password: str, hashed: Hashed) -> bytes:
        """Names the question. The hash is part of it, so a changed password is another question."""
        name = user.encode()
        return blake2b(
            b"%d:%b%b%b" % (len(name), name, hashed.digest, password.encode()), key=self._key, digest_size=32
        ).digest()

    def is_known(self, question: bytes) -> bool:
        """Whether it was answered with yes a moment ago."""
        return self._right.get(question) is not None

    async def ask(self, question: bytes, password: str, hashed: Hashed, client: str) -> bool:
        """Whether it is the password. Crowded when too many wait.

        Who gives up waiting does not stop the comparison, and keeps the place until it is done.
        """
        client = _one_client(client)
        if self._by_client[client] >= self._settings.max_waiting_per_client:
            raise Crowded(is_client=True)
        if self._held >= self._settings.max_waiting:
            raise Crowded(is_client=False)
        future = self._asked.get(question)
        if future is None:
            future = asyncio.get_running_loop().run_in_executor(self._threads, self._compare, password, hashed)
            self._asked[question] = future
            future.add_done_callback(lambda done: self._answered(question, done))
        self._held += 1
        self._by_client[client] += 1
        future.add_done_callback(lambda _: self._leave(client))
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            if future.cancelled():  # the gate was closed: another configuration is in force
                raise Crowded(is_client=False) from None
            raise

    def _answered(self, question: bytes, future: "asyncio.Future[bool]") -> None:
        del self._asked[question]
        if not future.cancelled() and future.exception() is None and future.result():
            self._right.put(question, True, self._clock_s() + self._settings.cache_ttl_s)

    def _leave(self, client: str) -> None:
        self._held -= 1
        self._by_client[client] -= 1
        if not self._by_client[client]:
            del self._by_client[client]

    def close(self) -> None:
        """No new comparisons; the threads end with those they have."""
        self._threads.shutdown(wait=False, cancel_futures=True)
