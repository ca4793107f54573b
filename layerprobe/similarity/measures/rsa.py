"""Representational similarity analysis: are the same rows far apart in both representations?"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float

from layerprobe.errors import MeasureError
from layerprobe.similarity._arrays import array, beside, checked, doubles, finite, stays, unit_rows
from layerprobe.similarity._measure import Jackknife, Measure, Statistic
from layerprobe.similarity._paired import PairedRows, Representation

RDMS = ("correlation", "cosine", "euclidean")
COMPARISONS = ("spearman", "pearson", "kendall")


def rsa(x: Any, y: Any, *, rdm: str = "correlation", compare: str = "spearman") -> float:
    """Correlation of two representational dissimilarity matrices (Kriegeskorte et al. 2008), in [-1, 1].

    Takes n x n memory; for many rows pass a sample of them.

    Args:
        x, y: rows x features, row i of both the same item.
        rdm: dissimilarity of two rows: 1 - correlation over features, 1 - cosine (uncentred), or Euclidean distance.
        compare: over all pairs of rows: Spearman's rho, Pearson's r, or Kendall's tau-b.

    Raises:
        MeasureError: for fewer than 4 rows, unequal n, values that are not finite, a row without a direction (of zeros,
            or constant with correlations), or dissimilarities that are all equal.
    """
    x, y = checked(x, y, "rsa", on_device=rdm != "euclidean")
    for name, value, allowed in (("rdm", rdm, RDMS), ("compare", compare, COMPARISONS)):
        if value not in allowed:
            raise MeasureError(f"rsa: {{{name}}} is {value!r}; use one of {', '.join(map(repr, allowed))}.", name)
    pairs = np.triu(np.ones((len(x), len(x)), dtype=bool), 1)
    a, b = (_dissimilarities(z, rdm) for z in (x, y))
    return _correlation(a[beside(pairs, a)], b[beside(pairs, b)], compare)


def _dissimilarities(x: Any, rdm: str = "correlation") -> Float[Any, "n n"]:
    x = finite(doubles(x), "rsa")
    if rdm == "euclidean":
        from scipy.spatial.distance import cdist

        return cdist(x, x)
    if rdm == "correlation":
        x = x - x.mean(1, keepdims=True)
    directions = unit_rows(x, "rsa")
    return 1 - directions @ directions.T


def _correlation(a: Float[Any, " pairs"], b: Float[Any, " pairs"], compare: str = "spearman") -> float:
    from scipy.stats import kendalltau

    if a.max() == a.min() or b.max() == b.min():
        raise MeasureError(
            "rsa: all pairs of rows are equally dissimilar, so no correlation is defined; use other rows."
        )
    if compare == "kendall":
        return float(kendalltau(array(a), array(b)).statistic)
    if compare == "spearman":
        a, b = _ranks(a), _ranks(b)
    a, b = a - a.mean(), b - b.mean()
    return float(np.clip(float(a @ b) / np.sqrt(float(a @ a) * float(b @ b)), -1, 1))


def _ranks(values: Float[Any, " pairs"]) -> Float[Any, " pairs"]:
    """Ranks from 1; equal values share their mean rank."""
    if stays(values):
        _, place, counts = values.unique(return_inverse=True, return_counts=True)
        return (counts.cumsum(0).double() - (counts.double() - 1) / 2)[place]
    from scipy.stats import rankdata

    return rankdata(values)


def _of_side(side: Representation) -> Float[Any, "n n"]:
    return _dissimilarities(side.rows)


def _of_rows(pair: PairedRows) -> Statistic:
    """RSA over the pairs of rows from different examples."""
    a, b, allowed = pair.x.of(_of_side), pair.y.of(_of_side), np.triu(pair.x.apart, 1)

    def without(fold: int | None) -> float:
        kept = np.zeros(pair.n_rows, dtype=bool)
        kept[pair.without(fold)] = True
        pairs = allowed & kept[:, None] & kept[None]
        return _correlation(a[beside(pairs, a)], b[beside(pairs, b)])

    return without


MEASURES = (
    Measure(
        rsa,
        label="RSA (correlation, Spearman)",
        range=(-1.0, 1.0),
        invariances=frozenset({"scale"}),
        citation="Kriegeskorte et al. 2008; correlation, Spearman",
        resampling=Jackknife(_of_rows),
        sensitivity="responds to the order of all distances between rows, small and large",
        formula=r"r_s \left( \{ 1 - r(x_i, x_j) \}_{i < j}, \{ 1 - r(y_i, y_j) \}_{i < j} \right)",
    ),
)
