"""No two fields of a segment share a cell, none lies outside, and a change of the layout is noticed."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared import defaults
from shared.errors import SegmentError
from shared.wire import segment as layout
from shared.wire.segment import Field, Section

FILES = {"agentd.seg": layout.AGENTD_SECTIONS, "proxy.seg": layout.PROXY_SECTIONS}
CELLS = {"agentd.seg": layout.AGENTD_CELLS, "proxy.seg": layout.PROXY_CELLS}
SECTIONS = [section for sections in FILES.values() for section in sections]


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.name)
def test_fields_of_a_row_do_not_overlap_and_lie_inside(section: Section) -> None:
    ends = 0
    for field in sorted(section.fields, key=lambda field: field.at):
        assert field.cells >= 1
        assert field.at >= ends, field.name
        ends = field.at + field.cells
    assert ends <= section.row_cells
    assert len({field.name for field in section.fields}) == len(section.fields)


@pytest.mark.parametrize("name", FILES)
def test_sections_of_a_file_do_not_overlap_and_lie_inside(name: str) -> None:
    ends = 0
    for section in FILES[name]:
        assert section.at >= ends, section.name
        ends = section.end
    assert ends <= CELLS[name]
    assert CELLS[name] % layout.PAGE_CELLS == 0


@st.composite
def cells_of_a_file(draw: st.DrawFn) -> tuple[str, tuple[object, ...], range]:
    name = draw(st.sampled_from(sorted(FILES)))
    section = draw(st.sampled_from(FILES[name]))
    row = draw(st.integers(0, section.rows - 1))
    field: Field = draw(st.sampled_from(section.fields))
    at = section.at + row * section.row_cells + field.at
    return name, (section.name, row, field.name), range(at, at + field.cells)


@settings(deadline=None)
@given(cells_of_a_file(), cells_of_a_file())
def test_any_two_fields_of_any_two_rows_are_apart(
    one: tuple[str, tuple[object, ...], range], other: tuple[str, tuple[object, ...], range]
) -> None:
    """Over every section, row and field, also of slots: the addresses that code computes."""
    (name, which, cells), (other_name, other_which, other_cells) = one, other
    assert 0 <= cells.start < cells.stop <= CELLS[name]
    if name == other_name and which != other_which:
        assert cells.stop <= other_cells.start or other_cells.stop <= cells.start


@settings(deadline=None)
@given(st.integers(0, defaults.WORKER_SLOTS), st.integers(0, defaults.ROUTE_ROWS - 1))
def test_a_route_block_ends_inside_its_slot(slot: int, row: int) -> None:
    begin = layout.slot_area(slot) + layout.SLOT_ROUTES + row * layout.ROUTE_CELLS
    assert begin + layout.ROUTE_CELLS <= layout.slot_area(slot) + layout.SLOT_CELLS


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.name)
def test_constants_are_those_of_the_table(section: Section) -> None:
    """The code uses constants, people read the table."""
    by_name = {field.name: field.at for field in section.fields}
    if section is layout.HEADER:
        for name, value in vars(layout).items():
            if name.startswith("H_"):
                key = {"H_DIGEST": "config_digest"}.get(name, name.removeprefix("H_").lower())
                assert by_name[key] == value
    if section is layout.WORKER_ROWS:
        assert (by_name["seq"], by_name["state"], by_name["beat_ns"]) == (
            layout.WR_SEQ, layout.WR_STATE, layout.WR_BEAT_NS,
        )  # fmt: skip
        assert by_name["state"] == layout.WR_VALUES + 1


def test_rows_that_are_written_together_begin_with_their_sequence() -> None:
    for section, values in (
        (layout.AGENTS, layout.AGENT_VALUES),
        (layout.WORKER_ROWS, layout.WR_VALUES),
        (layout.HEALTH, layout.HEALTH_NUMBERS + layout.MESSAGE_CELLS),
    ):
        assert section.fields[0] == Field("seq", 0, 1, section.fields[0].writer, section.fields[0].doc)
        behind = itertools.accumulate(field.cells for field in section.fields[1:])
        assert values in behind


def test_a_row_of_numbers_has_a_cell_for_each_of_them() -> None:
    numbers = [name for name in layout.AgentdHealth.__struct_fields__ if name != "message"]
    assert len(numbers) == layout.HEALTH_NUMBERS


def test_this_layout_is_this_layout() -> None:
    """Golden: whoever changes a number here has to count LAYOUT up, or old readers misread new files."""
    found = {
        section.name: (
            section.at,
            section.rows,
            section.row_cells,
            tuple((f.name, f.at, f.cells) for f in section.fields),
        )
        for section in (layout.HEADER, layout.HEALTH, layout.AGENTS, layout.WORKER_ROWS)
    }
    assert layout.LAYOUT == 2
    assert found == {
        "header": (0, 1, 512, (
            ("magic", 0, 1), ("layout", 1, 1), ("nonce", 2, 1), ("pid", 3, 1), ("created_ns", 4, 1), ("size", 5, 1),
            ("beat_ns", 6, 1), ("generation", 7, 1), ("seq", 8, 1), ("config_digest", 9, 8), ("rows", 17, 1),
            ("upstreams", 18, 1), ("fold_seq", 19, 1), ("state", 20, 1),
            ("reload_seq", 21, 1), ("reload", 22, 7), ("reload_message", 29, 32))),
        "health": (512, 1, 64, (("seq", 0, 1), ("numbers", 1, 11), ("message", 12, 32))),
        "agents": (576, 256, 16, (
            ("seq", 0, 1), ("name", 1, 8), ("hello_mask", 9, 1), ("live_instances", 10, 1), ("breaker", 11, 1),
            ("retry_at_ns", 12, 1))),
        "workers": (512, 128, 16, (
            ("seq", 0, 1), ("pid", 1, 1), ("started_ns", 2, 1), ("config_digest", 3, 8), ("state", 11, 1),
            ("beat_ns", 12, 1))),
    }  # fmt: skip
    assert (layout.AGENTD_CELLS, layout.PROXY_CELLS) == (5120, 19_626_496)
    assert (layout.SLOTS.at, layout.SLOT_UPSTREAMS, layout.SLOT_ROUTES, layout.SLOT_CELLS) == (12800, 512, 1536, 67072)
    assert (layout.ROUTE_NAMES.at, layout.UPSTREAM_NAMES.at, layout.ROUTE_CELLS, layout.UPSTREAM_CELLS) == (
        2560, 10752, 64, 4,
    )  # fmt: skip


def test_numbers_in_the_files_are_never_given_away_again() -> None:
    assert [(s.name, int(s)) for s in layout.BreakerState] == [
        ("CLOSED", 0), ("HALF_OPEN", 1), ("OPEN", 2), ("FORCED_OPEN", 3),
    ]  # fmt: skip
    assert [(s.name, int(s)) for s in layout.WorkerState] == [
        ("FREE", 0),
        ("STARTING", 1),
        ("READY", 2),
        ("DRAINING", 3),
    ]
    assert [(s.name, int(s)) for s in layout.HealthStatus] == [
        ("UNKNOWN", 0), ("HEALTHY", 1), ("DEGRADED", 2), ("UNHEALTHY", 3),
    ]  # fmt: skip
    assert layout.BreakerState.HALF_OPEN.word == "half_open"
    assert layout.HealthStatus.DEGRADED.word == "degraded"


# --- texts -----------------------------------------------------------------------------------------

names = st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=64).filter(
    lambda name: len(name.encode()) <= 64
)


@settings(deadline=None)
@given(names)
def test_a_name_comes_back_whole(name: str) -> None:
    cells = layout.pack_name(name)
    assert len(cells) == layout.NAME_CELLS
    assert all(0 <= cell < 1 << 64 for cell in cells)
    assert layout.unpack_name(list(cells)) == name


@pytest.mark.parametrize("name", ["a" * 65, "ä" * 33, "a\0b"])
def test_a_name_without_room_is_refused(name: str) -> None:
    """Cut, it could be another agent's."""
    with pytest.raises(SegmentError, match="does not fit"):
        layout.pack_name(name)


@settings(deadline=None)
@given(st.text(max_size=400))
def test_a_message_is_cut_between_characters(text: str) -> None:
    back = layout.unpack_message(list(layout.pack_message(text)))
    whole = text.replace("\0", " ")
    if len(whole.encode("utf-8", "replace")) <= 256:
        assert back == whole.encode("utf-8", "replace").decode()
    else:
        assert whole.encode("utf-8", "replace").startswith(back.encode())
        assert len(back.encode()) > 256 - 4


@settings(deadline=None)
@given(st.lists(st.integers(0, (1 << 64) - 1), min_size=8, max_size=8))
def test_any_cells_are_some_name(cells: list[int]) -> None:
    """What another program wrote there is shown, never raised about."""
    assert isinstance(layout.unpack_name(cells), str)
