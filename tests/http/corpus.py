"""Reads the `.http` cases of this folder and talks raw HTTP for them; see README.md."""

import re
import selectors
import socket
import threading
from dataclasses import dataclass, field
from pathlib import Path

FOLDER = Path(__file__).parent
_ESCAPE = re.compile(rb"\\(r|n|t|\\|x[0-9a-fA-F]{2})")
_REPEAT = re.compile(rb"\{(.+?)\*(\d+)\}")
_ONE = {b"r": b"\r", b"n": b"\n", b"t": b"\t", b"\\": b"\\"}
OURS = (
    b"x-forwarded-for: 127\\.0\\.0\\.1\r\nx-forwarded-proto: http\r\nx-forwarded-host: %b\r\n"
    b'forwarded: for=127\\.0\\.0\\.1;proto=http;host="?%b"?\r\n(?:traceparent: [0-9a-f-]{55}\r\n)?'
    b"via: 1\\.[01] wardgate\r\nx-correlation-id: [0-9a-f]{10}-[0-9a-f]+\r\n"
)


@dataclass
class Case:
    """One file. `upstream` is a regular expression of whole bytes, b"nothing" or b"aborted"."""

    path: Path
    claim: str
    segments: list[bytes] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    flags: set[str] = field(default_factory=set)
    fields: list[str] = field(default_factory=list)
    upstream: bytes = b""


def cases() -> list[Case]:
    """Every case, in order of name."""
    return [read(path) for path in sorted(FOLDER.glob("*/*.http"))]


def read(path: Path) -> Case:
    """Parse one file; a malformed one is a ValueError that names it."""
    claim, *sections = re.split(rb"^--- ", path.read_bytes(), flags=re.M)
    case = Case(path, claim.decode().strip())
    for section in sections:
        name, _, body = section.partition(b"\n")
        lines = body.splitlines()
        if name == b"request":
            case.segments.append(_bytes(b"".join(lines)))
        elif name == b"response":
            _expect(case, [line.decode() for line in lines if line.strip()])
        elif name == b"upstream":
            text = b"".join(lines)
            case.upstream = text if text in (b"nothing", b"aborted") else _pattern(text)
        else:
            raise ValueError(f"{path}: unknown section {name!r}")
    if not (case.claim and case.segments and case.statuses and case.upstream):
        raise ValueError(f"{path}: a case needs a claim, a request, a response and an upstream section")
    return case


def _bytes(text: bytes) -> bytes:
    text = _REPEAT.sub(lambda m: m[1] * int(m[2]), text)
    return _ESCAPE.sub(lambda m: _ONE.get(m[1]) or bytes([int(m[1][1:], 16)]), text)


def _expect(case: Case, lines: list[str]) -> None:
    for line in lines:
        words = line.split()
        if words[0].isdigit():
            case.statuses.append(int(words[0]))
            case.flags.update(words[1:])
        else:
            case.fields.append(line)


def _pattern(text: bytes) -> bytes:
    parts = re.split(rb"(<\*>|<ours [^>]*>)", text)
    out = []
    for part in parts:
        if part == b"<*>":
            out.append(rb"[^\r\n]*")
        elif part.startswith(b"<ours "):
            host = re.escape(part[6:-1])
            out.append(OURS % (host, host))
        else:
            out.append(re.escape(_bytes(part)))
    return b"".join(out)


