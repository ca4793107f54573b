"""What tests of whole runs share: a tiny study, runs without a page, and tables without their costs."""

import os
import signal
import subprocess
import sys
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest

from layerprobe import Run, Study, run

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
LIGHT = (
    *("sae.layers=[]", "internals.parts=[]"),
    *("similarity.units=['token']", "similarity.measures=['cka']", "similarity.random_changes=1"),
)
"""Overrides that leave training, capture and a comparison."""
COSTS = ("seconds", "peak_bytes", "energy_wh", "concurrent_tasks")
"""Columns that differ between two computations of the same thing; `pareto` has them as values of `cost`."""


def write_study(folder, model, source):
    path = folder / "tiny.toml"
    path.write_text(STUDY.format(model=str(model), source=str(source)))
    return path


@contextmanager
def no_page(write=lambda result, path: path):
    """Runs end without a page, which takes most of the time of a tiny run; or with one that `write` makes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("layerprobe.report.write_report", write)
        yield


def write_small_page(result, path):
    """A page with the question and the labels."""
    record = result.record
    path.write_text(f"<p>{record.question}</p><p>{', '.join(record.data.label_names)}</p></html>")
    return path


def run_study(path, folder, home, *overrides, page=False, **options) -> Run:
    """Run a study on one thread per task, so that tables can be compared bit by bit."""
    options = {"threads": 1, "progress": False, **options}
    with nullcontext() if page else no_page():
        return run(Study.load(path, overrides), out=folder, home=home, **options)


def stages(result, reused):
    """Stages of the tasks that were reused, or of those that were computed."""
    return [task.stage for task in result.record.tasks if task.reused == reused]


def assert_equal_tables(first, second):
    """All tables are equal, costs apart."""
    assert set(first.tables) == set(second.tables)
    for name in first.tables:
        a, b = (one.table(name).drop(columns=list(COSTS), errors="ignore") for one in (first, second))
        if name == "pareto":
            a, b = (table[~table.cost.isin(COSTS)] for table in (a, b))
        assert a.equals(b), name


def environment(home):
    """Variables of a process that uses this checkout and an artifact store of its own."""
    return {**os.environ, "LAYERPROBE_HOME": str(home), "PYTHONPATH": str(Path(__file__).parent.parent)}


def start(study, out, home, *words, overrides=LIGHT, **options):
    """`layerprobe run` in a process and a process group of its own, its stderr piped."""
    options = {"stderr": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, **options}
    changes = [word for override in overrides for word in ("--set", override)]
    return subprocess.Popen(
        [sys.executable, "-m", "layerprobe", "run", str(study), "--out", str(out), *changes, *map(str, words)],
        env=environment(home),
        start_new_session=True,
        # A shell that starts the tests in the background makes its children ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        **options,
    )


def wait_for_line(process, words):
    """Read a process's stderr up to the line that contains some words; returns what was read."""
    lines = []
    for line in process.stderr:
        lines.append(line)
        if words in line:
            return "".join(lines)
    raise AssertionError(f"it ended without {words!r}:\n{''.join(lines)}")
