"""agentd/publish.py: a change is in the segment when the call returns; forced-open breakers outlive agentd."""

from pathlib import Path

import pytest

from agentd.alarm import Alarm
from agentd.lane import Lane
from agentd.publish import Publisher
from shared.config.schema import Agent
from shared.segment import AgentdView, AgentdWriter, AgentRow, BreakerState
from tests.support import Clock


class World:
    """Two lanes, a segment, a reader of it."""

    def __init__(self, directory: Path, clock: Clock) -> None:
        self.clock = clock
        self.path = directory / "agentd.seg"
        self.file = directory / "breakers.json"
        self.masks: dict[str, int] = {}
        self.lanes: dict[str, Lane] = {}
        for name in ("waf", "tracer"):
            self.add(name)
        self.writer = AgentdWriter.create(str(self.path), "digest")
        self.publisher = self.made()
        self.view = AgentdView(str(self.path))
        assert self.view.attach()

    def add(self, name: str) -> None:
        def changed(old: BreakerState, new: BreakerState) -> None:
            self.publisher.agent_changed(name)

        self.lanes[name] = Lane(Agent(name, "zmq-v2"), self.clock, Alarm(lambda _: None), changed)

    def made(self) -> Publisher:
        return Publisher(self.writer, self.lanes, lambda name: self.masks.get(name, 0), str(self.file))

    def close(self) -> None:
        self.view.close()
        self.writer.close()


@pytest.fixture
def world(tmp_path: Path, clock: Clock) -> "World":
    made = World(tmp_path, clock)
    made.publisher.refresh()
    yield made  # type: ignore[misc]
    made.close()


def test_every_lane_has_a_row(world: World) -> None:
    """In the order of the lanes, closed, nobody there yet."""
    assert world.view.agents() == {"waf": AgentRow("waf"), "tracer": AgentRow("tracer")}


def test_a_breaker_that_moves_is_published_at_once(world: World, clock: Clock) -> None:
    """By the lane's own callback: workers compare the generation before each event."""
    before = world.view.generation
    world.lanes["waf"].force_open(clock())
    assert world.view.generation > before
    assert world.view.agents()["waf"].breaker is BreakerState.FORCED_OPEN
    world.lanes["waf"].breaker.close(clock())
    assert world.view.agents()["waf"].breaker is BreakerState.CLOSED


def test_capabilities_are_published_and_nothing_else_moves_the_generation(world: World) -> None:
    """The 100 ms refresh costs workers nothing while nothing changes."""
    world.masks["waf"] = 3
    world.publisher.agent_changed("waf")
    assert world.view.agents()["waf"].hello_mask == 3
    before = world.view.generation
    world.publisher.refresh()
    world.publisher.agent_changed("waf")
    assert world.view.generation == before


def test_lanes_that_come_and_go_move_their_rows(world: World) -> None:
    """No row of a lane that is gone stays, none appears twice."""
    del world.lanes["waf"]
    world.publisher.refresh()
    assert list(world.view.agents()) == ["tracer"]
    world.publisher.agent_changed("waf")  # a late callback of the lane that is gone
    assert list(world.view.agents()) == ["tracer"]
    world.add("auth")
    world.publisher.refresh()
    assert list(world.view.agents()) == ["tracer", "auth"]
    assert set(world.publisher.rows) == {"tracer", "auth"}


def test_what_was_forced_open_is_kept_for_the_next_start(world: World, clock: Clock) -> None:
    """Only forced-open ones; the rest starts closed."""
    assert world.publisher.kept() == ()
    world.lanes["waf"].force_open(clock())
    world.publisher.keep()
    assert world.made().kept() == ("waf",)
    assert world.file.stat().st_mode & 0o077 == 0
    world.lanes["waf"].breaker.close(clock())
    world.publisher.keep()
    assert world.made().kept() == ()


@pytest.mark.parametrize("content", [b"", b"{", b'{"forced_open": "waf"}', b"\xff", b"[]"])
def test_a_broken_file_is_told_and_stops_nobody(world: World, content: bytes) -> None:
    """Health shows it: an agent that was locked out may be asked again."""
    world.file.write_bytes(content)
    assert world.publisher.kept() == ()
    assert "unreadable" in world.publisher.problem


def test_a_file_that_cannot_be_written_is_told_until_it_can(world: World, clock: Clock) -> None:
    """The breaker is open all the same."""
    (world.file.parent / "breakers.json.new").mkdir()
    world.lanes["waf"].force_open(clock())
    world.publisher.keep()
    assert "cannot be written" in world.publisher.problem
    (world.file.parent / "breakers.json.new").rmdir()
    world.publisher.keep()
    assert world.publisher.problem == ""
