"""The stage that compares models of one method that differ in their seed alone."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from layerprobe.adaptation import Method
from layerprobe.context import Context
from layerprobe.stage import Json, ResolvedStudy, Stage, StudyShape
from layerprobe.stages._artifacts import paired_rows, save
from layerprobe.stages._layers import Layers, varying_layers
from layerprobe.stages.capture import Capture
from layerprobe.stages.nulls import SIMILARITY_NULLS
from layerprobe.store import Artifact, ArtifactMeta


@dataclass(frozen=True)
class Seeds(Stage):
    """Similarity of two models adapted alike but for the seed: drift beyond it is more than chance in training."""

    method: Method
    seeds: tuple[int, ...]

    name: ClassVar = "seeds"
    version: ClassVar = 3
    tables: ClassVar = (SIMILARITY_NULLS,)
    accelerator: ClassVar = True
    on_cpu: ClassVar = "linear predictivity, by ridge regression of scikit-learn"

    @property
    def title(self) -> str:
        return self.method.name

    @classmethod
    def tasks(cls, shape: StudyShape) -> Iterable[Self]:
        for method in shape.methods:
            if len(shape.seeds(method)) > 1 and method.changes_body:
                yield cls(method, shape.seeds(method))

    def parents(self) -> Mapping[str, Stage]:
        return {str(seed): Capture(self.method, seed) for seed in self.seeds}

    def identity(self, study: ResolvedStudy, parents: Mapping[str, ArtifactMeta]) -> Mapping[str, Json]:
        similarity = study.study.similarity
        measures, units = list(similarity.measures), list(similarity.units)
        return {"method": self.method.name, "seed": self.seeds[0], "measures": measures, "units": units}

    def build(self, context: Context, parents: Mapping[str, Artifact], folder: Path) -> None:
        import pandas as pd

        from layerprobe.similarity import compare

        settings, tables = context.study.similarity, []
        for seed, other in itertools.pairwise(self.seeds):
            first, second = paired_rows(parents, str(seed), str(other))
            for unit in settings.units:
                layers = varying_layers(first, unit)
                table = compare(
                    Layers(first, unit, layers, device=context.device),
                    Layers(second, unit, layers, device=context.device),
                    first.groups(unit),
                    measures=settings.measures,
                    seed=seed,
                    leave_out_undefined=True,
                )
                table.attrs.clear()
                table = table.rename(columns={"ci_low": "low", "ci_high": "high"}).drop(
                    columns=["n_rows", "band_low", "band_high"]
                )
                named: dict[str, Any] = {"method": self.method.name, "seed": seed, "unit": unit, "draws": 1}
                tables.append(table.assign(**named, null=f"seed-{other}", null_kind="seed"))
        save(folder, "similarity_nulls", pd.concat(tables, ignore_index=True))
