"""One layer of two encoders: rows that correspond, and what several measures compute from them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Bool, Int

from layerprobe.similarity._arrays import same_rows, sample_rows, take
from layerprobe.similarity._passes import products
from layerprobe.similarity._statistics import Products
from layerprobe.stats import assign_folds

N_FOLDS = 20
"""Folds of whole examples that the jackknife leaves out in turn."""

Result = TypeVar("Result")


class Representation:
    """Rows of one side.

    Args:
        stored: `(N, features)`; may be memory-mapped, or on a device.
        groups: example of each selected row, 0 ... E-1, `(n,)`.
        order: which stored rows to select, `(n,)`; by default all.
    """

    def __init__(self, stored: Any, groups: Int[np.ndarray, " n"], order: Any = None) -> None:
        self.stored, self.groups, self.order = stored, groups, order
        self._results: dict[Callable[[Representation], Any], Any] = {}

    @cached_property
    def rows(self) -> Any:
        """The rows, `(n, features)`."""
        return self.stored if self.order is None else take(self.stored, self.order)

    @cached_property
    def apart(self) -> Bool[np.ndarray, "n n"]:
        """Whether two rows belong to different examples."""
        return self.groups[:, None] != self.groups[None]

    def select(self, index: Int[np.ndarray, " m"], groups: Int[np.ndarray, " m"]) -> Representation:
        """Some of the rows, which are read when they are used."""
        return Representation(self.stored, groups, index if self.order is None else self.order[index])

    def of(self, function: Callable[[Representation], Result]) -> Result:
        """A function of these rows, computed once."""
        if function not in self._results:
            self._results[function] = function(self)
        return self._results[function]


class PairedRows:
    """Two representations of the same rows, with folds of whole examples.

    Attributes:
        x, y: the two sides; one object where they are identical.
        groups: example of each row, 0 ... E-1.
        seed: seed of the folds and samples.
        folds: fold of each example.
    """

    def __init__(self, x: Representation, y: Representation, *, seed: int, n_folds: int = N_FOLDS) -> None:
        self.x, self.y, self.groups, self.seed = x, y, x.groups, seed
        self.n_rows, self.n_examples = len(self.groups), int(self.groups.max()) + 1
        self.folds = assign_folds(self.n_examples, n_folds, seed)
        self.n_folds = int(self.folds.max()) + 1
        self._samples: dict[int, PairedRows] = {}

    @classmethod
    def of(cls, x: Any, y: Any, groups: Int[np.ndarray, " n"], seed: int) -> PairedRows:
        one = Representation(x, groups)
        return cls(one, one if same_rows(x, y) else Representation(y, groups), seed=seed)

    @cached_property
    def products(self) -> Products:
        """Sufficient statistics by fold."""
        return products(self.x.rows, self.y.rows, self.groups, self.folds, "compare")

    def sample(self, max_rows: int | None) -> PairedRows:
        """A seeded sample of whole examples with at most `max_rows` rows, the same in each call; None for all rows."""
        if max_rows is None:
            return self
        if max_rows not in self._samples:
            self._samples[max_rows] = self._sample(max_rows)
        return self._samples[max_rows]

    def _sample(self, max_rows: int) -> PairedRows:
        index = sample_rows(self.groups, max_rows, self.seed)
        numbers = np.unique(self.groups[index], return_inverse=True)[1]
        x = self.x.select(index, numbers)
        y = x if self.y is self.x else self.y.select(index, numbers)
        return PairedRows(x, y, seed=self.seed, n_folds=self.n_folds)

    def without(self, fold: int | None) -> Int[np.ndarray, " m"]:
        """Numbers of the rows that remain when a fold is left out; of all rows for None."""
        return np.arange(self.n_rows) if fold is None else np.flatnonzero(self.folds[self.groups] != fold)
