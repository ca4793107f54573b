"""The layer strip: how much each layer changed under each method, on one small figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import plotly.graph_objects as go

from layerprobe.record import RunRecord
from layerprobe.report import queries
from layerprobe.report.queries import Drift
from layerprobe.report.section import Tables
from layerprobe.report.theme import EMPHASIS, SCALE, ink_on, label_layers, styled

if TYPE_CHECKING:
    import pandas as pd


def row_names(methods: Sequence[str], record: RunRecord) -> list[str]:
    """Short names of methods, or their full ones where two would be the same."""
    names = [queries.label(name, record) for name in methods]
    return names if len(set(names)) == len(names) else list(methods)


def drifts_by_method(tables: Tables, record: RunRecord) -> dict[str, Drift]:
    """What the layer strip shows of each method: CKA, or else the cosine, by layer."""
    similarity = queries.having(tables, "similarity")
    if similarity is None:
        return {}
    unit, measure = queries.unit_of(similarity), _measure(similarity)
    found = {
        name: queries.drift_over_seeds(similarity, name, measure, unit) for name in queries.methods(tables, record)
    }
    return {name: drift for name, drift in found.items() if drift is not None}


def _measure(similarity: pd.DataFrame) -> str:
    return "cka" if "cka" in set(similarity.measure) else "paired_cosine"


def layer_strip(tables: Tables, record: RunRecord) -> go.Figure | None:
    """One row per method, one cell per layer: 1 - CKA (or cosine), outlined where the layer changed (`queries.Drift`).

    Values are means over seeds; a layer changed if it did under every seed, by bands that hold for all layers at once.
    """
    measure = _measure(tables["similarity"])
    drifts = drifts_by_method(tables, record)
    if not drifts:
        return None
    layers = next(iter(drifts.values())).layers
    hover = [
        [
            f"{name}, layer {layer}<br>{measure} {value:.4f} (band {low:.4f} to {high:.4f})<br>{verdict}"
            for layer, value, low, high, verdict in zip(
                drift.layers, drift.value, drift.band_low, drift.band_high, drift.verdicts, strict=True
            )
        ]
        for name, drift in drifts.items()
    ]
    figure = go.Figure(
        go.Heatmap(
            z=[[1 - value for value in drift.value] for drift in drifts.values()],
            x=list(layers),
            y=row_names(list(drifts), record),
            colorscale=SCALE,
            zmin=0,
            zmax=1,
            xgap=3,
            ygap=3,
            text=hover,
            hoverinfo="text",
            colorbar={"title": f"1 − {measure.upper() if measure == 'cka' else measure}", "thickness": 12},
        )
    )
    for y, drift in enumerate(drifts.values()):
        for x, value, verdict in zip(layers, drift.value, drift.verdicts, strict=True):
            change = 1 - value
            figure.add_annotation(
                x=x,
                y=y,
                text=f"{round(change, 2) + 0.0:.2f}",
                showarrow=False,
                font={"color": ink_on(change), "size": 13},
            )
            if verdict == "changed":
                figure.add_shape(
                    type="rect",
                    x0=x - 0.48,
                    x1=x + 0.48,
                    y0=y - 0.47,
                    y1=y + 0.47,
                    line={"color": EMPHASIS, "width": 3},
                )
    label_layers(figure, showgrid=False)
    figure.update_yaxes(autorange="reversed", showgrid=False, type="category")
    return styled(figure, height=130 + 46 * len(drifts))
