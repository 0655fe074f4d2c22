"""A worker that was stopped: answers that came meanwhile are read before anybody's time is found to be over."""

import os
import signal
import socket
import threading
from pathlib import Path

from tests.http.corpus import Client
from tests.product import Proxy, proxy_config
from tests.support import wait_until

TIMEOUT_S = 0.3


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_an_answer_that_waited_for_sigcont_is_no_timeout(tmp_path: Path) -> None:
    """The upstream answered in time; it was the worker that did not look."""
    with socket.create_server(("127.0.0.1", 0)) as upstream:
        upstream.settimeout(10)
        address = f"127.0.0.1:{upstream.getsockname()[1]}"
        row = {"name": "slow", "targets": [{"address": address}], "response_timeout_s": TIMEOUT_S}
        config = proxy_config(address, upstreams=[row], routes=[{"name": "any", "upstream": "slow"}])
        with Proxy(config, tmp_path) as proxy, proxy.connect() as probe, Client(probe.getpeername()) as client:
            (worker,) = proxy.worker_pids()
            client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            connection, _ = upstream.accept()
            with connection:
                assert connection.recv(65_536)
                threading.Event().wait(TIMEOUT_S / 3)  # the worker has begun to count
                os.kill(worker, signal.SIGSTOP)
                try:
                    wait_until(lambda: state_of(worker) == "T")
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                    threading.Event().wait(3 * TIMEOUT_S)  # the time itself is what is tested
                finally:
                    os.kill(worker, signal.SIGCONT)
                assert client.answer().status == 200
