"""Which latents of a crosscoder the sides share, and which are exclusive to one side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from layerprobe.errors import MeasureError
from layerprobe.sae._dictionary import row_batches
from layerprobe.sae._evaluation import check_codes
from layerprobe.sae.crosscoder import Crosscoder, paired

if TYPE_CHECKING:
    import pandas as pd
    from scipy.sparse import csc_array

ONE_SIDED = 0.1
"""Delta below this is base-only, above 1 minus it adapted-only."""
SHARED = (0.4, 0.6)
ROTATED = 0.5
"""Balanced latents whose two directions have a cosine below this are rotated."""
NU_ERROR, NU_RECONSTRUCTION = 0.2, 0.5


def census(crosscoder: Crosscoder, base_rows: Any, adapted_rows: Any, codes: csc_array) -> pd.DataFrame:
    """Locate each latent between base and adapted, by its decoder norms and by latent scaling.

    Delta = 1/2 (1 + (|d_adapted| - |d_base|) / max(|d_adapted|, |d_base|)) is 0 for a latent of base alone, 1/2 for one
    that both sides have equally, 1 for one of adapted alone. Norms alone mislead, so *latent scaling* (Minder et al.
    2025, "Overcoming Sparsity Artifacts in Crosscoders") measures how much of the latent each side's rows contain: with
    f its activations and d its direction on the side where that is longer (the dominant side), the target y of a side is
    explained by beta = sum f <d, y> / (sum f^2 |d|^2), and nu = beta of the weaker side / beta of the dominant side.
    The error target is the side's scaled row minus its reconstruction, with the latent's contribution on that side added
    back; the reconstruction target is the side's full reconstruction minus its bias.

    A latent's kind is the first that holds:

    * `dead`: active on none of these rows.
    * `rotated`: Delta within .4 to .6 and the two directions' cosine below .5: both sides have it, in different
      directions. (Latent scaling looks for one side's direction on the other, and would call it exclusive.)
    * `base_only`, `adapted_only`: nu_error < .2 and nu_reconstruction < .5; of its dominant side, whatever its Delta.
    * `shared`: Delta within .4 to .6.
    * `shifted`: all others, including those that Delta alone would call exclusive.

    Delta compares shares of each side's variance: where much of one side's variance lies in a few strong directions, as
    in the last layers of a classifier, everything else is weaker there, and all values of Delta move together. Compare
    it with its median.

    Use rows that the crosscoder was not trained on, if there are enough: a latent that is active on few training rows
    fits their noise on both sides. The sums are computed on the host, where the sparse activations are.

    Args:
        crosscoder: as trained on these two sides.
        base_rows: (n, d); may be memory-mapped.
        adapted_rows: (n, d), the same tokens in the same order.
        codes: activations on these rows, by `Crosscoder.encode`.

    Returns:
        One row per latent: `latent`, `delta`, `nu_error`, `nu_reconstruction`, `cosine` (of its two directions),
        `firing_rate` (share of rows it is active on), `energy_share` (its share of the reconstruction's variance, both
        sides together: the covariance of what it writes with the whole; these sum to 1, and one may be slightly
        negative) and `kind`. What is undefined is NaN: the ratios of a dead latent, or of one whose dominant beta is not above 0.

    Raises:
        MeasureError: if shapes do not fit, or there is no row.
    """
    import pandas as pd

    base_rows, adapted_rows = paired(base_rows, adapted_rows)
    check_codes(codes, len(base_rows), crosscoder.d_sae)
    if not len(base_rows):
        raise MeasureError("A census was given no rows; give both sides' rows of some examples.")
    sums = _sums(crosscoder, base_rows, adapted_rows, codes)
    directions = crosscoder.decoder.astype(np.float64)
    each = np.arange(crosscoder.d_sae)
    norms = np.linalg.norm(directions, axis=2)
    dominant = norms.argmax(1)
    square = np.diagonal(sums.pairs)
    rebuilt = np.stack([sums.pairs @ directions[:, side] for side in (0, 1)], axis=1)
    error = sums.rows - rebuilt - sums.codes[:, None, None] * crosscoder.decoder_bias.astype(np.float64)
    error += square[:, None, None] * directions
    longer = directions[each, dominant][:, None]
    # A dead latent's ratios are 0 / 0.
    with np.errstate(invalid="ignore", divide="ignore"):
        nu = {
            name: _ratio((longer * target).sum(2), dominant)
            for name, target in (("error", error), ("reconstruction", rebuilt))
        }
        delta = 0.5 * (1 + (norms[:, 1] - norms[:, 0]) / norms.max(1))
        cosine = directions.prod(1).sum(1) / norms.prod(1)
        centred = rebuilt - sums.codes[:, None, None] * np.einsum("m,msd->sd", sums.codes, directions) / sums.n
        energy = (directions * centred).sum((1, 2))
        share = energy / energy.sum()
    kind = _kinds(delta, cosine, nu["error"], nu["reconstruction"], dominant)
    kind[sums.active == 0] = "dead"
    return pd.DataFrame(
        {
            "latent": each,
            "delta": delta,
            "nu_error": nu["error"],
            "nu_reconstruction": nu["reconstruction"],
            "cosine": cosine,
            "firing_rate": sums.active / sums.n,
            "energy_share": share,
            "kind": kind,
        }
    )


@dataclass(frozen=True, eq=False)
class _Sums:
    """Sums over rows, in float64, that determine all columns."""

    pairs: Float[np.ndarray, "d_sae d_sae"]
    """Products of the activations of two latents."""
    rows: Float[np.ndarray, "d_sae 2 d"]
    """Activation x scaled row."""
    codes: Float[np.ndarray, " d_sae"]
    active: Int[np.ndarray, " d_sae"]
    n: int


def _sums(crosscoder: Crosscoder, base_rows: np.ndarray, adapted_rows: np.ndarray, codes: csc_array) -> _Sums:
    codes, n = codes.astype(np.float64), len(base_rows)
    by_row = codes.tocsr()
    rows = np.zeros((crosscoder.d_sae, 2 * crosscoder.d_in))
    for batch in row_batches(n):
        rows += by_row[batch].T @ crosscoder.scaled(base_rows, adapted_rows, batch).cpu().numpy().astype(np.float64)
    return _Sums(
        pairs=(codes.T @ codes).toarray(),
        rows=rows.reshape(crosscoder.d_sae, 2, -1),
        codes=codes.sum(0),
        active=np.diff(codes.indptr),
        n=n,
    )


def _ratio(betas: Float[np.ndarray, "d_sae 2"], dominant: Int[np.ndarray, " d_sae"]) -> Float[np.ndarray, " d_sae"]:
    """Weaker side over dominant side. The denominator sum f^2 |d|^2 is common to both, and cancels."""
    each = np.arange(len(betas))
    denominator = betas[each, dominant]
    # Undefined for a latent whose direction is not in the rows of its dominant side.
    return betas[each, 1 - dominant] / np.where(denominator > 0, denominator, np.nan)


def _kinds(
    delta: Float[np.ndarray, " d_sae"],
    cosine: Float[np.ndarray, " d_sae"],
    nu_error: Float[np.ndarray, " d_sae"],
    nu_reconstruction: Float[np.ndarray, " d_sae"],
    dominant: Int[np.ndarray, " d_sae"],
) -> np.ndarray:
    balanced = (delta >= SHARED[0]) & (delta <= SHARED[1])
    rotated = balanced & (cosine < ROTATED)
    exclusive = ~rotated & (nu_error < NU_ERROR) & (nu_reconstruction < NU_RECONSTRUCTION)
    kinds = [rotated, exclusive & (dominant == 0), exclusive, balanced]
    return np.select(kinds, ["rotated", "base_only", "adapted_only", "shared"], "shifted").astype(object)
