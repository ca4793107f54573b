"""Figures of the label effect: dictionaries and controls from base to adapted, and the excess over each control."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from layerprobe.record import RunRecord
from layerprobe.report import queries
from layerprobe.report.section import Tables
from layerprobe.report.theme import (
    COLOURS,
    PLAIN,
    add_trace,
    error_bars,
    multiples_height,
    small_multiples,
    styled,
    title_below,
)

BASES = {
    "trained": "trained dictionary",
    "untrained": "untrained dictionary",
    "random directions": "random directions",
    "neurons": "neurons",
    "principal components": "principal components",
    "frozen-decoder": "frozen random decoder",
    "soft-frozen-decoder": "soft-frozen random decoder",
    "frozen-encoder": "frozen random encoder",
    "base dictionary": "base's dictionary on adapted",
}
"""Basis -> name, from top to bottom."""
ROWS = {"projected": "between-label mean directions removed", "all": "all rows as they are"}
"""Rows on which label effects are measured -> name; the decision is made on the first."""
TRAINED, CONTROL = COLOURS[1], COLOURS[0]
LINE_HEIGHT = 300


def of_method(tables: Tables, record: RunRecord, name: str, method: str | None) -> pd.DataFrame | None:
    """Rows of a method, by default of the main one; None if there are none."""
    table = queries.having(tables, name)
    method = method or queries.main_method(queries.changed(tables, record), record)
    rows = None if table is None else table[table.method == method]
    return None if rows is None or rows.empty else rows


def basis_effects(
    tables: Tables, record: RunRecord, *, method: str | None = None, rows: str = "projected"
) -> go.Figure | None:
    """Mean label effect of each basis, from base (open) to adapted (filled), one diagram per layer."""
    table = of_method(tables, record, "basis_controls", method)
    table = None if table is None else table[table.projected == (rows == "projected")]
    if table is None or table.empty:
        return None
    columns = ["label_effect", "label_effect_low", "label_effect_high"]
    means: Any = table.groupby(["layer", "basis", "side"])[columns].mean()
    shown, layers = [basis for basis in BASES if basis in set(table.basis)], sorted(table.layer.unique())
    figure, places = _diagrams(layers, shown)
    for layer, place in zip(layers, places, strict=True):
        at = means.loc[layer].label_effect
        # One line per basis from base to adapted, in one trace: a gap follows each.
        pairs = [(at.get((basis, "base")), at.get((basis, "adapted")), BASES[basis]) for basis in shown]
        x = [value for base, adapted, _ in pairs for value in (base, adapted, None)]
        y = [value for _, _, name in pairs for value in (name, name, None)]
        options: dict[str, Any] = {"mode": "lines", "showlegend": False, **place}
        add_trace(figure, x, y, "change", PLAIN, **options)
        for side in ("base", "adapted"):
            part = means.xs((layer, side), level=("layer", "side")).reindex(shown).dropna(subset="label_effect")
            symbol = "circle" if side == "adapted" else "circle-open"
            _add_dots(figure, part, columns, side, symbol, places.index(place) == 0, place)
    figure.update_xaxes(rangemode="tozero")
    title_below(figure, places, "mean squared label effect")
    return styled(figure, height=multiples_height(len(places), LINE_HEIGHT))


def basis_excess(
    tables: Tables, record: RunRecord, *, method: str | None = None, rows: str = "projected"
) -> go.Figure | None:
    """The excess of the dictionaries' rise over that of each control, one diagram per layer, with simultaneous intervals."""
    table = of_method(tables, record, "basis_excess", method)
    table = None if table is None else table[table.projected == (rows == "projected")]
    if table is None or table.empty:
        return None
    shown, layers = [basis for basis in BASES if basis in set(table.control)], sorted(table.layer.unique())
    figure, places = _diagrams(layers, shown)
    for layer, place in zip(layers, places, strict=True):
        part = table[table.layer == layer].set_index("control").reindex(shown).dropna(subset="excess")
        _add_dots(figure, part, ["excess", "excess_low", "excess_high"], "excess", "circle", False, place)
    figure.add_vline(x=0, line={"color": PLAIN, "dash": "dash"})
    title_below(figure, places, "excess over the control")
    return styled(figure, height=multiples_height(len(places), LINE_HEIGHT))


def _diagrams(layers: list[int], shown: list[str]) -> tuple[go.Figure, list[dict[str, int]]]:
    """One diagram per layer with the same rows, the first on top."""
    titles = [f"layer {layer}" for layer in layers]
    figure, places = small_multiples(titles, line_height=LINE_HEIGHT, shared_yaxes=True, shared_xaxes="all")
    names = [BASES[basis] for basis in shown]
    figure.update_yaxes(categoryorder="array", categoryarray=names[::-1], range=[-0.6, len(names) - 0.4])
    return figure, places


def _add_dots(
    figure: go.Figure,
    rows: pd.DataFrame,
    columns: Sequence[str],
    name: str,
    symbol: str,
    in_legend: bool,
    place: Mapping[str, int],
) -> None:
    """Add a dot with its interval per basis, the trained dictionary in another colour.

    Args:
        rows: indexed by basis.
        columns: of the value and the ends of its interval.
        in_legend: whether the legend shows this symbol.
    """
    for colour, part in (
        (TRAINED, rows[rows.index == "trained"]),
        (CONTROL, rows[rows.index != "trained"]),
    ):
        if part.empty:
            continue
        value, low, high = (part[column] for column in columns)
        options = {
            "mode": "markers",
            "marker": {"symbol": symbol, "size": 9},
            "error_x": error_bars(value, low, high, colour, thickness=1, width=2),
            "showlegend": in_legend and colour == CONTROL,
            **place,
        }
        add_trace(
            figure,
            value,
            [BASES[basis] for basis in part.index],
            name,
            colour,
            f"%{{y}}, {name}: %{{x:.3f}}",
            **options,
        )