def pieces(data: bytes, size: int) -> list[bytes]:
    """`data` in pieces of `size` bytes, at most 200 of them."""
    size = max(size, -(-len(data) // 200))
    return [data[at : at + size] for at in range(0, len(data), size)]


class Upstream:
    """A server that keeps every request's bytes as they came and answers 200 `ok`.

    One thread, and every connection that has something is read dry before anything is answered: so
    whoever has an answer knows that all bytes sent before its request are in `seen` or `aborted`.
    """

    def __init__(self) -> None:
        self.seen: list[bytes] = []
        self.aborted: list[bytes] = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self._listener.setblocking(False)
        self._wake, self._woken = socket.socketpair()
        self._buffers: dict[socket.socket, bytes] = {}
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._listener.getsockname()[1]}"

    def close(self) -> None:
        """Stop the thread and close everything."""
        self._wake.send(b"x")
        self._thread.join()
        for sock in (self._listener, self._wake, self._woken, *self._buffers):
            sock.close()
        self._selector.close()

    def _run(self) -> None:
        while True:
            ready = [key.fileobj for key, _ in self._selector.select()]
            if self._woken in ready:
                return
            accepted = self._accept() if self._listener in ready else []
            for sock in {*ready, *accepted} - {self._listener}:
                assert isinstance(sock, socket.socket)
                self._read(sock)
            for sock in list(self._buffers):
                self._answer(sock)

    def _accept(self) -> list[socket.socket]:
        made = []
        while True:
            try:
                sock, _ = self._listener.accept()
            except BlockingIOError:
                return made
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._buffers[sock] = b""
            self._selector.register(sock, selectors.EVENT_READ)
            made.append(sock)

    def _read(self, sock: socket.socket) -> None:
        while True:
            try:
                data = sock.recv(1 << 20)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                left = self._buffers.pop(sock)
                if left:
                    self.aborted.append(left)
                self._selector.unregister(sock)
                sock.close()
                return
            self._buffers[sock] += data

    def _answer(self, sock: socket.socket) -> None:
        while (end := message_end(self._buffers[sock])) is not None:
            message = self._buffers[sock][:end]
            self._buffers[sock] = self._buffers[sock][end:]
            self.seen.append(message)
            body = b"" if message.startswith(b"HEAD ") else b"ok"
            sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n" + body)


def message_end(data: bytes) -> int | None:
    """Where the first message of `data` ends, by its own framing; None = incomplete."""
    head, found, _ = data.partition(b"\r\n\r\n")
    if not found:
        return None
    at = len(head) + 4
    chunked = re.search(rb"(?im)^transfer-encoding:[ \t]*chunked\r?$", head)
    if chunked:
        while True:
            line_end = data.find(b"\r\n", at)
            if line_end < 0:
                return None
            size = int(data[at:line_end].split(b";")[0], 16)
            at = line_end + 2 + size + 2
            if len(data) < at:
                return None
            if size == 0:
                return at
    length = re.search(rb"(?im)^content-length:[ \t]*(\d+)", head)
    end = at + (int(length[1]) if length else 0)
    return end if len(data) >= end else None


def one_chunk(message: bytes) -> bytes:
    """A chunked message with its data in one chunk: how a body was cut into reads does not matter."""
    head, _, body = message.partition(b"\r\n\r\n")
    if b"transfer-encoding: chunked" not in head.lower():
        return message
    data, at = b"", 0
    while True:
        line_end = body.index(b"\r\n", at)
        size = int(body[at:line_end], 16)
        if size == 0:
            break
        data += body[line_end + 2 : line_end + 2 + size]
        at = line_end + 2 + size + 2
    chunk = b"%x\r\n%b\r\n" % (len(data), data) if data else b""
    return head + b"\r\n\r\n" + chunk + body[at:]


@dataclass
class Answer:
    """One response as a client saw it."""

    status: int
    head: bytes
    body: bytes


class Client:
    """A raw connection."""

    def __init__(self, address: tuple[str, int], timeout_s: float = 5.0) -> None:
        self.socket = socket.create_connection(address, timeout_s)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer = b""

    def send(self, data: bytes) -> bool:
        """False when the other side has closed."""
        try:
            self.socket.sendall(data)
        except OSError:
            return False
        return True

    def answer(self, *, is_head: bool = False) -> Answer:
        """The next response; raises EOFError when the connection ends before it is whole."""
        while b"\r\n\r\n" not in self.buffer:
            self._more()
        head, _, rest = self.buffer.partition(b"\r\n\r\n")
        self.buffer = rest
        status = int(head.split(b" ", 2)[1])
        if status == 100:
            return Answer(status, head, b"")
        body = b""
        length = re.search(rb"(?im)^content-length:[ \t]*(\d+)", head)
        if is_head or status in (204, 304):
            pass
        elif length:
            while len(self.buffer) < int(length[1]):
                self._more()
            body, self.buffer = self.buffer[: int(length[1])], self.buffer[int(length[1]) :]
        elif b"transfer-encoding: chunked" in head.lower():
            while (end := message_end(head + b"\r\n\r\n" + self.buffer)) is None:
                self._more()
            taken = end - len(head) - 4
            body, self.buffer = self.buffer[:taken], self.buffer[taken:]
        else:
            while True:
                try:
                    self._more()
                except EOFError:
                    break
            body, self.buffer = self.buffer, b""
        return Answer(status, head, body)

    def _more(self) -> None:
        data = self.socket.recv(1 << 20)
        if not data:
            raise EOFError(f"connection closed; unread: {self.buffer[:200]!r}")
        self.buffer += data

    def is_closed(self) -> bool:
        """The server closes, and sends nothing more before that. Waits for it."""
        try:
            return not self.buffer and not self.socket.recv(1 << 16)
        except ConnectionResetError:
            return True

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
