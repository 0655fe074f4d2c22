"""wardgate_agents/files.py: files that change, vanish, break and come back while an agent runs."""

import asyncio
import os
import time
from pathlib import Path

import orjson
import pytest

from tests.support import until
from wardgate_agent import Session
from wardgate_agents import files
from wardgate_agents.files import BadFile, Follower, Health, Watched, lines_of, read_text


class World:
    """One file whose lines are what counts, looked at by hand."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.session = Session()
        self.health = Health(self.session)
        self.taken: list[list[str]] = []
        self.watched: Watched[list[str]] = Watched("lists", [str(path)], self.read, self.taken.append)

    def read(self) -> list[str]:
        rows = [text for _, text in lines_of(str(self.path))]
        if "bad" in rows:
            raise BadFile(f"{self.path}:1: bad")
        return rows

    def write(self, text: str, *, age_s: float = 60.0) -> None:
        """As an editor that renames; long enough ago not to be looked at twice."""
        draft = self.path.with_suffix(".new")
        draft.write_text(text)
        os.utime(draft, (time.time() - age_s,) * 2)
        draft.rename(self.path)

    def append(self, text: str) -> None:
        """In place."""
        with open(self.path, "a") as file:
            file.write(text)

    async def looks(self) -> bool:
        """Two looks: whatever has changed rests by then."""
        first = await self.watched.look(self.health)
        return await self.watched.look(self.health) or first

    @property
    def state(self) -> str:
        greeting = self.session.greeting()
        return orjson.loads(greeting[0][1])["state"] if greeting else "healthy"


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = World(tmp_path / "list.txt")
    made.write("a\n# remark\n\n b \n")
    return made


async def test_the_first_reading(world: World) -> None:
    """Remarks and blank lines say nothing; nothing is read again that has not changed."""
    await world.watched.start()
    assert world.watched.value == ["a", "b"]
    assert not await world.looks()
    assert world.taken == [["a", "b"]]


async def test_what_cannot_be_read_at_the_start_is_raised(world: World) -> None:
    """Absent, a bad line, not UTF-8, too large."""
    world.path.unlink()
    with pytest.raises(BadFile, match=r"list.txt: No such file"):
        await world.watched.start()
    world.write("bad\n")
    with pytest.raises(BadFile, match=r"list.txt:1: bad"):
        await world.watched.start()
    assert world.taken == []


def test_text_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line is named; a byte order mark is none of the text."""
    path = tmp_path / "x"
    path.write_bytes(b"a\nb\xff\n")
    with pytest.raises(BadFile, match=r"x:2: not UTF-8"):
        read_text(str(path))
    path.write_bytes(b"\xef\xbb\xbfa\r\nb")
    assert list(lines_of(str(path))) == [(1, "a"), (2, "b")]
    monkeypatch.setattr(files, "MAX_FILE_BYTES", 3)
    with pytest.raises(BadFile, match="more than 3 bytes"):
        read_text(str(path))


async def test_a_file_that_is_replaced(world: World) -> None:
    """Taken at the second look, and once."""
    await world.watched.start()
    world.write("c\n")
    assert not await world.watched.look(world.health)
    assert await world.watched.look(world.health)
    assert world.watched.value == ["c"]
    assert not await world.looks()


async def test_a_file_that_is_edited_in_place(world: World) -> None:
    """Same inode, another length."""
    await world.watched.start()
    world.append("d\n")
    assert await world.looks()
    assert world.watched.value == ["a", "b", "d"]


async def test_a_file_that_is_still_being_written(world: World) -> None:
    """As long as every look sees another file nothing is taken: half a list has holes."""
    await world.watched.start()
    for line in ("c\n", "d\n", "e\n"):
        world.append(line)
        assert not await world.watched.look(world.health)
    assert await world.watched.look(world.health)
    assert world.taken == [["a", "b"], ["a", "b", "c", "d", "e"]]


async def test_a_file_that_changes_while_it_is_read(world: World) -> None:
    """What was read may be half of each: it is thrown away."""
    await world.watched.start()
    real = world.read

    def meddling() -> list[str]:
        rows = real()
        world.append("late\n")
        return rows

    world.watched._read = meddling
    world.write("c\n")
    assert not await world.looks()
    assert world.watched.value == ["a", "b"]
    world.watched._read = real
    assert await world.looks()
    assert world.watched.value == ["c", "late"]


async def test_a_file_written_a_moment_before_the_start_is_read_again(world: World) -> None:
    """Its next change may have the same time stamp and size."""
    world.write("a\n", age_s=0)
    await world.watched.start()
    assert await world.looks()
    assert world.taken == [["a"], ["a"]]
    assert not await world.looks()


async def test_a_file_that_is_deleted(world: World) -> None:
    """The last good lists stay; the agent says that it is degraded, until the file is back."""
    await world.watched.start()
    world.path.unlink()
    assert not await world.looks()
    assert (world.watched.value, world.state) == (["a", "b"], "degraded")
    assert b"No such file" in world.session.greeting()[0][1]
    world.write("back\n")
    assert await world.looks()
    assert (world.watched.value, world.state) == (["back"], "healthy")


async def test_a_bad_line(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Said once, with file and line, not at every look."""
    await world.watched.start()
    world.write("bad\n")
    for _ in range(3):
        assert not await world.looks()
    assert (world.watched.value, world.state) == (["a", "b"], "degraded")
    assert [r.getMessage() for r in caplog.records if "list.txt:1: bad" in r.getMessage()] == [
        f"lists: the last good version stays in force: {world.path}:1: bad"
    ]


async def test_the_same_content_again_mends_a_fault(world: World) -> None:
    """Moved away and back."""
    await world.watched.start()
    aside = world.path.with_suffix(".aside")
    world.path.rename(aside)
    await world.looks()
    assert world.state == "degraded"
    aside.rename(world.path)
    assert await world.looks()
    assert world.state == "healthy"


async def test_two_faults_are_both_told(tmp_path: Path) -> None:
    """Health is good again when all of it is."""
    session = Session()
    health = Health(session)
    health.bad("one", "x")
    health.bad("two", "y")
    health.good("one")
    assert b'"degraded","message":"two: y"' in session.greeting()[0][1]
    health.good("two")
    assert b"healthy" in session.greeting()[0][1]
    health.bad("two", "z")
    health.clear()
    assert b"healthy" in session.greeting()[0][1]


async def test_the_follower_looks_by_itself(world: World) -> None:
    """And goes on after a fault of the reader's own; another configuration ends the looking."""
    await world.watched.start()
    follower = Follower(world.health)
    follower.follow([world.watched], 0.005)
    real = world.watched._read
    changed = asyncio.Event()

    def broken() -> list[str]:
        changed.set()
        raise RuntimeError("a fault")

    world.watched._read = broken
    world.write("c\n")
    await asyncio.wait_for(changed.wait(), 20)
    world.watched._read = real
    await until(lambda: world.watched.value == ["c"], 20)
    follower.stop()
