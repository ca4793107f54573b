"""Linear probes: how well the task's labels can be read from each layer, compared with random functions of the words."""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, Int

from layerprobe.errors import MeasureError
from layerprobe.progress import track
from layerprobe.stats import Estimate

if TYPE_CHECKING:
    import pandas as pd

PENALTIES = (10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 3e-3, 1e-3, 3e-4)
"""Strengths of the L2 penalty to choose from, strongest first."""
FOLDS = 5
SEARCH_TOLERANCE = 1e-3
"""Tolerance of the gradient while penalties are compared: faster than 1e-4, with the same choices."""
CONTROLS = 5
"""Draws of the control task; a single one has a standard error of about .02 at 500 test examples."""
BALANCING = 300
"""Steps in which the labels of a control task are made as frequent as the task's."""
CONSTANT = 1e-6
"""Standard deviation below which a feature is constant, relative to the layer's root mean square: float32 rounding."""


Controls = Sequence[tuple[np.ndarray, np.ndarray]]
"""Labels of control tasks: for each draw those of the training and of the test examples."""


def control_labels(
    train_words: Sequence[Sequence[Hashable]],
    test_words: Sequence[Sequence[Hashable]],
    labels: Int[np.ndarray, " train_labels"],
    *,
    draws: int = CONTROLS,
    seed: int = 0,
) -> Controls:
    """Labels of control tasks: random, but determined by the words of an example (after Hewitt and Liang 2019).

    Hewitt and Liang give each word type a random label, so that a probe can learn the control task only from the identity
    of words, which recur in the test set. For a task on whole examples, each word type draws a score per class from a
    standard normal distribution, and an example's label is the class with the highest mean score over its distinct word
    types, plus an offset per class that makes labels about as frequent on the training examples as the task's.

    Args:
        train_words: the words of each training example, such as token ids.
        test_words: the words of each test example.
        labels: the task's labels of the training examples, class numbers.
        draws: number of control tasks.
        seed: seed of the scores.

    Raises:
        MeasureError: if examples and labels do not match, or all training examples have the same words.
    """
    if len(train_words) != len(labels):
        raise MeasureError(
            f"{{train_words}} has {len(train_words)} examples but {{labels}} {len(labels)}; give one of each per example.",
            "train_words",
            "labels",
        )
    classes, counts = np.unique(labels, return_counts=True)
    bags = _bags([*train_words, *test_words])
    rng, controls = np.random.default_rng(seed), []
    for _ in range(draws):
        scores = bags @ rng.normal(size=(bags.shape[1], len(classes)))
        scores = scores - scores[: len(labels)].mean(axis=0)
        spread = scores[: len(labels)].std()
        if not spread > 1e-9:
            raise MeasureError(
                "{train_words} are the same in all examples; a control task needs them to differ.", "train_words"
            )
        scores = scores / spread
        offset = _offsets(scores[: len(labels)], counts / counts.sum())
        drawn = classes[(scores + offset).argmax(axis=1)]
        controls.append((drawn[: len(labels)], drawn[len(labels) :]))
    return controls


def _bags(words: Sequence[Sequence[Hashable]]) -> Any:
    """Examples x word types: 1 / distinct types of the example where it has the type."""
    from scipy.sparse import csr_array

    number: dict[Hashable, int] = {}
    kept = [[number.setdefault(word, len(number)) for word in dict.fromkeys(example)] for example in words]
    weights = [np.full(len(types), 1 / max(len(types), 1)) for types in kept]
    pointers = np.cumsum([0, *map(len, kept)])
    columns = np.fromiter((column for types in kept for column in types), dtype=np.int64, count=int(pointers[-1]))
    return csr_array((np.concatenate(weights), columns, pointers), shape=(len(words), max(len(number), 1)))


