"""Examples token by token: the change of each token by layer, and the activations of a few latents."""

from __future__ import annotations

from typing import Any

from layerprobe.report import queries
from layerprobe.report.section import Tables
from layerprobe.report.sections.tokens.explorer import KEYS, rounded, run_name

MAX_COLOURS = 600
"""Latents by which examples can be coloured, over all methods, seeds, layers and sides."""


def examples_by_token(tables: Tables) -> dict[str, Any] | None:
    """Examples with the change of each token by layer and the activations of a few latents; None without any."""
    sentences = queries.having(tables, "sentences")
    if sentences is None:
        return None
    labels = tables["examples"].set_index("example_id")["label"]
    one = sentences.drop_duplicates(["example_id", "token_index"])
    change: dict[str, Any] = {}
    for (method, seed, key, layer), rows in sentences.groupby(["method", "seed", "example_id", "layer"], sort=False):
        by_example = change.setdefault(run_name(method, seed), {})
        by_example.setdefault(key, {})[str(layer)] = [round(float(value), 3) + 0.0 for value in rows.change]
    return {
        "examples": {
            key: {"tokens": rows.token.tolist(), "label": str(labels[key])}
            for key, rows in one.groupby("example_id", sort=False)
        },
        "change": change,
        "layers": sorted(sentences.layer.unique().tolist()),
        "latents": _latents(tables),
    }


def _latents(tables: Tables) -> list[dict[str, Any]]:
    """Activations of the latents with the strongest association of each group."""
    activations, latents = queries.having(tables, "sentence_latents"), queries.having(tables, "latents")
    if activations is None or latents is None:
        return []
    keys, layer = [*KEYS, "latent"], ["method", "seed", "layer"]
    shown = latents.merge(activations[keys].drop_duplicates(), on=keys)
    groups = shown.sort_values(["task", "effect"], ascending=False, kind="stable").groupby(KEYS, sort=False)
    by_latent = dict(iter(activations.groupby(keys, sort=False)))
    sides = activations.groupby(layer)[["side", "on"]].nunique().max(axis=1)
    result = []
    row: Any
    for row in groups.head(max(1, MAX_COLOURS // len(groups))).itertuples():
        rows = by_latent[tuple(getattr(row, key) for key in keys)]
        values: dict[str, Any] = {}
        for (example, on), part in rows.groupby(["example_id", "on"], sort=False):
            pairs = zip(part.token_index.tolist(), part.activation, strict=True)
            values.setdefault(str(example), {})[on] = [[index, rounded(value, 3)] for index, value in pairs]
        label = f", {row.label} (AUROC {row.auroc:.2f})" if row.auroc == row.auroc else ""
        result.append(
            {
                "run": run_name(row.method, row.seed),
                "layer": row.layer,
                "name": f"{row.side} latent {row.latent}{label}",
                "same": bool(sides[row.method, row.seed, row.layer] == 1),
                "top": float(rows.activation.max()),
                "values": values,
            }
        )
    return result
