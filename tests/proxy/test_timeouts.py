"""Slow clients and slow upstreams are let go in time; short timeouts, real worker."""

import time
from collections.abc import Iterator

import pytest

from tests.http.corpus import Client, Upstream
from tests.product import Proxy, proxy_config
from tests.proxy.test_streaming import Raw, read_head
from tests.support import wait_until


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    upstream = Upstream()

    def silent(sock):  # type: ignore[no-untyped-def]
        read_head(sock)
        sock.recv(1)

    def stalls(sock):  # type: ignore[no-untyped-def]
        read_head(sock)
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc")
        sock.recv(1)

    raws = {"silent": Raw(silent), "stalls": Raw(stalls)}
    timeouts = {"connect_timeout_s": 0.4, "response_timeout_s": 0.4, "idle_timeout_s": 0.4}
    config = proxy_config(
        upstream.address,
        server={"header_timeout_s": 0.5, "body_timeout_s": 0.5, "keepalive_timeout_s": 0.5},
        upstreams=[
            *({"name": name, "targets": [{"address": raw.address}], **timeouts} for name, raw in raws.items()),
            {"name": "refuses", "targets": [{"address": "127.0.0.1:1"}], **timeouts},
        ],
        routes=[
            {"name": "any", "upstream": "up"},
            *(
                {"name": name, "upstream": name, "match": {"path_prefix": f"/{name}"}}
                for name in ("silent", "stalls", "refuses")
            ),
        ],
    )
    with Proxy(config, tmp_path_factory.mktemp("timeouts")) as made:
        yield made
    for raw in raws.values():
        raw.close()
    upstream.close()


def test_partial_head_is_answered_408(proxy: Proxy) -> None:
    with Client(proxy.address) as client:
        client.send(b"GET / HTTP/1.1\r\nHost:")
        assert client.answer().status == 408
        assert client.is_closed()


def test_trickled_head_has_one_deadline(proxy: Proxy) -> None:
    """The timeout is for the whole head: a byte now and then does not buy more time."""
    with Client(proxy.address) as client:
        began = time.monotonic()
        client.socket.settimeout(0.1)
        got = b""
        while time.monotonic() - began < 5 and not got:
            client.send(b"G" if not got else b"")
            try:
                got = client.socket.recv(1)
            except TimeoutError:
                continue
            except ConnectionResetError:
                break
        assert time.monotonic() - began < 3


def test_partial_body_is_answered_408(proxy: Proxy) -> None:
    with Client(proxy.address) as client:
        client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nabc")
        assert client.answer().status == 408
        assert client.is_closed()


@pytest.mark.parametrize("first", [b"", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"])
def test_idle_connection_is_closed_silently(proxy: Proxy, first: bytes) -> None:
    with Client(proxy.address) as client:
        if first:
            client.send(first)
            assert client.answer().status == 200
        assert client.is_closed()


@pytest.mark.parametrize(
    ("path", "status", "reason"),
    [
        (b"/silent", 504, b"gateway timeout"),
        (b"/refuses", 502, b"bad gateway"),
    ],
)
def test_upstream_failures_say_which(proxy: Proxy, path: bytes, status: int, reason: bytes) -> None:
    """502 and 504: the body names the failure, the upstream and the correlation id of the head."""
    with Client(proxy.address) as client:
        client.send(b"GET %b HTTP/1.1\r\nHost: a\r\n\r\n" % path)
        answer = client.answer()
        assert answer.status == status
        assert answer.body.startswith(reason)
        correlation_id = answer.head.lower().partition(b"x-correlation-id: ")[2].partition(b"\r\n")[0]
        assert b"correlation id: " + correlation_id in answer.body
        wait_until(lambda: correlation_id.decode() in proxy.child.output(), what="the log line")
        client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert client.answer().status == 200, "the client's connection goes on"


def test_stalled_response_is_cut(proxy: Proxy) -> None:
    """After the head there is no status left to say: the connection is cut, never ended cleanly."""
    with Client(proxy.address) as client:
        client.send(b"GET /stalls HTTP/1.1\r\nHost: a\r\n\r\n")
        with pytest.raises((EOFError, ConnectionResetError)):
            client.answer()
