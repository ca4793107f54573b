"""Figures of quality, cost and drift by depth of adaptation: a tidy table in, a plotly figure out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from layerprobe.report._findings import NAMES, REFERENCES, top
from layerprobe.report.queries import drift_of, seeds_of
from layerprobe.report.theme import COLOURS, styled

if TYPE_CHECKING:
    import pandas as pd

# From blue to amber at like lightness: blue and amber stay apart for colour-blind readers, and all of it has a contrast of
# at least 3:1 to a white page and to a dark one, which no scale from dark to light has.
BY_DEPTH = [[0.0, "#4f63d9"], [0.3, "#9a52c6"], [0.55, "#cf4a86"], [0.8, "#d8612f"], [1.0, "#bd8000"]]
BESIDE = ("#1f8f7a", "#4d8f2f", "#3b8fb5", "#8a7a3a")
"""Methods that have no depth: LoRA, bias terms, checkpoints."""
PLAIN = "#888"
VERDICTS = {
    "sufficient": ("#1f8f7a", "circle", "sufficient"),
    "inferior": ("#d8612f", "x", "inferior"),
    "undecided": ("#8a8f98", "circle-open", "undecided"),
    "not tested": ("#8a8f98", "diamond-open", "not tested"),
}
COSTS: Mapping[str, tuple[str, str]] = {
    "trainable_parameters": ("trained parameters", ""),
    "flops": ("training FLOPs", ""),
    "seconds": ("training seconds", ""),
    "peak_bytes": ("peak memory", "bytes"),
    "bytes_stored": ("stored for this task", "bytes"),
    "energy_wh": ("energy", "Wh"),
    "drift": ("drift (1 – CKA, mean over layers)", ""),
}
"""Column -> what it is called, and its unit where that is not in the name."""
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")


def colours(names: Sequence[str]) -> dict[str, str]:
    """A colour a method: by depth from the head to everything, others by their place."""
    deep = [name for name in names if is_depth(name)]
    steps = [i / max(1, len(deep) - 1) for i in range(len(deep))]
    found = dict(zip(deep, sample_colorscale(BY_DEPTH, steps), strict=True)) if deep else {}
    others = [name for name in names if name not in found]
    for i, name in enumerate(others):
        plain = name.startswith(REFERENCES) or name == "shuffled-labels"
        found[name] = PLAIN if plain else BESIDE[i % len(BESIDE)]
    return found


def is_depth(name: str) -> bool:
    """Whether a method is one of the depths, from the head alone to everything."""
    return name in ("head", "full") or name.startswith("top:")


def quality(adaptation: pd.DataFrame, names: Sequence[str], split: str) -> go.Figure:
    """Accuracy by method, a point with its Wilson interval for each seed, and their mean as a stroke."""
    rows = adaptation[(adaptation["when"] == "after") & (adaptation["split"] == split)]
    references = [name for name in rows.method.unique() if name.startswith(f"{REFERENCES}logistic")]
    shown = [name for name in [*names, *references] if name in set(rows.method)]
    chosen = colours(shown)
    figure = go.Figure()
    for place, name in enumerate(shown):
        part = rows[rows.method == name].sort_values("seed")
        spots = _spots(place, len(part))
        figure.add_scatter(
            x=part.accuracy,
            y=spots,
            mode="markers",
            name=name,
            showlegend=False,
            marker={"size": 9, "color": chosen[name]},
            customdata=part[["seed", "accuracy_low", "accuracy_high", "n"]],
            hovertemplate=f"{name}, seed %{{customdata[0]}}: %{{x:.4f}} (%{{customdata[1]:.4f}} to %{{customdata[2]:.4f}}), %{{customdata[3]:,}} texts<extra></extra>",
            error_x=_reach(part.accuracy, part.accuracy_low, part.accuracy_high, chosen[name]),
        )
        if len(part) > 1:
            mean = part.accuracy.mean()
            figure.add_scatter(
                x=[mean, mean],
                y=[place - 0.36, place + 0.36],
                mode="lines",
                line={"color": chosen[name], "width": 3},
                showlegend=False,
                hovertemplate=f"{name}, mean of {len(part)} seeds: %{{x:.4f}}<extra></extra>",
            )
    figure.update_xaxes(title="accuracy; further right is better")
    _rows(figure, shown)
    return styled(figure, height=110 + 40 * len(shown))


def differences(table: pd.DataFrame, points: pd.DataFrame | None, verdicts: pd.DataFrame | None) -> go.Figure:
    """Accuracy less the reference's on the same texts: alone (thick), all at once (thin), seeds as points, the margin."""
    outcome = {} if verdicts is None else verdicts.set_index("method").outcome.to_dict()
    reference, shown = str(table.reference.iloc[0]), list(table.method)
    figure = go.Figure()
    told: set[str] = set()
    row: Any
    for place, row in enumerate(table.itertuples()):
        colour, symbol, words = VERDICTS.get(str(outcome.get(row.method)), (PLAIN, "circle", ""))
        for low, high, width in ((row.band_low, row.band_high, 1.5), (row.ci_low, row.ci_high, 6)):
            figure.add_scatter(
                x=[low, high],
                y=[place, place],
                mode="lines",
                line={"color": colour, "width": width},
                opacity=1 if width < 2 else 0.45,
                showlegend=False,
                hoverinfo="skip",
            )
        figure.add_scatter(
            x=[row.difference],
            y=[place],
            mode="markers",
            name=words or "difference",
            legendgroup=words,
            showlegend=bool(words) and words not in told,
            marker={"size": 12, "color": colour, "symbol": symbol, "line": {"width": 2, "color": colour}},
            hovertemplate=(
                f"{row.method} less {reference}: {row.difference:+.4f}<br>alone {row.ci_low:+.4f} to {row.ci_high:+.4f}"
                f"<br>all at once {row.band_low:+.4f} to {row.band_high:+.4f}<br>they disagree on {row.disagreement:.1%}<extra></extra>"
            ),
        )
        told.add(words)
        own = None if points is None else points[points.method == row.method]
        if own is not None and len(own) > 1:
            figure.add_scatter(
                x=own.difference,
                y=[place + 0.3] * len(own),
                mode="markers",
                name="one seed",
                legendgroup="seed",
                showlegend="seed" not in told,
                marker={"size": 6, "color": PLAIN},
                customdata=own.seed,
                hovertemplate=f"{row.method}, seed %{{customdata}}: %{{x:+.4f}}<extra></extra>",
            )
            told.add("seed")
    figure.add_vline(x=0, line={"color": PLAIN, "width": 1})
    if verdicts is not None and "margin" in verdicts:
        margin = float(verdicts.margin.iloc[0])
        figure.add_vline(x=-margin, line={"color": "#d8612f", "dash": "dash", "width": 2})
        figure.add_annotation(
            x=-margin, y=1, yref="paper", yanchor="bottom", text=f"margin –{margin:.3g}", showarrow=False
        )
    figure.update_xaxes(title=f"accuracy less {reference}'s, same texts<br>right of 0 is better")
    _rows(figure, shown)
    styled(figure, height=170 + 42 * len(shown))
    return figure.update_layout(legend_y=-100 / (84 + 42 * len(shown)))


