"""Seeds, measures that were left out, and dictionaries."""

from __future__ import annotations

from typing import Any

from layerprobe.record import RunRecord
from layerprobe.report import queries
from layerprobe.report.section import Tables


def context(tables: Tables, record: RunRecord) -> dict[str, Any]:
    """Number of training seeds, sentences about undefined measures, and rows of the table `sae`."""
    rows = queries.rows_compared(tables, queries.methods(tables, record))
    dictionaries = tables.get("sae")
    return {
        "seeds": len(rows.seeds) if rows else 0,
        "left_out": left_out(tables),
        "dictionaries": [] if dictionaries is None else dictionaries.to_dict("records"),
    }


def left_out(tables: Tables) -> list[str]:
    """Which measures were undefined on which unit, and why."""
    table = queries.having(tables, "similarity_left_out")
    if table is None:
        return []
    return [
        f"{measure} was left out of {queries.UNITS[str(unit)]}: {rows.why.iloc[0]}"
        for (measure, unit), rows in table.groupby(["measure", "unit"], sort=False)
    ]
