"""One pass, any batches: the sums give what all rows at once give, with folds that can be left out."""

import tracemalloc

import numpy as np
import pytest

from layerprobe import similarity
from layerprobe.errors import MeasureError
from layerprobe.similarity import SimilarityAccumulator, cka, compare, grid
from layerprobe.similarity._accumulator import OF_PRODUCTS
from layerprobe.similarity._intervals import sample_rows

pytestmark = pytest.mark.numerical

pytestmark = pytest.mark.filterwarnings("ignore:.*below ten rows a feature:UserWarning")


def layers(n=500, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, 6)) + 3
    return {"a": x, "b": x @ rng.standard_normal((6, 7)) + rng.standard_normal((n, 7)) - 50}


def filled(rows, edges, folds=1, **options):
    accumulator = SimilarityAccumulator(folds=folds, **options)
    for number, (start, stop) in enumerate(zip([0, *edges], [*edges, len(rows["a"])], strict=True)):
        accumulator.add({name: x[start:stop] for name, x in rows.items()}, fold=number % folds)
    return accumulator


@pytest.mark.parametrize("measure", OF_PRODUCTS)
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


def test_tokens_are_taken_about_their_mean_without_pairs_of_one_text():
    rows = layers(300)
    groups = np.sort(np.random.default_rng(0).integers(60, size=300))
    means = {name: x.mean(0) for name, x in rows.items()}
    accumulator = SimilarityAccumulator(means=means)
    for first in range(0, 60, 7):
        here = (groups >= first) & (groups < first + 7)
        accumulator.add({name: x[here] for name, x in rows.items()}, groups=groups[here])
    expected = cka(rows["a"], rows["b"], groups=groups)
    assert accumulator.value("cka", "a", "b") == pytest.approx(expected, abs=1e-10)
    with pytest.raises(MeasureError, match="groups but no means"):
        SimilarityAccumulator().add(rows, groups=groups)


def test_a_fold_left_out_was_never_there():
    rows = layers(400)
    accumulator = filled(rows, [100, 200, 300], folds=4)
    keep = np.r_[0:100, 200:400]
    for measure in OF_PRODUCTS:
        expected = getattr(similarity, measure)(rows["a"][keep], rows["b"][keep])
        assert accumulator.value(measure, "a", "b", fold=1) == pytest.approx(expected, abs=1e-9), measure
    found = accumulator.interval("cka", "a", "b")
    assert found.low < found.value < found.high <= 1 and found.n == 400


def test_memory_does_not_grow_with_rows():
    def peak(n):
        rng = np.random.default_rng(0)
        accumulator = SimilarityAccumulator()
        tracemalloc.start()
        for _ in range(n):
            accumulator.add({"a": rng.standard_normal((500, 40)), "b": rng.standard_normal((500, 40))})
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    assert peak(40) < 1.1 * peak(4)


