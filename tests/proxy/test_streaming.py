"""Bodies of any size in both directions, with back-pressure, through a real worker."""

import hashlib
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.http.corpus import Client
from tests.product import Proxy, proxy_config
from tests.support import wait_until

GIB = 1 << 30
PIECE = bytes(1 << 20)


class Raw:
    """An upstream whose connections are each given to `serve` in a thread."""

    def __init__(self, serve: Callable[[socket.socket], None]) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.serve = serve
        self.threads: list[threading.Thread] = []
        self.accepting = threading.Thread(target=self._run, daemon=True)
        self.accepting.start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.listener.getsockname()[1]}"

    def _run(self) -> None:
        while True:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._one, args=(sock,), daemon=True)
            self.threads.append(thread)
            thread.start()

    def _one(self, sock: socket.socket) -> None:
        with sock:
            try:
                self.serve(sock)
            except OSError:
                pass

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.accepting.join(5)
        for thread in self.threads:
            thread.join(5)


@pytest.fixture
def through(tmp_path: Path) -> Iterator[Callable[..., Proxy]]:
    """Start a proxy before a raw upstream; both are stopped at the end."""
    opened: list[Raw | Proxy] = []

    def start(serve: Callable[[socket.socket], None], **server: object) -> Proxy:
        raw = Raw(serve)
        opened.append(raw)
        proxy = Proxy(proxy_config(raw.address, server={"max_body_bytes": 0, **server}), tmp_path)
        opened.append(proxy)
        return proxy.__enter__()

    yield start
    for one in reversed(opened):
        if isinstance(one, Proxy):
            one.__exit__()
        else:
            one.close()


def rss_kib(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1])
    raise AssertionError("no VmRSS")


