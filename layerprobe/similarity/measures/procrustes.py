"""Shapes of representations: how well one fits the other after the best rotation."""

from __future__ import annotations

from math import pi
from typing import Any

import numpy as np
from jaxtyping import Float

from layerprobe.errors import MeasureError
from layerprobe.similarity._arrays import checked, finite
from layerprobe.similarity._measure import SHAPE, Linear, Measure
from layerprobe.similarity._passes import linear_value, products
from layerprobe.similarity._spectra import eigen, product, singular_values
from layerprobe.similarity._statistics import Products


def procrustes(x: Any, y: Any) -> float:
    """Orthogonal Procrustes similarity in [0, 1]: nuclear norm of the cross product over the Frobenius norms.

    Rows are centred. 1 if x and y are equal up to rotation, shift and scale (Ding et al. 2021, "Grounding Representation
    Similarity with Statistical Testing"; Williams et al. 2021). Independent data do not score 0: compare with a baseline.
    Warns for fewer than ten rows per feature.

    Args:
        x, y: rows x features, row i of both the same item.

    Raises:
        MeasureError: for fewer than 4 rows, unequal n, values that are not finite, or a constant input.
    """
    return linear_value("procrustes", _procrustes, x, y)


def procrustes_angle(x: Any, y: Any) -> float:
    """Arccosine of `procrustes`, in [0, pi / 2] radians: a metric distance between shapes (Williams et al. 2021).

    Rounding limits its precision near 0 to about 1e-7. Arguments and errors as `procrustes`.
    """
    return linear_value("procrustes_angle", _procrustes_angle, x, y)


def shape_distance(x: Any, y: Any, *, alpha: float = 1.0) -> float:
    """Angle between two representations after partial whitening and the best rotation, in [0, pi / 2] radians.

    Williams et al. 2021, "Generalized Shape Metrics on Neural Representations": each side is multiplied by
    alpha I + (1 - alpha) (X'X)^(-1/2). alpha = 1 gives `procrustes_angle`, alpha = 0 the angle of the mean canonical
    correlation; a metric at each alpha. Between 0 and 1 it depends on the scale of x. The map is fitted to the rows that
    it is evaluated on; `ShapeMetric` holds rows out.

    Args:
        x, y: rows x features, row i of both the same item.
        alpha: 1 for no whitening, 0 for full whitening.

    Raises:
        MeasureError: if alpha is not in [0, 1]; for linearly dependent columns where alpha < 1; as `procrustes`.
    """
    _check_alpha(alpha, "shape_distance")
    return linear_value("shape_distance", _shape_distance, x, y, alpha=alpha)


class ShapeMetric:
    """`shape_distance` fitted on some rows and evaluated on others.

    Attributes:
        alpha: 1 for invariance to rotation, 0 for invariance to any invertible linear map.
    """

    def __init__(self, alpha: float = 1.0) -> None:
        _check_alpha(alpha, "ShapeMetric")
        self.alpha = alpha
        self._maps: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray] | None = None

    def fit(self, x: Any, y: Any) -> ShapeMetric:
        """Fit the whitening and the rotation to these rows."""
        x, y = checked(x, y, "ShapeMetric.fit")
        sums = products(x, y, np.arange(len(x)), np.zeros(len(x), dtype=np.int64), "ShapeMetric.fit")
        white_x, white_y = (_whitening(scatter, self.alpha) for scatter in (sums.scatter_x, sums.scatter_y))
        left, _, right = np.linalg.svd(white_x @ sums.cross @ white_y, full_matrices=False)
        means = [np.asarray(z, dtype=np.float64).mean(0) for z in (x, y)]
        self._maps = white_x @ left, white_y @ right.T, *means
        return self

    def score(self, x: Any, y: Any) -> float:
        """The angle on these rows under the fitted maps, in [0, pi] radians."""
        if self._maps is None:
            raise MeasureError("ShapeMetric.score was called before fit; call fit(x, y) on other rows first.")
        x, y = checked(x, y, "ShapeMetric.score", min_rows=1)
        map_x, map_y, mean_x, mean_y = self._maps
        if (x.shape[1], y.shape[1]) != (len(map_x), len(map_y)):
            raise MeasureError(
                f"ShapeMetric.score: {{x}} and {{y}} have widths {x.shape[1]} and {y.shape[1]}, but fit was called with widths "
                f"{len(map_x)} and {len(map_y)}; use the same widths.",
                "x",
                "y",
            )
        a, b = (finite(np.asarray(z, dtype=np.float64), "ShapeMetric.score") for z in (x, y))
        a, b = (a - mean_x) @ map_x, (b - mean_y) @ map_y
        return _angle(float((a * b).sum() / (np.linalg.norm(a) * np.linalg.norm(b))), low=-1)


