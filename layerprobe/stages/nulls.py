"""The stage that measures similarity under shuffled examples, the null of no correspondence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

from layerprobe.context import Context
from layerprobe.errors import MeasureError
from layerprobe.stage import Json, ModelStage, ResolvedStudy, Stage, StudyShape, TableSpec, columns
from layerprobe.stages._artifacts import paired_rows, save
from layerprobe.stages._layers import Layers, equal, varying_layers
from layerprobe.stages.capture import Capture
from layerprobe.store import Artifact, ArtifactMeta

CALIBRATED = ["observed", "calibrated", "p", "p_some"]
COLUMNS = [
    *("layer", "measure", "value", "low", "high", "draws", "n", *CALIBRATED),
    *("method", "seed", "unit", "null", "null_kind"),
]

SIMILARITY_NULLS = TableSpec(
    "similarity_nulls",
    "Similarity where there is no effect of the method: of shuffled examples, of models that differ in their seed alone, or of "
    "base with random changes of its weights.",
    columns(
        "method",
        "seed",
        "unit",
        "layer",
        "measure",
        "n",
        value="mean of the draws",
        low="lowest draw; for `seed` the lower end of the 95% interval over examples",
        high="highest draw; for `seed` the upper end of the 95% interval over examples",
        draws="number of draws: shuffles, random changes, or 1 for a pair of seeds",
        null="`shuffled-texts`, `norm-matched`, or `seed-` and the other seed",
        null_kind="`shuffled-texts` (examples permuted among those of equal length), `norm-matched` (base with random changes of "
        "its weights, of the norms of the method's) or `seed` (two seeds of one method)",
        observed="value of the method on the examples that are shuffled; missing for other nulls, as are the next three",
        calibrated="value relative to the shuffles: 0 at or below their 95th percentile, 1 for a perfect match (Groeger et "
        "al. 2026)",
        p="one-sided p-value of the value among the shuffles",
        p_some="one-sided p-value of the largest value over layers among those of the shuffles: for the claim that some layer is similar",
    ),
)


@dataclass(frozen=True)
class Nulls(ModelStage):
    """Each measure in each changed layer when whole examples are permuted among examples of equal length."""

    name: ClassVar = "nulls"
    version: ClassVar = 4
    tables: ClassVar = (SIMILARITY_NULLS,)
    first_guess: ClassVar = 8.0
    accelerator: ClassVar = True

    @classmethod
    def tasks(cls, shape: StudyShape) -> Iterable[Self]:
        return (cls(method, seed) for method, seed in shape.runs)

    def parents(self) -> Mapping[str, Stage]:
        return {"base": Capture.of_base(), "adapted": Capture(self.method, self.seed)}

    def identity(self, study: ResolvedStudy, parents: Mapping[str, ArtifactMeta]) -> Mapping[str, Json]:
        similarity = study.study.similarity
        return {
            **self.named,
            "measures": list(similarity.measures),
            "units": list(similarity.units),
            "shuffles": similarity.shuffles,
        }

    def build(self, context: Context, parents: Mapping[str, Artifact], folder: Path) -> None:
        import pandas as pd

        from layerprobe.similarity import shuffled

        base, adapted = paired_rows(parents)
        settings = context.study.similarity
        tables = []
        for unit in settings.units:
            layers = [layer for layer in varying_layers(base, unit) if not equal(base, adapted, unit, layer)]
            if not layers:
                continue
            try:
                table = shuffled(
                    Layers(base, unit, layers, device=context.device),
                    Layers(adapted, unit, layers, device=context.device),
                    base.groups(unit),
                    measures=settings.measures,
                    draws=settings.shuffles,
                    seed=self.number_of_seed,
                )
            except MeasureError:
                continue  # too few examples of equal length: this unit has no such null
            tables.append(table.assign(**self.named, unit=unit, null="shuffled-texts", null_kind="shuffled-texts"))
        table = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=COLUMNS)
        save(folder, "similarity_nulls", table)
