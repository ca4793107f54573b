"""What every executor runs in each of its processes: find or compute the artifact of one task."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from layerprobe import progress
from layerprobe.errors import ArgumentError, StorageError, StudyError
from layerprobe.executors._events import Event, Finished, Progressed, Settings, Started, Workload
from layerprobe.executors._schedule import StudyTask
from layerprobe.store import Artifact, ArtifactStore, Draft
from layerprobe.study import STUDY_KEYS

if TYPE_CHECKING:
    from layerprobe.context import Context
    from layerprobe.stage import ResolvedStudy, Stage

SHORTEST_REPORT = 0.1
"""Seconds between two reports of progress."""
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
MOST_LOSSES = 3
"""Workers that may end during one task before the run ends."""
UNGUARDED = 79
"""Exit code of a worker whose script calls `run` when it is imported."""
Gauge = Callable[[], AbstractContextManager[Callable[[], int]]]
"""Enters the computation of a task; its value returns how many tasks were computed at once since then."""


def picklable(error: BaseException) -> BaseException:
    """The error, or where it cannot be sent to another process, one with the same message."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def one_task() -> AbstractContextManager[Callable[[], int]]:
    """The gauge of a process that computes alone."""
    return nullcontext(lambda: 1)


def end_if_imported_by_worker() -> None:
    """End this process if it is a worker that imports a script which calls `run` without a `__main__` guard."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        os._exit(UNGUARDED)


class Worker:
    """Finds or computes artifacts of one study; keeps the model and the data between tasks."""

    def __init__(
        self,
        study: ResolvedStudy,
        settings: Settings,
        on_event: Callable[[Event], None],
        *,
        context: Context | None = None,
        gauge: Gauge = one_task,
    ) -> None:
        self.study, self.on_event, self.gauge = study, on_event, gauge
        self.store = ArtifactStore(settings.home)
        self._context = context
        self._artifacts: dict[Stage, Artifact] = {}

    @property
    def context(self) -> Context:
        from layerprobe.context import shared_context

        return self._context or shared_context(self.study)

    def run(self, task: Stage) -> Finished:
        """Find or compute a task's artifact.

        Raises:
            LayerprobeError: for user errors; nothing finished is lost.
        """
        before = len(self.store.damaged)
        artifact = self._obtain(task)
        return Finished(task, artifact, tuple(self.store.damaged[before:]))

    def _obtain(self, task: Stage) -> Artifact:
        if task in self._artifacts:
            return self._artifacts[task]
        parents = {role: self._obtain(parent) for role, parent in task.parents().items()}
        metas = {role: parent.meta for role, parent in parents.items()}
        key, identity = task.key(self.study, metas), task.identity(self.study, metas)
        artifact = self.store.find(task.name, task.title, key)
        if artifact is None:
            for role, parent in task.parents().items():
                while not self.store.verify(parents[role]):
                    self._forget(parents[role].folder)
                    parents[role] = self._obtain(parent)

            def build(folder: Path) -> Draft:
                return self._build(task, parents, folder)

            try:
                artifact = self.store.make(
                    task.name, task.title, key, build, identity=identity, resumable=task.resumable
                )
            except Exception as error:
                for used in parents.values():
                    if self.store.find(used.meta.stage, used.meta.title, used.key) is None:
                        raise StorageError(
                            f"{used.folder} was removed or damaged while {task.id} was computed from it; run the same command "
                            "again."
                        ) from error
                raise
        self._artifacts[task] = artifact
        return artifact

    def _forget(self, folder: Path) -> None:
        self._artifacts = {task: found for task, found in self._artifacts.items() if found.folder != folder}

    def _build(self, task: Stage, parents: dict[str, Artifact], folder: Path) -> Draft:
        self.on_event(Started(task.id))
        last = 0.0

        def report(label: str, done: int, total: int | None) -> None:
            nonlocal last
            if (now := time.monotonic()) - last >= SHORTEST_REPORT:
                last = now
                self.on_event(Progressed(task.id, label, done, total))

        try:
            with self.gauge() as peak, progress.reporting(report):
                task.build(self.context, parents, folder)
                concurrent = peak()
        except ArgumentError as error:
            raise StudyError(error.with_names({**STUDY_KEYS, **task.study_keys})) from error
        return Draft(task.content(folder), task.checksums(folder), concurrent)


class StudyWorkers:
    """The workers of one process: one for each study that it computes for."""

    def __init__(
        self,
        workloads: Sequence[Workload],
        settings: Settings,
        on_event: Callable[[Event], None],
        *,
        gauge: Gauge = one_task,
    ) -> None:
        self.workloads, self.settings, self.on_event, self.gauge = workloads, settings, on_event, gauge
        self._workers: dict[int, Worker] = {}

    def run(self, task: StudyTask) -> Finished:
        """Find or compute a task's artifact.

        Raises:
            LayerprobeError: for user errors; nothing finished is lost.
        """
        return replace(self._worker(task.study).run(task.task), study=task.study)

    def _worker(self, number: int) -> Worker:
        if number not in self._workers:
            workload = self.workloads[number]

            def send(event: Event) -> None:
                self.on_event(replace(event, task=f"{workload.name} · {event.task}" if workload.name else event.task))

            self._workers[number] = Worker(workload.study, self.settings, send, gauge=lambda: self.gauge())
        return self._workers[number]
