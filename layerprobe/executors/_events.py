"""What executors are given, and what they report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from layerprobe.stage import ResolvedStudy, Stage
    from layerprobe.store import Artifact


@dataclass(frozen=True)
class Workload:
    """Tasks of one study, parents first."""

    study: ResolvedStudy
    tasks: tuple[Stage, ...]
    name: str = ""
    """Name of the study among those that run together; empty if it runs alone."""

    def id(self, task: Stage) -> str:
        """Name of one of its tasks among those of all studies."""
        return f"{self.name} · {task.id}" if self.name else task.id


@dataclass(frozen=True)
class Settings:
    """How tasks are run; none of it changes a result."""

    home: Path
    """Root of the artifact store."""
    jobs: int = 1
    """Tasks that run side by side."""
    threads: int | None = None
    """Threads per task. Default: torch's own number for one job, else the cores divided by the jobs."""
    address: str | None = None
    """Address of a Ray cluster. Default: `$RAY_ADDRESS`, else a cluster on this machine alone."""
    keep_going: bool = False
    """Whether a task that fails ends its own study alone, instead of all."""


@dataclass(frozen=True)
class Event:
    """Something that happened to a task."""

    task: str
    """Its id."""


@dataclass(frozen=True)
class Started(Event):
    """A task's computation began (not sent where the artifact exists already)."""


@dataclass(frozen=True)
class Progressed(Event):
    """A task has done some steps of a loop."""

    label: str
    done: int
    total: int | None


@dataclass(frozen=True)
class Finished:
    """A task whose artifact exists."""

    task: Stage
    artifact: Artifact
    damaged: tuple[str, ...]
    """Damaged artifacts that were removed and computed again on the way."""
    study: int = 0
    """Number of its workload."""


@dataclass(frozen=True)
class Failed:
    """A task that raised an error."""

    task: Stage | None
    """None if a worker failed before its first task."""
    error: BaseException
    trace: str = ""
    """Traceback of an error that is not the user's."""
    study: int = 0
    """Number of its workload."""
