"""Was it needed? What the page says of quality, cost and the inside at each depth of adaptation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from layerprobe.record import RunRecord
from layerprobe.report import _depth_figures as figures
from layerprobe.report import _inside as inside
from layerprobe.report._depth_words import (
    Tables,
    accuracy,
    after_on_test,
    listed,
    prices,
    recommendation,
    reference_of,
    row_of,
)
from layerprobe.report._findings import REFERENCES, methods
from layerprobe.report.queries import main_measure, seeds_of, unit_of

if TYPE_CHECKING:
    import pandas as pd

HEADS = {
    "model": "the family's own head",
    "mean": "a linear head on the mean over a text's tokens",
    "cls": "a linear head on the first token",
}
SCORES = {
    "macro_f1": "macro-F1",
    "loss": "cross-entropy",
    "brier": "Brier score",
    "calibration_error": "calibration error",
}


def depth_context(tables: Tables, record: RunRecord) -> dict[str, Any]:
    """All that the templates of this section need; parts that a run lacks are None or empty."""
    names = [name for name in methods(tables) if not name.startswith(REFERENCES)]
    similarity = tables.get("similarity")
    slider = None
    if similarity is not None and len(similarity):
        measure, unit = main_measure(similarity), unit_of(similarity)
        slider = figures.drift_by_depth(similarity, [n for n in names if n != "shuffled-labels"], measure, unit)
    groups = _groups(tables, names)
    return {
        "figures": {"groups": groups, "slider": slider},
        "choices": {name: list(group) for name, group in groups.items()},
        "concluded": record.sufficiency,
        "recommendation": recommendation(tables, record.sufficiency) if record.sufficiency else "",
        "verdicts": _records(tables.get("sufficiency")),
        "quality": _quality_rows(tables),
        "means": _mean_rows(tables),
        "scores": [words for column, words in SCORES.items() if _has(tables.get("adaptation"), column)],
        "costs": _cost_rows(tables),
        "head": _head_words(tables, record),
        "missing": _missing(tables),
        "weights": _weights_words(tables.get("weights")),
        "seeds": max((len(seeds_of(tables["adaptation"], name)) for name in names), default=0)
        if names and "adaptation" in tables
        else 0,
        "probed": _numbers(tables.get("probes")),
        "intervened": _numbers(tables.get("interventions")),
        "methods": names,
    }


def _groups(tables: Tables, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Figures by what a reader picks."""
    made: dict[str, dict[str, Any]] = {}
    table = tables.get("adaptation")
    if table is not None and len(table):
        splits = list(dict.fromkeys(["test", *table[table["when"] == "after"]["split"]]))
        made["quality"] = {name: figures.quality(table, names, name).to_plotly_json() for name in splits}
    gaps, points, front = tables.get("differences"), tables.get("seed_differences"), tables.get("pareto")
    if gaps is not None and len(gaps):
        order = sorted(
            range(len(gaps)), key=lambda i: names.index(gaps.method.iloc[i]) if gaps.method.iloc[i] in names else 99
        )
        made["differences"] = {
            "all": figures.differences(gaps.iloc[order], points, tables.get("sufficiency")).to_plotly_json()
        }
    bought = prices(tables)
    reference = reference_of(tables)
    if bought is not None and reference is not None:
        shares = figures.cost_shares(bought, reference)
        if shares is not None:
            made["cost"] = {"all": shares.to_plotly_json()}
    if front is not None and len(front):
        own = after_on_test(tables)
        made["pareto"] = {
            figures.COSTS.get(cost, (cost, ""))[0]: figures.pareto(front, cost, names, own).to_plotly_json()
            for cost in dict.fromkeys(front.cost)
        }
    for name, draw in (("probes", inside.probes), ("interventions", inside.interventions), ("weights", inside.weights)):
        table = tables.get(name)
        if table is not None and len(table):
            made[name] = draw(table, names)
    return {name: group for name, group in made.items() if group}


def _cost_rows(tables: Tables) -> dict[str, Any] | None:
    """Costs as words, with the share of the largest by which a cell is shaded."""
    bought = prices(tables)
    if bought is None or bought.empty:
        return None
    columns = [c for c in figures.COSTS if c in bought.columns]
    if not columns:
        return None
    most = bought[columns].max()
    rows = [
        {
            "method": row["method"],
            "cells": [
                {
                    "words": figures.spoken(row[c], c),
                    "share": 100 * row[c] / most[c] if most[c] > 0 and row[c] == row[c] else 0,
                }
                for c in columns
            ],
        }
        for row in bought.to_dict("records")
    ]
    after = after_on_test(tables)
    assert after is not None
    notes = []
    for column, words in (("memory_kind", "Peak memory"), ("energy_kind", "Energy"), ("energy_note", "Energy")):
        kinds = [str(kind) for kind in after.get(column, ()) if isinstance(kind, str) and kind]
        if kinds:
            notes.append(f"{words}: {', '.join(dict.fromkeys(kinds))}.")
    return {"columns": [figures.COSTS[c][0] for c in columns], "rows": rows, "notes": notes}


