"""The cost of meta-gradients compared with bare passes and a plain loop, of cached prefixes, and of batched heads.

    python benchmarks/metalearning.py               # a few minutes on two cores
    python benchmarks/metalearning.py --rounds 2    # a quick look

Each ratio is the median over rounds of two times measured one after the other in this run. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from statistics import median
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import torch
from torch import nn
from torch.func import functional_call

from layerprobe import load_encoder
from layerprobe.data import DataSource, read_examples
from layerprobe.encoder import collate
from layerprobe.metalearning import (
    EpisodeSampler,
    InnerConfig,
    Learner,
    State,
    TextInputs,
    adapt,
    adapt_heads,
    encoder_learner,
    meta_gradient,
    split_classes,
)

WAYS, SHOTS, QUERIES, LENGTH = 5, 5, 10, 32
GOAL_ANIL, GOAL_MAML = 1.3, 1.0


class Bench:
    """One encoder, one episode, and the operations on it."""

    def __init__(self) -> None:
        self.encoder = load_encoder("bundled:minilm-l6")
        rows = read_examples(DataSource("bundled:icd10"))
        self.examples = rows.examples
        labels = [rows.label_names[label] for label in self.examples.labels]
        parts = split_classes(self.examples.texts, labels, rows.groups, min_texts=SHOTS + QUERIES, ways=WAYS, seed=0)
        self.sampler = EpisodeSampler(parts.train, WAYS, SHOTS, QUERIES, True, 0)
        self.episode = self.sampler.draw(0)
        self.learner = encoder_learner(self.encoder, ways=WAYS)
        self.inputs = TextInputs(self.encoder, self.examples, max_length=LENGTH)
        self.task = self.inputs.task(self.episode)
        # The same model as transformers runs it, with the same attention, for what is compared.
        self.model: Any = self.encoder.classifier(tuple(map(str, range(WAYS))), seed=0, pooling="mean").eval()
        self.model.base_model.set_attn_implementation("eager")
        self.batches = [
            collate(self.encoder, self.inputs.encodings(half.ravel()), range(half.size))
            for half in (self.episode.support, self.episode.query)
        ]
        self.labels = [self.task.support_labels, self.task.query_labels]

    def loss(self, parameters: Any, half: int) -> torch.Tensor:
        logits = functional_call(self.model, parameters, kwargs=self.batches[half]).logits
        return nn.functional.cross_entropy(logits, self.labels[half])

    def bare(self) -> None:
        """One forward and backward pass over the support and over the query examples."""
        parameters = dict(self.model.named_parameters())
        loss = self.loss(parameters, 0) + self.loss(parameters, 1)
        torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)

    def plain_maml(self, steps: int, rate: float) -> None:
        """MAML as learn2learn's `clone` and `adapt` do it: the whole model per step, every parameter updated."""
        first = {name: value.detach().clone().requires_grad_() for name, value in self.model.named_parameters()}
        current = dict(first)
        for _ in range(steps):
            gradients = torch.autograd.grad(
                self.loss(current, 0), list(current.values()), create_graph=True, allow_unused=True
            )
            current = {
                name: value if gradient is None else value - rate * gradient
                for (name, value), gradient in zip(current.items(), gradients, strict=True)
            }
        torch.autograd.grad(self.loss(current, 1), list(first.values()), allow_unused=True)

    def meta_step(self, depth: str, steps: int, *, outer: int | None = None, inputs: TextInputs | None = None) -> None:
        names = [*self.learner.names_at(outer), "head.weight", "head.bias"]
        parameters = {
            name: value.clone().requires_grad_(name in names) for name, value in self.learner.parameters().items()
        }
        task = self.task if inputs is None else inputs.task(self.episode)
        meta_gradient(self.learner, parameters, task, InnerConfig(depth, steps, 0.05), outer=names)


def ratio(one: Callable[[], object], other: Callable[[], object], rounds: int) -> float:
    """Median ratio of the times of two operations measured in turns, after one turn that is not counted."""
    ratios = []
    for number in range(rounds + 1):
        start = time.perf_counter()
        one()
        middle = time.perf_counter()
        other()
        if number:
            ratios.append((middle - start) / (time.perf_counter() - middle))
    return median(ratios)


def line(name: str, value: float, goal: float | None = None) -> None:
    verdict = "" if goal is None else f"   goal at most {goal:g}: {'met' if value <= goal else 'missed'}"
    print(f"{name:78} {value:6.2f}{verdict}", flush=True)


def heads(rounds: int) -> float:
    """Time of the batched inner loop of the head as a share of a loop over 32 tasks."""
    rng = np.random.default_rng(0)
    # A body that is the identity, so that only the head costs.
    learner = Learner([nn.Identity(), nn.Identity()], width=384, ways=WAYS)
    vectors = torch.from_numpy(rng.standard_normal((32, WAYS * SHOTS, 384)).astype(np.float32))
    labels = torch.arange(WAYS).repeat_interleave(SHOTS).expand(32, -1)
    config = InnerConfig("head", 5, 0.1)
    parameters = learner.parameters()
    head = parameters["head.weight"], parameters["head.bias"]

    def loop() -> None:
        for one, targets in zip(vectors, labels, strict=True):
            adapt(learner, parameters, State(0, one), targets, config)

    return ratio(lambda: adapt_heads(vectors, labels, head, config), loop, rounds)


