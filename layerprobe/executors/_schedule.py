"""Which tasks may start: those whose parents are finished, and of tasks that are one computation, one."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from graphlib import TopologicalSorter
from typing import TYPE_CHECKING, NamedTuple

from layerprobe.errors import StorageError
from layerprobe.executors._events import Failed, Finished, Workload

if TYPE_CHECKING:
    from layerprobe.stage import Stage
    from layerprobe.store import ArtifactMeta


class StudyTask(NamedTuple):
    """A task of one of the studies that run together."""

    study: int
    """Number of its workload."""
    task: Stage

    @property
    def parents(self) -> dict[str, StudyTask]:
        return {role: StudyTask(self.study, parent) for role, parent in self.task.parents().items()}


class Schedule:
    """The state of all tasks of several studies.

    Tasks with equal keys are one computation, within a study and between studies. While one of them runs, the others wait
    without occupying a worker, and then find its artifact.
    """

    def __init__(self, workloads: Sequence[Workload], *, keep_going: bool = False) -> None:
        self.workloads, self.keep_going = workloads, keep_going
        tasks = [StudyTask(number, task) for number, workload in enumerate(workloads) for task in workload.tasks]
        self._places = {task: place for place, task in enumerate(tasks)}
        self._sorter = TopologicalSorter(
            {task: [parent for parent in task.parents.values() if parent in self._places] for task in tasks}
        )
        self._sorter.prepare()
        self._ready: dict[StudyTask, str | None] = {}
        self._running: dict[StudyTask, str | None] = {}
        self._metas: dict[StudyTask, ArtifactMeta] = {}
        self._failed: set[int] = set()

    def __len__(self) -> int:
        return len(self._places)

    @property
    def active(self) -> bool:
        """Whether any task is running or yet to run."""
        self._release()
        return self._sorter.is_active()

    def startable(self) -> list[StudyTask]:
        """Tasks that may start now, in their order."""
        self._release()
        busy = set(self._running.values()) - {None}
        free = []
        for task in sorted(self._ready, key=self._places.__getitem__):
            key = self._ready[task]
            if key not in busy:
                free.append(task)
                busy |= {key} - {None}
        return free

    def start(self, task: StudyTask) -> None:
        """Note that a task was given to a worker."""
        self._running[task] = self._ready.pop(task)

    def restart(self, task: StudyTask) -> None:
        """Note that a task's worker was lost, so that it may start again."""
        self._ready[task] = self._running.pop(task)

    def end(self, result: Finished | Failed) -> None:
        """Note the result of a task; no further task of its study starts after a failure.

        Raises:
            BaseException: the error of a task that failed, unless the other studies are to go on and can: an artifact store
                that cannot be written stops all of them.
        """
        if isinstance(result, Failed):
            print(result.trace, file=sys.stderr, end="")
            if result.task is None or not self.keep_going or isinstance(result.error, StorageError):
                raise result.error
        assert result.task is not None
        task = StudyTask(result.study, result.task)
        self._running.pop(task)
        if isinstance(result, Finished):
            self._metas[task] = result.artifact.meta
        else:
            self._failed.add(task.study)
        self._sorter.done(task)

    def _release(self) -> None:
        """Take the tasks whose parents are finished; skip those of a study that failed."""
        while released := [*self._sorter.get_ready(), *(task for task in self._ready if task.study in self._failed)]:
            for task in released:
                if task.study in self._failed:
                    self._ready.pop(task, None)
                    self._sorter.done(task)
                else:
                    self._ready[task] = self._key(task)

    def _key(self, task: StudyTask) -> str | None:
        """The key of a task's artifact; None if a parent is not among the tasks."""
        metas = {role: self._metas.get(parent) for role, parent in task.parents.items()}
        known = {role: meta for role, meta in metas.items() if meta is not None}
        return task.task.key(self.workloads[task.study].study, known) if len(known) == len(metas) else None
