"""Mean paired differences with their variance, over examples alone or over examples crossed with seeds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

# Fewer seeds say too little about their own spread: a t interval on two to three degrees of freedom is of no use.
FEWEST_SEEDS = 5


@dataclass(frozen=True)
class Spread:
    """Mean differences, and what is known of their sampling error.

    Attributes:
        mean: over examples and seeds.
        se: standard error of the mean.
        df: degrees of freedom of the squared standard error.
        correlation: between the methods' means; 0 beside a method without any spread.
        seed_variance: the part of the squared standard error that comes from seeds; 0 when conditional on them.
        conditional_on_seeds: whether the errors speak of these seeds only.
    """

    mean: Float[np.ndarray, " methods"]
    se: Float[np.ndarray, " methods"]
    df: Float[np.ndarray, " methods"]
    correlation: Float[np.ndarray, "methods methods"]
    seed_variance: Float[np.ndarray, " methods"]
    conditional_on_seeds: bool


def spread(gaps: Float[np.ndarray, "methods examples seeds"]) -> Spread:
    """The mean difference of each method, and its error.

    With fewer than five seeds an example's seeds are averaged and the examples are the sample. With five or more, both
    are random and crossed: gap = mean + example + seed + rest, with the unbiased variance of the mean from the mean
    squares, (MS_example + MS_seed - MS_rest) / (n m), and degrees of freedom by Satterthwaite (1946); the model is that
    of Owen (2007, "The pigeonhole bootstrap"). The seeds' part is never taken below 0.
    """
    k, n, m = gaps.shape
    by_example = gaps.mean(axis=2)
    mean = by_example.mean(axis=1)
    centred = by_example - mean[:, None]
    examples = centred @ centred.T / (n - 1) / n
    if m < FEWEST_SEEDS:
        return Spread(mean, _root(examples), np.full(k, n - 1.0), _correlation(examples), np.zeros(k), True)
    by_seed = gaps.mean(axis=1)
    off = by_seed - mean[:, None]
    seeds = off @ off.T / (m - 1) / m
    rest = (gaps - by_example[:, :, None] - off[:, None, :]).reshape(k, -1)
    rest = rest @ rest.T / ((n - 1) * (m - 1)) / (n * m)
    part = np.maximum(np.diag(seeds) - np.diag(rest), 0.0)
    variance = np.diag(examples) + part
    df = satterthwaite(np.diag(examples), np.diag(seeds), np.diag(rest), variance, n, m)
    return Spread(mean, np.sqrt(variance), df, _correlation(examples + _positive(seeds - rest)), part, False)


def satterthwaite(
    examples: Float[np.ndarray, " methods"],
    seeds: Float[np.ndarray, " methods"],
    rest: Float[np.ndarray, " methods"],
    variance: Float[np.ndarray, " methods"],
    n: int,
    m: int,
) -> Float[np.ndarray, " methods"]:
    """Degrees of freedom of a sum of mean squares, each divided by n m; at most n - 1, which also stands where all are 0."""
    squares = examples**2 / (n - 1) + seeds**2 / (m - 1) + rest**2 / ((n - 1) * (m - 1))
    return np.minimum(np.divide(variance**2, squares, out=np.full(len(variance), n - 1.0), where=squares > 0), n - 1.0)


def simultaneous(known: Spread, *, alpha: float, draws: int, seed: int) -> Float[np.ndarray, " methods"]:
    """Two-sided critical values with which all methods' intervals hold together.

    Max-T when conditional on seeds. With crossed seeds each method's error rests on a handful of seeds of its own, and so do
    the correlations: max-T bands for seven methods then covered 90% instead of 95% (5 seeds, 2,000 texts), so Sidak's
    (1967) t values stand in their place, which need no correlations.
    """
    if known.conditional_on_seeds:
        return critical_values(known.correlation, known.df, alpha=alpha, draws=draws, seed=seed)
    from scipy.stats import t

    return t.isf((1 - (1 - alpha) ** (1 / len(known.df))) / 2, known.df)


def critical_values(
    correlation: Float[np.ndarray, "methods methods"],
    df: Float[np.ndarray, " methods"],
    *,
    alpha: float,
    draws: int,
    seed: int,
) -> Float[np.ndarray, " methods"]:
    """Two-sided max-T values: with them all methods' intervals hold together at 1 - alpha.

    The bootstrap with Gaussian multipliers of the studentised differences (Chernozhukov, Chetverikov and Kato 2013) has,
    given the data, exactly the normal distribution with the differences' correlations: it is drawn from that, divided by
    the root of a chi-squared for the estimated errors (Hothorn, Bretz and Westfall 2008), each method with its own degrees
    of freedom (Hasler and Hothorn 2008).
    """
    rng = np.random.default_rng(seed)
    values, vectors = np.linalg.eigh(correlation)
    normal = rng.standard_normal((draws, len(values))) @ (vectors * np.sqrt(np.maximum(values, 0.0))).T
    largest = np.abs(normal).max(axis=1)
    found = np.empty(len(df))
    for one in np.unique(df):
        found[df == one] = np.quantile(largest / np.sqrt(rng.chisquare(one, draws) / one), 1 - alpha)
    return found


def _root(covariance: Float[np.ndarray, "k k"]) -> Float[np.ndarray, " k"]:
    return np.sqrt(np.diag(covariance))


def _correlation(covariance: Float[np.ndarray, "k k"]) -> Float[np.ndarray, "k k"]:
    root = _root(covariance)
    scale = np.divide(1.0, root, out=np.zeros_like(root), where=root > 0)
    correlation = covariance * scale[:, None] * scale
    np.fill_diagonal(correlation, 1.0)
    return correlation


def _positive(matrix: Float[np.ndarray, "k k"]) -> Float[np.ndarray, "k k"]:
    """The nearest matrix without negative eigenvalues: a difference of mean squares may have some."""
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.maximum(values, 0.0)) @ vectors.T
