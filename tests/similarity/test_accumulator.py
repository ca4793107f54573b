"""Sums over any batches give the values of all rows at once, with folds that can be left out; `compare`, `grid`, `shuffled`."""

import tracemalloc

import numpy as np
import pytest

from layerprobe import similarity
from layerprobe.errors import MeasureError
from layerprobe.similarity import MEASURES, SimilarityAccumulator, cka, compare, grid
from layerprobe.similarity._arrays import sample_rows

LINEAR = [measure.name for measure in MEASURES if measure.linear]

pytestmark = [pytest.mark.numerical, pytest.mark.filterwarnings("ignore:.*fewer than ten rows per feature:UserWarning")]


def layers(n=500, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, 6)) + 3
    return {"a": x, "b": x @ rng.standard_normal((6, 7)) + rng.standard_normal((n, 7)) - 50}


def filled(rows, edges, folds=1, **options):
    accumulator = SimilarityAccumulator(folds=folds, **options)
    for number, (start, stop) in enumerate(zip([0, *edges], [*edges, len(rows["a"])], strict=True)):
        accumulator.add({name: x[start:stop] for name, x in rows.items()}, fold=number % folds)
    return accumulator


@pytest.mark.parametrize("measure", LINEAR)
@pytest.mark.parametrize("edges", [[], [1, 2, 300], list(range(7, 500, 7))])
def test_any_batches_give_the_measure_of_all_rows(measure, edges):
    rows = layers()
    expected = getattr(similarity, measure)(rows["a"], rows["b"])
    assert filled(rows, edges).value(measure, "a", "b") == pytest.approx(expected, abs=1e-10)


def test_options_and_both_orders():
    rows = layers()
    accumulator = filled(rows, [100])
    a, b = rows["a"], rows["b"]
    assert accumulator.value("cka", "a", "b", debiased=False) == pytest.approx(cka(a, b, debiased=False), abs=1e-10)
    assert accumulator.value("svcca", "b", "a", variance=0.9) == pytest.approx(
        similarity.svcca(b, a, variance=0.9), abs=1e-10
    )
    assert accumulator.value("shape_distance", "b", "a", alpha=0.5) == pytest.approx(
        similarity.shape_distance(b, a, alpha=0.5), abs=1e-10
    )
    assert accumulator.value("cka", "a", "a") == pytest.approx(1, abs=1e-12)


def test_values_follow_what_is_added_later():
    rows = layers()
    accumulator = SimilarityAccumulator()
    accumulator.add({name: x[:200] for name, x in rows.items()})
    assert accumulator.value("cka", "a", "b") == pytest.approx(cka(rows["a"][:200], rows["b"][:200]), abs=1e-10)
    accumulator.add({name: x[200:] for name, x in rows.items()})
    assert accumulator.value("cka", "a", "b") == pytest.approx(cka(rows["a"], rows["b"]), abs=1e-10)


def test_tokens_are_taken_about_their_mean_without_pairs_of_one_example():
    rows = layers(300)
    groups = np.sort(np.random.default_rng(0).integers(60, size=300))
    means = {name: x.mean(0) for name, x in rows.items()}
    accumulator = SimilarityAccumulator(means=means)
    for first in range(0, 60, 7):
        here = (groups >= first) & (groups < first + 7)
        accumulator.add({name: x[here] for name, x in rows.items()}, groups=groups[here])
    expected = cka(rows["a"], rows["b"], groups=groups)
    assert accumulator.value("cka", "a", "b") == pytest.approx(expected, abs=1e-10)
    with pytest.raises(MeasureError, match="groups is set but means is not"):
        SimilarityAccumulator().add(rows, groups=groups)


def test_leaving_a_fold_out_equals_the_rows_without_it():
    rows = layers(400)
    accumulator = filled(rows, [100, 200, 300], folds=4)
    keep = np.r_[0:100, 200:400]
    for measure in LINEAR:
        expected = getattr(similarity, measure)(rows["a"][keep], rows["b"][keep])
        assert accumulator.value(measure, "a", "b", fold=1) == pytest.approx(expected, abs=1e-9), measure
    estimate = accumulator.interval("cka", "a", "b")
    assert estimate.low < estimate.value < estimate.high <= 1 and estimate.n == 400


