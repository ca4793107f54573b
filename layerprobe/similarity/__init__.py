"""Representational similarity of arrays, with intervals and nulls over whole examples.

All computations are in float64. Tensors on a device with float64 (CUDA), and `layerprobe.device.DeviceRows`, are compared
there: products of rows, decompositions and rankings of distances. Sums, features x features matrices and values are copied to
the CPU. Linear predictivity, RBF kernels, Euclidean distances and Kendall's tau, and tensors on other devices, are computed on
the CPU.
"""

from typing import Any

from layerprobe.similarity import geometry
from layerprobe.similarity._accumulator import SimilarityAccumulator
from layerprobe.similarity._calibration import Calibrated, calibrate
from layerprobe.similarity._compare import compare
from layerprobe.similarity._controls import ControlDifference, Replicates, control_difference
from layerprobe.similarity._grid import grid
from layerprobe.similarity._measure import Jackknife, Linear, Measure, RowMean
from layerprobe.similarity._nulls import shuffled
from layerprobe.similarity.measures import MEASURES, find_measures
from layerprobe.similarity.measures.cca import mean_cca, mean_squared_cca, pwcca, svcca
from layerprobe.similarity.measures.cka import cka, cka_angle
from layerprobe.similarity.measures.cosine import paired_cosine, paired_cosine_baseline
from layerprobe.similarity.measures.neighbours import jaccard_knn, mutual_knn
from layerprobe.similarity.measures.predictivity import linear_predictivity
from layerprobe.similarity.measures.procrustes import ShapeMetric, procrustes, procrustes_angle, shape_distance
from layerprobe.similarity.measures.rsa import rsa
from layerprobe.stats import Estimate

__all__ = [
    "MEASURES",
    "Calibrated",
    "ControlDifference",
    "Estimate",
    "Jackknife",
    "Linear",
    "Measure",
    "Replicates",
    "RowMean",
    "ShapeMetric",
    "SimilarityAccumulator",
    "calibrate",
    "cka",
    "cka_angle",
    "compare",
    "control_difference",
    "find_measures",
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


def __getattr__(name: str) -> Any:
    """The function of a measure that is listed in `MEASURES` but not imported above."""
    for measure in MEASURES:
        if measure.name == name:
            return measure.function
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
