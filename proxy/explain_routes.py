"""Says for every route why it takes a request or why it does not; for `wardgate explain`.

Nothing about matching is known here: each condition of a route is asked of a `RoutingTable` that has only this
route with only this condition. What stands here is the order of the reasons, which is that of the table.

Kind: pure.
"""

from collections.abc import Sequence

import msgspec

from proxy.head import Head
from proxy.routing import RoutingTable
from shared.config.schema_routes import Match, Route
from shared.errors import RequestRefused


class Standing(msgspec.Struct, frozen=True):
    """One route, in the order of the configuration. `fits`: host and path alone would do."""

    route: str
    is_chosen: bool
    fits: bool
    why: str


def standings(routes: Sequence[Route], head: Head) -> tuple[int | None, RequestRefused | None, list[Standing]]:
    """(the route that counts, also when it refuses the method; the refusal; every route with the reason)."""
    table = RoutingTable(routes)
    refusal: RequestRefused | None = None
    chosen: int | None = None
    try:
        chosen = table.choose(head.host_name, head.path, head.method)
    except RequestRefused as raised:
        refusal = raised
        if raised.status == 405:  # which route wins does not depend on the method: it is the one that takes its own
            chosen = next(
                index
                for index, route in enumerate(routes)
                if route.match.methods and _takes(table, head, route.match.methods[0].encode()) == index
            )
    ranks = [_Rank(route, head) for route in routes]
    return chosen, refusal, [_standing(routes, ranks, index, chosen, refusal) for index in range(len(routes))]


def _takes(table: RoutingTable, head: Head, method: bytes) -> int | None:
    try:
        return table.choose(head.host_name, head.path, method)
    except RequestRefused:
        return None


class _Rank:
    """How one route alone stands to a head: by its host patterns and by its path, each in a table of its own."""

    __slots__ = ("fits_path", "host", "is_ambiguous", "path")

    def __init__(self, route: Route, head: Head) -> None:
        patterns = [name for name in route.match.hosts if _fits_host(route, name, head)]
        exact = [name for name in patterns if not name.startswith("*.")]
        # As routing.py orders them: by name, by the longest wildcard, any.
        self.host: tuple[int, int, str] | None = None
        if exact:
            self.host = (2, 0, exact[0])
        elif patterns:
            longest = max(patterns, key=len)
            self.host = (1, len(longest), longest)
        elif not route.match.hosts:
            self.host = (0, 0, "any host")
        self.path = route.match.path_prefix
        self.fits_path, self.is_ambiguous = False, False
        try:
            _alone(route, Match(path_prefix=self.path)).choose("", head.path, head.method)
            self.fits_path = True
        except RequestRefused as raised:
            self.is_ambiguous = raised.status == 400


def _fits_host(route: Route, pattern: str, head: Head) -> bool:
    try:
        _alone(route, Match(hosts=(pattern,))).choose(head.host_name, b"/", head.method)
    except RequestRefused:
        return False
    return True


def _alone(route: Route, match: Match) -> RoutingTable:
    return RoutingTable((msgspec.structs.replace(route, match=match),))


def _standing(
    routes: Sequence[Route], ranks: list[_Rank], index: int, chosen: int | None, refusal: RequestRefused | None
) -> Standing:
    route, rank = routes[index], ranks[index]
    if rank.host is None:
        return Standing(route.name, False, False, f"host: only {', '.join(route.match.hosts)}")
    if rank.is_ambiguous:
        return Standing(route.name, False, False, f"path: {rank.path} fits one way to read it and not the other")
    if not rank.fits_path:
        return Standing(route.name, False, False, f"path: not {rank.path} or below it")
    if chosen is None:
        return Standing(route.name, False, True, "fits, but the request is refused")
    methods = route.match.methods
    if index == chosen:
        why = f"{rank.host[2]}, {rank.path}"
        if refusal is not None:
            return Standing(route.name, True, True, f"{why}, but only {', '.join(methods)}")
        return Standing(route.name, True, True, f"{why}, {', '.join(methods) or 'any method'}")
    winner, name = ranks[chosen], routes[chosen].name
    assert winner.host is not None
    if rank.host[:2] < winner.host[:2]:
        why = f"{rank.host[2]}; {name} has {winner.host[2]}"
    elif len(rank.path.encode()) < len(winner.path.encode()):
        why = f"{rank.path}; {name} has {winner.path}"
    else:
        why = f"any method; {name} has {', '.join(routes[chosen].match.methods)}"
    return Standing(route.name, False, True, f"less specific: {why}")
