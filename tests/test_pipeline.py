"""A study from end to end on a tiny model: exact under head, kept between runs, resumed after a kill."""

import json
import shutil
import signal

import numpy as np
import pandas as pd
import pytest
from running import LIGHT, assert_equal_tables, run_study, stages, start, wait_for_line, write_study
from tiny import write_csv
from typer.testing import CliRunner

from layerprobe import Run, Study, pipeline
from layerprobe.activations import ActivationStore
from layerprobe.cli import app
from layerprobe.errors import StorageError, StudyError
from layerprobe.graph import expand
from layerprobe.stages import REGISTRY
from layerprobe.stages.similarity import Similarity

numerical = pytest.mark.numerical

SAE_STAGES = {
    "sae",
    "encode",
    "match",
    "crosscoder",
    "associations",
    "transfer",
    "latents",
    "transitions",
    "basis-controls",
    "basis-excess",
    "sentence-latents",
    "exhibit",
    "crossing",
    "aligned",
    "stability",
}


@pytest.fixture(scope="module")
def study_path(tmp_path_factory, tiny_bert, tiny_csv):
    return write_study(tmp_path_factory.mktemp("study"), tiny_bert, tiny_csv)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("artifacts")


@pytest.fixture(scope="module")
def first(study_path, home, tmp_path_factory):
    return run_study(study_path, tmp_path_factory.mktemp("runs") / "first", home, page=True)


@pytest.fixture(scope="module")
def extra(tmp_path_factory, study_path, home, first):
    """The overrides and the run of a study with everything that the first one lacks: seeds, a control, steps, another set."""
    outside = write_csv(tmp_path_factory.mktemp("texts") / "outside.csv", n=60, seed=5)
    overrides = (
        "seeds=[0, 1]",
        "adaptation.methods=['top:1', 'shuffled-labels']",
        "adaptation.checkpoints=2",
        f"data.ood=[{{name='other', source='{outside}'}}]",
        "sae.layers=[2]",
        "sae.controls=[]",
        "sae.census_nulls=1",
        "similarity.units=['token']",
        "internals.parts=[]",
    )
    return overrides, run_study(study_path, tmp_path_factory.mktemp("runs") / "extra", home, *overrides, page=True)


@pytest.fixture
def again(study_path, home, tmp_path):
    """Runs the study again, with changes."""

    def run_again(*overrides, **options):
        return run_study(study_path, tmp_path / "again", home, *overrides, **options)

    return run_again


def test_every_table_of_the_contract_is_there(first):
    columns = {
        "adaptation": "method seed when split accuracy macro_f1 loss brier calibration_error "
        "trainable_parameters total_parameters seconds flops peak_bytes bytes_stored concurrent_tasks",
        "training_log": "method seed step epoch loss",
        "similarity": "method seed unit rows measure layer value ci_low ci_high n",
        "similarity_nulls": "method seed unit measure layer null null_kind value low high draws n",
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
        "aligned_transfer": "method seed layer kind alignment explained_variance gap_share gap_share_low home why",
        "difference_pca": "method seed layer components explained_variance joint excess excess_low coefficients",
        "crossing": "method quantity layer after layers verdict note",
        "crossing_layers": "method quantity layer difference low high dictionary_error",
        "transitions": "method seed layer matches kind_base kind_adapted latents rate null_rate excess low high",
        "probes": "method seed side layer accuracy control_accuracy selectivity selectivity_low",
        "weights": "method seed parameter layer role relative_change stable_rank_base intruder_dimensions",
        "interventions": "method seed kind layer accuracy loss difference difference_low difference_high",
        "predictions": "method seed split example_id label predicted probability",
        "tokens": "example_id token_index token special start end",
        "latent_tokens": "method seed layer side latent rank token share active occurrences",
        "latent_peaks": "method seed layer side latent rank example_id token_index activation",
    }
    for name, wanted in columns.items():
        assert set(wanted.split()) <= set(first.table(name).columns), name
        assert len(first.table(name))
    record = Run.load(first.folder).record
    assert record.status == "complete" and record.schema_version == 2 and record.error is None
    assert record.study.resolved["sae"]["k"] == 4
    assert all(task.key and task.seconds >= 0 for task in record.tasks)
    assert record.provenance.packages and record.provenance.device == "cpu"
    assert 2 <= len(record.findings) <= 11
    assert (first.folder / "index.html").stat().st_size > 1_000_000
    with pytest.raises(KeyError, match="no table 'nothing'"):
        first.table("nothing")


