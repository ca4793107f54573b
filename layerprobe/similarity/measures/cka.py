"""Centred kernel alignment: linear or RBF, debiased or not, exact or from minibatches."""

from __future__ import annotations

from math import pi
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from layerprobe.errors import MeasureError
from layerprobe.progress import track
from layerprobe.similarity._arrays import array, checked, doubles, finite, grouped, library, stays
from layerprobe.similarity._measure import SHAPE, Linear, Measure
from layerprobe.similarity._passes import BUDGET, linear_value
from layerprobe.similarity._statistics import Products, hsic_of_sums


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
    """Centred kernel alignment of two representations; 1 if they are equal up to rotation, shift and scale.

    Args:
        x, y: rows x features, row i of both the same item; widths may differ.
        kernel: `linear`, exact without an n x n matrix, or `rbf`, exp(-D^2 / (2 s^2)) with s^2 = bandwidth^2 times the
            median of all n^2 squared distances (the zero diagonal included).
        debiased: leave out the pairs of a row with itself. The debiased value lies in [-1, 1] and is 0 on average for
            independent representations (Song et al. 2012). The biased one (Kornblith et al. 2019) lies in [0, 1] and is
            far from 0 unless there are many more rows than features.
        bandwidth: width of the RBF kernel, relative to the median distance.
        estimator: `full`, or `minibatch`: numerator and norms are averaged over consecutive batches before the ratio is
            taken (Nguyen et al. 2021); debiased only.
        batch: rows per batch.
        groups: example of each row; the debiased value then leaves out all pairs of rows of one example, which depend
            on each other in any representation.

    Raises:
        MeasureError: for fewer than 4 rows or examples, unequal n, values that are not finite, a constant input, or
            arguments that do not fit together.
    """
    on_device = estimator == "full" and kernel == "linear"
    x, y = checked(x, y, "cka", on_device=on_device)
    for name, value, allowed in (
        ("kernel", kernel, ("linear", "rbf")),
        ("estimator", estimator, ("full", "minibatch")),
    ):
        if value not in allowed:
            raise MeasureError(f"cka: {{{name}}} is {value!r}; use {' or '.join(map(repr, allowed))}.", name)
    numbers = grouped(groups if debiased else None, len(x), "cka")
    examples = int(numbers.max()) + 1
    if examples < 4:
        raise MeasureError(
            f"cka: {{groups}} has {examples} examples, but at least 4 are required; provide more.", "groups"
        )
    if estimator == "minibatch" and (not debiased or groups is not None or batch < 4):
        raise MeasureError(
            f"cka: {{estimator}} is 'minibatch' with {{debiased}}={debiased}, {{batch}}={batch} and {{groups}} "
            f"{'not ' if groups is None else ''}set; it needs debiased=True, no groups and batches of at least 4 rows.",
            *("estimator", "debiased", "batch", "groups"),
        )
    if on_device:
        return linear_value("cka", _cka, x, y, groups=numbers, warn=False, debiased=debiased)
    hsic = np.zeros(3)
    size = batch if estimator == "minibatch" else len(x)
    for start in range(0, len(x), size):
        rows = (finite(np.asarray(z[start : start + size], dtype=np.float64), "cka") for z in (x, y))
        k, m = (_rbf(z, bandwidth) if kernel == "rbf" else _linear(z) for z in rows)
        if not debiased:
            k, m = (z - z.mean(0) - z.mean(1)[:, None] + z.mean() for z in (k, m))
            hsic += [float((a * b).sum()) for a, b in ((k, m), (k, k), (m, m))]
        elif len(k) >= 4:
            hsic += [_gram_hsic(a, b, numbers[: len(k)]) for a, b in ((k, m), (k, k), (m, m))]
    return _ratio(*map(float, hsic))


def cka_angle(x: Any, y: Any) -> float:
    """Arccosine of the biased linear CKA, in [0, pi / 2] radians: a metric distance (Williams et al. 2021).

    Rounding limits its precision near 0 to about 1e-7.

    Args:
        x, y: rows x features, row i of both the same item.

    Raises:
        MeasureError: as `cka`.
    """
    return linear_value("cka_angle", _cka_angle, x, y, warn=False)


def _cka(products: Products, *, debiased: bool = True) -> float:
    if debiased:
        return _ratio(*products.hsic())
    if products.identical:
        return 1.0
    xy, xx, yy = (float((z**2).sum()) for z in (products.cross, products.scatter_x, products.scatter_y))
    return xy / float(np.sqrt(xx) * np.sqrt(yy))


def _cka_angle(products: Products) -> float:
    return float(np.arccos(np.clip(_cka(products, debiased=False), 0, 1)))


def _ratio(xy: float, xx: float, yy: float) -> float:
    if xx <= 0 or yy <= 0:
        raise MeasureError(
            "cka: the debiased variance of a representation is not positive, so there are too few rows for its noise; "
            "provide more."
        )
    return xy / float(np.sqrt(xx) * np.sqrt(yy))


