"""Figures over several runs as small multiples: accuracy, differences and costs by depth, and drift by layer."""

from __future__ import annotations

import html
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from layerprobe.report import queries
from layerprobe.report.comparison.tables import FULL, Comparison
from layerprobe.report.costs import COSTS, format_cost
from layerprobe.report.literal import literal
from layerprobe.report.section import Tables
from layerprobe.report.theme import COLOURS, PLAIN, add_band, add_trace, error_bars, label_measure, styled

SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "star")
DASHES = ("solid", "dash", "dot")
MARGIN = "#d8612f"
"""Colour of the margin."""
ACROSS = 3
"""Panels next to each other."""
Place = dict[str, int]
"""Row and column of a panel."""


def quality(tables: Tables, comparison: Comparison) -> go.Figure:
    """Accuracy by the share of trained blocks, a panel per set of test examples: a line per run through its means, and
    seeds with their Wilson intervals. Runs of methods without a depth, such as checkpoints, get a row each.
    """
    if tables["quality"].trained_share.isna().all():
        return _by_run(tables, comparison)
    alone = [[label] for label in comparison.labels if not any(label in group for group in comparison.groups)]
    sets = [*comparison.groups, *alone]
    figure, places = _panels([_title(labels, comparison) for labels in sets] if len(sets) > 1 else [""])
    for place, labels in zip(places, sets, strict=True):
        for number, label, colour, shift in _runs(comparison, labels):
            part = _with_depth(tables["quality"], label)
            mean = part.groupby(["trained_share", "method"]).accuracy.mean().reset_index()
            words = "%{customdata}: mean %{y:.4f}"
            _add_run(figure, place, number, label, mean.trained_share, mean.accuracy, mean.method, words)
            bars = error_bars(part.accuracy, part.accuracy_low, part.accuracy_high, colour, thickness=1, width=0)
            hover = f"{label}, %{{customdata[0]}}, seed %{{customdata[1]}}: %{{y:.4f}} on %{{customdata[2]:,}} examples"
            options = {"mode": "markers", "marker": {"size": 5, "symbol": "circle-open"}, "showlegend": False, **place}
            options |= {"error_y": bars, "customdata": part[["method", "seed", "n"]], "legendgroup": label}
            add_trace(figure, part.trained_share + 0.008 * shift, part.accuracy, label, colour, hover, **options)
    _title_left(figure, places, "accuracy; higher is better")
    return _by_trained_blocks(figure, places)


def _by_run(tables: Tables, comparison: Comparison) -> go.Figure:
    """Accuracy of each run's methods with Wilson intervals, one row per run."""
    figure = go.Figure()
    for number, label, colour, _ in _runs(comparison):
        part = tables["quality"][tables["quality"].run == label]
        marker = {"size": 9, "symbol": SYMBOLS[number % len(SYMBOLS)]}
        bars = error_bars(part.accuracy, part.accuracy_low, part.accuracy_high, colour, thickness=1.4)
        hover = f"{label}, %{{customdata[0]}}: %{{x:.4f}} on %{{customdata[1]:,}} examples"
        options = {"mode": "markers", "marker": marker, "error_x": bars, "showlegend": False}
        rows = [_wrapped(label)] * len(part)
        add_trace(figure, part.accuracy, rows, label, colour, hover, customdata=part[["method", "n"]], **options)
    figure.update_xaxes(title="accuracy; higher is better")
    figure.update_yaxes(type="category", autorange="reversed")
    return styled(figure, height=130 + 46 * len(comparison.labels))


def differences(tables: Tables, comparison: Comparison) -> go.Figure | None:
    """Accuracy minus the run's reference by the share of trained blocks, with bands that hold for all methods of a run: a
    panel per run, with its margin.
    """
    table = queries.having(tables, "differences")
    if table is None:
        return None
    labels = [label for label in comparison.labels if label in set(table.run)]
    figure, places = _panels([_wrapped(label) for label in labels], shared_yaxes="all")
    for place, label in zip(places, labels, strict=True):
        (number, _, colour, _) = next(_runs(comparison, [label]))
        part = _with_depth(table, label)
        bars = error_bars(part.difference, part.band_low, part.band_high, colour, thickness=1.4)
        words = "%{customdata[0]} minus %{customdata[1]}: %{y:+.4f}"
        named, options = part[["method", "reference"]], {"error_y": bars, "showlegend": False}
        _add_run(figure, place, number, label, part.trained_share, part.difference, named, words, **options)
        figure.add_hline(y=0, line={"color": PLAIN, "width": 1}, **place)
        for margin in sorted({float(value) for value in part.margin.dropna()}):
            figure.add_hline(y=-margin, line={"color": MARGIN, "dash": "dash"}, **place)
    _title_left(figure, places, "accuracy minus the run's reference; above the dashed margin is enough")
    return _by_trained_blocks(figure, places)


def drift(tables: Tables, comparison: Comparison) -> go.Figure | None:
    """The shared measure by layer, as a share of all blocks: a panel per match of methods, a line per run with its band."""
    table = queries.having(tables, "drift")
    if table is None:
        return None
    figure, places = _panels([_wrapped(match.name) for match in comparison.matches], shared_yaxes="all")
    for place, match in zip(places, comparison.matches, strict=True):
        for (number, label, colour, _), method in zip(_runs(comparison), match.methods, strict=True):
            part = table[(table.run == label) & (table.method == method)].sort_values("layer")
            if len(part):
                add_band(figure, part.share, part.ci_low, part.ci_high, colour, legendgroup=label, **place)
                words = "layer %{customdata[0]}, seed %{customdata[1]}: %{y:.4f}"
                _add_run(figure, place, number, label, part.share, part.value, part[["layer", "seed"]], words)
    if not figure.data:
        return None
    figure.update_xaxes(range=[-0.03, 1.03])
    _title_below(figure, places, "layer, as a share of all blocks")
    label_measure(figure, queries.measure(table.measure.iloc[0], comparison.runs[0].record))
    measure = figure.layout.yaxis.title.text
    figure.update_yaxes(title=None)
    _title_left(figure, places, measure)
    return styled(figure, height=_height(places))


