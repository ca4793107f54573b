"""Label variance by layer of base and adapted, and their difference, with critical values."""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from layerprobe.record import RunRecord
from layerprobe.report import queries
from layerprobe.report.section import Tables
from layerprobe.report.sections.labels.sentences import shown_method
from layerprobe.report.theme import COLOURS, add_trace, error_bars, label_layers, styled

SIDES = {"base": COLOURS[0], "adapted": COLOURS[1], "difference": COLOURS[2]}


def label_variance(
    tables: Tables, record: RunRecord, *, method: str | None = None, unit: str | None = None
) -> go.Figure | None:
    """Excess label variance of one method by layer: both sides above, their difference below.

    Markers are filled where the excess is shown to be above 0. Intervals and critical values are those of the first seed.
    """
    table = queries.having(tables, "label_variance")
    method = method or shown_method(tables, record)
    if table is None:
        return None
    rows = table[(table.method == method) & (table.unit == (unit or queries.unit_of(table)))].sort_values("layer")
    if rows.empty:
        return None
    figure = make_subplots(
        rows=2,
        cols=1,
        shared_xaxes=True,
        vertical_spacing=0.14,
        subplot_titles=("Base and adapted", "Adapted minus base"),
    )
    for side, colour in SIDES.items():
        seeds = queries.seeds_of(rows[rows.side == side], str(method))
        for seed in seeds[:1] if side == "base" else seeds:  # the base does not depend on the seed
            part, is_first = rows[(rows.side == side) & (rows.seed == seed)], seed == seeds[0]
            panel: dict[str, Any] = {"row": 2 if side == "difference" else 1, "col": 1, "legendgroup": side}
            symbols = ["circle" if beyond else "circle-open" for beyond in part.exceeds]
            hover = (
                f"{side}, seed {seed}, layer %{{x}}: %{{y:.2%}} (%{{customdata[0]:.2%}} to %{{customdata[1]:.2%}})"
                "<br>p = %{customdata[2]:.3g}, over all layers %{customdata[3]:.3g}"
            )
            options: dict[str, Any] = {
                "showlegend": is_first,
                "mode": "lines+markers" if is_first else "markers",
                **panel,
            }
            options["marker"] = {"symbol": symbols, "size": 9 if is_first else 6}
            options["customdata"] = part[["ci_low", "ci_high", "p", "p_simultaneous"]]
            if is_first:
                options["error_y"] = error_bars(part.excess, part.ci_low, part.ci_high, colour, thickness=1.2)
            add_trace(figure, part.layer, part.excess, side, colour, hover, **options)
            if is_first:
                options = {"mode": "lines", "line": {"dash": "dot"}, **panel}
                words = f"{side}: critical value"
                add_trace(
                    figure, part.layer, part.critical, words, colour, f"{words}, layer %{{x}}: %{{y:.2%}}", **options
                )
    figure.update_xaxes(dtick=1)
    label_layers(figure, row=2, col=1)
    figure.update_yaxes(tickformat=".1%")
    figure.update_yaxes(title="share minus its mean<br>under permuted labels", row=1, col=1)
    figure.update_yaxes(title="difference", row=2, col=1)
    return styled(figure, height=520)
