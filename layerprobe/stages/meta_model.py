"""The stage that saves a meta-trained body as a model, so that the stages of adapted models apply to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from layerprobe.adaptation import Method
from layerprobe.context import Context
from layerprobe.few_shot import section_of
from layerprobe.files import write_json
from layerprobe.stage import Json, ModelStage, ResolvedStudy, Stage
from layerprobe.stages._few_shot import make_learner, read_parameters
from layerprobe.stages.adapt import Adapt
from layerprobe.stages.meta_train import MetaTrain
from layerprobe.store import Artifact, ArtifactMeta


@dataclass(frozen=True)
class MetaTrainedBody(Method):
    """A meta-trained body in the place of an adaptation method."""

    inner: str = "head"
    has_prefix: bool = False

    syntax: ClassVar = "meta-trained"
    phases: ClassVar = ()

    @property
    def name(self) -> str:
        return f"meta-trained ({self.inner})"


@dataclass(frozen=True)
class MetaModel(ModelStage):
    """The checkpoint of a meta-trained body under its meta-trained head."""

    name: ClassVar = "meta-model"
    version: ClassVar = 1
    few_shot: ClassVar = True
    accelerator: ClassVar = True
    opened: ClassVar = "checkpoint"

    @property
    def body(self) -> MetaTrainedBody:
        assert isinstance(self.method, MetaTrainedBody)
        return self.method

    def parents(self) -> Mapping[str, Stage]:
        trained = MetaTrain("meta-trained", self.body.inner, self.number_of_seed, self.body.has_prefix)
        return {"trained": trained}

    def identity(self, study: ResolvedStudy, parents: Mapping[str, ArtifactMeta]) -> Mapping[str, Json]:
        return {"encoder": study.encoder, **self.named}

    def build(self, context: Context, parents: Mapping[str, Artifact], folder: Path) -> None:
        from layerprobe.metalearning import load_parameters

        ways = section_of(context.study).ways
        learner = make_learner(context, self.number_of_seed)
        parameters, _ = read_parameters(learner, parents["trained"])
        labels = tuple(f"position {number}" for number in range(1, ways + 1))
        model = context.encoder.classifier(labels, seed=self.number_of_seed, pooling="mean")
        load_parameters(model, context.encoder, parameters)
        model.save_pretrained(folder / "checkpoint", safe_serialization=True)
        context.encoder.tokenizer.save_pretrained(folder / "checkpoint")
        write_json(folder / "settings.json", {"checkpoint": None})

    def size(self, study: ResolvedStudy) -> int:
        return study.model_bytes


def model_task(method: Method | None, seed: int | None) -> Stage:
    """The task that makes the model of a method and seed."""
    return MetaModel(method, seed) if isinstance(method, MetaTrainedBody) else Adapt(method, seed)
