"""The choice of an inner rate: each candidate is tried on the same episodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from layerprobe.errors import ArgumentError
from layerprobe.metalearning._evaluate import evaluate_tasks
from layerprobe.metalearning._inner import InnerConfig, Task
from layerprobe.metalearning._learner import Learner, Parameters


@dataclass(frozen=True)
class RateTrial:
    """One rate, tried on all episodes.

    Attributes:
        rate: the inner rate.
        loss: mean query loss over the episodes after the inner loop, in nats; None if an inner loop diverged.
        accuracy: mean query accuracy; None if an inner loop diverged.
    """

    rate: float
    loss: float | None
    accuracy: float | None


def try_rates(
    learner: Learner, parameters: Parameters, tasks: Sequence[Task], inner: InnerConfig, rates: Sequence[float]
) -> tuple[RateTrial, ...]:
    """Query loss of every rate on the same episodes, in the order of the rates.

    Args:
        learner: the model.
        parameters: initial parameters.
        tasks: the episodes.
        inner: the inner loop; its rate is replaced.
        rates: the candidates.
    """
    level, lower = inner.level(learner), []
    with torch.no_grad():  # the unchanged parts are run once for all rates
        for task in tasks:
            support, query = (learner.apply(parameters, half, to=level) for half in (task.support, task.query))
            lower.append(replace(task, support=support, query=query))
    trials = []
    for rate in rates:
        try:
            means = np.mean(evaluate_tasks(learner, parameters, lower, replace(inner, rate=rate)), axis=0)
            trials.append(RateTrial(rate, float(means[0]), float(means[1])))
        except ArgumentError:
            trials.append(RateTrial(rate, None, None))
    return tuple(trials)


def best_rate(trials: Sequence[RateTrial]) -> float:
    """The rate of the lowest loss; of equal ones the first.

    Raises:
        ArgumentError: if the inner loop diverged with every rate.
    """
    losses = {trial.rate: trial.loss for trial in trials if trial.loss is not None}
    if not losses:
        listed = ", ".join(f"{trial.rate:g}" for trial in trials)
        raise ArgumentError(f"{{rates}} is {listed}, with each of which the inner loss diverges; lower them.", "rates")
    return min(losses, key=losses.__getitem__)
