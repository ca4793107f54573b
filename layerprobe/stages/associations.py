"""The stage that tests which latents are associated with a label or with a general property of tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from layerprobe.context import Context
from layerprobe.stage import Json, ResolvedStudy, Stage
from layerprobe.stages._artifacts import rows_of
from layerprobe.stages.capture import Capture
from layerprobe.stages.encode import Encode, codes_of
from layerprobe.stages.sae import Sae
from layerprobe.store import Artifact, ArtifactMeta

TABLE, SHARES, EFFECT = "associations.parquet", "shares.parquet", "label_effect.parquet"


@dataclass(frozen=True)
class Associations(Stage):
    """Associations of each latent of a dictionary on its own side's test tokens, and their number under permuted labels.

    `EFFECT` holds the mean squared label effect, first of all examples, then without each fold.
    """

    dictionary: Sae

    name: ClassVar = "associations"
    version: ClassVar = 3
    keyed_by_content: ClassVar = True
    first_guess: ClassVar = 4.0
    on_cpu: ClassVar = "counts over sparse activations"

    @property
    def title(self) -> str:
        return self.dictionary.title

    @property
    def capture(self) -> Capture:
        return Capture(self.dictionary.method, self.dictionary.seed)

    @property
    def encode(self) -> Encode:
        return Encode(self.dictionary, self.capture)

    def parents(self) -> Mapping[str, Stage]:
        return {"dictionary": self.dictionary, "rows": self.capture, self.encode.role: self.encode}

    def identity(self, study: ResolvedStudy, parents: Mapping[str, ArtifactMeta]) -> Mapping[str, Json]:
        return {
            "dictionary": parents["dictionary"].key,
            "rows": parents["rows"].content[str(self.dictionary.layer)],
            "seed": study.study.seeds[0],
            **study.texts,
        }

    def build(self, context: Context, parents: Mapping[str, Artifact], folder: Path) -> None:
        import pandas as pd

        from layerprobe import sae

        store, codes = rows_of(parents["rows"]), codes_of(parents, self.encode)
        example = store.groups("token")
        labels = context.corpus.test.labels[: int(example.max()) + 1]
        table = sae.associations(codes, store.rows, labels, context.corpus.label_names)
        null = sae.label_null(codes, example, labels, seed=context.seed)
        table.to_parquet(folder / TABLE, index=False)
        sae.latent_shares(table, codes, example, null).to_parquet(folder / SHARES, index=False)
        effect = sae.label_effect(codes, example, labels)
        pd.DataFrame({"effect": [effect.value, *effect.replicates]}).to_parquet(folder / EFFECT, index=False)
