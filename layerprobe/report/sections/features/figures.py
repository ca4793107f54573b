"""Figures of what changed: latents by kind, transfer of dictionaries, matches, the joint census, and densities."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from layerprobe.record import RunRecord
from layerprobe.report import queries
from layerprobe.report.section import Tables
from layerprobe.report.theme import COLOURS, PLAIN, error_bars, joined, label_layers, method_colours, styled

BLUE, VERMILLION, GREEN, PINK, ORANGE, SKY = COLOURS
KINDS = {"task": VERMILLION, "both": ORANGE, "general": BLUE, "unexplained": "#9AA0A6"}
"""Kinds of latents from the bottom of a bar up, so that the first two add up to the task share."""
CENSUS = {"shared": BLUE, "amplified": SKY, "shifted": "#9AA0A6", "rotated": PINK}
CENSUS |= {"base_only": GREEN, "adapted_only": VERMILLION}
"""Kinds of the joint dictionary's latents."""
MARKER = "#A855F7"
"""Colour of markers on bars: visible on the bars' colours, on a light and on a dark page."""
TRANSFERS = (
    ("base", "trained", "base's dictionary", BLUE, "circle"),
    ("adapted", "trained", "adapted's dictionary", VERMILLION, "circle"),
    ("base", "second-seed", "second seed: base's", BLUE, "circle-open"),
    ("adapted", "second-seed", "second seed: adapted's", VERMILLION, "circle-open"),
)
"""Side of the dictionary, variant of the dictionary, name, colour, symbol."""
CONTROLS = ("untrained", "frozen-decoder")
"""Dictionaries whose directions were not learned."""
QUANTITIES = {
    "explained_variance": ("ev", "explained variance of test rows<br>lower on adapted = more changed"),
    "loss_recovered": ("loss_recovered", "task loss recovered<br>lower = less of the task kept"),
    "accuracy_recovered": ("accuracy_recovered", "accuracy recovered<br>lower = less of the task kept"),
}
"""Quantity -> prefix of the columns of its interval, title of the axis."""
SHOWN = (-0.5, 1.3)
"""Values outside this range are drawn at its edge, with their number: one of -15 would flatten all others."""
PAIRS = {
    "cosine": ("same start", "cosine", "cosine of directions"),
    "correlation": ("same start", "correlation", "correlation of activations"),
    "different-starts": ("different starts", "cosine", "cosine, dictionaries of different starts"),
}
"""How latents are matched -> start, quantity that pairs were matched on, name."""
UNMATCHED = (("lost", "lost from base", ORANGE), ("new", "new in adapted", VERMILLION))
"""Prefix of columns, name, colour."""


def method_rows(tables: Tables, record: RunRecord, name: str, method: str | None) -> pd.DataFrame | None:
    """Rows of a method's first training seed, by default of the main method; None if there are none."""
    table = queries.having(tables, name)
    method = method or queries.main_method(queries.changed(tables, record), record)
    if table is None or method is None or method not in set(table.method):
        return None
    return queries.of_first_seed(table, method)


def control_shares(tables: Tables, record: RunRecord, method: str) -> pd.DataFrame | None:
    """The table `latent_shares` of the adapted side under the control; None for a control, or without one."""
    controls = queries.controls(record)
    rows = method_rows(tables, record, "latent_shares", controls[0]) if controls and method not in controls else None
    return None if rows is None else rows[(rows.dictionary == "first") & (rows.side == "adapted")]


def latent_kinds(tables: Tables, record: RunRecord, *, method: str | None = None) -> go.Figure | None:
    """Latents by kind in each layer, base on the left and adapted on the right, with the task share and its null."""
    rows = method_rows(tables, record, "latent_shares", method)
    if rows is None:
        return None
    figure, (x, rows) = go.Figure(), _by_layer_and_side(rows[rows.dictionary == "first"])
    for kind, colour in KINDS.items():
        hover = f"{kind}: %{{y:.1%}} (%{{customdata[0]}} of %{{customdata[1]}})<extra></extra>"
        bar = {"marker_color": colour, "customdata": rows[[kind, "live"]], "hovertemplate": hover}
        figure.add_bar(x=x, y=rows[kind] / rows.live, name=kind, **bar)
    marker = {"symbol": "circle", "size": 10, "color": "#fff", "line": {"color": MARKER, "width": 2}}
    name, bars = "task share, 95% interval", error_bars(rows.share_task, rows.share_low, rows.share_high, MARKER)
    point = {"mode": "markers", "marker": marker, "error_y": bars}
    hover = "%{y:.1%}<extra>" + name + "</extra>"
    figure.add_scatter(x=x, y=rows.share_task, name=name, hovertemplate=hover, **point)
    dash = {"symbol": "line-ew-open", "size": 24, "color": MARKER, "line": {"width": 3}}
    null = "95th percentile with labels permuted"
    figure.add_scatter(x=x, y=rows.share_permuted_high, mode="markers", name=null, marker=dash)
    figure.update_yaxes(title="share of judged latents<br>more task = more changed", tickformat=".0%", range=[0, 1])
    figure.update_xaxes(tickangle=0)
    figure.update_layout(barmode="stack", bargap=0.15)
    return styled(figure, height=430).update_layout(legend={"traceorder": "normal"})


