"""Neighbourhoods: do the same rows stand next to each other in both representations?"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from layerprobe.errors import MeasureError
from layerprobe.similarity._arrays import checked, finite
from layerprobe.similarity._rsa import unit_rows


def mutual_knn(x: Any, y: Any, *, k: int = 10, metric: str = "cosine") -> float:
    """Mean share of each row's k nearest neighbours in x that are among its k nearest in y, in [0, 1].

    Huh et al. 2024, "The Platonic Representation Hypothesis". Unrelated data score k / (n - 1). Takes n x n memory.

    Args:
        x, y: rows x features, row i of both the same thing.
        k: neighbours, the row itself not counted.
        metric: cosine (uncentred) or Euclidean distance. Equal distances are ordered by row number.

    Raises:
        MeasureError: for n <= k + 1, unequal n, values that are not finite, or (cosine) a row of zeros.
    """
    shared = _shared(x, y, k, metric, "mutual_knn")
    return float(shared.mean() / k)


def jaccard_knn(x: Any, y: Any, *, k: int = 10, metric: str = "cosine") -> float:
    """Mean Jaccard index of each row's k nearest neighbours in x and in y, in [0, 1].

    Arguments and errors as `mutual_knn`.
    """
    shared = _shared(x, y, k, metric, "jaccard_knn")
    return float((shared / (2 * k - shared)).mean())


def nearest(
    distances: Float[np.ndarray, "n n"], k: int, apart: Bool[np.ndarray, "n n"] | None = None
) -> Bool[np.ndarray, "n n"]:
    """Whether column j is among the k nearest of row i; `apart` marks the pairs that may be neighbours."""
    distances = distances.copy()
    np.fill_diagonal(distances, np.inf)
    if apart is not None:
        distances[~apart] = np.inf
    order = np.argsort(distances, axis=1, kind="stable")[:, :k]
    found = np.zeros(distances.shape, dtype=bool)
    np.put_along_axis(found, order, True, axis=1)
    return found


def distances(x: np.ndarray, metric: str, measure: str) -> Float[np.ndarray, "n n"]:
    """Distance of every two rows: 1 - cosine, or Euclidean."""
    x = finite(np.asarray(x, dtype=np.float64), measure)
    if metric == "cosine":
        x = unit_rows(x, measure)
        return 1 - x @ x.T
    from scipy.spatial.distance import cdist

    return cdist(x, x)


def _shared(x: Any, y: Any, k: int, metric: str, measure: str) -> Int[np.ndarray, " n"]:
    x, y = checked(x, y, measure)
    if metric not in ("cosine", "euclidean"):
        raise MeasureError(f"{measure} was given metric={metric!r}; it takes 'cosine' or 'euclidean'.")
    if not 1 <= k < len(x) - 1:
        raise MeasureError(
            f"{measure} was given k={k} with arrays of shape {x.shape} and {y.shape}; k is 1 to n - 2: give more rows or a "
            "smaller k."
        )
    for z in (x, y):
        if (z == z[0]).all():
            raise MeasureError(
                f"{measure} was given a constant representation (shape {z.shape}): every row is as near as any other; leave "
                "it out."
            )
    sides = [nearest(distances(z, metric, measure), k) for z in (x, y)]
    return (sides[0] & sides[1]).sum(1)
