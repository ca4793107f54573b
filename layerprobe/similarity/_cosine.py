"""Cosines of paired rows, and of rows that have nothing to do with each other."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float

from layerprobe.errors import MeasureError
from layerprobe.similarity._arrays import array, checked, doubles, finite, grouped, host, stays


def paired_cosine(x: Any, y: Any) -> float:
    """Mean over rows of the cosine between row i of x and row i of y, in [-1, 1]. Not centred.

    In an anisotropic space even unrelated rows have a high cosine: read it beside `paired_cosine_baseline`.

    Raises:
        MeasureError: for unequal shapes, values that are not finite, or a row of zeros.
    """
    x, y = checked(x, y, "paired_cosine", minimum=1, same_width=True, on_device=True)
    return float(row_cosines(x, y, "paired_cosine").mean())


def paired_cosine_baseline(x: Any, y: Any, *, groups: Any = None, seed: int = 0) -> float:
    """Mean cosine of row i of x with a row of y that belongs to another example, drawn by seed: what no pairing gives.

    Raises:
        MeasureError: as `paired_cosine`, and for fewer than two examples.
    """
    x, y = checked(x, y, "paired_cosine_baseline", minimum=2, same_width=True)
    numbers = grouped(groups, len(x), "paired_cosine_baseline")
    return float(row_cosines(x, array(y)[other_rows(numbers, seed)], "paired_cosine_baseline").mean())


def row_cosines(x: Any, y: Any, measure: str) -> Float[np.ndarray, " n"]:
    """Cosine of each row of x with the same row of y, in float64."""
    parts = []
    for start in range(0, len(x), 16_384):
        here = range(start, min(start + 16_384, len(x)))
        a, b = (finite(doubles(z[here.start : here.stop]), measure, numbers=here, shape=z.shape) for z in (x, y))
        squares = _products(a, a) * _products(b, b)
        if (squares == 0).any():
            row = start + int(np.flatnonzero(squares == 0)[0])
            raise MeasureError(
                f"{measure} was given arrays of shape {tuple(x.shape)} and {tuple(y.shape)} with a row of zeros (row {row}), which has no "
                "direction; leave it out."
            )
        # One square root of the product: a row with itself is then 1 to the last bit or two.
        parts.append(_products(a, b) / np.sqrt(squares))
    return np.concatenate(parts)


def _products(a: Float[Any, "n d"], b: Float[Any, "n d"]) -> Float[np.ndarray, " n"]:
    """Inner product of each row of a with the same row of b."""
    return host((a * b).sum(1)) if stays(a) else np.einsum("nd,nd->n", a, b)


def other_rows(groups: np.ndarray, seed: int) -> np.ndarray:
    """For each row, a row of another example: examples go round a seeded circle, rows are met in order."""
    counts = np.bincount(groups)
    if len(counts) < 2:
        raise MeasureError(
            f"paired_cosine_baseline was given {len(counts)} example; it needs two to pair: give more texts."
        )
    order = np.argsort(groups, kind="stable")
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    circle = np.random.default_rng(seed).permutation(len(counts))
    partner = np.empty_like(circle)
    partner[circle] = np.roll(circle, 1)
    within = np.empty(len(groups), dtype=np.int64)
    within[order] = np.arange(len(groups)) - np.repeat(starts, counts)
    other = partner[groups]
    return order[starts[other] + within % counts[other]]
