"""The demo's application: a few pages that show what reaches an upstream, and how.

    /  HTML    /json    /echo  the request as received    /slow?s=2    /stream?n=5    /upload  bytes and sha256

It reads HTTP from the socket itself, so that /echo shows names, order and values exactly as they came,
whatever the method. It stands behind the proxy and trusts it to send one well-formed request after the
other; nothing of the proxy may be used here, and nothing here is fit to face the internet.

Kind: IO.
"""

import argparse
import asyncio
import contextlib
import hashlib
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from urllib.parse import parse_qs, urlsplit

import msgspec
import orjson

from shared import log
from shared.notify import Notify

HEAD_MAX_BYTES = 131_072
ECHO_MAX_BYTES = 65_536  # of a body shown by /echo; the rest is counted
READ_BYTES = 65_536

PAGE = b"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Wardgate demo</title>
<style>body{font:16px/1.5 system-ui,sans-serif;max-width:42rem;margin:3rem auto;padding:0 1rem}
code{background:#eee;padding:.1em .3em;border-radius:.2em}td{padding:.2em 1em .2em 0;vertical-align:top}</style></head>
<body><h1>It works</h1>
<p>This page comes from the demo application. Two agents let it pass; every link below goes through them.</p>
<table>
<tr><td><a href="/echo">/echo</a></td>
<td>the request as this application received it; look for <code>X-Agent: ok</code></td></tr>
<tr><td><a href="/json">/json</a></td><td>a JSON document</td></tr>
<tr><td><a href="/slow?s=2">/slow?s=2</a></td><td>an answer that takes two seconds</td></tr>
<tr><td><a href="/stream?n=5">/stream?n=5</a></td><td>one line every half second</td></tr>
<tr><td><code>POST /upload</code></td><td>counts and hashes what you send</td></tr>
<tr><td><a href="/admin">/admin</a></td><td>blocked by an agent: 403</td></tr>
<tr><td><a href="/old/page">/old/page</a></td><td>redirected by an agent: 302</td></tr>
<tr><td><a href="/members">/members</a></td><td>challenged by an agent: 401</td></tr>
</table></body></html>
"""


class Request(msgspec.Struct):
    """One request, its head exactly as received."""

    method: str
    target: str
    version: str
    headers: list[tuple[str, str]]

    def field(self, name: str) -> str:
        """The first value of a field, "" if there is none."""
        return next((value for key, value in self.headers if key.lower() == name), "")

    def number(self, name: str, default: float, highest: float) -> float:
        """A number from the query, kept within bounds."""
        try:
            given = float(parse_qs(urlsplit(self.target).query)[name][0])
        except (KeyError, ValueError):
            return default
        return min(max(given, 0.0), highest) if given == given else default


async def read_head(reader: asyncio.StreamReader) -> Request | None:
    """The next request's head; None when the client is done."""
    try:
        raw = await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    lines = raw[:-4].decode("latin-1").split("\r\n")
    method, target, version = lines[0].split(" ")
    headers = []
    for line in lines[1:]:
        name, _, value = line.partition(":")
        headers.append((name, value.strip(" \t")))
    return Request(method, target, version, headers)


async def read_body(request: Request, reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """The body in pieces, chunked or with a length, as it comes in."""
    if request.field("transfer-encoding").lower() == "chunked":
        while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
            async for piece in _exactly(size, reader):
                yield piece
            await reader.readexactly(2)
        while await reader.readuntil(b"\r\n") != b"\r\n":
            pass
    else:
        async for piece in _exactly(int(request.field("content-length") or 0), reader):
            yield piece


async def _exactly(size: int, reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while size:
        piece = await reader.read(min(size, READ_BYTES))
        if not piece:
            raise ConnectionResetError("the body ended early")
        size -= len(piece)
        yield piece


class Reply:
    """Writes one response; without a length it is chunked."""

    def __init__(self, request: Request, writer: asyncio.StreamWriter) -> None:
        self._request = request
        self._writer = writer
        self.status = 0

    def head(self, status: int, content_type: str, length: int | None) -> None:
        """Status line and fields; `length` None = chunked."""
        self.status = status
        framing = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
        reason = {200: "OK", 400: "Bad Request", 404: "Not Found"}.get(status, "")
        self._writer.write(
            f"HTTP/1.1 {status} {reason}\r\nContent-Type: {content_type}\r\n{framing}\r\nServer: demo\r\n\r\n".encode()
        )

    def whole(self, status: int, content_type: str, body: bytes) -> None:
        """A response of known length."""
        self.head(status, content_type, len(body))
        if self._request.method != "HEAD":
            self._writer.write(body)

    def document(self, value: object) -> None:
        """A JSON document for people."""
        body = orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
        self.whole(200, "application/json", body)

    async def chunk(self, data: bytes) -> None:
        """One chunk; b"" ends the body."""
        if self._request.method != "HEAD":
            self._writer.write(b"%x\r\n%b\r\n" % (len(data), data))
            await self._writer.drain()


def echo(request: Request, body: bytes, size: int) -> bytes:
    """The request as JSON, one header field a line: it is read by people in a terminal."""
    fields = ",\n    ".join(orjson.dumps(pair).decode() for pair in request.headers)
    rest = {"body_bytes": size, "body": body.decode("utf-8", "replace")}
    head = {"method": request.method, "target": request.target, "version": request.version}
    lines = [f"  {orjson.dumps(key).decode()}: {orjson.dumps(value).decode()}" for key, value in head.items()]
    lines.append(f'  "headers": [\n    {fields}\n  ]')
    lines += [f"  {orjson.dumps(key).decode()}: {orjson.dumps(value).decode()}" for key, value in rest.items()]
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode()


async def answer(request: Request, body: AsyncIterator[bytes], reply: Reply) -> None:
    """Choose the page; what it leaves of the body the caller reads away."""
    path = urlsplit(request.target).path
    if path == "/":
        reply.whole(200, "text/html; charset=utf-8", PAGE)
    elif path == "/json":
        reply.document({"service": "wardgate demo", "ok": True, "numbers": [1, 2, 3]})
    elif path == "/echo":
        shown, size = b"", 0
        async for piece in body:
            shown += piece[: max(0, ECHO_MAX_BYTES - size)]
            size += len(piece)
        reply.whole(200, "application/json", echo(request, shown, size))
    elif path == "/slow":
        seconds = request.number("s", 2.0, 60.0)
        await asyncio.sleep(seconds)
        reply.document({"slept_s": seconds})
    elif path == "/stream":
        reply.head(200, "text/plain; charset=utf-8", None)
        for number in range(int(request.number("n", 5, 1000))):
            if number:
                await asyncio.sleep(0.5)
            await reply.chunk(f"line {number + 1}\n".encode())
        await reply.chunk(b"")
    elif path == "/upload":
        digest, size = hashlib.sha256(), 0
        async for piece in body:
            digest.update(piece)
            size += len(piece)
        reply.document({"bytes": size, "sha256": digest.hexdigest()})
    else:
        reply.whole(404, "text/plain; charset=utf-8", b"the demo application has no such page; try /\n")


async def serve_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One connection, one request after the other."""
    try:
        while (request := await read_head(reader)) is not None:
            reply = Reply(request, writer)
            body = read_body(request, reader)
            await answer(request, body, reply)
            async for _ in body:
                pass
            await writer.drain()
            log.line("upstream", log.INFO, f"{request.method} {request.target}", status=reply.status)
            if request.version != "HTTP/1.1" or request.field("connection").lower() == "close":
                break
    except (ConnectionError, asyncio.IncompleteReadError):
        log.line("upstream", log.INFO, "the client left early")
    except (ValueError, asyncio.LimitOverrunError) as error:
        log.line("upstream", log.WARNING, "not a request", error=str(error))
    finally:
        writer.close()


async def serve(sock: socket.socket) -> None:
    """Until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    # A head and its body are two writes. asyncio does this only for sockets that were made with a protocol number.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    server = await asyncio.start_server(serve_connection, sock=sock, limit=HEAD_MAX_BYTES)
    host, port = sock.getsockname()[:2]
    log.line("upstream", log.INFO, f"serving http://{host}:{port}/")
    Notify(os.environ).ready("serving")
    await stop.wait()
    server.close()
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.gather(*others, return_exceptions=True)


def main(args: list[str]) -> None:
    """`--fd N`: a listening socket that the parent holds too, so that a restart keeps the address."""
    parser = argparse.ArgumentParser(prog="upstream", description="The demo application.")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--fd", type=int, help="descriptor of a bound socket")
    where.add_argument("--port", type=int, default=0, help="port of 127.0.0.1 (default: any free one)")
    options = parser.parse_args(args)
    log.configure("info", "text")
    sock = (
        socket.socket(fileno=options.fd)
        if options.fd is not None
        else socket.create_server(("127.0.0.1", options.port))
    )
    asyncio.run(serve(sock))


if __name__ == "__main__":
    main(sys.argv[1:])
