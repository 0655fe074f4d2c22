"""Decides when `wardgate run` starts, restarts and stops its children, and when it gives up.

                    all ready                    stop asked, or the proxy ended
    STARTING -------------------------> RUNNING ------------------------------> STOPPING --> DONE
        |  stop asked, or any child ended                                          ^  |
        +--------------------------------------------------------------------------+  | asked again
                                                                                      v
                                                                                   KILLING --> DONE

Going down: the proxy first (its workers finish what they have, asking agentd to the end), then the
agents, then agentd, the application last; each stage has its patience, together less than 5 s.

No processes, signals or clocks here: events in, actions out.

Kind: pure.
"""

from enum import Enum, auto
from typing import Final, Literal

import msgspec

from proxy.roster import respawn_wait_ns
from shared.clock import MS, S
from shared.defaults import RUN_STARTUP_S, SHORT_LIFE_MS
from shared.errors import IllegalTransition


class Role(Enum):
    """What a child is; decides the order of going down and whether it is started again."""

    UPSTREAM = auto()
    AGENTD = auto()
    PROXY = auto()
    AGENT = auto()


class Phase(Enum):
    """Where the whole stands."""

    STARTING = auto()
    RUNNING = auto()
    STOPPING = auto()
    KILLING = auto()
    DONE = auto()


class Event(Enum):
    """What moves the phase."""

    ALL_READY = auto()
    LOST = auto()  # a child without which there is no use in going on
    STOP = auto()
    ALL_GONE = auto()


TRANSITIONS: Final = {
    (Phase.STARTING, Event.ALL_READY): Phase.RUNNING,
    (Phase.STARTING, Event.LOST): Phase.STOPPING,
    (Phase.STARTING, Event.STOP): Phase.STOPPING,
    (Phase.RUNNING, Event.LOST): Phase.STOPPING,
    (Phase.RUNNING, Event.STOP): Phase.STOPPING,
    (Phase.STOPPING, Event.STOP): Phase.KILLING,
    (Phase.STOPPING, Event.ALL_GONE): Phase.DONE,
    (Phase.KILLING, Event.STOP): Phase.KILLING,
    (Phase.KILLING, Event.ALL_GONE): Phase.DONE,
}

Force = Literal["term", "quit", "kill"]
# Stage by stage: what is sent, and how long it is given before the next.
DOWN: Final[tuple[tuple[Role, tuple[tuple[Force, int], ...]], ...]] = (
    (Role.PROXY, (("term", 2_900 * MS), ("quit", 400 * MS), ("kill", 1 * S))),
    (Role.AGENT, (("term", 400 * MS), ("kill", 1 * S))),
    (Role.AGENTD, (("term", 600 * MS), ("kill", 1 * S))),
    (Role.UPSTREAM, (("term", 300 * MS), ("kill", 1 * S))),
)


class Start(msgspec.Struct, frozen=True):
    """Start this child."""

    label: str


class Send(msgspec.Struct, frozen=True):
    """Send a signal: term and quit to the process, kill to its whole group."""

    label: str
    force: Force


class Say(msgspec.Struct, frozen=True):
    """Tell the user."""

    text: str
    is_bad: bool = False


class Ready(msgspec.Struct, frozen=True):
    """Show the banner. `missing`: what does not answer yet and need not be waited for."""

    missing: tuple[str, ...] = ()


Action = Start | Send | Say | Ready


class Child(msgspec.Struct):
    """One child as it is now."""

    label: str
    role: Role
    is_up: bool = False
    is_ready: bool = False
    started_ns: int = 0
    short_lives: int = 0
    start_at_ns: int = 0  # when to start it again; 0 = not due


