"""A zmq-v1 agent that means harm, one mode each: raw ZMTP over a unix socket, none of the product's code.

    hostile_v1.py MODE PATH

Listens like a REP, takes its configuration properly, then does its harm whenever it is asked something.
"""

import os
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterator

GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
READY = b"\x04\x19\x05READY\x0bSocket-Type" + struct.pack(">I", 3) + b"REP"
MORE, LONG, COMMAND = 1, 2, 4
ALLOW = b'{"version":1,"decision":"allow"}'


def frame(body: bytes, flags: int = 0) -> bytes:
    if len(body) < 256:
        return bytes((flags, len(body))) + body
    return struct.pack(">BQ", flags | LONG, len(body)) + body


def reply(*frames: bytes) -> bytes:
    """After the delimiter."""
    return b"".join([frame(b"", MORE), *(frame(body, MORE) for body in frames[:-1]), frame(frames[-1])])


def exactly(conn: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = conn.recv(size - len(data))
        if not more:
            raise ConnectionResetError
        data += more
    return data


def questions(conn: socket.socket) -> Iterator[bytes]:
    """The last frame of each message."""
    while True:
        flags, size = exactly(conn, 2)
        if flags & LONG:
            size = int.from_bytes(bytes((size,)) + exactly(conn, 7), "big")
        body = exactly(conn, size)
        if not flags & (MORE | COMMAND):
            yield body


def serve(conn: socket.socket, harm: Callable[[socket.socket], None]) -> None:
    try:
        with conn:
            conn.sendall(GREETING + READY)
            exactly(conn, len(GREETING))
            for question in questions(conn):
                if b'"configure"' in question:
                    conn.sendall(reply(ALLOW))
                else:
                    harm(conn)
    except OSError:
        pass  # it was cut


def mute(conn: socket.socket) -> None:
    """Never answers."""


def garbage(conn: socket.socket) -> None:
    """Bytes that mean nothing."""
    conn.sendall(reply(os.urandom(300)))


def unasked(conn: socket.socket) -> None:
    """An answer, and more of them that nobody asked for."""
    conn.sendall(reply(b'{"version":1,"decision":{"block":{"status":418}}}') * 50)


def endless(conn: socket.socket) -> None:
    """An answer that has no end."""
    conn.sendall(frame(b"", MORE))
    part = frame(bytes(1 << 20), MORE)
    while True:
        conn.sendall(part)


def grains(conn: socket.socket) -> None:
    """An answer of half a million frames."""
    conn.sendall(frame(b"", MORE) * 500_000 + frame(b""))


def drop(conn: socket.socket) -> None:
    """Hangs up on every question."""
    conn.shutdown(socket.SHUT_RDWR)


def main(mode: str, path: str) -> None:
    harm = {one.__name__: one for one in (mute, garbage, unasked, endless, grains, drop)}[mode]
    if os.path.exists(path):
        os.unlink(path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(64)
        print("listening", flush=True)
        while True:
            conn, _ = listener.accept()
            threading.Thread(target=serve, args=(conn, harm), daemon=True).start()


if __name__ == "__main__":
    main(*sys.argv[1:])
