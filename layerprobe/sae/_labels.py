"""Which latents distinguish labels among examples of equal length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from layerprobe.errors import MeasureError
from layerprobe.sae._ranks import MINIMUM_ACTIVE, sparse_ranks, two_sided_p
from layerprobe.stats import length_strata, permuted_labels

if TYPE_CHECKING:
    from scipy.sparse import csc_array

POOLINGS = ("max", "mean")
DRAWS = 50
"""Permutations tested at a time."""


@dataclass(frozen=True)
class LabelNull:
    """Task latents under permuted labels."""

    share: float
    """Share of tested latents that come out as task latents: mean over permutations."""
    high: float
    """Its 95th percentile."""
    any_share: float
    """Share of permutations with any task latent: at most the false-discovery rate if the search is valid."""
    shares: Float[np.ndarray, " permutations"]
    """Share under each permutation."""


class Scores(NamedTuple):
    """Comparisons of classes with the rest: classes x latents of one pooling."""

    auroc: np.ndarray
    z: np.ndarray
    skew: np.ndarray


@dataclass(frozen=True)
class StratifiedRanks:
    """Ranks of one pooling within strata of length, weighted by 1 / (n + 1) of the stratum (van Elteren 1960)."""

    lift: csc_array
    """Weighted rank of each active example minus that of the inactive ones of its stratum: examples x latents."""
    zero: Float[np.ndarray, "strata latents"]
    """Weighted centred rank of inactive examples."""
    squares: Float[np.ndarray, "strata latents"]
    cubes: Float[np.ndarray, "strata latents"]

    def scores(self, members: Bool[np.ndarray, "classes examples"], strata: Int[np.ndarray, " examples"]) -> Scores:
        """Each class against the rest."""
        ones, sizes = class_counts(members, strata)
        total = (self.lift.T @ members.T.astype(np.float64)).T + ones @ self.zero
        return self.standardised(total, ones, sizes)

    def standardised(
        self, total: np.ndarray, ones: Float[np.ndarray, "classes strata"], sizes: Float[np.ndarray, " strata"]
    ) -> Scores:
        """AUROC, z and skewness of weighted rank sums of classes with so many members in each stratum."""
        pairs = ones * (sizes - ones)
        spread = np.sqrt(pairs @ self.squares)
        third = (pairs * (sizes - 2 * ones)) @ self.cubes
        scale = (pairs / (sizes + 1)).sum(1)[:, None]
        # Undefined for a latent with one value in each stratum, or a class that fills its strata.
        defined = (spread > 0) & (scale > 0)
        safe = np.where(defined, spread, 1)
        return Scores(
            np.where(defined, 0.5 + total / np.where(scale > 0, scale, 1), np.nan),
            np.where(defined, total / safe, np.nan),
            np.where(defined, third / safe**3, np.nan),
        )


@dataclass(frozen=True)
class RankedExamples:
    """Activations pooled over each example's tokens, and ranked within strata of length."""

    latent: Int[np.ndarray, " pairs"]
    """Latent of each pair of a latent and an example that it is active in."""
    example: Int[np.ndarray, " pairs"]
    strata: Int[np.ndarray, " examples"]
    active: Int[np.ndarray, " latents"]
    """Examples that each latent is active in."""
    judged: Int[np.ndarray, " judged"]
    """Latents that are active in enough examples to be tested."""
    poolings: tuple[StratifiedRanks, ...]
    """Ranks of the judged latents, by pooling."""


def rank_examples(
    codes: csc_array, example: Int[np.ndarray, " rows"], labels: Int[np.ndarray, " examples"]
) -> RankedExamples:
    """Pool activations over examples, and rank them within strata of length.

    Raises:
        MeasureError: if rows, examples and labels do not fit, or fewer than two labels occur.
    """
    lengths = check_rows(codes.shape[0], example, labels)
    strata = length_strata(lengths)
    latent, number, pooled = active_examples(codes, example)
    active = np.bincount(latent, minlength=codes.shape[1])
    judged = np.flatnonzero(active >= MINIMUM_ACTIVE)
    kept = np.isin(latent, judged)
    column = np.searchsorted(judged, latent[kept])
    poolings = tuple(_stratified(values[kept], column, number[kept], strata, len(judged)) for values in pooled)
    return RankedExamples(latent, number, strata, active, judged, poolings)


