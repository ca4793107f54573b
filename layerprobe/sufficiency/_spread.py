"""Mean paired differences with their variance, over examples alone or over examples crossed with seeds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

FEWEST_SEEDS = 3
"""With fewer seeds, intervals and tests hold for these seeds only. In simulation the crossed test keeps its level from three
seeds on, at little power: its critical value is 2.92 with three, 2.13 with five."""


@dataclass(frozen=True)
class Spread:
    """Mean differences and their sampling error.

    Attributes:
        mean: over examples and seeds.
        centre: middle of an interval: the mean of the examples and of two more, one at -1 and one at 1.
        se: standard error of the centre, above 0 even where all examples agree.
        df: degrees of freedom of the t distribution; infinite if conditional on seeds, else the number of seeds minus 1.
        correlation: between the means of the methods; 0 with a method of zero variance.
        seed_variance: the part of the squared standard error that is due to seeds; 0 if conditional on them.
        conditional_on_seeds: whether the errors hold for these seeds only.
    """

    mean: Float[np.ndarray, " methods"]
    centre: Float[np.ndarray, " methods"]
    se: Float[np.ndarray, " methods"]
    df: float
    correlation: Float[np.ndarray, "methods methods"]
    seed_variance: Float[np.ndarray, " methods"]
    conditional_on_seeds: bool


def spread(gaps: Float[np.ndarray, "methods examples seeds"]) -> Spread:
    """The mean difference of each method, and its error.

    The seeds of each example are averaged. The variance over examples is that of the averages and of two further examples,
    one at -1 and one at 1, which with one seed is the interval of Bonett and Price (2012) for paired proportions: it has a
    width even if all examples agree. With three seeds or more, the variance of `variance_over_seeds` is added, and the t
    distribution has as many degrees of freedom as there are seeds, minus 1.
    """
    _, n, m = gaps.shape
    by_example = gaps.mean(axis=2)
    mean = by_example.mean(axis=1)
    centre = by_example.sum(axis=1) / (n + 2)
    variance = (((by_example**2).sum(axis=1) + 2) / (n + 2) - centre**2) / (n + 2)
    centred = by_example - mean[:, None]
    conditional = m < FEWEST_SEEDS
    seeds = np.zeros(len(mean)) if conditional else variance_over_seeds(gaps)
    return Spread(
        mean=mean,
        centre=centre,
        se=np.sqrt(variance + seeds),
        df=np.inf if conditional else m - 1.0,
        correlation=_correlation(centred @ centred.T),
        seed_variance=seeds,
        conditional_on_seeds=conditional,
    )


def variance_over_seeds(gaps: Float[np.ndarray, "*studies examples seeds"]) -> Float[np.ndarray, "*studies"]:
    """Part of the variance of a mean difference that is due to seeds.

    Examples and seeds are random and crossed: gap = mean + example + seed + rest, the model of Owen (2007, "The pigeonhole
    bootstrap"). The part is (MS_seed - MS_rest) / (examples x seeds), from the mean squares, and at least 0.
    """
    n, m = gaps.shape[-2:]
    by_example, by_seed = gaps.mean(axis=-1), gaps.mean(axis=-2)
    mean = by_seed.mean(axis=-1)
    seeds = n * ((by_seed - mean[..., None]) ** 2).sum(axis=-1)
    examples = m * ((by_example - mean[..., None]) ** 2).sum(axis=-1)
    rest = ((gaps - mean[..., None, None]) ** 2).sum(axis=(-2, -1)) - examples - seeds
    return np.maximum(seeds / (m - 1) - rest / ((n - 1) * (m - 1)), 0.0) / (n * m)


def simultaneous(moments: Spread, *, alpha: float, draws: int = 10_000) -> float:
    """Two-sided critical value with which the intervals of all methods hold together.

    Max-T if conditional on seeds. With crossed seeds, the errors and correlations rest on a handful of seeds: there max-T
    bands of seven methods covered 90% instead of 95% (5 seeds, 2,000 examples), so Sidak's (1967) t value is used, which
    needs no correlations.
    """
    if moments.conditional_on_seeds:
        return critical_value(moments.correlation, alpha=alpha, draws=draws)
    from scipy.stats import t

    return float(t.isf((1 - (1 - alpha) ** (1 / len(moments.mean))) / 2, moments.df))


def critical_value(correlation: Float[np.ndarray, "methods methods"], *, alpha: float, draws: int) -> float:
    """Two-sided max-T value, with which the intervals of all methods hold together at 1 - alpha.

    Given the data, the bootstrap with Gaussian multipliers of the studentised differences (Chernozhukov, Chetverikov and
    Kato 2013) has exactly the normal distribution with the correlations of the differences, from which this draws.
    """
    values, vectors = np.linalg.eigh(correlation)
    normal = np.random.default_rng(0).standard_normal((draws, len(values)))
    drawn = normal @ (vectors * np.sqrt(np.maximum(values, 0.0))).T
    return float(np.quantile(np.abs(drawn).max(axis=1), 1 - alpha))


def _correlation(covariance: Float[np.ndarray, "k k"]) -> Float[np.ndarray, "k k"]:
    root = np.sqrt(np.diag(covariance))
    scale = np.divide(1.0, root, out=np.zeros_like(root), where=root > 0)
    correlation = covariance * scale[:, None] * scale
    np.fill_diagonal(correlation, 1.0)
    return correlation
