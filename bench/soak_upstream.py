"""The soak's upstream: 1 KiB for .../json, 60 KiB in chunks for .../stream, the length of what came for .../upload.

Prints its port (of 127.0.0.1).

Kind: IO.
"""

import asyncio
import contextlib

PAGE = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b"
CHUNK = b"s" * 20_000


async def body(reader: asyncio.StreamReader, fields: bytes) -> int:
    """Read a request's body and forget it; how long it was."""
    size = 0
    if b"transfer-encoding: chunked" in fields:
        while True:
            length = int((await reader.readline()).partition(b";")[0], 16)
            await reader.readexactly(length + 2)
            if length == 0:
                return size
            size += length
    if b"content-length:" in fields:
        left = int(fields.partition(b"content-length:")[2].partition(b"\r\n")[0])
        while left:
            got = len(await reader.readexactly(min(left, 65_536)))
            left -= got
            size += got
    return size


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One connection of the proxy's."""
    with contextlib.suppress(OSError, asyncio.IncompleteReadError):
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            size = await body(reader, head.lower())
            path = head.split(b" ", 2)[1]
            if b"/stream" in path:
                writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
                for _ in range(3):
                    writer.write(b"%x\r\n%b\r\n" % (len(CHUNK), CHUNK))
                    await writer.drain()
                    await asyncio.sleep(0.02)
                writer.write(b"0\r\n\r\n")
            elif b"/upload" in path:
                told = str(size).encode()
                writer.write(PAGE % (len(told), told))
            else:
                writer.write(PAGE % (1_024, b"x" * 1_024))
            await writer.drain()
    writer.close()


async def main() -> None:
    server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=1 << 20)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main())
