"""Task latents: AUROC, p and FDR against other libraries, planted latents found, chance held to its rate."""

import numpy as np
import pytest
from scipy.stats import false_discovery_control, mannwhitneyu
from sklearn.metrics import roc_auc_score

from layerprobe import sae
from layerprobe.errors import MeasureError


def activations(n=300, latents=40, seed=0):
    """Sparse non-negative means with many ties at zero, as dictionaries give."""
    rng = np.random.default_rng(seed)
    return (rng.exponential(size=(n, latents)) * (rng.random((n, latents)) < 0.4)).astype(np.float32)


def test_auroc_p_and_q_agree_with_other_libraries():
    means, labels = activations(), np.random.default_rng(1).permutation(np.arange(300) % 2)
    means[labels == 1, :5] += 0.5
    columns = means.T.astype(np.float64)
    auroc = np.array([roc_auc_score(labels, column) for column in columns])
    p = np.array(
        [
            mannwhitneyu(c[labels == 1], c[labels == 0], method="asymptotic", use_continuity=False).pvalue
            for c in columns
        ]
    )
    q = false_discovery_control(p)
    found = sae.task_latents(means, labels, ["a", "b"], permutations=0)
    np.testing.assert_allclose(found.table.auroc, auroc, atol=1e-12)
    np.testing.assert_allclose(found.table.effect, np.abs(2 * auroc - 1), atol=1e-12)
    np.testing.assert_allclose(found.table.p, p, rtol=1e-9)
    np.testing.assert_allclose(found.table.q, q, rtol=1e-9)
    expected = (q <= 0.05) & (np.abs(2 * auroc - 1) >= 0.2)
    assert found.table.task.tolist() == expected.tolist() and found.share == expected.mean()


def test_planted_latents_are_found_and_no_others():
    means, labels = activations(n=400), np.arange(400) % 3
    means[labels == 2, 7] += 2
    means[labels != 0, 9] += 2
    found = sae.task_latents(means, labels, ["x", "y", "z"])
    task = found.table[found.table.task].set_index("latent").label
    assert {7: "z", 9: "x"}.items() <= task.to_dict().items()
    assert len(task) <= 4
    assert found.share_permuted < 0.02 and found.share_permuted_high <= 0.05


def test_without_association_the_share_is_that_of_permuted_labels():
    shares = []
    for seed in range(20):
        labels = np.random.default_rng(seed).integers(2, size=300)
        shares.append(sae.task_latents(activations(seed=seed), labels, ["a", "b"], permutations=20).share)
    assert np.mean(shares) < 0.01


def test_a_large_sample_s_small_effects_stay_below_the_floor():
    rng = np.random.default_rng(0)
    labels = np.arange(20_000) % 2
    means = (rng.random((20_000, 3)) + 0.05 * labels[:, None]).astype(np.float32)
    table = sae.task_latents(means, labels, ["a", "b"], permutations=0).table
    assert (table.q < 1e-6).all() and (table.effect < 0.2).all() and not table.task.any()


def test_rarely_active_latents_are_not_judged():
    means = activations()
    means[:, 0] = 0
    means[:9, 0] = 5
    found = sae.task_latents(means, np.arange(300) % 2, ["a", "b"], permutations=0)
    assert 0 not in set(found.table.latent) and found.live == 39
    none = sae.task_latents(np.zeros((50, 4), dtype=np.float32), np.arange(50) % 2, ["a", "b"])
    assert none.live == 0 and np.isnan(none.share)


def test_means_are_over_each_example_s_rows(tmp_path):
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((60, 6)).astype(np.float32)
    dictionary = sae.train(rows, tmp_path / "d", k=2, expansion=2, samples=600, batch_size=20, progress=False)
    groups = rng.permutation(np.repeat(np.arange(12), 5))
    means = sae.latent_means(dictionary, rows, groups, 12, batch_size=7)
    codes = dictionary.encode(rows)
    np.testing.assert_allclose(means, np.stack([codes[groups == e].mean(0) for e in range(12)]), atol=1e-6)
    with pytest.raises(MeasureError, match="Example 12 has no row"):
        sae.latent_means(dictionary, rows, groups, 13)


def test_mistakes_are_named():
    with pytest.raises(MeasureError, match="300 examples and 2 labels"):
        sae.task_latents(activations(), np.array([0, 1]), ["a", "b"])
    with pytest.raises(MeasureError, match="1 label"):
        sae.task_latents(activations(), np.zeros(300, dtype=np.int64), ["a", "b"])
