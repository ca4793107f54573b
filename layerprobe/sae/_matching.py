"""Which latent of one dictionary stands for the same feature as which latent of another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, Int, Num
from tqdm import tqdm

from layerprobe.errors import MeasureError
from layerprobe.sae._dictionary import Dictionary

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Matching:
    """Latents of two dictionaries, paired one to one; it means little without a null beside it (`compare_to_null`).

    Both tables have one row a latent: `latent`; `live` (fires on its side's rows, and has a decoder row); `density`
    (share of rows it fires on); `partner` and `cosine` (of their unit decoder rows) by the assignment with the largest
    sum of cosines; `nearest` and `nearest_cosine`, the best of all live latents of the other side, whether or not another
    latent is paired with it; `partner_by_activation` and `correlation` (Pearson, of activations over the same tokens) by
    the assignment with the largest sum of correlations. A dead latent has no partner and is nobody's; where one side has
    fewer live latents, the surplus of the other has none; nor has, by activation, one that never changes. Numbers of latents that are missing are `<NA>`, values NaN.
    """

    table: pd.DataFrame
    """The latents of the first dictionary."""
    reverse: pd.DataFrame
    """The latents of the second, with partners among the first."""
    rows: int | None
    """Tokens that activations were read on; None if matched on decoder rows alone, where every latent counts as live."""

    @property
    def mean_cosine(self) -> float:
        """Mean over pairs; NaN if there is none."""
        return float(self.table["cosine"].mean())

    @property
    def mean_correlation(self) -> float:
        """Mean over pairs; NaN if there is none or no rows were given."""
        return float(self.table["correlation"].mean())

    @property
    def agreement(self) -> float:
        """Share of live latents of the first dictionary whose two partners are the same latent."""
        live = self.table[self.table["live"]]
        return float((live["partner"] == live["partner_by_activation"]).fillna(False).mean())


def match(
    one: Dictionary,
    other: Dictionary,
    rows_one: Num[np.ndarray, "n d_one"] | None = None,
    rows_other: Num[np.ndarray, "m d_other"] | None = None,
    *,
    batch_size: int = 4096,
    progress: bool = True,
) -> Matching:
    """Pair the latents of two dictionaries one to one, by decoder rows and by activations.

    By decoder rows as in Paulo and Belrose (2025), by the Hungarian method on signed cosines; by activations, on the
    Pearson correlation over tokens, which survives a rotation of one side's space.

    Args:
        one: for instance base's dictionary.
        other: for instance adapted's.
        rows_one: activations that `one` reads, a row a token; may be memory-mapped. Without rows only decoder rows are
            matched, and dead latents cannot be told.
        rows_other: activations of the same tokens, in the same order, that `other` reads.
        batch_size: rows held at a time.
        progress: whether to draw a progress bar on stderr.

    Raises:
        MeasureError: if only one side's rows are given, their numbers or widths do not fit, they are not finite, or a side
            has no live latent; if no rows are given and the dictionaries' widths differ.
    """
    _check(one, other, rows_one, rows_other)
    correlation = None
    if rows_one is not None and rows_other is not None:
        activity = _correlate(one, other, rows_one, rows_other, batch_size, progress)
        correlation, densities, rows = activity.correlation, (activity.density_one, activity.density_other), activity.n
    else:
        densities, rows = (np.full(one.d_sae, np.nan), np.full(other.d_sae, np.nan)), None
    (unit_one, written_one), (unit_other, written_other) = _unit_decoder(one), _unit_decoder(other)
    # Without rows the densities are NaN, which is not 0: all latents count as live.
    live_one, live_other = written_one & (densities[0] != 0), written_other & (densities[1] != 0)
    for side, live in (("first", live_one), ("second", live_other)):
        if not live.any():
            raise MeasureError(
                f"No latent of the {side} dictionary is live on the rows given to match; give the rows that it was "
                "trained for."
            )
    # One space is needed for cosines; two models' layers of one width share it by descent.
    cosine = unit_one @ unit_other.T if one.d_in == other.d_in else None
    pairs = _assigned(cosine, live_one, live_other)
    by_activation = _assigned(correlation, live_one, live_other)
    return Matching(
        _table(live_one, live_other, densities[0], cosine, pairs, by_activation),
        _table(
            live_other,
            live_one,
            densities[1],
            None if cosine is None else cosine.T,
            pairs.turned(),
            by_activation.turned(),
        ),
        rows,
    )


def _check(one: Dictionary, other: Dictionary, rows_one: np.ndarray | None, rows_other: np.ndarray | None) -> None:
    if (rows_one is None) != (rows_other is None):
        raise MeasureError(
            "match was given the rows of one side; give both sides' rows of the same tokens, or neither."
        )
    if rows_one is None or rows_other is None:
        if one.d_in != other.d_in:
            raise MeasureError(
                f"match was given dictionaries of {one.d_in} and {other.d_in} features and no rows; decoder rows of two "
                "widths have no cosine: give both sides' rows to match on activations."
            )
        return
    for side, dictionary, rows in (("first", one, rows_one), ("second", other, rows_other)):
        if rows.shape[1] != dictionary.d_in:
            raise MeasureError(
                f"match was given rows of shape {rows.shape} for the {side} dictionary, which takes {dictionary.d_in} wide."
            )
    if len(rows_one) != len(rows_other) or len(rows_one) < 4:
        raise MeasureError(
            f"match was given {len(rows_one)} and {len(rows_other)} rows; give the same tokens on both sides, at least 4."
        )


@dataclass(frozen=True)
class _Activity:
    correlation: Float[np.ndarray, "one other"]
    """NaN where a latent never changes."""
    density_one: Float[np.ndarray, " one"]
    density_other: Float[np.ndarray, " other"]
    n: int


def _correlate(
    one: Dictionary, other: Dictionary, rows_one: np.ndarray, rows_other: np.ndarray, batch_size: int, progress: bool
) -> _Activity:
    """Pearson correlations of all pairs of latents, from sums in float64."""
    from scipy.sparse import csr_array

    n = len(rows_one)
    cross = np.zeros((one.d_sae, other.d_sae))
    sides = [np.zeros((3, dictionary.d_sae)) for dictionary in (one, other)]  # times active, sum, sum of squares
    starts = range(0, n, batch_size)
    for start in tqdm(starts, desc="matching latents", leave=False, disable=not progress, delay=1):
        codes = []
        for dictionary, rows, sums in zip((one, other), (rows_one, rows_other), sides, strict=True):
            batch = np.asarray(rows[start : start + batch_size])
            if not np.isfinite(batch).all():
                raise MeasureError("match was given rows with NaN or infinite values; capture these activations again.")
            code = csr_array(dictionary.encode(batch)).astype(np.float64)
            sums += [(code > 0).sum(0), code.sum(0), code.power(2).sum(0)]
            codes.append(code)
        left, right = codes
        # Measured: a dense product is quicker than a sparse one from about one pair of active latents in 600.
        if left.nnz * right.nnz > left.shape[0] ** 2 * cross.size / 600:
            cross += left.toarray().T @ right.toarray()
        else:
            cross += (left.T.tocsr() @ right).toarray()
    (active_one, total_one, square_one), (active_other, total_other, square_other) = sides
    spread_one, spread_other = _spread(total_one, square_one, n), _spread(total_other, square_other, n)
    with np.errstate(invalid="ignore", divide="ignore"):
        cross = (cross - np.outer(total_one, total_other / n)) / np.outer(spread_one, spread_other)
    return _Activity(np.clip(cross, -1, 1), active_one / n, active_other / n, n)


def _spread(total: np.ndarray, square: np.ndarray, n: int) -> np.ndarray:
    """Root of the sum of squares about the mean; NaN where all of it is rounding."""
    about = square - total**2 / n
    return np.sqrt(np.where(about > 1e-10 * square, about, np.nan))


def _unit_decoder(dictionary: Dictionary) -> tuple[Float[np.ndarray, "d_sae d_in"], Bool[np.ndarray, " d_sae"]]:
    """Decoder rows of length 1, in float64, and which latents have one."""
    rows = dictionary.sae.W_dec.detach().cpu().numpy().astype(np.float64)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(norms > 0, norms, 1), norms[:, 0] > 0


@dataclass(frozen=True)
class _Pairs:
    """An assignment: latents of the one side, their partners on the other, and what each pair is worth."""

    here: Int[np.ndarray, " pairs"]
    there: Int[np.ndarray, " pairs"]
    value: Float[np.ndarray, " pairs"]

    def turned(self) -> _Pairs:
        return _Pairs(self.there, self.here, self.value)


def _assigned(
    worth: Float[np.ndarray, "here there"] | None, live: Bool[np.ndarray, " here"], others: Bool[np.ndarray, " there"]
) -> _Pairs:
    """The one-to-one assignment of live latents with the largest sum; empty if there is nothing to go by."""
    from scipy.optimize import linear_sum_assignment

    if worth is None:
        none = np.zeros(0, dtype=np.int64)
        return _Pairs(none, none, np.zeros(0))
    known = ~np.isnan(worth)
    here, there = np.flatnonzero(live & known.any(1)), np.flatnonzero(others & known.any(0))
    rows, columns = linear_sum_assignment(worth[np.ix_(here, there)], maximize=True)
    here, there = here[rows], there[columns]
    return _Pairs(here, there, worth[here, there])


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
    columns["partner"], columns["cosine"] = _spread_out(pairs, n)
    nearest = np.full(n, -1)
    near = np.full(n, np.nan)
    if cosine is not None:
        among = np.where(others, cosine, -np.inf)
        nearest[live], near[live] = among.argmax(1)[live], among.max(1)[live]
    columns["nearest"], columns["nearest_cosine"] = _numbers(nearest), near
    columns["partner_by_activation"], columns["correlation"] = _spread_out(by_activation, n)
    return pd.DataFrame(columns)


def _spread_out(pairs: _Pairs, n: int) -> tuple[pd.arrays.IntegerArray, Float[np.ndarray, " n"]]:
    """Partner and worth of each of n latents."""
    partner, value = np.full(n, -1), np.full(n, np.nan)
    partner[pairs.here], value[pairs.here] = pairs.there, pairs.value
    return _numbers(partner), value


def _numbers(latents: Int[np.ndarray, " n"]) -> pd.arrays.IntegerArray:
    """Numbers of latents in which none is `<NA>`: a -1 would be read as the last one."""
    import pandas as pd

    return pd.arrays.IntegerArray(latents.astype(np.int64), latents < 0)
