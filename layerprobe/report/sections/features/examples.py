"""Example latents of the adapted model: those with the strongest association with a label, with a text in which each is active."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd

from layerprobe.record import RunRecord
from layerprobe.report.section import Tables
from layerprobe.report.sections.features.figures import method_rows

SHOWN = 3
"""Latents that are shown."""
AROUND = 8
"""Tokens before and after the one with the highest activation."""


@dataclass(frozen=True)
class ExampleLatent:
    """A latent with the text in which it is most active."""

    layer: int
    latent: int
    label: str
    auroc: float
    nearest: float | None
    """Cosine with the nearest direction of the base's dictionary; None where it is not known."""
    tokens: tuple[tuple[str, float], ...]
    """Tokens around the highest activation, each with its activation as a share of the highest one."""

    @property
    def anchor(self) -> str:
        """Its address among the latents to look up."""
        return f"latent-{self.layer}-{self.latent}"


def example_latents(tables: Tables, record: RunRecord, method: str) -> list[ExampleLatent]:
    """The latents of the last layer's adapted dictionary that are most associated with a label, of different labels first."""
    latents = method_rows(tables, record, "latents", method)
    texts = method_rows(tables, record, "latent_examples", method)
    if latents is None or texts is None:
        return []
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
                str(row.label),
                float(row.auroc),
                nearest if nearest == nearest else None,
                _tokens(texts[texts.latent == row.latent]),
            )
        )
    return found


def _tokens(rows: pd.DataFrame) -> tuple[tuple[str, float], ...]:
    """The tokens around the highest activation of the example with the highest one."""
    rows = rows[rows["rank"] == rows["rank"].min()]
    rows = rows[rows.example_id == rows.example_id.iloc[0]].sort_values("token_index")
    reading = next((name for name in ("adapted", "base") if name in rows and rows[name].notna().any()), None)
    values = rows[reading].fillna(0).clip(lower=0) if reading else pd.Series(0.0, rows.index)
    most, top = int(values.to_numpy().argmax()), float(values.max())
    start = max(0, most - AROUND)
    shares = values / top if top > 0 else values
    shown = slice(start, most + AROUND + 1)
    return tuple(zip(rows.token.astype(str).iloc[shown], shares.iloc[shown].astype(float), strict=True))
