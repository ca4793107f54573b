"""The stage that classifies the base model's pooled vectors by logistic regression, and by the majority class."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from layerprobe.context import Context
from layerprobe.stage import Json, ResolvedStudy, Stage, StudyShape
from layerprobe.stages._artifacts import rows_of, save
from layerprobe.stages._quality import ADAPTATION, PREDICTIONS, predictions_table, quality_row, tuning_row
from layerprobe.stages.capture import Capture, CaptureTrain
from layerprobe.store import Artifact, ArtifactMeta

LOGISTIC: Mapping[str, Literal["mean", "cls"]] = {"reference:logistic-mean": "mean", "reference:logistic-cls": "cls"}
"""Logistic regressions by name in the column `method`, with the unit of the vectors that they classify."""


@dataclass(frozen=True)
class Reference(Stage):
    """Quality of logistic regression on the pretrained encoder's pooled vectors, and of the majority class.

    A seed decides the held-out examples on which a penalty is chosen, as it does for a head.
    """

    name: ClassVar = "reference"
    version: ClassVar = 5
    tables: ClassVar = (ADAPTATION, PREDICTIONS)
    on_cpu: ClassVar = "logistic regression of scikit-learn, on one vector per example"

    @property
    def title(self) -> str:
        return "logistic"

    @classmethod
    def tasks(cls, shape: StudyShape) -> Iterable[Self]:
        return (cls(),)

    def parents(self) -> Mapping[str, Stage]:
        return {"train": CaptureTrain.of_base(), "test": Capture.of_base()}

    def identity(self, study: ResolvedStudy, parents: Mapping[str, ArtifactMeta]) -> Mapping[str, Json]:
        return {"seeds": list(study.study.seeds), "tuning": study.study.adaptation.tuning}

    def build(self, context: Context, parents: Mapping[str, Artifact], folder: Path) -> None:
        import numpy as np
        import pandas as pd

        from layerprobe import adaptation

        corpus, last, seeds = context.corpus, context.resolved.n_layers, context.study.seeds
        train, test = rows_of(parents["train"]), rows_of(parents["test"])
        rows, predictions = [], []
        for (name, pooling), seed in product(LOGISTIC.items(), seeds):
            found = adaptation.reference(
                train.unit(pooling, last),
                corpus.train.labels,
                test.unit(pooling, last),
                corpus.test.labels,
                seed=seed,
                tuning=context.study.adaptation.tuning,
            )
            named: dict[str, Any] = {"method": name, "seed": seed}
            measured = quality_row(found.quality) | tuning_row(found.held_out)
            rows.append({**named, "when": "after", "split": "test", **measured})
            predictions.append(predictions_table(corpus, corpus.test, found.probabilities, {**named, "split": "test"}))
        counts = np.bincount(corpus.train.labels, minlength=len(corpus.label_names))
        # The class frequencies, for every example: the best prediction without reading it.
        frequencies = np.tile(np.maximum(counts, 1e-12) / counts.sum(), (len(corpus.test), 1))
        majority = adaptation.quality(frequencies, corpus.test.labels)
        named = {"method": "reference:majority", "seed": seeds[0]}
        rows.append({**named, "when": "after", "split": "test", **quality_row(majority)})
        save(folder, "adaptation", pd.DataFrame(rows))
        save(folder, "predictions", pd.concat(predictions, ignore_index=True))
