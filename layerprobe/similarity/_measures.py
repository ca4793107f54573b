"""The measures: pure functions of two representations of the same rows."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float

from layerprobe.errors import MeasureError
from layerprobe.similarity._arrays import array, checked, finite, grouped
from layerprobe.similarity._statistics import Pair, Sizes, statistics


def cka(x: Any, y: Any, *, debiased: bool = True, groups: Any = None) -> float:
    """Linear centred kernel alignment of two representations; 1 is the same up to rotation and scale.

    Args:
        x, y: rows x features, row i of both the same thing; widths may differ.
        debiased: leave out the pairs of a row with itself, which make plain CKA of independent 768-d noise .61 at
            n = 500. The debiased value lies in [-1, 1] and is 0 on average for independent representations. The biased
            one (Kornblith et al. 2019, "Similarity of Neural Network Representations Revisited") lies in [0, 1].
        groups: example of each row; the debiased value then leaves out all pairs of rows of one example, which are
            dependent whatever the representation is.

    Raises:
        MeasureError: for fewer than 4 rows or examples, unequal n, values that are not finite, or a constant input.
    """
    x, y = checked(x, y, "cka")
    numbers = grouped(groups if debiased else None, len(x), "cka")
    examples = int(numbers.max()) + 1
    if examples < 4:
        raise MeasureError(f"cka was given {examples} examples in {len(x)} rows; it needs at least 4: give more texts.")
    pairs = [("x", "y"), ("x", "x"), ("y", "y")]
    made, sizes = statistics({"x": x, "y": y}, pairs, numbers, np.zeros(examples, dtype=np.int64), "cka")
    xy, xx, yy = (made[pair] for pair in pairs)
    if debiased:
        return cka_of(xy, xx, yy, sizes)
    parts = [float((pair.centred_cross(sizes) ** 2).sum()) for pair in (xy, xx, yy)]
    return parts[0] / float(np.sqrt(parts[1]) * np.sqrt(parts[2]))


def procrustes(x: Any, y: Any) -> float:
    """Orthogonal Procrustes similarity in [0, 1]: nuclear norm of the cross product over the Frobenius norms.

    Rows are centred. 1 is the same up to rotation, shift and scale (Ding et al. 2021, "Grounding Representation
    Similarity with Statistical Testing"; Williams et al. 2021). Independent data do not score 0: at d = 384 and
    n = 500 they score .68, so it is read beside a baseline.

    Raises:
        MeasureError: for fewer than 4 rows, unequal n, values that are not finite, or a constant input.
    """
    x, y = checked(x, y, "procrustes")
    pairs = [("x", "y"), ("x", "x"), ("y", "y")]
    made, sizes = statistics({"x": x, "y": y}, pairs, np.arange(len(x)), np.zeros(len(x), dtype=np.int64), "procrustes")
    xy, xx, yy = (made[pair] for pair in pairs)
    return procrustes_of(xy, xx, yy, sizes)


def paired_cosine(x: Any, y: Any) -> float:
    """Mean over rows of the cosine between row i of x and row i of y, in [-1, 1]. Not centred.

    In an anisotropic space even unrelated rows have a high cosine: read it beside `paired_cosine_baseline`.

    Raises:
        MeasureError: for unequal shapes, values that are not finite, or a row of zeros.
    """
    x, y = checked(x, y, "paired_cosine", minimum=1, same_width=True)
    return float(row_cosines(x, y, "paired_cosine").mean())


def paired_cosine_baseline(x: Any, y: Any, *, groups: Any = None, seed: int = 0) -> float:
    """Mean cosine of row i of x with a row of y that belongs to another example, drawn by seed: what no pairing gives.

    Raises:
        MeasureError: as `paired_cosine`, and for fewer than two examples.
    """
    x, y = checked(x, y, "paired_cosine_baseline", minimum=2, same_width=True)
    numbers = grouped(groups, len(x), "paired_cosine_baseline")
    return float(row_cosines(x, array(y)[other_rows(numbers, seed)], "paired_cosine_baseline").mean())


def row_cosines(x: np.ndarray, y: np.ndarray, measure: str) -> Float[np.ndarray, " n"]:
    """Cosine of each row of x with the same row of y, in float64."""
    parts = []
    for start in range(0, len(x), 16_384):
        a = finite(np.asarray(x[start : start + 16_384], dtype=np.float64), measure)
        b = finite(np.asarray(y[start : start + 16_384], dtype=np.float64), measure)
        squares = np.einsum("nd,nd->n", a, a) * np.einsum("nd,nd->n", b, b)
        if (squares == 0).any():
            row = start + int(np.flatnonzero(squares == 0)[0])
            raise MeasureError(f"{measure} was given a row of zeros (row {row}), which has no direction; leave it out.")
        # One square root of the product: a row with itself is then 1 to the last bit or two.
        parts.append(np.einsum("nd,nd->n", a, b) / np.sqrt(squares))
    return np.concatenate(parts)


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


def cka_of(xy: Pair, xx: Pair, yy: Pair, sizes: Sizes, fold: int | None = None) -> float:
    """Debiased linear CKA from statistics, of the whole sample or without one fold."""
    own_x, own_y = xx.hsic(sizes, fold), yy.hsic(sizes, fold)
    if own_x <= 0 or own_y <= 0:
        raise MeasureError(
            "cka is undefined here: a representation's debiased variance is not positive, so there are too few rows "
            "for its noise; give more rows."
        )
    return xy.hsic(sizes, fold) / float(np.sqrt(own_x) * np.sqrt(own_y))


def procrustes_of(xy: Pair, xx: Pair, yy: Pair, sizes: Sizes, fold: int | None = None) -> float:
    """Orthogonal Procrustes similarity from statistics, of the whole sample or without one fold."""
    cross = xy.centred_cross(sizes, fold)
    norms = np.sqrt(np.trace(xx.centred_cross(sizes, fold))) * np.sqrt(np.trace(yy.centred_cross(sizes, fold)))
    # The nuclear norm of a positive semi-definite matrix is its trace: identical sides need no decomposition.
    nuclear = np.trace(cross) if xy is xx else np.linalg.svd(cross, compute_uv=False).sum()
    return float(nuclear / norms)
