"""Query loss and accuracy of tasks after the inner loop, one by one or as a batch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from layerprobe.metalearning._inner import InnerConfig, Task, adapt, adapt_heads
from layerprobe.metalearning._learner import HEAD, Learner


def evaluate(
    learner: Learner,
    parameters: Mapping[str, Tensor],
    task: Task,
    inner: InnerConfig,
    rates: Mapping[str, Tensor] | None = None,
) -> tuple[float, float]:
    """Query loss and accuracy of one task after the inner loop.

    Raises:
        ArgumentError: if the inner loop diverges.
    """
    adapted = adapt(learner, parameters, task.support, task.support_labels, inner, rates=rates)
    with torch.no_grad():
        logits = learner.logits(adapted.parameters, task.query)
        loss = float(nn.functional.cross_entropy(logits, task.query_labels))
    return loss, float((logits.argmax(1) == task.query_labels).double().mean())


def evaluate_tasks(
    learner: Learner,
    parameters: Mapping[str, Tensor],
    tasks: Iterable[Task],
    inner: InnerConfig,
    rates: Mapping[str, Tensor] | None = None,
) -> list[tuple[float, float]]:
    """Query loss and accuracy of several tasks with equal numbers of examples.

    The inner loops of `head` run as one batch, which takes a fraction of the time of a loop over tasks; those of blocks run one by
    one, since a batch of them is slower (`benchmarks/metalearning.py`).

    Args:
        learner: the model.
        parameters: initial parameters.
        tasks: the episodes, read one at a time.
        inner: the inner loop.
        rates: rate of each part and of `head`, for learned rates.

    Raises:
        ArgumentError: if the inner loop of a task diverges.
    """
    if inner.depth != "head" or rates is not None:
        return [evaluate(learner, parameters, task, inner, rates) for task in tasks]
    with torch.no_grad():
        read = [
            (
                *(learner.vectors(parameters, half) for half in (task.support, task.query)),
                task.support_labels,
                task.query_labels,
            )
            for task in tasks
        ]
        support, query, labels, asked = (torch.stack(one) for one in zip(*read, strict=True))
        weight, bias = adapt_heads(support, labels, (parameters[HEAD[0]], parameters[HEAD[1]]), inner)
        logits = torch.baddbmm(bias[:, None], query, weight.transpose(1, 2))
        losses = nn.functional.cross_entropy(logits.transpose(1, 2), asked, reduction="none").mean(1)
        accuracies = (logits.argmax(-1) == asked).double().mean(1)
    return list(zip(losses.tolist(), accuracies.tolist(), strict=True))
