"""How much of each layer's variance lies between labels, compared with labels permuted among examples of similar length."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, Int

from layerprobe.device import has_float64
from layerprobe.errors import MeasureError
from layerprobe.progress import track
from layerprobe.stats import assign_folds, length_strata, permuted_labels

if TYPE_CHECKING:
    import pandas as pd

ALPHA = 0.05
FOLDS = 20
"""Groups of examples that the jackknife leaves out in turn."""
BLOCK = 8192
"""Rows converted to float64 at a time."""
DRAWS = 50
"""Permutations evaluated at a time."""
CONSTANT = 1e-12
"""Variance below which a layer is constant, relative to its mean square; and standard deviation of shares that is rounding."""


@dataclass(frozen=True)
class LabelVariance:
    """Share of variance between labels by layer, of one model or as the difference of two; by `label_variance`.

    Attributes:
        layers: layer numbers.
        n: number of examples.
        share: between-label share of the variance, `(layers,)`.
        expected: its mean over all permutations of the labels within strata of length, `(layers,)`.
        permuted: share minus `expected` under each permutation; row i is the same permutation in all layers and models.
        left_out: share minus `expected` without each fold of examples.
        is_difference: whether the shares of another model were subtracted.
    """

    layers: tuple[int, ...]
    n: int
    share: Float[np.ndarray, " layers"]
    expected: Float[np.ndarray, " layers"]
    permuted: Float[np.ndarray, "permutations layers"]
    left_out: Float[np.ndarray, "folds layers"]
    is_difference: bool = False

    @property
    def excess(self) -> Float[np.ndarray, " layers"]:
        """Share minus its mean under permuted labels."""
        return self.share - self.expected

    def minus(self, other: LabelVariance) -> LabelVariance:
        """This model's shares minus those of another one, on the same examples and under the same permutations.

        Raises:
            MeasureError: if layers, examples, permutations or folds differ.
        """
        shapes = [(one.layers, one.n, one.permuted.shape, one.left_out.shape) for one in (self, other)]
        if shapes[0] != shapes[1]:
            raise MeasureError(
                f"{{other}} has layers {other.layers}, {other.n} examples and {len(other.permuted)} permutations, this one "
                f"{self.layers}, {self.n} and {len(self.permuted)}; measure both on the same ones.",
                "other",
            )
        names = ("share", "expected", "permuted", "left_out")
        return replace(self, is_difference=True, **{k: getattr(self, k) - getattr(other, k) for k in names})

    @cached_property
    def _spread(self) -> np.ndarray:
        """Standard deviation over permutations; infinite where it is rounding, as between two equal layers."""
        spread = np.sqrt(np.square(self.permuted).sum(axis=0) / max(len(self.permuted), 1))
        return np.where(spread > CONSTANT, spread, np.inf)

    @cached_property
    def _largest(self) -> np.ndarray:
        """For each permutation, the largest excess over layers in standard deviations of its layer.

        The standard deviation leaves out the permutation itself, as that for the observed labels does.
        """
        squares = np.square(self.permuted)
        others = (squares.sum(axis=0) - squares) / max(len(squares) - 1, 1)
        spread = np.where(np.isfinite(self._spread), np.sqrt(np.maximum(others, CONSTANT**2)), np.inf)
        return (self.permuted / spread).max(axis=1)

    @property
    def p(self) -> Float[np.ndarray, " layers"]:
        """One-sided p by permutation, for each layer alone: (1 + permutations at least as large) / (1 + permutations)."""
        # Permutations that repeat the observed labels are ties, which rounding must not break.
        return (1 + (self.permuted >= self.excess - CONSTANT).sum(axis=0)) / (1 + len(self.permuted))

    @property
    def p_simultaneous(self) -> Float[np.ndarray, " layers"]:
        """One-sided p of the largest standardised excess over layers: valid for all layers at once."""
        z = (self.excess - CONSTANT) / self._spread
        return (1 + (self._largest[:, None] >= z).sum(axis=0)) / (1 + len(self.permuted))

    @property
    def critical(self) -> Float[np.ndarray, " layers"]:
        """Excess above which `p_simultaneous` is at most .05; NaN for fewer than 19 permutations, or where they change nothing."""
        allowed = int(np.floor(ALPHA * (1 + len(self.permuted)) + 1e-9)) - 1
        if allowed < 0:
            return np.full(len(self.layers), np.nan)
        return np.sort(self._largest)[::-1][allowed] * np.where(np.isfinite(self._spread), self._spread, np.nan)

    @cached_property
    def _error(self) -> np.ndarray:
        folds = len(self.left_out)
        return np.sqrt((folds - 1) * self.left_out.var(axis=0))

    @property
    def interval(self) -> Float[np.ndarray, "2 layers"]:
        """Ends of the 95% interval of the excess of each layer: delete-group jackknife over examples, Student's t.

        Without any effect the statistic is degenerate and the interval too wide; judge that by `p`.
        """
        from scipy.stats import t

        reach = t.ppf(1 - ALPHA / 2, len(self.left_out) - 1) * self._error
        return np.stack([self.excess - reach, self.excess + reach])

    @property
    def lower_simultaneous(self) -> Float[np.ndarray, " layers"]:
        """Lower ends of one-sided jackknife intervals that hold for all layers at once at 95% (Bonferroni)."""
        from scipy.stats import t

        return self.excess - t.ppf(1 - ALPHA / len(self.layers), len(self.left_out) - 1) * self._error

    @property
    def exceeds(self) -> Bool[np.ndarray, " layers"]:
        """Layers whose excess is shown to be above 0, at most one false layer in 5% of data sets.

        For one model: `p_simultaneous` is at most .05. For a difference, `lower_simultaneous` must be above 0 as well:
        permutations stand for examples without any label variance, and two models with equal label variance above 0
        differ by more.
        """
        beyond = self.p_simultaneous <= ALPHA
        return beyond & (self.lower_simultaneous > 0) if self.is_difference else beyond

    @property
    def onset(self) -> int | None:
        """The first layer that exceeds, None if none does."""
        return next((layer for layer, beyond in zip(self.layers, self.exceeds, strict=True) if beyond), None)

    def table(self) -> pd.DataFrame:
        """One row per layer."""
        import pandas as pd

        low, high = self.interval
        return pd.DataFrame(
            {
                "layer": self.layers,
                "share": self.share,
                "expected": self.expected,
                "excess": self.excess,
                "ci_low": low,
                "ci_high": high,
                "p": self.p,
                "p_simultaneous": self.p_simultaneous,
                "critical": self.critical,
                "lower_simultaneous": self.lower_simultaneous,
                "exceeds": self.exceeds,
                "permutations": len(self.permuted),
                "n": self.n,
            }
        )


def label_variance(
    layers: Mapping[int, Float[np.ndarray, "rows width"]],
    example: Int[np.ndarray, " of_rows"],
    labels: Int[np.ndarray, " examples"],
    lengths: Int[np.ndarray, " lengths"],
    *,
    permutations: int = 1000,
    seed: int = 0,
    device: str = "cpu",
) -> LabelVariance:
    """Between-label share of the variance of each layer, with its mean and its distribution under permuted labels.

    Every example has the same weight, whatever its number of rows: the variance is that of a row drawn at random from an
    example drawn at random. It is the sum of the variance between labels, between examples of one label and within
    examples; the share is that of the first part (the one-way analysis of variance of rows with weights 1 / rows of the
    example). The null permutes the labels of whole examples within strata of similar length, so that what follows from
    length alone is not counted; the mean share over all such permutations is exact (sampling without replacement), the
    distribution is that of random permutations, the same ones for all layers and for all models with one seed.

    The onset compares layers by the excess over that mean in standard deviations under permutation, with the distribution
    of its maximum over layers (Westfall and Young 1993).

    Args:
        layers: layer -> rows of that layer.
        example: example of each row, numbered from 0.
        labels: label of each example.
        lengths: length of each example, such as its number of tokens.
        permutations: number of permutations.
        seed: seed of permutations and folds.
        device: where sums of permuted examples, which take most of the time, are computed if it has float64; else, and all
            other sums, on the CPU.

    Raises:
        MeasureError: if the arrays do not fit, fewer than two labels occur or two examples have one, a value is not finite,
            or a layer is constant.
    """
    _check(layers, example, labels, lengths)
    names, strata = tuple(sorted(layers)), length_strata(lengths)
    n = len(labels)
    classes = np.unique(labels, return_inverse=True)[1]
    folds = assign_folds(n, FOLDS, seed)
    members = [
        (drawn[:, None, :] == np.arange(classes.max())[:, None]).reshape(-1, n)
        for drawn in permuted_labels(classes, strata, permutations, seed, block=DRAWS)
    ]
    share, expected, permuted, left_out = [], [], [], []
    for layer in track(names, "label variance"):
        means, squares = _example_moments(layers[layer], example, n, layer)
        sums = _Sums.of(means, squares, classes, strata)
        share.append(sums.between / sums.total)
        expected.append(sums.expected / sums.total)
        kept = (
            _Sums.of(*(a[folds != fold] for a in (means, squares, classes, strata))) for fold in range(folds.max() + 1)
        )
        left_out.append([(one.between - one.expected) / one.total for one in kept])
        between = _between_permuted(means - means.mean(axis=0), np.bincount(classes), members, device)
        permuted.append((between - sums.expected) / sums.total)
    return LabelVariance(
        names, n, np.array(share), np.array(expected), np.array(permuted).T.copy(), np.array(left_out).T.copy()
    )


@dataclass(frozen=True)
class _Sums:
    """Sums of squares of one layer."""

    between: float
    """Between labels."""
    expected: float
    """Mean of `between` over all permutations within strata."""
    total: float

    @classmethod
    def of(cls, means: np.ndarray, squares: np.ndarray, classes: np.ndarray, strata: np.ndarray) -> _Sums:
        """From the mean and the mean square of each example's rows."""
        centre = means.mean(axis=0)
        centred = means - centre
        counts = _add_up(np.eye(strata.max() + 1)[strata], classes)
        of_label, of_stratum = (_add_up(centred, groups) for groups in (classes, strata))
        sizes, totals = counts.sum(axis=0), np.maximum(counts.sum(axis=1), 1)  # a fold may hold all of one label
        between = float((np.square(of_label).sum(axis=1) / totals).sum())
        # A label's sum of centred vectors under permutation: members of each stratum drawn without replacement.
        held = np.maximum(sizes, 1)
        inner = (
            _add_up(np.square(centred).sum(axis=1)[:, None], strata)[:, 0] - np.square(of_stratum).sum(axis=1) / held
        )
        mean = (counts / held) @ of_stratum
        variance = (counts * (sizes - counts)) @ (inner / (held * np.maximum(sizes - 1, 1)))
        expected = float(((np.square(mean).sum(axis=1) + variance) / totals).sum())
        return cls(between, expected, float(squares.sum() - len(means) * np.square(centre).sum()))


