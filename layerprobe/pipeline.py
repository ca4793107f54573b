"""From a study to a run: plan the tasks, hand them to an executor, and complete the run folder."""

from __future__ import annotations

import inspect
import os
import shlex
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from layerprobe import hub
from layerprobe.description import near_copies_table
from layerprobe.display import Display, Durations
from layerprobe.errors import (
    CombinedError,
    DataError,
    EncoderError,
    LayerprobeError,
    Mistakes,
    StorageError,
    StudyError,
)
from layerprobe.executors import Failed, Finished, Settings, find_executor
from layerprobe.facts import Facts, KeptFacts, read_facts
from layerprobe.graph import expand
from layerprobe.index import update_index
from layerprobe.provenance import provenance
from layerprobe.record import Provenance, RunRecord, StudyRecord
from layerprobe.recording import Recording
from layerprobe.resolve import check_device, is_resolved_here, resolve
from layerprobe.runs import Run
from layerprobe.stage import ResolvedStudy, Stage, StudyShape
from layerprobe.stages.depth import family_of, power_note
from layerprobe.store import Artifact, ArtifactMeta, ArtifactStore
from layerprobe.study import Study, slug


@dataclass(frozen=True)
class PlannedTask:
    """One line of a plan."""

    stage: str
    name: str
    key: str | None
    """None while it depends on something that is not known yet."""
    finished: bool
    size: int | None
    """Bytes, None while unknown."""
    seconds: float
    """Expected time: what tasks of its stage took here before, else a guess. Also of a finished task."""
    measured: bool
    """Whether the expected time comes from tasks that ran here."""
    provisional_key: str | None = None
    """Equal for tasks that will be one artifact; in place of content that is not computed yet it has symbols. None without a
    model."""


@dataclass(frozen=True)
class Plan:
    """What `run` would do: its tasks in order, the bytes they take, and what cannot be known yet."""

    tasks: tuple[PlannedTask, ...]
    home: Path
    free: int
    notes: tuple[str, ...] = ()

    @property
    def needed(self) -> int:
        """Bytes that unfinished tasks would add."""
        return sum(task.size or 0 for task in self.tasks if not task.finished)

    @property
    def seconds(self) -> float:
        """Expected time of the unfinished tasks, one after the other."""
        return sum(task.seconds for task in self.tasks if not task.finished)


def plan(study: Study, *, device: str = "auto", precision: str = "auto", home: str | Path | None = None) -> Plan:
    """What `run` would do for this study. Computes nothing, and needs no network: what it cannot know is pending.

    Raises:
        StudyError, DataError, EncoderError: as `run` does, for what can be checked beforehand.
    """
    check_device(device)
    store = ArtifactStore(home)
    stay_offline(study)
    durations = Durations(store.root)
    try:
        facts = KeptFacts(study, device, precision, store.root).recall()
        resolved = facts.resolved if facts else resolve(study, device, precision).resolved
    except (DataError, EncoderError, CombinedError) as error:
        check_reachable(study, error)
        tasks = tuple(_line(task, None, False, None, durations) for task in expand(study, None))
        notes = (f"Keys and bytes are pending: {error}", *_power(StudyShape(study, None), study.data.test or 500))
        return Plan(tasks, store.root, _free(store.root), notes)
    damaged: list[str] = []
    lines = tuple(planned_tasks(resolved, store, damaged))
    notes = (*_near_copies(resolved), *_power(resolved.shape, resolved.n_test), *damaged)
    return Plan(lines, store.root, _free(store.root), notes)


def check_reachable(study: Study, error: LayerprobeError) -> None:
    """Raise those of the errors of a study that are not about data or a model of the Hub, which is out of reach.

    Raises:
        LayerprobeError: if there are any.
    """
    mistakes = Mistakes()
    for one in error.errors if isinstance(error, CombinedError) else (error,):
        name = study.data.source if isinstance(one, DataError) else study.model.name
        if not isinstance(one, DataError | EncoderError) or not hub.is_hub_id(name):
            mistakes.found.append(one)
    mistakes.report()


