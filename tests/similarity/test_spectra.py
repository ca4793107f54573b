"""Singular values from Gram matrices, CCA and neighbours against slow twins, in 50 digits where rounding matters."""

import mpmath
import numpy as np
import pytest

from layerprobe.similarity import _spectra as spectra
from layerprobe.similarity import geometry, mean_cca, mean_squared_cca, procrustes, pwcca, shuffled, svcca
from layerprobe.similarity._nulls import _ShuffledRows
from layerprobe.similarity._spectra import left_vectors, singular_values

pytestmark = [pytest.mark.numerical, pytest.mark.filterwarnings("ignore:.*fewer than ten rows per feature:UserWarning")]


@pytest.fixture(autouse=True)
def fifty_digits():
    with mpmath.workdps(50):
        yield


def exact_values(matrix):
    """Singular values in 50 digits."""
    wide = mpmath.matrix(matrix.T.tolist() if matrix.shape[0] < matrix.shape[1] else matrix.tolist())
    return np.array([mpmath.mpf(value) for value in mpmath.svd_r(wide, compute_uv=False)])


def exact_cca(x, y):
    """Canonical correlations, and PWCCA, in 50 digits."""
    sides = []
    for z in (x, y):
        z = mpmath.matrix(z.tolist())
        for j in range(z.cols):
            mean = mpmath.fsum(z[i, j] for i in range(z.rows)) / z.rows
            for i in range(z.rows):
                z[i, j] -= mean
        sides.append((z, mpmath.qr(z, mode="skinny")[0]))
    (a, qa), (_, qb) = sides
    u, values, _ = mpmath.svd_r(qa.T * qb)
    columns = (qa * u).T * a
    weights = [mpmath.fsum(abs(columns[i, j]) for j in range(a.cols)) for i in range(len(values))]
    weighted = mpmath.fsum(w * v for w, v in zip(weights, values, strict=True)) / mpmath.fsum(weights)
    return [float(v) for v in values], float(weighted)


def spectrum(values, seed=0, shape=None):
    """A matrix with these singular values."""
    rng = np.random.default_rng(seed)
    m, n = shape or (len(values), len(values))
    left, right = (np.linalg.qr(rng.standard_normal((size, len(values))))[0] for size in (m, n))
    return left * values @ right.T


CASES = {
    "equal": spectrum(np.ones(6)),
    "graded": spectrum(np.geomspace(1, 1e-3, 8)),
    "steep": spectrum(np.geomspace(1, 1e-14, 8)),
    "rank 3 of 8": spectrum([3, 2, 1, 0, 0, 0, 0, 0]),
    "one dominates": spectrum([1e6, 1, 1, 1, 1, 1]),
    "wide": spectrum(np.linspace(1, 2, 4), shape=(4, 9)),
    "tall": spectrum(np.linspace(1, 2, 4), shape=(9, 4)),
    "huge": 1e200 * spectrum(np.linspace(1, 2, 5)),
    "tiny": 1e-200 * spectrum(np.linspace(1, 2, 5)),
    "zero": np.zeros((4, 4)),
}


@pytest.mark.parametrize("name", CASES)
def test_sums_of_singular_values_equal_those_in_fifty_digits(name):
    matrix = CASES[name]
    exact = exact_values(matrix)
    for values, error in (
        (singular_values(matrix), 1e-9),
        (left_vectors(matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T)[1], 2e-12),
    ):
        assert (np.diff(values) <= 1e-9 * values[0]).all()
        assert float(abs(mpmath.fsum(values.tolist()) - mpmath.fsum(exact))) <= error * float(mpmath.fsum(exact)), name


def test_left_vectors_diagonalise_the_gram_matrix():
    matrix = spectrum(np.geomspace(1, 0.01, 7), shape=(7, 11))
    vectors, values = left_vectors(matrix)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(7), atol=1e-13)
    np.testing.assert_allclose(vectors.T @ matrix @ matrix.T @ vectors, np.diag(values**2), atol=1e-13)


def test_the_decomposition_is_computed_only_where_roots_are_inaccurate(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("decomposed")

    monkeypatch.setattr(np.linalg, "svd", refuse)
    singular_values(CASES["graded"]), left_vectors(CASES["graded"])
    for name in ("steep", "rank 3 of 8"):
        for function in (singular_values, left_vectors):
            with pytest.raises(AssertionError, match="decomposed"):
                function(CASES[name])


@pytest.mark.parametrize("size", [50, 400])
def test_errors_are_far_below_their_estimate(size):
    for decay in (1, 0.1, 1e-3, 1e-5):
        matrix = spectrum(np.geomspace(1, decay, size), seed=size)
        exact = np.linalg.svd(matrix.astype(np.float64), compute_uv=False).sum()
        assert abs(singular_values(matrix).sum() / exact - 1) < spectra.ACCURACY / 100, decay


def sides(n=60, d=4, seed=0, noise=1.0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, d))
    return x, x @ rng.standard_normal((d, d)) + noise * rng.standard_normal((n, d))


def near_collinear(gap):
    x, y = sides()
    x[:, 3] = x[:, 0] + gap * x[:, 3]
    return x, y