def _by_layer_and_side(rows: pd.DataFrame) -> tuple[list[list[str]], pd.DataFrame]:
    """Places on an axis of layers and sides, and the rows in this order."""
    rows = rows.sort_values(["layer", "side"], ascending=[True, False])
    return [_layer_names(rows.layer), rows.side.tolist()], rows


def _layer_names(layers: Any) -> list[str]:
    return [f"layer {layer}" for layer in layers]


def task_mass(tables: Tables, record: RunRecord) -> go.Figure | None:
    """Share of activation mass in task latents by layer: the base once, and the adapted model of each method."""
    methods = queries.changed(tables, record)
    by_method = {name: method_rows(tables, record, "latent_shares", name) for name in methods}
    shown = {name: rows for name, rows in by_method.items() if rows is not None}
    if not shown:
        return None
    colours, figure = method_colours(methods, record), go.Figure()
    layers = max(rows.layer.nunique() for rows in shown.values())
    lines = [("base", rows, "base", PLAIN) for rows in list(shown.values())[:1]]
    lines += [(f"{name}: adapted", rows, "adapted", colours[name]) for name, rows in shown.items()]
    for name, rows, side, colour in lines:
        part = rows[(rows.side == side) & (rows.dictionary == "first")].sort_values("layer")
        bars = error_bars(part.mass_task, part.mass_low, part.mass_high, colour)
        line = {"color": colour, "dash": "dot" if side == "base" else "solid"}
        curve = {"mode": joined(layers), "name": name, "line": line, "marker": {"size": 9, "color": colour}}
        figure.add_scatter(x=_layer_names(part.layer), y=part.mass_task, offsetgroup=name, error_y=bars, **curve)
    if layers < 3:  # dots next to each other
        figure.update_layout(scattermode="group", scattergap=0.75)
    title = "activation mass in task latents<br>higher = more changed"
    figure.update_yaxes(title=title, tickformat=".0%", rangemode="tozero")
    return styled(figure, height=380)


def crossing(tables: Tables, record: RunRecord, *, method: str | None = None) -> go.Figure | None:
    """Mean label effect of latents, adapted minus base, by layer, over all seeds."""
    table = queries.having(tables, "crossing_layers")
    method = method or queries.main_method(queries.changed(tables, record), record)
    if table is None or method is None:
        return None
    rows = table[(table.method == method) & (table.quantity == "label_effect")].sort_values("layer")
    rows = rows[rows.difference.notna()]
    if rows.empty:
        return None
    figure = go.Figure()
    seeds = error_bars(rows.difference, rows.lowest, rows.highest, PLAIN, width=0, thickness=6)
    name, marker = (
        "lowest to highest pair of seeds",
        {"symbol": "line-ns-open", "size": 8, "line": {"width": 6}, "color": PLAIN},
    )
    figure.add_scatter(x=rows.layer, y=rows.difference, mode="markers", name=name, marker=marker, error_y=seeds)
    known = rows.low.notna().any()
    name = "adapted minus base" + (", 95% interval for all layers at once" if known else "")
    bars = error_bars(rows.difference, rows.low, rows.high, VERMILLION) if known else None
    marker = {"size": 9, "color": VERMILLION}
    sides = "<br>base %{customdata[0]:.4f}, adapted %{customdata[1]:.4f}<extra></extra>"
    interval = "%{y:+.4f} (%{customdata[2]:+.4f} to %{customdata[3]:+.4f})" if known else "%{y:+.4f}"
    hover = {"customdata": rows[["base", "adapted", "low", "high"]], "hovertemplate": interval + sides}
    figure.add_scatter(x=rows.layer, y=rows.difference, mode="markers", name=name, marker=marker, error_y=bars, **hover)
    label_layers(figure)
    figure.update_yaxes(title="label effect,<br>adapted minus base<br>higher = more associated", rangemode="tozero")
    return styled(figure, height=320)


