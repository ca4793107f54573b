"""How much of the last layer's variance lies between labels, and from where on adaptation is shown to have raised it."""

from __future__ import annotations

import pandas as pd

from layerprobe.record import Finding, RunRecord
from layerprobe.report import queries
from layerprobe.report.section import Tables

VECTORS = {"token": "token vectors", "mean": "mean vectors", "cls": "vectors of first tokens"}
"""Units in words."""
SIZES = (0.01, 0.05)
"""Differences of label variance whose onset is reported besides 0: small ones are significant where vectors are paired."""


def sentences(tables: Tables, record: RunRecord) -> list[Finding]:
    """One sentence about the method that the page discusses first; none if it changed no layer."""
    table, method = queries.having(tables, "label_variance"), shown_method(tables, record)
    if table is None or method is None:
        return []
    return [Finding(text=label_sentence(table, method, queries.unit_of(table)), figure="label_variance")]


def shown_method(tables: Tables, record: RunRecord) -> str | None:
    """The method that the page discusses first, of those under which a layer changed; None without any."""
    table = queries.having(tables, "label_variance")
    if table is None:
        return None
    changed = set(table.method[(table.side == "difference") & (table.excess != 0)])
    names = [name for name in queries.methods(tables, record) if name in changed]
    return queries.main_method(names, record)


def onset(table: pd.DataFrame, method: str, unit: str, side: str, above: float = 0) -> int | None:
    """The first layer whose excess is shown to be above a value in every seed, None if there is none.

    Above 0 by `exceeds`, above others by `lower_simultaneous` as well. Each seed has at most a 5% chance of any false layer,
    and so has what all seeds share.
    """
    rows = table[(table.method == method) & (table.unit == unit) & (table.side == side)]
    shown = rows.exceeds & ((above == 0) | (rows.lower_simultaneous > above))
    every = shown.groupby(rows.layer).all()
    return next((int(layer) for layer in every.index[every]), None)


def label_sentence(table: pd.DataFrame, method: str, unit: str) -> str:
    """Label variance of the last layer on both sides, the difference with its interval, and its onset."""
    rows = table[(table.method == method) & (table.unit == unit)]
    last = int(rows.layer.max())
    base, adapted, change = (
        rows[(rows.side == side) & (rows.layer == last)] for side in ("base", "adapted", "difference")
    )
    low, high = 100 * change.ci_low.min(), 100 * change.ci_high.max()
    if len(change) > 1:
        span = f"{100 * change.excess.min():.1f} to {100 * change.excess.max():.1f}"
        amount = f"{100 * change.excess.mean():.1f} percentage points on average over {len(change)} seeds ({span}; all 95% intervals lie within {low:.1f} to {high:.1f})"
    else:
        amount = f"{100 * change.excess.iloc[0]:.1f} percentage points (95% interval {low:.1f} to {high:.1f})"
    first = onset(table, method, unit, "difference")
    seeds = " in every seed" if len(change) > 1 else ""
    if first is None:
        where = f"No layer's difference is shown to be above 0{seeds}."
    else:
        size = 100 * rows[(rows.side == "difference") & (rows.layer == first)].excess.mean()
        where = (
            f"The first layer whose difference is shown to be above 0{seeds} is {first} ({size:.2g} percentage points)"
        )
        for above in SIZES:
            beyond = onset(table, method, unit, "difference", above)
            points = f"{100 * above:.0f} percentage point{'' if above == 0.01 else 's'}"
            where += f", above {points} {'none' if beyond is None else beyond}"
        where += " (5% for any false layer)."
    return (
        f"Under {method}, {100 * adapted.excess.mean():.1f}% of the variance of {VECTORS[unit]} at layer {last} lies between "
        f"labels, and {100 * base.excess.mean():.1f}% in base (each minus its mean under permuted labels): a difference of "
        f"{amount}. {where}"
    )
