"""The stage that reads the top latents of both sides on a few test examples, token by token."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

from layerprobe.context import Context
from layerprobe.stage import Json, LayerStage, ResolvedStudy, Stage, StudyShape, TableSpec, columns
from layerprobe.stages import associations as stored
from layerprobe.stages._artifacts import paired_rows, save
from layerprobe.stages._shown import shown_rows, token_table
from layerprobe.stages.associations import Associations
from layerprobe.stages.capture import Capture
from layerprobe.stages.encode import Encode, codes_of
from layerprobe.stages.sae import Sae
from layerprobe.store import Artifact, ArtifactMeta

TOP_LATENTS = 12
"""Latents of each layer and side whose activations are shown."""

SENTENCE_LATENTS = TableSpec(
    "sentence_latents",
    "Activations of the top latents on a few test examples: one row per method, seed, layer, dictionary, side, token and "
    "active latent.",
    columns(
        "method",
        "seed",
        "layer",
        "example_id",
        "token_index",
        latent="number of the latent",
        activation="its activation, above 0",
        side="`base` or `adapted`: side of the dictionary",
        on="`base` or `adapted`: side of the activations",
    ),
)


@dataclass(frozen=True)
class SentenceLatents(LayerStage):
    """Activations of the top latents of each side, in base and adapted; where the two are equal, in base alone."""

    name: ClassVar = "sentence-latents"
    version: ClassVar = 4
    tables: ClassVar = (SENTENCE_LATENTS,)
    on_cpu: ClassVar = "activations that `encode` stored"

    @classmethod
    def tasks(cls, shape: StudyShape) -> Iterable[Self]:
        return (cls(method, seed, layer) for method, seed in shape.runs for layer in shape.sae_layers)

    @property
    def dictionaries(self) -> tuple[Sae, Sae]:
        return Sae(layer=self.layer), Sae(self.method, self.seed, self.layer)

    @property
    def encodes(self) -> tuple[Encode, ...]:
        captures = Capture.of_base(), Capture(self.method, self.seed)
        return tuple(Encode(dictionary, capture) for dictionary in self.dictionaries for capture in captures)

    def parents(self) -> Mapping[str, Stage]:
        return {
            "base": Capture.of_base(),
            "adapted": Capture(self.method, self.seed),
            **{encode.role: encode for encode in self.encodes},
            **{f"{task.role} associations": Associations(task) for task in self.dictionaries},
        }

    def identity(self, study: ResolvedStudy, parents: Mapping[str, ArtifactMeta]) -> Mapping[str, Json]:
        return self.named

    def build(self, context: Context, parents: Mapping[str, Artifact], folder: Path) -> None:
        import numpy as np
        import pandas as pd

        stores = dict(zip(("base", "adapted"), paired_rows(parents), strict=True))
        shown = shown_rows(context, stores["base"])
        sides = ["base", "adapted"]
        if np.array_equal(stores["base"].tokens(self.number), stores["adapted"].tokens(self.number)):
            sides = ["base"]
        tables = []
        for encode in self.encodes:
            task, on = encode.dictionary, encode.capture.side
            if task.side not in sides or on not in sides:
                continue
            table = pd.read_parquet(parents[f"{task.role} associations"].folder / stored.TABLE)
            judged = table[table.judged].sort_values(["task", "effect"], ascending=False)
            top = judged["latent"].to_numpy()[:TOP_LATENTS]
            codes = codes_of(parents, encode)[:, top].tocsr()[shown].toarray()
            row, column = np.nonzero(codes)
            tokens = token_table(stores[on], shown)[["example_id", "token_index"]].iloc[row].reset_index(drop=True)
            values = pd.DataFrame({"latent": top[column], "activation": codes[row, column]})
            named = {**self.named, "side": task.side, "on": on}
            tables.append(pd.concat([tokens, values], axis=1).assign(**named))
        save(folder, "sentence_latents", pd.concat(tables, ignore_index=True))
