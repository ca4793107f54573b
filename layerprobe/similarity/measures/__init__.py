"""The table of measures. A module per measure, or per family of closely related ones, holds their functions and rows."""

from __future__ import annotations

from collections.abc import Sequence

from layerprobe.errors import MeasureError
from layerprobe.similarity._measure import Measure
from layerprobe.similarity.measures import cca, cka, cosine, neighbours, predictivity, procrustes, rsa

MEASURES: list[Measure] = [
    *cosine.MEASURES,
    *cka.MEASURES,
    *cca.MEASURES,
    *procrustes.MEASURES,
    *rsa.MEASURES,
    *neighbours.MEASURES,
    *predictivity.MEASURES,
]
"""All measures, in the order in which they are listed."""


def find_measures(names: Sequence[str], caller: str, *, linear: bool = False) -> list[Measure]:
    """Measures by name.

    Args:
        names: names of measures.
        caller: name of the function at the start of error messages.
        linear: whether only linear measures are allowed.

    Raises:
        MeasureError: if a measure does not exist, or is not linear.
    """
    known = {measure.name: measure for measure in MEASURES if measure.linear or not linear}
    unknown = [name for name in names if name not in known]
    if unknown:
        kind = "linear measures" if linear else "measures"
        raise MeasureError(
            f"{caller}: {{measures}} contains {unknown[0]!r}, but the {kind} are {', '.join(known)}.", "measures"
        )
    return [known[name] for name in names]
