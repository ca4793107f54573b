"""Computation takes place on devices with float64.

No test machine has one: tensors on the CPU represent it, or a stand-in with an accelerator's rules (`stand_in_device`).
"""

import numpy as np
import pandas as pd
import pytest
import torch
from stand_in_device import DEVICE, stand_in_device

from layerprobe import device as devices
from layerprobe.device import for_device
from layerprobe.errors import MeasureError
from layerprobe.internals import label_variance
from layerprobe.similarity import (
    MEASURES,
    SimilarityAccumulator,
    _arrays,
    _statistics,
    cka,
    compare,
    geometry,
    grid,
    paired_cosine,
    procrustes,
    shape_distance,
    shuffled,
    svcca,
)
from layerprobe.stages._layers import RowSet, leading_directions


def related(n=200, d=8, kind=torch.float32):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, d)) + 3
    return tuple(torch.tensor(z).to(kind) for z in (x, x @ rng.standard_normal((d, d)) + rng.standard_normal((n, d))))


@pytest.fixture
def products(monkeypatch):
    """Makes the CPU such a device; lists the rows that were multiplied."""
    multiplied = []
    add = _statistics.Pair.add

    def recording(pair, fold, x, y):
        multiplied.extend([x.rows, y.rows])
        add(pair, fold, x, y)

    monkeypatch.setattr(devices, "FLOAT64", {"cpu"})
    monkeypatch.setattr(_statistics.Pair, "add", recording)
    return multiplied


