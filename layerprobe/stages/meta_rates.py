"""The stage that chooses inner rates on meta-validation episodes, with the same number of trials for every inner depth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from layerprobe.context import Context
from layerprobe.few_shot import given_rate, inner_config, naming_few_shot_keys, section_of
from layerprobe.stage import Json, ResolvedStudy, Stage, TableSpec
from layerprobe.stages._artifacts import save
from layerprobe.stages._few_shot import (
    BODY_COLUMNS,
    BodyStage,
    data_identity,
    inner_identity,
    make_inputs,
    make_learner,
    read_parameters,
    validation_sampler,
)
from layerprobe.stages.meta_prefix import MetaPrefix
from layerprobe.store import Artifact, ArtifactMeta

FEW_SHOT_RATES = TableSpec(
    "few_shot_rates",
    "Inner rates tried on the meta-validation episodes: one row per body, inner depth and rate.",
    {
        "method": f"{BODY_COLUMNS['method'].replace('`meta-trained`, ', '')}; meta-trained bodies take the rates of `pretrained`",
        "seed": BODY_COLUMNS["seed"],
        "inner": "depth of the inner loop",
        "rate": "inner rate",
        "loss": "mean query loss over the episodes after the inner loop, in nats; missing if it diverged, or if the study gives the rate",
        "accuracy": "mean query accuracy over the episodes",
        "n": "number of episodes; 0 if the study gives the rate",
        "chosen": "whether the rate is used: it has the lowest loss, or the study gives it",
        "note": "why a value is missing; empty if none is",
    },
)


@dataclass(frozen=True)
class MetaRates(BodyStage):
    """The inner rate of each depth for one body without meta-training."""

    has_prefix: bool = False
    trained: Stage | None = None
    """What trains the body; None for one that is not trained."""

    name: ClassVar = "meta-rates"
    version: ClassVar = 1
    first_guess: ClassVar = 15.0
    tables: ClassVar = (FEW_SHOT_RATES,)

    @classmethod
    def of_pretrained(cls, has_prefix: bool) -> Self:
        """The rates of the pretrained body, which meta-training uses as well, under the head of seed 0."""
        return cls("pretrained", "", 0, has_prefix)

    def parents(self) -> Mapping[str, Stage]:
        # A body with random weights has another prefix.
        prefix: dict[str, Stage] = {"prefix": MetaPrefix()} if self.has_prefix and self.body != "random" else {}
        return prefix if self.trained is None else {**prefix, "trained": self.trained}

    def identity(self, study: ResolvedStudy, parents: Mapping[str, ArtifactMeta]) -> Mapping[str, Json]:
        few = section_of(study.study)
        loops = [inner_identity(study, depth) for depth in self.depths(few.inner)]
        tried = {"rates": list(few.rate_grid), "validation_tasks": few.validation_tasks}
        return {**data_identity(study), **self.named, "loops": loops, **tried}

    def depths(self, inner: tuple[str, ...]) -> tuple[str, ...]:
        """The study's depths, and `head`, which baselines are validated with."""
        return inner if "head" in inner else ("head", *inner)

    def build(self, context: Context, parents: Mapping[str, Artifact], folder: Path) -> None:
        import pandas as pd

        from layerprobe.metalearning import best_rate, try_rates
        from layerprobe.progress import track

        few, study = section_of(context.study), context.study
        learner = make_learner(context, self.seed, random=self.body == "random")
        inputs = make_inputs(context, learner, parents.get("prefix"))
        parameters, _ = read_parameters(learner, parents.get("trained"))
        parameters |= {name: value for name, value in learner.parameters().items() if name.startswith("head.")}
        sampler = validation_sampler(context)
        rows: list[dict[str, Any]] = []
        for depth in track(self.depths(few.inner), "inner rates"):
            own = {**self.named, "inner": depth}
            given = given_rate(study, depth)
            if given is not None:
                rows.append(own | {"rate": given, "n": 0, "chosen": True, "note": "given by the study"})
                continue
            tasks = [inputs.task(sampler.draw(number)) for number in range(few.validation_tasks)]
            with naming_few_shot_keys():
                trials = try_rates(learner, parameters, tasks, inner_config(study, depth, 1.0), few.rate_grid)
                best = best_rate(trials)
            for trial in trials:
                row = own | vars(trial) | {"n": few.validation_tasks, "chosen": trial.rate == best}
                rows.append(row | {"note": "the inner loop diverged" if trial.loss is None else ""})
        table = pd.DataFrame(rows, columns=list(FEW_SHOT_RATES.columns))
        save(folder, "few_shot_rates", table.astype({"loss": float, "accuracy": float}))