def transfer(
    tables: Tables, record: RunRecord, *, method: str | None = None, quantity: str = "explained_variance"
) -> go.Figure | None:
    """How well dictionaries reconstruct the rows of each side, over the band of the controls, in one of `QUANTITIES`."""
    rows = method_rows(tables, record, "sae", method)
    if rows is None or quantity not in rows:
        return None
    prefix, title = QUANTITIES[quantity]
    columns = [quantity, f"{prefix}_low", f"{prefix}_high"]
    if not {*columns} <= {*rows.columns}:
        return None
    rows = rows[rows[quantity].notna()]
    sides = [side for side in ("base", "adapted") if (rows.evaluated_on == side).any()]
    if not sides:
        return None
    titles = [f"{side} rows" for side in sides]
    figure = make_subplots(rows=1, cols=len(sides), subplot_titles=titles, shared_yaxes=True)
    ends = [0.0, 1.0]
    for col, side in enumerate(sides, start=1):
        on = rows[rows.evaluated_on == side].sort_values("layer")
        ends += _add_control_band(figure, on[on.kind.isin(CONTROLS)], quantity, col=col)
        for trained_on, kind, name, colour, symbol in TRANSFERS:
            part = on[(on.trained_on == trained_on) & (on.kind == kind)]
            if part.empty:
                continue
            value, low, high = (part[column] for column in columns)
            inside = value.between(*SHOWN)
            # The interval of a value beyond the edge is beyond it too.
            drawn = part.assign(y=value.clip(*SHOWN), y_low=low.where(inside), y_high=high.where(inside))
            ends += [end for end in drawn[["y", "y_low", "y_high"]].to_numpy().ravel() if end == end]
            hover = f"{name} on {side} rows: %{{customdata[0]:.3f}} (%{{customdata[1]:.3f}} to %{{customdata[2]:.3f}})"
            written: dict[str, Any] = {
                "text": value.map("{:.1f}".format).where(~inside, ""),
                "customdata": part[columns],
            }
            is_new = name not in {trace.name for trace in figure.data}
            written |= {"hovertemplate": f"{hover}<extra></extra>", "legendgroup": name, "showlegend": is_new}
            _add_points(figure, drawn, ["y", "y_low", "y_high"], name, colour, symbol, row=1, col=col, **written)
    shown = [max(SHOWN[0], min(ends)) - 0.1, min(SHOWN[1], max(ends)) + 0.06]
    figure.update_yaxes(range=shown, zeroline=True).update_yaxes(title=title, col=1)
    return styled(figure, height=420)


def _add_control_band(figure: go.Figure, controls: pd.DataFrame, quantity: str, *, col: int) -> list[float]:
    """Add a bar from the lowest to the highest control of each layer; returns its ends."""
    if controls.empty:
        return []
    layers = controls.groupby("layer")[quantity]
    low, high = (ends.clip(*SHOWN) for ends in (layers.min(), layers.max()))
    each = controls.apply(lambda row: f"{row.kind}, {row.trained_on}: {row[quantity]:.3f}", axis=1)
    listed = each.groupby(controls.layer).agg("<br>".join)
    # The outline keeps a band of no height, of one control, visible.
    style: dict[str, Any] = {"marker": {"color": "rgba(128,128,128,.3)", "line": {"color": PLAIN, "width": 1}}}
    style |= {"width": 0.8, "offset": -0.4}  # centred on the layer, whatever the points are grouped by
    legend = {"legendgroup": "controls", "showlegend": col == 1, "name": "controls: directions not learned"}
    hover = {"customdata": listed, "hovertemplate": "controls<br>%{customdata}<extra></extra>"}
    figure.add_bar(x=_layer_names(low.index), base=low, y=high - low, row=1, col=col, **style, **legend, **hover)
    return [*low, *high]


ALIGNMENTS = {
    "none": "none",
    "mean": "shift",
    "scale": "shift, scale",
    "rotation": "shift, rotation",
    "ridge": "any affine map",
    "home": "adapted's<br>dictionary",
}
"""Value of the column `alignment` -> name on the axis; `home` is the dictionary that needs none."""


