"""Matching: planted permutations are recovered, rotations do not hide activations, slow twins agree, nulls are calibrated."""

from itertools import permutations

import numpy as np
import pytest
import sparse_rows
import torch
from sparse_rows import encoded, stand_in

from layerprobe import sae
from layerprobe.errors import ArgumentError, MeasureError
from layerprobe.sae import _dictionary

pytestmark = pytest.mark.numerical

D, LATENTS = 20, 30


def planted(decoder, threshold=1.0, encoder=None):
    """A dictionary with given weights: decoder rows, and a linear encoder with a threshold."""
    decoder = np.asarray(decoder, dtype=np.float32)
    encoder = torch.from_numpy((decoder.T if encoder is None else np.asarray(encoder, dtype=np.float32)).copy())

    def encode(rows):
        codes = rows @ encoder
        return torch.where(codes > threshold, codes - min(threshold, 0), 0)

    return stand_in(decoder, encode)


def directions(n=LATENTS, seed=0):
    return np.random.default_rng(seed).standard_normal((n, D)) / np.sqrt(D)


@pytest.fixture(scope="module")
def rows():
    return np.random.default_rng(9).standard_normal((3000, D)).astype(np.float32)


def matched(one, other, *rows):
    return sae.match(one, other, *(encoded(d, z) for d, z in zip((one, other), rows, strict=False)))


def dense(dictionary, rows):
    return dictionary.encode(torch.from_numpy(rows)).numpy()


def test_a_shuffled_copy_is_matched_latent_by_latent(rows):
    decoder = directions()
    order = np.random.default_rng(1).permutation(LATENTS)
    scale = np.random.default_rng(2).uniform(0.5, 2, (LATENTS, 1))  # length is no part of a direction
    result = matched(planted(decoder), planted((decoder * scale)[order], encoder=decoder[order].T), rows, rows)
    inverse = np.argsort(order)
    for column in ("partner", "partner_by_activation", "nearest"):
        assert list(result.table[column]) == list(inverse)
        assert list(result.reverse[column]) == list(order)
    for table in (result.table, result.reverse):
        np.testing.assert_allclose(table[["cosine", "nearest_cosine", "correlation"]], 1, atol=1e-6)
        assert table.live.all()


def test_pairs_are_the_best_of_all_assignments(rows):
    """All 5,040 assignments of seven latents, tried."""
    one, other = planted(directions(7, 3)), planted(directions(7, 4))
    result = matched(one, other, rows, rows)
    a, b = (d.decoder.numpy().astype(float) for d in (one, other))
    cosine = np.array([[u @ v / np.linalg.norm(u) / np.linalg.norm(v) for v in b] for u in a])
    correlation = np.corrcoef(dense(one, rows).T.astype(float), dense(other, rows).T.astype(float))[:7, 7:]
    for pairs, partner, value in (
        (cosine, "partner", "cosine"),
        (correlation, "partner_by_activation", "correlation"),
    ):
        best = max(permutations(range(7)), key=lambda order, pairs=pairs: pairs[range(7), order].sum())
        assert tuple(result.table[partner]) == best
        np.testing.assert_allclose(result.table[value], pairs[range(7), best], atol=1e-9)
        assert [best[i] for i in result.reverse[partner]] == list(range(7))
    np.testing.assert_allclose(result.table.nearest_cosine, cosine.max(1), atol=1e-9)
    assert list(result.table.nearest) == list(cosine.argmax(1))
    assert list(result.reverse.nearest) == list(cosine.argmax(0))
    np.testing.assert_allclose(result.table.density, (dense(one, rows) > 0).mean(0), atol=1e-12)
    # An opposite direction is no match: activations are never negative.
    turned = matched(one, planted(-a, encoder=a.T))
    assert (turned.table.cosine < 0.9).all()


@pytest.mark.parametrize("threshold", [1.5, -5.0])  # few active latents, and nearly all: two ways to multiply
def test_correlations_are_numpys_whatever_the_batches(rows, threshold, monkeypatch):
    one, other = planted(directions(seed=5), threshold), planted(directions(40, 6), threshold)
    moved = rows + 0.5 * np.random.default_rng(3).standard_normal(rows.shape).astype(np.float32)
    full = np.corrcoef(dense(one, rows).T.astype(float), dense(other, moved).T.astype(float))[:30, 30:]
    tables = []
    for batch_size in (7, 1000, 10_000):
        monkeypatch.setattr(_dictionary, "BATCH_ROWS", batch_size)
        result = matched(one, other, rows, moved).table
        partners = result.partner_by_activation.to_numpy(dtype=int)
        np.testing.assert_allclose(result.correlation, full[np.arange(30), partners], atol=1e-9)
        tables.append(result)
    assert all((t.partner_by_activation == tables[0].partner_by_activation).all() for t in tables)


