"""Which methods buy their quality at a cost that no other undercuts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from layerprobe.errors import MeasureError


def pareto(
    table: pd.DataFrame, *, quality: str = "accuracy", costs: Sequence[str] = ("seconds", "trainable_parameters")
) -> pd.DataFrame:
    """Mark the methods that no other dominates: at least as good and at most as dear, and better in one of the two.

    Each cost is taken by itself. Methods equal in both don't dominate each other.

    Args:
        table: one row a method (average over seeds first): `method`, the quality (more is better), the costs (less is).

    Returns:
        One row a cost and method: `cost`, `method`, `value` (of the cost), `quality`, `efficient` (missing where the quality or the
        cost is), `dominated_by` (the best of the methods that dominate, the cheapest of these; empty where none does).

    Raises:
        MeasureError: naming a column that is missing, or a method that stands in several rows.
    """
    missing = [name for name in ("method", quality, *costs) if name not in table.columns]
    if missing or not costs:
        what = f"lacks {', '.join(missing)}" if missing else "was asked for no cost"
        raise MeasureError(f"The table of methods {what}; it has {', '.join(map(str, table.columns))}.")
    twice = table["method"][table["method"].duplicated()]
    if len(twice):
        raise MeasureError(
            f"The method {twice.iloc[0]!r} stands in several rows; give one row a method, averaged over seeds."
        )
    methods, good = table["method"].to_numpy(object), table[quality].to_numpy(float)
    parts = []
    for cost in costs:
        price = table[cost].to_numpy(float)
        # [i, j]: j dominates i. Comparisons with a missing value are false, so it neither dominates nor is dominated.
        better = (good >= good[:, None]) & (price <= price[:, None])
        better &= (good > good[:, None]) | (price < price[:, None])
        order = np.lexsort((price, -good))
        best = [next((str(methods[j]) for j in order if row[j]), "") for row in better]
        efficient = pd.Series(~better.any(axis=1), dtype="boolean").mask(np.isnan(good) | np.isnan(price))
        parts.append(
            pd.DataFrame(
                {
                    "cost": cost,
                    "method": methods,
                    "value": price,
                    "quality": good,
                    "efficient": efficient,
                    "dominated_by": best,
                }
            )
        )
    return pd.concat(parts, ignore_index=True)
