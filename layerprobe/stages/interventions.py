"""The stage that measures an adapted model with blocks reset to base weights, skipped, or given base activations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

from layerprobe.context import Context, relabelled
from layerprobe.stage import Json, ModelStage, ResolvedStudy, Stage, StudyShape, TableSpec, columns
from layerprobe.stages._artifacts import save, save_left_out
from layerprobe.stages.adapt import Adapt
from layerprobe.store import Artifact, ArtifactMeta

KIND = (
    "`untouched`; `weights` (block `layer` has base weights); `pooler` (so has the pretrained pooler); `skipped` (blocks "
    "above `layer` are left out); `stitched` (base computes up to `layer`)"
)
INTERVENTIONS = TableSpec(
    "interventions",
    "The adapted model under interventions on its blocks: one row per method, seed, kind and layer.",
    columns(
        "method",
        "seed",
        "layer",
        "n",
        kind=KIND,
        accuracy="accuracy on the test examples, 0 to 1",
        accuracy_low="lower end of its 95% Wilson interval",
        accuracy_high="upper end of its 95% Wilson interval",
        loss="cross-entropy, in nats",
        difference="accuracy minus that of the untouched model on the same examples",
        difference_low="lower end of its 95% interval over examples",
        difference_high="upper end of its 95% interval over examples",
    ),
)
INTERVENTIONS_LEFT_OUT = TableSpec(
    "interventions_left_out",
    "Interventions that are not possible in this model.",
    columns("method", "seed", "layer", kind=KIND, why="why it is not possible"),
)


@dataclass(frozen=True)
class Interventions(ModelStage):
    """Quality of the adapted model under interventions on its blocks."""

    name: ClassVar = "interventions"
    version: ClassVar = 4
    tables: ClassVar = (INTERVENTIONS, INTERVENTIONS_LEFT_OUT)
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
