"""Run folders: read and written without torch, and never over something else."""

import json
import subprocess
import sys

import pandas as pd
import pytest

from layerprobe.errors import StorageError
from layerprobe.runs import Run


def test_a_run_is_read_as_it_was_written(tmp_path):
    run = Run.create(tmp_path / "run", {"status": "running"})
    table = pd.DataFrame({"layer": [0, 1], "value": [1.0, 0.5]})
    run.save_tables({"similarity": table, "old": table})
    run.save_tables({"similarity": table})
    loaded = Run.load(tmp_path / "run")
    assert loaded.tables == ("similarity",)
    pd.testing.assert_frame_equal(loaded.table("similarity"), table)
    with pytest.raises(KeyError, match="similarity"):
        loaded.table("nothing")


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(StorageError, match="other than a layerprobe run"):
        Run.create(tmp_path, {"status": "running"})
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(StorageError, match="is a file"):
        Run.create(tmp_path / "thesis.tex", {"status": "running"})


def test_preparing_a_folder_leaves_an_earlier_record_alone(tmp_path):
    Run.create(tmp_path, {"status": "complete"})
    Run.prepare(tmp_path)
    assert Run.load(tmp_path).record["status"] == "complete"


def test_a_run_that_was_killed_before_its_record_is_begun_again(tmp_path):
    (tmp_path / "tables").mkdir()
    (tmp_path / ".lock").write_text("")
    assert Run.create(tmp_path, {"status": "running"}).record["status"] == "running"
    (tmp_path / "run.json").unlink()
    (tmp_path / "tables" / "mine.csv").write_text("1")
    with pytest.raises(StorageError, match="other than a layerprobe run"):
        Run.create(tmp_path, {"status": "running"})


def test_tables_that_cannot_be_written_leave_nothing_half_written(tmp_path, monkeypatch):
    run = Run.create(tmp_path, {"status": "running"})

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
        Run.create(tmp_path, {"status": "running"})
    with pytest.raises(StorageError, match="schema"):
        Run.load(tmp_path)


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(StorageError, match="does not exist"):
        Run.load(tmp_path / "nowhere")
    with pytest.raises(StorageError, match=r"holds no run\.json"):
        Run.load(tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(StorageError, match="cannot be read"):
        Run.load(tmp_path)


def test_a_run_is_read_and_reported_where_torch_is_not_installed():
    code = "import sys; sys.modules['torch'] = None; sys.modules['transformers'] = None\n" + (
        "import layerprobe.runs, layerprobe.report; layerprobe.report.write_report"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
