"""Stages that train and measure quality, each built directly on the parents that it declares."""

import json

import numpy as np
import pytest
from bench import FULL, HEAD, TOP

from layerprobe.activations import CaptureConfig, capture
from layerprobe.adaptation import open_frozen, parse_method
from layerprobe.encoder import load_classifier, same_body
from layerprobe.stages.adapt import Adapt
from layerprobe.stages.capture import Capture, CaptureTrain
from layerprobe.stages.depth import CONCLUSION, Depth
from layerprobe.stages.frozen_blocks import FrozenBlocks
from layerprobe.stages.interventions import Interventions
from layerprobe.stages.outside import Outside
from layerprobe.stages.probes import Probes
from layerprobe.stages.reference import LOGISTIC, Reference
from layerprobe.stages.weights import Weights

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
    built = bench.build(Reference())
    table, predictions = built.table("adaptation"), built.table("predictions")
    labels, accuracy = bench.context.corpus.test.labels, table.groupby("method").accuracy.min()
    assert accuracy["reference:majority"] == max(np.bincount(labels)) / len(labels)
    assert accuracy["reference:logistic-mean"] > accuracy["reference:majority"] + 0.1
    # As many seeds as the methods that it is compared with, each with held-out examples of its own.
    logistic = table[table.method.isin(LOGISTIC)]
    assert logistic.groupby("method").seed.apply(list).to_dict() == {name: [0, 1] for name in LOGISTIC}
    assert (logistic.candidates == 3).all() and (logistic.validation_n == 80).all()
    right = (
        predictions.assign(right=predictions.label == predictions.predicted).groupby(["method", "seed"]).right.mean()
    )
    assert right.to_dict() == logistic.set_index(["method", "seed"]).accuracy.to_dict()


def test_a_study_of_heads_with_two_poolings(make_bench):
    bench = make_bench(seeds=[0], adaptation={"methods": ["head", "head:mean", "full"], "epochs": 1})
    mean = parse_method("head:mean")
    assert Adapt(mean, 0).parents() == {"frozen": FrozenBlocks("mean")} and FrozenBlocks("mean").id != FrozenBlocks().id
    values = open_frozen(bench.get(FrozenBlocks("mean")).folder / "layers")
    means = bench.rows(CaptureTrain.of_base()).mean(2)
    assert set(values) == {2}
    np.testing.assert_allclose(values[2].batch(np.arange(80))[:, 0].numpy(), means, atol=1e-5)
    assert not np.allclose(open_frozen(bench.get(FrozenBlocks()).folder / "layers")[2].rows, values[2].rows)
    context = bench.context
    model = load_classifier(bench.get(Adapt(mean, 0)).folder / "checkpoint", context.encoder)
    assert model.pooling == "mean" and same_body(model, context.base_model(), context.encoder)
    # The layers are those of the base model.
    for layer in (0, 2):
        adapted, base = (bench.rows(capture).tokens(layer) for capture in (Capture(mean, 0), Capture.of_base()))
        assert np.array_equal(adapted, base)
    (task,) = Depth.tasks(bench.resolved.shape)
    built = bench.build(task)
    tests = built.table("sufficiency").set_index("method")
    assert set(tests.index) == {"head", "head:mean", *LOGISTIC} and set(tests.depth) == {0}
    in_order = tests.sort_values("order").validation_accuracy.to_list()
    assert in_order == sorted(in_order, reverse=True)
    for stage in (Interventions, Weights, Probes, Outside):
        bench.build(stage(mean, 0))


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
    assert conclusion["order"][0] == "top:1" and set(conclusion["order"][1:]) == {"head", *LOGISTIC}
    assert set(built.table("pareto").cost) >= {"flops", "seconds", "trainable_parameters", "drift"}
