"""Executors: the same results in one process or several, and every way in which a process can end."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from running import LIGHT, environment, run_study, stages, start, wait_for_line, write_study
from toy_stages import (
    Accelerated,
    AcceleratedMeeting,
    Failing,
    Killed,
    Meeting,
    PeculiarError,
    Threads,
    Toy,
    losses,
    resolved_study,
    times_built,
)

from layerprobe import Run, Study, run
from layerprobe.errors import ArgumentError, StorageError, StudyError
from layerprobe.executors import Progressed, Settings, Started, Workload, find_executor
from layerprobe.graph import expand
from layerprobe.resolve import resolve

LOCAL = ("serial", "processes")
"""Executors of one machine; `test_ray.py` tests the one of a cluster."""
TREE = (a := Toy(1), b := Toy(2), c := Toy(3, (a, b)), d := Toy(4, (b,)), Toy(5, (a, c, d)))


def execute(tasks, home, *, executor="processes", jobs=2, study=None, on_event=lambda event: None, threads=1):
    settings = Settings(home, jobs, threads)
    return list(find_executor(executor, jobs)([Workload(study or resolved_study(), tasks)], settings, on_event))


def value(finished):
    return int((finished.artifact.folder / "value.txt").read_text())


# The contract ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("executor", LOCAL)
def test_tasks_are_computed_after_their_parents_and_reused_later(tmp_path, executor):
    events = []
    finished = execute(TREE, tmp_path, executor=executor, on_event=events.append)
    order = [one.task for one in finished]
    assert set(order) == set(TREE) and len(order) == len(TREE)
    for place, task in enumerate(order):
        assert all(order.index(parent) < place for parent in task.before)
    assert {one.task.number: value(one) for one in finished} == {1: 1, 2: 2, 3: 6, 4: 6, 5: 18}
    assert not any(one.artifact.reused or one.damaged for one in finished)
    assert {event.task for event in events if isinstance(event, Started)} == {task.id for task in TREE}
    assert {(event.task, event.label) for event in events if isinstance(event, Progressed)} == {
        (task.id, "adding") for task in TREE if task.before
    }
    again = execute(TREE, tmp_path, executor=executor, on_event=lambda event: pytest.fail("a task was computed again"))
    assert all(one.artifact.reused for one in again)
    assert {one.task: one.artifact.key for one in again} == {one.task: one.artifact.key for one in finished}


@pytest.mark.parametrize("executor", LOCAL)
def test_some_of_the_tasks_can_be_run_alone(tmp_path, executor):
    (finished,) = execute(TREE[-1:], tmp_path, executor=executor)
    assert value(finished) == 18


@pytest.mark.parametrize("executor", LOCAL)
def test_a_damaged_parent_is_computed_again_and_named_once(tmp_path, executor):
    children = (Toy(6, (a, b)), Toy(7, (a, b)))
    (parent, *_) = execute(TREE[:2], tmp_path, executor="serial")
    (parent.artifact.folder / "value.txt").write_text("9")
    finished = execute((*TREE[:2], *children), tmp_path, executor=executor)
    assert sorted(value(one) for one in finished) == [1, 2, 9, 10]
    (sentence,) = [sentence for one in finished for sentence in one.damaged]
    assert f"toy/{parent.artifact.folder.name}: value.txt does not match its checksum" in sentence


def test_what_workers_receive_and_send_can_be_pickled(tmp_path, tiny_bert, tiny_csv):
    study = Study.load(write_study(tmp_path, tiny_bert, tiny_csv))
    resolved = resolve(study, "cpu").resolved
    tasks = expand(study, resolved.n_layers)
    events = (Started("adapt: head"), Progressed("adapt: head", "training", 3, None))
    for one in (study, resolved, *tasks, Settings(Path("home"), 2, 1), *events):
        copy = pickle.loads(pickle.dumps(one))
        assert copy == one
    for finished in execute(TREE[:1], tmp_path, executor="serial"):
        assert pickle.loads(pickle.dumps(finished)) == finished


def test_unknown_executors_and_numbers_of_jobs_are_refused(tmp_path):
    with pytest.raises(
        StudyError, match=r"executor 'slurm' is unknown; the executors are auto, serial, processes, ray"
    ):
        find_executor("slurm", 1)
    study = Study.parse({"name": "x", "model": {"name": "m"}, "data": {"source": "d"}})
    for name, number in (("jobs", 0), ("jobs", -2), ("threads", 0)):
        with pytest.raises(StudyError, match=rf"{name} is {number}; it is a whole number of 1 or more"):
            run(study, out=tmp_path, progress=False, **{name: number})
    with pytest.raises(StudyError, match=r"--address auto is for the executor ray; add --executor ray"):
        run(study, out=tmp_path, progress=False, address="auto")
    assert find_executor("auto", 1) is find_executor("serial", 1)
    assert find_executor("auto", 2) is find_executor("processes", 2)


def test_a_process_of_a_launcher_does_not_run_the_whole_study(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    study = Study.parse({"name": "x", "model": {"name": "m"}, "data": {"source": "d"}})
    with pytest.raises(StudyError, match=r"WORLD_SIZE is 2: .* start layerprobe without the launcher"):
        run(study, out=tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


# Side by side ----------------------------------------------------------------------------------------------------------


def test_independent_tasks_run_side_by_side_and_their_number_is_recorded(tmp_path):
    (tmp_path / "place").mkdir()
    pair = (Meeting(1, place=tmp_path / "place"), Meeting(2, place=tmp_path / "place"))
    alone = Toy(3, pair)
    finished = {one.task: one for one in execute((*pair, alone), tmp_path / "home")}
    assert [finished[task].artifact.meta.concurrent_tasks for task in (*pair, alone)] == [2, 2, 1]


def test_an_accelerator_computes_one_task_at_a_time(tmp_path):
    """The first task ends only while the third runs, which needs no accelerator and so overtakes the second."""
    (tmp_path / "place").mkdir()
    place = tmp_path / "place"
    tasks = (AcceleratedMeeting(1, place=place), Accelerated(2), Meeting(3, place=place))
    finished = execute(tasks, tmp_path / "home", study=resolved_study("cuda"))
    times = [json.loads((one.artifact.folder / "times.json").read_text()) for one in finished if one.task != tasks[-1]]
    (_, first_end), (second_start, _) = sorted(times)
    assert first_end <= second_start


@pytest.mark.parametrize("executor", LOCAL)
def test_tasks_use_the_number_of_threads_that_is_set(tmp_path, executor, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    import torch

    before = torch.get_num_threads()
    (finished,) = execute((Threads(1),), tmp_path, executor=executor, threads=2)
    threads = (finished.artifact.folder / "threads.json").read_text()
    assert '"torch": 2' in threads
    assert ('"OMP": "2"' in threads) == (executor == "processes")
    assert torch.get_num_threads() == before and os.environ["OMP_NUM_THREADS"] == "1"


# Processes that end ----------------------------------------------------------------------------------------------------


def test_a_worker_that_is_killed_in_mid_task_loses_nothing(tmp_path):
    """What was finished is kept, and the task that was killed starts again."""
    finished = execute(losses(tmp_path), tmp_path / "home")
    assert sorted(value(one) for one in finished) == [1, 3, 7]
    assert times_built(tmp_path) == ({1: 1, 3: 1}, 2)


def test_a_task_whose_workers_are_killed_again_and_again_ends_the_run(tmp_path):
    with pytest.raises(StudyError, match=r"worker process that ran killed: number 1 ended 3 times .* fewer jobs"):
        execute((Killed(1, times=99, place=tmp_path),), tmp_path / "home")
    assert children(os.getpid()) == set()


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("study", StudyError, r"^the study is wrong\.$"),
        ("argument", StudyError, r"^sae\.k is 99; lower sae\.k\.$"),
        ("storage", StorageError, r"^the disk is read-only\.$"),
        ("full", StorageError, r"disk is full: failing number 1"),
        ("bug", ZeroDivisionError, "a bug"),
        ("peculiar", (PeculiarError, RuntimeError), "this and that"),
        ("exit", SystemExit, "a library that exits"),
    ],
)
def test_errors_are_those_of_the_serial_executor(tmp_path, capfd, name, kind, words):
    for executor in LOCAL:
        with pytest.raises(kind, match=words) as caught:
            execute((Failing(1, error=name), Toy(2)), tmp_path, executor=executor, jobs=1)
        assert not isinstance(caught.value, ArgumentError)
    # The place of a bug is shown; a user error is one sentence.
    assert ("toy_stages.py" in capfd.readouterr().err) == (name in ("bug", "peculiar", "exit"))
    assert children(os.getpid()) == set()


# Whole runs ------------------------------------------------------------------------------------------------------------


def children(pid):
    """Worker processes of a process."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
            command = (folder / "cmdline").read_text()
        except OSError:
            continue
        if parent == pid and "spawn_main" in command:
            found.add(int(folder.name))
    return found


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def assert_end(pids):
    deadline = time.monotonic() + 60
    while any(map(is_alive, pids)):
        assert time.monotonic() < deadline, "a worker process is left"
        time.sleep(0.1)


linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are listed through /proc")


@pytest.fixture
def study_path(tmp_path, tiny_bert, tiny_csv):
    return write_study(tmp_path, tiny_bert, tiny_csv)


def started(study_path, tmp_path):
    """A run of two jobs in the middle, and its workers."""
    process = start(study_path, tmp_path / "out", tmp_path / "home", "--jobs", 2, "--threads", 1)
    wait_for_line(process, "] capture: base")
    workers = children(process.pid)
    assert len(workers) == 2
    return process, workers


@linux
@pytest.mark.parametrize(("number", "name"), [(signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM")])
def test_an_interrupted_run_of_two_jobs_leaves_no_process_and_can_be_resumed(study_path, tmp_path, number, name):
    process, workers = started(study_path, tmp_path)
    os.killpg(process.pid, number)  # a terminal or a scheduler sends it to all of them
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert f"with: layerprobe run {study_path} --out {tmp_path / 'out'}" in err and "--jobs 2" in err
    assert "Traceback" not in err
    assert_end(workers)
    record = Run.load(tmp_path / "out").record
    assert (record.status, record.error) == ("interrupted", name)
    result = run_study(study_path, tmp_path / "out", tmp_path / "home", *LIGHT)
    assert result.record.status == "complete" and result.record.recomputed == []
    assert "capture" in stages(result, reused=True)


@linux
def test_a_run_survives_the_loss_of_a_worker_and_its_workers_end_with_it(study_path, tmp_path):
    process, workers = started(study_path, tmp_path)
    os.kill(min(workers), signal.SIGKILL)
    wait_for_line(process, "] similarity: full seed 0")
    replaced = children(process.pid)
    assert len(replaced) == 2 and min(workers) not in replaced
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert Run.load(tmp_path / "out").record.status == "complete"
    assert_end(workers | replaced)


@linux
def test_workers_end_when_the_run_is_killed(study_path, tmp_path):
    process, workers = started(study_path, tmp_path)
    process.kill()
    process.wait(60)
    assert_end(workers)


def test_a_script_without_a_main_guard_gets_one_sentence(study_path, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from pathlib import Path\n"
        "from layerprobe import Study, run\n"
        f"with Path({str(tmp_path / 'imports')!r}).open('a') as file: file.write('imported ')\n"
        f"run(Study.load({str(study_path)!r}, {list(LIGHT)!r}), out={str(tmp_path / 'out')!r}, jobs=2, progress=False)\n"
    )
    ended = subprocess.run(
        [sys.executable, str(script)], env=environment(tmp_path / "home"), capture_output=True, text=True, timeout=300
    )
    assert ended.returncode == 1
    assert ended.stderr.count("Traceback") == 1  # the script's own: it does not catch the error
    last = ended.stderr.strip().splitlines()[-1]
    assert "StudyError" in last and 'put the call below `if __name__ == "__main__":`, or use jobs=1' in last
    assert len((tmp_path / "imports").read_text().split()) <= 3  # once in the script, and once in each worker
    assert "__main__" in Run.load(tmp_path / "out").record.error
