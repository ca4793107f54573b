"""Quality of probabilities: against scikit-learn, slow twins and closed forms; restricted to some classes; refusals."""

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import accuracy_score, brier_score_loss, f1_score, log_loss

from layerprobe.adaptation import CALIBRATION_BINS, quality
from layerprobe.errors import MeasureError


def drawn(n, classes, seed=0, sharp=1.0):
    """Probabilities and labels; with `sharp` 1 the labels are drawn from the probabilities: calibrated."""
    rng = np.random.default_rng(seed)
    truth = rng.dirichlet(np.full(classes, 0.8), size=n)
    labels = (truth.cumsum(axis=1) > rng.random((n, 1))).argmax(axis=1)
    stated = truth**sharp
    return stated / stated.sum(axis=1, keepdims=True), labels


def expected_calibration_error(probabilities, labels):
    """From the definition, bin by bin and example by example."""
    total = 0.0
    for b in range(CALIBRATION_BINS):
        inside = [
            (row.max(), row.argmax() == label)
            for row, label in zip(probabilities, labels, strict=True)
            if b / CALIBRATION_BINS < row.max() <= (b + 1) / CALIBRATION_BINS
        ]
        if inside:
            confidence, right = zip(*inside, strict=True)
            total += len(inside) / len(labels) * abs(np.mean(right) - np.mean(confidence))
    return total


@pytest.mark.parametrize(("classes", "sharp"), [(2, 1.0), (2, 3.0), (3, 0.3), (20, 2.0)])
def test_every_number_agrees_with_a_second_opinion(classes, sharp):
    probabilities, labels = drawn(400, classes, sharp=sharp)
    result = quality(probabilities, labels)
    predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    assert result.accuracy == accuracy_score(labels, predicted)
    assert result.macro_f1 == pytest.approx(f1_score(labels, predicted, average="macro"), abs=1e-12)
    assert result.loss == pytest.approx(log_loss(labels, probabilities, labels=range(classes)), abs=1e-12)
    slow = np.mean(
        [((row - np.eye(classes)[label]) ** 2).sum() for row, label in zip(probabilities, labels, strict=True)]
    )
    assert result.brier == pytest.approx(slow, abs=1e-12)
    assert result.calibration_error == pytest.approx(expected_calibration_error(probabilities, labels), abs=1e-12)
    # scikit-learn gives the bins' two means, in order, without the empty bins and without the bins' sizes.
    right, stated = calibration_curve(predicted == labels, confidence, n_bins=CALIBRATION_BINS, strategy="uniform")
    sizes = np.bincount(np.ceil(confidence * CALIBRATION_BINS).astype(int))
    weights = sizes[sizes > 0] / len(labels)
    assert result.calibration_error == pytest.approx((weights * abs(right - stated)).sum(), abs=1e-12)
    assert result.n == 400


def test_brier_is_twice_the_positive_class_and_the_whole_sum_for_more():
    probabilities, labels = drawn(300, 2)
    # Every version of scikit-learn halves the binary score.
    assert quality(probabilities, labels).brier == pytest.approx(2 * brier_score_loss(labels, probabilities[:, 1]))
    many, truth = drawn(300, 4)
    try:
        peer = brier_score_loss(truth, many, labels=range(4))
    except (TypeError, ValueError):
        pytest.skip("this scikit-learn has no Brier score of more than two classes")
    assert quality(many, truth).brier == pytest.approx(peer)


def test_closed_forms():
    sure = np.eye(3)[[0, 1, 2, 0]]
    right = quality(sure, np.array([0, 1, 2, 0]))
    assert (right.accuracy, right.loss, right.brier, right.calibration_error) == (1, 0, 0, 0)
    wrong = quality(sure, np.array([1, 2, 0, 1]))
    assert (wrong.accuracy, wrong.brier, wrong.calibration_error) == (0, 2, 1)
    # Uniform over c classes: (1 - 1/c)^2 + (c - 1)/c^2 = 1 - 1/c.
    flat = quality(np.full((8, 4), 0.25), np.arange(8) % 4)
    assert flat.brier == pytest.approx(0.75) and flat.loss == pytest.approx(np.log(4))
    assert flat.calibration_error == pytest.approx(0)  # one bin, a quarter right
    # One bin: what is stated less what is right.
    stated = quality(np.tile([0.9, 0.1], (10, 1)), np.array([0] * 6 + [1] * 4))
    assert stated.calibration_error == pytest.approx(0.3)


