"""Every layer against every layer, within and across two encoders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from layerprobe.errors import MeasureError
from layerprobe.similarity._accumulator import OF_PRODUCTS
from layerprobe.similarity._arrays import array, finite, grouped
from layerprobe.similarity._passes import BUDGET, statistics
from layerprobe.similarity._statistics import Pair, Sizes

if TYPE_CHECKING:
    import pandas as pd

Key = tuple[str, int]


def grid(
    sides: Mapping[str, Mapping[int, Any]],
    groups: Any = None,
    *,
    measures: Sequence[str] = ("cka",),
    estimator: str = "full",
    batch: int = 256,
    progress: bool = True,
) -> pd.DataFrame:
    """Linear measures of every layer against every layer, within and across two sides.

    Debiased CKA alone over rows that are examples of their own takes the cheaper of two exact forms: n x n Gram matrices,
    block by block, or d x d cross products.

    Args:
        sides: two names -> layer -> rows x features, the same rows throughout.
        groups: example of each row.
        measures: names of measures that cross products are enough for; `pwcca` goes from the first side to the second.
        estimator: of `cka`: `full`, or `minibatch` over consecutive batches (no groups then).
        batch: rows in a minibatch.
        progress: whether to draw a progress bar on stderr.

    Returns:
        `measure, side_a, layer_a, side_b, layer_b, value, n` in full squares: first x first, first x second,
        second x second. NaN where a measure is undefined (too few rows for the width).

    Raises:
        MeasureError: if a measure is not linear, the rows do not fit together, or a layer is constant.
    """
    import pandas as pd

    unknown = [name for name in measures if name not in OF_PRODUCTS]
    if unknown:
        raise MeasureError(f"grid was given the measure {unknown[0]!r}; it takes {', '.join(OF_PRODUCTS)}.")
    (first, second) = sides
    matrices = {(side, layer): array(x) for side in sides for layer, x in sides[side].items()}
    n = len(next(iter(matrices.values())))
    numbers = grouped(groups, n, "grid")
    same = {key: _first_equal(key, matrices) for key in matrices}
    distinct = {key: matrices[key] for key in dict.fromkeys(same.values())}
    examples = int(numbers.max()) + 1
    if list(measures) == ["cka"] and examples == n and (estimator == "minibatch" or _grams_are_cheaper(distinct, n)):
        size = batch if estimator == "minibatch" else None
        values = {"cka": _from_grams(distinct, size, progress)}
    elif estimator != "full":
        raise MeasureError(f"grid was given estimator={estimator!r}; minibatch is for cka alone, without groups.")
    else:
        values = _from_products(distinct, numbers, measures, progress)
    rows = []
    for measure in measures:
        for side_a, side_b in ((first, first), (first, second), (second, second)):
            for layer_a in sorted(sides[side_a]):
                for layer_b in sorted(sides[side_b]):
                    a, b = same[side_a, layer_a], same[side_b, layer_b]
                    found = values[measure]
                    value = found[a, b] if (a, b) in found else found[b, a]
                    rows.append((measure, side_a, layer_a, side_b, layer_b, value, examples))
    return pd.DataFrame(rows, columns=["measure", "side_a", "layer_a", "side_b", "layer_b", "value", "n"])


def _from_products(
    layers: Mapping[Key, np.ndarray], groups: np.ndarray, measures: Sequence[str], progress: bool
) -> dict[str, dict[tuple[Key, Key], float]]:
    names = list(layers)
    folds = np.zeros(int(groups.max()) + 1, dtype=np.int64)
    selves: dict[Key, Pair] = {}
    hsic: dict[Key, float] = {}
    values: dict[str, dict[tuple[Key, Key], float]] = {measure: {} for measure in measures}
    text = {str(name): layers[name] for name in names}
    blocks = _blocks(names, layers)
    sizes: Sizes | None = None
    for block in tqdm(blocks, desc="layer grid", leave=False, disable=not progress, delay=1):
        used = {str(name): text[str(name)] for pair in block for name in pair}
        made, sizes = statistics(used, [(str(a), str(b)) for a, b in block], groups, folds, "grid")
        selves |= {a: made[str(a), str(b)] for a, b in block if a == b}
        for a, b in block:
            cross = made[str(a), str(b)]
            for measure in measures:
                if measure == "cka":  # each layer's own term is needed many times
                    hsic |= {name: selves[name].hsic(sizes) for name in (a, b) if name not in hsic}
                    if hsic[a] <= 0 or hsic[b] <= 0:
                        raise MeasureError("cka is undefined here: too few examples for their noise; give more texts.")
                    value = cross.hsic(sizes) / float(np.sqrt(hsic[a]) * np.sqrt(hsic[b]))
                else:
                    value = _or_nan(measure, cross, selves[a], selves[b], sizes)
                values[measure][a, b] = value
                if measure == "pwcca" and a != b:
                    values[measure][b, a] = float("nan")
    return values


def _or_nan(measure: str, cross: Pair, xx: Pair, yy: Pair, sizes: Sizes) -> float:
    try:
        return OF_PRODUCTS[measure](cross, xx, yy, sizes)
    except MeasureError:
        return float("nan")


def _grams_are_cheaper(layers: Mapping[Key, np.ndarray], n: int) -> bool:
    width = max(x.shape[1] for x in layers.values())
    pairs = len(layers) * (len(layers) + 1) // 2
    # Half of each Gram matrix, and the inner products of all pairs of them; against one product a pair.
    return n * n * (len(layers) * width + len(layers) ** 2) < pairs * 2 * n * width * width


def _from_grams(layers: Mapping[Key, np.ndarray], batch: int | None, progress: bool) -> dict[tuple[Key, Key], float]:
    """Debiased CKA from Gram matrices, a block of rows at a time (batch None), or averaged over batches of rows."""
    names = list(layers)
    n = len(layers[names[0]])
    if batch is None:
        values = [finite(np.asarray(layers[name], dtype=np.float64), "grid") for name in names]
        total = _hsic_of_rows([x - x.mean(0) for x in values], progress)
    else:
        total = np.zeros((len(names), len(names)))
        for start in tqdm(range(0, n, batch), desc="layer grid", leave=False, disable=not progress, delay=1):
            part = [layers[name][start : start + batch] for name in names]
            if len(part[0]) >= 4:
                total += _hsic_of_batch(part)
    own = np.diag(total)
    if not np.isfinite(total).all():
        raise MeasureError("grid was given NaN or infinite values; drop or correct these rows.")
    if (own <= 0).any():
        raise MeasureError(
            f"cka is undefined for layer {names[int(own.argmin())]}: it is constant, or has too few rows."
        )
    table = total / np.sqrt(np.outer(own, own))
    np.fill_diagonal(table, 1.0)
    return {(a, b): float(table[i, j]) for i, a in enumerate(names) for j, b in enumerate(names)}


def _hsic_of_rows(layers: list[np.ndarray], progress: bool) -> np.ndarray:
    """Unbiased HSIC of every two layers about their means: |X'Y|^2 is the inner product of Gram matrices."""
    n = len(layers[0])
    size = max(1, min(n, 1024, BUDGET // (len(layers) * 1024)))
    squares = np.stack([np.einsum("nd,nd->n", x, x) for x in layers])
    products = np.zeros((len(layers), len(layers)))
    starts = range(0, n, size)
    blocks = [(i, j) for i in starts for j in starts if j >= i]
    for i, j in tqdm(blocks, desc="layer grid", leave=False, disable=not progress, delay=1):
        grams = np.stack([(x[i : i + size] @ x[j : j + size].T).ravel() for x in layers])
        # A block above the diagonal stands for its mirror image, too.
        products += (1 if i == j else 2) * (grams @ grams.T)
    return _unbiased(products, squares)


def _unbiased(products: np.ndarray, squares: np.ndarray) -> np.ndarray:
    """HSIC from inner products of Gram matrices `(layers, layers)` and their diagonals `(layers, n)` (Song et al. 2012)."""
    n, traces = squares.shape[1], squares.sum(1)
    return (products - n / (n - 2) * squares @ squares.T + np.outer(traces, traces) / ((n - 1) * (n - 2))) / (
        n * (n - 3)
    )


def _hsic_of_batch(layers: list[np.ndarray]) -> np.ndarray:
    """The same of one small batch, by torch, whose many small products take half the time of numpy's.

    In the rows' own precision: what float32 rounds is a thousandth of what batches leave out.
    """
    import torch

    kind = torch.float32 if all(x.dtype == np.float32 for x in layers) else torch.float64
    rows = [torch.from_numpy(np.ascontiguousarray(x)).to(kind) for x in layers]
    grams = torch.stack([(x := row - row.mean(0)) @ x.T for row in rows])
    squares = grams.diagonal(dim1=1, dim2=2).double().numpy()
    flat = grams.reshape(len(rows), -1)
    return _unbiased((flat @ flat.T).double().numpy(), squares)


def _blocks(names: Sequence[Key], layers: Mapping[Key, np.ndarray]) -> list[list[tuple[Key, Key]]]:
    """All pairs, each layer's own first, in blocks whose cross products fit the memory that one may take."""
    size = max(layers[name].shape[1] for name in names) ** 2
    most = max(1, BUDGET // (2 * size))
    pairs = [(name, name) for name in names]
    pairs += [(name, other) for i, name in enumerate(names) for other in names[i + 1 :]]
    return [pairs[start : start + most] for start in range(0, len(pairs), most)]


def _first_equal(key: Key, matrices: Mapping[Key, np.ndarray]) -> Key:
    """The first side's matrix of the same layer if it is identical: an untouched layer is compared once."""
    first = next(iter(matrices))[0]
    other = (first, key[1])
    return other if other in matrices and np.array_equal(matrices[other], matrices[key]) else key
