"""Exclusive latents: claimed in at most 5% of studies without any, in the designs that misled Delta; found where planted.

Joint dictionaries are planted, not trained: the features' directions with an error, spare latents that fit noise, and the
activations of both. `benchmarks/planted_features.py --nulls` repeats it with training.
"""

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csc_array

from layerprobe import sae
from layerprobe.errors import ArgumentError, MeasureError
from layerprobe.sae import Crosscoder

pytestmark = pytest.mark.numerical

N, D, SHARED = 500, 16, 12
NULLS = 3


def study(seed, design):
    """Rows and a joint dictionary of shared features and, by design, amplified or exclusive ones or latents of noise."""
    rng = np.random.default_rng(seed)
    exclusive = 8 if design == "exclusive" else 0
    spare = rng.poisson(5) if design == "noise" else 0
    m = SHARED + exclusive
    directions = np.repeat(rng.standard_normal((m, 1, D)), 2, axis=1)
    directions /= np.linalg.norm(directions, axis=2, keepdims=True)
    if design == "amplified":
        directions[:3, 1] *= 6
    directions[SHARED : SHARED + exclusive // 2, 1] = 0
    directions[SHARED + exclusive // 2 :, 0] = 0
    active = np.where(rng.random((N, m)) < 0.15, rng.uniform(0.5, 1.5, (N, m)), 0)
    noise = 0.05 * rng.standard_normal((2, N, D))
    noise[1] += (0.3 if design == "noise" else 0) * rng.standard_normal((N, D))
    rows = np.einsum("nf,fsd->snd", active, directions) + noise
    # A spare latent fires where the adapted side's noise lies along its direction, and writes on that side alone.
    fitted = rng.standard_normal((spare, D))
    fitted /= np.linalg.norm(fitted, axis=1, keepdims=True)
    along = noise[1] @ fitted.T
    spare_codes = np.where(along > 0.6, along, 0)
    decoder = np.concatenate([directions, np.stack([0.02 * fitted, fitted], axis=1)])
    decoder += 0.01 * rng.standard_normal(decoder.shape)
    codes = csc_array(np.concatenate([active, spare_codes], axis=1))
    zeros = np.zeros((2, D), np.float32)
    joint = Crosscoder(
        np.zeros(decoder.shape, np.float32), zeros[0, :1].repeat(len(decoder)), decoder.astype(np.float32), zeros, zeros,
        np.ones(2, np.float32), 0.0, 2.0,
    )  # fmt: skip
    table = sae.census(joint, *rows.astype(np.float32), codes, np.arange(N) // 2)
    return table, joint, rows, codes


def census(seed, design):
    return study(seed, design)[0]


def test_features_amplified_six_times_are_no_exclusive_ones():
    """By norms their Delta is .92, beyond .9, and their nu is below .2."""
    tables = [census(seed, "amplified") for seed in range(60)]
    any_exclusive = [table.kind.isin(["base_only", "adapted_only"]).any() for table in tables]
    assert sum(any_exclusive) <= 3  # 5%
    first = pd.concat([table[:3] for table in tables])
    assert (first.delta > 0.9).mean() > 0.9 and (first.nu_error < 0.2).mean() > 0.9
    assert (first.kind == "amplified").mean() > 0.95
    rest = pd.concat([table[3:SHARED] for table in tables])
    assert (rest.kind == "shared").mean() > 0.95


def test_latents_of_one_sides_noise_are_no_exclusive_features():
    """They look exclusive in nearly every study; compared with nulls that have them too, in at most 5%."""
    looks, claims = 0, 0
    for seed in range(40):
        found = sae.exclusive_features(
            census(seed, "noise"), [census(1000 * (seed + 1) + i, "noise") for i in range(NULLS)]
        )
        looks += found.candidates > 0
        claims += bool(found.latents)
    assert looks > 35
    assert claims <= 2  # 5%


def test_planted_exclusive_features_are_found_beyond_their_nulls():
    found = [
        sae.exclusive_features(
            census(seed, "exclusive"), [census(1000 * (seed + 1) + i, "shared") for i in range(2 * NULLS)]
        )
        for seed in range(12)
    ]
    assert np.mean([len(set(one.latents) & set(range(SHARED, SHARED + 8))) for one in found]) > 7
    assert np.mean([len(set(one.latents) - set(range(SHARED, SHARED + 8))) for one in found]) < 0.2
    # Live latents / (.05 x null latents): no fewer can pass Benjamini-Hochberg.
    assert {one.fewest for one in found} == {int(np.ceil(20 / (0.05 * (1 + 2 * NULLS * SHARED))))}


def one(kinds, statistics, p=0.0):
    table = pd.DataFrame({"kind": kinds, "nu_statistic": statistics, "p_exclusive": p, "nu_reconstruction": 0.0})
    return table.assign(latent=range(len(table)))


def test_the_number_must_exceed_the_nulls():
    table = one(["adapted_only"] * 6 + ["shared"] * 4, [-9.0] * 6 + [5.0] * 4)
    clean = one(["shared"] * 10, [5.0] * 10)
    assert sae.exclusive_features(table, [clean] * 4).latents == tuple(range(6))
    assert sae.exclusive_features(table, [clean]).latents == ()  # 11 null latents: p is at least 1 / 11
    assert sae.exclusive_features(table, []).latents == () and np.isnan(sae.exclusive_features(table, []).null_high)
    # Nulls with as many candidates, whose statistics are less extreme: the number decides.
    many = one(["adapted_only"] * 6 + ["shared"] * 4, [-5.0] * 6 + [5.0] * 4)
    found = sae.exclusive_features(table, [many] * 4)
    assert found.latents == () and found.null_high > 6 and found.null_candidates == (6,) * 4
    # Few candidates with less extreme statistics than the nulls' other latents: their p-values decide.
    low = one(["shared"] * 10, [-9.5] * 10)
    assert sae.exclusive_features(table, [low] * 4).latents == ()
    # Nulls that vary: mean 3, standard deviation 2 of three trainings.
    varied = [one(["adapted_only"] * k + ["shared"] * (10 - k), [-5.0] * k + [5.0] * (10 - k)) for k in (1, 3, 5)]
    assert sae.exclusive_features(table, varied).null_high == pytest.approx(3 + 2.92 * 2 * (4 / 3) ** 0.5, abs=0.01)


def test_the_residual_is_that_of_plain_reconstruction():
    table, joint, rows, codes = study(3, "noise")
    doubtful = table.kind.isin(["base_only", "adapted_only", "shifted"]).to_numpy()
    assert doubtful.any()
    rebuilt = np.einsum("nm,msd->snd", codes.toarray(), joint.decoder)
    kept = np.einsum("nm,msd->snd", codes.toarray()[:, ~doubtful], joint.decoder[~doubtful])
    found = sae.residual_covariances(joint, *rows.astype(np.float32), codes, table)
    norms = np.linalg.norm(joint.decoder, axis=2)
    ratio = np.median(np.repeat(np.log(norms[:, 1] / norms[:, 0]), np.diff(codes.indptr)))
    freedom = D / (D - codes.nnz / N)
    for side, unit in enumerate((1, np.exp(ratio))):
        missed = rows[side] - rebuilt[side]
        covariance = missed.T @ missed / N
        scale = ((rows[side] - kept[side]) ** 2).sum() / N / np.trace(covariance)
        np.testing.assert_allclose(found[side], covariance * scale * freedom / unit**2, rtol=1e-4, atol=1e-6)
    # The noise that was planted: .05 on base, and .3 more on adapted. The planted activations take no degree of freedom.
    assert np.trace(found[1]) / freedom == pytest.approx(D * (0.05**2 + 0.3**2), rel=0.15)


def test_noise_has_the_covariance_that_it_is_given():
    rng = np.random.default_rng(0)
    mixes = rng.standard_normal((2, 3, 3))
    covariances = mixes @ mixes.transpose(0, 2, 1)
    base = rng.standard_normal((40_000, 3)).astype(np.float32) + 5
    sides = sae.noise_null(base, covariances, seed=1)
    for side, covariance in zip(sides, covariances, strict=True):
        np.testing.assert_allclose(np.cov((side - base).T), covariance, atol=0.1 * np.abs(covariance).max())
    assert abs(np.corrcoef((sides[0] - base)[:, 0], (sides[1] - base)[:, 0])[0, 1]) < 0.03
    np.testing.assert_array_equal(sae.noise_null(base, covariances, seed=1)[0], sides[0])
    with pytest.raises(ArgumentError, match="no row"):
        table, joint, rows, codes = study(0, "noise")
        sae.residual_covariances(joint, rows[0][:0], rows[1][:0], codes[:0], table)
    with pytest.raises(MeasureError, match="codes has shape"):
        sae.residual_covariances(joint, *rows[:, :9].astype(np.float32), codes, table)
