"""Prints a table: with rich on a terminal, as plain aligned columns everywhere else.

The plain form is for pipes and logs: one header line, columns two spaces apart, nothing cut. Cells are
printed as they are, so control characters of an agent's making are escaped here. A terminal too narrow
for all columns gets fewer; what still has no room is folded, never cut.

Kind: IO.
"""

import shutil
import sys
from collections.abc import Sequence
from typing import Final

import click

# What a cell of exactly this text looks like on a terminal.
COLOURS: Final = {
    "healthy": "green",
    "closed": "green",
    "degraded": "yellow",
    "half_open": "yellow",
    "unhealthy": "red",
    "open": "red",
    "forced_open": "red",
}


_PADDING: Final = 3  # of a column on a terminal


def show_table(headers: Sequence[str], rows: Sequence[Sequence[str]], spared: Sequence[str] = ()) -> None:
    """To standard output. `spared`: the columns that a narrow terminal leaves out, first things first."""
    clean = [[_clean(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        _rich(*_fitting(headers, clean, spared))
        return
    widths = [max(len(row[i]) for row in (headers, *clean)) for i in range(len(headers))]
    for row in (headers, *clean):
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _fitting(
    headers: Sequence[str], rows: Sequence[Sequence[str]], spared: Sequence[str]
) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
    """Without the columns that the terminal has no room for."""
    left = list(range(len(headers)))
    widths = [max(len(row[i]) for row in (headers, *rows)) + _PADDING for i in left]
    room = shutil.get_terminal_size().columns
    for name in spared:
        if sum(widths[i] for i in left) <= room:
            break
        left.remove(headers.index(name))
    return [headers[i] for i in left], [[row[i] for i in left] for row in rows]


def _rich(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for header in headers:
        table.add_column(header, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell, style=COLOURS.get(cell, "")) for cell in row))
    Console().print(table)


def _clean(text: str) -> str:
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
