"""A cluster of devices that adapts to one task: local steps and consensus averaging, until a target accuracy or a cap."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from layerprobe.energy._consensus import Averaged, Topology, averaging
from layerprobe.errors import ArgumentError

Average = Callable[[Float[np.ndarray, "devices parameters"], Float[np.ndarray, "rows columns"]], Averaged]
"""A function like `averaging`."""


@dataclass(frozen=True)
class ClusterRun:
    """Rounds of one cluster.

    Attributes:
        rounds: rounds of local steps and averaging that were run; a lower bound of those to the target where `censored`.
        censored: whether the cluster was stopped at the cap, short of the target.
        accuracy: after each round, averaged over devices.
        disagreement: of the devices' models after each round, as in `Averaged`.
        models: the models after the last round.
    """

    rounds: int
    censored: bool
    accuracy: tuple[float, ...]
    disagreement: tuple[float, ...]
    models: Float[np.ndarray, "devices parameters"]


def adapt_cluster(
    start: Float[np.ndarray, " parameters"],
    cluster: Topology,
    local_steps: Callable[[int, Float[np.ndarray, " parameters"]], Float[np.ndarray, " parameters"]],
    accuracy: Callable[[Float[np.ndarray, " parameters"]], float],
    *,
    target: float | None,
    max_rounds: int,
    passes: int = 2,
    average: Average = averaging,
) -> ClusterRun:
    """Let every device take steps on its own data and average its model with those it is linked to, round by round.

    A cluster with a server is simulated by the topology "mesh": both give every device the mean.

    Args:
        start: the exchanged parameters that every device starts from.
        cluster: who averages with whom.
        local_steps: the number of a device and its parameters to its parameters after its steps of the round.
        accuracy: of the model with these parameters, on examples of no device.
        target: accuracy to reach; None runs all rounds.
        max_rounds: the cap: rounds after which the cluster is stopped, at least `passes`.
        passes: consecutive rounds after which the accuracy must be at least the target.
        average: the function that averages the models; replace it to use another framework.

    Raises:
        ArgumentError: if the cap is below the number of passes, or a device diverges.
    """
    if not 1 <= passes <= max_rounds:
        raise ArgumentError(
            f"{{max_rounds}} is {max_rounds} and {{passes}} is {passes}; they must be at least 1, and {{max_rounds}} at least "
            "{passes}.",
            *("max_rounds", "passes"),
        )
    devices = len(cluster.weights)
    # Where a round gives every device the mean, one of the models is enough to score.
    scored = range(1) if cluster.contraction < 1e-9 else range(devices)
    models = np.repeat(np.asarray(start)[None], devices, axis=0)
    accuracies: list[float] = []
    disagreement: list[float] = []
    passed = 0
    while len(accuracies) < max_rounds and (target is None or passed < passes):
        after = average(np.stack([local_steps(k, models[k]) for k in range(devices)]), cluster.weights)
        models = after.models
        accuracies.append(float(np.mean([accuracy(models[k]) for k in scored])))
        disagreement.append(after.disagreement)
        passed = passed + 1 if target is not None and accuracies[-1] >= target else 0
    censored = target is None or passed < passes
    return ClusterRun(len(accuracies), censored, tuple(accuracies), tuple(disagreement), models)


def held_accuracy(accuracy: Sequence[float], passes: int = 2) -> float:
    """The highest target that would have been reached: the largest minimum over `passes` consecutive rounds."""
    windows = np.lib.stride_tricks.sliding_window_view(np.asarray(accuracy, float), passes)
    return float(windows.min(axis=1).max())
