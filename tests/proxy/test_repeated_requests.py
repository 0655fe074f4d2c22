"""A client that sends the same lines again and again, through a real worker: each request is still its own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.http.corpus import Client, Upstream
from tests.product import Proxy, proxy_config

LINES = b"Host: www.example.com\r\nUser-Agent: x/1\r\nX-Forwarded-For: 192.0.2.1\r\n\r\n"


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    made = Upstream()
    yield made
    made.close()


@pytest.fixture(scope="module")
def proxy(upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    tmp: Path = tmp_path_factory.mktemp("repeat")
    with Proxy(
        proxy_config(upstream.address, server={"max_header_bytes": 1_024, "keepalive_timeout_s": 5}), tmp
    ) as one:
        yield one


@pytest.fixture
def client(proxy: Proxy) -> Iterator[Client]:
    with proxy.connect() as sock:
        address = sock.getpeername()
    with Client(address) as made:
        yield made


def seen(upstream: Upstream, count: int) -> list[bytes]:
    """The last requests as the upstream got them."""
    return [bytes(message) for message in upstream.seen[-count:]]


def test_every_target_arrives(client: Client, upstream: Upstream) -> None:
    """From the fourth on no parser is asked; nobody can tell."""
    for number in range(12):
        client.send(b"GET /%d?q HTTP/1.1\r\n" % number + LINES)
        assert client.answer().status == 200
    requests = seen(upstream, 12)
    assert [r.split(b" ", 2)[1] for r in requests] == [b"/%d?q" % number for number in range(12)]
    first, last = (r.split(b"\r\n")[1:] for r in (requests[0], requests[-1]))
    ours = (b"traceparent:", b"x-correlation-id:")
    assert [line for line in first if not line.startswith(ours)] == [line for line in last if not line.startswith(ours)]
    assert len({line for r in requests for line in r.split(b"\r\n") if line.startswith(ours)}) == 24


def test_other_requests_in_between(client: Client, upstream: Upstream) -> None:
    """Another method, a body, other lines, two at once, one in pieces: the parser takes over and gives back."""
    for number in range(5):
        client.send(b"GET /%d HTTP/1.1\r\n" % number + LINES)
        assert client.answer().status == 200
    client.send(b"HEAD /h HTTP/1.1\r\n" + LINES)
    assert client.answer(is_head=True).status == 200
    client.send(b"POST /p HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc")
    assert client.answer().status == 200
    client.send((b"GET /5 HTTP/1.1\r\n" + LINES) * 2)
    assert [client.answer().status for _ in range(2)] == [200, 200]
    whole = b"GET /6 HTTP/1.1\r\n" + LINES
    client.send(whole[:40])
    client.send(whole[40:])
    assert client.answer().status == 200
    client.send(b"GET /7 HTTP/1.1\r\n" + LINES)
    assert client.answer().status == 200
    targets = [r.split(b" ", 2)[1] for r in seen(upstream, 11)]
    assert targets == [b"/0", b"/1", b"/2", b"/3", b"/4", b"/h", b"/p", b"/5", b"/5", b"/6", b"/7"]


@pytest.mark.parametrize(
    ("target", "status"), [(b"/a b", 400), (b"/%2f", 400), (b"/../x", 400), (b"/\xff", 400), (b"/" + b"a" * 1_100, 414)]
)
def test_a_bad_one_is_refused_as_ever(proxy: Proxy, client: Client, target: bytes, status: int) -> None:
    for _ in range(5):
        client.send(b"GET / HTTP/1.1\r\n" + LINES)
        assert client.answer().status == 200
    client.send(b"GET %b HTTP/1.1\r\n" % target + LINES)
    refused = client.answer()
    assert refused.status == status
    with Client(client.socket.getpeername()) as other:
        other.send(b"GET %b HTTP/1.1\r\n" % target + LINES)
        alone = other.answer()
    assert (alone.status, alone.body.split(b"\n")[0]) == (status, refused.body.split(b"\n")[0])


def test_a_route_gets_nothing_of_anothers(upstream: Upstream, tmp_path: Path) -> None:
    """The same lines on one connection to two routes: where agents judge response bodies, no ranges are asked for."""
    secret = tmp_path / "secret"
    secret.write_text("0" * 32)
    secret.chmod(0o600)
    judge = {"name": "judge", "protocol": "zmq-v2", "events": ["response_body_chunk"], "failure_mode": "open"}
    config = proxy_config(
        upstream.address,
        agents=[{**judge, "secret_file": str(secret)}],
        routes=[
            {"name": "any", "upstream": "up"},
            {"name": "judged", "upstream": "up", "match": {"path_prefix": "/j"}, "filters": [{"agent": "judge"}]},
        ],
    )
    lines = LINES.replace(b"\r\n\r\n", b"\r\nRange: bytes=0-1\r\n\r\n")
    with Proxy(config, tmp_path) as one, one.connect() as sock, Client(sock.getpeername()) as made:
        for target in (b"/a", b"/a", b"/a", b"/j", b"/j", b"/a", b"/j"):
            made.send(b"GET %b HTTP/1.1\r\n" % target + lines)
            assert made.answer().status == 200
    requests = seen(upstream, 7)
    assert [(r.split(b" ", 2)[1], b"Range: " in r) for r in requests] == [
        (b"/a", True), (b"/a", True), (b"/a", True), (b"/j", False), (b"/j", False), (b"/a", True), (b"/j", False),
    ]  # fmt: skip
