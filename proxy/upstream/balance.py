"""Decides which of an upstream's targets is next.

Smooth weighted round robin: the order is computed once, so that a choice is one index. A target whose
last connect failed is asked last for `TARGET_RETRY_S`, never left out: when all have failed, all are tried.

Nothing here connects or knows connections.

Kind: pure.
"""

from collections.abc import Sequence
from math import gcd

from shared.clock import S
from shared.config.schema import Target
from shared.defaults import UPSTREAM_TARGET_RETRY_S


class Endpoint:
    """One target: its address, taken apart once, and how its connects went.

    path: of a unix socket ("unix:/path"), else "". failures: failed connects since the start.
    """

    __slots__ = ("address", "failures", "host", "path", "port", "retry_at_ns", "weight")

    def __init__(self, target: Target) -> None:
        self.address = target.address
        self.weight = target.weight
        self.path = self.host = ""
        self.port = 0
        self.failures = 0
        self.retry_at_ns = 0  # 0 = its last connect went well
        if target.address.startswith("unix:"):
            self.path = target.address.removeprefix("unix:")
        else:
            host, _, port = target.address.rpartition(":")
            self.host = host[1:-1] if host.startswith("[") else host
            self.port = int(port)

    def __str__(self) -> str:
        return self.address


def smooth_cycle(weights: Sequence[int]) -> list[int]:
    """Indices in the order of one round: each as often as its weight says, spread as evenly as can be."""
    divisor = gcd(*weights)
    shares = [weight // divisor for weight in weights]
    total = sum(shares)
    credit = [0] * len(shares)
    cycle = []
    for _ in range(total):
        for index, share in enumerate(shares):
            credit[index] += share
        best = max(range(len(shares)), key=credit.__getitem__)
        credit[best] -= total
        cycle.append(best)
    return cycle


class RoundRobin:
    """The turn of each target."""

    __slots__ = ("_cycle", "_has_failed", "_next", "endpoints")

    def __init__(self, targets: Sequence[Target]) -> None:
        self.endpoints = [Endpoint(target) for target in targets]
        self._cycle = [self.endpoints[i] for i in smooth_cycle([target.weight for target in targets])]
        self._next = 0
        self._has_failed = False

    def next(self, now: int) -> Endpoint:
        """Whose turn it is."""
        cycle = self._cycle
        turn = self._next
        self._next = turn + 1 if turn + 1 < len(cycle) else 0
        endpoint = cycle[turn]
        if self._has_failed and endpoint.retry_at_ns > now:
            return self.order(endpoint, now)[0]
        return endpoint

    def order(self, first: Endpoint, now: int) -> list[Endpoint]:
        """All targets, each once, in the order to try them: `first` and those after it, failed ones at the end."""
        start = self.endpoints.index(first)
        turned = self.endpoints[start:] + self.endpoints[:start]
        turned.sort(key=lambda endpoint: endpoint.retry_at_ns > now)  # stable
        return turned

    def went_well(self, endpoint: Endpoint) -> None:
        """A connect succeeded."""
        if endpoint.retry_at_ns:
            endpoint.retry_at_ns = 0
            self._has_failed = any(e.retry_at_ns for e in self.endpoints)

    def went_wrong(self, endpoint: Endpoint, now: int) -> None:
        """A connect failed."""
        endpoint.failures += 1
        endpoint.retry_at_ns = now + int(UPSTREAM_TARGET_RETRY_S * S)
        self._has_failed = True
