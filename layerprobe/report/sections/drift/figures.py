"""Figures of drift by layer: measures with their nulls, units, sets of rows, geometry, and all pairs of layers."""

from __future__ import annotations

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from layerprobe.record import RunRecord
from layerprobe.report import queries
from layerprobe.report.section import Tables
from layerprobe.report.theme import (
    COLOURS,
    SCALE,
    add_band,
    error_bars,
    label_layers,
    label_measure,
    method_colours,
    styled,
)

NULLS = {
    "shuffled-texts": ("x-thin-open", "shuffled examples"),
    "seed": ("diamond-open", "another seed"),
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


def drift(tables: Tables, record: RunRecord, *, measure: str = "cka", unit: str | None = None) -> go.Figure | None:
    """A measure by layer with its interval, one line per method and seed, with its baseline and its nulls."""
    similarity, known = tables["similarity"], queries.measure(measure, record)
    unit = unit or queries.unit_of(similarity)
    methods = queries.methods(tables, record)
    colours, figure = method_colours(methods, record), go.Figure()
    baseline = queries.baseline_of(measure, record)
    for method in methods:
        for i, seed in enumerate(queries.seeds_of(similarity, method)):
            rows = queries.drift_of(similarity, method, measure, unit, seed)
            if rows.empty:
                continue
            add_band(figure, rows.layer, rows.ci_low, rows.ci_high, colours[method])
            figure.add_scatter(
                x=rows.layer,
                y=rows.value,
                mode="lines+markers",
                name=method,
                legendgroup=method,
                showlegend=i == 0,
                line={"color": colours[method], "dash": "solid" if i == 0 else "dash"},
                hovertemplate=f"{method}, seed {seed}, layer %{{x}}: %{{y:.4f}}<extra></extra>",
            )
            if baseline and i == 0:
                unrelated = queries.drift_of(similarity, method, baseline, unit, seed)
                figure.add_scatter(
                    x=unrelated.layer,
                    y=unrelated.value,
                    mode="lines",
                    name="unrelated rows",
                    legendgroup="unrelated",
                    showlegend=method == methods[0],
                    line={"color": colours[method], "dash": "dot"},
                )
    if not figure.data:
        return None
    nulls = queries.having(tables, "similarity_nulls")
    if nulls is not None:
        nulls = nulls[(nulls.measure == measure) & (nulls.unit == unit)]
        for kind, (symbol, words) in NULLS.items():
            shown = False
            for method in methods:
                rows = queries.of_first_seed(nulls[nulls.null_kind == kind], method).sort_values("layer")
                if rows.empty:
                    continue
                figure.add_scatter(
                    x=rows.layer,
                    y=rows.value,
                    mode="markers",
                    name=words,
                    legendgroup=words,
                    showlegend=not shown,
                    marker={"symbol": symbol, "size": 9, "color": colours[method]},
                    error_y=error_bars(rows.value, rows.low, rows.high),
                )
                shown = True
    label_layers(figure)
    label_measure(figure, known)
    return styled(figure, height=380)


def drift_by_unit(
    tables: Tables, record: RunRecord, *, method: str | None = None, measure: str = "cka"
) -> go.Figure | None:
    """One measure by layer for one method, one line per unit; None for a single unit."""
    similarity = tables["similarity"]
    method = method or queries.main_method(queries.changed(tables, record), record)
    if method is None or similarity.unit.nunique() < 2 or measure not in set(similarity.measure):
        return None
    figure = go.Figure()
    for number, unit in enumerate(similarity.unit.unique()):
        rows = queries.drift_of(similarity, method, measure, unit)
        figure.add_scatter(
            x=rows.layer,
            y=rows.value,
            mode="lines+markers",
            name=queries.UNITS.get(unit, unit),
            line={"color": COLOURS[number % len(COLOURS)]},
            error_y=error_bars(rows.value, rows.ci_low, rows.ci_high),
        )
    label_layers(figure)
    label = queries.measure(measure, record).label
    figure.update_yaxes(title=f"{label}<br>lower = more changed", rangemode="tozero")
    return styled(figure, height=340)


def row_sets(tables: Tables, record: RunRecord, *, method: str) -> go.Figure | None:
    """The main measure by layer for one method, one line per set of rows; None if only all rows were compared."""
    similarity = tables["similarity"]
    measure = queries.main_measure(similarity)
    rows = similarity[(similarity.method == method) & (similarity.measure == measure) & (similarity.unit == "token")]
    rows = rows[rows.seed == rows.seed.min()]
    if rows["rows"].nunique() < 2:
        return None
    figure = go.Figure()
    for number, (name, words) in enumerate(ROW_SETS.items()):
        part = rows[rows["rows"] == name].sort_values("layer")
        if part.empty:
            continue
        figure.add_scatter(
            x=part.layer,
            y=part.value,
            mode="lines+markers",
            name=words,
            line={"color": COLOURS[number], "dash": "solid" if name == "all" else "dot"},
            error_y=error_bars(part.value, part.ci_low, part.ci_high),
        )
    label_layers(figure)
    figure.update_yaxes(title=queries.measure(measure, record).label, rangemode="tozero")
    return styled(figure, height=340)


def geometry(tables: Tables, record: RunRecord, *, method: str) -> go.Figure | None:
    """Anisotropy, effective rank and intrinsic dimension by layer, base compared with adapted."""
    table = queries.having(tables, "geometry")
    if table is None:
        return None
    rows = queries.of_first_seed(table[table.unit == queries.unit_of(table)], method)
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
