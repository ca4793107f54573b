"""Whether drift is beyond chance: the main measure of each layer compared with every null, as a table and as a sentence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd

from layerprobe.record import RunRecord
from layerprobe.report import queries
from layerprobe.report.section import Tables
from layerprobe.report.sections.drift.sentences import layers_in_words


def beyond(tables: Tables, record: RunRecord, method: str) -> dict[str, Any] | None:
    """The main measure of each layer compared with each null: shuffled examples, another seed, controls; None without nulls.

    A control is compared by bands of the paired difference, which hold for all layers at once (table `drift_controls`).
    """
    similarity, nulls = tables["similarity"], queries.having(tables, "similarity_nulls")
    measure, unit = queries.main_measure(similarity), queries.unit_of(similarity)
    drift = queries.drift_of(similarity, method, measure, unit)
    if drift.empty or nulls is None:
        return None
    nulls = nulls[(nulls.method == method) & (nulls.measure == measure) & (nulls.unit == unit)]
    shuffled = nulls[nulls.null_kind == "shuffled-texts"]
    controls = queries.controls_of(tables, method, measure)
    compared = {
        "texts": shuffled[shuffled.seed == drift.seed.iloc[0]].set_index("layer"),
        "seeds": nulls[nulls.null_kind == "seed"].groupby("layer").agg({"value": "mean", "low": "min", "high": "max"}),
    }
    distance = queries.measure(measure, record).kind == "distance"
    rows = []
    row: Any
    for row in drift.itertuples():
        cells: dict[str, Any] = {"layer": int(row.layer), "value": row.value, "low": row.ci_low, "high": row.ci_high}
        cells |= {name: _at(table, row.layer) for name, table in compared.items()}
        if cells["texts"]:
            _, low, high = cells["texts"]
            cells["similar"] = row.ci_high < low if distance else row.ci_low > high
            cells["calibrated"] = compared["texts"].get("calibrated", pd.Series(dtype=float)).get(row.layer)
        if cells["seeds"]:
            _, low, high = cells["seeds"]
            cells["beyond_seeds"] = row.ci_low > high if distance else row.ci_high < low
        cells["controls"] = [_against(control, int(row.layer)) for control in controls]
        rows.append(cells)
    return {
        "measure": measure,
        "rows": rows,
        "seeds": any(row["seeds"] for row in rows),
        "controls": controls,
        "trained": any(control.name != queries.NORM_MATCHED for control in controls),
        "draws": int(shuffled.draws.max()) if len(shuffled) else 0,
        "calibrated": any(isinstance(row.get("calibrated"), float) for row in rows),
    }


def _against(control: queries.Control, layer: int) -> dict[str, Any] | None:
    """Similarity under a control at a layer, and whether drift exceeds it; None where it is not known."""
    if layer not in control.layers:
        return None
    at = control.layers.index(layer)
    return {"value": control.similarity[at], "beyond": bool(control.low[at] > 0) if control.decides else None}


def _at(table: pd.DataFrame, layer: int) -> tuple[float, float, float] | None:
    """Value and range at a layer."""
    if layer not in table.index:
        return None
    row: Any = table.loc[layer]
    return float(row["value"]), float(row["low"]), float(row["high"])


def chance_sentence(tables: Tables, record: RunRecord, method: str) -> str:
    """At which layers the drift of a method exceeds each null, and which layers still distinguish the same examples."""
    found = beyond(tables, record, method)
    if found is None:
        return f"Whether the drift of {method} is beyond chance is not known: this run has no nulls."

    def layers(test: Callable[[dict[str, Any]], Any]) -> list[int]:
        return [row["layer"] for row in found["rows"] if test(row)]

    nulls: dict[str, list[str]] = {}
    undecided = []

    def compare(name: str, shown: list[int]) -> None:
        nulls.setdefault(layers_in_words(shown) if shown else "no layer", []).append(name)

    if found["seeds"]:
        compare("between two training seeds", layers(lambda row: row.get("beyond_seeds")))
    for i, control in enumerate(found["controls"]):
        if not control.decides:
            undecided.append(control.name)
            continue
        name = "random changes of the weights of equal norm" if control.name == queries.NORM_MATCHED else control.name
        against = [row["controls"][i] for row in found["rows"]]
        exceeded = [row["layer"] for row, cell in zip(found["rows"], against, strict=True) if cell and cell["beyond"]]
        compare(f"under {name}", exceeded)
    text = ""
    if nulls:
        parts = [f"at {where} than {' and '.join(names)}" for where, names in nulls.items()]
        text = f"Under {method}, drift is shown to be larger {', '.join(parts)}."
    elif not undecided and method not in queries.controls(record):
        text = f"Whether the drift of {method} is beyond chance in training is not known: there is one seed and no control."
    if undecided:
        text += f" Whether it is larger than under {', '.join(undecided)} is undecided with one seed of the control."
    if found["draws"]:
        similar, other = layers(lambda row: row.get("similar")), layers(lambda row: row.get("similar") is False)
        where = f"at {layers_in_words(similar)}" if similar and other else "at no layer" if other else "at every layer"
        text += (
            f" Base and adapted are still shown to distinguish the same examples {where}, where their similarity is above "
            f"all {found['draws']} shuffles of whole examples."
        )
    return text.strip()