def test_a_rotation_hides_decoder_rows_and_not_activations(rows):
    decoder = directions()
    rotation, _ = np.linalg.qr(np.random.default_rng(4).standard_normal((D, D)))
    result = matched(planted(decoder), planted(decoder @ rotation), rows, (rows @ rotation).astype(np.float32))
    chance = matched(planted(decoder), planted(directions(seed=77)))
    assert result.table.cosine.mean() == pytest.approx(chance.table.cosine.mean(), abs=0.1)
    assert result.table.cosine.mean() < 0.6 and result.table.correlation.mean() > 0.9999
    assert list(result.table.partner_by_activation) == list(range(LATENTS))
    assert (result.table.partner == result.table.partner_by_activation).mean() < 0.3
    null = matched(planted(decoder), planted(decoder + 0.05 * directions(seed=8)), rows, rows)
    by_rows = sae.compare_to_null(result, null)
    by_activation = sae.compare_to_null(result, null, on="correlation")
    assert by_rows.lost_share > 0.9 and by_activation.lost_share == 0


def test_dead_latents_are_marked_and_have_no_part(rows):
    decoder = directions()
    silent, unwritten = decoder.T.copy(), decoder.copy()
    silent[:, :4] = 0  # never fires
    unwritten[7] = 0  # fires and writes nothing
    result = matched(planted(unwritten, encoder=silent), planted(decoder), rows, rows)
    dead = [0, 1, 2, 3, 7]
    assert list(result.table.index[~result.table.live]) == dead
    gone = result.table.loc[dead, ["partner", "cosine", "nearest", "nearest_cosine", "partner_by_activation"]]
    assert gone.isna().all(axis=None)
    assert (result.table.density[:4] == 0).all() and result.table.density[7] > 0
    # Five of the other side's live latents are left without a partner, and no dead one is anybody's.
    assert result.reverse.live.all() and result.reverse.partner.isna().sum() == 5
    assert not result.reverse.partner.isin(dead).any() and not result.reverse.nearest.isin(dead).any()
    assert list(result.table.partner.drop(dead)) == [i for i in range(LATENTS) if i not in dead]
    compared = sae.compare_to_null(result, result)
    assert (compared.n, compared.n_other) == (25, 30)
    assert set(compared.kept) == set(range(LATENTS)) - set(dead) and not compared.lost
    # A latent without a partner is new, and as many are in an equal null.
    assert compared.new == tuple(dead)
    assert compared.new_share == compared.null_new_share == 5 / 30 and compared.null_lost_share == 0
    steady = matched(planted(decoder), planted(decoder), rows, rows)
    turned = sae.compare_to_null(matched(planted(decoder), planted(unwritten, encoder=silent), rows, rows), steady)
    assert turned.lost == tuple(dead) and not turned.new


def test_a_latent_that_never_changes_has_no_partner_by_activation(rows):
    decoder = directions()

    def constant(rows):
        codes = planted(decoder).encode(rows)
        codes[:, 3] = 0.1
        return codes

    result = matched(stand_in(decoder, constant), planted(decoder), rows, rows)
    assert result.table.live[3] and result.table.partner[3] == 3
    assert result.table.partner_by_activation.isna()[3] and np.isnan(result.table.correlation[3])
    assert (result.table.partner_by_activation.drop(3) == result.table.latent.drop(3)).all()


def test_widths_may_differ_where_rows_are_given(rows):
    narrow = np.random.default_rng(3).standard_normal((30, 8))
    image = (rows @ np.linalg.lstsq(narrow, directions(), rcond=None)[0].T).astype(np.float32)
    result = matched(planted(directions(), 0.1), planted(narrow, 0.1), rows, image)
    assert result.table.cosine.isna().all() and result.table.nearest.isna().all()
    assert result.table.correlation.notna().all()


def test_nothing_is_lost_between_equal_dictionaries():
    decoder = directions(200)
    null = matched(planted(decoder), planted(decoder + 0.3 * directions(200, 1)))
    same = sae.compare_to_null(matched(planted(decoder), planted(decoder.copy())), null)
    assert (same.lost, same.new, same.lost_share, same.lost_low) == ((), (), 0, 0)
    assert same.kept == tuple(range(200))
    assert same.lost_high == pytest.approx(1 - 0.025 ** (1 / 200))  # the exact interval of none in 200
    assert same.mean == pytest.approx(1) and same.null_mean < 0.98
    assert same.difference_low > 0
    steady = matched(planted(decoder), planted(decoder))
    both = sae.compare_to_null(steady, steady)
    assert both.lost_share == both.null_lost_share == 0  # all tied: rounding loses nothing


