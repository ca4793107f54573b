"""How well a classifier does on labelled texts."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from layerprobe.data import Examples
from layerprobe.encoder import Encoder, collate, length_sorted_batches, tokenize


@dataclass(frozen=True)
class Quality:
    """Measured over n texts: accuracy and macro-averaged F1 in [0, 1], mean cross-entropy in nats."""

    accuracy: float
    macro_f1: float
    loss: float
    n: int


def quality(probabilities: np.ndarray, labels: np.ndarray) -> Quality:
    """Quality of class probabilities `(n, classes)` against class numbers `(n,)`."""
    from sklearn.metrics import accuracy_score, f1_score

    predicted = probabilities.argmax(axis=1)
    own = np.maximum(probabilities[np.arange(len(labels)), labels], np.finfo(np.float64).tiny)
    return Quality(
        accuracy=float(accuracy_score(labels, predicted)),
        macro_f1=float(f1_score(labels, predicted, average="macro", zero_division=0)),
        loss=float(-np.log(own).mean()),
        n=len(labels),
    )


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

    x, x_test = np.asarray(train_features, dtype=np.float64), np.asarray(test_features, dtype=np.float64)
    folds = min(5, int(np.bincount(train_labels).min()))
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500, tol=1e-3))
    with warnings.catch_warnings():
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
