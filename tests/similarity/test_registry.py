"""The table of measures: a registered row is all that a measure needs; no other module knows measures by name."""

import ast
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import layerprobe
from layerprobe import similarity
from layerprobe.cli import app
from layerprobe.errors import MeasureError
from layerprobe.similarity import (
    MEASURES,
    Jackknife,
    Linear,
    Measure,
    RowMean,
    SimilarityAccumulator,
    compare,
    find_measures,
    grid,
    shuffled,
)

ROTATION = frozenset({"rotation", "scale", "shift"})


def toy_distances(x, y):
    """Correlation of all distances between rows, which no other measure computes in this way."""
    a, b = (np.linalg.norm(z[:, None] - z[None], axis=-1)[np.triu_indices(len(z), 1)] for z in (x, y))
    return float(np.corrcoef(a, b)[0, 1])


def toy_rv(x, y):
    """The RV coefficient: the biased linear CKA."""
    a, b = x - x.mean(0), y - y.mean(0)
    return float(((a.T @ b) ** 2).sum() / (np.linalg.norm(a.T @ a) * np.linalg.norm(b.T @ b)))


def rv_of(products):
    norms = np.linalg.norm(products.scatter_x) * np.linalg.norm(products.scatter_y)
    return float((products.cross**2).sum() / norms)


def toy_dot(x, y):
    """Mean inner product of paired rows of length 1."""
    return float(dots_of(*(z / np.linalg.norm(z, axis=1, keepdims=True) for z in (x, y))).mean())


def dots_of(x, y):
    return (x * y).sum(1)


TOYS = (
    Measure(toy_distances, "Toy", "nobody 2026", ROTATION, range=(-1.0, 1.0)),
    Measure(toy_rv, "Toy RV", "nobody 2026", ROTATION, resampling=Linear(rv_of)),
    Measure(
        toy_dot,
        "Toy dot",
        "nobody 2026",
        frozenset({"scale"}),
        range=(-1.0, 1.0),
        resampling=RowMean(
            lambda pair: dots_of(*(z / np.linalg.norm(z, axis=1, keepdims=True) for z in (pair.x.rows, pair.y.rows)))
        ),
    ),
)


@pytest.fixture
def toys():
    """Three more rows in the table, one per kind of resampling."""
    MEASURES.extend(TOYS)
    yield [measure.name for measure in TOYS]
    del MEASURES[-len(TOYS) :]


def rows(n=90, d=5):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, d))
    return x, x + rng.standard_normal((n, d)), np.repeat(np.arange(n // 3), 3)


def test_a_registered_measure_has_values_intervals_and_nulls(toys):
    x, y, groups = rows()
    table = compare({1: x}, {1: y}, groups, measures=toys).set_index("measure")
    null = shuffled({1: x}, {1: y}, groups, measures=toys).set_index("measure")
    for measure in TOYS:
        value = measure.function(x, y)
        assert getattr(similarity, measure.name) is measure.function
        assert table.value[measure.name] == pytest.approx(value, abs=1e-12)
        assert table.ci_low[measure.name] < value < table.ci_high[measure.name]
        assert null.high[measure.name] < value
    exact = similarity.cka(x, y, debiased=False)
    assert table.value["toy_rv"] == pytest.approx(exact, abs=1e-12)


def test_a_registered_linear_measure_is_accumulated_and_crossed(toys):
    x, y, _ = rows()
    accumulator = SimilarityAccumulator(folds=9)
    for fold in range(9):
        accumulator.add({"a": x[fold::9], "b": y[fold::9]}, fold=fold)
    estimate = accumulator.interval("toy_rv", "a", "b")
    assert estimate.value == pytest.approx(toy_rv(x, y), abs=1e-12)
    assert estimate.low < estimate.value < estimate.high <= 1
    table = grid({"base": {0: x}, "adapted": {0: y}}, measures=["toy_rv"])
    assert table.query("side_a != side_b").value.item() == pytest.approx(toy_rv(x, y), abs=1e-12)
    for call in (
        lambda: accumulator.value("toy_distances", "a", "b"),
        lambda: grid({"base": {0: x}, "adapted": {0: y}}, measures=["toy_distances"]),
    ):
        with pytest.raises(MeasureError, match="'toy_distances', but the linear measures are cka"):
            call()


def test_a_registered_measure_is_listed_by_the_command_line(toys):
    listed = CliRunner().invoke(app, ["measures"]).stdout
    assert all(name in listed for name in toys)


def test_no_module_but_that_of_a_measure_compares_names_of_measures():
    names = {measure.name for measure in MEASURES}
    package = Path(layerprobe.__file__).parent
    for path in [*package.joinpath("similarity").glob("*.py"), package / "cli.py"]:
        for node in ast.walk(ast.parse(path.read_text())):
            constants = {c.value for c in ast.walk(node) if isinstance(c, ast.Constant) and isinstance(c.value, str)}
            assert not isinstance(node, (ast.Compare, ast.match_case)) or not constants & names, (
                path.name,
                node.lineno,
            )


def test_rows_are_complete():
    names = [measure.name for measure in MEASURES]
    assert len(set(names)) == len(names)
    for measure in MEASURES:
        assert getattr(similarity, measure.name) is measure.function and measure.name in similarity.__all__
        assert measure.label and measure.citation and measure.range[0] < measure.range[1]
        assert measure.range[1 if measure.kind == "similarity" else 0] == measure.top
        assert measure.sensitivity or measure.baseline_of
        assert measure.formula.count("{") == measure.formula.count("}") > 0
        assert measure.baseline_of is None or measure.baseline_of in names
        assert isinstance(measure.resampling, (Jackknife, Linear, RowMean))
    assert {measure.name: measure.baseline_of for measure in MEASURES if measure.baseline_of} == {
        "paired_cosine_baseline": "paired_cosine"
    }
    assert {measure.name for measure in MEASURES if not measure.resampling.null} == {
        "paired_cosine_baseline",
        "linear_predictivity",
    }


def test_measures_that_do_not_exist_are_errors_about_the_argument():
    with pytest.raises(MeasureError) as caught:
        find_measures(["cka", "ckka"], "compare")
    assert caught.value.arguments == ("measures",)
    renamed = caught.value.with_names({"measures": "similarity.measures"})
    assert renamed.startswith("compare: similarity.measures contains 'ckka', but the measures are paired_cosine, ")
    with pytest.raises(AttributeError, match="no attribute 'ckka'"):
        _ = similarity.ckka
