"""shared/notify.py: the manager hears each step; without a manager, or with a deaf one, nothing happens."""

import os
import socket
from pathlib import Path

import pytest

from shared.notify import Notify
from tests.support import NotifySocket


def test_each_step_is_one_datagram(notify_socket: NotifySocket) -> None:
    """READY, STATUS, RELOADING with its time, WATCHDOG, STOPPING, as sd_notify(3) names them."""
    notify = Notify({"NOTIFY_SOCKET": notify_socket.path})
    assert notify.is_heard
    assert notify.ready("2 agents\nof 3")
    assert notify.reloading()
    assert notify.status("draining")
    assert notify.watchdog()
    assert notify.stopping("bye")
    fields = notify_socket.fields()
    assert fields[:3] == ["READY=1", "STATUS=2 agents of 3", "RELOADING=1"]
    assert fields[3].startswith("MONOTONIC_USEC=")
    assert fields[4:] == ["STATUS=draining", "WATCHDOG=1", "STOPPING=1", "STATUS=bye"]


def test_an_abstract_socket_is_named_with_an_at_sign() -> None:
    """systemd may pass "@name"."""
    name = f"wardgate-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + name)
        manager.setblocking(False)
        assert Notify({"NOTIFY_SOCKET": "@" + name}).watchdog()
        assert manager.recv(100) == b"WATCHDOG=1"


def test_without_a_manager_nothing_happens(short_tmp_dir: Path) -> None:
    """No socket named, or nobody behind the name: False, no error."""
    assert not Notify({}).is_heard
    assert Notify({}).ready("x") is False
    assert Notify({"NOTIFY_SOCKET": str(short_tmp_dir / "gone")}).ready("x") is False


def test_a_manager_that_does_not_read_never_blocks_us(notify_socket: NotifySocket) -> None:
    """A full receive queue makes a send fail at once."""
    notify = Notify({"NOTIFY_SOCKET": notify_socket.path})
    assert not all(notify.watchdog() for _ in range(5000))


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "3000000"}, 1.5),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "42"}, 1.5),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "43"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_the_watchdog_is_due_at_half_the_managers_patience(environ: dict[str, str], expected: float | None) -> None:
    """And only for the process it was meant for."""
    assert Notify(environ, pid=42).watchdog_s == expected
