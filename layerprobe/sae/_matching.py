"""Which latent of one dictionary represents the same feature as which latent of another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
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
    rows: int | None
    """Tokens that activations were computed on; None if matched on decoder rows alone, where every latent counts as
    live."""


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
    correlation, densities, n = None, [np.full(side.d_sae, np.nan) for side in (one, other)], None
    if codes_one is not None:
        n = codes_one.shape[0]
        if n < 4:
            raise MeasureError(f"match was given activations on {n} rows; it needs at least 4.")
        for side, codes in ((one, codes_one), (other, codes_other)):
            check_codes(codes, n, side.d_sae)
        densities = [np.diff(codes.indptr) / n for codes in (codes_one, codes_other)]
        correlation = _correlation(codes_one, codes_other, float64_device(one.device))
    (unit_one, written_one), (unit_other, written_other) = _unit_decoder(one), _unit_decoder(other)
    # Without activations the densities are NaN, which is not 0: all latents count as live.
    live_one, live_other = written_one & (densities[0] != 0), written_other & (densities[1] != 0)
    for name, live in (("first", live_one), ("second", live_other)):
        if not live.any():
            raise MeasureError(
                f"No latent of the {name} dictionary is live on the rows that match was given; give activations on rows "
                "that it was trained for."
            )
    # Cosines need one space; layers of one width in two models share it by descent.
    cosine = (unit_one @ unit_other.T).cpu().numpy() if one.d_in == other.d_in else None
    pairs = _assign(cosine, live_one, live_other)
    by_activation = _assign(correlation, live_one, live_other)
    transposed = None if cosine is None else cosine.T
    return Matching(
        _table(live_one, live_other, densities[0], cosine, pairs, by_activation),
        _table(live_other, live_one, densities[1], transposed, pairs.reversed(), by_activation.reversed()),
        n,
    )


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


def _unit_decoder(dictionary: Dictionary) -> tuple[Float[Tensor, "d_sae d_in"], Bool[np.ndarray, " d_sae"]]:
    """Decoder rows of length 1, in float64, and which latents have one."""
    rows = dictionary.decoder.to(float64_device(dictionary.device)).double()
    norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return rows / torch.where(norms > 0, norms, 1), (norms[:, 0] > 0).cpu().numpy()


@dataclass(frozen=True)
class _Pairs:
    """An assignment: latents of one side, their partners on the other, and the value of each pair."""

    here: Int[np.ndarray, " pairs"]
    there: Int[np.ndarray, " pairs"]
    value: Float[np.ndarray, " pairs"]

    def reversed(self) -> _Pairs:
        return _Pairs(self.there, self.here, self.value)


def _assign(
    value: Float[np.ndarray, "here there"] | None, live: Bool[np.ndarray, " here"], others: Bool[np.ndarray, " there"]
) -> _Pairs:
    """The one-to-one assignment of live latents with the largest sum of values; empty without values."""
    from scipy.optimize import linear_sum_assignment

    if value is None:
        none = np.zeros(0, dtype=np.int64)
        return _Pairs(none, none, np.zeros(0))
    known = ~np.isnan(value)
    here, there = np.flatnonzero(live & known.any(1)), np.flatnonzero(others & known.any(0))
    rows, columns = linear_sum_assignment(value[np.ix_(here, there)], maximize=True)
    here, there = here[rows], there[columns]
    return _Pairs(here, there, value[here, there])


def _table(
    live: Bool[np.ndarray, " here"],
    others: Bool[np.ndarray, " there"],
    density: Float[np.ndarray, " here"],
    cosine: Float[np.ndarray, "here there"] | None,
    pairs: _Pairs,
    by_activation: _Pairs,
) -> pd.DataFrame:
    import pandas as pd

    n = len(live)
    columns: dict[str, object] = {"latent": np.arange(n), "live": live, "density": density}
    columns["partner"], columns["cosine"] = _per_latent(pairs, n)
    nearest = np.full(n, -1)
    nearest_cosine = np.full(n, np.nan)
    if cosine is not None:
        among = np.where(others, cosine, -np.inf)
        nearest[live], nearest_cosine[live] = among.argmax(1)[live], among.max(1)[live]
    columns["nearest"], columns["nearest_cosine"] = _integers(nearest), nearest_cosine
    columns["partner_by_activation"], columns["correlation"] = _per_latent(by_activation, n)
    return pd.DataFrame(columns)


def _per_latent(pairs: _Pairs, n: int) -> tuple[pd.arrays.IntegerArray, Float[np.ndarray, " n"]]:
    """Partner and value of each of n latents."""
    partner, value = np.full(n, -1), np.full(n, np.nan)
    partner[pairs.here], value[pairs.here] = pairs.there, pairs.value
    return _integers(partner), value


def _integers(latents: Int[np.ndarray, " n"]) -> pd.arrays.IntegerArray:
    """Latents with `<NA>` for none: a -1 would index the last one."""
    import pandas as pd

    return pd.arrays.IntegerArray(latents.astype(np.int64), latents < 0)
