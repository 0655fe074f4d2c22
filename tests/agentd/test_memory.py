"""agentd/memory.py: who fills our memory with a message that never ends is found, and nobody else."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest

from agentd.daemon import Daemon
from agentd.memory import MemoryGuard, Suspect, resident_bytes, trim
from shared.clock import MS
from shared.defaults import MEMORY_LOOK_MS, MEMORY_QUIET_MS, MEMORY_SETTLE_MS

MIB = 1 << 20


class Guarded:
    """A guard with a hand on the memory."""

    def __init__(self) -> None:
        self.rss = 100 * MIB
        self.accounted = 0
        self.suspects: dict[str, Suspect] = {}
        self.cut: list[str] = []
        self.given_back = 0
        self.guard = MemoryGuard(
            slack_bytes=64 * MIB,
            rss_bytes=lambda: self.rss,
            accounted_bytes=lambda: self.accounted,
            give_back=self.give_back,
        )
        self.guard.watch(lambda: self.suspects.values())
        self.now = 1_000_000_000_000

    def give_back(self) -> None:
        self.given_back += 1

    def peer(self, name: str, unread: int = 200_000, seen_ms_ago: int = 900) -> None:
        """As it looks from now on."""

        def cut() -> None:
            self.cut.append(name)
            del self.suspects[name]

        self.suspects[name] = Suspect(unread, self.now - seen_ms_ago * MS, cut, name)

    def look(self, after_ms: int = MEMORY_LOOK_MS) -> None:
        self.now += after_ms * MS
        self.guard.look(self.now)

    def looks(self, ms: int) -> None:
        """For so long."""
        for _ in range(ms // MEMORY_LOOK_MS):
            self.look()


@pytest.fixture
def guarded() -> Guarded:
    made = Guarded()
    made.look()
    return made


class TestMemoryGuard:
    def test_growth_with_a_suspect(self, guarded: Guarded) -> None:
        guarded.peer("endless")
        guarded.peer("idle", unread=0)
        guarded.looks(200)
        assert guarded.cut == []
        guarded.rss += 65 * MIB
        guarded.looks(MEMORY_QUIET_MS + 2 * MEMORY_LOOK_MS)
        assert (guarded.cut, guarded.guard.cuts) == (["endless"], 1)

    def test_a_large_message_counts_from_its_beginning(self, guarded: Guarded) -> None:
        """A peer that was idle for long and sends a large message now is not the one that has sent for longer."""
        guarded.rss += 40 * MIB
        guarded.peer("endless", seen_ms_ago=100)
        guarded.looks(60)
        guarded.rss += 40 * MIB
        guarded.peer("large", seen_ms_ago=5_000)
        guarded.look()
        assert guarded.cut == ["endless"]

    def test_a_busy_peer_is_no_suspect(self, guarded: Guarded) -> None:
        """Whoever finishes messages sends a lot, but none without end."""
        guarded.rss += 70 * MIB
        for _ in range(20):
            guarded.peer("busy", seen_ms_ago=10)
            guarded.look()
        assert guarded.cut == []

    def test_one_at_a_time_unless_it_is_too_much(self, guarded: Guarded) -> None:
        for name in ("one", "two", "three"):
            guarded.peer(name)
        guarded.rss += 70 * MIB
        guarded.looks(80)
        assert guarded.cut == ["one"]
        guarded.look()  # what was freed may be on its way
        assert guarded.cut == ["one"]
        guarded.rss += 70 * MIB
        guarded.look()
        assert guarded.cut == ["one", "two", "three"]

    def test_growth_goes_on_after_a_cut(self, guarded: Guarded) -> None:
        guarded.peer("one")
        guarded.peer("two")
        guarded.rss += 70 * MIB
        guarded.looks(80)
        guarded.looks(MEMORY_QUIET_MS + MEMORY_LOOK_MS)
        assert guarded.cut == ["one", "two"]

    def test_what_was_freed_is_given_back(self, guarded: Guarded) -> None:
        guarded.peer("one")
        guarded.rss += 70 * MIB
        guarded.looks(200)
        assert (guarded.cut, guarded.given_back) == (["one"], 1)

    def test_growth_that_is_accounted_for(self, guarded: Guarded) -> None:
        guarded.peer("slow")
        guarded.rss += 200 * MIB
        guarded.accounted = 190 * MIB
        guarded.looks(400)
        assert guarded.cut == []

    def test_lasting_growth_without_a_suspect_is_ours(self, guarded: Guarded) -> None:
        """The new level becomes the ground: the next 64 MiB count from there."""
        guarded.rss += 100 * MIB
        guarded.looks(MEMORY_SETTLE_MS + 100)
        guarded.peer("endless")
        guarded.rss += 60 * MIB
        guarded.looks(200)
        assert guarded.cut == []
        guarded.rss += 5 * MIB
        guarded.looks(200)
        assert guarded.cut == ["endless"]

    def test_a_pause_between_two_of_them_moves_no_ground(self, guarded: Guarded) -> None:
        """Whoever dials again after a cut does not raise the level at which it is cut."""
        guarded.rss += 100 * MIB
        guarded.looks(MEMORY_SETTLE_MS // 2)
        guarded.peer("endless")
        guarded.looks(MEMORY_QUIET_MS + 2 * MEMORY_LOOK_MS)
        assert guarded.cut == ["endless"]

    def test_ground_sinks_with_memory_given_back(self, guarded: Guarded) -> None:
        guarded.rss -= 50 * MIB
        guarded.look()
        guarded.peer("endless")
        guarded.rss += 65 * MIB
        guarded.looks(100)
        assert guarded.cut == ["endless"]

    def test_nobody_is_blamed_for_our_standing_still(self, guarded: Guarded) -> None:
        """After a pause of ours everybody has unread bytes and an old last message; the next looks decide."""
        guarded.rss += 100 * MIB
        guarded.peer("anybody", seen_ms_ago=0)
        guarded.look(after_ms=5_000)
        guarded.look()
        assert guarded.cut == []
        guarded.looks(MEMORY_QUIET_MS + MEMORY_LOOK_MS)
        assert guarded.cut == ["anybody"]

    def test_forgotten_sources_are_not_asked(self) -> None:
        guard = MemoryGuard()
        source: Callable[[], list[Suspect]] = list
        guard.watch(source)
        guard.forget(source)
        guard.look(1)

    def test_trim(self) -> None:
        trim()


def test_resident() -> None:
    assert 1 << 20 < resident_bytes() < 1 << 40


def test_what_others_do_not_read_is_nobodys_growth() -> None:
    """Bodies are here twice; what waits for a stopped worker or agent must not cost a good agent its connection."""
    daemon = SimpleNamespace(
        _dispatcher=SimpleNamespace(body_bytes=3 * MIB),
        _v2=SimpleNamespace(unsent_bytes=50 * MIB),
        _ingress=SimpleNamespace(all_unsent_bytes=100 * MIB),
    )
    assert Daemon._accounted_bytes(daemon) == (2 * 3 + 50 + 100) * MIB  # type: ignore[arg-type]
