"""A measure with its declared properties, and the ways to compute its interval and its null."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import numpy as np
from jaxtyping import Float

from layerprobe.errors import MeasureError
from layerprobe.similarity._arrays import take
from layerprobe.similarity._paired import PairedRows
from layerprobe.stats import Estimate, bootstrap_mean, jackknife

MIN_EXAMPLES = 8
"""Least number of examples for a jackknife interval."""

SHAPE = frozenset({"rotation", "scale", "shift"})
ANY_LINEAR = SHAPE | {"linear"}

Statistic = Callable[[int | None], float]
"""A value of the whole sample (given None), or without one fold of examples (given its number)."""


@dataclass(frozen=True)
class Measure:
    """A measure and its declared properties; the tests verify them."""

    function: Callable[..., float]
    """The public function of `(x, y)`. Its name is the name of the measure."""
    label: str
    """Name in figures."""
    citation: str
    invariances: frozenset[str]
    """Changes of one side alone that leave the value unchanged, of rotation, scale (isotropic), shift, linear (invertible)."""
    kind: Literal["similarity", "distance"] = "similarity"
    range: tuple[float, float] = (0.0, 1.0)
    """Lowest and highest value."""
    symmetric: bool = True
    min_rows: int = 4
    """Least number of rows for any width; some measures also need more rows than features."""
    resampling: Resampling = field(default_factory=lambda: Jackknife())
    """How its interval and its null are computed."""
    baseline_of: str | None = None
    """The measure whose value for unrelated rows this is."""
    attains_top: bool = True
    """Whether identical sides score `top` exactly."""
    sensitivity: str = ""
    """Which differences it responds to, in half a sentence."""
    caption: str = ""
    """What a figure of it shows, for the reader of the report."""
    formula: str = ""
    """Its definition in LaTeX, in the symbols of the documentation: X and Y with rows x_i and y_i, centred unless stated."""

    @property
    def name(self) -> str:
        return self.function.__name__

    @property
    def top(self) -> float:
        """The value of a perfect match: 1 for similarities, 0 for distances."""
        return 0.0 if self.kind == "distance" else 1.0

    @property
    def linear(self) -> Linear | None:
        """How it follows from cross products of the two sides, which can be accumulated; None if it does not."""
        return self.resampling if isinstance(self.resampling, Linear) else None


class Resampling(ABC):
    """How the interval and the null of a measure are computed."""

    interval_method: ClassVar[str] = "delete-group jackknife over whole examples"
    max_rows: int | None = None
    """Rows of the sample of whole examples that the measure is computed from; None for all rows."""
    null: bool = True
    """Whether shuffled examples are a null of the measure."""

    @abstractmethod
    def statistic(self, measure: Measure, pair: PairedRows) -> Statistic:
        """The measure as a function of the fold that is left out."""

    def value(self, measure: Measure, pair: PairedRows) -> float:
        """The measure of the whole sample."""
        return self.statistic(measure, pair.sample(self.max_rows))(None)

    def interval(self, measure: Measure, pair: PairedRows) -> Estimate:
        """The measure with its 95% interval.

        Raises:
            MeasureError: if the measure is undefined on these rows, or there are too few examples.
        """
        if pair.n_examples < MIN_EXAMPLES:
            raise MeasureError(
                f"{measure.name}: {{groups}} has {pair.n_examples} examples, but an interval over examples needs at least "
                f"{MIN_EXAMPLES}; provide more.",
                "groups",
            )
        sample = pair.sample(self.max_rows)
        return jackknife(self.statistic(measure, sample), sample.n_folds, sample.n_examples, *measure.range)


@dataclass(frozen=True)
class RowMean(Resampling):
    """The mean of one value per row, whose interval is a percentile bootstrap of whole examples."""

    interval_method: ClassVar[str] = "bootstrap of whole examples"
    values: Callable[[PairedRows], Float[np.ndarray, " n"]]
    null: bool = True

    def statistic(self, measure: Measure, pair: PairedRows) -> Statistic:
        values = self.values(pair)
        return lambda fold: float(values[pair.without(fold)].mean())

    def interval(self, measure: Measure, pair: PairedRows) -> Estimate:
        sums, counts = np.bincount(pair.groups, weights=self.values(pair)), np.bincount(pair.groups)
        total, rows = (part.sum() - np.bincount(pair.folds, weights=part) for part in (sums, counts))
        left_out = total / rows if pair.n_folds > 1 else None
        return replace(bootstrap_mean(sums, counts, pair.seed), left_out=left_out)


@dataclass(frozen=True)
class Linear(Resampling):
    """A function of cross products, which are summed once by fold for all linear measures."""

    of_products: Callable[..., float]
    of_all_pairs: Callable[..., Float[np.ndarray, "layers layers"]] | None = None
    """The values between all pairs of a list of representations at once, from Gram matrices of their rows: takes
    `(layers, batch)`, with the rows of a minibatch or None."""
    single: bool = False
    """Whether cross products in float32 are accurate enough for shuffled examples: not where sides are whitened, which
    magnifies rounding in directions of little variance."""

    def statistic(self, measure: Measure, pair: PairedRows) -> Statistic:
        return lambda fold: self.of_products(pair.products.without(fold))


@dataclass(frozen=True)
class Jackknife(Resampling):
    """Any other measure, on a sample of whole examples; by default its function is evaluated without each fold."""

    of_rows: Callable[[PairedRows], Statistic] | None = None
    """The measure as a function of the fold that is left out."""
    max_rows: int | None = 1000
    null: bool = True

    def statistic(self, measure: Measure, pair: PairedRows) -> Statistic:
        if self.of_rows is not None:
            return self.of_rows(pair)
        x, y = pair.x.rows, pair.y.rows
        return lambda fold: measure.function(take(x, pair.without(fold)), take(y, pair.without(fold)))
