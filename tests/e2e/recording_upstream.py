"""The matrix's upstream, a process: writes down every request with the verdict that came with it.

    python recording_upstream.py SOCKET LOG

    a line of LOG           PATH ID VERDICT            VERDICT is "-" where the request had none
    the answer              200, X-Got: VERDICT, the id over and over (`body_of`)
    X-Hold-Ms: 500          the answer comes after so long
    X-Half-Ms: 500          its head and half its body come at once, the rest after so long

It imports nothing from the product, and from the tests nothing either: it is started by its path.

Kind: IO.
"""

import asyncio
import os
import signal
import sys

LINES = 8


def body_of(request_id: str) -> bytes:
    """The body of the answer to a request."""
    return (request_id + "\n").encode() * LINES


class Connection(asyncio.Protocol):
    """One request after the other; bodies are not expected."""

    def __init__(self, log: int) -> None:
        self.log = log
        self.buffer = b""
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while b"\r\n\r\n" in self.buffer:
            head, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
            self.request(head.decode("latin-1"))

    def request(self, head: str) -> None:
        first, *lines = head.split("\r\n")
        fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        request_id, verdict = fields.get("x-id", "-"), fields.get("x-verdict", "-")
        os.write(self.log, f"{first.split()[1]} {request_id} {verdict}\n".encode())  # whole, also when killed now
        body = body_of(request_id)
        answer = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nX-Got: {verdict}\r\n\r\n".encode() + body
        at = 0
        if half_ms := int(fields.get("x-half-ms", 0)):
            at = len(answer) - len(body) // 2
            self.transport.write(answer[:at])
        wait_ms = half_ms or int(fields.get("x-hold-ms", 0))
        if wait_ms:
            asyncio.get_running_loop().call_later(wait_ms / 1000, self.write, answer[at:])
        else:
            self.write(answer)

    def write(self, data: bytes) -> None:
        if not self.transport.is_closing():
            self.transport.write(data)


async def serve(path: str, log: int) -> None:
    """Until SIGTERM."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, ended.set)
    server = await loop.create_unix_server(lambda: Connection(log), path, backlog=1024)
    print("serving", flush=True)
    await ended.wait()
    server.close()


if __name__ == "__main__":
    path, log_path = sys.argv[1:]
    if os.path.exists(path):  # of one that was killed
        os.unlink(path)
    asyncio.run(serve(path, os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)))
