"""agentd/reload.py: one reload at a time, told to everybody who asked, and whatever goes wrong changes nothing."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from agentd import reload as module
from agentd.reload import Fresh, Reloading
from shared.clock import now_ns
from shared.config.load import Loaded
from shared.config.schema import Config
from shared.errors import AdminRefused, ConfigError
from shared.notify import Notify
from shared.segment import AgentdView, AgentdWriter, ProxyView, ProxyWriter
from tests.support import until


def fresh(digest: str) -> Fresh:
    return Fresh(Loaded(Config(), digest, [], [], {}), "")


class Target:
    """Takes over what it is given, unless told to refuse."""

    def __init__(self) -> None:
        self.loaded = fresh("old").loaded
        self.problems: list[str] = []
        self.error: Exception | None = None

    def objections(self, loaded: Loaded) -> list[str]:
        return self.problems

    async def take(self, given: Fresh) -> None:
        if self.error is not None:
            raise self.error
        self.loaded = given.loaded


class World:
    def __init__(self, directory: Path, read: Callable[[], Fresh] = lambda: fresh("new")) -> None:
        self.directory = directory
        self.target = Target()
        self.writer = AgentdWriter.create(f"{directory}/agentd.seg", "old")
        self.view = AgentdView(self.writer.path)
        assert self.view.attach()
        self.proxy = ProxyView(f"{directory}/proxy.seg")
        self.audited: list[tuple[str, ...]] = []
        self.reloading = Reloading(
            self.target, read, self.writer, self.proxy, Notify({}), lambda *row: self.audited.append(row)
        )

    async def __aenter__(self) -> "World":
        self.task = asyncio.get_running_loop().create_task(self.reloading.run())
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.task.cancel()
        await asyncio.wait((self.task,))
        self.view.close()
        self.proxy.close()
        self.writer.close()


async def test_it_is_applied_told_and_audited(short_tmp_dir: Path) -> None:
    """A signal is in the log, an operator in the audit; both in the segment."""
    async with World(short_tmp_dir) as world:
        await world.reloading.ask()
        assert world.target.loaded.digest == "new"
        assert world.audited == []
        found = await world.reloading.answer(world.reloading.ask("uid 0"))
        assert (found.result, found.applied, found.is_under_way, found.problems) == ("applied", 2, False, ())
        assert world.audited == [("uid 0", "reload", "agentd", "applied: new")]
        assert (world.view.reload.begun, world.view.reload.applied, world.view.reload.has_failed) == (2, 2, False)


@pytest.mark.parametrize("how", ["objection", "config", "defect"])
async def test_whatever_goes_wrong_is_a_refusal(short_tmp_dir: Path, how: str) -> None:
    """With every problem in the answer, and the first in the segment; the next reload is as good as any."""
    async with World(short_tmp_dir) as world:
        if how == "objection":
            world.target.problems = ["a: b", "c: d"]
        else:
            world.target.error = ConfigError(["a: b", "c: d"]) if how == "config" else ZeroDivisionError("a: b")
        found = await world.reloading.answer(world.reloading.ask("uid 0"))
        assert (found.result, found.digest, found.refused) == ("refused", "old", 1)
        assert "a: b" in found.message
        assert len(found.problems) == (1 if how == "defect" else 2)
        assert world.view.reload.has_failed
        assert world.audited[0][3].startswith("refused: ")
        world.target.problems, world.target.error = [], None
        found = await world.reloading.answer(world.reloading.ask())
        assert (found.result, found.problems, found.message) == ("applied", (), "")


async def test_who_asks_while_one_is_under_way_gets_the_next_one(
    short_tmp_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It reads the file after he asked; and who has waited long enough is told that it goes on."""
    loop = asyncio.get_running_loop()
    may_go, reads = asyncio.Event(), []

    def read() -> Fresh:
        reads.append(1)
        asyncio.run_coroutine_threadsafe(may_go.wait(), loop).result(10)
        return fresh(f"new-{len(reads)}")

    monkeypatch.setattr(module, "RELOAD_ANSWER_S", 0.05)
    async with World(short_tmp_dir, read) as world:
        first = world.reloading.ask("one")
        found = await world.reloading.answer(first)
        assert (found.is_under_way, found.result, found.begun) == (True, "none", 1)
        second, third = world.reloading.ask("two"), world.reloading.ask("three")
        may_go.set()
        await asyncio.wait_for(asyncio.gather(first, second, third), 10)
        assert len(reads) == 2
        assert world.target.loaded.digest == "new-2"
        assert [(who, text) for who, _, _, text in world.audited] == [
            ("one", "applied: new-1"),
            ("two", "applied: new-2"),
            ("three", "applied: new-2"),
        ]


async def test_the_proxy_is_told_only_while_it_beats(short_tmp_dir: Path) -> None:
    """A pid in a segment that nobody beats in may be somebody else's by now."""
    async with World(short_tmp_dir) as world:
        with pytest.raises(AdminRefused, match="does not run"):
            world.reloading.tell_proxy()
        writer = ProxyWriter.create(f"{short_tmp_dir}/proxy.seg", "p", [], [])
        seen: list[int] = []
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(1, seen.append, os.getpid())
        try:
            writer.beat(now_ns())
            before = world.reloading.tell_proxy()
            assert (before.daemon, before.digest, before.begun) == ("proxy", "p", 0)
            await until(lambda: seen)
            writer.beat(1)
            with pytest.raises(AdminRefused, match="does not run"):
                world.reloading.tell_proxy()
        finally:
            loop.remove_signal_handler(1)
            writer.close()
        assert len(seen) == 1
