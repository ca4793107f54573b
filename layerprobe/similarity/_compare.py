"""Comparison of two encoders layer by layer, with intervals over whole examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from layerprobe.errors import MeasureError
from layerprobe.progress import track
from layerprobe.similarity._arrays import checked, grouped
from layerprobe.similarity._paired import PairedRows
from layerprobe.similarity.measures import find_measures
from layerprobe.stats import jackknife_error, simultaneous_bands

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ["layer", "measure", "value", "ci_low", "ci_high", "band_low", "band_high", "n", "n_rows"]
DEFAULT = ("paired_cosine", "paired_cosine_baseline", "cka", "procrustes")


def compare(
    base: Mapping[int, Any],
    adapted: Mapping[int, Any],
    groups: Any | Mapping[int, Any],
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
        base, adapted: layer -> rows x features, the same rows on both sides; arrays, or tensors or `DeviceRows` on a device
            with float64, where they are then compared.
        groups: example of each row; or layer -> example of each row, where layers have different rows.
        measures: names of measures in `MEASURES`.
        seed: seed of the bootstrap, the folds, the samples and the baseline's pairs.
        leave_out_undefined: leave out a measure at layers where it is undefined (such as CCA with too few rows), and list
            it in `attrs["left_out"]` as (layer, measure, reason); otherwise this is an error.

    Returns:
        One row per layer and measure: `layer, measure, value, ci_low, ci_high, band_low, band_high, n, n_rows` (n counts
        examples). The band contains the true values of a measure at all these layers at once with 95% probability
        (`layerprobe.stats.simultaneous_bands` on jackknife errors; missing with fewer than two folds).
        `attrs["folds"]` lists (layer, measure, fold, value without this fold of examples); calls with the same examples and
        seed share their folds.

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
    rows, left_out, without = [], [], {}
    for layer in track(sorted(base), "comparing layers"):
        x, y = checked(base[layer], adapted[layer], f"compare, layer {layer}", on_device=True)
        pair = PairedRows.of(
            x, y, grouped(groups[layer] if isinstance(groups, Mapping) else groups, len(x), "compare"), seed
        )
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
            ends = estimate.low, estimate.high, np.nan, np.nan
            rows.append((layer, measure.name, estimate.value, *ends, estimate.n, n_rows))
            if estimate.left_out is not None:
                without[layer, measure.name] = estimate.left_out
    table = pd.DataFrame(rows, columns=COLUMNS)
    for measure in selected:
        of_measure = table[table.measure == measure.name]
        if len(of_measure) and all((layer, measure.name) in without for layer in of_measure.layer):
            folds = np.stack([without[layer, measure.name] for layer in of_measure.layer])
            bands = simultaneous_bands(
                of_measure.value.to_numpy(), jackknife_error(folds), folds.shape[1] - 1, *measure.range
            )
            table.loc[of_measure.index, "band_low"], table.loc[of_measure.index, "band_high"] = bands.low, bands.high
    table.attrs["left_out"] = left_out
    table.attrs["folds"] = [
        (layer, measure, fold, float(value))
        for (layer, measure), values in without.items()
        for fold, value in enumerate(values)
    ]
    return table
