"""Mean rounds over tasks and training seeds, with an interval that covers further ones of both."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from layerprobe.errors import ArgumentError
from layerprobe.stats import satterthwaite


@dataclass(frozen=True)
class MeanRounds:
    """Mean rounds per task, with its 95% interval; NaN where it has no degree of freedom."""

    value: float
    low: float
    high: float


def mean_rounds(rounds: Float[np.ndarray, "seeds tasks"]) -> MeanRounds:
    """Mean over seeds and tasks; the interval covers further tasks and, with two or more seeds, further trainings.

    The variance is that of the means of tasks plus that of the means of seeds, with degrees of freedom by Satterthwaite. It
    counts what varies within seeds and tasks twice, so the interval is rather too wide.

    Args:
        rounds: rounds of each seed and task; at least one of each.

    Raises:
        ArgumentError: if there are none.
    """
    from scipy.stats import t

    if not rounds.size:
        raise ArgumentError("{rounds} is empty; give the rounds of at least one task.", "rounds")
    mean = float(rounds.mean())
    parts = [(rounds.mean(axis=axis), rounds.shape[1 - axis]) for axis in (0, 1)]
    variances = np.array([means.var(ddof=1) / n for means, n in parts if n > 1])
    if not len(variances):
        return MeanRounds(mean, np.nan, np.nan)
    if not variances.sum() > 0:
        return MeanRounds(mean, mean, mean)
    degrees = satterthwaite(variances[:, None], np.array([n - 1.0 for _, n in parts if n > 1]))[0]
    half = float(t.ppf(0.975, degrees) * variances.sum() ** 0.5)
    return MeanRounds(mean, max(0.0, mean - half), mean + half)
