"""Independent tasks on a Ray cluster, whose machines share the artifact store."""

from __future__ import annotations

import importlib.util
import os
import socket
import traceback
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerprobe import interrupt
from layerprobe.errors import LayerprobeError, StudyError
from layerprobe.executors._events import Event, Failed, Finished, Settings, Workload
from layerprobe.executors._schedule import Schedule, StudyTask
from layerprobe.executors._worker import MOST_LOSSES, THREAD_VARIABLES, StudyWorkers, picklable

if TYPE_CHECKING:
    from layerprobe.stage import Stage

POLL_SECONDS = 0.2
"""Time between two looks at the events of running tasks."""


def execute(
    workloads: Sequence[Workload], settings: Settings, on_event: Callable[[Event], None]
) -> Iterator[Finished | Failed]:
    """Run tasks on a Ray cluster, each as soon as its parents are finished.

    Ray places a task where its threads, its memory and, on an accelerator, one device are free. Workers keep model and data
    between tasks. A task whose worker is lost starts again elsewhere. All machines must see `settings.home` and the files of
    the study under the same paths.

    Raises:
        StudyError: if Ray is not installed, no cluster is at the address, no machine of it can hold a task, or workers end
            repeatedly.
    """
    with _cluster(settings.address) as ray:
        yield from _run(ray, workloads, settings, on_event)


def _run(
    ray: Any, workloads: Sequence[Workload], settings: Settings, on_event: Callable[[Event], None]
) -> Iterator[Finished | Failed]:
    threads = settings.threads or 1
    environment = {"env_vars": dict.fromkeys(THREAD_VARIABLES, str(threads))}
    board = ray.remote(num_cpus=0)(_Board).remote()
    compute = ray.remote(max_retries=MOST_LOSSES - 1, runtime_env=environment)(_compute)
    studies = [replace(workload, tasks=()) for workload in workloads]
    shared = ray.put(_Run(uuid.uuid4().hex, studies, settings, threads, Path.cwd()))
    schedule = Schedule(workloads, keep_going=settings.keep_going)
    running: dict[Any, StudyTask] = {}
    try:
        while schedule.active:
            for one in schedule.startable():
                task, study = one.task, workloads[one.study].study
                needs: dict[str, float] = {"num_cpus": threads, "memory": task.memory(study)}
                if task.accelerator and study.device == "cuda":
                    needs["num_gpus"] = 1
                _check_room(ray, task, needs)
                schedule.start(one)
                running[compute.options(**needs, name=task.id).remote(shared, tuple(one), board)] = one
            done, _ = ray.wait(list(running), num_returns=1, timeout=POLL_SECONDS)
            for event in ray.get(board.drain.remote()):
                on_event(event)
            for reference in done:
                result = _result(ray, reference, running.pop(reference))
                schedule.end(result)
                yield result
    finally:
        for reference in running:
            ray.cancel(reference)


