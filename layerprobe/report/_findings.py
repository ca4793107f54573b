"""The answer in sentences, made from a run's tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

BEGINS = 0.95
"""A layer counts as changed where the upper end of its CKA interval is below this."""
UNCHANGED = 1e-6
"""A similarity this near to 1 is that of an untouched layer."""
REFERENCES = "reference:"


@dataclass(frozen=True)
class Finding:
    """One sentence, and the part of the page that its numbers stand in."""

    text: str
    figure: str


def findings(tables: Mapping[str, pd.DataFrame], record: Mapping[str, Any]) -> list[Finding]:
    """Three to five sentences made from the numbers, each with an interval and the figure it comes from."""
    from layerprobe.report._depth_words import depth_findings
    from layerprobe.report._feature_words import feature_sentences

    found = []
    drift = tables.get("similarity")
    names = methods(tables)
    # Of many methods the shallowest and the deepest are told in words; all of them stand in the figures.
    deep = [name for name in names if _depth(name)[0] <= 2]
    for method in dict.fromkeys([*deep[:1], *deep[-1:]]) if len(names) > 3 and deep else names:
        if drift is not None:
            found += _where(drift, method)
    found += depth_findings(tables, record)
    found += [Finding(text, "features") for text in feature_sentences(tables, moved(tables))]
    return found


def methods(tables: Mapping[str, pd.DataFrame]) -> list[str]:
    """Adaptation methods of a run by depth: the head alone first, everything last, then what the user brought."""
    found = [tables[name]["method"] for name in ("adaptation", "similarity") if name in tables]
    names = {name for column in found for name in column.unique() if not name.startswith(REFERENCES)}
    return sorted(names, key=_depth)


def moved(tables: Mapping[str, pd.DataFrame]) -> list[str]:
    """Methods under which a layer changed at all (all, where nothing was compared or nothing changed)."""
    names, table = methods(tables), tables.get("similarity")
    if table is None:
        return names
    rows = table[~table.measure.isin(["paired_cosine_baseline", "linear_predictivity"])]
    change = (rows.value - rows.measure.map(top)).abs().groupby(rows.method).max()
    return [name for name in names if change.get(name, 1.0) > UNCHANGED] or names


def top(measure: str) -> float:
    """The value of a layer that did not change: 0 for distances, 1 for similarities."""
    return 0.0 if measure.endswith(("_angle", "_distance")) else 1.0


def _depth(method: str) -> tuple[int, int, str]:
    if method == "head":
        return 0, 0, method
    if method.startswith("top:"):
        return 1, int(method.removeprefix("top:")), method
    return {"full": 2, "shuffled-labels": 4}.get(method, 3), 0, method


def drift_of(
    table: pd.DataFrame, method: str, measure: str, unit: str = "token", seed: int | None = None
) -> pd.DataFrame:
    """One measure by layer, for the given seed or else the first one."""
    rows = table[
        (table.method == method) & (table.measure == measure) & (table.unit == unit) & (table["rows"] == "all")
    ]
    if rows.empty:
        return rows
    return rows[rows.seed == (rows.seed.min() if seed is None else seed)].sort_values("layer")


def seeds_of(table: pd.DataFrame, method: str) -> list[int]:
    """Seeds that a method was run with."""
    return sorted(int(seed) for seed in table[table.method == method].seed.unique())


def unit_of(table: pd.DataFrame) -> str:
    """The unit that the page opens with: tokens where they were compared."""
    units = list(table["unit"].unique())
    return "token" if "token" in units else units[0]


def _where(drift: pd.DataFrame, method: str) -> list[Finding]:
    unit = unit_of(drift)
    cka = drift_of(drift, method, "cka", unit)
    cosine = drift_of(drift, method, "paired_cosine", unit)
    main = cka if len(cka) else cosine
    if main.empty:
        return []
    name = "CKA" if len(cka) else "cosine"
    if (1 - main.value).abs().max() <= UNCHANGED:
        return [
            Finding(
                f"Under {method}, no layer of the body changed: {name} with the base is exactly 1 in all of them.",
                "drift",
            )
        ]
    last = main.iloc[-1]
    changed = main[main.ci_high < BEGINS]
    kept = main[main.ci_high >= BEGINS]
    begin = (
        f"change begins at layer {int(changed.layer.min())}"
        if len(changed)
        else f"no layer's {name} is reliably below {BEGINS}"
    )
    text = (
        f"Under {method}, {begin} (the first whose {name} is reliably below {BEGINS}) and is largest at layer "
        f"{int(main.layer.to_numpy()[main.value.to_numpy().argmin()])}; at the last layer, {int(last.layer)}, {name} with the base is {_value(last)}"
        if len(changed)
        else f"Under {method}, {begin}; at the last layer, {int(last.layer)}, it is {_value(last)}"
    )
    if len(cosine) and len(cka):
        other = drift_of(drift, method, "paired_cosine_baseline", unit)
        beside = f" (rows of unrelated texts: {other.iloc[-1].value:.2f})" if len(other) else ""
        text += f" and mean cosine {_value(cosine.iloc[-1])}{beside}"
    text += "."
    if len(changed) and len(kept):
        text += f" Layers {_ranges(kept.layer)} kept their representation."
    return [Finding(text, "drift")]


def _value(row: Any) -> str:
    return f"{row.value:.3f} (95% interval {row.ci_low:.3f} to {row.ci_high:.3f})"


def _ranges(layers: Any) -> str:
    """Layer numbers with runs shortened: 0-2, 4."""
    numbers = sorted(int(layer) for layer in layers)
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
