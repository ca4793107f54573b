"""Every layer against every layer, within and across two encoders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations, product
from typing import TYPE_CHECKING, Any

import numpy as np

from layerprobe.errors import MeasureError
from layerprobe.progress import track
from layerprobe.similarity._arrays import array, constant, grouped, parts, same_rows, stays
from layerprobe.similarity._measure import Measure
from layerprobe.similarity._passes import BUDGET, statistics
from layerprobe.similarity._statistics import Pair, Products
from layerprobe.similarity.measures import find_measures

if TYPE_CHECKING:
    import pandas as pd

Values = dict[tuple[str, str], float]


def grid(
    sides: Mapping[str, Mapping[int, Any]],
    groups: Any = None,
    *,
    measures: Sequence[str] = ("cka",),
    estimator: str = "full",
    batch: int = 256,
) -> pd.DataFrame:
    """Linear measures of every layer against every layer, within and across two sides.

    Debiased CKA alone, where each row is an example, takes the cheaper of two exact forms: n x n Gram matrices, block by
    block, or d x d cross products.

    Args:
        sides: two names -> layer -> rows x features, the same rows throughout; arrays, or tensors or `DeviceRows` on a device
            with float64, where they are then compared.
        groups: example of each row; by default each row is an example.
        measures: names of linear measures. Those that are not symmetric are taken from the first of two layers to the
            second, in the order of sides and layers.
        estimator: `full`, or `minibatch` over consecutive batches (only `cka`, and without groups).
        batch: rows per minibatch.

    Returns:
        `measure, side_a, layer_a, side_b, layer_b, value, n` in full squares: first x first, first x second,
        second x second. NaN where a measure is undefined (too few rows for the width).

    Raises:
        MeasureError: if a measure is not linear, the rows do not fit together, or a layer is constant.
    """
    import pandas as pd

    selected = find_measures(measures, "grid", linear=True)
    if estimator not in ("full", "minibatch"):
        raise MeasureError(f"grid: {{estimator}} is {estimator!r}; use 'full' or 'minibatch'.", "estimator")
    (first, second) = sides
    layers = {_label(side, layer): x for side in sides for layer, x in sides[side].items()}
    if not all(map(stays, layers.values())) or len({x.device for x in layers.values()}) > 1:
        layers = {label: array(x) for label, x in layers.items()}
    numbers = grouped(groups, len(next(iter(layers.values()))), "grid")
    # A layer of the second side that is identical to that of the first is compared once.
    same = {label: label for label in layers}
    for layer in set(sides[first]) & set(sides[second]):
        a, b = _label(first, layer), _label(second, layer)
        same[b] = a if same_rows(layers[a], layers[b]) else b
    distinct = {label: layers[label] for label in dict.fromkeys(same.values())}
    values = _values(distinct, numbers, selected, batch if estimator == "minibatch" else None)
    rows = []
    for measure in selected:
        for side_a, side_b in ((first, first), (first, second), (second, second)):
            for layer_a, layer_b in product(sorted(sides[side_a]), sorted(sides[side_b])):
                pair = same[_label(side_a, layer_a)], same[_label(side_b, layer_b)]
                value = values[measure.name].get(pair, np.nan)
                rows.append((measure.name, side_a, layer_a, side_b, layer_b, value, int(numbers.max()) + 1))
    return pd.DataFrame(rows, columns=["measure", "side_a", "layer_a", "side_b", "layer_b", "value", "n"])


def _values(
    layers: Mapping[str, Any], groups: np.ndarray, measures: Sequence[Measure], batch: int | None
) -> dict[str, Values]:
    """Values of each measure between all pairs of distinct layers."""
    n, examples = len(groups), int(groups.max()) + 1
    for label, x in layers.items():
        if all(bool((part == x[:1]).all()) for part in parts(x)):
            raise constant("grid", label, x.shape)
    for measure in measures:
        if examples < measure.min_rows:
            raise MeasureError(
                f"grid: {measure.name} needs at least {measure.min_rows} examples, but there are {examples}; provide more."
            )
    forms = {m.name: m.linear.of_all_pairs for m in measures if m.linear and m.linear.of_all_pairs}
    if examples == n and len(forms) == len(measures) and (batch is not None or _grams_are_cheaper(layers, n)):
        values = {}
        for name, form in forms.items():
            table = form(list(layers.values()), batch)
            values[name] = {(a, b): float(table[i, j]) for i, a in enumerate(layers) for j, b in enumerate(layers)}
        return values
    if batch is not None:
        raise MeasureError(
            "grid: {estimator} is 'minibatch', which is for cka alone and without groups; use 'full'.", "estimator"
        )
    return _from_products(layers, groups, measures)


def _from_products(layers: Mapping[str, Any], groups: np.ndarray, measures: Sequence[Measure]) -> dict[str, Values]:
    folds = np.zeros(int(groups.max()) + 1, dtype=np.int64)
    selves: dict[str, Pair] = {}
    values: dict[str, Values] = {measure.name: {} for measure in measures}
    for block in track(_blocks(layers), "layer grid"):
        used = {label: layers[label] for pair in block for label in pair}
        pairs = statistics(used, block, groups, folds, "grid")
        selves |= {a: pairs[a, b] for a, b in block if a == b}
        for a, b in block:
            products = Products(pairs[a, b], selves[a], selves[b])
            for measure in measures:
                values[measure.name][a, b] = _or_nan(measure, products)
                if measure.symmetric:
                    values[measure.name][b, a] = values[measure.name][a, b]
    return values


def _label(side: str, layer: int) -> str:
    return f"{side} layer {layer}"


def _or_nan(measure: Measure, products: Products) -> float:
    assert measure.linear
    try:
        return measure.linear.of_products(products)
    except MeasureError:
        return float("nan")


def _grams_are_cheaper(layers: Mapping[str, Any], n: int) -> bool:
    width = max(x.shape[1] for x in layers.values())
    pairs = len(layers) * (len(layers) + 1) // 2
    # Half of each Gram matrix and the inner products of all pairs of them, against one cross product per pair.
    return n * n * (len(layers) * width + len(layers) ** 2) < pairs * 2 * n * width * width


def _blocks(layers: Mapping[str, Any]) -> list[list[tuple[str, str]]]:
    """All pairs, first those of each layer with itself, in blocks whose cross products fit the memory budget."""
    most = max(1, BUDGET // (2 * max(x.shape[1] for x in layers.values()) ** 2))
    pairs = [(label, label) for label in layers] + list(combinations(layers, 2))
    return [pairs[start : start + most] for start in range(0, len(pairs), most)]
