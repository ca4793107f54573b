"""From a study to a run: the plan of tasks, their order, and what is kept between runs."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerprobe import hub, interrupt
from layerprobe.artifacts import Artifact, ArtifactStore, is_full
from layerprobe.errors import DataError, EncoderError, LayerprobeError, StorageError
from layerprobe.provenance import provenance
from layerprobe.runs import LOCK, PAGE, Run
from layerprobe.stages.depth import CONCLUSION, family_of, power_note
from layerprobe.study import Study, slug
from layerprobe.task import Parents, Task
from layerprobe.tasks import asked_methods, outline, seeds_of, tasks_of

if TYPE_CHECKING:
    from layerprobe.adaptation import Method
    from layerprobe.inputs import Inputs


DATA_FILES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet", ".txt")
"""Endings of names that are files even where none is there: no Hub id ends so."""


@dataclass(frozen=True)
class PlannedTask:
    """A line of a plan."""

    stage: str
    name: str
    key: str | None
    """None while it hangs on something that is not known yet."""
    finished: bool
    size: int | None
    """Bytes, None while unknown."""


@dataclass(frozen=True)
class Plan:
    """What `run` would do: its tasks in order, the bytes they take, and what cannot be known yet."""

    tasks: tuple[PlannedTask, ...]
    home: Path
    free: int
    notes: tuple[str, ...] = field(default=())

    @property
    def needed(self) -> int:
        """Bytes that unfinished tasks would add."""
        return sum(task.size or 0 for task in self.tasks if not task.finished)


def plan(study: Study, *, device: str = "auto", precision: str = "auto", home: Path | None = None) -> Plan:
    """What `run` would do for this study. Computes nothing, and needs no network: what it can't know is pending.

    Raises:
        StudyError, DataError, EncoderError: as `run` does, for what can be checked beforehand.
    """
    store = ArtifactStore(home)
    _stay_offline(study)
    try:
        inputs = _inputs(study, device, precision, store.root, progress=False)
    except (DataError, EncoderError) as error:
        here = study.data.source if isinstance(error, DataError) else study.model.name
        if not _of_the_hub(here):
            raise
        return Plan(
            tuple(PlannedTask(stage, name, None, False, None) for stage, name in outline(study)),
            store.root,
            _free(store.root),
            (f"Keys and bytes are pending: {error}", *_power(study, asked_methods(study), study.data.test or 500)),
        )
    done: dict[str, Artifact] = {}
    lines = []
    for task in tasks_of(inputs):
        key = task.key(done)
        found = store.find(task.stage, task.name, key) if key else None
        if found:
            done[task.id] = found
        lines.append(PlannedTask(task.stage, task.name, key, found is not None, task.size))
    notes = _power(study, inputs.methods, len(inputs.corpus.test))
    return Plan(tuple(lines), store.root, _free(store.root), (*notes, *store.damaged))


def _power(study: Study, methods: Sequence[Method], texts: int) -> tuple[str, ...]:
    """How many test texts a conclusion about depth would take, where methods are compared at all."""
    family = family_of(methods, partial(seeds_of, study))
    return (power_note(family, study.adaptation.margin, texts),) if family else ()


def run(
    study: Study,
    *,
    out: str | Path | None = None,
    device: str = "auto",
    precision: str = "auto",
    home: Path | None = None,
    given: str | None = None,
    command: str | None = None,
    progress: bool = True,
) -> Run:
    """Do what a study asks for, and write its run folder and report.

    Finished tasks are kept in the artifact store: a second run of the same study computes nothing again, and a run
    that was interrupted goes on from its last finished task.

    Args:
        study: what is asked for.
        out: the run folder; by default `reports/<study name>` below the working folder.
        device: `auto`, `cpu`, `cuda` or `mps`.
        precision: of fine-tuning: `bf16`, `fp32`, or `auto`, which is bf16 where the processor has instructions for it.
        home: root of the artifact store; by default `$LAYERPROBE_HOME` or the user's cache folder.
        given: the study's own text, kept in the run's record.
        command: the command that repeats the run, kept in the run's record.
        progress: whether to tell what happens on stderr.

    Raises:
        LayerprobeError: for what is the user's to mend; nothing finished is lost.
    """
    from filelock import FileLock, Timeout

    start = time.perf_counter()
    folder = Path(out) if out is not None else Path("reports") / slug(study.name)
    store = ArtifactStore(home)
    _stay_offline(study)
    record: dict[str, Any] = {
        "status": "running",
        "name": study.name,
        "question": study.question,
        "study": {"given": given, "resolved": study.resolved()},
        "command": command or f"layerprobe.run(Study.load(...), out={str(folder)!r})",
        "provenance": provenance(device),
        "tasks": [],
        "findings": [],
        "error": None,
    }
    Run.prepare(folder)
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise StorageError(
            f"Another run is writing to {folder}; wait for it, or give another folder with --out."
        ) from None
    result = None
    try:
        result = Run.create(folder, record)
        inputs = _inputs(study, device, precision, store.root, progress=progress)
        result.record |= {"data": inputs.describe_data(), "encoder": inputs.describe_encoder()}
        result.record["provenance"] |= {"device": inputs.device, "precision": inputs.precision}
        tasks = tasks_of(inputs)
        _check_space(tasks, store)
        done: dict[str, Artifact] = {}
        for number, task in enumerate(tasks, 1):
            key = task.key(done)
            assert key is not None, f"{task.id} stands before one of its parents"
            tell = _Teller(f"[{number}/{len(tasks)}] {task.id}", progress)
            parents = {parent: done[parent] for parent in task.parents}
            artifact = store.make(
                task.stage,
                task.name,
                key,
                _builder(task, parents, tell),
                about=task.identity(done),
                resumable=task.resumable,
            )
            tell.finished(artifact)
            done[task.id] = artifact
            result.record["tasks"].append(
                {
                    "stage": task.stage,
                    "name": task.name,
                    "key": key,
                    "seconds": artifact.seconds,
                    "reused": artifact.reused,
                }
            )
            result.save()
        _finish(result, inputs, done, store)
        result.record["provenance"] |= {
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": time.perf_counter() - start,
        }
        result.record["status"] = "complete"
        result.save()
        from layerprobe.report import write_report

        write_report(result, folder / PAGE)
    except BaseException as error:
        if result is not None:
            result.record |= {"status": "failed", "error": _one_line(error)}
            _save_quietly(result)
        if is_full(error) and not isinstance(error, LayerprobeError):
            raise StorageError(
                f"The disk is full: the run in {folder} could not be written. Every finished task is kept in "
                f"{store.root}; free some space, or give a folder on a larger disk with --out, and run the same command "
                "again."
            ) from error
        raise
    finally:
        lock.release()
        (folder / LOCK).unlink(missing_ok=True)
    return result


class _Teller:
    """Tells of one task on stderr: a line when it begins, and how long it took."""

    def __init__(self, title: str, progress: bool) -> None:
        self.title = title
        self.progress = progress
        self.began = False

    def begin(self) -> None:
        self.began = True
        if self.progress:
            print(self.title, file=sys.stderr, flush=True)

    def finished(self, artifact: Artifact) -> None:
        if self.progress:
            how = "kept from before" if artifact.reused else f"{artifact.seconds:.1f} s"
            print(f"    {how}" if self.began else f"{self.title}: {how}", file=sys.stderr, flush=True)


def _builder(task: Task, parents: Parents, tell: _Teller) -> Callable[[Path], None]:
    def build(folder: Path) -> None:
        tell.begin()
        task.build(folder, parents)

    return build


def _inputs(study: Study, device: str, precision: str, home: Path, *, progress: bool) -> Inputs:
    if progress:
        print("Reading the data and the model", file=sys.stderr, flush=True)
    from layerprobe.inputs import load_inputs

    return load_inputs(study, device, home, progress=progress, precision=precision)


def _finish(result: Run, inputs: Inputs, done: Parents, store: ArtifactStore) -> None:
    """Gather the tables of all tasks, and the findings made from them."""
    import pandas as pd

    from layerprobe.report import findings

    parts: dict[str, list[pd.DataFrame]] = {"examples": [inputs.examples_table()]}
    for artifact in done.values():
        for path in sorted((artifact.folder / "tables").glob("*.parquet")):
            parts.setdefault(path.stem, []).append(pd.read_parquet(path))
        if (artifact.folder / CONCLUSION).exists():
            result.record["sufficiency"] = json.loads((artifact.folder / CONCLUSION).read_text(encoding="utf-8"))
    tables = {name: pd.concat(frames, ignore_index=True) for name, frames in parts.items()}
    result.save_tables(tables)
    result.record["data"]["notes"] += inputs.notes()
    result.record["recomputed"] = list(store.damaged)
    result.record["findings"] = [{"text": f.text, "figure": f.figure} for f in findings(tables, result.record)]


def _check_space(tasks: list[Task], store: ArtifactStore) -> None:
    done: dict[str, Artifact] = {}
    needed = 0
    for task in tasks:
        key = task.key(done)
        if key and store.folder(task.stage, task.name, key).exists():
            folder = store.folder(task.stage, task.name, key)
            done[task.id] = Artifact(folder, key, 0.0, reused=True)
        else:
            needed += task.size
    free = _free(store.root)
    if needed > free:
        raise StorageError(
            f"This study needs about {needed / 1e6:,.1f} MB in {store.root} and {free / 1e6:,.1f} MB are free; lower "
            'activations.examples or sae.rows, choose activations.dtype = "float16", or set LAYERPROBE_HOME to a '
            "larger disk."
        )


def _free(folder: Path) -> int:
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _of_the_hub(name: str) -> bool:
    """Whether a model or a data source is neither bundled nor a path."""
    path = Path(name).expanduser()
    pathlike = name.startswith((".", "/", "~")) or name.count("/") > 1 or path.suffix.lower() in DATA_FILES
    return not (name.startswith("bundled:") or pathlike or path.exists())


def _stay_offline(study: Study) -> None:
    """Keep libraries from looking anything up that the study does not need."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("WANDB_MODE", "disabled")
    sources = [study.data.source, *(one.source for one in study.data.ood)]
    if not any(_of_the_hub(name) for name in (study.model.name, *sources)):
        hub.stay_offline()
    elif "HF_HUB_OFFLINE" not in os.environ and not hub.allow():
        print(
            f"{hub.endpoint()} is out of reach: going on as with HF_HUB_OFFLINE=1, with what is on this disk.",
            file=sys.stderr,
        )


def _one_line(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt) or interrupt.heard():
        return "interrupted"
    text = " ".join(str(error).split()) or type(error).__name__
    return text if isinstance(error, LayerprobeError) else f"{type(error).__name__}: {text}"


def _save_quietly(result: Run) -> None:
    """Record a failure where that is still possible: on a full disk the first error is the one to show."""
    try:
        result.save()
    except OSError:
        print(f"The run's record in {result.folder} could not be updated.", file=sys.stderr)
