"""Intervals against closed forms and scipy."""

import numpy as np
import pytest
from scipy.stats import bootstrap, t

from layerprobe.stats import bootstrap_mean, jackknife


def examples(n=60, seed=0):
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 30, n)
    return counts * rng.normal(0.7, 0.2, n), counts


def test_the_bootstrap_of_a_mean_equals_scipy_s_up_to_monte_carlo_error():
    sums, counts = examples()
    estimate = bootstrap_mean(sums, counts, 0)
    expected = bootstrap(
        (sums, counts),
        lambda s, c, axis: s.sum(axis) / c.sum(axis),
        paired=True,
        vectorized=True,
        n_resamples=20_000,
        batch=1000,
        method="percentile",
        rng=1,
    )
    assert estimate.value == pytest.approx(sums.sum() / counts.sum(), abs=1e-15)
    tolerance = 0.15 * expected.standard_error
    assert estimate.low == pytest.approx(expected.confidence_interval.low, abs=tolerance)
    assert estimate.high == pytest.approx(expected.confidence_interval.high, abs=tolerance)
    assert estimate.n == 60


def test_resamples_are_shared_between_layers_and_differ_between_seeds():
    sums, counts = examples()
    shifted = bootstrap_mean(sums + 2 * counts, counts, 0)
    estimate = bootstrap_mean(sums, counts, 0)
    assert (shifted.low, shifted.high) == (pytest.approx(estimate.low + 2), pytest.approx(estimate.high + 2))
    assert bootstrap_mean(sums, counts, 1).low != estimate.low


@pytest.mark.parametrize("n", [1, 2, 50])
def test_a_constant_has_an_interval_of_no_width(n):
    counts = np.arange(1, n + 1)
    estimate = bootstrap_mean(0.1 * counts, counts, 0)
    assert estimate.low <= estimate.value <= estimate.high
    assert [estimate.low, estimate.value, estimate.high] == pytest.approx([0.1] * 3, abs=1e-15)


def test_the_jackknife_of_a_mean_is_student_s_interval():
    values = np.random.default_rng(0).normal(0.5, 0.1, 25)
    estimate = jackknife(lambda fold: float(np.delete(values, [] if fold is None else fold).mean()), 25, 25)
    reach = t.ppf(0.975, 24) * values.std(ddof=1) / 5
    assert estimate.value == pytest.approx(values.mean(), abs=1e-15)
    assert (estimate.low, estimate.high) == (pytest.approx(values.mean() - reach), pytest.approx(values.mean() + reach))
    clipped = jackknife(lambda fold: float(np.delete(values, [] if fold is None else fold).mean()), 25, 25, 0.49, 0.51)
    assert (clipped.low, clipped.high) == (0.49, 0.51)
