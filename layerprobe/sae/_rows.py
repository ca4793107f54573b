"""Stored rows as training reads them: their order, their scale and their mean."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

CALIBRATION_ROWS = 8192


@dataclass(frozen=True)
class Scale:
    """What training needs to know of all rows beforehand."""

    mean: Float[torch.Tensor, " d"]
    factor: float
    """Brings the rows' mean norm to sqrt(d)."""
    fingerprint: str
    """Of the rows' number, sums and norms: tells other rows from the same."""


def measure(rows: np.ndarray) -> Scale:
    """One pass over all rows, in float64."""
    total, norms = np.zeros(rows.shape[1]), 0.0
    for start in range(0, len(rows), 16_384):
        part = np.asarray(rows[start : start + 16_384], dtype=np.float64)
        total += part.sum(0)
        norms += float(np.linalg.norm(part, axis=1).sum())
    known = hashlib.sha256(repr(rows.shape).encode() + total.tobytes() + np.float64(norms).tobytes())
    factor = rows.shape[1] ** 0.5 * len(rows) / norms if norms else 1.0
    return Scale(torch.from_numpy(total / len(rows)).float(), factor, known.hexdigest())


def order(n: int, batch_size: int, seed: int) -> Iterator[np.ndarray]:
    """Numbers of the rows of each batch, without end: each pass visits every row once, and no batch is short."""
    rng = np.random.default_rng(seed)
    waiting = np.zeros(0, dtype=np.int64)
    while True:
        while len(waiting) < batch_size:
            waiting = np.concatenate([waiting, rng.permutation(n)])
        batch, waiting = waiting[:batch_size], waiting[batch_size:]
        # Sorted: a memory-mapped file is read forwards. The order within a batch does not matter.
        yield np.sort(batch)


def spread(rows: np.ndarray) -> Float[torch.Tensor, "n d"]:
    """Rows spread evenly over the whole set."""
    chosen = np.unique(np.linspace(0, len(rows) - 1, min(CALIBRATION_ROWS, len(rows))).astype(np.int64))
    return torch.from_numpy(np.array(rows[chosen], dtype=np.float32))
