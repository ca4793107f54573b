"""A run folder while its tasks run: locked, with a record that is kept up to date, completed or marked as failed."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from filelock import FileLock, Timeout

from layerprobe import interrupt
from layerprobe.context import shared_context
from layerprobe.description import collect, describe, opened_folders, task_record
from layerprobe.errors import LayerprobeError, StorageError
from layerprobe.executors import Finished, Workload
from layerprobe.facts import Facts
from layerprobe.files import is_disk_full, os_problem
from layerprobe.outputs import Outputs, page_source, tables_source
from layerprobe.record import RunRecord
from layerprobe.runs import LOCK, PAGE, Run
from layerprobe.stage import ResolvedStudy, Stage
from layerprobe.store import Artifact, ArtifactStore


class Recording:
    """One run in the making: enter it to create its folder, `describe` it, `add` results, and `complete` it.

    Leaving it with an error marks the run as failed.
    """

    def __init__(self, record: RunRecord, folder: Path, store: ArtifactStore, *, name: str = "") -> None:
        self.record, self.folder, self.store, self.name = record, folder, store, name
        self.finished: dict[Stage, Artifact] = {}
        self.error: BaseException | None = None
        """Why it failed."""
        self.ended = False
        """Whether it is complete, with its page."""
        self.tasks: tuple[Stage, ...] = ()
        """All tasks of the study, parents first."""
        self._resolved: ResolvedStudy | None = None
        self._result: Run | None = None
        self._lock = FileLock(folder / LOCK, timeout=0)
        self._start = time.perf_counter()

    def __enter__(self) -> Self:
        Run.prepare(self.folder)
        try:
            self._lock.acquire()
        except Timeout:
            raise StorageError(
                f"Another run is writing to {self.folder}; wait for it, or give another folder with --out."
            ) from None
        except OSError as error:
            raise StorageError(f"{os_problem(error, self.folder / LOCK)}; give another folder with --out.") from error
        try:
            Run.remove_partial_files(self.folder)
            self._earlier = Outputs(self.folder)
            self._result = Run.create(self.folder, self.record)
        except BaseException as error:
            self._lock.release()
            if (shown := self._in_words(error)) is not error:
                raise shown from error
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is not None and self.error is None and not self.ended:
                self.fail(error)
                if self.error is not error:
                    raise self.error from error  # type: ignore[misc]
        finally:
            # The lock's file stays: a run that waits for it would hold another file than one that comes after its removal.
            self._lock.release()

    @property
    def result(self) -> Run:
        """The run as far as it is written."""
        assert self._result is not None
        return self._result

    @property
    def workload(self) -> Workload:
        """The tasks that are not finished."""
        assert self._resolved is not None
        return Workload(self._resolved, tuple(task for task in self.tasks if task not in self.finished), self.name)

    def describe(self, facts: Facts, found: Mapping[Stage, Artifact | None]) -> None:
        """Record what is known of data, model and methods before the first task.

        Args:
            facts: what data and model tell.
            found: every task with its artifact, or None where it is to be computed.
        """
        self._resolved, self.tasks = facts.resolved, tuple(found)
        self.finished = {task: artifact for task, artifact in found.items() if artifact is not None}
        describe(self.record, facts)

    def add(self, done: Finished) -> None:
        """Record a finished task."""
        self.finished[done.task] = done.artifact
        self.record.recomputed += done.damaged
        self._note_tasks()
        self.result.save()

    def _note_tasks(self) -> None:
        self.record.tasks = [task_record(task, self.finished[task]) for task in self.tasks if task in self.finished]

    def damaged(self) -> tuple[Stage, ...]:
        """Tasks whose artifacts were reused and turn out to be damaged, which are removed, or were removed in the meantime."""
        known = len(self.store.damaged)
        found = []
        for task, artifact in self.finished.items():
            if not artifact.folder.is_dir():
                where = f"{artifact.folder.parent.name}/{artifact.folder.name}:"
                # A worker that found damage has removed it, and said so.
                if not any(one.startswith(where) for one in (*self.record.recomputed, *self.store.damaged)):
                    self.store.damaged.append(f"{where} it was removed while the run used it; computed again")
                found.append(task)
            elif artifact.reused and not self.store.check(artifact):
                found.append(task)
        self.record.recomputed += self.store.damaged[known:]
        return tuple(found)

    def complete(self) -> None:
        """Collect the tables of all tasks and write the page, unless an earlier run left the same ones."""
        assert self._resolved is not None
        result, record, earlier = self.result, self.record, self._earlier
        self._note_tasks()
        record.artifacts = list(opened_folders(self.finished))
        tables = tables_source(self._resolved, self.finished, self.tasks)
        if earlier.record is not None and earlier.tables_hold(tables):
            for name in ("tables", "findings", "sufficiency"):
                setattr(record, name, getattr(earlier.record, name))
        else:
            collect(result, shared_context(self._resolved), self.finished, self.tasks)
        record.provenance.finished = datetime.now(UTC).isoformat(timespec="seconds")
        record.provenance.seconds = time.perf_counter() - self._start
        record.status = "complete"
        result.save()
        page = page_source(record)
        if not earlier.page_holds(page):
            from layerprobe.report import write_report

            write_report(result, self.folder / PAGE)
            earlier.note(tables, page)
        self.ended = True

    def fail(self, error: BaseException) -> None:
        """Record why the run failed, and keep it in `error` as it is to be shown."""
        cut = isinstance(error, KeyboardInterrupt) or interrupt.heard()
        self.record.status = "interrupted" if cut else "failed"
        self.record.error = (interrupt.heard() or "Ctrl-C") if cut else _one_line(error)
        try:
            self.result.save()
        except OSError:  # on a full disk the first error is the one to show
            print(f"The record of the run in {self.folder} could not be updated.", file=sys.stderr)
        self.error = self._in_words(error)

    def _in_words(self, error: BaseException) -> BaseException:
        """The error, or where something cannot be read or written, one that says so."""
        if isinstance(error, LayerprobeError):
            return error
        if not is_disk_full(error):
            if not isinstance(error, OSError) or self._is_elsewhere(error):
                return error
            return StorageError(
                f"{os_problem(error, self.folder)}, so the run in {self.folder} was not finished. Every finished task is kept in "
                f"{self.store.root}; put that right, and run the same command again."
            )
        return StorageError(
            f"The disk is full: the run in {self.folder} could not be written. Every finished task is kept in "
            f"{self.store.root}; free some space, or give a folder on a larger disk with --out, and run the same command "
            "again."
        )

    def _is_elsewhere(self, error: OSError) -> bool:
        """Whether an error is about a file that is neither in the run folder nor in the artifact store."""
        if not isinstance(error.filename, str | bytes):
            return True
        path = Path(os.fsdecode(error.filename)).absolute()
        return not any(path.is_relative_to(folder.absolute()) for folder in (self.folder, self.store.root))


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if isinstance(error, LayerprobeError) else f"{type(error).__name__}: {text}"