def _linear(x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n n"]:
    """Gram matrix of the centred rows."""
    x = x - x.mean(0)
    return x @ x.T


def _rbf(x: Float[np.ndarray, "n d"], bandwidth: float) -> Float[np.ndarray, "n n"]:
    """Gram matrix of the RBF kernel, its width relative to the median distance."""
    squares = (x * x).sum(1)
    distances = np.maximum(squares[:, None] + squares[None] - 2 * x @ x.T, 0)
    np.fill_diagonal(distances, 0)
    median = float(np.median(distances))
    if not median > 0:
        raise MeasureError(
            f"cka: most rows of a representation of shape {x.shape} are equal or all are constant, so the RBF kernel has no "
            'width; use {kernel}="linear", or leave it out.',
            "kernel",
        )
    return np.exp(-distances / (2 * bandwidth**2 * median))


def _gram_hsic(k: Float[np.ndarray, "n n"], m: Float[np.ndarray, "n n"], groups: Int[np.ndarray, " n"]) -> float:
    """Unbiased HSIC of two Gram matrices over pairs of rows from different examples; for linear kernels `Pair.hsic`."""
    counts = np.bincount(groups).astype(np.float64)
    k, m = (z * (groups[:, None] != groups[None]) for z in (k, m))
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
    apart = float(k.sum()) * float(m.sum()) - 4 * overlap - 2 * square
    return hsic_of_sums(np.array([(counts**power).sum() for power in (1, 2, 3, 4)]), product, chain, apart)


def _cka_of_all_pairs(layers: list[Any], batch: int | None) -> Float[np.ndarray, "layers layers"]:
    """Debiased linear CKA between all pairs of representations, from Gram matrices; NaN where it is undefined.

    Args:
        layers: rows x features each, every row an example.
        batch: rows per minibatch; None for the exact value.
    """
    if batch is None:
        values = [finite(doubles(x), "cka") for x in layers]
        hsic = _hsic_of_rows([x - x.mean(0) for x in values])
    else:
        hsic = np.zeros((len(layers), len(layers)))
        for start in track(range(0, len(layers[0]), batch), "layer grid"):
            rows = [x[start : start + batch] for x in layers]
            if len(rows[0]) >= 4:
                hsic += _hsic_of_batch(rows)
    if not np.isfinite(hsic).all():
        raise MeasureError("cka: a representation contains NaN or infinite values; drop or correct such rows.")
    norms = np.where(np.diag(hsic) > 0, np.diag(hsic), np.nan)
    table = hsic / np.sqrt(np.outer(norms, norms))
    np.fill_diagonal(table, norms / norms)
    return table


def _hsic_of_rows(layers: list[Any]) -> Float[np.ndarray, "layers layers"]:
    """Unbiased HSIC between all pairs of centred representations: |X'Y|^2 is the inner product of their Gram matrices."""
    n, xp = len(layers[0]), library(layers[0])
    size = max(1, min(n, 1024, BUDGET // (len(layers) * 1024)))
    squares = array(xp.stack([xp.einsum("nd,nd->n", x, x) for x in layers]))
    products = np.zeros((len(layers), len(layers)))
    starts = range(0, n, size)
    blocks = [(i, j) for i in starts for j in starts if j >= i]
    for i, j in track(blocks, "layer grid"):
        grams = xp.stack([(x[i : i + size] @ x[j : j + size].T).ravel() for x in layers])
        # A block above the diagonal also counts for its mirror image below.
        products += (1 if i == j else 2) * array(grams @ grams.T)
    return _unbiased(products, squares)


def _hsic_of_batch(layers: list[Any]) -> Float[np.ndarray, "layers layers"]:
    """Unbiased HSIC between all pairs of representations of a minibatch.

    torch multiplies many small matrices in half the time of numpy. The precision is that of the rows: the rounding of
    float32 is a thousandth of the error of minibatches.
    """
    import torch

    tensors = [x if stays(x) else torch.from_numpy(np.ascontiguousarray(x)) for x in layers]
    kind = torch.float32 if all(x.dtype == torch.float32 for x in tensors) else torch.float64
    rows = [x.to(kind) for x in tensors]
    grams = torch.stack([(x := row - row.mean(0)) @ x.T for row in rows])
    squares = array(grams.diagonal(dim1=1, dim2=2).double())
    flat = grams.reshape(len(rows), -1)
    return _unbiased(array((flat @ flat.T).double()), squares)


def _unbiased(
    products: Float[np.ndarray, "layers layers"], squares: Float[np.ndarray, "layers n"]
) -> Float[np.ndarray, "layers layers"]:
    """Unbiased HSIC from inner products of centred Gram matrices and their diagonals (Song et al. 2012)."""
    n, traces = squares.shape[1], squares.sum(1)
    return (products - n / (n - 2) * squares @ squares.T + np.outer(traces, traces) / ((n - 1) * (n - 2))) / (
        n * (n - 3)
    )


MEASURES = (
    Measure(
        cka,
        label="CKA (debiased, linear)",
        range=(-1.0, 1.0),
        invariances=SHAPE,
        citation="Kornblith et al. 2019; debiased by Song et al. 2012",
        resampling=Linear(_cka, _cka_of_all_pairs, single=True),
        sensitivity="ignores rotation and scale, and weights directions by their variance",
        caption="Centred kernel alignment (CKA), debiased: unrelated representations score about 0, and pairs of tokens of "
        "one example are left out. Look for the layer at which the line leaves 1.",
        formula=r"\frac{\mathrm{HSIC}(XX^\top, YY^\top)}{\sqrt{\mathrm{HSIC}(XX^\top, XX^\top) \, \mathrm{HSIC}(YY^\top, YY^\top)}}",
    ),
    Measure(
        cka_angle,
        label="CKA angle (radians)",
        kind="distance",
        range=(0.0, pi / 2),
        invariances=SHAPE,
        citation="Williams et al. 2021, of the biased CKA",
        resampling=Linear(_cka_angle, single=True),
        sensitivity="ignores rotation and scale, and weights directions by their squared variance",
        formula=r"\arccos \frac{\lVert X^\top Y \rVert_F^2}{\lVert X^\top X \rVert_F \, \lVert Y^\top Y \rVert_F}",
    ),
)
