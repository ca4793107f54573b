"""Two passes over stored rows: their means, then sums about them, in memory that the rows do not set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from layerprobe.errors import MeasureError
from layerprobe.similarity._arrays import doubles, finite, stays
from layerprobe.similarity._statistics import Pair, Sizes, Sums

BUDGET = 24_000_000
"""Numbers held in float64 at a time, over all representations of a chunk."""


def statistics(
    layers: Mapping[str, Any],
    pairs: Sequence[tuple[str, str]],
    groups: Int[np.ndarray, " n"],
    folds: Int[np.ndarray, " examples"],
    measure: str,
) -> tuple[dict[tuple[str, str], Pair], Sizes]:
    """Statistics of pairs of representations of the same rows.

    Args:
        layers: name -> `(n, d)`; may be memory-mapped, is read twice, in chunks of whole examples. Tensors on a device
            with float64 are multiplied there; the sums, which the rows do not set, come to the CPU.
        pairs: which to cross.
        groups: example of each row, 0 ... E-1.
        folds: fold of each example, 0 ... F-1.
        measure: named in errors.

    Raises:
        MeasureError: if a value is not finite, or a representation is constant.
    """
    n_folds = int(folds.max()) + 1
    counts = np.bincount(groups)
    order = np.argsort(folds[groups] * len(counts) + groups, kind="stable")
    one_row_each = bool((counts == 1).all())
    chunks = _chunks(counts, folds, sum(x.shape[1] for x in layers.values()), 0 if one_row_each else len(layers))
    ends = np.cumsum([sizes.sum() for _, sizes in chunks])
    spans = [(order[end - sizes.sum() : end], fold, sizes) for (fold, sizes), end in zip(chunks, ends, strict=True)]
    means = {}
    for name, x in layers.items():
        total = sum(finite(_take(x, here), measure, numbers=here, shape=x.shape).sum(0) for here, _, _ in spans)
        means[name] = total / len(order)
    sums = Sums({name: x.shape[1] for name, x in layers.items()}, pairs, n_folds, one_row_each)
    for here, fold, sizes in spans:
        sums.add({name: _take(x, here) - means[name] for name, x in layers.items()}, sizes, fold)
    made = sums.pairs
    for name in layers:
        own = next((pair for pair in made if pair == (name, name)), None)
        if own is not None:
            spread = np.trace(made[own].cross.sum(0)) / len(order)
            if not spread > 1e-24 * (1 + float((means[name] ** 2).sum())):
                raise MeasureError(
                    f"{measure} was given a constant representation ({name}, shape {tuple(layers[name].shape)}): every row is "
                    "the same, so similarity is undefined; leave it out."
                )
    return made, sums.sizes


def _chunks(counts: np.ndarray, folds: np.ndarray, width: int, grams: int) -> list[tuple[int, np.ndarray]]:
    """(fold, rows of each example) of runs of whole examples, none across two folds."""
    chunks: list[tuple[int, np.ndarray]] = []
    for fold in range(int(folds.max()) + 1):
        sizes = counts[folds == fold]
        if not len(sizes):
            continue
        part = np.cumsum(sizes * width + sizes * sizes * grams) // BUDGET
        chunks += [(fold, sizes[part == p]) for p in np.unique(part)]
    return chunks


def _take(x: Any, rows: np.ndarray) -> Any:
    in_a_run = len(rows) and rows[-1] - rows[0] == len(rows) - 1 and (np.diff(rows) == 1).all()
    if in_a_run:
        return doubles(x[int(rows[0]) : int(rows[-1]) + 1])
    return doubles(x[rows.tolist()] if stays(x) else x[rows])


def one_fold(x: Any, y: Any, groups: Int[np.ndarray, " n"], measure: str) -> tuple[Pair, Pair, Pair, Sizes]:
    """Statistics of x with y, x with x and y with y over the whole sample; one object where x and y are one."""
    folds = np.zeros(int(groups.max()) + 1, dtype=np.int64)
    if x is y:
        made, sizes = statistics({"x": x}, [("x", "x")], groups, folds, measure)
        return made["x", "x"], made["x", "x"], made["x", "x"], sizes
    pairs = [("x", "y"), ("x", "x"), ("y", "y")]
    made, sizes = statistics({"x": x, "y": y}, pairs, groups, folds, measure)
    return made["x", "y"], made["x", "x"], made["y", "y"], sizes
