"""How many test examples it takes to show that a method is as good as the reference."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from layerprobe.errors import MeasureError
from layerprobe.sufficiency._results import Paired, paired
from layerprobe.sufficiency._spread import spread


def required_examples(disagreement: float, margin: float, *, power: float = 0.8, alpha: float = 0.05) -> int:
    """Test examples that show non-inferiority at the margin with this power, if the true difference is 0.

    (z_alpha + z_power)^2 disagreement / margin^2 (Liu et al. 2002), which at 80% power and one-sided 5% is
    6.18 disagreement / margin^2; and never fewer than show it when no example at all goes against the method,
    log(alpha) / log(1 - margin).

    Args:
        disagreement: share of examples on which exactly one of the two is right, 0 to 1; averaged over several seeds, the
            mean square of an example's difference.
        margin: the loss of accuracy that is still called as good, above 0 and below 1.

    Raises:
        MeasureError: naming the number that is out of its range.
    """
    if not 0 <= disagreement <= 1:
        raise MeasureError(f"The disagreement is {disagreement}; as a share of examples it lies between 0 and 1.")
    check_margin(margin)
    check_alpha(alpha)
    if not alpha < power < 1:
        raise MeasureError(f"The power is {power}; it lies above alpha ({alpha}) and below 1, commonly .8.")
    return max(math.ceil(_quantiles(power, alpha) ** 2 * disagreement / margin**2), _fewest(margin, alpha))


def needed_from(
    results: pd.DataFrame,
    *,
    reference: str = "full",
    margin: float = 0.01,
    power: float = 0.8,
    alpha: float = 0.05,
) -> pd.DataFrame:
    """Test examples that could decide about each method, from the disagreement seen in these results.

    Returns:
        One row a method: `method`, `disagreement`, `n` (examples seen), `needed` (if the true difference is 0) and
        `needed_at_observed` (if it is the one observed: to show the method sufficient above -margin, inferior below).
        Missing where no number of examples would do: the observed difference is at -margin, or (with five or more seeds)
        the seeds differ too much from each other.

    Raises:
        MeasureError: if the table cannot be joined, or a number is out of its range.
    """
    joined = paired(results, reference)
    check_margin(margin)
    required_examples(0.0, margin, power=power, alpha=alpha)
    needed, observed = needed_of(joined, margin=margin, power=power, alpha=alpha)
    return pd.DataFrame(
        {
            "method": joined.methods,
            "disagreement": np.abs(joined.gaps).mean(axis=(1, 2)),
            "n": joined.n,
            "needed": needed,
            "needed_at_observed": observed,
        }
    )


def needed_of(joined: Paired, *, margin: float, power: float, alpha: float) -> tuple[pd.Series, pd.Series]:
    """`needed` and `needed_at_observed` of each method, as nullable integers."""
    by_example = joined.gaps.mean(axis=2)
    known = spread(joined.gaps)
    square, mean = (by_example**2).mean(axis=1), known.mean
    z, fewest = _quantiles(power, alpha) ** 2, _fewest(margin, alpha)

    def examples(variance: float, distance: float, seeds: float) -> int | None:
        left = distance**2 / z - seeds
        # Rounding, where the observed difference is the margin itself, must not become a number of examples.
        return max(math.ceil(variance / left), fewest) if left > 1e-12 else None

    at_zero = [examples(v, margin, s) for v, s in zip(square, known.seed_variance, strict=True)]
    at_mean = [examples(v - d * d, margin + d, s) for v, d, s in zip(square, mean, known.seed_variance, strict=True)]
    return pd.Series(at_zero, dtype="Int64"), pd.Series(at_mean, dtype="Int64")


def check_margin(margin: float) -> None:
    if not 0 < margin < 1:
        raise MeasureError(
            f"The margin is {margin}; it is a loss of accuracy above 0 and below 1, such as .01 for one percentage point."
        )


def check_alpha(alpha: float) -> None:
    if not 0 < alpha < 0.5:
        raise MeasureError(f"The level alpha is {alpha}; it lies above 0 and below .5, commonly .05.")


def _quantiles(power: float, alpha: float) -> float:
    from scipy.stats import norm

    return float(norm.isf(alpha) + norm.ppf(power))


def _fewest(margin: float, alpha: float) -> int:
    return math.ceil(math.log(alpha) / math.log1p(-margin))