def check_rows(
    n_rows: int, example: Int[np.ndarray, " rows"], labels: Int[np.ndarray, " examples"]
) -> Int[np.ndarray, " examples"]:
    """Number of rows of each example.

    Raises:
        MeasureError: if rows, examples and labels do not fit, or fewer than two labels occur.
    """
    if len(example) != n_rows:
        raise MeasureError(f"There are {n_rows} rows of activations and {len(example)} tokens; give one token per row.")
    lengths = np.bincount(example) if len(example) else np.zeros(0, dtype=np.int64)
    if len(lengths) != len(labels):
        raise MeasureError(
            f"The tokens are of examples 0 to {len(lengths) - 1} and there are {len(labels)} labels; give one label per "
            "example."
        )
    if (lengths == 0).any():
        raise MeasureError(f"Example {int(np.flatnonzero(lengths == 0)[0])} has no row; number examples from 0.")
    compared_classes(labels)
    return lengths


def class_counts(
    members: Bool[np.ndarray, "classes examples"], strata: Int[np.ndarray, " examples"]
) -> tuple[Float[np.ndarray, "classes strata"], Float[np.ndarray, " strata"]]:
    """Members of each class in each stratum, and the sizes of the strata."""
    sizes = np.bincount(strata)
    ones = np.stack([np.bincount(strata, weights=row, minlength=len(sizes)) for row in members])
    return ones, sizes.astype(np.float64)


def compared_classes(labels: Int[np.ndarray, " examples"]) -> Int[np.ndarray, " classes"]:
    """Classes to compare with the rest; of two only the second, since the first comparison would mirror it.

    Raises:
        MeasureError: if fewer than two labels occur.
    """
    present = np.unique(labels)
    if len(present) < 2:
        raise MeasureError(f"The examples have {len(present)} label; give examples of at least two.")
    return present[1:] if len(present) == 2 else present


def active_examples(
    codes: csc_array, example: Int[np.ndarray, " rows"]
) -> tuple[Int[np.ndarray, " pairs"], Int[np.ndarray, " pairs"], Float[np.ndarray, "2 pairs"]]:
    """Latent and example of each pair in which the latent is active, with its max and mean over the tokens."""
    lengths = np.bincount(example)
    latent = np.repeat(np.arange(codes.shape[1]), np.diff(codes.indptr))
    key = latent * len(lengths) + example[codes.indices]
    values = codes.data
    if len(key) and (np.diff(key) < 0).any():
        order = np.argsort(key, kind="stable")
        key, values = key[order], values[order]
    first = np.flatnonzero(np.concatenate([np.ones(min(len(key), 1), dtype=bool), np.diff(key) > 0]))
    latent, numbers = np.divmod(key[first], len(lengths))
    if not len(first):
        return latent, numbers, np.zeros((2, 0))
    sums = np.add.reduceat(values.astype(np.float64), first)
    return latent, numbers, np.stack([np.maximum.reduceat(values, first).astype(np.float64), sums / lengths[numbers]])


