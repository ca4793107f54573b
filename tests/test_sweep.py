"""Sweeps: combinations of a study as one graph, in which shared artifacts are computed once, with one comparison page."""

import json
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from running import (
    LIGHT,
    assert_equal_tables,
    environment,
    no_page,
    run_study,
    wait_for_line,
    write_small_page,
    write_study,
)
from tiny import write_csv
from toy_stages import Failing, Meeting, Toy, resolved_study
from typer.testing import CliRunner

from layerprobe import Run, Study, bundled, pipeline
from layerprobe.cli import analyses, app
from layerprobe.errors import StorageError, StudyError
from layerprobe.executors import Failed, Finished, Settings, Workload, find_executor
from layerprobe.pipeline import Computation
from layerprobe.resolve import resolve
from layerprobe.stages.capture import Capture
from layerprobe.stages.similarity import Similarity
from layerprobe.sweep import Sweep, plan_sweep, run_sweep

ROOT = Path(__file__).parent.parent
SWEEP = """
base = "tiny.toml"
overrides = {light!r}
[axes]
"adaptation.learning_rate" = [1e-3, 2e-3]
"similarity.shuffles" = [19, 20]
"""
ONE_THREAD = Computation(threads=1)


@pytest.fixture(scope="module")
def path(tmp_path_factory, tiny_bert, tiny_csv):
    """Two rates, which need two trainings of `full` and one of `head`, and two numbers of shuffles, which need none."""
    folder = tmp_path_factory.mktemp("sweep")
    write_study(folder, tiny_bert, tiny_csv)
    (folder / "sweep.toml").write_text(SWEEP.format(light=list(LIGHT)))
    return folder / "sweep.toml"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def planned(path, home):
    return plan_sweep(Sweep.load(path), home=home)


@pytest.fixture(scope="module")
def first(path, home, planned, tmp_path_factory):
    """The sweep, run after it was planned; the pages of its runs are small, that of their comparison is not."""
    out = tmp_path_factory.mktemp("runs") / "first"
    with no_page(write_small_page):
        return run_sweep(Sweep.load(path), ONE_THREAD, out=out, home=home, progress=False)


@pytest.fixture
def copied_home(home, first, tmp_path, monkeypatch):
    """A copy of the sweep's store, in which tests remove what is to be computed again."""
    monkeypatch.setenv("LAYERPROBE_HOME", str(tmp_path / "home"))
    return shutil.copytree(home, tmp_path / "home")


def artifacts(home):
    """Number of artifacts by stage."""
    return Counter(path.parent.parent.name for path in home.glob("*/[a-z0-9]*/meta.json"))


def write(folder, text):
    (folder / "bad.toml").write_text(text)
    return folder / "bad.toml"


# The configuration -----------------------------------------------------------------------------------------------------


def test_combinations_have_readable_names_and_the_studies_that_they_describe(path):
    studies = Sweep.load(path, ["data.test=30"]).studies()
    assert [one.name for one in studies] == [
        "learning_rate 0.001, shuffles 19",
        "learning_rate 0.001, shuffles 20",
        "learning_rate 0.002, shuffles 19",
        "learning_rate 0.002, shuffles 20",
    ]
    for one, study in studies.items():
        by_hand = Study.load(
            path.parent / "tiny.toml",
            [*LIGHT, "data.test=30", f"name={one.name!r}", *(f"{key}={value}" for key, value in one.values.items())],
        )
        assert study == by_hand


def test_axes_may_be_nested_sections_or_lists_and_paths_are_relative_to_the_sweep(path, tiny_bert):
    folder = path.parent
    write_csv(folder / "other.csv", n=100, seed=3)
    text = 'base = "tiny.toml"\nseeds = [3, 4]\n[axes]\ndata = [{source = "other.csv", test = 30}, {test = 20}]\n'
    text += "[axes.adaptation]\nmethods = [['head'], ['head', 'full']]\n"
    sweep = Sweep.load(write(folder, text))
    studies = list(sweep.studies().values())
    assert list(sweep.axes) == ["data", "adaptation.methods"]
    assert [study.data.source == str(folder / "other.csv") for study in studies] == [True, True, False, False]
    assert [(study.data.test, study.data.train) for study in studies] == [(30, 80)] * 2 + [(20, 80)] * 2
    assert [study.adaptation.methods for study in studies] == [("head",), ("head", "full")] * 2
    assert {study.seeds for study in studies} == {(3, 4)}


