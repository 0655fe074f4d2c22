"""Shows the lanes to the other processes, and keeps what operators decided over a restart.

    lanes      --> agentd.seg      capabilities, live instances, breaker mirror: at once on every change
    breakers   --> breakers.json   names of the forced-open ones: a file because the segment dies with us

A worker answers from the mirror without asking, so a change that is not published is a change that did
not happen for it. Which row an agent has is decided here, and nothing else.

Kind: IO.
"""

import logging
import os
from collections.abc import Callable, Mapping
from typing import Protocol

import msgspec

from shared.segment import AgentdWriter, AgentRow, BreakerState

_log = logging.getLogger("agentd.publish")


class _Breaker(Protocol):
    @property
    def state(self) -> BreakerState: ...
    @property
    def retry_at_ns(self) -> int: ...


class _Lane(Protocol):
    """What is shown of a lane."""

    @property
    def breaker(self) -> _Breaker: ...
    @property
    def live_instances(self) -> int: ...


class Kept(msgspec.Struct, frozen=True):
    """breakers.json."""

    forced_open: tuple[str, ...] = ()


class Publisher:
    """`lanes`: the dispatcher's own mapping, read at every call. `hello_mask(agent)`: the events of its last
    HELLO, 0 = none seen yet."""

    def __init__(
        self,
        writer: AgentdWriter,
        lanes: Mapping[str, _Lane],
        hello_mask: Callable[[str], int],
        breakers_file: str,
    ) -> None:
        self.problem = ""  # why breakers.json could not be written; "" = it says what is
        self.rows: dict[str, AgentRow] = {}
        self._writer = writer
        self._lanes = lanes
        self._hello_mask = hello_mask
        self._file = breakers_file
        self._places: list[str] = []

    # --- segment ------------------------------------------------------------------------------------

    def agent_changed(self, name: str) -> None:
        """One lane's breaker, instances or capabilities changed."""
        if name in self.rows and name in self._lanes:
            self._put(self._places.index(name), name)

    def refresh(self) -> None:
        """All lanes, also new and gone ones; writes only what differs."""
        names = list(self._lanes)
        gone = len(names) < len(self._places)
        self._places = names
        self.rows = {name: row for name, row in self.rows.items() if name in self._lanes}
        for place, name in enumerate(names):
            self._put(place, name)
        if gone:
            self._writer.clear_from(len(names))

    def close(self) -> None:
        """Leave: the segment goes, and what lanes say from now on is shown to nobody."""
        self._places = []
        self.rows = {}
        self._lanes = {}
        self._writer.close()

    def _put(self, place: int, name: str) -> None:
        lane = self._lanes[name]
        breaker = lane.breaker
        row = AgentRow(name, self._hello_mask(name), lane.live_instances, breaker.state, breaker.retry_at_ns)
        if self.rows.get(name) != row:
            self.rows[name] = row
        self._writer.put_agent(place, row)

    # --- what survives ------------------------------------------------------------------------------

    def kept(self) -> tuple[str, ...]:
        """The breakers that an operator had opened when agentd last ran."""
        try:
            with open(self._file, "rb") as file:
                return msgspec.json.decode(file.read(), type=Kept).forced_open
        except FileNotFoundError:
            return ()
        except (OSError, msgspec.MsgspecError) as error:
            # Starting closed could ask an agent that an operator has locked out; not starting stops everything.
            _log.error("forced-open breakers of the last run are unknown: %s: %s", self._file, error)
            self.problem = f"{self._file} is unreadable, forced-open breakers of the last run are unknown"
            return ()

    def keep(self) -> None:
        """Write down which breakers are forced open now."""
        forced = [name for name, lane in self._lanes.items() if lane.breaker.state is BreakerState.FORCED_OPEN]
        # A reload may have taken an agent away for a while: what was said of it holds when it is back.
        forced += [name for name in self.kept() if name not in self._lanes]
        draft = f"{self._file}.new"
        try:
            fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            with open(fd, "wb") as file:
                file.write(msgspec.json.encode(Kept(tuple(forced))))
            os.replace(draft, self._file)
        except OSError as error:
            _log.error("forced-open breakers would not survive a restart: %s: %s", self._file, error.strerror)
            self.problem = f"{self._file} cannot be written: {error.strerror}"
        else:
            self.problem = ""
