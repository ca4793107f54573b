"""Tasks one after another, in this process."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack

from layerprobe import interrupt
from layerprobe.errors import LayerprobeError
from layerprobe.executors._events import Event, Failed, Finished, Settings, Workload
from layerprobe.executors._schedule import Schedule
from layerprobe.executors._worker import StudyWorkers


def execute(
    workloads: Sequence[Workload], settings: Settings, on_event: Callable[[Event], None]
) -> Iterator[Finished | Failed]:
    """Run tasks in their order."""
    schedule = Schedule(workloads, keep_going=settings.keep_going)
    workers = StudyWorkers(workloads, settings, on_event)
    with ExitStack() as stack:
        if settings.threads is not None:
            stack.enter_context(limited_threads(settings.threads))
        while schedule.active:
            task = schedule.startable()[0]
            schedule.start(task)
            result: Finished | Failed
            try:
                result = workers.run(task)
            except Exception as error:
                if interrupt.heard() or not settings.keep_going:
                    raise
                trace = "" if isinstance(error, LayerprobeError) else traceback.format_exc()
                result = Failed(task.task, error, trace, task.study)
            schedule.end(result)
            yield result


def limited_threads(threads: int) -> ExitStack:
    """A context in which torch and the linear algebra libraries use so many threads."""
    import torch
    from threadpoolctl import threadpool_limits

    stack = ExitStack()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    stack.callback(torch.set_num_threads, before)
    stack.enter_context(threadpool_limits(threads))
    return stack
