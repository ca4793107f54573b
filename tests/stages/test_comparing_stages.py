"""Stages that capture activations and compare base with adapted, each built directly."""

import numpy as np
import pandas as pd
import pytest
from bench import FULL, HEAD, TOP

from layerprobe import similarity
from layerprobe.activations import ActivationStore
from layerprobe.data import Examples
from layerprobe.encoder import collate, tokenize
from layerprobe.layers import forward
from layerprobe.stages._layers import leading_directions
from layerprobe.stages.capture import Capture, CaptureSae, CaptureTrain
from layerprobe.stages.drift_controls import DriftControls
from layerprobe.stages.geometry import BASE_TABLE, Geometry
from layerprobe.stages.nulls import Nulls
from layerprobe.stages.random_change import RandomChange
from layerprobe.stages.seeds import Seeds
from layerprobe.stages.sentences import Sentences
from layerprobe.stages.similarity import FOLDS, Similarity
from layerprobe.stages.tokens import Tokens, written
from layerprobe.stats import jackknife_error, simultaneous_bands

pytestmark = pytest.mark.numerical


def content(task, built):
    return task.content(built.folder)


def test_capture_stores_the_layers_of_a_forward_pass(bench):
    built = bench.build(Capture.of_base())
    store, context = ActivationStore.open(built.folder / "rows"), bench.context
    examples = context.corpus.test
    encodings = tokenize(context.encoder, examples, 32)
    layers, _ = forward(context.base_model(), collate(context.encoder, encodings, [5]))
    of_example = store.rows["example"].to_numpy() == 5
    for layer in range(3):
        np.testing.assert_allclose(store.tokens(layer)[of_example], layers[layer][0].detach(), atol=1e-5)
        np.testing.assert_allclose(store.mean(layer)[5], layers[layer][0].detach().mean(0), atol=1e-5)
    assert store.rows["example"].nunique() == 30 and len(store.example_ids) == 40
    assert Capture.of_base().checksums(built.folder)["rows/token-layer-02.npy"] == store.content(2)


def test_content_digests_are_equal_where_a_layer_is(bench):
    base = content(Capture.of_base(), bench.build(Capture.of_base()))
    head, top, full = (content(Capture(method, 0), bench.build(Capture(method, 0))) for method in (HEAD, TOP, FULL))
    assert set(base) == {"0", "1", "2"} and head == base
    assert {layer for layer in base if top[layer] == base[layer]} == {"0", "1"}
    assert not set(full.values()) & set(base.values())


def test_pooled_training_vectors_are_copied_where_the_body_is_unchanged(bench):
    base = bench.rows(CaptureTrain.of_base())
    built = bench.build(CaptureTrain(HEAD, 0))
    head = ActivationStore.open(built.folder / "rows")
    assert np.array_equal(head.mean(2), base.mean(2)) and len(base.example_ids) == 80
    assert (built.folder / "rows" / "mean-layer-02.npy").samefile(base.folder / "mean-layer-02.npy")
    assert base.layers == (0, 1, 2) and base.n_rows == 0  # probes read all layers, and no token


def test_rows_for_dictionaries_are_of_unseen_examples(bench):
    built = bench.build(CaptureSae.of_base())
    store, corpus = ActivationStore.open(built.folder / "rows"), bench.context.corpus
    assert store.layers == (2,) and 250 < store.n_rows <= 300
    assert set(store.example_ids) <= set(corpus.unseen.ids)
    assert not set(store.example_ids) & {*corpus.train.ids, *corpus.test.ids}


def test_similarity_of_an_unchanged_layer_is_one(bench):
    head = bench.build(Similarity(HEAD, 0)).table("similarity")
    assert np.abs(head.value - 1).max() <= 1e-12 and set(head["rows"]) == {"all"}
    built = bench.build(Similarity(TOP, 0))
    top = built.table("similarity").query("measure == 'cka' and rows == 'all'").set_index(["unit", "layer"]).value
    assert top["token", 1] == pytest.approx(1, abs=1e-12) and top["token", 2] < 1
    base, adapted = bench.rows(Capture.of_base()), bench.rows(Capture(TOP, 0))
    assert top["mean", 2] == pytest.approx(similarity.cka(base.mean(2), adapted.mean(2)))
    grid = built.table("similarity_grid").query("measure == 'cka' and unit == 'mean'")
    grid = grid.set_index(["side_a", "layer_a", "side_b", "layer_b"]).value
    assert grid["base", 2, "adapted", 2] == pytest.approx(top["mean", 2])
    assert grid["base", 1, "adapted", 1] == pytest.approx(1)


