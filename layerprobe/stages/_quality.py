"""Rows of the tables `adaptation` and `predictions`, which several stages write."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from layerprobe.stage import TableSpec, columns

if TYPE_CHECKING:
    import pandas as pd

    from layerprobe.adaptation import HeldOut, Quality
    from layerprobe.data import Corpus, Examples

ADAPTATION = TableSpec(
    "adaptation",
    "Quality and cost: one row per method, seed, time and set of examples.",
    columns(
        "method",
        "seed",
        "n",
        when="`before` training (under a fresh head) or `after` it",
        split="`test`, or the name of an out-of-domain set",
        accuracy="share of examples whose most probable class is right, 0 to 1",
        accuracy_low="lower end of its 95% Wilson interval",
        accuracy_high="upper end of its 95% Wilson interval",
        macro_f1="F1 averaged over classes, 0 to 1",
        loss="mean cross-entropy, in nats",
        brier="mean over examples of the squared error of the probabilities, summed over classes, 0 to 2",
        calibration_error="expected calibration error in 15 bins of equal width, 0 to 1",
        trainable_parameters="number of parameters that are trained",
        total_parameters="number of parameters of the classifier",
        seconds="wall-clock seconds of training, frozen blocks included; comparable where `concurrent_tasks` is 1",
        learning_rate="peak learning rate",
        candidates="number of values of a setting that were compared on held-out training examples; 1 if none was tuned",
        validation_accuracy="accuracy of the chosen one on the held-out training examples; missing if none was tuned",
        validation_loss="its mean cross-entropy there, in nats",
        validation_n="number of these held-out examples",
        flops="floating-point operations of training, frozen blocks included",
        flops_frozen="the part of them that computes outputs of frozen blocks, which methods share",
        peak_bytes="largest host memory during training above that at its start, in bytes",
        memory_kind="how it was measured: `sampled` or `high-water`",
        energy_wh="energy of the processors during training, in watt-hours; missing if it was not measured",
        energy_kind="`measured` or `estimated`",
        energy_note="how the energy was obtained, or why there is none",
        bytes_stored="bytes that an adapted model adds to the base, in float32",
        frozen_bytes="bytes of stored outputs of frozen blocks that training reads",
    ),
)
PREDICTIONS = TableSpec(
    "predictions",
    "Predicted class: one row per method, seed and example.",
    columns(
        "method",
        "seed",
        "example_id",
        split="`test`, or the name of an out-of-domain set",
        label="true label",
        predicted="most probable label",
        probability="its probability, 0 to 1",
    ),
)


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


def tuning_row(held_out: HeldOut | None) -> dict[str, Any]:
    """How a setting was chosen, as columns."""
    if held_out is None:
        return {"candidates": 1}
    return {
        "candidates": held_out.candidates,
        "validation_accuracy": held_out.accuracy,
        "validation_loss": held_out.loss,
        "validation_n": held_out.n,
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
