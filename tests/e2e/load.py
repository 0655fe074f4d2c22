"""A closed loop of requests in a thread: each client asks again as soon as it was answered.

    kept      one connection per client, dialled again only after an answer with `Connection: close`
    fresh     one connection per request

Everything but the expected answer on a whole connection is a failure and kept as text. Nothing is retried:
a client whose connection ends without an announcement has found a bug, also between two requests.

Kind: IO.
"""

import asyncio
import re
import threading
import time
from collections import Counter

_LENGTH = re.compile(rb"(?im)^content-length: *(\d+)")
_CLOSE = re.compile(rb"(?im)^connection: *close")
_PATIENCE_S = 15.0


class Load:
    """Use it as a context manager; `failures` and `done` may be read while it runs."""

    def __init__(self, address: tuple[str, int], *, kept: int = 8, fresh: int = 4, path: str = "/") -> None:
        self.address = address
        self.path = path
        self.failures: Counter[str] = Counter()
        self.done: list[float] = []  # when each good answer was there, time.monotonic()
        self.announced = 0  # answers with `Connection: close`
        self._kept, self._fresh = kept, fresh
        self._is_ending = False
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()), daemon=True)

    def rate(self, since: float, until: float) -> float:
        """Good answers a second between two times."""
        return sum(since <= at < until for at in self.done) / (until - since)

    async def _main(self) -> None:
        kept = [self._client(False) for _ in range(self._kept)]
        await asyncio.gather(*kept, *(self._client(True) for _ in range(self._fresh)))

    async def _client(self, is_fresh: bool) -> None:
        while not self._is_ending:
            try:
                async with asyncio.timeout(_PATIENCE_S):
                    reader, writer = await asyncio.open_connection(*self.address)
            except OSError as error:  # TimeoutError is one
                self.failures[f"connect: {error!r}"] += 1
                await asyncio.sleep(0.05)
                continue
            try:
                is_open = True
                while is_open and not self._is_ending:
                    async with asyncio.timeout(_PATIENCE_S):
                        is_open = await self._ask(reader, writer) and not is_fresh
            except (OSError, asyncio.IncompleteReadError) as error:
                self.failures[repr(error)] += 1
            finally:
                writer.close()

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request; False: it was the last one of this connection."""
        writer.write(f"GET {self.path} HTTP/1.1\r\nHost: load\r\n\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        length = _LENGTH.search(head)
        body = await reader.readexactly(int(length[1])) if length else b""
        if not head.startswith(b"HTTP/1.1 200 "):
            self.failures[f"{head[9:12].decode()} {body[:60]!r}"] += 1
        else:
            self.done.append(time.monotonic())
        is_last = _CLOSE.search(head) is not None
        self.announced += is_last
        return not is_last

    def __enter__(self) -> "Load":
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._is_ending = True
        self._thread.join(_PATIENCE_S + 5)
        assert not self._thread.is_alive()
