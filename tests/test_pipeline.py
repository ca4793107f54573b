"""A study from end to end on a tiny model: exact under head, kept between runs, resumed after a kill."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tiny import write_csv

from layerprobe import Run, Study, pipeline, run
from layerprobe.activations import ActivationStore
from layerprobe.errors import StorageError, StudyError

pytestmark = pytest.mark.numerical

STUDY = """
question = "What changed?"
[model]
name = {model!r}
[data]
source = {source!r}
train = 80
test = 40
max_length = 32
[adaptation]
methods = ["head", "full"]
learning_rate = 1e-3
[activations]
examples = 30
[sae]
k = 4
rows = 600
"""


@pytest.fixture(scope="module")
def study_path(tmp_path_factory, tiny_bert, tiny_csv):
    path = tmp_path_factory.mktemp("study") / "tiny.toml"
    path.write_text(STUDY.format(model=str(tiny_bert), source=str(tiny_csv)))
    return path


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("artifacts")


@pytest.fixture(scope="module")
def first(study_path, home, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "first"
    return run(Study.load(study_path), out=out, home=home, progress=False)


SAE_STAGES = {"sae", "match", "crosscoder", "associations", "transfer", "latents", "sentence-latents", "exhibit"}
LIGHT = ("sae.layers=[]", "internals.parts=[]")


def again(study_path, home, tmp_path, *overrides):
    return run(Study.load(study_path, overrides), out=tmp_path / "again", home=home, progress=False)


def stages(result, reused):
    return [task["stage"] for task in result.record["tasks"] if task["reused"] == reused]


def test_every_table_of_the_contract_is_there(first):
    columns = {
        "adaptation": "method seed when split accuracy macro_f1 loss brier calibration_error "
        "trainable_parameters total_parameters seconds flops peak_bytes bytes_stored",
        "training_log": "method seed step epoch loss",
        "similarity": "method seed unit rows measure layer value ci_low ci_high n",
        "similarity_nulls": "method seed unit measure layer null value low high draws n",
        "geometry": "method seed unit side layer measure value ci_low ci_high n",
        "similarity_grid": "method seed unit measure side_a layer_a side_b layer_b value n",
        "sae": "method seed layer trained_on evaluated_on kind explained_variance l0 dead_share reconstruction_bias "
        "loss_recovered accuracy_recovered task_loss_clean why",
        "sae_densities": "method seed layer trained_on kind evaluated_on low high latents",
        "sae_log": "method seed layer side kind step loss explained_variance l0 dead_share",
        "latents": "method seed layer side latent kind auroc effect p q task property general partner cosine unmatched "
        "delta joint_kind",
        "latent_shares": "method seed layer side dictionary share_task share_permuted mass_task live",
        "matching": "method seed layer start on mean null_mean lost_share null_lost_share",
        "census": "method seed layer latent delta nu_error nu_reconstruction cosine energy_share kind",
        "crossing": "method quantity layer verdict note",
        "probes": "method seed side layer accuracy control_accuracy selectivity selectivity_low",
        "weights": "method seed parameter layer role relative_change stable_rank_base intruder_dimensions",
        "interventions": "method seed kind layer accuracy loss difference difference_low difference_high",
        "predictions": "method seed split example_id label predicted probability",
    }
    for name, wanted in columns.items():
        assert set(wanted.split()) <= set(first.table(name).columns), name
        assert len(first.table(name))
    record = json.loads((first.folder / "run.json").read_text())
    assert record["status"] == "complete" and record["schema"] == 1 and record["error"] is None
    assert record["study"]["resolved"]["sae"]["k"] == 4
    assert all(task["key"] and task["seconds"] >= 0 for task in record["tasks"])
    assert "packages" in record["provenance"] and record["provenance"]["device"] == "cpu"
    assert 2 <= len(record["findings"]) <= 6
    assert (first.folder / "index.html").stat().st_size > 1_000_000
    with pytest.raises(KeyError, match="no table 'nothing'"):
        first.table("nothing")


def test_head_leaves_every_layer_identical(first, home):
    table = first.table("similarity")
    same = table[(table.method == "head") & (table.measure != "paired_cosine_baseline")]
    assert set(same.layer) == {0, 1, 2} and set(same.unit) == {"token", "mean", "cls"}
    assert np.abs(same[["value", "ci_low", "ci_high"]] - 1).to_numpy().max() <= 1e-12
    assert first.table("sentences").query("method == 'head'").change.max() <= 1e-12
    stores = {
        name: ActivationStore.open(next((home / "capture").glob(f"{name}-*")) / "rows")
        for name in ("base", "head", "full")
    }
    for layer in range(3):
        assert np.array_equal(stores["base"].tokens(layer), stores["head"].tokens(layer))
        assert stores["head"].shares(stores["base"], layer)
        assert not np.array_equal(stores["base"].tokens(layer), stores["full"].tokens(layer))


def test_full_drifts_more_with_depth(first):
    table = first.table("similarity").query(
        "method == 'full' and measure == 'cka' and unit == 'token' and rows == 'all'"
    )
    table = table.set_index("layer")
    assert table.value[2] < table.value[0] < 1
    assert (table.ci_low <= table.value).all() and (table.value <= table.ci_high).all()
    assert set(table.n) == {30}


def test_untouched_layers_share_one_dictionary_and_its_numbers(first, home):
    tasks = {(task["stage"], task["name"]): task for task in first.record["tasks"]}
    for layer in (1, 2):
        base, head = tasks["sae", f"base layer {layer}"], tasks["sae", f"head seed 0 layer {layer}"]
        assert base["key"] == head["key"] and head["reused"]
        assert tasks["associations", f"head seed 0 layer {layer}"]["reused"]
        assert tasks["sae", f"full seed 0 layer {layer}"]["key"] != base["key"]
    values = first.table("sae").query("method == 'head' and kind == 'trained'").groupby("layer").explained_variance
    assert (values.max() == values.min()).all()
    flat = first.table("crossing").query("method == 'head'")
    assert set(flat.verdict) == {"flat"} and set(first.table("census").method) == {"full"}
    unmatched = first.table("latents").groupby("method").unmatched.sum()
    assert unmatched["head"] == 0
    kept = first.table("matching").query("method == 'head' and start == 'same start' and on == 'cosine'")
    assert (kept["mean"] == 1).all() and (kept.null_mean < 1).all() and (kept.lost_share == 0).all()


def test_robust_rows_nulls_and_geometry_stand_beside_the_drift(first):
    table = first.table("similarity").query("method == 'full' and measure == 'cka' and unit == 'token'")
    assert set(table["rows"]) == {"all", "no-special", "no-outliers"}
    rows = table.groupby("rows").n_rows.max()
    assert rows["no-special"] == rows["all"] - 2 * 30  # [CLS] and [SEP] of thirty texts
    assert rows["all"] - 2 <= rows["no-outliers"] < rows["all"]  # a thousandth of each side: one row
    nulls = first.table("similarity_nulls")
    assert set(nulls.method) == {"full"}  # under head nothing moved
    null = nulls.query("measure == 'cka' and unit == 'mean'")
    assert (null.draws == 19).all() and (null.low <= null.value).all() and (null.value <= null.high).all()
    assert null.value.abs().max() < 0.3 < table.value.max()
    shape = first.table("geometry")
    assert set(shape.measure) == {"anisotropy", "effective_rank", "participation_ratio", "intrinsic_dimension"}
    head = shape.query("method == 'head'").pivot_table(
        index=["unit", "layer", "measure"], columns="side", values="value"
    )
    assert (head.base == head.adapted).all()


def test_measures_that_are_undefined_somewhere_are_left_out_and_told(first, study_path, home, tmp_path):
    measures = "similarity.measures=['cka', 'mean_cca', 'rsa', 'mutual_knn', 'procrustes_angle']"
    result = again(study_path, home, tmp_path, measures, "sae.layers=[]")
    assert set(stages(result, reused=False)) == {"similarity", "nulls", "depth"}  # depth weighs drift as a cost
    table = result.table("similarity")
    assert "mean_cca" in set(table.query("unit == 'token'").measure)
    assert "mean_cca" not in set(table.query("unit == 'mean'").measure)  # 40 texts are too few for 32 + 32 features
    told = result.table("similarity_left_out").query("unit == 'mean'")
    assert set(told.measure) == {"mean_cca"} and told.why.str.contains("use svcca or cka").all()
    grid = result.table("similarity_grid")
    assert set(grid.measure) == {"cka", "mean_cca", "procrustes_angle"}
    html = (result.folder / "index.html").read_text()
    assert "mean_cca was left out" in html and "Do the measures agree?" in html


def test_a_second_run_computes_nothing_and_gives_the_same_tables(first, study_path, home, tmp_path):
    second = again(study_path, home, tmp_path)
    assert stages(second, reused=False) == []
    for name in first.tables:
        assert first.table(name).equals(second.table(name)), name


def test_another_home_gives_the_same_numbers(first, study_path, tmp_path):
    other = run(Study.load(study_path), out=tmp_path / "out", home=tmp_path / "home", progress=False)
    for name in ("similarity", "similarity_grid", "sae", "latents", "predictions"):
        assert first.table(name).equals(other.table(name)), name
    columns = ["accuracy", "macro_f1", "loss"]
    assert first.table("adaptation")[columns].equals(other.table("adaptation")[columns])


def test_changing_the_dictionaries_keeps_training_and_capture(first, study_path, home, tmp_path):
    changed = again(study_path, home, tmp_path, "sae.k=5")
    assert set(stages(changed, reused=False)) <= SAE_STAGES | {"crossing"} and "sae" in stages(changed, reused=False)
    assert {"adapt", "capture", "similarity", "capture-sae"} <= set(stages(changed, reused=True))
    assert set(changed.table("sae").k) == {5}
    without = again(study_path, home, tmp_path, "sae.layers=[]")
    assert stages(without, reused=False) == [] and "sae" not in without.tables


def test_a_damaged_artifact_is_named_and_made_again(first, study_path, home, tmp_path):
    folder = next((home / "sentences").glob("full-*"))
    (folder / "tables" / "sentences.parquet").write_bytes(b"damaged")
    mended = again(study_path, home, tmp_path)
    assert stages(mended, reused=False) == ["sentences"]
    assert "sentences.parquet does not match its checksum" in mended.record["recomputed"][0]


def test_a_plan_computes_nothing_and_tells_what_is_done(first, study_path, home, tmp_path):
    planned = pipeline.plan(Study.load(study_path), home=home)
    assert all(task.finished for task in planned.tasks) and planned.needed == 0
    fresh = pipeline.plan(Study.load(study_path), home=tmp_path / "new")
    assert not any(task.finished for task in fresh.tasks)
    assert fresh.needed > 0 and not (tmp_path / "new").exists()
    assert [t.stage for t in fresh.tasks] == [t["stage"] for t in first.record["tasks"]]


def test_space_is_checked_before_anything_starts(study_path, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "_free", lambda folder: 1000)
    with pytest.raises(StorageError, match="needs about"):
        run(Study.load(study_path), out=tmp_path / "out", home=tmp_path / "home", progress=False)
    assert Run.load(tmp_path / "out").record["status"] == "failed"
    assert not (tmp_path / "home").exists()


def test_a_full_disk_keeps_what_was_finished(study_path, tmp_path, monkeypatch):
    from layerprobe.stages import comparing as module

    def full(*args, **kwargs):
        def build(folder, done):
            raise OSError(28, "No space left on device")

        return build

    monkeypatch.setattr(module, "similarity", full)
    with pytest.raises(StorageError, match=r"disk is full: similarity head seed 0 .* Every finished task is kept"):
        run(Study.load(study_path), out=tmp_path / "out", home=tmp_path / "home", progress=False)
    monkeypatch.undo()
    result = run(
        Study.load(study_path, ["sae.layers=[]"]), out=tmp_path / "out", home=tmp_path / "home", progress=False
    )
    assert result.record["status"] == "complete"
    assert {"adapt", "capture"} <= set(stages(result, reused=True))


def test_two_runs_never_write_to_one_folder(study_path, home, tmp_path):
    from filelock import FileLock

    (tmp_path / "out").mkdir()
    run_folder = Run.create(tmp_path / "out", {"status": "running", "name": "the first"}).folder
    with FileLock(run_folder / ".lock"), pytest.raises(StorageError, match="Another run is writing"):
        run(Study.load(study_path), out=tmp_path / "out", home=home, progress=False)
    assert Run.load(run_folder).record["name"] == "the first"  # the second has not touched the first one's record


def test_layers_and_lengths_out_of_range_are_refused(study_path, home, tmp_path):
    for override, word in {
        "sae.layers=[3]": r"layer 3, but .* has layers 0 \(embeddings\) to 2",
        "data.max_length=100": "reads at most 66",
        "adaptation.methods=['top:99']": "k is 1 to 2",
        "similarity.measures=['ckka']": "'ckka'",
    }.items():
        with pytest.raises(StudyError, match=word):
            again(study_path, home, tmp_path, override)


def test_several_seeds_depths_and_the_control(study_path, home, tmp_path):
    result = again(
        study_path,
        home,
        tmp_path,
        "seeds=[0, 1]",
        "adaptation.methods=['top:1', 'shuffled-labels']",
        "sae.layers=[]",
        "similarity.units=['token']",
    )
    table = result.table("similarity").query("measure == 'cka'")
    assert set(zip(table.method, table.seed, strict=True)) == {
        (m, s) for m in ("top:1", "shuffled-labels") for s in (0, 1)
    }
    below = table[(table.method == "top:1") & (table.layer <= 1)]
    assert np.abs(below.value - 1).max() <= 1e-12  # what stands below the trained block
    assert (table[(table.method == "top:1") & (table.layer == 2)].value < 1).all()
    seeds = result.table("similarity_nulls").query("null == 'seed-1' and measure == 'cka'")
    assert set(seeds.method) == {"top:1", "shuffled-labels"} and set(seeds.layer) == {0, 1, 2}
    assert (seeds[seeds.method == "top:1"].query("layer <= 1").value - 1).abs().max() <= 1e-12
    html = (result.folder / "index.html").read_text()
    assert "more than a seed?" in html and "more than with any labels?" in html


def test_a_finished_checkpoint_is_compared_without_training(first, study_path, home, tmp_path):
    checkpoint = next((home / "adapt").glob("full-*")) / "checkpoint"
    result = again(study_path, home, tmp_path, f"adaptation.methods=['checkpoint:{checkpoint}']", "sae.layers=[]")
    trained, taken = first.table("similarity"), result.table("similarity")
    columns = ["unit", "measure", "layer", "value"]
    expected = trained[trained.method == "full"][columns].reset_index(drop=True)
    assert expected.equals(taken[columns].reset_index(drop=True))
    after = result.table("adaptation").query("when == 'after' and trainable_parameters == 0")
    assert (
        after.accuracy.iloc[0]
        == first.table("adaptation").query("method == 'full' and `when` == 'after'").accuracy.iloc[0]
    )


def test_a_checkpoint_that_numbers_its_classes_otherwise_has_the_same_numbers(first, study_path, home, tmp_path):
    """Class numbers are the model's own affair: quality, interventions and task loss go by the labels' names."""
    import shutil

    from safetensors.torch import load_file, save_file

    turned = shutil.copytree(next((home / "adapt").glob("full-*")) / "checkpoint", tmp_path / "turned")
    weights = load_file(turned / "model.safetensors")
    for name in ("classifier.weight", "classifier.bias"):
        weights[name] = weights[name].flip(0).contiguous()
    save_file(weights, turned / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((turned / "config.json").read_text())
    names = [config["id2label"]["1"], config["id2label"]["0"]]
    config |= {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    (turned / "config.json").write_text(json.dumps(config))
    method = f"checkpoint:{turned}"
    result = again(study_path, home, tmp_path, f"adaptation.methods=['{method}']", "sae.layers=[2]", "sae.controls=[]")
    columns = ["kind", "layer", "accuracy", "loss"]
    for name, kept in (
        ("interventions", columns),
        ("sae", ["trained_on", "evaluated_on", "task_loss", "task_accuracy"]),
    ):
        own = result.table(name)
        full = first.table(name).query("method == 'full'")
        if name == "sae":  # base's own classifier is the head's, which this study has not
            own, full = (t[(t.kind == "trained") & (t.layer == 2) & (t.evaluated_on == "adapted")] for t in (own, full))
        own, full = (t[kept].reset_index(drop=True) for t in (own, full))
        pd.testing.assert_frame_equal(own, full, atol=1e-6, rtol=0)


def command(study_path, out):
    light = [word for override in LIGHT for word in ("--set", override)]
    return [sys.executable, "-m", "layerprobe", "run", str(study_path), "--out", str(out), *light]


def test_a_killed_run_goes_on_from_its_last_finished_task(study_path, tmp_path):
    env = {**os.environ, "LAYERPROBE_HOME": str(tmp_path / "home")}
    process = subprocess.Popen(command(study_path, tmp_path / "out"), env=env, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not list(Path(tmp_path / "home").glob("adapt/head-*/meta.json")) and time.monotonic() < deadline:
        assert process.poll() is None, "it ended before it was killed"
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert Run.load(tmp_path / "out").record["status"] == "running"
    result = run(Study.load(study_path, LIGHT), out=tmp_path / "out", home=tmp_path / "home", progress=False)
    assert result.record["status"] == "complete"
    assert "adapt" in stages(result, reused=True) and "capture" in stages(result, reused=True)


def test_an_interrupted_run_says_how_to_go_on(study_path, tmp_path):
    env = {**os.environ, "LAYERPROBE_HOME": str(tmp_path / "home")}
    process = subprocess.Popen(
        command(study_path, tmp_path / "out"),
        env=env,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that starts the tests in the background makes its children deaf to Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 300
    while not list(Path(tmp_path / "home").glob("capture/base-*/meta.json")) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=120)
    assert process.returncode == 130, told
    assert f"go on with: layerprobe run {study_path} --out {tmp_path / 'out'}" in told
    assert "Traceback" not in told
    record = Run.load(tmp_path / "out").record
    assert (record["status"], record["error"]) == ("failed", "interrupted")


def test_probes_weights_and_interventions_of_an_untouched_body_are_the_base_s(first):
    head = first.table("probes").query("method == 'head'").pivot(index="layer", columns="side", values="accuracy")
    assert (head.base == head.adapted).all() and set(head.index) == {0, 1, 2}
    assert (first.table("weights").query("method == 'head'").relative_change == 0).all()
    moved = first.table("weights").query("method == 'full' and role != 'pooler'")
    assert (moved.relative_change > 0).all()
    same = first.table("interventions").query("method == 'head' and kind in ('weights', 'stitched')")
    assert (same.difference == 0).all() and len(same) == 6
    cost = first.table("adaptation").query("`when` == 'after' and method in ('head', 'full')").set_index("method")
    assert 0 < cost.flops["head"] < cost.flops["full"]
    assert cost.bytes_stored["head"] > 0


def test_checkpoints_kept_in_training_are_read_along_the_steps(first, study_path, home, tmp_path):
    result = again(study_path, home, tmp_path, "adaptation.checkpoints=2", "adaptation.methods=['full']")
    steps = result.table("transfer_steps")
    assert sorted(steps.step.unique()) == [0, 3, 6, 10]  # 80 texts in batches of 16, twice, and two in between
    whole = result.table("sae").query("kind == 'trained' and trained_on == 'base'").set_index(["evaluated_on", "layer"])
    ends = steps[steps.trained_on == "base"].set_index(["step", "layer"]).explained_variance
    for layer in (1, 2):
        assert ends[0, layer] == whole.explained_variance["base", layer]
        assert ends[10, layer] == whole.explained_variance["adapted", layer]
        assert ends[10, layer] < ends[3, layer] < ends[0, layer]


def test_out_of_domain_sets_are_measured_under_every_method(study_path, home, tmp_path):
    outside = write_csv(tmp_path / "outside.csv", n=60, seed=5)
    result = again(study_path, home, tmp_path, f"data.ood=[{{name='other', source='{outside}'}}]", *LIGHT)
    rows = result.table("adaptation").query("split == 'other'")
    assert set(rows.method) >= {"head", "full"} and set(rows.n) == {60}
    assert set(result.table("predictions").split) == {"test", "other"}


def test_the_outline_of_a_study_out_of_reach_names_the_tasks_of_one_within_reach(study_path):
    from layerprobe.tasks import outline

    study = Study.load(study_path, ["sae.layers=[1, 2]"])
    planned = pipeline.plan(study)
    assert outline(study) == [(task.stage, task.name) for task in planned.tasks]
