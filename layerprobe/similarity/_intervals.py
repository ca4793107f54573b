"""Intervals over whole examples: a bootstrap for means, a delete-group jackknife for all else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float, Int

RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """A value with its 95% interval over n examples."""

    value: float
    low: float
    high: float
    n: int


def jackknife(
    function: Callable[[int | None], float], n_folds: int, n: int, low: float = -np.inf, high: float = np.inf
) -> Estimate:
    """Delete-group jackknife with a t interval, cut to the measure's range.

    Args:
        function: the value of the whole sample (given None), or without one group of examples (given its number).
        n_folds: number of groups.
        n: number of examples.
        low, high: the measure's range.
    """
    from scipy.stats import t

    value = function(None)
    left = np.array([function(fold) for fold in range(n_folds)])
    spread = np.sqrt((n_folds - 1) / n_folds * ((left - left.mean()) ** 2).sum())
    reach = float(t.ppf(0.975, n_folds - 1) * spread)
    return Estimate(value, min(value, max(low, value - reach)), max(value, min(high, value + reach)), n)


def bootstrap_mean(values: Float[np.ndarray, " rows"], groups: Int[np.ndarray, " rows"], seed: int) -> Estimate:
    """Mean over rows, with a percentile interval over 2,000 resamples of whole examples."""
    counts = np.bincount(groups).astype(np.float64)
    sums = np.bincount(groups, weights=values)
    both = np.stack([sums, counts], axis=1)
    drawn = np.concatenate([times.astype(np.float64) @ both for times in _resamples(len(counts), seed)])
    means = drawn[:, 0] / drawn[:, 1]
    low, high = np.quantile(means, [0.025, 0.975])
    value = sums.sum() / counts.sum()
    # Rounding may leave a constant's mean and quantiles a few units in the last place apart.
    return Estimate(float(value), float(min(low, value)), float(max(high, value)), len(counts))


@lru_cache(maxsize=2)
def _resamples(examples: int, seed: int) -> list[np.ndarray]:
    """How often each example is drawn, in each of the resamples: the same for all layers. A byte each, in blocks."""
    rng, shares = np.random.default_rng(seed), np.full(examples, 1 / examples)
    return [rng.multinomial(examples, shares, size=200).astype(np.uint8) for _ in range(RESAMPLES // 200)]


def folds_of(examples: int, n_groups: int, seed: int) -> Int[np.ndarray, " examples"]:
    """Which of `n_groups` groups each example is in: equal sizes, in seeded order."""
    return np.random.default_rng(seed).permutation(np.arange(examples) % min(n_groups, examples))


def sample_rows(groups: Int[np.ndarray, " n"], most: int, seed: int) -> Int[np.ndarray, " m"]:
    """Rows of a seeded sample of whole examples, at most so many rows (but always of one example), in their order."""
    counts = np.bincount(groups)
    order = np.random.default_rng(seed).permutation(len(counts))
    kept = order[: max(1, int(np.searchsorted(np.cumsum(counts[order]), most, side="right")))]
    return np.flatnonzero(np.isin(groups, kept))
