"""The card "Where": which layers changed, and whether by more than a control without a task."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from layerprobe.record import RunRecord
from layerprobe.report import queries
from layerprobe.report.decisions import badge
from layerprobe.report.queries import UNCHANGED, Control, Drift, Tables
from layerprobe.report.sections.answer.card import Card

TITLE = "Where"


def where(tables: Tables, record: RunRecord, method: str | None = None) -> Card:
    """The verdicts on each layer under a method, by default the main one, by bands that hold for all layers at once."""
    similarity = queries.having(tables, "similarity")
    method = method or queries.main_method(queries.changed(tables, record), record)
    drift = None
    if similarity is not None and method is not None:
        measure = queries.main_measure(similarity)
        drift = queries.drift_over_seeds(similarity, method, measure, queries.unit_of(similarity))
    if similarity is None or method is None or drift is None:
        return Card(TITLE, "Not measured: base and adapted were not compared", "–", "undecided", "drift")
    controls = [one for one in queries.controls_of(tables, method, measure) if one.decides]
    several = len([name for name in queries.changed(tables, record) if name not in queries.controls(record)]) > 1
    return _card(drift, controls, f"Under {queries.label(method, record)}, " if several else "")


def _card(drift: Drift, controls: Sequence[Control], start: str) -> Card:
    total = len(drift.layers)
    if max(abs(1 - drift.least).max(), abs(1 - drift.most).max()) <= UNCHANGED:
        # Equal rows need no interval and no null.
        claim = f"{start}no layer changed: base and adapted are equal"
        return Card(TITLE, _sentence(claim), f"0 of {total} layers", badge(True, len(drift.seeds)), "drift")
    named: dict[str, list[int]] = {"beyond": [], "changed": [], "kept": [], "undecided": []}
    for layer, verdict in zip(drift.layers, drift.verdicts, strict=True):
        beyond = verdict == "changed" and exceeds(controls, layer)
        named["beyond" if beyond else verdict].append(layer)
    parts = []
    if named["beyond"]:
        parts.append(f"{in_words(named['beyond'])} changed")
    if named["changed"]:
        why = "but not shown to change more than under controls without a task"
        if not controls:
            why = "but no control shows how much change any training of this size makes"
        parts.append(f"{in_words(named['changed'])} changed, {why}")
    if named["kept"]:
        parts.append(f"{in_words(named['kept'])} did not{' change' * (not parts)}")
    if named["undecided"]:
        parts.append(f"{in_words(named['undecided'])}: undecided")
    everywhere = len(named["kept"]) == total
    n_changed = len(named["beyond"]) + len(named["changed"])
    return Card(
        TITLE,
        _sentence(start + "; ".join(parts)),
        f"{n_changed} of {total} layers",
        badge(bool(named["beyond"]) or everywhere, len(drift.seeds)),
        "drift",
    )


def exceeds(controls: Sequence[Control], layer: int) -> bool:
    """Whether the drift of a layer is shown to exceed that of every control; False without a control."""
    ends = [dict(zip(one.layers, one.low, strict=True)).get(layer, float("nan")) for one in controls]
    return bool(ends) and all(end > 0 for end in ends)


def in_words(layers: Iterable[int]) -> str:
    """Layers with runs shortened: "layer 2", "layers 0 to 2 and 4"."""
    runs: list[list[int]] = []
    for layer in sorted(layers):
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    words = [str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs]
    listed = words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
    return f"layer{'s' * (sum(map(len, runs)) > 1)} {listed}"


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}"
