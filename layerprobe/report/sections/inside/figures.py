"""Figures of drift by depth, linear probes, interventions on blocks and changes of weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from layerprobe.record import RunRecord
from layerprobe.report import queries
from layerprobe.report.section import Tables
from layerprobe.report.theme import (
    PLAIN,
    SCALE,
    add_band,
    add_trace,
    error_bars,
    label_layers,
    label_measure,
    method_colours,
    styled,
)

SIDES = {"base": "#4f63d9", "adapted": "#d8612f"}
CONTROLS = {
    "control_accuracy": ("dot", "control task"),
    "control_train_accuracy": ("dashdot", "control task, training examples"),
}
"""Columns of the table `probes` -> dash and name."""
QUALITIES = {"accuracy": "accuracy", "balanced_accuracy": "balanced accuracy", "auroc": "AUROC"}
"""Columns of the table `probes` with the quality of a probe -> name."""
KINDS = {
    "weights": ("#d8612f", "circle", "reset: block has base weights"),
    "skipped": ("#4f63d9", "square", "skipped: blocks above this layer"),
    "stitched": ("#1f8f7a", "diamond", "stitched: base up to this layer, adapted above it"),
    "pooler": ("#9a52c6", "star", "reset: pooler has base weights"),
}
"""Kind of an intervention -> colour, marker and name."""
QUANTITIES = {
    "relative_change": ("relative change", "<br>|W' – W| / |W|", ".2%"),
    "intruder_dimensions": ("intruder dimensions", "<br>of the top k", ".0f"),
    "stable_rank_change": ("stable rank of the change", "", ".1f"),
}
"""Columns of the table `weights` -> name, its explanation on the axis, and number format."""


def methods_in(tables: Tables, record: RunRecord, name: str) -> list[str]:
    """Methods that have rows in a table, in order."""
    table = queries.having(tables, name)
    return [] if table is None else [name for name in queries.methods(tables, record) if name in set(table.method)]


def drifts(tables: Tables, record: RunRecord) -> dict[str, pd.DataFrame]:
    """The main measure by layer of each method that learns the task; empty for fewer than two methods."""
    similarity = queries.having(tables, "similarity")
    if similarity is None:
        return {}
    measure, unit = queries.main_measure(similarity), queries.unit_of(similarity)
    names = [name for name in queries.methods(tables, record) if name not in queries.controls(record)]
    rows = {name: queries.drift_of(similarity, name, measure, unit) for name in names}
    rows = {name: part for name, part in rows.items() if len(part)}
    return rows if len(rows) > 1 else {}


def drift_by_depth(tables: Tables, record: RunRecord) -> go.Figure | None:
    """The main measure by layer for all methods: a line with its band for the first seed, points for others.

    The `meta` of each trace holds the position of its method and its role, `line`, `band` or `seed`.
    """
    methods = drifts(tables, record)
    if not methods:
        return None
    similarity = tables["similarity"]
    measure, unit = queries.main_measure(similarity), queries.unit_of(similarity)
    colours, figure = method_colours(list(methods), record), go.Figure()
    for place, (name, rows) in enumerate(methods.items()):
        add_band(figure, rows.layer, rows.ci_low, rows.ci_high, colours[name], meta={"place": place, "role": "band"})
        hover, meta = f"{name}, layer %{{x}}: %{{y:.4f}}", {"place": place, "role": "line"}
        add_trace(figure, rows.layer, rows.value, name, colours[name], hover, meta=meta)
        for seed in queries.seeds_of(similarity, name)[1:]:
            other = queries.drift_of(similarity, name, measure, unit, seed)
            hover, meta = f"{name}, seed {seed}, layer %{{x}}: %{{y:.4f}}", {"place": place, "role": "seed"}
            options = {"mode": "markers", "marker": {"size": 7, "symbol": "circle-open"}, "showlegend": False}
            add_trace(figure, other.layer, other.value, name, colours[name], hover, meta=meta, **options)
    label_layers(figure)
    label_measure(figure, queries.measure(measure, record))
    return styled(figure, height=420)


def probes(
    tables: Tables, record: RunRecord, *, method: str | None = None, quality: str = "accuracy"
) -> go.Figure | None:
    """Quality of linear probes by layer: one row per method, or one method with its controls and its selectivity.

    Control tasks have an accuracy alone; balanced accuracy and AUROC are drawn with their value by chance.
    """
    names = methods_in(tables, record, "probes")
    if not names or (method and method not in names) or quality not in tables["probes"]:
        return None
    table, words = tables["probes"], QUALITIES[quality]
    if not method:
        means = table.groupby(["method", "side", "layer"])[quality].mean()
        lines = {"base": means[names[0], "base"]}
        lines |= {queries.label(name, record): means[name, "adapted"] for name in names}
        return _grid(lines, words, ".3f")
    rows = table[table.method == method].sort_values("layer")
    titles = (f"{words[0].upper()}{words[1:]}", "Selectivity")
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.14, subplot_titles=titles)
    for side, colour in SIDES.items():
        seeds = queries.seeds_of(rows[rows.side == side], method)
        for seed in seeds[:1] if side == "base" else seeds:  # the base does not depend on the seed
            part, is_first = rows[(rows.side == side) & (rows.seed == seed)], seed == seeds[0]
            options: dict[str, Any] = {} if is_first else {"mode": "markers", "marker": {"symbol": "circle-open"}}
            for panel, value in enumerate((quality, "selectivity"), 1):
                options |= {"error_y": _bars(part, value, colour) if is_first else None, "row": panel, "col": 1}
                options |= {"legendgroup": side, "showlegend": is_first and panel == 1}
                hover = f"{side}, seed {seed}, layer %{{x}}: {QUALITIES.get(value, value)} %{{y:.4f}}"
                add_trace(figure, part.layer, part[value], side, colour, hover, **options)
            for column, (dash, name) in CONTROLS.items() if is_first and quality == "accuracy" else ():
                hover = f"{side}, layer %{{x}}: {name} %{{y:.4f}}"
                options = {"mode": "lines", "line": {"dash": dash}, "row": 1, "col": 1}
                add_trace(figure, part.layer, part[column], f"{side}: {name}", colour, hover, **options)
    classes = len(record.data.label_names) if record.data else 0
    chance = {"balanced_accuracy": 1 / classes if classes else None, "auroc": 0.5}.get(quality)
    if chance is not None:
        figure.add_hline(y=chance, line={"color": PLAIN, "dash": "dash"}, row=1, col=1)
    figure.update_xaxes(dtick=1)
    label_layers(figure, row=2, col=1)
    return styled(figure, height=520)


def interventions(tables: Tables, record: RunRecord, *, method: str | None = None) -> go.Figure | None:
    """Accuracy with parts of the model reset: the change by block for all methods, or every intervention on one."""
    names = methods_in(tables, record, "interventions")
    if not names or (method and method not in names):
        return None
    table = tables["interventions"]
    if not method:
        means = table[table.kind == "weights"].groupby(["method", "layer"]).difference.mean()
        lines = {queries.label(name, record): means[name] for name in names if name in means}
        reach = max(1e-6, float(means.abs().max()))
        return _grid(lines, "change of accuracy", "+.3f", scale="RdBu", limits=(-reach, reach))
    rows, seeds = table[table.method == method], queries.seeds_of(table, method)
    figure = go.Figure()
    untouched = rows[(rows.kind == "untouched") & (rows.seed == seeds[0])]
    if len(untouched):
        figure.add_hline(y=float(untouched.accuracy.iloc[0]), line={"color": PLAIN, "dash": "dash"})
    for kind, (colour, symbol, words) in KINDS.items():
        for seed in seeds:
            part, is_first = rows[(rows.kind == kind) & (rows.seed == seed)].sort_values("layer"), seed == seeds[0]
            if part.empty:
                continue
            hover = (
                f"seed {seed}, layer %{{x}}, {words}: %{{y:.4f}}<br>minus the untouched model %{{customdata[0]:+.4f}} "
                "(%{customdata[1]:+.4f} to %{customdata[2]:+.4f})"
            )
            joined = is_first and kind != "pooler"
            options: dict[str, Any] = {"mode": "lines+markers" if joined else "markers", "showlegend": is_first}
            options["marker"] = {"symbol": symbol if is_first else f"{symbol}-open", "size": 9 if is_first else 6}
            options["error_y"] = _bars(part, "accuracy", colour) if is_first else None
            options["customdata"] = part[["difference", "difference_low", "difference_high"]]
            add_trace(figure, part.layer, part.accuracy, words, colour, hover, **options)
    label_layers(figure)
    figure.update_yaxes(title="accuracy")
    return styled(figure, height=440)


def weights(
    tables: Tables, record: RunRecord, *, method: str | None = None, quantity: str = "relative_change"
) -> go.Figure | None:
    """One quantity by layer and role: the largest of several matrices, averaged over seeds."""
    table = queries.having(tables, "weights", quantity)
    method = method or queries.main_method(methods_in(tables, record, "weights"), record)
    if table is None or method not in set(table.method):
        return None
    rows = table[table.method == method]
    cells = rows.groupby(["seed", "role", "layer"])[quantity].max().groupby(["role", "layer"]).mean()
    lines = {role.replace("_", " "): cells.loc[role] for role in dict.fromkeys(rows.role)}
    words, explanation, form = QUANTITIES[quantity]
    high = table[quantity].max()
    return _grid(lines, f"{words}{explanation}", form, limits=(0, float(high)) if high > 0 else None)


def _grid(
    lines: Mapping[str, pd.Series],
    title: str,
    form: str,
    *,
    scale: str = SCALE,
    limits: tuple[float, float] | None = None,
) -> go.Figure:
    """One row per line and one cell per layer with its value.

    Args:
        lines: values by layer.
        title: of the colour bar.
        form: number format of d3.
        scale: colour scale.
        limits: values at the ends of the colour scale.
    """
    table = pd.DataFrame(dict(lines)).T.sort_index(axis=1)
    low, high = limits or (None, None)
    figure = go.Figure(
        go.Heatmap(
            z=table.astype(object).where(table.notna(), None).to_numpy().tolist(),
            x=[int(layer) for layer in table.columns],
            y=list(table.index),
            zmin=low,
            zmax=high,
            colorscale=scale,
            xgap=2,
            ygap=2,
            texttemplate=f"%{{z:{form}}}",
            textfont={"size": 11},
            hoverongaps=False,
            hovertemplate=f"%{{y}}, layer %{{x}}: %{{z:{form}}}<extra></extra>",
            colorbar={"title": {"text": title, "side": "right"}, "thickness": 10, "tickformat": form},
        )
    )
    label_layers(figure, showgrid=False)
    figure.update_yaxes(autorange="reversed", showgrid=False, type="category")
    return styled(figure, height=150 + 34 * len(table)).update_xaxes(zeroline=False)


def _bars(part: pd.DataFrame, column: str, colour: str) -> dict[str, Any]:
    return error_bars(part[column], part[f"{column}_low"], part[f"{column}_high"], colour, thickness=1.2)
