"""Measures as theorems: declared properties over the table, second opinions, planted truth, errors."""

import numpy as np
import pytest
from scipy.linalg import orthogonal_procrustes

from layerprobe.errors import MeasureError
from layerprobe.similarity import (
    MEASURES,
    RowMean,
    cka,
    compare,
    grid,
    paired_cosine,
    paired_cosine_baseline,
    procrustes,
    svcca,
)

pytestmark = pytest.mark.numerical

BY_NAME = {measure.name: measure for measure in MEASURES}


def related(n=120, d=8, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, d)) + 0.3
    return x, x @ rng.standard_normal((d, d)) + 0.5 * rng.standard_normal((n, d))


def song(x, y):
    """Unbiased HSIC of Song et al. (2012), from n x n Gram matrices with zeroed diagonals."""
    k, m = x @ x.T, y @ y.T
    n = len(k)
    np.fill_diagonal(k, 0)
    np.fill_diagonal(m, 0)
    return (np.trace(k @ m) + k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2 * (k @ m).sum() / (n - 2)) / (n * (n - 3))


def slow_hsic(x, y, g):
    """The same criterion between rows of different examples, by four loops."""
    k, m, n = x @ x.T, y @ y.T, len(x)
    both = [k[i, j] * m[i, j] for i in range(n) for j in range(n) if g[i] != g[j]]
    chain, apart = [], []
    for i in range(n):
        for j in range(n):
            for p in range(n):
                if len({g[i], g[j], g[p]}) == 3:
                    chain.append(k[i, j] * m[i, p])
                    others = [q for q in range(n) if g[q] not in (g[i], g[j], g[p])]
                    apart.extend(k[i, j] * m[p, q] for q in others)
    return np.mean(both) + np.mean(apart) - 2 * np.mean(chain)


@pytest.mark.parametrize("measure", MEASURES, ids=lambda m: m.name)
def test_identical_sides_score_the_top_and_every_value_is_in_range(measure):
    x, y = related()
    if measure.attains_top:
        # An arccosine near 1 turns rounding of 1e-16 into 1e-8.
        exact = 1e-6 if measure.kind == "distance" else 1e-12
        assert measure.function(x, x) == pytest.approx(measure.top, abs=exact)
        assert measure.function(x, x.copy()) == pytest.approx(measure.top, abs=1e-6)
    assert measure.range[0] <= measure.function(x, y) <= measure.range[1]


@pytest.mark.parametrize("measure", MEASURES, ids=lambda m: m.name)
def test_measures_are_invariant_to_exactly_the_declared_changes(measure):
    x, y = related()
    rng = np.random.default_rng(1)
    rotation = np.linalg.qr(rng.standard_normal((8, 8)))[0]
    shift = rng.standard_normal(8) * 5
    changes = {
        "rotation": lambda z: z @ rotation,
        "scale": lambda z: 3.7 * z,
        "shift": lambda z: z + shift,
        "linear": lambda z: z @ np.diag([1, 2, 3, 4, 5, 6, 7, 80.0]),
    }
    before = measure.function(x, y)
    for name, change in changes.items():
        moved = max(abs(measure.function(*sides) - before) for sides in ((change(x), y), (x, change(y))))
        assert (moved < 1e-9) == (name in measure.invariances), (name, moved)


@pytest.mark.parametrize("measure", MEASURES, ids=lambda m: m.name)
def test_symmetry_is_as_declared(measure):
    x, y = related()
    assert (abs(measure.function(x, y) - measure.function(y, x)) < 1e-9) == measure.symmetric


