"""Example latents of the adapted model: those with the strongest association with a label, with a text in which each is active."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import pandas as pd

from layerprobe.record import RunRecord
from layerprobe.report import queries
from layerprobe.report.section import Tables
from layerprobe.report.sections.features.figures import method_rows
from layerprobe.report.sections.tokens.explorer import run_name

SHOWN = 3
"""Latents that are shown."""
AROUND = 8
"""Tokens before and after the one with the highest activation."""


@dataclass(frozen=True)
class ExampleLatent:
    """A latent with the text in which it is most active."""

    layer: int
    latent: int
    address: str
    """Its address among the latents to look up, which names the training run unless it is the one that is shown at first."""
    label: str
    auroc: float
    nearest: float | None
    """Cosine with the nearest direction of the base's dictionary; None where it is not known."""
    tokens: tuple[tuple[str, float], ...]
    """Tokens around the highest activation, each with its activation as a share of the highest one."""


def example_latents(tables: Tables, record: RunRecord, method: str) -> list[ExampleLatent]:
    """The latents of the last layer's adapted dictionary that are most associated with a label, of different labels first."""
    latents = method_rows(tables, record, "latents", method)
    texts = method_rows(tables, record, "latent_examples", method)
    if latents is None or texts is None:
        return []
    main = queries.main_method(queries.methods(tables, record), record)
    run = "" if method == main else f"-adapted-{quote(run_name(method, latents.seed.iloc[0]), safe='')}"
    layer = latents.layer.max()
    latents = latents[(latents.layer == layer) & (latents.side == "adapted") & latents.kind.isin(["task", "both"])]
    texts = texts[(texts.layer == layer) & (texts.side == "adapted") & (texts.choice == "top")]
    latents = latents[latents.latent.isin(texts.latent) & latents.auroc.notna()]
    latents = latents.sort_values("effect", ascending=False, kind="stable")
    chosen = latents.assign(repeated=latents.groupby("label").cumcount()).sort_values("repeated", kind="stable")
    found = []
    row: Any
    for row in chosen.head(SHOWN).itertuples():
        nearest = float(row.nearest_cosine)
        found.append(
            ExampleLatent(
                int(layer),
                int(row.latent),
                f"latent-{layer}-{row.latent}{run}",
                str(row.label),
                float(row.auroc),
                nearest if nearest == nearest else None,
                _tokens(tables, texts[texts.latent == row.latent]),
            )
        )
    return found


def _tokens(tables: Tables, rows: pd.DataFrame) -> tuple[tuple[str, float], ...]:
    """The tokens around the highest activation of the example with the highest one, as they are in its text if it is known."""
    rows = rows[rows["rank"] == rows["rank"].min()]
    rows = rows[rows.example_id == rows.example_id.iloc[0]].sort_values("token_index")
    reading = next((name for name in ("adapted", "base") if name in rows and rows[name].notna().any()), None)
    values = rows[reading].fillna(0).clip(lower=0) if reading else pd.Series(0.0, rows.index)
    most, top = int(values.to_numpy().argmax()), float(values.max())
    shown = slice(max(0, most - AROUND), most + AROUND + 1)
    shares = (values / top if top > 0 else values).iloc[shown].astype(float)
    return tuple(zip(_written(tables, rows.iloc[shown]), shares, strict=True))


def _written(tables: Tables, rows: pd.DataFrame) -> list[str]:
    """Tokens of one example as cut from its text; those without a known place as the tokenizer writes them."""
    spans, examples = queries.having(tables, "tokens", "start", "end"), queries.having(tables, "examples", "text")
    if spans is None or examples is None:
        return [str(token) for token in rows.token]
    example = rows.example_id.iloc[0]
    texts, spans = examples[examples.example_id == example].text, spans[spans.example_id == example]
    places: Any = spans[spans.start.notna()].set_index("token_index")
    cut = {i: str(texts.iloc[0])[int(row.start) : int(row.end)] for i, row in places.iterrows()} if len(texts) else {}
    return [cut.get(index) or str(token) for index, token in zip(rows.token_index, rows.token, strict=True)]
