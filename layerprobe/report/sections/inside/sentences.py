"""Which layers each method left untouched, and where intruder dimensions appear."""

from __future__ import annotations

import pandas as pd

from layerprobe.record import RunRecord
from layerprobe.report import queries
from layerprobe.report.section import Tables


def drift_words(name: str, rows: pd.DataFrame, record: RunRecord) -> str:
    """Untouched layers of a method and the value at the last layer, from one measure by layer."""
    unchanged = queries.measure(rows.measure.iloc[0], record).unchanged
    layers = [int(layer) for layer in rows.layer[(rows.value - unchanged).abs() <= queries.UNCHANGED]]
    span = f"layers {layers[0]} to {layers[-1]}" if len(layers) > 1 else f"layer {layers[0]}" if layers else "no layer"
    kept = "every layer" if len(layers) == len(rows) else span
    return f"{name}: {kept} untouched; last layer {rows.value.iloc[-1]:.3f}"


def intruder_sentence(tables: Tables) -> str:
    """The method with the most intruder dimensions; empty if they were not counted."""
    table = queries.having(tables, "weights", "intruder_dimensions")
    if table is None:
        return ""
    counts = table.groupby("method").intruder_dimensions.sum() / table.groupby("method").seed.nunique()
    if not counts.max():
        return "No method has an intruder dimension in any matrix."
    return f"{counts.idxmax()} has the most intruder dimensions: {counts.max():.1f} over all matrices, mean over its seeds."