def test_bands_hold_for_all_layers_and_come_from_the_stored_folds(bench):
    import pandas as pd

    built = bench.build(Similarity(FULL, 0))
    table = built.table("similarity")
    assert (table.band_low <= table.ci_low + 1e-9)[table.measure == "cka"].all()  # three layers instead of one
    folds = pd.read_parquet(built.folder / FOLDS)
    for measure in ("cka", "paired_cosine"):
        rows = table[(table.unit == "token") & (table["rows"] == "all") & (table.measure == measure)]
        values = folds[(folds.unit == "token") & (folds.measure == measure)].pivot(
            index="layer", columns="fold", values="value"
        )
        bands = simultaneous_bands(rows.value.to_numpy(), jackknife_error(values.to_numpy()), 19, -1, 1)
        assert rows.band_low.to_numpy() == pytest.approx(bands.low) and rows.band_high.to_numpy() == pytest.approx(
            bands.high
        )
    exact = bench.build(Similarity(HEAD, 0)).table("similarity")
    assert np.abs(exact[["band_low", "band_high"]] - 1).max(axis=None) <= 1e-12


def test_leading_directions_are_those_of_an_svd_and_removed_from_both_sides(bench):
    table = bench.build(Similarity(FULL, 0)).table("similarity")
    rows = table[(table["rows"] == "no-leading-directions") & (table.measure == "cka")].set_index("layer")
    assert set(rows.index) == {0, 1, 2} and set(rows.unit) == {"token"}
    assert (rows.directions_removed == 2).all()  # 1% of 32 is one direction for each side
    assert (table[table["rows"] != "no-leading-directions"].directions_removed == 0).all()
    base, adapted = bench.rows(Capture.of_base()), bench.rows(Capture(FULL, 0))
    x, y = (store.tokens(2).astype(float) for store in (base, adapted))
    tops = [np.linalg.svd(z - z.mean(0), full_matrices=False)[2][0] for z in (x, y)]
    assert abs(leading_directions(x, 1)[:, 0] @ tops[0]) == pytest.approx(1)
    basis = np.linalg.svd(np.stack(tops), full_matrices=False)[2]
    left = [z - z @ basis.T @ basis for z in (x, y)]
    assert rows.value[2] == pytest.approx(similarity.cka(*left, groups=base.groups("token")), abs=1e-6)


def test_random_changes_of_equal_norm_are_a_null(bench):
    import pandas as pd

    built = bench.build(RandomChange(FULL, 0))
    table = built.table("similarity_nulls")
    assert set(table.measure) == {"cka", "paired_cosine"} and (table.draws == 3).all()
    assert set(table.null_kind) == {"norm-matched"} and set(table.layer) == {0, 1, 2}
    assert ((table.low <= table.value) & (table.value <= table.high) & (table.value < 1)).all()
    values = pd.read_parquet(built.folder / "values.parquet")
    means = values.groupby(["measure", "layer"]).value.mean()
    assert table.set_index(["measure", "layer"]).value.sort_index().to_numpy() == pytest.approx(means.to_numpy())
    assert RandomChange(TOP, 0) in list(RandomChange.tasks(bench.resolved.shape))
    assert RandomChange(HEAD, 0) not in list(RandomChange.tasks(bench.resolved.shape))


def test_drift_is_compared_with_random_changes_over_paired_examples(bench):
    (task,) = (task for task in DriftControls.tasks(bench.resolved.shape) if task.method == FULL)
    assert task.seeds == (0, 1) and not task.controls  # the study trains no control
    table = bench.build(task).table("drift_controls")
    assert set(table.control) == {"norm-matched"} and (table.control_models == 6).all() and table.covers_training.all()
    adapted = [bench.get(Similarity(FULL, seed)).table("similarity") for seed in (0, 1)]
    adapted = [
        t[(t.unit == "token") & (t["rows"] == "all") & (t.measure == "cka")].set_index("layer").value for t in adapted
    ]
    nulls = [bench.get(RandomChange(FULL, seed)).table("similarity_nulls") for seed in (0, 1)]
    nulls = [t[t.measure == "cka"].set_index("layer").value for t in nulls]
    found = table[table.measure == "cka"].set_index("layer")
    assert found.similarity.to_numpy() == pytest.approx(np.mean(adapted, axis=0))
    assert found.difference.to_numpy() == pytest.approx(np.mean(nulls, axis=0) - np.mean(adapted, axis=0))
    assert ((found.band_low < found.difference) & (found.difference < found.band_high)).all()


def test_a_trained_control_is_compared_with_its_own_method(make_bench):
    one = make_bench(
        adaptation={"methods": ["top:1", "full", "shuffled-labels"], "learning_rate": 1e-3, "epochs": 1},
        similarity={"measures": ["cka"], "units": ["token"], "shuffles": 3, "random_changes": 0},
        seeds=[0],
    )
    (task,) = DriftControls.tasks(one.resolved.shape)
    assert task.method == FULL and [(m.name, seeds) for m, seeds in task.controls] == [("shuffled-labels", (0,))]
    table = one.build(task).table("drift_controls")
    assert set(table.control) == {"shuffled-labels"} and not table.covers_training.any()


