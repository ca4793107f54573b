"""Two passes over stored rows, for their means and for sums about them, in memory that does not depend on the rows."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from layerprobe.files import release_pages
from layerprobe.similarity._arrays import checked, constant, doubles, finite, is_constant, library, take
from layerprobe.similarity._statistics import Pair, Products, Sums

BUDGET = 24_000_000
"""Numbers held in float64 at a time, over all representations of a chunk."""


def linear_value(
    caller: str,
    statistic: Callable[..., float],
    x: Any,
    y: Any,
    *,
    groups: Int[np.ndarray, " n"] | None = None,
    warn: bool = True,
    **options: Any,
) -> float:
    """A linear measure of two representations.

    Args:
        caller: name of the measure, for error messages.
        statistic: the measure as a function of `Products`.
        x, y: rows x features.
        groups: example of each row, 0 ... E-1; by default each row is an example.
        warn: whether to warn where there are fewer than ten rows per feature.
        options: further arguments of `statistic`.
    """
    x, y = checked(x, y, caller, on_device=True)
    groups = np.arange(len(x)) if groups is None else groups
    folds = np.zeros(int(groups.max()) + 1, dtype=np.int64)
    value = statistic(products(x, y, groups, folds, caller), **options)
    width = max(x.shape[1], y.shape[1])
    if warn and len(x) < 10 * width:
        warnings.warn(
            f"{caller}: {len(x)} rows of width {width}; with fewer than ten rows per feature even independent data score "
            "high. Compare the value with that of shuffled rows.",
            stacklevel=3,
        )
    return value


def products(
    x: Any, y: Any, groups: Int[np.ndarray, " n"], folds: Int[np.ndarray, " examples"], caller: str
) -> Products:
    """Statistics of two representations; where x is y, they are computed once.

    Arguments and errors as `statistics`.
    """
    if x is y:
        xx = statistics({"x": x}, [("x", "x")], groups, folds, caller)["x", "x"]
        return Products(xx, xx, xx)
    pairs = statistics({"x": x, "y": y}, [("x", "y"), ("x", "x"), ("y", "y")], groups, folds, caller)
    return Products(pairs["x", "y"], pairs["x", "x"], pairs["y", "y"])


def statistics(
    layers: Mapping[str, Any],
    pairs: Sequence[tuple[str, str]],
    groups: Int[np.ndarray, " n"],
    folds: Int[np.ndarray, " examples"],
    caller: str,
) -> dict[tuple[str, str], Pair]:
    """Statistics of pairs of representations of the same rows.

    Args:
        layers: name -> `(n, d)`; may be memory-mapped, and is read twice, in chunks of whole examples. Rows on a device
            with float64 are multiplied there; only the sums are copied to the CPU.
        pairs: which of them to multiply.
        groups: example of each row, 0 ... E-1.
        folds: fold of each example, 0 ... F-1.
        caller: name of the function at the start of error messages.

    Raises:
        MeasureError: if a value is not finite, or a representation is constant.
    """
    counts = np.bincount(groups)
    order = np.argsort(folds[groups] * len(counts) + groups, kind="stable")
    one_row_each = bool((counts == 1).all())
    chunks = _chunks(counts, folds, sum(x.shape[1] for x in layers.values()), 0 if one_row_each else len(layers))
    ends = np.cumsum([sizes.sum() for _, sizes in chunks])
    spans = [(order[end - sizes.sum() : end], fold, sizes) for (fold, sizes), end in zip(chunks, ends, strict=True)]
    means, converted = {}, {}
    for name, x in layers.items():
        if len(spans) == 1:  # all rows fit in memory, and are converted once
            converted[name] = _take(x, spans[0][0])
        parts = (converted[name] if name in converted else _take(x, rows) for rows, _, _ in spans)
        with np.errstate(invalid="ignore", over="ignore"):
            total = sum(part.sum(0) for part in parts)
        if not bool(library(total).isfinite(total).all()):  # so is a value, unless the sum overflows
            for rows, _, _ in spans:
                finite(_take(x, rows), caller, numbers=rows, shape=x.shape)
        means[name] = total / len(order)
    sums = Sums({name: x.shape[1] for name, x in layers.items()}, pairs, int(folds.max()) + 1, one_row_each)
    for rows, fold, sizes in spans:
        centred = {
            name: (converted.pop(name) if name in converted else _take(x, rows)) - means[name]
            for name, x in layers.items()
        }
        sums.add(centred, sizes, fold)
    for name, x in layers.items():
        if (name, name) in sums.pairs:
            spread = np.trace(sums.pairs[name, name].totals["cross"]) / len(order)
            if is_constant(spread, means[name]):
                raise constant(caller, name, x.shape)
    return sums.pairs


def _chunks(counts: np.ndarray, folds: np.ndarray, width: int, grams: int) -> list[tuple[int, np.ndarray]]:
    """Fold and row counts of consecutive whole examples, no chunk across two folds."""
    chunks: list[tuple[int, np.ndarray]] = []
    for fold in range(int(folds.max()) + 1):
        sizes = counts[folds == fold]
        if len(sizes):
            part = np.cumsum(sizes * width + sizes * sizes * grams) // BUDGET
            chunks += [(fold, sizes[part == number]) for number in np.unique(part)]
    return chunks


def _take(x: Any, rows: np.ndarray) -> Any:
    consecutive = len(rows) and rows[-1] - rows[0] == len(rows) - 1 and (np.diff(rows) == 1).all()
    if consecutive:
        part = doubles(x[int(rows[0]) : int(rows[-1]) + 1])
    else:
        part = doubles(take(x, rows))
    release_pages(getattr(x, "stored", x))
    return part