PAIRS = {
    "plain": (*sides(), 1e-13),
    "equal": (*sides(noise=1e-6), 1e-12),
    "unrelated": (*sides(noise=1e6), 1e-12),
    "collinear": (*near_collinear(1e-2), 1e-12),
    "more collinear": (*near_collinear(1e-4), 2e-8),  # the condition number 1e8 of the scatter matrix times rounding
    "scales": (sides()[0] * np.geomspace(1, 1e8, 4), sides()[1], 1e-12),
}


def by_decomposition(x, y):
    """Canonical correlations in float64 from Cholesky roots and a singular value decomposition."""
    a, b = x - x.mean(0), y - y.mean(0)
    white = np.linalg.solve(np.linalg.cholesky(a.T @ a), a.T @ b)
    return np.linalg.svd(np.linalg.solve(np.linalg.cholesky(b.T @ b), white.T), compute_uv=False)


@pytest.mark.parametrize("name", PAIRS)
def test_canonical_correlations_equal_those_in_fifty_digits(name):
    x, y, tolerance = PAIRS[name]
    values, weighted = exact_cca(x, y)
    error = abs(mean_cca(x, y) - np.mean(values))
    assert error <= tolerance
    assert error <= abs(by_decomposition(x, y).mean() - np.mean(values)) * 2 + tolerance / 10
    assert mean_squared_cca(x, y) == pytest.approx(np.mean(np.square(values)), abs=2 * tolerance)
    assert pwcca(x, y) == pytest.approx(weighted, abs=max(tolerance, 1e-11))
    if name != "scales":  # whose smallest directions svcca takes for rounding
        assert svcca(x, y, variance=1.0) == pytest.approx(np.mean(values), abs=tolerance)


def test_procrustes_and_svcca_of_fewer_rows_than_features():
    x, y = sides(n=12, d=20)
    a, b = x - x.mean(0), y - y.mean(0)
    exact = mpmath.fsum(exact_values(a.T @ b)) / (np.linalg.norm(a) * np.linalg.norm(b))
    assert procrustes(x, y) == pytest.approx(float(exact), abs=1e-13)
    x, y = sides(n=200, d=6)
    doubled = np.concatenate([x, x], axis=1)  # of rank 6: the same components
    assert svcca(doubled, y) == pytest.approx(svcca(x, y), abs=1e-12)


@pytest.mark.parametrize("candidates", [2, 4, 16])
def test_neighbours_without_a_fold_equal_a_full_search(monkeypatch, candidates):
    monkeypatch.setattr(geometry, "CANDIDATES", candidates)
    rng = np.random.default_rng(0)
    rows, folds = rng.standard_normal((80, 3)), rng.integers(4, size=80)
    examples = np.arange(80) // 3
    distances = np.linalg.norm(rows[:, None] - rows[None], axis=2)
    distances[examples[:, None] == examples[None]] = np.inf
    nearest = geometry._nearest_without(distances, folds)
    for fold in (None, 0, 1, 2, 3):
        kept = np.flatnonzero(folds != (-1 if fold is None else fold))
        slow = np.sort(distances[np.ix_(kept, kept)], axis=1)[:, :2]
        np.testing.assert_array_equal(nearest(fold), slow)


def test_float32_moves_shuffles_by_less_than_a_thousandth_of_their_spread(monkeypatch):
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(60), 5)
    x = rng.standard_normal((300, 16)) * np.geomspace(1, 1e-2, 16) + 3
    y = x + rng.standard_normal((300, 16)) * np.geomspace(1, 1e-2, 16)
    names = ["cka", "procrustes"]
    fast = shuffled({0: x}, {0: y}, groups, measures=names)
    begin = _ShuffledRows.__init__
    monkeypatch.setattr(_ShuffledRows, "__init__", lambda self, *args, single: begin(self, *args, single=False))
    exact = shuffled({0: x}, {0: y}, groups, measures=names)
    assert (fast.observed == exact.observed).all()
    assert (fast.p == exact.p).all()
    for end in ("value", "low", "high"):
        assert not (fast[end] == exact[end]).all()
        assert ((fast[end] - exact[end]).abs() < 1e-3 * (exact.high - exact.low)).all()
    # Whitened sides are multiplied in float64 throughout.
    whitened = shuffled({0: x}, {0: y}, groups, measures=["mean_cca"])
    monkeypatch.undo()
    assert shuffled({0: x}, {0: y}, groups, measures=["mean_cca"]).equals(whitened)


def test_the_number_of_threads_is_restored():
    from threadpoolctl import threadpool_info

    with spectra.one_thread():
        pass  # loads the libraries that it limits

    def threads():
        return [library["num_threads"] for library in threadpool_info() if library["internal_api"] == "openblas"]

    before = threads()
    with spectra.one_thread():
        assert set(threads()) <= {1}
    assert threads() == before


def test_one_direction_without_variance_needs_no_decomposition(monkeypatch):
    rng = np.random.default_rng(0)
    sides = []
    for _ in range(2):  # rows as a layer norm leaves them: their features add up to zero
        rows = rng.standard_normal((400, 60)) * np.geomspace(1, 0.1, 60)
        rows -= rows.mean(axis=1, keepdims=True)
        sides.append(rows / rows.std(axis=1, keepdims=True))
    cross = (sides[0] - sides[0].mean(0)).T @ (sides[1] - sides[1].mean(0))
    exact = mpmath.fsum(exact_values(cross))
    monkeypatch.setattr(np.linalg, "svd", None)
    assert float(abs(mpmath.fsum(singular_values(cross).tolist()) - exact)) <= 1e-9 * float(exact)
