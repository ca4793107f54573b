"""Statistics that every library shares: folds of examples, and intervals over whole examples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Estimate:
    """A value with its 95% interval over `n` examples."""

    value: float
    low: float
    high: float
    n: int


def assign_folds(examples: int, n_folds: int, seed: int) -> np.ndarray:
    """The fold of each example, `(examples,)`: folds of equal size in seeded order, at most one per example."""
    return np.random.default_rng(seed).permutation(np.arange(examples) % min(n_folds, examples))


def jackknife(
    statistic: Callable[[int | None], float], n_folds: int, n: int, low: float = -np.inf, high: float = np.inf
) -> Estimate:
    """Delete-group jackknife with Student's t, the interval clipped to the statistic's range.

    Args:
        statistic: its value on the whole sample (given None), or without one fold of examples (given its number).
        n_folds: number of folds, of whole examples (`assign_folds`).
        n: number of examples.
        low, high: range of the statistic.
    """
    from scipy.stats import t

    value = statistic(None)
    left_out = np.array([statistic(fold) for fold in range(n_folds)])
    error = np.sqrt((n_folds - 1) / n_folds * ((left_out - left_out.mean()) ** 2).sum())
    reach = float(t.ppf(0.975, n_folds - 1) * error)
    return Estimate(value, min(value, max(low, value - reach)), max(value, min(high, value + reach)), n)
