"""Representational similarity: arrays in, numbers with their uncertainty out."""

from layerprobe.similarity._compare import Estimate, compare, grid
from layerprobe.similarity._measures import cka, paired_cosine, paired_cosine_baseline, procrustes
from layerprobe.similarity._table import MEASURES, Measure

__all__ = [
    "MEASURES",
    "Estimate",
    "Measure",
    "cka",
    "compare",
    "grid",
    "paired_cosine",
    "paired_cosine_baseline",
    "procrustes",
]
