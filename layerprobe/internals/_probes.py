"""Linear probes: how well the task's labels can be read from each layer, compared with random labels."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, Int

from layerprobe.errors import MeasureError
from layerprobe.progress import track

if TYPE_CHECKING:
    import pandas as pd

PENALTIES = (10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 3e-3, 1e-3, 3e-4)
"""Strengths of the L2 penalty to choose from, strongest first."""
FOLDS = 5
SEARCH_TOLERANCE = 1e-3
"""Tolerance of the gradient while penalties are compared: faster than 1e-4, with the same choices."""
CONTROLS = 5
"""Draws of random labels; a single one has a standard error of about .02 at 500 test examples."""
CONSTANT = 1e-6
"""Standard deviation below which a feature is constant, relative to the layer's root mean square: float32 rounding."""


def probe_layers(
    train: Mapping[int, Float[np.ndarray, "train width"]],
    train_labels: Int[np.ndarray, " train_labels"],
    test: Mapping[int, Float[np.ndarray, "test width"]],
    test_labels: Int[np.ndarray, " test_labels"],
    *,
    seed: int = 0,
) -> pd.DataFrame:
    """Fit a linear probe of the task to each layer, and the same probe to random labels.

    A probe is a multinomial logistic regression on standardised vectors: it minimises mean cross-entropy plus
    penalty / 2 * (sum of squared weights). The penalty is the one with the lowest cross-entropy in five-fold
    cross-validation on the training examples (fewer folds if a class has fewer examples); the test examples are used
    once. Two classes have one weight vector, of the log odds. Probes are fitted by scikit-learn, on the CPU.

    The control (Hewitt and Liang 2019) gives each example a random label, a permutation of the real ones, and uses the
    penalty of the task's probe; 5 draws are averaged, the same ones for all layers and models with one seed. Unlike in
    Hewitt and Liang's tasks on word types, these labels cannot be inferred from other examples, so that on test the
    control is at chance unless training examples recur there. `selectivity` is therefore accuracy above chance, and
    `control_train_accuracy` what the probe can memorise: where it is close to `train_accuracy`, accuracy on training
    examples says nothing about the layer.

    Args:
        train: layer -> one vector per training example, such as `ActivationStore.mean`.
        train_labels: class numbers.
        test: layer -> one vector per test example, the same layers.
        test_labels: class numbers.
        seed: seed of folds and random labels.

    Returns:
        One row per layer: `layer`; on test `accuracy` with its 95% Wilson interval `accuracy_low`, `accuracy_high`,
        `macro_f1`, `loss` (cross-entropy in nats) and `control_accuracy`; on train `train_accuracy` and
        `control_train_accuracy`; `selectivity` (accuracy less control accuracy) with its 95% interval `selectivity_low`,
        `selectivity_high` (normal, paired over test examples, given these fits); `penalty`; `n`, the number of test
        examples.

    Raises:
        MeasureError: if layers, rows or labels do not match, a value is not finite, or a class cannot be learned.
    """
    import pandas as pd
    from threadpoolctl import threadpool_limits

    _check(train, train_labels, test, test_labels)
    rng = np.random.default_rng(seed)
    controls = [(rng.permutation(train_labels), rng.permutation(test_labels)) for _ in range(CONTROLS)]
    rows = []
    bar = track(sorted(train), "probing layers")
    # Thousands of small products, which a second thread does not speed up; on a busy machine it slows them down.
    with threadpool_limits(limits=1, user_api="blas"):
        for layer in bar:
            x, x_test = _standardised(train[layer], test[layer])
            penalty = _choose_penalty(np.asarray(train[layer], dtype=np.float64), train_labels, seed)
            task = _fit(x, train_labels, x_test, test_labels, penalty)
            random = [_fit(x, labels, x_test, labels_test, penalty) for labels, labels_test in controls]
            rows.append({"layer": layer, **_quality(task, random, test_labels), "penalty": penalty})
    return pd.DataFrame(rows).assign(n=len(test_labels))


@dataclass(frozen=True)
class _Fit:
    """Predictions of a fitted probe: which are right on train and on test, and the probabilities on test."""

    right_on_train: Bool[np.ndarray, " train"]
    right: Bool[np.ndarray, " test"]
    probabilities: Float[np.ndarray, "test classes"]
    classes: np.ndarray


def _fit(x: np.ndarray, labels: np.ndarray, x_test: np.ndarray, test_labels: np.ndarray, penalty: float) -> _Fit:
    probe = _fitted(_regression(), x, labels, penalty)
    right_on_train, right = probe.predict(x) == labels, probe.predict(x_test) == test_labels
    return _Fit(right_on_train, right, np.asarray(probe.predict_proba(x_test)), probe.classes_)


