"""Linear probes: how well each layer's vectors tell the task's labels, beside a control with random labels."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, Int
from tqdm import tqdm

from layerprobe.errors import MeasureError

if TYPE_CHECKING:
    import pandas as pd

PENALTIES = (10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 3e-3, 1e-3, 3e-4)
"""Strengths of the L2 penalty that are tried, strongest first."""
FOLDS = 5
SEARCH_TOLERANCE = 1e-3
"""Where the gradient ends while penalties are compared: a third quicker than 1e-4, and the same choices."""
CONTROLS = 5
"""Draws of random labels; one alone would add its own luck, about .02 at 500 test texts."""
CONSTANT = 1e-6
"""Spread below which a feature counts as constant, in units of the layer's root mean square: float32 rounding."""


def probe_layers(
    train: Mapping[int, Float[np.ndarray, "train width"]],
    train_labels: Int[np.ndarray, " train_labels"],
    test: Mapping[int, Float[np.ndarray, "test width"]],
    test_labels: Int[np.ndarray, " test_labels"],
    *,
    seed: int = 0,
    progress: bool = True,
) -> pd.DataFrame:
    """Fit a linear probe of the task to each layer, and the same probe to random labels.

    A probe is a multinomial logistic regression on standardised vectors: it minimises mean cross-entropy plus
    penalty / 2 * (sum of squared weights). The penalty is the one with the least cross-entropy in five-fold
    cross-validation on the training texts (fewer folds where a class has fewer texts); the test texts are looked at
    once. Two classes have one weight vector, of the log odds.

    The control (Hewitt and Liang 2019) gives each example a random label, a permutation of the real ones, and is fitted
    with the penalty of the task's own probe; 5 draws are averaged, and one seed gives all layers and models the same ones.
    No example's label can be known from another's here, unlike in Hewitt and Liang's tasks on word types, so on
    test the control stays at chance, unless training texts recur there. Read it thus: `selectivity` is what the probe
    knows above chance at its own habit of answering; `control_train_accuracy` is what it can learn by heart. Where
    that comes near `train_accuracy`, accuracy on training texts says nothing about the layer.

    Args:
        train: layer -> one vector a training text, such as `ActivationStore.mean`.
        train_labels: class numbers.
        test: layer -> one vector a test text, the same layers.
        test_labels: class numbers.
        seed: decides folds and random labels.
        progress: whether to draw a bar on stderr.

    Returns:
        One row a layer: `layer`; on test `accuracy` with its 95% Wilson interval `accuracy_low`, `accuracy_high`,
        `macro_f1`, `loss` (cross-entropy in nats) and `control_accuracy`; on train `train_accuracy` and
        `control_train_accuracy`; `selectivity` (accuracy less control accuracy) with its 95% interval `selectivity_low`,
        `selectivity_high` (normal, paired over test texts, given these fits); `penalty`; `n`, the number of test texts.

    Raises:
        MeasureError: if layers, rows or labels don't match, a value is not finite, or a class can't be learned.
    """
    import pandas as pd
    from threadpoolctl import threadpool_limits

    _check(train, train_labels, test, test_labels)
    rng = np.random.default_rng(seed)
    controls = [(rng.permutation(train_labels), rng.permutation(test_labels)) for _ in range(CONTROLS)]
    rows = []
    bar = tqdm(sorted(train), desc="probing layers", unit="layer", leave=False, disable=not progress, delay=1)
    # Thousands of small products: a second thread gains nothing, and on a busy machine waits for its turn each time.
    with threadpool_limits(limits=1, user_api="blas"):
        for layer in bar:
            x, x_test = _standardised(train[layer], test[layer])
            penalty = _choose_penalty(np.asarray(train[layer], dtype=np.float64), train_labels, seed)
            rows.append({"layer": layer, **_measured(x, train_labels, x_test, test_labels, controls, penalty)})
    return pd.DataFrame(rows)


@dataclass(frozen=True)
class _Fit:
    """A fitted probe's answers: which are right on train, which on test, and its test probabilities."""

    right_on_train: Bool[np.ndarray, " train"]
    right: Bool[np.ndarray, " test"]
    probabilities: Float[np.ndarray, "test classes"]


