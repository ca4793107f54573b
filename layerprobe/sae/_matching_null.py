"""Which latents were lost and which are new, compared with two dictionaries that differ by chance alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Float, Int

from layerprobe.errors import MeasureError
from layerprobe.sae._matching import Matching

if TYPE_CHECKING:
    import pandas as pd

PERCENTILE = 5
"""A match below this percentile of the null counts as none."""
RESAMPLES = 2000
ROUNDING = 1e-6
"""How far a match must be below the null's percentile to count as none: equal dictionaries differ by rounding."""


@dataclass(frozen=True)
class NullComparison:
    """Latents without a match, by the standard of a dictionary that differs by chance alone.

    By construction about 5% of the null's pairs are below its 5th percentile: compare `lost_share` with
    `null_lost_share` and `new_share` with `null_new_share`, never with zero.
    """

    on: str
    """`cosine` (of decoder rows) or `correlation` (of activations)."""
    threshold: float
    """5th percentile of the null's pairs."""
    lost: tuple[int, ...]
    """Live latents of the first dictionary whose match is below the threshold, or that have none."""
    kept: tuple[int, ...]
    """The first dictionary's other live latents."""
    new: tuple[int, ...]
    """Live latents of the second dictionary whose match is below the threshold, or that have none."""
    lost_share: float
    """Of the first dictionary's live latents."""
    lost_low: float
    """Exact 95% interval (Clopper and Pearson) over latents, given these two trained dictionaries and this threshold: it
    does not include variation over seeds."""
    lost_high: float
    new_share: float
    """Of the second dictionary's live latents."""
    new_low: float
    new_high: float
    null_lost_share: float
    """Share of the live latents of the null's first dictionary that are lost by the same threshold."""
    null_new_share: float
    """Share of the live latents of the null's second dictionary that are new by the same threshold."""
    mean: float
    """Mean over the first dictionary's pairs; a latent without a partner counts among the lost, not here."""
    mean_low: float
    """95% percentile interval over 2,000 resamples of latents; likewise for the null and the difference."""
    mean_high: float
    null_mean: float
    null_low: float
    null_high: float
    difference: float
    """Match minus null match, over latents that have both, resampled together."""
    difference_low: float
    difference_high: float
    n: int
    """Live latents of the first dictionary."""
    n_other: int
    """Live latents of the second."""


def compare_to_null(
    matched: Matching, null: Matching, *, on: Literal["cosine", "correlation"] = "cosine", seed: int = 0
) -> NullComparison:
    """Determine which latents were lost and which are new, by a null that differs by chance alone.

    Args:
        matched: the first dictionary (base's) matched with the second (adapted's).
        null: the first dictionary matched with one trained on the same rows: continued from it in another order of rows
            if the second started from it, else trained from another start.
        on: the match to use.
        seed: seed of the resamples.

    Raises:
        MeasureError: if the first dictionary of the two or its rows differ, or they were not matched on `on`.
    """
    from scipy.stats import binomtest

    if len(matched.table) != len(null.table):
        raise MeasureError(
            f"compare_to_null was given matches of {len(matched.table)} and of {len(null.table)} latents; the first "
            "dictionary of both must be the same."
        )
    if not np.array_equal(matched.table["density"], null.table["density"], equal_nan=True):
        raise MeasureError(
            "The first dictionary has other densities in the match than in the null; match the same dictionary on the same "
            "rows both times."
        )
    for name, matching in (("match", matched), ("null", null)):
        if matching.table[on].isna().all():
            raise MeasureError(f"The {name} has no {on}; give match the activations of both sides, and equal widths.")
    threshold = float(np.nanpercentile(null.table[on], PERCENTILE))
    (lost, live), (new, live_other) = (_unmatched(table, on, threshold) for table in (matched.table, matched.reverse))
    (null_lost, null_live), (null_new, null_other) = (
        _unmatched(table, on, threshold) for table in (null.table, null.reverse)
    )
    n, n_other = len(live), len(live_other)
    lost_interval = binomtest(len(lost), n).proportion_ci(0.95)
    new_interval = binomtest(len(new), n_other).proportion_ci(0.95)
    pairs, null_pairs = (matching.table[on].to_numpy(dtype=np.float64) for matching in (matched, null))
    mean, mean_low, mean_high = _mean_interval(pairs, seed)
    null_mean, null_low, null_high = _mean_interval(null_pairs, seed)
    difference, difference_low, difference_high = _mean_interval(pairs - null_pairs, seed)
    return NullComparison(
        on=on,
        threshold=threshold,
        lost=tuple(map(int, lost)),
        kept=tuple(map(int, np.setdiff1d(live, lost))),
        new=tuple(map(int, new)),
        lost_share=len(lost) / n,
        lost_low=float(lost_interval.low),
        lost_high=float(lost_interval.high),
        new_share=len(new) / n_other,
        new_low=float(new_interval.low),
        new_high=float(new_interval.high),
        null_lost_share=len(null_lost) / len(null_live),
        null_new_share=len(null_new) / len(null_other),
        mean=mean,
        mean_low=mean_low,
        mean_high=mean_high,
        null_mean=null_mean,
        null_low=null_low,
        null_high=null_high,
        difference=difference,
        difference_low=difference_low,
        difference_high=difference_high,
        n=n,
        n_other=n_other,
    )


def _unmatched(table: pd.DataFrame, on: str, threshold: float) -> tuple[Int[np.ndarray, " k"], Int[np.ndarray, " n"]]:
    """Live latents without a match as good as the threshold, and all live latents."""
    live = table["live"].to_numpy()
    matched = table[on].to_numpy(dtype=np.float64) >= threshold - ROUNDING  # NaN, no partner, is not
    return np.flatnonzero(live & ~matched), np.flatnonzero(live)


def _mean_interval(values: Float[np.ndarray, " n"], seed: int) -> tuple[float, float, float]:
    """Mean, and its 95% percentile interval by the bootstrap."""
    from scipy.stats import bootstrap

    values = values[~np.isnan(values)]
    if len(values) < 2:
        return (float(values.mean()) if len(values) else float("nan"),) * 3
    rng = np.random.default_rng(seed)
    resampled = bootstrap((values,), np.mean, n_resamples=RESAMPLES, method="percentile", random_state=rng)
    low, high = resampled.confidence_interval
    return float(values.mean()), float(low), float(high)
