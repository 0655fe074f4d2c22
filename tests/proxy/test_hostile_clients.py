"""Clients that do what they should not, or do not do what they should, against a real worker."""

import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from proxy.protocol import ProxyProtocol
from tests.http.corpus import Client, Upstream
from tests.product import Proxy, proxy_config
from tests.proxy.test_streaming import PIECE, Raw, read_head, rss_kib
from tests.support import wait_until

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.fixture
def closing() -> Iterator[Callable[[object], None]]:
    """Close or exit whatever is handed in, last first."""
    opened: list[object] = []
    yield opened.append
    for one in reversed(opened):
        one.__exit__() if isinstance(one, Proxy) else one.close()  # type: ignore[attr-defined]


def start(closing: Callable[[object], None], tmp: Path, upstream: Raw | Upstream, **config: object) -> Proxy:
    closing(upstream)
    proxy = Proxy(proxy_config(upstream.address, **config), tmp)  # type: ignore[arg-type]
    closing(proxy)
    return proxy.__enter__()


def is_clean(proxy: Proxy) -> bool:
    """Nothing in the worker's log that a client must not be able to cause."""
    return not any(
        word in proxy.child.output() for word in ("Traceback", "Exception in", "Fatal error", "IllegalTrans")
    )


def test_many_ignored_upgrades_in_one_read(closing: Callable[[object], None], tmp_path: Path) -> None:
    """Each is fed again to a new parser: in a loop, not in a recursion that one read can exhaust."""
    routes = [{"name": "any", "upstream": "up", "match": {"path_prefix": "/x", "methods": ["POST"]}}]
    proxy = start(closing, tmp_path, Upstream(), routes=routes)
    with Client(proxy.address) as client:
        client.send(b"GET /x HTTP/1.1\r\nHost:a\r\nUpgrade:h\r\nConnection:upgrade\r\n\r\n" * 560)
        assert {client.answer().status for _ in range(560)} == {405}
    assert is_clean(proxy)


def test_a_pipeline_of_requests_that_are_decided_at_once(closing: Callable[[object], None], tmp_path: Path) -> None:
    """A fail-closed route without agentd: answered in order, and nothing is started twice."""
    routes = [
        {"name": "a", "upstream": "up"},
        {"name": "b", "upstream": "up", "match": {"path_prefix": "/b"}, "filters": [{"agent": "g"}]},
    ]
    agents = [{"name": "g", "protocol": "zmq-v2", "events": ["request_headers"]}]
    proxy = start(closing, tmp_path, Upstream(), routes=routes, agents=agents)
    with Client(proxy.address) as client:
        client.send(GET + b"GET /b HTTP/1.1\r\nHost: a\r\n\r\n" * 3 + GET)
        assert [client.answer().status for _ in range(5)] == [200, 503, 503, 503, 200]
    assert is_clean(proxy)


def big(sock: socket.socket) -> None:
    """200 KB an answer; 300 MB for /huge."""
    while head := read_head(sock):
        size = 300 << 20 if b"/huge" in head else 200_000
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        while size:
            size -= sock.send(PIECE[: min(size, len(PIECE))])


def test_a_client_that_reads_no_answer_costs_no_memory(closing: Callable[[object], None], tmp_path: Path) -> None:
    """Pipelined requests are not worked on while their client reads nothing, whatever the queue holds."""
    proxy = start(closing, tmp_path, Raw(big))
    (worker,) = proxy.worker_pids()
    before = rss_kib(worker)
    with proxy.connect() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        sock.sendall(GET * 30 + b"GET /huge HTTP/1.1\r\nHost: a\r\n\r\n")
        with Client(proxy.address) as other:  # the worker has turned many times by then
            for _ in range(20):
                other.send(GET)
                assert other.answer().status == 200
        assert rss_kib(worker) - before < 20 * 1024
    assert is_clean(proxy)


