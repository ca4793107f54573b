"""The largest activations of a batch or of each row: the sets of `torch.topk`, several times faster on a CPU."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Integer

SAMPLED = 16_384
MARGIN = 1.2
GROUPS_PER_CHOSEN = 3


def largest_of_rows(values: Float[torch.Tensor, "n m"], k: int) -> Int[torch.Tensor, " chosen"]:
    """Flat positions, in order, of the k largest values of each row that are above zero.

    The same set as `torch.topk` by row and a ReLU. On a CPU, of equal values the leftmost are taken.
    """
    n, m = values.shape
    if values.device.type != "cpu":
        top = values.topk(min(k, m), dim=1, sorted=False)
        positions = top.indices + torch.arange(n, device=values.device)[:, None] * m
        return positions[top.values > 0].sort().values
    array = values.numpy()
    least = np.finfo(array.dtype).smallest_subnormal
    found = _where(array >= np.maximum(_row_bounds(values, k), least))
    rows = found // m
    counts = np.bincount(rows, minlength=n)
    if not len(found) or counts.max() <= k:
        return torch.from_numpy(found)
    starts = np.cumsum(counts) - counts
    candidates = array.reshape(-1)[found]
    padded = _padded(candidates, rows, starts)
    last = padded.shape[1] - k
    border = np.partition(padded, last, axis=1)[rows, last]
    kept = candidates >= border
    if (np.bincount(rows[kept], minlength=n) > k).any():
        above, tied = candidates > border, candidates == border
        room = k - np.bincount(rows[above], minlength=n)
        rank = np.concatenate([[0], np.cumsum(tied)])
        kept = above | (tied & (rank[1:] - rank[starts[rows]] <= room[rows]))
    return torch.from_numpy(found[kept])


def kth_largest_of_columns(values: Float[np.ndarray, "m n"], k: int) -> Float[np.ndarray, " n"]:
    """The k-th largest value of each column: that of `np.partition`, several times faster if k is a small share of m."""
    m, n = values.shape
    size = m // (GROUPS_PER_CHOSEN * k)
    if size < 2:
        return np.partition(values, m - k, axis=0)[m - k]
    # The k-th largest among maxima of disjoint groups is a bound that about k values of a column reach.
    maxima = values[: size * GROUPS_PER_CHOSEN * k].reshape(size, -1, n).max(0)
    bounds = np.partition(np.ascontiguousarray(maxima.T), -k, axis=1)[:, -k]
    found = _where(values >= bounds)
    columns = (found % n).astype(np.min_scalar_type(n))
    order = np.argsort(columns, kind="stable")
    columns, counts = columns[order], np.bincount(columns, minlength=n)
    padded = _padded(values.reshape(-1)[found[order]], columns, np.cumsum(counts) - counts)
    return np.partition(padded, -k, axis=1)[:, -k]


def largest_of_batch(values: Float[torch.Tensor, "n m"], count: int) -> Int[torch.Tensor, " chosen"]:
    """Flat positions, in order, of the `count` largest values of all that are above zero.

    The same set as `torch.topk` over the flattened batch and a ReLU. On a CPU, of equal values the first are taken.
    """
    if values.device.type != "cpu":
        top = values.reshape(-1).topk(min(count, values.numel()), sorted=False)
        return top.indices[top.values > 0].sort().values
    flat = values.numpy().reshape(-1)
    if count <= 0:
        return torch.zeros(0, dtype=torch.long)
    positions = _where(flat >= max(_lower_bound(flat, count), np.finfo(flat.dtype).smallest_subnormal))
    if len(positions) <= count:
        # Fewer are above zero, or the bound was too high: without it.
        positions = _where(flat > 0)
    if len(positions) > count:
        candidates = flat[positions]
        border = np.partition(candidates, len(candidates) - count)[len(candidates) - count]
        kept = candidates >= border
        if kept.sum() > count:
            tied = candidates == border
            kept &= ~tied | (np.cumsum(tied) <= count - int((candidates > border).sum()))
        positions = positions[kept]
    return torch.from_numpy(positions)


def nth_largest(values: Float[torch.Tensor, "n m"], n: int) -> Float[torch.Tensor, ""]:
    """The n-th largest of non-negative values; 0 if fewer are above zero."""
    chosen = values.reshape(-1)[largest_of_batch(values, n)]
    return chosen.min() if len(chosen) == n else values.new_zeros(())


def _row_bounds(values: Float[torch.Tensor, "n m"], k: int) -> Float[np.ndarray, "n 1"]:
    """For each row, a value that its k-th largest is not below: the k-th largest among maxima of disjoint groups.

    Each of k groups has a value that is at least as large, so the bound holds for all values; few others exceed it.
    """
    n, m = values.shape
    groups = GROUPS_PER_CHOSEN * k
    size = m // groups
    if size == 0:
        if k >= m:
            return np.full((n, 1), -np.inf, values.numpy().dtype)
        return np.partition(values.numpy(), m - k, axis=1)[:, m - k, None]
    # Columns at a distance of `groups` form a group, which vectorises; those that are left over only lower the bound.
    maxima = values[:, : size * groups].view(n, size, groups).amax(1).numpy()
    return np.partition(maxima, groups - k, axis=1)[:, groups - k, None]


def _padded(
    values: Float[np.ndarray, " m"], rows: Integer[np.ndarray, " m"], starts: Int[np.ndarray, " n"]
) -> Float[np.ndarray, "n width"]:
    """Values that are in the order of their rows, of which each begins at its start, as a matrix filled up with -inf."""
    place = np.arange(len(rows)) - starts[rows]
    padded = np.full((len(starts), place.max() + 1), -np.inf, values.dtype)
    padded[rows, place] = values
    return padded


def _lower_bound(flat: np.ndarray, n: int) -> float:
    """A value that the n-th largest is almost surely not below, from a sample.

    Only what is above it has to be partitioned: for a small share of a large batch, several times less work.
    """
    step = flat.size // SAMPLED
    sample = flat[:: max(1, step)]
    rank = int(MARGIN * n / flat.size * sample.size) + 8
    if step < 2 or rank >= sample.size:
        return -np.inf
    return float(np.partition(sample, sample.size - rank)[sample.size - rank])


def _where(flags: Bool[np.ndarray, "n m"] | Bool[np.ndarray, " n"]) -> Int[np.ndarray, " true"]:
    """Flat positions of the true ones: eight at a time, since few are true."""
    flat = flags.reshape(-1)
    if len(flat) % 8:
        return np.flatnonzero(flat)
    words = flat.view(np.uint64)
    occupied = np.flatnonzero(words != 0)
    found = np.flatnonzero(words[occupied].view(np.bool_))
    return occupied[found >> 3] * 8 + (found & 7)
