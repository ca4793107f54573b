"""Centred kernel alignment: exact or estimated, linear or RBF, biased or not."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float, Int

from layerprobe.errors import MeasureError
from layerprobe.similarity._arrays import checked, finite, grouped
from layerprobe.similarity._passes import one_fold
from layerprobe.similarity._statistics import Pair, Sizes


def cka(
    x: Any,
    y: Any,
    *,
    kernel: str = "linear",
    debiased: bool = True,
    bandwidth: float = 0.5,
    estimator: str = "full",
    batch: int = 256,
    groups: Any = None,
) -> float:
    """Centred kernel alignment of two representations; 1 is the same up to rotation, shift and scale.

    Args:
        x, y: rows x features, row i of both the same thing; widths may differ.
        kernel: `linear`, exact without an n x n matrix, or `rbf`, exp(-D^2 / (2 s^2)) with s^2 = bandwidth^2 times the
            median of all n^2 squared distances (the zero diagonal included).
        debiased: leave out the pairs of a row with itself, which make plain CKA of independent 768-d noise .61 at
            n = 500. The debiased value lies in [-1, 1] and is 0 on average for independent representations (Song et al.
            2012). The biased one (Kornblith et al. 2019) lies in [0, 1].
        bandwidth: of the RBF kernel.
        estimator: `full`, or `minibatch`: numerator and norms are averaged over consecutive batches before the ratio is
            taken (Nguyen et al. 2021). Debiased only; less exact than `full`, and for linear kernels rarely quicker.
        batch: rows in a batch.
        groups: example of each row; the debiased value then leaves out all pairs of rows of one example, which are
            dependent whatever the representation is.

    Raises:
        MeasureError: for fewer than 4 rows or examples, unequal n, values that are not finite, a constant input, or
            arguments that do not fit together.
    """
    x, y = checked(x, y, "cka", on_device=estimator == "full" and kernel == "linear")
    for name, given, allowed in (
        ("kernel", kernel, ("linear", "rbf")),
        ("estimator", estimator, ("full", "minibatch")),
    ):
        if given not in allowed:
            raise MeasureError(f"cka was given {name}={given!r}; it takes {' or '.join(map(repr, allowed))}.")
    numbers = grouped(groups if debiased else None, len(x), "cka")
    examples = int(numbers.max()) + 1
    if examples < 4:
        raise MeasureError(f"cka was given {examples} examples in {len(x)} rows; it needs at least 4: give more texts.")
    if estimator == "minibatch":
        if not debiased or groups is not None or batch < 4:
            raise MeasureError(
                f"cka was given estimator='minibatch' with debiased={debiased}, batch={batch}"
                f"{' and groups' if groups is not None else ''}; it is debiased, has no groups, and batches of 4 rows or more."
            )
        return _minibatch(x, y, kernel, bandwidth, batch)
    if kernel == "rbf":
        k, m = (rbf(finite(np.asarray(z, dtype=np.float64), "cka"), bandwidth) for z in (x, y))
        return gram_cka(k, m, numbers) if debiased else _biased(k, m)
    xy, xx, yy, sizes = one_fold(x, y, numbers, "cka")
    if debiased:
        return cka_of(xy, xx, yy, sizes)
    return biased_cka_of(xy, xx, yy, sizes)


def cka_angle(x: Any, y: Any) -> float:
    """Arccosine of the biased linear CKA, in [0, pi / 2] radians: a metric distance (Williams et al. 2021).

    Rounding near 1 makes it exact to about 1e-7 only.

    Raises:
        MeasureError: as `cka`.
    """
    x, y = checked(x, y, "cka_angle", on_device=True)
    return cka_angle_of(*one_fold(x, y, np.arange(len(x)), "cka_angle"))


def cka_of(xy: Pair, xx: Pair, yy: Pair, sizes: Sizes, fold: int | None = None) -> float:
    """Debiased linear CKA from statistics, of the whole sample or without one fold."""
    return _ratio(xy.hsic(sizes, fold), xx.hsic(sizes, fold), yy.hsic(sizes, fold))


def biased_cka_of(xy: Pair, xx: Pair, yy: Pair, sizes: Sizes, fold: int | None = None) -> float:
    """Biased linear CKA from statistics."""
    if xy is xx:
        return 1.0
    parts = [float((pair.centred_cross(sizes, fold) ** 2).sum()) for pair in (xy, xx, yy)]
    return parts[0] / float(np.sqrt(parts[1]) * np.sqrt(parts[2]))


def cka_angle_of(xy: Pair, xx: Pair, yy: Pair, sizes: Sizes, fold: int | None = None) -> float:
    """Arccosine of the biased linear CKA from statistics."""
    return float(np.arccos(np.clip(biased_cka_of(xy, xx, yy, sizes, fold), 0, 1)))


def rbf(x: Float[np.ndarray, "n d"], bandwidth: float) -> Float[np.ndarray, "n n"]:
    """Gram matrix of the RBF kernel, its width a fraction of the median distance."""
    squares = (x * x).sum(1)
    distances = np.maximum(squares[:, None] + squares[None] - 2 * x @ x.T, 0)
    np.fill_diagonal(distances, 0)
    median = float(np.median(distances))
    if not median > 0:
        raise MeasureError(
            f"cka was given a representation of shape {x.shape} in which most rows are equal, so the RBF kernel has no "
            'width; use kernel="linear".'
        )
    return np.exp(-distances / (2 * bandwidth**2 * median))


def gram_hsic(k: Float[np.ndarray, "n n"], m: Float[np.ndarray, "n n"], groups: Int[np.ndarray, " n"]) -> float:
    """Unbiased HSIC of two Gram matrices over pairs of rows from different examples: the twin of `Pair.hsic`."""
    counts = np.bincount(groups).astype(np.float64)
    n, p2, p3, p4 = (float((counts**power).sum()) for power in (1, 2, 3, 4))
    apart = groups[:, None] != groups[None]
    k, m = k * apart, m * apart
    product = float((k * m).sum())
    if len(counts) == len(groups):
        rows_k, rows_m, sums_k, sums_m = k, m, k, m
    else:
        order, first = np.argsort(groups, kind="stable"), np.concatenate([[0], np.cumsum(counts[:-1])]).astype(int)
        rows_k, rows_m = (np.add.reduceat(z[:, order], first, axis=1) for z in (k, m))
        sums_k, sums_m = (np.add.reduceat(z[order], first, axis=0) for z in (rows_k, rows_m))
    chain = float(k.sum(1) @ m.sum(1)) - float((rows_k * rows_m).sum())
    square = float((sums_k * sums_m).sum())
    overlap = float(sums_k.sum(1) @ sums_m.sum(1)) - square
    rest = float(k.sum()) * float(m.sum()) - 4 * overlap - 2 * square
    two, three = n * n - p2, n**3 - 3 * n * p2 + 2 * p3
    four = n**4 - 6 * n * n * p2 + 8 * n * p3 + 3 * p2 * p2 - 6 * p4
    return float(product / two + rest / four - 2 * chain / three)


def gram_cka(k: Float[np.ndarray, "n n"], m: Float[np.ndarray, "n n"], groups: Int[np.ndarray, " n"]) -> float:
    """Debiased CKA of two Gram matrices."""
    return _ratio(*(gram_hsic(a, b, groups) for a, b in ((k, m), (k, k), (m, m))))


def _ratio(xy: float, xx: float, yy: float) -> float:
    if xx <= 0 or yy <= 0:
        raise MeasureError(
            "cka is undefined here: a representation's debiased variance is not positive, so there are too few rows "
            "for its noise; give more rows."
        )
    return xy / float(np.sqrt(xx) * np.sqrt(yy))


def _biased(k: Float[np.ndarray, "n n"], m: Float[np.ndarray, "n n"]) -> float:
    k, m = (z - z.mean(0) - z.mean(1)[:, None] + z.mean() for z in (k, m))
    return float((k * m).sum() / np.sqrt((k * k).sum() * (m * m).sum()))


def _minibatch(x: np.ndarray, y: np.ndarray, kernel: str, bandwidth: float, batch: int) -> float:
    totals = np.zeros(3)
    for start in range(0, len(x), batch):
        a, b = (finite(np.asarray(z[start : start + batch], dtype=np.float64), "cka") for z in (x, y))
        if len(a) < 4:
            break
        if kernel == "rbf":
            k, m = rbf(a, bandwidth), rbf(b, bandwidth)
        else:
            a, b = a - a.mean(0), b - b.mean(0)
            k, m = a @ a.T, b @ b.T
        own = np.arange(len(a))
        totals += np.array([gram_hsic(a, b, own) for a, b in ((k, m), (k, k), (m, m))])
    return _ratio(*map(float, totals))
