"""The failure matrix: every component, every fault, under constant traffic, with real processes.

What a row allows stands in matrix.py, how it is played in matrix_play.py, what is judged in matrix_judge.py.
The first row of a component that is asked for plays all of them on one stage; when that test ends, nothing
runs any more (tests/conftest.py looks).
"""

import os

import pytest

from tests.e2e import matrix_page
from tests.e2e.matrix import COMPONENTS, FAULTS, ROWS
from tests.e2e.matrix_judge import Seen
from tests.e2e.matrix_page import Numbers
from tests.e2e.matrix_play import Play
from tests.support import ROOT

PAGE = ROOT / "docs" / "reliability.md"
WRITE = "WARDGATE_WRITE_RELIABILITY"
_played: dict[str, dict[str, Seen]] = {}


def seen(component: str) -> dict[str, Seen]:
    """What every row of a component has shown, by fault."""
    if component not in _played:
        _played[component] = {}  # whatever comes of it, it is played once
        _played[component] = Play(component).rows()
    return _played[component]


@pytest.mark.parametrize(("component", "fault"), [row.key for row in ROWS])
def test_row(component: str, fault: str) -> None:
    """Only what the row allows, no request undecided, in time, and back by itself."""
    rows = seen(component)
    assert fault in rows, "the stage did not come up: see the component's first row"
    row = rows[fault]
    assert not row.broken, "\n".join([*row.broken, row.logs])
    assert not row.slow, "\n".join(["twice:", *row.slow, row.logs])


def test_every_pair_is_a_row() -> None:
    pairs = [row.key for row in ROWS]
    assert len(pairs) == len(set(pairs))
    assert {(component, fault) for component in COMPONENTS for fault in FAULTS} <= set(pairs)


def test_the_page_has_the_rows_that_are_played() -> None:
    """docs/reliability.md; its numbers are those of the last `make matrix`."""
    if os.environ.get(WRITE):
        rows = [seen(row.component)[row.fault] for row in ROWS]
        assert not any(row.broken or row.slow for row in rows), "only a good run writes the page"
        found = {row.row.key: Numbers(row.answer_ms, row.slowest_ms, row.back_ms) for row in rows}
        PAGE.write_text(matrix_page.render(found))
    fresh = matrix_page.without_numbers(matrix_page.render({}))
    assert matrix_page.without_numbers(PAGE.read_text()) == fresh, "run `make matrix`"