@numerical
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


@numerical
def test_full_drifts_more_with_depth(first):
    table = first.table("similarity").query(
        "method == 'full' and measure == 'cka' and unit == 'token' and rows == 'all'"
    )
    table = table.set_index("layer")
    assert table.value[2] < table.value[0] < 1
    assert (table.ci_low <= table.value).all() and (table.value <= table.ci_high).all()
    assert set(table.n) == {30}


@numerical
def test_unchanged_layers_share_one_dictionary_and_its_numbers(first):
    tasks = {(task.stage, task.name): task for task in first.record.tasks}
    for layer in (1, 2):
        base, head = tasks["sae", f"base layer {layer}"], tasks["sae", f"head seed 0 layer {layer}"]
        assert base.key == head.key and head.reused
        assert tasks["associations", f"head seed 0 layer {layer}"].reused
        assert tasks["sae", f"full seed 0 layer {layer}"].key != base.key
    values = first.table("sae").query("method == 'head' and kind == 'trained'").groupby("layer").explained_variance
    assert (values.max() == values.min()).all()
    flat = first.table("crossing").query("method == 'head'")
    assert set(flat.verdict) == {"flat"} and set(first.table("census").method) == {"full"}
    unmatched = first.table("latents").groupby("method").unmatched.sum()
    assert unmatched["head"] == 0
    kept = first.table("matching").query("method == 'head' and start == 'same start' and on == 'cosine'")
    assert (kept["mean"] == 1).all() and (kept.null_mean < 1).all() and (kept.lost_share == 0).all()


@numerical
def test_robustness_rows_nulls_and_geometry_accompany_the_drift(first):
    table = first.table("similarity").query("method == 'full' and measure == 'cka' and unit == 'token'")
    assert set(table["rows"]) == {"all", "no-special", "no-outliers", "no-leading-directions"}
    rows = table.groupby("rows").n_rows.max()
    assert rows["no-special"] == rows["all"] - 2 * 30  # [CLS] and [SEP] of thirty examples
    assert rows["all"] - 2 <= rows["no-outliers"] < rows["all"]  # a thousandth of the rows of each side: one row
    nulls = first.table("similarity_nulls")
    assert set(nulls.method) == {"full"}  # under head nothing changed
    assert set(nulls.null_kind) == {"shuffled-texts", "norm-matched"}
    compared = first.table("drift_controls")
    assert set(compared.method) == {"full"} and set(compared.control) == {"norm-matched"}
    assert set(compared.measure) == {"cka", "paired_cosine"} and not compared.covers_training.any()  # one seed
    null = nulls.query("measure == 'cka' and unit == 'mean'")
    assert (null.draws == 19).all() and (null.low <= null.value).all() and (null.value <= null.high).all()
    assert null.value.abs().max() < 0.3 < table.value.max()
    shape = first.table("geometry")
    assert set(shape.measure) == {"anisotropy", "effective_rank", "participation_ratio", "intrinsic_dimension"}
    head = shape.query("method == 'head'").pivot_table(
        index=["unit", "layer", "measure"], columns="side", values="value"
    )
    assert (head.base == head.adapted).all()


@numerical
def test_measures_that_are_undefined_somewhere_are_left_out_with_the_reason(first, again):
    measures = "similarity.measures=['cka', 'mean_cca', 'rsa', 'mutual_knn', 'procrustes_angle']"
    result = again(measures, "sae.layers=[]", page=True)
    assert set(stages(result, reused=False)) == {
        *("similarity", "nulls", "random-change", "drift-controls", "depth"),  # drift is a cost in depth
    }
    table = result.table("similarity")
    assert "mean_cca" in set(table.query("unit == 'token'").measure)
    assert "mean_cca" not in set(table.query("unit == 'mean'").measure)  # 40 examples are too few for 32 + 32 features
    left_out = result.table("similarity_left_out").query("unit == 'mean'")
    assert set(left_out.measure) == {"mean_cca"} and left_out.why.str.contains("use svcca or cka").all()
    grid = result.table("similarity_grid")
    assert set(grid.measure) == {"cka", "mean_cca", "procrustes_angle"}
    html = (result.folder / "index.html").read_text()
    assert "mean_cca was left out" in html and "Do the measures agree?" in html


