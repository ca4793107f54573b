"""Where change begins and how large it is at the last layer, for the shallowest and the deepest method."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pandas as pd

from layerprobe.record import Finding, RunRecord
from layerprobe.report import queries
from layerprobe.report.queries import BEGINS, UNCHANGED
from layerprobe.report.section import Tables


def sentences(tables: Tables, record: RunRecord) -> list[Finding]:
    """One paragraph per method; of more than three methods, the shallowest and the deepest only."""
    similarity = queries.having(tables, "similarity")
    if similarity is None:
        return []
    names = queries.methods(tables, record)
    deep = [name for name in names if queries.has_depth(name, record)]
    shown = dict.fromkeys([*deep[:1], *deep[-1:]]) if len(names) > 3 and deep else names
    return [Finding(text=text, figure="drift") for name in shown if (text := drift_sentence(similarity, name, record))]


def drift_sentence(similarity: pd.DataFrame, method: str, record: RunRecord) -> str | None:
    """Where a method changed the representation, and by how much at the last layer; None without CKA and cosine."""
    unit = queries.unit_of(similarity)
    cka = queries.drift_of(similarity, method, "cka", unit)
    cosine = queries.drift_of(similarity, method, "paired_cosine", unit)
    main, name = (cka, "CKA") if len(cka) else (cosine, "cosine")
    if main.empty:
        return None
    if (1 - main.value).abs().max() <= UNCHANGED:
        return f"Under {method}, no layer of the body changed: {name} with the base is exactly 1 in all of them."
    last = main.iloc[-1]
    changed, kept = main[main.ci_high < BEGINS], main[main.ci_high >= BEGINS]
    if len(changed):
        most = int(main.layer.iloc[main.value.to_numpy().argmin()])
        text = (
            f"Under {method}, change begins at layer {int(changed.layer.min())} (the first whose {name} is reliably below "
            f"{BEGINS}) and is largest at layer {most}; at the last layer, {int(last.layer)}, {name} with the base is "
            f"{_interval(last)}"
        )
    else:
        text = (
            f"Under {method}, no layer's {name} is reliably below {BEGINS}; at the last layer, {int(last.layer)}, it is "
            f"{_interval(last)}"
        )
    if len(cosine) and len(cka):
        baseline = queries.baseline_of("paired_cosine", record)
        unrelated = queries.drift_of(similarity, method, baseline, unit) if baseline else cosine.iloc[:0]
        note = f" (rows of unrelated examples: {unrelated.iloc[-1].value:.2f})" if len(unrelated) else ""
        text += f" and mean cosine {_interval(cosine.iloc[-1])}{note}"
    text += "."
    if len(changed) and len(kept):
        text += f" Layers {layer_ranges(kept.layer)} kept their representation."
    return text


def _interval(row: Any) -> str:
    return f"{row.value:.3f} (95% interval {row.ci_low:.3f} to {row.ci_high:.3f})"


def layer_ranges(layers: Iterable[int]) -> str:
    """Layer numbers with runs shortened: 0-2, 4."""
    runs: list[list[int]] = []
    for number in sorted(int(layer) for layer in layers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
