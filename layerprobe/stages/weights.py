"""The stage that measures the change of each weight matrix."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

from layerprobe.context import Context
from layerprobe.stage import Json, ModelStage, ResolvedStudy, Stage, StudyShape
from layerprobe.stages._artifacts import save, save_left_out
from layerprobe.stages.adapt import Adapt
from layerprobe.store import Artifact, ArtifactMeta


@dataclass(frozen=True)
class Weights(ModelStage):
    """Size and directions of the change of each weight matrix of the body."""

    name: ClassVar = "weights"
    version: ClassVar = 2
    accelerator: ClassVar = True

    @classmethod
    def tasks(cls, shape: StudyShape) -> Iterable[Self]:
        if "weights" not in shape.study.internals.parts:
            return ()
        return (cls(method, seed) for method, seed in shape.runs)

    def parents(self) -> Mapping[str, Stage]:
        return {"adapt": Adapt(self.method, self.seed)}

    def identity(self, study: ResolvedStudy, parents: Mapping[str, ArtifactMeta]) -> Mapping[str, Json]:
        return self.named

    def build(self, context: Context, parents: Mapping[str, Artifact], folder: Path) -> None:
        from layerprobe.internals import compare_weights

        base, adapted = context.base_model(), context.adapted_model(parents["adapt"])
        table = compare_weights(base, adapted, context.encoder, device=context.device)
        save(folder, "weights", table.assign(**self.named))
        save_left_out(folder, "weights", table.attrs.get("left_out", ()), ["parameter", "why"], self.named)
