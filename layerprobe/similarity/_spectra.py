"""Singular values and eigenvectors of cross products and scatter matrices, by the cheapest method that is accurate."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import cache
from typing import Any

import numpy as np
from jaxtyping import Float

ACCURACY = 1e-9
"""Largest estimated error, relative to their sum, of singular values whose vectors are taken from a Gram matrix."""
ACCURACY_OF_VALUES = 3e-8
"""The same for singular values alone. Errors of either sign cancel in their sum. Outputs of a layer norm have one or two
directions without variance, which alone are estimated at 1e-9 to 3e-8; errors measured there are below 4e-10."""
ROUNDING = 8 * np.finfo(np.float64).eps
"""Error of computed eigenvalues of a Gram matrix, relative to the largest."""


@cache
def _controller() -> Any:
    import scipy.linalg  # noqa: F401  # whose BLAS has to be loaded before it is found
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def one_thread() -> AbstractContextManager[Any]:
    """One BLAS thread for a decomposition.

    Half of its operations are matrix-vector products, which are limited by memory: more threads gain little at widths of a
    thousand, and wait for each other where other programs run (`benchmarks/similarity.py` prints both).
    """
    limit: AbstractContextManager[Any] = _controller().limit(limits=1, user_api="blas")
    return limit


def singular_values(matrix: Float[np.ndarray, "m n"]) -> Float[np.ndarray, " k"]:
    """Singular values in descending order, the estimated error of whose sum is at most `ACCURACY_OF_VALUES`.

    They are roots of the eigenvalues of the smaller Gram matrix, a third of the work of a singular value decomposition.
    An error e of an eigenvalue becomes e / (2 s) of the singular value s, at most sqrt(e). Where these add up to more than
    `ACCURACY_OF_VALUES` of the sum, as for matrices of low rank, the decomposition is computed.
    """
    largest = float(np.abs(matrix).max(initial=0.0))
    if not 0 < largest < np.inf:
        return np.linalg.svd(matrix, compute_uv=False)
    scaled = matrix / largest  # so that no square overflows
    with one_thread():
        squares = np.maximum(np.linalg.eigvalsh(_gram(scaled))[::-1], 0)
        if _error(squares) > ACCURACY_OF_VALUES * np.sqrt(squares).sum():
            return np.linalg.svd(matrix, compute_uv=False)
    return largest * np.sqrt(squares)


def left_vectors(matrix: Float[np.ndarray, "m n"]) -> tuple[Float[np.ndarray, "m m"], Float[np.ndarray, " m"]]:
    """Left singular vectors of a matrix with m <= n, and its singular values, in descending order.

    The vectors are those of the Gram matrix, if the errors are as small as in `singular_values`. The values are the
    lengths of M' u, which have half the loss of digits of the eigenvalues' roots.
    """
    largest = float(np.abs(matrix).max(initial=0.0))
    if 0 < largest < np.inf:
        scaled = matrix / largest
        with one_thread():
            squares, vectors = np.linalg.eigh(_gram(scaled))
        squares, vectors = np.maximum(squares[::-1], 0), vectors[:, ::-1]
        if _error(squares) <= ACCURACY * np.sqrt(squares).sum():
            return vectors, largest * np.linalg.norm(scaled.T @ vectors, axis=0)
    with one_thread():
        vectors, values, _ = np.linalg.svd(matrix, full_matrices=False)
    return vectors, values


def eigen(matrix: Float[np.ndarray, "d d"]) -> tuple[Float[np.ndarray, " d"], Float[np.ndarray, "d d"]]:
    """Eigenvalues in ascending order and eigenvectors of a symmetric matrix."""
    with one_thread():
        values, vectors = np.linalg.eigh(matrix)
    return values, vectors


def eigenvalues(matrix: Float[np.ndarray, "d d"]) -> Float[np.ndarray, " d"]:
    """Eigenvalues of a symmetric matrix in ascending order."""
    with one_thread():
        return np.linalg.eigvalsh(matrix)


def _gram(matrix: Float[np.ndarray, "m n"]) -> Float[np.ndarray, "k k"]:
    return matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix


def _error(squares: Float[np.ndarray, " k"]) -> float:
    """Estimated sum of the errors of the roots of computed eigenvalues of a Gram matrix, in descending order."""
    error = ROUNDING * squares[0]
    return float((np.sqrt(squares + error) - np.sqrt(np.maximum(squares - error, 0))).sum() / 2)
