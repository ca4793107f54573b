"""Two encoders compared layer by layer, with intervals over whole examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from layerprobe.errors import MeasureError
from layerprobe.similarity._accumulator import OF_PRODUCTS
from layerprobe.similarity._arrays import checked, grouped
from layerprobe.similarity._cosine import other_rows, row_cosines
from layerprobe.similarity._intervals import Estimate, bootstrap_mean, folds_of, jackknife, sample_rows
from layerprobe.similarity._knn import distances, nearest
from layerprobe.similarity._passes import statistics
from layerprobe.similarity._predictivity import held_out
from layerprobe.similarity._rsa import correlate, dissimilarities
from layerprobe.similarity._table import MEASURES

if TYPE_CHECKING:
    import pandas as pd

DEFAULT = ("paired_cosine", "paired_cosine_baseline", "cka", "procrustes")
AVERAGED = ("paired_cosine", "paired_cosine_baseline")
SAMPLE = 1000
"""Rows of whole examples that measures on n x n matrices are taken of."""
FORETOLD = 4000
"""Rows of whole examples that linear predictivity is taken of."""
NEIGHBOURS = 10


def compare(
    base: Mapping[int, Any],
    adapted: Mapping[int, Any],
    groups: Any,
    *,
    measures: Sequence[str] = DEFAULT,
    seed: int = 0,
    n_groups: int = 20,
    leave_out_undefined: bool = False,
    progress: bool = True,
) -> pd.DataFrame:
    """How alike two encoders are at each layer, each value with a 95% interval over whole examples.

    Means of cosines get a percentile bootstrap of examples (2,000 resamples). All other measures get a delete-group
    jackknife with a t interval: an example drawn twice would sit beside its own duplicate, which they take for signal. RSA
    and neighbourhoods, which need n x n matrices, are taken of a seeded sample of whole examples of at most 1,000 rows,
    linear predictivity of at most 4,000; pairs of rows of one example are left out of them.

    Args:
        base, adapted: layer -> rows x features, the same rows on both sides.
        groups: example of each row; all rows of an example move together.
        measures: names out of `MEASURES`.
        seed: of the bootstrap, the folds, the samples and the shuffled pairs.
        n_groups: folds of the jackknife; fewer where there are fewer examples.
        leave_out_undefined: leave a measure out of a layer where it is undefined (as CCA with too few rows), and tell so in
            `attrs["left_out"]`, a list of (layer, measure, why); otherwise that is an error.
        progress: whether to draw a progress bar on stderr.

    Returns:
        One row a layer and measure: `layer, measure, value, ci_low, ci_high, n, n_rows` (n counts examples).

    Raises:
        MeasureError: naming the measure and the layer's trouble.
    """
    import pandas as pd

    known = [measure.name for measure in MEASURES]
    unknown = [name for name in measures if name not in known]
    if unknown:
        raise MeasureError(f"compare was given the measure {unknown[0]!r}; the measures are {', '.join(known)}.")
    if set(base) != set(adapted):
        raise MeasureError(
            f"compare was given layers {sorted(base)} of base and {sorted(adapted)} of adapted; give the same layers."
        )
    rows, left_out = [], []
    for layer in tqdm(sorted(base), desc="comparing layers", leave=False, disable=not progress, delay=1):
        x, y = checked(base[layer], adapted[layer], f"layer {layer}")
        one = _Layer(x, y, grouped(groups, len(x), "compare"), seed, n_groups)
        for name in measures:
            try:
                found, n_rows = one.estimate(name)
            except MeasureError as error:
                if not leave_out_undefined:
                    raise
                left_out.append((layer, name, str(error)))
                continue
            rows.append((layer, name, found.value, found.low, found.high, found.n, n_rows))
    table = pd.DataFrame(rows, columns=["layer", "measure", "value", "ci_low", "ci_high", "n", "n_rows"])
    table.attrs["left_out"] = left_out
    return table


class _Layer:
    """One layer's rows on both sides, and what several measures share of them."""

    def __init__(self, x: np.ndarray, y: np.ndarray, groups: np.ndarray, seed: int, n_groups: int) -> None:
        self.x, self.y, self.groups, self.seed = x, y, groups, seed
        self.examples = int(groups.max()) + 1
        self.folds = folds_of(self.examples, n_groups, seed)
        self.same = np.array_equal(x, y)
        self._products: Any = None
        self._sample: Any = None

    def estimate(self, name: str) -> tuple[Estimate, int]:
        """A measure with its interval, and the rows that it was taken of."""
        if name in AVERAGED:
            other = self.y if name == "paired_cosine" else self.y[other_rows(self.groups, self.seed)]
            return bootstrap_mean(row_cosines(self.x, other, name), self.groups, self.seed), len(self.x)
        if self.examples < 8:
            raise MeasureError(
                f"{name} was given {self.examples} examples; an interval over examples needs at least 8: give more texts."
            )
        if name in OF_PRODUCTS:
            return self._of_products(name), len(self.x)
        if name == "linear_predictivity":
            return self._predictivity()
        return self._of_matrices(name)

    def _of_products(self, name: str) -> Estimate:
        if self._products is None:
            layers, pairs = {"x": self.x}, [("x", "x")]
            if not self.same:
                layers["y"] = self.y
                pairs += [("x", "y"), ("y", "y")]
            self._products = statistics(layers, pairs, self.groups, self.folds, name)
        made, sizes = self._products
        xx = made["x", "x"]
        xy, yy = made.get(("x", "y"), xx), made.get(("y", "y"), xx)
        function = OF_PRODUCTS[name]
        return self._jackknife(name, lambda fold: function(xy, xx, yy, sizes, fold), self.examples, self._n_folds)

    def _predictivity(self) -> tuple[Estimate, int]:
        rows = sample_rows(self.groups, FORETOLD, self.seed)
        errors, spread, numbers = held_out(
            self.x[rows], self.y[rows], folds=5, groups=self.groups[rows], seed=self.seed
        )
        folds = folds_of(int(numbers.max()) + 1, self._n_folds, self.seed)[numbers]

        def without(fold: int | None) -> float:
            keep = folds != (-1 if fold is None else fold)
            return float(1 - errors[keep].sum() / spread[keep].sum())

        found = self._jackknife("linear_predictivity", without, int(numbers.max()) + 1, int(folds.max()) + 1)
        return found, len(rows)

    def _of_matrices(self, name: str) -> tuple[Estimate, int]:
        if self._sample is None:
            self._sample = sample_rows(self.groups, SAMPLE, self.seed)
        rows = self._sample
        numbers = np.unique(self.groups[rows], return_inverse=True)[1]
        examples = int(numbers.max()) + 1
        folds = folds_of(examples, self._n_folds, self.seed)[numbers]
        apart = numbers[:, None] != numbers[None]
        if name == "rsa":
            a, b = (dissimilarities(z[rows]) for z in (self.x, self.y))
            allowed = np.triu(apart, 1)

            def without(fold: int | None) -> float:
                keep = folds != (-1 if fold is None else fold)
                pairs = allowed & keep[:, None] & keep[None]
                return correlate(a[pairs], b[pairs])
        else:
            a, b = (distances(z[rows], "cosine", name) for z in (self.x, self.y))

            def without(fold: int | None) -> float:
                keep = np.flatnonzero(folds != (-1 if fold is None else fold))
                here = np.ix_(keep, keep)
                if (apart[here].sum(1) < NEIGHBOURS).any():
                    raise MeasureError(
                        f"{name} was given {examples} examples; it looks at {NEIGHBOURS} neighbours in other texts: give more."
                    )
                near = [nearest(z[here], NEIGHBOURS, apart[here]) for z in (a, b)]
                shared = (near[0] & near[1]).sum(1)
                of = 2 * NEIGHBOURS - shared if name == "jaccard_knn" else NEIGHBOURS
                return float((shared / of).mean())

        return self._jackknife(name, without, examples, int(folds.max()) + 1), len(rows)

    @property
    def _n_folds(self) -> int:
        return int(self.folds.max()) + 1

    def _jackknife(self, name: str, function: Any, examples: int, n_folds: int) -> Estimate:
        measure = next(measure for measure in MEASURES if measure.name == name)
        return jackknife(function, n_folds, examples, measure.low, measure.high)