def _line(
    task: Stage,
    key: str | None,
    finished: bool,
    size: int | None,
    durations: Durations,
    provisional_key: str | None = None,
) -> PlannedTask:
    expected, measured = durations.expected(task), durations.is_measured(task)
    return PlannedTask(task.name, task.title, key, finished, size, expected, measured, provisional_key)


def planned_tasks(resolved: ResolvedStudy, store: ArtifactStore, damaged: list[str]) -> Iterable[PlannedTask]:
    """Every task with its key, as far as its parents are finished."""
    durations = Durations(store.root)
    for one in _inspected(resolved, store):
        task = one.task
        if one.problem is not None:
            damaged.append(f"{task.id} is damaged ({one.problem}) and would be computed again.")
        finished = one.artifact is not None
        yield _line(task, one.key, finished, task.size(resolved), durations, one.provisional_key)


class _Inspected(NamedTuple):
    """A task and what the store has of it."""

    task: Stage
    key: str | None
    """None while a parent is not finished."""
    provisional_key: str
    artifact: Artifact | None
    problem: str | None
    """How its artifact is damaged."""


def _inspected(resolved: ResolvedStudy, store: ArtifactStore) -> Iterator[_Inspected]:
    """Every task of a study, parents first; reads `meta.json` files alone."""
    metas: dict[Stage, ArtifactMeta] = {}
    known: set[Stage] = set()
    for task in expand(resolved.study, resolved.n_layers):
        parents = task.parents()
        key = task.key(resolved, {role: metas[parent] for role, parent in parents.items()})
        metas[task] = ArtifactMeta(task.name, task.title, key, {}, 0.0, 1, _Symbols(key), {})
        artifact = problem = None
        is_final = known.issuperset(parents.values())
        if is_final:
            artifact, problem = store.inspect(task.name, task.title, key)
            if artifact is not None:
                metas[task] = artifact.meta
                known.add(task)
        yield _Inspected(task, key if is_final else None, key, artifact, problem)


class Found(NamedTuple):
    """What is known of a study before its tasks run."""

    facts: Facts
    artifacts: dict[Stage, Artifact | None]
    """Every task with its artifact, or None where it is to be computed."""
    kept: KeptFacts
    """Where the facts are kept for later runs."""

    def keep(self) -> None:
        """Keep the facts for later runs; nothing is written before this."""
        self.kept.keep(self.facts)


def find_facts(study: Study, computation: Computation, store: ArtifactStore, *, heading: str | None = None) -> Found:
    """What data and model tell, and what the store has of the study.

    Data and model are read only if something is to be computed, or if they changed since they were read last.

    Args:
        study: the study.
        computation: where and how its tasks are computed.
        store: the artifact store.
        heading: printed to stderr before data and model are read.
    """

    def artifacts(facts: Facts) -> dict[Stage, Artifact | None]:
        return {one.task: one.artifact for one in _inspected(facts.resolved, store)}

    device, precision = computation.device, computation.precision
    kept = KeptFacts(study, device, precision, store.root)
    if (facts := kept.recall()) is not None:
        found = artifacts(facts)
        if None not in found.values() or is_resolved_here(facts.resolved, device, precision):
            return Found(facts, found, kept)
    if heading is not None:
        print(heading, file=sys.stderr, flush=True)
    facts = read_facts(study, device, precision)
    return Found(facts, artifacts(facts), kept)


class _Symbols(Mapping[str, str]):
    """Digests of the content of an artifact that is not computed yet: a symbol for each part that is asked for."""

    def __init__(self, key: str) -> None:
        self.key = key

    def __getitem__(self, part: str) -> str:
        return f"{part} of {self.key}"

    def __iter__(self) -> Iterator[str]:
        raise TypeError("the parts of an artifact that is not computed yet are unknown")

    def __len__(self) -> int:
        raise TypeError("the parts of an artifact that is not computed yet are unknown")


def _near_copies(resolved: ResolvedStudy) -> Iterable[str]:
    """What would be removed because it repeats an example of another part."""
    if not any(count.copies for count in resolved.near_copies):
        return []
    from layerprobe.report import near_copy_sentences

    found = near_copies_table(resolved)
    return near_copy_sentences(found[found.copies > 0])


