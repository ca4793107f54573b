"""Tables of scores, and what was evaluated."""

from __future__ import annotations

from typing import Any

import pandas as pd

from layerprobe.record import RunRecord
from layerprobe.report import queries
from layerprobe.report.costs import COSTS
from layerprobe.report.section import Tables
from layerprobe.report.sections.quality.figures import LOGISTIC
from layerprobe.report.sections.quality.sentences import accuracy, listed, recommendation, single_sentence

HEADS = {
    "model": "the family's own head",
    "mean": "a linear head on the mean over an example's tokens",
    "cls": "a linear head on the first token",
}
"""Values of `adaptation.pooling` in words."""
SCORES = {
    "macro_f1": "macro-F1",
    "loss": "cross-entropy",
    "brier": "Brier score",
    "calibration_error": "calibration error",
}
"""Scores besides the accuracy, by column of the table `adaptation`."""


def context(tables: Tables, record: RunRecord) -> dict[str, Any]:
    """Scores per method and per seed, the tests of each method, the recommendation, and what was not measured."""
    table, names = tables["adaptation"], queries.methods(tables, record)
    measured = [column for column in SCORES if column in table and table[column].notna().any()]
    after = table[table["when"] == "after"]
    summary = {"n": ("n", "first"), "seeds": ("seed", "size"), "is_reference": ("is_reference", "any")}
    summary |= {"low": ("accuracy", "min"), "high": ("accuracy", "max")}
    summary |= {column: (column, "mean") for column in ("accuracy", *measured)}
    means = after.groupby(["split", "method"], sort=False).agg(**summary).reset_index()
    order = {name: i for i, name in enumerate(names)}

    def place(row: dict[str, Any]) -> tuple[Any, ...]:
        """Adapted before base, the test examples before others, methods by depth."""
        rank = order.get(row["method"], len(order))
        return row.get("when") == "before", row["split"] != "test", row["split"], rank

    def scored(rows: pd.DataFrame) -> list[dict[str, Any]]:
        """Sorted rows with their scores in words."""
        records = [row | {"scores": [_score(row[column]) for column in measured]} for row in queries.records_of(rows)]
        return sorted(records, key=place)

    return {
        "conclusion": record.sufficiency,
        "recommendation": recommendation(tables, record),
        "single": single_sentence(tables, record),
        "trains": any(after.get("trainable_parameters", pd.Series(dtype=float)) > 0),
        "tests": queries.records_of(queries.having(tables, "sufficiency")),
        "tuning": _tuning(tables, record),
        "splits": list(dict.fromkeys(["test", *after["split"]])),
        "seeds": max((len(queries.seeds_of(table, name)) for name in names), default=0),
        "scores": [SCORES[column] for column in measured],
        "means": scored(means),
        "rows": scored(table),
        "head": _head(tables, record),
        "not_measured": _not_measured(table),
    }


def _head(tables: Tables, record: RunRecord) -> str:
    """Which head was evaluated, and the accuracy of logistic regression on pretrained vectors."""
    pooling = record.study.resolved.get("adaptation", {}).get("pooling", "model")
    text = f'The head evaluated here is {HEADS.get(pooling, pooling)} (adaptation.pooling = "{pooling}")'
    after: Any = queries.accuracy_after(tables)
    rows = {} if after is None else {words: after[after.method == name] for name, words in LOGISTIC.items()}
    reached = [f"{accuracy(part.iloc[0])} on {words}" for words, part in rows.items() if len(part)]
    if reached:
        text += f"; without fine-tuning, logistic regression on the pretrained last layer reaches {listed(reached)}"
    return text + "."


def _tuning(tables: Tables, record: RunRecord) -> str:
    """How settings were chosen; empty in a run that does not record it."""
    after: Any = queries.accuracy_after(tables)
    if after is None or "candidates" not in after or after.candidates.isna().all():
        return ""
    tuning = record.study.resolved.get("adaptation", {}).get("tuning", "default")
    tried = after.groupby("method", sort=False).candidates.max().dropna().astype(int)
    counts = listed([f"{queries.label(name, record)} {count}" for name, count in tried.items()])
    rule = (
        "every method was tuned alike: the best of three values of one setting, by the cross-entropy on the same 15% of the "
        "training examples"
        if tuning == "equal"
        else "methods were not tuned alike: heads and logistic regression choose a penalty on held-out training examples, "
        'the others have the default learning rate or search for one (adaptation.search); adaptation.tuning = "equal" '
        "tunes all alike"
    )
    return f'With adaptation.tuning = "{tuning}", {rule}. Settings compared: {counts}.'


def _not_measured(table: pd.DataFrame) -> list[str]:
    """Costs, scores and sets of examples that a reader may look for."""

    def absent(labels: dict[str, str]) -> str:
        return ", ".join(label for name, label in labels.items() if name not in table or table[name].isna().all())

    costs = absent({name: cost.label for name, cost in COSTS.items() if name != "drift"})
    scores = absent(SCORES)
    notes = [f"Costs not measured in this run: {costs}."] if costs else []
    notes += [f"Scores not measured in this run: {scores}."] if scores else []
    if set(table["split"]) <= {"test"}:
        notes.append("Out-of-domain sets: none in this study (data.ood).")
    return notes


def _score(value: Any) -> str:
    return "–" if value is None or value != value else f"{value:.3f}"
