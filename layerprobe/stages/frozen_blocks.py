"""The stage that computes the outputs of frozen blocks over the training examples, for all methods and seeds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from layerprobe.context import Context
from layerprobe.stage import Json, ResolvedStudy, Stage
from layerprobe.store import Artifact, ArtifactMeta
from layerprobe.study import Study


@dataclass(frozen=True)
class FrozenBlocks(Stage):
    """Outputs of the blocks that some method leaves frozen, in one pass."""

    pooling: Literal["mean", "cls"] | None = None
    """What the heads of some methods read of the last layer, where that is not the study's pooling; then only that layer is
    computed."""

    name: ClassVar = "frozen"
    version: ClassVar = 1
    accelerator: ClassVar = True
    first_guess: ClassVar = 8.0

    @property
    def title(self) -> str:
        return "base" if self.pooling is None else f"base, {self.pooling}"

    def identity(self, study: ResolvedStudy, parents: Mapping[str, ArtifactMeta]) -> Mapping[str, Json]:
        return {
            "encoder": study.encoder,
            "layers": list(self._layers(study)),
            "pooling": self.pooling or study.study.adaptation.pooling,
            **study.texts,
        }

    def build(self, context: Context, parents: Mapping[str, Artifact], folder: Path) -> None:
        from layerprobe.adaptation import compute_frozen

        layers, config = self._layers(context.resolved), adapt_config(context.resolved)
        if self.pooling is not None:
            config = replace(config, pooling=self.pooling)
        if layers:
            compute_frozen(context.encoder, context.corpus.train, layers, folder / "layers", config)

    def size(self, study: ResolvedStudy) -> int:
        rows = sum(study.n_train if layer == study.n_layers else study.train_tokens for layer in self._layers(study))
        return 4 * rows * study.width

    def _layers(self, study: ResolvedStudy) -> tuple[int, ...]:
        from layerprobe.adaptation import cached_layers

        methods = [method for method in study.shape.methods if method.own_pooling == self.pooling]
        return cached_layers(methods, study.n_layers)


def adapt_config(study: ResolvedStudy) -> Any:
    """The adaptation library's configuration for a study."""
    from layerprobe.adaptation import AdaptConfig

    adaptation = study.study.adaptation
    return AdaptConfig(
        epochs=adaptation.epochs,
        batch_size=adaptation.batch_size,
        learning_rate=adaptation.learning_rate,
        head_learning_rate=adaptation.head_learning_rate,
        learning_rates=adaptation.learning_rates,
        search=adaptation.search,
        tuning=adaptation.tuning,
        pooling=adaptation.pooling,
        checkpoints=adaptation.checkpoints,
        labels=study.study.data.labels,
        max_length=study.study.data.max_length,
        precision=study.precision,
        device=study.device,
    )


def checkpoint_config(study: Study) -> Any:
    """The part of `adapt_config` that concerns finished checkpoints, before the study is resolved."""
    from layerprobe.adaptation import AdaptConfig

    return AdaptConfig(pooling=study.adaptation.pooling, labels=study.data.labels)


def open_layers(frozen: Artifact) -> Any:
    """The frozen values by layer; none where no method of the study reads any."""
    from layerprobe.adaptation import open_frozen

    return open_frozen(frozen.folder / "layers") if (frozen.folder / "layers").is_dir() else {}
