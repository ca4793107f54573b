"""Run folders: read and written without torch, and never over something else."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pandas as pd
import pytest

from layerprobe.errors import StorageError
from layerprobe.record import ArtifactRecord, Finding, Provenance, RunRecord, StudyRecord
from layerprobe.runs import Run

RECORD = RunRecord(
    name="planted",
    question="What changed?",
    study=StudyRecord(given=None, resolved={}),
    command="layerprobe run x.toml",
    provenance=Provenance(python="3", platform="x", packages={}, device="cpu", started="now"),
)
SPEC = SimpleNamespace(description="One row per layer", columns={"layer": "layer", "value": "its similarity"})
EVIL = "<script>alert('x')</script>"


@pytest.fixture
def run(tmp_path):
    run = Run.create(tmp_path / "run", RECORD.model_copy(deep=True))
    run.save_tables({"similarity": pd.DataFrame({"layer": [0, 1], "value": [1.0, 0.5]})}, {"similarity": SPEC})
    run.save()
    return run


def test_a_run_is_read_as_it_was_written(tmp_path):
    run = Run.create(tmp_path / "run", RECORD)
    table = pd.DataFrame({"layer": [0, 1], "value": [1.0, 0.5]})
    run.save_tables({"similarity": table, "old": table})
    run.save_tables({"similarity": table}, {"similarity": SPEC})
    run.save()
    loaded = Run.load(tmp_path / "run")
    assert list(loaded.tables) == ["similarity"] and not (tmp_path / "run" / "tables" / "old.parquet").exists()
    assert loaded.tables["similarity"].rows == 2
    assert loaded.tables["similarity"].columns == {"layer": "layer", "value": "its similarity"}
    pd.testing.assert_frame_equal(loaded.table("similarity"), table)
    with pytest.raises(KeyError, match="similarity"):
        loaded.table("nothing")


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(StorageError, match="other than a layerprobe run"):
        Run.create(tmp_path, RECORD)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(StorageError, match="is a file"):
        Run.create(tmp_path / "thesis.tex", RECORD)


def test_preparing_a_folder_leaves_an_earlier_record_alone(tmp_path):
    Run.create(tmp_path, RECORD.model_copy(update={"status": "complete"}))
    Run.prepare(tmp_path)
    assert Run.load(tmp_path).record.status == "complete"


def test_a_run_that_was_killed_before_its_record_is_begun_again(tmp_path):
    (tmp_path / "tables").mkdir()
    (tmp_path / ".lock").write_text("")
    assert Run.create(tmp_path, RECORD).record.status == "running"
    (tmp_path / "run.json").unlink()
    (tmp_path / "tables" / "mine.csv").write_text("1")
    with pytest.raises(StorageError, match="other than a layerprobe run"):
        Run.create(tmp_path, RECORD)


@pytest.mark.parametrize("content", [None, "", '{"schema": 2, "sta', "[" * 100_000])
def test_a_run_whose_record_is_damaged_is_begun_again(run, content):
    record = run.folder / "run.json"
    (run.folder / ".lock").write_text("")
    (run.folder / ".run.json.123.partial").write_text("{")  # of a process that was killed
    (run.folder / "tables" / ".similarity.parquet.123.partial").write_text("PAR1")
    record.unlink() if content is None else record.write_text(content)
    (run.folder / "mine.txt").write_text("mine")
    with pytest.raises(StorageError, match="other than a layerprobe run"):
        Run.create(run.folder, RECORD)
    (run.folder / "mine.txt").unlink()
    Run.create(run.folder, RECORD)
    Run.remove_partial_files(run.folder)
    assert Run.load(run.folder).record == RECORD
    assert not list(run.folder.rglob("*.partial")) and (run.folder / "tables" / "similarity.parquet").is_file()


def test_tables_that_cannot_be_written_leave_nothing_half_written(tmp_path, monkeypatch):
    run = Run.create(tmp_path, RECORD)

    def half(self, path, **options):
        path.write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pd.DataFrame, "to_parquet", half)
    with pytest.raises(OSError, match="No space"):
        run.save_tables({"similarity": pd.DataFrame({"layer": [0]})})
    assert list((tmp_path / "tables").iterdir()) == []


def test_a_foreign_run_json_is_not_taken_for_ours(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps({"anything": 1}))
    with pytest.raises(StorageError, match="other than a layerprobe run"):
        Run.create(tmp_path, RECORD)
    with pytest.raises(StorageError, match="schema"):
        Run.load(tmp_path)


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(StorageError, match="does not exist"):
        Run.load(tmp_path / "nowhere")
    with pytest.raises(StorageError, match=r"holds no run\.json"):
        Run.load(tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(StorageError, match="is damaged"):
        Run.load(tmp_path)


def test_a_run_is_read_and_reported_where_torch_is_not_installed():
    code = "import sys; sys.modules['torch'] = None; sys.modules['transformers'] = None\n" + (
        "import layerprobe.runs, layerprobe.report; layerprobe.report.write_report"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_tables_are_documented_in_their_index(run):
    text = repr(run.tables)
    assert "similarity: One row per layer (2 rows)" in text and "value  its similarity" in text


@pytest.mark.parametrize("damage", ["changed", "missing", "truncated", "flipped", "empty", "a folder"])
def test_a_damaged_table_is_refused_with_the_command_that_repeats_the_run(run, damage):
    path = run.folder / "tables" / "similarity.parquet"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()
    if damage == "changed":
        pd.DataFrame({"layer": [0, 1], "value": [1.0, 0.6]}).to_parquet(path)
    elif damage == "a folder":
        path.mkdir()
    elif damage != "missing":
        path.write_bytes({"truncated": content[:-8], "flipped": content, "empty": b""}[damage])
    words = {"missing": "cannot be used .it is missing", "a folder": "cannot be used .it is a folder"}
    words = words.get(damage, "does not match its checksum")
    with pytest.raises(StorageError, match=f"similarity.parquet {words}.*repeat the run with: layerprobe run x.toml"):
        Run.load(run.folder).table("similarity")


def test_a_table_is_verified_once(run, monkeypatch):
    loaded = Run.load(run.folder)
    loaded.table("similarity")
    monkeypatch.setattr("layerprobe.runs.checksum", lambda path: pytest.fail("verified twice"))
    assert len(loaded.table("similarity")) == 2


def test_artifacts_are_listed_by_task(run):
    folder = os.path.join(run.folder, "adapt", "head", "checkpoint")
    run.record.artifacts = [ArtifactRecord(stage="adapt", name="head, seed 0", folder=folder)]
    run.save()
    assert {name: str(path) for name, path in Run.load(run.folder).artifacts().items()} == {
        "adapt: head, seed 0": folder
    }


def test_a_notebook_shows_status_findings_and_tables_escaped(run):
    run.record.status, run.record.error, run.record.question = "failed", EVIL, EVIL
    run.record.findings = [Finding(text=EVIL, figure="drift")]
    html = run._repr_html_()
    assert "<script>" not in html and html.count("&lt;script&gt;") == 3
    assert "failed" in html and "<td>similarity</td><td>2</td><td>One row per layer</td>" in html