def aligned(tables: Tables, record: RunRecord, *, method: str | None = None) -> go.Figure | None:
    """Explained variance of adapted rows by the base's dictionary and its controls after each alignment, by layer."""
    rows = method_rows(tables, record, "aligned_transfer", method)
    if rows is None:
        return None
    figure, place = go.Figure(), {name: i for i, name in enumerate(ALIGNMENTS)}
    for i, layer in enumerate(sorted(rows.layer.unique())):
        colour = COLOURS[i % len(COLOURS)]
        for kind, part in rows[rows.layer == layer].groupby("kind", sort=False):
            part, trained = part.sort_values("alignment", key=lambda names: names.map(place)), kind == "trained"
            name = f"layer {layer}" if trained else f"layer {layer}, {kind}"
            value = [*part.explained_variance, *([part.home.iloc[0]] if trained else [])]
            low, high = (pd.Series([*part[end], *value[len(part) :]]) for end in ("ev_low", "ev_high"))
            bars = error_bars(pd.Series(value), low, high, colour) if trained else None
            line = {"color": colour, "dash": "solid" if trained else "dot", "width": 2 if trained else 1}
            hover = {"customdata": value, "hovertemplate": f"{name}: %{{customdata:.3f}}<extra></extra>"}
            # Without alignment, a shift alone may lead to values that would flatten all others.
            x, y = list(ALIGNMENTS.values())[: len(value)], pd.Series(value).clip(*SHOWN)
            curve = {"mode": "lines+markers", "line": line, "error_y": bars, "showlegend": trained, **hover}
            figure.add_scatter(x=x, y=y, name=name, **curve)
    figure.update_xaxes(title="alignment of adapted rows to base rows")
    figure.update_yaxes(title="explained variance of adapted rows")
    return styled(figure, height=360)


def difference_pca(tables: Tables, record: RunRecord, *, method: str | None = None) -> go.Figure | None:
    """Variance of adapted - base by number of principal components, and by the joint dictionary at its coefficients."""
    rows = method_rows(tables, record, "difference_pca", method)
    if rows is None:
        return None
    figure = go.Figure()
    for i, (layer, part) in enumerate(rows.sort_values("components").groupby("layer")):
        colour, equal = COLOURS[i % len(COLOURS)], part[part.coefficients]
        bars = error_bars(part.explained_variance, part.ev_low, part.ev_high, colour)
        name, line = f"layer {layer}: components", {"color": colour}
        figure.add_scatter(x=part.components, y=part.explained_variance, name=name, line=line, error_y=bars)
        bars = error_bars(equal.joint, equal.joint_low, equal.joint_high, colour)
        marker, name = {"symbol": "diamond-open", "size": 11, "color": colour}, f"layer {layer}: joint dictionary"
        figure.add_scatter(x=equal.l0, y=equal.joint, name=name, mode="markers", marker=marker, error_y=bars)
    numbers = sorted(rows.components.unique().tolist())
    ticks = [number for number in numbers if number & (number - 1) == 0 or number == numbers[-1]]
    figure.update_xaxes(title="coefficients per token", type="log", tickvals=ticks)
    figure.update_yaxes(title="explained variance<br>of adapted minus base")
    return styled(figure, height=340)


def matching(
    tables: Tables, record: RunRecord, *, method: str | None = None, pairs: str = "cosine"
) -> go.Figure | None:
    """Mean match of base and adapted latents, in one of `PAIRS`, and the shares without a match, each with its null."""
    rows = method_rows(tables, record, "matching", method)
    if rows is None:
        return None
    start, on, name = PAIRS[pairs]
    same = rows[(rows.start == "same start") & (rows.on == "cosine")].sort_values("layer")
    rows = rows[(rows.start == start) & (rows.on == on)].sort_values("layer")
    if rows.empty:
        return None
    titles = (f"mean match: {name}", "latents without a match")
    figure = make_subplots(rows=1, cols=2, subplot_titles=titles, horizontal_spacing=0.1)
    places: Any = {"row": 1, "col": 1}
    _add_points(figure, rows, ["mean", "mean_low", "mean_high"], "base / adapted", BLUE, "circle", **places)
    _add_points(
        figure, rows, ["null_mean", "null_low", "null_high"], "base / adapted: null", BLUE, "circle-open", **places
    )
    places = {"row": 1, "col": 2}
    for kind, name, colour in UNMATCHED:
        shares, null = [f"{kind}_share", f"{kind}_low", f"{kind}_high"], [f"null_{kind}_share"]
        _add_points(figure, same, shares, name, colour, "circle", **places)
        _add_points(figure, same, null, f"{name}: null", colour, "circle-open", **places)
    figure.update_yaxes(title="lower than the null = more changed", row=1, col=1)
    figure.update_yaxes(title="higher than the null = more changed", tickformat=".0%", rangemode="tozero", row=1, col=2)
    return styled(figure, height=400)


