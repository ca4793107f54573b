"""The stages that run a model over examples and store the outputs of its layers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from layerprobe.context import Context
from layerprobe.files import digest
from layerprobe.stage import Json, ModelStage, ResolvedStudy, Stage, StudyShape
from layerprobe.stages._artifacts import rows_of
from layerprobe.stages.meta_model import model_task
from layerprobe.store import Artifact, ArtifactMeta

if TYPE_CHECKING:
    from layerprobe.activations import CaptureConfig
    from layerprobe.data import Examples


@dataclass(frozen=True)
class _Capture(ModelStage):
    """Activations of one model on some examples, with a digest of each layer; layers equal to the base's share its files."""

    accelerator: ClassVar = True
    first_guess: ClassVar = 6.0
    opened: ClassVar = "rows"
    copies_base: ClassVar = True
    """Whether the rows of a model with the base's body are copied from the base's capture. Those of the test examples are
    computed, as a check that base and adapted agree bit by bit there."""

    def parents(self) -> Mapping[str, Stage]:
        if self.method is None:
            return {}
        return {"adapt": model_task(self.method, self.seed), "base": type(self).of_base()}

    def build(self, context: Context, parents: Mapping[str, Artifact], folder: Path) -> None:
        from layerprobe.activations import capture
        from layerprobe.encoder import same_body

        model = context.model(parents.get("adapt"))
        base = rows_of(parents["base"]) if "base" in parents else None
        if base is not None and self.copies_base and same_body(model, context.base_model(), context.encoder):
            base.copy_to(folder / "rows")
            return
        examples, config = self.examples(context), self.config(context.resolved)
        if base is not None:  # equal weights give equal bits only in equal batches
            config = replace(config, batch_size=base.batch_size)
        store = capture(model, context.encoder, examples, folder / "rows", config, device=context.device)
        if base is not None:
            store.share_files(base)

    def content(self, folder: Path) -> Mapping[str, str]:
        from layerprobe.activations import content_digests

        return {str(layer): value for layer, value in content_digests(folder / "rows").items()}

    def checksums(self, folder: Path) -> Mapping[str, str]:
        from layerprobe.activations import ActivationStore

        return {f"rows/{name}": value for name, value in ActivationStore.open(folder / "rows").checksums.items()}

    def examples(self, context: Context) -> Examples:
        raise NotImplementedError

    def config(self, study: ResolvedStudy) -> CaptureConfig:
        raise NotImplementedError


@dataclass(frozen=True)
class Capture(_Capture):
    """All layers on the test examples, which every analysis reads."""

    name: ClassVar = "capture"
    version: ClassVar = 2
    copies_base: ClassVar = False

    @classmethod
    def tasks(cls, shape: StudyShape) -> Iterable[Self]:
        return (cls.of_base(), *(cls(method, seed) for method, seed in shape.runs))

    def identity(self, study: ResolvedStudy, parents: Mapping[str, ArtifactMeta]) -> Mapping[str, Json]:
        activations = study.study.activations
        return {
            "encoder": study.encoder,
            "examples": activations.examples,
            "dtype": activations.dtype,
            **study.texts,
        }

    def examples(self, context: Context) -> Examples:
        return context.corpus.test

    def config(self, study: ResolvedStudy) -> CaptureConfig:
        from layerprobe.activations import CaptureConfig

        activations = study.study.activations
        return CaptureConfig(
            max_length=study.study.data.max_length, token_examples=activations.examples, dtype=activations.dtype
        )

    def size(self, study: ResolvedStudy) -> int:
        from layerprobe.activations import estimate_bytes

        dtype = study.study.activations.dtype
        return estimate_bytes(study.captured_tokens, study.n_test, study.n_layers + 1, study.width, dtype)


@dataclass(frozen=True)
class CaptureTrain(_Capture):
    """Pooled vectors of the training examples, for the reference classifier and the probes."""

    name: ClassVar = "capture-train"
    version: ClassVar = 3

    def identity(self, study: ResolvedStudy, parents: Mapping[str, ArtifactMeta]) -> Mapping[str, Json]:
        return {"encoder": study.encoder, "layers": list(study.train_layers), **study.texts}

    def examples(self, context: Context) -> Examples:
        return context.corpus.train

    def config(self, study: ResolvedStudy) -> CaptureConfig:
        from layerprobe.activations import CaptureConfig

        return CaptureConfig(max_length=study.study.data.max_length, layers=study.train_layers, token_examples=0)

    def size(self, study: ResolvedStudy) -> int:
        from layerprobe.activations import estimate_bytes

        return estimate_bytes(0, study.n_train, len(study.train_layers), study.width, "float32")


@dataclass(frozen=True)
class CaptureSae(_Capture):
    """Token rows of the chosen layers, to train dictionaries on."""

    name: ClassVar = "capture-sae"
    version: ClassVar = 2

    def identity(self, study: ResolvedStudy, parents: Mapping[str, ArtifactMeta]) -> Mapping[str, Json]:
        return {
            "encoder": study.encoder,
            "layers": list(study.sae_layers),
            "rows": study.study.sae.rows,
            "dtype": study.study.activations.dtype,
            "side": study.sae_source,
            **study.texts,
            **({"sae_left_out": digest(list(study.sae_left_out))} if study.sae_left_out else {}),
        }

    def examples(self, context: Context) -> Any:
        return context.sae_examples

    def config(self, study: ResolvedStudy) -> CaptureConfig:
        from layerprobe.activations import CaptureConfig

        return CaptureConfig(
            max_length=study.study.data.max_length,
            layers=study.sae_layers,
            token_rows=study.study.sae.rows,
            pooled=False,
            dtype=study.study.activations.dtype,
        )

    def size(self, study: ResolvedStudy) -> int:
        from layerprobe.activations import estimate_bytes

        rows, layers = study.study.sae.rows, len(study.sae_layers)
        return estimate_bytes(rows, 0, layers, study.width, study.study.activations.dtype)
