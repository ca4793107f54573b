"""Figures of energy: its parts by number of meta-training rounds, the better strategy by efficiencies, and the rounds."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from layerprobe.record import RunRecord
from layerprobe.report.section import Tables
from layerprobe.report.sections.energy.queries import (
    PARTS,
    Settings,
    advantage,
    clusters,
    curve_of,
    depths,
    first_cluster,
    joules,
    rows_of,
    settings_of,
    totals,
)
from layerprobe.report.theme import COLOURS, PLAIN, add_trace, error_bars, styled

GRID = 10 ** np.linspace(3, 9, 19)
"""Efficiencies of the map, in bit/J."""
BETTER = [[0.0, "#D55E00"], [0.5, "#8c8c8c"], [1.0, "#0072B2"]]
"""Orange: adapting without meta-training is better; blue: with it."""


def energy_parts(
    tables: Tables, record: RunRecord, *, topology: str | None = None, devices: int | None = None
) -> go.Figure | None:
    """Energy by number of meta-training rounds: one diagram per depth, parts stacked, the optimum marked."""
    default_topology, default_devices = first_cluster(tables)
    topology, devices = topology or default_topology, devices or default_devices
    settings, order = settings_of(record), depths(tables)
    figure = make_subplots(rows=len(order), cols=1, vertical_spacing=0.09)
    for number, inner in enumerate(order, 1):
        rows = rows_of(tables, inner, topology, devices)
        if rows.empty:
            return None
        curve, ends = curve_of(rows, settings), totals(rows, settings)
        x = [str(value) for value in curve.meta_rounds]
        place: dict[str, Any] = {"row": number, "col": 1}
        for (part, words), colour in zip(PARTS.items(), COLOURS, strict=False):
            values = np.asarray(getattr(curve.energy, part))
            figure.add_bar(
                x=x,
                y=values,
                name=words,
                legendgroup=part,
                showlegend=number == 1,
                marker={"color": colour, "pattern": {"shape": ["/" if one else "" for one in curve.censored]}},
                customdata=[joules(value) for value in values],
                hovertemplate=f"{inner}, t0 = %{{x}}, {words}: %{{customdata}}<extra></extra>",
                meta={"inner": inner, "kind": part},
                **place,
            )
        total = np.asarray(curve.energy.total)
        figure.add_scatter(
            x=x,
            y=total,
            mode="markers",
            name="total with 95% interval; triangle: lower bound",
            legendgroup="total",
            showlegend=number == 1,
            marker={
                "color": PLAIN,
                "size": 8,
                "symbol": ["triangle-up" if one else "line-ew-open" for one in curve.censored],
            },
            error_y=error_bars(total, ends.low, ends.high, PLAIN, thickness=1.5, width=5),
            customdata=[
                f"{'at least ' if one else ''}{joules(value)}" for one, value in zip(curve.censored, total, strict=True)
            ],
            hovertemplate=f"{inner}, t0 = %{{x}}: %{{customdata}}<extra></extra>",
            meta={"inner": inner, "kind": "total"},
            **place,
        )
        best = (
            [] if curve.censored.all() else [int(np.flatnonzero(curve.meta_rounds == curve.optimum().meta_rounds)[0])]
        )
        figure.add_scatter(
            x=[x[i] for i in best],
            y=total[best],
            mode="markers",
            name="least energy",
            legendgroup="best",
            showlegend=number == 1,
            marker={"color": PLAIN, "size": 14, "symbol": "star", "line": {"width": 1, "color": "#fff"}},
            hoverinfo="skip",
            meta={"inner": inner, "kind": "best"},
            **place,
        )
        figure.update_xaxes(type="category", **place)
        figure.update_yaxes(title=f"{inner}<br>joule", rangemode="tozero", exponentformat="SI", **place)
    figure.update_xaxes(title="rounds of meta-training, t0", row=len(order), col=1)
    figure.update_layout(barmode="stack", bargap=0.35)
    height = 150 + 210 * len(order)
    return styled(figure, height=height).update_layout(legend_y=0)


def energy_map(tables: Tables, record: RunRecord, *, inner: str = "") -> go.Figure | None:
    """Whether meta-training saves energy, by efficiency of uplink and sidelink; blue: it does."""
    topology, devices = first_cluster(tables)
    rows = rows_of(tables, inner or depths(tables)[0], topology, devices)
    if rows.empty or not (rows.meta_rounds > 0).any() or not (rows.meta_rounds == 0).any():
        return None
    settings = settings_of(record)
    at = Settings(GRID[None, :], settings.downlink, GRID[:, None], settings.pue, settings.bits)
    values = advantage(curve_of(rows, at))
    figure = go.Figure()
    figure.add_heatmap(
        x=GRID,
        y=GRID,
        z=values,
        zmin=-1,
        zmax=1,
        text=[[words_of(value) for value in row] for row in values],
        colorscale=BETTER,
        hovertemplate="uplink %{x:.3s}bit/J, sidelink %{y:.3s}bit/J: %{text}<extra></extra>",
        colorbar={
            "title": {"text": "energy without<br>over with"},
            "tickvals": [-1, -LOG2, 0, LOG2, 1],
            "ticktext": ["1/10 or less", "1/2", "equal", "2", "10 or more"],
        },
        meta={"inner": str(rows.inner.iloc[0]), "kind": "map"},
    )
    figure.add_scatter(
        x=[settings.uplink],
        y=[settings.sidelink],
        mode="markers",
        marker={"symbol": "cross-open", "size": 13, "color": "#fff", "line": {"width": 2}},
        hoverinfo="skip",
        showlegend=False,
        meta={"inner": "", "kind": "here"},
    )
    axis = {"type": "log", "tickvals": [10.0**power for power in range(3, 10)]}
    axis["ticktext"] = ["1k", "10k", "100k", "1M", "10M", "100M", "1G"]
    figure.update_xaxes(title="uplink, bit/J", **axis)
    figure.update_yaxes(title="sidelink, bit/J", **axis)
    return styled(figure, height=420)


LOG2 = float(np.log10(2))


def words_of(value: float) -> str:
    """An advantage in words, as `wordsOf` of the page's script."""
    if np.isnan(value):
        return "undecided, because energies are lower bounds"
    if value == 0:
        return "equal"
    factor = f"{10 ** abs(value):.2f} times the energy" if abs(value) < 2 else "100 times the energy or more"
    return f"{factor} {'without' if value > 0 else 'with'} meta-training"


