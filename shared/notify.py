"""Tells systemd (or `wardgate run`) where a daemon stands: the datagrams of sd_notify(3).

    READY=1  STATUS=text  RELOADING=1 + MONOTONIC_USEC=n  STOPPING=1  WATCHDOG=1

The socket's name comes from $NOTIFY_SOCKET ("/path" or "@abstract"), the watchdog's time from
$WATCHDOG_USEC, valid for $WATCHDOG_PID only. Without them everything here does nothing. A send never
waits: a manager that does not read must not stop the daemon it watches.

Kind: IO (plumbing without policy).
"""

import os
import socket
from collections.abc import Mapping

from shared.clock import now_ns


class Notify:
    """One daemon's voice towards its service manager."""

    __slots__ = ("_address", "watchdog_s")

    def __init__(self, environ: Mapping[str, str], pid: int | None = None) -> None:
        name = environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + name[1:] if name.startswith("@") else name
        self.watchdog_s = _watchdog_s(environ, os.getpid() if pid is None else pid)

    @property
    def is_heard(self) -> bool:
        """Whether somebody asked to be told."""
        return bool(self._address)

    def ready(self, status: str) -> bool:
        """Started, or reloaded."""
        return self.send("READY=1", _status(status))

    def reloading(self) -> bool:
        """A reload begins; `ready` ends it."""
        return self.send("RELOADING=1", f"MONOTONIC_USEC={now_ns() // 1000}")

    def stopping(self, status: str) -> bool:
        """The way down has begun."""
        return self.send("STOPPING=1", _status(status))

    def status(self, text: str) -> bool:
        """One line for `systemctl status`."""
        return self.send(_status(text))

    def watchdog(self) -> bool:
        """Still alive; due at least every `watchdog_s`. Call it from the loop that must turn."""
        return self.send("WATCHDOG=1")

    def send(self, *fields: str) -> bool:
        """One datagram of `NAME=value` lines; False when nobody listens."""
        if not self._address:
            return False
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as sock:
                sock.sendto("\n".join(fields).encode(), self._address)
        except OSError:
            return False
        return True


def _status(text: str) -> str:
    return "STATUS=" + text.replace("\n", " ")


def _watchdog_s(environ: Mapping[str, str], pid: int) -> float | None:
    """Half of the manager's patience in seconds, or None when there is no watchdog for this process."""
    usec, for_pid = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
    if not usec.isdigit() or int(usec) == 0 or (for_pid and for_pid != str(pid)):
        return None
    return int(usec) / 2_000_000
