"""How much of the gap between two sides' dictionaries is a shift, a scale or a rotation of the rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int, Num
from torch import Tensor

from layerprobe.errors import ArgumentError
from layerprobe.sae._dictionary import Dictionary, encode, row_batches
from layerprobe.sae._evaluation import SaeQuality, ev_difference, evaluate
from layerprobe.stats import jackknife

if TYPE_CHECKING:
    import pandas as pd

ALIGNMENTS = ("none", "mean", "scale", "rotation", "ridge")
"""From no parameter to d x d of them, each way; `scale` and `rotation` include the mean."""
PENALTIES = 10.0 ** np.arange(-6, 1)
"""Of ridge regression, in units of the mean variance of a feature."""
HELD_OUT = 5
"""Every fifth example chooses the penalty."""


@dataclass(frozen=True, eq=False)
class Affine:
    """Rows x -> x matrix + shift."""

    matrix: Float[np.ndarray, "d d"]
    shift: Float[np.ndarray, " d"]

    def __call__(self, rows: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        matrix, shift = (torch.from_numpy(part.astype(np.float32)).to(rows.device) for part in vars(self).values())
        return torch.addmm(shift, rows, matrix)


@dataclass(frozen=True, eq=False)
class Alignment:
    """A map of adapted rows into base's space, and one back."""

    there: Affine
    back: Affine


@dataclass(frozen=True)
class AlignedDictionary(Dictionary):
    """Base's dictionary as a dictionary of adapted rows: a row is mapped to base's space, reconstructed and mapped back."""

    alignment: Alignment

    @property
    def decoder(self) -> Float[Tensor, "d_sae d_in"]:
        return super().decoder @ torch.from_numpy(self.alignment.back.matrix).to(super().decoder)

    @torch.inference_mode()
    def encode(self, rows: Float[Tensor, "n d_in"]) -> Float[Tensor, "n d_sae"]:
        return super().encode(self.alignment.there(rows))

    @torch.inference_mode()
    def decode(self, codes: Float[Tensor, "n d_sae"], rows: Float[Tensor, "n d_in"]) -> Float[Tensor, "n d_in"]:
        return self.alignment.back(super().decode(codes, self.alignment.there(rows)))


def fit_alignments(
    base_rows: Num[np.ndarray, "n d"], adapted_rows: Num[np.ndarray, "n d"], groups: Int[np.ndarray, " n"]
) -> dict[str, Alignment]:
    """Maps of adapted rows to the base rows of the same tokens, from the most rigid to the most flexible.

    * `none`: rows as they are.
    * `mean`: the adapted mean is moved to base's.
    * `scale`: also, one factor makes the root mean squared distance from the mean equal.
    * `rotation`: mean, and the orthogonal matrix (reflections included) with the least squared error (orthogonal
      Procrustes; Schönemann 1966); without a factor.
    * `ridge`: any affine map, by ridge regression of base on adapted rows; the map back is a regression of adapted on base
      rows, so that what one side's rows do not predict of the other's linearly is lost. Each penalty is the best of seven
      on every fifth example; the maps are then fitted on all rows.

    The first four are inverted exactly.

    Args:
        base_rows: for instance those that base's dictionary was trained on; may be memory-mapped.
        adapted_rows: of the same tokens in the same order.
        groups: example of each row.

    Raises:
        ArgumentError: if the shapes differ, there are fewer than two rows or `HELD_OUT` examples, or a side does not vary.
    """
    if base_rows.shape != adapted_rows.shape or base_rows.ndim != 2 or len(groups) != len(base_rows):
        raise ArgumentError(
            f"{{base_rows}} has shape {base_rows.shape}, {{adapted_rows}} {adapted_rows.shape}, and {{groups}} has "
            f"{len(groups)} values; give both sides' rows of the same tokens.",
            *("base_rows", "adapted_rows", "groups"),
        )
    examples, numbers = np.unique(groups, return_inverse=True)
    if len(examples) < HELD_OUT:
        raise ArgumentError(
            f"{{groups}} names {len(examples)} examples; an alignment needs rows of at least {HELD_OUT}.", "groups"
        )
    parts = _moments(base_rows, adapted_rows, numbers % HELD_OUT == HELD_OUT - 1)
    whole = parts[0] + parts[1]
    (base_mean, adapted_mean), (base, adapted) = whole.means, whole.spreads
    if not (base > 0 and adapted > 0):
        raise ArgumentError(
            "{base_rows} or {adapted_rows} do not vary; give rows of several tokens.", "base_rows", "adapted_rows"
        )
    d = base_rows.shape[1]
    u, _, vh = np.linalg.svd(whole.cross.T)
    rotation = u @ vh
    factor = np.sqrt(base / adapted)

    def rigid(matrix: np.ndarray, inverse: np.ndarray) -> Alignment:
        there = Affine(matrix, base_mean - adapted_mean @ matrix)
        return Alignment(there, Affine(inverse, adapted_mean - base_mean @ inverse))

    none = Affine(np.eye(d), np.zeros(d))
    return {
        "none": Alignment(none, none),
        "mean": rigid(np.eye(d), np.eye(d)),
        "scale": rigid(np.eye(d) * factor, np.eye(d) / factor),
        "rotation": rigid(rotation, rotation.T),
        "ridge": Alignment(_ridge(*(part.swapped for part in parts)), _ridge(*parts)),
    }


