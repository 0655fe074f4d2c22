"""Prints a table: with rich on a terminal, as plain aligned columns everywhere else.

The plain form is for pipes and logs: one header line, columns two spaces apart, nothing cut. Cells are
printed as they are, so control characters of an agent's making are escaped here.

Kind: IO.
"""

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


def show_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """To standard output."""
    clean = [[_clean(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        _rich(headers, clean)
        return
    widths = [max(len(row[i]) for row in (headers, *clean)) for i in range(len(headers))]
    for row in (headers, *clean):
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _rich(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*headers, box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*(Text(cell, style=COLOURS.get(cell, "")) for cell in row))
    Console().print(table)


def _clean(text: str) -> str:
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