def test_quality_by_hand_and_its_interval():
    from scipy.stats import binomtest

    from layerprobe.stages._quality import quality_row

    p = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.3, 0.7]])
    labels = np.array([0, 1, 1, 1])
    result = quality(p, labels)
    assert (result.accuracy, result.n) == (0.75, 4)
    assert result.macro_f1 == pytest.approx((2 / 3 + 0.8) / 2)
    assert result.loss == pytest.approx(log_loss(labels, p))
    row = quality_row(result)
    interval = binomtest(3, 4).proportion_ci(method="wilson")
    assert (row["accuracy_low"], row["accuracy_high"]) == (interval.low, interval.high)


def test_a_value_on_an_edge_belongs_to_the_bin_below():
    edge = 10 / CALIBRATION_BINS
    rows = np.array([[edge, 1 - edge], [edge + 0.01, 1 - edge - 0.01]])
    # In two bins the errors add up; in one they would cancel in part.
    assert quality(rows, np.array([0, 1])).calibration_error == pytest.approx(((1 - edge) + (edge + 0.01)) / 2)


def test_calibration_error_is_biased_upwards_as_documented():
    at = {n: np.mean([quality(*drawn(n, 2, seed)).calibration_error for seed in range(40)]) for n in (500, 5000)}
    assert at[500] == pytest.approx(0.040, abs=0.008)
    assert at[5000] == pytest.approx(0.012, abs=0.003)
    assert quality(*drawn(5000, 2, sharp=4.0)).calibration_error > 0.08


def test_examples_of_equal_probability_have_one_calibration_error_in_any_order():
    probabilities, labels = np.tile([0.7, 0.3], (101, 1)), np.arange(101) % 2
    order = np.random.default_rng(0).permutation(101)
    one, other = quality(probabilities, labels), quality(probabilities, labels[order])
    assert one.calibration_error == pytest.approx(other.calibration_error, abs=1e-12)
    assert one.calibration_error == pytest.approx(abs(51 / 101 - 0.7), abs=1e-12)


def test_some_classes_alone_are_a_choice_among_them():
    probabilities, labels = drawn(200, 4)
    inside = np.isin(labels, (1, 3))
    probabilities, labels = probabilities[inside], labels[inside]
    result = quality(probabilities, labels, classes=(3, 1))
    halves = probabilities[:, [1, 3]] / probabilities[:, [1, 3]].sum(axis=1, keepdims=True)
    assert result == quality(halves, (labels == 3).astype(int))
    assert result.accuracy > quality(probabilities, labels).accuracy
    assert quality(probabilities, labels, classes=range(4)).loss == pytest.approx(quality(probabilities, labels).loss)


def test_an_example_without_probability_for_its_classes_counts_as_uniform():
    result = quality(np.array([[1.0, 0, 0], [0, 0.6, 0.4]]), np.array([2, 1]), classes=(1, 2))
    assert result.loss == pytest.approx((np.log(2) - np.log(0.6)) / 2)
    assert np.isfinite(result.brier)


@pytest.mark.parametrize(
    ("probabilities", "labels", "classes", "words"),
    [
        (np.zeros((0, 2)), np.zeros(0, int), None, "labels is empty"),
        (np.full((2, 2), 0.5), np.zeros(3, int), None, r"probabilities and labels are \(2, 2\) and \(3,\)"),
        (np.array([[0.5, 0.5], [np.nan, 1]]), np.zeros(2, int), None, "Row 1 of probabilities"),
        (np.array([[2.0, -1.0]]), np.zeros(1, int), None, "Row 0 .* negative"),
        (np.array([[3.0, 1.0]]), np.zeros(1, int), None, "does not sum to 1; give softmax"),
        (np.full((2, 2), 0.5), np.array([0, 2]), None, "label 2 of example 1 is not among the classes 0, 1"),
        (np.full((2, 4), 0.25), np.array([1, 0]), (1, 3), "label 0 of example 1 is not among the classes 1, 3"),
        (np.full((2, 2), 0.5), np.array([0, -1]), None, "label -1"),
        (
            np.full((2, 2), 0.5),
            np.array([0, 1]),
            (0, 2),
            r"classes is \[0, 2\], but there are 2 classes; give numbers from 0 to 1",
        ),
        (np.full((2, 2), 0.5), np.array([0, 1]), (), r"classes is \[\]"),
    ],
)
def test_invalid_probabilities_and_labels_raise(probabilities, labels, classes, words):
    with pytest.raises(MeasureError, match=words):
        quality(probabilities, labels, classes=classes)
