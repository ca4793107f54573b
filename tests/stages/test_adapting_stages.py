"""Stages that train and measure quality, each built directly on the parents that it declares."""

import json

import numpy as np
import pytest
from bench import FULL, HEAD, TOP

from layerprobe.activations import CaptureConfig, capture
from layerprobe.adaptation import open_frozen
from layerprobe.encoder import load_classifier, same_body
from layerprobe.stages.adapt import Adapt
from layerprobe.stages.depth import CONCLUSION, Depth
from layerprobe.stages.frozen_blocks import FrozenBlocks
from layerprobe.stages.outside import Outside
from layerprobe.stages.reference import Reference

pytestmark = pytest.mark.numerical


def test_frozen_values_equal_captured_ones(bench, tmp_path):
    built = bench.build(FrozenBlocks())
    values = open_frozen(built.folder / "layers")
    assert set(values) == {1, 2}  # what top:1 and head read
    context = bench.context
    config = CaptureConfig(max_length=32, layers=(1, 2))
    store = capture(context.base_model(), context.encoder, context.corpus.train, tmp_path / "rows", config)
    example = store.rows["example"].to_numpy()
    for number in (0, 17, 79):
        frozen = values[1].batch([number])[0].numpy()
        np.testing.assert_allclose(frozen, store.tokens(1)[example == number], atol=1e-5)
    assert values[2].rows.shape == (80, 32)  # one row per example is all that a head reads


@pytest.mark.parametrize("method", [HEAD, TOP, FULL], ids=lambda method: method.name)
def test_adapt_writes_a_model_with_its_quality_and_predictions(bench, method):
    task = Adapt(method, 0)
    built = bench.build(task)
    assert built.tables == {"adaptation", "predictions", "training_log"}
    quality, predictions = built.table("adaptation").set_index("when"), built.table("predictions")
    right = (predictions.label == predictions.predicted).mean()
    assert quality.accuracy["after"] == right and len(predictions) == 40
    assert (predictions.probability >= 0.5).all()  # the larger of two
    assert set(quality.index) == {"before", "after"} and (quality.n == 40).all()
    context = bench.context
    model = load_classifier(built.folder / "checkpoint", context.encoder)
    assert same_body(model, context.base_model(), context.encoder) == (method == HEAD)
    assert json.loads((built.folder / "settings.json").read_text())["label_order"] == [0, 1]
    assert ("frozen" in built.parents) == (method != FULL)
    # Blocks are trained in steps, of which two checkpoints are kept; a head is trained to convergence.
    assert len(list(built.folder.glob("step-*"))) == (0 if method == HEAD else 2)


def test_adapt_has_an_identity_of_method_seed_and_settings(bench, make_bench):
    def identity(method, seed, one=bench):
        return dict(Adapt(method, seed).identity(one.resolved, {}))

    assert identity(FULL, 0) != identity(FULL, 1) != identity(TOP, 1)
    slower = make_bench(adaptation={"methods": ["head", "full"], "learning_rate": 1e-4, "epochs": 1})
    assert identity(FULL, 0, slower) != identity(FULL, 0)
    assert identity(HEAD, 0, slower) == identity(HEAD, 0)  # a head has a rate of its own


def test_outside_measures_each_set(bench):
    built = bench.build(Outside(FULL, 0))
    quality, predictions = built.table("adaptation"), built.table("predictions")
    assert set(quality.split) == set(predictions.split) == {"other"}
    assert quality.accuracy.item() == (predictions.label == predictions.predicted).mean()
    assert quality.n.item() == len(predictions) == 40


def test_reference_beats_the_majority_class(bench):
    table = bench.build(Reference()).table("adaptation").set_index("method")
    labels = bench.context.corpus.test.labels
    assert table.accuracy["reference:majority"] == max(np.bincount(labels)) / len(labels)
    assert table.accuracy["reference:logistic-mean"] > table.accuracy["reference:majority"] + 0.1


def test_depth_compares_the_predictions_of_the_methods(bench):
    (task,) = Depth.tasks(bench.resolved.shape)
    built = bench.build(task)
    differences = built.table("differences").set_index("method")
    accuracy = {
        method: np.mean([bench.get(Adapt(method, seed)).table("adaptation").accuracy.iloc[-1] for seed in (0, 1)])
        for method in (HEAD, TOP, FULL)
    }
    for method in (HEAD, TOP):
        assert differences.difference[method.name] == pytest.approx(accuracy[method] - accuracy[FULL])
    conclusion = json.loads((built.folder / CONCLUSION).read_text())
    assert conclusion["reference"] == "full" and conclusion["n"] == 40 and conclusion["seeds"] == 2
    assert set(built.table("pareto").cost) >= {"flops", "seconds", "trainable_parameters", "drift"}
