"""Probes: planted labels are detected, absent ones are not, and every column agrees with another solver."""

import itertools

import numpy as np
import pytest
from scipy.stats import binom, binomtest, mannwhitneyu, norm
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, f1_score, log_loss
from sklearn.model_selection import StratifiedKFold
from sklearn.preprocessing import StandardScaler

from layerprobe.errors import MeasureError
from layerprobe.internals import _probes, control_labels, probe_layers
from layerprobe.internals._probes import CONTROLS, PENALTIES, auroc_interval, balanced_accuracy, macro_auroc

pytestmark = pytest.mark.numerical

COLUMNS = [
    "layer",
    "accuracy",
    "accuracy_low",
    "accuracy_high",
    "balanced_accuracy",
    "balanced_accuracy_low",
    "balanced_accuracy_high",
    "auroc",
    "auroc_low",
    "auroc_high",
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
    """Vectors of noise with a direction added for each class, in float32 and far from the origin."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % classes)
    means = signal * np.eye(classes, width)
    mixing = np.linalg.qr(np.random.default_rng(99).normal(size=(width, width)))[0]
    return ((rng.normal(size=(n, width)) + means[labels]) @ mixing + 5).astype(np.float32), labels


def unrelated(train_labels, test_labels, seed=0):
    """Controls of words that no two examples share: labels that nothing determines."""
    train, test = ([[start + i] for i in range(n)] for start, n in ((0, len(train_labels)), (10**6, len(test_labels))))
    return control_labels(train, test, train_labels, seed=seed)


def probe(train, test, controls=None, **options):
    """One layer, number 0."""
    controls = unrelated(train[1], test[1], options.get("seed", 0)) if controls is None else controls
    return probe_layers({0: train[0]}, train[1], {0: test[0]}, test[1], controls, **options).iloc[0]


def slow(train, labels, test, test_labels, controls, seed):
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
    on_train, on_test = [], []
    for drawn, drawn_test in controls:
        control = fit(x, drawn, penalty)
        on_train.append(control.score(x, drawn))
        on_test.append(control.predict(x_test) == drawn_test)
    above = right - np.mean(on_test, axis=0)
    reach = 1.959964 * np.sqrt(above.var(ddof=1) / len(above) + np.mean(on_test, axis=1).var(ddof=1) / CONTROLS)
    classes, probabilities, aurocs = np.unique(labels), task.predict_proba(x_test), []
    for k in classes[1:] if len(classes) == 2 else classes:
        inside = test_labels == k
        u = mannwhitneyu(probabilities[inside, k], probabilities[~inside, k]).statistic
        aurocs.append(u / inside.sum() / (~inside).sum())
    wilson = binomtest(int(right.sum()), len(right)).proportion_ci(method="wilson")
    return {
        "accuracy": right.mean(),
        "accuracy_low": wilson.low,
        "accuracy_high": wilson.high,
        "balanced_accuracy": balanced_accuracy_score(test_labels, task.predict(x_test)),
        "auroc": np.mean(aurocs),
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
    controls = unrelated(train[1], test[1], 3)
    row = probe(train, test, controls, seed=3)
    expected = slow(train[0].astype(float), train[1], *test, controls, seed=3)
    assert list(row.index) == COLUMNS
    for column, value in expected.items():
        # A prediction on the border may fall on either side: one example of 120, in one of five draws of the control, which
        # changes the variance between draws, too. Two examples of nearly equal probability may change places.
        slack = {"auroc": 4e-4, "selectivity_low": 4e-3, "selectivity_high": 4e-3}.get(column, 1e-4)
        slack = 2e-3 if column in ("selectivity", "control_accuracy", "control_train_accuracy") else slack
        assert row[column] == pytest.approx(value, abs=slack), column


def test_a_planted_label_is_detected_only_where_it_is_linear():
    (there, labels), (there_test, test_labels) = (
        planted(signal=4.0, classes=2),
        planted(n=200, seed=1, signal=4.0, classes=2),
    )
    rng = np.random.default_rng(5)
    noise, noise_test = rng.normal(size=there.shape), rng.normal(size=there_test.shape)

    def folded(labels, seed):
        """The label is whether two features have the same sign: present, but not linearly separable."""
        rows = np.random.default_rng(seed).normal(size=(len(labels), 12))
        rows[:, 0] = np.abs(rows[:, 0]) * np.where(labels == 1, 1, -1) * np.sign(rows[:, 1])
        return rows

    table = probe_layers(
        {2: folded(labels, 6), 0: noise, 1: there},
        labels,
        {0: noise_test, 1: there_test, 2: folded(test_labels, 7)},
        test_labels,
        unrelated(labels, test_labels),
    )
    assert list(table["layer"]) == [0, 1, 2]
    for layer in (0, 2):
        row = table.loc[layer]
        assert row.accuracy_low < 0.5 < row.accuracy_high
        assert row.balanced_accuracy_low < 0.5 < row.balanced_accuracy_high and row.auroc_low < 0.5 < row.auroc_high
        assert row.selectivity_low < 0 < row.selectivity_high
    assert table.loc[1, "accuracy"] > 0.95 and table.loc[1, "balanced_accuracy_low"] > 0.9
    assert table.loc[1, "auroc_low"] > 0.95
    assert table.loc[1, "selectivity_low"] > 0.35


def bags(n, seed, vocabulary=40, length=12):
    """Examples of random words."""
    return np.random.default_rng(seed).integers(vocabulary, size=(n, length)).tolist()


def test_control_labels_are_functions_of_the_words_as_frequent_as_the_labels():
    labels = np.repeat([0, 1, 3], [250, 48, 2])
    train, test = bags(300, 1), bags(200, 2)
    test[:5] = [example[::-1] + example[:1] for example in train[:5]]  # the same word types
    controls = control_labels(train, test, labels, seed=4)
    assert len(controls) == CONTROLS
    for drawn, drawn_test in controls:
        assert (drawn_test[:5] == drawn[:5]).all() and set(drawn) == {0, 1, 3}
        assert np.abs(np.bincount(drawn) - np.bincount(labels)).max() <= 1
    different = [first[0] != second[0] for first, second in itertools.pairwise(controls)]
    assert all(one.any() for one in different)
    with pytest.raises(MeasureError, match="train_words has 299 examples but labels 300"):
        control_labels(train[1:], test, labels)
    with pytest.raises(MeasureError, match="train_words are the same in all examples"):
        control_labels([[1, 2]] * 300, test, labels)


def test_selectivity_is_low_where_the_layer_holds_words_and_high_where_it_holds_the_label():
    words, words_test = bags(600, 1), bags(300, 2)
    rng = np.random.default_rng(3)
    directions = rng.normal(size=(40, 40))

    def of_words(examples):
        return np.stack([directions[np.unique(example)].mean(0) for example in examples])

    controls = control_labels(words, words_test, np.arange(600) % 2, seed=5)
    # The task is itself a random function of the words, from another seed than the controls.
    ((labels, labels_test),) = control_labels(words, words_test, np.arange(600) % 2, draws=1, seed=6)
    noise, noise_test = rng.normal(size=(600, 40)), rng.normal(size=(300, 40))
    table = probe_layers(
        {0: of_words(words), 1: noise + 3 * (labels[:, None] == np.arange(40))},
        labels,
        {0: of_words(words_test), 1: noise_test + 3 * (labels_test[:, None] == np.arange(40))},
        labels_test,
        controls,
    )
    lexical, task = table.iloc[0], table.iloc[1]
    assert lexical.control_accuracy > 0.8 and lexical.accuracy > 0.8
    assert lexical.selectivity_low < 0.02 < 0.1 > abs(lexical.selectivity)
    assert abs(task.control_accuracy - 0.5) < 0.06 and task.accuracy > 0.9 and task.selectivity_low > 0.3


def test_intervals_of_balanced_accuracy_cover_and_reduce_to_wilson():
    rng, covered = np.random.default_rng(0), []
    labels = np.repeat([0, 1, 2], [60, 25, 15])
    recalls = np.array([0.9, 0.6, 0.75])
    for _ in range(300):
        right = rng.random(100) < recalls[labels]
        found = balanced_accuracy(labels, np.where(right, labels, 9))
        covered.append(found.low <= recalls.mean() <= found.high)
    assert sum(covered) >= binom.ppf(0.001, 300, 0.94)
    wilson = binomtest(27, 30).proportion_ci(method="wilson")
    one = balanced_accuracy(np.zeros(30, int), np.repeat([0, 1], [27, 3]))
    assert (one.value, one.low, one.high) == pytest.approx((0.9, wilson.low, wilson.high))
    perfect = balanced_accuracy(labels, labels)
    assert perfect.value == perfect.high == 1 and perfect.low < 0.95


def test_intervals_of_the_auroc_cover_and_have_width_at_the_ends():
    rng, covered, distance = np.random.default_rng(0), [], 1.2
    labels = np.repeat([0, 1], [60, 30])
    for _ in range(300):
        score = rng.normal(size=90) + distance * labels
        probability = norm.cdf(score)
        found = macro_auroc(labels, np.stack([1 - probability, probability], axis=1), np.array([0, 1]))
        covered.append(found.low <= norm.cdf(distance / np.sqrt(2)) <= found.high)
    assert sum(covered) >= binom.ppf(0.001, 300, 0.94)
    low, high = auroc_interval(1.0, 20, 30)
    assert 0.85 < low < 0.97 and high == 1
    assert auroc_interval(0.0, 20, 30) == pytest.approx((0, 1 - low))
    alone = macro_auroc(np.zeros(5, int), np.full((5, 2), 0.5), np.array([0, 1]))
    assert np.isnan([alone.value, alone.low, alone.high]).all()


def test_the_control_is_at_chance_on_test_where_no_word_recurs():
    rows = [probe(planted(n=150, seed=s), planted(n=150, seed=100 + s), seed=s) for s in range(6)]
    control = np.array([row.control_accuracy for row in rows])
    assert control.mean() == pytest.approx(1 / 3, abs=0.035)  # 4,500 predictions, shared fits: about 3 standard errors
    assert all(row.accuracy > 0.55 for row in rows)


def test_what_a_probe_can_memorise_shows_on_its_training_examples():
    def wide(seed, width):
        rng = np.random.default_rng(seed)
        labels = rng.permutation(np.arange(80) % 2)
        return rng.normal(size=(80, width)) + 3.0 * labels[:, None] / np.sqrt(width), labels

    narrow = probe(wide(0, 1), wide(1, 1))
    broad = probe(wide(0, 200), wide(1, 200))
    assert narrow.control_train_accuracy < 0.65 and narrow.train_accuracy > 0.9
    assert broad.control_train_accuracy == broad.train_accuracy == 1  # it has memorised both
    assert broad.control_accuracy < 0.65 and broad.selectivity_low > 0


def test_equal_vectors_give_equal_rows_and_scale_and_origin_do_not_matter():
    train, test = planted(), planted(n=100, seed=1)
    rows, held = train[0].astype(float), test[0].astype(float)
    layers = {0: rows, 1: rows.copy(), 2: 1000 * rows - 7}
    controls = unrelated(train[1], test[1])
    table = probe_layers(layers, train[1], {0: held, 1: held, 2: 1000 * held - 7}, test[1], controls)
    values = table.drop(columns="layer").to_numpy(float)
    assert (values[0] == values[1]).all()
    assert np.allclose(values[0], values[2], atol=1e-5)


def test_rounding_errors_of_a_constant_layer_are_ignored():
    labels, test_labels = np.arange(90) % 3 % 2, np.arange(60) % 3 % 2  # two thirds are class 0

    def constant(labels):
        return np.full((len(labels), 4), 0.7) + 1e-8 * labels[:, None]

    row = probe((constant(labels), labels), (constant(test_labels), test_labels))
    assert row.accuracy == row.train_accuracy == pytest.approx(2 / 3)
    assert row.selectivity_low < 0 < row.selectivity_high
    assert row.balanced_accuracy == row.auroc == 0.5


def test_bad_input_is_named():
    x, y = planted(n=30)
    broken = x.copy()
    broken[3, 2] = np.nan
    cases = [
        (({0: x}, y, {1: x}, y), r"train has the layers \[0\] and test \[1\]"),
        (({}, y, {}, y), "at least one layer"),
        (({2: x}, y[:-1], {2: x}, y), "train has 30 vectors of layer 2 but train_labels 29 labels"),
        (({2: x}, y, {2: x[:5]}, y), "test has 5 vectors of layer 2 but test_labels 30 labels"),
        (({4: broken}, y, {4: x}, y), "train has values at layer 4 that are not finite"),
        (({0: x}, y, {0: x}, np.full(30, 7)), "class 7, which is not in train_labels"),
        (({0: x}, np.zeros(30, int), {0: x}, y), "30 of class 0 and 1 classes"),
        (({0: x}, np.where(np.arange(30) == 4, 9, y), {0: x}, y), "1 of class 9 and 4 classes"),
        (({0: x}, y, {0: x[:1]}, y[:1]), "test has 1 examples"),
    ]
    for controls in ([], [(y, y[1:])]):
        with pytest.raises(MeasureError, match="controls must be pairs of 30 and 30 labels"):
            probe_layers({0: x}, y, {0: x}, y, controls)
    for arguments, words in cases:
        with pytest.raises(MeasureError, match=words) as caught:
            probe_layers(*arguments, unrelated(arguments[1], arguments[3]))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("signal", [0.3, 0.6, 1.5])
def test_held_out_losses_in_float32_are_those_in_float64(signal, monkeypatch):
    """Rounding changes a held-out loss by far less than two neighbouring penalties differ."""
    x, labels = planted(n=400, width=60, signal=signal)
    found = {}
    for kind in (np.float32, np.float64):
        losses = {}
        original = _probes._fitted

        def fitted(probe, inside, kept, penalty, kind=kind, losses=losses, original=original):
            probe = original(probe, inside.astype(kind), kept, penalty)
            assert inside.dtype == np.float32 and probe.coef_.dtype == kind
            losses.setdefault(penalty, []).append(log_loss(kept, probe.predict_proba(inside.astype(kind))))
            return probe

        monkeypatch.setattr(_probes, "_fitted", fitted)
        best = _probes._choose_penalty(x.astype(np.float64), labels, 0)
        monkeypatch.undo()
        found[kind] = best, {penalty: np.mean(values) for penalty, values in losses.items()}
    (best, low), (expected, high) = found[np.float32], found[np.float64]
    assert best == expected and low.keys() == high.keys()
    error = max(abs(low[penalty] - high[penalty]) for penalty in low)
    steps = np.abs(np.diff(list(high.values())))
    assert error < 1e-4 and error < steps.min() / 20