def test_the_null_itself_loses_one_in_twenty():
    decoder = directions(400)
    one, another = (matched(planted(decoder), planted(decoder + 0.5 * directions(400, seed))) for seed in (1, 2))
    itself = sae.compare_to_null(one, one)
    assert itself.lost_share == itself.null_lost_share == itself.new_share == itself.null_new_share == 0.05
    chance = sae.compare_to_null(another, one)
    assert chance.lost_low < 0.05 < chance.lost_high and chance.new_low < 0.05 < chance.new_high
    assert chance.difference_low < 0 < chance.difference_high


def test_planted_losses_are_found_beside_the_null():
    from scipy.stats import beta

    decoder = directions(100)
    changed = decoder + 0.3 * directions(100, 1)
    changed[:12] = directions(12, 50)
    null = matched(planted(decoder), planted(decoder + 0.3 * directions(100, 2)))
    match = matched(planted(decoder), planted(changed))
    result = sae.compare_to_null(match, null)
    assert set(range(12)) <= set(result.lost) and set(range(12)) <= set(result.new)
    assert len(result.lost) <= 12 + 12
    assert set(result.lost) | set(result.kept) == set(range(100)) and not set(result.lost) & set(result.kept)
    assert result.threshold == pytest.approx(np.percentile(null.table.cosine, 5))
    k = len(result.lost)
    assert result.lost_share == k / 100
    assert result.lost_low == pytest.approx(beta.ppf(0.025, k, 101 - k))
    assert result.lost_high == pytest.approx(beta.ppf(0.975, k + 1, 100 - k))
    assert (result.mean, result.null_mean) == pytest.approx((match.table.cosine.mean(), null.table.cosine.mean()))
    assert result.difference == pytest.approx(result.mean - result.null_mean)
    # The percentile bootstrap of a mean is close to the normal interval.
    spread = 1.96 * match.table.cosine.std() / 10
    assert result.mean_high - result.mean == pytest.approx(spread, rel=0.25)
    assert result.mean - result.mean_low == pytest.approx(spread, rel=0.25)


def test_trained_dictionaries_from_one_start_match_better_than_from_two(tmp_path):
    rows, _ = sparse_rows.planted(n=3000)
    configs = [sae.SaeConfig(k=3, expansion=2, samples=20_000, batch_size=256, seed=seed) for seed in (0, 0, 1)]
    one, again, other = (sae.train(rows, tmp_path / str(i), c) for i, c in enumerate(configs))
    same, different = matched(one, again, rows, rows), matched(one, other, rows, rows)
    assert same.table[["cosine", "correlation"]].mean().tolist() == pytest.approx([1, 1], abs=1e-6)
    assert different.table.cosine.mean() < 0.95
    assert not sae.compare_to_null(same, different).lost


def test_mistakes_are_named(rows):
    one, narrow = planted(directions()), planted(np.ones((5, 3)))
    codes = encoded(one, rows)
    with pytest.raises(ArgumentError, match="both codes_one and codes_other"):
        sae.match(one, one, codes)
    with pytest.raises(ArgumentError, match="20 and 3 features"):
        matched(one, narrow)
    with pytest.raises(MeasureError, match=r"shape \(3000, 30\), but there are 3000 rows and 5 latents"):
        sae.match(one, narrow, codes, codes)
    with pytest.raises(MeasureError, match=r"shape \(2999, 30\), but there are 3000 rows"):
        sae.match(one, one, codes, codes[1:])
    with pytest.raises(MeasureError, match="on 3 rows"):
        sae.match(one, one, codes[:3], codes[:3])
    with pytest.raises(MeasureError, match="No latent of the second dictionary is live"):
        matched(one, planted(directions(), threshold=1e6), rows, rows)
    by_rows = matched(one, one)
    with pytest.raises(MeasureError, match="matches of 30 and of 29 latents"):
        sae.compare_to_null(by_rows, matched(planted(directions()[1:]), one))
    with pytest.raises(MeasureError, match="same rows both times"):
        sae.compare_to_null(matched(one, one, rows, rows), matched(one, one, rows[:500], rows[:500]))
    with pytest.raises(MeasureError, match="has no correlation; give match the activations"):
        sae.compare_to_null(by_rows, by_rows, on="correlation")
