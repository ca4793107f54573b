"""Alignments recover the change that they describe and no other, and agree with scipy and scikit-learn."""

import numpy as np
import pytest
import torch
from scipy.linalg import orthogonal_procrustes
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score
from sparse_rows import encoded, quality, stand_in

from layerprobe import sae
from layerprobe.errors import ArgumentError, MeasureError
from layerprobe.sae import _alignment
from layerprobe.sae._alignment import PENALTIES, AlignedDictionary, _gap_share
from layerprobe.sae._evaluation import SaeQuality

pytestmark = pytest.mark.numerical

D, LATENTS, N = 20, 12, 3000
GROUPS = np.arange(N) // 10
TRAIN, TEST = slice(0, 2000), slice(2000, N)
RNG = np.random.default_rng(0)
DIRECTIONS = RNG.standard_normal((LATENTS, D)) / np.sqrt(D)
MEAN = RNG.standard_normal(D)


def rows_of(seed=1):
    """Rows that the dictionary reconstructs exactly, with a little noise."""
    rng = np.random.default_rng(seed)
    codes = np.where(rng.random((N, LATENTS)) < 0.3, rng.uniform(0.5, 1.5, (N, LATENTS)), 0)
    return (codes @ DIRECTIONS + MEAN + 0.001 * rng.standard_normal((N, D))).astype(np.float32)


def exact(mean=MEAN, directions=DIRECTIONS):
    """A dictionary of these features."""
    inverse, w = (torch.from_numpy(np.ascontiguousarray(z)).float() for z in (np.linalg.pinv(directions), directions))
    mean = torch.from_numpy(mean).float()
    return stand_in(
        directions, encode=lambda rows: torch.relu((rows - mean) @ inverse), decode=lambda codes: codes @ w + mean
    )


BASE = rows_of()
ROTATION = np.linalg.qr(RNG.standard_normal((D, D)))[0]
SHIFT = 0.1 * RNG.standard_normal(D)
STRETCH = np.eye(D) + 0.6 * RNG.standard_normal((D, D)) / np.sqrt(D)
CHANGES = {
    "mean": BASE + SHIFT,
    "scale": 2 * BASE + SHIFT,
    "rotation": BASE @ ROTATION + SHIFT,
    "ridge": BASE @ STRETCH + SHIFT,
}


def unchecked(function):
    """Without the checks of shapes that tests install, so that the function's own are reached."""
    return getattr(function, "__wrapped__", function)


def transfer(adapted):
    """Compared with a dictionary that copies the adapted rows."""
    adapted = adapted.astype(np.float32)
    alignments = sae.fit_alignments(BASE[TRAIN], adapted[TRAIN], GROUPS[TRAIN])
    copy = stand_in(np.zeros((D, D)), encode=lambda rows: rows + 100, decode=lambda codes: codes - 100)
    home = quality(copy, adapted[TEST], GROUPS[TEST])
    return sae.aligned_transfer(exact(), home, alignments, adapted[TEST], GROUPS[TEST]).set_index("alignment")


@pytest.mark.parametrize("kind", CHANGES)
def test_each_alignment_undoes_its_own_change_and_no_larger_one(kind):
    table = transfer(CHANGES[kind])
    order = list(_alignment.ALIGNMENTS)
    assert list(table.index) == order
    able = set(order[order.index(kind) :]) - ({"rotation"} if kind == "scale" else set())
    for name in order:
        if name in able:
            assert table.gap_share[name] == pytest.approx(1, abs=0.01), name
        else:
            assert table.ev_high[name] < 0.98 and table.gap_share_high[name] < 0.9999, name
    assert table.gap_share["none"] == 0 and (table.why == "").all()


def test_new_features_are_not_undone_by_any_alignment():
    """Other codes in other directions: nothing of base's rows predicts them."""
    directions = np.random.default_rng(5).standard_normal((LATENTS, D)) / np.sqrt(D)
    adapted = (rows_of(seed=2) - MEAN) @ np.linalg.pinv(DIRECTIONS) @ directions
    table = transfer(adapted)
    assert table.ev_high["ridge"] < 0.05 and table.ev_high["rotation"] < 0.8


