"""Figures over several runs: accuracy, differences and costs by the share of trained blocks, and drift by layer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from layerprobe.report import queries
from layerprobe.report.comparison.tables import FULL, Comparison
from layerprobe.report.costs import COSTS, format_cost
from layerprobe.report.section import Tables
from layerprobe.report.theme import COLOURS, PLAIN, add_band, add_trace, error_bars, label_measure, styled

SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "star")
DASHES = ("solid", "dash", "dot")
MARGIN = "#d8612f"
"""Colour of the margin."""


def quality(tables: Tables, comparison: Comparison) -> go.Figure:
    """Accuracy by the share of trained blocks: a line per run through its means, and seeds with their Wilson intervals."""
    figure = go.Figure()
    for number, label, colour, shift in _runs(comparison):
        part = _with_depth(tables["quality"], label)
        mean = part.groupby(["trained_share", "method"]).accuracy.mean().reset_index()
        _add_run(figure, number, label, mean.trained_share, mean.accuracy, mean.method, "%{customdata}: mean %{y:.4f}")
        bars = error_bars(part.accuracy, part.accuracy_low, part.accuracy_high, colour, thickness=1, width=0)
        hover = f"{label}, %{{customdata[0]}}, seed %{{customdata[1]}}: %{{y:.4f}} on %{{customdata[2]:,}} examples"
        options = {"mode": "markers", "marker": {"size": 5, "symbol": "circle-open"}, "showlegend": False}
        options |= {"error_y": bars, "customdata": part[["method", "seed", "n"]]}
        add_trace(figure, part.trained_share + 0.008 * shift, part.accuracy, label, colour, hover, **options)
    figure.update_yaxes(title="accuracy; higher is better")
    return _by_trained_blocks(figure, height=420)


def differences(tables: Tables, comparison: Comparison) -> go.Figure | None:
    """Accuracy minus the run's reference by the share of trained blocks, with bands that hold for all methods of a run."""
    table = queries.having(tables, "differences")
    if table is None:
        return None
    figure = go.Figure()
    for number, label, colour, shift in _runs(comparison):
        part = _with_depth(table, label)
        bars = error_bars(part.difference, part.band_low, part.band_high, colour, thickness=1.4)
        x, words = part.trained_share + 0.012 * shift, "%{customdata[0]} minus %{customdata[1]}: %{y:+.4f}"
        _add_run(figure, number, label, x, part.difference, part[["method", "reference"]], words, error_y=bars)
    figure.add_hline(y=0, line={"color": PLAIN, "width": 1})
    for margin in sorted({float(value) for value in table.margin.dropna()}):
        figure.add_hline(y=-margin, line={"color": MARGIN, "dash": "dash"})
    figure.update_yaxes(title="accuracy minus the run's reference<br>above the dashed margin is enough")
    return _by_trained_blocks(figure, height=420)


def drift(tables: Tables, comparison: Comparison, *, method: str) -> go.Figure | None:
    """The shared measure by layer, as a share of all blocks, for one method: a line per run with its band."""
    table = queries.having(tables, "drift")
    if table is None:
        return None
    figure = go.Figure()
    for number, label, colour, _ in _runs(comparison):
        part = table[(table.run == label) & (table.method == method)].sort_values("layer")
        if len(part):
            add_band(figure, part.share, part.ci_low, part.ci_high, colour)
            words = "layer %{customdata[0]}, seed %{customdata[1]}: %{y:.4f}"
            _add_run(figure, number, label, part.share, part.value, part[["layer", "seed"]], words)
    figure.update_xaxes(title="layer, as a share of all blocks", range=[-0.03, 1.03])
    label_measure(figure, queries.measure(table.measure.iloc[0], comparison.runs[0].record))
    return styled(figure, height=400)


def cost(tables: Tables, comparison: Comparison, *, cost: str = "flops") -> go.Figure | None:
    """One cost by the share of trained blocks, as a share of each run's reference; None if no run measured it."""
    table = queries.having(tables, "cost", cost)
    if table is None:
        return None
    figure = go.Figure()
    for number, label, _, _ in _runs(comparison):
        part = _with_depth(table, label)
        base = part[cost][part.method == part.reference]
        if len(base) and base.iloc[0] > 0:
            words = [[name, format_cost(value, cost)] for name, value in zip(part.method, part[cost], strict=True)]
            template = "%{customdata[0]}: %{customdata[1]} (%{y:.1%} of its reference)"
            _add_run(figure, number, label, part.trained_share, part[cost] / base.iloc[0], words, template)
    if not figure.data:
        return None
    figure.update_yaxes(title=f"{COSTS[cost].label}<br>share of the reference's", tickformat=".0%", rangemode="tozero")
    return _by_trained_blocks(figure, height=400)


def _runs(comparison: Comparison) -> Iterator[tuple[int, str, str, float]]:
    """Number, label and colour of each run, and its number relative to the middle one, to shift points by."""
    for number, label in enumerate(comparison.labels):
        yield number, label, COLOURS[number % len(COLOURS)], number - (len(comparison.labels) - 1) / 2


def _with_depth(table: pd.DataFrame, label: str) -> pd.DataFrame:
    """A run's methods that have a depth, in order of it."""
    return table[(table.run == label) & table.trained_share.notna()].sort_values("trained_share")


def _add_run(
    figure: go.Figure, number: int, label: str, x: Any, y: Any, customdata: Any, words: str, **options: Any
) -> None:
    """Add the line of one run, in the style of its number; `words` is the hover text after its label."""
    line = {"dash": DASHES[number // len(COLOURS) % len(DASHES)]}
    options |= {"line": line, "marker": {"size": 9, "symbol": SYMBOLS[number % len(SYMBOLS)]}, "customdata": customdata}
    add_trace(figure, x, y, label, COLOURS[number % len(COLOURS)], f"{label}, {words}", **options)


def _by_trained_blocks(figure: go.Figure, *, height: int) -> go.Figure:
    figure.update_xaxes(
        title="share of the blocks that were trained",
        tickmode="array",
        tickvals=[0, 0.25, 0.5, 0.75, 1, FULL],
        ticktext=["head", "¼", "½", "¾", "all", "full"],
        tickangle=0,
        range=[-0.05, FULL + 0.05],
    )
    return styled(figure, height=height)
