"""Which latents tell labels apart among texts of equal length."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from layerprobe.errors import MeasureError
from layerprobe.sae._ranks import MINIMUM_ACTIVE, sparse_ranks, threshold, two_sided_p

if TYPE_CHECKING:
    from scipy.sparse import csc_array

POOLINGS = ("max", "mean")
STRATUM = 20
"""Examples that a stratum of lengths has at least."""


@dataclass(frozen=True)
class LabelNull:
    """What the search for task latents finds when labels are permuted."""

    share: float
    """Share of judged latents that come out as task latents: mean over permutations."""
    high: float
    """Its 95th percentile."""
    any_share: float
    """Share of permutations with any task latent at all: at most the false-discovery rate, if the search is sound."""
    shares: Float[np.ndarray, " permutations"]
    """Share of each permutation."""


class Scores(NamedTuple):
    """Comparisons of classes with the rest: classes x latents of one pooling."""

    auroc: np.ndarray
    z: np.ndarray
    skew: np.ndarray


@dataclass(frozen=True)
class StratifiedRanks:
    """Ranks of one pooling within strata of length, weighted by 1 / (n + 1) of the stratum (van Elteren 1960)."""

    lift: csc_array
    """Weighted rank of each active example less that of the silent ones of its stratum: examples x latents."""
    zero: Float[np.ndarray, "strata latents"]
    """Weighted centred rank of silent examples."""
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
        # A latent with one value in each stratum, or a class that fills its strata, has nothing to be ranked.
        able = (spread > 0) & (scale > 0)
        safe = np.where(able, spread, 1)
        return Scores(
            np.where(able, 0.5 + total / np.where(scale > 0, scale, 1), np.nan),
            np.where(able, total / safe, np.nan),
            np.where(able, third / safe**3, np.nan),
        )


def class_counts(
    members: Bool[np.ndarray, "classes examples"], strata: Int[np.ndarray, " examples"]
) -> tuple[Float[np.ndarray, "classes strata"], Float[np.ndarray, " strata"]]:
    """Members of each class in each stratum, and the strata's sizes."""
    sizes = np.bincount(strata)
    ones = np.stack([np.bincount(strata, weights=row, minlength=len(sizes)) for row in members])
    return ones, sizes.astype(np.float64)


def length_strata(lengths: Int[np.ndarray, " examples"]) -> Int[np.ndarray, " examples"]:
    """Strata of neighbouring lengths: as narrow as lengths and at least 20 examples each allow."""
    distinct, number, counts = np.unique(lengths, return_inverse=True, return_counts=True)
    stratum = np.zeros(len(distinct), dtype=np.int64)
    current, held = 0, 0
    for i, count in enumerate(counts):
        if held >= STRATUM and counts[i:].sum() >= STRATUM:
            current, held = current + 1, 0
        stratum[i] = current
        held += count
    return stratum[number]


def compared_classes(labels: Int[np.ndarray, " examples"]) -> Int[np.ndarray, " classes"]:
    """Classes to set against the rest; of two only the second, since the first comparison would be its mirror.

    Raises:
        MeasureError: if fewer than two labels occur.
    """
    present = np.unique(labels)
    if len(present) < 2:
        raise MeasureError(
            f"The texts have {len(present)} label; give texts of at least two, for latents to tell apart."
        )
    return present[1:] if len(present) == 2 else present


def active_examples(
    codes: csc_array, example: Int[np.ndarray, " rows"]
) -> tuple[Int[np.ndarray, " pairs"], Int[np.ndarray, " pairs"], Float[np.ndarray, "2 pairs"]]:
    """Latent and example of each pair in which the one is active in the other, with its max and mean over tokens."""
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


