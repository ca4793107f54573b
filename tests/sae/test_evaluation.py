"""Quality of dictionaries: sums whatever the batches, whole examples, and other libraries' numbers."""

import numpy as np
import pytest
import torch
from sklearn.metrics import r2_score
from sparse_rows import planted

from layerprobe import sae
from layerprobe.errors import MeasureError
from layerprobe.sae._evaluation import density_table

pytestmark = pytest.mark.numerical


class Given(sae.Dictionary):
    """A stand-in for a dictionary that gives prepared codes and reconstructions, in the order of the rows."""

    def __init__(self, codes, rebuilt):
        object.__setattr__(self, "sae", None)
        object.__setattr__(self, "codes", codes)
        object.__setattr__(self, "rebuilt", rebuilt)
        object.__setattr__(self, "at", [0, 0])

    d_in = property(lambda self: self.rebuilt.shape[1])
    d_sae = property(lambda self: self.codes.shape[1])

    def encode(self, x):
        self.at[0] += len(x)
        return self.codes[self.at[0] - len(x) : self.at[0]]

    def decode(self, codes):
        self.at[1] += len(codes)
        return self.rebuilt[self.at[1] - len(codes) : self.at[1]]


@pytest.fixture(scope="module")
def rows():
    return planted(4000)[0]


@pytest.fixture(scope="module")
def trained(rows, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sae")
    return sae.train(rows[:3000], folder, k=3, expansion=2, samples=30_000, batch_size=256, progress=False)


def measured(dictionary, rows, batch_size=333, groups=None):
    groups = np.arange(len(rows)) // 4 if groups is None else groups
    return sae.evaluate(dictionary, rows, groups, batch_size=batch_size, progress=False)


def test_predicting_the_mean_scores_zero_even_far_from_the_origin():
    rows = np.random.default_rng(0).standard_normal((5000, 8)) + 1e4
    quality = measured(Given(np.zeros((5000, 5), np.float32), np.tile(rows.mean(0), (5000, 1))), rows)
    assert quality.explained_variance == pytest.approx(0, abs=1e-9)
    assert (quality.l0, quality.dead_share, quality.n, quality.examples) == (0, 1, 5000, 1250)


def test_explained_variance_is_scikit_learns_variance_weighted_r2_whatever_the_batches(trained, rows):
    held = rows[3000:]
    rebuilt = trained.decode(trained.encode(held))
    expected = r2_score(held.astype(np.float64), rebuilt, multioutput="variance_weighted")
    x = held.astype(np.float64)
    assert expected == pytest.approx(1 - ((x - rebuilt) ** 2).sum() / ((x - x.mean(0)) ** 2).sum(), abs=1e-12)
    for batch_size in (7, 256, 10_000):
        assert measured(trained, held, batch_size).explained_variance == pytest.approx(expected, abs=1e-7)


def test_bias_and_variance_agree_with_sae_lens(trained, rows):
    """sae-lens' evaluation, whose one batch is all rows, computes the same ratio of means (its equation's source too)."""
    held = rows[3000:]
    quality = measured(trained, held)
    x, r = torch.from_numpy(held), torch.from_numpy(trained.decode(trained.encode(held)))
    theirs = (torch.norm(r, dim=-1) ** 2).mean() / (x * r).sum(dim=-1).mean()
    assert quality.reconstruction_bias == pytest.approx(float(theirs), rel=1e-5)


def test_dividing_by_the_bias_leaves_the_least_error():
    """Its definition: the scale of reconstructions that is best divided by; planted at .8 exactly."""
    rng = np.random.default_rng(1)
    rows = rng.standard_normal((3000, 8)).astype(np.float32)
    noise = rng.standard_normal((3000, 8))
    for rebuilt in (0.8 * rows, 0.5 * rows + 0.2 * noise):
        bias = measured(Given(np.ones((3000, 2), np.float32), rebuilt), rows).reconstruction_bias
        errors = [((rebuilt / (bias * factor) - rows) ** 2).sum() for factor in (0.99, 1, 1.01)]
        assert errors[1] == min(errors)
    assert measured(Given(np.ones((3000, 2), np.float32), 0.8 * rows), rows).reconstruction_bias == pytest.approx(0.8)
    assert np.isnan(measured(Given(np.zeros((3000, 2), np.float32), 0 * rows), rows).reconstruction_bias)


def test_densities_count_latents_by_how_often_they_fire(trained, rows):
    held = rows[3000:]
    found = measured(trained, held)
    frequencies = (trained.encode(held) > 0).mean(0)
    table = found.densities
    assert list(table.columns) == ["low", "high", "latents"] and table.latents.sum() == trained.d_sae
    assert table.latents.iloc[0] == (frequencies == 0).sum() == round(found.dead_share * trained.d_sae)
    for row in table.iloc[1:].itertuples():
        low = 0 if row.low == -6 else 10**row.low
        assert row.latents == ((frequencies > low * (1 + 1e-9)) & (frequencies <= 10**row.high * (1 + 1e-9))).sum()
    assert found.l0 == pytest.approx(frequencies.sum(), rel=1e-5)


def test_densities_on_the_edges_belong_below():
    table = density_table(np.array([0, 0, 1000, 100, 101, 10, 1]), 1000).set_index("high").latents
    assert (table[-np.inf], table[0.0], table[-0.5], table[-1.0], table[-2.0], table[-3.0]) == (2, 1, 1, 1, 1, 1)
    assert density_table(np.array([1]), 10**8).set_index("high").latents[-5.5] == 1


def test_intervals_move_whole_examples(trained, rows):
    """Repeating every row ten times within its example adds no information, so the interval stays as wide."""
    held = rows[3000:3200]
    once = measured(trained, held, groups=np.arange(200))
    often = measured(trained, np.repeat(held, 10, axis=0), groups=np.repeat(np.arange(200), 10))
    assert often.ev_high - often.ev_low == pytest.approx(once.ev_high - once.ev_low, rel=1e-6)


def test_mistakes_are_named(trained, rows):
    with pytest.raises(MeasureError, match="24 wide"):
        measured(trained, rows[:, :5])
    with pytest.raises(MeasureError, match=r"rows 24 wide was given rows of shape \(4000, 5\)"):
        trained.encode(rows[:, :5])
    with pytest.raises(MeasureError, match="2 examples"):
        measured(trained, rows[:9], groups=np.zeros(9, dtype=np.int64))
    with pytest.raises(MeasureError, match="do not vary"):
        measured(trained, np.ones((9, 24), dtype=np.float32))
