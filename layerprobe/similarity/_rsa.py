"""Representational similarity analysis: do the same rows lie far apart in both representations?"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float

from layerprobe.errors import MeasureError
from layerprobe.similarity._arrays import checked, finite

RDMS = ("correlation", "cosine", "euclidean")
COMPARISONS = ("spearman", "pearson", "kendall")


def rsa(
    x: Any,
    y: Any,
    *,
    rdm: str = "correlation",
    compare: str = "spearman",
) -> float:
    """Correlation of two representational dissimilarity matrices (Kriegeskorte et al. 2008), in [-1, 1].

    Takes n x n memory; for many rows give a sample of them.

    Args:
        x, y: rows x features, row i of both the same thing.
        rdm: dissimilarity of two rows: 1 - correlation over features, 1 - cosine (uncentred), or Euclidean distance.
        compare: over all pairs of rows: Spearman's rho, Pearson's r, or Kendall's tau-b.

    Raises:
        MeasureError: for fewer than 4 rows, unequal n, values that are not finite, a row that has no direction (of zeros,
            or constant where correlations are taken), or dissimilarities that are all equal.
    """
    x, y = checked(x, y, "rsa")
    for name, given, allowed in (("rdm", rdm, RDMS), ("compare", compare, COMPARISONS)):
        if given not in allowed:
            raise MeasureError(f"rsa was given {name}={given!r}; it takes {', '.join(map(repr, allowed))}.")
    pairs = np.triu_indices(len(x), 1)
    return correlate(dissimilarities(x, rdm)[pairs], dissimilarities(y, rdm)[pairs], compare)


def dissimilarities(x: np.ndarray, rdm: str = "correlation") -> Float[np.ndarray, "n n"]:
    """Dissimilarity of every two rows."""
    x = finite(np.asarray(x, dtype=np.float64), "rsa")
    if rdm == "euclidean":
        from scipy.spatial.distance import cdist

        return cdist(x, x)
    if rdm == "correlation":
        x = x - x.mean(1, keepdims=True)
    return 1 - unit_rows(x, "rsa") @ unit_rows(x, "rsa").T


def unit_rows(x: Float[np.ndarray, "n d"], measure: str) -> Float[np.ndarray, "n d"]:
    """Rows scaled to length 1."""
    lengths = np.linalg.norm(x, axis=1)
    if (lengths <= 1e-300).any():
        raise MeasureError(
            f"{measure} was given a row without a direction (row {int(lengths.argmin())} of an array of shape {x.shape} is "
            "zero or constant); leave it out."
        )
    return x / lengths[:, None]


def correlate(a: Float[np.ndarray, " p"], b: Float[np.ndarray, " p"], compare: str = "spearman") -> float:
    """Correlation of two lists of dissimilarities."""
    from scipy.stats import kendalltau, rankdata

    if np.ptp(a) == 0 or np.ptp(b) == 0:
        raise MeasureError(
            "rsa was given rows that are all equally dissimilar, so nothing can be correlated; give others."
        )
    if compare == "kendall":
        return float(kendalltau(a, b).statistic)
    if compare == "spearman":
        a, b = rankdata(a), rankdata(b)
    a, b = a - a.mean(), b - b.mean()
    return float(np.clip(a @ b / np.sqrt((a @ a) * (b @ b)), -1, 1))
