"""Figures about dictionaries: kinds of latents, what transfers, what matches, and who shares what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go

from layerprobe.report.queries import having
from layerprobe.report.theme import COLOURS, styled

if TYPE_CHECKING:
    import pandas as pd

KINDS = {"task": "#D55E00", "both": "#E69F00", "general": "#0072B2", "unexplained": "#9AA0A6"}
"""Kinds of judged latents, from the bottom of a bar up, so that the first two add up to the task share."""
CENSUS = {
    "shared": "#0072B2",
    "shifted": "#56B4E9",
    "rotated": "#CC79A7",
    "base_only": "#009E73",
    "adapted_only": "#D55E00",
}
CONTROL = "shuffled-labels"
MARK = "#A855F7"
"""Of what stands beside a bar: seen on the bars' colours, on a light and on a dark page."""
TRANSFERS = (
    ("base", "base", "trained", "base's dictionary on base", "#0072B2", "circle"),
    ("base", "adapted", "trained", "base's dictionary on adapted", "#D55E00", "circle"),
    ("adapted", "adapted", "trained", "adapted's dictionary on adapted", "#009E73", "square"),
    ("adapted", "base", "trained", "adapted's dictionary on base", "#CC79A7", "square"),
    ("base", "base", "second-seed", "second seed: base's on base", "#0072B2", "circle-open"),
    ("adapted", "adapted", "second-seed", "second seed: adapted's on adapted", "#009E73", "square-open"),
    ("base", "base", "frozen-decoder", "control: frozen decoder, on base", "#56B4E9", "diamond-open"),
    ("base", "base", "untrained", "control: untrained, on base", "#8C8C8C", "x-thin-open"),
)
VALUES = {
    "explained_variance": ("ev_low", "ev_high", "explained variance of test rows<br>lower on adapted = more changed"),
    "loss_recovered": (
        "loss_recovered_low",
        "loss_recovered_high",
        "task loss recovered<br>lower = less of the task kept",
    ),
}
SHOWN = (-0.5, 1.3)
"""Shares beyond these are drawn at the edge, with their value: one of -15 would flatten all others."""


def drawn(tables: Mapping[str, pd.DataFrame], methods: Sequence[str]) -> dict[str, go.Figure]:
    """Every figure about dictionaries that the tables allow, for methods that moved a layer."""
    found: dict[str, go.Figure] = {}
    shares = having(tables, "latent_shares", "share_task", "live", "dictionary")
    if shares is not None:
        found["mass"] = mass(shares, methods)
    makers = {
        "kinds": (shares, lambda table, method: kinds(table, method)),
        "transfer": (having(tables, "sae"), lambda table, method: transfer(table, method)),
        "task-loss": (
            having(tables, "sae", "loss_recovered"),
            lambda table, method: transfer(table, method, "loss_recovered"),
        ),
        "matching": (having(tables, "matching"), matching),
        "census": (having(tables, "census"), census),
        "steps": (having(tables, "transfer_steps", "step"), along_training),
        "densities": (having(tables, "sae_densities", "latents"), densities),
    }
    for number, method in enumerate(methods):
        for name, (table, make) in makers.items():
            if table is not None and (table.method == method).any():
                figure = make(table, method)
                if figure.data:
                    found[f"{name}-{number}"] = figure
    return found


def first_seed(table: pd.DataFrame, method: str) -> pd.DataFrame:
    """A method's rows of its first training seed."""
    rows = table[table.method == method]
    return rows[rows.seed == rows.seed.min()]