@pytest.mark.parametrize("measure", MEASURES, ids=lambda m: m.name)
def test_degenerate_input_is_refused_by_name(measure):
    x, y = related()
    with pytest.raises(MeasureError, match=measure.name):
        measure.function(x, y[:-1])
    broken = y.copy()
    broken[7, 2] = np.nan
    with pytest.raises(MeasureError, match="NaN or infinite"):
        measure.function(x, broken)
    with pytest.raises(MeasureError, match="two matrices"):
        measure.function(x[0], y[0])
    constant = np.zeros_like(y)
    with pytest.raises(MeasureError, match=r"constant|zeros"):
        measure.function(x, constant)
    if measure.min_rows > 1:
        with pytest.raises(MeasureError, match=r"at least|between 1 and n - 2"):
            measure.function(x[: measure.min_rows - 1], y[: measure.min_rows - 1])


def test_debiased_cka_equals_the_gram_form():
    x, y = related(60, 12)
    expected = song(x, y) / np.sqrt(song(x, x) * song(y, y))
    assert cka(x, y) == pytest.approx(expected, abs=1e-10)


def test_biased_cka_equals_the_published_definition():
    x, y = related(60, 12)
    a, b = x - x.mean(0), y - y.mean(0)
    k, m = a @ a.T, b @ b.T
    expected = (k * m).sum() / np.sqrt((k * k).sum() * (m * m).sum())
    assert cka(x, y, debiased=False) == pytest.approx(expected, abs=1e-12)


def test_cka_gives_the_published_reference_values():
    rng = np.random.RandomState(1337)
    x = rng.randn(100, 10)
    y = rng.randn(100, 10) + x
    assert cka(x, y, debiased=False) == pytest.approx(0.55761, abs=5e-6)
    assert cka(x, y) == pytest.approx(0.51346, abs=5e-6)


def test_token_cka_equals_a_slow_sum_over_pairs_of_examples():
    rng = np.random.default_rng(3)
    groups = np.repeat(np.arange(7), [1, 3, 2, 4, 1, 2, 3])
    x, y = rng.standard_normal((16, 3)), rng.standard_normal((16, 2))
    x[:, 0] += groups * 0.3
    y[:, 0] += groups * 0.2

    x, y = x - x.mean(0), y - y.mean(0)
    expected = slow_hsic(x, y, groups) / np.sqrt(slow_hsic(x, x, groups) * slow_hsic(y, y, groups))
    assert cka(x, y, groups=groups) == pytest.approx(expected, abs=1e-10)


def test_independent_noise_scores_zero_only_when_debiased():
    rng = np.random.default_rng(0)
    values = [cka(rng.standard_normal((200, 768)), rng.standard_normal((200, 768))) for _ in range(6)]
    assert abs(np.mean(values)) < 0.02
    assert cka(*rng.standard_normal((2, 200, 768)), debiased=False) == pytest.approx(0.79, abs=0.02)


def test_independent_tokens_that_depend_within_examples_score_zero():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(60), 12)

    def tokens():
        return rng.standard_normal((60, 24))[groups] + rng.standard_normal((720, 24))

    values = [(cka(x, y, groups=groups), cka(x, y)) for x, y in ((tokens(), tokens()) for _ in range(12))]
    assert abs(np.mean([v[0] for v in values])) < 0.02
    assert np.mean([v[1] for v in values]) > 0.05  # the pairs within an example


def test_procrustes_equals_scipy_s_rotation():
    x, y = related(60, 6)
    a, b = x - x.mean(0), y - y.mean(0)
    _, scale = orthogonal_procrustes(a / np.linalg.norm(a), b / np.linalg.norm(b))
    assert procrustes(x, y) == pytest.approx(scale, abs=1e-12)


