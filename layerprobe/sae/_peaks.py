"""What each latent is active on: the tokens that have most of its activation, and the examples with its highest ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int

from layerprobe.errors import MeasureError
from layerprobe.sae._exhibit import WINDOW

if TYPE_CHECKING:
    import pandas as pd
    from scipy.sparse import csc_array

TOKENS, EXAMPLES = 5, 3
"""Tokens and examples that are listed of a latent."""


def top_tokens(codes: csc_array, words: Sequence[str]) -> pd.DataFrame:
    """The tokens that have the largest shares of each latent's activation, at most 5 per latent.

    Args:
        codes: activations, rows x latents.
        words: the token of each row.

    Returns:
        One row per live latent and token: latent, rank (0 is the largest share), token, share (of the latent's summed
        activation, 0 to 1), active (occurrences on which it is active), occurrences (all of them).

    Raises:
        MeasureError: if there is not one word per row.
    """
    import pandas as pd
    from scipy.sparse import csr_array

    _check(codes, len(words), "words")
    kind, names = pd.factorize(np.asarray(words, dtype=object))
    pick = csr_array((np.ones(len(kind)), (kind, np.arange(len(kind)))), shape=(len(names), len(kind)))
    sums, counts = ((pick @ values).tocoo() for values in (codes.astype(np.float64), codes > 0))
    active = counts.tocsr().astype(np.int64)
    totals = np.asarray(codes.sum(axis=0, dtype=np.float64)).ravel()
    positive = sums.data > 0
    latent, word, data = sums.col[positive], sums.row[positive], sums.data[positive]
    # Of equal shares, the token that occurs first comes first.
    order = np.lexsort((word, -data, latent))
    latent, word, data = latent[order], word[order], data[order]
    rank = _rank(latent)
    kept = rank < TOKENS
    latent, word, data = latent[kept], word[kept], data[kept]
    return pd.DataFrame(
        {
            "latent": latent.astype(np.int64),
            "rank": rank[kept],
            "token": np.asarray(names, dtype=object)[word],
            "share": data / totals[latent],
            "active": np.asarray(active[word, latent]) if len(word) else np.zeros(0, dtype=np.int64),
            "occurrences": np.bincount(kind, minlength=len(names))[word],
        }
    )


def top_peaks(
    codes: csc_array, example: Int[np.ndarray, " rows"], token_index: Int[np.ndarray, " positions"]
) -> pd.DataFrame:
    """The examples with the highest activations of each latent, at most 3 per latent.

    Ties keep the order of the rows. Of an example longer than 40 tokens, those 40 around the peak are listed.

    Args:
        codes: activations, rows x latents.
        example: number of each row's example; the rows of an example are consecutive and in order.
        token_index: position of each row's token in its example.

    Returns:
        One row per live latent, example and active token: latent, rank (0 is the example with the highest peak), example,
        token_index, activation.

    Raises:
        MeasureError: if there is not one example and one position per row.
    """
    import pandas as pd

    _check(codes, len(example), "examples")
    _check(codes, len(token_index), "positions")
    codes = codes.sorted_indices()
    on = codes.data > 0
    latent = np.repeat(np.arange(codes.shape[1]), np.diff(codes.indptr))[on]
    row, value = codes.indices[on].astype(np.int64), codes.data[on]
    number = example[row].astype(np.int64)
    first = np.flatnonzero(np.r_[True, (np.diff(latent) != 0) | (np.diff(number) != 0)][: len(row)])
    last = np.r_[first[1:], len(row)]
    peaks = np.maximum.reduceat(value, first) if len(first) else value
    order = np.lexsort((first, -peaks, latent[first]))
    rank = np.empty(len(first), dtype=np.int64)
    rank[order] = _rank(latent[first][order])
    lengths = np.bincount(example, minlength=1)
    parts, ranks = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)]
    for group in order[rank[order] < EXAMPLES].tolist():
        entries = np.arange(first[group], last[group])
        places = token_index[row[entries]]
        peak, length = int(places[value[entries].argmax()]), int(lengths[number[first[group]]])
        low = max(0, min(peak - WINDOW // 2, length - WINDOW))
        entries = entries[(places >= low) & (places < low + WINDOW)]
        parts.append(entries)
        ranks.append(np.full(len(entries), rank[group]))
    kept = np.concatenate(parts)
    return pd.DataFrame(
        {
            "latent": latent[kept],
            "rank": np.concatenate(ranks),
            "example": number[kept],
            "token_index": token_index[row[kept]].astype(np.int64),
            "activation": value[kept],
        }
    )


def _rank(groups: np.ndarray) -> np.ndarray:
    """Position of each entry in its run of equal values."""
    starts = np.flatnonzero(np.r_[True, np.diff(groups) != 0][: len(groups)])
    return np.arange(len(groups)) - np.repeat(starts, np.diff(np.r_[starts, len(groups)]))


def _check(codes: csc_array, given: int, what: str) -> None:
    if codes.shape[0] != given:
        raise MeasureError(
            f"The activations have {codes.shape[0]} rows, but {given} {what} were given; give one per row."
        )