def kinds(shares: pd.DataFrame, method: str) -> go.Figure:
    """Judged latents by kind in each layer: base to the left, adapted to the right, task latents at the bottom."""
    everything = shares[shares.method == method]
    rows = first_seed(shares, method)
    rows = _in_order(rows[rows.dictionary == "first"])
    figure = go.Figure()
    for kind, colour in KINDS.items():
        figure.add_bar(
            x=_places(rows),
            y=rows[kind] / rows.live,
            name=kind,
            marker_color=colour,
            customdata=rows[[kind, "live"]],
            hovertemplate=f"{kind}: %{{y:.1%}} (%{{customdata[0]}} of %{{customdata[1]}})<extra></extra>",
        )
    _points(figure, rows, "task share, 95% interval", "circle", "#fff", error=True)
    rest = everything[(everything.dictionary != "first") | (everything.seed != everything.seed.min())]
    for (seed, dictionary), part in rest.groupby(["seed", "dictionary"], sort=True):
        which = "second dictionary seed" if dictionary != "first" else "first dictionary"
        _points(figure, _in_order(part), f"{which}, training seed {seed}", "diamond-open", MARK)
    other = first_seed(shares, CONTROL) if method != CONTROL else shares.iloc[:0]
    other = other[(other.dictionary == "first") & (other.side == "adapted")]
    if len(other):
        _points(figure, _in_order(other), "adapted on shuffled labels", "x-thin-open", MARK)
    figure.add_scatter(
        x=_places(rows),
        y=rows.share_permuted_high,
        mode="markers",
        name="95th percentile with labels permuted",
        marker={"symbol": "line-ew-open", "size": 24, "color": MARK, "line": {"width": 3}},
    )
    figure.update_yaxes(title="share of judged latents<br>more task = more changed", tickformat=".0%", range=[0, 1])
    figure.update_xaxes(tickangle=0)
    figure.update_layout(barmode="stack", bargap=0.15)
    styled(figure, height=430)
    return figure.update_layout(legend={"traceorder": "normal"})


