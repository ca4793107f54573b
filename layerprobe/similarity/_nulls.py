"""Measures of examples that do not correspond: whole examples shuffled among examples of equal length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Int

from layerprobe.errors import MeasureError
from layerprobe.progress import track
from layerprobe.similarity._arrays import (
    checked,
    constant,
    doubles,
    finite,
    grouped,
    is_constant,
    library,
    sample_rows,
    stays,
    take,
)
from layerprobe.similarity._calibration import calibrate
from layerprobe.similarity._measure import MIN_EXAMPLES, Measure
from layerprobe.similarity._paired import PairedRows, Representation
from layerprobe.similarity._statistics import Pair, Products, Side, Sums
from layerprobe.similarity.measures import find_measures

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ["layer", "measure", "value", "low", "high", "draws", "n", "observed", "calibrated", "p", "p_some"]


def shuffled(
    base: Mapping[int, Any],
    adapted: Mapping[int, Any],
    groups: Any,
    *,
    measures: Sequence[str],
    draws: int = 19,
    seed: int = 0,
) -> pd.DataFrame:
    """Each measure after whole examples of one side are shuffled among examples of equal length.

    Shuffling rows is no null for tokens, since rows of one example depend on each other. Examples whose length occurs only
    once cannot be moved and are left out. A value outside the range of 19 draws exceeds this null at the 5% level, one-sided.

    Args:
        base, adapted: layer -> rows x features, the same rows on both sides; arrays, or tensors or `DeviceRows` on a device
            with float64, where they are then compared.
        groups: example of each row; all rows of an example move together, in their order.
        measures: names of measures in `MEASURES`; those without such a null are left out.
        draws: number of shuffles.
        seed: seed of the shuffles and samples.

    Returns:
        `layer, measure, value, low, high, draws, n, observed, calibrated, p, p_some`: mean, lowest and highest of the draws,
        over n examples; the measure of the same rows unshuffled, calibrated by these draws, with its p-values (`calibrate`).
        The shuffles are the same at all layers. A measure that is undefined on these rows is left out.

    Raises:
        MeasureError: if a measure does not exist, or fewer than 8 examples share their length with another.
    """
    import pandas as pd

    selected = [measure for measure in find_measures(measures, "shuffled") if measure.resampling.null]
    numbers = grouped(groups, len(base[next(iter(base))]), "shuffled")
    movable = np.flatnonzero(_movable(numbers)[numbers])
    movable = movable[np.argsort(numbers[movable], kind="stable")]
    numbers = np.unique(numbers[movable], return_inverse=True)[1]
    examples = int(numbers.max(initial=-1)) + 1
    if examples < MIN_EXAMPLES:
        raise MeasureError(
            f"shuffled: {{groups}} has {examples} examples whose length another one shares, but at least {MIN_EXAMPLES} are "
            "required; provide more.",
            "groups",
        )
    counts = np.bincount(numbers)
    partners = [_partners(counts, np.random.default_rng((seed, draw))) for draw in range(draws)]
    found: dict[str, dict[int, tuple[float, list[float]]]] = {measure.name: {} for measure in selected}
    for layer in track(sorted(base), "shuffled examples"):
        caller = f"shuffled, layer {layer}"
        x, y = (
            Representation(finite(take(z, movable), caller, numbers=movable, shape=z.shape), numbers)
            for z in checked(base[layer], adapted[layer], caller, on_device=True)
        )
        pair = PairedRows(x, y, seed=seed)
        unmoved = np.arange(examples)  # the same rows as they are
        for name, values in _values(pair, [unmoved, *partners], selected).items():
            found[name][layer] = values[0], values[1:]
    tables = [_summary(measure, found[measure.name], examples) for measure in selected if found[measure.name]]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=COLUMNS)


def _summary(measure: Measure, layers: Mapping[int, tuple[float, list[float]]], examples: int) -> pd.DataFrame:
    """Draws and calibrated values of one measure: a row per layer."""
    import pandas as pd

    observed = np.array([value for value, _ in layers.values()])
    null = np.array([draws for _, draws in layers.values()]).T
    calibrated = calibrate(observed, null, top=measure.top, distance=measure.kind == "distance")
    columns = {
        "layer": list(layers),
        "measure": measure.name,
        "value": null.mean(0),
        "low": null.min(0),
        "high": null.max(0),
        "draws": len(null),
        "n": examples,
        "observed": observed,
        "calibrated": calibrated.score,
        "p": calibrated.p,
        "p_some": calibrated.p_some,
    }
    return pd.DataFrame(columns)[COLUMNS]


def _values(
    pair: PairedRows, partners: Sequence[Int[np.ndarray, " examples"]], measures: Sequence[Measure]
) -> dict[str, list[float]]:
    """Values of each measure that is defined, one per shuffle."""
    values: dict[str, list[float]] = {measure.name: [] for measure in measures}
    single = not stays(pair.x.stored) and all(measure.linear.single for measure in measures if measure.linear)
    for partner in partners:
        moved = bool((partner != np.arange(len(partner))).any())
        shuffle = _ShuffledRows(pair, partner, single=single and moved)
        for measure in measures:
            if measure.name in values:
                try:
                    values[measure.name].append(measure.resampling.value(measure, shuffle))
                except MeasureError:
                    del values[measure.name]
    return values


class _ShuffledRows(PairedRows):
    """Rows, in the order of their examples, whose y side has whole examples replaced by others of equal length.

    Where `single` is set (on the CPU), x and y are multiplied in float32. Sums and samples of the x side, and sums of the y side alone, are those of the rows that are shuffled.
    """

    def __init__(self, pair: PairedRows, partner: Int[np.ndarray, " examples"], *, single: bool) -> None:
        self.pair, self.partner, self.counts, self.single = pair, partner, np.bincount(pair.groups), single
        self.order = _exchange_blocks(self.counts, partner)
        super().__init__(pair.x, pair.y.select(self.order, pair.groups), seed=pair.seed)

    @cached_property
    def products(self) -> Products:
        x, y = (side.of(_single if self.single else _centred) for side in (self.pair.x, self.pair.y))
        crossed = Sums({"x": x.rows.shape[1], "y": y.rows.shape[1]}, [("x", "y")], 1, x.grams is None)
        crossed.add_sides({"x": x, "y": self._exchange(y)}, self.counts, 0)
        return Products(crossed.pairs["x", "y"], self.pair.x.of(_with_itself), self.pair.y.of(_with_itself))

    def _exchange(self, side: Side) -> Side:
        rows, squares = take(side.rows, self.order), take(side.squares, self.partner)
        if side.along is None or side.grams is None:
            return Side(rows, rows, squares, None, None)
        blocks = _exchange_blocks(self.counts * self.counts, self.partner)
        sums, along, grams = take(side.sums, self.partner), take(side.along, self.order), take(side.grams, blocks)
        return Side(rows, sums, squares, along, grams)

    def _sample(self, max_rows: int) -> PairedRows:
        unmoved = self.pair.sample(max_rows)
        index = sample_rows(self.groups, max_rows, self.seed)
        return PairedRows(unmoved.x, self.y.select(index, unmoved.groups), seed=self.seed, n_folds=self.n_folds)


def _centred(side: Representation) -> Side:
    rows = doubles(side.rows)
    mean, counts = rows.mean(0), np.bincount(side.groups)
    centred = rows - mean
    if is_constant(float(library(rows).vdot(centred.ravel(), centred.ravel())) / len(rows), mean):
        raise constant("shuffled", "x", rows.shape)
    return Side.of(centred, counts, bool((counts == 1).all()))


def _single(side: Representation) -> Side:
    """`_centred` with its rows in float32, which halves the time of their product.

    Only shuffles use them. The rounding of float32 moves a value by less than a thousandth of the spread of shuffles
    (`tests/similarity/test_spectra.py`).
    """
    centred = side.of(_centred)
    along = None if centred.along is None else centred.along.astype(np.float32)
    return replace(centred, rows=centred.rows.astype(np.float32), along=along)


def _with_itself(side: Representation) -> Pair:
    centred = side.of(_centred)
    sums = Sums({"x": centred.rows.shape[1]}, [("x", "x")], 1, centred.grams is None)
    sums.add_sides({"x": centred}, np.bincount(side.groups), 0)
    return sums.pairs["x", "x"]


def _movable(groups: Int[np.ndarray, " n"]) -> Bool[np.ndarray, " examples"]:
    """Whether the length of an example occurs more than once."""
    counts = np.bincount(groups)
    return np.bincount(counts)[counts] > 1


def _partners(counts: Int[np.ndarray, " examples"], rng: np.random.Generator) -> Int[np.ndarray, " examples"]:
    """For each example, the one of equal length that replaces it; none stays in place."""
    partner = np.arange(len(counts))
    for length in np.unique(counts):
        cycle = rng.permutation(np.flatnonzero(counts == length))
        partner[cycle] = np.roll(cycle, 1)
    return partner


def _exchange_blocks(
    counts: Int[np.ndarray, " examples"], partner: Int[np.ndarray, " examples"]
) -> Int[np.ndarray, " n"]:
    """Indices that replace each block of `counts` consecutive entries by that of its partner of equal size."""
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    return np.repeat(starts[partner] - starts, counts) + np.arange(counts.sum())