def cost(tables: Tables, comparison: Comparison) -> go.Figure | None:
    """Costs by the share of trained blocks, as shares of each run's reference: a panel per cost that some run measured."""
    table = queries.having(tables, "cost")
    measured = [name for name in COSTS if table is not None and name in table and table[name].notna().any()]
    if table is None or not measured:
        return None
    figure, places = _panels([COSTS[name].label for name in measured])
    for place, name in zip(places, measured, strict=True):
        for number, label, _, _ in _runs(comparison):
            part = _with_depth(table, label)
            base = part[name][part.method == part.reference]
            if len(base) and base.iloc[0] > 0:
                words = [
                    [method, format_cost(value, name)] for method, value in zip(part.method, part[name], strict=True)
                ]
                template = "%{customdata[0]}: %{customdata[1]} (%{y:.1%} of its reference)"
                _add_run(figure, place, number, label, part.trained_share, part[name] / base.iloc[0], words, template)
    if not figure.data:
        return None
    figure.update_yaxes(tickformat=".0%", rangemode="tozero")
    _title_left(figure, places, "share of the reference's")
    return _by_trained_blocks(figure, places)


# Panels ---------------------------------------------------------------------------------------------------------------


def _panels(titles: Sequence[str], **options: Any) -> tuple[go.Figure, list[Place]]:
    """A figure with one panel per title, and the places of the panels."""
    across = min(ACROSS, len(titles))
    rows = -(-len(titles) // across)
    places = [{"row": 1 + number // across, "col": 1 + number % across} for number in range(len(titles))]
    filled = {(place["row"], place["col"]) for place in places}
    figure = make_subplots(
        rows=rows,
        cols=across,
        subplot_titles=[title for title in titles if title] or None,
        specs=[[{} if (row, col) in filled else None for col in range(1, across + 1)] for row in range(1, rows + 1)],
        horizontal_spacing=0.08 if across > 1 else 0,
        vertical_spacing=0.36 / rows if rows > 1 else 0,
        **options,
    )
    figure.update_annotations(font_size=13)
    return figure, places


def _height(places: Sequence[Place]) -> int:
    rows = max(place["row"] for place in places)
    return 380 if rows == 1 else 60 + 290 * rows


def _title_left(figure: go.Figure, places: Sequence[Place], text: str) -> None:
    """Title the y axes of the first column."""
    for place in places:
        if place["col"] == 1:
            figure.update_yaxes(title=text, **place)


def _title_below(figure: go.Figure, places: Sequence[Place], text: str) -> None:
    """Title the x axes that have no panel below them."""
    last = {place["col"]: place for place in places}
    for place in last.values():
        figure.update_xaxes(title={"text": text, "font": {"size": 12}}, **place)


def _title(labels: Sequence[str], comparison: Comparison) -> str:
    """Title of a panel with these runs: their data set, or the run if it is alone."""
    if len(labels) == 1:
        return _wrapped(labels[0])
    names = [run.record.data.name for run in comparison.runs if run.label in labels and run.record.data]
    return _wrapped(names[0]) if len(set(names)) == 1 else _wrapped(", ".join(labels))


def _wrapped(text: str) -> str:
    """A text of the data as the title of a panel: two lines at most. It is literal, and entities are not cut."""
    lines = textwrap.wrap(html.unescape(text), 34, max_lines=2, placeholder=" …")
    return "<br>".join(map(literal, lines))


def _runs(comparison: Comparison, labels: Sequence[str] | None = None) -> Iterator[tuple[int, str, str, float]]:
    """Number, label and colour of each run or of some, and its number relative to the middle one, to shift points by."""
    for number, label in enumerate(comparison.labels):
        if labels is None or label in labels:
            yield number, label, COLOURS[number % len(COLOURS)], number - (len(comparison.labels) - 1) / 2


def _with_depth(table: pd.DataFrame, label: str) -> pd.DataFrame:
    """A run's methods that have a depth, in order of it."""
    return table[(table.run == label) & table.trained_share.notna()].sort_values("trained_share")


def _add_run(
    figure: go.Figure,
    place: Place,
    number: int,
    label: str,
    x: Any,
    y: Any,
    customdata: Any,
    words: str,
    **options: Any,
) -> None:
    """Add the line of one run to a panel, in the style of its number; `words` is the hover text after its label."""
    colour = COLOURS[number % len(COLOURS)]
    marker = {"size": 8, "symbol": SYMBOLS[number % len(SYMBOLS)]}
    line = {"dash": DASHES[number // len(COLOURS) % len(DASHES)]}
    shown = any(trace.name == label and trace.showlegend is not False for trace in figure.data)
    style = {"line": line, "marker": marker, "customdata": customdata, "legendgroup": label, "showlegend": not shown}
    add_trace(figure, x, y, label, colour, f"{label}, {words}", **(style | place | options))


def _by_trained_blocks(figure: go.Figure, places: Sequence[Place]) -> go.Figure:
    figure.update_xaxes(
        tickmode="array",
        tickvals=[0, 0.25, 0.5, 0.75, 1, FULL],
        ticktext=["head", "¼", "½", "¾", "all", "full"],
        tickangle=0,
        range=[-0.07, FULL + 0.07],
    )
    _title_below(figure, places, "share of the blocks trained")
    return styled(figure, height=_height(places))
