"""The stages that measure accuracy on meta-test episodes, and compare inner depths."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from layerprobe.context import Context
from layerprobe.few_shot import naming_few_shot_keys, outer_depth, section_of
from layerprobe.stage import Json, ResolvedStudy, Stage, StudyShape, TableSpec
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
    read_parameters,
    rows_of_episodes,
    test_episodes,
)
from layerprobe.stages.meta_prefix import MetaPrefix
from layerprobe.stages.meta_rates import MetaRates
from layerprobe.stages.meta_train import MetaTrain
from layerprobe.store import Artifact, ArtifactMeta

if TYPE_CHECKING:
    import numpy as np

    from layerprobe.metalearning import Episode, InnerConfig, Task

READER = (
    "how query examples are classified: `inner` (inner loop), `logistic` (regression on support vectors), `centroid` (nearest "
    "class mean) or `nil` (cosine with support vectors)"
)
FEW_SHOT = TableSpec(
    "few_shot",
    "Accuracy on each meta-test episode: one row per body, reader and episode. Episodes are the same for all.",
    {
        **BODY_COLUMNS,
        "reader": READER,
        "episode": "number of the episode, from 0",
        "group": "group of all its classes; empty if classes of several groups are mixed",
        "accuracy": "share of its query examples that are classified correctly",
        "loss": "mean cross-entropy over its query examples, in nats; missing for readers other than `inner`",
    },
)
FEW_SHOT_ACCURACY = TableSpec(
    "few_shot_accuracy",
    "Accuracy on meta-test episodes: one row per body and reader, averaged over training seeds.",
    {
        "method": BODY_COLUMNS["method"],
        "inner": BODY_COLUMNS["inner"],
        "reader": READER,
        "n": "number of episodes",
        "seeds": "number of training seeds",
        "accuracy": "mean accuracy",
        "ci_low": "lower end of its 95% interval over episodes of these classes",
        "ci_high": "upper end of its 95% interval over episodes",
        "group_low": "lower end of its 95% interval over groups (delete-one-group jackknife); missing without `few_shot.within_group`",
        "group_high": "upper end of its 95% interval over groups",
        "groups": "number of groups; missing without `few_shot.within_group`",
    },
)
FEW_SHOT_DIFFERENCES = TableSpec(
    "few_shot_differences",
    "Accuracy of each inner depth minus that of the deepest on the same episodes, with a test for non-inferiority.",
    {
        "inner": "depth of the inner loop, in training and at test time",
        "reference": "the deepest inner loop of the study",
        "n": "number of episodes, or of groups with `few_shot.within_group`",
        "seeds": "number of training seeds",
        "difference": "accuracy minus that of the reference, averaged over episodes and seeds",
        "ci_low": "lower end of its 95% interval",
        "ci_high": "upper end of its 95% interval",
        "margin": "largest loss of accuracy that counts as none (adaptation.margin)",
        "p": "p value of the one-sided test that the loss is at least the margin",
        "order": "place in the sequence of tests, deepest first, from 1",
        "outcome": "`sufficient`, `inferior` (the whole interval is below minus the margin), `undecided` or `not tested`",
        "covers": "what the interval generalises to: `episodes` of these classes, or other `groups` of classes; not other seeds",
    },
)


@dataclass(frozen=True)
class MetaEvaluate(BodyStage):
    """Accuracy of one body on meta-test episodes, by every reader."""

    depths: tuple[str, ...] = ()
    """Depths of the inner loops at test time."""
    has_prefix: bool = False

    name: ClassVar = "meta-evaluate"
    version: ClassVar = 1
    first_guess: ClassVar = 60.0
    tables: ClassVar = (FEW_SHOT,)
    on_cpu: ClassVar = "logistic regression of scikit-learn, nearest centroid, cosine"

    @classmethod
    def tasks(cls, shape: StudyShape) -> Iterable[Self]:
        few, has_prefix = section_of(shape.study), outer_depth(shape.study) is not None
        return (cls(*body, (body[1],) if body[1] else few.inner, has_prefix) for body in bodies(shape))

    def parents(self) -> Mapping[str, Stage]:
        # A body with random weights has another prefix.
        prefix: dict[str, Stage] = {"prefix": MetaPrefix()} if self.has_prefix and self.body != "random" else {}
        trained = MetaTrain(self.body, self.inner, self.seed, self.has_prefix) if self.is_trained else None
        rates = MetaRates.of_pretrained(self.has_prefix)
        if self.body not in ("pretrained", "meta-trained"):
            rates = MetaRates(self.body, "", self.seed, self.has_prefix, trained)
        return {**prefix, **({"trained": trained} if trained else {}), "rates": rates}

    def identity(self, study: ResolvedStudy, parents: Mapping[str, ArtifactMeta]) -> Mapping[str, Json]:
        loops = [inner_identity(study, depth) for depth in self.depths]
        return {**data_identity(study), **self.named, "loops": loops, "episodes": section_of(study.study).test_tasks}

    def build(self, context: Context, parents: Mapping[str, Artifact], folder: Path) -> None:
        import numpy as np
        import pandas as pd
        import torch

        from layerprobe.metalearning import READERS, State, evaluate_tasks, read
        from layerprobe.progress import track

        few = section_of(context.study)
        learner = make_learner(context, self.seed, random=self.body == "random")
        inputs = make_inputs(context, learner, parents.get("prefix"))
        parameters, rates = read_parameters(learner, parents.get("trained"))
        if self.body != "meta-trained":
            parameters |= {name: value for name, value in learner.parameters().items() if name.startswith("head.")}
        loops = {depth: chosen_inner(context, parents["rates"], depth) for depth in self.depths}
        episodes = test_episodes(context, few.test_tasks)
        rows = rows_of_episodes(episodes)
        vectors = inputs.vectors(learner, parameters, rows)
        table: list[dict[str, Any]] = []
        part = context.few_shot.parts.test
        for number, episode in enumerate(track(episodes, "meta-test episodes")):
            named = {"episode": number, "group": context.few_shot.group_of(part, episode)}
            support, query = (vectors[np.searchsorted(rows, half)] for half in (episode.support, episode.query))
            labels, asked = (np.repeat(np.arange(len(half)), half.shape[1]) for half in (support, query))
            for reader in READERS:
                predicted = read(reader, np.concatenate(support), labels, np.concatenate(query))
                accuracy = float((predicted == asked).mean())
                table.append({**self.named, "reader": reader, **named, "accuracy": accuracy, "loss": None})

        def state_of(half: np.ndarray) -> State:
            values = torch.from_numpy(vectors[np.searchsorted(rows, half.ravel())])
            return State(len(learner.parts), values.to(context.device))

        def task(episode: Episode, loop: InnerConfig) -> Task:
            given = inputs.task(episode)
            if loop.depth != "head":
                return given
            # The body is not adapted: the vectors are known.
            return replace(given, support=state_of(episode.support), query=state_of(episode.query))

        for depth, loop in loops.items():
            tasks = (task(episode, loop) for episode in track(episodes, f"inner loop {depth}"))
            with naming_few_shot_keys():
                found = evaluate_tasks(learner, parameters, tasks, loop, rates)
            for number, (loss, accuracy) in enumerate(found):
                inner = {**self.named, "inner": depth, "reader": "inner", "episode": number}
                group = context.few_shot.group_of(part, episodes[number])
                table.append({**inner, "group": group, "accuracy": accuracy, "loss": loss})
        save(folder, "few_shot", pd.DataFrame(table)[list(FEW_SHOT.columns)].astype({"loss": float}))


@dataclass(frozen=True)
class MetaCompare(Stage):
    """Accuracies with intervals, and inner depths compared on the same episodes."""

    evaluated: tuple[MetaEvaluate, ...]

    name: ClassVar = "meta-compare"
    version: ClassVar = 1
    few_shot: ClassVar = True
    tables: ClassVar = (FEW_SHOT_ACCURACY, FEW_SHOT_DIFFERENCES)
    on_cpu: ClassVar = "intervals and tests over episodes"

    @property
    def title(self) -> str:
        return "all bodies"

    @classmethod
    def tasks(cls, shape: StudyShape) -> Iterable[Self]:
        yield cls(tuple(MetaEvaluate.tasks(shape)))

    def parents(self) -> Mapping[str, Stage]:
        return {task.id: task for task in self.evaluated}

    def identity(self, study: ResolvedStudy, parents: Mapping[str, ArtifactMeta]) -> Mapping[str, Json]:
        few = section_of(study.study)
        return {"margin": study.study.adaptation.margin, "within_group": few.within_group, "inner": list(few.inner)}

    def build(self, context: Context, parents: Mapping[str, Artifact], folder: Path) -> None:
        import pandas as pd

        from layerprobe.metalearning import compare_depths, summarise_accuracy

        few = section_of(context.study)
        table = pd.concat([parent.table("few_shot") for parent in parents.values()], ignore_index=True)
        save(folder, "few_shot_accuracy", summarise_accuracy(table, by_group=few.within_group))
        deepest_first = sorted(
            few.inner, key=lambda depth: -depth_rank(context.study, depth, context.resolved.n_layers)
        )
        margin = context.study.adaptation.margin
        own = table[(table["method"] == "meta-trained") & (table["reader"] == "inner")]
        save(
            folder,
            "few_shot_differences",
            compare_depths(own, deepest_first, margin=margin, by_group=few.within_group),
        )


def depth_rank(study: object, depth: str, n_layers: int) -> float:
    """Order of inner depths: `head` is the shallowest, `full` the deepest."""
    from layerprobe.metalearning import InnerConfig

    config = InnerConfig(depth)
    blocks = config.blocks(n_layers)
    return n_layers + (1.0 if config.adapts_head else 0.5) if blocks is None else float(blocks)