def read_head(sock: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        more = sock.recv(65536)
        if not more:
            return data
        data += more
    return data


@pytest.mark.slow
def test_download_of_a_gibibyte(through: Callable[..., Proxy]) -> None:
    """1 GiB down with a Content-Length: every byte arrives, the worker grows by less than 20 MiB."""

    def serve(sock: socket.socket) -> None:
        read_head(sock)
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % GIB)
        for _ in range(GIB // len(PIECE)):
            sock.sendall(PIECE)

    proxy = through(serve)
    (worker,) = proxy.worker_pids()
    before = rss_kib(worker)
    with proxy.connect() as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        head, _, rest = read_head(sock).partition(b"\r\n\r\n")
        assert b"content-length: %d" % GIB in head.lower()
        got, buffer = len(rest), bytearray(1 << 20)
        while got < GIB:
            count = sock.recv_into(buffer)
            assert count, f"ended after {got} bytes"
            got += count
    assert got == GIB
    assert rss_kib(worker) - before < 20 * 1024


@pytest.mark.slow
def test_upload_of_a_gibibyte(through: Callable[..., Proxy]) -> None:
    """1 GiB up, chunked: every byte arrives, the worker grows by less than 20 MiB."""
    counted: list[int] = []

    def serve(sock: socket.socket) -> None:
        head, _, rest = read_head(sock).partition(b"\r\n\r\n")
        assert b"transfer-encoding: chunked" in head
        got, tail, buffer = len(rest), rest[-5:], bytearray(1 << 20)
        while not tail.endswith(b"0\r\n\r\n"):
            count = sock.recv_into(buffer)
            if not count:
                break
            got += count
            tail = (tail + bytes(buffer[max(0, count - 5) : count]))[-5:]
        counted.append(got)
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    proxy = through(serve)
    (worker,) = proxy.worker_pids()
    before = rss_kib(worker)
    with Client(proxy.address, 60) as client:
        client.send(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
        chunk = b"%x\r\n%b\r\n" % (len(PIECE), PIECE)
        for _ in range(GIB // len(PIECE)):
            assert client.send(chunk)
        client.send(b"0\r\n\r\n")
        assert client.answer().status == 200
    assert counted[0] >= GIB
    assert rss_kib(worker) - before < 20 * 1024


def test_a_client_that_does_not_read_holds_the_upstream(through: Callable[..., Proxy]) -> None:
    """Back-pressure: what the upstream can get rid of is bounded while the client reads nothing."""
    sent = [0]
    done = threading.Event()

    def serve(sock: socket.socket) -> None:
        read_head(sock)
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (64 << 20))
        sock.settimeout(1)
        try:
            for _ in range(64):
                sent[0] += sock.send(PIECE)
        except TimeoutError:
            pass
        done.set()

    proxy = through(serve)
    with proxy.connect() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert done.wait(30)
    assert sent[0] < 32 << 20


def test_an_upstream_that_does_not_read_holds_the_client(through: Callable[..., Proxy]) -> None:
    """Back-pressure the other way: the client cannot send on while the upstream takes nothing."""
    release = threading.Event()

    def serve(sock: socket.socket) -> None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        read_head(sock)
        release.wait(30)

    proxy = through(serve)
    with proxy.connect() as sock:
        sock.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % (64 << 20))
        sock.settimeout(1)
        sent = 0
        with pytest.raises(TimeoutError):
            while sent < 64 << 20:
                sent += sock.send(PIECE)
        assert sent < 32 << 20
    release.set()


def test_abandoned_upload_is_never_complete(through: Callable[..., Proxy]) -> None:
    """A client that leaves in mid-body: the upstream sees the connection cut, not the end of a request."""
    seen: list[bytes] = []

    def serve(sock: socket.socket) -> None:
        data = read_head(sock)
        while True:
            try:
                more = sock.recv(65536)
            except ConnectionResetError:
                break
            if not more:
                break
            data += more
        seen.append(data)

    proxy = through(serve)
    with proxy.connect() as sock:
        sock.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
    wait_until(lambda: seen, 5)
    assert b"hello" in seen[0]
    assert not seen[0].endswith(b"0\r\n\r\n")


def test_truncated_response_is_not_a_whole_one(through: Callable[..., Proxy]) -> None:
    """An upstream that dies in mid-body: the client's connection is cut, chunked or not."""

    def serve(sock: socket.socket) -> None:
        head = read_head(sock)
        if b"/chunked" in head:
            sock.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
        else:
            sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc")

    proxy = through(serve)
    for path in (b"/chunked", b"/length"):
        with Client(proxy.address) as client:
            client.send(b"GET %b HTTP/1.1\r\nHost: a\r\n\r\n" % path)
            with pytest.raises((EOFError, ConnectionResetError)):
                client.answer()


def test_close_delimited_response(through: Callable[..., Proxy]) -> None:
    """No length at all: chunked towards HTTP/1.1, ended by close towards HTTP/1.0."""

    def serve(sock: socket.socket) -> None:
        read_head(sock)
        sock.sendall(b"HTTP/1.0 200 OK\r\n\r\nhello")

    proxy = through(serve)
    with Client(proxy.address) as client:
        client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        answer = client.answer()
        assert answer.body == b"5\r\nhello\r\n0\r\n\r\n"
        assert b"via: 1.0 wardgate" in answer.head
    with Client(proxy.address) as client:
        client.send(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        answer = client.answer()
        assert answer.body == b"hello"
        assert b"connection: close" in answer.head


def test_response_streams_as_it_comes(through: Callable[..., Proxy]) -> None:
    """The first chunk is with the client before the upstream has made the second."""
    first_seen = threading.Event()

    def serve(sock: socket.socket) -> None:
        read_head(sock)
        sock.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n")
        assert first_seen.wait(10)
        sock.sendall(b"3\r\ntwo\r\n0\r\n\r\n")

    proxy = through(serve)
    with proxy.connect() as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        data = b""
        while b"one" not in data:
            data += sock.recv(65536)
        first_seen.set()
        while not data.endswith(b"0\r\n\r\n"):
            data += sock.recv(65536)
        assert b"two" in data


def test_early_answer_is_relayed_and_the_connection_closed(through: Callable[..., Proxy]) -> None:
    """An upstream that answers before the body is complete: the answer arrives, reading stops, close."""

    def serve(sock: socket.socket) -> None:
        read_head(sock)
        sock.sendall(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\n\r\nbig")

    proxy = through(serve)
    with Client(proxy.address) as client:
        client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n" + bytes(1000))
        answer = client.answer()
        assert (answer.status, answer.body) == (413, b"big")
        assert client.is_closed()


def test_large_bodies_arrive_unchanged(through: Callable[..., Proxy]) -> None:
    """8 MiB of noise echoed through both directions: the same digest comes back."""
    noise = hashlib.shake_256(b"wardgate").digest(8 << 20)

    def serve(sock: socket.socket) -> None:
        _head, _, body = read_head(sock).partition(b"\r\n\r\n")
        while len(body) < len(noise):
            body += sock.recv(1 << 20)
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body))
        sock.sendall(body)

    proxy = through(serve)
    with Client(proxy.address, 30) as client:
        client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(noise) + noise)
        assert client.answer().body == noise
