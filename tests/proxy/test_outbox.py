"""When writes leave: at once while there are few, in one burst a turn while there are many."""

from collections import deque
from collections.abc import Callable
from typing import Any, cast

import pytest

from proxy.outbox import Outbox
from shared.defaults import BODY_COPIED_BYTES, OUTBOX_PIECES_MAX
from shared.defaults import BURST_FROM_WRITES as MANY


class Loop:
    def __init__(self) -> None:
        self.soon: deque[Callable[[], Any]] = deque()

    def call_soon(self, callback: Callable[[], Any]) -> None:
        self.soon.append(callback)

    def turn(self) -> None:
        ready, self.soon = self.soon, deque()
        for callback in ready:
            callback()


class Transport:
    def __init__(self) -> None:
        self.calls: list[bytes] = []
        self.closing = False

    def write(self, data: bytes) -> None:
        self.calls.append(data)

    def writelines(self, pieces: list[bytes]) -> None:
        self.calls.append(b"".join(pieces))

    def is_closing(self) -> bool:
        return self.closing


class World:
    def __init__(self) -> None:
        self.loop = Loop()
        self.box = Outbox(self.loop)

    def write(self, transport: Transport, data: bytes) -> None:
        self.box.write(cast(Any, transport), data)

    def busy(self) -> None:
        """One busy turn: from now on writes are held."""
        for _ in range(MANY):
            self.write(Transport(), b"x")
        self.loop.turn()


@pytest.fixture
def world() -> World:
    return World()


def test_few_writes_leave_at_once(world: World) -> None:
    one = Transport()
    for _ in range(3):
        for _ in range(MANY - 1):
            world.write(one, b"x")
        assert len(one.calls) == MANY - 1
        one.calls.clear()
        world.loop.turn()


def test_a_busy_turn_makes_the_next_ones_burst(world: World) -> None:
    """Held until the turn's end, in order, one call for each connection."""
    world.busy()
    one, two = Transport(), Transport()
    world.write(one, b"a")
    world.write(two, b"b")
    world.write(one, b"c")
    assert not one.calls
    world.loop.turn()
    assert (one.calls, two.calls) == ([b"ac"], [b"b"])


def test_a_quiet_turn_ends_it(world: World) -> None:
    world.busy()
    one = Transport()
    world.write(one, b"a")
    world.loop.turn()
    world.write(one, b"b")
    assert one.calls == [b"a", b"b"]


def test_flush_before_a_close(world: World) -> None:
    """What is held is written now, once; the burst has nothing left for it."""
    world.busy()
    one = Transport()
    world.write(one, b"a")
    assert world.box.holds(cast(Any, one))
    world.box.flush(cast(Any, one))
    assert one.calls == [b"a"]
    assert not world.box.holds(cast(Any, one))
    world.loop.turn()
    assert one.calls == [b"a"]


def test_a_connection_that_is_gone(world: World) -> None:
    """Dropped or closing: nothing is written to it, the others are."""
    world.busy()
    gone, closing, well = Transport(), Transport(), Transport()
    for transport in (gone, closing, well):
        world.write(transport, b"a")
    world.box.drop(cast(Any, gone))
    closing.closing = True
    world.loop.turn()
    assert (gone.calls, closing.calls, well.calls) == ([], [], [b"a"])


def test_without_a_loop_nothing_is_held() -> None:
    box, one = Outbox(None), Transport()
    for _ in range(3 * MANY):
        box.write(cast(Any, one), b"x")
    assert len(one.calls) == 3 * MANY


def test_what_is_much_is_not_held(world: World) -> None:
    """Back-pressure is the transport's: it has to see what a turn's many reads bring."""
    world.busy()
    one = Transport()
    world.write(one, b"a")
    world.write(one, bytes(BODY_COPIED_BYTES))
    assert one.calls == [b"a" + bytes(BODY_COPIED_BYTES)]
    for _ in range(OUTBOX_PIECES_MAX):
        world.write(one, b"b")
    assert one.calls[1:] == [b"b" * OUTBOX_PIECES_MAX]
    world.write(one, b"c")
    world.loop.turn()
    assert one.calls[2:] == [b"c"]
