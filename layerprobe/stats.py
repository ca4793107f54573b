"""Statistics that every library shares: folds and strata of examples, permuted labels, intervals and bands over whole
examples."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

STRATUM = 20
"""Least number of examples in a stratum of lengths."""
EXACT = 1e-12
"""Standard errors up to this are rounding."""


@dataclass(frozen=True)
class Estimate:
    """A value with its 95% interval over `n` examples."""

    value: float
    low: float
    high: float
    n: int
    left_out: np.ndarray | None = field(default=None, compare=False, repr=False)
    """The value without each fold of examples, `(folds,)`, for estimates that share their folds."""


def mean_interval(values: np.ndarray, confidence: float = 0.95) -> tuple[float, float, float]:
    """Mean of independent values with its interval by Student's t; missing ends for one value."""
    from scipy import stats

    mean = float(values.mean())
    if len(values) < 2:
        return mean, np.nan, np.nan
    half = stats.t.ppf((1 + confidence) / 2, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    return mean, mean - half, mean + half


def group_error(values: np.ndarray, groups: np.ndarray) -> tuple[float, int]:
    """Standard error of a mean over episodes that covers other groups, by leaving out one group at a time.

    Args:
        values: one value per episode.
        groups: group of each episode.

    Returns:
        Standard error and number of groups; nan with fewer than two groups.
    """
    names = np.unique(groups)
    if len(names) < 2:
        return np.nan, len(names)
    left_out = np.array([values[groups != name].mean() for name in names])
    return float(jackknife_error(left_out[None])[0]), len(names)


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
    reach = float(t.ppf(0.975, n_folds - 1) * jackknife_error(left_out))
    return Estimate(value, min(value, max(low, value - reach)), max(value, min(high, value + reach)), n, left_out)


def jackknife_error(left_out: np.ndarray) -> np.ndarray:
    """Standard errors from the values without each fold, `(..., folds)`."""
    folds = left_out.shape[-1]
    deviations = left_out - left_out.mean(-1, keepdims=True)
    return np.sqrt((folds - 1) / folds * (deviations**2).sum(-1))


@dataclass(frozen=True)
class Bands:
    """Ends of intervals that contain all true values at once with 95% probability, each `(k,)`."""

    low: np.ndarray
    high: np.ndarray


def simultaneous_bands(
    values: np.ndarray, errors: np.ndarray, degrees: np.ndarray | float, low: float = -np.inf, high: float = np.inf
) -> Bands:
    """Student's t intervals at the level of Sidak (1967) for all values at once.

    Sidak's inequality holds whatever the correlation of the estimates, so none has to be estimated from a few folds; bands
    from the maximum of correlated estimates would be narrower by up to a third. Values without a standard error, such as
    the similarity of equal layers, are exact, and do not count as comparisons.

    Args:
        values: estimates, `(k,)`.
        errors: their standard errors, `(k,)`.
        degrees: degrees of freedom of each standard error.
        low, high: range of the statistic.
    """
    from scipy.stats import t

    random = errors > EXACT
    level = 0.95 ** (1 / max(1, int(random.sum())))
    reach = np.where(random, t.ppf((1 + level) / 2, degrees) * errors, 0.0)
    return Bands(
        np.minimum(values, np.maximum(low, values - reach)), np.maximum(values, np.minimum(high, values + reach))
    )


def paired_proportions(gained: int, lost: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of the difference (gained - lost) / n of two paired proportions (Bonett and Price 2012).

    Wald's with one pair added to each of the two kinds of disagreement, so that it has a width where no pair disagrees.
    """
    from scipy.stats import norm

    p, q = (gained + 1) / (n + 2), (lost + 1) / (n + 2)
    reach = float(norm.ppf((1 + confidence) / 2) * np.sqrt((p + q - (p - q) ** 2) / (n + 2)))
    return max(-1.0, p - q - reach), min(1.0, p - q + reach)


def satterthwaite(parts: np.ndarray, degrees: np.ndarray) -> np.ndarray:
    """Degrees of freedom of sums of independent variances (Satterthwaite 1946); NaN where all are 0.

    Args:
        parts: the variances, `(parts, k)`.
        degrees: their own degrees of freedom, `(parts,)`.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        return parts.sum(0) ** 2 / (parts**2 / degrees[:, None]).sum(0)


def bootstrap_mean(sums: np.ndarray, counts: np.ndarray, seed: int) -> Estimate:
    """Mean over rows, with the percentile interval of 2,000 bootstrap resamples of whole examples.

    A resample is drawn as the number of times that each example occurs, and shared by all calls with the same number of
    examples and seed. `scipy.stats.bootstrap`, which draws indices anew in each call, takes about four times as long for two
    means at each of 13 layers (`benchmarks/similarity.py`).

    Args:
        sums: sum over the rows of each example, `(examples,)`.
        counts: number of rows of each example, `(examples,)`.
        seed: seed of the resamples.
    """
    both = np.stack([sums, counts], axis=1).astype(np.float64)
    drawn = np.concatenate([times.astype(np.float64) @ both for times in _resamples(len(both), seed)])
    low, high = np.quantile(drawn[:, 0] / drawn[:, 1], [0.025, 0.975])
    value = both[:, 0].sum() / both[:, 1].sum()
    # Rounding may separate the mean of constant rows from its quantiles by a few units in the last place.
    return Estimate(float(value), float(min(low, value)), float(max(high, value)), len(both))


@lru_cache(maxsize=2)
def _resamples(examples: int, seed: int) -> list[np.ndarray]:
    """How often each example occurs in each of 2,000 resamples, in blocks `(200, examples)` of one byte per count."""
    rng, shares = np.random.default_rng(seed), np.full(examples, 1 / examples)
    return [rng.multinomial(examples, shares, size=200).astype(np.uint8) for _ in range(10)]


def length_strata(lengths: np.ndarray) -> np.ndarray:
    """The stratum of each example, `(examples,)`: neighbouring lengths, as narrow as possible with at least 20 examples each."""
    distinct, number, counts = np.unique(lengths, return_inverse=True, return_counts=True)
    stratum = np.zeros(len(distinct), dtype=np.int64)
    current, held = 0, 0
    for i, count in enumerate(counts):
        if held >= STRATUM and counts[i:].sum() >= STRATUM:
            current, held = current + 1, 0
        stratum[i] = current
        held += count
    return stratum[number]


def permuted_labels(
    labels: np.ndarray, strata: np.ndarray, permutations: int, seed: int, *, block: int
) -> Iterator[np.ndarray]:
    """Labels permuted among the examples of each stratum, in blocks `(permutations, examples)`.

    Args:
        labels: label of each example, `(examples,)`.
        strata: stratum of each example, `(examples,)`.
        permutations: number of permutations.
        seed: seed of the permutations.
        block: most permutations in a block.
    """
    rng = np.random.default_rng(seed)
    order = np.argsort(strata, kind="stable")
    for start in range(0, permutations, block):
        noise = rng.random((min(block, permutations - start), len(labels)))
        # Sorting by stratum and then by noise shuffles the members of each stratum.
        shuffled = np.argsort(strata + noise, axis=1)
        drawn = np.empty(noise.shape, dtype=labels.dtype)
        drawn[:, order] = labels[shuffled]
        yield drawn