def stratified_ranks(
    latent: Int[np.ndarray, " pairs"],
    example: Int[np.ndarray, " pairs"],
    pooled: Float[np.ndarray, "poolings pairs"],
    strata: Int[np.ndarray, " examples"],
    judged: Int[np.ndarray, " judged"],
) -> tuple[StratifiedRanks, ...]:
    """Ranks of the judged latents by each pooling of their activations, given where they are active."""
    from scipy.sparse import csc_array

    sizes = np.bincount(strata)
    n_strata, n_latents = len(sizes), len(judged)
    kept = np.isin(latent, judged)
    column, example = np.searchsorted(judged, latent[kept]), example[kept]
    group = column * n_strata + strata[example]
    weight = 1 / (sizes + 1.0)
    n = sizes.astype(np.float64)
    with np.errstate(divide="ignore"):
        second = np.where(n > 1, weight**2 / (n * (n - 1)), 0)
        third = np.where(n > 2, weight**3 / (n * (n - 1) * (n - 2)), 0)

    def ranked(values: np.ndarray) -> StratifiedRanks:
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

    return tuple(ranked(values[kept]) for values in pooled)


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
    and pooling, one false-discovery family, the floor on the effect.

    Args:
        codes: a dictionary's activations, of `sparse_codes`.
        example: example of each row.
        labels: label number of each example.
        permutations: how many.
        seed: of the permutations.
        effect: least |2 AUROC - 1|.
        q: false-discovery rate.

    Raises:
        MeasureError: if fewer than two labels occur, or lengths differ.
    """
    check_examples(codes.shape[0], example, labels)
    compared_classes(labels)
    strata = length_strata(np.bincount(example))
    latent, number, pooled = active_examples(codes, example)
    judged = np.flatnonzero(np.bincount(latent, minlength=codes.shape[1]) >= MINIMUM_ACTIVE)
    ranks = stratified_ranks(latent, number, pooled, strata, judged)
    return null_of(ranks, labels, strata, permutations, seed, effect, q)


def null_of(
    ranks: tuple[StratifiedRanks, ...],
    labels: Int[np.ndarray, " examples"],
    strata: Int[np.ndarray, " examples"],
    permutations: int,
    seed: int,
    effect: float,
    q: float,
) -> LabelNull:
    """`label_null` of activations that are ranked already."""
    if not permutations or not ranks[0].zero.shape[1]:
        return LabelNull(np.nan, np.nan, np.nan, np.full(permutations, np.nan))
    compared = compared_classes(labels)
    dense = [pooling.lift.astype(np.float32).toarray() for pooling in ranks]
    shares = np.concatenate(
        [
            _shares(ranks, dense, drawn[:, None, :] == compared[:, None], strata, effect, q)
            for drawn in _draws(labels, strata, permutations, seed)
        ]
    )
    return LabelNull(float(shares.mean()), float(np.quantile(shares, 0.95)), float((shares > 0).mean()), shares)


def _draws(labels: np.ndarray, strata: np.ndarray, permutations: int, seed: int) -> Iterator[np.ndarray]:
    """Labels permuted within strata, in blocks of 50 permutations."""
    rng = np.random.default_rng(seed)
    order = np.argsort(strata, kind="stable")
    for start in range(0, permutations, 50):
        noise = rng.random((min(50, permutations - start), len(labels)))
        # Sorting by stratum and then by noise shuffles the members of each stratum.
        shuffled = np.argsort(strata + noise, axis=1)
        drawn = np.empty(noise.shape, dtype=labels.dtype)
        drawn[:, order] = labels[shuffled]
        yield drawn


def _shares(
    ranks: tuple[StratifiedRanks, ...],
    dense: list[np.ndarray],
    members: Bool[np.ndarray, "draws classes examples"],
    strata: np.ndarray,
    effect: float,
    q: float,
) -> np.ndarray:
    """Share of task latents under each labelling; all have the same counts in each stratum."""
    from scipy.special import ndtri

    ones, sizes = class_counts(members[0], strata)
    flat = members.reshape(-1, members.shape[-1]).astype(np.float32)
    fields = []
    for pooling, lift in zip(ranks, dense, strict=True):
        total = (flat @ lift).reshape(*members.shape[:2], -1)
        fields.append(pooling.standardised(total + ones @ pooling.zero, ones, sizes))
    z = np.stack([np.broadcast_to(f.z, f.auroc.shape) for f in fields], axis=1)
    skew = np.stack([np.broadcast_to(f.skew, f.auroc.shape) for f in fields], axis=1)
    auroc = np.stack([f.auroc for f in fields], axis=1)
    tests = int(np.isfinite(z[0]).sum())
    shares = np.zeros(len(members))
    for i in range(len(members)):
        # p is never below the normal approximation's, so only these can have p <= q.
        at = np.nonzero(np.abs(z[i]) >= -ndtri(q / 2))
        p = two_sided_p(z[i][at], skew[i][at])
        found = (p <= threshold(p, tests, q)) & (np.abs(2 * auroc[i][at] - 1) >= effect)
        shares[i] = len(np.unique(at[-1][found])) / z.shape[-1]
    return shares


def check_examples(n_rows: int, example: np.ndarray, labels: np.ndarray) -> None:
    """Make sure that rows, examples and labels fit.

    Raises:
        MeasureError: naming what does not.
    """
    if len(example) != n_rows:
        raise MeasureError(f"There are {n_rows} rows of activations and {len(example)} tokens; give one token a row.")
    counts = np.bincount(example) if len(example) else np.zeros(0, dtype=np.int64)
    if len(counts) != len(labels):
        raise MeasureError(
            f"The tokens are of examples 0 to {len(counts) - 1} and there are {len(labels)} labels; give one label an example."
        )
    if (counts == 0).any():
        raise MeasureError(f"Example {int(np.flatnonzero(counts == 0)[0])} has no row; number examples from 0 on.")
