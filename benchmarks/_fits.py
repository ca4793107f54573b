"""Straight lines through measurements: the exponent of a power law, and the growth per unit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t


@dataclass(frozen=True)
class Line:
    """y = intercept + slope * x by least squares, with the 95% interval of the slope."""

    slope: float
    low: float
    high: float
    """NaN, as `low`, with fewer than three points."""
    intercept: float

    def at(self, x: float) -> float:
        return self.intercept + self.slope * x


def fit_line(x: Sequence[float], y: Sequence[float]) -> Line:
    """Fit a line; the interval assumes independent errors of equal variance.

    Raises:
        ValueError: if there are fewer than two different x.
    """
    one, other = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if len(set(one.tolist())) < 2:
        raise ValueError(f"A line needs at least two different sizes; there are {sorted(set(one.tolist()))}.")
    away = one - one.mean()
    spread = away @ away
    slope = away @ (other - other.mean()) / spread
    intercept = other.mean() - slope * one.mean()
    half = np.nan
    if len(one) > 2:
        errors = other - intercept - slope * one
        half = t.ppf(0.975, len(one) - 2) * np.sqrt(errors @ errors / (len(one) - 2) / spread)
    return Line(float(slope), float(slope - half), float(slope + half), float(intercept))


def fit_power(sizes: Sequence[float], values: Sequence[float]) -> Line:
    """The line of log10 value on log10 size; its slope is the exponent.

    Raises:
        ValueError: if a size or a value is not positive, or there are fewer than two sizes.
    """
    if min(*sizes, *values) <= 0:
        raise ValueError("A power law needs positive sizes and values.")
    return fit_line(np.log10(sizes).tolist(), np.log10(values).tolist())
