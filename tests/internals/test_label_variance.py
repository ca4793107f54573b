"""Label variance: analysis of variance by other libraries, brute-force permutations, and onsets of planted shifts."""

import itertools
from collections import Counter

import numpy as np
import pytest
from scipy.stats import binom, f_oneway
from sklearn.linear_model import LinearRegression

from layerprobe.errors import MeasureError
from layerprobe.internals import label_variance
from layerprobe.stats import length_strata

pytestmark = pytest.mark.numerical


def tokens(n=60, width=5, classes=3, seed=0):
    """Rows of examples of unequal length, in random order, far from the origin; lengths depend on the label."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % classes)
    lengths = rng.integers(2, 6, size=n) + 2 * labels
    example = rng.permutation(np.repeat(np.arange(n), lengths))
    own = rng.normal(size=(n, width)) + 0.5 * labels[:, None] + 0.2 * lengths[:, None]
    return (own[example] + rng.normal(size=(len(example), width)) + 30).astype(np.float32), example, labels, lengths


def slow_share(rows, example, labels):
    """Between-label share of the variance with weights 1 / rows of the example: R2 of a regression on the labels."""
    weights = 1 / np.bincount(example)[example]
    one_hot = (labels[example][:, None] == np.unique(labels)).astype(float)
    model = LinearRegression().fit(one_hot, rows, sample_weight=weights)
    residual = weights @ np.square(rows - model.predict(one_hot)).sum(1)
    return 1 - residual / (weights @ np.square(rows - np.average(rows, axis=0, weights=weights)).sum(1))


def test_the_share_is_that_of_a_weighted_analysis_of_variance():
    rows, example, labels, lengths = tokens()
    result = label_variance({0: rows}, example, labels, lengths, permutations=9)
    assert result.share[0] == pytest.approx(slow_share(rows.astype(float), example, labels), rel=1e-6)
    one = np.arange(len(labels))
    pooled = label_variance({4: rows[:60, :1]}, one, labels, lengths, permutations=9)
    groups = [rows[:60, 0][labels == k].astype(float) for k in range(3)]
    share = pooled.share[0]
    assert (share / 2) / ((1 - share) / 57) == pytest.approx(f_oneway(*groups).statistic)


def test_a_layer_that_is_the_label_has_all_of_its_variance_between_labels():
    _, example, labels, lengths = tokens()
    rows = np.eye(3)[labels][example]
    assert label_variance({0: rows}, example, labels, lengths, permutations=9).share[0] == pytest.approx(1)
    noisy = rows + np.random.default_rng(0).normal(size=rows.shape)
    wide = label_variance({0: noisy}, example, labels, lengths, permutations=9).share[0]
    shifted = label_variance({0: 3 * noisy - 1000}, example, labels, lengths, permutations=9).share[0]
    assert shifted == pytest.approx(wide, rel=1e-9)


@pytest.mark.parametrize("labels", [[0, 0, 1, 1, 2, 1], [0, 1, 0, 1, 1, 1]])
def test_the_mean_under_permuted_labels_is_that_of_all_permutations(labels, monkeypatch):
    monkeypatch.setattr("layerprobe.stats.STRATUM", 3)
    labels, lengths = np.array(labels), np.array([3, 3, 3, 5, 5, 5])
    example = np.repeat(np.arange(6), lengths)
    rows = np.random.default_rng(1).normal(size=(len(example), 4)) + 0.3 * lengths[example][:, None]
    result = label_variance({0: rows}, example, labels, lengths, permutations=400)
    shares = [
        slow_share(rows, example, labels[[*first, *second]])
        for first in itertools.permutations(range(3))
        for second in itertools.permutations(range(3, 6))
    ]
    assert len(shares) == 36 and result.expected[0] == pytest.approx(np.mean(shares), rel=1e-9)
    drawn = result.permuted[:, 0] + result.expected[0]
    assert np.abs(drawn[:, None] - shares).min(axis=1).max() < 1e-9  # no other shares, and all of these
    assert np.abs(drawn[:, None] - shares).min(axis=0).max() < 1e-9
    high = np.mean(np.array(shares) >= result.share[0] - 1e-9)
    assert result.p[0] == pytest.approx(high, abs=0.1)


def test_permutations_are_those_of_whole_examples_within_strata_and_shared_by_layers():
    rows, example, labels, lengths = tokens()
    layers = {0: rows, 1: rows.copy(), 2: rows[:, ::-1] * 2}
    result = label_variance(layers, example, labels, lengths, permutations=60, seed=3)
    np.testing.assert_allclose(result.permuted, result.permuted[:, :1] @ np.ones((1, 3)), atol=1e-9)
    assert result.permuted.mean() == pytest.approx(0, abs=3 * result.permuted[:, 0].std() / np.sqrt(60))
    loo = [np.sqrt(np.mean(np.delete(result.permuted[:, 0], i) ** 2)) for i in range(60)]
    high = np.sum(result.permuted[:, 0] / loo >= result.excess[0] / np.sqrt(np.mean(result.permuted[:, 0] ** 2)))
    assert result.p_simultaneous == pytest.approx([(1 + high) / 61] * 3)  # equal layers: the maximum is each of them
    strata = length_strata(lengths)
    confounded = label_variance({0: np.eye(9)[strata][example]}, example, labels, lengths, permutations=20)
    # A layer that holds only the stratum has the same share under each permutation: nothing but length.
    assert confounded.share[0] > 0.05 and confounded.excess[0] == pytest.approx(0, abs=1e-12)
    assert np.abs(confounded.permuted).max() < 1e-12 and confounded.p[0] == 1


def test_the_jackknife_leaves_out_whole_folds_of_examples():
    rows, example, labels, lengths = tokens(n=20)
    result = label_variance({0: rows}, example, labels, lengths, permutations=0)
    assert result.left_out.shape == (20, 1)  # one stratum, one example per fold
    slow = []
    for gone in range(20):
        kept = np.setdiff1d(np.arange(20), gone)
        inside = example != gone
        again = label_variance(
            {0: rows[inside]}, np.searchsorted(kept, example[inside]), labels[kept], lengths[kept], permutations=0
        )
        slow.append(again.excess[0])
    assert sorted(result.left_out[:, 0]) == pytest.approx(sorted(slow))
    error = np.sqrt(19 / 20 * np.square(slow - np.mean(slow)).sum())
    assert np.diff(result.interval, axis=0)[0, 0] == pytest.approx(2 * 2.093024 * error)
    assert result.p[0] == 1 and result.onset is None and np.isnan(result.critical[0])


def test_critical_values_and_p_decide_alike():
    rows, example, labels, lengths = tokens(classes=2)
    layers = {i: rows + i * labels[example][:, None] for i in range(4)}
    result = label_variance(layers, example, labels, lengths, permutations=199)
    assert ((result.excess > result.critical) == (result.p_simultaneous <= 0.05)).all()
    assert result.exceeds.any() and result.table().exceeds.tolist() == result.exceeds.tolist()


def test_differences_pair_examples_and_permutations():
    rows, example, labels, lengths = tokens()
    base = label_variance({0: rows, 1: rows}, example, labels, lengths, permutations=99)
    adapted = label_variance({0: rows, 1: rows + labels[example][:, None]}, example, labels, lengths, permutations=99)
    change = adapted.minus(base)
    assert change.excess[0] == 0 and change.p_simultaneous[0] == 1 and not change.exceeds[0]
    assert np.isnan(change.critical[0]) and change.critical[1] > 0
    assert change.excess[1] == pytest.approx(adapted.excess[1] - base.excess[1]) and change.onset == 1
    with pytest.raises(MeasureError, match="other has layers"):
        adapted.minus(label_variance({0: rows}, example, labels, lengths, permutations=99))


def onsets(trials, *, base=0.0, shift=0.0, start=3, layers=7, n=90, width=6):
    """Onsets of base, adapted and their difference: layers that resemble their neighbours, sides that differ by noise.

    Both sides have the expected label variance that `base` gives; adapted layers from `start` on have `shift` more.
    """
    found = [Counter(), Counter(), Counter()]
    for trial in range(trials):
        rng = np.random.default_rng(trial)
        labels, lengths = rng.integers(3, size=n), rng.integers(3, 9, size=n)
        means = np.linalg.qr(rng.normal(size=(width, 3)))[0].T[labels]
        x, sides = rng.normal(size=(n, width)), ({}, {})
        for layer in range(layers):
            x = 0.8 * x + 0.6 * rng.normal(size=(n, width))
            sides[0][layer] = x + base * means
            sides[1][layer] = 0.8 * x + 0.6 * rng.normal(size=(n, width)) + (base + shift * (layer >= start)) * means
        one, other = (
            label_variance(side, np.arange(n), labels, lengths, permutations=99, seed=trial) for side in sides
        )
        for counter, result in zip(found, (one, other, other.minus(one)), strict=True):
            counter[result.onset] += 1
    return found


def test_the_onset_of_a_planted_shift_is_found():
    base, adapted, change = onsets(40, shift=1.5)
    assert adapted[3] >= 38 and change[3] >= 38
    assert base.total() - base[None] <= binom.ppf(0.999, 40, 0.05)


@pytest.mark.parametrize("base", [0.0, 1.0])
def test_few_onsets_are_false(base):
    """Without label variance, and with equal label variance on both sides, which permuted labels do not stand for."""
    found = onsets(60, base=base)
    for counter in found[2:] if base else found:
        assert counter.total() - counter[None] <= binom.ppf(0.999, 60, 0.05)


def test_intervals_of_differences_cover_the_planted_difference():
    covered, truth = [], 1.5**2 * (1 / 3 - 1 / 9) * 3
    for trial in range(100):
        rng = np.random.default_rng(trial)
        labels, lengths = rng.integers(3, size=150), rng.integers(3, 9, size=150)
        base = rng.normal(size=(150, 6))
        adapted = 0.8 * base + 0.6 * rng.normal(size=(150, 6)) + 1.5 * np.eye(3, 6)[labels]
        one, other = (
            label_variance({0: side}, np.arange(150), labels, lengths, permutations=0) for side in (base, adapted)
        )
        low, high = other.minus(one).interval[:, 0]
        covered.append(low <= truth / (6 + truth) <= high)
    assert sum(covered) >= binom.ppf(0.001, 100, 0.93)


def test_bad_input_is_named():
    rows, example, labels, lengths = tokens(n=12)
    broken = rows.copy()
    broken[2, 1] = np.inf
    constant = np.ones_like(rows) + 1e-9 * rows
    cases = [
        (({}, example, labels, lengths), "layers is empty"),
        (({3: rows[:-1]}, example, labels, lengths), "rows at layer 3 but example"),
        (({0: rows}, example, labels, lengths[:-1]), "lengths has 11 examples but labels 12"),
        (({0: rows}, example + 1, labels, lengths), "example must number 12 examples"),
        (({0: rows}, np.zeros_like(example), labels, lengths), "example must number 12 examples"),
        (({0: rows}, example, np.zeros_like(labels), lengths), "labels has 1 distinct values"),
        (({0: rows}, example, np.arange(12), lengths), "one of them twice"),
        (({5: broken}, example, labels, lengths), "layers has values at layer 5 that are not finite"),
        (({6: constant}, example, labels, lengths), "layers is constant at layer 6"),
    ]
    for arguments, words in cases:
        with pytest.raises(MeasureError, match=words):
            label_variance(*arguments)
