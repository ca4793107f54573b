"""The stages that follow the convergence of the outer loop by number of inner steps and geometry of the inner loss."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from layerprobe.context import Context
from layerprobe.few_shot import naming_few_shot_keys, section_of
from layerprobe.stage import COLUMNS, Json, ResolvedStudy, Stage, StudyShape, TableSpec, columns
from layerprobe.stages._artifacts import save
from layerprobe.stages._few_shot import (
    data_identity,
    make_learner,
    outer_loop_episodes,
    rows_of_episodes,
    train_sampler,
    validation_sampler,
)
from layerprobe.store import Artifact, ArtifactMeta

if TYPE_CHECKING:
    from layerprobe.metalearning import InnerConfig, Learner, OuterConfig, TextInputs

STEPS = (1, 3, 5, 10)
GEOMETRIES = {"strongly convex": "head", "nonconvex": "top:1"}
"""Geometry of the inner loss -> depth of the inner loop."""
ALGORITHMS = {"head": "ANIL", "top:1": "top:1"}
L2 = 0.1
"""Penalty that makes the head's loss strongly convex where the study has none."""
OUTER_DEPTH = 1
RATES_FILE = "rates.json"
FEW_SHOT_CONVERGENCE = TableSpec(
    "few_shot_convergence",
    "Convergence of the outer loop over the last block and the head: one row per geometry, number of inner steps, choice of the "
    "inner rate, seed and outer step.",
    {
        **columns(seconds="time since the start, without validations"),
        "geometry": "of the inner loss: `strongly convex` (head with an L2 penalty) or `nonconvex` (head and last block)",
        "algorithm": "`ANIL`, or `top:1`, which is MAML over everything that the outer loop trains",
        "inner_steps": "number of inner steps",
        "rate_choice": "`own`: the rate of `few_shot.rate_grid` with the lowest validation loss for the geometry before "
        "meta-training, averaged over the numbers of inner steps; `equal`: the smaller of the two",
        "inner_rate": "inner rate",
        "seed": COLUMNS["seed"],
        "step": "outer step, from 1; 0 is the validation before the first",
        "loss": "mean query loss on the validation episodes, in nats; missing between validations",
        "gradient_norm": "norm of the mean meta-gradient",
        "head_gradient_norm": "norm of its part by the head",
        "flops": "floating-point operations of the outer steps so far, above the cached prefix and without validations",
        "note": "why training ended early; empty if it did not",
    },
)


@dataclass(frozen=True)
class ConvergencePrefix(Stage):
    """The values below the last block, for every example of the grid's episodes."""

    name: ClassVar = "convergence-prefix"
    version: ClassVar = 1
    few_shot: ClassVar = True
    accelerator: ClassVar = True
    first_guess: ClassVar = 60.0

    @property
    def title(self) -> str:
        return "frozen blocks of the convergence grid"

    @classmethod
    def tasks(cls, shape: StudyShape) -> Iterable[Self]:
        return (cls(),) if section_of(shape.study).convergence else ()

    def identity(self, study: ResolvedStudy, parents: Mapping[str, ArtifactMeta]) -> Mapping[str, Json]:
        few = section_of(study.study)
        names = ("outer_steps", "tasks_per_step", "validation_tasks")
        return {
            **data_identity(study),
            **{name: getattr(few, name) for name in names},
            "seeds": list(study.study.seeds),
        }

    def build(self, context: Context, parents: Mapping[str, Artifact], folder: Path) -> None:
        inputs = text_inputs(context)
        rows = rows_of_episodes(outer_loop_episodes(context))
        inputs.cache(make_learner(context, 0), depth=OUTER_DEPTH, rows=rows)
        inputs.save_cache(folder)

    def size(self, study: ResolvedStudy) -> int:
        few = section_of(study.study)
        drawn = few.outer_steps * few.tasks_per_step * len(study.study.seeds) + few.validation_tasks
        rows = min(study.n_train, drawn * few.ways * (few.shots + few.queries))
        return 4 * rows * study.width * min(32, study.study.data.max_length)


