"""Executors: ways of running one list of tasks. They know nothing about particular stages.

An executor is a function `execute(tasks, study, settings, on_event) -> Iterator[Finished]`. Tasks are in topological order;
settings and events are picklable.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from layerprobe.errors import StudyError
from layerprobe.executors._events import Event, Finished, Progressed, Settings, Started
from layerprobe.executors._worker import end_if_imported_by_worker

if TYPE_CHECKING:
    from layerprobe.stage import ResolvedStudy, Stage

__all__ = ["EXECUTORS", "Event", "Finished", "Progressed", "Settings", "Started", "find_executor"]

EXECUTORS = ("serial", "processes", "ray")
"""Names of the modules of this package that hold an executor."""

Executor = Callable[["Sequence[Stage]", "ResolvedStudy", Settings, Callable[[Event], None]], Iterator[Finished]]


def find_executor(name: str, jobs: int) -> Executor:
    """The executor of a name; `auto` is `serial` for one job and `processes` for several.

    Raises:
        StudyError: if there is no such executor.
    """
    end_if_imported_by_worker()
    if name == "auto":
        name = "serial" if jobs == 1 else "processes"
    if name not in EXECUTORS:
        raise StudyError(f"The executor {name!r} is unknown; the executors are auto, {', '.join(EXECUTORS)}.")
    return importlib.import_module(f"layerprobe.executors.{name}").execute
