"""Baselines of meta-training: the same outer steps on the same examples, without an inner loop."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from layerprobe.metalearning._inner import InnerConfig, MetaGradient, Task
from layerprobe.metalearning._learner import HEAD, Learner
from layerprobe.metalearning._outer import MetaTrained, Outer, OuterConfig, Tasks


def train_multitask(
    learner: Learner,
    tasks: Tasks,
    validation: Tasks,
    reader: InnerConfig,
    outer: OuterConfig,
    *,
    folder: str | Path | None = None,
) -> MetaTrained:
    """Train on the support and query examples of episodes with one shared head, whose outputs are class positions.

    Positions have no lasting meaning, so that only what all tasks share can be learned (the multitask baseline of Raghu et
    al. 2020).

    Args:
        learner: the model.
        tasks: meta-training episodes.
        validation: meta-validation episodes.
        reader: the inner loop with which they are read.
        outer: the outer loop.
        folder: where the state is kept, as in `meta_train`.
    """
    loop = Outer(learner, reader, outer)

    def gradient(task: Task) -> MetaGradient:
        return _plain_gradient(loop, task, (loop.trained[HEAD[0]], loop.trained[HEAD[1]]))

    return loop.train(gradient, tasks, validation, folder, "multitask training")


def train_multiclass(
    learner: Learner,
    tasks: Tasks,
    validation: Tasks,
    reader: InnerConfig,
    outer: OuterConfig,
    *,
    classes: int,
    folder: str | Path | None = None,
) -> MetaTrained:
    """Train one classifier of all meta-training classes on the examples of episodes; its head is discarded.

    Args:
        learner: the model.
        tasks: meta-training episodes whose labels are numbers of classes, 0 ... `classes` - 1.
        validation: meta-validation episodes, with positions as labels.
        reader: the inner loop with which they are read, from the learner's initial head.
        outer: the outer loop.
        classes: number of meta-training classes.
        folder: where the state is kept, as in `meta_train`.
    """
    like = learner.parameters()[HEAD[0]]
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(classes, like.shape[1], generator=generator, dtype=like.dtype) * 0.02
    loop = Outer(
        learner, reader, outer, {"classes.weight": weight.to(like.device), "classes.bias": like.new_zeros(classes)}
    )

    def gradient(task: Task) -> MetaGradient:
        return _plain_gradient(loop, task, (loop.trained["classes.weight"], loop.trained["classes.bias"]))

    return loop.train(gradient, tasks, validation, folder, "multiclass training")


def _plain_gradient(loop: Outer, task: Task, head: tuple[Tensor, Tensor]) -> MetaGradient:
    """Cross-entropy over support and query examples under one head, and its derivatives."""
    halves = ((task.support, task.support_labels), (task.query, task.query_labels))
    logits = torch.cat(
        [nn.functional.linear(loop.learner.vectors(loop.parameters, state), *head) for state, _ in halves]
    )
    labels = torch.cat([labels for _, labels in halves])
    loss = nn.functional.cross_entropy(logits, labels)
    names = list(loop.trained)
    gradients = torch.autograd.grad(loss, [loop.trained[name] for name in names])
    accuracy = (logits.detach().argmax(1) == labels).double().mean()
    return MetaGradient(float(loss.detach()), float(accuracy), dict(zip(names, gradients, strict=True)))
