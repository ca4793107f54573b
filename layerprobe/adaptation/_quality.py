"""The quality of a classifier on labelled examples."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch

from layerprobe.adaptation._config import AdaptConfig
from layerprobe.adaptation._validation import SEARCH_FACTORS, HeldOut, validation_folds, validation_part
from layerprobe.data import Examples
from layerprobe.device import MOST_EXAMPLES, batch_size, forward_bytes
from layerprobe.encoder import Encoder, collate, length_sorted_batches, tokenize
from layerprobe.errors import MeasureError
from layerprobe.progress import track

BATCH = 32
CALIBRATION_BINS = 15
"""Bins of equal width over (0, 1] for `Quality.calibration_error`, each open below and closed above."""


@dataclass(frozen=True)
class Quality:
    """How well class probabilities fit the labels of n examples."""

    accuracy: float
    """Share of examples whose most probable class is the true one."""
    macro_f1: float
    """F1 averaged over the classes that are true or predicted for at least one example."""
    loss: float
    """Mean cross-entropy, in nats."""
    brier: float
    """Mean over examples of the sum over classes of squared differences between probability and truth (1 for the true
    class, else 0): in [0, 2]. With two classes it is twice the Brier score of the positive class."""
    calibration_error: float
    """Expected calibration error in [0, 1] (Guo et al. 2017): the examples are binned by the probability of their most
    probable class (`CALIBRATION_BINS`), and the absolute difference between a bin's accuracy and its mean probability is
    averaged, weighted by its size. Absolute differences do not cancel, so it is biased upwards, the more the fewer the
    examples: perfectly calibrated probabilities of two classes score about .04 at 500 examples, .012 at 5,000. Compare it
    only over the same examples. Bins have equal width, since bins of equal mass would separate examples of equal
    probability by their order."""
    n: int


def quality(probabilities: np.ndarray, labels: np.ndarray, *, classes: Sequence[int] | None = None) -> Quality:
    """Quality of class probabilities `(n, classes)` against class numbers `(n,)`.

    Args:
        probabilities: rows that sum to 1.
        labels: class numbers, columns of the probabilities.
        classes: the classes that the examples can have, where these are not all: the other classes' probabilities are
            removed and the rest is divided by its sum (a row without a rest becomes uniform), so that an example from
            outside the domain is judged by a choice among its possible labels.

    Raises:
        MeasureError: if there are no examples, shapes differ, rows are not probabilities, or a label is not a class.
    """
    from sklearn.metrics import accuracy_score, f1_score

    chosen, truth = _restricted(np.asarray(probabilities, dtype=np.float64), np.asarray(labels), classes)
    predicted = chosen.argmax(axis=1)
    given = chosen[np.arange(len(truth)), truth]
    return Quality(
        accuracy=float(accuracy_score(truth, predicted)),
        macro_f1=float(f1_score(truth, predicted, average="macro", zero_division=0)),
        loss=float(-np.log(np.maximum(given, np.finfo(np.float64).tiny)).mean()),
        # The true class' (p - 1)^2 in place of its p^2.
        brier=float(((chosen**2).sum(axis=1) - given**2 + (1 - given) ** 2).mean()),
        calibration_error=_calibration_error(chosen.max(axis=1), predicted == truth),
        n=len(truth),
    )


def _restricted(
    probabilities: np.ndarray, labels: np.ndarray, classes: Sequence[int] | None
) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of the classes that the examples can have, and the labels as their columns."""
    if probabilities.ndim != 2 or labels.shape != probabilities.shape[:1]:
        raise MeasureError(
            f"The shapes of {{probabilities}} and {{labels}} are {probabilities.shape} and {labels.shape}; "
            "they must be (n, classes) and (n,).",
            "probabilities",
            "labels",
        )
    if not len(labels):
        raise MeasureError("{labels} is empty; give at least one example.", "labels")
    valid = np.isfinite(probabilities).all(axis=1) & (probabilities >= 0).all(axis=1)
    valid &= np.abs(probabilities.sum(axis=1) - 1) < 1e-6
    if not valid.all():
        raise MeasureError(
            f"Row {int(np.flatnonzero(~valid)[0])} of {{probabilities}} is not finite, negative or does not sum to 1; "
            "give softmax outputs.",
            "probabilities",
        )
    allowed = np.arange(probabilities.shape[1]) if classes is None else np.unique(np.asarray(classes, dtype=np.int64))
    if not len(allowed) or allowed[0] < 0 or allowed[-1] >= probabilities.shape[1]:
        raise MeasureError(
            f"{{classes}} is {list(classes or ())}, but there are {probabilities.shape[1]} classes; "
            f"give numbers from 0 to {probabilities.shape[1] - 1}.",
            "classes",
        )
    invalid = ~np.isin(labels, allowed)
    if invalid.any():
        raise MeasureError(
            f"The label {labels[invalid][0]} of example {int(np.flatnonzero(invalid)[0])} is not among the classes "
            f"{', '.join(map(str, allowed))}.",
            "labels",
        )
    truth = np.searchsorted(allowed, labels)
    if classes is None:
        return probabilities, truth
    chosen = probabilities[:, allowed]
    rest = chosen.sum(axis=1, keepdims=True)
    return np.divide(chosen, rest, out=np.full_like(chosen, 1 / len(allowed)), where=rest > 0), truth