def _quality(task: _Fit, random: list[_Fit], labels: np.ndarray) -> dict[str, Any]:
    from scipy.stats import binomtest, norm
    from sklearn.metrics import f1_score, log_loss

    n, predicted = len(labels), task.classes[task.probabilities.argmax(axis=1)]
    interval = binomtest(int(task.right.sum()), n).proportion_ci(0.95, method="wilson")
    above = task.right - np.mean([control.right for control in random], axis=0)
    reach = float(norm.ppf(0.975) * above.std(ddof=1) / np.sqrt(n))
    return {
        "accuracy": float(task.right.mean()),
        "accuracy_low": float(interval.low),
        "accuracy_high": float(interval.high),
        "macro_f1": float(f1_score(labels, predicted, average="macro", zero_division=0)),
        "loss": float(log_loss(labels, task.probabilities, labels=task.classes)),
        "control_accuracy": float(np.mean([control.right.mean() for control in random])),
        "train_accuracy": float(task.right_on_train.mean()),
        "control_train_accuracy": float(np.mean([control.right_on_train.mean() for control in random])),
        "selectivity": float(above.mean()),
        "selectivity_low": max(-1.0, float(above.mean()) - reach),
        "selectivity_high": min(1.0, float(above.mean()) + reach),
    }


def _choose_penalty(x: np.ndarray, labels: np.ndarray, seed: int) -> float:
    """The penalty with the lowest held-out cross-entropy.

    The weights of each fold start from those of the next stronger penalty. The search ends when two weaker penalties in
    a row are worse: held-out loss falls and then rises along the path, and the weakest penalties take longest.
    """
    from sklearn.metrics import log_loss
    from sklearn.model_selection import StratifiedKFold

    folds = min(FOLDS, int(np.unique(labels, return_counts=True)[1].min()))
    splits = list(StratifiedKFold(folds, shuffle=True, random_state=seed).split(x, labels))
    parts = [(_regression(SEARCH_TOLERANCE), *_standardised(x[kept], x[held]), kept, held) for kept, held in splits]
    best, lowest, worse = PENALTIES[0], np.inf, 0
    for penalty in PENALTIES:
        loss = 0.0
        for probe, inside, outside, kept, held in parts:
            probabilities = _fitted(probe, inside, labels[kept], penalty).predict_proba(outside)
            loss += float(log_loss(labels[held], probabilities, labels=probe.classes_, normalize=False))
        if loss < lowest:
            best, lowest, worse = penalty, loss, 0
        else:
            worse += 1
            if worse == 2:
                break
    return best


def _regression(tolerance: float = 1e-4) -> Any:
    """A probe; the tolerance is that of the objective's gradient."""
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(warm_start=True, max_iter=1000, tol=tolerance)


def _fitted(probe: Any, x: np.ndarray, labels: np.ndarray, penalty: float) -> Any:
    """scikit-learn weights the sum of the losses by C against half the squared weights: C is 1 / (penalty * n)."""
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return probe.set_params(C=1 / (penalty * len(x))).fit(x, labels)


def _standardised(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both in units of the training rows' standard deviation; constant features, as of the first token at layer 0, are 0."""
    x, x_test = np.asarray(train, dtype=np.float64), np.asarray(test, dtype=np.float64)
    centre, spread = x.mean(axis=0), x.std(axis=0)
    constant = spread <= CONSTANT * np.sqrt(np.square(x).mean())
    scale = np.where(constant, np.inf, spread)
    return (x - centre) / scale, (x_test - centre) / scale


def _check(
    train: Mapping[int, np.ndarray], train_labels: np.ndarray, test: Mapping[int, np.ndarray], test_labels: np.ndarray
) -> None:
    if not train or set(train) != set(test):
        raise MeasureError(
            f"{{train}} has the layers {sorted(train)} and {{test}} {sorted(test)}; give at least one layer, and the same ones.",
            "train",
            "test",
        )
    for part, layers, labels in (("train", train, train_labels), ("test", test, test_labels)):
        for layer, rows in layers.items():
            if len(rows) != len(labels):
                raise MeasureError(
                    f"{{{part}}} has {len(rows)} vectors of layer {layer} but {{{part}_labels}} {len(labels)} labels; "
                    "give one of each per example.",
                    part,
                    f"{part}_labels",
                )
            if not np.isfinite(rows).all():
                raise MeasureError(
                    f"{{{part}}} has values at layer {layer} that are not finite; capture them again.", part
                )
    if len(test_labels) < 2:
        raise MeasureError(f"{{test}} has {len(test_labels)} examples; give at least 2, preferably hundreds.", "test")
    classes, counts = np.unique(train_labels, return_counts=True)
    if len(classes) < 2 or counts.min() < 2:
        raise MeasureError(
            f"{{train_labels}} has {counts.min()} of class {classes[counts.argmin()]} and {len(classes)} classes; "
            "cross-validation needs at least 2 classes with 2 examples each.",
            "train_labels",
        )
    unknown = np.setdiff1d(test_labels, classes)
    if len(unknown):
        raise MeasureError(
            f"{{test_labels}} has class {unknown[0]}, which is not in {{train_labels}}; train on every class.",
            "test_labels",
            "train_labels",
        )
