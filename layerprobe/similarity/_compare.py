"""Two encoders compared layer by layer, with intervals over whole examples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from layerprobe.errors import MeasureError
from layerprobe.similarity._arrays import array, checked, grouped
from layerprobe.similarity._cka import cka_of
from layerprobe.similarity._cosine import other_rows, row_cosines
from layerprobe.similarity._shape import procrustes_of
from layerprobe.similarity._statistics import BUDGET, Pair, Sizes, statistics
from layerprobe.similarity._table import MEASURES

if TYPE_CHECKING:
    import pandas as pd

RESAMPLES = 2000
FOLDED: Mapping[str, Callable[..., float]] = {"cka": cka_of, "procrustes": procrustes_of}
AVERAGED = ("paired_cosine", "paired_cosine_baseline")


@dataclass(frozen=True)
class Estimate:
    """A value with its 95% interval over n examples."""

    value: float
    low: float
    high: float
    n: int


def compare(
    base: Mapping[int, Any],
    adapted: Mapping[int, Any],
    groups: Any,
    *,
    measures: Sequence[str] = ("paired_cosine", "paired_cosine_baseline", "cka", "procrustes"),
    seed: int = 0,
    n_groups: int = 20,
    progress: bool = True,
) -> pd.DataFrame:
    """How alike two encoders are at each layer, each value with a 95% interval over whole examples.

    Means of cosines get a percentile bootstrap of examples (2,000 resamples). CKA and Procrustes get a delete-group
    jackknife with a t interval: an example drawn twice would sit beside its own duplicate, which they take for signal.

    Args:
        base, adapted: layer -> rows x features, the same rows on both sides.
        groups: example of each row; all rows of an example move together.
        measures: names out of `MEASURES`.
        seed: of the bootstrap, the folds and the shuffled pairs.
        n_groups: folds of the jackknife; fewer where there are fewer examples.
        progress: whether to draw a progress bar on stderr.

    Returns:
        One row a layer and measure: `layer, measure, value, ci_low, ci_high, n` (n counts examples).

    Raises:
        MeasureError: naming the measure and the layer's trouble.
    """
    import pandas as pd

    unknown = [name for name in measures if name not in (*FOLDED, *AVERAGED)]
    if unknown:
        known = ", ".join(measure.name for measure in MEASURES)
        raise MeasureError(f"compare was given the measure {unknown[0]!r}; the measures are {known}.")
    if set(base) != set(adapted):
        raise MeasureError(
            f"compare was given layers {sorted(base)} of base and {sorted(adapted)} of adapted; give the same layers."
        )
    rows = []
    for layer in tqdm(sorted(base), desc="comparing layers", leave=False, disable=not progress, delay=1):
        x, y = checked(base[layer], adapted[layer], f"layer {layer}")
        numbers = grouped(groups, len(x), "compare")
        estimates = _averaged(x, y, numbers, measures, seed) | _folded(x, y, numbers, measures, seed, n_groups)
        for name in measures:
            found = estimates[name]
            rows.append((layer, name, found.value, found.low, found.high, found.n))
    return pd.DataFrame(rows, columns=["layer", "measure", "value", "ci_low", "ci_high", "n"])


def grid(
    sides: Mapping[str, Mapping[int, Any]], groups: Any, *, measure: str = "cka", progress: bool = True
) -> pd.DataFrame:
    """Debiased linear CKA of every layer against every layer, within and across two sides.

    Args:
        sides: two names -> layer -> rows x features, the same rows throughout.
        groups: example of each row.
        measure: `cka`.
        progress: whether to draw a progress bar on stderr.

    Returns:
        `side_a, layer_a, side_b, layer_b, value, n`, in full squares: first x first, first x second, second x second.
    """
    import pandas as pd

    if measure != "cka":
        raise MeasureError(f"grid was given the measure {measure!r}; it takes cka.")
    (first, second) = sides
    matrices = {(side, layer): array(x) for side in sides for layer, x in sides[side].items()}
    n = len(next(iter(matrices.values())))
    numbers = grouped(groups, n, "grid")
    examples = int(numbers.max()) + 1
    same = {key: _first_equal(key, matrices) for key in matrices}
    distinct = {str(key): matrices[key] for key in dict.fromkeys(same.values())}
    names = list(distinct)
    folds = np.zeros(examples, dtype=np.int64)
    values: dict[tuple[str, str], float] = {}
    for block in tqdm(_blocks(names, distinct), desc="layer grid", leave=False, disable=not progress, delay=1):
        used = {name: distinct[name] for pair in block for name in pair}
        made, sizes = statistics(used, block, numbers, folds, "cka")
        values |= {pair: found.hsic(sizes) for pair, found in made.items()}
    self_terms = {name: values[name, name] for name in names}
    if min(self_terms.values()) <= 0:
        raise MeasureError(
            f"cka is undefined here: {examples} examples are too few for the noise in them; give more texts."
        )
    rows = []
    for side_a, side_b in ((first, first), (first, second), (second, second)):
        for layer_a in sorted(sides[side_a]):
            for layer_b in sorted(sides[side_b]):
                a, b = str(same[side_a, layer_a]), str(same[side_b, layer_b])
                cross = values[(a, b) if (a, b) in values else (b, a)]
                value = cross / float(np.sqrt(self_terms[a]) * np.sqrt(self_terms[b]))
                rows.append((side_a, layer_a, side_b, layer_b, value, examples))
    return pd.DataFrame(rows, columns=["side_a", "layer_a", "side_b", "layer_b", "value", "n"])


def _blocks(names: Sequence[str], layers: Mapping[str, np.ndarray]) -> list[list[tuple[str, str]]]:
    """All pairs of representations, in blocks whose cross products fit the memory that one may take."""
    size = max(layers[name].shape[1] for name in names) ** 2
    most = max(1, BUDGET // (2 * size))
    pairs = [(name, other) for i, name in enumerate(names) for other in names[i:]]
    return [pairs[start : start + most] for start in range(0, len(pairs), most)]


def _first_equal(key: tuple[str, int], matrices: Mapping[tuple[str, int], np.ndarray]) -> tuple[str, int]:
    """The first side's matrix of the same layer if it is identical: an untouched layer is compared once."""
    first = next(iter(matrices))[0]
    other = (first, key[1])
    return other if other in matrices and np.array_equal(matrices[other], matrices[key]) else key