def _add_up(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Sum of the rows of each group."""
    return (np.arange(groups.max() + 1)[:, None] == groups).astype(np.float64) @ values


def _between_permuted(centred: np.ndarray, totals: np.ndarray, members: list[np.ndarray], device: str) -> np.ndarray:
    """Sum of squares between labels under each permutation; the last label's sum is minus that of the others."""
    if has_float64(device):
        return _between_permuted_there(centred, totals, members, device)
    between = []
    for block in members:
        sums = (block.astype(np.float64) @ centred).reshape(-1, len(totals) - 1, centred.shape[1])
        squares = np.einsum("pkd,pkd->pk", sums, sums)
        between.append(squares @ (1 / totals[:-1]) + np.square(sums.sum(axis=1)).sum(axis=1) / totals[-1])
    return np.concatenate(between) if between else np.zeros(0)


def _between_permuted_there(
    centred: np.ndarray, totals: np.ndarray, members: list[np.ndarray], device: str
) -> np.ndarray:
    import torch

    rows, weights = (torch.from_numpy(z).to(device) for z in (centred, 1 / totals))
    between = []
    for block in members:
        sums = (torch.from_numpy(block).to(device).double() @ rows).reshape(-1, len(totals) - 1, rows.shape[1])
        between.append(sums.square().sum(2) @ weights[:-1] + sums.sum(1).square().sum(1) * weights[-1])
    return torch.cat(between).cpu().numpy() if between else np.zeros(0)


def _example_moments(rows: np.ndarray, example: np.ndarray, n: int, layer: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and mean square of each example's rows, minus a common vector.

    Raises:
        MeasureError: if a value is not finite or the layer is constant.
    """
    from scipy.sparse import csr_array

    weight = 1 / np.bincount(example, minlength=n)
    shift = np.asarray(rows[:BLOCK], dtype=np.float64).mean(axis=0)
    means, squares, norms = np.zeros((n, rows.shape[1])), np.zeros(n), 0.0
    for start in range(0, len(rows), BLOCK):
        values = np.asarray(rows[start : start + BLOCK], dtype=np.float64)
        group = example[start : start + BLOCK]
        norms += float(np.square(values).sum(axis=1) @ weight[group])
        if not np.isfinite(norms):
            raise MeasureError(
                f"{{layers}} has values at layer {layer} that are not finite; capture them again.", "layers"
            )
        values = values - shift
        means += csr_array((weight[group], (group, np.arange(len(group)))), shape=(n, len(group))) @ values
        squares += np.bincount(group, weights=np.square(values).sum(axis=1) * weight[group], minlength=n)
    if squares.sum() - n * np.square(means.mean(axis=0)).sum() <= CONSTANT * norms:
        raise MeasureError(f"{{layers}} is constant at layer {layer}; its variance has no shares.", "layers")
    return means, squares


def _check(layers: Mapping[int, np.ndarray], example: np.ndarray, labels: np.ndarray, lengths: np.ndarray) -> None:
    if not layers:
        raise MeasureError("{layers} is empty; give at least one layer.", "layers")
    for layer, rows in layers.items():
        if len(rows) != len(example):
            raise MeasureError(
                f"{{layers}} has {len(rows)} rows at layer {layer} but {{example}} {len(example)}; give one per row.",
                "layers",
                "example",
            )
    if len(lengths) != len(labels):
        raise MeasureError(
            f"{{lengths}} has {len(lengths)} examples but {{labels}} {len(labels)}; give one of each per example.",
            "lengths",
            "labels",
        )
    counts = np.bincount(example, minlength=len(labels)) if len(example) and example.min() >= 0 else np.zeros(1)
    if len(counts) != len(labels) or (counts == 0).any():
        raise MeasureError(
            f"{{example}} must number {len(labels)} examples, as {{labels}} has, from 0 without a gap.",
            "example",
            "labels",
        )
    sizes = np.unique(labels, return_counts=True)[1]
    if len(sizes) < 2 or sizes.max() < 2:
        raise MeasureError(
            f"{{labels}} has {len(sizes)} distinct values in {len(labels)} examples; give at least two labels, one of them "
            "twice.",
            "labels",
        )
