"""Figures of transitions: flows between kinds of matched latents, and their excess over the null."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

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
    ("general", LABEL, "general to associated with a label", VERMILLION, "circle"),
    ("unexplained", LABEL, "unexplained to associated with a label", ORANGE, "square"),
    ("general", "unexplained", "general to unexplained", PLAIN, "diamond"),
)
"""Kind in base, kind in adapted, name, colour, symbol."""
PER_LINE = 3
"""Layers next to each other."""
LINE_HEIGHT = 300


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
    layers, names = sorted(rows.layer.unique()), list(KINDS)
    lines = -(-len(layers) // PER_LINE)
    columns = min(PER_LINE, len(layers))
    figure = go.Figure()
    for i, layer in enumerate(layers):
        line, column = divmod(i, PER_LINE)
        left, right = (column + 0.06) / columns, (column + 0.94) / columns
        top, bottom = 1 - line / lines - 0.1 / lines, 1 - (line + 1) / lines + 0.04 / lines
        flows = rows[(rows.layer == layer) & (rows["count"] > 0)]
        hover = (
            f"layer {layer}: %{{source.label}} → %{{target.label}}<br>%{{value}} latents: %{{customdata[0]:.1%}}, null "
            "%{customdata[1]:.1%}<br>excess %{customdata[2]:+.1%} (%{customdata[3]:+.1%} to %{customdata[4]:+.1%})"
            "<extra></extra>"
        )
        figure.add_sankey(
            arrangement="fixed",
            domain={"x": [left, right], "y": [bottom, top]},
            node={
                "label": names * 2,
                "color": list(KINDS.values()) * 2,
                "x": [0.001] * len(names) + [0.999] * len(names),
                "y": [*_heights(flows, "kind_base"), *_heights(flows, "kind_adapted")],
                "pad": 12,
                "thickness": 14,
                "hovertemplate": "%{label}: %{value} latents<extra></extra>",
            },
            link={
                "source": [names.index(kind) for kind in flows.kind_base],
                "target": [len(names) + names.index(kind) for kind in flows.kind_adapted],
                "value": flows["count"].tolist(),
                "color": [_pale(KINDS[kind]) for kind in flows.kind_base],
                "customdata": flows[["rate", "null_rate", "excess", "low", "high"]].to_numpy(),
                "hovertemplate": hover,
            },
        )
        title = f"layer {layer}: base → adapted"
        place = {"x": (left + right) / 2, "y": top, "xanchor": "center", "yanchor": "bottom"}
        figure.add_annotation(text=title, showarrow=False, xref="paper", yref="paper", **place)
    return styled(figure, height=LINE_HEIGHT * lines)


def _heights(flows: pd.DataFrame, side: str) -> list[float]:
    """Vertical positions of the middle of each kind on one side, from the top."""
    counts = flows.groupby(side)["count"].sum().reindex(list(KINDS)).fillna(0)
    shares = counts / max(1, counts.sum())
    return (shares.cumsum() - shares / 2).clip(0.001, 0.999).tolist()


def _pale(colour: str) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},.4)"


def transition_excess(
    tables: Tables, record: RunRecord, *, method: str | None = None, matches: str = "all"
) -> go.Figure | None:
    """Rates of transitions less those between two dictionaries of base, by layer; one point per training seed."""
    rows = rows_of(tables, record, method, matches)
    if rows is None:
        return None
    figure = go.Figure()
    seeds = sorted(rows.seed.unique())
    for before, after, name, colour, symbol in SHOWN:
        chosen = rows[(rows.kind_base == before) & (rows.kind_adapted == after)].sort_values("layer")
        for seed in seeds:
            part = chosen[chosen.seed == seed]
            if part.empty:
                continue
            marker = {"symbol": symbol if seed == seeds[0] else f"{symbol}-open", "size": 10, "color": colour}
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
    title = "rate less that of two base dictionaries<br>above 0 = more than by chance"
    figure.update_yaxes(title=title, tickformat="+.0%", zeroline=True)
    return styled(figure, height=340) if figure.data else None