def _add_points(
    figure: go.Figure, rows: pd.DataFrame, columns: Sequence[str], name: str, colour: str, symbol: str, **options: Any
) -> None:
    """Add points by layer, next to those that are already there.

    Args:
        columns: of the value, and of the ends of its interval if it has one.
    """
    if rows.empty:
        return
    value, *ends = columns
    bars = error_bars(rows[value], rows[ends[0]], rows[ends[1]], colour) if ends else None
    marker = {"symbol": symbol, "size": 11, "color": colour, "line": {"color": colour, "width": 2}}
    options |= {"mode": "markers+text", "textposition": "top center", "marker": marker, "error_y": bars}
    figure.add_scatter(x=_layer_names(rows.layer), y=rows[value], name=name, offsetgroup=name, **options)
    figure.update_layout(scattermode="group", scattergap=0.25)


def census(tables: Tables, record: RunRecord, *, method: str | None = None) -> go.Figure | None:
    """Kinds of the joint dictionary's latents in each layer, by number and by reconstructed variance."""
    rows = method_rows(tables, record, "census", method)
    live = None if rows is None else rows[rows.kind != "dead"]
    if live is None or live.empty:
        return None
    keys = live.layer, live.kind
    counts, shares = pd.crosstab(*keys), pd.crosstab(*keys, normalize="index")
    energy = pd.crosstab(*keys, values=live.energy_share, aggfunc="sum").fillna(0)
    titles = ("share of live latents", "share of reconstructed variance")
    figure = make_subplots(rows=1, cols=2, subplot_titles=titles, horizontal_spacing=0.1)
    for kind in (kind for kind in CENSUS if kind in counts):
        name, x = kind.replace("_", "-"), _layer_names(counts.index)
        hover = f"{name}: %{{y:.1%}} (%{{customdata}} latents)<extra></extra>"
        bar = {"name": name, "legendgroup": kind, "marker_color": CENSUS[kind], "customdata": counts[kind]}
        figure.add_bar(x=x, y=shares[kind], hovertemplate=hover, row=1, col=1, **bar)
        figure.add_bar(x=x, y=energy[kind], hovertemplate=hover, row=1, col=2, showlegend=False, **bar)
    figure.update_yaxes(tickformat=".0%")
    figure.update_layout(barmode="stack")
    return styled(figure, height=380).update_layout(legend={"traceorder": "normal"})


def transfer_steps(tables: Tables, record: RunRecord, *, method: str | None = None) -> go.Figure | None:
    """Explained variance of the dictionaries of both sides on the checkpoints kept during training."""
    rows = method_rows(tables, record, "transfer_steps", method)
    if rows is None:
        return None
    figure = go.Figure()
    for side, layer, part, line in _lines(rows.sort_values("step")):
        value, name = part.explained_variance, f"{side}'s dictionary, layer {layer}"
        bars = error_bars(value, part.ev_low, part.ev_high)
        figure.add_scatter(x=part.step, y=value, mode="lines+markers", name=name, line=line, error_y=bars)
    figure.update_xaxes(title="training step (0 = base)")
    figure.update_yaxes(title="explained variance of test rows<br>base's lower = more changed")
    return styled(figure, height=360)


def latent_densities(tables: Tables, record: RunRecord, *, method: str | None = None) -> go.Figure | None:
    """Number of latents by the share of test rows of their side on which they are active, for each layer and side."""
    rows = method_rows(tables, record, "sae_densities", method)
    if rows is None:
        return None
    rows = rows[(rows.kind == "trained") & (rows.trained_on == rows.evaluated_on) & (rows.low > float("-inf"))]
    figure = go.Figure()
    for side, layer, part, line in _lines(rows.sort_values("low")):
        x, name = (part.low + part.high) / 2, f"{side}, layer {layer}"
        figure.add_scatter(x=x, y=part.latents, mode="lines+markers", name=name, line={**line, "shape": "hvh"})
    figure.update_xaxes(title="share of rows on which a latent is active (log10)")
    figure.update_yaxes(title="latents", rangemode="tozero")
    return styled(figure, height=320) if figure.data else None


def _lines(rows: pd.DataFrame) -> Iterator[tuple[str, int, pd.DataFrame, dict[str, str]]]:
    """Side, layer, its rows, and its line: a colour per layer, base solid and adapted dotted."""
    layers = sorted(rows.layer.unique())
    for side, dash in (("base", "solid"), ("adapted", "dot")):
        for i, layer in enumerate(layers):
            part = rows[(rows.layer == layer) & (rows.trained_on == side)]
            yield side, int(layer), part, {"color": COLOURS[i % len(COLOURS)], "dash": dash}
