"""Probes: a planted label is found, one that isn't there isn't, and every column agrees with another solver."""

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, log_loss
from sklearn.model_selection import StratifiedKFold
from sklearn.preprocessing import StandardScaler

from layerprobe.errors import MeasureError
from layerprobe.internals import probe_layers
from layerprobe.internals._probes import CONTROLS, PENALTIES

pytestmark = pytest.mark.numerical

COLUMNS = [
    "layer",
    "accuracy",
    "accuracy_low",
    "accuracy_high",
    "macro_f1",
    "loss",
    "control_accuracy",
    "train_accuracy",
    "control_train_accuracy",
    "selectivity",
    "selectivity_low",
    "selectivity_high",
    "penalty",
    "n",
]


def planted(n=300, width=12, signal=1.5, seed=0, classes=3):
    """Vectors of noise, with each class's own direction added, in float32 and far from the origin."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % classes)
    means = signal * np.eye(classes, width)
    mixing = np.linalg.qr(np.random.default_rng(99).normal(size=(width, width)))[0]
    return ((rng.normal(size=(n, width)) + means[labels]) @ mixing + 5).astype(np.float32), labels


def probe(train, test, **options):
    """One layer, number 0."""
    return probe_layers({0: train[0]}, train[1], {0: test[0]}, test[1], progress=False, **options).iloc[0]


def slow(train, labels, test, test_labels, seed):
    """Every column from its definition: no warm starts, another solver, and the whole path of penalties."""

    def fit(x, y, penalty):
        return LogisticRegression(C=1 / (penalty * len(x)), solver="newton-cg", max_iter=500, tol=1e-8).fit(x, y)

    losses = []
    for penalty in PENALTIES:
        total = 0.0
        for kept, held in StratifiedKFold(5, shuffle=True, random_state=seed).split(train, labels):
            scaler = StandardScaler().fit(train[kept])
            guess = fit(scaler.transform(train[kept]), labels[kept], penalty).predict_proba(
                scaler.transform(train[held])
            )
            total += log_loss(labels[held], guess, normalize=False)
        losses.append(total)
    penalty = PENALTIES[int(np.argmin(losses))]
    scaler = StandardScaler().fit(train)
    x, x_test = scaler.transform(train), scaler.transform(test)
    task = fit(x, labels, penalty)
    right = task.predict(x_test) == test_labels
    rng = np.random.default_rng(seed)
    on_train, on_test = [], []
    for _ in range(CONTROLS):
        own, own_test = rng.permutation(labels), rng.permutation(test_labels)
        control = fit(x, own, penalty)
        on_train.append(control.score(x, own))
        on_test.append(control.predict(x_test) == own_test)
    above = right - np.mean(on_test, axis=0)
    reach = 1.959964 * np.sqrt(above.var(ddof=1) / len(above))
    wilson = binomtest(int(right.sum()), len(right)).proportion_ci(method="wilson")
    return {
        "accuracy": right.mean(),
        "accuracy_low": wilson.low,
        "accuracy_high": wilson.high,
        "macro_f1": f1_score(test_labels, task.predict(x_test), average="macro"),
        "loss": log_loss(test_labels, task.predict_proba(x_test)),
        "control_accuracy": np.mean(on_test),
        "train_accuracy": task.score(x, labels),
        "control_train_accuracy": np.mean(on_train),
        "selectivity": above.mean(),
        "selectivity_low": above.mean() - reach,
        "selectivity_high": above.mean() + reach,
        "penalty": penalty,
        "n": len(test_labels),
    }


@pytest.mark.parametrize(("classes", "signal"), [(2, 1.0), (3, 1.5), (3, 0.0)])
def test_every_column_agrees_with_a_slow_twin(classes, signal):
    train, test = planted(signal=signal, classes=classes), planted(n=120, seed=1, signal=signal, classes=classes)
    found, expected = probe(train, test, seed=3), slow(*(a.astype(float) for a in train[:1]), train[1], *test, seed=3)
    assert list(found.index) == COLUMNS
    for column, value in expected.items():
        # An answer on the border may fall to either side: one text of 120, in one of five draws of the control.
        slack = 2e-3 if "control" in column or "selectivity" in column else 1e-4
        assert found[column] == pytest.approx(value, abs=slack), column


def test_a_planted_label_is_read_where_it_is_linear_and_nowhere_else():
    (there, labels), (there_test, test_labels) = (
        planted(signal=4.0, classes=2),
        planted(n=200, seed=1, signal=4.0, classes=2),
    )
    rng = np.random.default_rng(5)
    noise, noise_test = rng.normal(size=there.shape), rng.normal(size=there_test.shape)

    def folded(labels, seed):
        """The label is whether two features have one sign: there, but on no side of any plane."""
        rows = np.random.default_rng(seed).normal(size=(len(labels), 12))
        rows[:, 0] = np.abs(rows[:, 0]) * np.where(labels == 1, 1, -1) * np.sign(rows[:, 1])
        return rows

    table = probe_layers(
        {2: folded(labels, 6), 0: noise, 1: there},
        labels,
        {0: noise_test, 1: there_test, 2: folded(test_labels, 7)},
        test_labels,
        progress=False,
    )
    assert list(table["layer"]) == [0, 1, 2]
    for layer in (0, 2):
        row = table.loc[layer]
        assert row.accuracy_low < 0.5 < row.accuracy_high
        assert row.selectivity_low < 0 < row.selectivity_high
    assert table.loc[1, "accuracy"] > 0.95
    assert table.loc[1, "selectivity_low"] > 0.35


def test_the_control_is_at_chance_on_test_whatever_the_layer_holds():
    rows = [probe(planted(n=150, seed=s), planted(n=150, seed=100 + s), seed=s) for s in range(6)]
    control = np.array([row.control_accuracy for row in rows])
    assert control.mean() == pytest.approx(1 / 3, abs=0.035)  # 4,500 answers, fits shared: about 3 standard errors
    assert all(row.accuracy > 0.55 for row in rows)


def test_what_a_probe_can_learn_by_heart_shows_on_its_training_texts():
    def wide(seed, width):
        rng = np.random.default_rng(seed)
        labels = rng.permutation(np.arange(80) % 2)
        return rng.normal(size=(80, width)) + 3.0 * labels[:, None] / np.sqrt(width), labels

    narrow = probe(wide(0, 1), wide(1, 1))
    broad = probe(wide(0, 200), wide(1, 200))
    assert narrow.control_train_accuracy < 0.65 and narrow.train_accuracy > 0.9
    assert broad.control_train_accuracy == broad.train_accuracy == 1  # it has learned both by heart
    assert broad.control_accuracy < 0.65 and broad.selectivity_low > 0


def test_equal_vectors_are_probed_alike_and_scale_and_place_do_not_matter():
    train, test = planted(), planted(n=100, seed=1)
    rows, held = train[0].astype(float), test[0].astype(float)
    layers = {0: rows, 1: rows.copy(), 2: 1000 * rows - 7}
    table = probe_layers(layers, train[1], {0: held, 1: held, 2: 1000 * held - 7}, test[1], progress=False)
    values = table.drop(columns="layer").to_numpy(float)
    assert (values[0] == values[1]).all()
    assert np.allclose(values[0], values[2], atol=1e-5)


def test_rounding_in_a_constant_layer_is_not_read():
    labels, test_labels = np.arange(90) % 3 % 2, np.arange(60) % 3 % 2  # two thirds are class 0

    def constant(labels):
        return np.full((len(labels), 4), 0.7) + 1e-8 * labels[:, None]

    row = probe((constant(labels), labels), (constant(test_labels), test_labels))
    assert row.accuracy == row.train_accuracy == pytest.approx(2 / 3)
    assert row.selectivity == pytest.approx(0)


def test_bad_input_is_named():
    x, y = planted(n=30)
    broken = x.copy()
    broken[3, 2] = np.nan
    cases = [
        (({0: x}, y, {1: x}, y), r"training vectors of layers \[0\] and test vectors of layers \[1\]"),
        (({}, y, {}, y), "at least one layer"),
        (({2: x}, y[:-1], {2: x}, y), "Layer 2 has 30 training vectors but there are 29 training labels"),
        (({2: x}, y, {2: x[:5]}, y), "Layer 2 has 5 test vectors but there are 30 test labels"),
        (({4: broken}, y, {4: x}, y), "Layer 4's training vectors hold values that are not finite"),
        (({0: x}, y, {0: x}, np.full(30, 7)), "class 7, which no training text has"),
        (({0: x}, np.zeros(30, int), {0: x}, y), "hold 1 class"),
        (({0: x}, np.where(np.arange(30) == 4, 9, y), {0: x}, y), "Class 9 has 1 training text"),
        (({0: x}, y, {0: x[:1]}, y[:1]), "got 1 test texts"),
    ]
    for arguments, words in cases:
        with pytest.raises(MeasureError, match=words) as caught:
            probe_layers(*arguments, progress=False)
        assert "\n" not in str(caught.value)