def test_memory_does_not_grow_with_rows():
    def peak(n):
        rng = np.random.default_rng(0)
        accumulator = SimilarityAccumulator()
        tracemalloc.start()
        for _ in range(n):
            accumulator.add({"a": rng.standard_normal((500, 40)), "b": rng.standard_normal((500, 40))})
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return highest

    assert peak(40) < 1.1 * peak(4)


def test_errors_name_the_argument():
    rows = layers()
    accumulator = filled(rows, [])
    for call, word in {
        lambda: accumulator.value("rsa", "a", "b"): "contains 'rsa', but the linear measures are cka",
        lambda: accumulator.value("cka", "a", "z"): "no pair 'a' and 'z'",
        lambda: accumulator.add({"a": rows["a"]}): "other names than before",
        lambda: accumulator.add({"a": rows["a"], "b": rows["b"][:3]}): "same rows",
        lambda: accumulator.add({"a": rows["a"] * np.nan, "b": rows["b"]}): "NaN or infinite",
        lambda: accumulator.add(rows, fold=1): "folds=1",
        lambda: accumulator.interval("cka", "a", "b"): "folds=20",
        lambda: SimilarityAccumulator([("a", "q")]).add(rows): "pairs contains 'q'",
        lambda: filled({"a": np.ones((9, 2)), "b": np.ones((9, 2))}, []).value("cka", "a", "b"): "constant",
    }.items():
        with pytest.raises(MeasureError, match=word):
            call()


def test_both_forms_of_the_grid_are_the_measure(monkeypatch):
    from layerprobe.similarity import _grid

    rng = np.random.default_rng(0)
    x = rng.standard_normal((120, 5))
    sides = {
        side: {layer: x + scale * rng.standard_normal((120, 5)) for layer in range(3)}
        for side, scale in (("base", 0.5), ("adapted", 2))
    }
    tables = {}
    for cheaper in (True, False):
        monkeypatch.setattr(_grid, "_grams_are_cheaper", lambda *_, cheaper=cheaper: cheaper)
        tables[cheaper] = grid(sides)
    assert np.abs(tables[True].value - tables[False].value).max() < 1e-12
    for row in tables[True].itertuples():
        expected = cka(sides[row.side_a][row.layer_a], sides[row.side_b][row.layer_b])
        assert row.value == pytest.approx(expected, abs=1e-12)
    batches = grid(sides, estimator="minibatch", batch=40)
    one = batches.query("side_a == 'base' and side_b == 'adapted' and layer_a == 0 and layer_b == 1").value.item()
    assert one == pytest.approx(cka(sides["base"][0], sides["adapted"][1], estimator="minibatch", batch=40), abs=1e-12)


def test_minibatches_of_float32_rows_are_exact_enough():
    rng = np.random.default_rng(0)
    x, y = (rng.standard_normal((400, 20)).astype(np.float32) for _ in range(2))
    sides = {"base": {0: x}, "adapted": {0: x + y}}
    exact = {side: {0: z[0].astype(np.float64)} for side, z in sides.items()}
    tables = [grid(layers, estimator="minibatch", batch=100) for layers in (sides, exact)]
    assert np.abs(tables[0].value - tables[1].value).max() < 1e-5
    sides["adapted"][0][3, 3] = np.nan
    for estimator in ("full", "minibatch"):
        with pytest.raises(MeasureError, match="NaN or infinite"):
            grid(sides, estimator=estimator)


def test_grids_of_other_measures_and_of_tokens():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(60), 3)
    x = rng.standard_normal((180, 4))
    sides = {
        "base": {0: x, 1: x @ rng.standard_normal((4, 4))},
        "adapted": {0: x, 1: x + rng.standard_normal((180, 4))},
    }
    table = grid(sides, groups, measures=["cka", "mean_cca", "procrustes"])
    assert len(table) == 3 * 12
    for row in table.itertuples():
        a, b = sides[row.side_a][row.layer_a], sides[row.side_b][row.layer_b]
        options = {"groups": groups} if row.measure == "cka" else {}
        assert row.value == pytest.approx(getattr(similarity, row.measure)(a, b, **options), abs=1e-9)
    with pytest.raises(MeasureError, match="'rsa', but the linear measures are cka"):
        grid(sides, groups, measures=["rsa"])