def _offsets(scores: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Offsets per class with which the highest scores are distributed over classes in given shares.

    Steps of decreasing size in the logarithm of wanted to present share; half an example is added to both.
    """
    offset, half = np.zeros(len(shares)), 0.5 / len(scores)
    for step in range(BALANCING):
        held = np.bincount((scores + offset).argmax(axis=1), minlength=len(shares)) / len(scores)
        offset += np.log((shares + half) / (held + half)) / np.sqrt(4 + step)
    return offset


def probe_layers(
    train: Mapping[int, Float[np.ndarray, "train width"]],
    train_labels: Int[np.ndarray, " train_labels"],
    test: Mapping[int, Float[np.ndarray, "test width"]],
    test_labels: Int[np.ndarray, " test_labels"],
    controls: Controls,
    *,
    seed: int = 0,
) -> pd.DataFrame:
    """Fit a linear probe of the task to each layer, and the same probe to control tasks.

    A probe is a multinomial logistic regression on standardised vectors: it minimises mean cross-entropy plus
    penalty / 2 * (sum of squared weights). The penalty is the one with the lowest cross-entropy in five-fold
    cross-validation on the training examples (fewer folds if a class has fewer examples); the test examples are used
    once. Two classes have one weight vector, of the log odds. Probes are fitted by scikit-learn, on the CPU.

    Selectivity is accuracy on the task minus accuracy on the control tasks, both on test examples, with the same probe and
    the penalty of the task's probe (Hewitt and Liang 2019). It is low where the probe could read the task's labels as well
    by recognising words. `control_train_accuracy` is what the probe can memorise: where it is close to `train_accuracy`,
    accuracy on training examples says nothing about the layer.

    Args:
        train: layer -> one vector per training example, such as `ActivationStore.mean`.
        train_labels: class numbers.
        test: layer -> one vector per test example, the same layers.
        test_labels: class numbers.
        controls: labels of control tasks on train and test, by `control_labels`; the same ones for models to compare.
        seed: seed of the folds.

    Returns:
        One row per layer: `layer`; on test `accuracy` with its 95% Wilson interval `accuracy_low`, `accuracy_high`;
        `balanced_accuracy` (mean recall of the classes; interval combined from their Wilson intervals, Zou and Donner
        2008); `auroc` (mean over classes of one against the rest, of two classes the second; ends of Newcombe's 2006
        interval averaged over classes, which is conservative; missing if one class occurs); `macro_f1`, `loss`
        (cross-entropy in nats) and `control_accuracy`; on train `train_accuracy` and `control_train_accuracy`;
        `selectivity` with its 95% interval `selectivity_low`, `selectivity_high` (normal, paired over test examples, with
        the variance between control tasks, given these fits); `penalty`; `n`, the number of test examples.

    Raises:
        MeasureError: if layers, rows or labels do not match, a value is not finite, or a class cannot be learned.
    """
    import pandas as pd
    from threadpoolctl import threadpool_limits

    _check(train, train_labels, test, test_labels)
    if not controls or any((len(a), len(b)) != (len(train_labels), len(test_labels)) for a, b in controls):
        raise MeasureError(
            f"{{controls}} must be pairs of {len(train_labels)} and {len(test_labels)} labels, at least one pair.",
            "controls",
        )
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
    between = np.var([control.right.mean() for control in random], ddof=1) / len(random) if len(random) > 1 else 0.0
    reach = float(norm.ppf(0.975) * np.sqrt(above.var(ddof=1) / n + between))
    balanced, auroc = balanced_accuracy(labels, predicted), macro_auroc(labels, task.probabilities, task.classes)
    return {
        "accuracy": float(task.right.mean()),
        "accuracy_low": float(interval.low),
        "accuracy_high": float(interval.high),
        "balanced_accuracy": balanced.value,
        "balanced_accuracy_low": balanced.low,
        "balanced_accuracy_high": balanced.high,
        "auroc": auroc.value,
        "auroc_low": auroc.low,
        "auroc_high": auroc.high,
        "macro_f1": float(f1_score(labels, predicted, average="macro", zero_division=0)),
        "loss": float(log_loss(labels, task.probabilities, labels=task.classes)),
        "control_accuracy": float(np.mean([control.right.mean() for control in random])),
        "train_accuracy": float(task.right_on_train.mean()),
        "control_train_accuracy": float(np.mean([control.right_on_train.mean() for control in random])),
        "selectivity": float(above.mean()),
        "selectivity_low": max(-1.0, float(above.mean()) - reach),
        "selectivity_high": min(1.0, float(above.mean()) + reach),
    }


def balanced_accuracy(labels: np.ndarray, predicted: np.ndarray) -> Estimate:
    """Mean recall of the classes that occur, with the interval that combines their Wilson intervals (Zou and Donner 2008)."""
    from scipy.stats import binomtest

    recalls = []
    for one in np.unique(labels):
        right = predicted[labels == one] == one
        wilson = binomtest(int(right.sum()), len(right)).proportion_ci(0.95, method="wilson")
        recalls.append((right.mean(), wilson.low, wilson.high))
    value, low, high = np.transpose(recalls)
    below, above = (float(np.sqrt(np.square(end - value).sum()) / len(value)) for end in (low, high))
    mean = float(value.mean())
    return Estimate(mean, mean - below, mean + above, len(labels))


def macro_auroc(labels: np.ndarray, probabilities: np.ndarray, classes: np.ndarray) -> Estimate:
    """Mean AUROC of each class that occurs against the rest, of two classes the second; missing if one class occurs.

    The interval averages the ends of the classes' intervals, which is conservative.
    """
    from sklearn.metrics import roc_auc_score

    present = np.isin(classes, labels)
    if present.sum() < 2:
        return Estimate(np.nan, np.nan, np.nan, len(labels))
    columns = [1] if len(classes) == 2 else np.flatnonzero(present)
    found = []
    for column in columns:
        positive = labels == classes[column]
        value = float(roc_auc_score(positive, probabilities[:, column]))
        found.append((value, *auroc_interval(value, int(positive.sum()), int((~positive).sum()))))
    value, low, high = np.mean(found, axis=0)
    return Estimate(float(value), float(low), float(high), len(labels))


def auroc_interval(value: float, positives: int, negatives: int) -> tuple[float, float]:
    """95% score interval of an AUROC (Newcombe 2006, method 5); of positive width even at 0 and 1."""
    from scipy.optimize import brentq
    from scipy.stats import norm

    z, half = norm.ppf(0.975), (positives + negatives) / 2 - 1

    def reach(theta: float) -> float:
        spread = theta * (1 - theta) * (1 + half * ((1 - theta) / (2 - theta) + theta / (1 + theta)))
        return float(z * np.sqrt(spread / (positives * negatives)))

    edge = 1e-12
    low = 0.0 if value <= edge else brentq(lambda theta: value - theta - reach(theta), 0, value - edge)
    high = 1.0 if value >= 1 - edge else brentq(lambda theta: theta - value - reach(theta), value + edge, 1)
    return low, high


def _choose_penalty(x: np.ndarray, labels: np.ndarray, seed: int) -> float:
    """The penalty with the lowest held-out cross-entropy.

    The weights of each fold start from those of the next stronger penalty. The search ends when two weaker penalties in
    a row are worse: held-out loss falls and then rises along the path, and the weakest penalties take longest. The search
    is in float32, whose error of the held-out loss is far below the differences between penalties.
    """
    from sklearn.metrics import log_loss
    from sklearn.model_selection import StratifiedKFold

    folds = min(FOLDS, int(np.unique(labels, return_counts=True)[1].min()))
    splits = list(StratifiedKFold(folds, shuffle=True, random_state=seed).split(x, labels))
    parts = [
        (
            _regression(SEARCH_TOLERANCE),
            *(part.astype(np.float32) for part in _standardised(x[kept], x[held])),
            kept,
            held,
        )
        for kept, held in splits
    ]
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
