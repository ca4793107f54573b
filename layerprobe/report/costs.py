"""Costs of methods: their names and units, their means over seeds, and which of them can be compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from layerprobe.record import RunRecord
from layerprobe.report import queries
from layerprobe.report.section import Tables


@dataclass(frozen=True)
class Cost:
    """One cost of a method."""

    label: str
    """Name on axes and in tables."""
    unit: str = ""
    """Unit on axes where the label does not imply it."""
    timed: bool = False
    """Whether it depends on what else the machine computes at the same time."""


COSTS: Mapping[str, Cost] = {
    "trainable_parameters": Cost("trained parameters"),
    "flops": Cost("training FLOPs"),
    "seconds": Cost("training seconds", timed=True),
    "peak_bytes": Cost("peak memory", "bytes"),
    "bytes_stored": Cost("stored for this task", "bytes"),
    "energy_wh": Cost("energy", "Wh", timed=True),
    "drift": Cost("drift (1 – CKA, mean over layers)"),
}
"""Costs by column of the table `adaptation`; `drift` is only in the table `pareto`."""
BYTES = (" B", " kB", " MB", " GB", " TB")
SCALES = {"peak_bytes": BYTES, "bytes_stored": BYTES, "flops": ("", "k", "M", "G", "T", "P", "E")}
"""Units of the powers of 1,000."""


def costs_by_method(tables: Tables, record: RunRecord) -> pd.DataFrame | None:
    """One row per method that learns the task: accuracy and comparable costs, means over seeds; None without accuracies."""
    rows = _compared(tables)
    if rows is None:
        return None
    left_out = timed_costs(tables)
    costs = [cost for cost in COSTS if cost in rows and rows[cost].notna().any() and cost not in left_out]
    order = [name for name in queries.methods(tables, record) if name in set(rows.method)]
    return rows.groupby("method")[["accuracy", *costs]].mean().reindex(order).reset_index()


def timed_costs(tables: Tables) -> list[str]:
    """Measured costs that cannot be compared, because other tasks ran at the same time as a compared training."""
    rows = _compared(tables)
    if rows is None or "concurrent_tasks" not in rows or not (rows.concurrent_tasks > 1).any():
        return []
    return [name for name, cost in COSTS.items() if cost.timed and name in rows and rows[name].notna().any()]


def timing_note(left_out: Sequence[str]) -> str:
    """Why these costs are not compared; empty if there are none."""
    if not left_out:
        return ""
    labels = " or ".join(COSTS[name].label for name in left_out)
    return (
        f"Training FLOPs are compared, but not {labels}, because other tasks ran at the same time as some of the trainings "
        "(concurrent_tasks)."
    )


def _compared(tables: Tables) -> pd.DataFrame | None:
    """Rows of the methods that learn the task, on the test examples."""
    rows = queries.accuracy_after(tables)
    return None if rows is None else rows[~(rows.is_control | rows.is_reference)]


def format_cost(value: float, cost: str) -> str:
    """A cost with its unit."""
    if value != value:
        return "not measured"
    if cost in SCALES:
        return _scaled(value, SCALES[cost])
    if cost == "seconds":
        return f"{value:.1f} s" if value < 100 else f"{value:.0f} s"
    if cost == "energy_wh":
        return f"{value:.3g} Wh"
    return f"{value:.3f}" if cost == "drift" else f"{round(value):,}"


def _scaled(value: float, units: Sequence[str]) -> str:
    power = 0
    while abs(value) >= 1000 and power < len(units) - 1:
        value, power = value / 1000, power + 1
    return f"{value:.3g}{units[power]}"
