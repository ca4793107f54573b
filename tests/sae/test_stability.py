"""Stable latents, sets of equal energy, and the overlap of subspaces with its null."""

import numpy as np
import pytest
import scipy.linalg
import torch
from scipy.sparse import csc_array
from sparse_rows import stand_in

from layerprobe import sae
from layerprobe.errors import ArgumentError

pytestmark = pytest.mark.numerical

D = 20
ROWS = np.random.default_rng(0).standard_normal((500, D)).astype(np.float32)


def test_the_overlap_is_that_of_scipys_principal_angles():
    rng = np.random.default_rng(1)
    one, other = rng.standard_normal((2, 30, 4)) @ rng.standard_normal((2, 4, D))
    found = sae.subspace_overlap(one, other, ROWS)
    leading = []
    for directions in (one, other):
        unit = directions / np.linalg.norm(directions, axis=1, keepdims=True)
        leading.append(np.linalg.svd(unit)[2][: found.dimensions].T)
    angles = scipy.linalg.subspace_angles(*leading)
    assert found.overlap == pytest.approx((np.cos(angles) ** 2).mean())
    assert 1 <= found.dimensions <= 4


def test_other_bases_of_one_subspace_overlap_and_unrelated_subspaces_do_not():
    rng = np.random.default_rng(2)
    basis, elsewhere = rng.standard_normal((2, 4, D))
    mix = rng.standard_normal((3, 200, 4))
    same = sae.subspace_overlap(mix[0] @ basis, mix[1] @ basis, ROWS)
    assert same.overlap > 0.9 > same.null_high
    apart = sae.subspace_overlap(mix[0] @ basis, mix[2] @ elsewhere, ROWS)
    assert apart.overlap < 0.6


def test_directions_of_the_rows_alone_are_within_the_null():
    """Rows vary in few directions, so that any latents of two seeds overlap; that is no reproducible subspace of theirs."""
    scale = np.where(np.arange(D) < 4, 3, 0.3)
    rows = (ROWS * scale).astype(np.float32)
    beyond = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        one, other = rng.standard_normal((2, 40, D)) * scale
        found = sae.subspace_overlap(one, other, rows, seed=seed)
        assert found.null_mean > 0.3  # far above 4 / 20 of random directions
        beyond += found.overlap > found.null_high
    assert beyond <= 6  # p = 1 / 20, 95th percentile of the binomial


def test_sets_of_equal_energy_are_disjoint_and_as_large_as_possible():
    rng = np.random.default_rng(3)
    decoder = rng.standard_normal((60, D))
    codes = csc_array(np.maximum(rng.standard_normal((200, 60)), 0))
    stable, live = np.arange(60) < 40, np.arange(60) != 50
    dictionary = stand_in(decoder)
    groups = sae.of_equal_energy(dictionary, codes, stable, live)
    energy = (codes.toarray() ** 2).sum(0) * (decoder**2).sum(1)
    assert list(np.flatnonzero(groups["unstable"])) == [i for i in range(40, 60) if i != 50]  # the group with less
    assert groups["stable"][stable].any() and not groups["stable"][~stable].any()
    shares = [energy[group].sum() for group in groups.values()]
    assert shares[0] == pytest.approx(shares[1], rel=0.05)
    with pytest.raises(ArgumentError, match="no live latent"):
        sae.of_equal_energy(dictionary, codes, stable, stable)


def test_a_partial_dictionary_lacks_its_latents_alone():
    decoder = np.random.default_rng(4).standard_normal((D, D))
    whole = stand_in(decoder)
    kept = np.arange(D) % 3 > 0
    rows = torch.from_numpy(ROWS[:30])
    part = sae.PartialDictionary(whole.sae, kept)
    codes = part.encode(rows)
    torch.testing.assert_close(codes[:, kept], whole.encode(rows)[:, kept])
    assert not codes[:, ~kept].any()
    expected = torch.relu(rows[:, kept]) @ torch.from_numpy(decoder[kept]).float()
    torch.testing.assert_close(part.decode(codes, rows), expected, rtol=1e-4, atol=1e-4)


def test_stable_latents_have_a_partner_with_a_high_cosine():
    rng = np.random.default_rng(5)
    one = rng.standard_normal((10, D))
    other = np.concatenate([one[:6] + 0.1 * rng.standard_normal((6, D)), rng.standard_normal((4, D))])[::-1]
    stable = sae.stable_latents(sae.match(stand_in(one), stand_in(other)))
    assert list(stable[0]) == [True] * 6 + [False] * 4 and list(stable[1]) == [False] * 4 + [True] * 6


def test_mistakes_in_directions_are_named():
    with pytest.raises(ArgumentError, match="at least two directions"):
        sae.subspace_overlap(ROWS[:1], ROWS[:5], ROWS)
    with pytest.raises(ArgumentError, match="do not vary"):
        sae.subspace_overlap(ROWS[:5], ROWS[5:9], np.ones((9, D), np.float32))