def _power(shape: StudyShape, examples: int) -> tuple[str, ...]:
    """How many test examples a conclusion about depth would take, where methods are compared at all."""
    family = family_of(shape)
    return (power_note(family, shape.study.adaptation.margin, examples, len(shape.study.seeds)),) if family else ()


def run(
    study: Study,
    *,
    out: str | Path | None = None,
    device: str = "auto",
    precision: str = "auto",
    jobs: int = 1,
    threads: int | None = None,
    executor: str = "auto",
    address: str | None = None,
    home: str | Path | None = None,
    given: str | None = None,
    command: str | None = None,
    progress: bool = True,
) -> Run:
    """Run a study, and write its run folder and report.

    Finished tasks are kept in the artifact store: a second run of the same study computes nothing again, and an interrupted
    run resumes after its last finished task. A second run into the same folder leaves tables and page as they are, if nothing
    changed that they follow from; the page then shows the time of the run that made it.

    Args:
        study: the study.
        out: the run folder; by default `reports/<study name>` below the working folder.
        device: `auto`, `cpu`, `cuda` or `mps`.
        precision: of fine-tuning: `bf16`, `fp32`, or `auto`, which is bf16 where the processor has instructions for it.
        jobs: tasks that run side by side. With more than one, a script must call `run` below
            `if __name__ == "__main__":`.
        threads: threads per task; by default torch's own number for one job, else the cores divided by the jobs.
        executor: `serial`, `processes`, `ray`, or `auto`: serial for one job, else processes.
        address: address of a Ray cluster, such as `auto` or `ray://host:10001`; by default `$RAY_ADDRESS`, else a cluster
            on this machine alone.
        home: root of the artifact store; by default `$LAYERPROBE_HOME` or the user's cache folder.
        given: text of the study file, kept in the record of the run.
        command: the shell command that repeats the run, kept in the record of the run; by default one that calls Python.
        progress: whether to show progress on stderr.

    Raises:
        LayerprobeError: for user errors; nothing finished is lost.
    """
    computation = Computation(device, precision, jobs, threads, executor, address)
    computation.check()
    folder = Path(out) if out is not None else Path("reports") / slug(study.name)
    store = ArtifactStore(home)
    stay_offline(study)
    command = command or _command(study, out=str(folder), home=home, **vars(computation))
    with Recording(new_record(study, given, command, device), folder, store) as recording:
        heading = "Reading the data and the model" if progress else None
        found = find_facts(study, computation, store, heading=heading)
        recording.describe(found.facts, found.artifacts)
        check_space(planned_tasks(found.facts.resolved, store, []), store.root)
        found.keep()
        for one in list(compute([recording], computation, store.root, progress=progress)):
            one.complete()
    update_index(folder)
    return recording.result


@dataclass(frozen=True)
class Computation:
    """Where and how tasks are computed, as for `run`."""

    device: str = "auto"
    precision: str = "auto"
    jobs: int = 1
    threads: int | None = None
    executor: str = "auto"
    address: str | None = None

    def check(self) -> None:
        """Check what can be checked before anything is read.

        Raises:
            StudyError: if an option does not exist, or if this process is one of several of a launcher.
        """
        mistakes = Mistakes()
        with mistakes.collected():
            check_device(self.device)
        for name, number in (("jobs", self.jobs), ("threads", self.threads)):
            if number is not None and number < 1:
                mistakes.add(f"--{name} is {number}; it is a whole number of 1 or more.")
        if os.environ.get("WORLD_SIZE", "1") not in ("", "0", "1"):
            raise StudyError(
                f"WORLD_SIZE is {os.environ['WORLD_SIZE']}: this process is one of several that a launcher started, and each "
                "would run the whole study; start layerprobe without the launcher, and see docs/scaling.md for one training "
                "on several devices."
            )
        with mistakes.collected():
            find_executor(self.executor, self.jobs)
        if self.address is not None and self.executor != "ray":
            mistakes.add(
                f"--address {self.address} is for the executor ray; add --executor ray, or leave the address out."
            )
        mistakes.report()


