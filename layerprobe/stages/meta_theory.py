"""The stage that follows outer gradient descent on one-dimensional tasks, where the bounds of the theory are known."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

from layerprobe.context import Context
from layerprobe.stage import Json, ResolvedStudy, Stage, StudyShape, TableSpec
from layerprobe.stages._artifacts import save
from layerprobe.store import Artifact, ArtifactMeta

STEPS = (1, 3, 5, 10)
START, OUTER_RATE, OUTER_STEPS = 3.0, 0.05, 60
FEW_SHOT_THEORY = TableSpec(
    "few_shot_theory",
    "Outer gradient descent on two one-dimensional tasks: one row per geometry of the inner loss, number of inner steps and outer step.",
    {
        "geometry": "of the inner loss: `strongly convex` (quadratic) or `nonconvex` (cosine)",
        "inner_steps": "number of inner steps, N",
        "step": "outer step, from 0, the initial value",
        "gradient": "absolute value of the meta-gradient by the adapted parameter",
        "bound": "its bound: M (1 - alpha mu)^N if strongly convex, M (1 + alpha L)^N if not; M is the slope of the query loss at w_N, "
        "summed over tasks",
        "excess_loss": "query loss less that of the meta-optimum",
        "distance": "distance to the meta-optimum",
    },
)


@dataclass(frozen=True)
class MetaTheory(Stage):
    """Meta-gradient with its bound, excess loss and distance to the optimum by number of inner steps."""

    name: ClassVar = "meta-theory"
    version: ClassVar = 1
    few_shot: ClassVar = True
    on_cpu: ClassVar = "gradient descent in one dimension"
    tables: ClassVar = (FEW_SHOT_THEORY,)

    @property
    def title(self) -> str:
        return "one-dimensional tasks"

    @classmethod
    def tasks(cls, shape: StudyShape) -> Iterable[Self]:
        yield cls()

    def identity(self, study: ResolvedStudy, parents: Mapping[str, ArtifactMeta]) -> Mapping[str, Json]:
        return {"steps": list(STEPS), "start": START, "outer_rate": OUTER_RATE, "outer_steps": OUTER_STEPS}

    def build(self, context: Context, parents: Mapping[str, Artifact], folder: Path) -> None:
        import numpy as np
        import pandas as pd

        from layerprobe.metalearning.synthetic import NONCONVEX, STRONGLY_CONVEX, descend

        frames = []
        for problem in (STRONGLY_CONVEX, NONCONVEX):
            for steps in STEPS:
                path = descend(problem, steps=steps, w=START, outer_rate=OUTER_RATE, outer_steps=OUTER_STEPS)
                values = {
                    "gradient": np.abs(path.at.gradient_w),
                    "bound": path.at.bound,
                    "excess_loss": path.excess_loss,
                    "distance": path.distance,
                }
                named = {"geometry": problem.geometry, "inner_steps": steps, "step": np.arange(OUTER_STEPS + 1)}
                frames.append(pd.DataFrame({**named, **values}))
        save(folder, "few_shot_theory", pd.concat(frames, ignore_index=True))
