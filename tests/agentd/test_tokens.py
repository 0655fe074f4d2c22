"""Sums of tokens over workers, bounded, and on the page."""

import pytest

from agentd.tokens import TokenTotals
from shared.defaults import GUARDRAIL_MODELS, ROUTE_ROWS
from shared.errors import WireError
from shared.wire.envelope import RecordType, pack_tokens, records
from shared.wire.tokens import OTHER, TokenRow, encode


def test_workers_are_added_up() -> None:
    totals = TokenTotals()
    totals.told(encode([TokenRow("r", "m", 1, 2, 1)]))
    totals.told(encode([TokenRow("r", "m", 10, 20, 2), TokenRow("s", "m", 5, 5, 1)]))
    assert totals.rows() == [TokenRow("r", "m", 11, 22, 3), TokenRow("s", "m", 5, 5, 1)]


def test_bounds() -> None:
    totals = TokenTotals()
    totals.told(encode([TokenRow("r", f"m{number}", 1, 1, 1) for number in range(GUARDRAIL_MODELS + 5)]))
    assert len(totals.rows()) == GUARDRAIL_MODELS + 1
    assert totals.rows()[-1] == TokenRow("r", OTHER, 5, 5, 5)
    totals.told(encode([TokenRow(f"r{number}", "m", 1, 1, 1) for number in range(ROUTE_ROWS + 5)]))
    assert len({row.route for row in totals.rows()}) == ROUTE_ROWS


def test_the_record_of_the_hop() -> None:
    rows = [TokenRow("r", "m", 1, 2, 3)]
    ((kind, rest),) = records(pack_tokens(encode(rows)))
    assert kind == RecordType.TOKENS
    totals = TokenTotals()
    totals.told(rest)
    assert totals.rows() == rows


@pytest.mark.parametrize("record", [b"", b"[", b"[[1]]", b'[["r","m","x",1,1]]'])
def test_unreadable(record: bytes) -> None:
    with pytest.raises(WireError):
        TokenTotals().told(record)
