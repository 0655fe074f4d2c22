"""The failure matrix: every component, every fault, under constant traffic, with real processes.

What a row allows stands in matrix.py, how it is played in matrix_play.py, what is judged in matrix_judge.py.
All rows of a component are played on one stage. When the rows are looked at, nothing of them runs any more.
"""

import os
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.e2e import matrix_page
from tests.e2e.matrix import COMPONENTS, FAULTS, ROWS, of
from tests.e2e.matrix_judge import Seen
from tests.e2e.matrix_page import Numbers
from tests.e2e.matrix_play import Play
from tests.support import ROOT, is_running, wait_until

PAGE = ROOT / "docs" / "reliability.md"
WRITE = "WARDGATE_WRITE_RELIABILITY"
BESIDE = ("all workers", "upstream")  # nothing is compared with the requests/s of before: they share the machine
Played = dict[str, dict[str, Seen]]


def play(component: str) -> dict[str, Seen]:
    """What every row of a component has shown, by fault."""
    try:
        return Play(component).rows()
    except Exception:
        why = f"the stage did not come up or down: {traceback.format_exc()}"
        return {row.fault: Seen(row, broken=[why]) for row in of(component)}


def children() -> set[int]:
    """This process's that run, whichever thread has started them."""
    found = {int(pid) for path in Path("/proc/self/task").glob("*/children") for pid in path.read_text().split()}
    return set(filter(is_running, found))


@pytest.fixture(scope="module")
def played(request: pytest.FixtureRequest) -> Played:
    """Every component of which a row is asked for, by component and fault."""
    calls = [item.callspec for item in request.session.items if item.path == request.path and hasattr(item, "callspec")]
    asked = {str(call.params["component"]) for call in calls}
    order = [name for name in COMPONENTS if name in asked]
    before = children()
    beside = [name for name in order if name in BESIDE and not os.environ.get(WRITE)]
    found = {name: play(name) for name in order if name not in beside}
    with ThreadPoolExecutor(len(BESIDE)) as pool:
        found |= zip(beside, pool.map(play, beside), strict=True)
    wait_until(lambda: not children() - before, 1, "no stage has left processes behind")
    return found


@pytest.mark.parametrize(("component", "fault"), [row.key for row in ROWS])
def test_row(played: Played, component: str, fault: str) -> None:
    """Only what the row allows, no request undecided, in time, and back by itself."""
    row = played[component][fault]
    assert not row.broken, "\n".join([*row.broken, row.logs])
    assert not row.slow, "\n".join(["twice:", *row.slow, row.logs])


def test_every_pair_is_a_row() -> None:
    pairs = [row.key for row in ROWS]
    assert len(pairs) == len(set(pairs))
    assert {(component, fault) for component in COMPONENTS for fault in FAULTS} <= set(pairs)


def test_the_page_has_the_rows_that_are_played(request: pytest.FixtureRequest) -> None:
    """docs/reliability.md; its numbers are those of the last `make matrix`."""
    if os.environ.get(WRITE):
        played: Played = request.getfixturevalue("played")
        rows = [played[row.component][row.fault] for row in ROWS]
        assert not any(row.broken or row.slow for row in rows), "only a good run writes the page"
        found = {row.row.key: Numbers(row.answer_ms, row.slowest_ms, row.back_ms) for row in rows}
        PAGE.write_text(matrix_page.render(found))
    fresh = matrix_page.without_numbers(matrix_page.render({}))
    assert matrix_page.without_numbers(PAGE.read_text()) == fresh, "run `make matrix`"