@pytest.mark.parametrize("kind", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("measure", MEASURES, ids=lambda measure: measure.name)
def test_a_device_gives_the_values_of_the_cpu(measure, kind, products):
    x, y = related(kind=kind)
    value = measure.function(x.requires_grad_(), y)
    assert type(value) is float
    assert value == pytest.approx(measure.function(x.detach().double().numpy(), y.double().numpy()), rel=0, abs=1e-10)
    if measure.linear:
        on_device = [rows for rows in products if torch.is_tensor(rows)]
        assert on_device and all(rows.dtype == torch.float64 for rows in on_device)


def test_options_and_groups_apply_on_a_device(products):
    x, y = related()
    plain = x.double().numpy(), y.double().numpy()
    groups = np.random.default_rng(1).integers(0, 60, len(x))  # examples of many sizes, their rows far apart
    for function, options in (
        (cka, {"groups": groups}),
        (cka, {"debiased": False}),
        (cka, {"kernel": "rbf"}),
        (cka, {"estimator": "minibatch", "batch": 64}),
        (svcca, {"variance": 0.8}),
        (shape_distance, {"alpha": 0.5}),
    ):
        assert function(x, y, **options) == pytest.approx(function(*plain, **options), rel=0, abs=1e-10)
    assert [cka(x, x), procrustes(x, x)] == pytest.approx([1, 1], rel=0, abs=1e-12)
    assert cka(x, plain[1]) == pytest.approx(cka(*plain), abs=1e-10)  # where one side is elsewhere, both go to the CPU


def test_errors_read_the_same_on_a_device(products):
    x, y = related()
    damaged, constant, zero = x.clone(), torch.ones_like(x), x.clone()
    damaged[77, 3], zero[5] = torch.nan, 0
    for sides, words in {
        (damaged, y): r"row 77 of an array of shape \(200, 8\)",
        (constant, y): r"every row of x \(shape \(200, 8\)\) is the same",
        (x[:9], y): r"shapes \(9, 8\) and \(200, 8\)",
        (x[:3], y[:3]): "at least 4 rows",
        (x[:, 0], y[:, 0]): "two matrices",
    }.items():
        for function in (cka, procrustes):
            with pytest.raises(MeasureError, match=words):
                function(*sides)
    with pytest.raises(MeasureError, match=r"row 5 of x or y \(shape \(200, 8\)\) is a row of zeros"):
        paired_cosine(zero, y)


def test_only_devices_with_float64_keep_their_tensors():
    assert {"cuda"} == devices.FLOAT64
    assert not _arrays.stays(related()[0]) and not _arrays.stays(np.ones(3))
    rows = np.ones((3, 2))
    assert for_device(rows, "mps") is rows and for_device(rows, "cpu") is rows


N, WIDTH = 160, 6
PRODUCTS = {
    "mm",
    "bmm",
    "mv",
    "dot",
    "linalg_eigh",
    "_linalg_eigh",
    "_linalg_svd",
    "linalg_cholesky_ex",
    "sort",
    "_unique2",
}


@pytest.fixture(scope="module")
def layers():
    """Two layers of two sides, as they are stored; examples of one, two and three rows."""
    rng = np.random.default_rng(2)
    groups = np.repeat(np.arange(N // 2), np.tile([1, 2, 3, 2], N // 8))
    base = {layer: (rng.standard_normal((len(groups), WIDTH)) + layer).astype(np.float32) for layer in (1, 2)}
    adapted = {layer: (rows + 0.5 * rng.standard_normal(rows.shape)).astype(np.float32) for layer, rows in base.items()}
    return base, adapted, groups


def by_compare(base, adapted, groups, names):
    return compare({2: base[2]}, {2: adapted[2]}, groups, measures=names, leave_out_undefined=True)


def by_shuffles(base, adapted, groups, names):
    return shuffled(base, adapted, groups, measures=names, draws=3)


def by_grid(base, adapted, groups, names):
    linear = [measure.name for measure in MEASURES if measure.linear]
    return grid({"base": base, "adapted": adapted}, groups, measures=linear)


def by_grams(base, adapted, groups, names):
    return grid({"base": base, "adapted": adapted}, measures=["cka"])


def by_geometry(base, adapted, groups, names):
    return pd.concat([geometry.describe(rows, groups) for rows in (*base.values(), *adapted.values())])


def by_accumulator(base, adapted, groups, names):
    means = {(side, 1): rows[1][:].mean(0) for side, rows in (("base", base), ("adapted", adapted))}
    accumulator = SimilarityAccumulator(means={name: _arrays.array(mean) for name, mean in means.items()})
    for half in (groups < 40, groups >= 40):
        rows = {("base", 1): base[1], ("adapted", 1): adapted[1]}
        accumulator.add({name: _arrays.take(z, half) for name, z in rows.items()}, groups=groups[half])
    linear = [measure.name for measure in MEASURES if measure.linear]
    return pd.DataFrame({"value": [accumulator.value(name, ("base", 1), ("adapted", 1)) for name in linear]})


@pytest.mark.parametrize("analysis", [by_compare, by_shuffles, by_grid, by_grams, by_geometry, by_accumulator])
def test_stored_rows_are_compared_on_the_device_and_give_the_values_of_the_cpu(analysis, layers, monkeypatch):
    base, adapted, groups = layers
    names = [measure.name for measure in MEASURES]
    here = analysis(base, adapted, groups, names)
    names = [name for name in names if name != "linear_predictivity"]  # declared to stay on the CPU
    monkeypatch.setattr(devices, "FLOAT64", {DEVICE})
    with stand_in_device(monkeypatch) as device:
        sides = [{layer: for_device(rows, DEVICE) for layer, rows in side.items()} for side in (base, adapted)]
        there = analysis(*sides, groups, names)
        on_host = {name.split(".")[1] for name in device.on_host} & PRODUCTS
        assert not on_host and base[1].shape not in device.to_host
    if "measure" in here:
        here = here[here.measure != "linear_predictivity"].reset_index(drop=True)
    # An angle near 0 has half the digits.
    pd.testing.assert_frame_equal(there.reset_index(drop=True), here.reset_index(drop=True), rtol=1e-9, atol=1e-7)


def test_directions_are_removed_on_the_device(layers, monkeypatch):
    rows = layers[0][2]
    directions = leading_directions(rows, 2)
    some = RowSet("no-leading-directions", [2], kept={2: np.arange(5, 90)}, removed={2: directions})
    monkeypatch.setattr(devices, "FLOAT64", {DEVICE})
    with stand_in_device(monkeypatch) as device:
        there = leading_directions(rows, 2, DEVICE)
        removed = some.of(rows, 2, DEVICE)
        assert removed[np.array([3, 1])].device.type == DEVICE
        assert not {name.split(".")[1] for name in device.on_host} & PRODUCTS
        values = removed.cpu().numpy()
    np.testing.assert_allclose(there @ there.T, directions @ directions.T, atol=1e-9)
    np.testing.assert_allclose(values, some.of(rows, 2), atol=1e-9)
    assert np.abs(values @ directions).max() < 1e-9


def test_permuted_labels_are_summed_on_the_device(layers, monkeypatch):
    base, _, groups = layers
    examples = int(groups.max()) + 1
    labels, lengths = np.arange(examples) % 3, np.bincount(groups)
    here = label_variance(base, groups, labels, lengths, permutations=30)
    monkeypatch.setattr(devices, "FLOAT64", {DEVICE})
    with stand_in_device(monkeypatch) as device:
        there = label_variance(base, groups, labels, lengths, permutations=30, device=DEVICE)
        assert not {name.split(".")[1] for name in device.on_host} & PRODUCTS
        assert (30,) in device.to_host
    pd.testing.assert_frame_equal(there.table(), here.table(), rtol=1e-9)
