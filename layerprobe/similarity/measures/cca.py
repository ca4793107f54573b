"""Canonical correlations between two representations, averaged in the four usual ways."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float

from layerprobe.errors import MeasureError
from layerprobe.similarity._measure import ANY_LINEAR, SHAPE, Linear, Measure
from layerprobe.similarity._passes import linear_value
from layerprobe.similarity._spectra import cholesky, eigen, left_vectors, product, singular_values, solve_lower
from layerprobe.similarity._statistics import Products

SINGULAR = 1e-10
"""A column is taken to depend linearly on others if they leave less than this share of its variance unexplained."""


def mean_cca(x: Any, y: Any) -> float:
    """Mean of the canonical correlations, in [0, 1]; 1 if x and y are equal up to an invertible linear map and a shift.

    Correlations of independent data are far from 0 unless n is many times the width.

    Args:
        x, y: rows x features, row i of both the same item.

    Raises:
        MeasureError: for n <= d_x + d_y, where all correlations are 1 for any data; for linearly dependent or constant
            columns; unequal n; values that are not finite.
    """
    return linear_value("mean_cca", _mean_cca, x, y)


def mean_squared_cca(x: Any, y: Any) -> float:
    """Mean of the squared canonical correlations (the R2 of CCA), in [0, 1].

    Arguments and errors as `mean_cca`.
    """
    return linear_value("mean_squared_cca", _mean_squared_cca, x, y)


def svcca(x: Any, y: Any, *, variance: float = 0.99, rows_per_component: float | None = None) -> float:
    """Mean canonical correlation of the leading principal components of each side, in [0, 1].

    Raghu et al. 2017, "SVCCA". Not invariant to linear maps, since the leading components are not.

    Args:
        x, y: rows x features, row i of both the same item.
        variance: share of each side's variance that its components account for.
        rows_per_component: least number of rows per component of the side with more; by default n need only exceed the
            number of components of both sides. With few rows, the value is high for unrelated data, too.

    Raises:
        MeasureError: if variance is not in (0, 1], there are too few rows for the number of components, or as `mean_cca`.
    """
    if not 0 < variance <= 1:
        raise MeasureError(f"svcca: {{variance}} is {variance}; use a share above 0 and up to 1.", "variance")
    return linear_value("svcca", _svcca, x, y, warn=False, variance=variance, rows_per_component=rows_per_component)


def pwcca(x: Any, y: Any) -> float:
    """Canonical correlations weighted by how much of x each direction accounts for, in [0, 1].

    Two weightings are published. This is that of the paper (Morcos et al. 2018, eq. 5 of "Insights on representational
    similarity"): the weight of direction h_i is sum_j |<h_i, x_j>| over the columns x_j of x. Some implementations take
    the L1 norm of h_i over rows instead, which does not depend on x. Not symmetric; since the columns are summed in
    absolute value, it changes when x is rotated.

    Args:
        x, y: rows x features, row i of both the same item.

    Raises:
        MeasureError: as `mean_cca`, and if d_x > d_y, where directions of x have no counterpart.
    """
    return linear_value("pwcca", _pwcca, x, y)


def _mean_cca(products: Products) -> float:
    return float(_correlations(products, "mean_cca").mean())


def _mean_squared_cca(products: Products) -> float:
    _check_rows(products, "mean_squared_cca")
    if products.identical:
        return 1.0
    # The squared correlations sum to the squared Frobenius norm: no decomposition is required.
    whitened = _whitened(products, "mean_squared_cca")
    return float(np.clip(np.vdot(whitened, whitened) / min(whitened.shape), 0, 1))


def _svcca(products: Products, *, variance: float = 0.99, rows_per_component: float | None = None) -> float:
    if products.identical:
        return 1.0
    device = products.device
    basis_x, basis_y = (_leading(scatter, variance, device) for scatter in (products.scatter_x, products.scatter_y))
    if products.n <= basis_x.shape[1] + basis_y.shape[1]:
        raise MeasureError(
            f"svcca: {products.n} rows for {basis_x.shape[1]} + {basis_y.shape[1]} components, with which it is near 1 for "
            "any data; provide more rows, or lower {variance}.",
            "variance",
        )
    most = max(basis_x.shape[1], basis_y.shape[1])
    if rows_per_component is not None and products.n < rows_per_component * most:
        raise MeasureError(
            f"svcca: {products.n} rows for {most} components, fewer than {rows_per_component:g} per component "
            "({rows_per_component}); provide more rows, or lower {variance}.",
            *("rows_per_component", "variance"),
        )
    whitened = product(basis_x.T, products.cross, basis_y, device=device)
    return float(np.clip(singular_values(whitened, device), 0, 1).mean())


def _pwcca(products: Products) -> float:
    _check_rows(products, "pwcca")
    if products.identical:
        return 1.0
    width_x, width_y = products.widths
    if width_x > width_y:
        raise MeasureError(
            f"pwcca: {{x}} has width {width_x} and {{y}} width {width_y}, but each direction of x needs a counterpart; pass "
            "the narrower side as x.",
            "x",
            "y",
        )
    root_x = _root(products.scatter_x, "pwcca", products.device)
    left, values = left_vectors(_whitened(products, "pwcca", root_x), products.device)
    # x_j' h_i over all columns j: the directions are the rows' inverse root times the left vectors.
    weights = np.abs(product(root_x, left, device=products.device)).sum(0)
    return float(np.clip(values, 0, 1) @ weights / weights.sum())


def _correlations(products: Products, caller: str) -> Float[np.ndarray, " k"]:
    _check_rows(products, caller)
    if products.identical:
        return np.ones(products.widths[0])
    return np.clip(singular_values(_whitened(products, caller), products.device), 0, 1)


def _check_rows(products: Products, caller: str) -> None:
    if products.n <= sum(products.widths):
        raise MeasureError(
            f"{caller}: {products.n} rows for widths {products.widths[0]} + {products.widths[1]}; with no more rows than their "
            "sum every correlation is 1 for any data: provide more rows, or use svcca or cka."
        )


def _root(scatter: Float[np.ndarray, "d d"], caller: str, device: Any) -> Float[np.ndarray, "d d"]:
    """Cholesky root L of a scatter matrix, L L' = scatter."""
    root = cholesky(scatter, device)
    # L_ii^2 is the part of column i that the columns before it do not explain.
    if (np.diag(root) ** 2 <= SINGULAR * np.diag(scatter)).any():
        raise MeasureError(
            f"{caller}: a representation of width {len(scatter)} has constant or linearly dependent columns; leave these out, "
            "or use svcca, which keeps the leading components."
        )
    return root


def _whitened(
    products: Products, caller: str, root_x: Float[np.ndarray, "d_x d_x"] | None = None
) -> Float[np.ndarray, "d_x d_y"]:
    """Cross product of the whitened sides, whose singular values are the canonical correlations.

    Args:
        products: statistics of the two sides.
        caller: name of the measure, for error messages.
        root_x: Cholesky root of the scatter matrix of x, if it is known.
    """
    device = products.device
    root_x = _root(products.scatter_x, caller, device) if root_x is None else root_x
    root_y = _root(products.scatter_y, caller, device)
    half = solve_lower(root_x, products.cross, device)
    return solve_lower(root_y, half.T, device).T


def _leading(scatter: Float[np.ndarray, "d d"], variance: float, device: Any) -> Float[np.ndarray, "d k"]:
    """Whitened leading principal directions."""
    values, vectors = eigen(scatter, device)
    values, vectors = values[::-1], vectors[:, ::-1]
    share = np.cumsum(values) / values.sum()
    kept = min(int(np.searchsorted(share, variance - 1e-12) + 1), int((values > SINGULAR * values[0]).sum()))
    return vectors[:, :kept] / np.sqrt(values[:kept])


EQUAL_WEIGHTS = "ignores any invertible linear map, so that the smallest directions count as much as the largest"

MEASURES = (
    Measure(
        mean_cca,
        label="Mean canonical correlation",
        invariances=ANY_LINEAR,
        citation="Hotelling 1936; Raghu et al. 2017",
        resampling=Linear(_mean_cca),
        sensitivity=EQUAL_WEIGHTS,
        formula=r"\frac{1}{p} \sum_{i=1}^{p} \rho_i, \quad p = \min(d_x, d_y)",
    ),
    Measure(
        mean_squared_cca,
        label="Mean squared canonical correlation",
        invariances=ANY_LINEAR,
        citation="Hotelling 1936; Kornblith et al. 2019",
        resampling=Linear(_mean_squared_cca),
        sensitivity=EQUAL_WEIGHTS,
        formula=r"\frac{1}{p} \sum_{i=1}^{p} \rho_i^2, \quad p = \min(d_x, d_y)",
    ),
    Measure(
        svcca,
        label="SVCCA",
        invariances=SHAPE,
        citation="Raghu et al. 2017",
        resampling=Linear(_svcca),
        sensitivity="as CCA, on the directions that hold 99% of the variance",
        formula=r"\frac{1}{p} \sum_{i=1}^{p} \rho_i(X V_x, Y V_y), \quad p = \min(k_x, k_y)",
    ),
    Measure(
        pwcca,
        label="PWCCA",
        symmetric=False,
        invariances=frozenset({"scale", "shift"}),
        citation="Morcos et al. 2018",
        resampling=Linear(_pwcca),
        sensitivity="as CCA, each direction weighted by how much of the base it accounts for",
        formula=r"\frac{\sum_i \alpha_i \rho_i}{\sum_i \alpha_i}, \quad \alpha_i = \sum_{j=1}^{d_x} \lvert h_i^\top X_{\cdot j} \rvert",
    ),
)