def test_names_stay_distinct_where_short_values_are_not():
    sweep = Sweep.parse(
        {"base": "x", "axes": {"model.name": ["a/m", "b/m"], "data.source": ["c/d.csv", "bundled:tweets"]}}
    )
    names = [one.name for one in sweep.combinations()]
    assert names == ["a/m, d.csv", "a/m, tweets", "b/m, d.csv", "b/m, tweets"]
    long = Sweep.parse({"base": "x", "axes": {"data.label": ["x" * 70 + end for end in "ab"]}})
    assert [one.name[:8] for one in long.combinations()] == ["1 label ", "2 label "]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("seeds = [1]", r"bad\.toml: base is missing; a sweep needs a base study, and axes"),
        (
            "base = 'tiny.toml'\naxis = 1\n[axes]\nseeds = [[1]]",
            r"unknown key 'axis'; the keys of a sweep are base, axes",
        ),
        ("base = 'tiny.toml'\n[axes]\n'data.train' = 5", r"axes\.data\.train = 5 is not a list; list the values"),
        ("base = 'tiny.toml'\n[axes]\n'data.train' = []", r"axes\.data\.train is empty; list one value"),
        ("base = 'tiny.toml'\n[axes]\n'data.train' = [5, 5]", r"axes\.data\.train = \[5, 5\] lists a value twice"),
        ("base = 'tiny.toml'\n[axes]\nname = ['a']", r"axes\.name cannot be varied, since combinations are named"),
        (
            "base = 'tiny.toml'\nseeds = [1]\n[axes]\nseeds = [[1], [2]]",
            r"axes\.seeds cannot be varied, since seeds is given",
        ),
        (
            "base = 'tiny.toml'\nseeds = [-1]\n[axes]\n'data.train' = [50]",
            r"seeds\.0 = -1: input should be greater than",
        ),
        ("base = 'none.toml'\n[axes]\n'data.train' = [5]", r"no study file .*none\.toml; name a TOML file"),
        ("base = 'bad.toml'\n[axes]\n'data.train' = [5]", r"base = .*bad\.toml' is a sweep; name a study"),
        (
            "base = 'tiny.toml'\noverrides = ['data.train=9']\n[axes]\n'data.train' = [50, 60]",
            r"'data\.train=9' changes what axes\.data\.train varies; change the axis instead",
        ),
        (
            "base = 'tiny.toml'\noverrides = ['data.train=9']\n[axes]\ndata = [{test = 20}, {train = 60}]",
            r"'data\.train=9' changes what axes\.data varies; change the axis instead",
        ),
        (
            "base = 'tiny.toml'\n[axes]\n'data.trian' = [50, 60]",
            r"2 of 2 combinations of the sweep cannot run, so none was started\. Every combination: .*"
            r"unknown key 'data\.trian'; did you mean 'train'",
        ),
        (
            "base = 'tiny.toml'\n[axes]\n'data.train' = [50, 0]\nseeds = [[0], [1]]",
            r"2 of 4 combinations .*axes\.data\.train = 0: .*tiny\.toml: data\.train = 0: input should be greater than",
        ),
        (
            "base = 'tiny.toml'\n[axes]\n'seeds.x' = [1]\n'name.y' = [1]",
            r"'name' is a value, not a section of the study",
        ),
    ],
)
def test_a_sweep_that_is_wrong_is_refused_with_the_axis(path, text, words):
    with pytest.raises(StudyError, match=words):
        Sweep.load(write(path.parent, text)).studies()


