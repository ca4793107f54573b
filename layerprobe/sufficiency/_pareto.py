"""Which methods are not dominated in accuracy and cost."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from layerprobe.errors import MeasureError


def pareto(table: pd.DataFrame, costs: Sequence[str]) -> pd.DataFrame:
    """Mark the methods that no other dominates: at least as accurate at no higher cost, and better in one of the two.

    Each cost is considered on its own. Methods that are equal in both do not dominate each other.

    Args:
        table: one row per method (averaged over seeds): `method`, `accuracy`, the costs.
        costs: columns of which less is better.

    Returns:
        One row per cost and method: `cost`, `method`, `value` (of the cost), `quality` (the accuracy), `efficient` (missing
        if the accuracy or the cost is), `dominated_by` (the most accurate of the methods that dominate, and of these the
        cheapest; empty if none does).

    Raises:
        MeasureError: naming a column that is missing, or a method that is repeated.
    """
    missing = [name for name in ("method", "accuracy", *costs) if name not in table.columns]
    if missing:
        raise MeasureError(
            f"{{table}} lacks {', '.join(missing)}; it has {', '.join(map(str, table.columns))}.", "table"
        )
    if not costs:
        raise MeasureError("{costs} is empty; name at least one column.", "costs")
    repeated = table["method"][table["method"].duplicated()]
    if len(repeated):
        raise MeasureError(
            f"{{table}} has several rows of {repeated.iloc[0]!r}; give one row per method, averaged over seeds.",
            "table",
        )
    methods, quality = table["method"].to_numpy(object), table["accuracy"].to_numpy(float)
    parts = []
    for cost in costs:
        value = table[cost].to_numpy(float)
        # [i, j]: j dominates i. Comparisons with missing values are false: they neither dominate nor are dominated.
        dominated = (quality >= quality[:, None]) & (value <= value[:, None])
        dominated &= (quality > quality[:, None]) | (value < value[:, None])
        order = np.lexsort((value, -quality))
        best = [next((str(methods[j]) for j in order if row[j]), "") for row in dominated]
        efficient = pd.Series(~dominated.any(axis=1), dtype="boolean").mask(np.isnan(quality) | np.isnan(value))
        columns = {"method": methods, "value": value, "quality": quality, "efficient": efficient, "dominated_by": best}
        parts.append(pd.DataFrame({"cost": cost, **columns}))
    return pd.concat(parts, ignore_index=True)
