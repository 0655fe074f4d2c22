"""The soak's traffic: mixed requests at a fixed pace until SIGTERM, then counts as one line of JSON.

    soak_load.py HOST:PORT

Every kind runs by itself: keep-alive and fresh connections, bodies both ways, refusals by an agent, an agent that
never answers, pipelines, clients that leave in the middle. A kind counts what it got by status; `broken` counts
connections that ended without an answer, which reloads must not cause.

Kind: IO.
"""

import asyncio
import json
import signal
import sys
from collections import Counter
from collections.abc import Awaitable, Callable

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
ANSWER_S = 15.0
counts: dict[str, Counter[str]] = {}


async def dial(address: tuple[str, int]) -> Streams:
    return await asyncio.open_connection(*address)


async def answer(reader: asyncio.StreamReader) -> tuple[int, bool]:
    """Status of one response whose body is read and forgotten, and whether the connection stays."""
    head = await reader.readuntil(b"\r\n\r\n")
    fields = head.lower()
    if b"transfer-encoding: chunked" in fields:
        while True:
            size = int((await reader.readline()).partition(b";")[0], 16)
            await reader.readexactly(size + 2)
            if size == 0:
                break
    elif b"content-length:" in fields:
        left = int(fields.partition(b"content-length:")[2].partition(b"\r\n")[0])
        while left:
            left -= len(await reader.readexactly(min(left, 65_536)))
    return int(head[9:12]), b"connection: close" not in fields


def request(path: str, extra: str = "", body: bytes = b"", method: str = "GET") -> bytes:
    length = f"content-length: {len(body)}\r\n" if body else ""
    return f"{method} {path} HTTP/1.1\r\nhost: soak\r\n{length}{extra}\r\n".encode() + body


async def exchange(streams: Streams, kind: str, data: bytes, answers: int = 1) -> bool:
    reader, writer = streams
    writer.write(data)
    stays = True
    for _ in range(answers):
        status, stays = await asyncio.wait_for(answer(reader), ANSWER_S)
        counts[kind][str(status)] += 1
        if not stays:
            break  # what was sent behind it is not answered, and was not begun
    return stays


async def keep_alive(address: tuple[str, int], kind: str, data: bytes, pause_s: float, answers: int = 1) -> None:
    """One connection as long as it lasts, then the next."""
    while True:
        streams = await dial(address)
        try:
            while True:
                await asyncio.sleep(pause_s)
                if not await exchange(streams, kind, data, answers):
                    break
        except (OSError, asyncio.IncompleteReadError, TimeoutError):
            counts[kind]["broken"] += 1
        finally:
            streams[1].close()
        await asyncio.sleep(pause_s)


async def fresh(address: tuple[str, int], kind: str, data: bytes, pause_s: float) -> None:
    """A connection for each request."""
    while True:
        streams = await dial(address)
        try:
            await exchange(streams, kind, data)
        except (OSError, asyncio.IncompleteReadError, TimeoutError):
            counts[kind]["broken"] += 1
        finally:
            streams[1].close()
        await asyncio.sleep(pause_s)


async def leaving(address: tuple[str, int], kind: str, data: bytes, pause_s: float) -> None:
    """Gone before the answer, or in the middle of what it sends."""
    turn = 0
    while True:
        turn += 1
        _, writer = await dial(address)
        writer.write(data[: len(data) // 2] if turn % 2 else data)
        await asyncio.sleep(pause_s)
        writer.transport.abort()
        counts[kind]["left"] += 1


Kind = Callable[[tuple[str, int], str, bytes, float], Awaitable[None]]
BODY = b"b" * 200_000
CHUNKED = request("/fast/upload", "transfer-encoding: chunked\r\n", method="POST") + (
    b"400\r\n%b\r\n" % (b"c" * 1_024) * 64 + b"0\r\n\r\n"
)
# kind, how, request, pause, how many of it
KINDS: tuple[tuple[str, Kind, bytes, float, int], ...] = (
    ("keep-alive", keep_alive, request("/fast/json"), 0.03, 4),
    ("no agent", keep_alive, request("/none/json"), 0.05, 2),
    ("v1", keep_alive, request("/tag/json"), 0.05, 2),
    ("fresh", fresh, request("/fast/json", "connection: close\r\n"), 0.05, 2),
    ("blocked", keep_alive, request("/fast/json", "x-block: 1\r\n"), 0.1, 1),
    ("body", keep_alive, request("/fast/upload", "", BODY, "POST"), 0.2, 2),
    ("chunked", keep_alive, CHUNKED, 0.2, 1),
    ("body seen", keep_alive, request("/scan/upload", "", BODY, "POST"), 0.2, 2),
    ("body judged", keep_alive, request("/whole/upload", "", BODY, "POST"), 0.2, 2),
    ("stream seen", keep_alive, request("/scan/stream?n=3"), 0.2, 2),
    ("leaves seen", leaving, request("/scan/upload", "", BODY, "POST"), 0.1, 1),
    ("leaves judged", leaving, request("/whole/upload", "", BODY, "POST"), 0.1, 1),
    ("stream", keep_alive, request("/fast/stream?n=3"), 0.2, 2),
    ("hung", keep_alive, request("/hung/json"), 0.05, 2),
    ("leaves", leaving, request("/fast/upload", "", BODY, "POST"), 0.1, 1),
    ("leaves hung", leaving, request("/hung/json"), 0.1, 1),
)


async def forever(how: Kind, address: tuple[str, int], kind: str, data: bytes, pause_s: float) -> None:
    while True:
        try:
            await how(address, kind, data, pause_s)
        except OSError:
            counts[kind]["refused"] += 1
            await asyncio.sleep(0.2)


async def pipeline(address: tuple[str, int], kind: str, data: bytes, pause_s: float) -> None:
    await keep_alive(address, kind, data * 5, pause_s, answers=5)


async def main(address: tuple[str, int]) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    rows = [*KINDS, ("pipelined", pipeline, request("/fast/json"), 0.2, 1)]
    tasks = []
    for kind, how, data, pause_s, many in rows:
        counts[kind] = Counter()
        tasks += [asyncio.create_task(forever(how, address, kind, data, pause_s)) for _ in range(many)]
    await stop.wait()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    print(json.dumps(counts), flush=True)


if __name__ == "__main__":
    host, _, port = sys.argv[1].rpartition(":")
    asyncio.run(main((host, int(port))))
