"""Linear predictivity: how much of one representation a linear map of the other predicts."""

from __future__ import annotations

from math import inf
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from layerprobe.errors import MeasureError
from layerprobe.similarity._arrays import checked, constant, finite, grouped
from layerprobe.similarity._measure import SHAPE, Jackknife, Measure, Statistic
from layerprobe.similarity._paired import PairedRows

PENALTIES = tuple(10.0**power for power in range(-5, 4))
"""Candidate ridge penalties, relative to the number of rows times the mean variance of a feature of x."""


def linear_predictivity(x: Any, y: Any, *, folds: int = 5, groups: Any = None, seed: int = 0) -> float:
    """Cross-validated R2 of ridge regression from x to y, over all features of y together; at most 1.

    1 - (squared errors on held-out rows) / (squared distances of the same rows from the training rows' mean). The penalty
    is chosen on the training rows by generalised cross-validation. Not symmetric; negative where the map predicts worse
    than the mean.

    Args:
        x, y: rows x features, row i of both the same item.
        folds: number of cross-validation folds.
        groups: example of each row; all rows of an example are in one fold. By default each row is an example.
        seed: seed of the folds.

    Raises:
        MeasureError: for fewer than 2 examples per fold, unequal n, values that are not finite, or a constant side.
    """
    errors, spread = _held_out(x, y, folds=folds, groups=groups, seed=seed)
    return float(1 - errors.sum() / spread.sum())


def _held_out(
    x: Any, y: Any, *, folds: int, groups: Int[np.ndarray, " n"] | None, seed: int
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Squared error of each held-out row, and its squared distance from the training rows' mean."""
    from sklearn.linear_model import RidgeCV

    x, y = checked(x, y, "linear_predictivity")
    numbers = grouped(groups, len(x), "linear_predictivity")
    examples = int(numbers.max()) + 1
    if folds < 2 or examples < 2 * folds:
        raise MeasureError(
            f"linear_predictivity: {{folds}} is {folds} and there are {examples} examples (shapes {x.shape} and {y.shape}), but "
            "at least 2 folds of at least 2 examples are required; provide more rows or lower folds.",
            "folds",
        )
    x, y = (finite(np.asarray(z, dtype=np.float64), "linear_predictivity") for z in (x, y))
    for name, z in (("x", x), ("y", y)):
        if not np.ptp(z, axis=0).any():
            raise constant("linear_predictivity", name, z.shape)
    fold_of_row = (np.random.default_rng(seed).permutation(examples) % folds)[numbers]
    errors, spread = np.zeros(len(x)), np.zeros(len(x))
    for fold in range(folds):
        train, test = fold_of_row != fold, fold_of_row == fold
        mean_x, mean_y = x[train].mean(0), y[train].mean(0)
        scale = float(((x[train] - mean_x) ** 2).sum() / x.shape[1]) or 1.0
        model = RidgeCV(alphas=[scale * share for share in PENALTIES], fit_intercept=False)
        model.fit(x[train] - mean_x, y[train] - mean_y)
        target = y[test] - mean_y
        errors[test] = ((target - model.predict(x[test] - mean_x).reshape(target.shape)) ** 2).sum(1)
        spread[test] = (target**2).sum(1)
    return errors, spread


def _of_rows(pair: PairedRows) -> Statistic:
    """R2 over held-out rows; the regression is not repeated where a fold is left out."""
    errors, spread = _held_out(pair.x.rows, pair.y.rows, folds=5, groups=pair.groups, seed=pair.seed)

    def without(fold: int | None) -> float:
        rows = pair.without(fold)
        return float(1 - errors[rows].sum() / spread[rows].sum())

    return without


MEASURES = (
    Measure(
        linear_predictivity,
        label="Linear predictivity (R²)",
        range=(-inf, 1.0),
        symmetric=False,
        invariances=SHAPE,
        min_rows=10,
        citation="Yamins et al. 2014; ridge",
        # The R2 without a correspondence is 0 or less: no null is needed.
        resampling=Jackknife(_of_rows, max_rows=4000, null=False),
        attains_top=False,
        sensitivity="asks how much of the adapted layer a linear map of the base predicts",
        formula=r"1 - \frac{\sum_i \lVert y_i - \hat{y}_i \rVert^2}{\sum_i \lVert y_i - \bar{y}_{(i)} \rVert^2}",
    ),
)
