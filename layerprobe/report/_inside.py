"""Figures of what adaptation did inside: probes by layer, interventions on blocks, changed weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go

from layerprobe.report._depth_figures import PLAIN, short
from layerprobe.report.theme import SCALE, styled

if TYPE_CHECKING:
    import pandas as pd

EVERY = "every method"
SIDES = {"base": ("#4f63d9", "base"), "adapted": ("#d8612f", "adapted")}
CONTROLS = (
    ("control_accuracy", "dot", "random labels"),
    ("control_train_accuracy", "dashdot", "random labels learnt by heart"),
)
"""Column, dash, words."""
KINDS = {
    "weights": ("#d8612f", "circle", "block's weights taken back to base's"),
    "skipped": ("#4f63d9", "square", "blocks above this layer skipped"),
    "stitched": ("#1f8f7a", "diamond", "base's layer given, adapted above it"),
    "pooler": ("#9a52c6", "star", "pooler's weights taken back to base's"),
}
ROLES = (
    "embeddings",
    "query",
    "key",
    "value",
    "query_key_value",
    "attention_output",
    "feed_forward_in",
    "feed_forward_in_gate",
    "feed_forward_out",
    "pooler",
    "other",
)
QUANTITIES = {
    "relative_change": ("relative change", "|W' – W| / |W|", ".2%"),
    "intruder_dimensions": ("intruder dimensions", "of the top k", ".0f"),
    "stable_rank_change": ("stable rank of the change", "", ".1f"),
}


def probes(table: pd.DataFrame, names: Sequence[str]) -> dict[str, Any]:
    """What a linear probe reads by layer: all methods as a grid, then each method with its control and selectivity."""
    shown = [name for name in names if name in set(table.method)]
    found = {}
    if len(shown) > 1:
        rows = {"base": table[(table.method == shown[0]) & (table.side == "base")]}
        rows |= {name: table[(table.method == name) & (table.side == "adapted")] for name in shown}
        found[EVERY] = _grid(
            {name: part.groupby("layer").accuracy.mean() for name, part in rows.items()}, "accuracy", ".3f", SCALE
        )
    return found | {name: _probes_of(table[table.method == name]) for name in shown}


def _probes_of(rows: pd.DataFrame) -> Any:
    from plotly.subplots import make_subplots

    figure = make_subplots(
        rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.14, subplot_titles=("Accuracy", "Selectivity")
    )
    for side, (colour, words) in SIDES.items():
        for i, (seed, part) in enumerate(rows[rows.side == side].sort_values("layer").groupby("seed")):
            if side == "base" and i:  # one base, whatever the seed
                continue
            for line, value, panel in (("accuracy", "accuracy", 1), ("selectivity", "selectivity", 2)):
                figure.add_scatter(
                    x=part.layer,
                    y=part[value],
                    mode="lines+markers" if i == 0 else "markers",
                    marker={"symbol": "circle" if i == 0 else "circle-open"},
                    line={"color": colour},
                    name=words,
                    legendgroup=words,
                    showlegend=i == 0 and panel == 1,
                    error_y=_bars(part, line, colour) if i == 0 else None,
                    hovertemplate=f"{words}, seed {seed}, layer %{{x}}: {value} %{{y:.4f}}<extra></extra>",
                    row=panel,
                    col=1,
                )
            for column, dash, told in CONTROLS if i == 0 else ():
                figure.add_scatter(
                    x=part.layer,
                    y=part[column],
                    mode="lines",
                    line={"color": colour, "dash": dash},
                    name=f"{words}: {told}",
                    hovertemplate=f"{words}, layer %{{x}}: {told} %{{y:.4f}}<extra></extra>",
                    row=1,
                    col=1,
                )
    figure.update_xaxes(dtick=1)
    figure.update_xaxes(title="layer (0 = embeddings)", row=2, col=1)
    return styled(figure, height=520).to_plotly_json()


def interventions(table: pd.DataFrame, names: Sequence[str]) -> dict[str, Any]:
    """Accuracy with parts of the adapted model taken back: the loss by block for all methods, then each method."""
    shown = [name for name in names if name in set(table.method)]
    found = {}
    if len(shown) > 1:
        rows = {name: table[(table.method == name) & (table.kind == "weights")] for name in shown}
        grid = {name: part.groupby("layer").difference.mean() for name, part in rows.items()}
        found[EVERY] = _grid(grid, "change of accuracy", "+.3f", "RdBu", middle=0.0)
    return found | {name: _interventions_of(table[table.method == name]) for name in shown}


def _interventions_of(rows: pd.DataFrame) -> Any:
    figure, seeds = go.Figure(), sorted(rows.seed.unique())
    untouched = rows[(rows.kind == "untouched") & (rows.seed == seeds[0])]
    if len(untouched):
        figure.add_hline(y=float(untouched.accuracy.iloc[0]), line={"color": PLAIN, "dash": "dash"})
    for kind, (colour, symbol, words) in KINDS.items():
        for i, seed in enumerate(seeds):
            part = rows[(rows.kind == kind) & (rows.seed == seed)].sort_values("layer")
            if part.empty:
                continue
            figure.add_scatter(
                x=part.layer,
                y=part.accuracy,
                mode="lines+markers" if i == 0 and kind != "pooler" else "markers",
                name=words,
                showlegend=i == 0,
                line={"color": colour},
                marker={"symbol": symbol if i == 0 else f"{symbol}-open", "size": 9 if i == 0 else 6, "color": colour},
                error_y=_bars(part, "accuracy", colour) if i == 0 else None,
                customdata=part[["difference", "difference_low", "difference_high"]],
                hovertemplate=(
                    f"seed {seed}, layer %{{x}}, {words}: %{{y:.4f}}<br>against the untouched model %{{customdata[0]:+.4f}} "
                    "(%{customdata[1]:+.4f} to %{customdata[2]:+.4f})<extra></extra>"
                ),
            )
    figure.update_xaxes(title="layer (0 = embeddings)", dtick=1)
    figure.update_yaxes(title="accuracy of what is left")
    return styled(figure, height=440).to_plotly_json()


def weights(table: pd.DataFrame, names: Sequence[str]) -> dict[str, Any]:
    """Layer by role for each method and quantity, keys `method|quantity`; of several matrices the largest, over seeds the mean."""
    found = {}
    for name in sorted(names, key=lambda name: name != "full"):  # the page opens with it
        rows = table[table.method == name]
        for column, (words, unit, form) in QUANTITIES.items():
            if rows.empty or column not in rows:
                continue
            cells = rows.groupby(["seed", "role", "layer"])[column].max().groupby(["role", "layer"]).mean()
            roles = [role for role in ROLES if role in cells.index.get_level_values(0)]
            lines = {role.replace("_", " "): cells.loc[role] for role in roles}
            title = f"{words}<br>{unit}" if unit else words
            high = table[column].max()
            found[f"{name}|{words}"] = _grid(lines, title, form, SCALE, high=None if high != high else float(high))
    return found


def _grid(
    lines: dict[str, pd.Series],
    title: str,
    form: str,
    scale: str,
    *,
    middle: float | None = None,
    high: float | None = None,
) -> Any:
    """One row a name, one cell a layer, its value written in it."""
    layers = sorted({int(layer) for line in lines.values() for layer in line.index})
    z = [[float(line.get(layer, float("nan"))) for layer in layers] for line in lines.values()]
    known = [abs(value) for row in z for value in row if value == value]
    bounds: dict[str, Any] = {}
    if middle is not None:
        reach = max([*known, 1e-6])
        bounds = {"zmin": middle - reach, "zmax": middle + reach}
    elif high:
        bounds = {"zmin": 0, "zmax": high}
    figure = go.Figure(
        go.Heatmap(
            z=[[None if value != value else value for value in row] for row in z],
            x=layers,
            y=[short(name) for name in lines],
            colorscale=scale,
            xgap=2,
            ygap=2,
            texttemplate=f"%{{z:{form}}}",
            textfont={"size": 11},
            hoverongaps=False,
            hovertemplate=f"%{{y}}, layer %{{x}}: %{{z:{form}}}<extra></extra>",
            colorbar={"title": {"text": title, "side": "right"}, "thickness": 10, "tickformat": form},
            **bounds,
        )
    )
    figure.update_xaxes(title="layer (0 = embeddings)", dtick=1, showgrid=False)
    figure.update_yaxes(autorange="reversed", showgrid=False, type="category")
    figure = styled(figure, height=150 + 34 * len(lines))
    figure.update_xaxes(zeroline=False)
    return figure.to_plotly_json()


def _bars(part: pd.DataFrame, column: str, colour: str) -> dict[str, Any]:
    return {
        "type": "data",
        "symmetric": False,
        "array": part[f"{column}_high"] - part[column],
        "arrayminus": part[column] - part[f"{column}_low"],
        "color": colour,
        "thickness": 1.2,
    }
