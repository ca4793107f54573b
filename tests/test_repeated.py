"""A repeated run reads what an earlier one found, loads no model library, and never shows a stale result."""

import json
import os
import shutil
import subprocess
import sys
import time

import pytest
from running import LIGHT, environment, no_page, run_study, stages, write_small_page, write_study
from tiny import make_encoder, write_csv

from layerprobe import Run, Study, facts
from layerprobe.facts import KeptFacts
from layerprobe.files import checksum
from layerprobe.outputs import MADE
from layerprobe.resolve import resolve

HEAVY = ("torch", "transformers", "sklearn", "plotly", "pandas", "scipy", "tokenizers", "datasketch")


@pytest.fixture(scope="module")
def first(tmp_path_factory, tiny_bert, tiny_csv):
    """A study in a folder of its own, its run with a page, and the store."""
    folder = tmp_path_factory.mktemp("repeated")
    model = shutil.copytree(tiny_bert, folder / "bert")
    source = shutil.copy(tiny_csv, folder / "texts.csv")
    path = write_study(folder, model, source)
    run_study(path, folder / "out", folder / "home", *LIGHT, page=True)
    return folder


def copy(first, folder):
    """A copy of all that, with facts of its own, and a page that is small to save time."""
    folder = shutil.copytree(first, folder)
    path = write_study(folder, folder / "bert", folder / "texts.csv")
    run_study(path, folder / "out", folder / "home", *LIGHT, page=True)
    return folder


@pytest.fixture
def small_pages(monkeypatch):
    monkeypatch.setattr("layerprobe.report.write_report", write_small_page)


@pytest.fixture
def copied(first, tmp_path, small_pages):
    """A copy of all that, which the test may change."""
    return copy(first, tmp_path / "copy")


@pytest.fixture(scope="module")
def shared_copy(first, tmp_path_factory):
    with no_page(write_small_page):
        return copy(first, tmp_path_factory.mktemp("shared") / "copy")


@pytest.fixture
def shared(shared_copy, small_pages):
    """A copy that tests leave as it was: what they damage is made again by a run, which they check."""
    yield shared_copy
    assert kept(shared_copy).recall() is not None and Run.load(shared_copy / "out").record.status == "complete"


def kept(folder, *overrides):
    return KeptFacts(Study.load(folder / "tiny.toml", [*LIGHT, *overrides]), "auto", "auto", folder / "home")


def again(folder, *overrides):
    return run_study(folder / "tiny.toml", folder / "out", folder / "home", *LIGHT, *overrides, page=True)


def contents(folder):
    paths = [folder / "out" / "index.html", *sorted((folder / "out" / "tables").iterdir())]
    return {path.name: (path.stat().st_mtime_ns, path.stat().st_ino, checksum(path)) for path in paths}


def rewrite(path, change):
    """Change a file's content, but neither its size nor the time of its last change."""
    before, content = path.stat(), path.read_bytes()
    path.write_bytes(change(content))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size and path.stat().st_mtime_ns == before.st_mtime_ns
    assert path.read_bytes() != content


