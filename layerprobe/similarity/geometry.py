"""The geometry of one representation: its spread over directions, and its dimension."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float

from layerprobe.errors import MeasureError
from layerprobe.similarity._arrays import array, finite
from layerprobe.similarity._rsa import unit_rows

__all__ = ["anisotropy", "effective_rank", "intrinsic_dimension", "participation_ratio"]


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
