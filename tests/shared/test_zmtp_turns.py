"""shared/zmtp: how many messages one turn of the loop handles."""

import socket

import pytest

from shared import zmtp

GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"NULL".ljust(20, b"\0") + bytes(32)


class Loop:
    """One that turns when it is told to; the socket always has more."""

    def __init__(self):
        self.readers = {}
        self.soon = []

    def turn(self):
        due, self.soon = self.soon, []
        for reader in list(self.readers.values()):
            reader()
        for callback in due:
            callback()

    def add_reader(self, fd, callback):
        self.readers[fd] = callback

    def remove_reader(self, fd):
        self.readers.pop(fd, None)

    def add_writer(self, fd, callback):
        raise AssertionError("everything fits")

    remove_writer = add_writer

    def call_soon(self, callback):
        self.soon.append(callback)


@pytest.fixture
def loop():
    return Loop()


@pytest.fixture
def ends():
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.settimeout(10)
    with theirs:
        yield ours, theirs


def connected(loop, ends, on_message):
    ours, theirs = ends
    made = zmtp.Connection(
        ours,
        loop,
        b"ROUTER",
        on_message=on_message,
        on_closed=lambda connection, reason: None,
        max_bytes=1000,
        max_frames=10,
        max_unsent=1000,
    )
    theirs.sendall(GREETING + zmtp.pack_ready(b"DEALER"))
    loop.turn()
    assert made.is_open
    return made


def test_a_flood_of_small_messages_gives_way_to_the_loop_at_every_turn(loop, ends):
    got = []
    made = connected(loop, ends, lambda connection, frames: got.append(frames))
    ends[1].sendall(b"\x00\x01x" * 5000)
    for turns in range(1, 20):
        loop.turn()
        assert len(got) == turns * zmtp.MESSAGES_AT_ONCE
    made.close()


def test_reading_at_once_does_not_add_to_the_next_turns(loop, ends):
    got = []
    made = connected(loop, ends, lambda connection, frames: got.append(frames))
    ends[1].sendall(b"\x00\x01x" * 5000)
    loop.turn()
    for _ in range(5):
        made.read()
    assert len(got) == 6 * zmtp.MESSAGES_AT_ONCE
    loop.turn()
    assert len(got) == 7 * zmtp.MESSAGES_AT_ONCE
    made.close()


def test_what_is_left_is_handled_without_anything_new(loop, ends):
    got = []
    made = connected(loop, ends, lambda connection, frames: got.append(frames))
    ends[1].sendall(b"\x00\x01x" * 250)
    loop.turn()
    loop.readers, readers = {}, loop.readers  # nothing comes any more
    loop.turn()
    loop.turn()
    assert len(got) == 250
    loop.turn()
    assert loop.soon == []
    loop.readers = readers
    made.close()


def test_a_defect_in_a_handler_leaves_nothing_unread(loop, ends):
    got = []

    def on_message(connection, frames):
        got.append(frames)
        if len(got) == 2:
            raise RuntimeError("boom")

    made = connected(loop, ends, on_message)
    ends[1].sendall(b"\x00\x01x" * 5)
    with pytest.raises(RuntimeError):
        loop.turn()
    loop.readers, readers = {}, loop.readers
    loop.turn()
    assert len(got) == 5
    loop.readers = readers
    made.close()


def test_a_connection_closed_meanwhile_is_left_alone(loop, ends):
    got = []
    made = connected(loop, ends, lambda connection, frames: got.append(frames))
    ends[1].sendall(b"\x00\x01x" * 250)
    loop.turn()
    made.close()
    loop.turn()
    assert len(got) == zmtp.MESSAGES_AT_ONCE
