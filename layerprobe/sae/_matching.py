"""Which latent of one dictionary represents the same feature as which latent of another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from layerprobe.errors import ArgumentError, MeasureError
from layerprobe.sae._dictionary import Dictionary, float64_device, row_batches
from layerprobe.sae._evaluation import check_codes

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Matching:
    """Latents of two dictionaries, paired one to one; to be compared with a null (`compare_to_null`).

    Both tables have one row per latent: `latent`; `live` (active on its side's rows, and with a non-zero decoder row);
    `density` (share of rows it is active on); `partner` and `cosine` (of their unit decoder rows) by the assignment with
    the largest sum of cosines; `nearest` and `nearest_cosine`, the best of all live latents of the other side, whether
    or not another latent is paired with it; `partner_by_activation` and `correlation` (Pearson, of activations on the
    same tokens) by the assignment with the largest sum of correlations. A dead latent has no partner and is nobody's;
    where one side has fewer live latents, the surplus of the other has none; nor has, by activation, a constant latent.
    Missing latents are `<NA>`, missing values NaN.
    """

    table: pd.DataFrame
    """The latents of the first dictionary."""
    reverse: pd.DataFrame
    """The latents of the second, with partners among the first."""


def match(one: Dictionary, other: Dictionary, codes_one: Any = None, codes_other: Any = None) -> Matching:
    """Pair the latents of two dictionaries one to one, by decoder rows and by activations.

    By decoder rows as in Paulo and Belrose (2025), by the Hungarian method on signed cosines; by activations, on the
    Pearson correlation over tokens, which is invariant to a rotation of one side's space.

    Args:
        one: for instance base's dictionary.
        other: for instance adapted's; on the same device.
        codes_one: activations of `one` on its side's rows, by `encode`. Without activations, only decoder rows are
            matched, and dead latents cannot be recognised.
        codes_other: activations of `other` on its side's rows of the same tokens, in the same order.

    Raises:
        ArgumentError: if the activations of only one side are given; if none are and the dictionaries' widths differ.
        MeasureError: if shapes do not fit, or a side has no live latent.
    """
    import pandas as pd

    if (codes_one is None) != (codes_other is None):
        raise ArgumentError(
            "Give both {codes_one} and {codes_other}, of the same tokens, or neither.", "codes_one", "codes_other"
        )
    if codes_one is None and one.d_in != other.d_in:
        raise ArgumentError(
            f"The dictionaries have {one.d_in} and {other.d_in} features; decoder rows of two widths have no cosine: give "
            "{codes_one} and {codes_other} to match on activations.",
            *("codes_one", "codes_other"),
        )
    correlation, densities = None, [np.full(side.d_sae, np.nan) for side in (one, other)]
    if codes_one is not None:
        n = codes_one.shape[0]
        if n < 4:
            raise MeasureError(f"match was given activations on {n} rows; it needs at least 4.")
        for side, codes in ((one, codes_one), (other, codes_other)):
            check_codes(codes, n, side.d_sae)
        densities = [np.diff(codes.indptr) / n for codes in (codes_one, codes_other)]
        correlation = _correlation(codes_one, codes_other, float64_device(one.device))
    units = _unit_decoder(one), _unit_decoder(other)
    tables = []
    for name, unit, density in zip(("first", "second"), units, densities, strict=True):
        # Without activations the densities are NaN, which is not 0: all latents count as live.
        live = (unit != 0).any(1).cpu().numpy() & (density != 0)
        if not live.any():
            raise MeasureError(
                f"No latent of the {name} dictionary is live on the rows that match was given; give activations on rows "
                "that it was trained for."
            )
        tables.append(pd.DataFrame({"latent": np.arange(len(live)), "live": live, "density": density}))
    # Cosines need one space; layers of one width in two models share it by descent.
    cosine = (units[0] @ units[1].T).cpu().numpy() if one.d_in == other.d_in else None
    _pair(tables, cosine, "partner", "cosine")
    _add_nearest(tables[0], tables[1], cosine)
    _add_nearest(tables[1], tables[0], None if cosine is None else cosine.T)
    _pair(tables, correlation, "partner_by_activation", "correlation")
    return Matching(*tables)


def _correlation(one: Any, other: Any, device: torch.device) -> Float[np.ndarray, "one other"]:
    """Pearson correlations of all pairs of latents, from sums in float64; NaN where a latent is constant."""
    n = one.shape[0]
    one, other = one.astype(np.float64), other.astype(np.float64)
    # Measured: a dense product is faster than a sparse one from about one pair of active latents in 600.
    if one.nnz * other.nnz > n**2 * one.shape[1] * other.shape[1] / 600:
        dense = torch.zeros(one.shape[1], other.shape[1], dtype=torch.float64, device=device)
        sides = one.tocsr(), other.tocsr()
        for batch in row_batches(n):
            left, right = (torch.from_numpy(side[batch].toarray()).to(device) for side in sides)
            dense += left.T @ right
        cross = dense.cpu().numpy()
    else:
        cross = (one.T @ other).toarray()
    totals = [side.sum(0) for side in (one, other)]
    spreads = [_spread(total, side.power(2).sum(0), n) for total, side in zip(totals, (one, other), strict=True)]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.clip((cross - np.outer(totals[0], totals[1] / n)) / np.outer(*spreads), -1, 1)


def _spread(total: np.ndarray, square: np.ndarray, n: int) -> np.ndarray:
    """Root of the sum of squares about the mean; NaN where all of it is rounding."""
    centred = square - total**2 / n
    return np.sqrt(np.where(centred > 1e-10 * square, centred, np.nan))


def _unit_decoder(dictionary: Dictionary) -> Float[Tensor, "d_sae d_in"]:
    """Decoder rows of length 1, in float64; zero where a latent writes nothing."""
    rows = dictionary.decoder.to(float64_device(dictionary.device)).double()
    norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return rows / torch.where(norms > 0, norms, 1)


def _pair(tables: list[pd.DataFrame], values: Float[np.ndarray, "one other"] | None, partner: str, score: str) -> None:
    """Add the one-to-one assignment of live latents with the largest sum of values to both tables."""
    from scipy.optimize import linear_sum_assignment

    pairs = [np.zeros(0, dtype=np.int64)] * 2
    if values is not None:
        known = ~np.isnan(values)
        able = [np.flatnonzero(t["live"] & known.any(axis)) for t, axis in zip(tables, (1, 0), strict=True)]
        chosen = linear_sum_assignment(values[np.ix_(*able)], maximize=True)
        pairs = [latents[numbers] for latents, numbers in zip(able, chosen, strict=True)]
    for table, here, there in zip(tables, pairs, pairs[::-1], strict=True):
        partners, scores = np.full(len(table), -1), np.full(len(table), np.nan)
        partners[here] = there
        if values is not None:
            scores[here] = values[tuple(pairs)]
        table[partner], table[score] = _integers(partners), scores


def _add_nearest(table: pd.DataFrame, other: pd.DataFrame, cosine: Float[np.ndarray, "here there"] | None) -> None:
    nearest, nearest_cosine = np.full(len(table), -1), np.full(len(table), np.nan)
    if cosine is not None:
        live = table["live"].to_numpy()
        among = np.where(other["live"], cosine, -np.inf)
        nearest[live], nearest_cosine[live] = among.argmax(1)[live], among.max(1)[live]
    table["nearest"], table["nearest_cosine"] = _integers(nearest), nearest_cosine


def _integers(latents: Int[np.ndarray, " n"]) -> pd.arrays.IntegerArray:
    """Latents with `<NA>` for none: a -1 would index the last one."""
    import pandas as pd

    return pd.arrays.IntegerArray(latents.astype(np.int64), latents < 0)