@contextmanager
def _cluster(address: str | None) -> Iterator[Any]:
    """The module `ray`, connected to a cluster; disconnected afterwards, unless it was connected before."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Where a driver sees no accelerator, Ray would hide those that it did not assign from the workers anyway.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if importlib.util.find_spec("ray") is None:
        raise StudyError('The executor ray needs the package ray: pip install "layerprobe[ray]".')
    import ray

    if ray.is_initialized():
        yield ray
        return
    address = address or os.environ.get("RAY_ADDRESS")
    try:
        _check_reachable(address)
        ray.init(address=address, include_dashboard=False if address is None else None, log_to_driver=False)
        interrupt.resume_listening()  # Ray would end the process
    except (OSError, RuntimeError, ValueError) as error:
        raise StudyError(
            f"No Ray cluster could be reached at --address {address}: {_first_line(error)}; start one with `ray start --head`, "
            "or leave the address out for a cluster on this machine alone."
        ) from None
    try:
        yield ray
    finally:
        ray.shutdown()


def _check_reachable(address: str | None) -> None:
    """Connect to an address once, since Ray ends the process where nothing listens.

    Raises:
        OSError: if nothing listens there.
    """
    host, separator, port = (address or "").removeprefix("ray://").rpartition(":")
    if separator and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=20).close()


def _check_room(ray: Any, task: Stage, needs: dict[str, float]) -> None:
    """Refuse a task that Ray would wait for forever: no machine of the cluster is large enough."""
    names = {"num_cpus": "CPU", "num_gpus": "GPU", "memory": "memory"}
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(all(machine.get(names[name], 0) >= amount for name, amount in needs.items()) for machine in machines):
        wanted = f"{needs['num_cpus']:.0f} CPUs and {needs['memory'] / 1e9:.1f} GB of memory"
        wanted += " with a GPU" if "num_gpus" in needs else ""
        raise StudyError(
            f"No machine of the Ray cluster has {wanted}, which {task.id} needs; lower --threads, or add a machine."
        )


def _result(ray: Any, reference: Any, one: StudyTask) -> Finished | Failed:
    """What a task returned; a failure if its workers ended repeatedly."""
    try:
        return ray.get(reference)
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.NodeDiedError, ray.exceptions.OutOfMemoryError) as error:
        lost = StudyError(
            f"A Ray worker that ran {one.task.id} ended {MOST_LOSSES} times ({_first_line(error)}), perhaps because memory "
            "ran out; use fewer CPUs per machine, or a smaller study."
        )
        return Failed(one.task, lost, study=one.study)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(". ") if lines else type(error).__name__


@dataclass(frozen=True)
class _Run:
    """What all tasks of one run share."""

    id: str
    studies: Sequence[Workload]
    settings: Settings
    threads: int
    folder: Path
    """The caller's working folder, to which paths of the study may be relative."""


def _compute(run: _Run, one: tuple[int, Stage], board: Any) -> Finished | Failed:
    """One task, on a worker of the cluster."""
    import ray

    context = ray.get_runtime_context()
    place, number = context.get_node_id(), context.get_task_id()

    @contextmanager
    def gauge() -> Iterator[Callable[[], int]]:
        ray.get(board.enter.remote(place, number))
        try:
            yield lambda: ray.get(board.peak.remote(place, number))
        finally:
            ray.get(board.leave.remote(place, number))

    def send(event: Event) -> None:
        board.send.remote(event)

    try:
        if run.folder.is_dir():
            os.chdir(run.folder)
        workers = _workers_of(run)
        workers.on_event, workers.gauge = send, gauge
        return workers.run(StudyTask(*one))
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        trace = "" if isinstance(error, LayerprobeError) else traceback.format_exc()
        return Failed(one[1], picklable(error), trace, one[0])


def _workers_of(run: _Run) -> StudyWorkers:
    """This process's workers for a run, with the models and the data that they have loaded."""
    import torch
    from threadpoolctl import threadpool_limits

    if run.id not in _workers:
        torch.set_num_threads(run.threads)
        threadpool_limits(run.threads)
        _workers.clear()
        _workers[run.id] = StudyWorkers(run.studies, run.settings, lambda event: None)
    return _workers[run.id]


_workers: dict[str, StudyWorkers] = {}
"""The workers of the last run that this process computed for, by the run's id."""


class _Board:
    """An actor: the events of running tasks, and which tasks run on each machine."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.peaks: dict[str, dict[str, int]] = {}

    def send(self, event: Event) -> None:
        self.events.append(event)

    def drain(self) -> list[Event]:
        events, self.events = self.events, []
        return events

    def enter(self, place: str, task: str) -> None:
        tasks = self.peaks.setdefault(place, {})
        tasks[task] = 0
        for other in tasks:
            tasks[other] = max(tasks[other], len(tasks))

    def peak(self, place: str, task: str) -> int:
        return self.peaks[place][task]

    def leave(self, place: str, task: str) -> None:
        self.peaks[place].pop(task, None)