def _quality_rows(tables: Tables) -> list[dict[str, Any]]:
    table = tables.get("adaptation")
    if table is None:
        return []
    order = {name: i for i, name in enumerate(methods(tables))}
    rows = []
    for row in table.to_dict("records"):
        scores = [_score(row[column]) for column in SCORES if _has(table, column)]
        about: dict[str, Any] = {str(key): value for key, value in row.items()}
        rows.append(about | {"scores": scores, "reference": str(row["method"]).startswith(REFERENCES)})
    return sorted(rows, key=lambda row: (row["when"] != "after", row["split"] != "test", order.get(row["method"], 99)))


def _mean_rows(tables: Tables) -> list[dict[str, Any]]:
    """One row a method and set of texts: means over seeds, and how far the seeds' accuracies lie apart."""
    table = tables.get("adaptation")
    if table is None:
        return []
    rows = []
    for (split, method), part in table[table["when"] == "after"].groupby(["split", "method"], sort=False):
        rows.append(
            {
                "method": method,
                "split": split,
                "n": int(part["n"].iloc[0]),
                "seeds": len(part),
                "accuracy": part.accuracy.mean(),
                "low": part.accuracy.min(),
                "high": part.accuracy.max(),
                "scores": [_score(part[column].mean()) for column in SCORES if _has(table, column)],
                "reference": str(method).startswith(REFERENCES),
            }
        )
    order = {name: i for i, name in enumerate(methods(tables))}
    return sorted(rows, key=lambda row: (row["split"] != "test", row["split"], order.get(row["method"], 99)))


def _head_words(tables: Tables, record: RunRecord) -> str:
    """Which head was judged, and what a linear reader of other poolings gets."""
    asked = record.study.resolved.get("adaptation", {}).get("pooling", "model")
    text = f'The head judged here is {HEADS.get(asked, asked)} (adaptation.pooling = "{asked}")'
    after = after_on_test(tables)
    said = []
    for pooling, words in (("mean", "the mean over tokens"), ("cls", "the first token")):
        row = None if after is None else row_of(after, f"{REFERENCES}logistic-{pooling}")
        if row is not None:
            said.append(f"{accuracy(row)} on {words}")
    if said:
        text += f"; without any fine-tuning, logistic regression on the pretrained last layer reaches {listed(said)}"
    return text + "."


def _missing(tables: Tables) -> list[str]:
    """What a reader may look for here and this run did not measure."""
    table, found = tables.get("adaptation"), []
    if table is not None:
        absent = [figures.COSTS[c][0] for c in figures.COSTS if c != "drift" and not _has(table, c)]
        if absent:
            found.append(f"Costs not measured in this run: {', '.join(absent)}.")
        absent = [words for column, words in SCORES.items() if not _has(table, column)]
        if absent:
            found.append(f"Scores not measured in this run: {', '.join(absent)}.")
        if set(table["split"]) <= {"test"}:
            found.append("Out-of-domain sets: none in this study (data.ood).")
    return found


def _weights_words(table: pd.DataFrame | None) -> str:
    """How many intruder dimensions were found, and where most."""
    if table is None or table.empty or "intruder_dimensions" not in table:
        return ""
    total = table.groupby("method").intruder_dimensions.sum() / table.groupby("method").seed.nunique()
    most = total.idxmax()
    if not total.max():
        return "No method has an intruder dimension in any matrix."
    return f"{most} has the most intruder dimensions: {total.max():.1f} over all matrices, on average over its seeds."


def _numbers(table: pd.DataFrame | None) -> dict[str, Any] | None:
    if table is None or table.empty:
        return None
    return {"n": int(table["n"].max()), "seeds": int(table.seed.nunique())}


def _records(table: pd.DataFrame | None) -> list[dict[str, Any]]:
    if table is None:
        return []
    rows = table.astype(object).where(table.notna(), None).to_dict("records")
    return [{str(key): value for key, value in row.items()} for row in rows]


def _has(table: pd.DataFrame | None, column: str) -> bool:
    return table is not None and column in table.columns and bool(table[column].notna().any())


def _score(value: Any) -> str:
    return "–" if value is None or value != value else f"{value:.3f}"
