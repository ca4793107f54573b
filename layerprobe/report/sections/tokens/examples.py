"""Examples token by token: the change of each token by layer, predicted labels, and the activations of a few latents."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from layerprobe.report import queries
from layerprobe.report.section import Tables
from layerprobe.report.sections.tokens.explorer import KEYS, rounded, run_name
from layerprobe.report.sections.tokens.texts import Texts

MAX_COLOURS = 300
"""Latents by which examples can be coloured, over all methods, seeds, layers and sides."""
MAX_CHANGES = 100_000
"""Changes of tokens on the page, over all examples, methods, seeds and layers."""
LOGISTIC = {
    "reference:logistic-mean": "logistic regression on the mean over tokens of the frozen base encoder",
    "reference:logistic-cls": "logistic regression on the first token of the frozen base encoder",
}
"""Classifiers before adaptation, with their names."""


def examples_by_token(tables: Tables, texts: Texts) -> dict[str, Any] | None:
    """Examples with the change of each token by layer and the activations of a few latents; None without any.

    Returns:
        `shown` (number of each text; other values refer to its position in this list), `layers`, `change` (by training run:
        of each shown example and layer, thousandths by token; an empty list for no change), `latents`, and `predicted`.
    """
    sentences = queries.having(tables, "sentences")
    if sentences is None:
        return None
    layers = sorted(sentences.layer.unique().tolist())
    ids = sentences.example_id.unique()
    kept = max(1, min(len(ids), MAX_CHANGES * len(ids) // len(sentences)))
    numbers = {key: texts.number(key) for key in ids[np.linspace(0, len(ids) - 1, kept).round().astype(int)]}
    shown = [key for key, number in numbers.items() if number is not None]
    places = {key: place for place, key in enumerate(shown)}
    rows = sentences[sentences.example_id.isin(shown)].sort_values("token_index", kind="stable")
    change: dict[str, Any] = {}
    for (method, seed, key, layer), part in rows.groupby(["method", "seed", "example_id", "layer"], sort=False):
        of_run = change.setdefault(run_name(method, seed), [[[] for _ in layers] for _ in shown])
        thousandths = (1000 * part.change).round().astype(int)
        of_run[places[key]][layers.index(layer)] = thousandths.tolist() if thousandths.any() else []
    return {
        "shown": [numbers[key] for key in shown],
        "of": len(ids),
        "layers": layers,
        "change": change,
        "latents": _latents(tables, places),
        "predicted": _predicted(tables, shown, list(change), texts),
    }


def _predicted(tables: Tables, shown: list[Any], runs: list[str], texts: Texts) -> dict[str, Any] | None:
    """Predicted labels of the shown examples before and after adaptation, by training run; None without any."""
    predictions = queries.having(tables, "predictions")
    if predictions is None:
        return None
    test = predictions[predictions.split == "test"]
    right = (test.label == test.predicted).groupby(test.method).mean()
    before = max((name for name in LOGISTIC if name in right.index), key=lambda name: right[name], default=None)
    by_run = {key: part.set_index("example_id").predicted for key, part in test.groupby(["method", "seed"])}
    seeds = {run_name(method, seed): (method, seed) for method, seed in by_run}
    known = [run for run in runs if run in seeds]
    if before is None or not known:
        return None

    def numbered(predicted: pd.Series) -> list[int | None]:
        return [None if label != label else texts.label(label) for label in predicted.reindex(shown)]

    first = next(key for key in by_run if key[0] == before)
    return {
        "classifier": LOGISTIC[before],
        "before": {run: numbered(by_run.get((before, seeds[run][1]), by_run[first])) for run in known},
        "after": {run: numbered(by_run[seeds[run]]) for run in known},
    }


def _latents(tables: Tables, places: dict[Any, int]) -> list[dict[str, Any]]:
    """Activations of the latents with the strongest association of each group."""
    activations, latents = queries.having(tables, "sentence_latents"), queries.having(tables, "latents")
    if activations is None or latents is None:
        return []
    activations = activations[activations.example_id.isin(list(places))]
    keys, layer = [*KEYS, "latent"], ["method", "seed", "layer"]
    colours = latents.merge(activations[keys].drop_duplicates(), on=keys)
    groups = colours.sort_values(["task", "effect"], ascending=False, kind="stable").groupby(KEYS, sort=False)
    by_latent = dict(iter(activations.groupby(keys, sort=False)))
    sides = activations.groupby(layer)[["side", "on"]].nunique().max(axis=1)
    result = []
    row: Any
    for row in groups.head(max(1, MAX_COLOURS // max(1, len(groups)))).itertuples():
        rows = by_latent[tuple(getattr(row, key) for key in keys)]
        values: dict[str, Any] = {}
        for (example, on), part in rows.groupby(["example_id", "on"], sort=False):
            pairs = zip(part.token_index.tolist(), part.activation, strict=True)
            flat = [number for index, value in pairs for number in (index, rounded(value, 3))]
            values.setdefault(str(places[example]), {})[on] = flat
        label = f", {row.label} (AUROC {row.auroc:.2f})" if row.auroc == row.auroc else ""
        result.append(
            {
                "run": run_name(row.method, row.seed),
                "layer": row.layer,
                "side": row.side,
                "latent": row.latent,
                "name": f"{row.side} latent {row.latent}{label}",
                "same": bool(sides[row.method, row.seed, row.layer] == 1),
                "top": rounded(rows.activation.max(), 3),
                "values": values,
            }
        )
    return result
