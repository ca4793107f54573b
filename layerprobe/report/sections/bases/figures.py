"""Figures of the label effect: dictionaries and controls from base to adapted, and the excess over each control."""

from __future__ import annotations

from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from layerprobe.record import RunRecord
from layerprobe.report import queries
from layerprobe.report.section import Tables
from layerprobe.report.theme import COLOURS, PLAIN, error_bars, styled

BLUE, VERMILLION, GREEN, PINK, ORANGE, SKY = COLOURS
BASES = {
    "trained": ("trained dictionary", VERMILLION, "circle"),
    "untrained": ("untrained dictionary", BLUE, "square"),
    "random directions": ("random directions", SKY, "diamond"),
    "neurons": ("neurons", GREEN, "cross"),
    "principal components": ("principal components", PINK, "x"),
    "frozen-decoder": ("frozen random decoder", ORANGE, "triangle-up"),
    "soft-frozen-decoder": ("soft-frozen random decoder", ORANGE, "triangle-down"),
    "frozen-encoder": ("frozen random encoder", ORANGE, "triangle-right"),
    "base dictionary": ("base's dictionary on adapted", PLAIN, "star"),
}
"""Basis -> name, colour, symbol; in the order of the legend."""
PANELS = {False: "all rows as they are", True: "between-label mean directions removed"}
SPREAD = 0.75
"""Width of the points of one layer on an axis of layers."""


def of_method(tables: Tables, record: RunRecord, name: str, method: str | None) -> pd.DataFrame | None:
    """Rows of a method, by default of the main one; None if there are none."""
    table = queries.having(tables, name)
    method = method or queries.main_method(queries.changed(tables, record), record)
    rows = None if table is None else table[table.method == method]
    return None if rows is None or rows.empty else rows


def basis_effects(tables: Tables, record: RunRecord, *, method: str | None = None) -> go.Figure | None:
    """Mean label effect of each basis by layer, from base (open) to adapted (filled), with and without a label shift."""
    rows = of_method(tables, record, "basis_controls", method)
    if rows is None:
        return None
    columns = ["label_effect", "label_effect_low", "label_effect_high"]
    means: Any = rows.groupby(["projected", "basis", "side", "layer"])[columns].mean()
    figure, layers = _panels(), sorted(rows.layer.unique())
    shown = [name for name in BASES if name in set(rows.basis)]
    for number, basis in enumerate(shown):
        name, colour, symbol = BASES[basis]
        for column, projected in enumerate(PANELS, start=1):
            sides = {
                side: means.loc[projected, basis, side].reindex(layers)
                for side in ("base", "adapted")
                if (projected, basis, side) in means.index.droplevel("layer")
            }
            x = _places(len(layers), number, len(shown))
            if len(sides) == 2:
                change = [
                    value
                    for pair in zip(sides["base"].label_effect, sides["adapted"].label_effect, strict=True)
                    for value in (*pair, None)
                ]
                line = {"x": [place for one in x for place in (one, one, None)], "y": change, "mode": "lines"}
                figure.add_scatter(
                    **line, line={"color": colour}, showlegend=False, hoverinfo="skip", row=1, col=column
                )
            for side, part in sides.items():
                figure.add_scatter(
                    x=x,
                    y=part.label_effect,
                    error_y=error_bars(part.label_effect, part.label_effect_low, part.label_effect_high, colour),
                    mode="markers",
                    name=name,
                    legendgroup=basis,
                    showlegend=column == 1 and side == "adapted",
                    marker={"symbol": symbol if side == "adapted" else f"{symbol}-open", "size": 9, "color": colour},
                    hovertemplate=f"{name}, {side}: %{{y:.3f}}<extra></extra>",
                    row=1,
                    col=column,
                )
    figure.update_yaxes(title="mean squared label effect<br>higher = more associated", col=1)
    return _by_layer(figure, layers, 430)


def basis_excess(tables: Tables, record: RunRecord, *, method: str | None = None) -> go.Figure | None:
    """The excess of the dictionaries' rise over that of each control by layer, with simultaneous intervals."""
    rows = of_method(tables, record, "basis_excess", method)
    if rows is None:
        return None
    figure, layers = _panels(), sorted(rows.layer.unique())
    shown = [name for name in BASES if name in set(rows.control)]
    for number, control in enumerate(shown):
        name, colour, symbol = BASES[control]
        for column, projected in enumerate(PANELS, start=1):
            part = rows[(rows.control == control) & (rows.projected == projected)].set_index("layer").reindex(layers)
            figure.add_scatter(
                x=_places(len(layers), number, len(shown)),
                y=part.excess,
                error_y=error_bars(part.excess, part.excess_low, part.excess_high, colour),
                mode="markers",
                name=name,
                legendgroup=control,
                showlegend=column == 1,
                marker={"symbol": symbol, "size": 9, "color": colour},
                hovertemplate=f"over {name}: %{{y:.3f}}<extra></extra>",
                row=1,
                col=column,
            )
    figure.add_hline(y=0, line={"color": PLAIN, "dash": "dash"})
    figure.update_yaxes(title="excess of the dictionaries' rise<br>above 0 = more than the control", col=1)
    return _by_layer(figure, layers, 400)


def _panels() -> go.Figure:
    return make_subplots(
        rows=1, cols=2, shared_yaxes=True, subplot_titles=list(PANELS.values()), horizontal_spacing=0.04
    )


def _places(layers: int, number: int, of: int) -> list[float]:
    """Positions of one basis, next to the others of its layer."""
    offset = SPREAD * ((number + 0.5) / of - 0.5)
    return [position + offset for position in range(layers)]


def _by_layer(figure: go.Figure, layers: list[int], height: int) -> go.Figure:
    ticks = {"tickvals": list(range(len(layers))), "ticktext": [f"layer {layer}" for layer in layers]}
    figure.update_xaxes(**ticks, range=[-0.5, len(layers) - 0.5])
    return styled(figure, height=height)
