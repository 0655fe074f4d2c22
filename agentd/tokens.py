"""Adds up what workers tell of tokens, for /metrics.

Kind: pure.
"""

import msgspec

from shared.defaults import ROUTE_ROWS
from shared.errors import WireError
from shared.wire.tokens import TokenRow, TokenSums, decode


class TokenTotals:
    """Since agentd's start, by route and model."""

    __slots__ = ("_routes", "_sums")

    def __init__(self) -> None:
        self._sums = TokenSums()
        self._routes: set[str] = set()

    def told(self, record: bytes | memoryview) -> None:
        """One worker's record; raises WireError when it is unreadable."""
        try:
            rows = decode(record)
        except msgspec.MsgspecError as error:
            raise WireError(f"tokens: {error}") from None
        for row in rows:
            if row.route in self._routes or len(self._routes) < ROUTE_ROWS:
                self._routes.add(row.route)
                self._sums.add(row)

    def rows(self) -> list[TokenRow]:
        """In the order of their first appearance."""
        return self._sums.rows()
