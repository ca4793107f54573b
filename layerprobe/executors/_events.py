"""What executors are given besides tasks, and what they report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from layerprobe.stage import Stage
    from layerprobe.store import Artifact


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
