"""Which live instance of an agent gets a call, and who waits for which.

An exchange stays with the instance that got its first event (it may keep state of the request); if that
one goes, the exchange is not moved, nor picked up again when the instance comes back. For everything else
the least busy one is chosen, healthy before degraded before unhealthy, in turn where that is a tie.

An instance that let a call time out looks idle, since the call's permit is back. It is asked only when nobody else
can be, until it shows that it lives (a PONG, a late verdict); then with one call at a time until it gives a verdict
in time. Each trial that fails doubles the signs of life asked for, up to OWES_MAX: one that answers pings and
nothing else costs its agent a call every half minute.

Kind: pure.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import Any, Final

from agentd.call import Call, Instance
from shared.defaults import OWES_MAX

ExchangeKey = tuple[bytes, int]  # worker identity, exchange id

# What HEALTH said; whoever said draining gets nothing new, like one that is_draining.
_RANK: Final[Mapping[str, float]] = {"healthy": 0.0, "degraded": 10.0, "unhealthy": 20.0}
_AVOIDED = 100.0


class Pool:
    """The live instances of one agent. Never holds more pins than there are exchanges in flight."""

    __slots__ = ("_turn", "instances", "pins")

    def __init__(self) -> None:
        self.instances: list[Instance] = []
        self.pins: dict[ExchangeKey, Instance | None] = {}  # None: its instance is gone
        self._turn = 0

    def add(self, instance: Instance) -> None:
        """It is live from now on."""
        instance.is_live = True
        self.instances.append(instance)

    def remove(self, instance: Instance) -> None:
        """It is gone, and so are the exchanges pinned to it, until they end."""
        instance.is_live = False
        self.instances.remove(instance)
        if instance.pins:
            for key, pinned in self.pins.items():
                if pinned is instance:
                    self.pins[key] = None
            instance.pins = 0

    def choose(self, without: Collection[Instance] = ()) -> Instance | None:
        """The instance for a call that is not pinned; None = nobody has a free place now.

        `without`: instances that were found unable to take this call.
        """
        instances = self.instances
        if len(instances) == 1:
            only = instances[0]
            is_able = len(only.calls) < only.limit and not only.is_paused and not only.is_draining and not without
            return only if is_able and only.health != "draining" else None
        best: Instance | None = None
        best_score = 0.0
        self._turn += 1
        first = self._turn % len(instances) if instances else 0
        for instance in instances[first:] + instances[:first]:
            if not is_free(instance) or instance in without:
                continue
            score = _RANK.get(instance.health, 20.0) + len(instance.calls) / instance.limit + instance.load
            if instance.owes and (instance.owes > 1 or instance.calls):
                score += _AVOIDED
            if best is None or score < best_score:
                best, best_score = instance, score
        return best

    def somebody(self) -> Instance | None:
        """An instance for an event that takes no place in it and belongs to none; None = all are paused or leave."""
        able = [one for one in self.instances if not one.is_paused and not one.is_draining]
        return min(able, key=lambda one: len(one.calls) / one.limit, default=None)

    def let_down(self, instance: Instance) -> bool:
        """A call to it timed out. True = it was known to hang, and others are trusted: nothing new about the agent."""
        owes = instance.owes
        if owes > 1:
            pass
        elif owes:
            instance.debt = min(2 * instance.debt, OWES_MAX)
            instance.owes = instance.debt + 1
        else:
            instance.debt, instance.owes = 1, 2
            return False
        return any(not other.owes for other in self.instances)

    def follow(self, call: Call) -> bool:
        """Note which instance the call's exchange belongs to, if any; False = that one is gone."""
        assert call.exchange_key is not None
        call.instance = self.pins.get(call.exchange_key)
        return call.instance is not None or call.exchange_key not in self.pins

    def pin(self, key: ExchangeKey, instance: Instance) -> None:
        """The exchange's events go to this instance from now on; the first pin stays."""
        if key not in self.pins:
            self.pins[key] = instance
            instance.pins += 1

    def unpin(self, key: ExchangeKey) -> Instance | None:
        """The exchange has ended; the live instance it was pinned to."""
        instance = self.pins.pop(key, None)
        if instance is not None:
            instance.pins -= 1
        return instance

    def snapshot(self) -> list[dict[str, Any]]:
        """The live instances, for the admin API."""
        return [
            {
                "name": instance.name,
                "in_flight": len(instance.calls),
                "limit": instance.limit,
                "pinned": instance.pins,
                "is_paused": instance.is_paused,
                "is_draining": instance.is_draining,
                "health": instance.health,
                "load": instance.load,
            }
            for instance in self.instances
        ]


class Queue:
    """Calls without a permit, oldest first: in one row for any instance (None), in one more for each
    instance that exchanges are pinned to, so that a busy instance holds up only what must go there."""

    __slots__ = ("_rows", "body_bytes", "length")

    def __init__(self) -> None:
        self._rows: dict[Instance | None, dict[int, Call]] = {}
        self.length = 0
        self.body_bytes = 0

    def __iter__(self) -> Iterator[Call]:
        for row in self._rows.values():
            yield from row.values()

    def add(self, call: Call) -> None:
        """At the end of the row of `call.instance`."""
        self._rows.setdefault(call.instance, {})[call.number] = call
        self.length += 1
        if call.body is not None:
            self.body_bytes += len(call.body)

    def has_room(self, call: Call, max_calls: int, max_body_bytes: int) -> bool:
        """Whether it may wait. What needs no answer gets half the queue: no request shall be refused for it.

        Bodies that wait are bounded as those are that were sent; one alone always may.
        """
        if call.asked.is_told:
            return 2 * self.length < max_calls
        if call.body is not None and self.length and self.body_bytes + len(call.body) > max_body_bytes:
            return False
        return self.length < max_calls

    def remove(self, call: Call) -> None:
        """It has its turn, or nobody waits for it any more."""
        row = self._rows[call.instance]
        del row[call.number]
        if not row:
            del self._rows[call.instance]
        self.length -= 1
        if call.body is not None:
            self.body_bytes -= len(call.body)

    def row(self, instance: Instance | None) -> list[Call]:
        """Who waits for this one (None: for anyone)."""
        return list(self._rows.get(instance, {}).values())

    def has_row(self, instance: Instance | None) -> bool:
        """Whether somebody waits for this one (None: for anyone)."""
        return instance in self._rows

    def head(self, pool: Pool) -> Call | None:
        """The oldest call for which there is a free place."""
        found: Call | None = None
        for instance, row in self._rows.items():
            if instance is None:
                if pool.choose() is None:
                    continue
            elif len(instance.calls) >= instance.limit:
                continue
            for oldest in row.values():
                if found is None or oldest.number < found.number:
                    found = oldest
                break
        return found


def is_free(instance: Instance) -> bool:
    """May take a call of a new exchange now."""
    return (
        len(instance.calls) < instance.limit
        and not instance.is_paused
        and not instance.is_draining
        and instance.health != "draining"
    )
