"""How well a dictionary explains rows that it was not trained on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int, Num
from tqdm import tqdm

from layerprobe.errors import MeasureError
from layerprobe.sae._dictionary import Dictionary

if TYPE_CHECKING:
    import pandas as pd

FOLDS = 20
DENSITY_EDGES = np.arange(-6, 0.25, 0.5)
"""Half decades of firing frequency."""


@dataclass(frozen=True)
class SaeQuality:
    """What a dictionary keeps of a set of rows, and how sparsely."""

    explained_variance: float
    """1 - E|x - reconstruction|^2 / (E|x|^2 - |E x|^2): the mean scores 0, a perfect copy 1; it may be negative."""
    ev_low: float
    """95% interval of it, by a delete-group jackknife over 20 groups of whole examples."""
    ev_high: float
    l0: float
    """Active latents a row, on average."""
    dead_share: float
    """Share of latents that are active on none of these rows."""
    n: int
    """Rows."""
    examples: int
    """Examples that the rows come from."""
    reconstruction_bias: float
    """Relative reconstruction bias E|r|^2 / E<r, x> of reconstructions r of rows x: below 1 they are too small on
    average, as an L1 penalty makes them, and dividing by it leaves the least error. Equation 10 of Rajamanoharan et al.
    2024 (arXiv 2404.16014), `relative_reconstruction_bias` in SAEBench, which averages it over batches; here it is one
    ratio of sums. NaN where reconstructions are orthogonal to the rows, as when all are zero."""
    densities: pd.DataFrame = field(compare=False, repr=False)
    """How often latents fire: `low` and `high` (log10 of the share of rows, low < frequency <= high, half decades; the
    first reaches down to anything above zero) and `latents` (how many). The first row counts those that never fire on
    these rows, with both ends -inf. Few rows cannot show a low frequency: nothing lies below 1 / n."""


def evaluate(
    dictionary: Dictionary,
    rows: Num[np.ndarray, "n d"],
    groups: Int[np.ndarray, " n"],
    *,
    batch_size: int = 4096,
    seed: int = 0,
    progress: bool = True,
) -> SaeQuality:
    """What a dictionary keeps of rows, and how sparsely, with an interval over whole examples.

    Args:
        dictionary: takes rows as they are.
        rows: activations; may be memory-mapped.
        groups: example of each row; all rows of an example move together.
        batch_size: rows held at a time.
        seed: of the folds.
        progress: whether to draw a progress bar on stderr.

    Raises:
        MeasureError: if there are too few rows or examples, the width differs, or the rows do not vary.
    """
    if rows.ndim != 2 or rows.shape[1] != dictionary.d_in:
        raise MeasureError(
            f"evaluate was given rows of shape {rows.shape}; this dictionary takes {dictionary.d_in} wide."
        )
    examples, numbers = np.unique(groups, return_inverse=True)
    if len(rows) < 4 or len(examples) < 2:
        raise MeasureError(
            f"evaluate was given {len(rows)} rows of {len(examples)} examples; it needs 4 rows of 2 examples: "
            "give more texts."
        )
    n_folds = min(FOLDS, len(examples))
    folds = np.random.default_rng(seed).permutation(np.arange(len(examples)) % n_folds)[numbers]
    # About the first row: a large mean would cancel most digits of E|x|^2 - |E x|^2.
    shift = np.asarray(rows[0], dtype=np.float64)
    sums = Sums.empty(n_folds, rows.shape[1])
    firing = np.zeros(dictionary.d_sae, dtype=np.int64)
    norms = products = 0.0
    starts = range(0, len(rows), batch_size)
    for start in tqdm(starts, desc="evaluating", leave=False, disable=not progress, delay=1):
        x = np.asarray(rows[start : start + batch_size])
        codes = dictionary.encode(x)
        firing += (codes > 0).sum(0)
        rebuilt = dictionary.decode(codes)
        sums.add(x, rebuilt, shift, folds[start : start + batch_size])
        norms += float(np.einsum("nd,nd->", rebuilt, rebuilt, dtype=np.float64))
        products += float(np.einsum("nd,nd->", rebuilt, x, dtype=np.float64))
    value = sums.explained_variance()
    low, high = _jackknife(sums, value)
    return SaeQuality(
        value,
        low,
        high,
        float(firing.sum() / len(rows)),
        float((firing == 0).mean()),
        n=len(rows),
        examples=len(examples),
        reconstruction_bias=norms / products if products else float("nan"),
        densities=density_table(firing, len(rows)),
    )


def density_table(firing: Int[np.ndarray, " d_sae"], n: int) -> pd.DataFrame:
    """Latents by how often they fire, as `SaeQuality.densities`, from the number of rows that each is active on."""
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


@dataclass(frozen=True)
class Sums:
    """What explained variance is made of, kept apart by fold: sums, never ratios of batches."""

    rows: np.ndarray
    errors: np.ndarray
    squares: np.ndarray
    totals: np.ndarray

    @classmethod
    def empty(cls, n_folds: int, d: int) -> Sums:
        return cls(np.zeros(n_folds), np.zeros(n_folds), np.zeros(n_folds), np.zeros((n_folds, d)))

    def add(self, x: np.ndarray, reconstruction: np.ndarray, shift: np.ndarray, folds: np.ndarray) -> None:
        x = np.asarray(x, dtype=np.float64)
        error = ((x - reconstruction) ** 2).sum(1)
        moved = x - shift
        n_folds = len(self.rows)
        np.add(self.rows, np.bincount(folds, minlength=n_folds), out=self.rows)
        np.add(self.errors, np.bincount(folds, weights=error, minlength=n_folds), out=self.errors)
        np.add(self.squares, np.bincount(folds, weights=(moved**2).sum(1), minlength=n_folds), out=self.squares)
        for fold in np.unique(folds):
            self.totals[fold] += moved[folds == fold].sum(0)

    def explained_variance(self, without: int | None = None) -> float:
        keep = np.arange(len(self.rows)) != (-1 if without is None else without)
        n = self.rows[keep].sum()
        variance = self.squares[keep].sum() / n - ((self.totals[keep].sum(0) / n) ** 2).sum()
        if not variance > 0:
            raise MeasureError("Explained variance is undefined: the rows do not vary. Give rows of several texts.")
        return float(1 - self.errors[keep].sum() / n / variance)


def _jackknife(sums: Sums, value: float) -> tuple[float, float]:
    from scipy.stats import t

    n = len(sums.rows)
    left = np.array([sums.explained_variance(without=fold) for fold in range(n)])
    spread = np.sqrt((n - 1) / n * ((left - left.mean()) ** 2).sum())
    reach = float(t.ppf(0.975, n - 1) * spread)
    return value - reach, min(1.0, value + reach)
