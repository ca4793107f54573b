"""The stage that trains a crosscoder: one dictionary on paired rows of base and adapted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from layerprobe.context import Context
from layerprobe.stage import Json, LayerStage, ResolvedStudy, Stage
from layerprobe.stages._artifacts import paired_rows
from layerprobe.stages.capture import CaptureSae
from layerprobe.store import Artifact, ArtifactMeta


@dataclass(frozen=True)
class Crosscoder(LayerStage):
    """A joint dictionary of one layer; empty where base and adapted rows are equal. Keyed by the content of the rows."""

    name: ClassVar = "crosscoder"
    version: ClassVar = 4
    keyed_by_content: ClassVar = True
    accelerator: ClassVar = True
    on_cpu: ClassVar = "mean and scale of the rows, in two passes over the file in float64"
    first_guess: ClassVar = 25.0

    def parents(self) -> Mapping[str, Stage]:
        return {"base": CaptureSae.of_base(), "adapted": CaptureSae(self.method, self.seed)}

    def identity(self, study: ResolvedStudy, parents: Mapping[str, ArtifactMeta]) -> Mapping[str, Json]:
        settings = study.study.sae
        rows = {role: parent.content[str(self.layer)] for role, parent in parents.items()}
        return {**rows, "expansion": settings.expansion, "k": settings.k, "seed": study.study.seeds[0]}

    def build(self, context: Context, parents: Mapping[str, Artifact], folder: Path) -> None:
        from layerprobe import sae

        base, adapted = (store.tokens(self.number) for store in paired_rows(parents))
        if parents["base"].meta.content[str(self.layer)] == parents["adapted"].meta.content[str(self.layer)]:
            return
        config = crosscoder_config(context, base.shape, context.seed)
        sae.crosscoder.train(base, adapted, config, device=context.device).save(folder / "crosscoder")

    def size(self, study: ResolvedStudy) -> int:
        return 2 * study.dictionary_bytes


def crosscoder_config(context: Context, shape: tuple[int, ...], seed: int) -> Any:
    """Sizes and seed of a joint dictionary.

    Args:
        shape: of one side's rows.
    """
    from layerprobe import sae

    settings, (n, width) = context.study.sae, shape
    d_sae = sae.default_width(n, width, settings.expansion)
    return sae.CrosscoderConfig(d_sae=d_sae, k=settings.k or sae.default_k(width, d_sae), seed=seed)