def _averaged(
    x: np.ndarray, y: np.ndarray, groups: np.ndarray, measures: Sequence[str], seed: int
) -> dict[str, Estimate]:
    found = {}
    counts = np.bincount(groups).astype(np.float64)
    for name in AVERAGED:
        if name not in measures:
            continue
        cosines = row_cosines(x, y if name == "paired_cosine" else y[other_rows(groups, seed)], name)
        sums = np.bincount(groups, weights=cosines)
        rng = np.random.default_rng(seed)
        draws = rng.multinomial(len(counts), np.full(len(counts), 1 / len(counts)), size=RESAMPLES)
        means = (draws @ sums) / (draws @ counts)
        low, high = np.quantile(means, [0.025, 0.975])
        value = sums.sum() / counts.sum()
        # Rounding may leave a constant's mean and quantiles a few units in the last place apart.
        found[name] = Estimate(float(value), float(min(low, value)), float(max(high, value)), len(counts))
    return found


def _folded(
    x: np.ndarray, y: np.ndarray, groups: np.ndarray, measures: Sequence[str], seed: int, n_groups: int
) -> dict[str, Estimate]:
    wanted = [name for name in FOLDED if name in measures]
    if not wanted:
        return {}
    examples = int(groups.max()) + 1
    if examples < 8:
        raise MeasureError(
            f"{wanted[0]} was given {examples} examples; an interval over examples needs at least 8: give more texts."
        )
    folds = np.random.default_rng(seed).permutation(np.arange(examples) % min(n_groups, examples))
    layers, pairs = {"x": x}, [("x", "x")]
    if not np.array_equal(x, y):
        layers["y"] = y
        pairs += [("x", "y"), ("y", "y")]
    made, sizes = statistics(layers, pairs, groups, folds, wanted[0])
    xx = made["x", "x"]
    xy, yy = made.get(("x", "y"), xx), made.get(("y", "y"), xx)
    ranges = {measure.name: (measure.low, measure.high) for measure in MEASURES}
    return {name: _jackknife(FOLDED[name], xy, xx, yy, sizes, examples, *ranges[name]) for name in wanted}


def _jackknife(
    function: Callable[..., float], xy: Pair, xx: Pair, yy: Pair, sizes: Sizes, n: int, low: float, high: float
) -> Estimate:
    """Delete-group jackknife with a t interval, cut to the measure's range."""
    from scipy.stats import t

    value = function(xy, xx, yy, sizes)
    n_folds = len(sizes.powers)
    left = np.array([function(xy, xx, yy, sizes, fold) for fold in range(n_folds)])
    spread = np.sqrt((n_folds - 1) / n_folds * ((left - left.mean()) ** 2).sum())
    reach = float(t.ppf(0.975, n_folds - 1) * spread)
    return Estimate(value, max(low, value - reach), max(value, min(high, value + reach)), n)
