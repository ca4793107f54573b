"""How well a dictionary reconstructs rows that it was not trained on, and how sparsely."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Int, Num

from layerprobe.errors import ArgumentError, MeasureError
from layerprobe.progress import track
from layerprobe.sae._dictionary import Dictionary, float64_device, row_batches
from layerprobe.stats import Estimate, assign_folds, jackknife

if TYPE_CHECKING:
    import pandas as pd

FOLDS = 20
DENSITY_EDGES = np.arange(-6, 0.25, 0.5)
"""Half decades of firing frequency."""


@dataclass(frozen=True)
class SaeQuality:
    """Reconstruction and sparsity of a dictionary on a set of rows."""

    explained_variance: float
    """1 - E|x - reconstruction|^2 / (E|x|^2 - |E x|^2): 0 for predicting the mean, 1 for a perfect copy; may be
    negative."""
    ev_low: float
    """95% interval, by a delete-group jackknife over 20 folds of whole examples."""
    ev_high: float
    l0: float
    """Active latents per row, on average."""
    dead_share: float
    """Share of latents that are active on none of these rows."""
    n: int
    """Rows."""
    examples: int
    """Examples that the rows come from."""
    reconstruction_bias: float
    """Relative reconstruction bias E|r|^2 / E<r, x> of reconstructions r of rows x: below 1 where they are too small on
    average, as under an L1 penalty; dividing by it minimises the error. Equation 10 of Rajamanoharan et al. 2024 (arXiv
    2404.16014); SAEBench averages it over batches, here it is one ratio of sums. NaN if reconstructions are orthogonal
    to the rows, as when all are zero."""
    densities: pd.DataFrame = field(compare=False, repr=False)
    """Histogram of firing frequencies: `low` and `high` (log10 of the share of rows, low < frequency <= high, in half
    decades; the first bin extends down to 0) and `latents` (count). The first row, with both ends -inf, counts dead
    latents."""
    left_out: tuple[float, ...] = field(default=(), compare=False, repr=False)
    """Explained variance without each fold of examples, for paired differences."""


def evaluate(
    dictionary: Dictionary,
    rows: Num[np.ndarray, "n d"],
    codes: Any,
    groups: Int[np.ndarray, " n"],
) -> SaeQuality:
    """Measure how well a dictionary reconstructs rows, and how sparsely, with an interval over whole examples.

    Args:
        dictionary: its decoder computes on its device.
        rows: activations of a layer; may be memory-mapped.
        codes: the dictionary's activations on these rows, by `encode`.
        groups: example of each row; the jackknife leaves out whole examples.

    Raises:
        MeasureError: if there are too few rows or examples, shapes do not fit, or the rows do not vary.
    """
    check_codes(codes, len(rows), dictionary.d_sae)
    examples, numbers = np.unique(groups, return_inverse=True)
    if len(rows) < 4 or len(examples) < 2:
        raise MeasureError(
            f"evaluate was given {len(rows)} rows of {len(examples)} examples; it needs at least 4 rows of 2 examples."
        )
    n_folds = min(FOLDS, len(examples))
    sums, totals = _sums(dictionary, rows, codes, assign_folds(len(examples), FOLDS, seed=0)[numbers])

    def explained_variance(without: int | None) -> float:
        keep = np.arange(n_folds) != (-1 if without is None else without)
        n, errors, squares = sums[keep, :3].sum(0)
        variance = squares / n - ((totals[keep].sum(0) / n) ** 2).sum()
        if not variance > 0:
            raise MeasureError("Explained variance is undefined: the rows do not vary. Give rows of several examples.")
        return float(1 - errors / n / variance)

    value, left_out = explained_variance(None), tuple(explained_variance(fold) for fold in range(n_folds))
    estimate = jackknife(lambda fold: value if fold is None else left_out[fold], n_folds, len(examples), high=1.0)
    norms, products = sums[:, 3:].sum(0)
    firing = np.diff(codes.indptr)
    return SaeQuality(
        estimate.value,
        estimate.low,
        estimate.high,
        float(firing.sum() / len(rows)),
        float((firing == 0).mean()),
        n=len(rows),
        examples=len(examples),
        reconstruction_bias=float(norms / products) if products else float("nan"),
        densities=density_table(firing, len(rows)),
        left_out=left_out,
    )


def ev_difference(one: SaeQuality, other: SaeQuality) -> Estimate:
    """Explained variance of one dictionary minus that of another on the same rows, with a paired 95% interval.

    The delete-group jackknife leaves out the same examples of both, so that what both find hard cancels. The interval is
    over examples, for these two dictionaries.

    Args:
        one: by `evaluate`.
        other: by `evaluate` on the same rows and groups; or, for the gap between two sides, on rows of the same tokens.

    Raises:
        ArgumentError: if the numbers of rows or examples differ.
    """
    if (one.n, one.examples) != (other.n, other.examples):
        raise ArgumentError(
            f"{{one}} was evaluated on {one.n} rows of {one.examples} examples and {{other}} on {other.n} of "
            f"{other.examples}; evaluate both on the same tokens.",
            *("one", "other"),
        )

    def difference(fold: int | None) -> float:
        if fold is None:
            return one.explained_variance - other.explained_variance
        return one.left_out[fold] - other.left_out[fold]

    return jackknife(difference, len(one.left_out), one.examples)


def check_codes(codes: Any, n: int, d_sae: int) -> None:
    """Check that activations are those of `n` rows and `d_sae` latents.

    Raises:
        MeasureError: naming the shapes.
    """
    if codes.shape != (n, d_sae):
        raise MeasureError(
            f"{{codes}} has shape {codes.shape}, but there are {n} rows and {d_sae} latents; give the activations of this "
            "dictionary on these rows.",
            "codes",
        )


def _sums(dictionary: Dictionary, rows: np.ndarray, codes: Any, folds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sums per fold, in float64: (number, |x - r|^2, |x - shift|^2, |r|^2, <r, x>), and x - shift."""
    device = float64_device(dictionary.device)
    n_folds = int(folds.max()) + 1
    # About the first row: a large mean would cancel most digits of E|x|^2 - |E x|^2.
    shift = torch.from_numpy(np.array(rows[0], dtype=np.float64)).to(device)
    sums = torch.zeros(n_folds, 5, dtype=torch.float64, device=device)
    totals = torch.zeros(n_folds, rows.shape[1], dtype=torch.float64, device=device)
    by_row = codes.tocsr()
    for batch in track(list(row_batches(len(rows))), "evaluating"):
        x = torch.from_numpy(np.array(rows[batch], dtype=np.float64))
        active = torch.from_numpy(by_row[batch].toarray()).to(dictionary.device)
        r = dictionary.decode(active, x.float().to(dictionary.device)).to(device).double()
        x, fold = x.to(device), torch.from_numpy(folds[batch]).to(device)
        moved = x - shift
        parts = [torch.ones_like(x[:, 0]), *((a * b).sum(1) for a, b in ((x - r,) * 2, (moved,) * 2, (r, r), (r, x)))]
        sums.index_add_(0, fold, torch.stack(parts, dim=1))
        totals.index_add_(0, fold, moved)
    return sums.cpu().numpy(), totals.cpu().numpy()


def density_table(firing: Int[np.ndarray, " d_sae"], n: int) -> pd.DataFrame:
    """Histogram of firing frequencies, as `SaeQuality.densities`, from the number of rows that each latent is active on."""
    import pandas as pd

    live = np.log10(firing[firing > 0] / n)
    # Rounding must not lift a frequency of exactly a thousandth over its edge.
    bins = np.searchsorted(DENSITY_EDGES[1:], live - 1e-12, side="left")
    counts = np.bincount(bins, minlength=len(DENSITY_EDGES) - 1)
    return pd.DataFrame(
        {
            "low": [-np.inf, *DENSITY_EDGES[:-1]],
            "high": [-np.inf, *DENSITY_EDGES[1:]],
            "latents": [int((firing == 0).sum()), *counts],
        }
    )