def test_compare_gives_every_measure_with_an_interval():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(50), 5)
    x = rng.standard_normal((250, 4))
    y = x + 0.5 * rng.standard_normal((250, 4))
    names = [measure.name for measure in similarity.MEASURES]
    table = compare({1: x}, {1: y}, groups, measures=names).set_index("measure")
    assert list(table.index) == names
    assert ((table.ci_low <= table.value) & (table.value <= table.ci_high)).all()
    assert (table.ci_high - table.ci_low > 1e-4).all()
    assert set(table.n) == {50} and set(table.n_rows) == {250}
    for name in ("svcca", "mean_cca", "procrustes_angle", "shape_distance", "pwcca"):
        assert table.value[name] == pytest.approx(getattr(similarity, name)(x, y), abs=1e-10)
    predicted = similarity.linear_predictivity(x, y, groups=groups)
    assert table.value["linear_predictivity"] == pytest.approx(predicted, abs=1e-12)
    same = compare({1: x}, {1: x.copy()}, groups, measures=names).set_index("measure")
    for measure in similarity.MEASURES:
        if measure.attains_top:
            exact = 1e-6 if measure.kind == "distance" else 1e-12
            assert same.value[measure.name] == pytest.approx(measure.top, abs=exact)


def test_rows_of_one_example_are_not_compared_with_each_other():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(40), 10)
    x, y = (rng.standard_normal((40, 8))[groups] + 0.01 * rng.standard_normal((400, 8)) for _ in range(2))
    table = compare({0: x}, {0: y}, groups, measures=["mutual_knn", "rsa"]).set_index("measure")
    assert similarity.mutual_knn(x, y) > 0.5  # neighbours of a token are tokens of its example
    assert table.value["mutual_knn"] < 0.15 and abs(table.value["rsa"]) < 0.15


def test_undefined_measures_are_left_out_on_request_and_listed():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 30, 20))
    options = {"measures": ["mean_cca", "cka"]}
    with pytest.raises(MeasureError, match=r"mean_cca: 30 rows for widths 20 \+ 20"):
        compare({3: x}, {3: y}, np.arange(30), **options)
    table = compare({3: x}, {3: y}, np.arange(30), leave_out_undefined=True, **options)
    assert list(table.measure) == ["cka"]
    ((layer, measure, why),) = table.attrs["left_out"]
    assert (layer, measure) == (3, "mean_cca") and "use svcca or cka" in why


def test_samples_are_of_whole_examples():
    groups = np.repeat(np.arange(30), np.arange(1, 31))
    rows = sample_rows(groups, 100, 0)
    assert len(rows) <= 100
    for example in np.unique(groups[rows]):
        assert (groups[rows] == example).sum() == example + 1
    assert not np.array_equal(rows, sample_rows(groups, 100, 1))


def test_shuffling_keeps_examples_whole():
    rng = np.random.default_rng(0)
    counts = rng.integers(2, 5, size=80)
    counts[-1] = 9  # no other example is as long
    groups = np.repeat(np.arange(80), counts)
    order = rng.permutation(len(groups))  # rows of one example need not be adjacent
    shared = rng.standard_normal((80, 6))
    x, y = ((shared[groups] + rng.standard_normal((len(groups), 6)))[order] for _ in range(2))
    groups = groups[order]
    names = ["paired_cosine", "cka", "procrustes", "rsa", "mutual_knn", "linear_predictivity"]
    null = similarity.shuffled({2: x}, {2: y}, groups, measures=names).set_index("measure")
    real = compare({2: x}, {2: y}, groups, measures=names).set_index("measure")
    assert set(null.index) == set(names) - {"linear_predictivity"}
    assert set(null.n) == {79} and set(null.draws) == {19}
    for name in null.index:
        assert null.low[name] <= null.value[name] <= null.high[name] < real.value[name], name
    assert abs(null.value["cka"]) < 0.02 and abs(null.value["paired_cosine"]) < 0.05


