"""Choices of the figure, and the onsets of each method."""

from __future__ import annotations

from typing import Any

from layerprobe.record import RunRecord
from layerprobe.report import queries
from layerprobe.report.section import Tables
from layerprobe.report.sections.labels.sentences import SIZES, onset, shown_method


def context(tables: Tables, record: RunRecord) -> dict[str, Any]:
    """Methods, units, numbers of examples and permutations, and one row of onsets per method."""
    table = tables["label_variance"]
    main, unit = shown_method(tables, record), queries.unit_of(table)
    names = [name for name in queries.methods(tables, record) if name in set(table.method)]
    return {
        "methods": sorted(names, key=lambda name: name != main),
        "units": {name: queries.UNITS.get(name, name) for name in dict.fromkeys([unit, *table.unit])},
        "n": int(table["n"].max()),
        "permutations": int(table.permutations.max()),
        "sizes": [f"{100 * size:.0f}" for size in SIZES],
        "onsets": [
            {
                "method": name,
                "seeds": len(queries.seeds_of(table, name)),
                **{side: onset(table, name, unit, side) for side in ("base", "adapted", "difference")},
                "above": [onset(table, name, unit, "difference", size) for size in SIZES],
            }
            for name in names
        ],
    }
