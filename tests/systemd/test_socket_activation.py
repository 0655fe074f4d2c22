"""Listening sockets held by the service manager: the real proxy takes them, and its restart loses no connection."""

import contextlib
import http.client
import os
import signal
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shared.segment import WorkerState
from tests.proxy.front import Client, Front, upstream
from tests.support import Child, python, wait_until
from tests.systemd.manager import activate, listen_tcp, listen_unix

RESTARTS = 2
CLIENTS = 6


@pytest.fixture
def front(short_tmp_dir: Path) -> Iterator[Front]:
    with upstream(short_tmp_dir) as address:
        made = Front(short_tmp_dir, address)
        made.write(listen='"127.0.0.1:1"')  # could not be bound: what was passed is used instead
        yield made


def proxy(front: Front, sockets: list[socket.socket], number: int = 0) -> Child:
    args = python("-m", "proxy", "-c", str(front.config))
    return activate(args, sockets, front.dir / f"activated-{number}")


class Connections:
    """Clients that open a connection, ask once and close, again and again; `ends` counts how that went."""

    def __init__(self, connect: Callable[[], socket.socket]) -> None:
        self.ends: Counter[str] = Counter()
        self._connect = connect
        self._is_over = False
        self._threads = [threading.Thread(target=self._run, args=(at,)) for at in range(CLIENTS)]

    def _run(self, at: int) -> None:
        while not self._is_over:
            try:
                end = self._ask(at)
            except (OSError, http.client.HTTPException) as error:
                end = repr(error)
            self.ends[end] += 1

    def _ask(self, at: int) -> str:
        with contextlib.closing(http.client.HTTPConnection("test", timeout=20)) as connection:
            connection.sock = self._connect()
            if at % 2:
                body = os.urandom(1000)
                connection.request("POST", "/upload", body)
            else:
                connection.request("GET", "/json")
            response = connection.getresponse()
            response.read()
            return str(response.status)

    def __enter__(self) -> "Connections":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._is_over = True
        for thread in self._threads:
            thread.join(30)
        assert not any(thread.is_alive() for thread in self._threads)


@pytest.mark.parametrize("family", ["tcp", "unix"])
def test_a_restart_loses_no_connection(front: Front, family: str) -> None:
    """New connections all the time, the proxy restarted under them: each is served by the old or the new one."""
    path = front.dir / "front.sock"
    held = listen_tcp() if family == "tcp" else listen_unix(path)

    def connect() -> socket.socket:
        if family == "tcp":
            return socket.create_connection(held.getsockname(), 20)
        made = socket.socket(socket.AF_UNIX)
        made.settimeout(20)
        made.connect(str(path))
        return made

    with held, contextlib.ExitStack() as stack:
        child = stack.enter_context(proxy(front, [held]))
        child.wait_for("proxy.arbiter serving")
        with Connections(connect) as clients:
            for number in range(RESTARTS):
                there = clients.ends["200"]
                wait_until(lambda there=there: clients.ends["200"] > there + 50, 20)  # type: ignore[misc]
                assert child.stop(20) == 0
                child = stack.enter_context(proxy(front, [held], number + 1))
                child.wait_for("proxy.arbiter serving", 20)
            there = clients.ends["200"]
            wait_until(lambda: clients.ends["200"] > there + 50, 20)
        assert set(clients.ends) == {"200"}, clients.ends
        assert child.stop() == 0
        if family == "unix":
            assert path.exists(), "the manager's socket is not the proxy's to remove"


def test_what_is_under_way_ends_well_and_what_waits_is_served_by_the_next(front: Front) -> None:
    """A stream over the restart finishes with the old process; a connection made in between waits for the new one."""
    with listen_tcp() as held, proxy(front, [held]) as old:
        old.wait_for("proxy.arbiter serving")
        with Client(held.getsockname()) as stream:
            stream.send("/slow?s=1")
            wait_until(front.requests, 5)
            old.signal(signal.SIGTERM)
            # From then on they accept nothing more.
            wait_until(lambda: {row.state for row in front.workers()} == {WorkerState.DRAINING}, 5)
            with Client(held.getsockname()) as waiting:
                waiting.send("/json")
                assert stream.response()[0] == 200
                assert old.ended() == 0
                with proxy(front, [held], 1) as new:
                    assert waiting.response()[0] == 200
                    new.wait_for("proxy.arbiter serving")
                    waiting.socket.close()
                    assert new.stop() == 0


def test_a_tcp_and_a_unix_socket_together(front: Front) -> None:
    """Both ListenStream= of one unit, named in the log and in proxy.addr, served by the same workers."""
    path = front.dir / "front.sock"
    with listen_tcp() as tcp, listen_unix(path) as unix, proxy(front, [tcp, unix]) as child:
        child.wait_for("proxy.arbiter serving")
        names = [f"127.0.0.1:{tcp.getsockname()[1]}", f"unix:{path}"]
        assert (front.runtime / "proxy.addr").read_text().split() == names
        assert f"server.listen is not used: the service manager passed {', '.join(names)}" in child.output()
        with Client(tcp.getsockname()) as client:
            assert client.get("/json")[0] == 200
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(5)
            client.connect(str(path))
            client.sendall(b"GET /json HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert client.recv(100).startswith(b"HTTP/1.1 200")
        assert child.stop() == 0


def test_a_killed_proxy_leaves_the_sockets_open(front: Front) -> None:
    """kill -9 and Restart=always: who connects in between waits and is served."""
    with listen_tcp() as held:
        with proxy(front, [held]) as child:
            child.wait_for("proxy.arbiter serving")
        with Client(held.getsockname(), 20) as client:
            client.send("/json")
            with proxy(front, [held], 1) as child:
                assert client.response()[0] == 200
                child.wait_for("proxy.arbiter serving")
                client.socket.close()
                assert child.stop() == 0


def test_what_is_passed_and_cannot_be_used_ends_the_start(front: Front) -> None:
    """A datagram socket in the unit's place: exit 1, said by descriptor, nothing left behind."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as wrong:
        wrong.bind(("127.0.0.1", 0))
        with proxy(front, [wrong]) as child:
            assert child.ended() == 1
            assert "descriptor 3 passed by the service manager: not a listening stream socket" in child.output()
    assert front.left() == set()