@dataclass(frozen=True)
class ConvergenceRates(Stage):
    """The inner rate of each geometry: equal numbers of trials, on validation episodes before meta-training."""

    name: ClassVar = "convergence-rates"
    version: ClassVar = 1
    few_shot: ClassVar = True
    accelerator: ClassVar = True

    @property
    def title(self) -> str:
        return "inner rates of the convergence grid"

    @classmethod
    def tasks(cls, shape: StudyShape) -> Iterable[Self]:
        return (cls(),) if section_of(shape.study).convergence else ()

    def parents(self) -> Mapping[str, Stage]:
        return {"prefix": ConvergencePrefix()}

    def identity(self, study: ResolvedStudy, parents: Mapping[str, ArtifactMeta]) -> Mapping[str, Json]:
        few = section_of(study.study)
        grid = {"rates": list(few.rate_grid), "steps": list(STEPS), "l2": few.l2 or L2, "seed": study.study.seeds[0]}
        return {**data_identity(study), **grid, "validation_tasks": few.validation_tasks}

    def build(self, context: Context, parents: Mapping[str, Artifact], folder: Path) -> None:
        import numpy as np

        from layerprobe.metalearning import RateTrial, best_rate, try_rates

        few, learner = section_of(context.study), make_learner(context, context.study.seeds[0])
        inputs, sampler = text_inputs(context), validation_sampler(context)
        inputs.open_cache(parents["prefix"].folder, learner, depth=OUTER_DEPTH)
        tasks = [inputs.task(sampler.draw(number)) for number in range(few.validation_tasks)]
        losses: dict[str, dict[float, float | None]] = {}
        own: dict[str, float] = {}
        for geometry in GEOMETRIES:
            configs = [inner_of(context, geometry, steps, 1.0) for steps in STEPS]
            found = [try_rates(learner, learner.parameters(), tasks, one, few.rate_grid) for one in configs]
            trials = []
            for of_rate in zip(*found, strict=True):
                tried = [trial.loss for trial in of_rate if trial.loss is not None]
                mean = float(np.mean(tried)) if len(tried) == len(STEPS) else None
                trials.append(RateTrial(of_rate[0].rate, mean, None))
            with naming_few_shot_keys():
                own[geometry] = best_rate(trials)
            losses[geometry] = {trial.rate: trial.loss for trial in trials}
        values = {"own": own, "equal": dict.fromkeys(own, min(own.values())), "losses": losses}
        (folder / RATES_FILE).write_text(json.dumps(values), encoding="utf-8")


