"""Figures across runs: quality, cost and drift by the share of the blocks that were trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from layerprobe.report._depth_figures import COSTS, PLAIN, VERDICTS, spoken
from layerprobe.report._findings import NAMES, top
from layerprobe.report.theme import COLOURS, styled

SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "star")
FULL = 1.12
"""Where full stands: beyond all blocks, since it trains the embeddings, too."""


def depth_share(method: str, n_layers: int) -> float | None:
    """The share of the blocks that a method trains; None where it has no depth."""
    if method == "head":
        return 0.0
    if method == "full":
        return FULL
    return int(method.removeprefix("top:")) / n_layers if method.startswith("top:") else None


def quality(rows: pd.DataFrame, labels: Sequence[str]) -> go.Figure:
    """Accuracy by depth: a line through each run's means, its seeds as points with Wilson intervals."""
    figure = go.Figure()
    for number, label in enumerate(labels):
        part = rows[(rows.run == label) & rows.depth.notna()].sort_values("depth")
        mean = part.groupby(["depth", "method"]).accuracy.mean().reset_index()
        look = _look(number)
        figure.add_scatter(
            x=mean.depth,
            y=mean.accuracy,
            mode="lines+markers",
            name=label,
            line=look["line"],
            marker={"size": 9, **look["marker"]},
            customdata=mean.method,
            hovertemplate=f"{label}, %{{customdata}}: mean %{{y:.4f}}<extra></extra>",
        )
        figure.add_scatter(
            x=part.depth + 0.008 * (number - (len(labels) - 1) / 2),
            y=part.accuracy,
            mode="markers",
            showlegend=False,
            marker={"size": 5, "color": look["marker"]["color"], "symbol": "circle-open"},
            error_y={
                "type": "data",
                "symmetric": False,
                "array": part.accuracy_high - part.accuracy,
                "arrayminus": part.accuracy - part.accuracy_low,
                "color": look["marker"]["color"],
                "thickness": 1,
                "width": 0,
            },
            customdata=part[["method", "seed", "n"]],
            hovertemplate=f"{label}, %{{customdata[0]}}, seed %{{customdata[1]}}: %{{y:.4f}} on %{{customdata[2]:,}} texts<extra></extra>",
        )
    figure.update_yaxes(title="accuracy; higher is better")
    return styled(_by_depth(figure), height=420)


def differences(rows: pd.DataFrame, labels: Sequence[str]) -> go.Figure:
    """Accuracy less each run's own reference by depth, with the bands that hold for all of a run's methods at once."""
    figure = go.Figure()
    for number, label in enumerate(labels):
        part = rows[(rows.run == label) & rows.depth.notna()].sort_values("depth")
        look = _look(number)
        figure.add_scatter(
            x=part.depth + 0.012 * (number - (len(labels) - 1) / 2),
            y=part.difference,
            mode="lines+markers",
            name=label,
            line=look["line"],
            marker={"size": 9, **look["marker"]},
            error_y={
                "type": "data",
                "symmetric": False,
                "array": part.band_high - part.difference,
                "arrayminus": part.difference - part.band_low,
                "color": look["marker"]["color"],
                "thickness": 1.4,
            },
            customdata=part[["method", "reference"]],
            hovertemplate=f"{label}, %{{customdata[0]}} less %{{customdata[1]}}: %{{y:+.4f}}<extra></extra>",
        )
    figure.add_hline(y=0, line={"color": PLAIN, "width": 1})
    for margin in sorted({float(value) for value in rows.margin.dropna()}):
        figure.add_hline(y=-margin, line={"color": VERDICTS["inferior"][0], "dash": "dash"})
    figure.update_yaxes(title="accuracy less the run's reference<br>above the dashed margin is enough")
    return styled(_by_depth(figure), height=420)


def drift(rows: pd.DataFrame, labels: Sequence[str], method: str, measure: str) -> go.Figure:
    """One measure by relative depth of the layer, a line a run with its band, for one method."""
    figure = go.Figure()
    for number, label in enumerate(labels):
        part = rows[(rows.run == label) & (rows.method == method)].sort_values("layer")
        if part.empty:
            continue
        look = _look(number)
        figure.add_scatter(
            x=[*part.share, *part.share[::-1]],
            y=[*part.ci_high, *part.ci_low[::-1]],
            fill="toself",
            fillcolor=look["marker"]["color"],
            opacity=0.2,
            line={"width": 0},
            hoverinfo="skip",
            showlegend=False,
        )
        figure.add_scatter(
            x=part.share,
            y=part.value,
            mode="lines+markers",
            name=label,
            line=look["line"],
            marker={"size": 8, **look["marker"]},
            customdata=part[["layer", "seed"]],
            hovertemplate=f"{label}, layer %{{customdata[0]}}, seed %{{customdata[1]}}: %{{y:.4f}}<extra></extra>",
        )
    figure.update_xaxes(title="layer, as a share of all blocks", range=[-0.03, 1.03])
    sense = "lower" if top(measure) else "higher"
    figure.update_yaxes(title=f"{NAMES.get(measure, measure)}<br>{sense} = more changed", rangemode="tozero")
    return styled(figure, height=400)


def costs(rows: pd.DataFrame, labels: Sequence[str], cost: str) -> go.Figure | None:
    """One cost by depth as a share of each run's own reference; None where no run can tell it."""
    figure = go.Figure()
    for number, label in enumerate(labels):
        part = rows[(rows.run == label) & rows.depth.notna()].sort_values("depth")
        base = part[part.method == part.reference]
        if cost not in part or base.empty or not float(base[cost].iloc[0]) > 0:
            continue
        look = _look(number)
        figure.add_scatter(
            x=part.depth,
            y=part[cost] / float(base[cost].iloc[0]),
            mode="lines+markers",
            name=label,
            line=look["line"],
            marker={"size": 9, **look["marker"]},
            customdata=[[name, spoken(value, cost)] for name, value in zip(part.method, part[cost], strict=True)],
            hovertemplate=f"{label}, %{{customdata[0]}}: %{{customdata[1]}} (%{{y:.1%}} of its reference)<extra></extra>",
        )
    if not figure.data:
        return None
    figure.update_yaxes(title=f"{COSTS[cost][0]}<br>share of the reference's", tickformat=".0%", rangemode="tozero")
    return styled(_by_depth(figure), height=400)


def _look(number: int) -> Mapping[str, Any]:
    colour, symbol = COLOURS[number % len(COLOURS)], SYMBOLS[number % len(SYMBOLS)]
    dash = ("solid", "dash", "dot")[number // len(COLOURS) % 3]
    return {"line": {"color": colour, "dash": dash}, "marker": {"color": colour, "symbol": symbol}}


def _by_depth(figure: go.Figure) -> go.Figure:
    return figure.update_xaxes(
        title="share of the blocks that were trained",
        tickmode="array",
        tickvals=[0, 0.25, 0.5, 0.75, 1, FULL],
        ticktext=["head", "¼", "½", "¾", "all", "full"],
        tickangle=0,
        range=[-0.05, FULL + 0.05],
    )
