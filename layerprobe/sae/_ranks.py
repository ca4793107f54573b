"""Ranks of sparse activations, what a sum of them does by chance, and false-discovery rates."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

MINIMUM_ACTIVE = 10
"""Examples that a latent must be active in to be judged."""


@dataclass(frozen=True)
class Ranks:
    """Ranks within groups, ties averaged, less the group's mean rank."""

    values: Float[np.ndarray, " entries"]
    """Centred rank of each entry."""
    zero: Float[np.ndarray, " groups"]
    """Centred rank of the group's members that are not among the entries: they tie at zero, below all entries."""
    squares: Float[np.ndarray, " groups"]
    """Sum over a group's members of their squared centred ranks; ties are thereby accounted for."""
    cubes: Float[np.ndarray, " groups"]
    """The same of third powers."""


def sparse_ranks(
    values: Float[np.ndarray, " entries"], group: Int[np.ndarray, " entries"], sizes: Int[np.ndarray, " groups"]
) -> Ranks:
    """Rank positive values within groups whose other members are all zero.

    Args:
        values: positive.
        group: group number of each value.
        sizes: members of each group, zeros included.
    """
    # The bits of positive floats stand in the order of the floats, so one sort of integers does for all groups.
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32).astype(np.int64)
    key = (group.astype(np.int64) << 32) | bits
    order = np.argsort(key)
    key = key[order]
    first = np.flatnonzero(np.concatenate([np.ones(min(len(key), 1), dtype=bool), key[1:] != key[:-1]]))
    tied = np.diff(np.append(first, len(key)))
    nonzero = np.bincount(group, minlength=len(sizes))
    zeros = sizes - nonzero
    offset = np.cumsum(nonzero) - nonzero
    # Places in the sorted whole, less the places of earlier groups, plus the zeros below.
    rank = np.empty(len(key))
    rank[order] = np.repeat(first + (tied - 1) / 2 + 1, tied)
    centred = rank + (zeros - offset - (sizes + 1) / 2)[group]
    zero = -nonzero / 2
    squares = np.bincount(group, centred**2, minlength=len(sizes)) + zeros * zero**2
    cubes = np.bincount(group, centred**3, minlength=len(sizes)) + zeros * zero**3
    return Ranks(centred, zero, squares, cubes)


def two_sided_p(z: Float[np.ndarray, "*shape"], skew: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """p of standardised sums of ranks: the normal approximation, or the Pearson type III one where its tail is heavier.

    Where a small class meets a rarely active latent, the sum is skewed and the normal tail far too light: 3 of 10 where
    .2 are expected has p = 1e-3, not 3e-10. A gamma distribution with the sum's own third moment follows that tail
    (Mielke and Berry 2007, "Permutation Methods", use it for permutation tests at large). Without skew, as with two
    classes of equal size, p is that of the normal approximation, and it is never smaller.

    Args:
        z: sums less their expectation, in standard deviations.
        skew: skewness of their null distribution.
    """
    from scipy.special import erfc, gammaincc

    size = np.abs(z)
    tail = erfc(size / np.sqrt(2)) / 2
    # In the light tail the normal approximation errs towards larger p, and stays.
    heavier = np.sign(z) * skew
    bent = heavier > 1e-4
    shape = 4 / heavier[bent] ** 2
    tail = np.array(tail)
    tail[bent] = np.maximum(tail[bent], gammaincc(shape, shape + size[bent] * np.sqrt(shape)))
    return np.minimum(2 * tail, 1)


def adjusted(p: Float[np.ndarray, " tests"]) -> Float[np.ndarray, " tests"]:
    """Smallest false-discovery rate at which each test is a discovery (Benjamini and Hochberg 1995)."""
    order = np.argsort(p)
    scaled = p[order] * len(p) / np.arange(1, len(p) + 1)
    lowest = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1)
    out = np.empty_like(lowest)
    out[order] = lowest
    return out


def threshold(p: Float[np.ndarray, " candidates"], tests: int, q: float) -> float:
    """Largest p that is a discovery at rate q among so many tests, of which those with p above q may be left out."""
    ranked = np.sort(p)
    passing = np.flatnonzero(ranked <= q * np.arange(1, len(ranked) + 1) / tests)
    return float(ranked[passing[-1]]) if len(passing) else -1.0