def cost_shares(bought: pd.DataFrame, reference: str) -> go.Figure | None:
    """Each cost by method, as a share of the reference's; None where nothing can be shared out."""
    base = bought[bought.method == reference]
    figure = go.Figure()
    for number, (column, (words, unit)) in enumerate(COSTS.items()):
        if column == "drift" or column not in bought or base.empty or not float(base[column].iloc[0]) > 0:
            continue
        for deep in (True, False):  # a line through the depths; other methods stand apart
            rows = bought[[is_depth(name) == deep for name in bought.method]]
            if rows.empty:
                continue
            figure.add_scatter(
                x=rows.method,
                y=rows[column] / float(base[column].iloc[0]),
                mode="lines+markers" if deep else "markers",
                name=words,
                legendgroup=column,
                showlegend=deep or not any(map(is_depth, bought.method)),
                line={"dash": DASHES[number % len(DASHES)], "color": COLOURS[number % len(COLOURS)]},
                marker={"size": 8},
                customdata=[spoken(value, column) for value in rows[column]],
                hovertemplate=f"%{{x}}: %{{customdata}}{'' if unit else ' ' + words} (%{{y:.1%}} of {reference})<extra></extra>",
            )
    if not figure.data:
        return None
    figure.update_xaxes(type="category", categoryorder="array", categoryarray=list(bought.method))
    figure.update_yaxes(title=f"share of {reference}'s", tickformat=".0%", rangemode="tozero")
    return styled(figure, height=380)


