"""Stored rows as training reads them: their order, their scale and their mean."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int

CALIBRATION_ROWS = 8192
READ_ROWS = 16_384


@dataclass(frozen=True)
class Scale:
    """Statistics of all rows that training needs beforehand."""

    mean: Float[torch.Tensor, " d"]
    factor: float
    """Scales the rows to a mean norm of sqrt(d)."""
    fingerprint: str
    """Hash of the number, sums and norms of the rows, to recognise them."""


def measure(rows: np.ndarray) -> Scale:
    """One pass over the stored rows, on the host, in float64."""
    total, norms = np.zeros(rows.shape[1]), 0.0
    for start in range(0, len(rows), READ_ROWS):
        part = np.asarray(rows[start : start + READ_ROWS], dtype=np.float64)
        total += part.sum(0)
        norms += float(np.linalg.norm(part, axis=1).sum())
    known = hashlib.sha256(repr(rows.shape).encode() + total.tobytes() + np.float64(norms).tobytes())
    factor = rows.shape[1] ** 0.5 * len(rows) / norms if norms else 1.0
    return Scale(torch.from_numpy(total / len(rows)).float(), factor, known.hexdigest())


def order(n: int, batch_size: int, seed: int | np.random.Generator) -> Iterator[Int[np.ndarray, " batch"]]:
    """Row numbers of each batch, without end: each pass visits every row once, and no batch is short."""
    rng = np.random.default_rng(seed)
    waiting = np.zeros(0, dtype=np.int64)
    while True:
        while len(waiting) < batch_size:
            waiting = np.concatenate([waiting, rng.permutation(n)])
        batch, waiting = waiting[:batch_size], waiting[batch_size:]
        # Sorted: a memory-mapped file is read forwards. The order within a batch does not matter.
        yield np.sort(batch)


def evenly_spaced(n: int) -> Int[np.ndarray, " sample"]:
    """Numbers of up to 8,192 rows, evenly spaced among n, on which thresholds are set."""
    return np.unique(np.linspace(0, n - 1, min(CALIBRATION_ROWS, n)).astype(np.int64))
