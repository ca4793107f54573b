"""How costs were measured, and why some are not compared."""

from __future__ import annotations

from layerprobe.report import queries
from layerprobe.report.costs import timed_costs, timing_note
from layerprobe.report.section import Tables

MEASURED_BY = {"memory_kind": "Peak memory", "energy_kind": "Energy", "energy_note": "Energy"}
"""Columns of the table `adaptation` that hold how a cost was measured -> its name."""


def notes(tables: Tables) -> list[str]:
    """Sentences below the table of costs."""
    after, reason = queries.accuracy_after(tables), timing_note(timed_costs(tables))
    sentences = [reason] if reason else []
    for column, cost in MEASURED_BY.items():
        kinds = [] if after is None or column not in after else list(dict.fromkeys(after[column].dropna()))
        if any(kinds):
            sentences.append(f"{cost}: {', '.join(filter(None, kinds))}.")
    return sentences
