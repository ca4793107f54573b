"""Where change begins, how large it is at the last layer, and how it compares with controls that learn no task."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import get_args

import numpy as np
import pandas as pd

from layerprobe.onsets import Onset, Verdict, falls, first_beyond
from layerprobe.record import Finding, RunRecord
from layerprobe.report import queries
from layerprobe.report.queries import BEGINS, NORM_MATCHED, THRESHOLDS, UNCHANGED, Drift
from layerprobe.report.section import Tables

EQUAL_STEP = "full:equal-step"
"""The method whose layers take steps of one relative size."""
NAMES = {"cka": "CKA", "paired_cosine": "mean cosine"}
"""Measures in sentences."""


def sentences(tables: Tables, record: RunRecord) -> list[Finding]:
    """One paragraph per method; of more than three methods, the shallowest and the deepest only."""
    similarity = queries.having(tables, "similarity")
    if similarity is None:
        return []
    names = queries.methods(tables, record)
    deep = [name for name in names if queries.has_depth(name, record)]
    shown = dict.fromkeys([*deep[:1], *deep[-1:]]) if len(names) > 3 and deep else names
    main = queries.main_method(names, record)
    found = [drift_sentence(similarity, name, record) for name in shown]
    found += [control_sentence(tables, record, main) if main else None, equal_step_sentence(similarity)]
    return [Finding(text=text, figure="drift") for text in found if text]


def control_sentence(tables: Tables, record: RunRecord, method: str) -> str | None:
    """From which layer on drift exceeds that of controls without a task, by `layerprobe.onsets.first_beyond`; None without
    controls, or for a method that is one.
    """
    measure = queries.main_measure(tables["similarity"])
    controls = queries.controls_of(tables, method, measure)
    if not controls or method in queries.controls(record):
        return None
    name = NAMES.get(measure, measure)
    trained = [control for control in controls if control.name != NORM_MATCHED]
    parts = []
    for control in controls:
        value = f"{name} at {control.similarity[-1]:.3f} at layer {control.layers[-1]}"
        if control.name == NORM_MATCHED:
            parts.append(f"{control.models} random changes of the weights with the norms of {method} leave {value}")
        else:
            parts.append(f"{control.name} ({control.models} seed{'s' * (control.models > 1)}) leaves {value}")
    text = f"Without a task, {'; '.join(parts)}."
    decided = [control for control in controls if control.decides]
    if decided:
        layers = sorted(set.intersection(*(set(control.layers) for control in decided)))
        first = first_beyond(layers, [control.low[np.isin(control.layers, layers)] for control in decided])
        alone = "the random changes" if decided[0].name == NORM_MATCHED else decided[0].name
        whose = "both" if len(decided) > 1 else alone
        scope = "" if all(control.covers_training for control in decided) else ", given this one training"
        if first is None:
            text += f" At no layer is the drift of {method} shown to exceed that of {whose}{scope}."
        else:
            text += (
                f" The first layer at which the drift of {method} is shown to exceed that of {whose} is {first}{scope}."
            )
    if not trained:
        text += (
            f" No model was trained like {method} on shuffled labels, so how much drift any labels cause is not known."
        )
    elif undecided := [control.name for control in trained if not control.decides]:
        text += f" Whether it exceeds {', '.join(undecided)} beyond chance in training is undecided with one seed."
    return text


def equal_step_sentence(similarity: pd.DataFrame) -> str | None:
    """Whether later layers change more although all layers take steps of one relative size, by `layerprobe.onsets.falls`."""
    measure = queries.main_measure(similarity)
    drift = queries.drift_over_seeds(similarity, EQUAL_STEP, measure, queries.unit_of(similarity))
    if drift is None or len(drift.layers) < 3:
        return None
    low, high = drift.band_low[1:], drift.band_high[1:]
    name, first, last = NAMES.get(measure, measure), drift.layers[1], drift.layers[-1]
    ends = f"{drift.value[1]:.3f} at layer {first} and {drift.value[-1]:.3f} at layer {last}"
    text = f"With steps of one relative size in all layers ({_with_seeds(EQUAL_STEP, drift)}), {name} with the base is {ends}"
    if falls(low, high):
        return f"{text}: later layers change more also without larger steps of their weights."
    return f"{text}, by bands that overlap: whether later layers change more without larger steps is undecided."


def drift_sentence(similarity: pd.DataFrame, method: str, record: RunRecord) -> str | None:
    """Where a method changed the representation, and by how much at the last layer; None without CKA and cosine.

    Onset and verdicts are decided by `layerprobe.onsets` from bands that hold for all layers at once, under every seed.
    """
    unit = queries.unit_of(similarity)
    cka = queries.drift_over_seeds(similarity, method, "cka", unit)
    cosine = queries.drift_over_seeds(similarity, method, "paired_cosine", unit)
    main, name = (cka, "CKA") if cka else (cosine, "cosine")
    if main is None:
        return None
    if max(abs(1 - main.least).max(), abs(1 - main.most).max()) <= UNCHANGED:
        return f"Under {method}, no layer of the body changed: {name} with the base is exactly 1 in all of them."
    begins = main.onset(BEGINS)
    others = ", ".join(f"{_begins(main.onset(other))} at {other}" for other in THRESHOLDS if other != BEGINS)
    text = f"Under {_with_seeds(method, main)}, "
    if begins.latest is not None:
        text += (
            f"change {_begins(begins, 'begins ')} ({name} below {BEGINS} by a 95% band that holds for all layers at once; "
            f"{others})"
        )
        if (most := main.most_changed) is not None:
            text += f" and is largest at layer {most}"
    else:
        text += f"no layer's {name} is shown to be below {BEGINS} by a 95% band that holds for all layers at once ({others})"
    text += f"; at the last layer, {main.layers[-1]}, {name} with the base is {_last(main)}"
    if cosine and cka:
        baseline = queries.baseline_of("paired_cosine", record)
        unrelated = queries.drift_over_seeds(similarity, method, baseline, unit) if baseline else None
        note = f" (random rows of other examples: {unrelated.value[-1]:.2f})" if unrelated else ""
        text += f" and mean cosine {_last(cosine)}{note}"
    text += "."
    layers = {
        verdict: [layer for layer, v in zip(main.layers, main.verdicts, strict=True) if v == verdict]
        for verdict in get_args(Verdict)
    }
    if layers["kept"]:
        text += f" {_layers(layers['kept'])} kept {'its' if len(layers['kept']) == 1 else 'their'} representation ({name} above {BEGINS})."
    if layers["undecided"]:
        text += f" {_layers(layers['undecided'])}: undecided at {BEGINS}."
    return text


def _with_seeds(method: str, drift: Drift) -> str:
    return method if len(drift.seeds) == 1 else f"{method} (every one of {len(drift.seeds)} seeds)"


def _begins(onset: Onset, verb: str = "") -> str:
    """Where change begins, in words."""
    if onset.latest is None:
        return "nowhere" if onset.earliest is None else f"undecided from layer {onset.earliest}"
    if onset.earliest == onset.latest:
        return f"{verb}at layer {onset.latest}"
    return f"{verb}between layers {onset.earliest} and {onset.latest}"


def _last(drift: Drift) -> str:
    """The value at the last layer with its interval; of several seeds, their mean and range."""
    interval = f"95% interval {drift.low[-1]:.3f} to {drift.high[-1]:.3f}"
    if len(drift.seeds) == 1:
        return f"{drift.value[-1]:.3f} ({interval})"
    spread = f"{drift.least[-1]:.3f} to {drift.most[-1]:.3f} over {len(drift.seeds)} seeds"
    return f"{drift.value[-1]:.3f} ({spread}; 95% intervals of single seeds within {drift.low[-1]:.3f} to {drift.high[-1]:.3f})"


def layers_in_words(layers: Sequence[int]) -> str:
    """Layers with the word for them: layers 0-2, 4."""
    return f"layer{'s' if len(layers) > 1 else ''} {layer_ranges(layers)}"


def _layers(layers: Sequence[int]) -> str:
    return layers_in_words(layers).capitalize()


def layer_ranges(layers: Iterable[int]) -> str:
    """Layer numbers with runs shortened: 0-2, 4."""
    runs: list[list[int]] = []
    for number in sorted(int(layer) for layer in layers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
