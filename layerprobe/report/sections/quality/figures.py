"""Figures of accuracy by method and of paired differences to the reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from layerprobe.record import RunRecord
from layerprobe.report import queries
from layerprobe.report.section import Tables
from layerprobe.report.theme import PLAIN, add_trace, error_bars, method_colours, styled

LOGISTIC = {"reference:logistic-mean": "the mean over tokens", "reference:logistic-cls": "the first token"}
"""Logistic regression on the pretrained last layer, with its pooling in words."""
OUTCOMES = {
    "sufficient": ("#1f8f7a", "circle"),
    "inferior": ("#d8612f", "x"),
    "undecided": ("#8a8f98", "circle-open"),
    "undecidable": ("#8a8f98", "square-open"),
    "not tested": ("#8a8f98", "diamond-open"),
}
"""Outcome of a non-inferiority test -> colour and marker."""
ZONES = {"worse": "#d8612f", "equivalent": "#8a8f98", "better": "#1f8f7a"}
"""Differences beyond the margin or within it -> colour."""
BEYOND = 0.06
"""Share of the widest interval that the axis shows on either side of it."""


def quality(tables: Tables, record: RunRecord, *, split: str = "test") -> go.Figure | None:
    """Accuracy by method: a point with its Wilson interval per seed, and a line at the mean of several seeds."""
    table = tables["adaptation"]
    rows = table[(table["when"] == "after") & (table["split"] == split)]
    names = [name for name in [*queries.methods(tables, record), *LOGISTIC] if name in set(rows.method)]
    if not names:
        return None
    colours, figure = method_colours(names, record), go.Figure()
    for place, name in enumerate(names):
        part = rows[rows.method == name].sort_values("seed")
        n, colour = len(part), colours[name]
        offsets = [0.0] if n == 1 else [-0.25 + 0.5 * i / (n - 1) for i in range(n)]
        options: dict[str, Any] = {"mode": "markers", "marker": {"size": 9}, "showlegend": False}
        options["customdata"] = part[["seed", "accuracy_low", "accuracy_high", "n"]]
        options["error_x"] = error_bars(
            part.accuracy, part.accuracy_low, part.accuracy_high, colour, thickness=1.2, width=0
        )
        hover = f"{name}, seed %{{customdata[0]}}: %{{x:.4f}} (%{{customdata[1]:.4f}} to %{{customdata[2]:.4f}}), %{{customdata[3]:,}} examples"
        add_trace(figure, part.accuracy, [place + offset for offset in offsets], name, colour, hover, **options)
        if n > 1:
            mean, hover = part.accuracy.mean(), f"{name}, mean of {n} seeds: %{{x:.4f}}"
            options = {"mode": "lines", "line": {"width": 3}, "showlegend": False}
            add_trace(figure, [mean, mean], [place - 0.36, place + 0.36], name, colour, hover, **options)
    figure.update_xaxes(title="accuracy; further right is better")
    _label_rows(figure, names, record)
    return styled(figure, height=110 + 40 * len(names))


def differences(tables: Tables, record: RunRecord) -> go.Figure | None:
    """Accuracy minus the reference's on the same examples: 95% interval, simultaneous band, single seeds and the margin."""
    table = queries.having(tables, "differences")
    if table is None:
        return None
    order = {name: i for i, name in enumerate(queries.methods(tables, record))}
    table = table.sort_values("method", key=lambda names: names.map(order), kind="stable")
    tests, seeds = queries.having(tables, "sufficiency"), queries.having(tables, "seed_differences")
    outcomes = {} if tests is None else dict(zip(tests.method, tests.outcome, strict=True))
    reference, figure = str(table.reference.iloc[0]), go.Figure()
    row: Any
    for place, row in enumerate(table.itertuples()):
        outcome = outcomes.get(row.method, "")
        colour, symbol = OUTCOMES.get(outcome, (PLAIN, "circle"))
        for low, high, width, opacity in ((row.band_low, row.band_high, 1.5, 1), (row.ci_low, row.ci_high, 6, 0.45)):
            options: dict[str, Any] = {
                "mode": "lines",
                "line": {"width": width},
                "opacity": opacity,
                "showlegend": False,
            }
            add_trace(figure, [low, high], [place, place], row.method, colour, **options)
        hover = (
            f"{row.method} minus {reference}: {row.difference:+.4f}<br>95% interval {row.ci_low:+.4f} to {row.ci_high:+.4f}"
            f"<br>simultaneous band {row.band_low:+.4f} to {row.band_high:+.4f}"
            f"<br>exactly one is right on {row.disagreement:.1%}"
        )
        first = bool(outcome) and outcome not in {trace.name for trace in figure.data}
        options = {"mode": "markers", "legendgroup": outcome, "showlegend": first}
        options["marker"] = {"size": 12, "symbol": symbol, "line": {"width": 2, "color": colour}}
        add_trace(figure, [row.difference], [place], outcome or "difference", colour, hover, **options)
        part = None if seeds is None else seeds[seeds.method == row.method]
        if part is not None and len(part) > 1:
            first = "one seed" not in {trace.name for trace in figure.data}
            options = {"mode": "markers", "marker": {"size": 6}, "legendgroup": "seed", "showlegend": first}
            hover, y = f"{row.method}, seed %{{customdata}}: %{{x:+.4f}}", [place + 0.3] * len(part)
            add_trace(figure, part.difference, y, "one seed", PLAIN, hover, customdata=part.seed, **options)
    figure.add_vline(x=0, line={"color": PLAIN, "width": 1})
    ends = [*table.band_low, *table.band_high, *table.ci_low, *table.ci_high, 0.0]
    low, high, note = min(ends), max(ends), ""
    if tests is not None and "margin" in tests:
        margin = float(tests.margin.iloc[0])
        low, high = _add_zones(figure, margin, low, high)
        note = f"; margin {margin:.3g}"
    beyond = BEYOND * (high - low)
    figure.update_xaxes(
        title=f"accuracy minus {reference}'s, same examples<br>right of 0 is better{note}",
        range=[low - beyond, high + beyond],
    )
    _label_rows(figure, list(table.method), record)
    styled(figure, height=190 + 42 * len(table))
    return figure.update_layout(legend_y=-100 / (84 + 42 * len(table)), margin_t=56)


