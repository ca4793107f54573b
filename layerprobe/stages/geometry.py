"""The stage that describes the geometry of each layer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from layerprobe.context import Context
from layerprobe.device import for_device
from layerprobe.stage import Json, ModelStage, ResolvedStudy, Stage, StudyShape, TableSpec, columns
from layerprobe.stages._artifacts import rows_of, save
from layerprobe.stages._layers import equal, varying_layers
from layerprobe.stages.capture import Capture
from layerprobe.store import Artifact, ArtifactMeta

if TYPE_CHECKING:
    from layerprobe.activations import ActivationStore

MOST_ROWS = 1000
"""Rows of whole examples from which the intrinsic dimension is estimated."""
BASE_TABLE = "geometry.parquet"

GEOMETRY = TableSpec(
    "geometry",
    "Geometry of each layer's rows: one row per method, seed, unit, side, layer and statistic.",
    columns(
        "method",
        "seed",
        "unit",
        "side",
        "layer",
        "n",
        measure="`anisotropy` (mean cosine of two rows, -1 to 1), `effective_rank` and `participation_ratio` (1 to the "
        "width), or `intrinsic_dimension` (TwoNN)",
        value="value of the statistic",
        ci_low="lower end of its 95% interval over examples",
        ci_high="upper end of its 95% interval over examples",
        n_rows="number of rows that the value is computed on",
    ),
)


@dataclass(frozen=True)
class Geometry(ModelStage):
    """Anisotropy, effective rank, participation ratio and intrinsic dimension of each layer, base and adapted.

    A layer that equals the base's has the base's values.
    """

    name: ClassVar = "geometry"
    version: ClassVar = 3
    tables: ClassVar = (GEOMETRY,)
    first_guess: ClassVar = 6.0
    accelerator: ClassVar = True

    @classmethod
    def tasks(cls, shape: StudyShape) -> Iterable[Self]:
        return (cls(method, seed) for method, seed in shape.runs)

    def parents(self) -> Mapping[str, Stage]:
        if self.method is None:
            return {"rows": Capture.of_base()}
        return {
            "rows": Capture(self.method, self.seed),
            "base rows": Capture.of_base(),
            "base geometry": Geometry.of_base(),
        }

    def identity(self, study: ResolvedStudy, parents: Mapping[str, ArtifactMeta]) -> Mapping[str, Json]:
        named = {} if self.method is None else self.named
        return {**named, "analysis_seed": study.study.seeds[0], "units": list(study.study.similarity.units)}

    def build(self, context: Context, parents: Mapping[str, Artifact], folder: Path) -> None:
        import pandas as pd

        from layerprobe.similarity import geometry

        def describe(of: ActivationStore, unit: Any, layer: int) -> pd.DataFrame:
            values = for_device(of.unit(unit, layer), context.device)
            table = geometry.describe(values, of.groups(unit), max_rows=MOST_ROWS, seed=context.seed)
            return table.assign(layer=layer, unit=unit)

        rows, units = rows_of(parents["rows"]), context.study.similarity.units
        if self.method is None:
            tables = [describe(rows, unit, layer) for unit in units for layer in varying_layers(rows, unit)]
            pd.concat(tables, ignore_index=True).to_parquet(folder / BASE_TABLE, index=False)
            return
        base_rows, base = rows_of(parents["base rows"]), pd.read_parquet(parents["base geometry"].folder / BASE_TABLE)
        tables = [base.assign(side="base")]
        for unit in units:
            for layer in varying_layers(base_rows, unit):
                if equal(base_rows, rows, unit, layer):
                    table = base[(base.unit == unit) & (base.layer == layer)]
                else:
                    table = describe(rows, unit, layer)
                tables.append(table.assign(side="adapted"))
        save(folder, "geometry", pd.concat(tables, ignore_index=True).assign(**self.named))
