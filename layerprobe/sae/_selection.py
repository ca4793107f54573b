"""Exact selection of the largest activations, by row or over a whole batch, made quick on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from sae_lens.saes.matryoshka_batchtopk_sae import MatryoshkaBatchTopKTrainingSAE
from torch import Tensor

SAMPLED = 16_384
MARGIN = 1.2


def largest_of_rows(values: Float[np.ndarray, "n m"], k: int) -> Int[np.ndarray, " found"]:
    """Flat positions, in order, of each row's k largest values, less those that are not above zero.

    The same set as `torch.topk` by row and a ReLU; of equal values at the border the leftmost are taken.
    """
    n, m = values.shape
    if k >= m:
        return np.flatnonzero(values > 0)
    border = np.partition(values, m - k, axis=1)[:, m - k, None]
    chosen = (values >= border) & (values > 0)
    found = np.flatnonzero(chosen)
    if len(found) > n * k or (chosen.sum(1) > k).any():
        tied = chosen & (values == border)
        room = k - (chosen & ~tied).sum(1, keepdims=True)
        found = np.flatnonzero(chosen & (~tied | (np.cumsum(tied, axis=1) <= room)))
    return found


def largest_of_batch(values: Float[np.ndarray, "n m"], count: int) -> Int[np.ndarray, " found"]:
    """Flat positions, in order, of the `count` largest values of all, less those that are not above zero.

    The same set as `torch.topk` over the flattened batch and a ReLU; of equal values at the border the first are taken.
    """
    flat = values.reshape(-1)
    if count <= 0:
        return np.zeros(0, dtype=np.int64)
    if count >= flat.size:
        return np.flatnonzero(flat > 0)
    at = np.flatnonzero(flat >= max(_bound(flat, count), np.finfo(flat.dtype).smallest_subnormal))
    if len(at) <= count:
        # Fewer are above zero, or the bound was too high: without it.
        at = np.flatnonzero(flat > 0)
        if len(at) <= count:
            return at
    found = flat[at]
    border = np.partition(found, len(found) - count)[len(found) - count]
    kept = found >= border
    if kept.sum() > count:
        tied = found == border
        kept &= ~tied | (np.cumsum(tied) <= count - int((found > border).sum()))
    return at[kept]


def nth_largest(flat: Float[np.ndarray, " m"], n: int) -> float:
    """The n-th largest value, exactly."""
    above = flat[flat >= _bound(flat, n)]
    if above.size < n:
        above = flat
    return float(np.partition(above, above.size - n)[above.size - n])


def _bound(flat: np.ndarray, n: int) -> float:
    """A value that the n-th largest is almost surely not below, from a sample.

    Only what lies above it is then partitioned: for a small share of a large batch several times less work.
    """
    step = flat.size // SAMPLED
    sample = flat[:: max(1, step)]
    rank = int(MARGIN * n / flat.size * sample.size) + 8
    if step < 2 or rank >= sample.size:
        return -np.inf
    return float(np.partition(sample, sample.size - rank)[sample.size - rank])


def only(x: Tensor, at: np.ndarray) -> Tensor:
    """Zero but at chosen flat positions."""
    kept = np.zeros(x.numel(), dtype=x.numpy().dtype)
    kept[at] = x.numpy().reshape(-1)[at]
    return torch.from_numpy(kept).view_as(x)


class _Keep(torch.autograd.Function):
    """Zero but at chosen flat positions, where values and gradients pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, at: np.ndarray) -> Tensor:
        ctx.at = at
        return only(x, at)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return only(grads[0], ctx.at), None


class LargestOfBatch(torch.nn.Module):
    """sae-lens' BatchTopK activation: all but the `k` x rows largest of the batch are set to zero."""

    def __init__(self, k: float) -> None:
        super().__init__()
        self.k = k

    def forward(self, x: Float[Tensor, "n d_sae"]) -> Float[Tensor, "n d_sae"]:
        found = largest_of_batch(x.detach().numpy(), int(self.k * len(x)))
        return _Keep.apply(x, found)


class Matryoshka(MatryoshkaBatchTopKTrainingSAE):
    """sae-lens' own, with the quicker selection."""

    def get_activation_fn(self) -> Callable[[Tensor], Tensor]:
        return LargestOfBatch(self.cfg.k)

    def update_topk_threshold(self, acts_topk: Any) -> None:
        """Left out: the threshold is set on the rows when training ends, since a running estimate lags."""
