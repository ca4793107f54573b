"""What a measure gives when texts do not correspond: whole texts shuffled among texts of equal length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int
from tqdm import tqdm

from layerprobe.errors import MeasureError
from layerprobe.similarity._accumulator import OF_PRODUCTS
from layerprobe.similarity._arrays import checked, finite, grouped
from layerprobe.similarity._compare import NEIGHBOURS, SAMPLE
from layerprobe.similarity._intervals import sample_rows
from layerprobe.similarity._knn import distances, nearest
from layerprobe.similarity._rsa import correlate, dissimilarities, unit_rows
from layerprobe.similarity._statistics import Side, Sums, side

if TYPE_CHECKING:
    import pandas as pd

WITHOUT_NULL = ("paired_cosine_baseline", "linear_predictivity")
"""The baseline is a null itself; a cross-validated R2 of what does not correspond is 0 or less."""


def shuffled(
    base: Mapping[int, Any],
    adapted: Mapping[int, Any],
    groups: Any,
    *,
    measures: Sequence[str],
    draws: int = 19,
    seed: int = 0,
    progress: bool = True,
) -> pd.DataFrame:
    """Each measure after whole texts of one side are shuffled among texts of equal length.

    Shuffling rows would be no null for tokens: rows of one text depend on each other. Texts whose length no other text has
    cannot be moved and are left out. A value outside the range of 19 draws is beyond this null at 5% on one side.

    Args:
        base, adapted: layer -> rows x features, the same rows on both sides.
        groups: example of each row; all rows of an example move together, in their order.
        measures: names out of `MEASURES`; the cosine baseline and predictivity have no null here.
        draws: shuffles.
        seed: of the shuffles.
        progress: whether to draw a progress bar on stderr.

    Returns:
        `layer, measure, value, low, high, draws, n`: mean, least and largest of the draws, over n texts. A measure that is
        undefined on these rows is left out.

    Raises:
        MeasureError: if fewer than 8 texts share their length with another.
    """
    import pandas as pd

    numbers = grouped(groups, len(base[next(iter(base))]), "shuffled")
    movable = _movable(numbers)
    rows_kept = np.flatnonzero(movable[numbers])
    rows_kept = rows_kept[np.argsort(numbers[rows_kept], kind="stable")]
    numbers = np.unique(numbers[rows_kept], return_inverse=True)[1]
    examples = int(numbers.max(initial=-1)) + 1
    if examples < 8:
        raise MeasureError(
            f"shuffled was given {examples} texts whose length another text has, too; it needs at least 8: give more texts."
        )
    counts = np.bincount(numbers)
    exchanges = [_exchange(counts, np.random.default_rng((seed, draw))) for draw in range(draws)]
    wanted = [name for name in measures if name not in WITHOUT_NULL]
    found = []
    for layer in tqdm(sorted(base), desc="shuffled texts", leave=False, disable=not progress, delay=1):
        x, y = checked(base[layer], adapted[layer], f"layer {layer}")
        for name, values in _values(x[rows_kept], y[rows_kept], numbers, exchanges, wanted, seed).items():
            found.append((layer, name, float(np.mean(values)), min(values), max(values), draws, examples))
    return pd.DataFrame(found, columns=["layer", "measure", "value", "low", "high", "draws", "n"])


def _values(
    x: np.ndarray, y: np.ndarray, groups: np.ndarray, exchanges: list[np.ndarray], measures: Sequence[str], seed: int
) -> dict[str, list[float]]:
    values: dict[str, list[float]] = {}
    undefined: set[str] = set()
    products = [name for name in measures if name in OF_PRODUCTS]
    counts = np.bincount(groups)
    orders = [_blocks_in_order(counts, exchange) for exchange in exchanges]
    if products:
        one_row_each = bool((counts == 1).all())
        rows = {name: finite(np.asarray(z, dtype=np.float64), products[0]) for name, z in (("x", x), ("y", y))}
        sides = {name: side(z - z.mean(0), counts, one_row_each) for name, z in rows.items()}
        own = Sums({"x": x.shape[1], "y": y.shape[1]}, [("x", "x"), ("y", "y")], 1, one_row_each)
        own.add_sides(sides, counts, 0)
        for exchange, order in zip(exchanges, orders, strict=True):
            # Moving whole texts leaves each side's own sums as they are; only the cross products are new.
            crossed = Sums({"x": x.shape[1], "y": y.shape[1]}, [("x", "y")], 1, one_row_each)
            crossed.add_sides({"x": sides["x"], "y": _moved(sides["y"], counts, exchange, order)}, counts, 0)
            for name in [name for name in products if name not in undefined]:
                try:
                    value = OF_PRODUCTS[name](
                        crossed.pairs["x", "y"], own.pairs["x", "x"], own.pairs["y", "y"], own.sizes
                    )
                except MeasureError:
                    undefined.add(name)
                    values.pop(name, None)
                else:
                    values.setdefault(name, []).append(value)
    if "paired_cosine" in measures:
        a, b = (unit_rows(np.asarray(z, dtype=np.float64), "paired_cosine") for z in (x, y))
        values["paired_cosine"] = [float(np.einsum("nd,nd->", a, b[order]) / len(a)) for order in orders]
    rest = [name for name in measures if name not in values and name not in OF_PRODUCTS]
    if rest:
        rows_of = sample_rows(groups, SAMPLE, seed)
        apart = groups[rows_of][:, None] != groups[rows_of][None]
        pairs = np.triu(apart, 1)
        for name in rest:
            if name == "rsa":
                fixed = dissimilarities(x[rows_of])[pairs]
                values[name] = [correlate(fixed, dissimilarities(y[order[rows_of]])[pairs]) for order in orders]
                continue
            near = nearest(distances(x[rows_of], "cosine", name), NEIGHBOURS, apart)
            values[name] = []
            for order in orders:
                here = order[rows_of]
                other = nearest(distances(y[here], "cosine", name), NEIGHBOURS, apart)
                shared = (near & other).sum(1)
                of = 2 * NEIGHBOURS - shared if name == "jaccard_knn" else NEIGHBOURS
                values[name].append(float((shared / of).mean()))
    return values


def _movable(groups: Int[np.ndarray, " n"]) -> np.ndarray:
    """Whether each example has another of its length."""
    counts = np.bincount(groups)
    return np.bincount(counts)[counts] > 1


def _exchange(counts: Int[np.ndarray, " examples"], rng: np.random.Generator) -> Int[np.ndarray, " examples"]:
    """For each example, the one of equal length that is put in its stead; none stays where it is."""
    instead = np.arange(len(counts))
    for length in np.unique(counts):
        circle = rng.permutation(np.flatnonzero(counts == length))
        instead[circle] = np.roll(circle, 1)
    return instead


def _blocks_in_order(
    counts: Int[np.ndarray, " examples"], instead: Int[np.ndarray, " examples"]
) -> Int[np.ndarray, " n"]:
    """Places of what lies in blocks, one an example, when each block is exchanged for another of its size."""
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    return np.repeat(starts[instead] - starts, counts) + np.arange(counts.sum())


def _moved(
    given: Side, counts: Int[np.ndarray, " examples"], instead: Int[np.ndarray, " examples"], order: np.ndarray
) -> Side:
    if given.along is None or given.grams is None:
        return Side(given.rows[order], given.rows[order], given.squares[order], None, None)
    grams = given.grams[_blocks_in_order(counts * counts, instead)]
    return Side(given.rows[order], given.sums[instead], given.squares[instead], given.along[order], grams)
