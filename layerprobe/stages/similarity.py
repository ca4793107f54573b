"""The stage that compares base and adapted activations layer by layer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from layerprobe.context import Context
from layerprobe.stage import Json, ModelStage, ResolvedStudy, Stage, StudyShape, TableSpec, columns
from layerprobe.stages._artifacts import paired_rows, save
from layerprobe.stages._layers import Layers, measures_of, row_sets, varying_layers
from layerprobe.stages.capture import Capture
from layerprobe.store import Artifact, ArtifactMeta

if TYPE_CHECKING:
    import pandas as pd

SIMILARITY = TableSpec(
    "similarity",
    "Similarity of base and adapted activations at one layer: one row per method, seed, unit, set of rows, layer and measure.",
    columns(
        "method",
        "seed",
        "unit",
        "layer",
        "measure",
        "n",
        rows="`all`, tokens without special ones (`no-special`), without the 0.1% of largest norm on each side "
        "(`no-outliers`), or without the leading principal components of either side (`no-leading-directions`)",
        value="value of the measure, base against adapted",
        ci_low="lower end of its 95% interval over examples",
        ci_high="upper end of its 95% interval over examples",
        band_low="lower end of its 95% band over examples, which holds for all layers at once (jackknife errors, Student's t at "
        "the level of Sidak)",
        band_high="upper end of this band",
        n_rows="number of rows that the value is computed on",
        directions_removed="number of directions that are projected out of the rows: 1% of the width for each side",
    ),
)
SIMILARITY_GRID = TableSpec(
    "similarity_grid",
    "Similarity of every layer with every layer, within and across base and adapted: one row per pair of layers.",
    columns(
        "method",
        "seed",
        "unit",
        "measure",
        "n",
        side_a="`base` or `adapted`: side of the first layer",
        layer_a="first layer",
        side_b="`base` or `adapted`: side of the second layer",
        layer_b="second layer",
        value="value of the measure, first layer against second; missing where it is undefined",
    ),
)
SIMILARITY_LEFT_OUT = TableSpec(
    "similarity_left_out",
    "Measures that are undefined at a layer, and so are not in `similarity`.",
    columns(
        "method",
        "seed",
        "unit",
        "layer",
        "measure",
        rows="set of rows, as in `similarity`",
        why="why the measure is undefined",
    ),
)
FOLDS = "folds.parquet"
"""Of each value on all rows, what it is without each fold of examples: unit, layer, measure, fold, value."""


def fold_values(table: pd.DataFrame) -> pd.DataFrame:
    """The values without each fold of a table that `compare` returned: layer, measure, fold, value."""
    import pandas as pd

    return pd.DataFrame(table.attrs.pop("folds"), columns=["layer", "measure", "fold", "value"])


@dataclass(frozen=True)
class Similarity(ModelStage):
    """Similarity of base and adapted at each layer, on several sets of rows; and of every layer with every layer."""

    name: ClassVar = "similarity"
    version: ClassVar = 4
    tables: ClassVar = (SIMILARITY, SIMILARITY_GRID, SIMILARITY_LEFT_OUT)
    first_guess: ClassVar = 15.0
    accelerator: ClassVar = True
    on_cpu: ClassVar = "linear predictivity, by ridge regression of scikit-learn"

    @classmethod
    def tasks(cls, shape: StudyShape) -> Iterable[Self]:
        return (cls(method, seed) for method, seed in shape.runs)

    def parents(self) -> Mapping[str, Stage]:
        return {"base": Capture.of_base(), "adapted": Capture(self.method, self.seed)}

    def identity(self, study: ResolvedStudy, parents: Mapping[str, ArtifactMeta]) -> Mapping[str, Json]:
        similarity = study.study.similarity
        settings = {"measures": list(similarity.measures), "units": list(similarity.units)}
        return {**self.named, **settings, "analysis_seed": study.study.seeds[0]}

    def build(self, context: Context, parents: Mapping[str, Artifact], folder: Path) -> None:
        import pandas as pd

        from layerprobe.similarity import compare, find_measures, grid

        base, adapted = paired_rows(parents)
        settings = context.study.similarity
        drift, grids, left_out, folds = [], [], [], []
        for unit in settings.units:
            layers = varying_layers(base, unit)
            groups = base.groups(unit)
            for rows in row_sets(base, adapted, unit, layers, context.device):
                table = compare(
                    Layers(base, unit, rows.layers, rows, device=context.device),
                    Layers(adapted, unit, rows.layers, rows, device=context.device),
                    {layer: groups[rows.kept.get(layer, slice(None))] for layer in rows.layers},
                    measures=measures_of(context.study) if rows.main_measures else settings.measures,
                    seed=context.seed,  # models are compared with each other over the same folds
                    leave_out_undefined=True,
                )
                named: dict[str, Any] = {**self.named, "unit": unit, "rows": rows.name}
                of_folds = fold_values(table)
                drift.append(table.assign(**named, directions_removed=table.layer.map(rows.directions)))
                if rows.name == "all":
                    folds.append(of_folds.assign(unit=unit))
                left_out += [
                    {**named, "layer": layer, "measure": measure, "why": why}
                    for layer, measure, why in table.attrs["left_out"]
                ]
            linear = [measure.name for measure in find_measures(settings.measures, "similarity") if measure.linear]
            if linear:
                sides = {
                    side: Layers(store, unit, layers, device=context.device)
                    for side, store in (("base", base), ("adapted", adapted))
                }
                crossed = grid(sides, base.groups(unit), measures=linear)
                grids.append(crossed.assign(**self.named, unit=unit))
        save(folder, "similarity", pd.concat(drift, ignore_index=True))
        pd.concat(folds, ignore_index=True).to_parquet(folder / FOLDS, index=False)
        if grids:
            save(folder, "similarity_grid", pd.concat(grids, ignore_index=True))
        if left_out:
            save(folder, "similarity_left_out", pd.DataFrame(left_out))
