"""Which layers each method left untouched, probes that beat the model's own head, and where intruder dimensions appear."""

from __future__ import annotations

from typing import Any

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


def probe_sentence(tables: Tables, record: RunRecord) -> str:
    """Methods whose model is less accurate than a linear probe on one of its layers; empty if there are none.

    Only where the 95% intervals of both are apart, under every seed.
    """
    probes, after = queries.having(tables, "probes"), queries.accuracy_after(tables)
    if probes is None or after is None:
        return ""
    controls = queries.controls(record)
    names = [name for name in queries.methods(tables, record) if name in set(probes.method) and name not in controls]
    main = queries.main_method(names, record)
    found = {name: _best_probe(probes, after, name) for name in sorted(names, key=lambda name: name != main)}
    texts = [f"under {name}, {words}" for name, words in found.items() if words]
    if not texts:
        return ""
    text = "; ".join(texts)
    return f"{text[0].upper()}{text[1:]}. Their 95% intervals are apart: the head uses less than can be read off that layer."


def _best_probe(probes: pd.DataFrame, after: pd.DataFrame, method: str) -> str:
    """The layer with the most accurate probe among those that beat the model under every seed, in words; empty without one."""
    rows = probes[(probes.method == method) & (probes.side == "adapted")]
    own = after[after.method == method]
    both = rows.merge(own[["seed", "accuracy", "accuracy_low", "accuracy_high"]], on="seed", suffixes=("", "_own"))
    if both.empty:
        return ""
    both["apart"] = both.accuracy_low > both.accuracy_high_own
    layers = both.groupby("layer")[["accuracy", "accuracy_own", "apart"]].agg(
        {"accuracy": "mean", "accuracy_own": "mean", "apart": "all"}
    )
    layers = layers[layers.apart]
    if layers.empty:
        return ""
    at: Any = layers.loc
    best = at[layers.accuracy.idxmax()]
    seeds = f" (means of {both.seed.nunique()} seeds, in each of which it is ahead)" if both.seed.nunique() > 1 else ""
    return (
        f"a linear probe on layer {best.name}'s mean vector reaches accuracy {best.accuracy:.3f}, the model's own head "
        f"{best.accuracy_own:.3f}{seeds}"
    )


def intruder_sentence(tables: Tables) -> str:
    """The method with the most intruder dimensions; empty if they were not counted."""
    table = queries.having(tables, "weights", "intruder_dimensions")
    if table is None:
        return ""
    counts = table.groupby("method").intruder_dimensions.sum() / table.groupby("method").seed.nunique()
    if not counts.max():
        return "No method has an intruder dimension in any matrix."
    return f"{counts.idxmax()} has the most intruder dimensions: {counts.max():.1f} over all matrices, mean over its seeds."