@numerical
def test_probes_weights_and_interventions_of_an_unchanged_body_are_those_of_the_base(first):
    head = first.table("probes").query("method == 'head'").pivot(index="layer", columns="side", values="accuracy")
    assert (head.base == head.adapted).all() and set(head.index) == {0, 1, 2}
    assert (first.table("weights").query("method == 'head'").relative_change == 0).all()
    changed = first.table("weights").query("method == 'full' and role != 'pooler'")
    assert (changed.relative_change > 0).all()
    same = first.table("interventions").query("method == 'head' and kind in ('weights', 'stitched')")
    assert (same.difference == 0).all() and len(same) == 6
    cost = first.table("adaptation").query("`when` == 'after' and method in ('head', 'full')").set_index("method")
    assert 0 < cost.flops["head"] < cost.flops["full"]
    assert cost.bytes_stored["head"] > 0


def test_a_second_run_computes_nothing_and_gives_the_same_tables(first, again):
    second = again()
    assert stages(second, reused=False) == [] and second.record.recomputed == []
    for name in first.tables:
        assert first.table(name).equals(second.table(name)), name


@numerical
def test_another_home_and_two_jobs_give_the_same_tables(first, study_path, tmp_path):
    other = run_study(study_path, tmp_path / "out", tmp_path / "home", jobs=2)
    assert {task.key for task in other.record.tasks} == {task.key for task in first.record.tasks}
    assert_equal_tables(first, other)
    assert set(first.table("adaptation").concurrent_tasks.dropna()) == {1}
    concurrent = {task.concurrent for task in other.record.tasks}
    assert 2 in concurrent and concurrent <= {1, 2}


def test_changing_the_dictionaries_keeps_training_and_capture(first, again):
    changed = again("sae.k=5", "sae.controls=[]")
    assert set(stages(changed, reused=False)) <= SAE_STAGES and "sae" in stages(changed, reused=False)
    assert {"adapt", "capture", "similarity", "capture-sae"} <= set(stages(changed, reused=True))
    assert set(changed.table("sae").k) == {5}
    without = again("sae.layers=[]")
    assert stages(without, reused=False) == [] and "sae" not in without.tables


# Damage ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def damaged_home(tmp_path_factory, home, first, extra):
    return shutil.copytree(home, tmp_path_factory.mktemp("damaged") / "home")


