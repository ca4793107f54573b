"""The established measures against published values, other libraries, slow twins and planted truth."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import pdist
from scipy.stats import kendalltau, pearsonr, spearmanr
from sklearn.cross_decomposition import CCA
from sklearn.neighbors import NearestNeighbors

from layerprobe.errors import MeasureError
from layerprobe.similarity import (
    MEASURES,
    ShapeMetric,
    cka,
    cka_angle,
    geometry,
    jaccard_knn,
    linear_predictivity,
    mean_cca,
    mean_squared_cca,
    mutual_knn,
    procrustes,
    procrustes_angle,
    pwcca,
    rsa,
    shape_distance,
    svcca,
)

pytestmark = pytest.mark.numerical

pytestmark = pytest.mark.filterwarnings("ignore:.*below ten rows a feature:UserWarning")


def published():
    rng = np.random.RandomState(1337)
    x = rng.randn(100, 10)
    return x, rng.randn(100, 10) + x


def related(n=200, d=6, seed=0, other=None):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, d))
    return x, x @ rng.standard_normal((d, other or d)) + rng.standard_normal((n, other or d))


def test_published_reference_values():
    x, y = published()
    assert cka(x, y, debiased=False) == pytest.approx(0.55761, abs=5e-6)
    assert cka(x, y, kernel="rbf", debiased=False) == pytest.approx(0.65483, abs=5e-6)
    assert cka(x, y) == pytest.approx(0.51346, abs=5e-6)
    assert mean_squared_cca(x, y) == pytest.approx(0.54540, abs=5e-6)
    assert pwcca(x, y) == pytest.approx(0.7347, abs=5e-5)  # the weighting of the paper


def test_canonical_correlations_equal_scikit_learn_s_and_the_qr_form():
    x, y = related(300, 4, other=5)
    a, b = (np.linalg.qr(z - z.mean(0))[0] for z in (x, y))
    by_qr = np.linalg.svd(a.T @ b, compute_uv=False)
    assert mean_cca(x, y) == pytest.approx(by_qr.mean(), abs=1e-12)
    assert mean_squared_cca(x, y) == pytest.approx((by_qr**2).mean(), abs=1e-12)
    u, v = CCA(n_components=4, max_iter=5000, tol=1e-10).fit_transform(x, y)
    theirs = np.array([pearsonr(u[:, i], v[:, i]).statistic for i in range(4)])
    assert mean_cca(x, y) == pytest.approx(theirs.mean(), abs=1e-5)


def test_svcca_is_cca_of_the_leading_components():
    from sklearn.decomposition import PCA

    x, y = related(300, 8)
    x = x * np.array([5, 4, 3, 2, 1, 0.1, 0.1, 0.1])
    kept = [PCA(n_components=0.95).fit_transform(z) for z in (x, y)]
    assert kept[0].shape[1] < 8
    assert svcca(x, y, variance=0.95) == pytest.approx(mean_cca(*kept), abs=1e-10)
    assert svcca(x, y, variance=1.0) == pytest.approx(mean_cca(x, y), abs=1e-10)


def test_pwcca_weighs_directions_by_what_they_hold_of_x():
    x, y = related(300, 5)
    a, b = x - x.mean(0), y - y.mean(0)
    qa = np.linalg.qr(a)[0]
    u, s, _ = np.linalg.svd(qa.T @ np.linalg.qr(b)[0])
    h = qa @ u
    weights = np.abs(h.T @ a).sum(1)
    assert pwcca(x, y) == pytest.approx(weights @ s / weights.sum(), abs=1e-12)


def test_rbf_cka_by_hand():
    x, y = related(60, 3)

    def gram(z):
        squared = ((z[:, None] - z[None]) ** 2).sum(-1)
        return np.exp(-squared / (2 * 0.5**2 * np.median(squared)))

    def song(k, m):
        k, m, n = k * (1 - np.eye(60)), m * (1 - np.eye(60)), 60
        return (np.trace(k @ m) + k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2 * (k @ m).sum() / (n - 2)) / (n * (n - 3))

    k, m = gram(x), gram(y)
    expected = song(k, m) / np.sqrt(song(k, k) * song(m, m))
    assert cka(x, y, kernel="rbf") == pytest.approx(expected, abs=1e-10)


def test_gram_and_feature_forms_agree_with_groups():
    from layerprobe.similarity._cka import gram_cka

    x, y = related(90, 5)
    groups = np.random.default_rng(0).integers(20, size=90)
    groups = np.unique(groups, return_inverse=True)[1]
    a, b = x - x.mean(0), y - y.mean(0)
    assert cka(x, y, groups=groups) == pytest.approx(gram_cka(a @ a.T, b @ b.T, groups), abs=1e-10)


def test_minibatches_come_near_the_exact_value():
    x, y = related(4000, 10)
    assert cka(x, y, estimator="minibatch", batch=4000) == pytest.approx(cka(x, y), abs=1e-10)
    assert cka(x, y, estimator="minibatch", batch=250) == pytest.approx(cka(x, y), abs=0.01)


def test_dissimilarities_and_their_comparisons_equal_scipy_s():
    x, y = related(50, 7)
    kinds = {"correlation": "correlation", "cosine": "cosine", "euclidean": "euclidean"}
    compared = {"spearman": spearmanr, "pearson": pearsonr, "kendall": kendalltau}
    for rdm, metric in kinds.items():
        for name, function in compared.items():
            expected = function(pdist(x, metric), pdist(y, metric)).statistic
            assert rsa(x, y, rdm=rdm, compare=name) == pytest.approx(expected, abs=1e-10), (rdm, name)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_neighbours_equal_scikit_learn_s(metric):
    x, y = related(80, 4)
    sets = [
        [set(row[1:]) for row in NearestNeighbors(n_neighbors=6, metric=metric).fit(z).kneighbors(z)[1]] for z in (x, y)
    ]
    shared = np.array([len(a & b) for a, b in zip(*sets, strict=True)])
    assert mutual_knn(x, y, k=5, metric=metric) == pytest.approx(shared.mean() / 5)
    assert jaccard_knn(x, y, k=5, metric=metric) == pytest.approx((shared / (10 - shared)).mean())


def test_unrelated_neighbours_score_what_chance_gives():
    rng = np.random.default_rng(0)
    values = [mutual_knn(*rng.standard_normal((2, 200, 10))) for _ in range(10)]
    assert np.mean(values) == pytest.approx(10 / 199, abs=0.01)


def test_predictivity_of_planted_noise():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3000, 5))
    y = x @ rng.standard_normal((5, 4))
    y += rng.standard_normal(y.shape) * y.std() / 2  # a fifth of the variance is noise
    assert linear_predictivity(x, y) == pytest.approx(0.8, abs=0.02)
    assert linear_predictivity(x, rng.standard_normal((3000, 4))) == pytest.approx(0, abs=0.01)
    assert linear_predictivity(y[:, :2], x) < linear_predictivity(x, y[:, :2]) - 0.2


def test_predictivity_keeps_texts_whole():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(40), 10)
    x, y = (rng.standard_normal((40, 30))[groups] + 0.01 * rng.standard_normal((400, 30)) for _ in range(2))
    assert linear_predictivity(x, y) > 0.6  # the same texts on both sides of the split
    assert linear_predictivity(x, y, groups=groups) < 0.1


def test_shape_distances_meet_their_neighbours():
    x, y = related(300, 6)
    assert shape_distance(x, y, alpha=1) == pytest.approx(procrustes_angle(x, y), abs=1e-12)
    assert np.cos(shape_distance(x, y, alpha=0)) == pytest.approx(mean_cca(x, y), abs=1e-10)
    assert np.cos(procrustes_angle(x, y)) == pytest.approx(procrustes(x, y), abs=1e-12)
    assert np.cos(cka_angle(x, y)) == pytest.approx(cka(x, y, debiased=False), abs=1e-12)
    for alpha in (0, 0.3, 1):
        assert ShapeMetric(alpha).fit(x, y).score(x, y) == pytest.approx(shape_distance(x, y, alpha=alpha), abs=1e-7)


def test_held_out_shapes_are_not_flattered():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 120, 40))
    metric = ShapeMetric(1.0).fit(x[:60], y[:60])
    assert metric.score(x[60:], y[60:]) > shape_distance(x[:60], y[:60]) + 0.4
    rotation = np.linalg.qr(rng.standard_normal((40, 40)))[0]
    assert ShapeMetric(1.0).fit(x[:60], x[:60] @ rotation).score(x[60:], x[60:] @ rotation) < 0.5
    with pytest.raises(MeasureError, match="before fit"):
        ShapeMetric().score(x, y)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), d=st.integers(1, 5))
def test_metric_distances_obey_the_triangle_inequality(seed, d):
    rng = np.random.default_rng(seed)
    shared = rng.standard_normal((40, 5))
    x, y, z = (
        shared @ rng.standard_normal((5, d)) + rng.uniform(0, 2) * rng.standard_normal((40, d)) for _ in range(3)
    )
    for distance in (cka_angle, procrustes_angle, lambda a, b: shape_distance(a, b, alpha=0)):
        assert distance(x, z) <= distance(x, y) + distance(y, z) + 1e-7


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(30, 60), d_x=st.integers(1, 6), d_y=st.integers(7, 9))
def test_ranges_and_symmetry_hold_for_unequal_widths(seed, n, d_x, d_y):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, d_x + 1)) * rng.uniform(0.1, 10, d_x + 1)
    y = x[:, :1] + rng.standard_normal((n, d_y))
    for measure in MEASURES:
        if measure.name.startswith("paired_cosine"):
            continue
        value = measure.function(x, y)
        assert measure.low <= value <= measure.high, measure.name
        if measure.symmetric:
            assert measure.function(y, x) == pytest.approx(value, abs=1e-9), measure.name


@pytest.mark.parametrize("n", [50, 500, 5000])
def test_debiased_cka_of_independent_data_is_noise_about_zero(n):
    rng = np.random.default_rng(n)
    values = np.array([cka(*rng.standard_normal((2, n, 30))) for _ in range(20)])
    assert abs(values.mean()) < 4 * values.std() / np.sqrt(20) + 1e-6


def test_planted_dependence_within_texts_stays_below_five_thousandths():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(400), 25)

    def tokens(share):
        return np.sqrt(share) * rng.standard_normal((400, 32))[groups] + np.sqrt(1 - share) * rng.standard_normal(
            (10_000, 32)
        )

    for share in (0.3, 0.6):
        values = [cka(tokens(share), tokens(share), groups=groups) for _ in range(6)]
        assert abs(np.mean(values)) < 0.005


def test_geometry_of_planted_shapes():
    rng = np.random.default_rng(0)
    flat = rng.standard_normal((2000, 3)) @ np.linalg.qr(rng.standard_normal((20, 20)))[0][:3]
    assert geometry.participation_ratio(flat) == pytest.approx(3, rel=0.05)
    assert geometry.effective_rank(flat) == pytest.approx(3, rel=0.02)
    assert geometry.intrinsic_dimension(flat) == pytest.approx(3, rel=0.1)
    assert geometry.anisotropy(rng.standard_normal((2000, 20))) == pytest.approx(0, abs=0.005)
    assert geometry.anisotropy(rng.standard_normal((2000, 20)) * 0.01 + 1) > 0.99
    sphere = rng.standard_normal((1500, 6))
    sphere /= np.linalg.norm(sphere, axis=1, keepdims=True)
    assert geometry.intrinsic_dimension(sphere) == pytest.approx(5, rel=0.12)


def test_geometry_by_slow_twins():
    x = np.random.default_rng(0).standard_normal((30, 4)) + 1
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    pairs = [unit[i] @ unit[j] for i in range(30) for j in range(30) if i != j]
    assert geometry.anisotropy(x) == pytest.approx(np.mean(pairs), abs=1e-12)
    values = np.linalg.svd(x - x.mean(0), compute_uv=False)
    p = values / values.sum()
    assert geometry.effective_rank(x) == pytest.approx(np.exp(-(p * np.log(p)).sum()), abs=1e-9)
    assert geometry.participation_ratio(x) == pytest.approx((values**2).sum() ** 2 / (values**4).sum(), abs=1e-9)


@pytest.mark.parametrize("measure", MEASURES, ids=lambda m: m.name)
def test_bad_input_is_refused_with_the_shapes_and_a_way_out(measure):
    good = np.random.default_rng(0).standard_normal((40, 3))
    bad = good.copy()
    bad[7, 1] = np.nan
    infinite = good.copy()
    infinite[7, 1] = np.inf
    for x, y in ((good, bad), (good, infinite), (good, good[:-1]), (good[:0], good[:0]), (good[:, :0], good[:, :0])):
        with pytest.raises(MeasureError) as caught:
            measure.function(x, y)
        assert caught.value.args[0].startswith(measure.name), caught.value
        assert "\n" not in str(caught.value)
    if measure.minimum > 1:
        with pytest.raises(MeasureError):
            measure.function(good[: measure.minimum - 1], good[: measure.minimum - 1])
    if not measure.name.startswith("paired_cosine"):
        with pytest.raises(MeasureError):
            measure.function(np.ones((40, 3)), np.ones((40, 3)))


def test_too_few_rows_for_cca_are_refused_and_few_are_warned_of():
    rng = np.random.default_rng(0)
    with pytest.raises(MeasureError, match=r"20 rows for widths 10 \+ 10"):
        mean_cca(*rng.standard_normal((2, 20, 10)))
    with pytest.raises(MeasureError, match="svcca"):
        mean_cca(np.c_[np.ones(50), rng.standard_normal(50)], rng.standard_normal((50, 2)))
    for function in (mean_cca, procrustes):
        with pytest.warns(UserWarning, match="below ten rows a feature"):
            function(*rng.standard_normal((2, 50, 10)))


def test_options_out_of_range_are_refused():
    x, y = related(30, 3)
    for call, word in {
        lambda: cka(x, y, kernel="poly"): "kernel='poly'",
        lambda: cka(x, y, estimator="half"): "estimator='half'",
        lambda: cka(x, y, estimator="minibatch", debiased=False): "debiased=False",
        lambda: svcca(x, y, variance=0): "variance=0",
        lambda: shape_distance(x, y, alpha=2): "alpha=2",
        lambda: rsa(x, y, rdm="l2"): "rdm='l2'",
        lambda: rsa(x, y, compare="tau"): "compare='tau'",
        lambda: mutual_knn(x, y, k=29): "k=29",
        lambda: jaccard_knn(x, y, metric="l1"): "metric='l1'",
        lambda: linear_predictivity(x, y, folds=20): "folds=20",
        lambda: pwcca(np.c_[x, x[:, :1] ** 2], y): "narrower side",
    }.items():
        with pytest.raises(MeasureError, match=word.replace("(", r"\(")):
            call()


def test_tensors_and_float32_are_taken():
    import torch

    x, y = related(60, 4)
    x32, y32 = x.astype(np.float32), y.astype(np.float32)
    for measure in MEASURES:
        expected = measure.function(x32.astype(np.float64), y32.astype(np.float64))
        assert measure.function(torch.from_numpy(x32), torch.from_numpy(y32)) == pytest.approx(expected, abs=1e-9)
