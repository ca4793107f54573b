"""Arrays as the measures take them: checked, and told apart by example."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float, Int, Num

from layerprobe.errors import MeasureError

DEVICES = {"cuda"}
"""Kinds of device whose tensors are worked on where they are: those with float64. Others' go to the CPU."""


def checked(
    x: Any, y: Any, measure: str, *, minimum: int = 4, same_width: bool = False, on_device: bool = False
) -> tuple[Num[Any, "n d_x"], Num[Any, "n d_y"]]:
    """Two representations of the same n things, as arrays.

    Args:
        x, y: as the user gave them.
        measure: named in errors.
        minimum: least number of rows.
        same_width: whether both need one width.
        on_device: whether the caller can work on tensors where they are; both are left there if they share a device.

    Raises:
        MeasureError: naming the measure, the shapes, what is allowed and the way out.
    """
    one = x is y
    if on_device and stays(x) and stays(y) and x.device == y.device and not (x.is_complex() or y.is_complex()):
        x, y = x.detach(), y.detach()
    else:
        x, y = array(x), array(y)
    y = x if one else y
    shapes = f"{measure} was given arrays of shape {tuple(x.shape)} and {tuple(y.shape)}"
    if x.ndim != 2 or y.ndim != 2:
        raise MeasureError(f"{shapes}; it takes two matrices, rows x features: reshape them.")
    for given in (z for z in (x, y) if not stays(z)):
        if given.dtype.kind not in "fiub":
            raise MeasureError(f"{shapes}, one of type {given.dtype}; it takes real numbers: convert them.")
    if len(x) != len(y):
        raise MeasureError(f"{shapes}; row i of both must be the same thing: join them on their ids.")
    if same_width and x.shape[1] != y.shape[1]:
        raise MeasureError(f"{shapes}; it compares coordinates, so both need one width: use cka or procrustes instead.")
    if len(x) < minimum or not x.shape[1] or not y.shape[1]:
        raise MeasureError(f"{shapes}; it needs at least {minimum} rows and one feature: give more rows.")
    return x, y


def stays(x: Any) -> bool:
    """Whether this is a tensor that is worked on where it is."""
    return hasattr(x, "detach") and x.device.type in DEVICES


def doubles(x: Any) -> Any:
    """The same numbers in float64, on the device where they are worked on."""
    return x.double() if stays(x) else np.asarray(x, dtype=np.float64)


def host(x: Any) -> Any:
    """What was computed on a device, as numpy has it."""
    return array(x) if hasattr(x, "detach") else x


def array(x: Any) -> np.ndarray:
    """A numpy array of what came, without a copy where that is possible."""
    if hasattr(x, "detach"):
        x = x.detach().cpu()
        # numpy has no bfloat16; float32 holds each of its values.
        x = (x.float() if str(x.dtype) == "torch.bfloat16" else x).numpy()
    return np.asanyarray(x)


def finite(
    x: Float[Any, "n d"], measure: str, *, numbers: Any = None, shape: tuple[int, ...] | None = None
) -> Float[Any, "n d"]:
    """The same rows, or an error where one is NaN or infinite.

    Args:
        x: the rows.
        measure: named in the error.
        numbers: what each row's number is in the array as it was given; by default 0, 1, ...
        shape: of the array as it was given; by default of x.
    """
    if stays(x):
        if bool(x.isfinite().all()):
            return x
        x = array(x)
    if not np.isfinite(x).all():
        row = int(np.flatnonzero(~np.isfinite(x).all(axis=1))[0])
        row = row if numbers is None else int(numbers[row])
        raise MeasureError(
            f"{measure} was given NaN or infinite values (in an array of shape {tuple(shape or x.shape)}, first in row {row}); drop "
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
