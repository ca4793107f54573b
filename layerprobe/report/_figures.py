"""Figures: a tidy table in, a plotly figure out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go

from layerprobe.report._findings import BEGINS, drift_of, seeds_of, top, unit_of

if TYPE_CHECKING:
    import pandas as pd

# Okabe and Ito's palette, safe for colour-blind readers; black is left out, which a dark page would hide.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
SCALE = "Viridis"
NULLS = {"shuffled-texts": ("x-thin-open", "shuffled texts"), "seed-": ("diamond-open", "another seed")}
NAMES = {
    "paired_cosine": "Mean cosine of the same row",
    "cka": "CKA (debiased, linear)",
    "procrustes": "Procrustes similarity",
    "cka_angle": "CKA angle (radians)",
    "mean_cca": "Mean canonical correlation",
    "mean_squared_cca": "Mean squared canonical correlation",
    "svcca": "SVCCA",
    "pwcca": "PWCCA",
    "procrustes_angle": "Procrustes angle (radians)",
    "shape_distance": "Shape distance (radians)",
    "rsa": "RSA (correlation, Spearman)",
    "mutual_knn": "Mutual 10 nearest neighbours",
    "jaccard_knn": "Jaccard of 10 nearest neighbours",
    "linear_predictivity": "Linear predictivity (R²)",
    "token": "each token",
    "mean": "mean of each text",
    "cls": "first token of each text",
}


def layer_strip(similarity: pd.DataFrame, methods: Sequence[str]) -> go.Figure:
    """One row a method, one cell a layer: 1 - CKA (or cosine), outlined where change is beyond the null of none."""
    unit = unit_of(similarity)
    measure = "cka" if "cka" in set(similarity.measure) else "paired_cosine"
    shown = [name for name in methods if len(drift_of(similarity, name, measure, unit))]
    tables = [drift_of(similarity, name, measure, unit) for name in shown]
    layers = [int(layer) for layer in tables[0].layer]
    change = [[1 - value for value in table.value] for table in tables]
    hover = [
        [
            f"{name}, layer {row.layer}<br>{measure} {row.value:.4f} ({row.ci_low:.4f} to {row.ci_high:.4f})"
            for row in table.itertuples()
        ]
        for name, table in zip(shown, tables, strict=True)
    ]
    figure = go.Figure(
        go.Heatmap(
            z=change,
            x=layers,
            y=shown,
            colorscale=SCALE,
            zmin=0,
            zmax=1,
            xgap=3,
            ygap=3,
            text=hover,
            hoverinfo="text",
            colorbar={"title": f"1 - {measure}", "thickness": 12},
        )
    )
    for y, table in enumerate(tables):
        row: Any
        for x, row in enumerate(table.itertuples()):
            colour = "#111" if 1 - row.value > 0.6 else "#fff"
            figure.add_annotation(
                x=layers[x],
                y=y,
                text=f"{round(1 - row.value, 2) + 0.0:.2f}",
                showarrow=False,
                font={"color": colour, "size": 13},
            )
            if row.ci_high < BEGINS:
                figure.add_shape(
                    type="rect",
                    x0=layers[x] - 0.48,
                    x1=layers[x] + 0.48,
                    y0=y - 0.47,
                    y1=y + 0.47,
                    line={"color": "#D55E00", "width": 3},
                )
    figure.update_xaxes(title="layer (0 = embeddings)", dtick=1, showgrid=False)
    figure.update_yaxes(autorange="reversed", showgrid=False, type="category")
    return styled(figure, height=130 + 46 * len(shown))


def drift(
    similarity: pd.DataFrame, methods: Sequence[str], measure: str, unit: str, nulls: pd.DataFrame | None = None
) -> go.Figure:
    """A measure by layer with its interval, a line a method and seed, beside its nulls."""
    from layerprobe.report._depth_figures import colours

    figure, chosen = go.Figure(), colours(methods)
    for method in methods:
        colour = chosen[method]
        seeds = seeds_of(similarity, method)
        for i, seed in enumerate(seeds):
            table = drift_of(similarity, method, measure, unit, seed)
            if table.empty:
                continue
            band = {"x": [*table.layer, *table.layer[::-1]], "y": [*table.ci_high, *table.ci_low[::-1]]}
            figure.add_scatter(
                **band,
                fill="toself",
                fillcolor=colour,
                opacity=0.2,
                line={"width": 0},
                hoverinfo="skip",
                showlegend=False,
            )
            figure.add_scatter(
                x=table.layer,
                y=table.value,
                mode="lines+markers",
                name=method,
                legendgroup=method,
                showlegend=i == 0,
                line={"color": colour, "dash": "solid" if i == 0 else "dash"},
                hovertemplate=f"{method}, seed {seed}, layer %{{x}}: %{{y:.4f}}<extra></extra>",
            )
            null = drift_of(similarity, method, f"{measure}_baseline", unit, seed)
            if len(null) and i == 0:
                figure.add_scatter(
                    x=null.layer,
                    y=null.value,
                    mode="lines",
                    name="unrelated rows",
                    legendgroup="unrelated",
                    showlegend=method == methods[0],
                    line={"color": colour, "dash": "dot"},
                )
    figure.update_xaxes(title="layer (0 = embeddings)", dtick=1)
    for kind, (symbol, words) in NULLS.items():
        _add_null(figure, nulls, methods, measure, unit, kind, symbol, words)
    sense = "lower" if top(measure) else "higher"
    figure.update_yaxes(title=f"{NAMES.get(measure, measure)}<br>{sense} = more changed", rangemode="tozero")
    return styled(figure, height=380)


def _add_null(
    figure: go.Figure,
    nulls: pd.DataFrame | None,
    methods: Sequence[str],
    measure: str,
    unit: str,
    null: str,
    symbol: str,
    words: str,
) -> None:
    if nulls is None or nulls.empty:
        return
    rows = nulls[(nulls.measure == measure) & (nulls.unit == unit) & nulls.null.str.startswith(null)]
    from layerprobe.report._depth_figures import colours

    chosen, told = colours(methods), False
    for method in methods:
        part = rows[rows.method == method]
        part = part[part.seed == part.seed.min()].sort_values("layer")
        if part.empty:
            continue
        figure.add_scatter(
            x=part.layer,
            y=part.value,
            mode="markers",
            name=words,
            legendgroup=words,
            showlegend=not told,
            marker={"symbol": symbol, "size": 9, "color": chosen[method]},
            error_y={
                "type": "data",
                "symmetric": False,
                "array": part.high - part.value,
                "arrayminus": part.value - part.low,
            },
        )
        told = True


def by_unit(similarity: pd.DataFrame, method: str, measure: str) -> go.Figure:
    """One measure by layer for one method, a line a unit."""
    figure = go.Figure()
    for number, unit in enumerate(similarity.unit.unique()):
        table = drift_of(similarity, method, measure, unit)
        reach = {"array": table.ci_high - table.value, "arrayminus": table.value - table.ci_low}
        figure.add_scatter(
            x=table.layer,
            y=table.value,
            mode="lines+markers",
            name=NAMES.get(unit, unit),
            line={"color": COLOURS[number % len(COLOURS)]},
            error_y={"type": "data", "symmetric": False, **reach},
        )
    figure.update_xaxes(title="layer (0 = embeddings)", dtick=1)
    figure.update_yaxes(title=f"{NAMES.get(measure, measure)}<br>lower = more changed", rangemode="tozero")
    return styled(figure, height=340)


def grids(table: pd.DataFrame, method: str, unit: str, measure: str) -> go.Figure:
    """One measure of every layer with every layer: base with base, base with adapted, adapted with adapted."""
    from plotly.subplots import make_subplots

    rows = table[(table.method == method) & (table.unit == unit) & (table.measure == measure)]
    rows = rows[rows.seed == rows.seed.min()]
    pairs = [("base", "base"), ("base", "adapted"), ("adapted", "adapted")]
    figure = make_subplots(rows=1, cols=3, subplot_titles=[f"{a} × {b}" for a, b in pairs], horizontal_spacing=0.07)
    for column, (a, b) in enumerate(pairs, 1):
        square = rows[(rows.side_a == a) & (rows.side_b == b)].pivot(index="layer_a", columns="layer_b", values="value")
        figure.add_heatmap(
            z=square.to_numpy().tolist(),
            x=square.columns.tolist(),
            y=square.index.tolist(),
            coloraxis="coloraxis",
            row=1,
            col=column,
            hovertemplate=f"{a} layer %{{y}}, {b} layer %{{x}}: %{{z:.3f}}<extra></extra>",
        )
        figure.update_xaxes(title=f"layer of {b}", row=1, col=column, dtick=1)
        figure.update_yaxes(title=f"layer of {a}" if column == 1 else "", row=1, col=column, dtick=1)
    figure.update_layout(
        coloraxis={
            "colorscale": SCALE,
            "cmin": 0,
            "cmax": 1 if top(measure) else None,
            "colorbar": {"title": measure, "thickness": 12},
        }
    )
    return styled(figure, height=340)


def styled(figure: go.Figure, *, height: int) -> go.Figure:
    grid: dict[str, Any] = {
        "gridcolor": "rgba(128,128,128,.25)",
        "zerolinecolor": "rgba(128,128,128,.4)",
        "automargin": True,
    }
    figure.update_layout(
        height=height,
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        margin={"l": 60, "r": 20, "t": 36, "b": 50},
        font={"family": "system-ui, sans-serif", "size": 13},
        legend={"orientation": "h", "y": -0.22},
    )
    figure.update_xaxes(**grid)
    figure.update_yaxes(**grid)
    return figure
