"""Figures of few-shot studies: accuracy, differences between inner depths, layers, validation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from layerprobe.record import RunRecord
from layerprobe.report.queries import having
from layerprobe.report.section import Tables
from layerprobe.report.sections.few_shot.queries import BODIES, TRAINED, depths, is_by_group, layers_of
from layerprobe.report.sections.quality.figures import OUTCOMES
from layerprobe.report.theme import COLOURS, PLAIN, add_trace, error_bars, styled

SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "star")
READERS = {
    "logistic": "logistic regression",
    "centroid": "nearest centroid",
    "nil": "cosine to support examples (NIL)",
}
"""Readers other than the inner loop, in words."""
MEASURES = {
    "cka": "CKA (debiased)",
    "svcca": "SVCCA (99% of the variance)",
    "paired_cosine": "mean cosine of the same row",
    "weight_change": "relative change of the weights",
}
"""Measures of layers with their names on axes."""


THEORY = {
    "gradient": "mean squared meta-gradient",
    "excess_loss": "excess query loss at the end",
    "distance": "distance to the meta-optimum at the end",
}
"""Quantities of the one-dimensional tasks, as axes name them."""


def colour_of(depth: str, all_depths: Sequence[str]) -> str:
    return COLOURS[list(all_depths).index(depth) % len(COLOURS)]


def body_name(method: str, inner: str) -> str:
    return f"{method} ({inner})" if method == TRAINED else method


def few_shot_accuracy(tables: Tables, record: RunRecord) -> go.Figure | None:
    """Accuracy with its 95% interval over groups, or over episodes: one row per body, one marker per reader."""
    table = having(tables, "few_shot_accuracy")
    if table is None:
        return None
    low, high = ("group_low", "group_high") if is_by_group(tables) else ("ci_low", "ci_high")
    order, figure = depths(tables, record), go.Figure()
    names = [body_name(TRAINED, depth) for depth in order if ((table.method == TRAINED) & (table.inner == depth)).any()]
    names += [method for method in BODIES[1:] if (table.method == method).any()]
    place = {name: i for i, name in enumerate(names)}
    readers = [*(("inner", depth) for depth in order), *((reader, "") for reader in READERS)]
    for number, (reader, depth) in enumerate(readers):
        rows = table[table.reader == reader]
        rows = rows[rows.inner == depth] if depth else rows
        if rows.empty:
            continue
        colour = colour_of(depth, order) if depth else PLAIN
        offset = -0.3 + 0.6 * number / max(1, len(readers) - 1)
        bodies = zip(rows.method, rows.inner, strict=True)
        y = [place[body_name(method, inner)] + offset for method, inner in bodies]
        label = f"inner loop {depth}" if depth else READERS[reader]
        symbol = SYMBOLS[0] if depth else SYMBOLS[1 + list(READERS).index(reader)]
        options: dict[str, Any] = {"mode": "markers", "marker": {"size": 9, "symbol": symbol}}
        options["error_x"] = error_bars(rows.accuracy, rows[low], rows[high], colour, thickness=1.2, width=0)
        options["customdata"] = rows[[low, high, "n"]]
        hover = f"{label}: %{{x:.3f}} (%{{customdata[0]:.3f}} to %{{customdata[1]:.3f}}), %{{customdata[2]}} episodes"
        add_trace(figure, rows.accuracy, y, label, colour, hover, **options)
    ticks = {"tickmode": "array", "tickvals": list(range(len(names))), "ticktext": names, "zeroline": False}
    figure.update_yaxes(**ticks, range=[len(names) - 0.5, -0.6])
    figure.update_xaxes(title="accuracy on query examples of meta-test episodes")
    styled(figure, height=180 + 62 * len(names))
    return figure.update_layout(legend_y=-110 / (94 + 62 * len(names)))


def few_shot_differences(tables: Tables, record: RunRecord) -> go.Figure | None:
    """Accuracy of each inner depth minus the deepest's on the same episodes, with the margin."""
    table = having(tables, "few_shot_differences")
    if table is None:
        return None
    table, figure = table.sort_values("order", ascending=False), go.Figure()
    reference, margin = str(table.reference.iloc[0]), float(table.margin.iloc[0])
    row: Any
    for i, row in enumerate(table.itertuples()):
        colour, symbol = OUTCOMES.get(row.outcome, (PLAIN, "circle"))
        hover = f"{row.inner} minus {reference}: {row.difference:+.4f} ({row.ci_low:+.4f} to {row.ci_high:+.4f}), {row.outcome}"
        options: dict[str, Any] = {"mode": "markers", "marker": {"size": 12, "symbol": symbol}}
        options |= {"legendgroup": row.outcome, "showlegend": row.outcome not in {one.name for one in figure.data}}
        options["error_x"] = error_bars([row.difference][0], row.ci_low, row.ci_high, colour, thickness=2)
        options["error_x"] |= {name: [options["error_x"][name]] for name in ("array", "arrayminus")}
        add_trace(figure, [row.difference], [i], row.outcome, colour, hover, **options)
    lowest, highest = min(-2 * margin, *table.ci_low), max(margin, *table.ci_high)
    figure.add_vrect(x0=-margin, x1=highest, fillcolor=OUTCOMES["sufficient"][0], opacity=0.08, line_width=0)
    figure.add_vrect(x0=lowest, x1=-margin, fillcolor=OUTCOMES["inferior"][0], opacity=0.08, line_width=0)
    figure.add_vline(x=0, line={"color": PLAIN, "width": 1})
    figure.add_vline(x=-margin, line={"color": OUTCOMES["inferior"][0], "dash": "dash", "width": 2})
    text = {"text": f"margin –{margin:.3g}", "showarrow": False}
    figure.add_annotation(x=-margin, y=1, yref="paper", yanchor="bottom", **text)
    ticks = {"tickmode": "array", "tickvals": list(range(len(table))), "ticktext": list(table.inner), "zeroline": False}
    figure.update_yaxes(**ticks, range=[len(table) - 0.5, -0.6])
    figure.update_xaxes(title=f"accuracy minus that of {reference}, same episodes", range=[lowest, highest])
    styled(figure, height=190 + 42 * len(table))
    return figure.update_layout(legend_y=-100 / (104 + 42 * len(table)))


