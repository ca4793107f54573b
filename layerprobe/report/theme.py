"""Colours, error bars, bands and the layout that every figure shares; transparent, so that it fits a light and a dark page."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots

from layerprobe.report import queries

if TYPE_CHECKING:
    from layerprobe.record import MeasureRecord, RunRecord

# Okabe and Ito's palette, safe for colour-blind readers; black is left out, which a dark page would hide.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
SCALE = "Viridis"
# From blue to amber at similar lightness: blue and amber are distinguishable for colour-blind readers, and every colour has
# a contrast of at least 3:1 to a white and to a dark page, which no scale from dark to light has.
BY_DEPTH = [[0.0, "#4f63d9"], [0.3, "#9a52c6"], [0.55, "#cf4a86"], [0.8, "#d8612f"], [1.0, "#bd8000"]]
WITHOUT_DEPTH = ("#1f8f7a", "#4d8f2f", "#3b8fb5", "#8a7a3a")
"""Colours of methods that have no depth: LoRA, bias terms, checkpoints."""
LETTER = 6.3
"""Mean width of a letter in the title of an axis, in pixels."""
PLAIN = "#888"
"""Colour of controls, baselines and helper lines."""
EMPHASIS = "#D55E00"
"""Colour of outlines."""

PER_LINE = 3
"""Small multiples next to each other."""
BETWEEN_LINES, AROUND_LINES = 62, 110
"""Pixels between two lines of small multiples, and above and below all of them."""
MOST_TICKS = 9
"""Layers with a tick in a small multiple."""


def method_colours(names: Sequence[str], record: RunRecord) -> dict[str, str]:
    """A colour per method: by depth from the head to all blocks, others by their position; baselines are grey."""
    deep = [name for name in names if queries.has_depth(name, record)]
    steps = [i / max(1, len(deep) - 1) for i in range(len(deep))]
    chosen = dict(zip(deep, sample_colorscale(BY_DEPTH, steps), strict=True)) if deep else {}
    for i, name in enumerate(name for name in names if name not in chosen):
        method = queries.method(name, record)
        plain = method is None or method.is_control
        chosen[name] = PLAIN if plain else WITHOUT_DEPTH[i % len(WITHOUT_DEPTH)]
    return chosen


def error_bars(value: Any, low: Any, high: Any, colour: str | None = None, **style: Any) -> dict[str, Any]:
    """Error bars from `low` to `high` around `value`, for `error_x` and `error_y`."""
    bars = {"type": "data", "symmetric": False, "array": high - value, "arrayminus": value - low, **style}
    return bars if colour is None else {**bars, "color": colour}


def add_trace(
    figure: go.Figure, x: Any, y: Any, name: str, colour: str, hover: str | None = None, **options: Any
) -> None:
    """Add points joined by lines in one colour.

    Args:
        figure: where to add them.
        x: positions.
        y: positions.
        name: in the legend.
        colour: of markers and lines.
        hover: template of the hover text, none by default.
        options: of plotly's scatter trace; `marker` and `line` are added to the colour.
    """
    style = {key: {"color": colour, **options.pop(key, {})} for key in ("marker", "line")}
    text = {"hoverinfo": "skip"} if hover is None else {"hovertemplate": f"{hover}<extra></extra>"}
    figure.add_scatter(x=x, y=y, name=name, **{"mode": "lines+markers"} | style | text | options)


def add_band(figure: go.Figure, x: Any, low: Any, high: Any, colour: str, **options: Any) -> None:
    """Add the area between two lines, without hover text or legend."""
    figure.add_scatter(
        x=[*x, *x[::-1]],
        y=[*high, *low[::-1]],
        fill="toself",
        fillcolor=colour,
        opacity=0.2,
        line={"width": 0},
        hoverinfo="skip",
        showlegend=False,
        **options,
    )


def ink_on(value: float, scale: str = SCALE) -> str:
    """Black or white, whichever has the higher contrast to a colour of a scale: at least 4.5:1 by WCAG 2.2.

    Args:
        value: position on the scale, 0 to 1.
        scale: name of one of plotly's scales.
    """
    (colour,) = sample_colorscale(scale, [min(1.0, max(0.0, value))], colortype="tuple")
    light = luminance(colour)
    return "#000" if (light + 0.05) / 0.05 > 1.05 / (light + 0.05) else "#fff"


def luminance(colour: Sequence[float]) -> float:
    """Relative luminance of red, green and blue in 0 to 1 (WCAG 2.2)."""
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in colour]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def label_layers(figure: go.Figure, **options: Any) -> None:
    """Title the x axis and put one tick per layer."""
    figure.update_xaxes(title="layer (0 = embeddings)", dtick=1, **options)


def small_multiples(
    titles: Sequence[str], *, line_height: int, **options: Any
) -> tuple[go.Figure, list[dict[str, int]]]:
    """Diagrams of one size next to each other, at most `PER_LINE` in a line.

    Args:
        titles: of the diagrams.
        line_height: of a line of diagrams with its titles, in pixels.
        options: of plotly's `make_subplots`.

    Returns:
        The figure, whose height is to be set by `multiples_height`, and the place of each diagram as `row` and `col`.
    """
    columns, lines = min(PER_LINE, len(titles)), -(-len(titles) // PER_LINE)
    gap = BETWEEN_LINES / (line_height * lines)
    spacing = {"horizontal_spacing": 0.04, "vertical_spacing": gap, **options}
    figure = make_subplots(rows=lines, cols=columns, subplot_titles=list(titles), **spacing)
    return figure, [{"row": i // columns + 1, "col": i % columns + 1} for i in range(len(titles))]


def multiples_height(count: int, line_height: int) -> int:
    """Height of a figure of so many small multiples, legend and titles of axes included."""
    return AROUND_LINES + line_height * -(-count // PER_LINE)


def label_layers_below(figure: go.Figure, places: Sequence[Mapping[str, int]], layers: int) -> None:
    """Title the x axes of small multiples as `title_below` does, and put ticks at whole layers.

    Args:
        figure: of small multiples.
        places: of its diagrams.
        layers: number of layers.
    """
    figure.update_xaxes(dtick=max(1, -(-layers // MOST_TICKS)))
    title_below(figure, places, "layer")


def title_below(figure: go.Figure, places: Sequence[Mapping[str, int]], title: str) -> None:
    """Title the x axes of small multiples that have no diagram below them."""
    taken = {(place["row"], place["col"]) for place in places}
    for row, col in taken:
        if (row + 1, col) not in taken:
            figure.update_xaxes(title=title, showticklabels=True, row=row, col=col)


def joined(layers: int) -> str:
    """Mode of points over layers: joined by lines from three layers on, since a line over two suggests a course."""
    return "lines+markers" if layers > 2 else "markers"


def label_measure(figure: go.Figure, measure: MeasureRecord, **where: Any) -> None:
    """Title the y axes at a place, by default all, with a measure and the direction of change."""
    direction = "higher" if measure.kind == "distance" else "lower"
    figure.update_yaxes(title=f"{measure.label}<br>{direction} = more changed", **where)
    figure.update_yaxes(rangemode="tozero")


def styled(figure: go.Figure, *, height: int) -> go.Figure:
    """Apply the layout that every figure shares."""
    figure.update_layout(
        height=height,
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        margin={"l": 60, "r": 20, "t": 36, "b": 50},
        font={"family": "system-ui, sans-serif", "size": 13},
        legend={"orientation": "h", "yref": "container", "yanchor": "bottom", "y": 0, "xanchor": "left", "x": 0},
    )
    grid = {"gridcolor": "rgba(128,128,128,.25)", "zerolinecolor": "rgba(128,128,128,.4)", "automargin": True}
    figure.update_xaxes(**grid)
    figure.update_yaxes(**grid)
    for axis in (*figure.select_xaxes(), *figure.select_yaxes()):
        axis.hoverformat = ".1%" if "%" in (axis.tickformat or "") else ".4~f"
    figure.for_each_yaxis(lambda axis: _wrap_title(axis, height))
    return figure


def _wrap_title(axis: go.layout.YAxis, height: int) -> None:
    """Break the lines of a vertical title that are longer than the axis, which plotly would cut."""
    low, high = axis.domain or (0, 1)
    if axis.title.text:
        room = max(12, int((height - 150) * (high - low) / LETTER))
        lines = [
            wrapped
            for line in axis.title.text.split("<br>")
            for wrapped in textwrap.wrap(line, room, break_long_words=False)
        ]
        axis.title = {"text": "<br>".join(lines), "font": {"size": 12}}