def test_mistakes_are_named():
    rows = layers()
    accumulator = filled(rows, [])
    for call, word in {
        lambda: accumulator.value("rsa", "a", "b"): "no 'rsa'",
        lambda: accumulator.value("cka", "a", "z"): "no pair 'a' and 'z'",
        lambda: accumulator.add({"a": rows["a"]}): "other layers than before",
        lambda: accumulator.add({"a": rows["a"], "b": rows["b"][:3]}): "same rows",
        lambda: accumulator.add({"a": rows["a"] * np.nan, "b": rows["b"]}): "NaN or infinite",
        lambda: accumulator.add(rows, fold=1): "folds=1",
        lambda: accumulator.interval("cka", "a", "b"): "folds=20",
        lambda: SimilarityAccumulator([("a", "q")]).add(rows): "no layer 'q'",
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
        tables[cheaper] = grid(sides, progress=False)
    assert np.abs(tables[True].value - tables[False].value).max() < 1e-12
    for row in tables[True].itertuples():
        expected = cka(sides[row.side_a][row.layer_a], sides[row.side_b][row.layer_b])
        assert row.value == pytest.approx(expected, abs=1e-12)
    batches = grid(sides, estimator="minibatch", batch=40, progress=False)
    one = batches.query("side_a == 'base' and side_b == 'adapted' and layer_a == 0 and layer_b == 1").value.item()
    assert one == pytest.approx(cka(sides["base"][0], sides["adapted"][1], estimator="minibatch", batch=40), abs=1e-12)


def test_minibatches_of_float32_rows_lose_nothing_that_counts():
    rng = np.random.default_rng(0)
    x, y = (rng.standard_normal((400, 20)).astype(np.float32) for _ in range(2))
    sides = {"base": {0: x}, "adapted": {0: x + y}}
    exact = {side: {0: z[0].astype(np.float64)} for side, z in sides.items()}
    tables = [grid(given, estimator="minibatch", batch=100, progress=False) for given in (sides, exact)]
    assert np.abs(tables[0].value - tables[1].value).max() < 1e-5
    sides["adapted"][0][3, 3] = np.nan
    for estimator in ("full", "minibatch"):
        with pytest.raises(MeasureError, match="NaN or infinite"):
            grid(sides, estimator=estimator, progress=False)


def test_grids_of_other_measures_and_of_tokens():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(60), 3)
    x = rng.standard_normal((180, 4))
    sides = {
        "base": {0: x, 1: x @ rng.standard_normal((4, 4))},
        "adapted": {0: x, 1: x + rng.standard_normal((180, 4))},
    }
    table = grid(sides, groups, measures=["cka", "mean_cca", "procrustes"], progress=False)
    assert len(table) == 3 * 12
    for row in table.itertuples():
        a, b = sides[row.side_a][row.layer_a], sides[row.side_b][row.layer_b]
        options = {"groups": groups} if row.measure == "cka" else {}
        assert row.value == pytest.approx(getattr(similarity, row.measure)(a, b, **options), abs=1e-9)
    with pytest.raises(MeasureError, match="'rsa'; it takes cka"):
        grid(sides, groups, measures=["rsa"], progress=False)


def test_compare_gives_every_measure_with_an_interval():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(50), 5)
    x = rng.standard_normal((250, 4))
    y = x + 0.5 * rng.standard_normal((250, 4))
    names = [measure.name for measure in similarity.MEASURES]
    table = compare({1: x}, {1: y}, groups, measures=names, progress=False).set_index("measure")
    assert list(table.index) == names
    assert ((table.ci_low <= table.value) & (table.value <= table.ci_high)).all()
    assert (table.ci_high - table.ci_low > 1e-4).all()
    assert set(table.n) == {50} and set(table.n_rows) == {250}
    for name in ("svcca", "mean_cca", "procrustes_angle", "shape_distance", "pwcca"):
        assert table.value[name] == pytest.approx(getattr(similarity, name)(x, y), abs=1e-10)
    predicted = similarity.linear_predictivity(x, y, groups=groups)
    assert table.value["linear_predictivity"] == pytest.approx(predicted, abs=1e-12)
    same = compare({1: x}, {1: x.copy()}, groups, measures=names, progress=False).set_index("measure")
    for measure in similarity.MEASURES:
        if measure.name not in ("paired_cosine_baseline", "linear_predictivity"):
            exact = 1e-6 if measure.kind == "distance" else 1e-12
            assert same.value[measure.name] == pytest.approx(measure.top, abs=exact)


def test_rows_of_one_text_are_no_neighbours_and_no_pairs():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(40), 10)
    x, y = (rng.standard_normal((40, 8))[groups] + 0.01 * rng.standard_normal((400, 8)) for _ in range(2))
    found = compare({0: x}, {0: y}, groups, measures=["mutual_knn", "rsa"], progress=False).set_index("measure")
    assert similarity.mutual_knn(x, y) > 0.5  # every token finds its own text
    assert found.value["mutual_knn"] < 0.15 and abs(found.value["rsa"]) < 0.15


