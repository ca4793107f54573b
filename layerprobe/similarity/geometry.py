"""The geometry of one representation: its spread over directions, and its dimension."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from layerprobe.errors import MeasureError
from layerprobe.similarity._arrays import (
    array,
    constant,
    doubles,
    finite,
    grouped,
    library,
    sample_rows,
    stays,
    take,
    unit_rows,
)
from layerprobe.similarity._measure import MIN_EXAMPLES
from layerprobe.similarity._paired import N_FOLDS
from layerprobe.similarity._spectra import eigenvalues
from layerprobe.stats import assign_folds, jackknife

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["anisotropy", "describe", "effective_rank", "intrinsic_dimension", "participation_ratio"]

CANDIDATES = 16
"""Nearest rows that are sorted to find two outside any fold."""


def anisotropy(x: Any) -> float:
    """Mean cosine of two different rows, in [-1 / (n - 1), 1]; 0 if directions are uniform (Ethayarajh 2019).

    Args:
        x: rows x features.

    Raises:
        MeasureError: for fewer than 4 rows, values that are not finite, or a row of zeros.
    """
    x = unit_rows(_rows(x, "anisotropy"), "anisotropy")
    return _mean_cosine(array(x.sum(0)), len(x))


def effective_rank(x: Any) -> float:
    """exp of the entropy of the normalised singular values of the centred rows, in [1, d] (Roy and Vetterli 2007).

    Args:
        x: rows x features.

    Raises:
        MeasureError: for fewer than 4 rows, values that are not finite, or constant rows.
    """
    return _effective_rank(_spectrum(x, "effective_rank"))


def participation_ratio(x: Any) -> float:
    """(sum of the covariance's eigenvalues)^2 / (sum of their squares), in [1, d] (Gao et al. 2017).

    Arguments and errors as `effective_rank`.
    """
    return _participation_ratio(_spectrum(x, "participation_ratio"))


def intrinsic_dimension(x: Any, *, discard: float = 0.1) -> float:
    """Dimension of the manifold that the rows lie on, from two nearest neighbours (Facco et al. 2017, TwoNN).

    With mu = r2 / r1 the ratio of the distances to a row's two nearest neighbours, -log(1 - F(mu)) = d log(mu); d is the
    slope through the origin without the largest ratios. Takes n x n memory. High dimensions are underestimated at any
    practical n.

    Args:
        x: rows x features.
        discard: share of the largest ratios left out of the fit.

    Raises:
        MeasureError: for fewer than 20 rows, values that are not finite, or repeated rows.
    """
    from scipy.spatial.distance import cdist

    x = array(_rows(x, "intrinsic_dimension", min_rows=20))
    return _two_nn(_nearest_two(cdist(x, x)), discard=discard)


def describe(x: Any, groups: Any = None, *, max_rows: int = 1000, seed: int = 0) -> pd.DataFrame:
    """All four, each with a 95% delete-group jackknife interval over whole examples.

    Args:
        x: rows x features; an array, or a tensor or `DeviceRows` on a device with float64, where products, eigenvalues and
            distances are then computed.
        groups: example of each row; rows of one example are not neighbours of each other. By default each row is an
            example.
        max_rows: rows of the sample of whole examples from which the intrinsic dimension, with its n x n matrix, is
            computed.
        seed: seed of the folds and of the sample.

    Returns:
        `measure, value, ci_low, ci_high, n, n_rows` (n counts examples). A measure that is undefined on these rows
        (repeated rows have no nearest distance) is left out.

    Raises:
        MeasureError: for fewer than 8 examples, values that are not finite, or constant rows.
    """
    import pandas as pd

    x = _rows(x, "geometry")
    numbers = grouped(groups, len(x), "geometry")
    examples = int(numbers.max()) + 1
    if examples < MIN_EXAMPLES:
        raise MeasureError(
            f"geometry: {{groups}} has {examples} examples, but an interval needs at least {MIN_EXAMPLES}; provide more.",
            "groups",
        )
    folds = assign_folds(examples, N_FOLDS, seed)[numbers]
    n_folds = int(folds.max()) + 1
    centred, unit = x - x.mean(0), unit_rows(x, "anisotropy")
    parts = [np.flatnonzero(folds == fold) for fold in range(n_folds)]
    products = np.stack([array(take(centred, part).T @ take(centred, part)) for part in parts])
    sums, directions = (np.stack([array(take(z, part).sum(0)) for part in parts]) for z in (centred, unit))
    device = x.device if stays(x) else None
    counts = np.array([len(part) for part in parts])

    def without(of_folds: np.ndarray, fold: int | None) -> Any:
        total = of_folds.sum(0)
        return total if fold is None else total - of_folds[fold]

    @cache
    def spectrum(fold: int | None) -> Float[np.ndarray, " d"]:
        total = without(sums, fold)
        return _eigenvalues(without(products, fold) - np.outer(total, total) / without(counts, fold), device)

    sample = sample_rows(numbers, max_rows, seed)
    apart = numbers[sample][:, None] != numbers[sample][None]
    # From inner products, ten times as fast as from differences; the rounding error of repeated rows is no distance.
    rows = take(centred, sample)
    squares = array(library(rows).einsum("nd,nd->n", rows, rows))
    squared = squares[:, None] + squares[None] - array(2 * rows @ rows.T)
    squared[squared < 1e-12 * squares.mean()] = 0
    nearest = _nearest_without(np.where(apart, np.sqrt(squared), np.inf), folds[sample])

    width = float(x.shape[1])
    statistics: list[tuple[str, Callable[[int | None], float], float, float, int]] = [
        (
            "anisotropy",
            lambda fold: _mean_cosine(without(directions, fold), int(without(counts, fold))),
            -1.0,
            1.0,
            len(x),
        ),
        ("effective_rank", lambda fold: _effective_rank(spectrum(fold)), 1.0, width, len(x)),
        ("participation_ratio", lambda fold: _participation_ratio(spectrum(fold)), 1.0, width, len(x)),
        ("intrinsic_dimension", lambda fold: _two_nn(nearest(fold)), 0.0, np.inf, len(sample)),
    ]
    table = []
    for name, statistic, low, high, n_rows in statistics:
        try:
            estimate = jackknife(statistic, n_folds, examples, low, high)
        except MeasureError:
            continue
        table.append((name, estimate.value, estimate.low, estimate.high, examples, n_rows))
    return pd.DataFrame(table, columns=["measure", "value", "ci_low", "ci_high", "n", "n_rows"])


def _mean_cosine(total: Float[np.ndarray, " d"], n: int) -> float:
    """Mean cosine of two different rows, from the sum of n rows of length 1."""
    return float((total @ total - n) / (n * (n - 1)))


def _nearest_two(distances: Float[np.ndarray, "n n"]) -> Float[np.ndarray, "n 2"]:
    """Distance of each row to its two nearest others; pairs that may not be neighbours are infinitely far apart."""
    distances = distances.copy()
    np.fill_diagonal(distances, np.inf)
    return np.partition(distances, 1, axis=1)[:, :2]


def _nearest_without(
    distances: Float[np.ndarray, "n n"], folds: Int[np.ndarray, " n"]
) -> Callable[[int | None], Float[np.ndarray, "m 2"]]:
    """`_nearest_two` of the rows that remain when a fold is left out, as a function of the fold.

    Each row's nearest rows are sorted once: two of them almost always lie outside the fold. For the rows where they do
    not, all distances are searched.

    Args:
        distances: distance of every two rows, infinite where they may not be neighbours.
        folds: fold of each row.
    """
    distances = distances.copy()
    np.fill_diagonal(distances, np.inf)
    count = min(CANDIDATES, len(distances))
    candidates = np.argpartition(distances, count - 1, axis=1)[:, :count]
    near = np.take_along_axis(distances, candidates, axis=1)
    order = np.argsort(near, axis=1)
    near, fold_of = np.take_along_axis(near, order, axis=1), folds[np.take_along_axis(candidates, order, axis=1)]

    def without(fold: int | None) -> Float[np.ndarray, "m 2"]:
        if fold is None:
            return near[:, :2]
        kept = folds != fold
        place = np.cumsum(fold_of[kept] != fold, axis=1)
        first, second = (np.argmax(place >= number, axis=1)[:, None] for number in (1, 2))
        two = np.concatenate([np.take_along_axis(near[kept], which, axis=1) for which in (first, second)], axis=1)
        scarce = place[:, -1] < 2
        if scarce.any():
            rows = np.flatnonzero(kept)[scarce]
            two[scarce] = np.partition(distances[np.ix_(rows, np.flatnonzero(kept))], 1, axis=1)[:, :2]
        return two

    return without


def _two_nn(nearest: Float[np.ndarray, "n 2"], *, discard: float = 0.1) -> float:
    """TwoNN from the distances of each row to its two nearest others."""
    repeated = int((nearest[:, 0] <= 0).sum())
    if repeated:
        raise MeasureError(
            f"intrinsic_dimension: {repeated} of {len(nearest)} rows repeat another row and have no nearest distance; leave "
            "repetitions out."
        )
    ratios = np.sort(np.log(nearest[:, 1] / nearest[:, 0]))
    n = len(ratios)
    kept = int(n * (1 - discard))
    heights = -np.log1p(-np.arange(1, n + 1) / (n + 1))
    return float(ratios[:kept] @ heights[:kept] / (ratios[:kept] @ ratios[:kept]))


def _effective_rank(eigenvalues: Float[np.ndarray, " d"]) -> float:
    shares = np.sqrt(eigenvalues)
    shares = shares[shares > 0] / shares.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def _participation_ratio(eigenvalues: Float[np.ndarray, " d"]) -> float:
    return float(eigenvalues.sum() ** 2 / (eigenvalues**2).sum())


def _eigenvalues(scatter: Float[np.ndarray, "d d"], device: Any = None) -> Float[np.ndarray, " d"]:
    """Eigenvalues, 0 for directions that exist by rounding only (with fewer rows than features)."""
    values = np.maximum(eigenvalues(scatter, device), 0)
    return np.where(values > 1e-12 * values[-1], values, 0)


def _spectrum(x: Any, caller: str) -> Float[np.ndarray, " d"]:
    x = _rows(x, caller)
    x = x - x.mean(0)
    values = _eigenvalues(array(x.T @ x), x.device if stays(x) else None)
    if not values[-1] > 0:
        raise constant(caller, "x", x.shape)
    return values


def _rows(x: Any, caller: str, min_rows: int = 4) -> Float[Any, "n d"]:
    """Rows in float64, where they are if that is a device with float64."""
    x = x.detach() if stays(x) else array(x)
    if x.ndim != 2 or len(x) < min_rows or not x.shape[1]:
        raise MeasureError(
            f"{caller}: {{x}} has shape {tuple(x.shape)}, but rows x features with at least {min_rows} rows are required; provide "
            "more.",
            "x",
        )
    return finite(doubles(x), caller)
