"""Stages that look inside the adapted model: label variance, probes, weights and interventions."""

import numpy as np
import pytest
import torch
from bench import FULL, HEAD, TOP
from tiny import make_encoder

from layerprobe.adaptation import parse_method
from layerprobe.internals import label_variance
from layerprobe.stages.adapt import Adapt
from layerprobe.stages.capture import Capture
from layerprobe.stages.interventions import Interventions
from layerprobe.stages.label_variance import LabelVariance
from layerprobe.stages.probes import Probes
from layerprobe.stages.weights import Weights

pytestmark = pytest.mark.numerical


def test_label_variance_pairs_both_sides_on_the_examples_with_stored_tokens(bench):
    table = bench.build(LabelVariance(TOP, 0)).table("label_variance").set_index(["unit", "side", "layer"])
    assert (table.n == 30).all() and set(table.index.get_level_values("unit")) == {"token", "mean"}
    adapted = bench.rows(Capture(TOP, 0))
    labels, lengths = bench.context.corpus.test.labels[:30], adapted.rows.example.value_counts().sort_index().to_numpy()
    for unit, rows, example in (
        ("token", adapted.tokens(2), adapted.rows.example.to_numpy()),
        ("mean", adapted.mean(2)[:30], np.arange(30)),
    ):
        alone = label_variance({2: rows}, example, labels, lengths).table().iloc[0]
        row = table.loc[unit, "adapted", 2]
        for column in ("share", "expected", "excess", "ci_low", "ci_high", "p"):
            assert row[column] == pytest.approx(alone[column]), column
        base, change = table.loc[unit, "base", 2], table.loc[unit, "difference", 2]
        assert change.excess == pytest.approx(row.excess - base.excess) and change.excess != 0
    unchanged = table.query("side == 'difference' and layer < 2")
    assert (unchanged.excess == 0).all() and not unchanged.exceeds.any() and (unchanged.p_simultaneous == 1).all()


def test_probes_have_the_values_of_base_where_a_layer_is_unchanged(bench):
    table = bench.build(Probes(TOP, 0)).table("probes").set_index(["side", "layer"])
    columns = ["accuracy", "loss", "selectivity", "penalty"]
    for layer in (0, 1):
        assert table.loc[("base", layer), columns].equals(table.loc[("adapted", layer), columns])
    assert table.loss["base", 2] != table.loss["adapted", 2]
    assert (table.accuracy > table.control_accuracy).all() and (table.n == 40).all()
    assert (table.accuracy - table.control_accuracy).to_numpy() == pytest.approx(table.selectivity.to_numpy())


def test_weights_change_where_a_method_trains(bench):
    built = bench.build(Weights(TOP, 0))
    table = built.table("weights")
    assert (table[table.layer < 2].relative_change == 0).all()
    assert (table[table.layer == 2].relative_change > 0).all()
    row = table[(table.layer == 2) & (table.role == "query")].iloc[0]
    base, adapted = bench.context.base_model(), bench.context.adapted_model(built.parents["adapt"])
    before, after = (model.get_parameter(row.parameter).detach().double() for model in (base, adapted))
    assert row.relative_change == pytest.approx(float(torch.linalg.norm(after - before) / torch.linalg.norm(before)))
    assert built.tables == {"weights"}  # nothing was left out


def test_a_matrix_of_another_shape_is_left_out_with_the_reason(bench, make_bench, tmp_path):
    encoder, names = bench.context.encoder, bench.context.corpus.label_names
    model = encoder.classifier(names, seed=0)
    model.resize_token_embeddings(model.config.vocab_size + 3)
    model.save_pretrained(tmp_path)
    method = parse_method(f"checkpoint:{tmp_path}")
    one = make_bench(adaptation={"methods": [method.name]})
    left_out = one.build(Weights(method, 0)).table("weights_left_out")
    assert left_out.parameter.item() == "bert.embeddings.word_embeddings.weight"
    assert "its shape is" in left_out.why.item() and left_out.method.item() == method.name


def test_interventions_start_from_the_untouched_model(bench):
    table = bench.build(Interventions(FULL, 0)).table("interventions").set_index(["kind", "layer"])
    after = bench.get(Adapt(FULL, 0)).table("adaptation").set_index("when").loc["after"]
    assert table.accuracy["untouched", 2] == after.accuracy and table.loss["untouched", 2] == pytest.approx(after.loss)
    assert table.difference["untouched", 2] == 0
    # Both have base embeddings under adapted blocks.
    assert table.loss["stitched", 0] == pytest.approx(table.loss["weights", 0])
    assert {layer for kind, layer in table.index if kind == "skipped"} == {0, 1}
    same = bench.build(Interventions(HEAD, 0)).table("interventions").set_index(["kind", "layer"])
    reset = same.loc[["weights", "stitched", "pooler"]]
    assert (reset.difference == 0).all()  # there is nothing to reset under head
    np.testing.assert_allclose(reset.loss, same.loss["untouched", 2], rtol=1e-5)


def test_blocks_that_share_their_weights_are_left_out(make_bench, tmp_path):
    albert = make_encoder(tmp_path / "albert", family="albert")
    one = make_bench(model={"name": str(albert)}, adaptation={"methods": ["head"]})
    left_out = one.build(Interventions(HEAD, 0)).table("interventions_left_out")
    assert set(left_out.kind) == {"weights"} and set(left_out.layer) == {1, 2}
    assert left_out.why.str.contains("share").all()
