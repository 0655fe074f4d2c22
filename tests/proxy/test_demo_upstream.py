"""proxy/demo/upstream.py with a real process: every page, and that nothing of a request is hidden."""

import contextlib
import hashlib
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.proxy.front import Client, upstream
from tests.support import Child, python


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    with upstream(tmp_path_factory.mktemp("upstream")) as text:
        host, _, port = text.rpartition(":")
        yield host, int(port)


def test_the_page_and_the_document(address: tuple[str, int]) -> None:
    """HTML at /, JSON at /json, 404 elsewhere, all on one connection."""
    with Client(address) as client:
        status, head, body = client.get("/")
        assert (status, b"<h1>" in body) == (200, True)
        assert "content-type: text/html" in head
        assert json.loads(client.get("/json")[2])["ok"] is True
        assert client.get("/nothing")[0] == 404


def test_echo_shows_the_request_as_it_came(address: tuple[str, int]) -> None:
    """Any method, the target's bytes, names in their case, order, repetitions, the body."""
    with Client(address) as client:
        client.socket.sendall(
            b"BREW /echo?a=%2f HTTP/1.1\r\nHost: x\r\nX-CaSe: 1\r\nx-case: 2\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nTrailer: z\r\n\r\n"
        )
        shown = json.loads(client.response()[2])
        assert shown["method"] == "BREW"
        assert shown["target"] == "/echo?a=%2f"
        assert shown["headers"][:3] == [["Host", "x"], ["X-CaSe", "1"], ["x-case", "2"]]
        assert (shown["body"], shown["body_bytes"]) == ("abcde", 5)
        assert client.get("/json")[0] == 200, "the connection goes on"


def test_upload_counts_and_hashes(address: tuple[str, int]) -> None:
    """Without keeping it."""
    data = bytes(range(256)) * 4096
    with Client(address) as client:
        client.socket.sendall(b"POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(data) + data)
        assert json.loads(client.response()[2]) == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def test_slow_and_stream_take_their_time(address: tuple[str, int]) -> None:
    """/slow answers late, /stream comes piece by piece and ends as a chunked body does."""
    with Client(address) as client:
        began = time.monotonic()
        assert client.get("/slow?s=0.3")[0] == 200
        assert time.monotonic() - began >= 0.3
        client.send("/stream?n=2")
        client.until(b"7\r\nline 1\n\r\n")
        assert b"line 2" not in client.received
        client.until(b"7\r\nline 2\n\r\n0\r\n\r\n")


def test_numbers_that_are_none(address: tuple[str, int]) -> None:
    """Nonsense in the query is no error page and no endless wait; all of them wait at the same time."""
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Client(address, 4)) for _ in range(4)]
        for client, query in zip(clients, ("s=x", "s=-1", "s=nan", ""), strict=True):
            client.send(f"/slow?{query}")
        for client in clients:
            assert client.response()[0] == 200


def test_head_has_no_body(address: tuple[str, int]) -> None:
    """The next response begins right after the head."""
    with Client(address) as client:
        client.send("/", method="HEAD")
        client.until(b"\r\n\r\n")
        assert client.received.endswith(b"\r\n\r\n")


def test_answers_do_not_wait_for_acknowledgements(tmp_path: Path) -> None:
    """Head and body are two writes: without TCP_NODELAY the second one took 44 ms, in every test that used it."""
    with socket.create_server(("127.0.0.1", 0)) as held:
        assert not held.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        args = python("-m", "proxy.demo.upstream", "--fd", str(held.fileno()))
        with Child(args, tmp_path / "out", pass_fds=(held.fileno(),)) as child:
            child.wait_for("serving")
            assert held.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)  # the same open socket as the child's
            assert child.stop() == 0
