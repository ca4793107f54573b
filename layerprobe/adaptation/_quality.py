"""How well a classifier does on labelled texts."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from layerprobe.data import Examples
from layerprobe.encoder import Encoder, collate, length_sorted_batches, tokenize
from layerprobe.errors import MeasureError

CALIBRATION_BINS = 15
"""Bins of equal width over (0, 1] for `Quality.calibration_error`, each open below and closed above."""


@dataclass(frozen=True)
class Quality:
    """How well class probabilities fit the labels of n texts."""

    accuracy: float
    """Share of texts whose most probable class is their own."""
    macro_f1: float
    """F1 averaged over the classes that are a text's own or predicted for one."""
    loss: float
    """Mean cross-entropy, in nats."""
    brier: float
    """Mean over texts of the sum over classes of squared differences between probability and truth (1 for the own
    class, else 0): in [0, 2]. With two classes it is twice what is called the Brier score of the positive class."""
    calibration_error: float
    """Expected calibration error in [0, 1] (Guo et al. 2017): the texts are binned by the probability of their most
    probable class (`CALIBRATION_BINS`), and the absolute difference between a bin's accuracy and its mean probability
    is averaged, weighted by its texts. Absolute differences don't cancel, so it is biased upwards, the more the fewer
    the texts: perfectly calibrated probabilities of two classes score about .04 at 500 texts, .012 at 5,000. Compare it
    only over the same texts. Bins of equal width, since in bins of equal mass texts of one same probability would be
    told apart by their order."""
    n: int


def quality(probabilities: np.ndarray, labels: np.ndarray, *, classes: Sequence[int] | None = None) -> Quality:
    """Quality of class probabilities `(n, classes)` against class numbers `(n,)`.

    Args:
        probabilities: rows that sum to 1.
        labels: class numbers, columns of the probabilities.
        classes: the classes that the texts can have, where these are not all: the others' probabilities are left out
            and what is left is divided by its sum (a row that has nothing left becomes uniform), so that a text outside
            the domain is judged by a choice among its own labels.

    Raises:
        MeasureError: if there are no texts, shapes differ, rows are not probabilities, or a label is no class.
    """
    from sklearn.metrics import accuracy_score, f1_score

    chosen, own = _restricted(np.asarray(probabilities, dtype=np.float64), np.asarray(labels), classes)
    predicted = chosen.argmax(axis=1)
    given = chosen[np.arange(len(own)), own]
    return Quality(
        accuracy=float(accuracy_score(own, predicted)),
        macro_f1=float(f1_score(own, predicted, average="macro", zero_division=0)),
        loss=float(-np.log(np.maximum(given, np.finfo(np.float64).tiny)).mean()),
        # The own class' (p - 1)^2 in place of its p^2.
        brier=float(((chosen**2).sum(axis=1) - given**2 + (1 - given) ** 2).mean()),
        calibration_error=_calibration_error(chosen.max(axis=1), predicted == own),
        n=len(own),
    )


