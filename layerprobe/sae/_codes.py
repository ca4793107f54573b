"""A dictionary's activations on many rows, kept sparse."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Num
from tqdm import tqdm

from layerprobe.errors import MeasureError
from layerprobe.sae._dictionary import Dictionary

if TYPE_CHECKING:
    from scipy.sparse import csc_array


def sparse_codes(
    dictionary: Dictionary,
    rows: Num[np.ndarray, "n d"],
    *,
    batch_size: int = 4096,
    progress: bool = True,
) -> csc_array:
    """Activations of all latents on all rows, as a sparse matrix of rows x latents that is read by latent.

    It takes 8 bytes an activation: 15 MB for 60,000 rows with 32 active latents each.

    Args:
        dictionary: takes rows as they are.
        rows: activations; may be memory-mapped.
        batch_size: rows held at a time.
        progress: whether to draw a progress bar on stderr.

    Raises:
        MeasureError: if the width differs.
    """
    from scipy.sparse import csr_array

    if rows.ndim != 2 or rows.shape[1] != dictionary.d_in:
        raise MeasureError(
            f"sparse_codes was given rows of shape {rows.shape}; this dictionary takes {dictionary.d_in} wide."
        )
    width = dictionary.d_sae
    values: list[np.ndarray] = []
    columns: list[np.ndarray] = []
    counts: list[np.ndarray] = [np.zeros(1, dtype=np.int64)]
    starts = range(0, len(rows), batch_size)
    for start in tqdm(starts, desc="encoding", leave=False, disable=not progress, delay=1):
        codes = dictionary.encode(rows[start : start + batch_size])
        at = np.flatnonzero(codes > 0)
        values.append(codes.ravel()[at].astype(np.float32, copy=False))
        columns.append((at % width).astype(np.int32))
        counts.append(np.bincount(at // width, minlength=len(codes)))
    pointers = np.cumsum(np.concatenate(counts))
    empty = [np.zeros(0, dtype=np.float32)]
    stored = (np.concatenate(values or empty), np.concatenate(columns or empty).astype(np.int32), pointers)
    return csr_array(stored, shape=(len(rows), width)).tocsc()
