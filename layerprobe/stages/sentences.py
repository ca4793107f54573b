"""The stage that measures the change of each token of a few test examples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

from layerprobe.context import Context
from layerprobe.stage import Json, ModelStage, ResolvedStudy, Stage, StudyShape, TableSpec, columns
from layerprobe.stages._artifacts import paired_rows, save
from layerprobe.stages._shown import shown_rows, token_table
from layerprobe.stages.capture import Capture
from layerprobe.store import Artifact, ArtifactMeta

SENTENCES = TableSpec(
    "sentences",
    "Change of each token of a few test examples: one row per method, seed, layer and token.",
    columns(
        "method",
        "seed",
        "layer",
        "example_id",
        "token_index",
        "token",
        "special",
        change="1 minus the cosine of the token's base and adapted activations: 0 to 2",
    ),
)


@dataclass(frozen=True)
class Sentences(ModelStage):
    """Change of each token in each layer: 1 minus the cosine of base and adapted."""

    name: ClassVar = "sentences"
    version: ClassVar = 3
    tables: ClassVar = (SENTENCES,)
    on_cpu: ClassVar = "cosines of the tokens of a few sentences"

    @classmethod
    def tasks(cls, shape: StudyShape) -> Iterable[Self]:
        return (cls(method, seed) for method, seed in shape.runs)

    def parents(self) -> Mapping[str, Stage]:
        return {"base": Capture.of_base(), "adapted": Capture(self.method, self.seed)}

    def identity(self, study: ResolvedStudy, parents: Mapping[str, ArtifactMeta]) -> Mapping[str, Json]:
        return self.named

    def build(self, context: Context, parents: Mapping[str, Artifact], folder: Path) -> None:
        import numpy as np
        import pandas as pd

        base, adapted = paired_rows(parents)
        shown = shown_rows(context, base)
        tables = []
        for layer in base.layers:
            x, y = (np.asarray(store.tokens(layer)[shown], dtype=np.float64) for store in (base, adapted))
            cosine = (x * y).sum(1) / (np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1))
            tables.append(token_table(base, shown).assign(layer=layer, change=1 - np.clip(cosine, -1, 1)))
        save(folder, "sentences", pd.concat(tables, ignore_index=True).assign(**self.named))