def blocks_of_tasks(bench: Bench, cached: TextInputs, rounds: int, tasks: int = 4, steps: int = 3) -> float:
    """Time of meta-gradients of `top:2` vectorised over tasks by `torch.func.vmap`, as a share of a loop over them."""
    learner, rate = bench.learner, 0.05
    episodes = [bench.sampler.draw(number) for number in range(tasks)]
    loop_tasks = [cached.task(episode) for episode in episodes]
    names = [*learner.names_at(2), "head.weight", "head.bias"]
    config = InnerConfig("top:2", steps, rate)
    start = {name: value.clone() for name, value in learner.parameters().items() if name in names}
    stacked: list[torch.Tensor] = []
    for half in ("support", "query"):
        groups = [cached.state(getattr(one, half), divided=False).value.groups[0] for one in episodes]
        longest = max(group.hidden.shape[1] for group in groups)
        pads = [longest - group.hidden.shape[1] for group in groups]
        stacked.append(
            torch.stack([nn.functional.pad(one.hidden, (0, 0, 0, pad)) for one, pad in zip(groups, pads, strict=True)])
        )
        stacked.append(
            torch.stack([nn.functional.pad(one.mask, (0, pad)) for one, pad in zip(groups, pads, strict=True)])
        )
        stacked.append(torch.stack([getattr(one, f"{half}_labels") for one in loop_tasks]))

    def loss(parameters: Any, hidden: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        real = mask.to(hidden.dtype)
        for number in (learner.n_layers - 1, learner.n_layers):
            prefix, block = f"block {number}.block.", learner.parts[number].block
            own = {name.removeprefix(prefix): value for name, value in parameters.items() if name.startswith(prefix)}
            output = functional_call(block, own, (hidden,), {"attention_mask": (1 - real)[:, None, None] * -1e9})
            hidden = output[0] if isinstance(output, tuple) else output
        vectors = (hidden * real[..., None]).sum(1) / real.sum(1)[:, None]
        return nn.functional.cross_entropy(
            nn.functional.linear(vectors, parameters["head.weight"], parameters["head.bias"]), labels
        )

    def of_task(parameters: Any, *values: torch.Tensor) -> torch.Tensor:
        for _ in range(steps):
            gradients = torch.func.grad(loss)(parameters, *values[:3])
            parameters = {name: value - rate * gradients[name] for name, value in parameters.items()}
        return loss(parameters, *values[3:])

    def together() -> Any:
        return torch.func.grad(lambda p: torch.func.vmap(of_task, in_dims=(None, *[0] * 6))(p, *stacked).mean())(start)

    def loop() -> Any:
        total = dict.fromkeys(names, 0.0)
        for task in loop_tasks:
            parameters = {n: v.clone().requires_grad_(n in names) for n, v in learner.parameters().items()}
            found = meta_gradient(learner, parameters, task, config, outer=names)
            total = {name: value + found.gradients[name] / tasks for name, value in total.items()}
        return total

    one, other = together(), loop()
    # Compared as one vector: the gradient of a bias of keys is 0 but for rounding.
    error, size = (
        sum(float(values[name].norm()) ** 2 for name in names) ** 0.5
        for values in ({name: one[name] - other[name] for name in names}, other)
    )
    assert error < 1e-2 * size, (error, size)
    return ratio(together, loop, rounds)


def main(rounds: int) -> None:
    bench = Bench()
    print(f"{WAYS}-way {SHOTS}-shot, {QUERIES} queries per class, MiniLM-L6, at most {LENGTH} tokens")
    for steps in (1, 5, 10):
        value = ratio(lambda steps=steps: bench.meta_step("head", steps), bench.bare, rounds)  # type: ignore[misc]
        line(f"ANIL meta-step, N = {steps}, over the bare forward and backward pass", value, GOAL_ANIL)
    for steps in (1, 3):
        value = ratio(
            lambda steps=steps: bench.meta_step("full", steps),  # type: ignore[misc]
            lambda steps=steps: bench.plain_maml(steps, 0.05),  # type: ignore[misc]
            rounds,
        )
        line(f"MAML meta-step, N = {steps}, over a plain loop", value, GOAL_MAML)
    cached = TextInputs(bench.encoder, bench.examples, max_length=LENGTH)
    rows = np.concatenate([bench.episode.support.ravel(), bench.episode.query.ravel()])
    cached.cache(bench.learner, depth=2, rows=rows)
    for depth in ("head", "top:2"):
        value = ratio(
            lambda depth=depth: bench.meta_step(depth, 3, outer=2, inputs=cached),  # type: ignore[misc]
            lambda depth=depth: bench.meta_step(depth, 3, outer=2, inputs=bench.inputs),  # type: ignore[misc]
            rounds,
        )
        line(f"outer top:2, inner {depth}: cached prefix over none", value)
    line("inner loop of the head for 32 tasks: batched over a loop", heads(rounds))
    episodes = [bench.sampler.draw(number) for number in range(4)]
    cached.cache(
        bench.learner, depth=2, rows=np.concatenate([np.r_[e.support.ravel(), e.query.ravel()] for e in episodes])
    )
    line("meta-gradients of top:2 for 4 tasks: vectorised over a loop", blocks_of_tasks(bench, cached, rounds))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="rounds per ratio")
    main(parser.parse_args().rounds)
