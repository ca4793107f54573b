"""The stage that measures an adapted model on out-of-domain sets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

from layerprobe.context import Context, label_order
from layerprobe.stage import Json, ModelStage, ResolvedStudy, Stage, StudyShape
from layerprobe.stages._artifacts import save
from layerprobe.stages._quality import ADAPTATION, PREDICTIONS, predictions_table, quality_row
from layerprobe.stages.adapt import Adapt
from layerprobe.stages.frozen_blocks import adapt_config
from layerprobe.store import Artifact, ArtifactMeta


@dataclass(frozen=True)
class Outside(ModelStage):
    """Quality on the out-of-domain sets; a set that has some of the labels asks for a choice among those."""

    name: ClassVar = "outside"
    version: ClassVar = 1
    accelerator: ClassVar = True
    tables: ClassVar = (ADAPTATION, PREDICTIONS)

    @classmethod
    def tasks(cls, shape: StudyShape) -> Iterable[Self]:
        return (cls(method, seed) for method, seed in shape.runs) if shape.study.data.ood else ()

    def parents(self) -> Mapping[str, Stage]:
        return {"adapt": Adapt(self.method, self.seed)}

    def identity(self, study: ResolvedStudy, parents: Mapping[str, ArtifactMeta]) -> Mapping[str, Json]:
        sets = [[ood.name, ood.fingerprint, list(ood.classes)] for ood in study.ood]
        return {**self.named, "sets": sets, "max_length": study.study.data.max_length}

    def build(self, context: Context, parents: Mapping[str, Artifact], folder: Path) -> None:
        import numpy as np
        import pandas as pd

        from layerprobe import adaptation

        model, order = context.adapted_model(parents["adapt"]), label_order(parents["adapt"])
        rows, predictions, config = [], [], adapt_config(context.resolved)
        for ood in context.ood:
            probabilities = adaptation.probabilities(model, context.encoder, ood.examples, config)[:, order]
            allowed = np.isin(np.arange(probabilities.shape[1]), ood.classes)
            # The smallest positive number keeps a row from being all zero.
            probabilities = np.where(allowed, probabilities + np.finfo(np.float64).tiny, 0)
            probabilities /= probabilities.sum(1, keepdims=True)
            named = {**self.named, "split": ood.name}
            quality = adaptation.quality(probabilities, ood.examples.labels, classes=ood.classes)
            rows.append({**named, "when": "after", **quality_row(quality)})
            predictions.append(predictions_table(context.corpus, ood.examples, probabilities, named))
        save(folder, "adaptation", pd.DataFrame(rows))
        save(folder, "predictions", pd.concat(predictions, ignore_index=True))
