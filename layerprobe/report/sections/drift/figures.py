"""Figures of drift by layer: measures with their nulls, units, sets of rows, geometry, and all pairs of layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from layerprobe.record import MeasureRecord, RunRecord
from layerprobe.report import queries
from layerprobe.report.section import Tables
from layerprobe.report.theme import (
    COLOURS,
    PLAIN,
    SCALE,
    add_band,
    add_trace,
    error_bars,
    label_layers,
    label_layers_below,
    label_measure,
    method_colours,
    multiples_height,
    small_multiples,
    styled,
)

NULLS = {
    "shuffled-texts": ("x-thin-open", "shuffled examples"),
    "seed": ("diamond-open", "two training seeds compared"),
    "norm-matched": ("circle-open", "random change of equal norm"),
}
"""Kind of a null -> marker and name."""
ROW_SETS = {
    "all": "all rows",
    "no-special": "without special tokens",
    "no-outliers": "without the top 0.1% by norm",
    "no-leading-directions": "without the leading directions of either side",
}
"""Values of the column `rows` -> name."""
GEOMETRY = {
    "anisotropy": "anisotropy",
    "effective_rank": "effective rank",
    "intrinsic_dimension": "intrinsic dimension",
}
"""Measures of the table `geometry` that are shown -> name."""
SIDES = ("base", "adapted")


LINE_HEIGHT = 260
"""Height of a line of diagrams, one per method."""


def methods_shown(tables: Tables, record: RunRecord) -> list[str]:
    """Methods that changed a layer, the main one first."""
    names = queries.changed(tables, record)
    main = queries.main_method(names, record)
    return sorted(names, key=lambda name: name != main)


def drift(tables: Tables, record: RunRecord, *, measure: str = "cka", unit: str | None = None) -> go.Figure | None:
    """A measure by layer with its interval and its nulls, one diagram per method that changed a layer."""
    similarity, known = tables["similarity"], queries.measure(measure, record)
    unit = unit or queries.unit_of(similarity)
    changed = queries.changed(tables, record)
    first = {name: queries.drift_of(similarity, name, measure, unit) for name in changed}
    first = {name: rows for name, rows in first.items() if len(rows)}
    if not first:
        return None
    colours = method_colours(queries.methods(tables, record), record)
    titles = [queries.label(name, record) for name in first]
    figure, places = small_multiples(titles, line_height=LINE_HEIGHT, shared_yaxes="all")
    for (method, rows), place in zip(first.items(), places, strict=True):
        add_band(figure, rows.layer, rows.ci_low, rows.ci_high, colours[method], **place)
        for seed in queries.seeds_of(similarity, method):
            other = queries.drift_of(similarity, method, measure, unit, seed)
            main = seed == rows.seed.iloc[0]
            hover = f"{method}, seed {seed}, layer %{{x}}: %{{y:.4f}}"
            options: dict[str, Any] = {"mode": "lines+markers" if main else "lines", "showlegend": False, **place}
            options["line"] = {"width": 2} if main else {"width": 1, "dash": "dash"}
            add_trace(figure, other.layer, other.value, method, colours[method], hover, **options)
        _add_nulls(figure, tables, record, measure, unit, method, place)
    for name in dict.fromkeys(trace.name for trace in figure.data if trace.legendgroup):
        next(trace for trace in figure.data if trace.name == name).showlegend = True
    label_layers_below(figure, places, max(int(rows.layer.max()) + 1 for rows in first.values()))
    label_measure(figure, known, col=1)
    return styled(figure, height=multiples_height(len(first), LINE_HEIGHT))


def _add_nulls(
    figure: go.Figure,
    tables: Tables,
    record: RunRecord,
    measure: str,
    unit: str,
    method: str,
    place: Mapping[str, int],
) -> None:
    """Add what a measure is of unrelated rows, and under each null, in grey."""
    options: dict[str, Any] = {"showlegend": False, **place}
    baseline = queries.baseline_of(measure, record)
    rows = queries.drift_of(tables["similarity"], method, baseline, unit) if baseline else None
    if rows is not None and len(rows):
        hover = "unrelated rows, layer %{x}: %{y:.4f}"
        line = {"mode": "lines", "line": {"dash": "dot"}, "legendgroup": "unrelated", **options}
        add_trace(figure, rows.layer, rows.value, "unrelated rows", PLAIN, hover, **line)
    nulls = queries.having(tables, "similarity_nulls")
    if nulls is None:
        return
    nulls = nulls[(nulls.measure == measure) & (nulls.unit == unit)]
    for kind, (symbol, words) in NULLS.items():
        rows = queries.of_first_seed(nulls[nulls.null_kind == kind], method).sort_values("layer")
        if rows.empty:
            continue
        marker = {"mode": "markers", "marker": {"symbol": symbol, "size": 8}, "legendgroup": kind, **options}
        marker["error_y"] = error_bars(rows.value, rows.low, rows.high, PLAIN, thickness=1, width=2)
        add_trace(figure, rows.layer, rows.value, words, PLAIN, f"{words}, layer %{{x}}: %{{y:.4f}}", **marker)


def drift_by_unit(
    tables: Tables, record: RunRecord, *, method: str | None = None, measure: str | None = None
) -> go.Figure | None:
    """A measure by layer for one method, by default the main one, one line per unit; None for a single unit."""
    similarity = tables["similarity"]
    method = method or queries.main_method(queries.changed(tables, record), record)
    if method is None:
        return None
    measure = measure or queries.main_measure(similarity)
    lines = {
        queries.UNITS.get(unit, unit): queries.drift_of(similarity, method, measure, unit)
        for unit in similarity.unit.unique()
    }
    return _lines(lines, queries.measure(measure, record))


def row_sets(tables: Tables, record: RunRecord, *, method: str) -> go.Figure | None:
    """The main measure by layer for one method, one line per set of rows; None if only all rows were compared."""
    similarity = tables["similarity"]
    measure = queries.main_measure(similarity)
    rows = similarity[(similarity.method == method) & (similarity.measure == measure) & (similarity.unit == "token")]
    rows = rows[rows.seed == rows.seed.min()]
    lines = {words: rows[rows["rows"] == name].sort_values("layer") for name, words in ROW_SETS.items()}
    return _lines(lines, queries.measure(measure, record))


def _lines(lines: Mapping[str, pd.DataFrame], measure: MeasureRecord) -> go.Figure | None:
    """One measure by layer, one line per set of rows with its intervals; None for fewer than two."""
    lines = {name: rows for name, rows in lines.items() if len(rows)}
    if len(lines) < 2:
        return None
    figure = go.Figure()
    for number, (name, rows) in enumerate(lines.items()):
        colour = COLOURS[number % len(COLOURS)]
        bars = error_bars(rows.value, rows.ci_low, rows.ci_high, colour, thickness=1, width=2)
        add_trace(figure, rows.layer, rows.value, name, colour, f"{name}, layer %{{x}}: %{{y:.4f}}", error_y=bars)
    label_layers(figure)
    label_measure(figure, measure)
    return styled(figure, height=340)


def geometry(tables: Tables, record: RunRecord, *, method: str) -> go.Figure | None:
    """Anisotropy, effective rank and intrinsic dimension by layer, base compared with adapted."""
    table = queries.having(tables, "geometry")
    if table is None:
        return None
    rows = queries.of_first_seed(table[table.unit == queries.unit_of(table)], method)
    if rows.empty:
        return None
    figure = make_subplots(rows=1, cols=3, subplot_titles=list(GEOMETRY.values()), horizontal_spacing=0.08)
    for column, measure in enumerate(GEOMETRY, 1):
        for number, side in enumerate(SIDES):
            part = rows[(rows.measure == measure) & (rows.side == side)].sort_values("layer")
            figure.add_scatter(
                x=part.layer,
                y=part.value,
                mode="lines+markers",
                name=side,
                legendgroup=side,
                showlegend=column == 1,
                line={"color": COLOURS[number]},
                error_y=error_bars(part.value, part.ci_low, part.ci_high),
                row=1,
                col=column,
            )
        figure.update_xaxes(title="layer", dtick=1, row=1, col=column)
        figure.update_yaxes(rangemode="tozero", row=1, col=column)
    return styled(figure, height=330)


def layer_grid(tables: Tables, record: RunRecord, *, method: str, measure: str = "cka") -> go.Figure | None:
    """One measure of every layer with every layer: base with base, base with adapted, adapted with adapted."""
    table = queries.having(tables, "similarity_grid")
    if table is None:
        return None
    rows = table[(table.unit == queries.unit_of(table)) & (table.measure == measure)]
    rows = queries.of_first_seed(rows, method)
    if rows.empty:
        return None
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
            "cmax": None if queries.measure(measure, record).kind == "distance" else 1,
            "colorbar": {"title": measure, "thickness": 12},
        }
    )
    return styled(figure, height=340)