def test_shuffling_refuses_invalid_rows_and_leaves_out_undefined_measures():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 30, 20))
    options = {"measures": ["mean_cca", "cka"], "draws": 3}
    assert list(similarity.shuffled({0: x}, {0: y}, np.arange(30), **options).measure) == ["cka"]
    assert not len(similarity.shuffled({0: np.ones_like(x)}, {0: y}, np.arange(30), **options))
    y[7, 3] = np.inf
    with pytest.raises(MeasureError, match=r"shuffled, layer 0: row 7 of an array of shape \(30, 20\)"):
        similarity.shuffled({0: x}, {0: y}, np.arange(30), **options)
    with pytest.raises(MeasureError, match="'nothing', but the measures are"):
        similarity.shuffled({0: x}, {0: y}, np.arange(30), measures=["nothing"])
    with pytest.raises(MeasureError, match="groups has 0 examples whose length another one shares"):
        similarity.shuffled({0: x}, {0: x}, np.repeat(np.arange(7), [1, 2, 3, 4, 5, 6, 9]), **options)


def test_constant_and_undefined_layers_of_a_grid():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 30, 20))
    for measures in (["cka"], ["cka", "mean_cca"]):
        with pytest.raises(MeasureError, match=r"every row of adapted layer 1 \(shape \(30, 20\)\) is the same"):
            grid({"base": {1: x}, "adapted": {1: np.ones_like(x)}}, measures=measures)
        with pytest.raises(MeasureError, match="cka needs at least 4 examples, but there are 3"):
            grid({"base": {1: x[:3]}, "adapted": {1: y[:3]}}, measures=measures)
    table = grid({"base": {1: x}, "adapted": {1: y}}, measures=["cka", "mean_cca"])
    assert (
        table.query("measure == 'mean_cca'").value.isna().all() and table.query("measure == 'cka'").value.notna().all()
    )
    for options in ({"estimator": "half"}, {"estimator": "minibatch", "groups": np.arange(30) // 2}):
        with pytest.raises(MeasureError, match="estimator is"):
            grid({"base": {1: x}, "adapted": {1: y}}, **options)


def test_a_shuffle_by_sums_is_the_measure_of_shuffled_rows():
    from layerprobe.similarity._nulls import _exchange_blocks, _partners, _values
    from layerprobe.similarity._paired import PairedRows

    rng = np.random.default_rng(0)
    for counts in (np.repeat([1, 2, 3], 10), np.ones(60, dtype=int)):
        groups = np.repeat(np.arange(len(counts)), counts)
        x, y = rng.standard_normal((2, 60, 4))
        partner = _partners(counts, rng)
        assert (partner != np.arange(len(counts))).all() and (counts[partner] == counts).all()
        order = _exchange_blocks(counts, partner)
        for example in range(len(counts)):
            assert groups[order][groups == example].tolist() == [partner[example]] * counts[example]
        measures = [measure for measure in MEASURES if measure.resampling.null]
        values = _values(PairedRows.of(x, y, groups, 0), [partner], measures)
        assert values["cka"] == [pytest.approx(cka(x, y[order], groups=groups), abs=1e-10)]
        for name in ("procrustes", "mean_cca", "paired_cosine"):
            assert values[name] == [pytest.approx(getattr(similarity, name)(x, y[order]), abs=1e-10)]
        if len(counts) == 60:  # no pairs within an example
            for name in ("rsa", "mutual_knn", "jaccard_knn"):
                assert values[name] == [pytest.approx(getattr(similarity, name)(x, y[order]), abs=1e-10)]


def test_described_geometry_is_that_of_the_functions():
    from layerprobe.similarity import geometry

    x = np.random.default_rng(0).standard_normal((200, 5)) @ np.diag([3, 2, 1, 1, 0.1]) + 1
    table = geometry.describe(x).set_index("measure")
    for name in ("anisotropy", "effective_rank", "participation_ratio", "intrinsic_dimension"):
        assert table.value[name] == pytest.approx(getattr(geometry, name)(x), rel=1e-6), name
        assert table.ci_low[name] < table.value[name] < table.ci_high[name]
    assert "intrinsic_dimension" not in set(geometry.describe(np.repeat(x, 2, axis=0)).measure)
