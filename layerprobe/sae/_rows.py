"""Stored rows as training reads them: their order, their scale and their mean."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, Num, UInt64

from layerprobe.files import RESIDENT_BYTES, release_pages

CALIBRATION_ROWS = 8192
READ_ROWS = 16_384
MAPPED_ROWS = 32
"""Rows of a large memory map that are read before its pages are released."""
SHUFFLED_ROWS = 2**20
"""Up to this number, rows are shuffled as a list of numbers; above, by a bijection that is computed piece by piece."""
ROUNDS = 6
"""Of the network that computes it."""


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
        release_pages(rows)
    known = hashlib.sha256(repr(rows.shape).encode() + total.tobytes() + np.float64(norms).tobytes())
    factor = rows.shape[1] ** 0.5 * len(rows) / norms if norms else 1.0
    return Scale(torch.from_numpy(total / len(rows)).float(), factor, known.hexdigest())


def read(rows: Num[np.ndarray, "n d"], chosen: Int[np.ndarray, " batch"]) -> Float[np.ndarray, "batch d"]:
    """Some rows in float32, without leaving the pages of a large memory map in memory."""
    if rows.nbytes <= RESIDENT_BYTES:
        return np.asarray(rows[chosen], dtype=np.float32)
    part = np.empty((len(chosen), rows.shape[1]), dtype=np.float32)
    # Each row that is read maps 64 KiB around it, or 2 MiB where the file cache has huge pages: a whole batch would map
    # as much as a large file.
    for start in range(0, len(chosen), MAPPED_ROWS):
        some = slice(start, start + MAPPED_ROWS)
        part[some] = rows[chosen[some]]
        release_pages(rows)
    return part


def order(n: int, batch_size: int, seed: int | np.random.Generator) -> Iterator[Int[np.ndarray, " batch"]]:
    """Row numbers of each batch, without end: each pass visits every row once, and no batch is short."""
    pieces = _shuffled(n, np.random.default_rng(seed))
    waiting = np.zeros(0, dtype=np.int64)
    while True:
        while len(waiting) < batch_size:
            waiting = np.concatenate([waiting, next(pieces)])
        batch, waiting = waiting[:batch_size], waiting[batch_size:]
        # Sorted: a memory-mapped file is read forwards. The order within a batch does not matter.
        yield np.sort(batch)


def _shuffled(n: int, rng: np.random.Generator) -> Iterator[Int[np.ndarray, " piece"]]:
    """Pieces of one permutation of n numbers after another, in memory of at most `SHUFFLED_ROWS` numbers."""
    while n <= SHUFFLED_ROWS:
        yield rng.permutation(n)
    while True:
        keys = rng.integers(0, 2**64, ROUNDS, dtype=np.uint64)
        for start in range(0, n, READ_ROWS):
            yield permuted(np.arange(start, min(start + READ_ROWS, n), dtype=np.uint64), n, keys)


def permuted(
    positions: UInt64[np.ndarray, " piece"], n: int, keys: UInt64[np.ndarray, " rounds"]
) -> Int[np.ndarray, " piece"]:
    """What a pseudorandom permutation of 0 ... n-1 has at these positions.

    A Feistel network (Luby and Rackoff 1988) permutes the numbers of an even number of bits; it is applied again to values
    of n or more (cycle walking: Black and Rogaway 2002).

    Args:
        positions: below n.
        n: size of the permutation.
        keys: one random number per round, which choose the permutation.
    """
    half = np.uint64(max(1, ((n - 1).bit_length() + 1) // 2))
    mask = (np.uint64(1) << half) - np.uint64(1)
    values = _feistel(positions, half, mask, keys)
    while (outside := values >= n).any():
        values[outside] = _feistel(values[outside], half, mask, keys)
    return values.astype(np.int64)


def _feistel(values: np.ndarray, half: np.uint64, mask: np.uint64, keys: np.ndarray) -> np.ndarray:
    left, right = values >> half, values & mask
    for key in keys:
        # The finaliser of SplitMix64 (Steele, Lea and Flood 2014) as the round function.
        z = right + key
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        left, right = right, left ^ ((z ^ (z >> np.uint64(31))) & mask)
    return (left << half) | right


def evenly_spaced(n: int) -> Int[np.ndarray, " sample"]:
    """Numbers of up to 8,192 rows, evenly spaced among n, on which thresholds are set."""
    return np.unique(np.linspace(0, n - 1, min(CALIBRATION_ROWS, n)).astype(np.int64))