def test_everything_that_cannot_run_is_reported_at_once_before_anything_is_written(path, tmp_path):
    text = "base = 'tiny.toml'\n[axes]\n'model.name' = ['nowhere.txt', {model!r}]\n'data.max_length' = [32, 99]\n"
    model = Study.load(path.parent / "tiny.toml").model.name
    sweep = Sweep.load(write(path.parent, text.format(model=model)), LIGHT)
    for action in (lambda: run_sweep(sweep, out=tmp_path / "out", progress=False), lambda: plan_sweep(sweep)):
        with pytest.raises(StudyError) as refused:
            action()
        message = str(refused.value)
        assert "3 of 4 combinations of the sweep cannot run, so none was started." in message
        assert re.search(r"axes\.model\.name = '[^']*nowhere\.txt': ", message)
        assert f"axes.model.name = {model!r}, axes.data.max_length = 99: data.max_length is 99" in message
    assert not (tmp_path / "out").exists()


# The graph -------------------------------------------------------------------------------------------------------------


def test_a_plan_counts_every_shared_task_once(path, planned, first, home):
    """The plan made before anything was computed counts exactly the artifacts that the sweep then made."""
    assert Counter(one.task.stage for one in planned.tasks) == artifacts(home)
    users: dict[tuple[str, str], list[int]] = {}
    for one in planned.tasks:
        users.setdefault((one.task.stage, one.task.name), []).append(len(one.combinations))
    assert users["capture", "base"] == users["adapt", "head seed 0"] == [4]
    assert users["adapt", "full seed 0"] == users["capture", "full seed 0"] == [2, 2]
    assert not any(one.task.finished for one in planned.tasks)
    alone = [plan.needed for plan in planned.plans.values()]
    assert max(alone) < planned.needed < sum(alone)
    again = plan_sweep(Sweep.load(path), home=home)
    assert all(one.task.finished for one in again.tasks) and again.needed == 0
    assert len(again.tasks) == len(planned.tasks)


def test_every_artifact_is_computed_once_and_every_run_is_that_of_its_study(path, first, home, tmp_path):
    assert not first.failures and first.problem is None
    computed = Counter(task.key for run in first.runs.values() for task in run.record.tasks if not task.reused)
    assert set(computed.values()) == {1} and computed.total() == artifacts(home).total()
    for run in first.runs.values():
        assert run.record.status == "complete" and (run.folder / "index.html").is_file()
    changes = ("adaptation.learning_rate=0.002", "similarity.shuffles=20")
    alone = run_study(path.parent / "tiny.toml", tmp_path / "alone", tmp_path / "home", *LIGHT, *changes)
    assert_equal_tables(first.runs["learning_rate 0.002, shuffles 20"], alone)


def test_the_page_compares_all_runs(first):
    folder = first.page.parent
    assert json.loads((folder / "compare.json").read_text())["runs"] == {
        name: str(run.folder) for name, run in first.runs.items()
    }
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {
        f"learning-rate-0-00{rate}-shuffles-{shuffles}" for rate in (1, 2) for shuffles in (19, 20)
    }
    page = first.page.read_text(encoding="utf-8")
    assert all(name in page for name in first.runs) and "4 runs compared" in page


def test_two_jobs_compute_every_artifact_once_and_give_equal_tables(path, first, home, copied_home, tmp_path, no_pages):
    for stage in ("adapt", "capture", "similarity", "nulls", "depth"):
        shutil.rmtree(copied_home / stage)
    left = artifacts(copied_home).total()
    two = Computation(jobs=2, threads=1)
    result = run_sweep(Sweep.load(path), two, out=tmp_path / "out", home=copied_home, progress=False)
    computed = Counter(task.key for run in result.runs.values() for task in run.record.tasks if not task.reused)
    assert set(computed.values()) == {1} and computed.total() == artifacts(home).total() - left
    for name, run in result.runs.items():
        assert_equal_tables(run, first.runs[name])


