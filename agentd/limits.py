"""What an operator sees of limits and may change in them, and everything that differs from the configuration.

    ROUTE/NAME, server:NAME   in proxy.seg: seen through the view, changed in its table, at once for all workers
    agent:NAME                in this process: the lane's own bucket

How a limit counts is decided elsewhere (shared/segment_buckets.py, agentd/lane.py); who may change it, and that it
is audited, in agentd/admin.py.

Kind: IO (the segment).
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec

from agentd.lane import Lane
from shared.config.schema import AgentRateLimit, Config
from shared.errors import AdminRefused, SegmentError
from shared.metrics import L_ADMITTED, L_NOW, L_OVERFLOW, L_REFUSED
from shared.ratelimit import ONE, micro
from shared.segment import BreakerState, ProxyView
from shared.segment_limits import LimitRow, open_for_change
from shared.wire import admin as wire

AGENT = "agent:"


class LimitDesk:
    """`config`: the one that agentd runs now."""

    def __init__(
        self,
        lanes: Mapping[str, Lane],
        proxy: ProxyView,
        config: Callable[[], Config],
        clock: Callable[[], int],
    ) -> None:
        self._lanes = lanes
        self._proxy = proxy
        self._config = config
        self._clock = clock

    # --- seeing ------------------------------------------------------------------------------------

    def limits(self) -> wire.Limits:
        """Those of the proxy by row, then those of agents."""
        return wire.Limits((*self._of_proxy(), *self._of_agents()))

    def overrides(self) -> wire.Overrides:
        """Limits, then breakers."""
        found: list[wire.Override] = []
        for limit in self.limits().limits:
            if limit.is_overridden:
                for what, now, before in (
                    ("capacity", limit.capacity, limit.configured_capacity),
                    ("refill_rate", limit.refill_rate, limit.configured_refill_rate),
                ):
                    if now != before:
                        found.append(wire.Override("limit", limit.name, what, f"{before:g}", f"{now:g}", limit.is_kept))
                if not any(one.name == limit.name for one in found):  # kept, at what the configuration says anyway
                    number = f"{limit.capacity:g}"
                    found.append(wire.Override("limit", limit.name, "capacity", number, number, limit.is_kept))
        configured = {agent.name: agent.circuit_breaker for agent in self._config().agents}
        for lane in self._lanes.values():
            if lane.breaker.state is BreakerState.FORCED_OPEN:
                found.append(wire.Override("breaker", lane.name, "state", "closed", "forced_open", True))
            before_ = msgspec.structs.asdict(configured[lane.name]) if lane.name in configured else {}
            now_ = msgspec.structs.asdict(lane.breaker.settings)
            for what, number in before_.items():
                if now_[what] != number:
                    found.append(wire.Override("breaker", lane.name, what, f"{number:g}", f"{now_[what]:g}", False))
        return wire.Overrides(tuple(found))

    def _of_proxy(self) -> Iterator[wire.Limit]:
        proxy = self._proxy
        proxy.check()
        rows = proxy.limits()
        keys = {f"{route.name}/{one.name}": one.key for route in self._config().routes for one in route.rate_limits}
        counts = proxy.limit_counts(rows)
        active = proxy.active_keys(rows, self._clock())
        for row, count, keys_now in zip(rows, counts, active, strict=True):
            if row.is_in_use:
                yield _shown(row, keys.get(row.name, ""), count, keys_now)

    def _of_agents(self) -> Iterator[wire.Limit]:
        for lane in self._lanes.values():
            if lane.rate.bucket is not None:
                yield self._of_agent(lane)

    def _of_agent(self, lane: Lane) -> wire.Limit:
        now, configured = lane.settings.rate_limit, self._configured(lane.name)
        assert now is not None
        configured = configured or now
        return wire.Limit(
            name=AGENT + lane.name,
            kind="calls",
            key="agent",
            capacity=now.capacity,
            refill_rate=now.refill_rate,
            configured_capacity=configured.capacity,
            configured_refill_rate=configured.refill_rate,
            is_overridden=now != configured or lane.rate.kept is not None,
            is_kept=lane.rate.kept is not None,
            active=0,
            admitted=lane.rate.admitted,
            refused=lane.rate.refused,
            overflowed=0,
        )

    def _configured(self, agent: str) -> AgentRateLimit | None:
        return next((one.rate_limit for one in self._config().agents if one.name == agent), None)

    # --- changing ----------------------------------------------------------------------------------

    def change(self, name: str, action: wire.LimitAction, change: wire.LimitChange) -> wire.Limit:
        """Done for all workers when this returns."""
        given: dict[str, Any] = {}
        if change.capacity is not msgspec.UNSET:
            given["capacity"] = change.capacity
        if change.refill_rate is not msgspec.UNSET:
            given["refill_rate"] = change.refill_rate
        if name.startswith(AGENT):
            return self._change_agent(name, action, given, change.keep)
        try:
            # The ranges are those of the configuration.
            _checked(given, 1, 1.0)
            with open_for_change(self._proxy.path) as table:
                row = next((row for row in table.rows() if row.name == name and row.is_in_use), None)
                if row is None:
                    raise KeyError(name)
                if action == "reset":
                    table.reset(name)
                elif row.counts_uses and "refill_rate" in given:
                    raise AdminRefused(400, f"{name} counts what is under way: it has a capacity and no refill_rate")
                else:
                    capacity = given.get("capacity")
                    refill = given.get("refill_rate")
                    if capacity is not None and not row.counts_uses:
                        capacity = micro(capacity)
                    table.change(name, capacity, None if refill is None else micro(refill), change.keep)
        except KeyError:
            raise self._unknown(name) from None
        except SegmentError as error:
            raise AdminRefused(503, f"limits cannot be changed: {error}") from None
        return next(limit for limit in self.limits().limits if limit.name == name)

    def _change_agent(self, name: str, action: wire.LimitAction, given: dict[str, Any], keep: bool) -> wire.Limit:
        lane = self._lanes.get(name.removeprefix(AGENT))
        if lane is None or lane.rate.bucket is None or lane.settings.rate_limit is None:
            raise self._unknown(name)
        if action == "reset":
            lane.rate.kept = None
            rate = self._configured(lane.name) or lane.settings.rate_limit
        else:
            rate = _checked(given, lane.settings.rate_limit.capacity, lane.settings.rate_limit.refill_rate)
            lane.rate.kept = rate if keep else None
        lane.configure(msgspec.structs.replace(lane.settings, rate_limit=rate), self._clock())
        if action == "reset":
            lane.rate.bucket.fill()
        return self._of_agent(lane)

    def _unknown(self, name: str) -> AdminRefused:
        known = ", ".join(limit.name for limit in self.limits().limits) or "none; is the proxy running?"
        return AdminRefused(404, f"there is no limit {name!r}; there are: {known}"[:500])


def _checked(given: dict[str, Any], capacity: int, refill_rate: float) -> AgentRateLimit:
    """The numbers with the given ones replaced, in the ranges of the configuration."""
    try:
        return msgspec.convert({"capacity": capacity, "refill_rate": refill_rate, **given}, AgentRateLimit)
    except msgspec.ValidationError as error:
        raise AdminRefused(400, str(error)) from None


def _shown(row: LimitRow, key: str, counts: list[int], keys_now: int) -> wire.Limit:
    scale = 1 if row.counts_uses else ONE
    return wire.Limit(
        name=row.name,
        kind="uses" if row.counts_uses else "tokens",
        key=key,
        capacity=row.capacity // scale,
        refill_rate=row.refill / ONE,
        configured_capacity=row.configured_capacity // scale,
        configured_refill_rate=row.configured_refill / ONE,
        is_overridden=row.is_overridden,
        is_kept=row.is_kept,
        active=counts[L_NOW] if row.counts_uses else keys_now,
        admitted=counts[L_ADMITTED],
        refused=counts[L_REFUSED],
        overflowed=counts[L_OVERFLOW],
    )
