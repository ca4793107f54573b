"""From which layer on the adapted model exceeds the base: differences with simultaneous intervals over layers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from layerprobe.errors import ArgumentError
from layerprobe.stats import jackknife_error, satterthwaite

FEWEST_DICTIONARIES = 2
"""Dictionary seeds below which the variance between dictionaries is unknown."""


@dataclass(frozen=True)
class Crossing:
    """Differences adapted minus base by layer, with 95% intervals that hold for all layers at once.

    All arrays have one value per layer.
    """

    layers: Int[np.ndarray, " layers"]
    """Layers that have dictionaries, in ascending order."""
    difference: Float[np.ndarray, " layers"]
    """Mean over training runs and dictionary seeds; NaN where it is undefined for any of them."""
    low: Float[np.ndarray, " layers"]
    """Lower end of the simultaneous interval; equals the difference where both sides are equal, and is NaN where the
    difference is or where no variance between dictionaries is known."""
    high: Float[np.ndarray, " layers"]
    example_error: Float[np.ndarray, " layers"]
    """Standard error of the mean over test examples, by the jackknife."""
    dictionary_error: Float[np.ndarray, " layers"]
    """Standard error over dictionary seeds; NaN with one."""
    run_error: Float[np.ndarray, " layers"]
    """Standard error over training runs; NaN with one."""
    degrees: Float[np.ndarray, " layers"]
    """Degrees of freedom of the three together (Satterthwaite 1946)."""
    runs: int
    """Training runs. With one, the intervals hold for this adapted model."""
    dictionaries: int
    """Dictionary seeds on each side. With one, everything is conditional on these dictionaries, and there is no onset."""

    @cached_property
    def equal(self) -> Bool[np.ndarray, " layers"]:
        """Whether both sides are equal in every run, as in a layer that adaptation did not change."""
        return (self.difference == 0) & (self.example_error == 0) & ~(self.dictionary_error > 0) & ~(self.run_error > 0)

    @property
    def verdict(self) -> Literal["onset", "none", "flat", "conditional", "undefined"]:
        """`onset`: some lower end is above 0; `none`: no lower end is; `flat`: both sides are equal in every layer;
        `conditional`: one dictionary seed; `undefined`: no layer has a difference."""
        if np.isnan(self.difference).all():
            return "undefined"
        if self.equal[~np.isnan(self.difference)].all():
            return "flat"
        if self.dictionaries < FEWEST_DICTIONARIES:
            return "conditional"
        return "onset" if (self.low > 0).any() else "none"

    @property
    def onset(self) -> int | None:
        """First layer whose lower end is above 0. The increase began at this layer or below."""
        return int(self.layers[np.argmax(self.low > 0)]) if self.verdict == "onset" else None

    @property
    def after(self) -> int | None:
        """The layer with dictionaries before the onset; None if there is none. Its upper end bounds what had begun there."""
        below = self.layers[self.layers < self.onset] if self.onset is not None else self.layers[:0]
        return int(below[-1]) if len(below) else None


def crossing(
    layers: Int[np.ndarray, " numbers"],
    differences: Float[np.ndarray, "runs dictionaries layers"],
    left_out: Float[np.ndarray, "runs dictionaries layers folds"],
    *,
    confidence: float = 0.95,
) -> Crossing:
    """Compare adapted with base in each layer, over test examples, dictionary seeds and training runs at once.

    The variance of the mean difference is the sum of three parts: over examples, by a delete-group jackknife of the mean
    (all runs and dictionaries are measured on the same examples); between dictionary seeds, the larger of the layer's own
    sample variance and the mean over layers, with (seeds - 1) x layers degrees of freedom, divided by the number of seeds;
    and between training runs, the layer's own sample variance with runs - 1 degrees of freedom, divided by the number of
    runs. The degrees of freedom of the sum are Satterthwaite's (1946), at most those of all parts together, and the
    Student's t quantile is that of Sidak (1967) for all layers that differ at all, whatever their correlation.

    With one dictionary seed the variance between dictionaries is unknown: there are no intervals. With one run, what is
    compared is this adapted model.

    Args:
        layers: numbers of the layers, ascending.
        differences: adapted minus base for each training run, dictionary seed and layer; any quantity.
        left_out: the differences without each fold of examples. Folds are the same everywhere.
        confidence: of the simultaneous intervals.

    Raises:
        ArgumentError: if shapes do not fit, layers are not ascending, or there are fewer than two folds.
    """
    differences, left_out = (np.asarray(z, dtype=np.float64) for z in (differences, left_out))
    layers = np.asarray(layers, dtype=np.int64)
    if differences.ndim != 3 or differences.shape[2] != len(layers) or 0 in differences.shape:
        raise ArgumentError(
            f"{{differences}} has shape {differences.shape}; it needs runs x dictionaries x {len(layers)} layers.",
            *("differences", "layers"),
        )
    if left_out.shape[:-1] != differences.shape or left_out.shape[-1] < 2:
        raise ArgumentError(
            f"{{left_out}} has shape {left_out.shape}; it needs {differences.shape} and at least two folds.",
            *("left_out", "differences"),
        )
    if (np.diff(layers) <= 0).any():
        raise ArgumentError(f"{{layers}} are {layers.tolist()}; give them in ascending order.", "layers")
    runs, dictionaries, folds = *differences.shape[:2], left_out.shape[3]
    mean = differences.mean((0, 1))
    without = left_out.mean((0, 1))
    by_example = jackknife_error(without) ** 2
    varying = ~np.isnan(mean) & (np.any(differences != 0, (0, 1)) | (by_example > 0))
    missing = np.full(len(layers), np.nan)
    by_dictionary = by_run = missing
    parts = [(by_example, folds - 1)]
    if dictionaries > 1:
        own = np.where(varying, differences.mean(0).var(0, ddof=1), 0.0)
        pooled = own[varying].mean() if varying.any() else 0.0
        by_dictionary = np.where(varying, np.maximum(own, pooled), own) / dictionaries
        parts.append((by_dictionary, (dictionaries - 1) * max(1, int(varying.sum()))))
    if runs > 1:
        by_run = differences.mean(1).var(0, ddof=1) / runs
        parts.append((by_run, runs - 1))
    variances = np.stack([part for part, _ in parts])
    variance, degrees = variances.sum(0), satterthwaite(variances, np.array([own for _, own in parts]))
    low, high = (mean.copy(), mean.copy()) if dictionaries >= FEWEST_DICTIONARIES else (missing.copy(), missing.copy())
    if dictionaries >= FEWEST_DICTIONARIES and varying.any():
        reach = _quantile(confidence, int(varying.sum()), degrees[varying]) * np.sqrt(variance[varying])
        low[varying] -= reach
        high[varying] += reach
    return Crossing(
        layers=layers,
        difference=mean,
        low=low,
        high=high,
        example_error=np.sqrt(by_example),
        dictionary_error=np.sqrt(by_dictionary),
        run_error=np.sqrt(by_run),
        degrees=degrees,
        runs=runs,
        dictionaries=dictionaries,
    )


def _quantile(confidence: float, comparisons: int, degrees: Float[np.ndarray, " k"]) -> Float[np.ndarray, " k"]:
    """Two-sided quantile of Student's t that holds for all comparisons at once."""
    from scipy.stats import t

    return np.asarray(t.ppf((1 + confidence ** (1 / comparisons)) / 2, degrees))
