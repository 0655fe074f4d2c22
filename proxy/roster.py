"""Decides which workers to start, to drain and to kill.

One function from what is (the members, as their slots say) to what to do next; the arbiter asks it on
every turn and does what it says. So a reload, a crash, a recycling worker and a changed number of
workers are the same question, and nothing ever waits inside the arbiter.

    a worker's life:  STARTING --> READY --> DRAINING --> gone
                                     |          ^
                                     +-- told --+  by a reload, by a smaller number, or because it is spent
                                                   (server.max_requests) and its successor serves

No signals, processes or segments here.

Kind: pure.
"""

from collections.abc import Iterable

import msgspec

from shared.clock import MS
from shared.defaults import RESPAWN_MAX_MS, RESPAWN_MS


class Member(msgspec.Struct):
    """One worker as the arbiter knows it. `generation` is the accepted config it was forked with."""

    pid: int
    age: int
    generation: int
    slot: int
    spawned_ns: int
    is_ready: bool = False
    is_spent: bool = False  # has served its max_requests: goes on until somebody has taken its place
    was_ready: bool = False
    drain_ns: int = 0  # since when it drains, told by us or by somebody else; 0 = not
    is_killed: bool = False


class Step(msgspec.Struct, frozen=True):
    """What to do now. `is_settled`: the current generation is complete and serves."""

    spawn: int
    drain: tuple[int, ...]
    kill: tuple[int, ...]
    is_settled: bool


def decide(members: Iterable[Member], wanted: int, generation: int, free_slots: int, now: int, grace_ns: int) -> Step:
    """The next step towards `wanted` ready workers of `generation`.

    Draining workers do not count: a stream that outlives its worker's `max_requests` must not delay the
    successor (7.3 s seen, 2026-11). Spent ones serve until theirs is ready: one that left by itself cost a
    single worker half its requests (max_requests = 1,000, 2026-11). Workers of another generation are told to
    drain only when the current one is complete, so that a config whose workers cannot start takes nobody's place.
    """
    members = sorted(members, key=lambda member: member.age)
    all_current = [m for m in members if m.generation == generation and not m.drain_ns]
    spent = [m for m in all_current if m.is_spent]
    current = [m for m in all_current if not m.is_spent]
    ready = sum(m.is_ready for m in current)
    is_settled = ready + len(spent) >= wanted
    drain = [m.pid for m in current[: max(0, len(current) - wanted)]]
    drain += [m.pid for m in spent[: max(0, ready + len(spent) - wanted)]]
    if is_settled:
        drain += [m.pid for m in members if m.generation != generation and not m.drain_ns]
    kill = tuple(m.pid for m in members if m.drain_ns and now - m.drain_ns > grace_ns)
    spawn = min(max(0, wanted - len(current)), free_slots)
    return Step(spawn, tuple(drain), kill, is_settled)


def respawn_wait_ns(short_lives: int) -> int:
    """How long to wait before the next start after so many processes in a row that died young. No last attempt."""
    if not short_lives:
        return 0
    return min(RESPAWN_MS << min(short_lives - 1, 10), RESPAWN_MAX_MS) * MS