def _in_order(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.assign(right=rows.side == "adapted").sort_values(["layer", "right"])


def _places(rows: pd.DataFrame) -> list[list[str]]:
    return [[f"layer {layer}" for layer in rows.layer], rows.side.tolist()]


def _points(figure: go.Figure, rows: pd.DataFrame, name: str, symbol: str, colour: str, *, error: bool = False) -> None:
    reach = {"array": rows.share_high - rows.share_task, "arrayminus": rows.share_task - rows.share_low}
    figure.add_scatter(
        x=_places(rows),
        y=rows.share_task,
        mode="markers",
        name=name,
        marker={"symbol": symbol, "size": 10, "color": colour, "line": {"color": MARK, "width": 2}},
        error_y={"type": "data", "symmetric": False, "color": MARK, **reach} if error else None,
        hovertemplate="%{y:.1%}<extra>" + name + "</extra>",
    )


def mass(shares: pd.DataFrame, methods: Sequence[str]) -> go.Figure:
    """Share of activation mass in task latents by layer: base once, each method's adapted model, with intervals."""
    figure = go.Figure()
    lines = [("base", methods[0], "base", "#8C8C8C")] if methods else []
    lines += [(f"{name}: adapted", name, "adapted", COLOURS[i % len(COLOURS)]) for i, name in enumerate(methods)]
    for name, method, side, colour in lines:
        rows = first_seed(shares, method)
        for dictionary in ("first", "second-seed"):
            part = rows[(rows.side == side) & (rows.dictionary == dictionary)].sort_values("layer")
            if part.empty:
                continue
            own = dictionary == "first"
            reach = {"array": part.mass_high - part.mass_task, "arrayminus": part.mass_task - part.mass_low}
            figure.add_scatter(
                x=part.layer,
                y=part.mass_task,
                mode="lines+markers" if own else "markers",
                name=name if own else f"{name}, second dictionary seed",
                line={"color": colour, "dash": "dot" if side == "base" else "solid"},
                marker={"symbol": "circle" if own else "diamond-open", "size": 8 if own else 11, "color": colour},
                error_y={"type": "data", "symmetric": False, **reach} if own else None,
            )
    figure.update_xaxes(title="layer", dtick=1)
    figure.update_yaxes(
        title="activation mass in task latents<br>higher = more changed", tickformat=".0%", rangemode="tozero"
    )
    return styled(figure, height=380)


def transfer(quality: pd.DataFrame, method: str, value: str = "explained_variance") -> go.Figure:
    """What each side's dictionary keeps of each side, with intervals, beside its controls."""
    rows = first_seed(quality, method)
    low, high, title = VALUES[value]
    figure = go.Figure()
    for source, target, kind, name, colour, symbol in TRANSFERS:
        part = rows[(rows.trained_on == source) & (rows.evaluated_on == target) & (rows.kind == kind)]
        part = part[part[value].notna()].sort_values("layer")
        if part.empty:
            continue
        y = part[value].clip(*SHOWN)
        beyond = (y != part[value]).tolist()
        # Where the value lies beyond the edge its interval does too.
        reach = {
            "array": (part[high] - y).where(y == part[value]),
            "arrayminus": (y - part[low]).where(y == part[value]),
        }
        figure.add_scatter(
            x=[f"layer {layer}" for layer in part.layer],
            y=y,
            mode="markers+text",
            text=[f"{v:.1f}" if out else "" for v, out in zip(part[value], beyond, strict=True)],
            textposition="top center",
            name=name,
            offsetgroup=name,
            marker={"symbol": symbol, "size": 11, "color": colour, "line": {"color": colour, "width": 2}},
            error_y={"type": "data", "symmetric": False, "color": colour, **reach},
            customdata=part[[value, low, high]],
            hovertemplate="%{customdata[0]:.3f} (%{customdata[1]:.3f} to %{customdata[2]:.3f})<extra>"
            + name
            + "</extra>",
        )
    figure.update_yaxes(title=title, range=_reach(figure), zeroline=True)
    figure.update_layout(scattermode="group", scattergap=0.25)
    return styled(figure, height=420)


def _reach(figure: go.Figure) -> list[float]:
    """An axis that holds 0, 1, every point and, as far as that is shown, its interval."""
    ends = [0.0, 1.0]
    for trace in figure.data:
        for y, above, below in zip(trace.y, trace.error_y.array, trace.error_y.arrayminus, strict=True):
            ends += [v for v in (y, y + above, y - below) if v == v]
    return [max(SHOWN[0], min(ends)) - 0.1, min(SHOWN[1], max(ends)) + 0.06]


def matching(table: pd.DataFrame, method: str) -> go.Figure:
    """How well latents of base and adapted pair, beside pairs that differ by chance alone; and how many have no pair."""
    from plotly.subplots import make_subplots

    rows = first_seed(table, method)
    titles = ("mean match of pairs", "latents without a match (same start)")
    figure = make_subplots(rows=1, cols=2, subplot_titles=titles, horizontal_spacing=0.1)
    shown = (
        ("same start", "cosine", "cosine", "#0072B2"),
        ("same start", "correlation", "correlation of activations", "#009E73"),
        ("different starts", "cosine", "cosine, different starts", "#CC79A7"),
    )
    for start, on, name, colour in shown:
        part = rows[(rows.start == start) & (rows.on == on)].sort_values("layer")
        if part.empty:
            continue
        ends = (("mean", "mean_low", "mean_high"), ("null_mean", "null_low", "null_high"))
        for columns, symbol, words in zip(ends, ("circle", "diamond-open"), ("base / adapted", "null"), strict=True):
            _marks(figure, part, columns, f"{name}: {words}", colour, symbol, 1)
    part = rows[(rows.start == "same start") & (rows.on == "cosine")].sort_values("layer")
    for share, name, colour in (("lost", "lost from base", "#E69F00"), ("new", "new in adapted", "#D55E00")):
        _marks(figure, part, (f"{share}_share", f"{share}_low", f"{share}_high"), name, colour, "circle", 2)
        _marks(figure, part, (f"null_{share}_share", None, None), f"{name}: null", colour, "diamond-open", 2)
    figure.update_yaxes(title="lower than the null = more changed", row=1, col=1)
    figure.update_yaxes(title="higher than the null = more changed", tickformat=".0%", rangemode="tozero", row=1, col=2)
    figure.update_layout(scattermode="group", scattergap=0.25)
    return styled(figure, height=440)


def _marks(
    figure: go.Figure,
    rows: pd.DataFrame,
    columns: tuple[str, str | None, str | None],
    name: str,
    colour: str,
    symbol: str,
    column: int,
) -> None:
    value, low, high = columns
    error: Any = None
    if low and high and {low, high} <= set(rows.columns):
        reach = {"array": rows[high] - rows[value], "arrayminus": rows[value] - rows[low]}
        error = {"type": "data", "symmetric": False, "color": colour, **reach}
    figure.add_scatter(
        x=[f"layer {layer}" for layer in rows.layer],
        y=rows[value],
        mode="markers",
        name=name,
        offsetgroup=name,
        marker={"symbol": symbol, "size": 10, "color": colour},
        error_y=error,
        row=1,
        col=column,
    )


def census(table: pd.DataFrame, method: str) -> go.Figure:
    """Kinds of the joint dictionary's latents in each layer: by number, and by their part of what it rebuilds."""
    from plotly.subplots import make_subplots

    rows = first_seed(table, method)
    live = rows[rows.kind != "dead"]
    counts = live.groupby(["layer", "kind"]).size().unstack(fill_value=0)
    energy = live.groupby(["layer", "kind"])["energy_share"].sum().unstack(fill_value=0)
    titles = ("share of live latents", "share of rebuilt variance")
    figure = make_subplots(rows=1, cols=2, subplot_titles=titles, horizontal_spacing=0.1)
    for kind, colour in CENSUS.items():
        if kind not in counts:
            continue
        for column, part in ((1, counts[kind] / counts.sum(axis=1)), (2, energy[kind])):
            figure.add_bar(
                x=[f"layer {layer}" for layer in part.index],
                y=part,
                name=kind.replace("_", "-"),
                legendgroup=kind,
                showlegend=column == 1,
                marker_color=colour,
                customdata=counts[kind],
                hovertemplate=f"{kind.replace('_', '-')}: %{{y:.1%}} (%{{customdata}} latents)<extra></extra>",
                row=1,
                col=column,
            )
    figure.update_yaxes(tickformat=".0%")
    figure.update_layout(barmode="stack")
    styled(figure, height=380)
    return figure.update_layout(legend={"traceorder": "normal"})


def along_training(steps: pd.DataFrame, method: str) -> go.Figure:
    """Explained variance of both sides' dictionaries on the checkpoints that were kept, a line a layer and side."""
    rows = first_seed(steps, method)
    layers = sorted(rows.layer.unique())
    figure = go.Figure()
    for side, dash in (("base", "solid"), ("adapted", "dot")):
        for layer in layers:
            part = rows[(rows.layer == layer) & (rows.trained_on == side)].sort_values("step")
            value = part.explained_variance
            figure.add_scatter(
                x=part.step,
                y=value,
                mode="lines+markers",
                name=f"{side}'s dictionary, layer {layer}",
                line={"color": COLOURS[layers.index(layer) % len(COLOURS)], "dash": dash},
                error_y={
                    "type": "data",
                    "symmetric": False,
                    "array": part.ev_high - value,
                    "arrayminus": value - part.ev_low,
                },
            )
    figure.update_xaxes(title="training step (0 = base)")
    figure.update_yaxes(title="explained variance of test rows<br>base's lower = more changed")
    return styled(figure, height=360)


def densities(table: pd.DataFrame, method: str) -> go.Figure:
    """How often latents fire on their own side's test rows, by layer and side."""
    rows = first_seed(table, method)
    rows = rows[(rows.kind == "trained") & (rows.trained_on == rows.evaluated_on) & (rows.low > -99)]
    layers = sorted(rows.layer.unique())
    figure = go.Figure()
    for side, dash in (("base", "solid"), ("adapted", "dot")):
        for layer in layers:
            part = rows[(rows.layer == layer) & (rows.trained_on == side)].sort_values("low")
            figure.add_scatter(
                x=(part.low + part.high) / 2,
                y=part.latents,
                mode="lines+markers",
                name=f"{side}, layer {layer}",
                line={"color": COLOURS[layers.index(layer) % len(COLOURS)], "dash": dash, "shape": "hvh"},
            )
    figure.update_xaxes(title="share of rows that a latent fires on (log10)")
    figure.update_yaxes(title="latents", rangemode="tozero")
    return styled(figure, height=320)