# What is read and written ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_repeated_run_loads_no_model_library_and_leaves_tables_and_page(first, jobs):
    before = contents(first)
    script = (
        "import sys; from pathlib import Path; from layerprobe import Study, run\n"
        f"study = Study.load({str(first / 'tiny.toml')!r}, {LIGHT!r})\n"
        f"result = run(study, out={str(first / 'out')!r}, threads=1, jobs={jobs}, progress=False)\n"
        "assert all(task.reused for task in result.record.tasks) and result.record.status == 'complete'\n"
        f"loaded = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "assert not loaded, loaded\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment(first / "home"), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert contents(first) == before
    record = Run.load(first / "out").record
    assert record.findings and record.tables and record.data.n_test == 40 and record.encoder.n_layers == 2
    assert [(task.stage, task.name) for task in record.tasks]


@pytest.mark.parametrize("words", [("run", "--help"), ("plan", "tiny.toml"), ("--help",)])
def test_commands_import_only_what_they_use(first, words):
    """A plan computes how many examples a conclusion would take, with scipy; help needs neither arrays nor tables."""
    unused = set(HEAVY) - {"pandas", "scipy"} if words[0] == "plan" else {*HEAVY, "numpy", "jinja2", "pyarrow"}
    changes = [word for override in LIGHT for word in ("--set", override)] if words[0] == "plan" else []
    script = (
        "import sys; from layerprobe.cli import app\n"
        f"app({[*words, *changes]!r}, standalone_mode=False)\n"
        f"loaded = [name for name in {sorted(unused)!r} if name in sys.modules]\n"
        "assert not loaded, loaded\n"
    )
    options = {"env": environment(first / "home"), "cwd": first, "capture_output": True, "text": True}
    done = subprocess.run([sys.executable, "-c", script], **options)
    assert done.returncode == 0, done.stderr


def test_facts_are_those_of_the_data_and_the_model(shared):
    outside = write_csv(shared / "outside.csv", n=60, seed=5)
    checkpoint = make_encoder(shared / "checkpoint", labels=["class a", "class b"])
    overrides = (
        f"data.ood=[{{name='other', source='{outside}'}}]",
        f"adaptation.methods=['head', 'checkpoint:{checkpoint}']",
        "sae.layers=[1]",
    )
    study = Study.load(shared / "tiny.toml", [*LIGHT, *overrides])
    context = resolve(study, "auto", "auto")
    record = Run.load(shared / "out").record
    kept(shared, *overrides).keep(facts.Facts(context.resolved, record.data, record.encoder))
    recalled = kept(shared, *overrides).recall()
    assert recalled.resolved == context.resolved and recalled.resolved.near_copies and recalled.resolved.checkpoints
    assert (recalled.data, recalled.encoder) == (record.data, record.encoder)
    for path, change in (
        (outside, lambda text: text.swapcase()),
        (checkpoint / "config.json", lambda text: text + b" "),
    ):
        original = path.read_bytes()
        path.write_bytes(change(original))
        assert kept(shared, *overrides).recall() is None, path
        path.write_bytes(original)
        assert kept(shared, *overrides).recall() == recalled


# What changes ----------------------------------------------------------------------------------------------------------


ONE = "adaptation.methods=['head']"
"""A change that leaves less to compute again."""


def test_texts_that_change_within_the_same_size_are_read_again(copied):
    before = again(copied, ONE).record
    assert kept(copied, ONE).recall() is not None
    rewrite(copied / "texts.csv", lambda content: content.replace(b"class a", b"class z"))
    assert kept(copied, ONE).recall() is None
    after = again(copied, ONE).record
    assert after.data.fingerprint != before.data.fingerprint and after.data.label_names == ["class b", "class z"]
    assert "class z" in (copied / "out" / "index.html").read_text()


def test_other_weights_of_the_same_size_are_read_again(copied):
    before, first = again(copied, ONE), kept(copied, ONE).recall()
    weights = make_encoder(copied / "other", seed=1) / "model.safetensors"
    rewrite(copied / "bert" / "model.safetensors", lambda content: weights.read_bytes())
    assert first is not None and kept(copied, ONE).recall() is None
    after = again(copied, ONE)
    assert after.record.encoder.fingerprint != before.record.encoder.fingerprint
    assert "adapt" in stages(after, reused=False)


def test_a_new_file_in_the_folder_of_the_model_is_noticed(shared):
    assert kept(shared).recall() is not None
    (shared / "bert" / "added_tokens.json").write_text("{}")
    assert kept(shared).recall() is None
    (shared / "bert" / "added_tokens.json").unlink()


def test_study_device_precision_versions_source_and_machine_are_part_of_the_key(first, monkeypatch):
    study = Study.load(first / "tiny.toml", LIGHT)
    path = kept(first).path
    assert kept(first, "sae.k=5").path != path and kept(first, "seeds=[3]").path != path
    assert KeptFacts(study, "cpu", "auto", first / "home").path != path
    assert KeptFacts(study, "auto", "fp32", first / "home").path != path
    for name, value in (("versions", {"layerprobe": "99"}), ("source_digest", "other"), ("_machine", {})):
        with monkeypatch.context() as patch:
            patch.setattr(facts, name, lambda value=value: value)
            assert kept(first).path != path and kept(first).recall() is None, name
    assert kept(first).path == path


def test_a_file_that_was_only_touched_is_compared_and_not_resolved_again(shared):
    recalled = kept(shared).recall()
    os.utime(shared / "texts.csv")
    assert kept(shared).recall() == recalled is not None


def test_a_file_that_was_written_just_before_is_compared_whatever_its_stamp(copied, monkeypatch):
    """Two changes within one tick of the file system's clock leave the same stamp."""
    now = time.time_ns()
    monkeypatch.setattr(facts, "stamp", lambda path: [1, now, now, 2])
    monkeypatch.setattr(facts, "is_settled", lambda value: False)
    record = Run.load(copied / "out").record
    resolved = resolve(Study.load(copied / "tiny.toml", LIGHT)).resolved
    kept(copied).keep(facts.Facts(resolved, record.data, record.encoder))
    assert kept(copied).recall() is not None
    rewrite(copied / "texts.csv", lambda content: content.replace(b"class a", b"class z"))
    assert kept(copied).recall() is None


def test_facts_are_not_kept_if_a_file_changes_while_the_study_is_resolved(copied):
    before = kept(copied, "sae.k=5")
    rewrite(copied / "texts.csv", lambda content: content.replace(b"class a", b"class z"))
    record = Run.load(copied / "out").record
    resolved = resolve(Study.load(copied / "tiny.toml", LIGHT)).resolved
    before.keep(facts.Facts(resolved, record.data, record.encoder))
    assert not before.path.exists()


def test_damaged_facts_are_ignored(shared):
    path = kept(shared).path
    content = json.loads(path.read_text())
    content["facts"]["resolved"]["n_train"] = 7
    path.write_text(json.dumps(content))
    assert kept(shared).recall() is None
    path.write_text("[1]")
    assert kept(shared).recall() is None
    assert again(shared).record.data.n_train == 80 and kept(shared).recall() is not None


def test_studies_of_the_hub_are_resolved_every_time(first):
    study = Study.load(first / "tiny.toml", ["model.name='someone/a-model'"])
    facts_of_hub = KeptFacts(study, "auto", "auto", first / "home")
    assert facts_of_hub.stamps is None and facts_of_hub.recall() is None


def test_facts_of_another_device_are_not_computed_with(shared, monkeypatch):
    """Where everything is finished the device does not matter; before something is computed it is looked at again."""
    asked = []
    monkeypatch.setattr("layerprobe.pipeline.is_resolved_here", lambda *words: asked.append(words) or False)
    monkeypatch.setattr("layerprobe.facts.resolve", lambda *words: asked.append("resolved") or resolve(*words))
    again(shared)
    assert asked == []
    shutil.rmtree(next((shared / "home" / "depth").glob("every-*")))
    assert again(shared).record.status == "complete" and asked[-1] == "resolved" and len(asked) == 2


# Damage in the run folder ----------------------------------------------------------------------------------------------


def cut(path):
    path.write_bytes(path.read_bytes()[:-10])


@pytest.mark.parametrize("damage", [lambda path: rewrite(path, lambda c: c[:-1] + bytes([c[-1] ^ 1])), cut, os.unlink])
@pytest.mark.parametrize("name", ["tables/similarity.parquet", "tables/examples.parquet", "index.html"])
def test_damaged_tables_and_pages_are_written_again(shared, name, damage):
    path = shared / "out" / name
    before = path.read_bytes()
    damage(path)
    result = again(shared)
    assert stages(result, reused=False) == []
    assert path.exists() and (path.read_bytes() == before or name == "index.html")
    assert result.table("similarity").equals(Run.load(shared / "out").table("similarity"))
    page = (shared / "out" / "index.html").read_text()
    assert page.rstrip().endswith("</html>")


def test_a_table_of_another_run_is_removed(shared):
    extra = shared / "out" / "tables" / "extra.parquet"
    shutil.copy(shared / "out" / "tables" / "similarity.parquet", extra)
    again(shared)
    assert not extra.exists()


def test_the_page_follows_the_record(shared):
    again(shared, "question=Another question?")
    assert "Another question?" in (shared / "out" / "index.html").read_text()
    again(shared)
    assert "What changed?" in (shared / "out" / "index.html").read_text()


def test_the_page_follows_the_source_of_the_package(shared, monkeypatch):
    before = contents(shared)
    again(shared)
    assert contents(shared) == before
    with monkeypatch.context() as patch:
        patch.setattr("layerprobe.outputs.source_digest", lambda: "other")
        again(shared)
    assert all(value[0] != before[name][0] for name, value in contents(shared).items())
    again(shared)


def test_tables_are_collected_again_after_an_artifact_was_computed_again(shared):
    before = contents(shared)
    shutil.rmtree(next((shared / "home" / "adapt").glob("full-*")))
    result = again(shared)
    assert stages(result, reused=False) == ["adapt"]
    assert contents(shared)["adaptation.parquet"][2] != before["adaptation.parquet"][2]  # its seconds


def test_a_run_that_ended_early_is_not_taken_for_a_whole_one(shared):
    record = Run.load(shared / "out")
    record.record.status = "failed"
    record.save()
    before = contents(shared)
    assert again(shared).record.status == "complete"
    assert contents(shared)["similarity.parquet"][0] != before["similarity.parquet"][0]
    assert (shared / "out" / MADE).is_file()
