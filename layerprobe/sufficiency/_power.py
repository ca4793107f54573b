"""How many test examples are needed to show that a method is as good as the reference."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from layerprobe.errors import MeasureError
from layerprobe.sufficiency._results import Paired
from layerprobe.sufficiency._spread import FEWEST_SEEDS, Spread

POWER = 0.8


def required_examples(disagreement: float, margin: float, *, power: float = POWER, alpha: float = 0.05) -> int:
    """Test examples that show non-inferiority at the margin with this power, if the true difference is 0.

    (z_alpha + z_power)^2 disagreement / margin^2 (Liu et al. 2002), which at 80% power and one-sided 5% is
    6.18 disagreement / margin^2; and at least as many as show it when no example is right under the reference alone,
    log(alpha) / log(1 - margin).

    Args:
        disagreement: share of examples on which exactly one of the two is right, 0 to 1; if averaged over several seeds,
            the mean square of an example's difference.
        margin: the largest loss of accuracy that still counts as none, above 0 and below 1.
        power: probability of showing it.
        alpha: one-sided level of the test.

    Raises:
        MeasureError: naming the argument that is out of range.
    """
    if not 0 <= disagreement <= 1:
        raise MeasureError(f"{{disagreement}} is {disagreement}; it is a share of examples, 0 to 1.", "disagreement")
    check_level(margin, alpha)
    if not alpha < power < 1:
        raise MeasureError(f"{{power}} is {power}; it must be above alpha ({alpha}) and below 1, usually .8.", "power")
    return max(math.ceil(_quantiles(power, alpha) ** 2 * disagreement / margin**2), _fewest(margin, alpha))


def required_for(joined: Paired, moments: Spread, margin: float, alpha: float) -> tuple[pd.Series, pd.Series]:
    """Test examples that could decide about each method with 80% power, as nullable integers.

    The first series assumes that the true difference is 0, the second that it is the observed one (then they show the
    method sufficient above -margin, inferior below). Missing where no number would do: the observed difference is
    -margin, or (with three or more seeds) the seeds differ too much from each other.
    """
    square = (joined.gaps.mean(axis=2) ** 2).mean(axis=1)
    z, fewest = _quantiles(POWER, alpha, moments.df) ** 2, _fewest(margin, alpha)

    def examples(variance: float, distance: float, seeds: float) -> int | None:
        left = distance**2 / z - seeds
        # Above rounding errors: an observed difference of exactly -margin must not give a number of examples.
        return max(math.ceil(variance / left), fewest) if left > 1e-12 else None

    rows = list(zip(square, moments.mean, moments.seed_variance, strict=True))
    at_zero = [examples(v, margin, seeds) for v, _, seeds in rows]
    at_observed = [examples(v - mean * mean, margin + mean, seeds) for v, mean, seeds in rows]
    return pd.Series(at_zero, dtype="Int64"), pd.Series(at_observed, dtype="Int64")


def required_seeds(
    seed_sd: float, disagreement: float, margin: float, examples: int, *, power: float = POWER, alpha: float = 0.05
) -> int | None:
    """Seeds with which the crossed test shows non-inferiority at the margin with this power, if the true difference is 0.

    The standard error of the mean over m seeds is taken as sqrt(disagreement / examples + seed_sd^2 / m), as if all seeds
    disagreed on the same examples, and the power as that of a t test with m - 1 degrees of freedom (noncentral t).

    Args:
        seed_sd: standard deviation over seeds of the difference in accuracy, with the same seed for both methods.
        disagreement: as for `required_examples`.
        margin: the largest loss of accuracy that still counts as none, above 0 and below 1.
        examples: number of test examples.
        power: probability of showing it.
        alpha: one-sided level of the test.

    Returns:
        A number of at least three; None if these examples are too few for 1,000 seeds.

    Raises:
        MeasureError: naming the argument that is out of range.
    """
    from scipy.stats import nct, t

    check_level(margin, alpha)
    if not seed_sd >= 0:
        raise MeasureError(f"{{seed_sd}} is {seed_sd}; it is a standard deviation, 0 or more.", "seed_sd")
    if not examples >= 1:
        raise MeasureError(f"{{examples}} is {examples}; it is a number of test examples, 1 or more.", "examples")
    seeds = np.arange(FEWEST_SEEDS, 1001)
    error = np.sqrt(disagreement / examples + seed_sd**2 / seeds)
    reached = nct.sf(t.isf(alpha, seeds - 1), seeds - 1, margin / np.maximum(error, 1e-12)) >= power
    return int(seeds[reached.argmax()]) if reached.any() else None


def check_level(margin: float, alpha: float) -> None:
    if not 0 < margin < 1:
        raise MeasureError(
            f"{{margin}} is {margin}; it is a loss of accuracy above 0 and below 1, such as .01.", "margin"
        )
    if not 0 < alpha < 0.5:
        raise MeasureError(f"{{alpha}} is {alpha}; it must be above 0 and below .5, usually .05.", "alpha")


def _quantiles(power: float, alpha: float, df: float = math.inf) -> float:
    from scipy.stats import t

    return float(t.isf(alpha, df) + t.ppf(power, df))


def _fewest(margin: float, alpha: float) -> int:
    return math.ceil(math.log(alpha) / math.log1p(-margin))
