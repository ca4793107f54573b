"""Similarity relative to that of shuffled examples."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import numpy as np
from jaxtyping import Float

from layerprobe.errors import MeasureError


@dataclass(frozen=True)
class Calibrated:
    """Similarities by layer, calibrated by shuffles (Groeger et al. 2026, arXiv 2602.14486)."""

    score: Float[np.ndarray, " layers"]
    """0 at or below the critical value of the shuffles, 1 for a perfect match."""
    threshold: Float[np.ndarray, " layers"]
    """The critical value, in units of the measure."""
    p: Float[np.ndarray, " layers"]
    """One-sided p-value of each layer."""
    p_some: float
    """One-sided p-value of the largest similarity over layers, for the claim that some layer is similar."""


def calibrate(
    observed: Float[np.ndarray, " layers"],
    null: Float[np.ndarray, "draws layers"],
    *,
    top: float = 1.0,
    distance: bool = False,
    alpha: float = 0.05,
) -> Calibrated:
    """Calibrate similarities by those of shuffled examples.

    With K draws the critical value is the ceil((1 - alpha)(K + 1))-th smallest of draws and observed value together, the
    score (observed - critical) / (top - critical) clipped to [0, 1], and p = (1 + number of draws >= observed) / (K + 1).

    Args:
        observed: the similarity at each layer.
        null: under each shuffle, which has to be one for all layers.
        top: value of a perfect match.
        distance: whether smaller values mean more similar.
        alpha: level of the critical value.

    Raises:
        MeasureError: if there is no draw, or alpha is not between 0 and 1.
    """
    if not len(null) or not 0 < alpha < 1:
        raise MeasureError(
            f"calibrate: {{null}} has {len(null)} draws and {{alpha}} is {alpha}; pass at least one draw, and a level "
            "between 0 and 1.",
            "null",
            "alpha",
        )
    sign = -1.0 if distance else 1.0
    seen, draws, best = sign * observed, sign * null, sign * top
    together = np.sort(np.concatenate([seen[None], draws]), axis=0)
    critical = together[ceil((1 - alpha) * len(together)) - 1]
    room = np.maximum(best - critical, 1e-12)
    return Calibrated(
        score=np.clip((seen - critical) / room, 0, 1),
        threshold=sign * critical,
        p=(1 + (draws >= seen).sum(0)) / len(together),
        p_some=float((1 + (draws.max(axis=1) >= seen.max()).sum()) / len(together)),
    )