def test_a_head_cut_in_two_behind_unread_answers(closing: Callable[[object], None], tmp_path: Path) -> None:
    """Paused in the middle of a head while the client does not read: once it reads, the rest is taken."""
    proxy = start(closing, tmp_path, Raw(big))
    with Client(proxy.address, 10) as client:
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        client.send(GET * 20 + GET[:9])
        with Client(proxy.address) as other:
            for _ in range(20):
                other.send(GET)
                assert other.answer().status == 200
        assert {len(client.answer().body) for _ in range(20)} == {200_000}
        client.send(GET[9:])
        assert client.answer().status == 200
    assert is_clean(proxy)


def test_a_client_that_stops_reading_is_cut(closing: Callable[[object], None], tmp_path: Path) -> None:
    """After body_timeout_s without a byte taken: its upstream connection is free again."""
    given_up = threading.Event()

    def serve(sock: socket.socket) -> None:
        try:
            big(sock)
        except OSError:
            given_up.set()
            raise

    proxy = start(closing, tmp_path, Raw(serve), server={"body_timeout_s": 0.5})
    with proxy.connect() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        sock.sendall(b"GET /huge HTTP/1.1\r\nHost: a\r\n\r\n")
        assert given_up.wait(10)


class Slow:
    """As much of a connection as `stalled` looks at."""

    def __init__(self) -> None:
        self.context = SimpleNamespace(now=100, body_timeout_ns=50)
        self.buffered = 0
        self.transport = SimpleNamespace(get_write_buffer_size=lambda: self.buffered)
        self.driver = None
        self.is_full = False
        self.stalled_until = 0
        self.is_cut = False
        self._written = 0
        self._taken = 0

    def abort(self) -> None:
        self.is_cut = True


def test_a_slow_reader_is_not_cut() -> None:
    """Whoever has taken something is waited for again, also when more was written meanwhile than taken."""
    slow: Any = Slow()
    slow._written, slow.buffered = 1000, 900
    ProxyProtocol.write_is_full(slow)
    assert slow.stalled_until == 150
    slow._written, slow.buffered, slow.context.now = 3000, 2899, 150
    ProxyProtocol.stalled(slow)
    assert (slow.is_cut, slow.stalled_until) == (False, 200)
    slow._written, slow.buffered, slow.context.now = 3100, 2999, 200
    ProxyProtocol.stalled(slow)
    assert slow.is_cut


def test_the_answer_to_an_upload_survives_the_upload(closing: Callable[[object], None], tmp_path: Path) -> None:
    """413 while the body is under way: read on for a moment, a reset would destroy the answer."""
    proxy = start(closing, tmp_path, Upstream(), server={"max_body_bytes": 1000})
    for pieces in ([900_000], [0, 900_000]):
        with Client(proxy.address) as client:
            client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 20000000\r\n\r\n" + bytes(pieces[0]))
            if len(pieces) > 1:
                assert client.answer().status == 413
                assert client.send(bytes(pieces[1]))
            else:
                assert client.answer().status == 413
            assert client.is_closed()


def test_no_408_for_what_we_do_not_read(closing: Callable[[object], None], tmp_path: Path) -> None:
    """The upstream takes nothing, so the client is paused: its body is not late, the upstream is."""
    release = threading.Event()

    def serve(sock: socket.socket) -> None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        read_head(sock)
        release.wait(20)

    upstreams = [{"name": "deaf", "targets": [{"address": "127.0.0.1:1"}], "response_timeout_s": 1.5}]
    raw = Raw(serve)
    upstreams[0]["targets"] = [{"address": raw.address}]
    proxy = start(
        closing,
        tmp_path,
        raw,
        server={"body_timeout_s": 0.5, "max_body_bytes": 0},
        upstreams=upstreams,
        routes=[
            {"name": "any", "upstream": "deaf"},
            {"name": "unused", "upstream": "up", "match": {"path_prefix": "/u"}},
        ],
    )
    with Client(proxy.address, 20) as client:
        head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % (64 << 20)
        threading.Thread(target=lambda: client.send(head + bytes(64 << 20)), daemon=True).start()
        assert client.answer().status == 504
    release.set()
    wait_until(lambda: is_clean(proxy))
