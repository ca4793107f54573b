"""The table of costs, and which of them cannot be compared."""

from __future__ import annotations

from typing import Any

from layerprobe.record import RunRecord
from layerprobe.report import queries
from layerprobe.report.costs import COSTS, costs_by_method, format_cost, timed_costs
from layerprobe.report.section import Tables
from layerprobe.report.sections.cost.sentences import notes


def context(tables: Tables, record: RunRecord) -> dict[str, Any]:
    """Costs per method in words with their shares of the largest, notes, and the costs of the Pareto fronts."""
    table: Any = costs_by_method(tables, record)
    # A checkpoint cost something, which is not known here.
    trained = (table.get("trainable_parameters", 1) != 0).any() if len(table) else False
    costs = [name for name in COSTS if name in table] if trained else []
    most = table[costs].max()
    shares = (100 * table[costs] / most.where(most > 0)).fillna(0)
    rows = []
    for i, method in table.method.items():
        cells = [{"words": format_cost(table.loc[i, name], name), "share": shares.loc[i, name]} for name in costs]
        rows.append({"method": method, "cells": cells})
    fronts, left_out = queries.having(tables, "pareto"), timed_costs(tables)
    names = [] if fronts is None else [name for name in dict.fromkeys(fronts.cost) if name not in left_out]
    return {
        "trained": trained,
        "columns": [COSTS[name].label for name in costs],
        "rows": rows,
        "notes": notes(tables),
        "fronts": {name: COSTS[name].label for name in names},
    }
