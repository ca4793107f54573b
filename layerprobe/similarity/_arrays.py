"""Arrays as the measures take them: checked, and told apart by example."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float, Int, Num

from layerprobe.errors import MeasureError


def checked(
    x: Any, y: Any, measure: str, *, minimum: int = 4, same_width: bool = False
) -> tuple[Num[np.ndarray, "n d_x"], Num[np.ndarray, "n d_y"]]:
    """Two representations of the same n things, as arrays.

    Raises:
        MeasureError: naming the measure, the shapes, what is allowed and the way out.
    """
    x, y = array(x), array(y)
    shapes = f"{measure} was given arrays of shape {x.shape} and {y.shape}"
    if x.ndim != 2 or y.ndim != 2:
        raise MeasureError(f"{shapes}; it takes two matrices, rows x features: reshape them.")
    for given in (x, y):
        if given.dtype.kind not in "fiub":
            raise MeasureError(f"{shapes}, one of type {given.dtype}; it takes real numbers: convert them.")
    if len(x) != len(y):
        raise MeasureError(f"{shapes}; row i of both must be the same thing: join them on their ids.")
    if same_width and x.shape[1] != y.shape[1]:
        raise MeasureError(f"{shapes}; it compares coordinates, so both need one width: use cka or procrustes instead.")
    if len(x) < minimum or not x.shape[1] or not y.shape[1]:
        raise MeasureError(f"{shapes}; it needs at least {minimum} rows and one feature: give more rows.")
    return x, y


def array(x: Any) -> np.ndarray:
    """A numpy array of what came, without a copy where that is possible."""
    if hasattr(x, "detach"):
        x = x.detach().cpu()
        # numpy has no bfloat16; float32 holds each of its values.
        x = (x.float() if str(x.dtype) == "torch.bfloat16" else x).numpy()
    return np.asanyarray(x)


def finite(
    x: Float[np.ndarray, "n d"], measure: str, *, numbers: Any = None, shape: tuple[int, ...] | None = None
) -> Float[np.ndarray, "n d"]:
    """The same rows, or an error where one is NaN or infinite.

    Args:
        x: the rows.
        measure: named in the error.
        numbers: what each row's number is in the array as it was given; by default 0, 1, ...
        shape: of the array as it was given; by default of x.
    """
    if not np.isfinite(x).all():
        row = int(np.flatnonzero(~np.isfinite(x).all(axis=1))[0])
        row = row if numbers is None else int(numbers[row])
        raise MeasureError(
            f"{measure} was given NaN or infinite values (in an array of shape {shape or x.shape}, first in row {row}); drop "
            "or correct these rows."
        )
    return x


def grouped(groups: Any, n: int, measure: str) -> Int[np.ndarray, " n"]:
    """Example numbers 0 ... E-1 of n rows."""
    if groups is None:
        return np.arange(n)
    groups = array(groups)
    if groups.shape != (n,):
        raise MeasureError(
            f"{measure} was given groups of shape {groups.shape} for {n} rows; give one example number a row."
        )
    return np.unique(groups, return_inverse=True)[1].astype(np.int64)
