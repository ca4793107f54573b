"""The stage that trains the bodies of a few-shot study."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

from layerprobe.context import Context
from layerprobe.few_shot import naming_few_shot_keys, outer_config, outer_depth, section_of
from layerprobe.stage import Json, ResolvedStudy, Stage, StudyShape, TableSpec, columns
from layerprobe.stages._artifacts import save
from layerprobe.stages._few_shot import (
    BODY_COLUMNS,
    BodyStage,
    bodies,
    chosen_inner,
    data_identity,
    inner_identity,
    make_inputs,
    make_learner,
    save_parameters,
    train_sampler,
    validation_sampler,
)
from layerprobe.stages.meta_prefix import MetaPrefix
from layerprobe.stages.meta_rates import MetaRates
from layerprobe.store import Artifact, ArtifactMeta

FEW_SHOT_TRAINING = TableSpec(
    "few_shot_training",
    "Training of the bodies of a few-shot study: one row per body and outer step.",
    {
        **columns(seconds="time since the start, without validations"),
        **BODY_COLUMNS,
        "step": "outer step, from 1; 0 is the validation before the first",
        "loss": "mean query loss of the step's episodes after the inner loop, in nats; for `multiclass` the loss of its batch",
        "accuracy": "mean accuracy of the step's episodes",
        "gradient_norm": "norm of the mean meta-gradient",
        "head_gradient_norm": "norm of its part by the head",
        "validation_loss": "mean query loss on the validation episodes, in nats; missing between validations",
        "validation_accuracy": "mean query accuracy on the validation episodes",
        "best": "whether the parameters of this step were kept",
    },
)


@dataclass(frozen=True)
class MetaTrain(BodyStage):
    """A body that is meta-trained, or fine-tuned on the meta-train classes as a baseline."""

    has_prefix: bool = False

    name: ClassVar = "meta-train"
    version: ClassVar = 1
    resumable: ClassVar = True
    first_guess: ClassVar = 120.0
    tables: ClassVar = (FEW_SHOT_TRAINING,)

    @classmethod
    def tasks(cls, shape: StudyShape) -> Iterable[Self]:
        has_prefix = outer_depth(shape.study) is not None
        tasks = (cls(*body, has_prefix) for body in bodies(shape))
        return (task for task in tasks if task.is_trained)

    def parents(self) -> Mapping[str, Stage]:
        prefix: dict[str, Stage] = {"prefix": MetaPrefix()} if self.has_prefix else {}
        return {**prefix, "rates": MetaRates.of_pretrained(self.has_prefix)}

    def identity(self, study: ResolvedStudy, parents: Mapping[str, ArtifactMeta]) -> Mapping[str, Json]:
        few = section_of(study.study)
        names = (
            "outer",
            "outer_steps",
            "outer_rate",
            "tasks_per_step",
            "validate_every",
            "validation_tasks",
            "patience",
        )
        inner = inner_identity(study, self.inner) if self.inner else {}
        kept = {"keep": list(few.keep_steps)} if few.keep_steps and self.inner else {}
        return {
            **data_identity(study),
            **{name: getattr(few, name) for name in names},
            **self.named,
            "loop": inner,
        } | kept

    def build(self, context: Context, parents: Mapping[str, Artifact], folder: Path) -> None:
        import numpy as np
        import pandas as pd
        import torch

        from layerprobe.metalearning import meta_train, train_multiclass, train_multitask

        learner = make_learner(context, self.seed)
        inputs = make_inputs(context, learner, parents.get("prefix"))
        training, validation = train_sampler(context, self.seed), validation_sampler(context)
        outer = outer_config(context.study)
        numbers = {label: number for number, label in enumerate(training.part.classes)}

        def tasks(number: int) -> Any:
            return inputs.task(training.draw(number))

        def of_classes(number: int) -> Any:
            episode = training.draw(number)
            task, classes = inputs.task(episode), np.array([numbers[label] for label in episode.classes])
            of_position = torch.from_numpy(classes).to(context.device)
            return replace(
                task,
                support_labels=of_position[task.support_labels],
                query_labels=of_position[task.query_labels],
            )

        def validation_tasks(number: int) -> Any:
            return inputs.task(validation.draw(number))

        with naming_few_shot_keys():
            # Baselines are validated by the inner loop of a fresh head.
            reader = replace(chosen_inner(context, parents["rates"], "head"), first_order=False, learned_rates=False)
            options: Any = {"reader": reader, "outer": outer, "validation": validation_tasks, "folder": folder}
            if self.body == "meta-trained":
                inner = chosen_inner(context, parents["rates"], self.inner)
                keeping = replace(outer, keep=section_of(context.study).keep_steps)
                result = meta_train(learner, tasks, validation_tasks, inner, keeping, folder=folder)
            elif self.body == "multitask":
                result = train_multitask(learner, tasks, **options)
            else:
                result = train_multiclass(learner, of_classes, classes=len(numbers), **options)
        changed = [*learner.names_at(outer.depth), "head.weight", "head.bias"]
        save_parameters(folder, {name: result.parameters[name] for name in changed}, result.rates)
        log = pd.DataFrame([vars(entry) for entry in result.log])
        log = log.assign(best=log["step"] == result.best_step)
        save(
            folder,
            "few_shot_training",
            log.assign(**self.named)[[name for name in FEW_SHOT_TRAINING.columns if name != "concurrent_tasks"]],
        )

    def size(self, study: ResolvedStudy) -> int:
        kept = len(section_of(study.study).keep_steps) if self.inner else 0
        return (1 + kept) * study.model_bytes
