"""Independent tasks side by side in worker processes on this machine."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from typing import Any

from layerprobe import interrupt
from layerprobe.errors import LayerprobeError, StudyError
from layerprobe.executors._events import Event, Failed, Finished, Settings, Workload
from layerprobe.executors._schedule import Schedule, StudyTask
from layerprobe.executors._worker import MOST_LOSSES, THREAD_VARIABLES, UNGUARDED, StudyWorkers, picklable


class _WorkerProcess:
    """One worker process, its connection, and the task that it computes."""

    def __init__(self, number: int, start: Callable[[int, Connection], Any]) -> None:
        self.number = number
        self.connection, theirs = multiprocessing.get_context("spawn").Pipe()
        self.process = start(number, theirs)
        theirs.close()
        self.ready = False
        self.task: StudyTask | None = None

    def stop(self) -> None:
        if self.process.is_alive():
            self.process.terminate()
        self.connection.close()

    def join(self) -> None:
        self.process.join(20)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def execute(
    workloads: Sequence[Workload], settings: Settings, on_event: Callable[[Event], None]
) -> Iterator[Finished | Failed]:
    """Run tasks in worker processes, each as soon as its parents are finished, in their order where several are ready.

    Workers are spawned once, and keep model and data between tasks. A worker that is killed is replaced, and its task starts
    again. Of tasks that use an accelerator, one runs at a time.

    Raises:
        StudyError: if the calling script has no `__main__` guard, so that each worker would run it again, or if workers
            end repeatedly.
    """
    context = multiprocessing.get_context("spawn")
    running = context.Array("i", settings.jobs * 2)
    threads = settings.threads or max(1, (os.cpu_count() or 1) // settings.jobs)
    studies = [replace(workload, tasks=()) for workload in workloads]

    def start(number: int, connection: Connection) -> Any:
        process = context.Process(
            target=_work, args=(connection, studies, settings, threads, running, number), daemon=True
        )
        with _environment(dict.fromkeys(THREAD_VARIABLES, str(threads))), _interrupts_later():
            process.start()
        return process

    schedule = Schedule(workloads, keep_going=settings.keep_going)
    losses: dict[StudyTask | None, int] = {}
    workers: list[_WorkerProcess] = []
    try:
        workers += [_WorkerProcess(number, start) for number in range(min(settings.jobs, len(schedule)))]
        while schedule.active:
            for worker in workers:
                if worker.ready and worker.task is None and (task := _next(schedule, workers)) is not None:
                    schedule.start(task)
                    worker.task = task
                    with suppress(OSError):  # a dead worker's sentinel says so below
                        worker.connection.send(task)
            waited: list[Any] = [worker.connection for worker in workers]
            happened = set(wait(waited + [worker.process.sentinel for worker in workers]))
            for place, worker in enumerate(workers):
                if worker.connection in happened or worker.process.sentinel in happened:
                    message = _receive(worker) or _lost(worker, losses)
                    if isinstance(message, Event):
                        on_event(message)
                    elif isinstance(message, Finished):
                        worker.task = None
                        schedule.end(message)
                        yield message
                    elif message is None or isinstance(message, Failed):
                        if message is not None:
                            schedule.end(message)
                        elif worker.task is not None:
                            schedule.restart(worker.task)
                        running[2 * worker.number] = 0
                        worker.stop()
                        workers[place] = _WorkerProcess(worker.number, start)
                        if message is not None:
                            yield message
                    else:
                        worker.ready = True
    finally:
        for worker in workers:
            worker.stop()
        for worker in workers:
            worker.join()


def _next(schedule: Schedule, workers: list[_WorkerProcess]) -> StudyTask | None:
    """The first task that may start now."""

    def accelerated(one: StudyTask) -> bool:
        return one.task.accelerator and schedule.workloads[one.study].study.device != "cpu"

    busy = any(worker.task is not None and accelerated(worker.task) for worker in workers)
    return next((task for task in schedule.startable() if not (busy and accelerated(task))), None)


def _receive(worker: _WorkerProcess) -> Any:
    """A worker's next message, or None if it is dead."""
    try:
        return worker.connection.recv() if worker.connection.poll() or worker.process.is_alive() else None
    except (EOFError, OSError):
        worker.process.join(20)
        return None


def _lost(worker: _WorkerProcess, losses: dict[StudyTask | None, int]) -> Failed | None:
    """Count the workers that ended during each task, or before their first one; a failure if there were too many.

    Raises:
        StudyError: if there is no point in starting another one.
    """
    code = worker.process.exitcode
    if code == UNGUARDED:
        raise StudyError(
            "Worker processes import the script that calls layerprobe.run, and this one would start itself again in each: "
            'put the call below `if __name__ == "__main__":`, or use jobs=1.'
        )
    if not worker.ready and code is not None and code > 0:
        raise StudyError(
            f"A worker process ended before its first task (exit code {code}; its error is shown above). Workers import the "
            "script that calls layerprobe.run; use jobs=1 if it is not a file that can be imported."
        )
    losses[worker.task] = losses.get(worker.task, 0) + 1
    if losses[worker.task] < MOST_LOSSES:
        return None
    number, task = worker.task if worker.task is not None else (0, None)
    what = f"that ran {task.id}" if task is not None else "that waited for a task"
    error = StudyError(
        f"A worker process {what} ended {MOST_LOSSES} times (last exit code {code}), perhaps because memory ran out; use "
        "fewer jobs, or a smaller study."
    )
    return Failed(task, error, study=number)


def _work(
    connection: Connection, studies: Sequence[Workload], settings: Settings, threads: int, running: Any, number: int
) -> None:
    """The main loop of a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides; it terminates its workers
    signal.signal(signal.SIGTERM, _interrupt)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    lock = threading.Lock()

    def send(message: Any) -> None:
        with lock:
            connection.send(message)

    @contextmanager
    def gauge() -> Iterator[Callable[[], int]]:
        """Counts tasks that are computed at once: `running` holds for each worker whether it computes, and the peak."""
        with running.get_lock():
            running[2 * number] = 1
            count = sum(running[::2])
            for other in range(0, len(running), 2):
                running[other + 1] = max(running[other + 1], count) if other != 2 * number else count
        try:
            yield lambda: int(running[2 * number + 1])
        finally:
            running[2 * number] = 0

    study, task = 0, None
    try:
        import torch

        torch.set_num_threads(threads)
        workers = StudyWorkers(studies, settings, send, gauge=gauge)
        send("ready")
        while True:
            study, task = connection.recv()
            send(workers.run(StudyTask(study, task)))
    except (EOFError, BrokenPipeError):
        return
    except KeyboardInterrupt:
        interrupt.end_at_once(0)
    except BaseException as error:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the process ends anyway, and without a traceback
        trace = "" if isinstance(error, LayerprobeError) else traceback.format_exc()
        with suppress(OSError):
            send(Failed(task, picklable(error), trace, study))


def _interrupt(number: int, frame: Any) -> None:
    # A scheduler sends it to all processes, and then the parent to its workers: the second disturbs no clean-up.
    signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _end_with_parent() -> None:
    """End this process when its parent is gone, even if the parent was killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextmanager
def _interrupts_later() -> Iterator[None]:
    """Hold Ctrl-C back; processes that are started inside this context do not receive it."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Environment variables for processes that are started inside this context."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