def pareto(table: pd.DataFrame, cost: str, names: Sequence[str], points: pd.DataFrame | None = None) -> go.Figure:
    """Accuracy against one cost: a line through the methods that no other undercuts."""
    rows = table[(table.cost == cost) & table.value.notna() & table.quality.notna()].sort_values(["value", "quality"])
    chosen = colours([name for name in names if name in set(rows.method)])
    front = rows[rows.efficient == True]  # noqa: E712  (missing where a cost is)
    words, unit = COSTS.get(cost, (cost, ""))
    figure = go.Figure()
    figure.add_scatter(
        x=front.value,
        y=front.quality,
        mode="lines",
        line={"color": PLAIN, "dash": "dot", "shape": "hv"},
        name="no other method is better and cheaper",
        hoverinfo="skip",
    )
    spread = {} if points is None else {str(name): part for name, part in points.groupby("method")}
    spots = _label_spots(rows)
    row: Any
    for number, row in enumerate(rows.itertuples()):
        own = spread.get(row.method)
        seeds = "" if own is None or len(own) < 2 else f"<br>seeds {own.accuracy.min():.4f} to {own.accuracy.max():.4f}"
        beaten = f"<br>{row.dominated_by} is no dearer and no worse" if row.dominated_by else "<br>on the front"
        figure.add_scatter(
            x=[row.value],
            y=[row.quality],
            mode="markers+text",
            text=[row.method],
            textposition=spots[number],
            cliponaxis=False,
            name=row.method,
            showlegend=False,
            marker={
                "size": 13,
                "color": chosen[row.method],
                "symbol": "circle" if row.efficient else "circle-open",
                "line": {"width": 2, "color": chosen[row.method]},
            },
            hovertemplate=f"{row.method}: accuracy {row.quality:.4f}{seeds}<br>{words} {spoken(row.value, cost)}{beaten}<extra></extra>",
        )
    positive = len(rows) and rows.value.min() > 0
    wide = positive and rows.value.max() / rows.value.min() > 30
    figure.update_xaxes(
        title=f"{words}{f' ({unit})' if unit else ''}; further left is cheaper", type="log" if wide else "linear"
    )
    figure.update_yaxes(title="accuracy on test texts")
    return styled(figure, height=420)


def _label_spots(rows: pd.DataFrame) -> list[str]:
    """Above a point, or below where a near one stands higher."""
    width, values = float(rows.value.max() - rows.value.min()) or 1.0, list(zip(rows.value, rows.quality, strict=True))
    spots = []
    for i, (x, y) in enumerate(values):
        near = [other for j, (at, other) in enumerate(values) if j != i and abs(at - x) < 0.09 * width]
        spots.append("bottom center" if any(other > y for other in near) else "top center")
    return spots


