"""Figures of costs by method, and of accuracy against one cost."""

from __future__ import annotations

from typing import Any

import pandas as pd
import plotly.graph_objects as go

from layerprobe.record import RunRecord
from layerprobe.report import queries
from layerprobe.report.costs import COSTS, costs_by_method, format_cost
from layerprobe.report.section import Tables
from layerprobe.report.theme import COLOURS, PLAIN, add_trace, method_colours, styled

DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")


def cost(tables: Tables, record: RunRecord) -> go.Figure | None:
    """Each comparable cost by method as a share of the reference's; None without a reference or its costs."""
    table, reference = costs_by_method(tables, record), queries.reference(tables, record)
    if table is None or reference not in set(table.method):
        return None
    base: Any = table.set_index("method").loc[reference]
    has_depth = table.method.map(lambda name: queries.has_depth(name, record))
    figure = go.Figure()
    for number, (name, one) in enumerate(COSTS.items()):
        if name not in table or not base[name] > 0:
            continue
        for is_line, rows in ((True, table[has_depth]), (False, table[~has_depth])):  # the line joins the depths
            if rows.empty:
                continue
            colour, words = COLOURS[number % len(COLOURS)], "" if one.unit else f" {one.label}"
            options: dict[str, Any] = {"mode": "lines+markers" if is_line else "markers", "marker": {"size": 8}}
            options |= {"line": {"dash": DASHES[number % len(DASHES)]}, "legendgroup": name}
            options["showlegend"] = is_line or not has_depth.any()
            options["customdata"] = [format_cost(value, name) for value in rows[name]]
            hover = f"%{{x}}: %{{customdata}}{words} (%{{y:.1%}} of {reference})"
            add_trace(figure, rows.method, rows[name] / base[name], one.label, colour, hover, **options)
    if not figure.data:
        return None
    figure.update_xaxes(type="category", categoryorder="array", categoryarray=list(table.method))
    figure.update_yaxes(title=f"share of {reference}'s", tickformat=".0%", rangemode="tozero")
    return styled(figure, height=380)


def pareto(tables: Tables, record: RunRecord, *, cost: str = "flops") -> go.Figure | None:
    """Accuracy against one cost, with a line through the methods that no other dominates."""
    table = queries.having(tables, "pareto")
    if table is None:
        return None
    rows = table[(table.cost == cost) & table.value.notna() & table.quality.notna()].sort_values(["value", "quality"])
    if rows.empty:
        return None
    colours = method_colours([name for name in queries.methods(tables, record) if name in set(rows.method)], record)
    front, after, known = rows[rows.efficient.astype(bool)], queries.accuracy_after(tables), COSTS[cost]
    figure = go.Figure()
    options: dict[str, Any] = {"mode": "lines", "line": {"dash": "dot", "shape": "hv"}}
    add_trace(figure, front.value, front.quality, "no other method is better and cheaper", PLAIN, **options)
    row: Any
    for row, position in zip(rows.itertuples(), _label_positions(rows), strict=True):
        runs = [] if after is None else after[after.method == row.method].accuracy
        seeds = f"<br>seeds {min(runs):.4f} to {max(runs):.4f}" if len(runs) > 1 else ""
        status = f"{row.dominated_by} is as accurate and as cheap, or better" if row.dominated_by else "on the front"
        colour, symbol = colours[row.method], "circle" if row.efficient else "circle-open"
        options = {"mode": "markers+text", "text": [row.method], "textposition": position, "cliponaxis": False}
        options |= {
            "marker": {"size": 13, "symbol": symbol, "line": {"width": 2, "color": colour}},
            "showlegend": False,
        }
        hover = f"{row.method}: accuracy {row.quality:.4f}{seeds}<br>{known.label} {format_cost(row.value, cost)}<br>{status}"
        add_trace(figure, [row.value], [row.quality], row.method, colour, hover, **options)
    wide = rows.value.min() > 0 and rows.value.max() / rows.value.min() > 30
    unit = f" ({known.unit})" if known.unit else ""
    figure.update_xaxes(title=f"{known.label}{unit}; further left is cheaper", type="log" if wide else "linear")
    figure.update_yaxes(title="accuracy on test examples")
    return styled(figure, height=420)


def _label_positions(rows: pd.DataFrame) -> list[str]:
    """Above a point, or below if another one close to it is higher."""
    width, points = float(rows.value.max() - rows.value.min()) or 1.0, list(zip(rows.value, rows.quality, strict=True))
    below = [any(abs(x - other) < 0.09 * width and higher > y for other, higher in points) for x, y in points]
    return ["bottom center" if is_below else "top center" for is_below in below]
