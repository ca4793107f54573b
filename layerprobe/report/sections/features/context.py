"""Sentences and counts next to the figures, one panel per method that changed a layer."""

from __future__ import annotations

from typing import Any

import pandas as pd

from layerprobe.record import RunRecord
from layerprobe.report import queries
from layerprobe.report.section import Tables
from layerprobe.report.sections import tokens
from layerprobe.report.sections.features.examples import example_latents
from layerprobe.report.sections.features.figures import KINDS, PAIRS, control_shares, method_rows
from layerprobe.report.sections.features.sentences import (
    crossing_sentence,
    difference_sentence,
    exclusive_sentence,
    stability_sentence,
)


def context(tables: Tables, record: RunRecord) -> dict[str, Any]:
    """Panels of methods, the one that is open at first, crossings of unchanged methods, and counts of latents."""
    changed, shares = queries.changed(tables, record), queries.having(tables, "latent_shares")
    unchanged = {name: crossing_sentence(tables, name) for name in queries.unchanged(tables, record)}
    return {
        "panels": [panel(tables, record, method) for method in changed],
        "open": queries.main_method(changed, record),
        "unchanged": [(name, text, _same_kinds(shares, name)) for name, text in unchanged.items() if text],
        "shares": shares,
        "pairs": {name: words for name, (_, _, words) in PAIRS.items()},
        "linked": all(queries.having(tables, name) is not None for name in ("latents", *tokens.SECTION.requires)),
    }


def panel(tables: Tables, record: RunRecord, method: str) -> dict[str, Any]:
    """What the page says of one method next to its figures."""
    names = ("sae", "matching", "census")
    quality, matching, census = (method_rows(tables, record, name, method) for name in names)
    control, shares = control_shares(tables, record, method), queries.having(tables, "latent_shares")
    shares = None if shares is None else shares[shares.method == method]
    live = None if census is None else census[census.kind != "dead"]
    return {
        "method": method,
        "crossing": crossing_sentence(tables, method),
        "exclusive": exclusive_sentence(tables, record, method),
        "stability": stability_sentence(tables, record, method),
        "difference": difference_sentence(tables, record, method),
        "examples": example_latents(tables, record, method),
        "by_seed": None if shares is None else share_table(shares, control),
        "quality": quality,
        "head_layer": None if quality is None else _head_layer(quality),
        "undefined": [] if quality is None else _undefined(quality),
        "different_starts": matching is not None and (matching.start == "different starts").any(),
        "live": live,
        "deltas": {} if live is None else live.groupby("layer").delta.median().to_dict(),
    }


def share_table(shares: pd.DataFrame, control: pd.DataFrame | None) -> dict[str, Any] | None:
    """Share of task latents by layer and side, one row per dictionary and training seed and one for the control.

    None for a single dictionary without a control.
    """
    words = {"first": "first dictionary", "second-seed": "second dictionary seed"}
    several = shares.seed.nunique() > 1
    parts = {
        words[str(dictionary)] + (f", training seed {seed}" if several else ""): rows
        for (seed, dictionary), rows in shares.groupby(["seed", "dictionary"])
    }
    if control is not None:
        parts[f"under the control {control.method.iloc[0]}"] = control
    if len(parts) < 2:
        return None
    columns = [(int(layer), side) for layer in sorted(shares.layer.unique()) for side in ("base", "adapted")]
    found = {name: rows.set_index(["layer", "side"]).share_task for name, rows in parts.items()}
    return {
        "columns": columns,
        "rows": [(name, [_known(values.get(column)) for column in columns]) for name, values in found.items()],
    }


def _known(value: Any) -> float | None:
    return None if value is None or value != value else float(value)


def _same_kinds(shares: pd.DataFrame | None, method: str) -> bool:
    """Whether base and adapted have equally many latents of each kind in every layer."""
    if shares is None:
        return False
    rows = shares[shares.method == method].groupby(["seed", "layer", "dictionary"])[list(KINDS)].nunique()
    return bool(len(rows)) and bool((rows == 1).all(axis=None))


def _head_layer(quality: pd.DataFrame) -> int | None:
    """The layer of which the head reads the first token alone; None if there is none here."""
    read = quality[quality.ev_head_rows.notna()] if "ev_head_rows" in quality else quality.iloc[:0]
    return None if read.empty else int(read.layer.max())


def _undefined(quality: pd.DataFrame) -> list[str]:
    """Why the recovered task loss or its interval is undefined, with the layers and sides for which it is."""
    if "task_loss_ablated" not in quality:
        return []
    places: dict[str, list[str]] = {}
    row: Any
    # Both depend on the cost of ablating the layer alone, and not on the dictionary.
    for row in quality.dropna(subset="task_loss_ablated").drop_duplicates(["layer", "evaluated_on"]).itertuples():
        cost = f"mean ablation costs {row.task_loss_ablated - row.task_loss_clean:.2g} nats"
        if row.loss_recovered != row.loss_recovered:
            reason = f"No loss to recover: {cost}."
        elif row.loss_recovered_low != row.loss_recovered_low:
            reason = f"The interval of the recovered loss is unbounded: {cost}, which may be 0."
        else:
            continue
        places.setdefault(reason, []).append(f"layer {row.layer}, {row.evaluated_on}")
    return [f"{reason} ({'; '.join(where)})" for reason, where in places.items()]
