"""Running a sweep: all combinations as one graph, one run folder each, and one page that compares them."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from layerprobe import interrupt
from layerprobe.errors import LayerprobeError, StorageError
from layerprobe.index import update_index
from layerprobe.pipeline import (
    Computation,
    Found,
    check_space,
    compute,
    find_facts,
    new_record,
    planned_tasks,
    stay_offline,
)
from layerprobe.recording import Recording
from layerprobe.runs import Run
from layerprobe.store import ArtifactStore
from layerprobe.study import slug
from layerprobe.sweep._config import Combination, Sweep, for_each
from layerprobe.sweep._plan import shared_tasks


@dataclass(frozen=True)
class SweepResult:
    """The outcome of a sweep."""

    runs: Mapping[str, Run]
    """Runs by combination, those that failed included; `record.status` of each says which."""
    failures: Mapping[str, BaseException]
    """Why combinations failed."""
    page: Path | None
    """The page that compares the finished runs; None if it could not be written."""
    problem: str | None = None
    """Why there is no such page."""


def run_sweep(
    sweep: Sweep,
    computation: Computation | None = None,
    *,
    out: str | Path | None = None,
    home: Path | None = None,
    command: str | None = None,
    progress: bool = True,
) -> SweepResult:
    """Run every combination of a sweep, and compare the runs on one page.

    The tasks of all combinations form one graph, in which each artifact is computed once. A combination that fails ends alone.
    Finished tasks are kept: the same call resumes an interrupted sweep.

    Args:
        sweep: the sweep.
        computation: device, number of jobs and executor. Default: one task after another.
        out: folder of the page, with one run folder per combination; by default `reports/<name of the sweep>`.
        home: root of the artifact store; by default `$LAYERPROBE_HOME` or the user's cache folder.
        command: the command that repeats the sweep, kept in the records of the runs.
        progress: whether to show progress on stderr.

    Raises:
        StudyError: before anything is computed, naming the axis and value of everything that cannot run.
        StorageError: if a folder holds something else or cannot be written.
    """
    from layerprobe.report.comparison import check_folder

    computation = computation or Computation()
    computation.check()
    folder, store = Path(out) if out is not None else Path("reports") / slug(sweep.name), ArtifactStore(home)
    studies = sweep.studies()
    check_folder(folder)
    stay_offline(*studies.values())
    command = command or f"run_sweep(Sweep.load(...), out={str(folder)!r})"

    def described(one: Combination) -> tuple[Recording, Found]:
        record = new_record(studies[one], None, command, computation.device)
        recording = Recording(record, folder / slug(one.name), store, name=one.name)
        heading = f"Reading the data and the model: {one.name}" if progress else None
        found = find_facts(studies[one], computation, store, heading=heading)
        recording.describe(found.facts, found.artifacts)
        return recording, found

    pairs = for_each(tuple(studies), described)
    recordings = [recording for recording, _ in pairs]
    tasks = shared_tasks((recording.name, planned_tasks(found.facts.resolved, store, [])) for recording, found in pairs)
    check_space((one.task for one in tasks), store.root)
    for _, found in pairs:
        found.keep()
    with ExitStack() as stack:
        for recording in recordings:
            stack.enter_context(recording)
        for recording in compute(recordings, computation, store.root, keep_going=True, progress=progress):
            try:
                recording.complete()
            except Exception as error:
                if interrupt.heard():
                    raise
                if not isinstance(error, LayerprobeError):
                    traceback.print_exc()
                recording.fail(error)
    runs = {recording.name: recording.result for recording in recordings}
    failures = {recording.name: recording.error for recording in recordings if recording.error is not None}
    try:
        page, problem = _compare(runs, failures, folder), None
    except LayerprobeError as error:
        page, problem = None, str(error)
    update_index(folder)
    return SweepResult(runs, failures, page, problem)


def _compare(runs: Mapping[str, Run], failures: Mapping[str, BaseException], folder: Path) -> Path:
    """Write the page about the runs that are complete.

    Raises:
        StorageError, StudyError: if they cannot be compared.
    """
    from layerprobe.report import compare_runs

    finished = [run for name, run in runs.items() if name not in failures]
    if len(finished) < 2:
        raise StorageError(
            f"A comparison takes two runs or more, and {len(finished)} of the {len(runs)} combinations of the sweep finished."
        )
    notes = [f"The combination {name} is missing, since it failed: {runs[name].record.error}" for name in failures]
    return compare_runs(finished, folder, notes=notes)
