"""The table of measures and of what each one promises."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf, pi
from typing import Literal

from layerprobe.similarity._cca import mean_cca, mean_squared_cca, pwcca, svcca
from layerprobe.similarity._cka import cka, cka_angle
from layerprobe.similarity._cosine import paired_cosine, paired_cosine_baseline
from layerprobe.similarity._knn import jaccard_knn, mutual_knn
from layerprobe.similarity._predictivity import linear_predictivity
from layerprobe.similarity._rsa import rsa
from layerprobe.similarity._shape import procrustes, procrustes_angle, shape_distance


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
    """Least number of rows, whatever their width; some need more rows than features, too."""
    citation: str

    @property
    def top(self) -> float:
        """The value of identical sides."""
        return 0.0 if self.kind == "distance" else 1.0


SHAPE = frozenset({"rotation", "scale", "shift"})
ANY_LINEAR = SHAPE | {"linear"}


def _similarity(
    function: Callable[..., float],
    low: float,
    invariant_to: frozenset[str],
    citation: str,
    *,
    minimum: int = 4,
    symmetric: bool = True,
) -> Measure:
    return Measure(function.__name__, function, "similarity", low, 1.0, symmetric, invariant_to, minimum, citation)


def _distance(function: Callable[..., float], citation: str) -> Measure:
    return Measure(function.__name__, function, "distance", 0.0, pi / 2, True, SHAPE, 4, citation)


MEASURES: tuple[Measure, ...] = (
    _similarity(paired_cosine, -1.0, frozenset({"scale"}), "cosine of the same row", minimum=1),
    _similarity(
        paired_cosine_baseline,
        -1.0,
        frozenset({"scale"}),
        "cosine of unrelated rows; Ethayarajh 2019",
        minimum=2,
        symmetric=False,
    ),
    _similarity(cka, -1.0, SHAPE, "Kornblith et al. 2019; debiased by Song et al. 2012"),
    _distance(cka_angle, "Williams et al. 2021, of the biased CKA"),
    _similarity(mean_cca, 0.0, ANY_LINEAR, "Hotelling 1936; Raghu et al. 2017"),
    _similarity(mean_squared_cca, 0.0, ANY_LINEAR, "Hotelling 1936; Kornblith et al. 2019"),
    _similarity(svcca, 0.0, SHAPE, "Raghu et al. 2017"),
    _similarity(pwcca, 0.0, frozenset({"scale", "shift"}), "Morcos et al. 2018", symmetric=False),
    _similarity(procrustes, 0.0, SHAPE, "Ding et al. 2021; Williams et al. 2021"),
    _distance(procrustes_angle, "Williams et al. 2021"),
    _distance(shape_distance, "Williams et al. 2021; alpha = 1"),
    _similarity(rsa, -1.0, frozenset({"scale"}), "Kriegeskorte et al. 2008; correlation, Spearman"),
    _similarity(mutual_knn, 0.0, frozenset({"rotation", "scale"}), "Huh et al. 2024", minimum=12),
    _similarity(jaccard_knn, 0.0, frozenset({"rotation", "scale"}), "Jaccard 1912; k = 10", minimum=12),
    _similarity(linear_predictivity, -inf, SHAPE, "Yamins et al. 2014; ridge", minimum=10, symmetric=False),
)