def test_a_repeated_sweep_computes_nothing_and_damage_is_computed_again(path, first, home, tmp_path, no_pages):
    again = run_sweep(Sweep.load(path), ONE_THREAD, out=first.page.parent, home=home, progress=False)
    assert all(task.reused for run in again.runs.values() for task in run.record.tasks)
    (log,) = {
        log
        for task in again.runs["learning_rate 0.001, shuffles 19"].record.tasks
        if (task.stage, task.name) == ("adapt", "head seed 0")
        for log in home.glob(f"adapt/*-{task.key[:16]}/tables/training_log.parquet")
    }
    log.write_bytes(log.read_bytes()[::-1])
    mended = run_sweep(Sweep.load(path), ONE_THREAD, out=tmp_path / "out", home=home, progress=False)
    assert not mended.failures and sum(len(run.record.recomputed) for run in mended.runs.values()) >= 1
    for name, run in mended.runs.items():
        assert_equal_tables(run, first.runs[name])


@pytest.fixture
def no_pages(monkeypatch):
    monkeypatch.setattr("layerprobe.report.write_report", lambda result, path: path)


@pytest.mark.parametrize("executor", ["serial", "processes"])
def test_equal_tasks_of_different_studies_are_one_and_others_run_side_by_side(tmp_path, executor):
    """`Meeting` tasks of two studies end only together; the shared task is computed by one of them."""
    (tmp_path / "place").mkdir()
    shared = Toy(1)
    meetings = [Meeting(number, (shared,), place=tmp_path / "place") for number in (2, 3)]
    if executor == "serial":
        meetings = [Toy(number, (shared,)) for number in (2, 3)]
    loads = [Workload(resolved_study(), (shared, one), name) for one, name in zip(meetings, "ab", strict=True)]
    events = []
    settings = Settings(tmp_path / "home", 2 if executor == "processes" else 1, 1)
    done = list(find_executor(executor, 2)(loads, settings, events.append))
    assert [one.artifact.reused for one in done if one.task == shared] == [False, True]
    assert sorted(one.study for one in done if one.task != shared) == [0, 1]
    started = [event.task for event in events if type(event).__name__ == "Started"]
    assert started.count("a · toy: number 1") + started.count("b · toy: number 1") == 1


@pytest.mark.parametrize("executor", ["serial", "processes"])
@pytest.mark.parametrize("error", ["study", "bug"])
def test_a_failure_ends_its_own_study_alone(tmp_path, capsys, executor, error):
    failing = Failing(1, error=error)
    loads = [
        Workload(resolved_study(), (failing, Toy(2, (failing,)), Toy(3)), "a"),
        Workload(resolved_study(), (Toy(4), Toy(5, (Toy(4),))), "b"),
    ]
    settings = Settings(tmp_path, 1, 1, keep_going=True)
    done = list(find_executor(executor, 1)(loads, settings, lambda event: None))
    (failed,) = [one for one in done if isinstance(one, Failed)]
    assert (failed.study, failed.task) == (0, failing)
    assert [one.task.number for one in done if isinstance(one, Finished)] == [4, 5]
    assert ("ZeroDivisionError" in capsys.readouterr().err) == (error == "bug")


@pytest.mark.parametrize("executor", ["serial", "processes"])
def test_a_store_that_cannot_be_written_ends_all_studies(tmp_path, executor):
    loads = [
        Workload(resolved_study(), (Failing(1, error="storage"),), "a"),
        Workload(resolved_study(), (Toy(2),), "b"),
    ]
    with pytest.raises(StorageError, match=r"the disk is read-only"):
        list(find_executor(executor, 1)(loads, Settings(tmp_path, 1, 1, keep_going=True), lambda event: None))


def test_studies_borrow_what_is_the_same_and_nothing_else(path):
    first, same, other = (
        resolve(Study.load(path.parent / "tiny.toml", [*LIGHT, change]), "cpu")
        for change in ("adaptation.epochs=1", "adaptation.epochs=2", "data.seed=1")
    )
    assert first.corpus is not same.corpus
    for one, equal in ((same, True), (other, False)):
        fresh = type(one)(one.resolved)
        fresh.borrow(first)
        assert (vars(fresh).get("corpus") is first.corpus) == equal
        assert fresh.encoder is first.encoder


# Failures, interruptions and the command line --------------------------------------------------------------------------