def _stratified(
    values: np.ndarray, column: np.ndarray, example: np.ndarray, strata: np.ndarray, n_latents: int
) -> StratifiedRanks:
    """Ranks of one pooling, given where latents are active."""
    from scipy.sparse import csc_array

    sizes = np.bincount(strata)
    n_strata, n = len(sizes), sizes.astype(np.float64)
    group = column * n_strata + strata[example]
    weight = 1 / (n + 1)
    with np.errstate(divide="ignore"):
        second = np.where(n > 1, weight**2 / (n * (n - 1)), 0)
        third = np.where(n > 2, weight**3 / (n * (n - 1) * (n - 2)), 0)
    ranks = sparse_ranks(values, group, np.tile(sizes, n_latents))

    def by_stratum(sums: np.ndarray, weights: np.ndarray) -> np.ndarray:
        return sums.reshape(n_latents, n_strata).T * weights[:, None]

    lift = (ranks.values - ranks.zero[group]) * weight[strata[example]]
    pointers = np.searchsorted(column, np.arange(n_latents + 1))
    return StratifiedRanks(
        csc_array((lift, example, pointers), shape=(len(strata), n_latents)),
        by_stratum(ranks.zero, weight),
        by_stratum(ranks.squares, second),
        by_stratum(ranks.cubes, third),
    )


def label_null(
    codes: csc_array,
    example: Int[np.ndarray, " rows"],
    labels: Int[np.ndarray, " examples"],
    *,
    permutations: int = 200,
    seed: int = 0,
    effect: float = 0.2,
    q: float = 0.05,
) -> LabelNull:
    """Repeat the search for task latents with labels permuted among examples of one stratum of length.

    Activations are ranked once, and each permutation goes through the whole procedure of `associations`: every class
    and pooling, one false-discovery family, the threshold on the effect.

    Args:
        codes: a dictionary's activations, by `encode`.
        example: example of each row.
        labels: label number of each example.
        permutations: number of permutations.
        seed: seed of the permutations.
        effect: least |2 AUROC - 1|.
        q: false-discovery rate.

    Raises:
        MeasureError: if rows, examples and labels do not fit, or fewer than two labels occur.
    """
    ranked = rank_examples(codes, example, labels)
    if not permutations or not len(ranked.judged):
        return LabelNull(np.nan, np.nan, np.nan, np.full(permutations, np.nan))
    compared = compared_classes(labels)
    dense = [pooling.lift.astype(np.float32).toarray() for pooling in ranked.poolings]
    shares = np.concatenate(
        [
            _shares(ranked, dense, drawn[:, None, :] == compared[:, None], effect, q)
            for drawn in permuted_labels(labels, ranked.strata, permutations, seed, block=DRAWS)
        ]
    )
    return LabelNull(float(shares.mean()), float(np.quantile(shares, 0.95)), float((shares > 0).mean()), shares)


def _shares(
    ranked: RankedExamples,
    dense: list[np.ndarray],
    members: Bool[np.ndarray, "draws classes examples"],
    effect: float,
    q: float,
) -> np.ndarray:
    """Share of task latents under each labelling; all have the same counts in each stratum."""
    from scipy.special import ndtri
    from scipy.stats import false_discovery_control

    ones, sizes = class_counts(members[0], ranked.strata)
    flat = members.reshape(-1, members.shape[-1]).astype(np.float32)
    fields = []
    for pooling, lift in zip(ranked.poolings, dense, strict=True):
        total = (flat @ lift).reshape(*members.shape[:2], -1)
        fields.append(pooling.standardised(total + ones @ pooling.zero, ones, sizes))
    auroc, z, skew = (
        np.stack([np.broadcast_to(part, field.auroc.shape) for part, field in zip(parts, fields, strict=True)], axis=1)
        for parts in zip(*fields, strict=True)
    )
    tests = int(np.isfinite(z[0]).sum())
    shares = np.zeros(len(members))
    for i in range(len(members)):
        # p is never below the normal approximation's, so only these can have p <= q. Leaving out the others, which
        # come last in the order of p, divides Benjamini and Hochberg's factor by the share of tests that is left.
        able = np.nonzero(np.abs(z[i]) >= -ndtri(q / 2))
        p = two_sided_p(z[i][able], skew[i][able])
        if len(p):
            discovered = (false_discovery_control(p) * (tests / len(p)) <= q) & (
                np.abs(2 * auroc[i][able] - 1) >= effect
            )
            shares[i] = len(np.unique(able[-1][discovered])) / z.shape[-1]
    return shares
