"""The stage that measures how much of each layer's variance lies between labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

from layerprobe.context import Context
from layerprobe.stage import Json, ModelStage, ResolvedStudy, Stage, StudyShape, TableSpec, columns
from layerprobe.stages._artifacts import paired_rows, save
from layerprobe.stages._layers import Layers, RowSet, varying_layers
from layerprobe.stages.capture import Capture
from layerprobe.store import Artifact, ArtifactMeta

LABEL_VARIANCE = TableSpec(
    "label_variance",
    "Share of each layer's variance that lies between labels: one row per method, seed, unit, side and layer.",
    columns(
        "method",
        "seed",
        "unit",
        "layer",
        "n",
        side="`base`, `adapted`, or `difference` (adapted minus base)",
        share="between-label share of the variance, 0 to 1, examples weighted equally; for `difference` -1 to 1",
        expected="mean of the share over all permutations of the labels of whole examples of similar length",
        excess="share minus its mean under permuted labels",
        ci_low="lower end of the 95% jackknife interval of the excess; too wide where there is no label variance",
        ci_high="upper end of the 95% jackknife interval of the excess",
        p="one-sided p of the excess by permutation, for this layer alone",
        p_simultaneous="one-sided p of the excess, valid for all layers at once: permutation maximum of standardised excess",
        critical="excess above which `p_simultaneous` is at most .05; missing where base and adapted are equal",
        lower_simultaneous="lower end of a one-sided 95% jackknife interval that holds for all layers at once",
        exceeds="whether `p_simultaneous` is at most .05 and, for `difference`, `lower_simultaneous` above 0",
        permutations="number of permutations, the same ones for all layers and both sides",
    ),
)


@dataclass(frozen=True)
class LabelVariance(ModelStage):
    """Share of variance between labels by layer, base, adapted and their difference.

    All units are measured on the examples whose tokens are stored, since their lengths are known there.
    """

    name: ClassVar = "label-variance"
    version: ClassVar = 1
    tables: ClassVar = (LABEL_VARIANCE,)
    first_guess: ClassVar = 4.0
    accelerator: ClassVar = True

    @classmethod
    def tasks(cls, shape: StudyShape) -> Iterable[Self]:
        return (cls(method, seed) for method, seed in shape.runs)

    def parents(self) -> Mapping[str, Stage]:
        return {"base": Capture.of_base(), "adapted": Capture(self.method, self.seed)}

    def identity(self, study: ResolvedStudy, parents: Mapping[str, ArtifactMeta]) -> Mapping[str, Json]:
        return {**self.named, "analysis_seed": study.study.seeds[0], "units": list(study.study.similarity.units)}

    def build(self, context: Context, parents: Mapping[str, Artifact], folder: Path) -> None:
        import numpy as np
        import pandas as pd

        from layerprobe.internals import label_variance

        stores = paired_rows(parents)
        lengths = np.bincount(stores[0].groups("token"))
        labels, tables = context.corpus.test.labels[: len(lengths)], []
        for unit in context.study.similarity.units:
            example = stores[0].groups(unit)
            keep = slice(None) if unit == "token" else slice(len(lengths))
            layers = sorted(set.intersection(*(set(varying_layers(store, unit)) for store in stores)))
            rows = RowSet("all", layers, kept=dict.fromkeys(layers, keep))
            base, adapted = (
                label_variance(
                    Layers(store, unit, layers, rows),
                    example[keep],
                    labels,
                    lengths,
                    seed=context.seed,
                    device=context.device,
                )
                for store in stores
            )
            sides = {"base": base, "adapted": adapted, "difference": adapted.minus(base)}
            tables += [result.table().assign(unit=unit, side=side) for side, result in sides.items()]
        save(folder, "label_variance", pd.concat(tables, ignore_index=True).assign(**self.named))
