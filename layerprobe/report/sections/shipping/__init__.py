"""Energy of training every method at a data centre and sending what it changed to devices."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from layerprobe.energy import shipping as energy_of_shipping
from layerprobe.energy_section import JOULE_PER_FLOP_CENTER, EnergySection
from layerprobe.record import Finding, RunRecord
from layerprobe.report import queries
from layerprobe.report.costs import costs_by_method
from layerprobe.report.section import Section, Tables
from layerprobe.report.sections.energy.queries import assumptions, bits, joules
from layerprobe.report.theme import add_trace, method_colours, styled

RECIPIENTS = 10 ** np.linspace(0, 7, 29)
"""Numbers of devices that the figure shows."""


def shipped(tables: Tables, record: RunRecord) -> pd.DataFrame | None:
    """One row per trained method: parameters, energy of training in joule and whether it was measured; None without costs.

    Energy is that of counters of the hardware where every training has one, else training FLOPs times an assumed energy per
    operation.
    """
    table = costs_by_method(tables, record)
    if table is None or not {"trainable_parameters", "flops"} <= set(table):
        return None
    table = table[table.trainable_parameters > 0].reset_index(drop=True)
    if table.empty:
        return None
    after = queries.accuracy_after(tables)
    kinds = (
        () if after is None or "energy_kind" not in after else set(after.energy_kind[after.method.isin(table.method)])
    )
    measured = "energy_wh" in table and kinds == {"measured"}
    training = 3600 * table.energy_wh if measured else table.flops * assumptions(record).joule_per_flop_center
    return table.assign(training_joule=training, measured=measured)


def total(row: Any, devices: Any, energy: EnergySection) -> Any:
    """Energy of training once and sending to so many devices, in joule; an array for an array."""
    found = [
        energy_of_shipping(
            training_joule=float(row.training_joule),
            parameters=float(row.trainable_parameters),
            devices=float(number),
            downlink_bit_per_joule=energy.downlink_bit_per_joule,
            bits_per_parameter=energy.bits_per_parameter,
            pue=energy.pue,
        )
        for number in np.atleast_1d(devices)
    ]
    totals = np.array([float(one.total) for one in found])
    return totals if np.ndim(devices) else float(totals[0])


def shipping(tables: Tables, record: RunRecord) -> go.Figure | None:
    """Energy of training and of sending to devices, by number of devices: one line per method."""
    table, energy, figure = shipped(tables, record), assumptions(record), go.Figure()
    if table is None:
        return None
    colours = method_colours(list(table.method), record)
    row: Any
    for row in table.itertuples():
        y = total(row, RECIPIENTS, energy)
        options: dict[str, Any] = {"mode": "lines", "customdata": [joules(value) for value in y]}
        hover = f"{row.method}, %{{x:,.0f}} devices: %{{customdata}}"
        add_trace(figure, RECIPIENTS, y, row.method, colours[row.method], hover, **options)
    figure.add_vline(x=energy.recipients, line={"color": "#888", "dash": "dot", "width": 1})
    figure.update_xaxes(title="devices that receive the model", type="log", dtick=1, exponentformat="power")
    figure.update_yaxes(title="energy, joule", type="log", exponentformat="power")
    return styled(figure, height=400)


def sentences(tables: Tables, record: RunRecord) -> list[Finding]:
    """The cheapest and the dearest depth at the study's number of devices."""
    table, energy = shipped(tables, record), assumptions(record)
    if table is None:
        return []
    deep = table[[queries.has_depth(name, record) for name in table.method]]
    if len(deep) < 2:
        return []
    by_size: list[Any] = list(deep.sort_values("trainable_parameters", kind="stable").itertuples())
    least, most = by_size[0], by_size[-1]
    costs = [joules(total(row, energy.recipients, energy)) for row in (least, most)]
    sizes = [bits(float(row.trainable_parameters) * energy.bits_per_parameter) for row in (least, most)]
    text = (
        f"Training `{least.method}` and sending it ({sizes[0]}) to {energy.recipients:,} devices costs {costs[0]}, `{most.method}` "
        f"({sizes[1]}) {costs[1]}, at an assumed downlink of {bits(energy.downlink_bit_per_joule)}/J and a PUE of {energy.pue:g}."
    )
    return [Finding(text=text, figure="shipping")]


def context(tables: Tables, record: RunRecord) -> dict[str, Any]:
    """Rows of the table, and what was assumed."""
    table, energy = shipped(tables, record), assumptions(record)
    rows = []
    row: Any
    for row in () if table is None else table.itertuples():
        size = float(row.trainable_parameters) * energy.bits_per_parameter
        everything = total(row, energy.recipients, energy)
        rows.append(
            {
                "method": row.method,
                "accuracy": f"{row.accuracy:.4f}",
                "size": bits(size),
                "training": joules(energy.pue * float(row.training_joule)),
                "one": joules(size / energy.downlink_bit_per_joule),
                "total": joules(everything),
                "share": 1 - energy.pue * float(row.training_joule) / everything,
            }
        )
    return {
        "rows": rows,
        "energy": energy,
        "measured": table is not None and bool(table.measured.all()),
        "range_center": JOULE_PER_FLOP_CENTER,
        "texts": [finding.text for finding in sentences(tables, record)],
        "bits": bits,
    }


SECTION = Section(
    id="shipping",
    title="Energy and communication",
    requires=("adaptation",),
    missing="No cost was measured in this run.",
    figures={"shipping": shipping},
    context=context,
    sentences=sentences,
)
