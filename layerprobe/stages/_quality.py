"""Rows of the tables `adaptation` and `predictions`, which several stages write."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from layerprobe.stage import TableSpec, columns

if TYPE_CHECKING:
    import pandas as pd

    from layerprobe.adaptation import Quality
    from layerprobe.data import Corpus, Examples

ADAPTATION = TableSpec("adaptation", "Quality and cost: one row per method, seed, time and set of examples.", columns())
PREDICTIONS = TableSpec("predictions", "Predicted class: one row per method, seed and example.", columns())


def quality_row(measured: Quality) -> dict[str, Any]:
    """Accuracy with its 95% Wilson interval over test examples, and the other scores, as columns."""
    from scipy.stats import binomtest

    right = round(measured.accuracy * measured.n)
    interval = binomtest(right, measured.n).proportion_ci(0.95, method="wilson")
    return {
        "accuracy": measured.accuracy,
        "accuracy_low": interval.low,
        "accuracy_high": interval.high,
        "macro_f1": measured.macro_f1,
        "loss": measured.loss,
        "brier": measured.brier,
        "calibration_error": measured.calibration_error,
        "n": measured.n,
    }


def predictions_table(corpus: Corpus, examples: Examples, probabilities: Any, named: Mapping[str, Any]) -> pd.DataFrame:
    """The predicted class of each example; `named` are further columns."""
    import pandas as pd

    names = corpus.label_names
    table = pd.DataFrame(
        {
            "example_id": examples.ids,
            "label": [names[label] for label in examples.labels],
            "predicted": [names[label] for label in probabilities.argmax(axis=1)],
            "probability": probabilities.max(axis=1),
        }
    )
    for place, (name, value) in enumerate(named.items()):
        table.insert(place, name, value)
    return table
