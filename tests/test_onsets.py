"""Verdicts about layers and onsets of change: exact cases, and error rates under planted truth."""

import numpy as np
import pytest
from scipy.stats import norm, t

from layerprobe.onsets import Onset, extreme, first_beyond, onset, verdicts
from layerprobe.stats import jackknife_error, simultaneous_bands


def test_a_verdict_needs_the_whole_band_on_one_side():
    low, high = [0.96, 0.94, 0.90, np.nan], [1.0, 0.96, 0.94, np.nan]
    assert verdicts(low, high, 0.95) == ["kept", "undecided", "changed", "undecided"]
    assert onset([0, 1, 2, 3], low, high, 0.95) == Onset(0.95, earliest=1, latest=2)
    assert onset([0, 1, 2], low[:3], high[:3], 0.5) == Onset(0.5, earliest=None, latest=None)
    assert onset([0, 1], low[:2], high[:2], 0.95) == Onset(0.95, earliest=1, latest=None)


def test_drift_exceeds_controls_only_where_it_exceeds_each():
    assert first_beyond([0, 1, 2], [[-0.1, 0.1, 0.2], [0.0, -0.1, 0.1]]) == 2
    assert first_beyond([0, 1], [[0.1, 0.1], [np.nan, np.nan]]) is None
    assert first_beyond([0, 1], []) is None


def test_the_most_changed_layer_is_named_only_where_its_band_is_apart():
    assert extreme([0, 1, 2], [0.9, 0.5, 0.2], [1, 0.6, 0.4]) == 2
    assert extreme([0, 1, 2], [0.9, 0.3, 0.2], [1, 0.6, 0.4]) is None
    assert extreme([0], [0.1], [0.2]) is None and extreme([0, 1], [0.1, np.nan], [0.2, np.nan]) is None


def test_bands_are_student_s_intervals_at_sidak_s_level():
    values, errors = np.array([0.5, 0.9, 1.0]), np.array([0.01, 0.02, 0.0])
    bands = simultaneous_bands(values, errors, 19, 0, 1)
    reach = t.ppf(1 - (1 - 0.95**0.5) / 2, 19) * errors  # equal layers are exact: two comparisons
    assert bands.low == pytest.approx(values - reach) and bands.high == pytest.approx(np.minimum(1, values + reach))
    many = simultaneous_bands(np.zeros(13), np.ones(13), 1e9)
    assert many.high[0] == pytest.approx(norm.ppf((1 + 0.95 ** (1 / 13)) / 2), abs=1e-4)
    assert simultaneous_bands(values, errors, 19).high[2] == 1.0


def estimates(truth, correlation, studies, seed, n_examples=200, n_folds=20):
    """Means over examples by layer with their delete-group jackknife, for correlated layers: `(studies, layers)` each."""
    rng = np.random.default_rng(seed)
    layers = len(truth)
    shared = rng.standard_gamma(2.0, (studies, n_examples, 1)) - 2
    own = rng.standard_gamma(2.0, (studies, n_examples, layers)) - 2
    rows = np.asarray(truth) - 0.02 * (np.sqrt(correlation) * shared + np.sqrt(1 - correlation) * own)
    folds = rows.reshape(studies, n_folds, -1, layers).sum(2)
    left_out = (rows.sum(1, keepdims=True) - folds) / (n_examples - n_examples // n_folds)
    return rows.mean(1), jackknife_error(left_out.transpose(0, 2, 1))


@pytest.mark.parametrize("correlation", [0.0, 0.9])
@pytest.mark.parametrize("layers", [3, 13])
def test_false_onsets_and_false_kept_layers_are_rare(layers, correlation):
    studies = 1000
    values, errors = estimates(np.full(layers, 0.95), correlation, studies, seed=layers)
    wrong = {"changed": 0, "kept": 0}
    pointwise = 0
    for value, error in zip(values, errors, strict=True):
        bands = simultaneous_bands(value, error, 19, -1, 1)
        found, reach = verdicts(bands.low, bands.high, 0.95), t.ppf(0.975, 19) * error
        wrong = {kind: number + (kind in found) for kind, number in wrong.items()}
        pointwise += set(verdicts(value - reach, value + reach, 0.95)) != {"undecided"}
    limit = 0.05 + 2 * np.sqrt(0.05 * 0.95 / studies)
    assert max(wrong.values()) / studies <= limit
    assert pointwise / studies > limit  # one interval per layer errs more often


def test_a_planted_onset_lies_between_the_layers_that_are_named():
    truth = [1.0, 0.99, 0.97, 0.93, 0.7, 0.4]
    values, errors = estimates(truth, 0.5, 400, seed=1)
    errors[:, 0] = 0.0
    values[:, 0] = 1.0
    right = exact = 0
    for value, error in zip(values, errors, strict=True):
        bands = simultaneous_bands(value, error, 19, -1, 1)
        found = onset(range(6), bands.low, bands.high, 0.95)
        right += found.earliest <= 3 <= (6 if found.latest is None else found.latest)
        exact += (found.earliest, found.latest) == (3, 3)
    assert right / 400 >= 0.95 - 2 * np.sqrt(0.05 * 0.95 / 400) and exact > 380
