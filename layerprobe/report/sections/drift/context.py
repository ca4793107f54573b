"""Tables of the section: drift compared with its nulls, and the agreement of measures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from layerprobe.onsets import onset
from layerprobe.record import MeasureRecord, RunRecord
from layerprobe.report import queries
from layerprobe.report.section import Tables

CAPTIONS = {
    "cka": "Centred kernel alignment (CKA), debiased: unrelated representations score about 0, and pairs of tokens of one example are left out. Look for the layer at which the line leaves 1. Bands: delete-group jackknife over 20 groups of whole examples.",
    "paired_cosine": "Cosine between the same token's vectors in base and adapted. The dotted line is the cosine of random rows of different examples: in a space where all vectors point one way it is high, and a cosine means little until it is well above it. Bands: bootstrap of whole examples.",
    "procrustes": "Orthogonal Procrustes: how well one side fits the other after the best rotation. Unrelated data do not score 0 (about .68 at 500 rows of 384 features), so compare it with the crosses. Bands: delete-group jackknife over whole examples.",
}
"""What to look for in the figure of a measure."""
OTHER_CAPTION = "Bands: delete-group jackknife over 20 groups of whole examples."
SENSITIVITY = {
    "paired_cosine": "sees any rotation of the space, even one that a linear readout undoes",
    "cka": "ignores rotation and scale, and weights directions by their variance",
    "cka_angle": "ignores rotation and scale, and weights directions by their variance squared",
    "procrustes": "ignores rotation and scale, and gives small directions more weight than CKA",
    "procrustes_angle": "ignores rotation and scale, and gives small directions more weight than CKA",
    "shape_distance": "ignores rotation and scale, and gives small directions more weight than CKA",
    "mean_cca": "ignores any invertible linear map, so the smallest directions count as much as the largest",
    "mean_squared_cca": "ignores any invertible linear map, so the smallest directions count as much as the largest",
    "svcca": "as CCA, on the directions that hold 99% of the variance",
    "pwcca": "as CCA, weighted by how much of the base each direction holds",
    "rsa": "sees the order of distances between examples, near and far alike",
    "mutual_knn": "sees only which rows are neighbours",
    "jaccard_knn": "sees only which rows are neighbours",
    "linear_predictivity": "how well a linear map of the base's layer predicts the adapted layer",
}
"""What a measure is sensitive to."""
ANGLES = {"cka_angle", "procrustes_angle", "shape_distance"}
"""Distances that are the arccosine of a similarity, and count as changed above the arccosine of `BEGINS`."""


def context(tables: Tables, record: RunRecord) -> dict[str, Any]:
    """Measures, and per method that changed a layer its comparison with nulls and the agreement of measures."""
    similarity = tables["similarity"]
    names, changed = queries.methods(tables, record), queries.changed(tables, record)
    grid = queries.having(tables, "similarity_grid")
    return {
        "rows": queries.rows_compared(tables, names),
        "measures": queries.measures(similarity, record),
        "captions": CAPTIONS,
        "other_caption": OTHER_CAPTION,
        "nulls": queries.having(tables, "similarity_nulls") is not None,
        "controls": queries.controls(record),
        "panels": [
            {
                "method": method,
                "beyond": beyond(tables, record, method),
                "agreement": agreement(tables, record, method),
                "removed": _removed(similarity, method),
            }
            for method in changed
        ],
        "open": queries.full(record) if queries.full(record) in changed else changed[-1] if changed else None,
        "unchanged": queries.unchanged(tables, record),
        "grid_measures": [] if grid is None else sorted(dict.fromkeys(grid.measure), key=lambda name: name != "cka"),
    }


def beyond(tables: Tables, record: RunRecord, method: str) -> dict[str, Any] | None:
    """The main measure of each layer compared with each null: shuffled examples, another seed, controls; None without nulls.

    A control is compared by bands of the paired difference, which hold for all layers at once (table `drift_controls`).
    """
    similarity, nulls = tables["similarity"], queries.having(tables, "similarity_nulls")
    measure, unit = queries.main_measure(similarity), queries.unit_of(similarity)
    drift = queries.drift_of(similarity, method, measure, unit)
    if drift.empty or nulls is None:
        return None
    nulls = nulls[(nulls.method == method) & (nulls.measure == measure) & (nulls.unit == unit)]
    shuffled = nulls[nulls.null_kind == "shuffled-texts"]
    controls = queries.controls_of(tables, method, measure)
    compared = {
        "texts": shuffled[shuffled.seed == drift.seed.iloc[0]].set_index("layer"),
        "seeds": nulls[nulls.null_kind == "seed"].groupby("layer").agg({"value": "mean", "low": "min", "high": "max"}),
    }
    distance = queries.measure(measure, record).kind == "distance"
    rows = []
    row: Any
    for row in drift.itertuples():
        cells: dict[str, Any] = {"layer": int(row.layer), "value": row.value, "low": row.ci_low, "high": row.ci_high}
        cells |= {name: _at(table, row.layer) for name, table in compared.items()}
        if cells["texts"]:
            _, low, high = cells["texts"]
            cells["similar"] = row.ci_high < low if distance else row.ci_low > high
            cells["calibrated"] = compared["texts"].get("calibrated", pd.Series(dtype=float)).get(row.layer)
        if cells["seeds"]:
            _, low, high = cells["seeds"]
            cells["beyond_seeds"] = row.ci_low > high if distance else row.ci_high < low
        cells["controls"] = [_against(control, int(row.layer)) for control in controls]
        rows.append(cells)
    return {
        "measure": measure,
        "rows": rows,
        "seeds": any(row["seeds"] for row in rows),
        "controls": controls,
        "trained": any(control.name != queries.NORM_MATCHED for control in controls),
        "draws": int(shuffled.draws.max()) if len(shuffled) else 0,
        "calibrated": any(isinstance(row.get("calibrated"), float) for row in rows),
    }


def _against(control: queries.Control, layer: int) -> dict[str, Any] | None:
    """Similarity under a control at a layer, and whether drift exceeds it; None where it is not known."""
    if layer not in control.layers:
        return None
    at = control.layers.index(layer)
    return {"value": control.similarity[at], "beyond": bool(control.low[at] > 0) if control.decides else None}


def _at(table: pd.DataFrame, layer: int) -> tuple[float, float, float] | None:
    """Value and range at a layer."""
    if layer not in table.index:
        return None
    row: Any = table.loc[layer]
    return float(row["value"]), float(row["low"]), float(row["high"])


def _removed(similarity: pd.DataFrame, method: str) -> int | None:
    """Number of leading directions that were removed in the robustness check; None without it."""
    if "directions_removed" not in similarity.columns:
        return None
    return int(similarity[similarity.method == method].directions_removed.max()) or None


def agreement(tables: Tables, record: RunRecord, method: str) -> dict[str, Any] | None:
    """The layer that changed most by each measure, and what it means if they disagree; None for a single measure."""
    similarity = tables["similarity"]
    unit = queries.unit_of(similarity)
    rows = []
    for name in dict.fromkeys(similarity.measure):
        measure = queries.measure(name, record)
        drift = queries.drift_of(similarity, method, name, unit)
        if measure.baseline_of is None and len(drift):
            rows.append(_most_changed(drift, measure))
    if len(rows) < 2:
        return None
    by_layer: dict[int, list[str]] = {}
    for row in rows:
        by_layer.setdefault(row["layer"], []).append(row["measure"])
    if len(by_layer) == 1:
        text = f"All {len(rows)} measures have their largest estimated change at layer {next(iter(by_layer))}."
    else:
        layers = "; ".join(
            f"layer {layer}: {', '.join(names)}" for layer, names in sorted(by_layer.items(), reverse=True)
        )
        text = (
            f"The measures have their largest estimated change at different layers ({layers}). What each is invariant to explains why: a layer "
            "that changed by cosine or Procrustes and not by CKA or CCA was rotated or rescaled, which a linear readout above "
            "it can undo; one that changed by neighbourhoods or RSA was rearranged."
        )
    return {"rows": rows, "text": text}


def _most_changed(drift: pd.DataFrame, measure: MeasureRecord) -> dict[str, Any]:
    """The layer that changed most by one measure, those indistinguishable from it, and the first that changed.

    Similarities count as changed below `BEGINS`, angles above its arccosine, other distances nowhere: they have no convention.
    """
    distance = measure.kind == "distance"
    # Both ends of the interval, signed so that larger means more changed: the one closer to no change first.
    near, far = (drift.ci_low, drift.ci_high) if distance else (-drift.ci_high, -drift.ci_low)
    most = int((drift.value - measure.unchanged).abs().to_numpy().argmax())
    tied = drift.layer[(far >= near.iloc[most]).to_numpy()]
    first = None
    if "band_low" in drift.columns and (not distance or measure.name in ANGLES):
        low, high = (np.cos(drift.band_high), np.cos(drift.band_low)) if distance else (drift.band_low, drift.band_high)
        first = onset(drift.layer.to_list(), low.to_list(), high.to_list(), queries.BEGINS).latest
    return {
        "measure": measure.name,
        "layer": int(drift.layer.iloc[most]),
        "tied": [int(layer) for layer in tied],
        "value": float(drift.value.iloc[most]),
        "first": first,
        "sensitivity": SENSITIVITY.get(measure.name, ""),
    }