def test_the_baseline_pairs_random_positions():
    """Paired by position, first tokens that are alike in all examples would score 1 with each other."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(400), 5)
    x = rng.standard_normal((2000, 40))
    x[::5] = rng.standard_normal(40)  # every example begins with the same vector
    lengths = np.linalg.norm(x, axis=1)
    cosines = x @ x.T / np.outer(lengths, lengths)
    expected = cosines[groups[:, None] != groups[None]].mean()  # all pairs of rows of different examples: about 1 / 25
    value = paired_cosine_baseline(x, x, groups=groups, seed=1)
    assert value == pytest.approx(expected, abs=0.02) and 0.02 < expected < 0.06


def test_the_baseline_never_pairs_rows_of_one_example():
    groups = np.repeat(np.arange(5), [4, 1, 2, 6, 3])
    x = np.eye(5)[groups] + 1e-9
    assert paired_cosine(x, x) == pytest.approx(1)
    assert paired_cosine_baseline(x, x, groups=groups, seed=3) == pytest.approx(0, abs=1e-6)


def test_compare_is_exactly_one_for_an_untouched_layer():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((90, 6)).astype(np.float32)
    table = compare({0: x}, {0: x.copy()}, np.repeat(np.arange(30), 3))
    same = table[table.measure != "paired_cosine_baseline"]
    assert np.abs(same[["value", "ci_low", "ci_high"]] - 1).to_numpy().max() < 1e-12
    assert set(table.n) == {30}


def test_compare_agrees_with_the_measures_and_repeats():
    x, y = related(90, 6)
    groups = np.repeat(np.arange(30), 3)
    table = compare({2: x}, {2: y}, groups).set_index("measure").value
    assert table["cka"] == pytest.approx(cka(x, y, groups=groups), abs=1e-12)
    assert table["procrustes"] == pytest.approx(procrustes(x, y), abs=1e-12)
    assert table["paired_cosine"] == pytest.approx(paired_cosine(x, y), abs=1e-12)
    again = compare({2: x}, {2: y}, groups).set_index("measure").value
    assert (table == again).all()


def test_jackknife_folds_equal_leaving_the_rows_out():
    from layerprobe.similarity._passes import products

    x, y = related(80, 5)
    groups = np.repeat(np.arange(20), 4)
    folds = np.arange(20) % 4
    whole = products(x, y, groups, folds, "cka")
    for measure in (measure for measure in MEASURES if measure.linear):
        options = {"groups": groups} if measure.name == "cka" else {}
        for fold in range(4):
            keep = folds[groups] != fold
            expected = measure.function(x[keep], y[keep], **{name: value[keep] for name, value in options.items()})
            assert measure.linear.of_products(whole.without(fold)) == pytest.approx(expected, abs=1e-10), measure.name


def test_jackknife_folds_of_uneven_examples_are_slow_sums_about_the_whole_mean():
    from layerprobe.similarity._passes import products

    groups = np.repeat(np.arange(9), [1, 3, 2, 1, 1, 2, 3, 2, 1])
    x, y = related(16, 3)
    folds = np.arange(9) % 3
    whole = products(x, y, groups, folds, "cka")
    for fold in range(3):
        keep = folds[groups] != fold
        slow = slow_hsic((x - x.mean(0))[keep], (y - y.mean(0))[keep], groups[keep])
        assert whole.xy.hsic(fold) == pytest.approx(slow, abs=1e-10)


def test_intervals_cover_planted_truth_at_their_nominal_rate():
    rng = np.random.default_rng(0)
    d, n, draws = 6, 150, 80
    weights = np.linspace(1, 2, d)
    big = rng.standard_normal((60_000, d)) * weights
    noise = rng.standard_normal(big.shape)
    truth = {"cka": cka(big, big + noise), "paired_cosine": paired_cosine(big, big + noise)}
    covered = dict.fromkeys(truth, 0)
    for _ in range(draws):
        x = rng.standard_normal((n, d)) * weights
        y = x + rng.standard_normal((n, d))
        table = compare({0: x}, {0: y}, np.arange(n), measures=list(truth)).set_index("measure")
        for name, value in truth.items():
            covered[name] += table.ci_low[name] <= value <= table.ci_high[name]
    for name, count in covered.items():
        assert 0.86 <= count / draws <= 1, (name, count)


def test_grid_is_made_of_cka_values():
    x, y = related(90, 6)
    groups = np.repeat(np.arange(30), 3)
    table = grid({"base": {0: x, 1: y}, "adapted": {0: x, 1: y[:, ::-1] * 2}}, groups)
    assert len(table) == 12
    across = table[(table.side_a == "base") & (table.side_b == "adapted")].set_index(["layer_a", "layer_b"]).value
    assert across[0, 0] == pytest.approx(1, abs=1e-12)
    assert across[1, 1] == pytest.approx(1, abs=1e-9)  # a permutation and a scale
    assert across[0, 1] == pytest.approx(cka(x, y, groups=groups), abs=1e-10)


def test_invalid_requests_are_refused_in_a_sentence():
    x, y = related()
    with pytest.raises(MeasureError, match=r"'nothing'.*the measures are"):
        compare({0: x}, {0: y}, np.arange(120), measures=["nothing"])
    with pytest.raises(MeasureError, match="same layers"):
        compare({0: x}, {1: y}, np.arange(120))
    with pytest.raises(MeasureError, match="at least 8"):
        compare({0: x}, {0: y}, np.repeat(np.arange(5), 24))
    assert set(BY_NAME) >= {"cka", "procrustes", "paired_cosine", "paired_cosine_baseline"}


@pytest.mark.parametrize("name", ["float64", "float32", "float16", "bfloat16", "int64"])
def test_tensors_of_every_type_equal_their_values_in_float64(name):
    torch = pytest.importorskip("torch")
    dtype = getattr(torch, name)
    sides = [torch.tensor(20 * z).to(dtype) for z in related()]
    if dtype.is_floating_point:
        sides = [z.requires_grad_() for z in sides]
    exact = [z.detach().to(torch.float64).numpy() for z in sides]
    for measure in MEASURES:
        value = measure.function(*sides)
        assert type(value) is float
        assert value == pytest.approx(measure.function(*exact), rel=0, abs=1e-12), measure.name


@pytest.mark.parametrize("kind", ["complex128", "U9", "object"])
def test_values_that_are_not_real_numbers_are_refused(kind):
    x, y = related()
    for measure in MEASURES:
        with pytest.raises(MeasureError, match=rf"{measure.name}: .*\(120, 8\).* real numbers are required"):
            measure.function(x.astype(kind), y)


def test_the_first_invalid_row_is_named_by_its_number():
    x, y = related(n=40_000, d=3)
    y[35_000:, 1] = np.nan
    for function in (paired_cosine, procrustes, cka):
        with pytest.raises(MeasureError, match=r"row 35000 of an array of shape \(40000, 3\)"):
            function(x, y)
    groups = np.arange(40_000)[::-1] // 2  # rows are then read from the last example's on
    with pytest.raises(MeasureError, match="row 3999"):
        cka(x, y, groups=groups)


def test_a_constant_side_is_refused_by_all_measures_that_centre():
    x, y = related()
    constant = np.ones_like(x)
    for measure in MEASURES:
        if isinstance(measure.resampling, RowMean):
            continue  # cosines are not centred: a constant side has a direction
        for sides in ((constant, y), (x, constant)):
            with pytest.raises(MeasureError, match=rf"{measure.name}: .*\(120, 8\).* leave it out"):
                measure.function(*sides)


def test_svcca_with_a_least_number_of_rows_per_component():
    """12 of 20 directions carry all variance, so that 120 rows are enough and 119 are not."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((120, 12)) @ np.linalg.qr(rng.standard_normal((20, 12)))[0].T
    options = {"variance": 1 - 1e-6, "rows_per_component": 10}
    assert svcca(x, x[:, ::-1], **options) == pytest.approx(1.0) == svcca(x, x[:, ::-1], variance=1 - 1e-6)
    with pytest.raises(
        MeasureError, match=r"119 rows for 12 components, fewer than 10 per component \(rows_per_component\)"
    ):
        svcca(x[:119], x[:119, ::-1], **options)