class Supervision:
    """Feed it what happened, do what it answers. `exit_code` counts once `phase` is DONE."""

    def __init__(self, children: list[tuple[str, Role]], startup_s: float = RUN_STARTUP_S) -> None:
        self.phase = Phase.STARTING
        self.exit_code = 0
        self._children = {label: Child(label, role) for label, role in children}
        self._startup_ns = int(startup_s * S)
        self._give_up_ns = 0
        self._stage = -1
        self._step = 0
        self._step_ends_ns = 0

    def begin(self, now: int) -> list[Action]:
        """Start everything, in the order given."""
        self._give_up_ns = now + self._startup_ns
        return [self._start(child, now) for child in self._children.values()]

    def ready(self, label: str, now: int) -> list[Action]:
        """A child serves, an agent is connected."""
        child = self._children[label]
        if child.is_ready or not child.is_up:
            return []
        child.is_ready = True
        if self.phase is Phase.STARTING and all(c.is_ready for c in self._children.values()):
            self._move(Event.ALL_READY)
            return [Ready()]
        return []

    def ended(self, label: str, how: str, now: int) -> list[Action]:
        """A child is gone; `how` says in words with what code or by which signal."""
        child = self._children[label]
        lived_ns = now - child.started_ns
        child.is_up = child.is_ready = False
        if self.phase in (Phase.STOPPING, Phase.KILLING):
            return self._go_down(now)
        if self.phase is Phase.STARTING:
            return [Say(f"{label} {how} before everything was ready", True), *self._lose(now)]
        if child.role is Role.PROXY:
            return [Say(f"{label} {how}: nothing to run without it", True), *self._lose(now)]
        child.short_lives = 1 if lived_ns >= SHORT_LIFE_MS * MS else child.short_lives + 1
        wait = respawn_wait_ns(child.short_lives)
        child.start_at_ns = now + wait
        when = f"in {wait / S:.1f} s"
        return [Say(f"{label} {how}; starting it again {when}", True)]

    def stop(self, why: str, now: int) -> list[Action]:
        """Asked to stop; asked again means at once."""
        if self.phase is Phase.DONE:
            return []
        if self._move(Event.STOP) is Phase.KILLING:
            up = [child for child in self._children.values() if child.is_up]
            return [Say("killing what is left"), *(Send(child.label, "kill") for child in up)]
        return [Say(f"{why}: stopping (again to kill)"), *self._go_down(now)]

    def tick(self, now: int) -> list[Action]:
        """Time went by: a restart is due, a stage's patience is over, or the start takes too long."""
        if self.phase is Phase.STARTING and now >= self._give_up_ns:
            return self._out_of_patience(now)
        if self.phase is Phase.RUNNING:
            return self._restart(now)
        if self.phase is Phase.STOPPING and now >= self._step_ends_ns:
            return self._next_step(now)
        return []

    def next_ns(self) -> int | None:
        """When `tick` is due at the latest."""
        if self.phase is Phase.STARTING:
            return self._give_up_ns
        if self.phase is Phase.RUNNING:
            return min((c.start_at_ns for c in self._children.values() if c.start_at_ns), default=None)
        return self._step_ends_ns if self.phase is Phase.STOPPING else None

    # --- inside -----------------------------------------------------------------------------------

    def _move(self, event: Event) -> Phase:
        try:
            self.phase = TRANSITIONS[self.phase, event]
        except KeyError:
            raise IllegalTransition(f"{event.name} while {self.phase.name}") from None
        return self.phase

    def _start(self, child: Child, now: int) -> Start:
        child.is_up = True
        child.started_ns = now
        child.start_at_ns = 0
        return Start(child.label)

    def _restart(self, now: int) -> list[Action]:
        due = [c for c in self._children.values() if c.start_at_ns and now >= c.start_at_ns]
        return [self._start(child, now) for child in due]

    def _lose(self, now: int) -> list[Action]:
        self.exit_code = 1
        self._move(Event.LOST)
        return self._go_down(now)

    def _out_of_patience(self, now: int) -> list[Action]:
        """Agents may be late for ever; without the rest there is nothing to show."""
        late = [c for c in self._children.values() if not c.is_ready]
        if all(child.role is Role.AGENT for child in late):
            self._move(Event.ALL_READY)
            return [Ready(tuple(child.label for child in late))]
        names = ", ".join(child.label for child in late)
        return [Say(f"not ready after {self._startup_ns / S:.0f} s: {names}", True), *self._lose(now)]

    def _go_down(self, now: int) -> list[Action]:
        """The next stage that has somebody left in it, when the one before is empty."""
        if not any(child.is_up for child in self._children.values()):
            self._move(Event.ALL_GONE)
            return []
        if self.phase is Phase.KILLING or (self._stage >= 0 and self._left()):
            return []
        while self._stage < 0 or not self._left():
            self._stage += 1
        self._step = -1
        return self._next_step(now)

    def _next_step(self, now: int) -> list[Action]:
        steps = DOWN[self._stage][1]
        self._step = min(self._step + 1, len(steps) - 1)
        force, patience_ns = steps[self._step]
        self._step_ends_ns = now + patience_ns
        actions: list[Action] = []
        for child in self._left():
            if force != "term":
                actions.append(Say(f"{child.label} does not stop: {force}", True))
            actions.append(Send(child.label, force))
        return actions

    def _left(self) -> list[Child]:
        role = DOWN[self._stage][0]
        return [child for child in self._children.values() if child.is_up and child.role is role]
