"""The stage that measures an adapted model with blocks reset to base weights, skipped, or given base activations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

from layerprobe.context import Context, relabelled
from layerprobe.stage import Json, ModelStage, ResolvedStudy, Stage, StudyShape
from layerprobe.stages._artifacts import save, save_left_out
from layerprobe.stages.adapt import Adapt
from layerprobe.store import Artifact, ArtifactMeta


@dataclass(frozen=True)
class Interventions(ModelStage):
    """Quality of the adapted model under interventions on its blocks."""

    name: ClassVar = "interventions"
    version: ClassVar = 4
    accelerator: ClassVar = True
    first_guess: ClassVar = 10.0

    @classmethod
    def tasks(cls, shape: StudyShape) -> Iterable[Self]:
        if "interventions" not in shape.study.internals.parts:
            return ()
        return (cls(method, seed) for method, seed in shape.runs)

    def parents(self) -> Mapping[str, Stage]:
        return {"adapt": Adapt(self.method, self.seed)}

    def identity(self, study: ResolvedStudy, parents: Mapping[str, ArtifactMeta]) -> Mapping[str, Json]:
        return {**self.named, "examples": study.study.internals.examples}

    def build(self, context: Context, parents: Mapping[str, Artifact], folder: Path) -> None:
        from layerprobe import internals

        table = internals.interventions(
            context.base_model(),
            context.adapted_model(parents["adapt"]),
            context.encoder,
            relabelled(parents["adapt"], context.rerun_examples),
            max_length=context.study.data.max_length,
            device=context.device,
        )
        save(folder, "interventions", table.assign(**self.named))
        save_left_out(folder, "interventions", table.attrs.get("left_out", ()), ["layer", "kind", "why"], self.named)
