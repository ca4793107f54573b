"""The clusters of the table `energy`, and their energy under other efficiencies than the study's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from layerprobe.energy import EnergyCurve, MeasuredRounds, Optimum, TwoStage, energy_curve, server_bit_per_joule
from layerprobe.energy_section import EnergySection
from layerprobe.record import RunRecord
from layerprobe.report.section import Tables

PARTS = {
    "center": "learning at the data centre",
    "uplink": "uplink: texts",
    "downlink": "downlink: meta-trained parameters",
    "devices": "learning on devices",
    "sidelink": "exchange of models in adaptation",
}
"""Parts of the energy in words."""
EXCHANGED = {"ring": "a ring", "mesh": "a mesh", "server": "a server"}
"""Topologies in words."""
REGIMES = {"poor links (50 kbit/J)": 5e4, "good links (1 Gbit/J)": 1e9}
"""Efficiencies of all links at which communication, or computation, is expected to dominate."""


CONSTANTS = (
    *("joule_per_batch_center", "joule_per_batch_device", "second_order_factor", "query_batches", "device_batches"),
    *("parameters_down", "parameters_exchanged", "upload_bits_per_device", "neighbours"),
)
"""Columns of the table that are arguments of `TwoStage`."""


@dataclass(frozen=True)
class Settings:
    """What the sliders of the page set."""

    uplink: Any
    downlink: Any
    sidelink: Any
    pue: float
    bits: float

    def with_links(self, efficiency: float) -> Settings:
        """With one efficiency of all links, in bit/J."""
        return replace(self, uplink=efficiency, downlink=efficiency, sidelink=efficiency)


def assumptions(record: RunRecord) -> EnergySection:
    """The section `[energy]` of the run's study, or its defaults."""
    known = EnergySection.model_fields
    given = record.study.resolved.get("energy") or {}
    return EnergySection.model_validate({name: value for name, value in given.items() if name in known})


def settings_of(record: RunRecord) -> Settings:
    energy = assumptions(record)
    links = (energy.uplink_bit_per_joule, energy.downlink_bit_per_joule, energy.sidelink_bit_per_joule)
    return Settings(*links, energy.pue, energy.bits_per_parameter)


def depths(tables: Tables) -> list[str]:
    """Inner depths of the table, in the order of the study."""
    return list(dict.fromkeys(tables["energy"].inner))


def clusters(tables: Tables) -> dict[str, tuple[str, int]]:
    """Topologies with numbers of devices, by their words; the one that is shown first leads."""
    table = tables["energy"]
    pairs = dict.fromkeys([first_cluster(tables), *zip(table.topology, table.devices.astype(int), strict=True)])
    return {
        f"{devices} devices, {EXCHANGED.get(topology, topology)}": (topology, devices) for topology, devices in pairs
    }


