"""What systemd does for a unit, as far as tests need it: passes sockets, hears sd_notify, keeps the sockets."""

import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.support import Child

# The shell moves what it inherited to 3, 4, ... and becomes the daemon: LISTEN_PID is then the daemon's own pid.
_ACTIVATE = """
at=3
for fd in $FDS; do eval "exec $at<&$fd"; at=$((at + 1)); done
export LISTEN_PID=$$
exec "$@"
"""


def listen_tcp() -> socket.socket:
    """As ListenStream=127.0.0.1:0 would make it."""
    return socket.create_server(("127.0.0.1", 0), backlog=2048)


def listen_unix(path: Path) -> socket.socket:
    """As ListenStream=/path would make it."""
    made = socket.socket(socket.AF_UNIX)
    made.bind(str(path))
    made.listen(2048)
    return made


def activate(
    args: Sequence[str], sockets: Sequence[socket.socket], output: Path, env: Mapping[str, str] | None = None
) -> Child:
    """Start a daemon with `sockets` as descriptors 3 and up. The caller keeps them open, as systemd does."""
    first = 3 + len(sockets)
    # Apart from 3, 4, ...: a descriptor must not be overwritten before it was moved.
    copies = [os.dup2(sock.fileno(), 100 + first + at, inheritable=True) for at, sock in enumerate(sockets)]
    try:
        return Child(
            ["bash", "-c", _ACTIVATE, "-", *args],
            output,
            {
                "FDS": " ".join(map(str, copies)),
                "LISTEN_FDS": str(len(sockets)),
                "LISTEN_FDNAMES": ":".join(["http"] * len(sockets)),
                **(env or {}),
            },
            pass_fds=copies,
        )
    finally:
        for copy in copies:
            os.close(copy)
