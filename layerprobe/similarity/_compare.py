"""Comparison of two encoders layer by layer, with intervals over whole examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from layerprobe.errors import MeasureError
from layerprobe.progress import track
from layerprobe.similarity._arrays import checked, grouped
from layerprobe.similarity._paired import PairedRows
from layerprobe.similarity.measures import find_measures

if TYPE_CHECKING:
    import pandas as pd

DEFAULT = ("paired_cosine", "paired_cosine_baseline", "cka", "procrustes")


def compare(
    base: Mapping[int, Any],
    adapted: Mapping[int, Any],
    groups: Any,
    *,
    measures: Sequence[str] = DEFAULT,
    seed: int = 0,
    leave_out_undefined: bool = False,
) -> pd.DataFrame:
    """Similarity of two encoders at each layer, each value with a 95% interval over whole examples.

    Means over rows have a percentile bootstrap of examples (2,000 resamples). All other measures have a delete-group
    jackknife over 20 folds with Student's t: they would take an example that is drawn twice for signal. RSA and
    neighbourhoods, which need n x n matrices, are computed on a seeded sample of whole examples of at most 1,000 rows,
    linear predictivity of at most 4,000; pairs of rows of one example are left out.

    Args:
        base, adapted: layer -> rows x features, the same rows on both sides.
        groups: example of each row.
        measures: names of measures in `MEASURES`.
        seed: seed of the bootstrap, the folds, the samples and the baseline's pairs.
        leave_out_undefined: leave out a measure at layers where it is undefined (such as CCA with too few rows), and list
            it in `attrs["left_out"]` as (layer, measure, reason); otherwise this is an error.

    Returns:
        One row per layer and measure: `layer, measure, value, ci_low, ci_high, n, n_rows` (n counts examples).

    Raises:
        MeasureError: if a measure does not exist or is undefined, or the two sides do not fit each other.
    """
    import pandas as pd

    selected = find_measures(measures, "compare")
    if set(base) != set(adapted):
        raise MeasureError(
            f"compare: {{base}} has layers {sorted(base)} and {{adapted}} {sorted(adapted)}; pass the same layers.",
            "base",
            "adapted",
        )
    rows, left_out = [], []
    for layer in track(sorted(base), "comparing layers"):
        x, y = checked(base[layer], adapted[layer], f"compare, layer {layer}")
        pair = PairedRows.of(x, y, grouped(groups, len(x), "compare"), seed)
        for measure in selected:
            resampling = measure.resampling
            try:
                estimate = resampling.interval(measure, pair)
            except MeasureError as error:
                if not leave_out_undefined:
                    raise
                left_out.append((layer, measure.name, str(error)))
                continue
            n_rows = pair.sample(resampling.max_rows).n_rows
            rows.append((layer, measure.name, estimate.value, estimate.low, estimate.high, estimate.n, n_rows))
    table = pd.DataFrame(rows, columns=["layer", "measure", "value", "ci_low", "ci_high", "n", "n_rows"])
    table.attrs["left_out"] = left_out
    return table