def _procrustes(products: Products) -> float:
    norms = np.sqrt(np.trace(products.scatter_x)) * np.sqrt(np.trace(products.scatter_y))
    # The nuclear norm of a positive semi-definite matrix is its trace: identical sides need no decomposition.
    cross = products.cross
    nuclear = np.trace(cross) if products.identical else singular_values(cross, products.device).sum()
    return float(nuclear / norms)


def _procrustes_angle(products: Products) -> float:
    return _angle(_procrustes(products))


def _shape_distance(products: Products, *, alpha: float = 1.0) -> float:
    if products.identical:
        return 0.0
    if alpha == 1:
        return _procrustes_angle(products)
    scatter_x, scatter_y, device = products.scatter_x, products.scatter_y, products.device
    white_x, white_y = _whitening(scatter_x, alpha, device), _whitening(scatter_y, alpha, device)
    nuclear = singular_values(product(white_x, products.cross, white_y, device=device), device).sum()
    norms = np.sqrt(np.trace(white_x @ scatter_x @ white_x)) * np.sqrt(np.trace(white_y @ scatter_y @ white_y))
    return _angle(float(nuclear / norms))


def _angle(cosine: float, low: float = 0) -> float:
    return float(np.arccos(np.clip(cosine, low, 1)))


def _whitening(scatter: Float[np.ndarray, "d d"], alpha: float, device: Any = None) -> Float[np.ndarray, "d d"]:
    if alpha == 1:
        return np.eye(len(scatter))
    values, vectors = eigen(scatter, device)
    if values[0] <= 1e-10 * values[-1]:
        raise MeasureError(
            f"shape_distance: {{alpha}} is {alpha}, but a representation of width {len(scatter)} has constant or linearly "
            "dependent columns and cannot be whitened; leave these out, or use alpha=1.",
            "alpha",
        )
    return (vectors * (alpha + (1 - alpha) / np.sqrt(values))) @ vectors.T


def _check_alpha(alpha: float, caller: str) -> None:
    if not 0 <= alpha <= 1:
        raise MeasureError(f"{caller}: {{alpha}} is {alpha}; use a value between 0 and 1.", "alpha")


SENSITIVITY = "ignores rotation and scale, and gives small directions more weight than CKA"

MEASURES = (
    Measure(
        procrustes,
        label="Procrustes similarity",
        invariances=SHAPE,
        citation="Ding et al. 2021; Williams et al. 2021",
        resampling=Linear(_procrustes, single=True),
        sensitivity=SENSITIVITY,
        caption="Orthogonal Procrustes: how well one side fits the other after the best rotation. Unrelated data do not score "
        "0 (about .68 with 500 rows of 384 features), so compare with the null.",
        formula=r"\frac{\lVert X^\top Y \rVert_*}{\lVert X \rVert_F \, \lVert Y \rVert_F}",
    ),
    Measure(
        procrustes_angle,
        label="Procrustes angle (radians)",
        kind="distance",
        range=(0.0, pi / 2),
        invariances=SHAPE,
        citation="Williams et al. 2021",
        resampling=Linear(_procrustes_angle, single=True),
        sensitivity=SENSITIVITY,
        formula=r"\arccos \frac{\lVert X^\top Y \rVert_*}{\lVert X \rVert_F \, \lVert Y \rVert_F}",
    ),
    Measure(
        shape_distance,
        label="Shape distance (radians)",
        kind="distance",
        range=(0.0, pi / 2),
        invariances=SHAPE,
        citation="Williams et al. 2021; alpha = 1",
        resampling=Linear(_shape_distance, single=True),
        sensitivity=SENSITIVITY,
        formula=r"\arccos \frac{\lVert W_x X^\top Y W_y \rVert_*}{\lVert X W_x \rVert_F \, \lVert Y W_y \rVert_F}, \quad W_x = \alpha I + (1 - \alpha) (X^\top X)^{-1/2}",
    ),
)
