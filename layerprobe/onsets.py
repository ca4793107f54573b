"""Where change begins: verdicts about layers from bands that hold for all of them at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Verdict = Literal["kept", "changed", "undecided"]
Values = Sequence[float] | np.ndarray


def verdicts(low: Values, high: Values, threshold: float) -> list[Verdict]:
    """Which layers kept their representation, and which changed.

    A layer is `kept` where the lower end of its similarity exceeds the threshold, `changed` where the upper end is below it,
    and `undecided` otherwise. If the bands are simultaneous with 95% probability, all verdicts other than `undecided` are
    right at once with at least that probability.

    Args:
        low, high: ends of simultaneous bands of a similarity, one per layer; NaN leaves a layer undecided.
        threshold: the similarity at which a layer counts as changed.
    """
    return [
        "kept" if lower > threshold else "changed" if upper < threshold else "undecided"
        for lower, upper in zip(low, high, strict=True)
    ]


@dataclass(frozen=True)
class Onset:
    """The first layer whose similarity is below a threshold, as far as bands decide."""

    threshold: float
    earliest: int | None
    """The first layer that is not `kept`: change does not begin below it. None if all layers are kept."""
    latest: int | None
    """The first layer that is `changed`: change has begun there. None if no layer is."""


def onset(layers: Sequence[int], low: Values, high: Values, threshold: float) -> Onset:
    """Between which layers change begins.

    Args:
        layers: layer numbers, in increasing order.
        low, high, threshold: as in `verdicts`.
    """
    named = list(zip(layers, verdicts(low, high, threshold), strict=True))
    earliest = next((int(layer) for layer, verdict in named if verdict != "kept"), None)
    latest = next((int(layer) for layer, verdict in named if verdict == "changed"), None)
    return Onset(threshold, earliest, latest)


def first_beyond(layers: Sequence[int], lows: Sequence[Values]) -> int | None:
    """The first layer whose drift exceeds every control; None if there is none, or no control.

    Args:
        layers: layer numbers, in increasing order.
        lows: for each control the lower ends, one per layer, of simultaneous bands of the similarity under the control less
            that under the method; NaN where they are unknown.
    """
    if not len(lows):
        return None
    ends = zip(*lows, strict=True)
    return next(
        (int(layer) for layer, of_layer in zip(layers, ends, strict=True) if all(low > 0 for low in of_layer)), None
    )


def falls(low: Values, high: Values) -> bool:
    """Whether the last similarity is below the first: the bands of the two, which are simultaneous, do not overlap."""
    return bool(low[0] > high[-1])


def extreme(layers: Sequence[int], low: Values, high: Values) -> int | None:
    """The layer whose band lies below those of all other layers; None if there is no such layer, or only one layer."""
    lows, highs = np.array(low, dtype=np.float64), np.array(high, dtype=np.float64)
    if len(lows) < 2 or np.isnan(lows).any() or np.isnan(highs).any():
        return None
    least = int(highs.argmin())
    return int(layers[least]) if (np.delete(lows, least) > highs[least]).all() else None
