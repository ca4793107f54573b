"""Whether the label effect of dictionaries rose more than that of other bases of the same rows, and what may be claimed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float

from layerprobe.errors import ArgumentError
from layerprobe.stats import jackknife_error

UNTRAINED_BASES = ("untrained", "random directions", "neurons", "principal components")
"""Controls that need no training."""
TRAINED_BASES = ("frozen-decoder", "soft-frozen-decoder", "frozen-encoder")
"""Controls that are dictionaries, trained with a part of them left random."""
CONTROLS = UNTRAINED_BASES + TRAINED_BASES
"""The controls that the label effect must rise more than for features to be called task-specific."""
ALPHA = 0.05


@dataclass(frozen=True)
class Excess:
    """(dictionary adapted - dictionary base) - (control adapted - control base) of the mean label effect, by layer."""

    value: Float[np.ndarray, " layers"]
    low: Float[np.ndarray, " layers"]
    """Ends of 95% intervals that hold for all changed layers simultaneously (Bonferroni)."""
    high: Float[np.ndarray, " layers"]
    error: Float[np.ndarray, " layers"]
    """Standard error of all parts."""
    error_examples: Float[np.ndarray, " layers"]
    """Of the choice of test examples, by the jackknife."""
    error_dictionaries: float
    """Of the seed of the dictionaries, with one variance for all changed layers; NaN if there is one seed."""
    error_bases: float
    """Of the seed of the control, likewise; 0 if it depends on none."""
    error_training: float
    """Of the training seed, likewise; NaN if there is one."""
    changed: Bool[np.ndarray, " layers"]
    """Whether base and adapted differ at all. Elsewhere the excess is 0 without error."""

    @property
    def conditional(self) -> bool:
        """Whether the intervals hold for the given dictionaries only, because there is one seed."""
        return bool(np.isnan(self.error_dictionaries))


@dataclass(frozen=True)
class TaskSpecific:
    """What may be said of the features of one adapted model."""

    verdict: Literal["task-specific", "beyond untrained bases", "not distinguishable", "unchanged", "undefined"]
    """`task-specific`: in some layer, the label effect of the dictionaries rose more than that of every control.
    `beyond untrained bases`: the same, but trained controls are missing. `not distinguishable`: from a layer-wide label
    shift, which is not the same as no task-specific features. `unchanged`: no layer changed. `undefined`: the effect
    could not be measured in any changed layer."""
    layers: tuple[int, ...]
    """Positions of the layers where it rose more than every control."""
    missing: tuple[str, ...]
    """Controls of the list that were not measured."""
    conditional: bool
    """Whether this holds for the given dictionaries only."""


def excess(
    dictionary: Float[np.ndarray, "training dictionaries layers 2 estimates"],
    control: Float[np.ndarray, "_ bases _ 2 _"],
    *,
    trained: bool = False,
) -> Excess:
    """The excess over one control, averaged over training seeds and seeds of dictionaries and bases.

    The error has up to four parts: a jackknife over test examples, in which all bases are held fixed and errors that
    bases share cancel; and for the seeds of the dictionaries, of the control's bases and of training the variance
    between them of what they contribute, divided by their number. Since two or three seeds estimate a variance poorly,
    one variance is estimated for all changed layers together. The interval reaches as far as the root of the sum of the
    squared parts, each multiplied by the quantile of Student's t with its own degrees of freedom: in simulation it errs
    at most as often as stated, where a single t with Welch's approximate degrees of freedom errs up to twice as often
    with two seeds. A control with one basis is taken as fixed or, if it is a trained one, as varying between seeds as
    much as the dictionaries do.

    Args:
        dictionary: `LabelEffect.value` followed by its `replicates`, of base and adapted (in this order) at each layer,
            for each training seed and dictionary seed.
        control: likewise, for each training seed and seed of the control.
        trained: whether the control is trained, and so would differ with another seed.

    Raises:
        ArgumentError: if training seeds, layers or folds differ.
    """
    from scipy.stats import t

    for axis, what in ((0, "training seeds"), (2, "layers"), (4, "folds")):
        if dictionary.shape[axis] != control.shape[axis]:
            raise ArgumentError(
                f"{{dictionary}} and {{control}} differ in their number of {what} ({dictionary.shape[axis]} and "
                f"{control.shape[axis]}); give readings of the same layers of the same models on the same examples.",
                *("dictionary", "control"),
            )
    equal = [np.all(part[..., 0, :] == part[..., 1, :], axis=(0, 1, 3)) for part in (dictionary, control)]
    changed = ~(equal[0] & equal[1])
    rise, other = (part[..., 1, :] - part[..., 0, :] for part in (dictionary, control))
    folds = dictionary.shape[-1] - 1
    both = rise.mean(1) - other.mean(1)
    value = both.mean(0)[:, 0]
    examples = jackknife_error(both.mean(0)[:, 1:])
    parts = {
        "dictionaries": rise[..., 0].mean(0),
        "bases": other[..., 0].mean(0),
        "training": both[..., 0],
    }
    q = 1 - ALPHA / 2 / max(1, int(changed.sum()))
    errors, seen = {}, 0
    variance, reach = examples**2, (t.ppf(q, folds - 1) * examples) ** 2
    for name, levels in parts.items():
        errors[name], df = _between(levels[:, changed])
        if name == "bases" and trained and len(levels) == 1:
            errors[name], df = errors["dictionaries"] * dictionary.shape[1] ** 0.5, seen
        seen = df
        if df:
            variance = variance + errors[name] ** 2
            reach = reach + (t.ppf(q, df) * errors[name]) ** 2
    error, reach = (np.where(changed, np.sqrt(squares), 0.0) for squares in (variance, reach))
    return Excess(
        value,
        value - reach,
        value + reach,
        error,
        examples,
        errors["dictionaries"],
        0.0 if np.isnan(errors["bases"]) else errors["bases"],
        errors["training"],
        changed,
    )


def _between(levels: Float[np.ndarray, "seeds layers"]) -> tuple[float, int]:
    """Standard error of the mean over seeds with one variance for all layers, and its degrees of freedom; NaN for one."""
    defined = levels[:, np.isfinite(levels).all(0)]
    seeds, layers = defined.shape
    if seeds < 2 or not layers:
        return np.nan, 0
    return float(np.sqrt(defined.var(axis=0, ddof=1).mean() / seeds)), layers * (seeds - 1)


def task_specific(projected: Mapping[str, Excess], controls: Sequence[str] = CONTROLS) -> TaskSpecific:
    """Decide whether features became task-specific, from the excess after between-label mean directions were removed.

    They did in a layer if the lower end of the simultaneous interval is above 0 for every control. To reject a union of
    hypotheses, each of them must be rejected, so that several controls need no correction; layers are corrected for in
    the intervals. At most 5% of studies without any layer of this kind are then called task-specific, for any reason
    for which the rise does not exceed that of one control on the list.

    Args:
        projected: excess over each control that was measured, all of the same layers.
        controls: the controls that are needed, chosen before the numbers were seen.
    """
    missing = tuple(name for name in controls if name not in projected)
    found = [projected[name] for name in controls if name in projected]
    if not found:
        return TaskSpecific("undefined", (), missing, conditional=True)
    changed = np.logical_or.reduce([one.changed for one in found])
    conditional = any(one.conditional for one in found)
    above = np.logical_and.reduce([one.changed & (one.low > 0) for one in found])
    layers = tuple(int(layer) for layer in np.flatnonzero(above))
    if layers:
        verdict = "beyond untrained bases" if missing else "task-specific"
    elif not changed.any():
        verdict = "unchanged"
    elif not any(np.isfinite(one.low[changed]).any() for one in found):
        verdict = "undefined"
    else:
        verdict = "not distinguishable"
    return TaskSpecific(verdict, layers, missing, conditional)  # type: ignore[arg-type]