def drift_by_depth(similarity: pd.DataFrame, names: Sequence[str], measure: str, unit: str) -> dict[str, Any] | None:
    """One measure by layer for every method on one figure, and for each the words that a slider announces.

    Each trace's `meta` is its method's place; the first seed has a line with its band, other seeds have points.
    """
    tables = {name: drift_of(similarity, name, measure, unit) for name in names}
    shown = [name for name in names if len(tables[name])]
    if len(shown) < 2:
        return None
    chosen, figure, steps = colours(shown), go.Figure(), []
    for place, name in enumerate(shown):
        table, colour = tables[name], chosen[name]
        figure.add_scatter(
            x=[*table.layer, *table.layer[::-1]],
            y=[*table.ci_high, *table.ci_low[::-1]],
            fill="toself",
            fillcolor=colour,
            opacity=0.2,
            line={"width": 0},
            hoverinfo="skip",
            showlegend=False,
            meta={"place": place, "role": "band"},
        )
        figure.add_scatter(
            x=table.layer,
            y=table.value,
            mode="lines+markers",
            name=name,
            line={"color": colour},
            hovertemplate=f"{name}, layer %{{x}}: %{{y:.4f}}<extra></extra>",
            meta={"place": place, "role": "line"},
        )
        for seed in seeds_of(similarity, name)[1:]:
            other = drift_of(similarity, name, measure, unit, seed)
            figure.add_scatter(
                x=other.layer,
                y=other.value,
                mode="markers",
                marker={"color": colour, "size": 7, "symbol": "circle-open"},
                showlegend=False,
                hovertemplate=f"{name}, seed {seed}, layer %{{x}}: %{{y:.4f}}<extra></extra>",
                meta={"place": place, "role": "seed"},
            )
        change = (table.value - top(measure)).abs().to_numpy()
        same = [int(layer) for layer, moved in zip(table.layer, change, strict=True) if moved <= 1e-6]
        kept = "no layer untouched" if not same else f"layers {min(same)} to {max(same)} untouched"
        kept = f"layer {same[0]} untouched" if len(same) == 1 else kept
        kept = "every layer untouched" if len(same) == len(table) else kept
        steps.append({"name": name, "words": f"{name}: {kept}; last layer {table.value.iloc[-1]:.3f}"})
    figure.update_xaxes(title="layer (0 = embeddings)", dtick=1)
    sense = "lower" if top(measure) else "higher"
    figure.update_yaxes(title=f"{NAMES.get(measure, measure)}<br>{sense} = more changed", rangemode="tozero")
    deepest = max((i for i, name in enumerate(shown) if is_depth(name)), default=len(shown) - 1)
    return {"figure": styled(figure, height=420).to_plotly_json(), "steps": steps, "first": deepest}


def spoken(value: float, cost: str) -> str:
    """A cost as a reader says it."""
    if value != value:
        return "not measured"
    if cost in ("peak_bytes", "bytes_stored"):
        return _scaled(value, 1000, (" B", " kB", " MB", " GB", " TB"))
    if cost == "flops":
        return _scaled(value, 1000, ("", "k", "M", "G", "T", "P", "E"))
    if cost == "seconds":
        return f"{value:.1f} s" if value < 100 else f"{value:.0f} s"
    if cost == "energy_wh":
        return f"{value:.3g} Wh"
    return f"{value:.3f}" if cost == "drift" else f"{round(value):,}"


def _scaled(value: float, step: int, units: Sequence[str]) -> str:
    for unit in units:
        if abs(value) < step or unit == units[-1]:
            return f"{value:.3g}{unit}"
        value /= step
    raise AssertionError


def _spots(place: int, count: int) -> list[float]:
    """Where several seeds of one row stand."""
    return [place + (0.0 if count == 1 else -0.25 + 0.5 * i / (count - 1)) for i in range(count)]


def _reach(value: Any, low: Any, high: Any, colour: str) -> dict[str, Any]:
    return {
        "type": "data",
        "symmetric": False,
        "array": high - value,
        "arrayminus": value - low,
        "color": colour,
        "thickness": 1.2,
        "width": 0,
    }


def _rows(figure: go.Figure, names: Sequence[str]) -> None:
    figure.update_yaxes(
        tickmode="array",
        tickvals=list(range(len(names))),
        ticktext=[short(name) for name in names],
        range=[len(names) - 0.5, -0.6],
        zeroline=False,
    )


def short(name: str) -> str:
    """A method's name on an axis: references without their prefix, paths by their last part."""
    name = name.removeprefix(REFERENCES)
    return (
        "checkpoint:…/" + name.rstrip("/").rsplit("/", 1)[-1]
        if name.startswith("checkpoint:") and "/" in name
        else name
    )
