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
    tables = {"lost": matched.table, "new": matched.reverse, "null_lost": null.table, "null_new": null.reverse}
    live = {name: np.flatnonzero(table["live"]) for name, table in tables.items()}
    gone = {name: _unmatched(table, on, threshold) for name, table in tables.items()}
    shares = {f"{name}_share": len(gone[name]) / len(live[name]) for name in tables}
    for name in ("lost", "new"):
        interval = binomtest(len(gone[name]), len(live[name])).proportion_ci(0.95)
        shares |= {f"{name}_low": float(interval.low), f"{name}_high": float(interval.high)}
    pairs, null_pairs = (matching.table[on].to_numpy(dtype=np.float64) for matching in (matched, null))
    means: dict[str, float] = {}
    for name, prefix, values in (
        ("mean", "mean", pairs),
        ("null_mean", "null", null_pairs),
        ("difference", "difference", pairs - null_pairs),
    ):
        means[name], means[f"{prefix}_low"], means[f"{prefix}_high"] = _mean_interval(values, seed)
    return NullComparison(
        on=on,
        threshold=threshold,
        lost=tuple(gone["lost"].tolist()),
        kept=tuple(np.setdiff1d(live["lost"], gone["lost"]).tolist()),
        new=tuple(gone["new"].tolist()),
        **shares,
        **means,
        n=len(live["lost"]),
        n_other=len(live["new"]),
    )


def _unmatched(table: pd.DataFrame, on: str, threshold: float) -> Int[np.ndarray, " unmatched"]:
    """Live latents without a match as good as the threshold."""
    matched = table[on].to_numpy(dtype=np.float64) >= threshold - ROUNDING  # NaN, no partner, is not
    return np.flatnonzero(table["live"] & ~matched)


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
