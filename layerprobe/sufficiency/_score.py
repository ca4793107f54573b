"""Score test of a mean paired difference, which keeps its level when the two methods hardly ever disagree."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float

STEPS = 50


def tally(gaps: Float[np.ndarray, "methods examples seeds"]) -> Float[np.ndarray, "methods values"]:
    """Number of examples with each mean difference over the m seeds: -1, -1 + 1/m, ..., 1."""
    m = gaps.shape[2]
    sums = np.rint(gaps.sum(axis=2)).astype(int) + m
    return np.stack([np.bincount(row, minlength=2 * m + 1) for row in sums]).astype(float)


def null_variance(
    counts: Float[np.ndarray, "*tests values"], mean: Float[np.ndarray, "*#tests"]
) -> Float[np.ndarray, "*tests"]:
    """Variance of one example's difference under the most likely distribution on [-1, 1] with the given mean.

    That distribution weights the observed values by 1 / (1 + l (x - mean)) and, where they are too far on one side, puts
    the missing weight on the far end, -1 or 1: so it has spread even if all examples agree. With one seed this is the
    restricted maximum likelihood of Tango (1998) and Liu et al. (2002); with more values it is empirical likelihood
    (Owen 1988) on a bounded range.
    """
    values = np.linspace(-1, 1, counts.shape[-1])
    shares = counts / counts.sum(axis=-1, keepdims=True)
    mean = np.broadcast_to(mean, counts.shape[:-1])
    # Mirrored so that the observed mean is at or above the given one, and missing weight belongs at -1.
    flip = (shares @ values < mean)[..., None]
    shares = np.where(flip, shares[..., ::-1], shares)
    mean = np.where(flip[..., 0], -mean, mean)
    off = values - mean[..., None]
    # l = f / (1 + mean), f in [0, 1): the sum of shares * off / (1 + l off) decreases in f, and its root is wanted.
    scaled = off / np.maximum(1 + mean[..., None], np.finfo(float).tiny)
    f = _bisect(
        lambda f: (shares * off / (1 + f[..., None] * scaled)).sum(axis=-1) > 0,
        np.zeros(mean.shape),
        np.ones(mean.shape),
    )
    weights = shares / (1 + f[..., None] * scaled)
    weights[..., 0] += np.maximum(0.0, 1 - weights.sum(axis=-1))
    return (weights * off**2).sum(axis=-1)


def statistic(
    counts: Float[np.ndarray, "*tests values"],
    mean: float | Float[np.ndarray, "*#tests"],
    seed_variance: float | Float[np.ndarray, "*#tests"] = 0.0,
) -> Float[np.ndarray, "*tests"]:
    """(observed mean - given mean) / its standard error under the given mean; 0 where both are 0."""
    observed = _mean(counts)
    variance = null_variance(counts, np.asarray(mean, dtype=float)) / counts.sum(axis=-1)
    error = np.sqrt(variance + seed_variance)
    return np.divide(observed - mean, error, out=np.zeros_like(observed), where=error > 0)


def noninferiority_p(
    counts: Float[np.ndarray, "*tests values"],
    margin: float,
    seed_variance: float | Float[np.ndarray, "*#tests"] = 0.0,
    df: float | Float[np.ndarray, "*#tests"] = np.inf,
) -> Float[np.ndarray, "*tests"]:
    """One-sided p of "the mean difference is -margin or less".

    If no example is right under the reference alone, p is at least (1 - margin)^n, the largest probability of that when
    the mean is -margin: the normal approximation alone would reject too early, from 268 to 298 examples (margin .01, 5%).
    """
    from scipy.stats import t

    p = t.sf(statistic(counts, -margin, seed_variance), df)
    return np.where(_none_lost(counts), np.maximum(p, (1 - margin) ** counts.sum(axis=-1)), p)


def lower_bound(
    counts: Float[np.ndarray, "*tests values"],
    alpha: float,
    seed_variance: float | Float[np.ndarray, "*#tests"] = 0.0,
    df: float | Float[np.ndarray, "*#tests"] = np.inf,
) -> Float[np.ndarray, "*tests"]:
    """One-sided 1 - alpha lower bound of the mean: minus the margin at which `noninferiority_p` is alpha."""
    from scipy.stats import t

    low = bound(counts, t.isf(alpha, df), seed_variance)
    return np.where(_none_lost(counts), np.minimum(low, alpha ** (1 / counts.sum(axis=-1)) - 1), low)


def bound(
    counts: Float[np.ndarray, "*tests values"],
    reach: float | Float[np.ndarray, "*#tests"],
    seed_variance: float | Float[np.ndarray, "*#tests"] = 0.0,
) -> Float[np.ndarray, "*tests"]:
    """The mean below the observed one at which the statistic is `reach`. With reversed counts: minus the upper bound."""
    lowest = np.full(counts.shape[:-1], -1.0)
    return _bisect(lambda mean: statistic(counts, mean, seed_variance) > reach, lowest, _mean(counts))


def _bisect(
    is_below: Callable[[np.ndarray], np.ndarray], low: Float[np.ndarray, "*tests"], high: Float[np.ndarray, "*tests"]
) -> Float[np.ndarray, "*tests"]:
    """Where `is_below` turns false between low and high, or the end at which it would."""
    for _ in range(STEPS):
        middle = (low + high) / 2
        below = is_below(middle)
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return low


def _mean(counts: Float[np.ndarray, "*tests values"]) -> Float[np.ndarray, "*tests"]:
    return counts @ np.linspace(-1, 1, counts.shape[-1]) / counts.sum(axis=-1)


def _none_lost(counts: Float[np.ndarray, "*tests values"]) -> Bool[np.ndarray, "*tests"]:
    return counts[..., : counts.shape[-1] // 2].sum(axis=-1) == 0
