"""How much the accuracy of each method differs from that of the reference on the same examples."""

from __future__ import annotations

import numpy as np
import pandas as pd

from layerprobe.sufficiency._results import paired
from layerprobe.sufficiency._spread import simultaneous, spread


def differences(results: pd.DataFrame, *, reference: str = "full") -> pd.DataFrame:
    """Mean differences in accuracy, method less reference, with 95% intervals for each method and for all at once.

    Args:
        results: method, seed, example_id, correct; all methods on the same examples and seeds.
        reference: the method that the others are compared with.

    Returns:
        One row per method: `method`, `reference`, `accuracy`, `reference_accuracy`, `difference`, `ci_low` and `ci_high`
        (this method alone), `band_low` and `band_high` (all methods together: max-T, or Sidak's with three or more seeds),
        `se`, `df` (missing where the normal distribution is used), `disagreement` (share of predictions in which exactly one of the two is right), `n` (examples), `seeds`,
        `conditional_on_seeds`, `identical`. With fewer than three seeds, differences are averaged over seeds and the
        intervals hold for these seeds only (`conditional_on_seeds`); with three or more, examples and seeds are crossed
        random effects. The middle of an interval is slightly closer to 0 than the difference (Bonett and Price 2012).
        `identical` methods are right and wrong on the same examples as the reference.

    Raises:
        MeasureError: if the methods cannot be paired.
    """
    from scipy.stats import t

    joined = paired(results, reference)
    gaps, moments = joined.gaps, spread(joined.gaps)
    alone = t.ppf(0.975, moments.df) * moments.se
    together = simultaneous(moments, alpha=0.05) * moments.se
    return pd.DataFrame(
        {
            "method": joined.methods,
            "reference": reference,
            "accuracy": joined.correct.mean(axis=(1, 2)),
            "reference_accuracy": joined.truth.mean(),
            "difference": moments.mean,
            "ci_low": np.maximum(moments.centre - alone, -1),
            "ci_high": np.minimum(moments.centre + alone, 1),
            "band_low": np.maximum(moments.centre - together, -1),
            "band_high": np.minimum(moments.centre + together, 1),
            "se": moments.se,
            "df": np.nan if moments.conditional_on_seeds else moments.df,
            "disagreement": joined.disagreement,
            "n": joined.n,
            "seeds": len(joined.seeds),
            "conditional_on_seeds": moments.conditional_on_seeds,
            "identical": ~gaps.any(axis=(1, 2)),
        }
    )


def seed_differences(results: pd.DataFrame, *, reference: str = "full") -> pd.DataFrame:
    """The same differences for each seed, without intervals: a few seeds are shown, not resampled.

    Returns:
        One row per method and seed: `method`, `reference`, `seed`, `accuracy`, `reference_accuracy`, `difference`,
        `disagreement`, `n`.

    Raises:
        MeasureError: if the methods cannot be paired.
    """
    joined = paired(results, reference)
    methods, seeds = joined.methods, joined.seeds
    return pd.DataFrame(
        {
            "method": [method for method in methods for _ in seeds],
            "reference": reference,
            "seed": seeds * len(methods),
            "accuracy": joined.correct.mean(axis=1).ravel(),
            "reference_accuracy": np.tile(joined.truth.mean(axis=0), len(methods)),
            "difference": joined.gaps.mean(axis=1).ravel(),
            "disagreement": np.abs(joined.gaps).mean(axis=1).ravel(),
            "n": joined.n,
        }
    )
