"""The table of measures and of what each one promises."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from layerprobe.similarity import _measures as measures


@dataclass(frozen=True)
class Measure:
    """A measure and its declared properties; the tests hold it to them."""

    name: str
    function: Callable[..., float]
    kind: Literal["similarity", "distance"]
    low: float
    high: float
    symmetric: bool
    invariant_to: frozenset[str]
    """Among rotation, scale (isotropic), shift, linear (invertible), each applied to one side alone."""
    minimum: int
    """Least number of rows."""
    citation: str


MEASURES: tuple[Measure, ...] = (
    Measure(
        "paired_cosine",
        measures.paired_cosine,
        "similarity",
        -1.0,
        1.0,
        True,
        frozenset({"scale"}),
        1,
        "cosine of the same row",
    ),
    Measure(
        "paired_cosine_baseline",
        measures.paired_cosine_baseline,
        "similarity",
        -1.0,
        1.0,
        False,
        frozenset({"scale"}),
        2,
        "cosine of unrelated rows; Ethayarajh 2019",
    ),
    Measure(
        "cka",
        measures.cka,
        "similarity",
        -1.0,
        1.0,
        True,
        frozenset({"rotation", "scale", "shift"}),
        4,
        "Kornblith et al. 2019; debiased by Song et al. 2012",
    ),
    Measure(
        "procrustes",
        measures.procrustes,
        "similarity",
        0.0,
        1.0,
        True,
        frozenset({"rotation", "scale", "shift"}),
        4,
        "Ding et al. 2021; Williams et al. 2021",
    ),
)
