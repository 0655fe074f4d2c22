"""Tokens that language models were paid for: what workers tell agentd once a second, as JSON.

    rows = [[route, model, input, output, responses] ...]      sums since the last time

There may be any number of models, so they have no cells in a segment. Models beyond GUARDRAIL_MODELS of one route
are "other" at both ends.

Kind: pure.
"""

from collections.abc import Callable
from typing import Final

import msgspec

from shared.defaults import GUARDRAIL_MODELS

OTHER: Final = "other"


class TokenRow(msgspec.Struct, array_like=True, frozen=True):
    """Of one route and model."""

    route: str
    model: str
    input: int
    output: int
    responses: int


encode: Callable[[list[TokenRow]], bytes] = msgspec.json.Encoder().encode
decode: Callable[[bytes | memoryview], list[TokenRow]] = msgspec.json.Decoder(list[TokenRow]).decode


class TokenSums:
    """Sums by route and model, bounded."""

    __slots__ = ("_models", "_sums")

    def __init__(self) -> None:
        self._sums: dict[tuple[str, str], list[int]] = {}
        self._models: dict[str, int] = {}  # per route

    def add(self, row: TokenRow) -> None:
        """Counts of a model too many go to "other"."""
        key = (row.route, row.model)
        sums = self._sums.get(key)
        if sums is None:
            known = self._models.get(row.route, 0)
            if known >= GUARDRAIL_MODELS:
                key = (row.route, OTHER)
            elif row.model != OTHER:
                self._models[row.route] = known + 1
            sums = self._sums.setdefault(key, [0, 0, 0])
        sums[0] += row.input
        sums[1] += row.output
        sums[2] += row.responses

    def rows(self) -> list[TokenRow]:
        """What was added up so far."""
        return [TokenRow(route, model, *sums) for (route, model), sums in self._sums.items()]

    def take(self) -> list[TokenRow]:
        """The same, and begin at 0; which models are known is kept."""
        rows = [row for row in self.rows() if row.input or row.output or row.responses]
        for sums in self._sums.values():
            sums[:] = (0, 0, 0)
        return rows
