"""Tables of the section: drift compared with its nulls, and the agreement of measures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from layerprobe.onsets import onset
from layerprobe.record import MeasureRecord, RunRecord
from layerprobe.report import queries
from layerprobe.report.section import Tables
from layerprobe.report.sections.drift.chance import beyond, chance_sentence
from layerprobe.report.sections.drift.figures import methods_shown

READINGS = {
    "cka": "unrelated representations score about 0, and pairs of tokens of one example are left out",
    "paired_cosine": "cosine between the same token's vectors in base and adapted; compare it with the dotted line, the cosine of random rows of different examples, which is high where all vectors point one way",
    "procrustes": "how well one side fits the other after the best rotation; unrelated data do not score 0 (about .68 at 500 rows of 384 features), so compare it with shuffled examples",
}
"""How to read the values of a measure."""
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
    main, grid = queries.main_method(changed, record), queries.having(tables, "similarity_grid")
    measures = queries.measures(similarity, record)
    return {
        "rows": queries.rows_compared(tables, names),
        "measures": {name: queries.measure(name, record).label for name in measures},
        "readings": {
            queries.measure(name, record).label: "; ".join(filter(None, (READINGS.get(name), SENSITIVITY.get(name))))
            for name in measures
        },
        "nulls": queries.having(tables, "similarity_nulls") is not None,
        "controls": queries.controls(record),
        "chance": chance_sentence(tables, record, main) if main else "",
        "methods": methods_shown(tables, record),
        "panels": [
            {
                "method": method,
                "beyond": beyond(tables, record, method),
                "chance": chance_sentence(tables, record, method),
                "agreement": agreement(tables, record, method),
            }
            for method in methods_shown(tables, record)
        ],
        "removed": _removed(similarity),
        "unchanged": queries.unchanged(tables, record),
        "grid_measures": {name: queries.measure(name, record).label for name in measures_of(grid)},
    }


def measures_of(grid: pd.DataFrame | None) -> list[str]:
    """Measures of every pair of layers, CKA first."""
    return [] if grid is None else sorted(dict.fromkeys(grid.measure), key=lambda name: name != "cka")


def _removed(similarity: pd.DataFrame) -> int | None:
    """Largest number of leading directions that were removed in the robustness check; None without it."""
    if "directions_removed" not in similarity.columns:
        return None
    return int(similarity.directions_removed.max()) or None


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
        short = f"largest estimated change at layer {next(iter(by_layer))} by all {len(rows)}"
        text = f"All {len(rows)} measures have their largest estimated change at layer {next(iter(by_layer))}."
    else:
        layers = "; ".join(
            f"layer {layer}: {', '.join(names)}" for layer, names in sorted(by_layer.items(), reverse=True)
        )
        short = "largest estimated change at different layers"
        text = (
            f"The measures have their largest estimated change at different layers ({layers}). What each is invariant to explains why: a layer "
            "that changed by cosine or Procrustes and not by CKA or CCA was rotated or rescaled, which a linear readout above "
            "it can undo; one that changed by neighbourhoods or RSA was rearranged."
        )
    return {"rows": rows, "short": short, "text": text}


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
