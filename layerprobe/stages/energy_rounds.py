"""The stages that count the rounds in which clusters of devices reach a target accuracy, after t0 rounds of meta-training."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

from layerprobe.context import Context
from layerprobe.energy_study import cluster_sampler, energy_of, meta_rounds
from layerprobe.errors import StudyError
from layerprobe.few_shot import outer_depth, section_of
from layerprobe.stage import COLUMNS, Json, ResolvedStudy, Stage, StudyShape, TableSpec
from layerprobe.stages._artifacts import save
from layerprobe.stages._clusters import Body, cluster_tasks
from layerprobe.stages._few_shot import chosen_inner, data_identity, inner_identity, make_learner, read_parameters
from layerprobe.stages.meta_rates import MetaRates
from layerprobe.stages.meta_train import MetaTrain
from layerprobe.store import Artifact, ArtifactMeta

if TYPE_CHECKING:
    from layerprobe.metalearning import Learner

TARGET_SHARE = 0.95
"""Share of the accuracy that every depth reaches on every validation task that clusters adapt up to by default."""
HELD = "held.json"
CLUSTER_COLUMNS = {
    "inner": "depth at which the body was meta-trained and devices adapt",
    "topology": "`ring` (two neighbours) or `mesh` (all with all; it also serves devices that share a server)",
    "devices": "number of devices of a task, each with examples of its own",
    "meta_rounds": "rounds of meta-training before adaptation, t0; 0 is the pretrained body",
}
ENERGY_ROUNDS = TableSpec(
    "energy_rounds",
    "Rounds of local steps and averaging until a cluster reaches the target: one row per depth, seed, topology, number of "
    "devices, t0 and task.",
    {
        **CLUSTER_COLUMNS,
        "seed": COLUMNS["seed"],
        "task": "number of the task, from 0; the same tasks for all",
        "group": "group of all its classes; empty if classes of several groups are mixed",
        "rounds": "rounds until the second of two consecutive passes of the target; a lower bound where `censored`",
        "censored": "whether the cluster was stopped at energy.max_rounds, short of the target",
        "target": "accuracy to reach, one for all depths, fixed on validation tasks unless energy.target is given",
        "accuracy": "accuracy on the query examples after the last round, averaged over devices",
        "disagreement": "root mean square distance of the devices' models to their mean after the last round",
    },
)


@dataclass(frozen=True)
class ClusterStage(Stage):
    """A stage that adapts clusters of devices at one inner depth, from bodies of one training seed."""

    inner: str
    seed: int
    has_prefix: bool

    few_shot: ClassVar = True
    accelerator: ClassVar = True
    first_guess: ClassVar = 120.0

    @property
    def title(self) -> str:
        return f"{self.inner} seed {self.seed}"

    @property
    def trained(self) -> MetaTrain:
        return MetaTrain("meta-trained", self.inner, self.seed, self.has_prefix)

    def cluster_identity(self, study: ResolvedStudy) -> dict[str, Json]:
        """What decides clusters, their tasks and their rounds."""
        names = ("devices", "local_shots", "local_steps", "queries", "max_rounds")
        energy = {name: getattr(energy_of(study.study), name) for name in names} | {"inner": self.inner}
        loop = inner_identity(study, self.inner)
        return {**data_identity(study), "loop": loop, "seed": self.seed, **energy, "devices": list(energy["devices"])}

    def memory(self, study: ResolvedStudy) -> int:
        # Models of all devices before and after a round, and the bodies.
        models = 2 * max(energy_of(study.study).devices) + len(meta_rounds(study.study))
        return super().memory(study) + models * study.model_bytes

    def bodies(
        self, context: Context, learner: Learner, parents: Mapping[str, Artifact], steps: Iterable[int]
    ) -> dict[int, Body]:
        """The bodies after these numbers of meta-training rounds."""
        trained, config = parents["trained"], chosen_inner(context, parents["rates"], self.inner)
        config = replace(config, steps=energy_of(context.study).local_steps, learned_rates=False)
        return {step: Body(learner, *read_parameters(learner, trained, step), config) for step in steps}


@dataclass(frozen=True)
class EnergyTrial(ClusterStage):
    """The accuracy that clusters hold on validation tasks within the cap, on which the target is fixed."""

    name: ClassVar = "energy-trial"
    version: ClassVar = 1

    @classmethod
    def tasks(cls, shape: StudyShape) -> Iterable[Self]:
        if shape.study.energy is None:
            return ()
        has_prefix = outer_depth(shape.study) is not None
        return (cls(inner, shape.study.seeds[0], has_prefix) for inner in section_of(shape.study).inner)

    def parents(self) -> Mapping[str, Stage]:
        return {"trained": self.trained, "rates": MetaRates.of_pretrained(self.has_prefix)}

    def identity(self, study: ResolvedStudy, parents: Mapping[str, ArtifactMeta]) -> Mapping[str, Json]:
        last = meta_rounds(study.study)[-1]
        return {**self.cluster_identity(study), "tasks": energy_of(study.study).validation_tasks, "last": last}

    def build(self, context: Context, parents: Mapping[str, Artifact], folder: Path) -> None:
        from layerprobe.energy import held_accuracy
        from layerprobe.progress import track

        energy = energy_of(context.study)
        learner = make_learner(context, self.seed)
        sampler = cluster_sampler(context.few_shot, context.few_shot.parts.validation)
        episodes = [sampler.draw(number) for number in range(energy.validation_tasks)]
        tasks = cluster_tasks(context, learner, episodes, energy.local_shots)
        steps = (0, meta_rounds(context.study)[-1])
        held = []
        for body in self.bodies(context, learner, parents, steps).values():
            found = [
                body.run(body.above(task), "mesh", max(energy.devices), target=None, max_rounds=energy.max_rounds)
                for task in track(tasks, "validation tasks")
            ]
            held.append([held_accuracy(one.accuracy) for one in found])
        content = {"meta_rounds": steps, "held": held}
        (folder / HELD).write_text(json.dumps(content), encoding="utf-8")


@dataclass(frozen=True)
class EnergyRounds(ClusterStage):
    """The rounds of every cluster after every number of meta-training rounds."""

    trials: tuple[EnergyTrial, ...]

    name: ClassVar = "energy-rounds"
    version: ClassVar = 1
    tables: ClassVar = (ENERGY_ROUNDS,)

    @classmethod
    def tasks(cls, shape: StudyShape) -> Iterable[Self]:
        trials = tuple(EnergyTrial.tasks(shape))
        for trial in trials:
            yield from (cls(trial.inner, seed, trial.has_prefix, trials) for seed in shape.study.seeds)

    def parents(self) -> Mapping[str, Stage]:
        rates = MetaRates.of_pretrained(self.has_prefix)
        return {"trained": self.trained, "rates": rates, **{trial.id: trial for trial in self.trials}}

    def identity(self, study: ResolvedStudy, parents: Mapping[str, ArtifactMeta]) -> Mapping[str, Json]:
        energy = energy_of(study.study)
        own = {"target": energy.target, "topologies": list(energy.topologies), "tasks": energy.tasks}
        return {**self.cluster_identity(study), **own, "meta_rounds": list(meta_rounds(study.study))}

    def build(self, context: Context, parents: Mapping[str, Artifact], folder: Path) -> None:
        import pandas as pd

        from layerprobe.progress import track

        energy = energy_of(context.study)
        held = {
            trial.inner: json.loads((parents[trial.id].folder / HELD).read_text(encoding="utf-8"))["held"]
            for trial in self.trials
        }
        target = target_accuracy(held, energy.target, energy.max_rounds)
        learner = make_learner(context, self.seed)
        sampler = cluster_sampler(context.few_shot, context.few_shot.parts.test)
        episodes = [sampler.draw(number) for number in range(energy.tasks)]
        tasks = cluster_tasks(context, learner, episodes, energy.local_shots)
        bodies = self.bodies(context, learner, parents, meta_rounds(context.study))
        rows = []
        for number, task in enumerate(track(tasks, "tasks of clusters")):
            group = context.few_shot.group_of(context.few_shot.parts.test, episodes[number])
            for t0, body in bodies.items():
                inputs = body.above(task)
                for topology in energy.topologies:
                    for devices in energy.devices:
                        run = body.run(inputs, topology, devices, target=target, max_rounds=energy.max_rounds)
                        row = {"inner": self.inner, "topology": topology, "devices": devices, "meta_rounds": t0}
                        row |= {"seed": self.seed, "task": number, "group": group, "rounds": run.rounds}
                        row |= {"censored": run.censored, "target": target, "accuracy": run.accuracy[-1]}
                        rows.append(row | {"disagreement": run.disagreement[-1]})
        save(folder, "energy_rounds", pd.DataFrame(rows)[list(ENERGY_ROUNDS.columns)])


def target_accuracy(held: Mapping[str, Sequence[Sequence[float]]], given: float | None, max_rounds: int) -> float:
    """The accuracy that every cluster adapts up to: the study's, or by default a share of what all depths hold on validation.

    Args:
        held: depth -> accuracy that was held within the cap, by number of meta-training rounds and validation task.
        given: `energy.target`.
        max_rounds: the cap.

    Raises:
        StudyError: if no depth holds the given target on any validation task.
    """
    best = {depth: [max(of_task) for of_task in zip(*by_t0, strict=True)] for depth, by_t0 in held.items()}
    highest, depth = max((max(values), depth) for depth, values in best.items())
    if given is None:
        return TARGET_SHARE * min(min(values) for values in best.values())
    if given > highest:
        raise StudyError(
            f"energy.target is {given:g}, which no depth reaches within energy.max_rounds = {max_rounds} on any validation task "
            f"(highest: {highest:.3f}, by {depth}); lower it, or leave it out."
        )
    return given
