"""Tasks one after another, in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from layerprobe.executors._events import Event, Finished, Settings
from layerprobe.executors._worker import Worker

if TYPE_CHECKING:
    from layerprobe.stage import ResolvedStudy, Stage


def execute(
    tasks: Sequence[Stage], study: ResolvedStudy, settings: Settings, on_event: Callable[[Event], None]
) -> Iterator[Finished]:
    """Run tasks in their order."""
    from layerprobe.context import shared_context

    worker = Worker(study, settings, on_event, context=shared_context(study))
    with ExitStack() as stack:
        if settings.threads is not None:
            stack.enter_context(limited_threads(settings.threads))
        for task in tasks:
            yield worker.run(task)


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
