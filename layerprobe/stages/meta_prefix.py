"""The stage that computes the frozen prefix of a few-shot study."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from layerprobe.context import Context
from layerprobe.few_shot import outer_depth, section_of
from layerprobe.stage import Json, ResolvedStudy, Stage
from layerprobe.stages._few_shot import (
    data_identity,
    make_inputs,
    make_learner,
    outer_loop_episodes,
    rows_of_episodes,
    test_episodes,
)
from layerprobe.store import Artifact, ArtifactMeta

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class MetaPrefix(Stage):
    """The values of the blocks that the outer loop leaves frozen, for every example of an episode or a probe."""

    name: ClassVar = "meta-prefix"
    version: ClassVar = 1
    few_shot: ClassVar = True
    accelerator: ClassVar = True
    first_guess: ClassVar = 60.0

    @property
    def title(self) -> str:
        return "frozen blocks"

    def identity(self, study: ResolvedStudy, parents: Mapping[str, ArtifactMeta]) -> Mapping[str, Json]:
        few = section_of(study.study)
        names = ("outer", "outer_steps", "tasks_per_step", "validation_tasks", "test_tasks", "layer_tasks", "probes")
        return {
            **data_identity(study),
            **{name: getattr(few, name) for name in names},
            "seeds": list(study.study.seeds),
        }

    def build(self, context: Context, parents: Mapping[str, Artifact], folder: Path) -> None:
        depth = outer_depth(context.study)
        assert depth is not None
        learner = make_learner(context, 0)
        inputs = make_inputs(context, learner, None)
        inputs.cache(learner, depth=depth, rows=self.rows(context))
        inputs.save_cache(folder)

    def rows(self, context: Context) -> np.ndarray:
        """Every example that a stage of the study reads."""
        import numpy as np

        few = section_of(context.study)
        tested = test_episodes(context, max(few.test_tasks, few.layer_tasks))
        drawn = rows_of_episodes([*outer_loop_episodes(context), *tested])
        return np.unique(np.concatenate([context.few_shot.probes, drawn]))

    def size(self, study: ResolvedStudy) -> int:
        few = section_of(study.study)
        drawn = few.outer_steps * few.tasks_per_step * len(study.study.seeds) + few.validation_tasks + few.test_tasks
        rows = min(study.n_train, drawn * few.ways * (few.shots + few.queries)) + few.probes
        return 4 * rows * study.width * min(32, study.study.data.max_length)