def test_undefined_measures_are_left_out_when_asked_and_told():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 30, 20))
    options = {"measures": ["mean_cca", "cka"], "progress": False}
    with pytest.raises(MeasureError, match=r"mean_cca was given 30 rows for widths 20 \+ 20"):
        compare({3: x}, {3: y}, np.arange(30), **options)
    table = compare({3: x}, {3: y}, np.arange(30), leave_out_undefined=True, **options)
    assert list(table.measure) == ["cka"]
    ((layer, measure, why),) = table.attrs["left_out"]
    assert (layer, measure) == (3, "mean_cca") and "use svcca or cka" in why


def test_samples_are_of_whole_texts():
    groups = np.repeat(np.arange(30), np.arange(1, 31))
    rows = sample_rows(groups, 100, 0)
    assert len(rows) <= 100
    for example in np.unique(groups[rows]):
        assert (groups[rows] == example).sum() == example + 1
    assert not np.array_equal(rows, sample_rows(groups, 100, 1))


def test_shuffled_texts_are_a_null_that_keeps_texts_whole():
    rng = np.random.default_rng(0)
    counts = rng.integers(2, 5, size=80)
    counts[-1] = 9  # no other text is as long
    groups = np.repeat(np.arange(80), counts)
    order = rng.permutation(len(groups))  # rows of one text need not stand together
    shared = rng.standard_normal((80, 6))
    x, y = ((shared[groups] + rng.standard_normal((len(groups), 6)))[order] for _ in range(2))
    groups = groups[order]
    names = ["paired_cosine", "cka", "procrustes", "rsa", "mutual_knn", "linear_predictivity"]
    null = similarity.shuffled({2: x}, {2: y}, groups, measures=names, progress=False).set_index("measure")
    real = compare({2: x}, {2: y}, groups, measures=names, progress=False).set_index("measure")
    assert set(null.index) == set(names) - {"linear_predictivity"}
    assert set(null.n) == {79} and set(null.draws) == {19}
    for name in null.index:
        assert null.low[name] <= null.value[name] <= null.high[name] < real.value[name], name
    assert abs(null.value["cka"]) < 0.02 and abs(null.value["paired_cosine"]) < 0.05


def test_a_shuffle_by_sums_is_the_measure_of_shuffled_rows():
    from layerprobe.similarity._nulls import _blocks_in_order, _exchange, _values

    rng = np.random.default_rng(0)
    counts = np.repeat([1, 2, 3], 10)
    groups = np.repeat(np.arange(30), counts)
    x, y = rng.standard_normal((2, 60, 4))
    exchange = _exchange(counts, rng)
    assert (exchange != np.arange(30)).all() and (counts[exchange] == counts).all()
    order = _blocks_in_order(counts, exchange)
    for example in range(30):
        assert groups[order][groups == example].tolist() == [exchange[example]] * counts[example]
    found = _values(x, y, groups, [exchange], ["cka", "procrustes", "paired_cosine", "mutual_knn"], 0)
    assert found["cka"] == [pytest.approx(cka(x, y[order], groups=groups), abs=1e-10)]
    assert found["procrustes"] == [pytest.approx(similarity.procrustes(x, y[order]), abs=1e-10)]
    assert found["paired_cosine"] == [pytest.approx(similarity.paired_cosine(x, y[order]), abs=1e-12)]


def test_described_geometry_is_that_of_the_functions():
    from layerprobe.similarity import geometry

    x = np.random.default_rng(0).standard_normal((200, 5)) @ np.diag([3, 2, 1, 1, 0.1]) + 1
    table = geometry.describe(x).set_index("measure")
    for name in ("anisotropy", "effective_rank", "participation_ratio", "intrinsic_dimension"):
        assert table.value[name] == pytest.approx(getattr(geometry, name)(x), rel=1e-6), name
        assert table.ci_low[name] < table.value[name] < table.ci_high[name]
    assert "intrinsic_dimension" not in set(geometry.describe(np.repeat(x, 2, axis=0)).measure)
