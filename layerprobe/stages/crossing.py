"""The stage that finds, for each method, the layers at which the adapted share of task latents exceeds the base's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

from layerprobe.context import Context
from layerprobe.stage import Stage, StudyShape, TableSpec, columns
from layerprobe.stages._artifacts import save
from layerprobe.stages.latents import Latents
from layerprobe.store import Artifact

CROSSING = TableSpec(
    "crossing",
    "The first layer at which the adapted share of task latents exceeds the base's interval: one row per method and quantity.",
    columns(
        "method",
        quantity="`share_task` (of latents) or `mass_task` (of activations)",
        layer="median over the runs that cross; missing if none does",
        layer_low="lowest layer over these runs",
        layer_high="highest layer over these runs",
        crossed="number of runs that cross",
        runs="number of runs: pairs of a training seed and a dictionary seed",
        verdict="`crosses`, `never`, `flat` (both sides are equal) or `undefined`",
        note="which seeds there is only one of; else empty",
    ),
)


@dataclass(frozen=True)
class Crossing(Stage):
    """The first layer, per method, at which the share of task latents of the adapted model is beyond the base's."""

    latents: tuple[Latents, ...]

    name: ClassVar = "crossing"
    version: ClassVar = 2
    tables: ClassVar = (CROSSING,)

    @property
    def title(self) -> str:
        return "every method"

    @classmethod
    def tasks(cls, shape: StudyShape) -> Iterable[Self]:
        if latents := tuple(Latents.tasks(shape)):
            yield cls(latents)

    def parents(self) -> Mapping[str, Stage]:
        return {task.id: task for task in self.latents}

    def build(self, context: Context, parents: Mapping[str, Artifact], folder: Path) -> None:
        import pandas as pd

        from layerprobe import sae

        table = pd.concat([parent.table("latent_shares") for parent in parents.values()], ignore_index=True)
        seeds = {"first": 0, "second-seed": 1}
        rows = table[table.dictionary.isin(seeds)].assign(sae_seed=lambda t: t.dictionary.map(seeds))
        both = rows.groupby(["method", "seed", "layer", "sae_seed"]).side.transform("nunique") == 2
        save(folder, "crossing", sae.crossing(rows[both]))
