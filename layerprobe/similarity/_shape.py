"""Shapes of representations: how well one fits the other after the best rotation."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from jaxtyping import Float

from layerprobe.errors import MeasureError
from layerprobe.similarity._arrays import checked, finite
from layerprobe.similarity._passes import one_fold
from layerprobe.similarity._statistics import Pair, Sizes


def procrustes(x: Any, y: Any) -> float:
    """Orthogonal Procrustes similarity in [0, 1]: nuclear norm of the cross product over the Frobenius norms.

    Rows are centred. 1 is the same up to rotation, shift and scale (Ding et al. 2021, "Grounding Representation
    Similarity with Statistical Testing"; Williams et al. 2021). Independent data do not score 0: at d = 384 and
    n = 500 they score .68, so it is read beside a baseline, and below ten rows a feature it warns.

    Raises:
        MeasureError: for fewer than 4 rows, unequal n, values that are not finite, or a constant input.
    """
    x, y = checked(x, y, "procrustes", on_device=True)
    _warn_if_few(x, y, "procrustes")
    return procrustes_of(*one_fold(x, y, np.arange(len(x)), "procrustes"))


def procrustes_angle(x: Any, y: Any) -> float:
    """Arccosine of `procrustes`, in [0, pi / 2] radians: a metric distance between shapes (Williams et al. 2021).

    Rounding near 1 makes it exact to about 1e-7 only.

    Raises:
        MeasureError: as `procrustes`.
    """
    x, y = checked(x, y, "procrustes_angle", on_device=True)
    _warn_if_few(x, y, "procrustes_angle")
    return procrustes_angle_of(*one_fold(x, y, np.arange(len(x)), "procrustes_angle"))


def shape_distance(x: Any, y: Any, *, alpha: float = 1.0) -> float:
    """Angle between two representations after partial whitening and the best rotation, in [0, pi / 2] radians.

    Williams et al. 2021, "Generalized Shape Metrics on Neural Representations": each side is multiplied by
    alpha I + (1 - alpha) (X'X)^(-1/2). alpha = 1 is `procrustes_angle`, alpha = 0 the angle of the mean canonical
    correlation; a metric at each alpha. In-sample: `ShapeMetric` holds rows out. Between 0 and 1 it depends on the scale of x.

    Raises:
        MeasureError: if alpha is not in [0, 1]; for linearly dependent columns where alpha < 1; as `procrustes`.
    """
    _check_alpha(alpha, "shape_distance")
    x, y = checked(x, y, "shape_distance", on_device=True)
    _warn_if_few(x, y, "shape_distance")
    return shape_distance_of(*one_fold(x, y, np.arange(len(x)), "shape_distance"), alpha=alpha)


class ShapeMetric:
    """`shape_distance` fitted on some rows and scored on others.

    Attributes:
        alpha: 1 rotation-invariant ... 0 invariant to any invertible linear map.
    """

    def __init__(self, alpha: float = 1.0) -> None:
        _check_alpha(alpha, "ShapeMetric")
        self.alpha = alpha
        self._maps: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray] | None = None

    def fit(self, x: Any, y: Any) -> ShapeMetric:
        """Find the whitening and the rotation on these rows."""
        x, y = checked(x, y, "ShapeMetric.fit")
        xy, xx, yy, sizes = one_fold(x, y, np.arange(len(x)), "ShapeMetric.fit")
        white_x, white_y = (_whitening(pair.centred_cross(sizes), self.alpha) for pair in (xx, yy))
        left, _, right = np.linalg.svd(white_x @ xy.centred_cross(sizes) @ white_y, full_matrices=False)
        means = [np.asarray(z, dtype=np.float64).mean(0) for z in (x, y)]
        self._maps = white_x @ left, white_y @ right.T, *means
        return self

    def score(self, x: Any, y: Any) -> float:
        """The angle in radians on these rows, under the fitted maps; in [0, pi]."""
        if self._maps is None:
            raise MeasureError("ShapeMetric.score came before fit; call fit(x, y) on other rows first.")
        x, y = checked(x, y, "ShapeMetric.score", minimum=1)
        map_x, map_y, mean_x, mean_y = self._maps
        if (x.shape[1], y.shape[1]) != (len(map_x), len(map_y)):
            raise MeasureError(
                f"ShapeMetric.score was given widths {x.shape[1]} and {y.shape[1]}; it was fitted on {len(map_x)} and "
                f"{len(map_y)}."
            )
        a, b = (finite(np.asarray(z, dtype=np.float64), "ShapeMetric.score") for z in (x, y))
        a, b = (a - mean_x) @ map_x, (b - mean_y) @ map_y
        return float(np.arccos(np.clip((a * b).sum() / (np.linalg.norm(a) * np.linalg.norm(b)), -1, 1)))


def procrustes_of(xy: Pair, xx: Pair, yy: Pair, sizes: Sizes, fold: int | None = None) -> float:
    """Orthogonal Procrustes similarity from statistics, of the whole sample or without one fold."""
    cross = xy.centred_cross(sizes, fold)
    norms = np.sqrt(np.trace(xx.centred_cross(sizes, fold))) * np.sqrt(np.trace(yy.centred_cross(sizes, fold)))
    # The nuclear norm of a positive semi-definite matrix is its trace: identical sides need no decomposition.
    nuclear = np.trace(cross) if xy is xx else np.linalg.svd(cross, compute_uv=False).sum()
    return float(nuclear / norms)


def procrustes_angle_of(xy: Pair, xx: Pair, yy: Pair, sizes: Sizes, fold: int | None = None) -> float:
    """Arccosine of the Procrustes similarity from statistics."""
    return float(np.arccos(np.clip(procrustes_of(xy, xx, yy, sizes, fold), 0, 1)))


def shape_distance_of(
    xy: Pair, xx: Pair, yy: Pair, sizes: Sizes, fold: int | None = None, *, alpha: float = 1.0
) -> float:
    """Shape distance from statistics."""
    if xy is xx:
        return 0.0
    if alpha == 1:
        return procrustes_angle_of(xy, xx, yy, sizes, fold)
    own_x, own_y = xx.centred_cross(sizes, fold), yy.centred_cross(sizes, fold)
    white_x, white_y = _whitening(own_x, alpha), _whitening(own_y, alpha)
    nuclear = np.linalg.svd(white_x @ xy.centred_cross(sizes, fold) @ white_y, compute_uv=False).sum()
    norms = np.sqrt(np.trace(white_x @ own_x @ white_x)) * np.sqrt(np.trace(white_y @ own_y @ white_y))
    return float(np.arccos(np.clip(nuclear / norms, 0, 1)))


def _whitening(own: Float[np.ndarray, "d d"], alpha: float) -> Float[np.ndarray, "d d"]:
    if alpha == 1:
        return np.eye(len(own))
    values, vectors = np.linalg.eigh(own)
    if values[0] <= 1e-10 * values[-1]:
        raise MeasureError(
            f"shape_distance with alpha={alpha} was given a representation of width {len(own)} with constant or linearly "
            "dependent columns, which cannot be whitened; leave these out, or use alpha=1."
        )
    return (vectors * (alpha + (1 - alpha) / np.sqrt(values))) @ vectors.T


def _check_alpha(alpha: float, measure: str) -> None:
    if not 0 <= alpha <= 1:
        raise MeasureError(f"{measure} was given alpha={alpha}; it lies between 0 and 1.")


def _warn_if_few(x: Any, y: Any, measure: str) -> None:
    width = max(x.shape[1], y.shape[1])
    if len(x) < 10 * width:
        warnings.warn(
            f"{measure} was given {len(x)} rows of width {width}: below ten rows a feature even independent data score "
            "high; read it beside the value of shuffled rows.",
            stacklevel=3,
        )
