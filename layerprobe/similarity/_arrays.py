"""Checks and conversions of the arrays that the measures take."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Num

from layerprobe.device import DeviceRows, has_float64
from layerprobe.errors import MeasureError

CHUNK = 2**24
"""Numbers that are copied to a device at a time."""


def checked(
    x: Any, y: Any, caller: str, *, min_rows: int = 4, same_width: bool = False, on_device: bool = False
) -> tuple[Num[Any, "n d_x"], Num[Any, "n d_y"]]:
    """Two representations of the same n items, as arrays.

    Args:
        x, y: arrays or tensors, `(n, features)`.
        caller: name of the function at the start of error messages.
        min_rows: least number of rows.
        same_width: whether both need the same number of features.
        on_device: whether the caller works on tensors where they are; both stay there if they share a device.

    Raises:
        MeasureError: if the arrays do not fit the caller or each other.
    """
    identical = x is y
    if on_device and stays(x) and stays(y) and x.device == y.device and not (x.is_complex() or y.is_complex()):
        x, y = x.detach(), y.detach()
    else:
        x, y = array(x), array(y)
    y = x if identical else y

    def misfit(problem: str) -> MeasureError:
        return MeasureError(
            f"{caller}: {{x}} and {{y}} have shapes {tuple(x.shape)} and {tuple(y.shape)}{problem}", "x", "y"
        )

    if x.ndim != 2 or y.ndim != 2:
        raise misfit(", but two matrices, rows x features, are required; reshape them.")
    if any(z.dtype.kind not in "fiub" for z in (x, y) if not stays(z)):
        raise misfit(f" and types {x.dtype} and {y.dtype}, but real numbers are required; convert them.")
    if len(x) != len(y):
        raise misfit(", but row i of both must be the same item; join them on their ids.")
    if same_width and x.shape[1] != y.shape[1]:
        raise misfit(", but coordinates are compared one by one; use equal widths, or cka or procrustes.")
    if len(x) < min_rows or not x.shape[1] or not y.shape[1]:
        raise misfit(f", but at least {min_rows} rows and one feature are required; provide more.")
    return x, y


def stays(x: Any) -> bool:
    """Whether x is on a device with float64, where the computation then takes place; other tensors go to the CPU."""
    return hasattr(x, "detach") and has_float64(x.device)


def library(x: Any) -> Any:
    """The library, numpy or torch, whose functions apply to x."""
    if not stays(x):
        return np
    import torch

    return torch


def doubles(x: Any) -> Any:
    """The same numbers in float64."""
    return x.double() if stays(x) else np.asarray(x, dtype=np.float64)


def beside(values: Any, x: Any) -> Any:
    """An array, where x is."""
    if not stays(x):
        return values
    import torch

    return torch.as_tensor(values).to(x.device)


def take(x: Any, rows: Any) -> Any:
    """Some rows, by their numbers or as a boolean mask."""
    return x[rows] if isinstance(x, DeviceRows) else x[beside(rows, x)]


def parts(x: Any) -> Iterator[Any]:
    """Consecutive rows: all at once, or of stored rows for a device as many as are copied at a time."""
    step = max(1, CHUNK // x.shape[1]) if isinstance(x, DeviceRows) else max(1, len(x))
    return (x[start : start + step] for start in range(0, len(x), step))


def same_rows(x: Any, y: Any) -> bool:
    """Whether two arrays are equal, value by value."""
    if not stays(x):
        return bool(np.array_equal(x, y))
    return x.shape == y.shape and all(bool((a == b).all()) for a, b in zip(parts(x), parts(y), strict=True))


def array(x: Any) -> np.ndarray:
    """x as a numpy array, on the CPU, without a copy where possible."""
    if hasattr(x, "detach"):
        x = x.detach().cpu()
        # numpy has no bfloat16; float32 holds each of its values.
        x = (x.float() if str(x.dtype) == "torch.bfloat16" else x).numpy()
    return np.asanyarray(x)


def finite(
    x: Float[Any, "n d"], caller: str, *, numbers: Any = None, shape: tuple[int, ...] | None = None
) -> Float[Any, "n d"]:
    """The same rows, all finite.

    Args:
        x: rows.
        caller: name of the function at the start of error messages.
        numbers: number of each row in the whole array; by default 0, 1, ...
        shape: shape of the whole array; by default that of x.

    Raises:
        MeasureError: if a value is NaN or infinite.
    """
    if bool(library(x).isfinite(x).all()):
        return x
    row = int(np.flatnonzero(~np.isfinite(array(x)).all(axis=1))[0])
    row = row if numbers is None else int(numbers[row])
    raise MeasureError(
        f"{caller}: row {row} of an array of shape {tuple(shape or x.shape)} contains NaN or infinite values; drop or "
        "correct such rows."
    )


def grouped(groups: Any, n: int, caller: str) -> Int[np.ndarray, " n"]:
    """Examples of n rows, numbered 0 ... E-1; without groups, each row is an example."""
    if groups is None:
        return np.arange(n)
    groups = array(groups)
    if groups.shape != (n,):
        raise MeasureError(
            f"{caller}: {{groups}} has shape {groups.shape}, but one example number for each of {n} rows is required.",
            "groups",
        )
    return np.unique(groups, return_inverse=True)[1].astype(np.int64)


def is_constant(spread: float, mean: Any) -> bool:
    """Whether rows of this mean have no more than rounding as their mean squared distance from it."""
    return not spread > 1e-24 * (1 + float((mean**2).sum()))


def constant(caller: str, name: str, shape: tuple[int, ...]) -> MeasureError:
    """The error about a representation whose rows are all the same."""
    return MeasureError(
        f"{caller}: every row of {{{name}}} (shape {tuple(shape)}) is the same, and a constant representation has no "
        "similarity to another; leave it out.",
        name,
    )


def unit_rows(x: Float[Any, "n d"], caller: str) -> Float[Any, "n d"]:
    """Rows scaled to length 1."""
    lengths = library(x).linalg.norm(x, axis=1)
    if (lengths <= 1e-300).any():
        raise MeasureError(
            f"{caller}: row {int(lengths.argmin())} of an array of shape {tuple(x.shape)} is zero or constant and has no "
            "direction; leave it out."
        )
    return x / lengths[:, None]


def sample_rows(groups: Int[np.ndarray, " n"], max_rows: int, seed: int) -> Int[np.ndarray, " m"]:
    """Rows of a seeded sample of whole examples, at most `max_rows` (but at least one example), in their order."""
    counts = np.bincount(groups)
    order = np.random.default_rng(seed).permutation(len(counts))
    kept = order[: max(1, int(np.searchsorted(np.cumsum(counts[order]), max_rows, side="right")))]
    return np.flatnonzero(np.isin(groups, kept))
