"""What the template of the energy section reads: assumptions, both regimes, what each depth sends, and the script's data."""

from __future__ import annotations

from typing import Any

from layerprobe.energy_section import JOULE_PER_FLOP_CENTER, JOULE_PER_FLOP_DEVICE
from layerprobe.record import RunRecord
from layerprobe.report.section import Tables
from layerprobe.report.sections.energy.queries import (
    EXCHANGED,
    REGIMES,
    assumptions,
    bits,
    clusters,
    curve_of,
    data_of,
    depths,
    first_cluster,
    joules,
    rows_of,
    settings_of,
)
from layerprobe.report.sections.energy.sentences import sentences

SLIDERS = (
    ("uplink", "Uplink"),
    ("downlink", "Downlink"),
    ("sidelink", "Sidelink"),
)
"""Efficiencies that the reader sets."""


def context(tables: Tables, record: RunRecord) -> dict[str, Any]:
    """Sentences, assumptions, tables and controls."""
    table, energy = tables["energy"], assumptions(record)
    topology, devices = first_cluster(tables)
    return {
        "data": data_of(tables, record),
        "texts": [finding.text for finding in sentences(tables, record)],
        "energy": energy,
        "target": float(table.target.iloc[0]),
        "tasks": int(table.tasks.max()),
        "seeds": int(table.seeds.max()),
        "note": str(table.energy_note.iloc[0]),
        "counted": "counted" in str(table.energy_note.iloc[0]),
        "range_center": JOULE_PER_FLOP_CENTER,
        "range_device": JOULE_PER_FLOP_DEVICE,
        "any_censored": bool(table.censored.any()),
        "sliders": SLIDERS,
        "topologies": {name: EXCHANGED[name] for name in dict.fromkeys(table.topology)},
        "shown": f"{devices} devices per task in {EXCHANGED[topology]}",
        "clusters": {name: name for name in clusters(tables)},
        "depths": depths(tables),
        "regimes": regime_rows(tables, record),
        "sizes": size_rows(tables, record),
    }


def regime_rows(tables: Tables, record: RunRecord) -> list[dict[str, str]]:
    """Best t0, energy, share of communication and ratio of each depth where links are poor and where they are good."""
    topology, devices = first_cluster(tables)
    rows = []
    for words, efficiency in REGIMES.items():
        settings = settings_of(record).with_links(efficiency)
        for inner in depths(tables):
            curve = curve_of(rows_of(tables, inner, topology, devices), settings)
            row = {"regime": words, "inner": inner}
            if curve.censored.all():
                rows.append(row | dict.fromkeys(("t0", "total", "share", "ratio"), "–"))
                continue
            best = curve.optimum()
            share = float(best.energy.communication) / float(best.energy.total)
            ratio = "–" if best.ratio != best.ratio else f"{'≥ ' if best.ratio_is_lower_bound else ''}{best.ratio:.3g}"
            row |= {"t0": str(best.meta_rounds), "total": joules(float(best.energy.total))}
            rows.append(row | {"share": f"{share:.1%}", "ratio": ratio})
    return rows


def size_rows(tables: Tables, record: RunRecord) -> list[dict[str, str]]:
    """What each depth exchanges and sends down, and what a batch takes."""
    settings, rows = settings_of(record), []
    first: Any
    for inner in depths(tables):
        first = tables["energy"][tables["energy"].inner == inner].iloc[0]
        exchanged, down = (float(first[name]) for name in ("parameters_exchanged", "parameters_down"))
        rows.append(
            {
                "inner": inner,
                "parameters": f"{exchanged:,.0f}",
                "exchange": f"{bits(exchanged * settings.bits)}, {joules(exchanged * settings.bits / settings.sidelink)}",
                "down": f"{bits(down * settings.bits)}, {joules(down * settings.bits / settings.downlink)}",
                "device": joules(float(first.joule_per_batch_device)),
                "center": joules(
                    float(first.joule_per_batch_center * (1 + first.query_batches * first.second_order_factor))
                ),
                "factor": f"{float(first.second_order_factor):.2f}",
            }
        )
    return rows