def aligned_transfer(
    dictionary: Dictionary,
    home: SaeQuality,
    alignments: Mapping[str, Alignment],
    rows: Num[np.ndarray, "n d"],
    groups: Int[np.ndarray, " n"],
) -> pd.DataFrame:
    """Explained variance of adapted rows by base's dictionary after each alignment, and the share of the gap it closes.

    The gap is the explained variance of the adapted model's dictionary minus that of base's dictionary on the same rows as
    they are. All reconstructions are compared with the rows in the adapted space.

    Args:
        dictionary: base's, or a control.
        home: `evaluate` of the adapted model's dictionary on `rows` and `groups`.
        alignments: by `fit_alignments`, on rows of other examples; with `none`.
        rows: adapted rows.
        groups: example of each row.

    Returns:
        One row per alignment: `alignment`; `explained_variance`, `ev_low`, `ev_high`; `gap_share` (of the gap that the
        alignment closes: 0 for none, 1 where it reaches the adapted model's dictionary, above 1 beyond it) with
        `gap_share_low` and `gap_share_high`; `why`: why the share is undefined, empty if it is defined. It is undefined
        where the paired interval of the gap includes 0. Intervals are 95%, by a delete-group jackknife over 20 folds of
        whole examples, for these dictionaries and alignments.
    """
    import pandas as pd

    results = {}
    for name, alignment in alignments.items():
        aligned = AlignedDictionary(dictionary.sae, alignment)
        results[name] = evaluate(aligned, rows, encode(aligned, rows), groups)
    gap, table = ev_difference(home, results["none"]), []
    for name, result in results.items():
        row: dict[str, Any] = {"alignment": name, "explained_variance": result.explained_variance}
        row |= {"ev_low": result.ev_low, "ev_high": result.ev_high}
        if gap.low > 0:
            share = _gap_share(result, results["none"], home)
            row |= {"gap_share": share.value, "gap_share_low": share.low, "gap_share_high": share.high, "why": ""}
        else:
            why = f"The gap is {gap.value:.3f} (95% interval {gap.low:.3f} to {gap.high:.3f}), which may be 0."
            row |= {"gap_share": np.nan, "gap_share_low": np.nan, "gap_share_high": np.nan, "why": why}
        table.append(row)
    return pd.DataFrame(table)


def _gap_share(aligned: SaeQuality, none: SaeQuality, home: SaeQuality) -> Any:
    def share(fold: int | None) -> float:
        a, n, h = (one.explained_variance if fold is None else one.left_out[fold] for one in (aligned, none, home))
        return (a - n) / (h - n)

    return jackknife(share, len(home.left_out), home.examples)


