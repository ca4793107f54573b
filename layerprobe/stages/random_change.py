"""The stage that measures the drift of random changes of the weights, a control without training."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from layerprobe.context import Context
from layerprobe.errors import StorageError
from layerprobe.stage import Json, ModelStage, ResolvedStudy, Stage, StudyShape
from layerprobe.stages._artifacts import rows_of, save
from layerprobe.stages._layers import Layers, measures_of, unit_of, varying_layers
from layerprobe.stages.adapt import Adapt
from layerprobe.stages.capture import Capture
from layerprobe.stages.nulls import SIMILARITY_NULLS
from layerprobe.stages.similarity import FOLDS, fold_values
from layerprobe.store import Artifact, ArtifactMeta

NORM_MATCHED = "norm-matched"
"""Kind of this null."""
VALUES = "values.parquet"
"""The value of each draw: draw, unit, layer, measure, value."""


@dataclass(frozen=True)
class RandomChange(ModelStage):
    """Similarity of base with itself after random changes of each weight matrix, as large as those of a method."""

    name: ClassVar = "random-change"
    version: ClassVar = 1
    tables: ClassVar = (SIMILARITY_NULLS,)
    accelerator: ClassVar = True
    first_guess: ClassVar = 8.0

    @classmethod
    def tasks(cls, shape: StudyShape) -> Iterable[Self]:
        if shape.study.similarity.random_changes:
            for method, seed in shape.runs:
                if method.changes_body and not method.is_control:
                    yield cls(method, seed)

    def parents(self) -> Mapping[str, Stage]:
        return {"adapt": Adapt(self.method, self.seed), "base": Capture.of_base()}

    def identity(self, study: ResolvedStudy, parents: Mapping[str, ArtifactMeta]) -> Mapping[str, Json]:
        return {
            **self.named,
            "measures": measures_of(study.study),
            "unit": unit_of(study.study),
            "draws": study.study.similarity.random_changes,
            "analysis_seed": study.study.seeds[0],
        }

    def build(self, context: Context, parents: Mapping[str, Artifact], folder: Path) -> None:
        import numpy as np
        import pandas as pd

        from layerprobe.activations import CaptureConfig, capture
        from layerprobe.internals import random_change
        from layerprobe.similarity import compare

        study, unit = context.study, unit_of(context.study)
        base, adapted = context.base_model(), context.adapted_model(parents["adapt"])
        stored = rows_of(parents["base"])
        layers, groups = varying_layers(stored, unit), stored.groups(unit)
        config = CaptureConfig(
            max_length=study.data.max_length,
            token_examples=study.activations.examples,
            pooled=unit != "token",
            dtype=study.activations.dtype,
            batch_size=stored.batch_size,
        )
        tables, folds = [], []
        for draw in range(study.similarity.random_changes):
            number = int(np.random.SeedSequence([self.number_of_seed, draw]).generate_state(1)[0])
            model = random_change(base, adapted, context.encoder, seed=number)
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                target, test = Path(scratch) / "rows", context.corpus.test
                store = capture(model, context.encoder, test, target, config, device=context.device)
                _check_rows(stored, store)
                table = compare(
                    Layers(stored, unit, layers, device=context.device),
                    Layers(store, unit, layers, device=context.device),
                    groups,
                    measures=measures_of(study),
                    seed=context.seed,
                    leave_out_undefined=True,
                )
            folds.append(fold_values(table).assign(unit=unit, draw=draw))
            tables.append(table.assign(draw=draw))
        values = pd.concat(tables, ignore_index=True)
        values[["draw", "layer", "measure", "value"]].assign(unit=unit).to_parquet(folder / VALUES, index=False)
        pd.concat(folds, ignore_index=True).to_parquet(folder / FOLDS, index=False)
        drawn = values.groupby(["layer", "measure"], sort=False)
        summary = drawn.agg(
            value=("value", "mean"), low=("value", "min"), high=("value", "max"), draws=("draw", "size"), n=("n", "max")
        ).reset_index()
        named = {**self.named, "unit": unit, "null": NORM_MATCHED, "null_kind": NORM_MATCHED}
        save(folder, "similarity_nulls", summary.assign(**named))


def _check_rows(base: Any, other: Any) -> None:
    """Refuse a capture whose token rows are not those of base; that of fewer examples has no other pooled rows."""
    import numpy as np

    for column in ("example", "token_index", "token"):
        if not np.array_equal(base.rows[column].to_numpy(), other.rows[column].to_numpy()):
            raise StorageError(f"{base.folder} and {other.folder} differ in `{column}`; capture both again.")