def test_a_combination_that_fails_is_reported_and_the_others_are_compared(
    path, copied_home, tmp_path, monkeypatch, no_pages
):
    shutil.rmtree(copied_home / "similarity")
    build = Similarity.build

    def fail(self, context, parents, folder):
        if context.study.adaptation.learning_rate == 0.002:
            raise StudyError("the rate is wrong.")
        build(self, context, parents, folder)

    monkeypatch.setattr(Similarity, "build", fail)
    result = CliRunner().invoke(app, ["sweep", str(path), "--out", str(tmp_path / "out")])
    assert result.exit_code == 2, result.output
    for shuffles in (19, 20):
        assert f"layerprobe: the combination learning_rate 0.002, shuffles {shuffles} failed: the rate" in result.stderr
    assert result.stdout.strip() == str(tmp_path / "out" / "index.html") and "Traceback" not in result.stderr
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert "2 runs compared" in page
    assert "learning_rate 0.002, shuffles 19 is missing, since it failed: the rate is wrong." in page
    failed = Run.load(tmp_path / "out" / "learning-rate-0-002-shuffles-19").record
    assert (failed.status, failed.error) == ("failed", "the rate is wrong.")
    assert "layerprobe sweep" in failed.command
    monkeypatch.setattr(Similarity, "build", build)
    result = CliRunner().invoke(app, ["sweep", str(path), "--out", str(tmp_path / "out")])
    assert result.exit_code == 0 and "4 runs compared" in (tmp_path / "out" / "index.html").read_text(encoding="utf-8")


def test_a_bug_in_all_combinations_leaves_no_page_and_exit_code_1(path, copied_home, tmp_path, monkeypatch):
    shutil.rmtree(copied_home / "capture")

    def fail(self, context, parents, folder):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(Capture, "build", fail)
    result = CliRunner().invoke(app, ["sweep", str(path), "--out", str(tmp_path / "out")])
    assert result.exit_code == 1 and not (tmp_path / "out" / "index.html").exists()
    assert "the runs are not compared: A comparison takes two runs or more, and 0 of the 4" in result.stderr


