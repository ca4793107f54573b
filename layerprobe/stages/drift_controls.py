"""The stage that compares a method's drift with that of controls which learn no task."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from layerprobe.adaptation import Method
from layerprobe.context import Context
from layerprobe.stage import Json, ResolvedStudy, Stage, StudyShape, TableSpec, columns
from layerprobe.stages._artifacts import save
from layerprobe.stages._layers import measures_of, unit_of
from layerprobe.stages.random_change import NORM_MATCHED, VALUES, RandomChange
from layerprobe.stages.similarity import FOLDS, Similarity
from layerprobe.store import Artifact, ArtifactMeta

if TYPE_CHECKING:
    import pandas as pd

    from layerprobe.similarity import Replicates

DRIFT_CONTROLS = TableSpec(
    "drift_controls",
    "Drift of a method beyond that of a control without a task: one row per method, control, unit, layer and measure.",
    columns(
        "method",
        "unit",
        "layer",
        "measure",
        "n",
        control="`norm-matched` (random changes of base's weights, of the norms of the method's), or the name of a control method",
        similarity="similarity of base and adapted, mean over the method's seeds",
        control_similarity="similarity of base and the control, mean over its seeds and draws",
        difference="drift beyond the control's: similarity under the control minus that under the method; for distances the "
        "reverse",
        standard_error="standard error of the difference: over examples (jackknife), and over seeds and draws where there are "
        "several",
        degrees="its degrees of freedom (Satterthwaite)",
        band_low="lower end of its 95% band, which holds for all layers of the method, control and measure at once",
        band_high="upper end of this band",
        seeds="number of seeds of the method",
        control_models="number of seeds of the control, or of random changes",
        covers_training="whether the band covers further trainings; false where a trained side has one seed",
    ),
)


@dataclass(frozen=True)
class DriftControls(Stage):
    """By how much the drift of a method exceeds that of random changes, and of training on shuffled labels."""

    method: Method
    seeds: tuple[int, ...]
    controls: tuple[tuple[Method, tuple[int, ...]], ...] = ()
    """Trained controls with their seeds."""
    random: bool = True
    """Whether there are random changes."""

    name: ClassVar = "drift-controls"
    version: ClassVar = 1
    tables: ClassVar = (DRIFT_CONTROLS,)
    first_guess: ClassVar = 0.5
    on_cpu: ClassVar = "differences of similarities"

    @property
    def title(self) -> str:
        return self.method.name

    @classmethod
    def tasks(cls, shape: StudyShape) -> Iterable[Self]:
        random = shape.study.similarity.random_changes > 0
        for method in shape.methods:
            controls = tuple((one, shape.seeds(one)) for one in shape.methods if one.control_of == method.name)
            if method.changes_body and not method.is_control and (random or controls):
                yield cls(method, shape.seeds(method), controls, random)

    def parents(self) -> Mapping[str, Stage]:
        of_method = {f"adapted {seed}": Similarity(self.method, seed) for seed in self.seeds}
        random = {f"random {seed}": RandomChange(self.method, seed) for seed in self.seeds if self.random}
        trained = {
            f"{control.name} {seed}": Similarity(control, seed) for control, seeds in self.controls for seed in seeds
        }
        return {**of_method, **random, **trained}

    def identity(self, study: ResolvedStudy, parents: Mapping[str, ArtifactMeta]) -> Mapping[str, Json]:
        return {
            "method": self.method.name,
            "seeds": list(self.seeds),
            "measures": measures_of(study.study),
            "unit": unit_of(study.study),
        }

    def build(self, context: Context, parents: Mapping[str, Artifact], folder: Path) -> None:
        import numpy as np
        import pandas as pd

        from layerprobe.similarity import control_difference, find_measures

        unit, rows = unit_of(context.study), []
        adapted = [_of_similarity(parents[f"adapted {seed}"], unit) for seed in self.seeds]
        sides = {
            control.name: [_of_similarity(parents[f"{control.name} {seed}"], unit) for seed in seeds]
            for control, seeds in self.controls
        }
        if self.random:
            drawn = [_of_random(parents[f"random {seed}"], unit) for seed in self.seeds]
            sides = {NORM_MATCHED: [model for models in drawn for model in models], **sides}
        n = parents[f"adapted {self.seeds[0]}"].table("similarity").query("unit == @unit and rows == 'all'").n.max()
        for measure in find_measures(measures_of(context.study), "drift-controls"):
            sign = -1.0 if measure.kind == "distance" else 1.0
            for name, models in sides.items():
                layers = _common_layers([*adapted, *models], measure.name)
                if not layers:
                    continue
                method, control = (_replicates(side, measure.name, layers) for side in (adapted, models))
                found = control_difference(method, control)
                ends = np.sort(sign * np.stack([found.bands.low, found.bands.high]), axis=0)
                table = pd.DataFrame(
                    {
                        "control": name,
                        "measure": measure.name,
                        "layer": layers,
                        "similarity": method.values.mean(0),
                        "control_similarity": control.values.mean(0),
                        "difference": sign * found.value,
                        "standard_error": found.errors,
                        "degrees": found.degrees,
                        "band_low": ends[0],
                        "band_high": ends[1],
                        "seeds": len(adapted),
                        "control_models": len(models),
                        "covers_training": len(adapted) > 1 and len(models) > 1,
                    }
                )
                rows.append(table)
        if rows:
            save(
                folder,
                "drift_controls",
                pd.concat(rows, ignore_index=True).assign(method=self.method.name, unit=unit, n=n),
            )


@dataclass(frozen=True)
class _Model:
    """One model's similarities with base: values (index: measure, layer), and without each fold (and fold)."""

    values: pd.Series
    folds: pd.Series


def _of_similarity(artifact: Artifact, unit: str) -> _Model:
    import pandas as pd

    table, folds = artifact.table("similarity"), pd.read_parquet(artifact.folder / FOLDS)
    return _model(table[(table.unit == unit) & (table["rows"] == "all")], folds[folds.unit == unit])


def _of_random(artifact: Artifact, unit: str) -> list[_Model]:
    import pandas as pd

    values, folds = (pd.read_parquet(artifact.folder / name) for name in (VALUES, FOLDS))
    return [_model(values[values.draw == draw], folds[folds.draw == draw]) for draw in values.draw.unique()]


def _model(values: pd.DataFrame, folds: pd.DataFrame) -> _Model:
    return _Model(
        values.set_index(["measure", "layer"]).value, folds.set_index(["measure", "layer", "fold"]).value.sort_index()
    )


def _common_layers(models: Sequence[_Model], measure: str) -> list[int]:
    """Layers at which a measure is defined, with its folds, for all models."""
    sets = [
        {layer for name, layer in model.values.index if name == measure}
        & {layer for name, layer, _ in model.folds.index if name == measure}
        for model in models
    ]
    return sorted(int(layer) for layer in set.intersection(*sets))


def _replicates(models: Sequence[_Model], measure: str, layers: list[int]) -> Replicates:
    import numpy as np

    from layerprobe.similarity import Replicates

    values = [[model.values[measure, layer] for layer in layers] for model in models]
    folds: Any = [[model.folds[measure, layer].to_numpy() for layer in layers] for model in models]
    return Replicates(np.array(values, dtype=np.float64), np.array(folds, dtype=np.float64))
