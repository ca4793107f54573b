"""The Ray executor on a real local cluster of two machines with one processor each."""

import json
import os
import re
import shutil
import subprocess
import threading
from pathlib import Path

import pytest
from running import LIGHT, assert_equal_tables, no_page, run_study, write_study
from test_executors import TREE, execute, value
from toy_stages import Failing, Meeting, Threads, Toy, losses, resolved_study, times_built
from typer.testing import CliRunner

from layerprobe import Run
from layerprobe.cli import app
from layerprobe.errors import StudyError
from layerprobe.executors import Progressed, Settings, Started, Workload, find_executor

DOCS = Path(__file__).parent.parent / "docs" / "scaling.md"


@pytest.fixture(scope="module")
def cluster():
    """Two machines that find this checkout and its test modules."""
    tests = Path(__file__).parent
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(tests.parent), str(tests)]))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        import ray
        from ray.cluster_utils import Cluster

        cluster = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 1, "memory": 4e9, "object_store_memory": 1e8, "include_dashboard": False},
        )
        cluster.add_node(num_cpus=1, memory=4e9, object_store_memory=1e8)
        cluster.wait_for_nodes()
        ray.init(address=cluster.address, log_to_driver=False)
        yield cluster
        ray.shutdown()
        cluster.shutdown()


def on_ray(tasks, home, **options):
    return execute(tasks, home, executor="ray", **options)


def test_tasks_are_computed_after_their_parents_and_reused_later(cluster, tmp_path):
    events = []
    finished = on_ray(TREE, tmp_path, on_event=events.append)
    order = [one.task for one in finished]
    assert set(order) == set(TREE)
    for place, task in enumerate(order):
        assert all(order.index(parent) < place for parent in task.before)
    assert {one.task.number: value(one) for one in finished} == {1: 1, 2: 2, 3: 6, 4: 6, 5: 18}
    assert {event.task for event in events if isinstance(event, Started)} <= {task.id for task in TREE}
    assert all(isinstance(event, Started | Progressed) for event in events)
    again = on_ray(TREE, tmp_path)
    assert all(one.artifact.reused for one in again)


def test_independent_tasks_run_on_both_machines(cluster, tmp_path):
    beside = []
    for number in range(3):  # where Ray knows of one machine alone at first, as on a busy one, both run there
        (place := tmp_path / f"place {number}").mkdir()
        pair = (Meeting(1, place=place), Meeting(2, place=place))
        finished = {one.task: one for one in on_ray(pair, tmp_path / f"home {number}")}
        beside.append([finished[task].artifact.meta.concurrent_tasks for task in pair])
        if beside[-1] == [1, 1]:
            return  # each machine computed one task: their seconds are comparable
    pytest.fail(f"tasks that ran at the same time on a machine: {beside}")


def test_a_worker_that_is_killed_in_mid_task_loses_nothing(cluster, tmp_path):
    """What was finished is kept, and the task that was killed starts again."""
    finished = on_ray(losses(tmp_path), tmp_path / "home")
    assert sorted(value(one) for one in finished) == [1, 3, 7]
    assert times_built(tmp_path) == ({1: 1, 3: 1}, 2)


def test_tasks_use_the_number_of_threads_that_is_set(cluster, tmp_path):
    (finished,) = on_ray((Threads(1),), tmp_path, threads=1)
    assert json.loads((finished.artifact.folder / "threads.json").read_text()) == {"torch": 1, "OMP": "1"}


@pytest.mark.parametrize(
    ("name", "words"), [("argument", r"^sae\.k is 99; lower sae\.k\.$"), ("peculiar", "this and that")]
)
def test_errors_are_those_of_the_serial_executor(cluster, tmp_path, name, words):
    with pytest.raises((StudyError, RuntimeError), match=words):
        on_ray((Failing(1, error=name),), tmp_path)


def test_a_task_that_no_machine_can_hold_is_refused(cluster, tmp_path):
    with pytest.raises(
        StudyError, match=r"No machine of the Ray cluster has 3 CPUs .* toy: number 1 needs; lower --threads"
    ):
        on_ray((Toy(1),), tmp_path, threads=3)


def test_an_address_without_a_cluster_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    settings = Settings(tmp_path, address="127.0.0.1:1")
    with pytest.raises(
        StudyError, match=r"No Ray cluster could be reached at --address 127\.0\.0\.1:1: .*Connection refused"
    ):
        list(find_executor("ray", 1)([Workload(resolved_study(), (Toy(1),))], settings, print))


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_the_slurm_script_is_valid():
    (script,) = re.findall(r"```bash\n(#!/bin/bash.*?)```", DOCS.read_text(encoding="utf-8"), flags=re.S)
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    (command,) = [line.split() for line in script.splitlines() if line.startswith("layerprobe")]
    study = Path(__file__).parent.parent / "analyses" / "quickstart.toml"
    options = [str(study) if word == '"$1"' else word for word in command[1:]]
    ended = CliRunner().invoke(app, [*options, "--set", "data.source=nowhere.csv"])
    assert ended.exit_code == 2 and "No such option" not in ended.output


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_bert, tiny_csv):
    """With a study, and two stores: `home` for the cluster, `serial` for the runs that its tables are compared with."""
    folder = tmp_path_factory.mktemp("ray")
    write_study(folder, tiny_bert, tiny_csv)
    return folder


def run_serially(folder, *changes):
    return run_study(folder / "tiny.toml", folder / f"alone {changes}", folder / "serial", *LIGHT, *changes)


def test_two_equal_studies_at_once_compute_nothing_twice_and_equal_the_serial_run(cluster, folder):
    serial = run_serially(folder)
    runs: dict[str, Run] = {}

    def study(name):
        path = folder / "tiny.toml"
        runs[name] = run_study(path, folder / name, folder / "home", *LIGHT, page=True, executor="ray")

    threads = [threading.Thread(target=study, args=(name,)) for name in ("first", "second")]
    with no_page():  # once for both threads, since each would undo the other's patch
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for result in runs.values():
        assert_equal_tables(serial, result)
    computed = [{task.key for task in result.record.tasks if not task.reused} for result in runs.values()]
    assert not computed[0] & computed[1]
    assert computed[0] | computed[1] == {task.key for task in serial.record.tasks}


def test_a_sweep_on_the_cluster_gives_the_tables_of_serial_runs(cluster, folder, monkeypatch):
    """In the store of the studies above: what the combinations share is there, or is computed once."""
    text = f"base = 'tiny.toml'\noverrides = {list(LIGHT)!r}\n[axes]\n'similarity.shuffles' = [19, 20]\n"
    (folder / "sweep.toml").write_text(text)
    monkeypatch.setenv("LAYERPROBE_HOME", str(folder / "home"))
    words = ["sweep", str(folder / "sweep.toml"), "--out", str(folder / "sweep"), "--executor", "ray", "--threads", "1"]
    with no_page():
        ended = CliRunner().invoke(app, words)
    assert ended.exit_code == 0, ended.output
    runs = {number: Run.load(folder / "sweep" / f"shuffles-{number}") for number in (19, 20)}
    computed = [task.key for run in runs.values() for task in run.record.tasks if not task.reused]
    assert len(computed) == len(set(computed))
    for number, result in runs.items():
        assert_equal_tables(result, run_serially(folder, f"similarity.shuffles={number}"))
