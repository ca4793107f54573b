"""Mean paired differences with their variance, over examples alone or over examples crossed with seeds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

FEWEST_SEEDS = 5
"""Fewer seeds cannot estimate their own variance: a t interval on two or three degrees of freedom is useless."""


@dataclass(frozen=True)
class Spread:
    """Mean differences and their sampling error.

    Attributes:
        mean: over examples and seeds.
        se: standard error of the mean.
        df: degrees of freedom of the squared standard error.
        correlation: between the means of the methods; 0 with a method of zero variance.
        seed_variance: the part of the squared standard error that is due to seeds; 0 if conditional on them.
        conditional_on_seeds: whether the errors hold for these seeds only.
    """

    mean: Float[np.ndarray, " methods"]
    se: Float[np.ndarray, " methods"]
    df: Float[np.ndarray, " methods"]
    correlation: Float[np.ndarray, "methods methods"]
    seed_variance: Float[np.ndarray, " methods"]
    conditional_on_seeds: bool


def spread(gaps: Float[np.ndarray, "methods examples seeds"]) -> Spread:
    """The mean difference of each method, and its error.

    With fewer than five seeds, the seeds of each example are averaged and the examples are the sample. With five or more,
    both are random and crossed: gap = mean + example + seed + rest, with the unbiased variance of the mean from the mean
    squares, (MS_example + MS_seed - MS_rest) / (n m), and degrees of freedom by Satterthwaite (1946); the model is that
    of Owen (2007, "The pigeonhole bootstrap"). The part of the seeds is at least 0.
    """
    k, n, m = gaps.shape
    by_example = gaps.mean(axis=2)
    mean = by_example.mean(axis=1)
    centred = by_example - mean[:, None]
    examples = centred @ centred.T / (n - 1) / n
    variance, df, seed_variance = np.diag(examples), np.full(k, n - 1.0), np.zeros(k)
    if m < FEWEST_SEEDS:
        return Spread(mean, np.sqrt(variance), df, _correlation(examples), seed_variance, True)
    off = gaps.mean(axis=1) - mean[:, None]
    seeds = off @ off.T / (m - 1) / m
    rest = (gaps - by_example[:, :, None] - off[:, None, :]).reshape(k, -1)
    rest = rest @ rest.T / ((n - 1) * (m - 1)) / (n * m)
    seed_variance = np.maximum(np.diag(seeds) - np.diag(rest), 0.0)
    variance = variance + seed_variance
    squares = np.diag(examples) ** 2 / (n - 1) + np.diag(seeds) ** 2 / (m - 1)
    squares = squares + np.diag(rest) ** 2 / ((n - 1) * (m - 1))
    df = np.minimum(np.divide(variance**2, squares, out=df.copy(), where=squares > 0), df)
    # A difference of mean squares may have negative eigenvalues: the nearest matrix without them.
    values, vectors = np.linalg.eigh(seeds - rest)
    correlation = _correlation(examples + (vectors * np.maximum(values, 0.0)) @ vectors.T)
    return Spread(mean, np.sqrt(variance), df, correlation, seed_variance, False)


def simultaneous(moments: Spread, *, alpha: float, draws: int = 10_000) -> Float[np.ndarray, " methods"]:
    """Two-sided critical values with which the intervals of all methods hold together.

    Max-T if conditional on seeds. With crossed seeds, the errors and correlations rest on a handful of seeds: there max-T
    bands of seven methods covered 90% instead of 95% (5 seeds, 2,000 examples), so Sidak's (1967) t values are used, which
    need no correlations.
    """
    if moments.conditional_on_seeds:
        return critical_values(moments.correlation, moments.df, alpha=alpha, draws=draws)
    from scipy.stats import t

    return t.isf((1 - (1 - alpha) ** (1 / len(moments.df))) / 2, moments.df)


def critical_values(
    correlation: Float[np.ndarray, "methods methods"], df: Float[np.ndarray, " methods"], *, alpha: float, draws: int
) -> Float[np.ndarray, " methods"]:
    """Two-sided max-T values, with which the intervals of all methods hold together at 1 - alpha.

    Given the data, the bootstrap with Gaussian multipliers of the studentised differences (Chernozhukov, Chetverikov and
    Kato 2013) has exactly the normal distribution with the correlations of the differences. This is drawn from and divided
    by the root of a chi-squared for the estimated errors (Hothorn, Bretz and Westfall 2008), with the degrees of freedom
    of each method (Hasler and Hothorn 2008).
    """
    rng = np.random.default_rng(0)
    values, vectors = np.linalg.eigh(correlation)
    normal = rng.standard_normal((draws, len(values))) @ (vectors * np.sqrt(np.maximum(values, 0.0))).T
    largest = np.abs(normal).max(axis=1)
    critical = np.empty(len(df))
    for one in np.unique(df):
        critical[df == one] = np.quantile(largest / np.sqrt(rng.chisquare(one, draws) / one), 1 - alpha)
    return critical


def _correlation(covariance: Float[np.ndarray, "k k"]) -> Float[np.ndarray, "k k"]:
    root = np.sqrt(np.diag(covariance))
    scale = np.divide(1.0, root, out=np.zeros_like(root), where=root > 0)
    correlation = covariance * scale[:, None] * scale
    np.fill_diagonal(correlation, 1.0)
    return correlation
