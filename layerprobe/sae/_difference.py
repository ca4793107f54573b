"""Principal components of what adaptation added to each row, the baseline of a joint dictionary."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int, Num

from layerprobe.errors import ArgumentError
from layerprobe.sae._dictionary import row_batches
from layerprobe.sae._evaluation import FOLDS, check_codes
from layerprobe.sae.crosscoder import Crosscoder, paired
from layerprobe.stats import assign_folds, jackknife

if TYPE_CHECKING:
    import pandas as pd
    from scipy.sparse import csc_array


def principal_components(
    base_rows: Num[np.ndarray, "n d"], adapted_rows: Num[np.ndarray, "n d"]
) -> tuple[Float[np.ndarray, " d"], Float[np.ndarray, "d d"]]:
    """Mean of the differences adapted - base, and their principal directions as rows, by decreasing variance.

    Args:
        base_rows: (n, d); may be memory-mapped.
        adapted_rows: (n, d), the same tokens in the same order.

    Raises:
        MeasureError: if the shapes differ.
    """
    base_rows, adapted_rows = paired(base_rows, adapted_rows)
    n, d = base_rows.shape
    origin = adapted_rows[0].astype(np.float64) - base_rows[0]
    total, squares = np.zeros(d), np.zeros((d, d))
    for batch in row_batches(n):
        moved = adapted_rows[batch].astype(np.float64) - base_rows[batch] - origin
        total += moved.sum(0)
        squares += moved.T @ moved
    _, vectors = np.linalg.eigh(squares / n - np.outer(total, total) / n**2)
    return origin + total / n, vectors[:, ::-1].T


def difference_pca(
    joint: Crosscoder,
    components: tuple[Float[np.ndarray, " d"], Float[np.ndarray, "d d"]],
    base_rows: Any,
    adapted_rows: Any,
    codes: csc_array,
    groups: Int[np.ndarray, " n"],
) -> pd.DataFrame:
    """How much of the difference adapted - base a joint dictionary explains, and how much principal components of it do.

    Explained variance of the difference of each row: 1 - E|x - reconstruction|^2 / (E|x|^2 - |E x|^2). The joint
    dictionary's reconstruction is that of the adapted row minus that of the base row, in their units. The components are
    fitted to the difference, the dictionary to both sides, so that a dictionary that explains less of the difference may
    still be the better description of the rows. Components and dictionary are compared at an equal number of coefficients
    per row: active latents of the dictionary, on average and rounded, against components. (At an equal number of
    directions no dictionary can exceed components on the rows that these were fitted to, and as many components as
    features explain everything.)

    Args:
        joint: trained on both sides.
        components: by `principal_components`, on the rows that `joint` was trained on.
        base_rows: (n, d), of other examples; may be memory-mapped.
        adapted_rows: (n, d), the same tokens in the same order.
        codes: activations of `joint` on these rows, by `Crosscoder.encode`.
        groups: example of each row.

    Returns:
        One row per number of components (powers of 2, d, and the number of coefficients): `components`;
        `explained_variance`, `ev_low`, `ev_high` by them; `joint`, `joint_low`, `joint_high` by the joint dictionary, the
        same in all rows; `excess`, `excess_low`, `excess_high`: components minus dictionary, paired; `coefficients`: whether
        this is the dictionary's number of coefficients per row; `l0`: that number before rounding. Intervals are 95%, by
        a delete-group jackknife over 20 folds of whole examples, for this dictionary and these components.

    Raises:
        MeasureError: if shapes do not fit.
        ArgumentError: if there are fewer than two examples, or the difference does not vary.
    """
    import pandas as pd

    base_rows, adapted_rows = paired(base_rows, adapted_rows)
    check_codes(codes, len(base_rows), joint.d_sae)
    examples, numbers = np.unique(groups, return_inverse=True)
    if len(examples) < 2:
        raise ArgumentError("{groups} names one example; give rows of at least two.", "groups")
    folds = assign_folds(len(examples), FOLDS, seed=0)[numbers]
    n_folds, d = int(folds.max()) + 1, base_rows.shape[1]
    mean, directions = components
    sums, scores, totals = _sums(joint, mean, directions, (base_rows, adapted_rows), codes, folds)
    l0 = codes.nnz / len(base_rows)
    equal = min(max(1, round(l0)), d)
    counts = sorted({*(2**i for i in range(d.bit_length()) if 2**i <= d), d, equal})

    def explained(fold: int | None, m: int | None) -> float:
        """By m components, or by the joint dictionary."""
        keep = np.arange(n_folds) != (-1 if fold is None else fold)
        n, squares, missed = sums[keep].sum(0)
        variance = squares / n - ((totals[keep].sum(0) / n) ** 2).sum()
        if not variance > 0:
            raise ArgumentError(
                "The difference of {base_rows} and {adapted_rows} does not vary.", "base_rows", "adapted_rows"
            )
        error = missed if m is None else squares - scores[keep, :m].sum()
        return float(1 - error / n / variance)

    def estimate(statistic: Any, *names: str, high: float = 1.0) -> dict[str, float]:
        result = jackknife(statistic, n_folds, len(examples), high=high)
        return dict(zip(names, (result.value, result.low, result.high), strict=True))

    whole = estimate(lambda fold: explained(fold, None), "joint", "joint_low", "joint_high")
    rows = [
        {
            "components": m,
            **estimate(lambda fold, m=m: explained(fold, m), "explained_variance", "ev_low", "ev_high"),
            **whole,
            **estimate(
                lambda fold, m=m: explained(fold, m) - explained(fold, None),
                *("excess", "excess_low", "excess_high"),
                high=np.inf,
            ),
            "coefficients": m == equal,
            "l0": l0,
        }
        for m in counts
    ]
    return pd.DataFrame(rows)


def _sums(
    joint: Crosscoder,
    mean: np.ndarray,
    directions: np.ndarray,
    rows: tuple[np.ndarray, np.ndarray],
    codes: csc_array,
    folds: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sums per fold, of differences about the mean: (number, squares, squared errors of the dictionary); squared scores
    on each component; and the differences."""
    n_folds, d = int(folds.max()) + 1, len(mean)
    sums, scores, totals = np.zeros((n_folds, 3)), np.zeros((n_folds, d)), np.zeros((n_folds, d))
    # What a latent, and what the biases, write on adapted minus base, in the units of the rows.
    scales = joint.scales.astype(np.float64)
    writes = joint.decoder[:, 1] * scales[1] - joint.decoder[:, 0] * scales[0]
    constant = (joint.decoder_bias * scales[:, None] + joint.means)[1] - (
        joint.decoder_bias * scales[:, None] + joint.means
    )[0]
    by_row = codes.tocsr()
    for batch in row_batches(len(folds)):
        moved = rows[1][batch].astype(np.float64) - rows[0][batch] - mean
        missed = moved - (by_row[batch] @ writes + constant - mean)
        parts = np.stack([np.ones(len(moved)), (moved**2).sum(1), (missed**2).sum(1)], axis=1)
        for into, values in ((sums, parts), (scores, (moved @ directions.T) ** 2), (totals, moved)):
            np.add.at(into, folds[batch], values)
    return sums, scores, totals
