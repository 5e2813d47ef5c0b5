"""Prints the rows that a command found: a table for people, one JSON list for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from shutil import get_terminal_size
from typing import Any, NamedTuple

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

Row = Mapping[str, Any]
"""One thing as JSON shows it: complete, with the unit in each name."""

PIPE_WIDTH = 1000
"""How wide a line may be where there is no terminal to fit."""
LAST_COLUMN_WIDTH = 30
"""How narrow the last column may become; a terminal narrower than that wraps the lines itself."""
GAP_WIDTH = 2


class Column(NamedTuple):
    """One column of a table: its heading, and its cell of a row; numbers stand right."""

    heading: str
    content: Callable[[Row], object]
    is_number: bool = False


def show(
    rows: Sequence[Row],
    columns: Sequence[Column],
    *,
    as_json: bool,
    nothing: str,
    footer: str = "",
) -> None:
    """Print `rows` on standard output: all of each as JSON, or its `columns`.

    `nothing` is what people are told when there are no rows; a program gets `[]`. The `footer` is
    for people at a terminal.
    """
    # subtle: what is printed is no markup: a reason may hold brackets, colons, anything.
    # It takes our width on every terminal only together with a height, which nothing here asks for.
    console = Console(width=PIPE_WIDTH, height=1, markup=False, emoji=False, highlight=False)
    if as_json:
        console.print(json.dumps([dict(row) for row in rows], indent=2), soft_wrap=True)
    elif not rows:
        console.print(nothing)
    else:
        table = _table(rows, columns)
        if not sys.stdout.isatty():
            _print_unpadded(console, table)
            return
        console.width = max(_least_width(table), get_terminal_size().columns)
        console.print(table)
        if footer:
            console.print(f"\n{footer}")


def _print_unpadded(console: Console, table: Table) -> None:
    """Print a table without the spaces at its lines' ends, as wide as its longest cell."""
    with console.capture() as captured:
        console.print(table)
    lines = captured.get().splitlines()
    console.print("\n".join(line.rstrip() for line in lines), soft_wrap=True)


def _table(rows: Sequence[Row], columns: Sequence[Column]) -> Table:
    """Lay out the rows; only the last column gives way to a narrow terminal."""
    table = Table(box=None, padding=(0, GAP_WIDTH, 0, 0))
    cells = [[one_line(str(column.content(row))) for row in rows] for column in columns]
    for column, texts in zip(columns, cells, strict=True):
        widest = max(map(cell_len, [column.heading, *texts]))
        table.add_column(
            column.heading,
            justify="right" if column.is_number else "left",
            min_width=min(widest, LAST_COLUMN_WIDTH) if column is columns[-1] else widest,
            overflow="fold",
        )
    for line in zip(*cells, strict=True):
        table.add_row(*line)
    return table


def _least_width(table: Table) -> int:
    return sum((column.min_width or 0) + GAP_WIDTH for column in table.columns)


def one_line(text: str) -> str:
    """Return `text` with its lines joined and "?" for each sign that could steer a terminal."""
    joined = " ".join(text.split())
    return "".join(sign if sign.isprintable() else "?" for sign in joined)
