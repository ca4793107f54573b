"""Which latents of a crosscoder the sides share, and which are exclusive to one side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from layerprobe.errors import ArgumentError, MeasureError
from layerprobe.sae._dictionary import row_batches
from layerprobe.sae._evaluation import FOLDS, check_codes
from layerprobe.sae.crosscoder import Crosscoder, paired
from layerprobe.stats import assign_folds, jackknife_error

if TYPE_CHECKING:
    import pandas as pd
    from scipy.sparse import csc_array

SHARED = (0.4, 0.6)
"""Centred Delta of a latent that both sides have equally."""
ROTATED = 0.5
"""Balanced latents whose two directions have a cosine below this are rotated."""
EXCLUSIVE = 0.1
"""A latent is exclusive where the weaker side is shown to contain less than this share of it."""
NU_RECONSTRUCTION = 0.5
SCALED_ROWS = 512
"""Rows whose products with active directions are in memory at once."""
LEVEL = 0.05
"""False-discovery rate of exclusive latents."""


def census(
    crosscoder: Crosscoder,
    base_rows: Any,
    adapted_rows: Any,
    codes: csc_array,
    groups: Int[np.ndarray, " n"] | None = None,
) -> pd.DataFrame:
    """Locate each latent between base and adapted, by its decoder norms and by latent scaling.

    Delta = 1/2 (1 + (|d_adapted| - |d_base|) / max(|d_adapted|, |d_base|)) is 0 for a latent of base alone, 1/2 for one
    that both sides have equally, 1 for one of adapted alone. Both sides have equal variance, so that a few features
    amplified on one side make all others look weaker there. The adapted side is therefore rescaled by the median of
    |d_adapted| / |d_base| over activations; `delta_centred` and all that follows are in these units. **This assumes that
    most activations are of shared latents**: where they are not, the median one is taken for shared.

    Norms alone mislead, so *latent scaling* (Minder et al. 2025, "Overcoming Sparsity Artifacts in Crosscoders") measures
    how much of the latent each side's rows contain: with f its activations and d its direction on the side where that is
    longer (the dominant side), the target y of a side is explained by beta = sum f <d, y> / (sum f^2 |d|^2), and nu = beta
    of the weaker side / beta of the dominant side. The error target is the side's row minus its reconstruction, with the
    latent's contribution on that side added back; the reconstruction target is the side's full reconstruction minus its
    bias. The interval of nu is a delete-group jackknife over 20 folds of whole examples.

    A latent's kind is the first that holds:

    * `dead`: active on none of these rows.
    * `rotated`: centred Delta within .4 to .6 and the two directions' cosine below .5: both sides have it, in different
      directions. (Latent scaling looks for one side's direction on the other, and would call it exclusive.)
    * `base_only`, `adapted_only`: the weaker side contains less than a tenth of it: "nu_error is at least .1" is rejected
      by a one-sided t-test with Benjamini-Hochberg at 5% over live latents, and nu_reconstruction is below .5.
    * `shared`: centred Delta within .4 to .6.
    * `amplified`: cosine at least .5, and the interval of nu_error lies between 0 and 1: both sides have it in one
      direction, one of them more.
    * `shifted`: all others, of which it is not shown how much the weaker side has; among them those that Delta alone would
      call exclusive.

    A latent that fits the noise of one side is exclusive to that side too, without being a feature: how many there are
    by chance is known from nulls alone (`exclusive_features`). A feature amplified more than ten times is called exclusive.

    Use rows that the crosscoder was not trained on, if there are enough: a latent that is active on few training rows
    fits their noise on both sides. The sums are computed on the host, where the sparse activations are.

    Args:
        crosscoder: as trained on these two sides.
        base_rows: (n, d); may be memory-mapped.
        adapted_rows: (n, d), the same tokens in the same order.
        codes: activations on these rows, by `Crosscoder.encode`.
        groups: example of each row. Default: each row is one.

    Returns:
        One row per latent: `latent`, `delta`, `delta_centred`, `nu_error` with `nu_error_low` and `nu_error_high`,
        `nu_reconstruction`, `nu_statistic` (t of nu_error less .1) and `p_exclusive` (its one-sided p-value), `cosine` (of
        its two directions), `firing_rate` (share of rows it is active on), `energy_share` (its share of the
        reconstruction's variance, both sides together, as trained: the covariance of what it writes with the whole; these
        sum to 1, and one may be slightly negative) and `kind`. What is undefined is NaN: the ratios of a dead latent, or
        of one whose dominant beta is not above 0; interval and p-value of a latent that is active in one fold alone.

    Raises:
        MeasureError: if shapes do not fit, or there is no row.
    """
    import pandas as pd
    from scipy.stats import false_discovery_control, t

    base_rows, adapted_rows = paired(base_rows, adapted_rows)
    check_codes(codes, len(base_rows), crosscoder.d_sae)
    if not len(base_rows):
        raise MeasureError("A census was given no rows; give both sides' rows of some examples.")
    active = np.diff(codes.indptr)
    live = active > 0
    norms = crosscoder.norms.astype(np.float64)
    # A dead latent's ratios are 0 / 0.
    with np.errstate(invalid="ignore", divide="ignore"):
        median = _median_ratio(norms, active)
        centred = norms / [1, median]
        delta, delta_centred = (0.5 * (1 + (z[:, 1] - z[:, 0]) / z.max(1)) for z in (norms, centred))
        directions = crosscoder.decoder.astype(np.float64)
        cosine = directions.prod(1).sum(1) / norms.prod(1)
        dominant = centred.argmax(1)
        numbers = np.arange(len(base_rows)) if groups is None else np.unique(groups, return_inverse=True)[1]
        folds = assign_folds(int(numbers.max()) + 1, FOLDS, seed=0)[numbers]
        sums = _scaling_sums(crosscoder, (base_rows, adapted_rows), codes, dominant, folds)
        # In centred units the adapted rows are divided by the median ratio, and so is their beta.
        sums[:, :, :, 1] /= median
        error, reconstruction = (_ratio(part.sum(0), dominant) for part in sums)
        spread = _jackknife_error(sums[0], dominant)
        n_folds = len(sums[0])
        statistic = (error - EXCLUSIVE) / spread
        p = t.cdf(statistic, n_folds - 1)
        reach = t.ppf(0.975, n_folds - 1) * spread
    table = pd.DataFrame(
        {
            "latent": np.arange(crosscoder.d_sae),
            "delta": delta,
            "delta_centred": delta_centred,
            "nu_error": error,
            "nu_error_low": error - reach,
            "nu_error_high": error + reach,
            "nu_reconstruction": reconstruction,
            "nu_statistic": statistic,
            "p_exclusive": p,
            "cosine": cosine,
            "firing_rate": active / len(base_rows),
            "energy_share": _energy_shares(directions, codes),
        }
    )
    tested = live & ~np.isnan(p)
    adjusted = np.ones(len(p))
    if tested.any():
        adjusted[tested] = false_discovery_control(p[tested])
    return table.assign(kind=_kinds(table, dominant, adjusted, live))


def _median_ratio(norms: Float[np.ndarray, "d_sae 2"], active: Int[np.ndarray, " d_sae"]) -> float:
    """Median of |d_adapted| / |d_base| over activations of latents that write on both sides; 1 if there is none.

    Over activations, since latents that are hardly ever active have arbitrary norms, and may be many.
    """
    both = (norms > 0).all(1) & (active > 0)
    if not both.any():
        return 1.0
    ratio = np.log(norms[both, 1] / norms[both, 0])
    ascending = np.argsort(ratio, kind="stable")
    total = np.cumsum(active[both][ascending])
    # The mean of the two middle values where the weights below are exactly half, as in an ordinary median.
    middle = [np.searchsorted(total, total[-1] / 2, side=side) for side in ("left", "right")]
    return float(np.exp(ratio[ascending][middle].mean()))


def _scaling_sums(
    crosscoder: Crosscoder,
    rows: tuple[np.ndarray, np.ndarray],
    codes: csc_array,
    dominant: Int[np.ndarray, " d_sae"],
    folds: Int[np.ndarray, " n"],
) -> Float[np.ndarray, "targets folds d_sae 2"]:
    """sum f <d, y> of each latent's dominant direction d, for both targets and both sides, per fold of examples."""
    d_sae, d = crosscoder.d_sae, crosscoder.d_in
    directions = crosscoder.decoder.astype(np.float64)
    longer = directions[np.arange(d_sae), dominant]
    # <dominant direction, direction of either side>: what the latent itself contributes to the error target.
    own = np.einsum("md,msd->ms", longer, directions)
    n_folds = int(folds.max()) + 1
    sums = np.zeros((2, n_folds, d_sae, 2))
    by_row = codes.astype(np.float64).tocsr()
    for start in range(0, len(folds), SCALED_ROWS):
        batch = slice(start, min(start + SCALED_ROWS, len(folds)))
        part = by_row[batch].tocoo()
        both = crosscoder.scaled(*rows, batch).cpu().numpy().astype(np.float64).reshape(-1, 2, d)
        rebuilt = (by_row[batch] @ directions.reshape(d_sae, -1)).reshape(-1, 2, d)
        missed = both - rebuilt - crosscoder.decoder_bias.astype(np.float64)
        for target, values in enumerate((missed, rebuilt)):
            for side in (0, 1):
                # Only active latents contribute.
                along = np.einsum("zd,zd->z", values[part.row, side], longer[part.col])
                if target == 0:
                    along += part.data * own[part.col, side]
                places = folds[batch][part.row] * d_sae + part.col
                added = np.bincount(places, part.data * along, minlength=n_folds * d_sae)
                sums[target, :, :, side] += added.reshape(n_folds, d_sae)
    return sums


def _jackknife_error(sums: Float[np.ndarray, "folds d_sae 2"], dominant: Int[np.ndarray, " d_sae"]) -> np.ndarray:
    """Standard error of nu by a delete-group jackknife; NaN where a latent has activations in one fold alone."""
    total = sums.sum(0)
    left_out = np.stack([_ratio(total - one, dominant) for one in sums])
    # Equal folds, as of rows without noise, have no spread but rounding.
    return np.maximum(jackknife_error(left_out.T), 1e-12)


def _energy_shares(directions: Float[np.ndarray, "d_sae 2 d"], codes: csc_array) -> Float[np.ndarray, " d_sae"]:
    codes = codes.astype(np.float64)
    totals, n = codes.sum(0), codes.shape[0]
    both = directions.reshape(len(directions), -1)
    centred = (codes.T @ codes).toarray() @ both - np.outer(totals, totals @ both) / n
    energy = (both * centred).sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return energy / energy.sum()


def _ratio(betas: Float[np.ndarray, "d_sae 2"], dominant: Int[np.ndarray, " d_sae"]) -> Float[np.ndarray, " d_sae"]:
    """Weaker side over dominant side. The denominator sum f^2 |d|^2 is common to both, and cancels."""
    each = np.arange(len(betas))
    denominator = betas[each, dominant]
    # Undefined for a latent whose direction is not in the rows of its dominant side.
    return betas[each, 1 - dominant] / np.where(denominator > 0, denominator, np.nan)


def _kinds(
    table: pd.DataFrame,
    dominant: Int[np.ndarray, " d_sae"],
    adjusted: Float[np.ndarray, " d_sae"],
    live: np.ndarray,
) -> np.ndarray:
    balanced = table["delta_centred"].between(*SHARED)
    exclusive = (adjusted <= LEVEL) & (table["nu_reconstruction"] < NU_RECONSTRUCTION)
    amplified = (table["cosine"] >= ROTATED) & (table["nu_error_low"] > 0) & (table["nu_error_high"] < 1)
    rotated = balanced & (table["cosine"] < ROTATED)
    kinds = [~live, rotated, exclusive & (dominant == 0), exclusive, balanced, amplified]
    names = ["dead", "rotated", "base_only", "adapted_only", "shared", "amplified"]
    return np.select(kinds, names, "shifted").astype(object)


# Nulls ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ExclusiveFeatures:
    """How many latents are exclusive to one side, compared with joint dictionaries of sides without exclusive features."""

    candidates: int
    """Exclusive latents of the census, of either side."""
    null_candidates: tuple[int, ...]
    """Those of each null."""
    null_high: float
    """95th percentile of the number in a further null, given these: the larger of the negative binomial's, which follows
    from a Poisson number with Jeffreys' prior of its rate, and, from two nulls on, Student's t, which also covers that
    training varies by more than Poisson. NaN without a null."""
    latents: tuple[int, ...]
    """Exclusive latents whose statistic is also beyond that of null latents (Benjamini-Hochberg at 5%, empirical
    p-values), if there are more candidates than `null_high`; else none."""
    fewest: int
    """With so many null latents, fewer exclusive ones cannot be shown. 0 without a null."""


def exclusive_features(table: pd.DataFrame, nulls: Sequence[pd.DataFrame]) -> ExclusiveFeatures:
    """Which exclusive latents of a census exceed what joint dictionaries find where no feature is exclusive.

    A latent that fits one side's noise has all properties of a feature of that side alone. Nulls have such latents and no
    exclusive feature: base against base with noise added to both sides (`noise_null`), or two adapted models that differ
    by the training seed. The empirical p-value of a latent is (1 + number of null latents with a statistic
    `nu_statistic` as low) / (1 + number of null latents), or the p-value of the census if that is larger.

    Args:
        table: by `census`.
        nulls: by `census`, of null dictionaries of the same size.
    """
    from scipy.stats import false_discovery_control, nbinom, t

    def candidates(one: pd.DataFrame) -> int:
        return int(one["kind"].isin(["base_only", "adapted_only"]).sum())

    number, counts = candidates(table), tuple(map(candidates, nulls))
    if not nulls:
        return ExclusiveFeatures(number, (), float("nan"), (), 0)
    n = len(nulls)
    high = float(nbinom.ppf(0.95, sum(counts) + 0.5, n / (n + 1)))
    if n > 1:
        high = max(high, float(np.mean(counts) + t.ppf(0.95, n - 1) * np.std(counts, ddof=1) * np.sqrt(1 + 1 / n)))
    live = table[table["p_exclusive"].notna() & (table["kind"] != "dead")]
    null = np.sort(np.concatenate([_statistics(one[one["kind"] != "dead"]) for one in nulls]))
    below = np.searchsorted(null, _statistics(live), side="right")
    p = np.maximum((1 + below) / (1 + len(null)), live["p_exclusive"])
    found = live[(false_discovery_control(p) <= LEVEL) & live["kind"].isin(["base_only", "adapted_only"])]
    latents = tuple(int(latent) for latent in found["latent"]) if number > high else ()
    fewest = int(np.ceil(len(live) / (LEVEL * (1 + len(null)))))
    return ExclusiveFeatures(number, counts, high, latents, max(fewest, int(high) + 1))


def _statistics(live: pd.DataFrame) -> np.ndarray:
    """The statistic of latents that can be exclusive; infinity for the others."""
    able = (live["nu_reconstruction"] < NU_RECONSTRUCTION) & (live["kind"] != "rotated")
    return live["nu_statistic"].where(able, np.inf).fillna(np.inf).to_numpy()


def residual_covariances(
    crosscoder: Crosscoder, base_rows: Any, adapted_rows: Any, codes: csc_array, table: pd.DataFrame
) -> Float[np.ndarray, "2 d d"]:
    """Covariance of what a joint dictionary leaves unexplained on either side, in units of base.

    Exclusive and shifted latents may have fitted noise, which then is missing from the residual. Its covariance is
    therefore scaled to the variance of what no other latent explains, and by the degrees of freedom that active latents take. (Their own directions are not added: noise that is strong in these
    would give latents there again, whether they are features or not.) Units are those in which the median live latent has
    one norm on both sides, as in `census`.

    Args:
        crosscoder: trained on base and adapted.
        base_rows: (n, d), on which it was not trained: it fits some of the noise of its training rows.
        adapted_rows: (n, d), the same tokens in the same order.
        codes: activations on these rows, by `Crosscoder.encode`.
        table: by `census`, on these rows.

    Raises:
        MeasureError: if shapes do not fit.
        ArgumentError: if there are no rows.
    """
    base_rows, adapted_rows = paired(base_rows, adapted_rows)
    n, d = base_rows.shape
    check_codes(codes, n, crosscoder.d_sae)
    if not n:
        raise ArgumentError("{base_rows} has no row; give both sides' rows of some examples.", "base_rows")
    decoder, by_row = crosscoder.decoder.reshape(crosscoder.d_sae, -1), codes.tocsr()
    # Latents that are shown on both sides fit features; all others may fit noise.
    doubtful = table["kind"].isin(["base_only", "adapted_only", "shifted"]).to_numpy()
    covariances, power = np.zeros((2, d, d)), np.zeros(2)
    for batch in row_batches(n):
        missed = crosscoder.scaled(base_rows, adapted_rows, batch).cpu().numpy() - by_row[batch] @ decoder
        missed = (missed.reshape(-1, 2, d) - crosscoder.decoder_bias).astype(np.float64)
        covariances += np.einsum("nsd,nse->sde", missed, missed, optimize=True) / n
        theirs = (by_row[batch][:, doubtful] @ decoder[doubtful]).reshape(-1, 2, d)
        power += ((missed + theirs) ** 2).sum((0, 2)) / n
    traces = np.trace(covariances, axis1=1, axis2=2)
    median = _median_ratio(crosscoder.norms.astype(np.float64), np.diff(codes.indptr))
    units = float(crosscoder.scales[0]) / np.array([1, median])
    # Each active latent is a coefficient fitted to its row, and takes up noise as one does in a regression.
    freedom = d / max(1.0, d - codes.nnz / n)
    return covariances * (freedom * units**2 * power / np.maximum(traces, 1e-300))[:, None, None]


def noise_null(
    base_rows: Any, covariances: Float[np.ndarray, "2 d d"], seed: int = 0
) -> tuple[Float[np.ndarray, "n d"], Float[np.ndarray, "n d"]]:
    """Two sides without an exclusive feature: base rows, with independent Gaussian noise added for either side.

    With the covariances of what a joint dictionary leaves unexplained (`residual_covariances`), both sides differ by as
    much noise as base and adapted do, and in nothing else.

    Args:
        base_rows: (n, d); may be memory-mapped.
        covariances: of the noise of either side.
        seed: of the noise.
    """
    sides, rng = [], np.random.default_rng(seed)
    for covariance in covariances:
        values, vectors = np.linalg.eigh(covariance)
        mix = (vectors * np.sqrt(np.maximum(values, 0))).astype(np.float32)
        rows = np.array(base_rows, dtype=np.float32)
        for batch in row_batches(len(rows)):
            rows[batch] += rng.standard_normal((len(rows[batch]), len(mix)), dtype=np.float32) @ mix.T
        sides.append(rows)
    return sides[0], sides[1]
