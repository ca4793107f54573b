"""Progress of a run on stderr: one display for all tasks on a terminal, one line per task elsewhere."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from layerprobe.executors import Event, Failed, Finished, Progressed, Started, Workload
from layerprobe.files import write_json

if TYPE_CHECKING:
    from layerprobe.stage import Stage

DURATIONS = "durations.json"
"""Seconds that a task of each stage took last time, below the root of the artifact store."""


class Display:
    """Shows tasks done of all, the running ones with their own progress, the elapsed time and an estimate of the rest."""

    def __init__(self, workloads: Sequence[Workload], home: Path, jobs: int, *, visible: bool) -> None:
        self.workloads, self.visible, self.jobs = workloads, visible, jobs
        self.live = visible and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self.durations = Durations(home)
        self.pending = {
            workload.id(task): self.durations.expected(task) for workload in workloads for task in workload.tasks
        }
        self.n_tasks = len(self.pending)
        self.started: dict[str, float] = {}

    def __enter__(self) -> Self:
        if self.live:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

            self.progress = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[state]}", markup=False),
                TimeElapsedColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self.overall = self.progress.add_task("all tasks", total=self.n_tasks, state="")
            self.bars: dict[str, object] = {}
            self._update()
            self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live:
            self.progress.stop()
        self.durations.save()

    @property
    def n_finished(self) -> int:
        """Tasks that have ended; one that is computed again counts once."""
        return self.n_tasks - len(self.pending)

    def on_event(self, event: Event) -> None:
        """Show the start or the progress of a task."""
        if isinstance(event, Started):
            self.started[event.task] = time.monotonic()
        if not self.live:
            return
        if event.task not in self.bars:
            self.bars[event.task] = self.progress.add_task(event.task, total=None, state="")
        if isinstance(event, Progressed):
            self.progress.update(
                self.bars[event.task],  # type: ignore[arg-type]
                completed=event.done,
                total=event.total,
                state=event.label,
            )
        self._update()

    def finished(self, result: Finished) -> None:
        """Show the end of a task."""
        task, artifact = result.task, result.artifact
        if not artifact.reused:
            self.durations.note(task, artifact.meta.seconds)
        self.note(result.damaged)
        state = "reused" if artifact.reused else f"{artifact.meta.seconds:.1f} s"
        self._end(self.workloads[result.study].id(task), state)

    def note(self, sentences: Sequence[str]) -> None:
        """Show which artifacts were damaged."""
        for sentence in sentences:
            if self.live:
                self.progress.console.print(f"Damaged: {sentence}", markup=False, highlight=False)
            elif self.visible:
                print(f"Damaged: {sentence}", file=sys.stderr, flush=True)

    def failed(self, result: Failed) -> None:
        """Show that a task failed; the tasks of its study that have not started are left out."""
        workload = self.workloads[result.study]
        for task in workload.tasks:
            self.pending.pop(workload.id(task), None)
        assert result.task is not None
        self._end(workload.id(result.task), "failed")

    def _end(self, task: str, state: str) -> None:
        self.pending.pop(task, None)
        self.started.pop(task, None)
        if self.live:
            if task in self.bars:
                self.progress.remove_task(self.bars.pop(task))  # type: ignore[arg-type]
            self._update()
        elif self.visible:
            print(f"[{self.n_finished}/{self.n_tasks}] {task}: {state}", file=sys.stderr, flush=True)

    def _update(self) -> None:
        self.progress.update(
            self.overall, completed=self.n_finished, state=f"{self.n_finished} of {self.n_tasks}, {self._remaining()}"
        )

    def _remaining(self) -> str:
        now = time.monotonic()
        seconds = sum(
            max(0.0, expected - (now - self.started[task]) if task in self.started else expected)
            for task, expected in self.pending.items()
        )
        seconds /= self.jobs
        return f"about {duration(seconds)} left"


def duration(seconds: float) -> str:
    """A time in words, rounded."""
    if seconds >= 5400:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


class Durations:
    """Seconds per task of each stage, from earlier runs; before the first one, each stage's own guess."""

    def __init__(self, home: Path) -> None:
        self.path = home / DURATIONS
        self.seconds: dict[str, float] = {}
        with contextlib.suppress(OSError, ValueError, TypeError, AttributeError, RecursionError):
            content = json.loads(self.path.read_text(encoding="utf-8"))
            self.seconds = {str(stage): float(value) for stage, value in content.items()}

    def expected(self, task: Stage) -> float:
        return self.seconds.get(task.name, task.first_guess)

    def is_measured(self, task: Stage) -> bool:
        """Whether tasks of this stage have been computed here."""
        return task.name in self.seconds

    def note(self, task: Stage, seconds: float) -> None:
        before = self.seconds.get(task.name)
        self.seconds[task.name] = seconds if before is None else (before + seconds) / 2

    def save(self) -> None:
        with contextlib.suppress(OSError):
            write_json(self.path, self.seconds)
