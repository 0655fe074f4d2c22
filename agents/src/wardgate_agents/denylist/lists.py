"""All the lists of one configuration, read from their files, and the first rule that turns a request away.

An exception is about its own kind only: a path that everybody may have does not let a network in.

Kind: IO (reads the files; the rules are pure).
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeVar

from wardgate_agent import AgentError, RequestHeaders
from wardgate_agents.denylist.addresses import Networks
from wardgate_agents.denylist.paths import Paths, normalised
from wardgate_agents.denylist.patterns import TOO_LONG
from wardgate_agents.denylist.user_agents import UserAgents
from wardgate_agents.files import BadFile, lines_of

R = TypeVar("R")
_Rows = Iterator[tuple[str, str]]


class Sources(NamedTuple):
    """The files of every list."""

    networks: Sequence[str] = ()
    allow_networks: Sequence[str] = ()
    paths: Sequence[str] = ()
    allow_paths: Sequence[str] = ()
    user_agents: Sequence[str] = ()
    allow_user_agents: Sequence[str] = ()
    ignores_case: bool = False  # of paths

    def files(self) -> list[str]:
        """Every file, in order."""
        return [path for field in self if not isinstance(field, bool) for path in field]


class Lists:
    """What is turned away, and what is not although it stands there."""

    def __init__(self, sources: Sources) -> None:
        """Raises BadFile, with file and line."""
        case = sources.ignores_case
        self.networks = _read(Networks, _networks(sources.networks))
        self.allow_networks = _read(Networks, _networks(sources.allow_networks))
        self.paths = _read(lambda rows: Paths(rows, case), _rules(sources.paths))
        self.allow_paths = _read(lambda rows: Paths(rows, case), _rules(sources.allow_paths))
        self.user_agents = _read(UserAgents, _rules(sources.user_agents))
        self.allow_user_agents = _read(UserAgents, _rules(sources.allow_user_agents))

    def counts(self) -> dict[str, int]:
        """How many rules of each kind there are."""
        return {
            "network": self.networks.count,
            "path": self.paths.count,
            "user_agent": self.user_agents.count,
        }

    def find(self, event: RequestHeaders) -> tuple[str, str] | None:
        """(kind, file:line) of the rule that turns this request away; None if none does."""
        if self.networks:
            try:
                where = self.networks.find(event.client_ip)
                if where is not None and self.allow_networks.find(event.client_ip) is None:
                    return "network", where
            except ValueError:  # who cannot be looked up cannot be let through
                raise AgentError("no_address", f"client_ip {event.client_ip!r} is no IP address") from None
        if self.paths:
            path = normalised(event.path)
            where = self.paths.find(path)
            if where is not None and not _fits(self.allow_paths.find(path)):
                return "path", where
        if self.user_agents:
            for value in event.headers.get_all("user-agent") or ("",):  # each: a good one excuses no bad one
                where = self.user_agents.find(value)
                if where is not None and not _fits(self.allow_user_agents.find(value)):
                    return "user_agent", where
        return None


def _fits(exception: str | None) -> bool:
    """What is too long to be looked at is refused by a rule, and excused by none."""
    return exception is not None and exception is not TOO_LONG


def _read(make: Callable[[_Rows], R], rows: _Rows) -> R:
    try:
        return make(rows)
    except ValueError as error:  # has file and line in front
        raise BadFile(str(error)) from None


def _rules(files: Sequence[str]) -> _Rows:
    for path in files:
        for number, text in lines_of(path):
            yield text, f"{path}:{number}"


def _networks(files: Sequence[str]) -> _Rows:
    """Published lists have remarks behind the network as well: `192.0.2.0/24 ; SBL123`."""
    for path in files:
        for number, text in lines_of(path):
            network = text.partition("#")[0].partition(";")[0].strip()
            if network:
                yield network, f"{path}:{number}"