def few_shot_layers(
    tables: Tables, record: RunRecord, *, measure: str = "cka", comparison: str = "inner loop"
) -> go.Figure | None:
    """A measure by layer, one line per inner depth, with the head to the right of the last layer."""
    rows = layers_of(tables, comparison, measure)
    if rows is None or rows.value.isna().all():
        return None
    order, figure = depths(tables, record), go.Figure()
    last = int(rows.layer.max())
    pairs = rows[["inner", "other"]].drop_duplicates()
    pair: Any
    for number, pair in enumerate(sorted(pairs.itertuples(), key=lambda pair: order.index(str(pair.inner)))):
        part = rows[(rows.inner == pair.inner) & (rows.other == pair.other)]
        is_pair = comparison == "between models"
        name = f"{pair.inner} and {pair.other}" if is_pair else pair.inner
        colour = COLOURS[number % len(COLOURS)] if is_pair else colour_of(pair.inner, order)
        body, head = part[part.part == "layer"].sort_values("layer"), part[part.part == "head"]
        for place, one in ((body.layer.astype(float), body), ([last + 1.0] * len(head), head)):
            if one.empty:
                continue
            is_head = one is head
            symbols = [
                "diamond" if is_head else "circle-open" if "identical" in note else "circle" for note in one.note
            ]
            options: dict[str, Any] = {"marker": {"size": 9, "symbol": symbols}, "legendgroup": name}
            options |= {"mode": "markers" if is_head else "lines+markers", "showlegend": not is_head}
            options["error_y"] = error_bars(one.value, one.ci_low, one.ci_high, colour, thickness=1.2, width=3)
            options["customdata"] = one[["ci_low", "ci_high", "note"]]
            hover = f"{name}, {'head' if is_head else 'layer %{x}'}: %{{y:.4g}} (%{{customdata[0]:.4g}} to %{{customdata[1]:.4g}}) %{{customdata[2]}}"
            add_trace(figure, place, one.value, name, colour, hover, **options)
    ticks = {"tickmode": "array", "tickvals": list(range(last + 2)), "ticktext": [*map(str, range(last + 1)), "head"]}
    figure.update_xaxes(title="layer (0 = embeddings)", **ticks)
    direction = "higher" if measure == "weight_change" else "lower"
    figure.update_yaxes(title=f"{MEASURES.get(measure, measure)}<br>{direction} = more changed")
    return styled(figure, height=380)


