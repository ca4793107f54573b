"""Ranks of sparse activations, and p-values of sums of ranks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

MINIMUM_ACTIVE = 10
"""Examples that a latent must be active in to be tested."""


@dataclass(frozen=True)
class Ranks:
    """Ranks within groups, ties averaged, minus the mean rank of the group."""

    values: Float[np.ndarray, " entries"]
    """Centred rank of each entry."""
    zero: Float[np.ndarray, " groups"]
    """Centred rank of the group's members that are not among the entries: they tie at zero, below all entries."""
    squares: Float[np.ndarray, " groups"]
    """Sum over a group's members of their squared centred ranks; ties are thereby accounted for."""
    cubes: Float[np.ndarray, " groups"]
    """Sum of their cubes."""


def sparse_ranks(
    values: Float[np.ndarray, " entries"], group: Int[np.ndarray, " entries"], sizes: Int[np.ndarray, " groups"]
) -> Ranks:
    """Rank positive values within groups whose other members are all zero.

    Args:
        values: positive.
        group: group number of each value.
        sizes: members of each group, zeros included.
    """
    # The bits of positive floats are ordered as the floats are, so one sort of integers ranks all groups.
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32).astype(np.int64)
    key = (group.astype(np.int64) << 32) | bits
    order = np.argsort(key)
    key = key[order]
    first = np.flatnonzero(np.concatenate([np.ones(min(len(key), 1), dtype=bool), key[1:] != key[:-1]]))
    tied = np.diff(np.append(first, len(key)))
    nonzero = np.bincount(group, minlength=len(sizes))
    zeros = sizes - nonzero
    offset = np.cumsum(nonzero) - nonzero
    # Positions in the sorted whole, minus those of earlier groups, plus the zeros below.
    rank = np.empty(len(key))
    rank[order] = np.repeat(first + (tied - 1) / 2 + 1, tied)
    centred = rank + (zeros - offset - (sizes + 1) / 2)[group]
    zero = -nonzero / 2
    squares = np.bincount(group, centred**2, minlength=len(sizes)) + zeros * zero**2
    cubes = np.bincount(group, centred**3, minlength=len(sizes)) + zeros * zero**3
    return Ranks(centred, zero, squares, cubes)


def two_sided_p(z: Float[np.ndarray, "*shape"], skew: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """p of standardised sums of ranks: the normal approximation, or Pearson's type III where its tail is heavier.

    For a small class and a rarely active latent, the sum is skewed and the normal tail far too light: 3 of 10 where .2
    are expected has p = 1e-3, not 3e-10. A gamma distribution with the third moment of the sum follows that tail (Mielke
    and Berry 2007, "Permutation Methods"). Without skew, as for two classes of equal size, p is that of the normal
    approximation; it is never smaller.

    Args:
        z: sums minus their expectation, in standard deviations.
        skew: skewness of their null distribution.
    """
    from scipy.special import erfc, gammaincc

    size = np.abs(z)
    tail = erfc(size / np.sqrt(2)) / 2
    # In the light tail the normal approximation errs towards larger p, and is kept.
    heavier = np.sign(z) * skew
    skewed = heavier > 1e-4
    shape = 4 / heavier[skewed] ** 2
    tail = np.array(tail)
    tail[skewed] = np.maximum(tail[skewed], gammaincc(shape, shape + size[skewed] * np.sqrt(shape)))
    return np.minimum(2 * tail, 1)
