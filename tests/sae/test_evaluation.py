"""Quality of dictionaries: sums whatever the batches, whole examples, and other libraries' numbers."""

import numpy as np
import pytest
import torch
from scipy.sparse import csc_array
from sklearn.metrics import r2_score
from sparse_rows import encoded, planted, quality, stand_in

from layerprobe import sae
from layerprobe.errors import ArgumentError, MeasureError
from layerprobe.sae import SaeConfig, _dictionary
from layerprobe.sae._evaluation import density_table

pytestmark = pytest.mark.numerical


def given(codes, rebuilt):
    """A dictionary that returns prepared reconstructions in the order of the rows, and the prepared activations."""
    batches = iter(np.split(rebuilt, range(_dictionary.BATCH_ROWS, len(rebuilt), _dictionary.BATCH_ROWS)))
    decoder = np.zeros((codes.shape[1], rebuilt.shape[1]))
    return stand_in(decoder, decode=lambda codes: torch.from_numpy(np.array(next(batches)))), csc_array(codes)


@pytest.fixture(scope="module")
def rows():
    return planted(4000)[0]


@pytest.fixture(scope="module")
def trained(rows, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sae")
    config = SaeConfig(k=3, expansion=2, samples=30_000, batch_size=256)
    return sae.train(rows[:3000], folder, config)


def measured(dictionary, rows, codes=None, groups=None):
    return quality(dictionary, rows, np.arange(len(rows)) // 4 if groups is None else groups, codes)


@torch.no_grad()
def plain(dictionary, rows):
    """The encoder and decoder of sae-lens, all rows at once."""
    codes = dictionary.sae.encode(torch.from_numpy(rows))
    return codes.numpy(), dictionary.sae.decode(codes).numpy()


def test_predicting_the_mean_scores_zero_even_far_from_the_origin():
    rows = np.random.default_rng(0).standard_normal((5000, 8)) + 1e4
    dictionary, codes = given(np.zeros((5000, 5), np.float32), np.tile(rows.mean(0), (5000, 1)))
    result = measured(dictionary, rows, codes)
    assert result.explained_variance == pytest.approx(0, abs=1e-9)
    assert (result.l0, result.dead_share, result.n, result.examples) == (0, 1, 5000, 1250)


def test_explained_variance_is_scikit_learns_variance_weighted_r2_whatever_the_batches(trained, rows, monkeypatch):
    held = rows[3000:]
    rebuilt = plain(trained, held)[1]
    expected = r2_score(held.astype(np.float64), rebuilt, multioutput="variance_weighted")
    x = held.astype(np.float64)
    assert expected == pytest.approx(1 - ((x - rebuilt) ** 2).sum() / ((x - x.mean(0)) ** 2).sum(), abs=1e-12)
    for batch_size in (7, 256, 10_000):
        monkeypatch.setattr(_dictionary, "BATCH_ROWS", batch_size)
        assert measured(trained, held).explained_variance == pytest.approx(expected, abs=1e-7)


def test_bias_and_variance_agree_with_sae_lens(trained, rows):
    """sae-lens' evaluation, whose one batch is all rows, computes the same ratio of means (its equation's source too)."""
    held = rows[3000:]
    result = measured(trained, held)
    x, r = torch.from_numpy(held), torch.from_numpy(plain(trained, held)[1])
    theirs = (torch.norm(r, dim=-1) ** 2).mean() / (x * r).sum(dim=-1).mean()
    assert result.reconstruction_bias == pytest.approx(float(theirs), rel=1e-5)


def test_dividing_by_the_bias_leaves_the_least_error():
    """Its definition: the scale of reconstructions that is best divided by; planted at .8 exactly."""
    rng = np.random.default_rng(1)
    rows = rng.standard_normal((3000, 8)).astype(np.float32)
    noise = rng.standard_normal((3000, 8))
    for rebuilt in (0.8 * rows, 0.5 * rows + 0.2 * noise):
        bias = bias_of(rebuilt, rows)
        errors = [((rebuilt / (bias * factor) - rows) ** 2).sum() for factor in (0.99, 1, 1.01)]
        assert errors[1] == min(errors)
    assert bias_of(0.8 * rows, rows) == pytest.approx(0.8)
    assert np.isnan(bias_of(0 * rows, rows))


def bias_of(rebuilt, rows):
    dictionary, codes = given(np.ones((len(rows), 2), np.float32), rebuilt)
    return measured(dictionary, rows, codes).reconstruction_bias


def test_densities_count_latents_by_how_often_they_fire(trained, rows):
    held = rows[3000:]
    result = measured(trained, held)
    frequencies = (plain(trained, held)[0] > 0).mean(0)
    table = result.densities
    assert list(table.columns) == ["low", "high", "latents"] and table.latents.sum() == trained.d_sae
    assert table.latents.iloc[0] == (frequencies == 0).sum() == round(result.dead_share * trained.d_sae)
    for row in table.iloc[1:].itertuples():
        low = 0 if row.low == -6 else 10**row.low
        assert row.latents == ((frequencies > low * (1 + 1e-9)) & (frequencies <= 10**row.high * (1 + 1e-9))).sum()
    assert result.l0 == pytest.approx(frequencies.sum(), rel=1e-5)


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


def test_paired_differences_cancel_what_all_dictionaries_find_hard(rows):
    """The interval of a difference is a jackknife of differences; twins of one error pattern have one of no width."""
    held, groups = rows[3000:], np.arange(1000) // 4
    noise = np.random.default_rng(0).standard_normal(held.shape).astype(np.float32)
    results = []
    for scale in (0.1, 0.2):
        dictionary, codes = given(np.ones((1000, 2), np.float32), held + scale * noise)
        results.append(measured(dictionary, held, codes, groups))
    one, other = results
    gap = sae.ev_difference(one, other)
    assert gap.value == pytest.approx(one.explained_variance - other.explained_variance)
    # The errors are four times as large in every fold, so that all variation is that of one dictionary, three times.
    width = one.ev_high - one.explained_variance
    assert gap.high - gap.value == pytest.approx(3 * width, rel=1e-3)
    assert gap.low > 0
    same = sae.ev_difference(one, one)
    assert (same.value, same.low, same.high) == (0, 0, 0)
    with pytest.raises(ArgumentError, match="1000 rows of 250 examples and other on 999"):
        dictionary, codes = given(np.ones((999, 2), np.float32), held[1:])
        sae.ev_difference(one, measured(dictionary, held[1:], codes, groups[1:]))


def test_paired_intervals_cover_the_true_difference():
    """Errors of examples vary; 95% intervals of the difference cover its expectation in 90 to 99% of 200 draws."""
    from layerprobe.sae._evaluation import SaeQuality

    covered = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        hard = rng.gamma(2.0, 1.0, 60)  # of each example, for both dictionaries
        errors = np.stack([hard * rng.gamma(20, 1 / 20, 60) * scale for scale in (0.2, 0.25)])
        folds = np.arange(60) % 20
        kept = [np.ones(60, bool), *(folds != fold for fold in range(20))]
        values = [[1 - side[keep].mean() / 10 for keep in kept] for side in errors]
        plain = {"ev_low": 0, "ev_high": 1, "l0": 1, "dead_share": 0, "n": 60, "examples": 60}
        plain |= {"reconstruction_bias": 1, "densities": None}
        gap = sae.ev_difference(*(SaeQuality(v[0], **plain, left_out=tuple(v[1:])) for v in values))
        covered += gap.low <= 2 * 0.05 / 10 <= gap.high
    assert 180 <= covered <= 198


@pytest.mark.parametrize("normalisation", ["none", "layer_norm", "constant_norm_rescale"])
@pytest.mark.parametrize("bias", [True, False])
def test_activations_computed_before_give_the_reconstructions_of_one_pass(normalisation, bias, rows):
    """Also for dictionaries of others that normalise each row: sae-lens keeps a row's scale from encoding to decoding."""
    from sae_lens import StandardSAE, StandardSAEConfig

    torch.manual_seed(0)
    config = StandardSAEConfig(d_in=24, d_sae=60, normalize_activations=normalisation, apply_b_dec_to_input=bias)
    dictionary = sae.Dictionary(StandardSAE(config).eval())
    with torch.no_grad():
        dictionary.sae.b_dec += torch.randn(24)
    held = rows[:900]
    expected = plain(dictionary, held)[1]
    result = measured(dictionary, held)
    assert result.explained_variance == pytest.approx(
        r2_score(held.astype(np.float64), expected, multioutput="variance_weighted"), abs=1e-6
    )
    codes = torch.from_numpy(encoded(dictionary, held[450:]).toarray())
    encoded(dictionary, held[:450])  # other rows in between
    rebuilt = dictionary.decode(codes, torch.from_numpy(held[450:]))
    np.testing.assert_allclose(rebuilt.numpy(), expected[450:], atol=1e-5)


def test_mistakes_are_named(trained, rows):
    with pytest.raises(MeasureError, match=r"shape \(4000, 5\), but the dictionary takes rows of 24 features"):
        encoded(trained, rows[:, :5])
    with pytest.raises(MeasureError, match="first in row 3007"):
        encoded(trained, np.where(np.arange(4000)[:, None] == 3007, np.nan, rows))
    with pytest.raises(MeasureError, match=r"codes has shape \(4000, 48\), but there are 3999 rows and 48 latents"):
        measured(trained, rows[1:], encoded(trained, rows))
    with pytest.raises(MeasureError, match="2 examples"):
        measured(trained, rows[:9], groups=np.zeros(9, dtype=np.int64))
    with pytest.raises(MeasureError, match="do not vary"):
        measured(trained, np.ones((9, 24), dtype=np.float32))
