"""Linear predictivity: how much of one representation a linear map from the other foretells."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float

from layerprobe.errors import MeasureError
from layerprobe.similarity._arrays import checked, finite, grouped

PENALTIES = tuple(10.0**power for power in range(-5, 4))
"""Ridge penalties tried, as shares of the rows times the mean variance of a feature of x."""


def linear_predictivity(x: Any, y: Any, *, folds: int = 5, groups: Any = None, seed: int = 0) -> float:
    """Cross-validated R2 of ridge regression from x to y, over all features of y together; at most 1.

    1 - (squared errors on held-out rows) / (squared distances of the same rows from the training rows' mean). The penalty
    is chosen within the training rows by generalised cross-validation. Not symmetric; negative where the map does worse
    than the mean.

    Args:
        x, y: rows x features, row i of both the same thing.
        folds: parts, each foretold from the others.
        groups: example of each row; rows of one example are never in two parts.
        seed: of the parts.

    Raises:
        MeasureError: for fewer than 2 rows (or examples) a part, unequal n, values that are not finite, or constant y.
    """
    errors, spread, _ = held_out(x, y, folds=folds, groups=groups, seed=seed)
    return float(1 - errors.sum() / spread.sum())


def held_out(
    x: Any, y: Any, *, folds: int, groups: Any, seed: int
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"], np.ndarray]:
    """Squared error and squared distance from the training mean of each held-out row, and each row's example."""
    from sklearn.linear_model import RidgeCV

    x, y = checked(x, y, "linear_predictivity")
    numbers = grouped(groups, len(x), "linear_predictivity")
    examples = int(numbers.max()) + 1
    if folds < 2 or examples < 2 * folds:
        raise MeasureError(
            f"linear_predictivity was given {examples} examples of shapes {x.shape} and {y.shape} with folds={folds}; it needs "
            "at least 2 parts of 2 examples: give more rows or fewer folds."
        )
    x, y = (finite(np.asarray(z, dtype=np.float64), "linear_predictivity") for z in (x, y))
    for name, z, lack in (("x", x, "nothing to foretell from"), ("y", y, "nothing to foretell")):
        if not np.ptp(z, axis=0).any():
            raise MeasureError(
                f"linear_predictivity was given a constant {name} (shape {z.shape}), which leaves {lack}; leave it out."
            )
    part = (np.random.default_rng(seed).permutation(examples) % folds)[numbers]
    errors, spread = np.zeros(len(x)), np.zeros(len(x))
    for number in range(folds):
        inside, outside = part != number, part == number
        mean_x, mean_y = x[inside].mean(0), y[inside].mean(0)
        scale = float(((x[inside] - mean_x) ** 2).sum() / x.shape[1]) or 1.0
        model = RidgeCV(alphas=[scale * share for share in PENALTIES], fit_intercept=False)
        model.fit(x[inside] - mean_x, y[inside] - mean_y)
        target = y[outside] - mean_y
        errors[outside] = ((target - model.predict(x[outside] - mean_x).reshape(target.shape)) ** 2).sum(1)
        spread[outside] = (target**2).sum(1)
    return errors, spread, numbers