def test_without_a_gap_there_is_no_share():
    alignments = sae.fit_alignments(BASE[TRAIN], BASE[TRAIN], GROUPS[TRAIN])
    home = quality(exact(), BASE[TEST], GROUPS[TEST])
    table = sae.aligned_transfer(exact(), home, alignments, BASE[TEST], GROUPS[TEST])
    assert table.gap_share.isna().all() and table.gap_share_low.isna().all()
    assert table.why.str.contains(r"The gap is 0.000 .* which may be 0").all()
    assert table.explained_variance.to_numpy() == pytest.approx(home.explained_variance, abs=1e-4)


def test_rotation_is_scipys_and_ridge_scikit_learns():
    rng = np.random.default_rng(3)
    base = rng.standard_normal((400, 6)) @ rng.standard_normal((6, 6)) + 50
    adapted = base @ rng.standard_normal((6, 6)) + 2 * rng.standard_normal((400, 6)) - 20
    groups = np.arange(400) // 4
    found = sae.fit_alignments(base, adapted, groups)
    matrix, _ = orthogonal_procrustes(adapted - adapted.mean(0), base - base.mean(0))
    np.testing.assert_allclose(found["rotation"].there.matrix, matrix, atol=1e-8)
    held_out = groups % 5 == 4
    for affine, x, y in ((found["ridge"].there, adapted, base), (found["ridge"].back, base, adapted)):
        errors = []
        for penalty in PENALTIES:
            part = x[~held_out]
            alpha = penalty * len(part) * part.var(0).mean()
            predicted = Ridge(alpha=alpha).fit(part, y[~held_out]).predict(x[held_out])
            errors.append(((predicted - y[held_out]) ** 2).sum())
        alpha = PENALTIES[np.argmin(errors)] * len(x) * x.var(0).mean()
        theirs = Ridge(alpha=alpha).fit(x, y)
        np.testing.assert_allclose(affine.matrix, theirs.coef_.T, atol=1e-6)
        np.testing.assert_allclose(affine.shift, theirs.intercept_, atol=1e-4)


@pytest.mark.parametrize("name", ["none", "mean", "scale", "rotation"])
def test_rigid_alignments_return_every_row(name):
    adapted = CHANGES["rotation"].astype(np.float32)
    alignment = sae.fit_alignments(BASE[TRAIN], adapted[TRAIN], GROUPS[TRAIN])[name]
    rows = torch.from_numpy(adapted[:50])
    torch.testing.assert_close(alignment.back(alignment.there(rows)), rows, rtol=1e-4, atol=1e-4)


def test_an_aligned_dictionary_reconstructs_in_the_adapted_space():
    adapted = CHANGES["ridge"].astype(np.float32)
    alignment = sae.fit_alignments(BASE[TRAIN], adapted[TRAIN], GROUPS[TRAIN])["ridge"]
    aligned, rows = AlignedDictionary(exact().sae, alignment), adapted[TEST]
    there = rows.astype(np.float64) @ alignment.there.matrix + alignment.there.shift
    codes = np.maximum((there - MEAN) @ np.linalg.pinv(DIRECTIONS), 0)
    rebuilt = (codes @ DIRECTIONS + MEAN) @ alignment.back.matrix + alignment.back.shift
    np.testing.assert_allclose(encoded(aligned, rows).toarray(), codes, atol=1e-3)
    expected = r2_score(rows.astype(np.float64), rebuilt, multioutput="variance_weighted")
    assert quality(aligned, rows).explained_variance == pytest.approx(expected, abs=1e-5)
    np.testing.assert_allclose(aligned.decoder.numpy(), DIRECTIONS @ alignment.back.matrix, atol=1e-5)


def test_intervals_of_the_share_cover_the_truth():
    covered = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        hard = rng.gamma(4.0, 0.25, 100)
        errors = np.stack([hard * rng.gamma(10, 0.1, 100) * scale for scale in (0.6, 0.35, 0.2)])
        kept = [np.ones(100, bool), *(np.arange(100) % 20 != fold for fold in range(20))]
        plain = {"ev_low": 0, "ev_high": 1, "l0": 1, "dead_share": 0, "n": 100, "examples": 100}
        plain |= {"reconstruction_bias": 1, "densities": None}
        values = [[1 - side[keep].mean() for keep in kept] for side in errors]
        none, aligned, home = (SaeQuality(v[0], **plain, left_out=tuple(v[1:])) for v in values)
        share = _gap_share(aligned, none, home)
        covered += share.low <= 0.625 <= share.high
    assert 180 <= covered <= 199


