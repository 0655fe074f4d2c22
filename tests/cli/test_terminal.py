"""proxy/cli/terminal.py: how lines of many processes look in one terminal."""

import io
import re
from typing import Any

import pytest

from proxy.cli import breaker, health, limits
from proxy.cli.table import show_table
from proxy.cli.terminal import Terminal, clean, has_colour


@pytest.mark.parametrize(
    ("is_terminal", "environ", "colour"),
    [
        (True, {}, True),
        (False, {}, False),
        (False, {"FORCE_COLOR": "1"}, True),
        (True, {"NO_COLOR": "1"}, False),
        (False, {"FORCE_COLOR": "1", "NO_COLOR": "1"}, False),
        (True, {"NO_COLOR": ""}, True),
    ],
)
def test_colour_only_where_somebody_looks(is_terminal: bool, environ: dict[str, str], colour: bool) -> None:
    """A terminal or FORCE_COLOR; NO_COLOR wins; an empty variable is none."""
    assert has_colour(is_terminal, environ) is colour


def test_our_lines_are_short_and_in_columns() -> None:
    """The date goes, the level gets a column; the label has the width of the longest."""
    out = io.StringIO()
    terminal = Terminal(out, ["proxy", "upstream"], colour=False)
    terminal.lines("proxy", ["2026-11-20T10:00:00.123Z warning proxy.arbiter x=1", "something else", ""])
    terminal.lines("proxy", ["2026-11-20 10:00:00,123 INFO    wardgate_agent: connected"])
    terminal.say("hello")
    assert out.getvalue().splitlines() == [
        "proxy    | 10:00:00.123 warn  proxy.arbiter x=1",
        "proxy    | something else",
        "proxy    | 10:00:00.123 info  wardgate_agent: connected",
        "run      | hello",
    ]


def test_colours_end_where_they_should() -> None:
    """Every colour is switched off again; without colour there is not one escape."""
    form = Terminal(io.StringIO(), ["proxy"], colour=True).form("proxy", "2026-11-20T10:00:00.123Z error a b")
    assert form.startswith("\x1b[36mproxy\x1b[0m ")
    assert form.count("\x1b[0m") == form.count("\x1b[") / 2
    assert "\x1b" not in Terminal(io.StringIO(), ["proxy"], colour=False).form("proxy", "x\x1b[31m")


def test_a_line_cannot_act_on_the_terminal() -> None:
    """What a client sent may be in a log line."""
    assert clean("a\tb\x1b[2Jc\u009b") == "a\tb\\x1b[2Jc\\x9b"


def test_a_reader_that_left_is_noticed_once() -> None:
    """`wardgate run | head`."""

    class Gone(io.StringIO):
        writes = 0

        def write(self, text: str) -> int:
            Gone.writes += 1
            raise BrokenPipeError

    terminal = Terminal(Gone(), ["proxy"], colour=False)
    terminal.say("a")
    terminal.say("b")
    assert terminal.is_gone
    assert Gone.writes == 1


@pytest.mark.parametrize(
    ("view", "row"),
    [
        (breaker, ("payments-waf", "forced_open", "12345", "in 30.0 s", "123", "5", "60 s", "30 s", "2", "1")),
        (
            limits,
            ("server:max_connections_per_client", "-", "20", "-", "3", "123456", "1234", "0", "until reload"),
        ),
        (health, ("degraded", "upstream:payments", "not reached for 12.3 s", "1.18 ms", "2026-11-20T10:00:00.123Z")),
    ],
)
def test_views_are_readable_in_80_columns(
    view: Any, row: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Columns that matter less are left out; nothing is cut."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    show_table(view.HEADERS, [row], view.SPARED)
    out = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    assert "\u2026" not in out
    assert len([line for line in out.splitlines() if line.strip()]) == 3, out
    assert all(cell in out for name, cell in zip(view.HEADERS, row, strict=True) if name not in view.SPARED)
