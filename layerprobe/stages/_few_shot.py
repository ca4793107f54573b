"""What the stages of few-shot studies share: bodies, their parameters, and inputs from a cached prefix."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from layerprobe.few_shot import given_rate, inner_config, outer_depth, section_of
from layerprobe.stage import COLUMNS, Json, ResolvedStudy, Stage, StudyShape
from layerprobe.store import Artifact

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from layerprobe.context import Context
    from layerprobe.metalearning import Episode, EpisodeSampler, InnerConfig, Learner, TextInputs

PARAMETERS = "parameters.safetensors"
RATE = "rate of "
BODY_COLUMNS = {
    "method": "body: `meta-trained`, `multiclass` or `multitask` (fine-tuned on the meta-train classes), `pretrained` or `random`",
    "seed": COLUMNS["seed"],
    "inner": "depth of the inner loop, in training where the body was meta-trained and at test time; empty for other readers "
    "of other bodies",
}
"""Columns that say which body a row is about."""


@dataclass(frozen=True)
class BodyStage(Stage):
    """A stage of few-shot studies that is about one body."""

    body: str
    """`meta-trained`, `multiclass`, `multitask`, `pretrained` or `random`."""
    inner: str
    """Depth of the inner loop that a body was meta-trained with; empty for others."""
    seed: int

    few_shot: ClassVar = True
    accelerator: ClassVar = True

    @property
    def title(self) -> str:
        return f"{self.body}{f' ({self.inner})' if self.inner else ''} seed {self.seed}"

    @property
    def named(self) -> dict[str, Json]:
        return {"method": self.body, "seed": self.seed, "inner": self.inner}

    @property
    def is_trained(self) -> bool:
        return self.body in ("meta-trained", "multiclass", "multitask")


def bodies(shape: StudyShape) -> list[tuple[str, str, int]]:
    """Body, depth of its inner loop and seed; the pretrained body has one seed."""
    few, study = section_of(shape.study), shape.study
    baselines = [
        (body, "", seed)
        for body in few.baselines
        for seed in (study.seeds[:1] if body == "pretrained" else study.seeds)
    ]
    return [*baselines, *(("meta-trained", depth, seed) for depth in few.inner for seed in study.seeds)]


def data_identity(study: ResolvedStudy) -> dict[str, Json]:
    """What decides the episodes and their tokens."""
    few, data = section_of(study.study), study.study.data
    names = ("ways", "shots", "queries", "within_group")
    return {
        "encoder": study.encoder,
        "corpus": study.corpus,
        "split_seed": data.seed,
        "max_length": data.max_length,
        **{name: getattr(few, name) for name in names},
    }


def inner_identity(study: ResolvedStudy, depth: str) -> dict[str, Json]:
    """What decides an inner loop, besides a rate that is chosen."""
    config = inner_config(study.study, depth, rate=1.0)
    names = ("depth", "steps", "first_order", "l2", "learned_rates")
    return {**{name: getattr(config, name) for name in names}, "rate": given_rate(study.study, depth)}


def chosen_inner(context: Context, rates: Artifact, depth: str) -> InnerConfig:
    """The inner loop of one depth with the rate of the stage `meta-rates`."""
    table = rates.table("few_shot_rates")
    row = table[(table["inner"] == depth) & table["chosen"]]
    return inner_config(context.study, depth, float(row["rate"].iloc[0]))


def make_learner(context: Context, seed: int, *, random: bool = False) -> Learner:
    """The pretrained encoder (or one with random weights) under a fresh head."""
    from layerprobe.metalearning import encoder_learner

    few = section_of(context.study)
    return encoder_learner(context.encoder, ways=few.ways, seed=seed, random=random, device=context.device)


def make_inputs(context: Context, learner: Learner, prefix: Artifact | None) -> TextInputs:
    """All examples of the study as inputs, from the frozen prefix where there is one."""
    from layerprobe.metalearning import TextInputs

    examples = context.few_shot.rows.examples
    inputs = TextInputs(context.encoder, examples, max_length=context.study.data.max_length, device=context.device)
    depth = outer_depth(context.study)
    if prefix is not None and depth is not None:
        inputs.open_cache(prefix.folder, learner, depth=depth)
    return inputs


def train_sampler(context: Context, seed: int) -> EpisodeSampler:
    return context.few_shot.sampler(context.few_shot.parts.train, seed)


def validation_sampler(context: Context) -> EpisodeSampler:
    return context.few_shot.sampler(context.few_shot.parts.validation, context.study.data.seed)


def outer_loop_episodes(context: Context) -> list[Episode]:
    """The episodes that the outer loops of all seeds train on, and those that they are validated on."""
    few, drawn = section_of(context.study), []
    for seed in context.study.seeds:
        sampler = train_sampler(context, seed)
        drawn += [sampler.draw(number) for number in range(few.outer_steps * few.tasks_per_step)]
    sampler = validation_sampler(context)
    return drawn + [sampler.draw(number) for number in range(few.validation_tasks)]


def test_episodes(context: Context, count: int) -> list[Episode]:
    """The first episodes of meta-test classes; the same for every body and reader."""
    sampler = context.few_shot.sampler(context.few_shot.parts.test, context.study.data.seed)
    return [sampler.draw(number) for number in range(count)]


def rows_of_episodes(episodes: list[Episode]) -> np.ndarray:
    import numpy as np

    return np.unique(np.concatenate([np.r_[one.support.ravel(), one.query.ravel()] for one in episodes]))


def save_parameters(folder: Path, values: Mapping[str, Tensor], rates: Mapping[str, Tensor] | None) -> None:
    """Write the parameters that training changed."""
    from safetensors.torch import save_file

    tensors = {**values, **{f"{RATE}{part}": rate for part, rate in (rates or {}).items()}}
    save_file(
        {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}, folder / PARAMETERS
    )


def read_parameters(
    learner: Learner, trained: Artifact | None, step: int | None = None
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The parameters of a body, and its learned inner rates if there are any.

    Args:
        learner: the model as it was loaded.
        trained: the trained body; None for the pretrained one.
        step: the outer step after which they were kept (`few_shot.keep_steps`, or 0 for those before training); by default
            those of the lowest validation loss.
    """
    parameters = learner.parameters()
    if trained is None or step == 0:
        return parameters, None
    from safetensors.torch import load_file

    from layerprobe.metalearning import kept_file

    values = load_file(trained.folder / PARAMETERS if step is None else kept_file(trained.folder, step))
    device = parameters["head.weight"].device
    rates = {name.removeprefix(RATE): value.to(device) for name, value in values.items() if name.startswith(RATE)}
    changed = {name: value.to(device) for name, value in values.items() if not name.startswith(RATE)}
    return {**parameters, **changed}, rates or None
