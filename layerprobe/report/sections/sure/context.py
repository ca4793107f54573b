"""Seeds, measures that were left out, and dictionaries."""

from __future__ import annotations

from typing import Any

import pandas as pd

from layerprobe.record import RunRecord
from layerprobe.report import queries
from layerprobe.report.section import Tables

WHERE = ["layer", "trained_on", "evaluated_on", "kind"]
"""Columns of the table `sae` that identify a dictionary and the rows that it was read on, for one method and seed."""
NUMBERS = ["explained_variance", "ev_low", "ev_high", "l0", "dead_share", "rows"]


def context(tables: Tables, record: RunRecord) -> dict[str, Any]:
    """Number of training seeds, sentences about undefined measures, and dictionaries."""
    rows = queries.rows_compared(tables, queries.methods(tables, record))
    table, unchanged = queries.having(tables, "sae"), queries.unchanged(tables, record)
    unchanged = [] if table is None else [name for name in unchanged if name in set(table.method)]
    return {
        "seeds": len(rows.seeds) if rows else 0,
        "left_out": left_out(tables),
        "dictionaries": [] if table is None else dictionaries(table, unchanged),
        "architecture": {} if table is None else table.iloc[0].to_dict(),
        "unchanged": unchanged,
    }


def dictionaries(table: pd.DataFrame, unchanged: list[str]) -> list[dict[str, Any]]:
    """Rows of the table `sae`, each quality once: methods and seeds that share it are listed in one row.

    The base's dictionary on base rows is the same for all methods. Methods that changed no layer are left out, if there is
    another one: all their rows are those of base.
    """
    kept = table[~table.method.isin(unchanged)] if set(table.method) - set(unchanged) else table
    rows = []
    for values, part in kept.groupby([*WHERE, *NUMBERS], sort=False, dropna=False):
        names = {name: ", ".join(str(value) for value in dict.fromkeys(part[name])) for name in ("method", "seed")}
        rows.append({**names, **dict(zip([*WHERE, *NUMBERS], values, strict=True))})
    return rows


def left_out(tables: Tables) -> list[str]:
    """Which measures were undefined on which unit, and why."""
    table = queries.having(tables, "similarity_left_out")
    if table is None:
        return []
    return [
        f"{measure} was left out of {queries.UNITS[str(unit)]}: {rows.why.iloc[0]}"
        for (measure, unit), rows in table.groupby(["measure", "unit"], sort=False)
    ]
