"""How much each method's accuracy differs from the reference's on the same examples."""

from __future__ import annotations

import numpy as np
import pandas as pd

from layerprobe.sufficiency._results import paired
from layerprobe.sufficiency._spread import simultaneous, spread


def differences(results: pd.DataFrame, *, reference: str = "full", draws: int = 10_000, seed: int = 0) -> pd.DataFrame:
    """Mean accuracy differences, method less reference, with 95% intervals: for each alone and for all at once.

    Args:
        results: method, seed, example_id, correct; all methods on the same examples and seeds.
        draws: of the largest studentised difference, for the simultaneous bands.
        seed: of these draws.

    Returns:
        One row a method: `method`, `reference`, `accuracy`, `reference_accuracy`, `difference`, `ci_low` and `ci_high` (this
        method alone), `band_low` and `band_high` (all methods together: max-T, or Sidak's with five or more seeds), `se`, `df`, `disagreement` (share of answers
        in which exactly one of the two is right), `n` (examples), `seeds`, `conditional_on_seeds`, `identical`.
        With fewer than five seeds differences are averaged over seeds and the intervals speak of these seeds only
        (`conditional_on_seeds`); with five or more, examples and seeds are both random, crossed effects.
        `identical` methods are right and wrong on the same examples as the reference: their difference and both intervals
        are exactly 0, because nothing here can tell how they would differ elsewhere.

    Raises:
        MeasureError: if the table cannot be joined, as `results` must.
    """
    from scipy.stats import t

    joined = paired(results, reference)
    gaps = joined.gaps
    known = spread(gaps)
    identical = ~gaps.any(axis=(1, 2))
    varied = known.se > 0
    reach = np.zeros(len(known.se))
    if varied.any():
        moving = spread(gaps[varied])
        reach[varied] = simultaneous(moving, alpha=0.05, draws=draws, seed=seed)
    alone = t.ppf(0.975, known.df)
    return pd.DataFrame(
        {
            "method": joined.methods,
            "reference": reference,
            "accuracy": joined.correct.mean(axis=(1, 2)),
            "reference_accuracy": joined.truth.mean(),
            "difference": known.mean,
            "ci_low": known.mean - alone * known.se,
            "ci_high": known.mean + alone * known.se,
            "band_low": known.mean - reach * known.se,
            "band_high": known.mean + reach * known.se,
            "se": known.se,
            "df": known.df,
            "disagreement": np.abs(gaps).mean(axis=(1, 2)),
            "n": joined.n,
            "seeds": len(joined.seeds),
            "conditional_on_seeds": known.conditional_on_seeds,
            "identical": identical,
        }
    )


def seed_differences(results: pd.DataFrame, *, reference: str = "full") -> pd.DataFrame:
    """The same differences seed by seed, as points: a few seeds are shown, never resampled.

    Returns:
        One row a method and seed: `method`, `reference`, `seed`, `accuracy`, `reference_accuracy`, `difference`,
        `disagreement`, `n`.

    Raises:
        MeasureError: if the table cannot be joined.
    """
    joined = paired(results, reference)
    rows = []
    for i, method in enumerate(joined.methods):
        for j, seed in enumerate(joined.seeds):
            gap = joined.gaps[i, :, j]
            rows.append(
                {
                    "method": method,
                    "reference": reference,
                    "seed": seed,
                    "accuracy": joined.correct[i, :, j].mean(),
                    "reference_accuracy": joined.truth[:, j].mean(),
                    "difference": gap.mean(),
                    "disagreement": np.abs(gap).mean(),
                    "n": joined.n,
                }
            )
    return pd.DataFrame(rows)
