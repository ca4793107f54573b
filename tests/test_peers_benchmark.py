"""The benchmark against public tools: its ratios and its verdicts follow from what both sides reported."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import peers


def side(seconds, peak, accuracy=0.7, cka=0.9, token_rows=100):
    part = {"seconds": seconds, "cpu_seconds": seconds, "before_bytes": 0, "peak_bytes": peak}
    return {
        "parts": dict.fromkeys(peers.PARTS, part),
        "accuracy": accuracy,
        "cka": [[[1.0, cka]]],
        "token_rows": token_rows,
    }


@pytest.fixture
def saved(tmp_path):
    means = {"base": [np.ones((3, 2))], "adapted": [np.zeros((3, 2))]}
    for name in peers.SIDES:
        peers.save_results(tmp_path, name, means, {"layer 1, base": 0.8})
    return tmp_path


def verdicts(results, folder):
    return {what: ok for what, _, ok in peers.agreement(results, folder, 400)}


def test_costs_are_summed_and_peaks_are_not():
    lines = peers.costs({"public": side(6.0, 4e9), "layerprobe": side(2.0, 1e9)})
    assert len(lines) == len(peers.PARTS) + 1
    assert lines[0][1:] == ["6.0", "2.0", "3.00", "4.00", "1.00", "4.00"]
    assert lines[-1] == ["in all", "24.0", "8.0", "3.00", "4.00", "1.00", "4.00"]


def test_equal_results_agree(saved):
    found = verdicts({"public": side(1, 1), "layerprobe": side(1, 1)}, saved)
    assert set(found.values()) == {True, None}


@pytest.mark.parametrize(
    ("what", "options"),
    [
        ("CKA of all layers", {"cka": 0.91}),
        ("test accuracy", {"accuracy": 0.5}),
        ("token rows", {"token_rows": 101}),
    ],
)
def test_different_results_do_not(saved, what, options):
    found = verdicts({"public": side(1, 1), "layerprobe": side(1, 1, **options)}, saved)
    assert [name for name, ok in found.items() if ok is False] == [what]


def test_different_activations_do_not(saved):
    peers.save_results(saved, "layerprobe", {"base": [np.ones((3, 2))], "adapted": [np.full((3, 2), 0.01)]}, {})
    (saved / "layerprobe.json").write_text(json.dumps({"layer 1, base": 0.8}))
    found = verdicts({"public": side(1, 1), "layerprobe": side(1, 1)}, saved)
    assert [name for name, ok in found.items() if ok is False] == ["mean activations of all layers"]