def test_mistakes_in_rows_are_named():
    with pytest.raises(ArgumentError, match=r"base_rows has shape \(10, 20\), adapted_rows \(9, 20\)"):
        unchecked(sae.fit_alignments)(BASE[:10], BASE[:9], GROUPS[:10])
    with pytest.raises(ArgumentError, match="groups names 1 examples"):
        sae.fit_alignments(BASE[:10], BASE[:10], GROUPS[:10])
    with pytest.raises(ArgumentError, match="do not vary"):
        sae.fit_alignments(np.ones((100, 3)), BASE[:100, :3], GROUPS[:100])


# Principal components of the difference -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def joint():
    """A joint dictionary with random weights: the definitions need no training."""
    rng = np.random.default_rng(9)
    encoder, decoder = (rng.standard_normal((24, 2, D)).astype(np.float32) / 5 for _ in range(2))
    sides = rng.standard_normal((3, 2, D)).astype(np.float32)
    scales = np.float32([1.5, 2.5])
    return sae.Crosscoder(encoder, sides[0, 0, :1].repeat(24), decoder, sides[1], sides[2], scales, 1.0, 4.0)


def changed():
    rng = np.random.default_rng(7)
    return (BASE + rng.standard_normal((N, 2)) @ rng.standard_normal((2, D)) + SHIFT).astype(np.float32)


def test_components_of_the_difference_are_scikit_learns(joint):
    adapted = changed()
    base, codes = BASE[TEST], joint.encode(BASE[TEST], adapted[TEST])
    mean, directions = components = sae.principal_components(BASE[TRAIN], adapted[TRAIN])
    theirs = PCA().fit((adapted - BASE)[TRAIN].astype(np.float64))
    np.testing.assert_allclose(mean, theirs.mean_, atol=1e-5)
    np.testing.assert_allclose(np.abs((directions[:2] * theirs.components_[:2]).sum(1)), 1, atol=1e-4)
    table = sae.difference_pca(joint, components, base, adapted[TEST], codes, GROUPS[TEST]).set_index("components")
    difference = (adapted - BASE)[TEST].astype(np.float64)
    for m in (1, 2, 16, 20):
        scores = (difference - theirs.mean_) @ theirs.components_[:m].T
        rebuilt = scores @ theirs.components_[:m] + theirs.mean_
        expected = r2_score(difference, rebuilt, multioutput="variance_weighted")
        assert table.explained_variance[m] == pytest.approx(expected, abs=1e-5)
    assert table.explained_variance[2] > 0.999 and table.explained_variance[1] < 0.9
    sides = np.einsum("nm,msd->snd", codes.toarray(), joint.decoder) + joint.decoder_bias[:, None]
    sides = sides * joint.scales[:, None, None] + joint.means[:, None]
    expected = r2_score(difference, sides[1] - sides[0], multioutput="variance_weighted")
    assert table.joint.to_numpy() == pytest.approx(expected, abs=1e-5)
    assert table.excess[2] == pytest.approx(table.explained_variance[2] - expected, abs=1e-5)
    assert (table.excess_low < table.excess).all() and (table.excess < table.excess_high).all()
    equal = table[table.coefficients]
    assert list(equal.index) == [round(codes.nnz / len(base))] and table.l0.iloc[0] == codes.nnz / len(base)


def test_a_difference_that_does_not_vary_is_refused(joint):
    components = sae.principal_components(BASE[TRAIN], changed()[TRAIN])
    rows = np.round(BASE[TEST])
    with pytest.raises(ArgumentError, match="does not vary"):
        sae.difference_pca(joint, components, rows, rows + 1, joint.encode(rows, rows + 1), GROUPS[TEST])
    codes = joint.encode(BASE[TEST], changed()[TEST])
    with pytest.raises(ArgumentError, match="at least two"):
        sae.difference_pca(joint, components, BASE[TEST], changed()[TEST], codes, np.zeros(1000, dtype=int))
    with pytest.raises(MeasureError, match="same tokens"):
        unchecked(sae.principal_components)(BASE[:10], BASE[:9])