def _calibration_error(confidence: np.ndarray, correct: np.ndarray) -> float:
    edges = np.linspace(0, 1, CALIBRATION_BINS + 1)
    bins = np.digitize(confidence, edges[1:-1], right=True)
    surplus = np.bincount(bins, weights=correct - confidence, minlength=CALIBRATION_BINS)
    return float(np.abs(surplus).sum() / len(confidence))


@torch.inference_mode()
def probabilities(model: Any, encoder: Encoder, examples: Examples, config: AdaptConfig) -> np.ndarray:
    """Class probabilities `(n, classes)` in float64; the model is put in eval mode and should be in float32.

    Args:
        model: a classifier.
        encoder: the pretrained encoder that it was adapted from.
        examples: what to classify.
        config: its `max_length` and `device` are used.
    """
    encodings = tokenize(encoder, examples, config.max_length)
    model.to(config.device).eval()
    result = np.zeros((len(encodings), model.config.num_labels))
    lengths = [len(e["input_ids"]) for e in encodings]
    each = forward_bytes(model.config, max(lengths, default=1))
    size = batch_size(config.device, each, usual=BATCH, most=MOST_EXAMPLES)
    batches = length_sorted_batches(lengths, size)
    for indices in track(batches, "evaluating"):
        inputs = {key: value.to(config.device) for key, value in collate(encoder, encodings, indices).items()}
        result[indices] = model(**inputs).logits.cpu().double().softmax(dim=1).numpy()
    return result


PENALTIES = (1e-3, 1e-2, 1e-1)
"""scikit-learn's C for `reference`, from strong to weak; the middle one is the default."""


@dataclass(frozen=True)
class LinearReference:
    """A logistic regression on a pretrained encoder's vectors."""

    quality: Quality
    """On the test examples."""
    probabilities: np.ndarray
    """Class probabilities on the test examples, `(n, classes)`."""
    held_out: HeldOut | None
    """With the chosen penalty, on held-out training examples; None where no class has an example to spare."""


def reference(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    test_features: np.ndarray,
    test_labels: np.ndarray,
    *,
    seed: int,
    tuning: Literal["default", "equal"] = "default",
) -> LinearReference:
    """Logistic regression on a pretrained encoder's vectors: what can be reached without any fine-tuning.

    Features are standardised. The strength of the L2 penalty is the one of three with the least cross-entropy on held-out
    training examples: those on which the penalty of a head is chosen (`validation_folds`), or with equal tuning the part on
    which every method is tuned (`validation_part`).
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from threadpoolctl import threadpool_limits

    x, y = np.asarray(train_features, dtype=np.float64), np.asarray(train_labels)
    default, folds = PENALTIES[1], validation_folds(y, seed)
    strengths: tuple[float, ...] = PENALTIES
    if tuning == "equal":
        part = validation_part(y, seed)
        strengths, folds = tuple(default * factor for factor in SEARCH_FACTORS), [part] if part.any() else []

    def fitted(strength: float, rows: np.ndarray) -> Any:
        pipeline = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=500, tol=1e-3))
        return pipeline.fit(x[rows], y[rows])

    # Thousands of small products: a second thread gains nothing, and is slower on a busy machine.
    with warnings.catch_warnings(), threadpool_limits(limits=1, user_api="blas"):
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = {
            c: _over_folds([fitted(c, ~held).predict_proba(x[held]) for held in folds], y, folds) for c in strengths
        }
        chosen = min(strengths, key=lambda c: found[c].loss) if folds else default
        predicted = np.asarray(
            fitted(chosen, np.full(len(y), True)).predict_proba(np.asarray(test_features, dtype=float))
        )
    held_out = replace(found[chosen], candidates=len(strengths)) if folds else None
    return LinearReference(quality(predicted, test_labels), predicted, held_out)


def _over_folds(predicted: Sequence[np.ndarray], labels: np.ndarray, folds: Sequence[np.ndarray]) -> HeldOut:
    """Quality of class probabilities on the held-out examples of all folds together."""
    if not folds:
        return HeldOut(np.nan, np.nan, 0)
    rows, truth = np.concatenate(predicted), np.concatenate([labels[held] for held in folds])
    given = np.maximum(rows[np.arange(len(truth)), truth], np.finfo(np.float64).tiny)
    return HeldOut(float((rows.argmax(axis=1) == truth).mean()), float(-np.log(given).mean()), len(truth))
