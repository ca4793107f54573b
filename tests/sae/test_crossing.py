"""The layer at which adapted exceeds base: simulated rates of false onsets and of planted ones, and slow twins."""

import numpy as np
import pytest
from scipy.stats import t

from layerprobe import sae
from layerprobe.errors import ArgumentError

FOLDS, STUDIES = 20, 400


def study(rng, runs, dictionaries, n_layers, *, texts=1.0, between=1.0, trained=1.0, shift=0.0):
    """Differences with errors of three kinds; those of a training run are correlated over its layers, as of a text."""
    by_text = rng.normal(size=(n_layers, FOLDS)) + rng.normal(size=FOLDS)
    by_text *= texts * np.sqrt(FOLDS / 2)
    by_dictionary = between * rng.normal(size=(dictionaries, n_layers))
    by_run = trained * (rng.normal(size=(runs, 1)) + rng.normal(size=(runs, n_layers))) / np.sqrt(2)
    true = by_run[:, None] + by_dictionary + shift
    without = (by_text.sum(1, keepdims=True) - by_text) / (FOLDS - 1)
    return true + by_text.mean(1), true[..., None] + without


def onsets(runs, dictionaries=2, n_layers=13, studies=STUDIES, seed=0, **more):
    rng = np.random.default_rng(seed)
    numbers = np.arange(n_layers)
    return [sae.crossing(numbers, *study(rng, runs, dictionaries, n_layers, **more)).onset for _ in range(studies)]


def bound(level, n=STUDIES):
    """Highest share that a rate of `level` gives in 99% of simulations."""
    return level + 2.33 * np.sqrt(level * (1 - level) / n)


@pytest.mark.parametrize("runs", [1, 4, 10])
@pytest.mark.parametrize("errors", [{}, {"texts": 0}, {"between": 0}], ids=["all", "seeds", "texts and runs"])
def test_at_most_one_study_in_twenty_has_a_false_onset_at_13_layers(runs, errors):
    # What one training run shows holds for its model: its own deviation is not chance.
    errors = {**errors, "trained": 0} if runs == 1 else errors
    false = np.mean([layer is not None for layer in onsets(runs, **errors)])
    assert false <= bound(0.05)


@pytest.mark.parametrize("n_layers", [1, 2, 3])
def test_few_layers_have_no_more_false_onsets(n_layers):
    for runs, trained in ((1, 0), (2, 1)):
        false = np.mean([layer is not None for layer in onsets(runs, n_layers=n_layers, trained=trained, seed=1)])
        assert false <= bound(0.05), (runs, false)


def test_a_layer_twice_as_noisy_as_the_mean_has_no_more_false_onsets():
    """The variance between dictionaries is pooled, and that of one layer may be larger."""
    for between in (np.linspace(0.5, 2, 13), np.r_[np.full(12, 0.5), 1.0]):
        false = np.mean([one is not None for one in onsets(1, texts=0.3, trained=0, between=between, seed=2)])
        assert false <= bound(0.05), false


@pytest.mark.parametrize("runs", [1, 4, 10])
def test_a_planted_crossing_is_named(runs):
    """Ten standard errors from layer 8 on."""
    shift = np.where(np.arange(13) >= 8, 10.0, 0.0)
    errors = {"texts": 0.5, "between": 1.0, "trained": 0.0 if runs == 1 else 0.5}
    found = onsets(runs, studies=100, shift=shift, **errors)
    assert np.mean([layer == 8 for layer in found]) >= 0.9
    result = sae.crossing(np.arange(13), *study(np.random.default_rng(0), runs, 2, 13, shift=shift, **errors))
    assert (result.onset, result.after, result.verdict) == (8, 7, "onset")


def test_with_one_dictionary_seed_no_onset_is_named():
    assert set(onsets(4, dictionaries=1, studies=20, shift=1000.0)) == {None}
    result = sae.crossing(np.arange(13), *study(np.random.default_rng(0), 1, 1, 13, shift=1000.0))
    assert result.verdict == "conditional" and np.isnan(result.low).all() and np.isnan(result.dictionary_error).all()


def test_the_interval_is_that_of_the_three_variances():
    rng = np.random.default_rng(3)
    differences, left_out = study(rng, 3, 2, 4)
    layers = np.array([1, 3, 6, 9])
    result = sae.crossing(layers, differences, left_out)
    pooled = np.mean([np.var([differences[:, d, i].mean() for d in range(2)], ddof=1) for i in range(4)])
    for i in range(4):
        mean = np.mean([left_out[r, d, i] for r in range(3) for d in range(2)], axis=0)
        texts = 19 / 20 * np.sum((mean - mean.mean()) ** 2)
        between = max(pooled, np.var([differences[:, d, i].mean() for d in range(2)], ddof=1)) / 2
        trained = np.var([differences[r, :, i].mean() for r in range(3)], ddof=1) / 3
        total = texts + between + trained
        degrees = total**2 / (texts**2 / 19 + between**2 / 4 + trained**2 / 2)
        reach = t.ppf((1 + 0.95 ** (1 / 4)) / 2, degrees) * np.sqrt(total)
        assert result.high[i] - result.difference[i] == pytest.approx(reach)
        assert result.difference[i] - result.low[i] == pytest.approx(reach)
        assert result.example_error[i] ** 2 == pytest.approx(texts)
        assert result.difference[i] == pytest.approx(differences[..., i].mean())


def test_equal_layers_have_no_error_and_are_no_comparisons():
    differences, left_out = study(np.random.default_rng(4), 2, 2, 3)
    whole = sae.crossing(np.arange(3), differences, left_out)
    padded = [np.concatenate([np.zeros_like(part), part], axis=2) for part in (differences, left_out)]
    result = sae.crossing(np.arange(6), *padded)
    assert (
        (result.low[:3] == 0).all()
        and (result.high[:3] == 0).all()
        and result.equal.tolist() == [True] * 3 + [False] * 3
    )
    np.testing.assert_allclose(result.low[3:], whole.low)
    flat = sae.crossing(np.arange(3), np.zeros((2, 2, 3)), np.zeros((2, 2, 3, 20)))
    assert flat.verdict == "flat" and flat.onset is None
    assert sae.crossing(np.arange(3), np.zeros((1, 1, 3)), np.zeros((1, 1, 3, 20))).verdict == "flat"


def test_an_undefined_layer_leaves_the_others_as_they_are():
    differences, left_out = study(np.random.default_rng(5), 1, 2, 3, trained=0)
    whole = sae.crossing(np.arange(3), differences, left_out)
    gap = [np.concatenate([part[:, :, :1] * np.nan, part], axis=2) for part in (differences, left_out)]
    result = sae.crossing(np.arange(4), *gap)
    assert np.isnan(result.low[0])
    np.testing.assert_allclose(result.low[1:], whole.low)
    undefined = sae.crossing(np.arange(1), np.full((1, 2, 1), np.nan), np.full((1, 2, 1, 20), np.nan))
    assert undefined.verdict == "undefined" and undefined.onset is None


def test_mistakes_are_named():
    differences, left_out = study(np.random.default_rng(6), 1, 2, 3)
    with pytest.raises(ArgumentError, match="needs runs x dictionaries x 4 layers"):
        sae.crossing(np.arange(4), differences, left_out)
    with pytest.raises(ArgumentError, match="at least two folds"):
        sae.crossing(np.arange(3), differences, left_out[..., :1])
    with pytest.raises(ArgumentError, match="ascending"):
        sae.crossing(np.array([0, 2, 1]), differences, left_out)