def largest_file(folder):
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def flip_a_byte(folder):
    path = largest_file(folder)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def truncate(folder):
    path = largest_file(folder)
    content = path.read_bytes()
    path.write_bytes(content[: -max(1, len(content) // 100)])  # more than the new line that ends a JSON file


def put_a_file_in_its_place(folder):
    shutil.rmtree(folder)
    folder.write_text("a file")


DAMAGES = (
    flip_a_byte,
    truncate,
    lambda folder: largest_file(folder).unlink(),
    lambda folder: (folder / "meta.json").write_text("[1, 2]"),
    put_a_file_in_its_place,
)
STAGES = [stage.name for stage in REGISTRY if not stage.few_shot]
EXTRA = ["outside", "seeds", "steps", "census-null", "exclusive"]
"""Stages of the study `extra` alone."""
USUAL = [name for name in STAGES if name not in EXTRA]
GROUPS = [*(USUAL[start::5] for start in range(5)), EXTRA]
"""Stages that are damaged together, those that follow each other in different groups: a run for each stage takes minutes."""


@pytest.mark.parametrize("group", GROUPS, ids=",".join)
def test_damage_to_any_artifact_is_named_and_computed_again(first, extra, study_path, damaged_home, tmp_path, group):
    """Several artifacts of a stage, each damaged in another way; one alone is damaged in a way that depends on the stage."""
    overrides, expected = extra if group is EXTRA else ((), first)
    damaged = []
    for name in group:
        folders = {damaged_home / name / one.name for one in (damaged_home / name).iterdir() if one.name[0] != "."}
        keys = {task.key[:16] for task in expected.record.tasks if task.stage == name}
        of_stage = sorted(one for one in folders if one.name.rsplit("-")[-1] in keys)[: len(DAMAGES)]
        assert of_stage, name
        for place, folder in enumerate(of_stage):
            DAMAGES[(STAGES.index(name) + place) % len(DAMAGES)](folder)
        damaged += of_stage
    repaired = run_study(study_path, tmp_path / "out", damaged_home, *overrides)
    assert repaired.record.status == "complete"
    sentences = repaired.record.recomputed
    for folder in damaged:
        named = [sentence for sentence in sentences if sentence.startswith(f"{folder.parent.name}/{folder.name}: ")]
        assert len(named) == 1, folder
    assert len(sentences) == len(damaged)
    assert len(repaired.record.tasks) == len(expected.record.tasks)
    assert_equal_tables(expected, repaired)


def test_a_plan_names_damage_and_changes_nothing(first, study_path, damaged_home):
    folder = next((damaged_home / "sentences").glob("full-*"))
    (folder / "meta.json").unlink()
    planned = pipeline.plan(Study.load(study_path), home=damaged_home)
    assert [task.stage for task in planned.tasks if not task.finished] == ["sentences"]
    assert any("sentences: full seed 0 is damaged (its meta.json is missing" in note for note in planned.notes)
    assert folder.is_dir()


# Plans and limits ------------------------------------------------------------------------------------------------------


def test_a_plan_computes_nothing_and_shows_what_is_done(first, study_path, home, tmp_path):
    planned = pipeline.plan(Study.load(study_path), home=home)
    assert all(task.finished for task in planned.tasks) and planned.needed == 0
    fresh = pipeline.plan(Study.load(study_path), home=tmp_path / "new")
    assert not any(task.finished for task in fresh.tasks)
    assert fresh.needed > 0 and not (tmp_path / "new").exists()
    assert [(t.stage, t.name) for t in fresh.tasks] == [(t.stage, t.name) for t in first.record.tasks]


def test_a_study_whose_model_is_out_of_reach_has_the_same_tasks(first, study_path):
    study = Study.load(study_path, ["sae.layers=[1, 2]"])
    assert [(task.name, task.title) for task in expand(study, None)] == [
        (task.stage, task.name) for task in first.record.tasks
    ]


def test_space_is_checked_before_anything_starts(study_path, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "_free", lambda folder: 1000)
    with pytest.raises(StorageError, match="needs about"):
        run_study(study_path, tmp_path / "out", tmp_path / "home")
    assert Run.load(tmp_path / "out").record.status == "failed"
    assert not (tmp_path / "home").exists()


def test_a_full_disk_keeps_what_was_finished(study_path, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    study = (study_path, tmp_path / "out", tmp_path / "home", "adaptation.methods=['full']", *LIGHT)
    monkeypatch.setattr(Similarity, "build", full)
    with pytest.raises(StorageError, match=r"disk is full: similarity full seed 0 .* Every finished task is kept"):
        run_study(*study)
    assert Run.load(tmp_path / "out").record.status == "failed"
    monkeypatch.undo()
    result = run_study(*study)
    assert result.record.status == "complete"
    assert {"adapt", "capture"} <= set(stages(result, reused=True))


def test_a_store_that_is_removed_before_its_tables_are_collected_is_named(study_path, tmp_path, monkeypatch):
    from layerprobe import recording

    study = (study_path, tmp_path / "out", tmp_path / "home", "adaptation.methods=['full']", *LIGHT)

    def collect(*given, original=recording.collect):
        shutil.rmtree(tmp_path / "home")
        original(*given)

    monkeypatch.setattr(recording, "collect", collect)
    with pytest.raises(StorageError, match=r"cannot be used \(it is missing\), so the run in .* was not finished"):
        run_study(*study)
    assert Run.load(tmp_path / "out").record.status == "failed"
    monkeypatch.undo()
    assert run_study(*study).record.status == "complete"


def test_the_lock_of_a_run_folder_stays_so_that_a_third_run_cannot_pass_a_second(first, study_path, home, tmp_path):
    """A lock whose file is removed when it is released is held by one run and free for the next."""
    from filelock import FileLock, Timeout

    out = tmp_path / "out"
    run_study(study_path, out, home)
    waiting = FileLock(out / ".lock")
    with waiting:
        number = (out / ".lock").stat().st_ino
        with pytest.raises(Timeout):
            FileLock(out / ".lock", timeout=0).acquire()
    run_study(study_path, out, home)
    assert (out / ".lock").stat().st_ino == number


def test_damage_is_reported_on_stderr_and_on_the_page(first, study_path, damaged_home, tmp_path, capsys):
    folder = next((damaged_home / "geometry").glob("full-*"))
    flip_a_byte(folder)
    result = run_study(study_path, tmp_path / "out", damaged_home, page=True, progress=True)
    (sentence,) = [one for one in result.record.recomputed if one.startswith(f"geometry/{folder.name}: ")]
    assert f"Damaged: {sentence}" in capsys.readouterr().err.splitlines()
    assert f"<li>{sentence}</li>" in (result.folder / "index.html").read_text()


def test_two_runs_never_write_to_one_folder(first, study_path, home, tmp_path):
    from filelock import FileLock

    (tmp_path / "out").mkdir()
    run_folder = Run.create(tmp_path / "out", first.record.model_copy(update={"name": "the first"})).folder
    with FileLock(run_folder / ".lock"), pytest.raises(StorageError, match="Another run is writing"):
        run_study(study_path, tmp_path / "out", home)
    assert Run.load(run_folder).record.name == "the first"  # the second has not changed the first one's record


def test_layers_and_lengths_out_of_range_are_refused(again):
    for override, word in {
        "sae.layers=[3]": r"layer 3, but .* has layers 0 \(embeddings\) to 2",
        "data.max_length=100": "reads at most 66",
        "adaptation.methods=['top:99']": "k is 1 to 2",
        "similarity.measures=['ckka']": "'ckka'",
    }.items():
        with pytest.raises(StudyError, match=word):
            again(override)


# Seeds, controls, checkpoints ------------------------------------------------------------------------------------------


@numerical
def test_several_seeds_depths_and_the_control(extra):
    _, result = extra
    table = result.table("similarity").query("measure == 'cka'")
    assert set(zip(table.method, table.seed, strict=True)) == {
        (m, s) for m in ("top:1", "shuffled-labels") for s in (0, 1)
    }
    below = table[(table.method == "top:1") & (table.layer <= 1)]
    assert np.abs(below.value - 1).max() <= 1e-12  # below the trained block
    assert (table[(table.method == "top:1") & (table.layer == 2)].value < 1).all()
    seeds = result.table("similarity_nulls").query("null == 'seed-1' and measure == 'cka'")
    assert set(seeds.method) == {"top:1", "shuffled-labels"} and set(seeds.layer) == {0, 1, 2}
    assert (seeds[seeds.method == "top:1"].query("layer <= 1").value - 1).abs().max() <= 1e-12
    html = (result.folder / "index.html").read_text()
    assert "more than a seed?" in html and "drifts more?" in html
    compared = result.table("drift_controls").query("measure == 'cka'")
    assert set(zip(compared.method, compared.control, strict=True)) == {("top:1", "norm-matched")}
    assert set(compared.control_models) == {6} and (compared[compared.layer <= 1].difference.abs() < 1e-12).all()


@numerical
def test_checkpoints_of_training_give_a_curve_over_its_steps(extra):
    _, result = extra
    steps = result.table("transfer_steps").query("seed == 0 and layer == 2 and trained_on == 'base'")
    assert sorted(steps.step.unique()) == [0, 3, 6, 10]  # 80 examples in batches of 16, two epochs, and two in between
    whole = result.table("sae").query("kind == 'trained' and trained_on == 'base' and seed == 0 and layer == 2")
    whole = whole.set_index(["method", "evaluated_on"]).explained_variance
    for method in ("top:1", "shuffled-labels"):
        curve = steps[steps.method == method].set_index("step").explained_variance
        assert curve[0] == whole[method, "base"]
        assert curve[10] == whole[method, "adapted"]
        assert curve[10] < curve[3] < curve[0]


def test_out_of_domain_sets_are_measured_under_every_method(extra):
    _, result = extra
    rows = result.table("adaptation").query("split == 'other'")
    assert set(rows.method) >= {"top:1", "shuffled-labels"} and set(rows.n) == {60}
    assert set(result.table("predictions").split) == {"test", "other"}


@numerical
def test_a_finished_checkpoint_is_compared_without_training(first, again, home):
    checkpoint = next((home / "adapt").glob("full-*")) / "checkpoint"
    result = again(f"adaptation.methods=['checkpoint:{checkpoint}']", "sae.layers=[]", "internals.parts=[]")
    trained, loaded = first.table("similarity"), result.table("similarity")
    columns = ["unit", "measure", "layer", "value"]
    expected = trained[trained.method == "full"][columns].reset_index(drop=True)
    assert expected.equals(loaded[columns].reset_index(drop=True))
    after = result.table("adaptation").query("when == 'after' and trainable_parameters == 0")
    assert (
        after.accuracy.iloc[0]
        == first.table("adaptation").query("method == 'full' and `when` == 'after'").accuracy.iloc[0]
    )


@numerical
def test_a_checkpoint_with_its_classes_in_another_order_has_the_same_numbers(first, again, home, tmp_path):
    """Quality, interventions and task loss match classes by the names of the labels."""
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
    result = again(f"adaptation.methods=['{method}']", "sae.layers=[2]", "sae.controls=[]")
    columns = ["kind", "layer", "accuracy", "loss"]
    for name, compared in (
        ("interventions", columns),
        ("sae", ["trained_on", "evaluated_on", "task_loss", "task_accuracy"]),
    ):
        table = result.table(name)
        full = first.table(name).query("method == 'full'")
        if name == "sae":  # base's classifier is that of head, which this study lacks
            table, full = (
                t[(t.kind == "trained") & (t.layer == 2) & (t.evaluated_on == "adapted")] for t in (table, full)
            )
        table, full = (t[compared].reset_index(drop=True) for t in (table, full))
        pd.testing.assert_frame_equal(table, full, atol=1e-6, rtol=0)


# Interruptions ---------------------------------------------------------------------------------------------------------


def test_a_killed_run_resumes_after_its_last_finished_task(study_path, tmp_path):
    process = start(study_path, tmp_path / "out", tmp_path / "home")
    wait_for_line(process, "] capture: full seed 0")
    process.kill()
    process.communicate(timeout=120)
    assert Run.load(tmp_path / "out").record.status == "running"
    result = run_study(study_path, tmp_path / "out", tmp_path / "home", *LIGHT)
    assert result.record.status == "complete"
    assert "adapt" in stages(result, reused=True) and "capture" in stages(result, reused=True)
    assert "similarity" in stages(result, reused=False) and result.record.recomputed == []


@pytest.mark.parametrize(("number", "name"), [(signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM")])
def test_an_interrupted_run_names_the_command_that_resumes_it(study_path, tmp_path, number, name):
    process = start(study_path, tmp_path / "out", tmp_path / "home")
    wait_for_line(process, "] capture: base")
    process.send_signal(number)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert f"with: layerprobe run {study_path} --out {tmp_path / 'out'}" in err
    assert "Traceback" not in err
    record = Run.load(tmp_path / "out").record
    assert (record.status, record.error) == ("interrupted", name)
    if number == signal.SIGTERM:
        refused = CliRunner().invoke(app, ["report", str(tmp_path / "out")])
        assert (
            refused.exit_code == 2
            and "is interrupted (SIGTERM); finish it first with: layerprobe run" in refused.stderr
        )
        result = run_study(study_path, tmp_path / "out", tmp_path / "home", *LIGHT)
        assert result.record.status == "complete" and "adapt" in stages(result, reused=True)
