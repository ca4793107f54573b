"""Computation takes place on devices with float64. No test machine has one: tensors on the CPU represent it."""

import numpy as np
import pytest
import torch

from layerprobe.errors import MeasureError
from layerprobe.similarity import MEASURES, _arrays, _statistics, cka, paired_cosine, procrustes, shape_distance, svcca


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

    monkeypatch.setattr(_arrays, "DEVICES", {"cpu"})
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
    assert {"cuda"} == _arrays.DEVICES
    assert not _arrays.stays(related()[0]) and not _arrays.stays(np.ones(3))