def first_cluster(tables: Tables) -> tuple[str, int]:
    """The cluster that the page shows first: the first topology, and the middle number of devices."""
    table = tables["energy"]
    topology = str(table.topology.iloc[0])
    devices = sorted(table.devices[table.topology == topology].unique())
    return topology, int(devices[len(devices) // 2])


def rows_of(tables: Tables, inner: str, topology: str, devices: int) -> pd.DataFrame:
    """Rows of one depth and cluster by t0."""
    table = tables["energy"]
    chosen = (table.inner == inner) & (table.topology == topology) & (table.devices == devices)
    return table[chosen].sort_values("meta_rounds")


def curve_of(rows: pd.DataFrame, settings: Settings, rounds: str = "rounds") -> EnergyCurve:
    """Energy by t0 of one depth and cluster under these settings.

    Args:
        rows: of the table `energy`, as `rows_of` returns them.
        settings: efficiencies may be arrays that broadcast.
        rounds: the column of rounds: `rounds`, `rounds_low` or `rounds_high`.
    """
    first: Any = rows.iloc[0]
    is_server = first.topology == "server"
    shared = server_bit_per_joule(settings.uplink, settings.downlink) if is_server else settings.sidelink
    given = {name: float(first[name]) for name in CONSTANTS}
    model = TwoStage(
        **given,
        pue=settings.pue,
        uplink_bit_per_joule=settings.uplink,
        downlink_bit_per_joule=settings.downlink,
        sidelink_bit_per_joule=shared,
        bits_per_parameter=settings.bits,
        devices_per_task=int(first.devices),
        support_batches=1,
        resend_data=True,
        meta_tasks=int(first.meta_tasks),
    )
    tasks = int(first.tasks)
    measured = [
        MeasuredRounds(int(t0), [float(spent)] * tasks, [bool(stopped)] * tasks)
        for t0, spent, stopped in zip(rows.meta_rounds, rows[rounds], rows.censored, strict=True)
    ]
    return energy_curve(model, measured)


@dataclass(frozen=True)
class Interval:
    """Totals by t0 at the ends of the rounds' intervals, in joule; missing without an interval."""

    low: np.ndarray
    high: np.ndarray


def totals(rows: pd.DataFrame, settings: Settings) -> Interval:
    if rows.rounds_low.isna().any():
        none = np.full(len(rows), np.nan)
        return Interval(none, none)
    return Interval(*(np.asarray(curve_of(rows, settings, f"rounds_{end}").energy.total) for end in ("low", "high")))


@dataclass(frozen=True)
class Least:
    """The least energy of one depth and cluster over t0, with its interval in joule, missing without one."""

    optimum: Optimum
    low: float
    high: float


def least_of(rows: pd.DataFrame, settings: Settings) -> Least | None:
    """The t0 of least energy; None if no t0 reached the target for every task."""
    curve = curve_of(rows, settings)
    if curve.censored.all():
        return None
    best, ends = curve.optimum(), totals(rows, settings)
    at = int(np.flatnonzero(curve.meta_rounds == best.meta_rounds)[0])
    return Least(best, float(ends.low[at]), float(ends.high[at]))


def advantage(curve: EnergyCurve) -> np.ndarray:
    """log10 of the energy without meta-training (t0 = 0) over the least with it, of the grid's shape.

    Above 0 meta-training is better. Where a total is a lower bound, the value is the smallest advantage of the better
    strategy, and NaN where the bounds decide nothing.
    """
    total = np.asarray(curve.energy.total)
    known = np.where(curve.censored.reshape(-1, *(1,) * (total.ndim - 1)), np.inf, total)
    at_zero = curve.meta_rounds == 0
    (without, without_most), (trained, trained_most) = (
        (total[chosen].min(axis=0), known[chosen].min(axis=0)) for chosen in (at_zero, ~at_zero)
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        gain, loss = np.log10(without / trained_most), np.log10(without_most / trained)
    return np.where(trained_most < without, gain, np.where(without_most <= trained, loss, np.nan))


def data_of(tables: Tables, record: RunRecord) -> Mapping[str, Any]:
    """What the page's script computes with: settings, and the constants and rounds of every depth and cluster."""
    settings = settings_of(record)
    found = []
    first: Any
    for _, rows in tables["energy"].groupby(["inner", "topology", "devices"], sort=False):
        rows = rows.sort_values("meta_rounds")
        first = rows.iloc[0]
        batches = 1 + first.second_order_factor * first.query_batches
        found.append(
            {
                "inner": str(first.inner),
                "topology": str(first.topology),
                "devices": int(first.devices),
                "tasks": int(first.tasks),
                "center": float(first.meta_tasks * batches * first.joule_per_batch_center),
                "up": float(first.meta_tasks * first.upload_bits_per_device * first.devices),
                "down": float(first.parameters_down),
                "local": float(first.device_batches * first.joule_per_batch_device),
                "sent": float(first.neighbours * first.parameters_exchanged),
                "t0": [int(value) for value in rows.meta_rounds],
                "censored": [bool(value) for value in rows.censored],
                **{name: _finite(rows[name]) for name in ("rounds", "rounds_low", "rounds_high")},
            }
        )
    first_topology, first_devices = first_cluster(tables)
    named = {"topology": first_topology, "devices": first_devices}
    return {"settings": vars(settings), "shown": named, "clusters": found}


def _finite(values: pd.Series) -> list[float | None]:
    return [float(value) if np.isfinite(value) else None for value in values]


def joules(value: float) -> str:
    """Energy with its unit."""
    return _scaled(value, "J")


def bits(value: float) -> str:
    return _scaled(value, "bit")


def _scaled(value: float, unit: str) -> str:
    if not np.isfinite(value):
        return f"– {unit}"
    for factor, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""), (1e-3, "m"), (1e-6, "µ")):
        if abs(value) >= 0.9995 * factor:
            return f"{value / factor:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}"
