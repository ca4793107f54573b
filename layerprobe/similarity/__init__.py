"""Representational similarity: arrays in, numbers with their uncertainty out.

All is computed in float64. Tensors on a device that has float64 (CUDA) stay there for the paired cosine and for what
follows from cross products (linear CKA, CCA, Procrustes and their kin): only sums and matrices of features x features
come to the CPU. Measures of row against row, and tensors on other devices, are worked on by the CPU.
"""

from layerprobe.similarity import geometry
from layerprobe.similarity._accumulator import LINEAR, SimilarityAccumulator
from layerprobe.similarity._cca import mean_cca, mean_squared_cca, pwcca, svcca
from layerprobe.similarity._cka import cka, cka_angle
from layerprobe.similarity._compare import compare
from layerprobe.similarity._cosine import paired_cosine, paired_cosine_baseline
from layerprobe.similarity._grid import grid
from layerprobe.similarity._intervals import Estimate
from layerprobe.similarity._knn import jaccard_knn, mutual_knn
from layerprobe.similarity._nulls import shuffled
from layerprobe.similarity._predictivity import linear_predictivity
from layerprobe.similarity._rsa import rsa
from layerprobe.similarity._shape import ShapeMetric, procrustes, procrustes_angle, shape_distance
from layerprobe.similarity._table import MEASURES, Measure

__all__ = [
    "LINEAR",
    "MEASURES",
    "Estimate",
    "Measure",
    "ShapeMetric",
    "SimilarityAccumulator",
    "cka",
    "cka_angle",
    "compare",
    "geometry",
    "grid",
    "jaccard_knn",
    "linear_predictivity",
    "mean_cca",
    "mean_squared_cca",
    "mutual_knn",
    "paired_cosine",
    "paired_cosine_baseline",
    "procrustes",
    "procrustes_angle",
    "pwcca",
    "rsa",
    "shape_distance",
    "shuffled",
    "svcca",
]
