"""The card "What changed": only what the controls on other bases allow to be said of features."""

from __future__ import annotations

from typing import Any

import pandas as pd

from layerprobe.record import RunRecord
from layerprobe.report import queries
from layerprobe.report.decisions import badge
from layerprobe.report.queries import Tables
from layerprobe.report.sections.answer.card import Card
from layerprobe.report.sections.answer.where import in_words
from layerprobe.report.sections.bases.figures import of_method
from layerprobe.report.sections.labels.sentences import shown_method
from layerprobe.report.sections.transitions.figures import LABEL, rows_of

TITLE = "What changed"


def changed(tables: Tables, record: RunRecord) -> Card:
    """What became of features under the main method; without dictionaries, of the variance between labels."""
    method = queries.main_method(queries.changed(tables, record), record)
    verdicts = of_method(tables, record, "task_specific", method) if method else None
    if method is None or verdicts is None:
        return _label_variance(tables, record)
    verdict: Any = verdicts.iloc[0]
    if verdict.verdict == "unchanged":
        claim = "No feature changed: base and adapted are equal in every layer with dictionaries"
        return Card(TITLE, claim, "0 latents", badge(True, int(verdict.training_seeds)), "basis_excess")
    if verdict.verdict == "undefined":
        claim = "Undecided: too few latents are active in at least 10 test examples"
        return Card(TITLE, claim, "–", "undecided", "basis_excess")
    least = _least_excess(tables, record, method, verdict)
    number = "–" if least is None else f"excess of {least:+.3f}"
    layers = in_words(_numbers(verdict.layers)) if verdict.layers else ""
    if verdict.verdict == "not distinguishable":
        claim = (
            "Undecided: latents are not shown to change more than a shift of the whole layer by label would make them"
        )
        return Card(TITLE, claim, number, "undecided", "basis_excess")
    if verdict.verdict == "beyond untrained bases":
        claim = f"Undecided: latents became more associated with labels than untrained bases at {layers}; trained controls were not run"
        return Card(TITLE, claim, number, "undecided", "basis_excess")
    # One dictionary seed is one seed, too.
    seeds = 1 if verdict.conditional else int(verdict.training_seeds)
    found = _transition(tables, record, method, _numbers(verdict.layers))
    if found is not None:
        layer, rate, chance = found
        claim = f"{rate:.0%} of layer {layer}'s general latents became label-associated; {chance:.0%} by chance"
        return Card(TITLE, claim, f"{rate:.0%}", badge(True, seeds), "transitions")
    claim = (
        f"Features became task-specific at {layers}: latents' association with labels rose more than in every control"
    )
    return Card(TITLE, claim, number, badge(True, seeds), "basis_excess")


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(", ") if number]


def _least_excess(tables: Tables, record: RunRecord, method: str, verdict: Any) -> float | None:
    """The excess over the control that is exceeded least: the smallest of the layers where features became task-specific,
    else that of the layer where it is largest.
    """
    rows = of_method(tables, record, "basis_excess", method)
    if rows is None:
        return None
    rows = rows[rows.projected & rows.control.isin(verdict.controls.split(", ")) & rows.excess_low.notna()]
    if verdict.layers:
        rows = rows[rows.layer.isin(_numbers(verdict.layers))]
    if rows.empty:
        return None
    closest = rows.loc[rows.groupby("layer").excess_low.idxmin()].sort_values("excess_low")
    return float(closest.excess.iloc[0 if verdict.layers else -1])


def _transition(tables: Tables, record: RunRecord, method: str, layers: list[int]) -> tuple[int, float, float] | None:
    """Layer, rate and chance rate of general latents that became associated with a label, where this is shown.

    The layer is the one with the largest excess over the null among those where features became task-specific.
    """
    rows = rows_of(tables, record, method, "all")
    if rows is None:
        return None
    rows = rows[(rows.kind_base == "general") & (rows.kind_adapted == LABEL) & rows.layer.isin(layers)]
    by_layer = rows.groupby("layer")
    shown = by_layer.all_low.min()[lambda low: low > 0].index
    if not len(shown):
        return None
    layer: Any = by_layer.excess.mean()[shown].idxmax()
    at = rows[rows.layer == layer]
    return int(layer), float(at.rate.mean()), float(at.null_rate.mean())


def _label_variance(tables: Tables, record: RunRecord) -> Card:
    """Variance of the last layer that lies between labels, minus what permuted labels give."""
    table, method = queries.having(tables, "label_variance"), shown_method(tables, record)
    if table is None or method is None:
        return Card(TITLE, "Not measured: the run has no dictionaries", "–", "undecided", "features")
    rows = table[(table.method == method) & (table.unit == queries.unit_of(table))]
    layer = int(rows.layer.max())
    at: dict[str, pd.DataFrame] = {str(side): part for side, part in rows[rows.layer == layer].groupby("side")}
    base, adapted, difference = (at[side] for side in ("base", "adapted", "difference"))
    decided = bool(difference.exceeds.all()) and bool((difference.ci_low > 0).all())
    now, before = float(adapted.excess.mean()), float(base.excess.mean())
    claim = f"{now:.0%} of layer {layer}'s variance lies between labels; {before:.0%} in base"
    if not decided:
        claim = f"Undecided: {claim[0].lower()}{claim[1:]}"
    return Card(TITLE, claim, f"{now:.0%}", badge(decided, len(difference)), "label_variance")