@dataclass(frozen=True, eq=False)
class _Moments:
    """Sums over rows of two sides in float64, about fixed points near the rows: a large mean cancels most digits."""

    n: int
    origins: Float[np.ndarray, "2 d"]
    sums: Float[np.ndarray, "2 d"]
    squares: Float[np.ndarray, "2 d d"]
    products: Float[np.ndarray, "d d"]
    """First side x second side."""

    def __add__(self, other: _Moments) -> _Moments:
        added = (getattr(self, name) + getattr(other, name) for name in ("sums", "squares", "products"))
        return _Moments(self.n + other.n, self.origins, *added)

    @property
    def swapped(self) -> _Moments:
        return _Moments(self.n, self.origins[::-1], self.sums[::-1], self.squares[::-1], self.products.T)

    @cached_property
    def means(self) -> Float[np.ndarray, "2 d"]:
        return self.origins + self.sums / self.n

    @cached_property
    def cross(self) -> Float[np.ndarray, "d d"]:
        """Products about the means."""
        return self.products - np.outer(self.sums[0], self.sums[1]) / self.n

    @cached_property
    def covariance(self) -> Float[np.ndarray, "d d"]:
        """Products of the first side with itself, about its mean."""
        return self.squares[0] - np.outer(self.sums[0], self.sums[0]) / self.n

    @property
    def spreads(self) -> tuple[float, float]:
        """Sum of squared distances from the mean, of each side."""
        squares = np.trace(self.squares, axis1=1, axis2=2) - (self.sums**2).sum(1) / self.n
        return float(squares[0]), float(squares[1])


def _moments(base_rows: np.ndarray, adapted_rows: np.ndarray, held_out: np.ndarray) -> tuple[_Moments, _Moments]:
    """Moments of the rows that are not held out, and of those that are."""
    d = base_rows.shape[1]
    origins = np.stack([base_rows[0], adapted_rows[0]]).astype(np.float64)
    sums, squares = np.zeros((2, 2, d)), np.zeros((2, 2, d, d))
    products = np.zeros((2, d, d))
    for batch in row_batches(len(base_rows)):
        sides = [
            side[batch].astype(np.float64) - origin
            for side, origin in zip((base_rows, adapted_rows), origins, strict=True)
        ]
        for part in (0, 1):
            x, y = (side[held_out[batch] == part] for side in sides)
            sums[part] += x.sum(0), y.sum(0)
            squares[part] += x.T @ x, y.T @ y
            products[part] += x.T @ y
    counts = int((~held_out).sum()), int(held_out.sum())
    first, second = (_Moments(n, origins, *of) for n, *of in zip(counts, sums, squares, products, strict=True))
    return first, second


def _ridge(fitted: _Moments, held_out: _Moments) -> Affine:
    """Regression of the second side on the first; the penalty is the best of `PENALTIES` on the held-out rows."""
    # Held-out products about the fitted means, for the error of each candidate in closed form.
    first, second = (held_out.n * (a - b) for a, b in zip(held_out.means, fitted.means, strict=True))
    covariance = held_out.covariance + np.outer(first, first) / held_out.n
    cross = held_out.cross + np.outer(first, second) / held_out.n

    def error(penalty: float) -> float:
        matrix = _regression(fitted, penalty)
        return float(np.trace(matrix.T @ covariance @ matrix) - 2 * (matrix * cross).sum())

    whole = fitted + held_out
    matrix = _regression(whole, min(PENALTIES, key=error))
    return Affine(matrix, whole.means[1] - whole.means[0] @ matrix)


def _regression(moments: _Moments, penalty: float) -> Float[np.ndarray, "d d"]:
    d = len(moments.covariance)
    weight = penalty * np.trace(moments.covariance) / d
    return np.linalg.solve(moments.covariance + weight * np.eye(d), moments.cross)
