"""Cosine of paired rows, and of rows of unrelated examples."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float, Int

from layerprobe.errors import MeasureError
from layerprobe.similarity._arrays import CHUNK as COPIED
from layerprobe.similarity._arrays import array, checked, doubles, finite, grouped, library, stays, take
from layerprobe.similarity._measure import Measure, RowMean
from layerprobe.similarity._paired import PairedRows

CHUNK = 512
"""Rows converted to float64 at a time on the CPU, few enough to stay in the cache."""


def paired_cosine(x: Any, y: Any) -> float:
    """Mean over rows of the cosine between row i of x and row i of y, in [-1, 1]. Not centred.

    In an anisotropic space even unrelated rows have a high cosine: compare with `paired_cosine_baseline`.

    Args:
        x, y: rows x features, of the same shape.

    Raises:
        MeasureError: for unequal shapes, values that are not finite, or a row of zeros.
    """
    x, y = checked(x, y, "paired_cosine", min_rows=1, same_width=True, on_device=True)
    return float(_row_cosines(x, y, "paired_cosine").mean())


def paired_cosine_baseline(x: Any, y: Any, *, groups: Any = None, seed: int = 0) -> float:
    """Mean cosine of row i of x with a random row of another example of y: the value without a correspondence.

    Args:
        x, y: rows x features, of the same shape.
        groups: example of each row; by default each row is an example.
        seed: seed of the pairing.

    Raises:
        MeasureError: as `paired_cosine`, and for fewer than two examples.
    """
    x, y = checked(x, y, "paired_cosine_baseline", min_rows=2, same_width=True, on_device=True)
    numbers = grouped(groups, len(x), "paired_cosine_baseline")
    return float(_row_cosines(x, y, "paired_cosine_baseline", _other_rows(numbers, seed)).mean())


def _row_cosines(x: Any, y: Any, caller: str, other: Int[np.ndarray, " n"] | None = None) -> Float[np.ndarray, " n"]:
    """Cosine of each row of x with a row of y: the same one, or the one whose number is given."""
    parts = []
    step = max(1, COPIED // x.shape[1]) if stays(x) else CHUNK
    for start in range(0, len(x), step):
        rows = range(start, min(start + step, len(x)))
        of_y = y[rows.start : rows.stop] if other is None else take(y, other[rows.start : rows.stop])
        a, b = (
            finite(doubles(part), caller, numbers=rows, shape=x.shape) for part in (x[rows.start : rows.stop], of_y)
        )
        squares = _products(a, a) * _products(b, b)
        if (squares == 0).any():
            raise MeasureError(
                f"{caller}: row {start + int(np.flatnonzero(squares == 0)[0])} of {{x}} or {{y}} (shape {tuple(x.shape)}) is "
                "a row of zeros, which has no direction; leave it out.",
                "x",
                "y",
            )
        # One square root of the product: the cosine of a row with itself is then 1 to the last bit or two.
        parts.append(_products(a, b) / np.sqrt(squares))
    return np.concatenate(parts)


def _products(a: Float[Any, "n d"], b: Float[Any, "n d"]) -> Float[np.ndarray, " n"]:
    """Inner product of each row of a with the same row of b."""
    return array(library(a).einsum("nd,nd->n", a, b))


def _other_rows(groups: Int[np.ndarray, " n"], seed: int) -> Int[np.ndarray, " n"]:
    """For each row, a random row of another example.

    Examples are paired along a seeded cycle. Positions are random: first tokens, such as [CLS], are alike in all examples,
    so that rows paired by position would have a higher cosine than unrelated ones.
    """
    counts = np.bincount(groups)
    if len(counts) < 2:
        raise MeasureError(
            "paired_cosine_baseline: {groups} has one example, but at least two are required; provide more.", "groups"
        )
    order = np.argsort(groups, kind="stable")
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    rng = np.random.default_rng(seed)
    cycle = rng.permutation(len(counts))
    partner = np.empty_like(cycle)
    partner[cycle] = np.roll(cycle, 1)
    other = partner[groups]
    return order[starts[other] + rng.integers(counts[other])]


def _cosines_of(pair: PairedRows) -> Float[np.ndarray, " n"]:
    return _row_cosines(pair.x.rows, pair.y.rows, "paired_cosine")


def _baselines_of(pair: PairedRows) -> Float[np.ndarray, " n"]:
    return _row_cosines(pair.x.rows, pair.y.rows, "paired_cosine_baseline", _other_rows(pair.groups, pair.seed))


MEASURES = (
    Measure(
        paired_cosine,
        label="Mean cosine of the same row",
        range=(-1.0, 1.0),
        invariances=frozenset({"scale"}),
        min_rows=1,
        citation="cosine of the same row",
        resampling=RowMean(_cosines_of),
        sensitivity="responds to any rotation of the space, even one that a linear probe would undo",
        caption="Cosine between the vectors of the same row in base and adapted. The dotted line is the cosine of random "
        "rows of different examples: where all vectors point in similar directions it is high, and only a value well above it "
        "shows a correspondence.",
        formula=r"\frac{1}{n} \sum_{i=1}^{n} \frac{x_i^\top y_i}{\lVert x_i \rVert \, \lVert y_i \rVert}, \quad x_i, y_i \text{ not centred}",
    ),
    Measure(
        paired_cosine_baseline,
        label="Mean cosine of rows of different examples",
        range=(-1.0, 1.0),
        symmetric=False,
        invariances=frozenset({"scale"}),
        min_rows=2,
        citation="cosine of unrelated rows; Ethayarajh 2019",
        resampling=RowMean(_baselines_of, null=False),
        baseline_of="paired_cosine",
        attains_top=False,
        formula=r"\frac{1}{n} \sum_{i=1}^{n} \frac{x_i^\top y_{\pi(i)}}{\lVert x_i \rVert \, \lVert y_{\pi(i)} \rVert}, \quad \pi(i) \text{ a random row of another example}",
    ),
)
