"""An upstream whose answers a test writes: bytes, and pauses that the test ends.

    upstream.reply = lambda request: [b"HTTP/1.1 200 OK\\r\\n...", event, b"more"]

A `threading.Event` among the pieces is waited for (ten seconds at most) before what follows it is sent. Every
request is kept whole in `seen`; of a connection that ended inside one, what came is in `cut`.
"""

import socket
import threading
from collections.abc import Callable, Iterable
from typing import Any

from tests.http.corpus import message_end

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class ScriptedUpstream:
    """A thread for the listener and one for each connection."""

    def __init__(self) -> None:
        self.seen: list[bytes] = []
        self.cut: list[bytes] = []
        self.broken: list[int] = []  # how many pieces had been sent when the other side was gone
        self.connections = 0
        self.is_hasty = False  # answers as soon as it has the head
        self.reply: Callable[[bytes], Iterable[Any]] = lambda request: [OK]
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._listener.getsockname()[1]}"

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._sockets.append(sock)
            thread = threading.Thread(target=self._serve, args=(sock,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, sock: socket.socket) -> None:
        data = b""
        sent = 0
        try:
            while True:
                end = message_end(data)
                if end is None and self.is_hasty and b"\r\n\r\n" in data:
                    for piece in self.reply(data):
                        sock.sendall(piece)
                    data += sock.recv(1 << 18)  # whether it gets the rest is not its business
                    break
                if end is None:
                    more = sock.recv(1 << 18)
                    if not more:
                        break
                    data += more
                    continue
                request, data = data[:end], data[end:]
                self.seen.append(request)
                sent = 0
                for piece in self.reply(request):
                    if isinstance(piece, threading.Event):
                        piece.wait(10)
                    elif piece is None:
                        sock.shutdown(socket.SHUT_RDWR)
                        return
                    else:
                        sock.sendall(piece)
                        sent += 1
        except OSError:
            self.broken.append(sent)
        finally:
            if data:
                self.cut.append(data)
            sock.close()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._accepting.join(5)
        for sock in self._sockets:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        for thread in self._threads:
            thread.join(5)
