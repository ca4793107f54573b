"""Similarity under a control minus that under a method, with bands over examples and trainings."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from layerprobe.errors import MeasureError
from layerprobe.stats import Bands, jackknife_error, satterthwaite, simultaneous_bands


@dataclass(frozen=True)
class Replicates:
    """A similarity with base by layer, of several models that differ in chance alone: seeds, or random draws."""

    values: Float[np.ndarray, "models layers"]
    left_out: Float[np.ndarray, "models layers folds"]
    """Without each fold of examples; the folds are those of all models that are compared."""

    @property
    def spread(self) -> Float[np.ndarray, " layers"]:
        """Squared standard error of the mean over models; 0 for one model, about whose chance nothing is known."""
        if len(self.values) < 2:
            return np.zeros(self.values.shape[1])
        return self.values.var(axis=0, ddof=1) / len(self.values)


@dataclass(frozen=True)
class ControlDifference:
    """By how much less the method's models resemble base than the control's, by layer."""

    value: Float[np.ndarray, " layers"]
    """Mean similarity under the control minus that under the method; positive where the method drifts more."""
    errors: Float[np.ndarray, " layers"]
    """Standard errors."""
    degrees: Float[np.ndarray, " layers"]
    """Their degrees of freedom (Satterthwaite)."""
    bands: Bands
    """Hold for all layers at once."""


def control_difference(method: Replicates, control: Replicates) -> ControlDifference:
    """Drift of a method beyond that of a control.

    The squared standard error is the sum of that over examples (a delete-group jackknife of the difference of means, in
    which the examples are paired) and of those of the means over models on either side. With one model on a side, the
    result is conditional on that model.

    Args:
        method: similarities with base under the method.
        control: under the control, at the same layers and folds.

    Raises:
        MeasureError: if layers or folds of the two differ.
    """
    if method.left_out.shape[1:] != control.left_out.shape[1:]:
        raise MeasureError(
            f"control_difference: {{method}} and {{control}} have layers x folds {method.left_out.shape[1:]} and "
            f"{control.left_out.shape[1:]}; compute both at the same layers on the same examples.",
            "method",
            "control",
        )
    value = control.values.mean(0) - method.values.mean(0)
    examples = jackknife_error(control.left_out.mean(0) - method.left_out.mean(0)) ** 2
    parts = np.stack([examples, method.spread, control.spread])
    known = [method.left_out.shape[2] - 1, max(1, len(method.values) - 1), max(1, len(control.values) - 1)]
    degrees = satterthwaite(parts, np.array(known))
    degrees = np.where(np.isfinite(degrees), degrees, known[0])
    errors = np.sqrt(parts.sum(0))
    return ControlDifference(value, errors, degrees, simultaneous_bands(value, errors, degrees))
