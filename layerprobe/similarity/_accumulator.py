"""Linear measures of many layers from one pass over batches of rows."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from itertools import combinations_with_replacement
from typing import Any

import numpy as np

from layerprobe.errors import MeasureError
from layerprobe.similarity._arrays import array, finite, grouped
from layerprobe.similarity._cca import mean_cca_of, mean_squared_cca_of, pwcca_of, svcca_of
from layerprobe.similarity._cka import biased_cka_of, cka_angle_of, cka_of
from layerprobe.similarity._intervals import Estimate, jackknife
from layerprobe.similarity._shape import procrustes_angle_of, procrustes_of, shape_distance_of
from layerprobe.similarity._statistics import Sums

OF_PRODUCTS: Mapping[str, Callable[..., float]] = {
    "cka": cka_of,
    "cka_angle": cka_angle_of,
    "mean_cca": mean_cca_of,
    "mean_squared_cca": mean_squared_cca_of,
    "svcca": svcca_of,
    "pwcca": pwcca_of,
    "procrustes": procrustes_of,
    "procrustes_angle": procrustes_angle_of,
    "shape_distance": shape_distance_of,
}
"""Measures that cross products are enough for."""

LINEAR = tuple(OF_PRODUCTS)
"""Their names."""


class SimilarityAccumulator:
    """Sums from which every linear measure between layers follows, exactly, whatever the number of rows.

    Batches are added once and forgotten; memory holds one or two d x d matrices a pair of layers and fold. Values equal
    those of the functions on all rows at once to about 1e-10.

        accumulator = SimilarityAccumulator()
        for batch in batches:                          # {"base 3": rows, "adapted 3": rows, ...}
            accumulator.add(batch)
        accumulator.value("cka", "base 3", "adapted 3")

    Args:
        pairs: pairs of layer names to keep; by default all of the first batch's.
        folds: groups of examples that can be left out again, for `interval`.
        means: mean row of each layer over all batches. Needed where rows have groups: debiased CKA over tokens is taken
            about that mean. Otherwise the first batch's mean stands in, which cancels.
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
            layers: name -> rows x features, the same rows throughout; the same names in each batch.
            groups: example of each row; all rows of an example come in one batch.
            fold: the group of examples that they belong to, 0 ... folds - 1.

        Raises:
            MeasureError: if the batches do not fit together, or a value is not finite.
        """
        rows = {name: np.asarray(array(value), dtype=np.float64) for name, value in layers.items()}
        shapes = {name: value.shape for name, value in rows.items()}
        if not rows or any(len(shape) != 2 for shape in shapes.values()) or len({s[0] for s in shapes.values()}) != 1:
            raise MeasureError(
                f"SimilarityAccumulator.add was given {shapes}; give each layer rows x features of the same rows."
            )
        if not 0 <= fold < self._folds:
            raise MeasureError(
                f"SimilarityAccumulator.add was given fold {fold}; it was made with folds={self._folds}."
            )
        if not next(iter(shapes.values()))[0]:
            return
        for value in rows.values():
            finite(value, "SimilarityAccumulator.add")
        if self._sums is None:
            self._begin(rows, grouped_rows=groups is not None)
        assert self._sums is not None and self._shifts is not None
        if set(rows) != set(self._shifts) or (groups is not None) != self._grouped:
            raise MeasureError(
                "SimilarityAccumulator.add was given other layers than before, or groups in some batches only; give the same in "
                "each batch."
            )
        n = len(next(iter(rows.values())))
        numbers = grouped(groups, n, "SimilarityAccumulator.add")
        order = np.argsort(numbers, kind="stable")
        self._sums.add(
            {name: value[order] - self._shifts[name] for name, value in rows.items()}, np.bincount(numbers), fold
        )

    def value(self, measure: str, one: Hashable, other: Hashable, *, fold: int | None = None, **options: Any) -> float:
        """A measure between two layers, of all rows or without one fold.

        Args:
            measure: one of `cka` (debiased; `debiased=False` for the biased one), `cka_angle`, `mean_cca`,
                `mean_squared_cca`, `svcca` (`variance`), `pwcca`, `procrustes`, `procrustes_angle`, `shape_distance`
                (`alpha`).
            one, other: names of layers.
            fold: leave this group of examples out.

        Raises:
            MeasureError: if there is no such measure or pair, or the measure is undefined on these rows.
        """
        if measure not in OF_PRODUCTS:
            raise MeasureError(
                f"SimilarityAccumulator has no {measure!r}; from cross products follow {', '.join(OF_PRODUCTS)}."
            )
        function = OF_PRODUCTS[measure]
        if measure == "cka" and not options.pop("debiased", True):
            function = biased_cka_of
        known = {} if self._sums is None else self._sums.pairs
        own = [known.get((name, name)) for name in (one, other)]
        cross, (xx, yy) = known.get((one, other)), own
        if cross is None and (other, one) in known and measure != "pwcca":
            cross, xx, yy = known[other, one], yy, xx
        if cross is None or xx is None or yy is None:
            raise MeasureError(f"SimilarityAccumulator holds no pair {one!r} and {other!r}; name it in `pairs`.")
        assert self._sums is not None
        if not np.trace(xx.centred_cross(self._sums.sizes)) > 0 or not np.trace(yy.centred_cross(self._sums.sizes)) > 0:
            raise MeasureError(f"{measure} was given a constant representation ({one!r} or {other!r}); leave it out.")
        return function(cross, xx, yy, self._sums.sizes, fold, **options)

    def interval(self, measure: str, one: Hashable, other: Hashable, **options: Any) -> Estimate:
        """A measure with its 95% delete-group jackknife interval; needs folds (20 are usual) of whole examples.

        Raises:
            MeasureError: as `value`, and for fewer than two folds.
        """
        if self._folds < 2 or self._sums is None:
            raise MeasureError("SimilarityAccumulator.interval needs folds of examples; make it with folds=20.")
        low, high = (0.0, np.pi / 2) if "angle" in measure or "distance" in measure else (-1.0, 1.0)
        low = low if measure == "cka" or low == 0.0 else 0.0
        powers = self._sums.powers
        examples = int(powers[:, 0].sum())
        return jackknife(
            lambda fold: self.value(measure, one, other, fold=fold, **options), self._folds, examples, low, high
        )

    def _begin(self, rows: Mapping[Any, np.ndarray], *, grouped_rows: bool) -> None:
        if grouped_rows and self._shifts is None:
            raise MeasureError(
                "SimilarityAccumulator was given groups but no means; debiased CKA over tokens is taken about the mean of all "
                "rows: give means={layer: mean row}."
            )
        self._shifts = self._shifts or {name: value.mean(0) for name, value in rows.items()}
        self._grouped = grouped_rows
        pairs = self._pairs if self._pairs is not None else list(combinations_with_replacement(rows, 2))
        unknown = [name for pair in pairs for name in pair if name not in rows]
        if unknown:
            raise MeasureError(
                f"SimilarityAccumulator was given no layer {unknown[0]!r}; it has {', '.join(map(repr, rows))}."
            )
        selves = [(name, name) for name in dict.fromkeys(name for pair in pairs for name in pair)]
        widths = {name: value.shape[1] for name, value in rows.items()}
        self._sums = Sums(widths, list(dict.fromkeys([*selves, *pairs])), self._folds, not grouped_rows)