def _measured(
    x: np.ndarray,
    labels: np.ndarray,
    x_test: np.ndarray,
    test_labels: np.ndarray,
    controls: list[tuple[np.ndarray, np.ndarray]],
    penalty: float,
) -> dict[str, Any]:
    from scipy.stats import binomtest, norm
    from sklearn.metrics import f1_score, log_loss

    task = _fit(x, labels, x_test, test_labels, penalty)
    random = [_fit(x, own, x_test, own_test, penalty) for own, own_test in controls]
    n, classes = len(test_labels), np.unique(labels)
    interval = binomtest(int(task.right.sum()), n).proportion_ci(0.95, method="wilson")
    above = task.right - np.mean([control.right for control in random], axis=0)
    reach = float(norm.ppf(0.975) * above.std(ddof=1) / np.sqrt(n))
    answers = classes[task.probabilities.argmax(axis=1)]
    return {
        "accuracy": float(task.right.mean()),
        "accuracy_low": float(interval.low),
        "accuracy_high": float(interval.high),
        "macro_f1": float(f1_score(test_labels, answers, average="macro", zero_division=0)),
        "loss": float(log_loss(test_labels, task.probabilities, labels=classes)),
        "control_accuracy": float(np.mean([control.right.mean() for control in random])),
        "train_accuracy": float(task.right_on_train.mean()),
        "control_train_accuracy": float(np.mean([control.right_on_train.mean() for control in random])),
        "selectivity": float(above.mean()),
        "selectivity_low": max(-1.0, float(above.mean()) - reach),
        "selectivity_high": min(1.0, float(above.mean()) + reach),
        "penalty": penalty,
        "n": n,
    }


def _fit(x: np.ndarray, labels: np.ndarray, x_test: np.ndarray, test_labels: np.ndarray, penalty: float) -> _Fit:
    probe = _fitted(_regression(), x, labels, penalty)
    return _Fit(
        right_on_train=probe.predict(x) == labels,
        right=probe.predict(x_test) == test_labels,
        probabilities=np.asarray(probe.predict_proba(x_test)),
    )


def _choose_penalty(x: np.ndarray, labels: np.ndarray, seed: int) -> float:
    """The penalty with the least held-out cross-entropy.

    Each fold's weights start from those of the next stronger penalty. The search ends when two weaker penalties in
    a row did worse: held-out loss falls and then rises along the path, and the weakest penalties take the longest.
    """
    from sklearn.metrics import log_loss
    from sklearn.model_selection import StratifiedKFold

    folds = min(FOLDS, int(np.unique(labels, return_counts=True)[1].min()))
    splits = list(StratifiedKFold(folds, shuffle=True, random_state=seed).split(x, labels))
    parts = [(_standardised(x[kept], x[held]), labels[kept], labels[held]) for kept, held in splits]
    probes = [_regression(SEARCH_TOLERANCE) for _ in parts]
    best, least, worse = PENALTIES[0], np.inf, 0
    for penalty in PENALTIES:
        total = 0.0
        for probe, ((inside, outside), known, asked) in zip(probes, parts, strict=True):
            guessed = _fitted(probe, inside, known, penalty).predict_proba(outside)
            total += float(log_loss(asked, guessed, labels=probe.classes_, normalize=False))
        if total < least:
            best, least, worse = penalty, total, 0
        else:
            worse += 1
            if worse == 2:
                break
    return best


def _regression(tolerance: float = 1e-4) -> Any:
    """A probe; the tolerance is of the objective's gradient."""
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(warm_start=True, max_iter=1000, tol=tolerance)


def _fitted(probe: Any, x: np.ndarray, labels: np.ndarray, penalty: float) -> Any:
    """scikit-learn weighs the sum of the losses by C against half the squares: C is 1 / (penalty * n)."""
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return probe.set_params(C=1 / (penalty * len(x))).fit(x, labels)


def _standardised(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both in units of the training rows' spread; constant features, such as layer 0's first token, stay constant."""
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
            f"The probes got training vectors of layers {sorted(train)} and test vectors of layers {sorted(test)}; "
            "give at least one layer, and the same ones of both."
        )
    for part, layers, labels in (("training", train, train_labels), ("test", test, test_labels)):
        for layer, rows in layers.items():
            if len(rows) != len(labels):
                raise MeasureError(
                    f"Layer {layer} has {len(rows)} {part} vectors but there are {len(labels)} {part} labels; "
                    "give one vector a text."
                )
            if not np.isfinite(rows).all():
                raise MeasureError(
                    f"Layer {layer}'s {part} vectors hold values that are not finite; capture them again."
                )
    if len(test_labels) < 2:
        raise MeasureError(f"The probes got {len(test_labels)} test texts; give at least 2, better hundreds.")
    classes, counts = np.unique(train_labels, return_counts=True)
    if len(classes) < 2:
        raise MeasureError(f"The probes' training labels hold {len(classes)} class; give texts of at least 2.")
    if counts.min() < 2:
        raise MeasureError(
            f"Class {classes[counts.argmin()]} has {counts.min()} training text; the probes' cross-validation needs 2 of each class."
        )
    unknown = np.setdiff1d(test_labels, classes)
    if len(unknown):
        raise MeasureError(
            f"The test labels hold class {unknown[0]}, which no training text has; give training texts of every class."
        )