def _command(study: Study, **options: Any) -> str:
    """A shell command that repeats a run from Python: the keys of the study and the options that are not the defaults."""
    given = inspect.signature(run).parameters
    words = {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}
    changed = [f"{name}={value!r}" for name, value in words.items() if value != given[name].default]
    content = study.model_dump(mode="json", exclude_defaults=True)
    code = f"from layerprobe import Study, run; run({', '.join([f'Study.parse({content!r})', *changed])})"
    return shlex.join(["python", "-c", code])


def new_record(study: Study, given: str | None, command: str, device: str) -> RunRecord:
    """The record of a run that begins."""
    return RunRecord(
        name=study.name,
        question=study.question,
        study=StudyRecord(given=given, resolved=study.resolved()),
        command=command,
        provenance=Provenance(**provenance(device)),
    )


def compute(
    recordings: Sequence[Recording],
    computation: Computation,
    home: Path,
    *,
    keep_going: bool = False,
    progress: bool = True,
) -> Iterator[Recording]:
    """Compute the tasks of several runs as one graph; yields each run when its artifacts are there and whole.

    Args:
        recordings: runs that were described.
        computation: where and how.
        home: root of the artifact store.
        keep_going: whether a task that fails ends its own run alone.
        progress: whether to show progress on stderr.

    Raises:
        LayerprobeError: for user errors, unless only their own runs are to end.
    """
    execute = find_executor(computation.executor, computation.jobs)
    settings = Settings(home, computation.jobs, computation.threads, computation.address, keep_going)
    workloads = [recording.workload for recording in recordings]
    with Display(
        [replace(workload, tasks=one.tasks) for workload, one in zip(workloads, recordings, strict=True)],
        home,
        computation.jobs,
        visible=progress,
    ) as display:

        def checked(recording: Recording) -> tuple[Stage, ...]:
            known = len(recording.record.recomputed)
            tasks = recording.damaged()
            display.note(recording.record.recomputed[known:])
            return tasks

        pending = []
        for number, (workload, recording) in enumerate(zip(workloads, recordings, strict=True)):
            for task, artifact in recording.finished.items():
                display.finished(Finished(task, artifact, (), number))
            tasks = workload.tasks or checked(recording)
            pending.append(replace(workload, tasks=tasks))
            if not tasks:
                yield recording
        while any(workload.tasks for workload in pending):
            left = [len(workload.tasks) for workload in pending]
            damaged = [replace(workload, tasks=()) for workload in workloads]
            for done in execute(pending, settings, display.on_event):
                number, recording = done.study, recordings[done.study]
                if isinstance(done, Failed):
                    display.failed(done)
                    if recording.error is None:
                        recording.fail(done.error)
                    continue
                recording.add(done)
                display.finished(done)
                left[number] -= 1
                if left[number] == 0 and recording.error is None:
                    damaged[number] = replace(damaged[number], tasks=checked(recording))
                    if not damaged[number].tasks:
                        yield recording
            pending = damaged


# Disk and network ------------------------------------------------------------------------------------------------------


def check_space(tasks: Iterable[PlannedTask], home: Path) -> None:
    """Refuse tasks that would add more bytes than are free.

    Raises:
        StorageError: in one sentence.
    """
    needed, free = sum(task.size or 0 for task in tasks if not task.finished), _free(home)
    if needed > free:
        raise StorageError(
            f"This study needs about {needed / 1e6:,.1f} MB in {home} and {free / 1e6:,.1f} MB are free; lower "
            'activations.examples or sae.rows, choose activations.dtype = "float16", or set LAYERPROBE_HOME to a '
            "larger disk."
        )


def _free(folder: Path) -> int:
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def stay_offline(*studies: Study) -> None:
    """Keep libraries from looking anything up that the studies do not need."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("WANDB_MODE", "disabled")
    names = [
        name for one in studies for name in (one.model.name, one.data.source, *(ood.source for ood in one.data.ood))
    ]
    if not any(hub.is_hub_id(name) for name in names):
        hub.stay_offline()
    elif "HF_HUB_OFFLINE" not in os.environ and not hub.allow():
        print(
            f"{hub.endpoint()} cannot be reached: the run uses what is on this disk, as with HF_HUB_OFFLINE=1.",
            file=sys.stderr,
        )
