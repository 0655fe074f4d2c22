"""The bench's upstream: 1,024 bytes to every GET, and to those that end in /echo the x-agent field they came with.

    python upstream.py            listens on a free port of 127.0.0.1 and prints it

It is part of what is measured around, not of what is measured: as cheap as Python gets, and nothing else.

Kind: IO.
"""

import asyncio
import re
from typing import cast

import uvloop

BODY = b"x" * 1_023 + b"\n"
PAGE = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: %d\r\n\r\n%b"
ANSWER = PAGE % (len(BODY), BODY)
X_AGENT = re.compile(rb"\r\nx-agent:[ \t]*([^\r]*)", re.IGNORECASE)


class Upstream(asyncio.Protocol):
    """Requests without bodies, pipelined or not."""

    def __init__(self) -> None:
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance

    def data_received(self, data: bytes) -> None:
        *heads, self._rest = (self._rest + data).split(b"\r\n\r\n")
        if len(heads) == 1 and b"/echo" not in heads[0]:
            self._transport.write(ANSWER)
        else:
            self._transport.write(b"".join(map(self._answer, heads)))

    def _answer(self, head: bytes) -> bytes:
        target = head.partition(b" ")[2].partition(b" ")[0]
        if not target.endswith(b"/echo"):
            return ANSWER
        found = X_AGENT.search(head)
        value = found[1] if found else b""
        return PAGE % (len(value), value)


async def main() -> None:
    server = await asyncio.get_running_loop().create_server(Upstream, "127.0.0.1", 0, backlog=4_096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    try:
        uvloop.run(main())
    except KeyboardInterrupt:
        pass
