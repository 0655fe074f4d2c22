"""What the kernel knows of a connection that libzmq holds: for v1 agents, which agentd dials with a socket of libzmq's.

An fd is only a number, and libzmq reuses it. So each connection is known by its socket's inode as well, and nothing
is ever shut down whose inode is another: it may be a client's connection by now.

Kind: IO.
"""

import fcntl
import os
import socket
import sys
import termios


def inode_of(fd: int) -> int:
    """What this number means now; 0 = nothing."""
    try:
        return os.fstat(fd).st_ino
    except OSError:
        return 0


def reopen(fd: int, inode: int) -> socket.socket | None:
    """A dup of a connection of ZeroMQ's, if the number still means it."""
    try:
        again = os.dup(fd)
    except OSError:
        return None
    if inode_of(again) != inode:
        os.close(again)
        return None
    return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, fileno=again)


def unread_bytes(fd: int, inode: int) -> int:
    """What the kernel holds of a connection's bytes that libzmq has not read yet."""
    connection = reopen(fd, inode)
    if connection is None:
        return 0
    with connection:
        try:
            return int.from_bytes(fcntl.ioctl(connection.fileno(), termios.FIONREAD, bytes(4)), sys.byteorder)
        except OSError:
            return 0
