"""The agent `denylist`: a request that a rule fits is refused, everything else goes on.

It keeps state of one kind, the lists in force, and swaps them as a whole: a request sees the old ones or the new
ones, never a mixture. Without lists it decides nothing.

Kind: IO (an agent; what fits is decided in lists.py).
"""

import logging
from typing import Annotated, Final

from msgspec import Meta, field

import wardgate_agent
from wardgate_agent import Agent, AgentError, Allow, Block, Configure, HttpAnswer, RequestHeaders
from wardgate_agents.denylist.lists import Lists, Sources
from wardgate_agents.files import BadFile, Follower, Health, Watched
from wardgate_agents.settings import ConfigRejected, Settings, settings_of

log = logging.getLogger("wardgate_agents")
_GO_ON: Final = Allow()

Files = Annotated[list[Annotated[str, Meta(min_length=1)]], Meta(max_length=100)]


class DenylistSettings(Settings, frozen=True, kw_only=True):
    """The `config` table. Lists are paths of files."""

    networks: Files = field(default_factory=list)
    allow_networks: Files = field(default_factory=list)
    paths: Files = field(default_factory=list)
    allow_paths: Files = field(default_factory=list)
    user_agents: Files = field(default_factory=list)
    allow_user_agents: Files = field(default_factory=list)
    paths_ignore_case: bool = False
    status: Annotated[int, Meta(ge=400, le=599)] = 403
    body: str = "forbidden\n"
    headers: dict[str, str] = field(default_factory=dict)
    check_interval_s: Annotated[float, Meta(ge=0.01, le=3600)] = 1.0

    def sources(self) -> Sources:
        """The files; ConfigRejected if nothing could ever be refused."""
        for name in ("networks", "paths", "user_agents"):
            if getattr(self, f"allow_{name}") and not getattr(self, name):
                raise ConfigRejected(f"config.allow_{name}: an exception from nothing; give {name} as well")
        if not (self.networks or self.paths or self.user_agents):
            raise ConfigRejected("config: nothing would be refused; give networks, paths or user_agents")
        return Sources(
            self.networks,
            self.allow_networks,
            self.paths,
            self.allow_paths,
            self.user_agents,
            self.allow_user_agents,
            self.paths_ignore_case,
        )


class DenylistAgent(Agent):
    """Refuses what stands in files. Its configuration is DenylistSettings."""

    name = "denylist"

    def __init__(self) -> None:
        self._lists: Lists | None = None
        self._block = Block(403)
        self._files = Follower(Health(self.session))
        self._denied = self.session.metrics.counter("denied_total")
        self._rules = self.session.metrics.gauge("rules")

    async def on_configure(self, configure: Configure) -> None:
        """Read every file before anything is taken over: a configuration that is rejected changes nothing."""
        settings = settings_of(DenylistSettings, configure.config)
        sources = settings.sources()
        try:
            block = Block(settings.status, settings.body, settings.headers)
        except ValueError as error:
            raise ConfigRejected(f"config.headers: {error}") from None
        watched = Watched("lists", sources.files(), lambda: Lists(sources), self._take)
        try:
            await watched.start()
        except BadFile as error:
            raise ConfigRejected(str(error)) from None
        self._block = block
        self._files.follow([watched], settings.check_interval_s)

    def _take(self, lists: Lists) -> None:
        before = {} if self._lists is None else self._lists.counts()
        self._lists = lists
        for kind, count in lists.counts().items():
            self._rules.set(count, kind=kind)
        log.info("lists in force: %s (before: %s)", lists.counts(), before or "none")

    def on_request_headers(self, event: RequestHeaders) -> HttpAnswer:
        if self._lists is None:
            raise AgentError("not_configured", "no lists were read yet")
        found = self._lists.find(event)
        if found is None:
            return _GO_ON
        kind, where = found
        self._denied.inc(kind=kind)
        return self._block.audit(tags=("denylist", kind), rule_ids=where)


def main() -> int:
    """`wardgate-agent-denylist`."""
    return wardgate_agent.main(DenylistAgent)
