"""The stage that counts what one episode of meta-training computes, and measures its time and memory."""

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
    chosen_inner,
    data_identity,
    inner_identity,
    make_inputs,
    make_learner,
    train_sampler,
)
from layerprobe.stages.meta_prefix import MetaPrefix
from layerprobe.stages.meta_rates import MetaRates
from layerprobe.store import Artifact, ArtifactMeta

REPEATS = 3
"""Episodes that seconds are the median of."""
COUNTED = {
    "inner_gradients": "gradients of the inner loss",
    "outer_gradients": "gradients of the query loss",
    "second_order_products": "reverse passes through an inner gradient; each gives one Hessian-vector product and the mixed product",
    "body_forward_passes": "batches that pass through the last block: support and query examples",
    "body_backward_passes": "times that the output of the last block receives a gradient, those of second-order products included",
}
FEW_SHOT_COUNTS = TableSpec(
    "few_shot_counts",
    "What one episode of meta-training computes: one row per inner depth and number of inner steps, counted by hooks.",
    columns(
        inner="depth of the inner loop",
        inner_steps="number of inner steps",
        first_order="whether second derivatives are left out",
        **COUNTED,
        **{f"{name}_theory": f"{name}, by theory" for name in COUNTED},
        seconds=f"seconds of one episode's meta-gradient, median of {REPEATS}",
        peak_bytes="largest memory above that before the first: of the device's allocator on CUDA, else of this process",
    ),
)


@dataclass(frozen=True)
class MetaCounts(Stage):
    """Gradients, products, passes, seconds and memory of each inner depth."""

    has_prefix: bool = False

    name: ClassVar = "meta-counts"
    version: ClassVar = 1
    few_shot: ClassVar = True
    accelerator: ClassVar = True
    first_guess: ClassVar = 20.0
    tables: ClassVar = (FEW_SHOT_COUNTS,)

    @property
    def title(self) -> str:
        return "all inner depths"

    @classmethod
    def tasks(cls, shape: StudyShape) -> Iterable[Self]:
        yield cls(outer_depth(shape.study) is not None)

    def parents(self) -> Mapping[str, Stage]:
        prefix: dict[str, Stage] = {"prefix": MetaPrefix()} if self.has_prefix else {}
        return {**prefix, "rates": MetaRates.of_pretrained(self.has_prefix)}

    def identity(self, study: ResolvedStudy, parents: Mapping[str, ArtifactMeta]) -> Mapping[str, Json]:
        few = section_of(study.study)
        loops = [inner_identity(study, depth) for depth in few.inner]
        return {**data_identity(study), "outer": few.outer, "loops": loops, "seed": study.study.seeds[0]}

    def build(self, context: Context, parents: Mapping[str, Artifact], folder: Path) -> None:
        import pandas as pd

        from layerprobe.metalearning import counting, meta_gradient

        study, few, seed = context.study, section_of(context.study), context.study.seeds[0]
        learner = make_learner(context, seed)
        inputs = make_inputs(context, learner, parents.get("prefix"))
        sampler = train_sampler(context, seed)
        tasks = [inputs.task(sampler.draw(number)) for number in range(REPEATS)]
        outer = [*learner.names_at(outer_config(study).depth), "head.weight", "head.bias"]
        parameters = {name: value.clone().requires_grad_(name in outer) for name, value in learner.parameters().items()}
        last, rows = learner.names[learner.n_layers], []
        for depth in few.inner:
            for steps in sorted({1, few.inner_steps}):
                config = replace(chosen_inner(context, parents["rates"], depth), steps=steps)

                def step(number: int, counts: Any = None, config: Any = config) -> None:
                    with naming_few_shot_keys():
                        meta_gradient(learner, parameters, tasks[number], config, outer=outer, counts=counts)

                with counting(learner) as counts:
                    step(0, counts)
                found = (
                    counts.inner_gradients,
                    counts.outer_gradients,
                    counts.second_order_products,
                    counts.forward_passes[last],
                    counts.backward_passes[last],
                )
                body_is_adapted = config.blocks(learner.n_layers) != 0
                theory = counts_in_theory(steps, body_is_adapted, config.first_order, outer_config(study).depth != 0)
                seconds, peak = timed(step, context.device)
                row = {"inner": depth, "inner_steps": steps, "first_order": config.first_order}
                row |= dict(zip(COUNTED, found, strict=True))
                row |= {f"{name}_theory": number for name, number in zip(COUNTED, theory, strict=True)}
                rows.append(row | {"seconds": seconds, "peak_bytes": peak})
        save(folder, "few_shot_counts", pd.DataFrame(rows))


def counts_in_theory(
    steps: int, body_is_adapted: bool, first_order: bool, body_is_trained: bool = True
) -> tuple[int, int, int, int, int]:
    """Inner and outer gradients, second-order products, and forward and backward passes of the last block, for one episode.

    With the head alone (ANIL) the body passes support and query examples once each, whatever the number of steps. An inner
    loop over the body passes the support examples once per step and the query examples once; its second-order products pass
    backward through each of the support passes again.

    Args:
        steps: number of inner steps.
        body_is_adapted: whether the inner loop adapts the last block.
        first_order: whether second derivatives are left out.
        body_is_trained: whether the outer loop trains any block.
    """
    products = 0 if first_order else steps
    if not body_is_adapted:
        backward = 0 if not body_is_trained else 1 if first_order else 2
        return steps, 1, products, 2, backward
    return steps, 1, products, steps + 1, steps + 1 + products


def timed(step: Any, device: str) -> tuple[float, int]:
    """Median seconds of the episodes, and the largest memory above that before."""
    import statistics
    import time

    import torch

    from layerprobe.adaptation import Meter

    on_cuda = device.startswith("cuda")
    if on_cuda:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        start_bytes = torch.cuda.memory_allocated(device)
    seconds = []
    with Meter(energy=False) as meter:
        for number in range(REPEATS):
            start = time.perf_counter()
            step(number)
            if on_cuda:
                torch.cuda.synchronize(device)
            seconds.append(time.perf_counter() - start)
    peak = torch.cuda.max_memory_allocated(device) - start_bytes if on_cuda else meter.cost.peak_bytes
    return statistics.median(seconds), peak
