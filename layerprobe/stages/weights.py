"""The stage that measures the change of each weight matrix."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

from layerprobe.context import Context
from layerprobe.stage import Json, ModelStage, ResolvedStudy, Stage, StudyShape, TableSpec, columns
from layerprobe.stages._artifacts import save, save_left_out
from layerprobe.stages.adapt import Adapt
from layerprobe.store import Artifact, ArtifactMeta

WEIGHTS = TableSpec(
    "weights",
    "Change of each weight matrix of the body: one row per method, seed and matrix.",
    columns(
        "method",
        "seed",
        parameter="name of the matrix in the model",
        layer="0 for embeddings, i for block i (the first that uses a shared matrix), L for a pretrained pooler",
        shared_by="number of layers that use the matrix",
        role="role in the block, such as `query`; `embeddings`, `pooler` or `other`",
        rows="rows of the matrix as stored",
        columns="columns of the matrix as stored",
        relative_change="Frobenius norm of the change over that of the base matrix; missing for a zero matrix",
        stable_rank_base="stable rank |W|_F^2 / |W|_2^2 of the base matrix",
        stable_rank_adapted="stable rank of the adapted matrix",
        stable_rank_change="stable rank of the change; missing if there is none",
        intruder_dimensions="top left singular vectors of the adapted matrix whose cosine with every one of the base matrix "
        "is below 0.5",
        k="number of top singular vectors examined",
    ),
)
WEIGHTS_LEFT_OUT = TableSpec(
    "weights_left_out",
    "Weight matrices that cannot be compared with base.",
    columns("method", "seed", parameter="name of the matrix in the model", why="why it cannot be compared"),
)


@dataclass(frozen=True)
class Weights(ModelStage):
    """Size and directions of the change of each weight matrix of the body."""

    name: ClassVar = "weights"
    version: ClassVar = 2
    tables: ClassVar = (WEIGHTS, WEIGHTS_LEFT_OUT)
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
