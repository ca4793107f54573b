"""What a study of energy shows: the best number of meta-training rounds by depth, and what depth costs."""

from __future__ import annotations

from typing import Any

import numpy as np

from layerprobe.record import Finding, RunRecord
from layerprobe.report.queries import having
from layerprobe.report.section import Tables
from layerprobe.report.sections.energy.queries import (
    EXCHANGED,
    assumptions,
    bits,
    depths,
    first_cluster,
    joules,
    least_of,
    rows_of,
    settings_of,
)


def sentences(tables: Tables, record: RunRecord) -> list[Finding]:
    """The best t0 of each depth, and the depths compared."""
    if having(tables, "energy") is None:
        return []
    texts = [*(optimum_sentence(tables, record, inner) for inner in depths(tables)), depth_sentence(tables, record)]
    return [Finding(text=text, figure="energy") for text in texts if text]


def optimum_sentence(tables: Tables, record: RunRecord, inner: str) -> str:
    """The number of meta-training rounds with the least energy, its energy with an interval, and the ratio to none."""
    topology, devices = first_cluster(tables)
    rows = rows_of(tables, inner, topology, devices)
    if rows.empty:
        return ""
    settings = settings_of(record)
    least = least_of(rows, settings)
    where = f"Adapting `{inner}` on {devices} devices per task in {EXCHANGED[topology]}"
    if least is None:
        tried = ", ".join(map(str, rows.meta_rounds))
        return (
            f"{where}: after none of t0 = {tried} rounds of meta-training did every cluster reach the target within the cap, so "
            "only lower bounds of the energy are known."
        )
    best = least.optimum
    seeds = int(rows.seeds.iloc[0])
    interval = "no interval"
    if np.isfinite(least.low):
        over = f"{int(rows.tasks.iloc[0])} tasks" + (f" and {seeds} seeds" if seeds > 1 else ", one seed")
        interval = f"95% interval {joules(least.low)} to {joules(least.high)} over {over}"
    energy: Any = best.energy
    ratio = f"{'at least ' if best.ratio_is_lower_bound else ''}{best.ratio:.3g} times as much without meta-training"
    compared = "" if best.meta_rounds == 0 or not np.isfinite(best.ratio) else f"; {ratio}"
    rest = "without meta-training (t0 = 0)" if best.meta_rounds == 0 else f"after t0 = {best.meta_rounds} rounds of it"
    doubt = " A t0 that was stopped at the cap might need less." if best.undecided else ""
    return (
        f"{where} takes the least energy {rest}: {joules(energy.total)} ({interval}), {energy.communication / energy.total:.0%} "
        f"of it for communication{compared}.{doubt}"
    )


def depth_sentence(tables: Tables, record: RunRecord) -> str:
    """One exchange of the shallowest and the deepest inner depth, in bits and joule."""
    order, settings = depths(tables), settings_of(record)
    sizes = tables["energy"].groupby("inner").parameters_exchanged.first()
    least, most = (min(order, key=lambda name: sizes[name]), max(order, key=lambda name: sizes[name]))
    if least == most:
        return ""
    sent = {name: float(sizes[name]) * settings.bits for name in (least, most)}
    once = [f"{bits(sent[name])} ({joules(sent[name] / settings.sidelink)})" for name in (least, most)]
    recipients = assumptions(record).recipients
    everyone = [joules(sent[name] * recipients / settings.downlink) for name in (least, most)]
    return (
        f"Sending the adapted parameters once takes {once[0]} at depth `{least}` and {once[1]} at depth `{most}`, "
        f"{sent[most] / sent[least]:,.0f} times as much; shipping them to {recipients:,} devices over the downlink costs "
        f"{everyone[0]} and {everyone[1]}."
    )
