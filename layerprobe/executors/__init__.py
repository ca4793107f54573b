"""Executors: ways of running the tasks of one study or several. They know nothing about particular stages.

An executor is a function `execute(workloads, settings, on_event) -> Iterator[Finished | Failed]`. Each workload holds the
tasks of one study in topological order, and all of them run as one graph; settings and events are picklable. An executor
raises the error of a task that fails; with `settings.keep_going` it returns the error and goes on with the other studies.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence

from layerprobe.errors import StudyError
from layerprobe.executors._events import Event, Failed, Finished, Progressed, Settings, Started, Workload
from layerprobe.executors._worker import end_if_imported_by_worker

__all__ = ["EXECUTORS", "Event", "Failed", "Finished", "Progressed", "Settings", "Started", "Workload", "find_executor"]

EXECUTORS = ("serial", "processes", "ray")
"""Names of the modules of this package that hold an executor."""

Executor = Callable[[Sequence[Workload], Settings, Callable[[Event], None]], Iterator[Finished | Failed]]


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
