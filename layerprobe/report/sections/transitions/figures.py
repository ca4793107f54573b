"""Figures of transitions: flows between kinds of matched latents, and their excess over the null."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from layerprobe.record import RunRecord
from layerprobe.report import queries
from layerprobe.report.section import Tables
from layerprobe.report.theme import COLOURS, PLAIN, error_bars, styled

BLUE, VERMILLION, GREEN, PINK, ORANGE, SKY = COLOURS
KINDS = {"task": VERMILLION, "both": ORANGE, "general": BLUE, "unexplained": "#9AA0A6"}
"""Kinds from top to bottom."""
LABEL = "task or both"
"""Value of `kind_adapted` for all latents that are associated with a label."""
SHOWN = (
    ("general", LABEL, "general to associated with a label", VERMILLION),
    ("unexplained", LABEL, "unexplained to associated with a label", ORANGE),
    ("general", "unexplained", "general to unexplained", PLAIN),
)
"""Kind in base, kind in adapted, name, colour."""
PER_LINE = 3
"""Layers next to each other."""
LINE_HEIGHT = 300
WIDTH, GAP, POINTS = 0.04, 0.04, 16
"""Width of the bars of kinds and the gap between two of them, as shares of a diagram; points of a band's edge."""


def methods_in(tables: Tables, record: RunRecord) -> list[str]:
    """Methods that changed a layer and have transitions, the main one first."""
    table = queries.having(tables, "transitions")
    if table is None:
        return []
    names = [name for name in queries.changed(tables, record) if name in set(table.method)]
    main = queries.main_method(names, record)
    return sorted(names, key=lambda name: name != main)


def rows_of(tables: Tables, record: RunRecord, method: str | None, matches: str) -> pd.DataFrame | None:
    """A method's transitions in one set of matches, by default of the main method; None if there are none."""
    names = methods_in(tables, record)
    method = method or (names[0] if names else None)
    if method is None:
        return None
    table = tables["transitions"]
    rows = table[(table.method == method) & (table.matches == matches)]
    return None if rows.empty else rows