@dataclass(frozen=True)
class MetaConvergence(Stage):
    """Outer loops with one geometry and number of inner steps, with the geometry's own inner rate and the common one."""

    geometry: str
    inner_steps: int
    seed: int

    name: ClassVar = "meta-convergence"
    version: ClassVar = 1
    few_shot: ClassVar = True
    accelerator: ClassVar = True
    first_guess: ClassVar = 300.0
    tables: ClassVar = (FEW_SHOT_CONVERGENCE,)

    @property
    def title(self) -> str:
        return f"{self.geometry}, {self.inner_steps} inner steps, seed {self.seed}"

    @classmethod
    def tasks(cls, shape: StudyShape) -> Iterable[Self]:
        if section_of(shape.study).convergence:
            for geometry in GEOMETRIES:
                for steps in STEPS:
                    yield from (cls(geometry, steps, seed) for seed in shape.study.seeds)

    def parents(self) -> Mapping[str, Stage]:
        return {"prefix": ConvergencePrefix(), "rates": ConvergenceRates()}

    def identity(self, study: ResolvedStudy, parents: Mapping[str, ArtifactMeta]) -> Mapping[str, Json]:
        few = section_of(study.study)
        names = ("outer_steps", "outer_rate", "tasks_per_step", "validate_every", "validation_tasks", "first_order")
        own = {"geometry": self.geometry, "inner_steps": self.inner_steps, "seed": self.seed, "l2": few.l2 or L2}
        return {**data_identity(study), **{name: getattr(few, name) for name in names}, **own}

    def build(self, context: Context, parents: Mapping[str, Artifact], folder: Path) -> None:
        import pandas as pd

        rates = json.loads((parents["rates"].folder / RATES_FILE).read_text(encoding="utf-8"))
        learner, inputs = make_learner(context, self.seed), text_inputs(context)
        inputs.open_cache(parents["prefix"].folder, learner, depth=OUTER_DEPTH)
        curves: dict[float, pd.DataFrame] = {}
        frames = []
        for choice in ("own", "equal"):
            rate = rates[choice][self.geometry]
            if rate not in curves:
                curves[rate] = self.curve(context, learner, inputs, rate)
            frames.append(curves[rate].assign(rate_choice=choice, inner_rate=rate))
        named = {"geometry": self.geometry, "algorithm": ALGORITHMS[GEOMETRIES[self.geometry]]}
        table = pd.concat(frames).assign(**named, inner_steps=self.inner_steps, seed=self.seed)
        save(folder, "few_shot_convergence", table[[one for one in FEW_SHOT_CONVERGENCE.columns if one in table]])

    def curve(self, context: Context, learner: Learner, inputs: TextInputs, rate: float) -> Any:
        """One outer loop: its log with FLOPs."""
        import numpy as np
        import pandas as pd

        from layerprobe.errors import ArgumentError
        from layerprobe.metalearning import meta_train

        training, validation = train_sampler(context, self.seed), validation_sampler(context)
        inner, outer = inner_of(context, self.geometry, self.inner_steps, rate), outer_of(context)
        kept = ("step", "loss", "gradient_norm", "head_gradient_norm", "seconds", "flops", "note")
        try:
            result = meta_train(
                learner,
                lambda number: inputs.task(training.draw(number)),
                lambda number: inputs.task(validation.draw(number)),
                inner,
                outer,
            )
        except ArgumentError as error:
            empty = dict.fromkeys(kept, np.nan) | {"step": 0, "seconds": 0.0, "note": str(error)}
            return pd.DataFrame([empty])
        log = pd.DataFrame([vars(entry) for entry in result.log])
        per_step = outer.tasks_per_step * flops_of(learner, inputs.task(training.draw(0)), inner)
        log = log.assign(loss=log["validation_loss"], flops=per_step * log["step"].astype(float), note="")
        return log[list(kept)]


def text_inputs(context: Context) -> TextInputs:
    from layerprobe.metalearning import TextInputs

    examples = context.few_shot.rows.examples
    return TextInputs(context.encoder, examples, max_length=context.study.data.max_length, device=context.device)


def inner_of(context: Context, geometry: str, steps: int, rate: float) -> InnerConfig:
    from layerprobe.metalearning import InnerConfig

    few, depth = section_of(context.study), GEOMETRIES[geometry]
    l2 = (few.l2 or L2) if depth == "head" else 0.0
    return InnerConfig(depth, steps, rate, first_order=few.first_order, l2=l2)


def outer_of(context: Context) -> OuterConfig:
    """The study's outer loop over the last block and the head, without early stopping, so that curves are of one length."""
    from layerprobe.metalearning import OuterConfig

    few = section_of(context.study)
    numbers = few.tasks_per_step, few.validate_every, few.validation_tasks
    return OuterConfig(OUTER_DEPTH, few.outer_steps, few.outer_rate, *numbers, None)


def flops_of(learner: Learner, task: Any, inner: InnerConfig) -> int:
    """Floating-point operations of one episode's meta-gradient, above the cached prefix."""
    from torch.utils.flop_counter import FlopCounterMode

    from layerprobe.metalearning import meta_gradient

    outer = [*learner.names_at(OUTER_DEPTH), "head.weight", "head.bias"]
    parameters = {name: value.clone().requires_grad_(name in outer) for name, value in learner.parameters().items()}
    with FlopCounterMode(display=False) as counter:
        meta_gradient(learner, parameters, task, inner, outer=outer)
    return counter.get_total_flops()