def _restricted(
    probabilities: np.ndarray, labels: np.ndarray, classes: Sequence[int] | None
) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of the classes that the texts can have, and the labels as their columns."""
    if probabilities.ndim != 2 or labels.shape != probabilities.shape[:1]:
        raise MeasureError(
            f"Quality was given probabilities {probabilities.shape} and labels {labels.shape}; "
            "it needs (n, classes) and (n,)."
        )
    if not len(labels):
        raise MeasureError("Quality was given no texts; it needs at least one.")
    fits = np.isfinite(probabilities).all(axis=1) & (probabilities >= 0).all(axis=1)
    fits &= np.abs(probabilities.sum(axis=1) - 1) < 1e-6
    if not fits.all():
        raise MeasureError(
            f"Row {int(np.flatnonzero(~fits)[0])} of the probabilities is not finite, negative or does not sum to 1; "
            "give softmax outputs."
        )
    allowed = np.arange(probabilities.shape[1]) if classes is None else np.unique(np.asarray(classes, dtype=np.int64))
    if not len(allowed) or allowed[0] < 0 or allowed[-1] >= probabilities.shape[1]:
        raise MeasureError(
            f"Quality was asked for classes {list(classes or ())} of {probabilities.shape[1]}; "
            f"give numbers from 0 to {probabilities.shape[1] - 1}."
        )
    strange = ~np.isin(labels, allowed)
    if strange.any():
        raise MeasureError(
            f"The label {labels[strange][0]} of text {int(np.flatnonzero(strange)[0])} is none of the classes "
            f"{', '.join(map(str, allowed))} that the texts can have."
        )
    own = np.searchsorted(allowed, labels)
    if classes is None:
        return probabilities, own
    chosen = probabilities[:, allowed]
    left = chosen.sum(axis=1, keepdims=True)
    return np.divide(chosen, left, out=np.full_like(chosen, 1 / len(allowed)), where=left > 0), own


def _calibration_error(confidence: np.ndarray, correct: np.ndarray) -> float:
    edges = np.linspace(0, 1, CALIBRATION_BINS + 1)
    bins = np.digitize(confidence, edges[1:-1], right=True)
    surplus = np.bincount(bins, weights=correct - confidence, minlength=CALIBRATION_BINS)
    return float(np.abs(surplus).sum() / len(confidence))


@torch.inference_mode()
def probabilities(
    model: nn.Module,
    encoder: Encoder,
    examples: Examples,
    *,
    max_length: int,
    device: str = "cpu",
    batch_size: int = 32,
    progress: bool = True,
) -> np.ndarray:
    """Class probabilities `(n, classes)` in float64, of a model in float32 and eval mode."""
    encodings = tokenize(encoder, examples, max_length)
    model.to(device).eval()
    result: np.ndarray | None = None
    batches = length_sorted_batches([len(e["input_ids"]) for e in encodings], batch_size)
    for indices in tqdm(batches, desc="evaluating", unit="batch", leave=False, disable=not progress, delay=1):
        inputs = {key: value.to(device) for key, value in collate(encoder, encodings, indices).items()}
        logits = model(**inputs).logits.to("cpu", torch.float64)
        if result is None:
            result = np.zeros((len(encodings), logits.shape[1]))
        result[indices] = torch.softmax(logits, dim=1).numpy()
    assert result is not None, "there is at least one text"
    return result


def reference(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    test_features: np.ndarray,
    test_labels: np.ndarray,
    *,
    seed: int,
) -> tuple[Quality, np.ndarray]:
    """Logistic regression on a pretrained encoder's vectors: what a frozen body offers without any fine-tuning.

    Features are standardised; the strength of the L2 penalty is chosen by five-fold cross-validation of the
    cross-entropy on the training texts (fewer folds where a class has fewer texts).

    Returns:
        Quality on the test texts, and their class probabilities.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, StratifiedKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from threadpoolctl import threadpool_limits

    x, x_test = np.asarray(train_features, dtype=np.float64), np.asarray(test_features, dtype=np.float64)
    folds = min(5, int(np.bincount(train_labels).min()))
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500, tol=1e-3))
    # Thousands of small products: a second thread gains nothing, and on a busy machine waits for its turn each time.
    with warnings.catch_warnings(), threadpool_limits(limits=1, user_api="blas"):
        warnings.simplefilter("ignore", ConvergenceWarning)
        if folds >= 2:
            search = GridSearchCV(
                pipeline,
                {"logisticregression__C": [1e-3, 1e-2, 1e-1]},
                scoring="neg_log_loss",
                cv=StratifiedKFold(folds, shuffle=True, random_state=seed),
            ).fit(x, train_labels)
            fitted = search.best_estimator_
        else:
            fitted = pipeline.set_params(logisticregression__C=1e-2).fit(x, train_labels)
    result = np.asarray(fitted.predict_proba(x_test))
    return quality(result, test_labels), result
