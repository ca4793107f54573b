"""Dictionaries: saved in sae-lens' format, judged by sums, planted features found, controls near nothing."""

import numpy as np
import pytest
import torch
from sae_lens import SAE

from layerprobe import sae
from layerprobe.errors import MeasureError, StorageError, StudyError


def planted(n=6000, d=24, latents=40, active=3, seed=0):
    """Rows made of a few of many sparse directions, and the directions."""
    rng = np.random.default_rng(seed)
    directions = rng.standard_normal((latents, d))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    codes = np.zeros((n, latents))
    for row in codes:
        row[rng.choice(latents, active, replace=False)] = rng.uniform(1, 2, active)
    return (codes @ directions + 3.0).astype(np.float32), directions


@pytest.fixture(scope="module")
def rows():
    return planted()[0]


@pytest.fixture(scope="module")
def trained(rows, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sae") / "dictionary"
    return sae.train(rows[:5000], folder, k=3, expansion=3, samples=60_000, batch_size=256, progress=False), folder


class Mean(sae.Dictionary):
    """A stand-in for a dictionary that always gives the mean of some rows, kept in place of a sae-lens object."""

    d_in, d_sae = 8, 5

    def encode(self, x):
        return np.zeros((len(x), 5), dtype=np.float32)

    def decode(self, codes):
        return np.tile(self.sae, (len(codes), 1))


def test_saved_dictionaries_are_sae_lens_own(trained, rows):
    dictionary, folder = trained
    theirs = SAE.load_from_disk(folder)
    with torch.no_grad():
        codes = theirs.encode(torch.from_numpy(rows[:50]))
        rebuilt = theirs.decode(codes)
    np.testing.assert_array_equal(dictionary.encode(rows[:50]), codes.numpy())
    np.testing.assert_allclose(dictionary.decode(codes.numpy()), rebuilt.numpy(), atol=1e-6)
    assert (dictionary.d_in, dictionary.d_sae) == (24, 72)
    assert not list(folder.glob("*.pt")) and not list(folder.glob("*.bin"))


def test_planted_features_are_found_and_held_out_rows_explained(trained, rows):
    dictionary, _ = trained
    quality = sae.evaluate(dictionary, rows[5000:], np.arange(1000), progress=False)
    control = sae.evaluate(
        sae.untrained(dictionary, rows[:5000], architecture="topk", k=3, seed=0),
        rows[5000:],
        np.arange(1000),
        progress=False,
    )
    assert quality.explained_variance > 0.7 > 0.4 > control.explained_variance
    assert quality.ev_low < quality.explained_variance < quality.ev_high
    assert quality.l0 == pytest.approx(3, abs=0.2)
    decoder = dictionary.sae.W_dec.detach().numpy()
    decoder = decoder / np.linalg.norm(decoder, axis=1, keepdims=True)
    best = (planted()[1] @ decoder.T).max(1)
    assert np.mean(best > 0.9) > 0.7


def test_equal_seeds_give_equal_weights(rows, tmp_path):
    options = {"k": 3, "expansion": 1, "samples": 4000, "batch_size": 256, "progress": False}
    one, same, other = (
        sae.train(rows[:2000], tmp_path / str(i), seed=seed, **options).sae.W_dec for i, seed in enumerate((0, 0, 1))
    )
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_predicting_the_mean_scores_zero_even_far_from_the_origin():
    rows = np.random.default_rng(0).standard_normal((5000, 8)) + 1e4
    quality = sae.evaluate(Mean(rows.mean(0)), rows, np.arange(5000) // 10, batch_size=333, progress=False)
    assert quality.explained_variance == pytest.approx(0, abs=1e-9)
    assert (quality.l0, quality.dead_share, quality.n, quality.examples) == (0, 1, 5000, 500)


def test_explained_variance_is_one_formula_whatever_the_batches(trained, rows):
    dictionary, _ = trained
    held = rows[5000:]
    rebuilt = dictionary.decode(dictionary.encode(held))
    x = held.astype(np.float64)
    expected = 1 - ((x - rebuilt) ** 2).sum() / ((x - x.mean(0)) ** 2).sum()
    for batch_size in (7, 256, 10_000):
        found = sae.evaluate(dictionary, held, np.arange(1000), batch_size=batch_size, progress=False)
        assert found.explained_variance == pytest.approx(expected, abs=1e-7)


def test_intervals_move_whole_examples(trained, rows):
    """Repeating every row ten times within its example adds no information, so the interval stays as wide."""
    dictionary, _ = trained
    held = rows[5000:5200]
    once = sae.evaluate(dictionary, held, np.arange(200), progress=False)
    often = sae.evaluate(dictionary, np.repeat(held, 10, axis=0), np.repeat(np.arange(200), 10), progress=False)
    assert often.ev_high - often.ev_low == pytest.approx(once.ev_high - once.ev_low, rel=1e-6)


@pytest.mark.parametrize("architecture", ["batchtopk", "matryoshka_batchtopk"])
def test_one_threshold_keeps_k_latents_active_after_reloading(architecture, rows, tmp_path):
    made = sae.train(
        rows[:3000],
        tmp_path / "d",
        architecture=architecture,
        k=3,
        expansion=2,
        samples=12_000,
        batch_size=256,
        progress=False,
    )
    again = sae.load(tmp_path / "d")
    assert (again.encode(rows[3000:]) > 0).sum(1).mean() == pytest.approx(3, rel=0.15)
    assert np.array_equal(made.encode(rows[:9]), again.encode(rows[:9]))


@pytest.mark.parametrize("architecture", ["standard", "gated", "jumprelu"])
def test_other_architectures_train_and_reload(architecture, rows, tmp_path):
    options = {"expansion": 2, "samples": 6000, "batch_size": 256, "progress": False}
    sae.train(rows[:3000], tmp_path / "d", architecture=architecture, **options)
    quality = sae.evaluate(sae.load(tmp_path / "d"), rows[3000:], np.arange(3000), progress=False)
    assert np.isfinite(quality.explained_variance)


def test_training_is_logged(trained):
    import pandas as pd

    history = pd.read_parquet(trained[1] / "history.parquet")
    assert list(history.columns) == ["step", "loss", "explained_variance", "l0", "dead_share"]
    assert history.loss.iloc[-1] < history.loss.iloc[0]
    assert history.step.is_monotonic_increasing


def test_mistakes_are_named(rows, trained, tmp_path):
    with pytest.raises(StudyError, match=r"sae.k = 100 of 24 latents"):
        sae.train(rows, tmp_path / "d", k=100, expansion=1, progress=False)
    with pytest.raises(StudyError, match="given 1 rows"):
        sae.train(rows[:1], tmp_path / "d", k=1, progress=False)
    with pytest.raises(StorageError, match=r"cfg.json is missing"):
        sae.load(tmp_path)
    with pytest.raises(MeasureError, match="24 wide"):
        sae.evaluate(trained[0], rows[:, :5], np.arange(len(rows)), progress=False)
    with pytest.raises(MeasureError, match="2 examples"):
        sae.evaluate(trained[0], rows[:9], np.zeros(9, dtype=np.int64), progress=False)
    with pytest.raises(MeasureError, match="do not vary"):
        sae.evaluate(trained[0], np.ones((9, 24), dtype=np.float32), np.arange(9), progress=False)
