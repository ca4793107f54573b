"""Whether a checkpoint's labels may be in another order than the data's."""

from __future__ import annotations

from typing import Any

from layerprobe.record import RunRecord
from layerprobe.report import queries
from layerprobe.report.queries import Tables

MAJORITY = "reference:majority"


def label_warning(tables: Tables, record: RunRecord) -> str | None:
    """A warning for a checkpoint that names no labels and is less accurate than chance; None if there is no doubt.

    Chance is the larger of one in the number of classes and, where it was measured, the majority class' accuracy.
    """
    table, after = queries.having(tables, "checkpoint_labels"), queries.accuracy_after(tables)
    if table is None or after is None:
        return None
    majority = after.accuracy[after.method == MAJORITY]
    for method, rows in table[table.matched == "order"].groupby("method", sort=False):
        scores = after.accuracy[after.method == method]
        chance = max([1 / len(rows), *majority])
        if not len(scores) or scores.mean() >= chance:
            continue
        first: Any = rows.iloc[0]
        text = (
            f"The labels of {queries.label(str(method), record)} have no names ({', '.join(rows.model_label)}), so they were "
            f"taken in the data's order ({', '.join(rows.label)}); its accuracy of {scores.mean():.1%} is below chance "
            f"({chance:.1%}), so they may be in another order."
        )
        if list(rows.fitted) == list(rows.label):
            return f"{text} No other order fits the training examples better ({first.fitted_accuracy:.1%})."
        mapping = ", ".join(f'{row.model_label} = "{row.fitted}"' for row in rows.itertuples())
        return (
            f"{text} The order that fits {first.n:,} training examples best gives {first.fitted_accuracy:.1%} there "
            f"(instead of {first.accuracy:.1%}); if it is right, set data.labels = {{ {mapping} }}."
        )
    return None
