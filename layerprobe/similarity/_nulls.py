"""What a measure gives when texts do not correspond: whole texts shuffled among texts of equal length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int
from tqdm import tqdm

from layerprobe.errors import MeasureError
from layerprobe.similarity._accumulator import OF_PRODUCTS
from layerprobe.similarity._arrays import checked, grouped
from layerprobe.similarity._compare import NEIGHBOURS, SAMPLE
from layerprobe.similarity._cosine import row_cosines
from layerprobe.similarity._intervals import sample_rows
from layerprobe.similarity._knn import distances, nearest
from layerprobe.similarity._passes import statistics
from layerprobe.similarity._rsa import correlate, dissimilarities

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
    numbers = np.unique(numbers[rows_kept], return_inverse=True)[1]
    examples = int(numbers.max(initial=-1)) + 1
    if examples < 8:
        raise MeasureError(
            f"shuffled was given {examples} texts whose length another text has, too; it needs at least 8: give more texts."
        )
    orders = [_shuffle(numbers, np.random.default_rng((seed, draw))) for draw in range(draws)]
    wanted = [name for name in measures if name not in WITHOUT_NULL]
    found = []
    for layer in tqdm(sorted(base), desc="shuffled texts", leave=False, disable=not progress, delay=1):
        x, y = checked(base[layer], adapted[layer], f"layer {layer}")
        for name, values in _values(x[rows_kept], y[rows_kept], numbers, orders, wanted, seed).items():
            found.append((layer, name, float(np.mean(values)), min(values), max(values), draws, examples))
    return pd.DataFrame(found, columns=["layer", "measure", "value", "low", "high", "draws", "n"])


def _values(
    x: np.ndarray, y: np.ndarray, groups: np.ndarray, orders: list[np.ndarray], measures: Sequence[str], seed: int
) -> dict[str, list[float]]:
    values: dict[str, list[float]] = {}
    products = [name for name in measures if name in OF_PRODUCTS]
    folds = np.zeros(int(groups.max()) + 1, dtype=np.int64)
    if products:
        selves, sizes = statistics({"x": x, "y": y}, [("x", "x"), ("y", "y")], groups, folds, products[0])
        # Moving whole texts leaves each side's own sums as they are; only the cross products are new.
        for start in range(0, len(orders), 5):
            moved = {f"{i}": y[order] for i, order in enumerate(orders[start : start + 5])}
            made, _ = statistics({"x": x, **moved}, [("x", name) for name in moved], groups, folds, products[0])
            for name in products:
                try:
                    values.setdefault(name, []).extend(
                        OF_PRODUCTS[name](pair, selves["x", "x"], selves["y", "y"], sizes) for pair in made.values()
                    )
                except MeasureError:
                    values.pop(name, None)
    if "paired_cosine" in measures:
        values["paired_cosine"] = [float(row_cosines(x, y[order], "paired_cosine").mean()) for order in orders]
    rest = [name for name in measures if name not in values and name not in OF_PRODUCTS]
    if rest:
        rows = sample_rows(groups, SAMPLE, seed)
        apart = groups[rows][:, None] != groups[rows][None]
        pairs = np.triu(apart, 1)
        for name in rest:
            if name == "rsa":
                own = dissimilarities(x[rows])[pairs]
                values[name] = [correlate(own, dissimilarities(y[order[rows]])[pairs]) for order in orders]
                continue
            near = nearest(distances(x[rows], "cosine", name), NEIGHBOURS, apart)
            values[name] = []
            for order in orders:
                here = order[rows]
                other = nearest(distances(y[here], "cosine", name), NEIGHBOURS, apart)
                shared = (near & other).sum(1)
                of = 2 * NEIGHBOURS - shared if name == "jaccard_knn" else NEIGHBOURS
                values[name].append(float((shared / of).mean()))
    return values


def _movable(groups: Int[np.ndarray, " n"]) -> np.ndarray:
    """Whether each example has another of its length."""
    counts = np.bincount(groups)
    return np.bincount(counts)[counts] > 1


def _shuffle(groups: Int[np.ndarray, " n"], rng: np.random.Generator) -> Int[np.ndarray, " n"]:
    """For each row, the row at the same place in the text that is put in its text's stead; no text stays where it is."""
    counts = np.bincount(groups)
    order = np.argsort(groups, kind="stable")
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    instead = np.arange(len(counts))
    for length in np.unique(counts):
        circle = rng.permutation(np.flatnonzero(counts == length))
        instead[circle] = np.roll(circle, 1)
    moved = np.empty(len(groups), dtype=np.int64)
    moved[order] = order[np.repeat(starts[instead] - starts, counts) + np.arange(len(groups))]
    return moved
