"""Requests whose answers must be their own, and the bench's hostile agents beside them.

Every request carries a number; whoever decides about it puts that number into its verdict (`own_verdict`), and
`Asker` compares. So a verdict that went to another request shows, and one that nobody gave as well.
"""

import asyncio
import http.client
import os
import re
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias, cast

from tests.e2e.agents import Event, Verdict
from tests.product import System
from tests.support import ROOT, Child, python

HOSTILE = ROOT / "bench" / "agents" / "hostile.py"
WRONG = 418  # what hostile agents answer where nobody asked them
OnAnswer: TypeAlias = Callable[[int, bytes, bytes], None]  # the request's number, head and body of its answer
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)


def own_verdict(event: Event) -> Verdict:
    """By the request's own number: odd ones are blocked with it, even ones pass with it."""
    number = event["headers"]["x-number"][0]
    if int(number) % 2:
        return {"decision": {"block": {"status": 403, "body": number}}}
    return {"decision": "allow", "response_headers": [{"set": {"name": "x-verdict", "value": number}}]}


@dataclass(slots=True)
class Answers:
    """What came back; `wrong` are answers that belong to another request or to nobody's verdict."""

    statuses: Counter[int] = field(default_factory=Counter)
    latencies_s: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    gone: int = 0  # connections that ended before their answer

    @property
    def median_s(self) -> float:
        return sorted(self.latencies_s)[len(self.latencies_s) // 2]


class Asker:
    """Keep-alive connections, one request at a time on each."""

    def __init__(self, address: tuple[str, int], path: str, fields: Mapping[str, str] | None = None) -> None:
        self.address = address
        self.path = path
        self.fields = "".join(f"{name}: {value}\r\n" for name, value in (fields or {}).items())
        self.answers = Answers()
        self.is_strict = True  # an answer that is no true verdict is wrong; else 5xx are right as well

    async def ask(self, numbers: Iterable[int], connections: int, pause_s: float = 0.0) -> Answers:
        """Each number once."""
        numbers = iter(numbers)
        await asyncio.gather(*(self._connection(numbers, pause_s) for _ in range(connections)))
        return self.answers

    async def _connection(self, numbers: Iterator[int], pause_s: float) -> None:
        reader, writer = await asyncio.open_connection(*self.address)
        try:
            for number in numbers:
                if pause_s:
                    await asyncio.sleep(pause_s)
                await self._one(number, reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            self.answers.gone += 1
        finally:
            writer.close()

    async def _one(self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        start = time.monotonic()
        writer.write(f"GET {self.path} HTTP/1.1\r\nHost: a\r\nx-number: {number}\r\n{self.fields}\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        length = LENGTH.search(head)
        body = await reader.readexactly(int(length[1])) if length is not None else b""
        answers = self.answers
        answers.latencies_s.append(time.monotonic() - start)
        status = int(head[9:12])
        answers.statuses[status] += 1
        if not is_own(number, head, body) and (self.is_strict or status < 500):
            answers.wrong.append(f"{number}: {status} {body[:60]!r}")


def metrics(system: System) -> str:
    """agentd's, over its admin socket."""
    connection = http.client.HTTPConnection("localhost", timeout=5)
    with closing(connection), closing(socket.socket(socket.AF_UNIX)) as sock:
        sock.settimeout(5)
        sock.connect(f"{system.runtime}/admin.sock")
        connection.sock = sock
        connection.request("GET", "/metrics")
        return connection.getresponse().read().decode()


def value(text: str, name: str, **labels: str) -> int:
    """The sum over all series of this name whose labels include these."""
    total = 0.0
    for found in re.finditer(rf"^{name}(?:\{{(.*)\}})? (\S+)$", text, re.M):
        if all(f'{key}="{wanted}"' in (found[1] or "") for key, wanted in labels.items()):
            total += float(found[2])
    return int(total)


@contextmanager
def hostile(system: System, mode: str, name: str, *, secret: Path | None = None, victim: str = "") -> Iterator[Child]:
    """An agent of bench/agents/hostile.py."""
    args = [str(HOSTILE), mode, "--connect", system.agents_endpoint, "--name", name]
    args += ["--secret-file", str(secret)] if secret is not None else []
    args += ["--victim", victim] if victim else []
    with Child(python(*args), system.tmp / f"{mode}.log") as child:
        yield child


def secret_file(directory: Path, name: str) -> Path:
    """A secret that only we may read."""
    path = directory / f"{name}.secret"
    with open(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600), "wb") as file:
        file.write(f"secret of {name}, long enough for anybody\n".encode())
    return path


class Memory:
    """A process's resident memory, and its peak since `begin` (proc(5), clear_refs)."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        Path(f"/proc/{pid}/clear_refs").write_text("5")
        self.begin_mib = self._mib("VmRSS")

    def grown_mib(self) -> float:
        """The peak above the beginning."""
        return self._mib("VmHWM") - self.begin_mib

    def _mib(self, name: str) -> float:
        return int(Path(f"/proc/{self.pid}/status").read_text().partition(f"{name}:")[2].split()[0]) / 1024


def again_once(measure: Callable[[], float], at_most: float) -> None:
    """A bound in time, measured again before it fails."""
    first = measure()
    assert first <= at_most or measure() <= at_most, f"{first} > {at_most}, twice"


# --- many at once ------------------------------------------------------------------------------------


def is_late(event: Event) -> bool:
    """Whether a late agent answers this one late."""
    return int(event["headers"]["x-number"][0]) % 40 == 3


def is_own(number: int, head: bytes, body: bytes) -> bool:
    """Whether this is `own_verdict`'s answer to the request of this number."""
    if number % 2:
        return head[9:12] == b"403" and body == b"%d" % number
    return head[9:12] == b"200" and b"\r\nx-verdict: %d\r\n" % number in head.lower()


class Pipeline(asyncio.Protocol):
    """One connection that sends its requests so many at a time, and gives every answer to `on_answer`."""

    def __init__(self, requests: Sequence[tuple[int, bytes]], depth: int, on_answer: OnAnswer) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._requests = requests
        self._depth = depth
        self._on_answer = on_answer
        self._sent = self._answered = 0
        self._unread = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._send()

    def _send(self) -> None:
        some = self._requests[self._sent : self._sent + self._depth]
        self._sent += len(some)
        self._transport.write(b"".join(request for _, request in some))

    def data_received(self, data: bytes) -> None:
        data = self._unread + data
        at = 0
        while (end := data.find(b"\r\n\r\n", at)) >= 0:
            head = data[at : end + 4]
            length = LENGTH.search(head)
            over = end + 4 + (int(length[1]) if length is not None else 0)
            if over > len(data):
                break
            self._on_answer(self._requests[self._answered][0], head, data[end + 4 : over])
            self._answered += 1
            at = over
        self._unread = data[at:]
        if self._answered == len(self._requests):
            self._transport.close()
        elif self._answered == self._sent:
            self._send()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_result(None)