def transitions(
    tables: Tables, record: RunRecord, *, method: str | None = None, matches: str = "all"
) -> go.Figure | None:
    """Number of latents by their kind in base (left) and in adapted (right), one diagram per layer; first training seed."""
    rows = rows_of(tables, record, method, matches)
    if rows is None:
        return None
    rows = rows[(rows.seed == rows.seed.min()) & (rows.kind_adapted != LABEL)]
    layers = sorted(rows.layer.unique())
    lines = -(-len(layers) // PER_LINE)
    columns = min(PER_LINE, len(layers))
    figure = make_subplots(
        rows=lines,
        cols=columns,
        subplot_titles=[f"layer {layer}: base → adapted" for layer in layers],
        horizontal_spacing=0.04,
        vertical_spacing=0.1 / lines,
    )
    for i, layer in enumerate(layers):
        _add_flows(figure, rows[(rows.layer == layer) & (rows["count"] > 0)], *(n + 1 for n in divmod(i, PER_LINE)))
    figure = styled(figure, height=LINE_HEIGHT * lines).update_layout(barmode="overlay")
    figure.update_xaxes(visible=False, range=[0, 1], fixedrange=True)
    return figure.update_yaxes(visible=False, range=[1, 0], fixedrange=True)


def _add_flows(figure: go.Figure, flows: pd.DataFrame, row: int, col: int) -> None:
    """Draw the diagram of one layer: bars of kinds on both sides, and a band for each flow between two of them."""
    place = {"row": row, "col": col}
    starts, ends = _heights(flows, "kind_base"), _heights(flows, "kind_adapted")
    unit = (1 - GAP * (len(KINDS) - 1)) / max(1, flows["count"].sum())
    # From top to bottom on the left, and within each kind by where a band leads, so that bands cross as little as may be.
    leaving, arriving = dict(starts), dict(ends)
    order = list(KINDS)
    flow: Any
    for flow in sorted(
        flows.itertuples(), key=lambda one: (order.index(str(one.kind_base)), order.index(str(one.kind_adapted)))
    ):
        high, left, right = flow.count * unit, leaving[flow.kind_base], arriving[flow.kind_adapted]
        leaving[flow.kind_base] += high
        arriving[flow.kind_adapted] += high
        text = (
            f"{flow.kind_base} → {flow.kind_adapted}<br>{flow.count:,} latents: {flow.rate:.1%}, null {flow.null_rate:.1%}"
            f"<br>excess {flow.excess:+.1%} ({flow.low:+.1%} to {flow.high:+.1%})"
        )
        x, bend = np.linspace(WIDTH, 1 - WIDTH, POINTS), _bend(np.linspace(0, 1, POINTS))
        middle = left + (right - left) * bend
        figure.add_scatter(
            x=[*x, *x[::-1]],
            y=[*middle, *(middle + high)[::-1]],
            mode="lines",
            line={"width": 0},
            fill="toself",
            fillcolor=_pale(KINDS[flow.kind_base]),
            hoveron="fills",
            hoverinfo="text",
            text=text,
            name=f"{flow.kind_base} to {flow.kind_adapted}",
            showlegend=False,
            **place,
        )
    for side, tops, middle_of_bar, anchor in (
        ("base", starts, WIDTH / 2, "left"),
        ("adapted", ends, 1 - WIDTH / 2, "right"),
    ):
        counts = flows.groupby(f"kind_{side}")["count"].sum()
        for kind, top in tops.items():
            if kind not in counts:
                continue
            count = int(counts[kind])
            figure.add_bar(
                x=[middle_of_bar],
                y=[count * unit],
                base=[top],
                width=[WIDTH],
                marker={"color": KINDS[kind], "line": {"width": 0}},
                hovertemplate=f"{side}, {kind}: {count:,} latents<extra></extra>",
                name=f"{side}: {kind}",
                showlegend=False,
                **place,
            )
            label = {"x": WIDTH + 0.02 if side == "base" else 0.98 - WIDTH, "y": top + count * unit / 2}
            figure.add_annotation(text=f"{kind} {count:,}", showarrow=False, xanchor=anchor, **label, **place)


def _bend(t: np.ndarray) -> np.ndarray:
    """From 0 to 1, level at both ends."""
    return t * t * (3 - 2 * t)


def _heights(flows: pd.DataFrame, side: str) -> dict[str, float]:
    """Top of each kind on one side, from 0 at the top to 1; kinds are apart by `GAP`."""
    counts = flows.groupby(side)["count"].sum().reindex(list(KINDS)).fillna(0)
    shares = counts / max(1, counts.sum()) * (1 - GAP * (len(KINDS) - 1))
    tops = shares.cumsum() - shares + GAP * np.arange(len(KINDS))
    return {str(kind): float(top) for kind, top in tops.items()}


def _pale(colour: str) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},.4)"


def transition_excess(
    tables: Tables, record: RunRecord, *, method: str | None = None, matches: str = "all"
) -> go.Figure | None:
    """Rates of transitions minus those between two dictionaries of base, by layer; one point per training seed."""
    rows = rows_of(tables, record, method, matches)
    if rows is None:
        return None
    figure = go.Figure()
    seeds = sorted(rows.seed.unique())
    for before, after, name, colour in SHOWN:
        chosen = rows[(rows.kind_base == before) & (rows.kind_adapted == after)].sort_values("layer")
        for seed in seeds:
            part = chosen[chosen.seed == seed]
            if part.empty:
                continue
            marker = {"symbol": "circle" if seed == seeds[0] else "circle-open", "size": 10, "color": colour}
            named = name if len(seeds) == 1 else f"{name}, training seed {seed}"
            hover = (
                f"{named}<br>%{{customdata[0]:.1%}}, null %{{customdata[1]:.1%}} of %{{customdata[2]}}: excess %{{y:+.1%}}"
                "<extra></extra>"
            )
            figure.add_scatter(
                x=[f"layer {layer}" for layer in part.layer],
                y=part.excess,
                mode="markers",
                name=named,
                offsetgroup=named,
                marker=marker,
                customdata=part[["rate", "null_rate", "latents"]],
                error_y=error_bars(part.excess, part.all_low, part.all_high, colour),
                hovertemplate=hover,
            )
    figure.update_layout(scattermode="group", scattergap=0.4)
    title = "rate minus that of the null<br>above 0 = more than by chance"
    figure.update_yaxes(title=title, tickformat="+.0%", zeroline=True)
    return styled(figure, height=340) if figure.data else None
