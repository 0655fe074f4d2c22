"""An agentd with one agent, "waf", for tests of the admin API."""

from shared.errors import AdminRefused
from shared.wire import admin as wire

BREAKER = wire.Breaker("waf", "closed", 0, 0, 0, None, 0, 5, 2, 30.0, 60.0, 1)


class FakeState:
    """An agentd with one agent, "waf"."""

    def __init__(self) -> None:
        self.status = wire.Status.HEALTHY
        self.is_ready = True
        self.changes: list[tuple[str, str, wire.BreakerChange]] = []
        self.audited: list[tuple[str, ...]] = []

    def health(self) -> wire.Health:
        component = wire.Component("agentd", self.status, "pid 1", True)
        return wire.Health(self.status, self.is_ready, "1", (component,))

    def live(self) -> wire.Live:
        return wire.Live("live", 1, 2.0)

    def metrics(self, accept: str) -> tuple[str, bytes]:
        return "text/plain; version=0.0.4; charset=utf-8", b"wardgate_up 1\n" * 100

    def agents(self) -> wire.Agents:
        return wire.Agents(())

    def breakers(self) -> tuple[wire.Breaker, ...]:
        return (BREAKER,)

    def change_breaker(self, agent: str, action: wire.BreakerAction, change: wire.BreakerChange) -> wire.Breaker:
        if agent == "explode":
            raise ZeroDivisionError
        if agent != "waf":
            raise AdminRefused(404, f"there is no agent {agent!r}")
        self.changes.append((agent, action, change))
        return BREAKER

    def audit_change(self, who: str, what: str, target: str, text: str) -> None:
        self.audited.append((who, what, target, text))
