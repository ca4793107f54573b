"""Names of methods as sections read them that do not take the record yet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

REFERENCES = "reference:"
NAMES = {
    "paired_cosine": "Mean cosine of the same row",
    "cka": "CKA (debiased, linear)",
    "procrustes": "Procrustes similarity",
    "cka_angle": "CKA angle (radians)",
    "mean_cca": "Mean canonical correlation",
    "mean_squared_cca": "Mean squared canonical correlation",
    "svcca": "SVCCA",
    "pwcca": "PWCCA",
    "procrustes_angle": "Procrustes angle (radians)",
    "shape_distance": "Shape distance (radians)",
    "rsa": "RSA (correlation, Spearman)",
    "mutual_knn": "Mutual 10 nearest neighbours",
    "jaccard_knn": "Jaccard of 10 nearest neighbours",
    "linear_predictivity": "Linear predictivity (R²)",
}


def methods(tables: Mapping[str, pd.DataFrame]) -> list[str]:
    """Adaptation methods of a run by depth, read from their names."""
    columns = [tables[name]["method"] for name in ("adaptation", "similarity") if name in tables]
    names = {name for column in columns for name in column.unique() if not name.startswith(REFERENCES)}
    return sorted(names, key=_depth)


def top(measure: str) -> float:
    """The value of a layer that did not change: 0 for distances, 1 for similarities."""
    return 0.0 if measure.endswith(("_angle", "_distance")) else 1.0


def _depth(method: str) -> tuple[int, int, str]:
    if method == "head":
        return 0, 0, method
    if method.startswith("top:"):
        return 1, int(method.removeprefix("top:")), method
    return {"full": 2, "shuffled-labels": 4}.get(method, 3), 0, method
