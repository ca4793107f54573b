"""How many general latents of base became associated with a label, compared with chance, for the main method."""

from __future__ import annotations

from typing import Any

from layerprobe.record import Finding, RunRecord
from layerprobe.report.section import Tables
from layerprobe.report.sections.transitions.figures import LABEL, methods_in, rows_of

FEWEST = 30
"""Close matches below which their rates are not given."""


def sentences(tables: Tables, record: RunRecord) -> list[Finding]:
    """One sentence about the main method."""
    names = methods_in(tables, record)
    text = transition_sentence(tables, record, names[0]) if names else None
    return [Finding(text=text, figure="transitions")] if text else []


def transition_sentence(tables: Tables, record: RunRecord, method: str) -> str | None:
    """General latents that became associated with a label, at the layer with the largest excess over the null.

    It is claimed only if the lower ends of the simultaneous intervals of all training seeds are above 0.
    """
    every = _to_label(tables, record, method, "all")
    if every is None:
        return None
    by_layer = every.groupby("layer")
    shown = by_layer.all_low.min()[lambda ends: ends > 0].index
    excess = by_layer.excess.mean()
    layer: Any = (excess[shown] if len(shown) else excess).idxmax()
    at = every[every.layer == layer]
    seeds = len(at)
    interval = "95% interval for all layers at once" + (f", widest of {seeds} training seeds" if seeds > 1 else "")
    chance = (
        f"compared with {at.null_rate.mean():.0%} between base and base trained in another order: an excess of "
        f"{_points(at.excess.mean())} points ({interval} {_points(at.all_low.min())} to {_points(at.all_high.max())}, given "
        "these dictionaries and examples)."
    )
    latents = f"{_rates(at)} of layer {layer}'s {_count(at)} matched general latents"
    if not len(shown):
        return (
            f"Under {method}, in no layer with dictionaries is it shown that more of the base's matched general latents "
            f"became associated with a label than by chance in training a dictionary; the largest excess is that of "
            f"{latents}, {chance}"
        )
    text = f"Under {method}, {latents} became associated with a label, {chance}"
    close = _to_label(tables, record, method, "close")
    near = at.iloc[:0] if close is None else close[close.layer == layer]
    if len(near) and near.latents.min() >= FEWEST:
        return (
            f"{text} Among those whose match is as close as 95% of matches in base, {_rates(near)} of {_count(near)} did, "
            f"compared with {near.null_rate.mean():.0%}."
        )
    few = int(near.latents.max()) if len(near) else "none"
    return (
        f"{text} Of these latents, {few} {'has' if few in (1, 'none') else 'have'} a match as close as 95% of matches in "
        "base, so a match here may be another feature."
    )


def _to_label(tables: Tables, record: RunRecord, method: str, matches: str) -> Any:
    """Transitions from general to associated with a label, one row per layer and training seed; None without any."""
    rows = rows_of(tables, record, method, matches)
    if rows is None:
        return None
    rows = rows[(rows.kind_base == "general") & (rows.kind_adapted == LABEL)]
    return None if rows.empty else rows


def _rates(rows: Any) -> str:
    """Mean over training seeds, with the range if there are several."""
    if len(rows) == 1:
        return f"{rows.rate.item():.0%}"
    return f"{rows.rate.mean():.0%} ({rows.rate.min():.0%} to {rows.rate.max():.0%} over {len(rows)} training seeds)"


def _count(rows: Any) -> str:
    low, high = int(rows.latents.min()), int(rows.latents.max())
    return f"{low}" if low == high else f"{low} to {high}"


def _points(value: float) -> str:
    return f"{100 * value:.0f}"
