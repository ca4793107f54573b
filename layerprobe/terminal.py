"""Tables on a terminal, and as plain lines where output goes to a file or another program."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def print_table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    whole: Sequence[str] | None = None,
    width: int | None = None,
) -> None:
    """Print a table: on a terminal fitted to its width, elsewhere one line per row, with aligned columns and nothing cut.

    Args:
        header: names of the columns.
        rows: cells, one sequence per row.
        whole: columns that are never wrapped on a terminal; by default none.
        width: of the terminal; by default its own.
    """
    if not sys.stdout.isatty():
        cells = [tuple(header), *map(tuple, rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        for row in cells:
            print("  ".join(cell.ljust(size) for cell, size in zip(row, widths, strict=True)).rstrip())
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in header:
        table.add_column(column, no_wrap=column in (whole or ()), overflow="fold")
    for cells_of_row in rows:
        table.add_row(*cells_of_row)
    Console(width=width, highlight=False, markup=False).print(table)