def _add_zones(figure: go.Figure, margin: float, low: float, high: float) -> tuple[float, float]:
    """Shade and name where a method is worse, equivalent or better; returns the ends of the axis that leave room for each.

    Args:
        figure: of differences.
        margin: of accuracy, within which methods are equivalent.
        low: lower end of what is drawn.
        high: upper end.
    """
    low, high = min(low, -3 * margin), max(high, 3 * margin)
    # The outer zones have a fourth of the axis each, for their names.
    low, high = min(low, -margin - (high + margin) / 3), max(high, margin + (margin - low) / 3)
    far = 10 * (high - low)
    zones = (("worse", -far, -margin), ("equivalent", -margin, margin), ("better", margin, far))
    for name, start, stop in zones:
        figure.add_vrect(x0=start, x1=stop, fillcolor=ZONES[name], opacity=0.13, line_width=0, layer="below")
    for end in (-margin, margin):
        figure.add_vline(x=end, line={"color": PLAIN, "dash": "dash", "width": 1})
    words = (("worse", -margin, "right", 0), ("equivalent", 0, "center", 16), ("better", margin, "left", 0))
    for text, x, side, shift in words:
        options = {"xanchor": side, "yanchor": "bottom", "yshift": shift, "showarrow": False}
        figure.add_annotation(text=text, x=x, y=1, yref="paper", **options)
    return low, high


def _label_rows(figure: go.Figure, names: Sequence[str], record: RunRecord) -> None:
    """One row per method, the first on top."""
    figure.update_yaxes(
        tickmode="array",
        tickvals=list(range(len(names))),
        ticktext=[queries.label(name, record) for name in names],
        range=[len(names) - 0.5, -0.6],
        zeroline=False,
    )
