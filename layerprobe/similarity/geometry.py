"""The geometry of one representation: its spread over directions, and its dimension."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from layerprobe.errors import MeasureError
from layerprobe.similarity._arrays import array, finite, grouped
from layerprobe.similarity._intervals import folds_of, jackknife, sample_rows
from layerprobe.similarity._rsa import unit_rows

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["anisotropy", "describe", "effective_rank", "intrinsic_dimension", "participation_ratio"]


def anisotropy(x: Any) -> float:
    """Mean cosine of two different rows, in [-1 / (n - 1), 1]; 0 where directions are uniform (Ethayarajh 2019).

    Raises:
        MeasureError: for fewer than 4 rows, values that are not finite, or a row of zeros.
    """
    x = unit_rows(_rows(x, "anisotropy"), "anisotropy")
    total = x.sum(0)
    return float((total @ total - len(x)) / (len(x) * (len(x) - 1)))


def effective_rank(x: Any) -> float:
    """exp of the entropy of the normalised singular values of the centred rows, in [1, d] (Roy and Vetterli 2007).

    Raises:
        MeasureError: for fewer than 4 rows, values that are not finite, or constant rows.
    """
    return effective_rank_of(_spectrum(x, "effective_rank"))


def participation_ratio(x: Any) -> float:
    """(sum of the covariance's eigenvalues)^2 / (sum of their squares), in [1, d] (Gao et al. 2017).

    Raises:
        MeasureError: as `effective_rank`.
    """
    return participation_ratio_of(_spectrum(x, "participation_ratio"))


def intrinsic_dimension(x: Any, *, discard: float = 0.1) -> float:
    """Dimension of the manifold that the rows lie on, by two nearest neighbours (Facco et al. 2017, TwoNN).

    With mu = r2 / r1 the ratio of the distances to a row's two nearest neighbours, -log(1 - F(mu)) = d log(mu); d is the
    slope through the origin without the largest ratios. Takes n x n memory. High dimensions are underestimated at any
    n that is practical.

    Args:
        x: rows x features.
        discard: share of the largest ratios left out of the fit.

    Raises:
        MeasureError: for fewer than 20 rows, values that are not finite, or rows that repeat another.
    """
    from scipy.spatial.distance import cdist

    x = _rows(x, "intrinsic_dimension", minimum=20)
    return two_nn(cdist(x, x), discard=discard)


def two_nn(distances: Float[np.ndarray, "n n"], *, discard: float = 0.1) -> float:
    """TwoNN from the distance of every two rows; pairs that may not be neighbours are infinitely far apart."""
    distances = distances.copy()
    np.fill_diagonal(distances, np.inf)
    two = np.partition(distances, 1, axis=1)[:, :2]
    if (two[:, 0] <= 0).any():
        raise MeasureError(
            f"intrinsic_dimension was given {int((two[:, 0] <= 0).sum())} of {len(two)} rows that repeat another, so they "
            "have no nearest distance; leave repetitions out."
        )
    ratios = np.sort(np.log(two[:, 1] / two[:, 0]))
    n = len(ratios)
    kept = int(n * (1 - discard))
    heights = -np.log1p(-np.arange(1, n + 1) / (n + 1))
    return float(ratios[:kept] @ heights[:kept] / (ratios[:kept] @ ratios[:kept]))


def describe(x: Any, groups: Any = None, *, most: int = 1000, seed: int = 0) -> pd.DataFrame:
    """All four, each with a 95% delete-group jackknife interval over whole examples.

    Args:
        x: rows x features.
        groups: example of each row; rows of one example are no neighbours of each other.
        most: rows of whole examples that the intrinsic dimension, which needs an n x n matrix, is taken of.
        seed: of the groups of examples and the sample.

    Returns:
        `measure, value, ci_low, ci_high, n, n_rows`. A measure that is undefined on these rows (repeated rows have no
        nearest distance) is left out.

    Raises:
        MeasureError: for fewer than 8 examples, values that are not finite, or constant rows.
    """
    import pandas as pd

    x = _rows(x, "geometry")
    numbers = grouped(groups, len(x), "geometry")
    examples = int(numbers.max()) + 1
    if examples < 8:
        raise MeasureError(f"geometry was given {examples} examples; an interval needs at least 8: give more texts.")
    folds = folds_of(examples, 20, seed)[numbers]
    n_folds = int(folds.max()) + 1
    centre, unit = x - x.mean(0), unit_rows(x, "anisotropy")
    parts = [np.flatnonzero(folds == fold) for fold in range(n_folds)]
    products = np.stack([centre[part].T @ centre[part] for part in parts])
    sums, directions = (np.stack([z[part].sum(0) for part in parts]) for z in (centre, unit))
    counts = np.array([len(part) for part in parts])
    whole = products.sum(0), sums.sum(0), directions.sum(0), int(counts.sum())

    @cache
    def spectrum(fold: int | None) -> Float[np.ndarray, " d"]:
        product, total, _, n = whole
        if fold is not None:
            product, total, n = product - products[fold], total - sums[fold], n - int(counts[fold])
        values = np.maximum(np.linalg.eigvalsh(product - np.outer(total, total) / n), 0)
        return np.where(values > 1e-12 * values[-1], values, 0)

    def cosine(fold: int | None) -> float:
        total, n = whole[2], whole[3]
        if fold is not None:
            total, n = total - directions[fold], n - int(counts[fold])
        return float((total @ total - n) / (n * (n - 1)))

    chosen = sample_rows(numbers, most, seed)
    apart = numbers[chosen][:, None] != numbers[chosen][None]
    # From inner products, ten times as fast as differences; what rounding leaves of repeated rows is no distance.
    some = centre[chosen]
    squares = np.einsum("nd,nd->n", some, some)
    squared = squares[:, None] + squares[None] - 2 * some @ some.T
    squared[squared < 1e-12 * squares.mean()] = 0
    distances = np.where(apart, np.sqrt(squared), np.inf)

    def dimension(fold: int | None) -> float:
        keep = np.flatnonzero(folds[chosen] != (-1 if fold is None else fold))
        return two_nn(distances[np.ix_(keep, keep)])

    made: list[tuple[str, Callable[[int | None], float], float, float, int]] = [
        ("anisotropy", cosine, -1.0, 1.0, len(x)),
        ("effective_rank", lambda fold: effective_rank_of(spectrum(fold)), 1.0, float(x.shape[1]), len(x)),
        ("participation_ratio", lambda fold: participation_ratio_of(spectrum(fold)), 1.0, float(x.shape[1]), len(x)),
        ("intrinsic_dimension", dimension, 0.0, np.inf, len(chosen)),
    ]
    rows = []
    for name, function, low, high, n_rows in made:
        try:
            found = jackknife(function, n_folds, examples, low, high)
        except MeasureError:
            continue
        rows.append((name, found.value, found.low, found.high, examples, n_rows))
    return pd.DataFrame(rows, columns=["measure", "value", "ci_low", "ci_high", "n", "n_rows"])


def effective_rank_of(values: Float[np.ndarray, " d"]) -> float:
    """Effective rank from the covariance's eigenvalues."""
    shares = np.sqrt(np.maximum(values, 0))
    shares = shares[shares > 0] / shares.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def participation_ratio_of(values: Float[np.ndarray, " d"]) -> float:
    """Participation ratio from the covariance's eigenvalues."""
    return float(values.sum() ** 2 / (values**2).sum())


def _spectrum(x: Any, measure: str) -> Float[np.ndarray, " d"]:
    x = _rows(x, measure)
    x = x - x.mean(0)
    values = np.maximum(np.linalg.eigvalsh(x.T @ x), 0)
    if not values[-1] > 0:
        raise MeasureError(f"{measure} was given a constant representation of shape {x.shape}; leave it out.")
    # What rounding leaves where there are fewer rows than features is no direction.
    return np.where(values > 1e-12 * values[-1], values, 0)


def _rows(x: Any, measure: str, minimum: int = 4) -> Float[np.ndarray, "n d"]:
    x = array(x)
    if x.ndim != 2 or len(x) < minimum or not x.shape[1]:
        raise MeasureError(
            f"{measure} was given an array of shape {x.shape}; it takes rows x features, at least {minimum} rows: give more."
        )
    return finite(np.asarray(x, dtype=np.float64), measure)
