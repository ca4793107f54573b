"""The sections of the page in order. To add one, write its folder and list it here."""

from layerprobe.report.section import Section
from layerprobe.report.sections import (
    answer,
    bases,
    cost,
    drift,
    energy,
    features,
    few_shot,
    inside,
    labels,
    made,
    quality,
    shipping,
    sure,
    tokens,
    transitions,
)

REGISTRY: tuple[Section, ...] = (
    answer.SECTION,
    few_shot.SECTION,
    energy.SECTION,
    drift.SECTION,
    labels.SECTION,
    features.SECTION,
    transitions.SECTION,
    bases.SECTION,
    quality.SECTION,
    cost.SECTION,
    shipping.SECTION,
    inside.SECTION,
    tokens.SECTION,
    sure.SECTION,
    made.SECTION,
)
