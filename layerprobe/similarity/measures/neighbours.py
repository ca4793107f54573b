"""Neighbourhoods: do the same rows lie near each other in both representations?"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from layerprobe.errors import MeasureError
from layerprobe.similarity._arrays import array, beside, checked, constant, doubles, finite, library, stays, unit_rows
from layerprobe.similarity._measure import Jackknife, Measure, Statistic
from layerprobe.similarity._paired import PairedRows, Representation

NEIGHBOURS = 10


def mutual_knn(x: Any, y: Any, *, k: int = NEIGHBOURS, metric: str = "cosine") -> float:
    """Mean share of each row's k nearest neighbours in x that are among its k nearest in y, in [0, 1].

    Huh et al. 2024, "The Platonic Representation Hypothesis". Unrelated data score k / (n - 1). Takes n x n memory.

    Args:
        x, y: rows x features, row i of both the same item.
        k: number of neighbours, the row itself not counted.
        metric: `cosine` (uncentred) or `euclidean`. Equal distances are ordered by row number.

    Raises:
        MeasureError: for n <= k + 1, unequal n, values that are not finite, or (cosine) a row of zeros.
    """
    return _mutual(_shared(x, y, k, metric, "mutual_knn"), k)


def jaccard_knn(x: Any, y: Any, *, k: int = NEIGHBOURS, metric: str = "cosine") -> float:
    """Mean Jaccard index of each row's k nearest neighbours in x and in y, in [0, 1].

    Arguments and errors as `mutual_knn`.
    """
    return _jaccard(_shared(x, y, k, metric, "jaccard_knn"), k)


def _mutual(shared: Int[np.ndarray, " n"], k: int) -> float:
    return float(shared.mean() / k)


def _jaccard(shared: Int[np.ndarray, " n"], k: int) -> float:
    return float((shared / (2 * k - shared)).mean())


def _shared(x: Any, y: Any, k: int, metric: str, caller: str) -> Int[np.ndarray, " n"]:
    """Number of neighbours of each row that the two sides have in common."""
    x, y = checked(x, y, caller, on_device=metric == "cosine")
    if metric not in ("cosine", "euclidean"):
        raise MeasureError(f"{caller}: {{metric}} is {metric!r}; use 'cosine' or 'euclidean'.", "metric")
    if not 1 <= k < len(x) - 1:
        raise MeasureError(
            f"{caller}: {{k}} is {k}, but must be between 1 and n - 2 for arrays of shapes {tuple(x.shape)} and "
            f"{tuple(y.shape)}; provide "
            "more rows or lower k.",
            "k",
        )
    for name, z in (("x", x), ("y", y)):
        if (z == z[0]).all():
            raise constant(caller, name, z.shape)
    a, b = (_nearest(_distances(z, metric, caller), k) for z in (x, y))
    return array((a & b).sum(1))


def _distances(x: Any, metric: str, caller: str) -> Float[Any, "n n"]:
    """Distance of every two rows: 1 - cosine, or Euclidean."""
    x = finite(doubles(x), caller)
    if metric == "cosine":
        x = unit_rows(x, caller)
        return 1 - x @ x.T
    from scipy.spatial.distance import cdist

    return cdist(x, x)


def _nearest(distances: Float[Any, "n n"], k: int, allowed: Bool[np.ndarray, "n n"] | None = None) -> Bool[Any, "n n"]:
    """Whether column j is among the k nearest of row i; `allowed` marks the pairs that may be neighbours."""
    barred = np.eye(len(distances), dtype=bool) if allowed is None else ~allowed | np.eye(len(distances), dtype=bool)
    distances = library(distances).where(beside(barred, distances), np.inf, distances)
    if stays(distances):
        nearest = distances.argsort(dim=1, stable=True)[:, :k]
        return beside(np.zeros(distances.shape, dtype=bool), distances).scatter(1, nearest, True)
    order = np.argsort(distances, axis=1, kind="stable")[:, :k]
    near = np.zeros(distances.shape, dtype=bool)
    np.put_along_axis(near, order, True, axis=1)
    return near


def _distances_of(side: Representation) -> Float[Any, "n n"]:
    return _distances(side.rows, "cosine", "mutual_knn, jaccard_knn")


def _neighbours_of(side: Representation) -> Bool[Any, "n n"]:
    return _nearest(side.of(_distances_of), NEIGHBOURS, side.apart)


def _of_rows(score: Callable[[np.ndarray, int], float], pair: PairedRows) -> Statistic:
    """A score of the neighbours that lie in other examples."""

    def without(fold: int | None) -> float:
        kept = pair.without(fold)
        here = np.ix_(kept, kept)
        apart = pair.x.apart[here]
        if (apart.sum(1) < NEIGHBOURS).any():
            raise MeasureError(
                f"mutual_knn, jaccard_knn: {{groups}} has {pair.n_examples} examples, but {NEIGHBOURS} neighbours in other "
                "examples are required; provide more.",
                "groups",
            )
        if fold is None:
            a, b = pair.x.of(_neighbours_of), pair.y.of(_neighbours_of)
        else:
            distances = (side.of(_distances_of) for side in (pair.x, pair.y))
            a, b = (_nearest(z[tuple(beside(part, z) for part in here)], NEIGHBOURS, apart) for z in distances)
        return score(array((a & b).sum(1)), NEIGHBOURS)

    return without


MEASURES = (
    Measure(
        mutual_knn,
        label="Mutual 10 nearest neighbours",
        invariances=frozenset({"rotation", "scale"}),
        min_rows=12,
        citation="Huh et al. 2024",
        resampling=Jackknife(partial(_of_rows, _mutual)),
        sensitivity="responds only to which rows are nearest",
        formula=r"\frac{1}{n} \sum_{i=1}^{n} \frac{\lvert N_k(x_i) \cap N_k(y_i) \rvert}{k}",
    ),
    Measure(
        jaccard_knn,
        label="Jaccard of 10 nearest neighbours",
        invariances=frozenset({"rotation", "scale"}),
        min_rows=12,
        citation="Jaccard 1912; k = 10",
        resampling=Jackknife(partial(_of_rows, _jaccard)),
        sensitivity="responds only to which rows are nearest",
        formula=r"\frac{1}{n} \sum_{i=1}^{n} \frac{\lvert N_k(x_i) \cap N_k(y_i) \rvert}{\lvert N_k(x_i) \cup N_k(y_i) \rvert}",
    ),
)