def test_foreign_folders_and_studies_are_refused(path, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    result = CliRunner().invoke(app, ["sweep", str(path), "--out", str(tmp_path / "mine")])
    assert result.exit_code == 2 and "something other than a comparison" in result.stderr
    result = CliRunner().invoke(app, ["run", str(path), "--out", str(tmp_path / "out")])
    assert result.exit_code == 2 and "is a sweep; run it with `layerprobe sweep`" in result.stderr
    result = CliRunner().invoke(app, ["sweep", str(path.parent / "tiny.toml")])
    assert result.exit_code == 2 and "base is missing" in result.stderr
    with pytest.raises(StudyError, match="--jobs is 0"):
        run_sweep(Sweep.load(path), Computation(jobs=0), out=tmp_path / "out", progress=False)


def test_the_space_for_all_combinations_is_checked_before_anything_starts(path, planned, tmp_path, monkeypatch):
    enough_for_one = max(plan.needed for plan in planned.plans.values())
    assert enough_for_one < planned.needed
    monkeypatch.setattr(pipeline, "_free", lambda folder: enough_for_one)
    with pytest.raises(StorageError, match="are free"):
        run_sweep(Sweep.load(path), out=tmp_path / "out", home=tmp_path / "home", progress=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_sweep_resumes(path, home, first, copied_home, tmp_path, number, no_pages):
    for stage in ("adapt", "capture", "similarity", "nulls", "geometry"):
        shutil.rmtree(copied_home / stage)
    words = [sys.executable, "-m", "layerprobe", "sweep", str(path), "--out", str(tmp_path / "out")]
    process = subprocess.Popen(
        [*words, "--threads", "1"],
        env=environment(copied_home),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    wait_for_line(process, "· adapt: full seed 0: ")
    process.send_signal(number)
    _, rest = process.communicate(timeout=120)
    if number == signal.SIGINT:
        assert process.returncode == 130 and "resume with: layerprobe sweep" in rest
    assert artifacts(copied_home).total() < artifacts(home).total(), "it was not interrupted"
    result = run_sweep(Sweep.load(path), ONE_THREAD, out=tmp_path / "out", home=copied_home, progress=False)
    assert any(task.reused and task.stage == "adapt" for task in next(iter(result.runs.values())).record.tasks)
    for name, run in result.runs.items():
        assert_equal_tables(run, first.runs[name])


def test_the_shipped_sweep_plans_with_both_commands(tmp_path, tiny_bert):
    """On small texts and a small model, since searching the bundled texts for near copies takes a minute."""
    path = analyses() / "sweeps" / "learning_rate.toml"
    text, sweep = path.read_text(encoding="utf-8"), Sweep.load(path)
    assert text.startswith("# ") and sweep.question.endswith("?")
    sources = sweep.axes["data.source"]
    assert {one.removeprefix("bundled:") for one in sources} <= set(bundled.DATA)
    for seed, name in enumerate(sources):
        small = write_csv(tmp_path / f"{name.removeprefix('bundled:')}.csv", n=160, seed=seed)
        text = text.replace(name, str(small))
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps" / "small.toml").write_text(text)
    base = (analyses() / "quickstart.toml").read_text(encoding="utf-8")
    (tmp_path / "quickstart.toml").write_text(base.replace("bundled:minilm-l6", str(tiny_bert)))
    words = [str(tmp_path / "sweeps" / "small.toml")]
    sizes = ("data.train=80", "data.test=40", "data.max_length=32")
    result = CliRunner().invoke(app, ["plan", *words, *(word for size in sizes for word in ("--set", size))])
    assert result.exit_code == 0, result.output
    assert "tweets.csv, learning_rate 2e-05" in result.stdout and "all 6" not in result.stdout
    assert "3 of 6" in result.stdout and "6 combinations with" in result.stdout and "To be added" in result.stdout
    refused = CliRunner().invoke(app, ["sweep", *words, "--plan", "--set", "data.source=x.csv"])
    assert refused.exit_code == 2 and "change the axis instead" in refused.stderr


# The documentation -----------------------------------------------------------------------------------------------------


def test_the_documented_sweep_and_commands_are_valid(path, tmp_path):
    section = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8").split("## Sweeps")[1].split("\n## ")[0]
    (text,) = re.findall(r"```toml\n(.*?)```", section, flags=re.S)
    study = (path.parent / "tiny.toml").read_text()
    (tmp_path / "study.toml").write_text(study)
    (tmp_path / "SWEEP.toml").write_text(text)
    studies = list(Sweep.load(tmp_path / "SWEEP.toml", ["data.test=20"]).studies().values())
    assert len(studies) == 8 and {study.data.label for study in studies} == {"stars", None}
    commands = [shlex.split(one) for one in re.findall(r"`(layerprobe [^`]*)`", section)]
    assert len(commands) == 4
    for words in commands:
        words = [str(path) if word == "SWEEP.toml" else word for word in words[1:]]
        # An axis of the sweep cannot be set: the options were read, and nothing runs.
        ended = CliRunner().invoke(app, [*words, "--set", "adaptation.learning_rate=1"])
        assert ended.exit_code == 2 and "change the axis instead" in ended.stderr, ended.output


def test_the_documented_python_runs(path, copied_home, tmp_path, monkeypatch, capsys, no_pages):
    section = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8").split("## Sweeps")[1].split("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", section, flags=re.S)
    light = [*LIGHT, "adaptation.methods=['head']"]
    text = (
        f"base = {str(path.parent / 'tiny.toml')!r}\noverrides = {light!r}\n[axes]\n'similarity.shuffles' = [19, 20]\n"
    )
    (tmp_path / "sweep.toml").write_text(text)
    (tmp_path / "study.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    runpy.run_path("study.py", run_name="__main__")
    assert capsys.readouterr().out.splitlines()[-1] == "reports/sweep/index.html {}"
    index = (tmp_path / "reports" / "index.html").read_text(encoding="utf-8")
    assert "2 runs in reports" in index and 'href="./sweep/index.html"' in index
