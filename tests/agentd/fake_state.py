"""An agentd with one agent, "waf", for tests of the admin API."""

from collections.abc import Iterator
from itertools import repeat

from shared.errors import AdminRefused
from shared.wire import admin as wire

BREAKER = wire.Breaker("waf", "closed", 0, 0, 0, None, 0, 5, 2, 30.0, 60.0, 1)

LIMIT = wire.Limit("r/a", "tokens", "global", 1, 2.0, 1, 2.0, False, False, 3, 4, 5, 0)


class FakeState:
    """An agentd with one agent, "waf"."""

    def __init__(self) -> None:
        self.status = wire.Status.HEALTHY
        self.is_ready = True
        self.changes: list[tuple[str, str, wire.BreakerChange]] = []
        self.limited: list[tuple[str, str, wire.LimitChange]] = []
        self.audited: list[tuple[str, ...]] = []
        self.drained: list[tuple[str, wire.DrainRequest]] = []
        self.reloaded = wire.Reload("agentd", "d", begun=1, result="applied", applied=1)

    def health(self) -> wire.Health:
        component = wire.Component("agentd", self.status, "pid 1", True)
        return wire.Health(self.status, self.is_ready, "1", (component,))

    def live(self) -> wire.Live:
        return wire.Live("live", 1, 2.0)

    def metrics(self, accept: str) -> tuple[str, Iterator[bytes]]:
        return "text/plain; version=0.0.4; charset=utf-8", repeat(b"wardgate_up 1\n", 100)

    def each_agent(self) -> Iterator[wire.Agent]:
        return iter(())

    def breakers(self) -> tuple[wire.Breaker, ...]:
        return (BREAKER,)

    def change_breaker(self, agent: str, action: wire.BreakerAction, change: wire.BreakerChange) -> wire.Breaker:
        if agent == "explode":
            raise ZeroDivisionError
        if agent != "waf":
            raise AdminRefused(404, f"there is no agent {agent!r}")
        self.changes.append((agent, action, change))
        return BREAKER

    def reloads(self) -> wire.Reloads:
        return wire.Reloads(self.reloaded, None)

    async def reload(self, who: str) -> wire.Reload:
        return self.reloaded

    def reload_proxy(self) -> wire.Reload:
        raise AdminRefused(409, "the proxy does not run")

    def drain(self, agent: str, request: wire.DrainRequest) -> wire.Drains:
        if agent != "waf":
            raise AdminRefused(404, f"there is no agent {agent!r}")
        self.drained.append((agent, request))
        return wire.Drains((wire.Drain(agent, request.instance or "i1", "s", "draining", 1, 0, 30_000),))

    def drains(self) -> wire.Drains:
        return wire.Drains(())

    def limits(self) -> wire.Limits:
        return wire.Limits((LIMIT,))

    def overrides(self) -> wire.Overrides:
        return wire.Overrides(())

    def change_limit(self, name: str, action: wire.LimitAction, change: wire.LimitChange) -> wire.Limit:
        if name != "r/a":
            raise AdminRefused(404, f"there is no limit {name!r}")
        self.limited.append((name, action, change))
        return LIMIT

    def audit_change(self, who: str, what: str, target: str, text: str) -> None:
        self.audited.append((who, what, target, text))
