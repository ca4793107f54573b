"""Linear measures of many layers from one pass over batches of rows."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from itertools import combinations_with_replacement
from typing import Any

import numpy as np

from layerprobe.errors import MeasureError
from layerprobe.similarity._arrays import array, beside, doubles, finite, grouped, stays, take
from layerprobe.similarity._statistics import Products, Sums
from layerprobe.similarity.measures import find_measures
from layerprobe.stats import Estimate, jackknife

ADD, NAME = "SimilarityAccumulator.add", "SimilarityAccumulator"


class SimilarityAccumulator:
    """Sums from which every linear measure between layers follows exactly, for any number of rows.

    Batches are not kept: memory holds one or two d x d matrices per pair of layers and fold. Values equal those of the
    functions on all rows at once to about 1e-10.

        accumulator = SimilarityAccumulator()
        for batch in batches:                          # {"base 3": rows, "adapted 3": rows, ...}
            accumulator.add(batch)
        accumulator.value("cka", "base 3", "adapted 3")

    Args:
        pairs: pairs of layer names to keep; by default all pairs of layers in the first batch.
        folds: number of folds of examples, which `interval` leaves out in turn.
        means: mean row of each layer over all batches. Required if rows have groups: debiased CKA over tokens is taken about
            that mean. Otherwise the mean of the first batch is used, which cancels.
    """

    def __init__(
        self,
        pairs: Sequence[tuple[Hashable, Hashable]] | None = None,
        *,
        folds: int = 1,
        means: Mapping[Any, Any] | None = None,
    ) -> None:
        self._pairs = None if pairs is None else list(pairs)
        self._folds = folds
        self._shifts = None if means is None else {name: np.asarray(mean, np.float64) for name, mean in means.items()}
        self._sums: Sums | None = None
        self._grouped = False

    def add(self, layers: Mapping[Any, Any], *, groups: Any = None, fold: int = 0) -> None:
        """Add a batch of rows.

        Args:
            layers: name -> rows x features, the same rows throughout; the same names in each batch. Tensors on a device
                with float64 are multiplied there.
            groups: example of each row; all rows of an example must be in one batch.
            fold: fold of these examples, 0 ... folds - 1.

        Raises:
            MeasureError: if the batches do not fit together, or a value is not finite.
        """
        there = all(map(stays, layers.values())) and len({value.device for value in layers.values()}) == 1
        rows = {name: doubles(value.detach() if there else array(value)) for name, value in layers.items()}
        shapes = {name: tuple(value.shape) for name, value in rows.items()}
        if not rows or any(len(shape) != 2 for shape in shapes.values()) or len({s[0] for s in shapes.values()}) != 1:
            raise MeasureError(
                f"{ADD}: {{layers}} has shapes {shapes}, but each layer needs rows x features of the same rows.",
                "layers",
            )
        if not 0 <= fold < self._folds:
            raise MeasureError(f"{ADD}: {{fold}} is {fold}, but the accumulator has folds={self._folds}.", "fold")
        n = next(iter(shapes.values()))[0]
        if not n:
            return
        for value in rows.values():
            finite(value, ADD)
        if self._sums is None or self._shifts is None:
            self._sums, self._shifts = self._begin(rows, grouped_rows=groups is not None)
        if set(rows) != set(self._shifts) or (groups is not None) != self._grouped:
            raise MeasureError(
                f"{ADD}: {{layers}} has other names than before, or {{groups}} is set in some batches only; pass the same "
                "in each batch.",
                *("layers", "groups"),
            )
        numbers = grouped(groups, n, ADD)
        order = np.argsort(numbers, kind="stable")
        centred = {name: take(value, order) - beside(self._shifts[name], value) for name, value in rows.items()}
        self._sums.add(centred, np.bincount(numbers), fold)

    def value(self, measure: str, one: Hashable, other: Hashable, *, fold: int | None = None, **options: Any) -> float:
        """A measure between two layers, of all rows or without one fold.

        Args:
            measure: name of a linear measure.
            one, other: names of layers.
            fold: fold to leave out.
            options: `debiased` for `cka`, `variance` for `svcca`, `alpha` for `shape_distance`.

        Raises:
            MeasureError: if there is no such measure or pair, or the measure is undefined on these rows.
        """
        (row,) = find_measures([measure], NAME, linear=True)
        assert row.linear
        pairs = {} if self._sums is None else self._sums.pairs
        x, y = (other, one) if (one, other) not in pairs and row.symmetric else (one, other)
        if self._sums is None or (x, y) not in pairs:
            raise MeasureError(f"{NAME}: there is no pair {one!r} and {other!r}; add it to {{pairs}}.", "pairs")
        products = Products(pairs[x, y], pairs[x, x], pairs[y, y])
        if not np.trace(products.scatter_x) > 0 or not np.trace(products.scatter_y) > 0:
            raise MeasureError(
                f"{NAME}: a constant representation ({one!r} or {other!r}) has no {measure} with another; leave it out."
            )
        return row.linear.of_products(products.without(fold), **options)

    def interval(self, measure: str, one: Hashable, other: Hashable, **options: Any) -> Estimate:
        """A measure with its 95% delete-group jackknife interval; requires folds (20 are usual) of whole examples.

        Raises:
            MeasureError: as `value`, and for fewer than two folds.
        """
        if self._folds < 2 or self._sums is None:
            raise MeasureError(
                f"{NAME}.interval: {{folds}} is {self._folds}, but an interval needs at least two; use folds=20.",
                "folds",
            )
        (row,) = find_measures([measure], NAME, linear=True)
        examples = int(self._sums.powers[:, 0].sum())
        return jackknife(
            lambda fold: self.value(measure, one, other, fold=fold, **options), self._folds, examples, *row.range
        )

    def _begin(self, rows: Mapping[Any, Any], *, grouped_rows: bool) -> tuple[Sums, dict[Any, np.ndarray]]:
        if grouped_rows and self._shifts is None:
            raise MeasureError(
                f"{NAME}: {{groups}} is set but {{means}} is not; debiased CKA over tokens is taken about the mean of all rows: "
                "pass means={layer: mean row}.",
                *("groups", "means"),
            )
        self._grouped = grouped_rows
        pairs = self._pairs if self._pairs is not None else list(combinations_with_replacement(rows, 2))
        unknown = [name for pair in pairs for name in pair if name not in rows]
        if unknown:
            raise MeasureError(
                f"{NAME}: {{pairs}} contains {unknown[0]!r}, but the layers are {', '.join(map(repr, rows))}.", "pairs"
            )
        selves = [(name, name) for name in dict.fromkeys(name for pair in pairs for name in pair)]
        widths = {name: value.shape[1] for name, value in rows.items()}
        sums = Sums(widths, list(dict.fromkeys([*selves, *pairs])), self._folds, not grouped_rows)
        return sums, self._shifts or {name: array(value.mean(0)) for name, value in rows.items()}