def test_what_is_undefined_is_left_out_with_the_reason(make_bench):
    one = make_bench(similarity={"measures": ["cka", "mean_cca"], "units": ["mean"]})
    left_out = one.build(Similarity(FULL, 0)).table("similarity_left_out")
    assert set(left_out.measure) == {"mean_cca"} and left_out.why.str.contains("rows").all()


def test_shuffled_examples_are_far_below_the_observed_similarity(bench):
    null = bench.build(Nulls(FULL, 0)).table("similarity_nulls").query("measure == 'cka' and unit == 'token'")
    value = bench.get(Similarity(FULL, 0)).table("similarity")
    value = value.query("measure == 'cka' and unit == 'token' and rows == 'all'").set_index("layer").value
    assert set(null.layer) == {0, 1, 2} and (null.draws == 3).all()
    assert (null.set_index("layer").high < value).all()
    nothing = bench.build(Nulls(HEAD, 0)).table("similarity_nulls")  # no layer changed
    assert nothing.empty and set(nothing.columns) == set(null.columns)


def test_seeds_of_one_method_agree_where_they_train_nothing(bench):
    built = bench.build(Seeds(TOP, (0, 1)))
    value = built.table("similarity_nulls").query("measure == 'cka' and unit == 'token'").set_index("layer").value
    assert value[0] == pytest.approx(1) and value[1] == pytest.approx(1) and value[2] < 1 - 1e-9
    assert set(built.table("similarity_nulls").null) == {"seed-1"}


def test_geometry_is_that_of_the_library_and_reused_for_unchanged_layers(bench):
    import pandas as pd

    base = pd.read_parquet(bench.build(Geometry.of_base()).folder / BASE_TABLE)
    rank = base.query("measure == 'effective_rank' and unit == 'mean' and layer == 2").value.item()
    assert rank == pytest.approx(similarity.geometry.effective_rank(bench.rows(Capture.of_base()).mean(2)))
    table = bench.build(Geometry(TOP, 0)).table("geometry")
    sides = table.pivot_table(index=["unit", "layer", "measure"], columns="side", values="value").reset_index("layer")
    below = sides.layer < 2
    assert (sides.base == sides.adapted)[below].all() and (sides.base != sides.adapted)[~below].all()


def test_the_change_of_a_token_is_one_minus_its_cosine(bench):
    assert bench.build(Sentences(HEAD, 0)).table("sentences").change.max() <= 1e-12
    table = bench.build(Sentences(FULL, 0)).table("sentences")
    row = table[table.layer == 2].iloc[7]
    base, adapted = bench.rows(Capture.of_base()), bench.rows(Capture(FULL, 0))
    at = (base.example_ids[base.rows["example"]] == row.example_id) & (base.rows["token_index"] == row.token_index)
    x, y = (store.tokens(2)[np.flatnonzero(at)[0]].astype(float) for store in (base, adapted))
    assert row.change == pytest.approx(1 - x @ y / np.linalg.norm(x) / np.linalg.norm(y))
    assert row.token == base.rows["token"][at].item()


def test_tokens_are_found_in_their_texts_in_the_order_of_the_activations(bench):
    table, store = bench.build(Tokens()).table("tokens"), bench.rows(Capture.of_base())
    assert table.example_id.tolist() == store.example_ids[store.rows["example"]].tolist()
    assert table.token_index.tolist() == store.rows["token_index"].tolist()
    texts = dict(zip(bench.context.corpus.test.ids, bench.context.corpus.test.texts, strict=True))
    placed = table[~table.special]
    assert table.start[table.special].isna().all() and table.special.sum() == 2 * table.example_id.nunique()
    for row in placed.itertuples():
        assert texts[row.example_id][row.start : row.end] == row.token.removeprefix("##")


def test_tokens_are_written_as_in_their_texts():
    texts = ("The naïve Film", "x 🎉")
    examples = Examples(("0", "1"), texts, None, np.zeros(2, dtype=np.int64))
    rows = [
        ("0", "[CLS]", None, None),
        ("0", "the", 0, 3),
        ("0", "Film", 10, 14),
        ("1", "[UNK]", 2, 3),
        ("1", "Ġ", 1, 2),
    ]
    table = pd.DataFrame(rows, columns=["example_id", "token", "start", "end"]).astype(
        {"start": "Int32", "end": "Int32"}
    )
    assert written(table, examples) == ["[CLS]", "the", "Film", "🎉", "Ġ"]