def few_shot_validation(tables: Tables, record: RunRecord, *, value: str = "validation_loss") -> go.Figure | None:
    """Query loss or accuracy on the validation episodes by outer step; a star at the step whose parameters were kept."""
    table = having(tables, "few_shot_training", value)
    if table is None or table[value].isna().all():
        return None
    table, order, figure = table[table[value].notna()], depths(tables, record), go.Figure()
    names = [(TRAINED, depth) for depth in order] + [(method, "") for method in BODIES[1:]]
    for number, (method, depth) in enumerate(names):
        rows = table[(table.method == method) & (table.inner == depth)]
        label = body_name(method, depth)
        colour = COLOURS[number % len(COLOURS)]
        for seed, part in rows.groupby("seed"):
            symbols = ["star" if best else "circle" for best in part.best]
            options: dict[str, Any] = {"legendgroup": label, "showlegend": bool(seed == rows.seed.min())}
            options |= {"marker": {"symbol": symbols, "size": [13 if best else 5 for best in part.best]}}
            options["line"] = {"dash": "solid" if method == TRAINED else "dot"}
            hover = f"{label}, seed {seed}, step %{{x}}: %{{y:.4f}}"
            add_trace(figure, part.step, part[value], label, colour, hover, **options)
    if not figure.data:
        return None
    figure.update_xaxes(title="outer step")
    figure.update_yaxes(title="loss (nats)" if value == "validation_loss" else "accuracy")
    return styled(figure, height=360)


def few_shot_convergence(
    tables: Tables, record: RunRecord, *, value: str = "loss", rates: str = "own", against: str = "step"
) -> go.Figure | None:
    """Validation loss or norm of the meta-gradient against outer steps, seconds or FLOPs: solid ANIL, dashed top:1.

    Lines are means over seeds; the bars at validations span the seeds.
    """
    table = having(tables, "few_shot_convergence", value)
    if table is None:
        return None
    table, figure = table[(table.rate_choice == rates) & table[value].notna()], go.Figure()
    steps = sorted(table.inner_steps.unique())
    for (algorithm, n), rows in table.groupby(["algorithm", "inner_steps"], sort=False):
        # Seeds take the same steps in different seconds.
        curve = rows.groupby("step").agg(
            x=(against, "mean") if against != "step" else ("inner_steps", "size"),
            y=(value, "mean"),
            low=(value, "min"),
            high=(value, "max"),
        )
        x = curve.index if against == "step" else curve.x
        colour = COLOURS[steps.index(n) % len(COLOURS)]
        options: dict[str, Any] = {"line": {"dash": "solid" if algorithm == "ANIL" else "dash"}, "marker": {"size": 5}}
        if value == "loss" and rows.seed.nunique() > 1:
            options["error_y"] = error_bars(curve.y, curve.low, curve.high, colour, thickness=1, width=2)
        name = f"{algorithm}, N = {n} (inner rate {rows.inner_rate.iloc[0]:g})"
        add_trace(figure, x, curve.y, name, colour, f"{name}: %{{y:.4g}}", **options)
    if not figure.data:
        return None
    titles = {"step": "outer step", "seconds": "seconds", "flops": "floating-point operations"}
    figure.update_xaxes(title=titles[against])
    figure.update_yaxes(title="validation loss (nats)" if value == "loss" else "norm of the meta-gradient")
    return styled(figure, height=460)


def few_shot_theory(tables: Tables, record: RunRecord, *, value: str = "gradient") -> go.Figure | None:
    """One-dimensional tasks by number of inner steps: mean squared meta-gradient with its bound, or where the outer loop ends."""
    table = having(tables, "few_shot_theory")
    if table is None:
        return None
    figure = go.Figure()
    last = table.step.max()
    for number, (geometry, rows) in enumerate(table.groupby("geometry", sort=False)):
        lines = {value: "solid", "bound": "dash"} if value == "gradient" else {value: "solid"}
        for column, dash in lines.items():
            # The theory is about the mean over outer steps, before each of which the gradient is taken.
            part = rows[rows.step < last] if value == "gradient" else rows[rows.step == last]
            by_steps = (part[column] ** (2 if value == "gradient" else 1)).groupby(part.inner_steps).mean()
            name = f"{geometry}{', bound' if column == 'bound' else ''}"
            options: dict[str, Any] = {"mode": "lines+markers", "line": {"dash": dash}}
            hover = f"{name}, N = %{{x}}: %{{y:.4g}}"
            add_trace(figure, by_steps.index, by_steps, name, COLOURS[number], hover, **options)
    figure.update_xaxes(title="inner steps N", tickmode="array", tickvals=sorted(table.inner_steps.unique()))
    figure.update_yaxes(title=THEORY[value], type="log", exponentformat="power")
    return styled(figure, height=340)
