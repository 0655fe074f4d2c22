"""agentd/transport/zmq_fd.py: a number is only what its inode says."""

import os
import socket

from agentd.transport.zmq_fd import inode_of, reopen, unread_bytes


def test_unread() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        inode = inode_of(ours.fileno())
        assert unread_bytes(ours.fileno(), inode) == 0
        theirs.send(b"12345")
        assert unread_bytes(ours.fileno(), inode) == 5
        assert unread_bytes(ours.fileno(), inode + 1) == 0
    assert unread_bytes(-1, inode) == 0
    assert inode_of(-1) == 0


def test_reopen_leaks_nothing() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        before = os.listdir("/proc/self/fd")
        assert reopen(ours.fileno(), 1) is None
        again = reopen(ours.fileno(), inode_of(ours.fileno()))
        assert again is not None
        again.close()
        assert os.listdir("/proc/self/fd") == before
