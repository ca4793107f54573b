"""The order of models by their quality on validation examples, which the tests on the test examples may use."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd


def by_validation(quality: pd.DataFrame, methods: Sequence[str]) -> tuple[str, ...]:
    """Methods by their accuracy on held-out training examples, averaged over seeds, the best first.

    Of equal accuracies the smaller cross-entropy comes first, then the earlier method; methods without validation come last.
    Nothing here depends on the test examples, so that tests may be made in this order.

    Args:
        quality: one row per method and seed: `method`, `validation_accuracy`, `validation_loss`. Other methods are ignored.
        methods: the methods to order.
    """
    columns = ["validation_accuracy", "validation_loss"]
    means = quality.reindex(columns=["method", *columns]).groupby("method")[columns].mean().reindex(list(methods))
    # Predictions are counted, so that equal accuracies may differ in the last bit only.
    means["validation_accuracy"] = means["validation_accuracy"].astype(float).round(12)
    ordered = means.sort_values(columns, ascending=[False, True], kind="stable", na_position="last")
    return tuple(ordered.index)
