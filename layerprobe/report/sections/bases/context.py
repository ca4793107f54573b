"""Claims and numbers of the section, one panel per method that changed a layer."""

from __future__ import annotations

from typing import Any

from layerprobe.record import RunRecord
from layerprobe.report import queries
from layerprobe.report.section import Tables
from layerprobe.report.sections.bases.figures import BASES, ROWS, of_method
from layerprobe.report.sections.bases.sentences import claim


def context(tables: Tables, record: RunRecord) -> dict[str, Any]:
    """Panels of methods, and the claims about methods that changed no layer."""
    changed = queries.changed(tables, record)
    return {
        "rows": ROWS,
        "panels": [panel(tables, record, method) for method in changed],
        "unchanged": [text for name in queries.unchanged(tables, record) if (text := claim(tables, record, name))],
    }


def panel(tables: Tables, record: RunRecord, method: str) -> dict[str, Any]:
    """What the page says of one method next to its figures."""
    rows, excess = (of_method(tables, record, name, method) for name in ("basis_controls", "basis_excess"))
    return {
        "method": method,
        "claim": claim(tables, record, method),
        "n": None if rows is None else int(rows.n.max()),
        "dictionary_seeds": 0 if excess is None else int(excess.dictionary_seeds.max()),
        "training_seeds": 0 if excess is None else int(excess.training_seeds.max()),
        "shares": [] if rows is None else _shares(rows),
    }


def _shares(rows: Any) -> list[dict[str, Any]]:
    """Share of latents associated with a label by layer and basis, base and adapted, means over seeds."""
    rows = rows[~rows.projected & rows.basis.isin(BASES)]
    means = rows.groupby(["layer", "basis", "side"])[["share_task", "judged"]].mean().unstack("side")
    order = {basis: number for number, basis in enumerate(BASES)}
    table = []
    for (layer, basis), row in sorted(means.iterrows(), key=lambda item: (item[0][0], order[item[0][1]])):
        sides = {
            side: (row["share_task", side], row["judged", side]) if ("share_task", side) in row.index else (None, None)
            for side in ("base", "adapted")
        }
        table.append({"layer": layer, "basis": BASES[basis], **sides})
    return table
