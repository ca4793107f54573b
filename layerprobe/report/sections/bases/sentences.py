"""What the page says of task-specific features: only what the decision on the projected excess allows."""

from __future__ import annotations

from typing import Any

import pandas as pd

from layerprobe.record import Finding, RunRecord
from layerprobe.report import queries
from layerprobe.report.section import Tables
from layerprobe.report.sections.bases.figures import BASES, of_method


def sentences(tables: Tables, record: RunRecord) -> list[Finding]:
    """One sentence about the main method."""
    method = queries.main_method(queries.changed(tables, record), record)
    text = claim(tables, record, method) if method else None
    return [Finding(text=text, figure="basis_excess")] if text else []


def claim(tables: Tables, record: RunRecord, method: str) -> str | None:
    """Whether features became task-specific under a method."""
    verdicts, rows = (of_method(tables, record, name, method) for name in ("task_specific", "basis_excess"))
    if verdicts is None:
        return None
    verdict: Any = verdicts.iloc[0]
    if verdict.verdict == "unchanged":
        return f"Under {method}, base and adapted are equal in every layer with dictionaries."
    if verdict.verdict == "undefined":
        return (
            f"Under {method}, whether features became task-specific is undefined: too few latents are active in at least "
            "10 test examples."
        )
    if rows is None:
        return None
    listed = [name for name in verdict.controls.split(", ") if name]
    projected = rows[rows.projected & rows.control.isin(listed)]
    tested = f"at {_layers(verdict.dictionary_layers)}"
    if verdict.verdict == "not distinguishable":
        return (
            f"Under {method}, task-specific features are not distinguishable from a layer-wide label shift {tested}: "
            "without the directions between the labels' means, the latents' association with labels rises "
            f"{_least(projected)}."
        )
    layers = [int(layer) for layer in verdict.layers.split(", ")]
    least = _least(projected[projected.layer.isin(layers)], only_least=True)
    measured = _names(listed)
    scope = _scope(verdict)
    if verdict.verdict == "task-specific":
        return (
            f"Under {method}, features became task-specific at {_layers(verdict.layers)} of the layers tested "
            f"({verdict.dictionary_layers}): beyond a layer-wide label shift, the latents' association with labels rises "
            f"more than in every control ({measured}; {least}){scope}."
        )
    return (
        f"Under {method}, beyond a layer-wide label shift, the latents' association with labels rises more than in bases "
        f"without training ({measured}) at {_layers(verdict.layers)} of the layers tested ({verdict.dictionary_layers}; "
        f"{least}){scope}. Controls with trained dictionaries ({_names(verdict.missing.split(', '))}) were not run, so "
        "this does not show that features became task-specific."
    )


def _least(rows: pd.DataFrame, *, only_least: bool = False) -> str:
    """The excess over the control that it exceeds least, at the layer where the rise exceeds all controls most."""
    if rows.excess_low.notna().sum() == 0:
        return "by an undefined amount"
    at: Any = rows.loc
    closest = at[rows.dropna(subset="excess_low").groupby("layer").excess_low.idxmin()]
    row: Any = closest.loc[closest.excess_low.idxmin() if only_least else closest.excess_low.idxmax()]
    excess = (
        f"{row.excess:.3f} (95% interval {row.excess_low:.3f} to {row.excess_high:.3f}, simultaneous over layers) more than "
        f"in {BASES.get(row.control, row.control)} at layer {row.layer}"
    )
    return f"at least {excess}" if only_least else f"{excess}, the control that it exceeds least there"


def _scope(verdict: Any) -> str:
    notes = []
    if verdict.conditional:
        notes.append("for these dictionaries, since there is one dictionary seed")
    if verdict.training_seeds == 1:
        notes.append("for this training run")
    return f", {' and '.join(notes)}" if notes else ""


def _layers(text: str) -> str:
    return f"layer{'s' if ',' in text else ''} {text}"


def _names(names: list[str]) -> str:
    return ", ".join(BASES.get(name, name) for name in names)
