"""Chooses the route of a request; the table is compiled once per config.

The most specific wins (semantics 14): exact host, then wildcard host, then any host; then the longest
path_prefix; then more conditions. A request that fits host and path of the winner but not its methods
is 405 and never falls through to a wider route.

A prefix matches whole segments: "/v1" matches "/v1" and "/v1/x" but not "/v10"; "/v1/" matches what is
below it.

Kind: pure.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from shared.config.schema_routes import Route
from shared.errors import RequestRefused

_PARAMETERS = re.compile(rb";[^/]*")
_SLASHES = re.compile(rb"/{2,}")


class Row(NamedTuple):
    """One route in one host's list."""

    prefix: bytes
    is_whole: bool  # prefix ends with "/": startswith is all there is to check
    methods: frozenset[bytes]
    route: int  # in the config's routes


class RoutingTable:
    """Rows per host, most specific first; `choose` answers the route's index in the config."""

    __slots__ = ("_any", "_exact", "_hostless", "_wildcards")

    def __init__(self, routes: Sequence[Route]) -> None:
        exact: dict[str, list[Row]] = {}
        wildcards: dict[str, list[Row]] = {}
        anywhere: list[Row] = []
        for index, route in enumerate(routes):
            prefix = route.match.path_prefix.encode()
            methods = frozenset(method.encode() for method in route.match.methods)
            row = Row(prefix, prefix.endswith(b"/"), methods, index)
            for host in route.match.hosts:
                name = host.lower()
                if name.startswith("*."):
                    wildcards.setdefault(name[1:], []).append(row)
                else:
                    exact.setdefault(name, []).append(row)
            if not route.match.hosts:
                anywhere.append(row)
        self._any = _sorted(anywhere)
        # Longest suffix first: *.a.example.com is more specific than *.example.com.
        self._wildcards = [(suffix, _sorted(wildcards[suffix])) for suffix in sorted(wildcards, key=len, reverse=True)]
        self._exact = {host: (*_sorted(rows), *self._beyond(host)) for host, rows in exact.items()}
        self._hostless = self._any

    def _beyond(self, host: str) -> tuple[Row, ...]:
        """What a host may match besides its own rows: its wildcards, then any host."""
        rows: tuple[Row, ...] = ()
        for suffix, more in self._wildcards:
            if host.endswith(suffix):
                rows += more
        return rows + self._any

    def choose(self, host_name: str, path: bytes, method: bytes) -> int:
        """Index of the route. RequestRefused: 404 none, 405 its methods, 400 ambiguous path."""
        rows = self._exact.get(host_name)
        if rows is None:
            rows = self._beyond(host_name) if self._wildcards and host_name else self._hostless
        row = _match(rows, path)
        if b"//" in path or b";" in path:
            # A server behind us may merge slashes or cut parameters; then it would serve another route's
            # resource under this route's policy.
            other = _match(rows, _SLASHES.sub(b"/", _PARAMETERS.sub(b"", path)))
            if (other and other.route) != (row and row.route):
                raise RequestRefused(400, "path is ambiguous: // or ;parameters change its route", close=False)
        if row is None:
            raise RequestRefused(404, "no route", close=False)
        if row.methods and method not in row.methods:
            allow = ", ".join(sorted(m.decode() for m in row.methods))
            raise RequestRefused(405, "method is not allowed on this route", close=False, allow=allow)
        return row.route


def _sorted(rows: list[Row]) -> tuple[Row, ...]:
    return tuple(sorted(rows, key=lambda row: (-len(row.prefix), -bool(row.methods))))


def _match(rows: Sequence[Row], path: bytes) -> Row | None:
    for row in rows:
        prefix = row.prefix
        if path.startswith(prefix) and (row.is_whole or len(path) == len(prefix) or path[len(prefix)] == 47):
            return row
    if path == b"*":  # OPTIONS * fits only a route with prefix "/"
        for row in rows:
            if row.prefix == b"/":
                return row
    return None
