"""Canonical correlations between two representations, averaged in the field's four ways."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from jaxtyping import Float

from layerprobe.errors import MeasureError
from layerprobe.similarity._arrays import checked
from layerprobe.similarity._passes import one_fold
from layerprobe.similarity._statistics import Pair, Sizes

SINGULAR = 1e-10
"""A column of which the others leave less than this share unforetold is taken to be linearly dependent on them."""


def mean_cca(x: Any, y: Any) -> float:
    """Mean of the canonical correlations, in [0, 1]; 1 is the same up to an invertible linear map and a shift.

    Correlations of independent data are far from 0 until n is many times the width (d = 384, n = 500: .825).

    Raises:
        MeasureError: for n <= d_x + d_y, where all correlations are 1 whatever the data; for linearly dependent or
            constant columns; unequal n; values that are not finite.
    """
    return _public(x, y, "mean_cca", mean_cca_of)


def mean_squared_cca(x: Any, y: Any) -> float:
    """Mean of the squared canonical correlations (the R2 of CCA), in [0, 1].

    Raises:
        MeasureError: as `mean_cca`.
    """
    return _public(x, y, "mean_squared_cca", mean_squared_cca_of)


def svcca(x: Any, y: Any, *, variance: float = 0.99) -> float:
    """Mean canonical correlation of the leading principal components that hold a share of each side's variance, in [0, 1].

    Raghu et al. 2017, "SVCCA". Not invariant to linear maps, since the leading components are not.

    Raises:
        MeasureError: if variance is not in (0, 1], n is not above the components kept, or as `mean_cca`.
    """
    if not 0 < variance <= 1:
        raise MeasureError(f"svcca was given variance={variance}; it takes a share above 0 and up to 1.")
    x, y = checked(x, y, "svcca", on_device=True)
    return svcca_of(*one_fold(x, y, np.arange(len(x)), "svcca"), variance=variance)


def pwcca(x: Any, y: Any) -> float:
    """Canonical correlations weighted by how much of x each direction accounts for, in [0, 1].

    Two weightings are published. This is the one of the paper (Morcos et al. 2018, eq. 5 of "Insights on representational
    similarity"): direction h_i weighs sum_j |<h_i, x_j>| over the columns x_j of x. The other, of some implementations,
    takes the L1 norm of h_i over rows, which says nothing of how much of x the direction holds. Not symmetric, and since
    the columns are summed in absolute value, it changes when x is rotated.

    Raises:
        MeasureError: as `mean_cca`, and if d_x > d_y (directions of x are then left without a partner).
    """
    return _public(x, y, "pwcca", pwcca_of)


def mean_cca_of(xy: Pair, xx: Pair, yy: Pair, sizes: Sizes, fold: int | None = None) -> float:
    """Mean canonical correlation from statistics, of the whole sample or without one fold."""
    return float(_correlations(xy, xx, yy, sizes, fold, "mean_cca").mean())


def mean_squared_cca_of(xy: Pair, xx: Pair, yy: Pair, sizes: Sizes, fold: int | None = None) -> float:
    """Mean squared canonical correlation from statistics."""
    return float((_correlations(xy, xx, yy, sizes, fold, "mean_squared_cca") ** 2).mean())


def svcca_of(xy: Pair, xx: Pair, yy: Pair, sizes: Sizes, fold: int | None = None, *, variance: float = 0.99) -> float:
    """SVCCA from statistics."""
    if xy is xx:
        return 1.0
    basis_x, basis_y = (_leading(pair.centred_cross(sizes, fold), variance) for pair in (xx, yy))
    n = int(sizes.without(fold)[0])
    if n <= basis_x.shape[1] + basis_y.shape[1]:
        raise MeasureError(
            f"svcca was given {n} rows for {basis_x.shape[1]} + {basis_y.shape[1]} components, so it is near 1 whatever the "
            "data; give more rows, or lower variance."
        )
    whitened = basis_x.T @ xy.centred_cross(sizes, fold) @ basis_y
    return float(np.clip(np.linalg.svd(whitened, compute_uv=False), 0, 1).mean())


def pwcca_of(xy: Pair, xx: Pair, yy: Pair, sizes: Sizes, fold: int | None = None) -> float:
    """PWCCA from statistics."""
    if xy is xx:
        return 1.0
    own = xx.centred_cross(sizes, fold)
    _enough(own, yy.centred_cross(sizes, fold), sizes, fold, "pwcca")
    if own.shape[0] > yy.centred_cross(sizes, fold).shape[0]:
        raise MeasureError(
            f"pwcca was given x of width {own.shape[0]} and y of width {yy.centred_cross(sizes, fold).shape[0]}; "
            "its directions are those of x, so give the narrower side as x."
        )
    root_x, root_y = _root(own, "pwcca"), _root(yy.centred_cross(sizes, fold), "pwcca")
    left, values, _ = np.linalg.svd(_whitened(xy.centred_cross(sizes, fold), root_x, root_y), full_matrices=False)
    # x_j' h_i over all columns j: the directions are the rows' inverse root times the left vectors.
    weights = np.abs(root_x @ left).sum(0)
    return float(np.clip(values, 0, 1) @ weights / weights.sum())


def _public(x: Any, y: Any, measure: str, function: Any) -> float:
    x, y = checked(x, y, measure, on_device=True)
    xy, xx, yy, sizes = one_fold(x, y, np.arange(len(x)), measure)
    _enough(xx.centred_cross(sizes), yy.centred_cross(sizes), sizes, None, measure)
    if len(x) < 10 * max(x.shape[1], y.shape[1]):
        warnings.warn(
            f"{measure} was given {len(x)} rows of width {max(x.shape[1], y.shape[1])}: below ten rows a feature even "
            "independent data score high; read it beside the value of shuffled rows.",
            stacklevel=3,
        )
    return function(xy, xx, yy, sizes)


def _correlations(
    xy: Pair, xx: Pair, yy: Pair, sizes: Sizes, fold: int | None, measure: str
) -> Float[np.ndarray, " k"]:
    own_x = xx.centred_cross(sizes, fold)
    if xy is xx:
        _enough(own_x, own_x, sizes, fold, measure)
        return np.ones(own_x.shape[0])
    own_y = yy.centred_cross(sizes, fold)
    _enough(own_x, own_y, sizes, fold, measure)
    whitened = _whitened(xy.centred_cross(sizes, fold), _root(own_x, measure), _root(own_y, measure))
    return np.clip(np.linalg.svd(whitened, compute_uv=False), 0, 1)


def _enough(own_x: np.ndarray, own_y: np.ndarray, sizes: Sizes, fold: int | None, measure: str) -> None:
    n, widths = int(sizes.without(fold)[0]), (own_x.shape[0], own_y.shape[0])
    if n <= sum(widths):
        raise MeasureError(
            f"{measure} was given {n} rows for widths {widths[0]} + {widths[1]}; up to their sum every correlation is 1 "
            "whatever the data: give more rows, or use svcca or cka."
        )


def _root(own: Float[np.ndarray, "d d"], measure: str) -> Float[np.ndarray, "d d"]:
    """Cholesky root L of a covariance, L L' = own."""
    try:
        root = np.linalg.cholesky(own)
    except np.linalg.LinAlgError:
        root = np.zeros_like(own)
    # L_ii^2 is what of column i the columns before it do not foretell.
    left = np.diag(root) ** 2 <= SINGULAR * np.diag(own)
    if left.any():
        raise MeasureError(
            f"{measure} was given a representation of width {len(own)} with constant or linearly dependent columns; leave "
            "these out, or use svcca, which keeps the leading components."
        )
    return root


def _whitened(
    cross: Float[np.ndarray, "d_x d_y"], root_x: Float[np.ndarray, "d_x d_x"], root_y: Float[np.ndarray, "d_y d_y"]
) -> Float[np.ndarray, "d_x d_y"]:
    from scipy.linalg import solve_triangular

    half = solve_triangular(root_x, cross, lower=True, check_finite=False)
    return solve_triangular(root_y, half.T, lower=True, check_finite=False).T


def _leading(own: Float[np.ndarray, "d d"], variance: float) -> Float[np.ndarray, "d k"]:
    """Whitened leading principal directions."""
    values, vectors = np.linalg.eigh(own)
    values, vectors = values[::-1], vectors[:, ::-1]
    share = np.cumsum(values) / values.sum()
    kept = min(int(np.searchsorted(share, variance - 1e-12) + 1), int((values > SINGULAR * values[0]).sum()))
    return vectors[:, :kept] / np.sqrt(values[:kept])