def energy_rounds(tables: Tables, record: RunRecord, *, cluster: str = "") -> go.Figure | None:
    """Rounds of adaptation by number of meta-training rounds, one line per depth; triangles: lower bounds."""
    topology, devices = clusters(tables).get(cluster) or first_cluster(tables)
    figure = go.Figure()
    for number, inner in enumerate(depths(tables)):
        rows = rows_of(tables, inner, topology, devices)
        if rows.empty:
            continue
        colour = COLOURS[number % len(COLOURS)]
        options: dict[str, Any] = {
            "marker": {"size": 9, "symbol": ["triangle-up-open" if one else "circle" for one in rows.censored]},
            "error_y": error_bars(rows.rounds, rows.rounds_low, rows.rounds_high, colour, thickness=1.2, width=4),
            "customdata": ["at least " if one else "" for one in rows.censored],
        }
        hover = f"{inner}, t0 = %{{x}}: %{{customdata}}%{{y:.1f}} rounds"
        add_trace(figure, rows.meta_rounds, rows.rounds, inner, colour, hover, **options)
    if not figure.data:
        return None
    figure.update_xaxes(title="rounds of meta-training, t0")
    figure.update_yaxes(title="rounds of adaptation<br>until the target", rangemode="tozero")
    return styled(figure, height=360)
